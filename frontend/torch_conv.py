"""ATen convolutions: contractions over channels and window, padding as a guarded read. Bias is a pointwise Einsum after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlc.frontend.torch_context import Ctx, both, index_cmp, mul, op, when
from dlc.frontend.torch_contract import affine, kept_type
from dlc.ir.dtype import DType
from dlc.ir.expr import Expr, const
from dlc.ir.extent import IntExpr, int_expr, maximum
from dlc.ir.view import Val


def convolve(
    c: Ctx,
    x: Val,
    weight: Val,
    stride: Sequence[int],
    before: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out: Sequence[IntExpr],
    dtype: DType,
    hint: str,
) -> Val:
    """`O[b, c, y...] = sum(k, i...) X[b, k, s*y + d*i - p, ...] * W[c, k, i, ...]`, reads outside X giving 0.

    Args:
        c: the node.
        x: T[B, C, spatial...].
        weight: T[O, C / groups, window...].
        stride: step between windows, per spatial dimension.
        before: padding before the first element, per spatial dimension.
        dilation: step inside a window.
        groups: channels are split into so many independent parts.
        out: spatial extents of the result.
        dtype: element type of the result, f32[B, O, out...].
        hint: its name.
    """
    n = len(out)
    window = weight.shape[2:]
    batch, channels = x.shape[0], x.shape[1]
    inner, per_group = weight.shape[1], weight.shape[0] // groups
    after = []
    for o, s, p, d, k, e in zip(out, stride, before, dilation, window, x.shape[2:], strict=True):
        need = (o - 1) * s + (k - 1) * d + 1 - p - e
        after.append(need if need.const is None else int_expr(max(need.const, 0)))
    # A window that cannot leave the input on the right needs no guard there.
    after = [
        int_expr(0) if (a.const is None and _fits(a, p, s)) else a
        for a, p, s in zip(after, before, stride, strict=True)
    ]
    guarded = any(p != 0 for p in before) or any(a.const != 0 for a in after)
    zero = const(0, x.dtype)
    image = c.b.materialize(x).pad([0, 0, *before], [0, 0, *after], zero) if guarded else x

    def spatial(y: Sequence[IntExpr], i: Sequence[IntExpr]) -> list[IntExpr]:
        return [a * s + b * d for a, s, b, d in zip(y, stride, i, dilation, strict=True)]

    if groups == 1:

        def dense(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
            return mul(image.at((i[0], r[0], *spatial(i[2:], r[1:]))), weight.at((i[1], *r)))

        return c.b.reduce(hint, "sum", [batch, weight.shape[0], *out], [inner, *window], dense, dtype)
    if inner.const == 1 and per_group.const == 1:

        def depthwise(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
            return mul(image.at((i[0], i[1], *spatial(i[2:], r))), weight.at((i[1], int_expr(0), *r)))

        return c.b.reduce(hint, "sum", [batch, channels, *out], list(window), depthwise, dtype)
    if inner.const == 1:

        def multiplied(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
            pixel = image.at((i[0], i[1], *spatial(i[3:], r)))
            return mul(pixel, weight.at((i[1] * per_group + i[2], int_expr(0), *r)))

        o = c.b.reduce(hint, "sum", [batch, groups, per_group, *out], list(window), multiplied, dtype)
        return o.reshape([batch, weight.shape[0], *out])

    def grouped(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        pixel = image.at((i[0], i[1] * inner + r[0], *spatial(i[3:], r[1:])))
        return mul(pixel, weight.at((i[1] * per_group + i[2], *r)))

    o = c.b.reduce(hint, "sum", [batch, groups, per_group, *out], [inner, *window], grouped, dtype)
    assert o.rank == n + 3
    return o.reshape([batch, weight.shape[0], *out])


def _fits(need: IntExpr, before: int, stride: int) -> bool:
    """Whether a symbolic need for padding is never positive: `s*((e - k) // s) + k - e` is at most 0."""
    del before, stride
    from dlc.ir.extent import FloorDiv

    # need = s*(q) + c - e with q = (e + c') // s: bounded by c' + c.
    total, offset = int_expr(0), need
    for monomial, coefficient in need.terms:
        if len(monomial) == 1 and isinstance(monomial[0], FloorDiv):
            atom = monomial[0]
            den = atom.den.const
            if den is None or coefficient <= 0 or coefficient % den:
                return False
            offset = offset - IntExpr(((monomial, coefficient),))
            total = total + atom.num * (coefficient // den)
    bound = (offset + total).const
    return bound is not None and bound <= 0


def transposed(
    c: Ctx,
    x: Val,
    weight: Val,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out: Sequence[IntExpr],
    dtype: DType,
    hint: str,
) -> Val:
    """The transposed convolution, weight T[C, O / groups, window...].

    Without dilation, output `y + p = s*q + r` only meets window elements `i = r + s*j`: a plain convolution for each of the
    `s` phases `r`, so that no multiplication by a stuffed zero is made. With dilation every element is guarded.
    """
    n = len(out)
    window = weight.shape[2:]
    batch = x.shape[0]
    inner, per_group = x.shape[1] // groups, weight.shape[1]
    zero = const(0, x.dtype)
    image, kernel = c.b.materialize(x), c.b.materialize(weight)
    lead: list[IntExpr] = [batch, int_expr(groups), per_group]

    def parts(i: Sequence[IntExpr], k: IntExpr) -> tuple[IntExpr, IntExpr, IntExpr]:
        channel = i[1] * inner + k
        return i[0], channel, i[2]

    if all(d == 1 for d in dilation):
        phases = [int_expr(s) for s in stride]
        counts = [(o + p + s - 1) // s for o, p, s in zip(out, padding, stride, strict=True)]
        taps = [(k + s - 1) // s for k, s in zip(window, stride, strict=True)]
        ragged = any((k % s).const != 0 for k, s in zip(window, stride, strict=True))
        wide = [maximum(t - 1, 0) for t in taps]
        past = [maximum(q - e, 0) if (q - e).const is None else int_expr(max((q - e).const or 0, 0))
                for q, e in zip(counts, x.shape[2:], strict=True)]  # fmt: skip
        pixels = image.pad([0, 0, *wide], [0, 0, *past], zero)
        guard = kernel.pad([0] * kernel.rank, [0, 0, *[1] * n], zero) if ragged else kernel

        def phase(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
            b, channel, o = parts(i, r[0])
            q, f, j = i[3 : 3 + n], i[3 + n :], r[1:]
            at = [a - t + w for a, t, w in zip(q, j, wide, strict=True)]
            tap = [a + t * s for a, t, s in zip(f, j, stride, strict=True)]
            return mul(pixels.at((b, channel, *at)), guard.at((channel, o, *tap)))

        z = c.b.reduce(hint, "sum", [*lead, *counts, *phases], [inner, *taps], phase, dtype)

        def index(*i: IntExpr) -> list[IntExpr]:
            shifted = [y + p for y, p in zip(i[2:], padding, strict=True)]
            q = [y // s for y, s in zip(shifted, stride, strict=True)]
            f = [y % s for y, s in zip(shifted, stride, strict=True)]
            return [i[0], i[1] // per_group, i[1] % per_group, *q, *f]

        return z.view([batch, per_group * groups, *out], index)

    # One more on each side makes every read outside a guarded one.
    beyond = image.pad([0, 0, *[1] * n], [0, 0, *[1] * n], zero)

    def stuffed(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        b, channel, o = parts(i, r[0])
        guards, at = [], []
        for y, t, s, p, d in zip(i[3:], r[1:], stride, padding, dilation, strict=True):
            shifted = y + p - t * d
            if s != 1:
                guards.append(index_cmp("eq", shifted % s, 0))
            at.append(shifted // s + 1)
        pixel = beyond.at((b, channel, *at))
        return mul(when(both(*guards), pixel, zero) if guards else pixel, kernel.at((channel, o, *r[1:])))

    z = c.b.reduce(hint, "sum", [*lead, *out], [inner, *window], stuffed, dtype)
    return z.reshape([batch, per_group * groups, *out])


def convolution(c: Ctx, x: Val, weight: Val, bias: Val | None, stride: Any, padding: Any, dilation: Any, is_transposed: bool,
                groups: int) -> Val:  # fmt: skip
    """Any convolution; a missing batch dimension is added and dropped again."""
    n = weight.rank - 2
    unbatched = x.rank == n + 1
    image = x.unsqueeze(0) if unbatched else x
    stride, dilation = c.ints(stride, n), c.ints(dilation, n)
    if isinstance(padding, str):
        total = [d * ((k.const or 1) - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        before = [t // 2 for t in total] if padding == "same" else [0] * n
    else:
        before = c.ints(padding, n)
    shape = c.shape
    out = shape[-n:]
    t = c.dtype
    w = kept_type(t) if bias is not None else t
    hint = c.hint if bias is None else f"{c.hint}_product"
    run = transposed if is_transposed else convolve
    y = run(c, image, weight, stride, before, dilation, groups, out, w, hint)
    if bias is not None:
        y = affine(c, y, 1, bias.reshape([bias.shape[0], *[1] * n]), 1, t)
    return y.select(0, 0) if unbatched else y


@op("conv1d", "conv2d", "conv3d", "conv1d.padding", "conv2d.padding", "conv3d.padding")
def conv(c: Ctx, x: Val, weight: Val, bias: Val | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
         groups: int = 1) -> Val:  # fmt: skip
    return convolution(c, x, weight, bias, stride, padding, dilation, False, groups)


@op("conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input")
def conv_transpose(c: Ctx, x: Val, weight: Val, bias: Val | None = None, stride: Any = 1, padding: Any = 0,
                   output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> Val:  # fmt: skip
    return convolution(c, x, weight, bias, stride, padding, dilation, True, groups)


@op("convolution", "_convolution", "_convolution.deprecated")
def aten_convolution(c: Ctx, x: Val, weight: Val, bias: Val | None, stride: Any, padding: Any, dilation: Any, transposed: bool,
                     output_padding: Any, groups: int, *_: Any) -> Val:  # fmt: skip
    return convolution(c, x, weight, bias, stride, padding, dilation, transposed, groups)


@op("im2col")
def im2col(c: Ctx, x: Val, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> Val:
    kernel, dilation, padding, stride = (c.ints(v, 2) for v in (kernel_size, dilation, padding, stride))
    unbatched = x.rank == 3
    image = x.unsqueeze(0) if unbatched else x
    out = [
        (e + 2 * p - d * (k - 1) - 1) // s + 1
        for e, p, d, k, s in zip(image.shape[2:], padding, dilation, kernel, stride, strict=True)
    ]
    padded = c.b.materialize(image).pad([0, 0, *padding], [0, 0, *padding], const(0, x.dtype))
    blocks = padded.view(
        [image.shape[0], image.shape[1], *kernel, *out],
        lambda *i: [i[0], i[1], *(i[4 + n] * stride[n] + i[2 + n] * dilation[n] for n in range(2))],
    )
    shape = c.shape
    return c.b.materialize(blocks, c.hint).reshape(shape if not unbatched else [int_expr(1), *shape]).reshape(shape)
