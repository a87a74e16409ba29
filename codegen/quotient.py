"""Quotients by a constant that are rounded to integers next, as quantisation has them, without a division.

    q = x * r        r = 1 / c, rounded
    d = x - q * c    exactly, by a fused multiply-add
    q + d * r        is x / c, rounded once, unless all bits of c's mantissa are ones

It holds unless something underflows or overflows. Where `d` could underflow the quotient is far below 1/2, and 0 after it
is rounded; an infinity, which makes `d` NaN, keeps `q`. The sign of a zero may be lost, so what follows must be a conversion to
an integer. A division of 16 numbers takes 10 cycles of a Zen 4 core, this takes 5.

`min(max(round(x / c) + z, low), high)` of integers is `round(x' / c) + z` with x' between (low - z) c and (high - z) c: then
nothing overflows, and for a low end of 0, which is what NaN becomes, the float is the integer that the conversion will give. What
dequantises that integer again goes on from the float.

Source: Brisebarre, Muller and Raina, Accelerating Correctly Rounded Floating-Point Division When the Divisor Is Known in
Advance (IEEE Transactions on Computers 53(8), 2004), section 1; Markstein, IBM J. Res. Dev. 34(1), 1990.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlc.ir.dtype import F32, I32, DType
from dlc.ir.expr import Apply, Cast, Const, Expr, dtype_of

if TYPE_CHECKING:
    from dlc.codegen.point import Emitter, Space

_LEAST, _MOST = 2.0**-60, 2.0**60
_WHOLE = 1 << 15
"""Integers up to this, and sums of two, are floats, and times a scale off by far less than half of it."""


def converted(em: Emitter, e: Expr, to: DType, mode: str, space: Space, mask: str | None) -> str:
    """The tile of `e` as integers of type `to`: `round(x / c)` inside of it takes no division."""
    clamped = _clamped(em, e)
    if clamped is None:
        return em.b.cast(_before_conversion(em, e, space, mask), to, mode)
    whole = _within(em, clamped, em.value(clamped.x, space, mask))
    if clamped.low != 0 or to.lowest > 0 or clamped.high > to.highest or to.bits > 16:
        return em.b.cast(whole, to, mode)
    done = em.b.cast(whole, to, "fits")
    em.memo["whole", done] = whole
    return done


def dequantised(em: Emitter, e: Cast, space: Space, mask: str | None) -> str | None:
    """The tile of `cast<f32>(cast<i32>(n) - z)` where the float that n was converted from is at hand, else None."""
    match e:
        case Cast(dtype, Apply("sub", (Cast(middle, n), Const(z)))) if dtype == F32 and middle == I32 and abs(z) < _WHOLE:
            whole = em.memo.get(("whole", em.value(n, space, mask)))
            return None if whole is None else em.b.op("sub", whole, em.b.const(F32, float(z)))
        case _:
            return None


@dataclass(frozen=True)
class _Clamped:
    """`min(max(round(x / c) + zero, low), high)`, in whatever order it was clamped."""

    x: Expr
    c: float
    zero: int
    low: int
    high: int


def _clamped(em: Emitter, e: Expr) -> _Clamped | None:
    match e:
        case Apply("min", (Apply("max", (inner, Const(low))), Const(high))):
            pass
        case Apply("max", (Apply("min", (inner, Const(high))), Const(low))):
            pass
        case _:
            return None
    zero = 0.0
    if isinstance(inner, Apply) and inner.op == "add" and isinstance(inner.args[1], Const):
        zero, inner = float(inner.args[1].value), inner.args[0]
    if not (isinstance(inner, Apply) and inner.op == "round" and _has_quotient(em, inner)):
        return None
    quotient = inner.args[0]
    assert isinstance(quotient, Apply) and isinstance(quotient.args[1], Const)
    c, ends = float(quotient.args[1].value), (zero, float(low), float(high))
    if c <= 0 or not all(v.is_integer() and abs(v) < _WHOLE for v in ends) or low > high:
        return None
    return _Clamped(quotient.args[0], c, int(zero), int(low), int(high))


def _within(em: Emitter, e: _Clamped, x: str) -> str:
    """The integers as floats; NaN becomes a low end of 0, and stays NaN above another."""
    b = em.b
    low, high = (b.const(F32, float(np.float32((end - e.zero) * e.c))) for end in (e.low, e.high))
    x = b.op("select", b.op("gt", x, low), x, low) if e.low == 0 else b.op("max", x, low)
    whole = b.op("round", _quotient(em, b.op("min", x, high), e.c, finite=True))
    return b.op("add", whole, b.const(F32, float(e.zero))) if e.zero else whole


def _before_conversion(em: Emitter, e: Expr, space: Space, mask: str | None) -> str:
    """The tile of `e`, which is converted to an integer next."""
    match e:
        case Apply("min" | "max" | "add" as op, (left, right)) if _has_quotient(em, left):
            return em.b.op(op, _before_conversion(em, left, space, mask), em.value(right, space, mask))
        case Apply("round", (Apply("div", (x, Const(c))),)) if _has_quotient(em, e):
            return em.b.op("round", _quotient(em, em.value(x, space, mask), float(c), finite=False))
        case _:
            return em.value(e, space, mask)


def _has_quotient(em: Emitter, e: Expr) -> bool:
    match e:
        case Apply("min" | "max" | "add", (left, _)):
            return _has_quotient(em, left)
        case Apply("round", (Apply("div", (_, Const(c, dtype))),)):
            return em.fused and dtype == F32 and dtype_of(e, em.dtype) == F32 and _suits(float(c))
        case _:
            return False


def _suits(c: float) -> bool:
    ones = (1 << 23) - 1
    return _LEAST < abs(c) < _MOST and int(np.float32(c).view(np.uint32)) & ones != ones


def _quotient(em: Emitter, x: str, c: float, finite: bool) -> str:
    """`x / c`, rounded once, where x is no infinity (and not near one) or the select looks after it."""
    b = em.b
    reciprocal = b.const(F32, float(np.float32(1) / np.float32(c)))
    near = b.op("mul", x, reciprocal)
    off = b.op("fma", near, b.const(F32, -c), x)
    exact = b.op("fma", off, reciprocal, near)
    return exact if finite else b.op("select", b.op("ne", exact, exact), near, exact)
