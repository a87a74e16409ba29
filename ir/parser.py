"""Text to IR: the inverse of the printers, and the sugar that people write.

`parse(str(x)) == x` for every verified program, cascade and kernel. Beyond what the printers emit the parser accepts: results
without a declared type (inferred), ranks whose extent follows from an access, literals that take the type of their sibling
operand, `-> O` without parentheses, iterative ranks (`dlc.ir.sugar`), and comments from `;;` to the end of the line (`//` is
floor division).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedEOF, UnexpectedInput, UnexpectedToken

from dlc.ir.dtype import DType
from dlc.ir.elaborate import Elaborator, Item
from dlc.ir.errors import IrError, SyntaxFault, WrongTextKind
from dlc.ir.expr import Expr
from dlc.ir.loc import Loc
from dlc.ir.program import Cascade, Kernel, Program

Parsed: TypeAlias = Program | Cascade | tuple[Kernel, ...]

_READABLE = {
    "NAME": "a name",
    "INT": "an integer",
    "FLOAT": "a number",
    "SPECIAL": "inf or nan",
    "STRING": "a string",
    "_NL": "the end of the line",
    "$END": "the end of the text",
    "TYPE_ARGS": "<type>",
    "COMPARE": "a comparison",
    "MULTIPLY": "* / // or %",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "LBRACE": "'{'",
    "RBRACE": "'}'",
    "COMMA": "','",
    "COLON": "':'",
    "EQUAL": "'='",
    "BAR": "'|'",
    "CARET": "'^'",
    "AMP": "'&'",
    "PLUS": "'+'",
    "MINUS": "'-'",
    "NEGATE": "'-'",
    "LESS": "'<'",
    "HASH": "'#'",
}
_CONTINUES = frozenset(
    {"COMMA", "LBRACE", "EQUAL", "BAR", "CARET", "AMP", "PLUS", "MINUS", "NEGATE", "LESS", "COMPARE"}
)
_CONTINUES |= {"MULTIPLY"}


_OPERAND_ENDS = frozenset({"NAME", "INT", "FLOAT", "SPECIAL", "TRUE", "FALSE", "RPAR", "RSQB", "RBRACE"})


class _Tokens:
    """Drops line ends that end no statement, and tells a sign from a difference."""

    always_accept = ("_NL", "MINUS")

    def process(self, stream: Iterator[Token]) -> Iterator[Token]:
        depth, last = 0, "_NL"
        for token in stream:
            if token.type in ("LPAR", "LSQB"):
                depth += 1
            elif token.type in ("RPAR", "RSQB"):
                depth -= 1
            if token.type == "_NL" and (depth > 0 or last in _CONTINUES or last == "_NL"):
                continue
            if token.type == "MINUS" and last not in _OPERAND_ENDS:
                token.type = "NEGATE"
            last = token.type
            yield token


@lru_cache(maxsize=2)
def _grammar(start: str) -> Lark:
    text = (Path(__file__).parent / "grammar.lark").read_text(encoding="utf-8")
    return Lark(
        text,
        parser="lalr",
        start=start,
        postlex=_Tokens(),
        propagate_positions=True,
        maybe_placeholders=False,
    )


def parse(text: str, file: str = "<text>") -> Parsed:
    """The program (with its kernels), the cascade, or the kernels that `text` holds.

    Raises:
        SyntaxFault: with the place and what was expected; other IrErrors for names and types.
    """
    items = _items(text, file)
    programs = [i for i in items if isinstance(i, Program)]
    cascades = [i for i in items if isinstance(i, Cascade)]
    if len(programs) == 1 and not cascades:
        return programs[0]
    if len(cascades) == 1 and len(items) == 1:
        return cascades[0]
    if items and not programs and not cascades:
        return tuple(i for i in items if isinstance(i, Kernel))
    found = "nothing" if not items else f"{len(programs)} programs and {len(cascades)} cascades"
    raise WrongTextKind(Loc(file, 1, 1), found=found, expected="one program with its kernels, or one cascade")


def parse_program(text: str, file: str = "<text>") -> Program:
    """The program in `text`; a lone cascade is the program that runs it."""
    from dlc.ir.program import program_of

    found = parse(text, file)
    if isinstance(found, Cascade):
        return program_of(found)
    if not isinstance(found, Program):
        raise WrongTextKind(Loc(file, 1, 1), found="kernels alone", expected="a program")
    return found


def parse_cascade(text: str, file: str = "<text>") -> Cascade:
    """The cascade in `text`."""
    found = parse(text, file)
    if not isinstance(found, Cascade):
        raise WrongTextKind(Loc(file, 1, 1), found=f"a {type(found).__name__.lower()}", expected="a cascade")
    return found


def parse_expr(
    text: str, ranks: frozenset[str] | set[str] | tuple[str, ...] = (), types: Mapping[str, DType] | None = None
) -> Expr:
    """A scalar expression; names in `ranks` are ranks, others symbols. Without `types`, tensors are taken to be f32."""
    tree = _tree(text, "<expr>", "value")
    elaborator = Elaborator(text.splitlines(), "<expr>")
    return elaborator.lone_expr(tree, frozenset(ranks), types)


def _items(text: str, file: str) -> list[Item]:
    tree = _tree(text, file, "start")
    elaborator = Elaborator(text.splitlines(), file)
    return elaborator.items(tree)


def _tree(text: str, file: str, start: str) -> Tree[Token]:
    try:
        return _grammar(start).parse(text)
    except UnexpectedInput as fault:
        raise _syntax_fault(fault, text, file) from None


def _syntax_fault(fault: UnexpectedInput, text: str, file: str) -> IrError:
    lines = text.splitlines() or [""]
    expected: Any = ()
    if isinstance(fault, UnexpectedToken):
        found = "the end of the text" if fault.token.type == "$END" else f"'{fault.token}'"
        found = "the end of the line" if fault.token.type == "_NL" else found
        expected = fault.accepts or fault.expected
        width = len(fault.token) if fault.token.type != "_NL" else 1
    elif isinstance(fault, UnexpectedCharacters):
        found, expected, width = f"character {fault.char!r}", fault.allowed or (), 1
    else:
        found, width = "the end of the text", 1
        expected = fault.expected if isinstance(fault, UnexpectedEOF) else ()
    line, column = fault.line, fault.column
    if line is None or line < 1 or (isinstance(fault, UnexpectedToken) and fault.token.type == "$END"):
        line, column = len(lines), len(lines[-1]) + 1
    source = lines[min(line, len(lines)) - 1]
    names = sorted({_READABLE.get(str(e), f"'{str(e).lower()}'") for e in expected})
    listed = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "") or "something else"
    span = (column - 1, column - 1 + width)
    return SyntaxFault(Loc(file, line, column), source=source, span=span, found=found, expected=listed)
