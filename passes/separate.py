"""Taking a reduction's operand apart: what the reduced rank needs, what it does not, and what joins the two.

An operand is a sum of terms, a term a product of factors. With *running* tensors the results of earlier reductions over the
same rank, a factor is

    local     free of running tensors: an element of the data                                V[m, f]
    outer     free of the reduced ranks: it moves past the reduction, whatever it is         1 / SD[p]
    power     both, `base^(A - s*R)` with A local and R the running maximum of A/s           exp(QK[p, m] - GM[p])
    shift     both, `(X - C)^k` with X local and C free of the reduced ranks                 (X[p, m] - MU[p])^2

Anything else is not separable, and `Unseparable` says which part of it is not.

Source: the running forms of Nayak et al., FuseMax, MICRO 2024 (arXiv 2406.10491), section IV; the factors are those that make
its examples work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from dlc.ir.dtype import DType
from dlc.ir.expr import Apply, Const, Expr, Piecewise, accesses, const

MOST_TERMS = 16
_EXPONENTIALS = frozenset({"exp", "exp2"})


class Unseparable(Exception):
    """An operand has a part that mixes data and running values in no way that can be taken apart."""

    def __init__(self, part: Expr, why: str) -> None:
        super().__init__(f"{why}: {part}".replace("#", ""))


@dataclass(frozen=True)
class Scope:
    """What is known at an operand.

    Attributes:
        ranks: the reduced ranks.
        running: whether a tensor is (point-wise of) the result of a reduction in progress.
        dtype: element type of an expression.
    """

    ranks: frozenset[str]
    running: Callable[[str], bool]
    dtype: Callable[[Expr], DType]

    def is_local(self, e: Expr) -> bool:
        return not any(self.running(a.tensor) for a in accesses(e))

    def is_outer(self, e: Expr) -> bool:
        return self.ranks.isdisjoint(e.variables)

    def is_mixed(self, e: Expr) -> bool:
        return not self.is_local(e) and not self.is_outer(e)

    def is_neutral(self, e: Expr) -> bool:
        return self.is_local(e) and self.is_outer(e)


@dataclass(frozen=True)
class Factor:
    """`expr`, or `1 / expr`."""

    expr: Expr
    inverse: bool = False

    def flipped(self) -> Factor:
        return Factor(self.expr, not self.inverse)


@dataclass(frozen=True)
class Addend:
    """`sign * product(scales) * body`, with scales free of both the rank and running tensors."""

    sign: int
    scales: tuple[Factor, ...]
    body: Expr

    def key(self) -> tuple[int, float, frozenset[tuple[Factor, int]], Expr]:
        """Equal for equal addends, whatever the order of the scales, and whether constants multiply or divide."""
        others = [s for s in self.scales if not isinstance(s.expr, Const)]
        return self.sign, size_of(self.scales), frozenset((s, others.count(s)) for s in others), self.body

    def expr(self) -> Expr:
        """The addend without its sign."""
        return product((Factor(self.body), *self.scales), None)


def size_of(scales: tuple[Factor, ...]) -> float:
    """The product of the constants among the scales."""
    size = 1.0
    for s in scales:
        if isinstance(s.expr, Const):
            size = size / float(s.expr.value) if s.inverse and s.expr.value else size * float(s.expr.value)
    return size


@dataclass(frozen=True)
class Power:
    """A factor `base^exponent`: its exponent's local part, and the rest as addends free of the rank.

    Attributes:
        factor: the whole factor as written.
        base: function of an exponent, `exp(E)`, `exp2(E)` or `pow(b, E)`.
        data: addends of the exponent that are local.
        rest: addends that are free of the rank and running.
        written: the power alone, where the factor is a choice between it and 0.
    """

    factor: Factor
    base: Callable[[Expr], Expr]
    data: tuple[Addend, ...]
    rest: tuple[Addend, ...]
    written: Expr


@dataclass(frozen=True)
class Shift:
    """A factor `(data - centre)^power`; `centre` are the addends free of the rank, with the signs of the sum."""

    expr: Expr
    data: tuple[Addend, ...]
    centre: tuple[Addend, ...]
    power: int


@dataclass(frozen=True)
class Term:
    """One product of an operand, sorted by what can be done with its factors."""

    sign: int
    local: tuple[Factor, ...] = ()
    outer: tuple[Factor, ...] = ()
    powers: tuple[Power, ...] = ()
    shift: Shift | None = None


def product(factors: tuple[Factor, ...], one: Const | None) -> Expr:
    """The product as an expression, left to right; `one` where there is nothing to begin with."""
    result: Expr | None = None
    for f in factors:
        if result is None:
            if f.inverse:
                assert one is not None, "a product that starts with a quotient needs its 1"
                result = Apply("div", (one, f.expr))
            else:
                result = f.expr
        else:
            result = Apply("div" if f.inverse else "mul", (result, f.expr))
    if result is None:
        assert one is not None, "an empty product needs its 1"
        return one
    return result


def numerators_first(factors: tuple[Factor, ...]) -> tuple[Factor, ...]:
    return tuple(sorted(factors, key=lambda f: f.inverse))


# --- sums and products -----------------------------------------------------------------------------------------------


def addends(e: Expr, scope: Scope, sign: int = 1, scales: tuple[Factor, ...] = ()) -> Iterator[Addend]:
    """`e` as a sum, with scales free of the rank and of running tensors multiplied out."""
    match e:
        case Apply("add", (a, b)):
            yield from addends(a, scope, sign, scales)
            yield from addends(b, scope, sign, scales)
        case Apply("sub", (a, b)):
            yield from addends(a, scope, sign, scales)
            yield from addends(b, scope, -sign, scales)
        case Apply("neg", (a,)):
            yield from addends(a, scope, -sign, scales)
        case Apply("mul", (a, b)) if scope.is_neutral(b) and not scope.is_neutral(a):
            yield from addends(a, scope, sign, (*scales, Factor(b)))
        case Apply("mul", (a, b)) if scope.is_neutral(a) and not scope.is_neutral(b):
            yield from addends(b, scope, sign, (*scales, Factor(a)))
        case Apply("div", (a, b)) if scope.is_neutral(b) and not scope.is_neutral(a):
            yield from addends(a, scope, sign, (*scales, Factor(b, inverse=True)))
        case _:
            signs = [isinstance(s.expr, Const) and s.expr.value < 0 for s in scales]
            plain = tuple(Factor(_negated(s.expr), s.inverse) if n else s for s, n in zip(scales, signs, strict=True))
            yield Addend(-sign if sum(signs) % 2 else sign, plain, e)


def _negated(e: Expr) -> Expr:
    assert isinstance(e, Const)
    return const(-e.value, e.dtype)


def terms(e: Expr, scope: Scope) -> tuple[Term, ...]:
    """The operand of a sum as sorted terms.

    Raises:
        Unseparable: for a part that is none of the kinds above.
    """
    found = tuple(_sorted(sign, factors, scope) for sign, factors in _terms(e, scope))
    if len(found) > MOST_TERMS:
        raise Unseparable(e, f"it has more than {MOST_TERMS} terms")
    return found


def _terms(e: Expr, scope: Scope) -> list[tuple[int, tuple[Factor, ...]]]:
    """Signed products; what is local or outer as a whole is left as it is written."""
    if scope.is_local(e) or scope.is_outer(e):
        return [(1, (Factor(e),))]
    match e:
        case Apply("neg", (a,)):
            return [(-s, f) for s, f in _terms(a, scope)]
        case Apply("mul", (a, b)):
            left, right = _terms(a, scope), _terms(b, scope)
            if len(left) * len(right) > MOST_TERMS:
                raise Unseparable(e, f"it has more than {MOST_TERMS} terms")
            return [(s * t, f + g) for s, f in left for t, g in right]
        case Apply("div", (a, b)):
            below = _terms(b, scope)
            if len(below) != 1:
                raise Unseparable(b, "a divisor that is a sum of data and running values")
            (sign, divisor) = below[0]
            return [(s * sign, f + tuple(x.flipped() for x in divisor)) for s, f in _terms(a, scope)]
        case Apply("pow", (a, Const(k))) if k in (2, 3, 4):
            return [(s ** int(k), f * int(k)) for s, f in _single(a, scope)]
        case Apply("add" | "sub" as op, (a, b)) if not all(_one_sided(x.body, scope) for x in addends(e, scope)):
            flip = -1 if op == "sub" else 1
            return _terms(a, scope) + [(flip * s, f) for s, f in _terms(b, scope)]
        case _:
            return [(1, (Factor(e),))]


def _single(e: Expr, scope: Scope) -> list[tuple[int, tuple[Factor, ...]]]:
    found = _terms(e, scope)
    if len(found) != 1:
        raise Unseparable(e, "a power of a sum of products")
    return found


def _one_sided(e: Expr, scope: Scope) -> bool:
    return scope.is_local(e) or scope.is_outer(e)


def _sorted(sign: int, factors: tuple[Factor, ...], scope: Scope) -> Term:
    term = Term(sign)
    for f in factors:
        if scope.is_outer(f.expr):
            term = replace(term, outer=(*term.outer, f))
        elif scope.is_local(f.expr):
            term = replace(term, local=(*term.local, f))
        else:
            term = _with_mixed(term, f, scope)
    return term


def _with_mixed(term: Term, f: Factor, scope: Scope) -> Term:
    power = as_power(f, scope)
    if power is not None:
        return replace(term, powers=(*term.powers, power))
    if isinstance(f.expr, Apply) and f.expr.op in ("add", "sub") and not f.inverse:
        parts = tuple(addends(f.expr, scope))
        data = tuple(a for a in parts if scope.is_local(a.body))
        centre = tuple(a for a in parts if not scope.is_local(a.body))
        if term.shift is None:
            return replace(term, shift=Shift(f.expr, data, centre, 1))
        if term.shift.expr == f.expr:
            return replace(term, shift=replace(term.shift, power=term.shift.power + 1))
        raise Unseparable(f.expr, "a product of two different sums of data and running values")
    raise Unseparable(f.expr, "neither a product nor a power whose exponent is a sum")


# --- powers ----------------------------------------------------------------------------------------------------------


def as_power(f: Factor, scope: Scope) -> Power | None:
    """The factor as a power of a sum; a choice between a power and 0 by a local condition is one, too."""
    match f.expr:
        case Apply(op, (exponent,)) if op in _EXPONENTIALS:
            return _power(f, exponent, lambda x: Apply(op, (x,)), scope)
        case Apply("pow", (base, exponent)) if scope.is_neutral(base):
            return _power(f, exponent, lambda x: Apply("pow", (base, x)), scope)
        case Apply("select", (condition, value, Const(0))) if scope.is_local(condition) and not f.inverse:
            inner = as_power(Factor(value), scope)
            return None if inner is None else replace(inner, factor=f)
        case Piecewise(((condition, value),), Const(0)) if scope.is_local(condition) and not f.inverse:
            inner = as_power(Factor(value), scope)
            return None if inner is None else replace(inner, factor=f)
        case _:
            return None


def _power(f: Factor, exponent: Expr, base: Callable[[Expr], Expr], scope: Scope) -> Power:
    sign = -1 if f.inverse else 1
    parts = tuple(addends(exponent, scope, sign))
    for a in parts:
        if scope.is_mixed(a.body):
            raise Unseparable(a.body, "an exponent with a part that mixes data and running values")
    data = tuple(a for a in parts if not scope.is_outer(a.body))
    rest = tuple(a for a in parts if scope.is_outer(a.body))
    return Power(f, base, data, rest, f.expr)


def signed_sum(parts: tuple[Addend, ...], dtype: DType) -> Expr:
    """The addends as one expression."""
    result: Expr | None = None
    for a in sorted(parts, key=lambda a: a.sign < 0):
        if result is None:
            result = a.expr() if a.sign > 0 else Apply("neg", (a.expr(),))
        else:
            result = Apply("add" if a.sign > 0 else "sub", (result, a.expr()))
    return const(0, dtype) if result is None else result
