"""The tables of docs/ir.md that follow from code: element types, library operations, and the grammar itself."""

from __future__ import annotations

import inspect
from pathlib import Path

from dlc.ir import library
from dlc.ir.dtype import DTYPES
from dlc.ir.library import LIBRARY

MARK = (
    "<!-- from here on written by dlc.ir.reference.tables(); tests/ir/test_docs.py --update-golden writes it again -->"
)


def tables() -> str:
    """The generated end of docs/ir.md."""
    return "\n".join([*_types(), *_library(), *_grammar()])


def _types() -> list[str]:
    lines = ["## Element types", "", "| type | kind | bits | stored as | compiled |", "|---|---|---|---|---|"]
    kinds = {"f": "float", "i": "signed", "u": "unsigned", "b": "boolean"}
    for t in DTYPES.values():
        if t.is_coded:
            continue
        native = "yes" if t.native else "interpreted only"
        lines.append(f"| `{t.name}` | {kinds[t.kind]} | {t.bits} | {t.storage} | {native} |")
    coded = ", ".join(f"`{t.name}`" for t in DTYPES.values() if t.is_coded)
    return [*lines, "", f"Stored as codes, one in a byte ([types.md](types.md)): {coded}.", ""]


def _library() -> list[str]:
    lines = [
        "## Library operations",
        "",
        "| operation | inputs | results | extents bound | attributes |",
        "|---|---|---|---|---|",
    ]
    for o in LIBRARY.values():
        attrs = ", ".join(f"`{a}`" for a in o.attrs)
        lines.append(f"| `{o.name}` | {o.inputs} | {o.outputs} | {o.binds} | {attrs} |")
    doc = inspect.cleandoc(library.__doc__ or "").splitlines()
    return [*lines, "", "```", *(line.strip() for line in doc if "->" in line), "```", "", doc[-1], ""]


def _grammar() -> list[str]:
    text = (Path(__file__).parent / "grammar.lark").read_text(encoding="utf-8")
    body = text[text.index("\nstart:") + 1 :]
    note = "As `ir/grammar.lark` has it, for [lark](https://lark-parser.readthedocs.io)."
    return ["## Grammar", "", note, "", "```", body.rstrip(), "```", ""]


def page(current: str) -> str:
    """`current`, the text of docs/ir.md, with its generated end written anew."""
    head = current.split(MARK)[0].rstrip()
    return f"{head}\n\n{MARK}\n\n{tables().rstrip()}\n"
