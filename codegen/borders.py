"""Borders: reads with a default, and where in a range of points they need no guard.

A rank *slides* where an index with a guard moves with it, `X[2*x + j - 1] else 0`. Inside of a range of its points the guards hold
whatever the taps are; only what is left at the edges is computed under them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dlc.codegen.point import Emitter, Space
from dlc.codegen.tile import IndexCond
from dlc.ir.expr import Access, Expr, transform
from dlc.ir.extent import IntExpr, has_value, int_expr, minimum, split_linear, substitute, variables

Pair = tuple[IntExpr, IntExpr]
"""An index and the extent that it should be within."""


def unproven(em: Emitter, guarded: Iterable[Access]) -> list[Pair]:
    """Indices of accesses with a default that neither the facts nor what is assumed settle, simplified, with their extents."""
    pairs: dict[Pair, None] = {}
    for a in guarded:
        for i, extent in zip(a.index, em.storage[a.tensor].type.shape, strict=True):
            inner = em.facts.simplify(i)
            if not has_value(i) and (inner, extent) not in em.assumed and not em.facts.within(inner, extent):
                pairs[inner, extent] = None
    return list(pairs)


def safe_range(pairs: Iterable[Pair], slide: str, extent: IntExpr, reduced: Mapping[str, IntExpr]) -> Pair:
    """Where along `slide` every index that moves with it is within its extent, from the first to below the second."""
    lo, hi = 0, extent
    for i, bound in pairs:
        if slide not in variables(i):
            continue
        reach = _reach(i, slide, reduced)
        if reach is None:
            return int_expr(0), int_expr(0)
        slope, least, most = reach
        lo = max(lo, -(least // slope))
        last = (bound - most + (slope - 1)) // slope
        hi = minimum(hi, last) if hi.const is None or last.const is None else int_expr(min(hi.const, last.const))
    return int_expr(lo), hi


def _reach(i: IntExpr, slide: str, reduced: Mapping[str, IntExpr]) -> tuple[int, int, int] | None:
    """(slope, least, most) of `slope * slide + rest` with a constant range of the rest; None when it is not so."""
    parts = split_linear(i, slide)
    if parts is None or parts[0].const is None or parts[0].const <= 0:
        return None
    least = most = 0
    rest = parts[1]
    for name, extent in reduced.items():
        tap = split_linear(rest, name)
        if tap is None or tap[0].const is None or extent.const is None:
            return None
        reach = tap[0].const * (extent.const - 1)
        least, most, rest = least + min(reach, 0), most + max(reach, 0), tap[1]
    return None if rest.const is None else (parts[0].const, least + rest.const, most + rest.const)


def condition(pairs: Iterable[Pair], space: Space) -> tuple[IndexCond, ...]:
    """That the indices are within their extents; they are the same at all points of `space`."""
    found: list[IndexCond] = []
    for i, extent in pairs:
        at = substitute(i, space.base)
        found += [IndexCond(at, "ge", int_expr(0)), IndexCond(at, "lt", extent)]
    return tuple(found)


def outside(e: Expr, em: Emitter, pairs: Iterable[Pair]) -> Expr:
    """`e` where one of `pairs` is not within: an access that all of them guard is its default."""

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Access) or node.default is None or node.tensor not in em.storage:
            return None
        own = {(em.facts.simplify(i), x) for i, x in zip(node.index, em.storage[node.tensor].type.shape, strict=True)}
        return node.default if own.issuperset(pairs) else None

    return transform(e, visit)
