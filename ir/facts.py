"""What is known of variables, and proofs from it: bounds of index expressions, and simplification under bounds.

A rank runs over `0 <= r < extent`; a symbol has an inclusive range. Everything here is conservative: "not proven" is never
"false".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import gcd
from typing import Any

from dlc.ir.extent import (
    Atom,
    FloorDiv,
    IntExpr,
    IntLike,
    Max,
    Min,
    Mod,
    Value,
    Var,
    int_expr,
    maximum,
    minimum,
    split_linear,
    substitute,
    value,
    var,
    variables,
)
from dlc.ir.interval import interval

_DEPTH = 24


@dataclass(frozen=True, slots=True)
class SymbolFact:
    """An extent symbol's inclusive range, a number that divides it, and an expression it is always less than."""

    lo: int = 0
    hi: int | None = None
    divisor: int = 1
    below: IntExpr | None = None


@dataclass(frozen=True)
class Facts:
    """Extents of the ranks in scope and facts of symbols (by name with its `#`), which must not change any more.

    What was proven, or not, and how an expression was simplified is remembered; also what was proven with guards (`dlc.ir.prove`).
    """

    ranks: Mapping[str, IntExpr] = field(default_factory=dict)
    symbols: Mapping[str, SymbolFact] = field(default_factory=dict)
    _answers: dict[IntExpr, bool] = field(default_factory=dict, init=False, compare=False, repr=False)
    _simpler: dict[IntExpr, IntExpr] = field(default_factory=dict, init=False, compare=False, repr=False)
    guarded: dict[tuple[tuple[IntExpr, ...], IntExpr], bool] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    def with_ranks(self, ranks: Mapping[str, IntExpr]) -> Facts:
        return Facts({**self.ranks, **ranks}, self.symbols)

    def nonneg(self, e: IntLike) -> bool:
        """Whether `e >= 0` is proven for every point of the ranks' space and all symbol values."""
        plain = int_expr(e)
        known = self._answers.get(plain)
        if known is None:
            known = self._answers[plain] = self._proves(plain)
        return known

    def _proves(self, e: IntExpr) -> bool:
        if _nonneg(e, self, _DEPTH) or _nonneg(self.simplify(e), self, _DEPTH):
            return True
        least = interval(e, self.ranks, self.symbols)[0]
        return least is not None and least >= 0

    def less(self, a: IntLike, b: IntLike) -> bool:
        """Whether `a < b` is proven."""
        return self.nonneg(int_expr(b) - a - 1)

    def within(self, e: IntLike, extent: IntLike) -> bool:
        """Whether `0 <= e < extent` is proven."""
        return self.spans(e, extent) or (self.nonneg(e) and self.less(e, extent))

    def spans(self, e: IntLike, extent: IntLike) -> bool:
        """Whether `e` is a rank of exactly this extent: the common case, decided at once."""
        atom = e.atom if isinstance(e, IntExpr) else None
        return isinstance(atom, Var) and self.ranks.get(atom.name) == extent

    def simplify(self, e: IntExpr) -> IntExpr:
        """`e` with divisions, modulos, minima and maxima removed where the bounds decide them."""
        if not any(not isinstance(a, Var) for m, _ in e.terms for a in m):
            return e
        known = self._simpler.get(e)
        if known is None:
            total = int_expr(0)
            for monomial, coefficient in e.terms:
                product = int_expr(coefficient)
                for atom in monomial:
                    product = product * self._simplify_atom(atom)
                total = total + product
            known = self._simpler[e] = total
        return known

    def _simplify_atom(self, atom: Atom) -> IntExpr:
        match atom:
            case Var(name):
                return var(name)
            case Value(expr):
                return value(expr)
            case FloorDiv(num, den):
                num, den = self.simplify(num), self.simplify(den)
                if den.const == 0:  # no value: left as it is
                    return IntExpr((((atom,), 1),))
                return int_expr(0) if self.within(num, den) else self._split_div(num, den)
            case Mod(num, den):
                num, den = self.simplify(num), self.simplify(den)
                if den.const == 0:
                    return IntExpr((((atom,), 1),))
                if self.within(num, den):
                    return num
                if den.const is not None and self._divisible(num, den.const):
                    return int_expr(0)
                return num % den
            case Min(args):
                return self._drop([self.simplify(a) for a in args], least=True)
            case Max(args):
                return self._drop([self.simplify(a) for a in args], least=False)

    def _split_div(self, num: IntExpr, den: IntExpr) -> IntExpr:
        """`(64*h + f) // 64` with `0 <= f < 64` is done by `//` and this: the rest of the canonical quotient may be in range."""
        quotient = num // den
        for monomial, coefficient in quotient.terms:
            if coefficient == 1 and len(monomial) == 1 and isinstance(monomial[0], FloorDiv):
                atom = monomial[0]
                if self.within(atom.num, atom.den):
                    return quotient - IntExpr(((monomial, 1),))
        return quotient

    def _divisible(self, e: IntExpr, d: int) -> bool:
        def known(m: tuple[Atom, ...]) -> int:
            product = 1
            for a in m:
                if isinstance(a, Var) and a.name in self.symbols:
                    product *= self.symbols[a.name].divisor
            return product

        return d > 0 and all((c * known(m)) % d == 0 for m, c in e.terms)

    def _drop(self, args: list[IntExpr], *, least: bool) -> IntExpr:
        kept: list[IntExpr] = []
        for i, a in enumerate(args):
            others = [b for j, b in enumerate(args) if j != i and (j < i or b not in kept)]
            beaten = any(
                self.nonneg(a - b if least else b - a) and not (j > i and self.nonneg(b - a if least else a - b))
                for j, b in enumerate(args)
                if j != i
            )
            if not beaten or not others:
                kept.append(a)
        return minimum(*(kept or args[:1])) if least else maximum(*(kept or args[:1]))


