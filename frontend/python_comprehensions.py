"""The loops that comprehensions, and generators in `any` and `all`, stand for: as functions of the iterable."""

from __future__ import annotations

import ast
import copy

from dlc.frontend.python_syntax import fill_locations, load, store


def list_loop(name: str, node: ast.ListComp) -> ast.FunctionDef:
    """A function that makes the list of its argument's items.

    [f(v) for v in x if v > 0]      ->      def comp(items):
                                                out = []
                                                for v in items:
                                                    if v > 0:
                                                        out.append(f(v))
                                                return out
    """
    append = ast.Expr(ast.Call(ast.Attribute(load("dlc__out"), "append", ast.Load()), [copy.deepcopy(node.elt)], []))
    start, end = store("dlc__out", ast.List([], ast.Load())), ast.Return(load("dlc__out"))
    return _function(name, node, [start, _over_items(node, append), end])


def short_loop(name: str, node: ast.GeneratorExp, ends_with: bool) -> ast.FunctionDef:
    """A function that is done as soon as one of its argument's items has this truth.

    any(f(v) for v in x)            ->      def comp(items):
                                                for v in items:
                                                    if f(v):
                                                        return True
                                                return False
    """
    item = copy.deepcopy(node.elt)
    ends = ast.If(item if ends_with else ast.UnaryOp(ast.Not(), item), [ast.Return(ast.Constant(ends_with))], [])
    return _function(name, node, [_over_items(node, ends), ast.Return(ast.Constant(not ends_with))])


def _over_items(node: ast.ListComp | ast.GeneratorExp, body: ast.stmt) -> ast.stmt:
    (g,) = copy.deepcopy(node.generators)
    for test in reversed(g.ifs):
        body = ast.If(test, [body], [])
    return ast.For(g.target, load("dlc__items"), [body], [])


def _function(name: str, node: ast.expr, body: list[ast.stmt]) -> ast.FunctionDef:
    made = ast.copy_location(ast.FunctionDef(name, items_of_comprehension(), body, [], None), node)
    fill_locations(made, node)
    return made


def items_of_comprehension() -> ast.arguments:
    return ast.arguments([], [ast.arg("dlc__items")], None, [], [], None, [])


__all__ = ["items_of_comprehension", "list_loop", "short_loop"]
