"""Pieces of syntax that rewritten Python is made of: calls of the runtime, variables, places in the source."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import Any

RUNTIME, SITES, DEAD_NAME = "dlc__rt", "dlc__sites", "dlc__dead"


def load(name: str) -> ast.expr:
    return ast.Name(name, ast.Load())


def rt(method: str, *args: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(load(RUNTIME), method, ast.Load()), list(args), [])


def method(owner: str, method: str, *args: ast.expr) -> ast.expr:
    return ast.Call(ast.Attribute(load(owner), method, ast.Load()), list(args), [])


def later(e: ast.expr) -> ast.expr:
    return ast.Lambda(ast.arguments([], [], None, [], [], None, []), e)


def cell(name: str) -> ast.expr:
    """The cell of a variable that is shared with other functions."""
    return ast.Subscript(ast.Attribute(later(load(name)), "__closure__", ast.Load()), ast.Constant(0), ast.Load())


def store(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def state(names: Sequence[str]) -> ast.expr:
    return ast.Tuple([load(n) for n in names], ast.Load())


def unpack(names: Sequence[str], value: ast.expr) -> ast.stmt:
    if not names:
        return ast.Expr(value)
    return ast.Assign([ast.Tuple([ast.Name(n, ast.Store()) for n in names], ast.Store())], value)


OPERATORS = {
    ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "truediv", ast.FloorDiv: "floordiv", ast.Mod: "mod",
    ast.Pow: "pow", ast.MatMult: "matmul", ast.BitAnd: "and", ast.BitOr: "or", ast.BitXor: "xor", ast.LShift: "lshift",
    ast.RShift: "rshift", ast.Eq: "eq", ast.NotEq: "ne", ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge",
    ast.Is: "is_", ast.IsNot: "is_not", ast.In: "in", ast.NotIn: "not_in",
}  # fmt: skip


def nonlocals(body: Sequence[ast.stmt]) -> set[str]:
    """Names that are declared nonlocal in this scope itself."""
    names: set[str] = set()
    pending: list[ast.AST] = list(body)
    while pending:
        n = pending.pop()
        if isinstance(n, ast.Nonlocal):
            names |= set(n.names)
        if not isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            pending += ast.iter_child_nodes(n)
    return names


def is_docstring(s: ast.stmt) -> bool:
    return isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)


def binds(node: ast.AST) -> bool:
    """Whether a part cannot be moved to a function of its own: it binds a name, or stops there."""
    return any(isinstance(n, (ast.NamedExpr, ast.Yield, ast.YieldFrom, ast.Await)) for n in ast.walk(node))


def plain_target(t: ast.expr) -> bool:
    return not any(isinstance(n, (ast.Attribute, ast.Subscript)) for n in ast.walk(t))


def taken_apart(targets: Sequence[ast.expr], value: ast.expr) -> ast.expr:
    """The value of an assignment, of which the targets may take the elements."""
    known = isinstance(value, (ast.Tuple, ast.List)) and not any(isinstance(e, ast.Starred) for e in value.elts)
    for t in targets:
        if isinstance(t, (ast.Tuple, ast.List)) and not (known and all(_is_name(e) for e in t.elts)):
            value = rt("taken_apart", value, _shape(t))
    return value


def _is_name(target: ast.expr) -> bool:
    return isinstance(target, ast.Name) or isinstance(target, ast.Starred) and isinstance(target.value, ast.Name)


def _shape(target: ast.expr) -> ast.expr:
    match target:
        case ast.Tuple(elements) | ast.List(elements):
            return ast.Tuple([_shape(e) for e in elements], ast.Load())
        case _:
            return ast.Constant("*" if isinstance(target, ast.Starred) else None)


def fill_locations(made: ast.AST, origin: ast.AST) -> None:
    """Every new node without a place gets that of the nearest one around it that has one."""
    where = {
        k: getattr(origin, k) for k in ("lineno", "col_offset", "end_lineno", "end_col_offset") if hasattr(origin, k)
    }

    def fill(node: ast.AST, place: Mapping[str, Any]) -> None:
        if "lineno" in node._attributes:
            if not hasattr(node, "lineno"):
                # In one line: Python gives a method call the line on which its name ends.
                for k, v in place.items():
                    setattr(node, k, place[k.removeprefix("end_")] if k.startswith("end_") else v)
            else:
                place = {k: getattr(node, k) for k in place}
        for child in ast.iter_child_nodes(node):
            fill(child, place)

    fill(made, where)
