"""The syntax tree of a Python function that is there as code.

A function knows its file and first line; of several on one line the one with its parameters, or at its column, is meant.
"""

from __future__ import annotations

import ast
import copy
import linecache
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


class NotRewritable(Exception):
    """The function's source is not at hand, or holds something that cannot be rewritten; `str` says what."""


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
_Index = dict[int, list[tuple[_Definition, str | None]]]
_FILES: dict[str, tuple[str, _Index]] = {}


def find_definition(code: types.CodeType, globals_: Mapping[str, Any]) -> tuple[_Definition, str | None]:
    """A copy of the syntax tree of the function with this code, and the name of the class it is written in."""
    node, owner = definition_of(code, globals_)
    return copy.deepcopy(node), owner


def definition_of(code: types.CodeType, globals_: Mapping[str, Any]) -> tuple[_Definition, str | None]:
    """That syntax tree itself, which is not to be changed, and the name of the class.

    Raises:
        NotRewritable: there is no source, or not one function that it can be.
    """
    found = [(n, owner) for n, owner in _index(code.co_filename, globals_).get(code.co_firstlineno, ()) if _matches(n, code)]
    if len(found) > 1:
        column = _column(code)
        found = [(n, owner) for n, owner in found if n.col_offset <= column <= (n.end_col_offset or column)] or found
        found = found[-1:] if isinstance(found[-1][0], ast.Lambda) and _nested(found) else found
    if len(found) != 1:
        raise NotRewritable(f"its source is not found in {code.co_filename}" if not found else "its source is ambiguous")
    return found[0]


def _nested(found: Sequence[tuple[_Definition, str | None]]) -> bool:
    return len({n.lineno for n, _ in found}) == 1


def _index(file: str, globals_: Mapping[str, Any]) -> _Index:
    """The functions of a file by the line they start on."""
    text = "".join(linecache.getlines(file, dict(globals_)))
    if not text:
        raise NotRewritable(f"its source {file} is not at hand")
    known = _FILES.get(file)
    if known is None or known[0] != text:
        try:
            tree = ast.parse(text, file)
        except SyntaxError as error:
            raise NotRewritable(f"its source {file} does not parse: {error}") from None
        index: _Index = {}
        for node, owner in _definitions(tree, None):
            index.setdefault(_first_line(node), []).append((node, owner))
        known = _FILES[file] = (text, index)
    return known[1]


def _first_line(node: _Definition) -> int:
    decorators = getattr(node, "decorator_list", [])
    return int(decorators[0].lineno if decorators else node.lineno)


def _definitions(node: ast.AST, owner: str | None) -> Iterator[tuple[_Definition, str | None]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Definition):
            yield child, owner
        yield from _definitions(child, child.name if isinstance(child, ast.ClassDef) else owner)


def _matches(node: _Definition, code: types.CodeType) -> bool:
    if isinstance(node, ast.Lambda):
        return code.co_name == "<lambda>" and _parameters(node, code)
    return node.name == code.co_name


def _parameters(node: _Definition, code: types.CodeType) -> bool:
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
    return names == list(code.co_varnames[: code.co_argcount])


def _column(code: types.CodeType) -> int:
    if not hasattr(code, "co_positions"):
        return 0
    return next((p[2] for p in code.co_positions() if p[0] == code.co_firstlineno and p[2]), 0)


def is_generator(node: _Definition) -> bool:
    pending: list[ast.AST] = list(node.body) if isinstance(node.body, list) else [node.body]
    while pending:
        n = pending.pop()
        if isinstance(n, (ast.Yield, ast.YieldFrom, ast.Await)):
            return True
        if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            pending += ast.iter_child_nodes(n)
    return False


__all__ = ["NotRewritable", "definition_of", "find_definition", "is_generator"]
