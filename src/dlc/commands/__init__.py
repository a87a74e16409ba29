"""The verbs of the command line, one module each.

A module's docstring is its help; `configure(parser)` adds its options, `run(options, console)` does it and returns the
exit code.  What is heavy (torch, MLIR) is imported inside `run`, when it is known to be needed.
"""
