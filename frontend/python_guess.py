"""A guess from a function's text: whether its own control flow looks at data.

    scores = self.head(x)                     yes: `scores` comes from `x`, a parameter
    if scores.max() > self.threshold: ...

    if x.shape[0] > 1 and mask is None: ...   no

It is only a guess, for the order in which things are tried: data may come by an attribute or a list, and what is done to it may
be known when compiling.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator

from dlc.frontend.python_source import NotRewritable, definition_of

_ABOUT = frozenset("shape size dim ndim numel dtype device layout is_cuda stride is_floating_point training requires_grad".split())
"""What a tensor tells of itself without its data."""
_KNOWN = frozenset("isinstance issubclass len type hasattr getattr callable id print".split())


def seems_to_test_data(function: types.FunctionType) -> bool:
    """Whether a test, or the length of a loop, depends on a parameter that has no default."""
    try:
        node, _ = definition_of(function.__code__, function.__globals__)
    except NotRewritable:
        return False
    body = list(_own(node))
    data = _parameters(node.args)
    while True:
        found = {name for n in body for target, value in _stores(n) if _carries(value, data) for name in _names(target)}
        if found <= data:
            break
        data |= found
    return any(_carries(test, data) for n in body for test in _tests(n))


def _parameters(args: ast.arguments) -> set[str]:
    """Parameters without a default, but for the first, which is the module."""
    plain = [a.arg for a in (*args.posonlyargs, *args.args)]
    return set(plain[1 : len(plain) - len(args.defaults)])


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """What is in a function, but not in functions inside it."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            yield from _own(child)


def _stores(n: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Pairs of a target and the expression that it gets its value from."""
    match n:
        case ast.Assign(targets, value):
            yield from ((t, value) for t in targets)
        case ast.AugAssign(target, _, value) | ast.NamedExpr(target, value):
            yield target, value
        case ast.AnnAssign(target, _, ast.expr() as value):
            yield target, value
        case ast.For(target, iterated) | ast.comprehension(target, iterated):
            yield target, iterated
        case _:
            pass


def _names(target: ast.expr) -> Iterator[str]:
    return (n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def _tests(n: ast.AST) -> Iterator[ast.expr]:
    match n:
        case ast.If(test) | ast.While(test) | ast.IfExp(test):
            yield test
        case ast.For(_, ast.Call(ast.Name("range"), lengths)):
            yield from lengths
        case _:
            pass


def _carries(e: ast.AST, data: set[str]) -> bool:
    """Whether the value of `e` depends on the values of what is named in `data`, as far as one can see."""
    match e:
        case ast.Name(name):
            return name in data
        case ast.Attribute(_, about) | ast.Call(ast.Attribute(_, about)) if about in _ABOUT:
            return False
        case ast.Call(ast.Name(name)) if name in _KNOWN:
            return False
        case ast.Compare(_, operators) if all(isinstance(o, (ast.Is, ast.IsNot)) for o in operators):
            return False
        case ast.Lambda():
            return False
        case _:
            return any(_carries(c, data) for c in ast.iter_child_nodes(e))


__all__ = ["seems_to_test_data"]
