"""What an integer expression over symbols cannot exceed, in terms of those that are known: sizes of memory for what a run decides.

    max(0, min(#n, 28)) * #b     with #b known:   28 * #b, whatever #n is
    4 * #n - #m                  with #n at most #b - 1:   4 * (#b - 1)

Symbols are never negative. Everything is monotone bounding, part by part, so that a bound may be larger than the largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass

from dlc.ir.extent import (
    Atom,
    FloorDiv,
    IntExpr,
    Max,
    Min,
    Mod,
    Monomial,
    Var,
    has_value,
    int_expr,
    maximum,
    minimum,
    variables,
)
from dlc.ir.program import For, Program, bound_symbols, walk_statements

_DEPTH = 16


def at_most(e: IntExpr, known: Set[str], limits: Mapping[str, IntExpr]) -> IntExpr | None:
    """An expression over `known` symbols that `e` never exceeds; None when there is none to be found.

    Args:
        known: names of symbols (with their `#`) that the bound may have.
        limits: the greatest values of other symbols, over any symbols.
    """
    return _Bounding(frozenset(known), limits).upper(e, _DEPTH)


def symbol_limits(program: Program) -> tuple[dict[str, IntExpr], dict[str, IntExpr]]:
    """Greatest values of symbols that statements bind: those that follow from the program, and stated ones, seldom reached."""
    limits: dict[str, IntExpr] = {}
    stated: dict[str, IntExpr] = {}
    for stmt in walk_statements(program.body):
        if isinstance(stmt, For):
            limits["#" + stmt.symbol.name] = stmt.extent - 1
            continue
        for s in bound_symbols(stmt):
            if s.below is not None:
                limits["#" + s.name] = s.below - 1
            elif s.hi is not None:
                stated["#" + s.name] = int_expr(s.hi)
    return limits, stated


def all_limits(program: Program) -> dict[str, IntExpr]:
    """Greatest values of symbols that statements bind, by whichever way they are known."""
    limits, stated = symbol_limits(program)
    return limits | stated


@dataclass(frozen=True, slots=True)
class _Bounding:
    known: frozenset[str]
    limits: Mapping[str, IntExpr]

    def is_known(self, e: IntExpr) -> bool:
        return variables(e) <= self.known and not has_value(e)

    def upper(self, e: IntExpr, depth: int) -> IntExpr | None:
        if self.is_known(e):
            return e
        return self.sum(e, depth, self.upper_product, self.lower_product)

    def lower(self, e: IntExpr, depth: int) -> IntExpr | None:
        if self.is_known(e):
            return e
        return self.sum(e, depth, self.lower_product, self.upper_product)

    def sum(self, e: IntExpr, depth: int, same: _Product, opposite: _Product) -> IntExpr | None:
        """The sum of the terms' bounds, on the other side where a coefficient is negative."""
        if not depth:
            return None
        total = int_expr(0)
        for monomial, coefficient in e.terms:
            bound = (same if coefficient > 0 else opposite)(monomial, depth - 1)
            if bound is None:
                return None
            total = total + coefficient * bound
        return total

    def upper_product(self, monomial: Monomial, depth: int) -> IntExpr | None:
        return self.product(monomial, depth, self.upper_atom)

    def lower_product(self, monomial: Monomial, depth: int) -> IntExpr | None:
        return self.product(monomial, depth, self.lower_atom)

    def product(self, monomial: Monomial, depth: int, bound_of: Callable[[Atom, int], IntExpr | None]) -> IntExpr | None:
        """The product of the factors' bounds; of several none may be negative, one may be what it likes."""
        result = int_expr(1)
        for atom in monomial:
            bound = _expr(atom) if self.is_known(_expr(atom)) else bound_of(atom, depth)
            if bound is None or (len(monomial) > 1 and not _nonneg_atom(atom)):
                return None
            result = result * (bound if len(monomial) == 1 else maximum(0, bound))
        return result

    def upper_atom(self, atom: Atom, depth: int) -> IntExpr | None:
        match atom:
            case Var(name):
                return self.upper(self.limits[name], depth) if name in self.limits else None
            case FloorDiv(num, den) if (den.const or 0) > 0:
                bound = self.upper(num, depth)
                return None if bound is None else bound // den
            case Mod(_, den) if (den.const or 0) > 0:
                return den - 1
            case Min(args):
                found = [b for b in (self.upper(a, depth) for a in args) if b is not None]
                return minimum(*found) if found else None
            case Max(args):
                bounds = [self.upper(a, depth) for a in args]
                return None if None in bounds else maximum(*(b for b in bounds if b is not None))
            case _:
                return None

    def lower_atom(self, atom: Atom, depth: int) -> IntExpr | None:
        match atom:
            case Var():
                return int_expr(0)
            case FloorDiv(num, den) if (den.const or 0) > 0:
                bound = self.lower(num, depth)
                return None if bound is None else bound // den
            case Mod(_, den) if (den.const or 0) > 0:
                return int_expr(0)
            case Min(args):
                bounds = [self.lower(a, depth) for a in args]
                return None if None in bounds else minimum(*(b for b in bounds if b is not None))
            case Max(args):
                found = [b for b in (self.lower(a, depth) for a in args) if b is not None]
                return maximum(*found) if found else None
            case _:
                return None


_Product = Callable[[Monomial, int], "IntExpr | None"]


def _expr(atom: Atom) -> IntExpr:
    return IntExpr((((atom,), 1),))


def _nonneg(e: IntExpr) -> bool:
    return all(c > 0 and all(map(_nonneg_atom, monomial)) for monomial, c in e.terms)


def _nonneg_atom(atom: Atom) -> bool:
    match atom:
        case Var():
            return True
        case FloorDiv(num, den):
            return (den.const or 0) > 0 and _nonneg(num)
        case Mod(_, den):
            return (den.const or 0) > 0
        case Min(args):
            return all(map(_nonneg, args))
        case Max(args):
            return any(map(_nonneg, args))
        case _:
            return False


__all__ = ["all_limits", "at_most", "symbol_limits"]
