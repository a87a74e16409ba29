"""Text that is only told to people: what `print`, a logger or a warning gets, from which nothing is computed."""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Iterator

from dlc.frontend.python_source import NotRewritable, definition_of

_TELLING = frozenset("print warn warn_explicit debug info warning warning_once error exception critical log".split())


def is_only_told(frame: types.FrameType) -> bool:
    """Whether the expression that a frame is at is one of a statement like `print(...)` or `logger.info(...)`."""
    positions = _positions(frame.f_code)[frame.f_lasti // 2]
    line, end_line, column, end_column = positions
    if line is None or end_line is None or column is None or end_column is None:
        return False
    try:
        node, _ = definition_of(frame.f_code, frame.f_globals)
    except NotRewritable:
        return False
    return any(
        (s.lineno, s.col_offset) <= (line, column) and (end_line, end_column) <= (s.end_lineno or 0, s.end_col_offset or 0)
        for s in _told(node)
    )


@functools.cache
def _positions(code: types.CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    return list(code.co_positions())


def _told(node: ast.AST) -> Iterator[ast.Expr]:
    for n in ast.walk(node):
        match n:
            case ast.Expr(ast.Call(ast.Name(name) | ast.Attribute(_, name))) if name in _TELLING:
                yield n
            case _:
                pass


__all__ = ["is_only_told"]
