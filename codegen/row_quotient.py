"""Divisions by a value of the row: one reciprocal for the row, and products with it.

    O[m] = E[m] / S     ->     r = 1 / (S * s),   O[m] = (E[m] * s) * r

A division of 16 numbers takes 10 cycles of a Zen 4 core, the products hide behind the store. `s` is 1 unless the reciprocal of
S would overflow or be less than the least normal number, then a power of two that brings S nearer to 1: where `E * s` is
inexact or infinite then, so is the quotient 0 or infinite. Zeros, infinities and NaN come out as those of a division.

A product with a rounded reciprocal is within 1.5 ulp, not half of one. It is taken where the divisor comes from a floating-point
sum that this kernel folds: such a divisor is itself known only within the sum's bound, and the error model (`dlc.ir.error_model`)
grants a quotient by it the two roundings. Divisors that are exact, as maxima, counts and inputs are, divide; so does f64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dlc.codegen.nest import PointStep
from dlc.codegen.point import Emitter, Space, compute_type
from dlc.ir.dtype import F32
from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Apply, Expr, accesses, apply, dtype_of, transform
from dlc.ir.extent import IntExpr
from dlc.ir.program import fresh_name

_OF_DIVISORS = frozenset("add sub mul div sqrt rsqrt neg abs min max exp log".split())
"""Operations whose result the error model holds inexact when an operand is."""

_LEAST, _MOST = 2.0**-126, 2.0**126
"""The least and the greatest divisor whose reciprocal is a normal number."""
_UP = 2.0**64


class RowQuotients:
    """Rewrites the steps of a kernel's nests.

    Args:
        steps: all steps of the kernel; what is a sum is found among them.
    """

    def __init__(self, em: Emitter, steps: Sequence[Einsum]) -> None:
        self.em = em
        self.made = {o: s for s in steps for o in s.outs}

    def divide_once(
        self, steps: Sequence[PointStep], loops: Mapping[str, IntExpr], space: Space
    ) -> list[PointStep]:
        """The steps of a nest over `loops`; the reciprocals that they read are computed before it, at the points of `space`."""
        found: dict[Expr, tuple[Access, Access]] = {}

        def visit(e: Expr) -> Expr | None:
            match e:
                case Apply("div", (x, d)) if self.suits(e, loops):
                    if d not in found:
                        found[d] = self._reciprocal(d, space)
                    scale, reciprocal = found[d]
                    return apply("mul", apply("mul", x, scale), reciprocal)
                case _:
                    return None

        return [replace(s, exprs=tuple(transform(e, visit) for e in s.exprs)) for s in steps]

    def suits(self, e: Apply, loops: Mapping[str, IntExpr]) -> bool:
        """Whether a division is by a sum of the row while what it divides moves along the row."""
        x, d = e.args
        names = loops.keys()
        kind = dtype_of(e, self.em.dtype)
        if not kind.is_float or compute_type(kind) != F32 or names.isdisjoint(x.variables) or not names.isdisjoint(d.variables):
            return False
        held = all(a.tensor in self.em.tiles and a.default is None for a in accesses(d))
        return held and self.is_inexact(d)

    def is_inexact(self, e: Expr) -> bool:
        """Whether the error model holds `e` inexact wherever it is neither 0 nor special, because of a sum in it."""
        match e:
            case Access(tensor) if tensor in self.made:
                step = self.made[tensor]
                kind = step.dtypes[step.outs.index(tensor)]
                if step.reduce is not None:
                    return kind.is_float and step.reduce.op == "sum"
                return kind.is_float and step.where is None and self.is_inexact(step.exprs[0])
            case Apply(op, args):
                return op in _OF_DIVISORS and any(map(self.is_inexact, args))
            case _:
                return False

    def _reciprocal(self, d: Expr, space: Space) -> tuple[Access, Access]:
        """Accesses of the scale and of the reciprocal of the scaled divisor, both in registers."""
        b, em = self.em.b, self.em
        least, most, up, down = (b.const(F32, v) for v in (_LEAST, _MOST, _UP, 1 / _UP))
        one = b.const(F32, 1.0)
        value = em.value(d, space)
        size = b.op("abs", value)
        scale = b.op("select", b.op("gt", size, most), down, one)
        scale = b.op("select", b.op("lt", size, least), up, scale)
        reciprocal = b.op("div", one, b.op("mul", value, scale))
        return self._named("scale", scale), self._named("reciprocal", reciprocal)

    def _named(self, base: str, tile: str) -> Access:
        name = fresh_name(base, self.em.dtypes)
        self.em.dtypes[name] = F32
        self.em.tiles[name] = ((), tile)
        return Access(name, ())


__all__ = ["RowQuotients"]
