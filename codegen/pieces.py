"""Pieces that a loop decides: it is cut where the guards change, and in each part the choice is made.

    for o in 0 .. 27:                                             for o in 0 .. 1:   T[o] = D[]
      T[o] = { D[] when o < 1 | X[o - 1] when o < 26 | Y[] }  ->  for o in 1 .. 26:  T[o] = X[o - 1]
                                                                  for o in 26 .. 27: T[o] = Y[]

A concatenation or a stack is a copy per part then, and no element asks which of them it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dlc.ir.dtype import BOOL
from dlc.ir.expr import Apply, Const, Expr, Index, Piecewise, transform, walk
from dlc.ir.extent import IntExpr, has_value, int_expr, maximum, minimum, split_linear, variables
from dlc.ir.facts import Facts
from dlc.ir.scalar import SCALAR_OPS

MOST_PARTS = 64
"""Parts of one loop, at most: each is code of its own."""
_DECISIONS = ("compare", "logic", "test")
_BELOW = {"lt": (0, True), "ge": (0, False), "le": (1, True), "gt": (1, False)}
"""`r op b` as a comparison with a bound: (what is added to `b`, whether it holds below that)."""
_TURNED = {"lt": "gt", "ge": "le", "le": "ge", "gt": "lt"}


@dataclass(frozen=True)
class Part:
    """`lo <= rank < hi`, which lies below some of the bounds that guards compare the rank with, and not below the others."""

    rank: str
    lo: IntExpr
    hi: IntExpr
    below: frozenset[IntExpr] = frozenset()
    beyond: frozenset[IntExpr] = frozenset()

    def choose(self, e: Expr) -> Expr:
        """`e` with the pieces that hold in this part."""
        return transform(e, self._choice) if self.below or self.beyond else e

    def _choice(self, e: Expr) -> Expr | None:
        found = _comparison(e, self.rank)
        if found is not None and found[0] in self.below | self.beyond:
            return Const(found[1] == (found[0] in self.below), BOOL)
        return settle(e)


def parts_of(exprs: Iterable[Expr], rank: str, extent: IntExpr, facts: Facts) -> tuple[Part, ...]:
    """The range of `rank`, cut at the bounds that guards of pieces compare it with; whole where those have no known order."""
    guards = (g for e in exprs for n in walk(e) if isinstance(n, Piecewise) for g, _ in n.cases)
    found = {c[0] for g in guards for n in walk(g) if (c := _comparison(n, rank)) is not None}
    bounds = _sorted(found, facts) if len(found) < MOST_PARTS else None
    if not bounds:
        return (Part(rank, int_expr(0), extent),)
    ends = [int_expr(0), *(_within(b, extent, facts) for b in bounds), extent]
    parts = [
        Part(rank, lo, hi, frozenset(bounds[n:]), frozenset(bounds[:n])) for n, (lo, hi) in enumerate(zip(ends, ends[1:])) if lo != hi
    ]
    return tuple(parts) or (Part(rank, int_expr(0), extent),)


def _sorted(bounds: Iterable[IntExpr], facts: Facts) -> list[IntExpr] | None:
    """The bounds in rising order; None when some two cannot be compared."""
    done: list[IntExpr] = []
    for b in sorted(bounds, key=str):
        place = next((n for n, other in enumerate(done) if not facts.nonneg(b - other)), len(done))
        if not all(facts.nonneg(other - b) for other in done[place:]):
            return None
        done.insert(place, b)
    return done


def _within(bound: IntExpr, extent: IntExpr, facts: Facts) -> IntExpr:
    """The nearest to `bound` of what lies in 0 .. extent."""
    low = bound if facts.nonneg(bound) else maximum(bound, 0)
    return low if facts.nonneg(extent - low) else minimum(low, extent)


def _comparison(e: Expr, rank: str) -> tuple[IntExpr, bool] | None:
    """(bound, whether `e` holds below it) when `e` compares `rank` with what is the same at every point; else None."""
    if not isinstance(e, Apply) or e.op not in _BELOW:
        return None
    left, right = (_index(a) for a in e.args)
    if left is None or right is None:
        return None
    difference = left - right
    parts = split_linear(difference, rank) if not has_value(difference) else None
    if parts is None or parts[0].const not in (1, -1) or not all(n.startswith("#") for n in variables(parts[1])):
        return None
    forward = parts[0].const == 1
    more, holds = _BELOW[e.op if forward else _TURNED[e.op]]
    return (-parts[1] if forward else parts[1]) + more, holds


def _index(e: Expr) -> IntExpr | None:
    if isinstance(e, Index):
        return e.expr
    return int_expr(e.value) if isinstance(e, Const) and type(e.value) is int else None


def settle(e: Expr) -> Expr | None:
    """A comparison of numbers decided, or a piece chosen that its guards decide; None where there is nothing to do."""
    match e:
        case Apply(op, args) if SCALAR_OPS[op].typing in _DECISIONS and all(_number(a) is not None for a in args):
            return Const(bool(SCALAR_OPS[op].meaning(*(_number(a) for a in args))), BOOL)
        case Apply("and" | "or" as op, (Const(bool(known)), other) | (other, Const(bool(known)))):
            return other if known == (op == "and") else Const(known, BOOL)
        case Apply("not", (Const(bool(known)),)):
            return Const(not known, BOOL)
        case Piecewise(cases, otherwise):
            return _chosen(cases, otherwise, e)
        case _:
            return None


def _number(e: Expr) -> int | bool | float | None:
    if isinstance(e, Index):
        return e.expr.const
    return e.value if isinstance(e, Const) else None


def _chosen(cases: Iterable[tuple[Expr, Expr]], otherwise: Expr, e: Piecewise) -> Expr | None:
    left: list[tuple[Expr, Expr]] = []
    for guard, value in cases:
        if isinstance(guard, Const):
            if guard.value:
                otherwise = value
                break
            continue
        left.append((guard, value))
    if not left:
        return otherwise
    return None if len(left) == len(e.cases) else Piecewise(tuple(left), otherwise)


__all__ = ["Part", "parts_of", "settle"]
