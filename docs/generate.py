"""Writes the pages of docs/ that come from code: error codes, the command line, passes, scalar operators.

`make docs` runs it; a test compares, so that the pages cannot go stale.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).resolve().parent
NOTE = "<!-- written by docs/generate.py; `make docs` writes it again -->\n\n"

AREAS = {
    "00": "Everywhere",
    "01": "Text form, verifier, interpreter",
    "02": "Front ends",
    "03": "Passes and pipelines",
    "04": "Code generation",
    "05": "Artifact and runtime",
    "06": "Command line",
    "07": "Cost models",
    "09": "Faults of dlc",
}


def errors() -> str:
    """Each error code with its message, meaning and way out."""
    from dlc.commands.explain import all_errors

    lines = ["# Errors", "", "Every error has a code; `dlc explain CODE` prints the same as stands here.", ""]
    area = None
    for code, kind in all_errors().items():
        if code[3:5] != area:
            area = code[3:5]
            lines += [f"## {AREAS.get(area, area)}", ""]
        lines += [f"### {code} {kind.__name__}", "", f"> {kind.template}", ""]
        own = kind.__dict__.get("__doc__")
        if own:
            lines += [inspect.cleandoc(own), ""]
        if kind.hint and kind.hint != "{suggestion}":
            lines += [f"Way out: {kind.hint}", ""]
        lines += [f"Exit code {kind.exit_code}.", ""]
    return "\n".join(lines)


def command_line() -> str:
    """The help of every verb."""
    from dlc.cli import EPILOG, VERBS, build_parser

    lines = ["# Command line", "", "```", EPILOG.strip(), "```", ""]
    verbs = next(a for a in build_parser()._actions if a.dest == "verb").choices
    assert isinstance(verbs, dict)
    for name in VERBS:
        parser = verbs[name]
        parser.prog = f"dlc {name}"
        lines += [f"## dlc {name}", "", "```", parser.format_help().strip(), "```", ""]
    return "\n".join(lines)


def passes() -> str:
    """Each pass with its docstring and options, and the usual pipeline."""
    from dlc.passes.pipeline import options_of
    from dlc.passes.registry import passes as known

    lines = ["# Passes", "", "`dlc opt FILE --pass-pipeline 'name{option=value},...'` runs any of these.", ""]
    for name, kind in known().items():
        lines += [f"## {name}", "", *_indented(inspect.cleandoc(kind.__doc__ or "")), ""]
        for option, (type_name, default) in options_of(kind).items():
            lines.append(f"- `{option}`: {type_name}, default `{default}`")
        lines.append("")
    return "\n".join(lines)


def scalars() -> str:
    """The table of scalar operators."""
    from dlc.ir.monoid import MONOIDS
    from dlc.ir.scalar import CAST_MODES, SCALAR_OPS

    kinds = {"f": "float", "i": "signed", "u": "unsigned", "b": "bool"}
    lines = [
        "# Scalar operators",
        "",
        "The meaning is NumPy's on arrays of the operand type; integers wrap modulo 2^bits and nothing traps.",
        "",
        "| operator | text | operands | typing | on | rule |",
        "|---|---|---|---|---|---|",
    ]
    for op in SCALAR_OPS.values():
        on = ", ".join(kinds.get(k, k) for k in op.kinds)
        infix = f"`{op.infix}`".replace("|", "\\|") if op.infix else ""
        lines.append(f"| {op.name} | {infix} | {op.arity} | {op.typing} | {on} | {op.rule} |")
    lines += ["", "## Casts", "", "| mode | meaning |", "|---|---|"]
    lines += [f"| {mode} | {meaning} |" for mode, meaning in CAST_MODES.items()]
    lines += ["", "## Reductions", "", "| monoid | values |", "|---|---|"]
    lines += [f"| {name} | {monoid.arity} |" for name, monoid in MONOIDS.items()]
    return "\n".join([*lines, ""])


def _indented(text: str) -> list[str]:
    """A docstring as Markdown: indented blocks are code already, sections become bold."""
    return [re.sub(r"^(Attributes|Source|Args):", r"**\1:**", line) for line in text.splitlines()]


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors,
    "command-line.md": command_line,
    "passes.md": passes,
    "scalars.md": scalars,
}


def main() -> int:
    for name, write in PAGES.items():
        (DOCS / name).write_text(NOTE + write().rstrip() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
