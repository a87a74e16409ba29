"""Quantised values: QuantizeLinear and its inverse (per tensor, axis, block), dynamic quantisation, QLinear operators."""

from __future__ import annotations

from dlc.frontend.onnx_load import element_type
from dlc.frontend.onnx_ops.convolution import convolve
from dlc.frontend.onnx_ops.pointwise import wide_type
from dlc.frontend.onnx_ops.products import matmul, minus_zero_point
from dlc.frontend.onnx_ops.registry import Ctx, Result, op
from dlc.ir.dtype import F32, I32, U8, DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.view import Val


def along(c: Ctx, v: Val, x: Val, axis: int, block: int) -> Val:
    """Scale or zero point `v` read at the places of `x`: one number, one per place of `axis`, or one per block."""
    if v.rank == 0 or (v.rank <= 1 and v.elements.const == 1):
        return v.view((), lambda: [0] * v.rank).broadcast_to(x.shape)
    if block:
        if v.rank != x.rank:
            c.bad(f"a blocked scale has rank {v.rank}, its operand {x.rank}")
        return v.view(x.shape, lambda *i: [e // block if d == axis else e for d, e in enumerate(i)])
    if v.rank != 1:
        c.bad(f"a scale of rank {v.rank} without blocks")
    return v.view(x.shape, lambda *i: [i[axis]])


def read(v: Val, to: DType) -> Val:
    return v if v.dtype == to else Val(to, v.shape, lambda i: Cast(to, v.at(i)))


def axis_of(c: Ctx, x: Val, scale: Val) -> int:
    axis = c.int_("axis", 1)
    if scale.rank == 0 or x.rank == 0:
        return 0
    if x.rank == 1 and axis == 1:
        return 0
    return c.axis(axis, x.rank)


def clamp_cast(e: Expr, t: DType, out: DType) -> Expr:
    """A rounded value saturated to `out`; NaN gives 0."""
    low, high = const(out.lowest, t), const(out.highest, t)
    return Cast(out, apply("min", apply("max", e, low), high))


def quantize(c: Ctx, x: Val, scale: Val, zero: Val | None, out: DType, t: DType, hint: str) -> Val:
    """round(x / scale) + zero, saturated; `scale` and `zero` already read at the places of x."""

    def element(*i: IntExpr) -> Expr:
        e = apply("round", apply("div", read(x, t).at(i), read(scale, t).at(i)))
        if zero is not None:
            e = apply("add", e, read(zero, t).at(i))
        return clamp_cast(e, t, out)

    return c.b.compute(hint, x.shape, element, out)


@op("QuantizeLinear")
def quantize_linear(c: Ctx) -> Result:
    x, scale, zero = c.x(0), c.x(1), c.opt(2)
    wanted = c.int_("output_dtype", 0)
    out = zero.dtype if zero is not None else element_type(wanted, c.loc, c.op) if wanted else U8
    axis, block = axis_of(c, x, scale), c.int_("block_size", 0)
    t = F32 if x.dtype == I32 else wide_type(x.dtype)
    precision = c.int_("precision", 0)
    if precision:
        t = wide_type(element_type(precision, c.loc, c.op))
    if out.is_float:
        return _to_small_floats(c, x, along(c, scale, x, axis, block), out, t)
    wide_zero = None if zero is None else along(c, zero, x, axis, block)
    return quantize(c, x, along(c, scale, x, axis, block), wide_zero, out, t, c.hint)


def _to_small_floats(c: Ctx, x: Val, scale: Val, out: DType, t: DType) -> Val:
    """x / scale, rounded to the type; its zero point is 0, as ONNX demands."""
    mode = "sat" if c.int_("saturate", 1) == 1 else "wrap"

    def element(*i: IntExpr) -> Expr:
        return Cast(out, apply("div", read(x, t).at(i), read(scale, t).at(i)), mode)

    return c.b.compute(c.hint, x.shape, element, out)


@op("DequantizeLinear")
def dequantize_linear(c: Ctx) -> Result:
    x, scale, zero = c.x(0), c.x(1), c.opt(2)
    axis, block = axis_of(c, x, scale), c.int_("block_size", 0)
    wanted = c.int_("output_dtype", 0)
    out = element_type(wanted, c.loc, c.op) if wanted else scale.dtype
    t = wide_type(scale.dtype)
    steps = along(c, scale, x, axis, block)
    offset = None if zero is None else along(c, zero, x, axis, block)

    def element(*i: IntExpr) -> Expr:
        if x.dtype.is_float:
            value = apply("mul", Cast(t, x.at(i)), read(steps, t).at(i))
            return value if t == out else Cast(out, value)
        e = Cast(I32, x.at(i), "wrap") if x.dtype != I32 else x.at(i)
        if offset is not None:
            z = offset.at(i)
            e = apply("sub", e, Cast(I32, z, "wrap") if offset.dtype != I32 else z)
        value = apply("mul", Cast(t, e), read(steps, t).at(i))
        return value if t == out else Cast(out, value)

    return c.b.compute(c.hint, x.shape, element, out)


@op("DynamicQuantizeLinear")
def dynamic_quantize_linear(c: Ctx) -> Result:
    x = c.x(0)
    dims = list(range(x.rank))
    high = c.b.reduce_axes(f"{c.hint}_max", "max", x, dims, False)
    low = c.b.reduce_axes(f"{c.hint}_min", "min", x, dims, False)
    zero_f = const(0.0, F32)

    def step(a: Expr, b: Expr) -> Expr:
        span = apply("sub", apply("max", a, zero_f), apply("min", b, zero_f))
        steps = apply("div", span, const(255.0, F32))
        # 1 of zeros alone, as onnxruntime has it: ONNX's text divides by 0 there
        return apply("select", apply("eq", span, zero_f), const(1.0, F32), steps)

    scale = c.b.map(f"{c.hint}_scale", step, high, low)

    def offset(b: Expr, s: Expr) -> Expr:
        at = apply("sub", zero_f, apply("div", apply("min", b, zero_f), s))
        return Cast(U8, apply("round", apply("min", apply("max", at, zero_f), const(255.0, F32))))

    zero = c.b.map(f"{c.hint}_zero", offset, low, scale, dtype=U8)
    y = quantize(c, x, scale.broadcast_to(x.shape), zero.broadcast_to(x.shape), U8, F32, c.hint)
    return y, scale, zero


# --- operators on quantised values -----------------------------------------------------------------------------------


def requantize(c: Ctx, sums: Val, a: Val, b: Val, y: Val, zero: Val, out: DType, axis: int) -> Val:
    """i32 sums times scale a * b / y, rounded, plus zero, saturated; `b` may be one per place of `axis`."""
    t = wide_type(y.dtype)

    def one(v: Val) -> Val:
        if v.rank == 1 and v.elements.const != 1:
            return along(c, v, sums, axis, 0)
        return v.view((), lambda: [0] * v.rank).broadcast_to(sums.shape)

    wa, wb, wy, wz = (read(one(v), t) for v in (a, b, y, zero))

    def element(*i: IntExpr) -> Expr:
        factor = apply("div", apply("mul", wa.at(i), wb.at(i)), wy.at(i))
        e = apply("round", apply("mul", Cast(t, sums.at(i)), factor))
        return clamp_cast(apply("add", e, wz.at(i)), t, out)

    return c.b.compute(c.hint, sums.shape, element, out)


@op("QLinearMatMul")
def qlinear_matmul(c: Ctx) -> Result:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (c.x(i) for i in range(8))
    left = minus_zero_point(c, a, a_zero, -2)
    right = minus_zero_point(c, b, b_zero, -1)
    sums = matmul(c, left, right, f"{c.hint}_sums", I32)
    return requantize(c, sums, a_scale, b_scale, y_scale, y_zero, y_zero.dtype, sums.rank - 1)


@op("QLinearConv")
def qlinear_conv(c: Ctx) -> Result:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (c.x(i) for i in range(8))
    source = c.b.materialize(minus_zero_point(c, x, x_zero, 0), f"{c.hint}_in")
    sums = convolve(c, source, minus_zero_point(c, w, w_zero, 0), f"{c.hint}_sums", I32)
    bias = c.opt(8)
    if bias is not None:
        wide = bias.reshape([bias.shape[0], *([1] * (sums.rank - 2))])
        sums = c.b.map(f"{c.hint}_biased", lambda s, e: apply("add", s, e), sums, wide)
    return requantize(c, sums, x_scale, w_scale, y_scale, y_zero, y_zero.dtype, 1)
