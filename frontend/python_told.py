"""Text that is only told to people: what `print`, a logger or a warning gets, from which nothing is computed."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import logging
import types
import warnings
from collections.abc import Iterator
from typing import Any

from dlc.frontend.python_source import NotRewritable, definition_of

_FUNCTIONS = (print, warnings.warn, warnings.warn_explicit)
_OWNERS = (logging.Logger, logging.LoggerAdapter)


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
        for s in _calls(node)
        if _tells(s.func, frame)
    )


@functools.cache
def _positions(code: types.CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    return list(code.co_positions())


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    """Calls that are statements: nobody has what they return."""
    for n in ast.walk(node):
        match n:
            case ast.Expr(ast.Call() as call):
                yield call
            case _:
                pass


def _tells(function: ast.expr, frame: types.FrameType) -> bool:
    """Whether a call goes to `print`, `warnings` or a logger; a method of the model's own that is called `info` does not count."""
    owner = _value(function.value, frame) if isinstance(function, ast.Attribute) else None
    return owner is logging or isinstance(owner, _OWNERS) or any(_value(function, frame) is f for f in _FUNCTIONS)


def _value(e: ast.expr, frame: types.FrameType) -> Any:
    """What a name, or an attribute of one, is, without running code of the model's; None where that is not known."""
    match e:
        case ast.Name(name):
            found = next((names[name] for names in (frame.f_locals, frame.f_globals) if name in names), None)
            return getattr(builtins, name, None) if found is None else found
        case ast.Attribute(owner, name):
            return inspect.getattr_static(_value(owner, frame), name, None)
        case _:
            return None


__all__ = ["is_only_told"]
