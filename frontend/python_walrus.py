"""Names bound on the right of `and` and `or` in the condition of an `if` or `while`: the operands become conditions of their own.

    if a and (m := b): body            ->    if a:
                                                 if (m := b): body

    if a or (m := b): body             ->    left = True
    else: other                              if not a:
                                                 if not (m := b): left = False; other
                                             if left: body

    while a and (m := b): body         ->    while True:
                                                 if a and (m := b): body         (as above)
                                                 else: break
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TypeGuard


def without_walrus_on_the_right(function: ast.FunctionDef) -> ast.FunctionDef:
    """The function with such conditions taken apart."""
    made = _Rewriter().visit(function)
    assert isinstance(made, ast.FunctionDef)
    return made


class _Rewriter(ast.NodeTransformer):
    def __init__(self) -> None:
        self.count = 0

    def visit_While(self, node: ast.While) -> ast.AST:
        if _apart(node.test) and not node.orelse:
            step = ast.copy_location(ast.If(node.test, node.body, [ast.Break()]), node.test)
            node.test, node.body = ast.copy_location(ast.Constant(True), node.test), [ast.fix_missing_locations(step)]
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        test = node.test
        if not _apart(test):
            return node
        self.count += 1
        left = f"dlc__left{self.count}"
        if isinstance(test.op, ast.And):
            made = _all_hold(test.values, node.body, left, node.orelse)
        else:
            denied: list[ast.expr] = [ast.copy_location(ast.UnaryOp(ast.Not(), t), t) for t in test.values]
            made = _all_hold(denied, node.orelse, left, node.body)
        return [ast.fix_missing_locations(ast.copy_location(s, node)) for s in made]


def _apart(test: ast.expr) -> TypeGuard[ast.BoolOp]:
    """Whether a condition binds a name in what is computed on one path only."""
    return isinstance(test, ast.BoolOp) and any(map(_binds, test.values[1:]))


def _binds(e: ast.expr) -> bool:
    return any(isinstance(n, ast.NamedExpr) for n in ast.walk(e))


def _set(name: str, value: bool) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], ast.Constant(value))


def _nested(tests: Sequence[ast.expr], body: list[ast.stmt]) -> list[ast.stmt]:
    for test in reversed(tests):
        body = [ast.copy_location(ast.If(test, body, []), test)]
    return body


def _all_hold(tests: Sequence[ast.expr], body: list[ast.stmt], left: str, other: list[ast.stmt]) -> list[ast.stmt]:
    """`body` where all tests hold, computed in the order and as far as Python does; else `other`, where the variable `left` is true."""
    if not other:
        return _nested(tests, body)
    return [_set(left, True), *_nested(tests, [_set(left, False), *body]), ast.If(ast.Name(left, ast.Load()), other, [])]


__all__ = ["without_walrus_on_the_right"]
