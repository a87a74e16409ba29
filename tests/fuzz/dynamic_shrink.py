"""The least source that still fails: statements are dropped, branches replaced by their arms, expressions by their parts."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.fuzz.dynamic_generate import Case
from tests.fuzz.shrink import greedy


def shrink(c: Case, fails: Callable[[Case], bool], limit_s: float = 120.0) -> Case:
    """A smaller case for which `fails` holds; first with the inputs alone that show it."""
    return greedy(c, candidates, fails, limit_s)


def candidates(c: Case) -> Iterator[Case]:
    """Smaller cases, the boldest first."""
    if len(c.inputs) > 2:
        half = len(c.inputs) // 2
        yield replace(c, inputs=c.inputs[:half])
        yield replace(c, inputs=c.inputs[half:])
    tree = ast.parse(c.source)
    for number, block in enumerate(_blocks(tree)):
        for k in range(len(block)):
            for smaller in _without(tree, number, k):
                yield replace(c, source=ast.unparse(ast.fix_missing_locations(smaller)) + "\n")
    count = sum(1 for _ in _expressions(tree))
    for n in range(count):
        for k in range(4):
            smaller = _simplified(tree, n, k)
            if smaller is not None:
                yield replace(c, source=ast.unparse(ast.fix_missing_locations(smaller)) + "\n")


def _blocks(tree: ast.AST) -> list[list[ast.stmt]]:
    """Statement lists of all functions but the constructor, outer ones first."""
    found = []
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and function.name != "__init__":
            for node in ast.walk(function):
                found += [b for name in ("body", "orelse") if isinstance(b := getattr(node, name, None), list) and b]
    return found


def _without(tree: ast.Module, number: int, k: int) -> Iterator[ast.Module]:
    """The tree without a statement, or with a part of it in its place."""
    original = _blocks(tree)[number][k]
    parts: list[list[ast.stmt]] = [[]]
    if isinstance(original, ast.If | ast.For | ast.While):
        parts += [p for p in (original.body, original.orelse) if p]
    for part in parts:
        smaller = copy.deepcopy(tree)
        block = _blocks(smaller)[number]
        block[k : k + 1] = copy.deepcopy(part)
        if not block:
            block.append(ast.Pass())
        if ast.dump(smaller) != ast.dump(tree):
            yield smaller


def _expressions(tree: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """Places of expressions below statements of methods: (holder, field, position in a list)."""
    for function in ast.walk(tree):
        if not (isinstance(function, ast.FunctionDef) and function.name != "__init__"):
            continue
        for node in ast.walk(function):
            for name, value in ast.iter_fields(node):
                if isinstance(value, ast.expr) and isinstance(getattr(value, "ctx", ast.Load()), ast.Load):
                    yield node, name, None
                elif isinstance(value, list) and isinstance(node, ast.expr):
                    for k, item in enumerate(value):
                        if isinstance(item, ast.expr):
                            yield node, name, k


def _simplified(tree: ast.Module, n: int, k: int) -> ast.Module | None:
    """The n-th expression replaced by its k-th part."""
    smaller = copy.deepcopy(tree)
    holder, name, position = next(p for i, p in enumerate(_expressions(smaller)) if i == n)
    value = getattr(holder, name) if position is None else getattr(holder, name)[position]
    parts = [p for p in ast.iter_child_nodes(value) if isinstance(p, ast.expr)]
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
        parts = [value.func.value, *value.args]
    if k >= len(parts):
        return None
    if position is None:
        setattr(holder, name, parts[k])
    else:
        getattr(holder, name)[position] = parts[k]
    return smaller
