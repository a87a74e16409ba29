"""Questions of a function's text that a symbol in a number's place answers otherwise than the number, and nobody hears.

    n is 4                      "number"
    (n > 4) is True             "truth"
    n.__class__ is int          "class"
    case int():                 "class"
    case True:                  "truth"
    dispatched(n)               "class"
"""

from __future__ import annotations

import ast
import dis
import types
from collections.abc import Iterator

from dlc.frontend.python_source import NotRewritable, definition_of

_IS_OP = dis.opmap["IS_OP"]
_MATCH_CLASS = dis.opmap["MATCH_CLASS"]


def identity_asked(function: types.FunctionType) -> set[str]:
    """Of "number", "truth" and "class" those that the function asks for."""
    if {"registry", "dispatch"} <= vars(function).keys():  # functools.singledispatch
        return {"class"}
    if not any(map(_may_ask, _codes(function.__code__))):
        return set()
    try:
        node, _ = definition_of(function.__code__, function.__globals__)
    except NotRewritable:
        return set()
    return {what for n in ast.walk(node) for what in _asked(n)}


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


def _may_ask(code: types.CodeType) -> bool:
    """Whether it is worth to look at the text: most functions have none of these instructions."""
    done = set(code.co_code[::2])
    literals = any(isinstance(v, (int, float)) for v in code.co_consts) or "shape" in code.co_names or "size" in code.co_names
    return "__class__" in code.co_names or _MATCH_CLASS in done or literals and _IS_OP in done


def _asked(n: ast.AST) -> Iterator[str]:
    match n:
        case ast.Compare(left, operators, others):
            sides = [left, *others]
            if any(map(_is_class_of_value, sides)):
                yield "class"
            if any(isinstance(o, (ast.Is, ast.IsNot)) for o in operators):
                if len([v for v in sides if _is_size(v)]) > 1:
                    yield "number"
                literals = [v.value for v in sides if isinstance(v, ast.Constant)]
                yield from ("truth" if isinstance(v, bool) else "number" for v in literals if isinstance(v, (int, float)))
        case ast.MatchClass(ast.Name("int" | "float" | "bool")):
            yield "class"
        case ast.MatchSingleton(bool()):
            yield "truth"
        case _:
            pass


def _is_class_of_value(e: ast.expr) -> bool:
    """Whether this is `v.__class__`, and `v` may be a number or tensor."""
    match e:
        case ast.Attribute(value, "__class__"):
            return not isinstance(value, ast.Name) or value.id != "self"
        case _:
            return False


def _is_size(e: ast.expr) -> bool:
    return any(isinstance(n, ast.Attribute) and n.attr in ("shape", "size") for n in ast.walk(e))


__all__ = ["identity_asked"]
