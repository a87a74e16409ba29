"""Pointwise ATen operators of several tensors: arithmetic, comparison, logic, choice. Promotion becomes casts here."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dlc.frontend.torch_context import Ctx, Operand, add, div, mul, op, select, sub, wide_type
from dlc.ir.dtype import BF16, BOOL, F16, F32, DType
from dlc.ir.expr import Expr, apply, const
from dlc.ir.view import Val


@op("add.Tensor", "add.Scalar")
def add_(c: Ctx, x: Operand, y: Operand, alpha: Any = 1) -> Val:
    if c.dtype == BOOL:
        return c.pointwise(lambda a, b: apply("or", a, b), x, y)
    if _is_one(alpha):
        return c.pointwise(add, x, y)
    return c.pointwise(lambda a, b, k: add(a, mul(b, k)), x, y, alpha)


@op("sub.Tensor", "sub.Scalar", "subtract.Tensor", "subtract.Scalar")
def sub_(c: Ctx, x: Operand, y: Operand, alpha: Any = 1) -> Val:
    if _is_one(alpha):
        return c.pointwise(sub, x, y)
    return c.pointwise(lambda a, b, k: sub(a, mul(b, k)), x, y, alpha)


@op("rsub.Tensor", "rsub.Scalar")
def rsub(c: Ctx, x: Operand, y: Operand, alpha: Any = 1) -> Val:
    return sub_(c, y, x, alpha)


@op("mul.Tensor", "mul.Scalar", "multiply.Tensor", "multiply.Scalar")
def mul_(c: Ctx, x: Operand, y: Operand) -> Val:
    if c.dtype == BOOL:
        return c.pointwise(lambda a, b: apply("and", a, b), x, y)
    return _by_number(c, mul, x, y)


def _by_number(c: Ctx, element: Callable[[Expr, Expr], Expr], x: Operand, y: Operand) -> Val:
    """A product or quotient: ATen keeps a number, or a tensor of rank 0, in f32 beside a smaller float, and rounds once.

    Source: ATen, native/cpu/BinaryOpsKernel.cpp, mul_kernel and div_true_kernel (`original_scalar_value<opmath_t>`).
    """
    t = c.dtype
    if t not in (F16, BF16) or not _finer(y, t):
        return c.pointwise(element, x, y)
    return c.cast(c.pointwise(element, c.val(x, t), y, compute=F32), t)


def _finer(y: Operand, t: DType) -> bool:
    """Whether an operand without dimensions may have a value that `t` rounds."""
    if isinstance(y, Val):
        return y.rank == 0 and y.dtype not in (t, BOOL)
    with np.errstate(over="ignore"):
        return not isinstance(y, (int, float)) or float(np.float64(y).astype(t.numpy)) != y


@op("div.Tensor", "div.Scalar", "true_divide.Tensor", "true_divide.Scalar", "divide.Tensor", "divide.Scalar")
def div_(c: Ctx, x: Operand, y: Operand) -> Val:
    return _by_number(c, div, x, y)


@op("div.Tensor_mode", "div.Scalar_mode", "divide.Tensor_mode", "divide.Scalar_mode")
def div_mode(c: Ctx, x: Operand, y: Operand, *, rounding_mode: str | None = None) -> Val:
    if rounding_mode is None:
        return div_(c, x, y)
    if rounding_mode == "floor":
        return floor_divide(c, x, y)
    return c.pointwise(lambda a, b: apply("div_trunc", a, b), x, y)


@op("floor_divide", "floor_divide.Scalar")
def floor_divide(c: Ctx, x: Operand, y: Operand) -> Val:
    t = F32 if c.dtype in (F16, BF16) and _finer(y, c.dtype) else c.dtype
    if not t.is_float:
        return c.pointwise(lambda a, b: apply("div_floor", a, b), x, y)
    zero = const(0, t)

    def element(a: Expr, b: Expr) -> Expr:
        # Not floor(a / b): the quotient may round up to an integer that a does not reach (1.0 // 0.1 is 9).
        rest = apply("rem_trunc", a, b)
        quotient = apply("copysign", apply("round", div(sub(a, rest), b)), div(a, b))  # -0.0 // 3 is -0.0
        opposite = apply("xor", apply("lt", b, zero), apply("lt", rest, zero))
        below = apply("and", apply("ne", rest, zero), opposite)
        return select(apply("eq", b, zero), div(a, b), select(below, sub(quotient, const(1, t)), quotient))

    return c.cast(c.pointwise(element, c.val(x, c.dtype), y, compute=t), c.dtype)


@op("remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
def remainder(c: Ctx, x: Operand, y: Operand) -> Val:
    return c.pointwise(lambda a, b: apply("rem_floor", a, b), x, y)


@op("fmod.Tensor", "fmod.Scalar")
def fmod(c: Ctx, x: Operand, y: Operand) -> Val:
    return c.pointwise(lambda a, b: apply("rem_trunc", a, b), x, y)


@op("pow.Tensor_Scalar")
def pow_scalar(c: Ctx, x: Val, exponent: Any) -> Val:
    t = c.dtype
    e = exponent if isinstance(exponent, (int, float)) else None
    one = const(1, t)
    forms: dict[float, Callable[[Expr], Expr]] = {
        0: lambda a: one,
        1: lambda a: a,
        2: lambda a: mul(a, a),
        3: lambda a: mul(mul(a, a), a),
    }
    if t.is_float:
        forms |= {
            0.5: lambda a: apply("sqrt", a),
            -0.5: lambda a: apply("rsqrt", a),
            -1: lambda a: div(one, a),
            -2: lambda a: div(one, mul(a, a)),
        }
    if e is not None and e in forms and t != BOOL:
        return c.pointwise(forms[e], x)
    return c.pointwise(lambda a, b: apply("pow", a, b), x, exponent)


@op("pow.Tensor_Tensor", "pow.Scalar", "float_power.Tensor_Tensor", "float_power.Scalar", "float_power.Tensor_Scalar")
def pow_(c: Ctx, x: Operand, exponent: Operand) -> Val:
    return c.pointwise(lambda a, b: apply("pow", a, b), x, exponent)


def _simple(name: str, *targets: str) -> None:
    @op(*targets)
    def handler(c: Ctx, x: Operand, y: Operand) -> Val:
        return c.pointwise(lambda a, b: apply(name, a, b), x, y)


_simple("atan2", "atan2", "arctan2")
_simple("max", "maximum", "max.other")
_simple("min", "minimum", "min.other")
_simple("copysign", "copysign.Tensor", "copysign.Scalar")
_simple("nextafter", "nextafter")
_simple(
    "and", "bitwise_and.Tensor", "bitwise_and.Scalar", "bitwise_and.Scalar_Tensor", "__and__.Tensor", "__and__.Scalar"
)
_simple("or", "bitwise_or.Tensor", "bitwise_or.Scalar", "bitwise_or.Scalar_Tensor", "__or__.Tensor", "__or__.Scalar")
_simple(
    "xor", "bitwise_xor.Tensor", "bitwise_xor.Scalar", "bitwise_xor.Scalar_Tensor", "__xor__.Tensor", "__xor__.Scalar"
)
_simple(
    "shl", "bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar", "__lshift__.Tensor", "__lshift__.Scalar"
)
_simple(
    "shr", "bitwise_right_shift.Tensor", "bitwise_right_shift.Tensor_Scalar", "__rshift__.Tensor", "__rshift__.Scalar"
)


def _ignoring_nan(name: str, plain: str, target: str) -> None:
    @op(target)
    def handler(c: Ctx, x: Operand, y: Operand) -> Val:
        return c.pointwise(lambda a, b: apply(name if c.dtype.is_float else plain, a, b), x, y)


_ignoring_nan("maxnum", "max", "fmax")
_ignoring_nan("minnum", "min", "fmin")


def _compare(name: str, *words: str) -> None:
    @op(*(f"{w}.{kind}" for w in words for kind in ("Tensor", "Scalar")))
    def handler(c: Ctx, x: Operand, y: Operand) -> Val:
        common = c.common(x, y)
        return c.map(c.hint, lambda a, b: apply(name, a, b), c.val(x, common), c.val(y, common), dtype=BOOL)


_compare("eq", "eq")
_compare("ne", "ne", "not_equal")
_compare("lt", "lt", "less")
_compare("le", "le", "less_equal")
_compare("gt", "gt", "greater")
_compare("ge", "ge", "greater_equal")


def _logical(name: str, target: str) -> None:
    @op(target)
    def handler(c: Ctx, x: Val, y: Val) -> Val:
        return c.map(c.hint, lambda a, b: apply(name, a, b), c.val(x, BOOL), c.val(y, BOOL), dtype=BOOL)


for _word in ("and", "or", "xor"):
    _logical(_word, f"logical_{_word}")


@op("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def where(c: Ctx, condition: Val, x: Operand, y: Operand) -> Val:
    t = c.dtype
    return c.map(c.hint, select, c.cast(condition, BOOL), c.val(x, t), c.val(y, t), dtype=t)


@op("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(c: Ctx, x: Val, mask: Val, value: Operand) -> Val:
    t = x.dtype
    return c.map(c.hint, lambda a, m, v: select(m, v, a), x, c.cast(mask, BOOL), c.val(value, t), dtype=t)


@op("clamp", "clamp.Tensor", "clip", "clip.Tensor")
def clamp(c: Ctx, x: Val, min: Operand | None = None, max: Operand | None = None) -> Val:
    if min is None and max is None:
        return x
    if min is None or max is None:
        name, bound = ("min", max) if min is None else ("max", min)
        assert bound is not None
        return c.pointwise(lambda a, b: apply(name, a, b), x, bound)
    return c.pointwise(lambda a, lo, hi: apply("min", apply("max", a, lo), hi), x, min, max)


@op("clamp_min", "clamp_min.Tensor")
def clamp_min(c: Ctx, x: Val, min: Operand) -> Val:
    return clamp(c, x, min)


@op("clamp_max", "clamp_max.Tensor")
def clamp_max(c: Ctx, x: Val, max: Operand) -> Val:
    return clamp(c, x, None, max)


def _rounded_once(c: Ctx, element: Callable[..., Expr], *args: Operand) -> Val:
    """What ATen computes in f32, numbers not rounded, where the result is a smaller float.

    Source: ATen, native/cpu/PointwiseOpsKernel.cpp and LerpKernel.cpp (`opmath_t`).
    """
    return c.cast(c.pointwise(element, *args, compute=wide_type(c.dtype)), c.dtype)


@op("addcmul")
def addcmul(c: Ctx, x: Val, y: Val, z: Val, *, value: Any = 1) -> Val:
    if _is_one(value):
        return _rounded_once(c, lambda a, p, q: add(a, mul(p, q)), x, y, z)
    return _rounded_once(c, lambda a, p, q, k: add(a, mul(mul(k, p), q)), x, y, z, value)


@op("addcdiv")
def addcdiv(c: Ctx, x: Val, y: Val, z: Val, *, value: Any = 1) -> Val:
    return _rounded_once(c, lambda a, p, q, k: add(a, div(mul(k, p), q)), x, y, z, value)


@op("lerp.Scalar", "lerp.Tensor")
def lerp(c: Ctx, x: Val, end: Val, weight: Operand) -> Val:
    """From the nearer end, as ATen does, so that both ends are met exactly."""
    t = wide_type(c.dtype)

    def from_start(a: Expr, b: Expr, w: Expr) -> Expr:
        return add(a, mul(w, sub(b, a)))

    def from_end(a: Expr, b: Expr, w: Expr) -> Expr:
        return sub(b, mul(sub(b, a), sub(const(1, t), w)))

    def nearer(a: Expr, b: Expr, w: Expr) -> Expr:
        return select(apply("lt", apply("abs", w), const(0.5, t)), from_start(a, b, w), from_end(a, b, w))

    if isinstance(weight, (int, float)):
        return _rounded_once(c, from_start if abs(weight) < 0.5 else from_end, x, end, weight)
    return _rounded_once(c, nearer, x, end, weight)


@op("hypot")
def hypot(c: Ctx, x: Operand, y: Operand) -> Val:
    t = c.dtype
    zero = const(0, t)

    def element(a: Expr, b: Expr) -> Expr:
        p, q = apply("abs", a), apply("abs", b)
        big, small = apply("max", p, q), apply("min", p, q)
        ratio = div(small, big)
        # Scaled by the larger, so that squares do not overflow.
        finite = mul(big, apply("sqrt", add(const(1, t), mul(ratio, ratio))))
        return select(apply("eq", big, zero), zero, select(apply("isinf", big), big, finite))

    return c.pointwise(element, x, y)


@op("xlogy.Tensor", "xlogy.Scalar_Self", "xlogy.Scalar_Other", "special_xlogy")
def xlogy(c: Ctx, x: Operand, y: Operand) -> Val:
    zero = const(0, c.dtype)

    def element(a: Expr, b: Expr) -> Expr:
        plain = select(apply("eq", a, zero), zero, mul(a, apply("log", b)))
        return select(apply("isnan", b), b, plain)

    return c.pointwise(element, x, y)


def _log_add(name: str, power: str, log: Callable[[Expr, DType], Expr]) -> None:
    @op(name)
    def handler(c: Ctx, x: Operand, y: Operand) -> Val:
        t = c.dtype

        def element(a: Expr, b: Expr) -> Expr:
            top, gap = apply("max", a, b), apply("neg", apply("abs", sub(a, b)))
            equal_infinite = apply("and", apply("isinf", a), apply("eq", a, b))
            return select(equal_infinite, a, add(top, log(apply(power, gap), t)))

        return c.pointwise(element, x, y)


_log_add("logaddexp", "exp", lambda e, t: apply("log1p", e))
_log_add("logaddexp2", "exp2", lambda e, t: mul(apply("log1p", e), const(1 / math.log(2), t)))


@op("heaviside")
def heaviside(c: Ctx, x: Val, values: Val) -> Val:
    t = c.dtype
    zero, one = const(0, t), const(1, t)
    return c.pointwise(lambda a, v: select(apply("eq", a, zero), v, select(apply("gt", a, zero), one, zero)), x, values)


@op("ldexp.Tensor")
def ldexp(c: Ctx, x: Operand, y: Operand) -> Val:
    return c.pointwise(lambda a, b: mul(a, apply("exp2", b)), x, y)


@op("mse_loss")
def mse_loss(c: Ctx, x: Val, target: Val, reduction: int = 1) -> Val:
    from dlc.frontend.torch_reduce import mean, sum_

    d = c.map(c.hint, lambda a, b: mul(sub(a, b), sub(a, b)), c.val(x, c.dtype), c.val(target, c.dtype))
    return d if reduction == 0 else mean(c, d) if reduction == 1 else sum_(c, d)


@op("copy")
def copy(c: Ctx, x: Val, src: Val, non_blocking: bool = False) -> Val:
    return c.cast(src, x.dtype).broadcast_to(x.shape)


@op("isclose")
def isclose(c: Ctx, x: Val, y: Val, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> Val:
    t = x.dtype
    if not t.is_float:
        raise c.unsupported("the operands are integers")

    def element(a: Expr, b: Expr) -> Expr:
        bound = add(const(atol, t), mul(const(rtol, t), apply("abs", b)))
        gap = apply("abs", sub(a, b))
        near = apply("and", apply("le", gap, bound), apply("lt", gap, const(math.inf, t)))
        equal = apply("eq", a, b)
        if equal_nan:
            equal = apply("or", equal, apply("and", apply("isnan", a), apply("isnan", b)))
        return apply("or", equal, near)

    return c.map(c.hint, element, x, y, dtype=BOOL)


def _is_one(v: Any) -> bool:
    return isinstance(v, (int, float)) and v == 1
