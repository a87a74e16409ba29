"""Quotients by a constant that are rounded to integers next, as quantisation has them, without a division.

    q = x * r        r = 1 / c, rounded
    d = x - q * c    exactly, by a fused multiply-add
    q + d * r        is x / c, rounded once, unless all bits of c's mantissa are ones

It holds unless something underflows or overflows. Where `d` could underflow the quotient is far below 1/2, and 0 after it
is rounded; an infinity, which makes `d` NaN, keeps `q`. The sign of a zero may be lost, so what follows must be a conversion to
an integer. A division of 16 numbers takes 10 cycles of a Zen 4 core, this takes 5.

Source: Brisebarre, Muller and Raina, Accelerating Correctly Rounded Floating-Point Division When the Divisor Is Known in
Advance (IEEE Transactions on Computers 53(8), 2004), section 1; Markstein, IBM J. Res. Dev. 34(1), 1990.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dlc.ir.dtype import F32
from dlc.ir.expr import Apply, Const, Expr, dtype_of

if TYPE_CHECKING:
    from dlc.codegen.point import Emitter, Space

_LEAST, _MOST = 2.0**-60, 2.0**60


def before_conversion(em: Emitter, e: Expr, space: Space, mask: str | None) -> str:
    """The tile of `e`, which is converted to an integer next: `round(x / c)` inside of it takes no division."""
    match e:
        case Apply("min" | "max" | "add" as op, (left, right)) if _has_quotient(em, left):
            return em.b.op(op, before_conversion(em, left, space, mask), em.value(right, space, mask))
        case Apply("round", (Apply("div", (x, Const(c))),)) if _has_quotient(em, e):
            return em.b.op("round", _quotient(em, em.value(x, space, mask), float(c)))
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


def _quotient(em: Emitter, x: str, c: float) -> str:
    b = em.b
    reciprocal = b.const(F32, float(np.float32(1) / np.float32(c)))
    near = b.op("mul", x, reciprocal)
    off = b.op("fma", near, b.const(F32, -c), x)
    exact = b.op("fma", off, reciprocal, near)
    return b.op("select", b.op("ne", exact, exact), near, exact)
