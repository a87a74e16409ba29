"""Least and greatest value of an integer expression as plain numbers, part by part.

Coarser than the proofs of `dlc.ir.facts`, which keep symbols, but exact inside divisions: `o // 2` of a rank of 8 is at most
3, where a proof that multiplies the division out only knows 3.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from dlc.ir.extent import Atom, FloorDiv, IntExpr, Max, Min, Mod, Var

Interval: TypeAlias = tuple[int | None, int | None]
"""Inclusive; None is no bound."""


class Range(Protocol):
    """What is known of a symbol."""

    @property
    def lo(self) -> int: ...

    @property
    def hi(self) -> int | None: ...


def interval(e: IntExpr, ranks: Mapping[str, IntExpr], symbols: Mapping[str, Range]) -> Interval:
    """Bounds of `e` with every rank below its extent and every symbol in its range."""
    lo: int | None = 0
    hi: int | None = 0
    for monomial, coefficient in e.terms:
        part: Interval = (coefficient, coefficient)
        for atom in monomial:
            part = _times(part, _atom(atom, ranks, symbols))
        lo = None if lo is None or part[0] is None else lo + part[0]
        hi = None if hi is None or part[1] is None else hi + part[1]
    return lo, hi


def _atom(atom: Atom, ranks: Mapping[str, IntExpr], symbols: Mapping[str, Range]) -> Interval:
    match atom:
        case Var(name) if name in ranks:
            top = interval(ranks[name], {}, symbols)[1]
            return 0, None if top is None else max(top - 1, 0)
        case Var(name):
            fact = symbols.get(name)
            return (0 if name.startswith("#") else None, None) if fact is None else (fact.lo, fact.hi)
        case FloorDiv(num, den):
            d = den.const
            lo, hi = interval(num, ranks, symbols)
            if d is None or d <= 0:
                return (0, hi) if lo is not None and lo >= 0 and _positive(den, ranks, symbols) else (None, None)
            return None if lo is None else lo // d, None if hi is None else hi // d
        case Mod(num, den):
            top = interval(den, ranks, symbols)[1]
            if not _positive(den, ranks, symbols):
                return None, None
            lo, hi = interval(num, ranks, symbols)
            limit = None if top is None else top - 1
            if lo is not None and lo >= 0 and hi is not None:
                limit = hi if limit is None else min(limit, hi)
            return 0, limit
        case Min(args) | Max(args):
            bounds = [interval(a, ranks, symbols) for a in args]
            los, his = [b[0] for b in bounds], [b[1] for b in bounds]
            known_los, known_his = [v for v in los if v is not None], [v for v in his if v is not None]
            if isinstance(atom, Min):
                return min(known_los) if len(known_los) == len(los) else None, min(known_his, default=None)
            return max(known_los, default=None), max(known_his) if len(known_his) == len(his) else None
        case _:
            return None, None


def _positive(e: IntExpr, ranks: Mapping[str, IntExpr], symbols: Mapping[str, Range]) -> bool:
    lo = interval(e, ranks, symbols)[0]
    return lo is not None and lo > 0


def _times(a: Interval, b: Interval) -> Interval:
    """Bounds of a product."""
    if a == (0, 0) or b == (0, 0):
        return 0, 0
    (p, q), (r, s) = a, b
    if p is not None and q is not None and r is not None and s is not None:
        corners = (p * r, p * s, q * r, q * s)
        return min(corners), max(corners)
    if p is not None and r is not None and p >= 0 and r >= 0:
        return p * r, None
    if (
        q is not None and q <= 0 and p is not None and r is not None and r >= 0
    ):  # a constant below 0 times what has no end
        return None, q * r
    return None, None