class FactsPool:
    """One `Facts` for the same ranks and symbols: the layers of a network ask the same questions.

    A pass or a verification keeps a pool while it goes through a program.
    """

    def __init__(self) -> None:
        self.pool: dict[tuple[Any, ...], Facts] = {}

    def facts(self, ranks: Mapping[str, IntExpr], symbols: Mapping[str, SymbolFact]) -> Facts:
        """Facts of these ranks and symbols, as they are now."""
        key = (tuple(ranks.items()), tuple(symbols.items()))
        found = self.pool.get(key)
        if found is None:
            found = self.pool[key] = Facts(dict(ranks), dict(symbols))
        return found


def _opaque_atom(e: IntExpr) -> Atom | None:
    return next((a for m, _ in e.terms for a in m if not isinstance(a, Var)), None)


def _nonneg(e: IntExpr, facts: Facts, depth: int) -> bool:
    if e.const is not None:
        return e.const >= 0
    if depth == 0:
        return False
    e = _without_common_factor(e)
    # Ranks first where they are outside of divisions: their extents may cancel what is inside of one.
    for name in sorted(variables(e)):
        if name in facts.ranks and split_linear(e, name) is not None:
            return _at_both_ends(e, name, int_expr(0), facts.ranks[name] - 1, facts, depth)
    opaque = _opaque_atom(e)
    if opaque is not None:
        return _nonneg_opaque(e, opaque, facts, depth)
    for name in sorted(variables(e)):
        if name in facts.ranks:
            return _at_both_ends(e, name, int_expr(0), facts.ranks[name] - 1, facts, depth)
    return _nonneg_symbols(e, facts, depth)


