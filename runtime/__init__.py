"""Runs a compiled artifact: needs NumPy and the standard library, nothing else of dlc but `dlc.errors`."""
