"""The command line: `dlc VERB ...`.  One module of `dlc.commands` per verb; this one finds it and ends the process.

Exit codes: 0 ok, 1 bad input, 2 usage, 3 not supported, 4 results differ, 5 internal error, 6 infeasible budget.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from dlc.console import Console
from dlc.errors import EXIT_INTERNAL, EXIT_USAGE, DlcError, Internal, MissingPackage

VERBS = {
    "demo": "compile two real models, compare them with their references, write a report",
    "compile": "compile a model into one .dlc file",
    "run": "run a .dlc file or a model on given or random inputs",
    "bench": "time a .dlc file or a model",
    "profile": "where the time of one inference goes, kernel by kernel",
    "opt": "run passes over a program's text and print the result",
    "diff": "compare two dumps, programs, or files of saved outputs",
    "explain": "what the compiler made of a model, or what an error code means",
    "verify": "compare a compiled model with its reference, tensor by tensor",
    "pack": "place buffers of known lifetimes below a capacity, or prove that it cannot be done",
    "doctor": "what is installed, what this machine can do, what a model would need",
}

EPILOG = """\
exit codes:
  0 ok, 1 bad input, 2 usage, 3 not supported, 4 results differ, 5 internal error, 6 infeasible budget

environment (flags win):
  DLC_DUMP_DIR     where every compilation writes its dumps
  DLC_CACHE_DIR    where compiled kernels are kept
  DLC_NUM_THREADS  threads per inference (else OMP_NUM_THREADS, else the cores this process may use)
  DLC_LOGS         what to log: passes, compile, ..., all; traceback for internal errors
  NO_COLOR         no colour

'dlc VERB --help' has examples.
"""


def build_parser(verb: str | None = None) -> argparse.ArgumentParser:
    """The parser of all verbs; only the module of `verb` is imported (of all, when it is None)."""
    parser = argparse.ArgumentParser(
        prog="dlc",
        description="A deep-learning compiler: PyTorch and ONNX through cascades of Einsums to native code.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", title="verbs")
    for name, summary in VERBS.items():
        if verb in (None, name):
            module = importlib.import_module(f"dlc.commands.{name}")
            sub = verbs.add_parser(
                name,
                help=summary,
                description=module.__doc__,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            module.configure(sub)
            sub.set_defaults(run=module.run)
        else:
            verbs.add_parser(name, help=summary, add_help=False)
    return parser


# Which extra brings a package that some verbs need.
_EXTRAS = {"lark": "compile", "ml_dtypes": "compile", "mlir": "compile", "torch": "torch", "onnx": "onnx"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = next((a for a in arguments if not a.startswith("-")), None)
    parser = build_parser(verb if verb in VERBS else "none of them")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as end:  # argparse ends the process itself, with 2 for a usage error and 0 for --help
        return int(end.code or 0)
    if options.verb is None:
        parser.print_help()
        return EXIT_USAGE
    console = Console(getattr(options, "format", "text"))
    try:
        return int(options.run(options, console))
    except DlcError as error:
        console.error(error)
        if error.exit_code == EXIT_INTERNAL and _wants_traceback():
            raise
        return error.exit_code
    except KeyboardInterrupt:
        console.warn("interrupted")
        return 130  # as shells have it: 128 + SIGINT
    except BrokenPipeError:
        # the reader of our output left, as `head` does: no error, but Python must not flush again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            return _crashed(error, console)
        console.error(MissingPackage(what=f"dlc {options.verb}", package=package, install=f"dlc[{_EXTRAS[package]}]"))
        return MissingPackage.exit_code
    except OSError as error:
        if error.filename is None:
            return _crashed(error, console)
        console.warn(f"cannot use '{error.filename}': {error.strerror}")
        return 1
    except Exception as error:
        return _crashed(error, console)


def _crashed(error: Exception, console: Console) -> int:
    if _wants_traceback():
        raise error
    fault = Internal(message=f"{type(error).__name__}: {error}")
    fault.add_note("DLC_LOGS=traceback shows where it happened")
    console.error(fault)
    return EXIT_INTERNAL


def _wants_traceback() -> bool:
    return "traceback" in os.environ.get("DLC_LOGS", "")


def _version() -> str:
    from dlc import __version__

    return f"dlc {__version__}"


if __name__ == "__main__":
    sys.exit(main())
