"""Assertions about sizes: what torch.export decided by the example and left for the program to check.

With extents that vary, `if x.shape[0] % 2 == 0` is decided for all sizes as it is for the example, and the program asserts the condition;
one of several extents (`x.shape[0] > y.shape[0]`) it does not even assert. PyTorch's operators make conditions, too, on which nothing
but their speed depends, and take an extent of 1 for a case of its own. `by_example` tells them apart by running model and program where a
condition fails; `fact_of` and `least_values` are how an importer has calls checked.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.utils._sympy.value_ranges import bound_sympy

from dlc.frontend.torch_compared import same_results
from dlc.ir.program import Symbol

TRIED = 256
"""Sizes of one extent for which an assertion is tried."""

_NEAR = 4
"""Sizes of each of several extents: as many from the least on, and around the example's."""

_LONGEST = 64
"""The greatest size that a model is run with, beyond the examples' own."""

_FAR = [1 << n for n in range(7, 21)]
"""Sizes that a condition is asked for, but no model is run with."""

_HARMLESS = "dlc_harmless"


def by_example(
    exported: torch.export.ExportedProgram, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[bool, tuple[Any, ...]]:
    """Whether the model does something else than the program for some sizes, and which conditions of several extents calls must meet.

    Assertions that fail only for sizes with which both do the same are marked, and no longer count.
    """
    env = shapes_of(exported)
    if env is None:
        return False, ()
    examples = env.backed_var_to_val
    ran: dict[frozenset[Any], bool | None] = {}

    def same(sizes: Mapping[Any, int]) -> bool | None:
        key = frozenset(sizes.items())
        if key not in ran:
            ran[key] = same_results(exported, model, args, kwargs, sizes)
        return ran[key]

    def harmless(condition: Any) -> bool:
        failing = _failing(condition, exported.range_constraints, examples)
        near = [sizes for sizes in failing if all(n <= max(_LONGEST, examples[s]) for s, n in sizes.items())]
        if len(near) < len(failing) and all(min(sizes.values()) < 2 for sizes in near):
            near = []  # where there is no row, everything is alike
        if failing and not near:
            ran[frozenset(failing[0].items())] = False  # too large to be run
        return bool(near) and all(same(near[n]) for n in {0, len(near) // 2, len(near) - 1})

    for node in exported.graph.nodes:
        condition = asserted(node)
        if condition is not None and harmless(condition.node.expr):
            node.meta[_HARMLESS] = True
    left = tuple(g for g in guards(exported) if not harmless(g))
    return False in ran.values(), left


def asserted(node: fx.Node) -> torch.SymBool | None:
    """The condition that a node asserts of sizes, if it does and it counts."""
    return None if _HARMLESS in node.meta else _asserted(node)


def _asserted(node: fx.Node) -> torch.SymBool | None:
    if node.target is not torch.ops.aten._assert_scalar.default:
        return None
    condition = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    return condition if isinstance(condition, torch.SymBool) else None


def shapes_of(exported: torch.export.ExportedProgram) -> Any:
    """The ShapeEnv of a program's symbols; None if it has none."""
    for node in exported.graph.nodes:
        fake = node.meta.get("val")
        for extent in fake.shape if isinstance(fake, torch.Tensor) else ():
            if isinstance(extent, torch.SymInt):
                return extent.node.shape_env
    return None


def guards(exported: torch.export.ExportedProgram) -> tuple[Any, ...]:
    """What was taken for given of extents, without a check by torch.export: of several, or of one beside its range.

    Of one where its Dim is `Dim.AUTO`, or where the program computes nothing after the decision that a check could stand before.
    """
    env = shapes_of(exported)
    if env is None:
        return ()
    checked = {condition.node.expr for condition in map(_asserted, exported.graph.nodes) if condition is not None}
    deferred = [a.expr for late in env.deferred_runtime_asserts.values() for a in late if a.expr not in checked]
    taken = dict.fromkeys([*(g.expr for g in env.guards), *deferred])

    def counts(condition: Any) -> bool:
        count = len(condition.free_symbols)
        ranges = exported.range_constraints
        return count > 1 or count == 1 and (bool(_failing(condition, ranges, env.backed_var_to_val)) or not _sure(condition, ranges))

    return tuple(g for g in taken if counts(g))


def _failing(condition: Any, ranges: Mapping[Any, Any], examples: Mapping[Any, Any]) -> list[dict[Any, int]]:
    """Sizes, small ones first, for which a condition does not hold."""
    free = sorted(condition.free_symbols, key=str)
    if not all(s in ranges and s in examples for s in free):
        return []
    named = {int(n) + near for n in condition.atoms(sympy.Integer) for near in (-1, 0, 1)}
    sizes = [_sizes(ranges[s], int(examples[s]), len(free) == 1, named) for s in free]
    tried = (dict(zip(free, some, strict=True)) for some in sorted(itertools.product(*sizes), key=sum))
    return [some for some in tried if condition.subs(some) != True]  # noqa: E712 (SymPy's truth)


def _sure(condition: Any, ranges: Mapping[Any, Any]) -> bool:
    """Whether a comparison holds for all sizes in range, as far as bounds of its sides say."""
    if not isinstance(condition, sympy.core.relational.Relational):
        return bool(condition is sympy.true)
    try:
        apart = bound_sympy(condition.lhs - condition.rhs, dict(ranges))
        return all(bool(condition.func(end, 0)) for end in (apart.lower, apart.upper)) and not (
            isinstance(condition, sympy.Ne) and apart.lower < 0 < apart.upper
        )
    except (TypeError, NotImplementedError):  # SymPy cannot order the ends, or has no bounds for a function: it is looked at
        return False


def _sizes(allowed: Any, example: int, alone: bool, named: set[int]) -> list[int]:
    least, most = int(allowed.lower), max(_LONGEST, example)
    near = range(least, most + 1) if alone else (*range(least, least + _NEAR), *range(example - 1, example + 2), most)
    end = [int(allowed.upper)] if allowed.upper < _FAR[-1] else []
    return sorted(n for n in {*near, *_FAR, *end, *named} if least <= n <= allowed.upper)


def fact_of(condition: Any, known: Symbol) -> Symbol | None:
    """A condition on one extent as a fact of its symbol, if it is one: it is a multiple, or in a range. As it was, if it always holds.

    A fact is true of the first 256 sizes, and need not be of greater ones.
    """
    (free,) = condition.free_symbols
    last = known.lo + TRIED if known.hi is None else min(known.hi, known.lo + TRIED)
    tried = range(known.lo, last + 1)
    holding = [n for n in tried if condition.subs(free, n) == True]  # noqa: E712
    if not holding:
        return None
    if holding == [*range(holding[0], holding[-1] + 1)]:
        hi = known.hi if holding[-1] == last else holding[-1]
        return Symbol(known.name, holding[0], hi, known.divisor, known.below)
    step = holding[1] - holding[0]
    if holding == [n for n in tried if n % step == 0]:
        return Symbol(known.name, known.lo, known.hi, math.lcm(known.divisor, step), known.below)
    return None


def least_values(condition: Any) -> Iterator[tuple[Any, int]]:
    """Expressions, each with the least value that it has where a condition holds.

    Raises:
        ValueError: the condition is none that this can say.
    """
    if isinstance(condition, sympy.And):
        for part in condition.args:
            yield from least_values(part)
        return
    if not isinstance(condition, sympy.core.relational.Relational):
        raise ValueError(str(condition))
    apart = condition.lhs - condition.rhs
    match condition:
        case sympy.Eq():
            yield from ((apart, 0), (-apart, 0))
        case sympy.Ne():
            yield apart * apart, 1
        case sympy.Ge():
            yield apart, 0
        case sympy.Le():
            yield -apart, 0
        case sympy.Gt():
            yield apart, 1
        case _:
            yield -apart, 1


__all__ = ["TRIED", "asserted", "by_example", "fact_of", "guards", "least_values", "shapes_of"]