def _without_common_factor(e: IntExpr) -> IntExpr:
    """`g*x + c >= 0` is `x + c//g >= 0` for integers: `16 - 8*q` becomes `2 - q`."""
    common = gcd(*(c for m, c in e.terms if m))
    if common <= 1:
        return e
    terms = {m: c // common for m, c in e.terms}
    return IntExpr(tuple((m, c) for m, c in terms.items() if c))


def _at_both_ends(e: IntExpr, name: str, lo: IntExpr, hi: IntExpr, facts: Facts, depth: int) -> bool:
    """A function linear in `name` is nonnegative on an interval when it is at both ends."""
    parts = split_linear(e, name)
    if parts is None:
        return False
    slope, _ = parts
    at_lo, at_hi = substitute(e, {name: lo}), substitute(e, {name: hi})
    if slope.const is not None:
        return _nonneg(at_lo if slope.const >= 0 else at_hi, facts, depth - 1)
    return _nonneg(at_lo, facts, depth - 1) and _nonneg(at_hi, facts, depth - 1)


@lru_cache(maxsize=4096)
def _replace_atom(e: IntExpr, atom: Atom, by: IntExpr) -> IntExpr:
    total = int_expr(0)
    for monomial, coefficient in e.terms:
        product = int_expr(coefficient)
        for a in monomial:
            product = product * (by if a == atom else IntExpr((((a,), 1),)))
        total = total + product
    return total


def _nonneg_opaque(e: IntExpr, atom: Atom, facts: Facts, depth: int) -> bool:
    fresh = "@a"  # a name no rank can have
    probe = _replace_atom(e, atom, var(fresh))
    linear = split_linear(probe, fresh)
    slope = linear[0].const if linear is not None else None

    def with_atom(by: IntExpr) -> bool:
        return _nonneg(_replace_atom(e, atom, by), facts, depth - 1)

    match atom:
        case Min(args) | Max(args):
            helps = slope is not None and (slope < 0) == isinstance(atom, Min)
            return (helps and any(with_atom(a) for a in args)) or all(with_atom(a) for a in args)
        case Mod(num, den):
            if linear is None or not facts.nonneg(den - 1):
                return False
            if slope is None:  # of unknown sign: both ends must do
                return with_atom(int_expr(0)) and with_atom(den - 1)
            if slope >= 0:
                return with_atom(int_expr(0))
            if with_atom(den - 1):
                return True
            return facts.nonneg(num) and with_atom(num)  # num % den <= num for num >= 0
        case FloorDiv(num, den):
            return _nonneg_division(e, atom, num, den, slope, facts, depth)
        case _:
            return False


def _nonneg_division(
    e: IntExpr, atom: Atom, num: IntExpr, den: IntExpr, slope: int | None, facts: Facts, depth: int
) -> bool:
    if not facts.nonneg(den - 1) or slope is None:
        return False
    # num - den + 1 <= den * (num // den) <= num. Multiply e by den to stay in integers; e is one, so den*e > -den will do.
    rest = _replace_atom(e, atom, int_expr(0))
    least = rest * den + (num - den + 1 if slope >= 0 else num) * slope
    if _nonneg(least + (den - 1), facts, depth - 1):
        return True
    if not facts.nonneg(num):
        return False
    # 0 <= num // den <= num
    return _nonneg(rest if slope >= 0 else rest + num * slope, facts, depth - 1)


def _nonneg_symbols(e: IntExpr, facts: Facts, depth: int) -> bool:
    """Shift every symbol to its lower bound: if then no coefficient is negative, neither is the value."""
    names = [n for n in variables(e) if n.startswith("#")]
    if len(names) != len(variables(e)):
        return False
    # A point of the space exists only when no rank is empty, so a symbol that is a rank's extent, or a factor of one that is a
    # product of symbols (which are never negative), is at least 1.
    nonempty = {n for x in facts.ranks.values() if _is_product(x) for n in variables(x)}

    def least(name: str) -> int:
        return max(facts.symbols.get(name, SymbolFact()).lo, 1 if name in nonempty else 0)

    shifted = substitute(e, {n: var(n) + least(n) for n in names})
    if all(c >= 0 for _, c in shifted.terms):
        return True
    for name in names:
        below = facts.symbols.get(name, SymbolFact()).below
        if below is not None and name not in variables(below):
            return _at_both_ends(e, name, int_expr(least(name)), below - 1, facts, depth)
    for name in names:
        hi = facts.symbols.get(name, SymbolFact()).hi
        if hi is not None:
            return _at_both_ends(e, name, int_expr(least(name)), int_expr(hi), facts, depth)
    return False


def _is_product(e: IntExpr) -> bool:
    """Whether `e` is a positive multiple of a product of variables."""
    return len(e.terms) == 1 and e.terms[0][1] > 0 and all(isinstance(a, Var) for a in e.terms[0][0])
