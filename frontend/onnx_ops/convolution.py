"""Convolutions: plain, grouped, depthwise, transposed, deformable, on integers; and the inverse of im2col."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from dlc.frontend.onnx_ops.pointwise import wide_type
from dlc.frontend.onnx_ops.products import minus_zero_point
from dlc.frontend.onnx_ops.registry import Ctx, Result, op, same_dtype
from dlc.frontend.onnx_value import Array
from dlc.ir.dtype import I32, I64, DType
from dlc.ir.expr import Cast, Expr, Index, Piecewise, access, apply, const, index_value
from dlc.ir.extent import IntExpr, int_expr, minimum, product
from dlc.ir.view import Val


@dataclass(frozen=True, slots=True)
class Window:
    """How a window moves over the spatial dimensions: one entry per dimension."""

    kernel: tuple[IntExpr, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[IntExpr, ...]
    after: tuple[IntExpr, ...]
    out: tuple[IntExpr, ...]

    def position(self, d: int, at: IntExpr, k: IntExpr) -> IntExpr:
        """Where the window at `at` reads its element `k` along dimension `d` (may lie outside)."""
        start = int_expr(0) if self.out[d].const == 1 else at * self.strides[d]
        return start + k * self.dilations[d] - self.before[d]


def window(c: Ctx, spatial: Sequence[IntExpr], kernel: Sequence[IntExpr], ceil: bool = False) -> Window:
    """Strides, dilations, pads (auto_pad resolved) and output extents."""
    n = len(spatial)
    strides = c.ints("strides", (1,) * n)
    dilations = c.ints("dilations", (1,) * n)
    pads = [int_expr(p) for p in c.ints("pads", (0,) * (2 * n))]
    auto = c.str_("auto_pad", "NOTSET")
    if len(strides) != n or len(dilations) != n or len(pads) != 2 * n or len(kernel) != n:
        c.bad(f"strides, dilations, pads and kernel do not fit {n} spatial dimensions")
    if any(s < 1 for s in strides) or any(d < 1 for d in dilations):
        c.bad("strides and dilations must be positive")
    if any(k.const is not None and k.const < 1 for k in kernel):
        c.bad(f"a kernel of {' x '.join(map(str, kernel))}")
    before, after, out = list(pads[:n]), list(pads[n:]), []
    for d in range(n):
        reach = (kernel[d] - 1) * dilations[d] + 1
        if auto in ("SAME_UPPER", "SAME_LOWER"):
            size = (spatial[d] + (strides[d] - 1)) // strides[d]
            total = (size - 1) * strides[d] + reach - spatial[d]
            if total.const is not None:
                total = int_expr(max(total.const, 0))
            elif strides[d] != 1:
                c.refuse(f"{auto} with a stride needs extents that are known when compiling")
            half = total // 2
            before[d], after[d] = (half, total - half) if auto == "SAME_UPPER" else (total - half, half)
            out.append(size)
            continue
        if auto == "VALID":
            before[d] = after[d] = int_expr(0)
        elif auto != "NOTSET":
            c.bad(f"auto_pad {auto!r} is unknown")
        span = spatial[d] + before[d] + after[d] - reach
        if ceil:
            # A last window that would start in the padding at the end does not count.
            starts = (spatial[d] + before[d] + (strides[d] - 1)) // strides[d]
            size = minimum((span + (strides[d] - 1)) // strides[d] + 1, starts)
        else:
            size = span // strides[d] + 1
        if size.const is not None and size.const < 0:
            c.bad(f"a window of {reach} does not fit extent {spatial[d]}")
        out.append(size)
    return Window(tuple(kernel), strides, dilations, tuple(before), tuple(after), tuple(out))


def kernel_of(c: Ctx, w: Val) -> list[IntExpr]:
    shape = c.ints("kernel_shape", None)
    kernel = list(w.shape[2:])
    if shape is not None and any(e.const is not None and e.const != k for e, k in zip(kernel, shape, strict=False)):
        c.bad(f"kernel_shape {list(shape)} does not fit weights of shape [{', '.join(map(str, w.shape))}]")
    return kernel


def guarded(c: Ctx, x: Val, hint: str, fill: float = 0) -> Val:
    """`x` read with any index: outside it gives `fill`."""
    base = c.b.materialize(x, hint)
    assert base.name is not None
    name, outside = base.name, const(fill, x.dtype)
    return Val(x.dtype, x.shape, lambda i: access(name, *i, default=outside))


def convolve(c: Ctx, x: Val, w: Val, hint: str, dtype: DType) -> Val:
    """The sum of products, without bias: x [N, C, s...], w [M, C/g, k...]."""
    if x.rank < 3 or w.rank != x.rank:
        c.bad(f"operands have ranks {x.rank} and {w.rank}")
    group = c.int_("group", 1)
    m, depth = w.shape[0], w.shape[1]
    if group < 1 or (m.const is not None and m.const % group):
        c.bad(f"{m} output channels cannot be split into {group} groups")
    if x.shape[1].const is not None and depth.const is not None and x.shape[1].const != depth.const * group:
        c.bad(f"{x.shape[1]} input channels do not fit {group} groups of {depth}")
    c.b.equate(x.shape[1], depth * group)
    win = window(c, x.shape[2:], kernel_of(c, w))
    padded = any(p.const != 0 for p in (*win.before, *win.after))
    source = x
    if padded:
        source = guarded(c, x, f"{hint}_in")
    per = m // group
    n = len(win.out)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        batch, spot = i[0], i[-n:]
        ch, k = r[0], r[1:]
        places = [win.position(d, spot[d], k[d]) for d in range(n)]
        if group == 1:
            return apply("mul", source.at((batch, ch, *places)), w.at((i[1], ch, *k)))
        g, o = i[1], i[2]
        return apply("mul", source.at((batch, g * depth + ch, *places)), w.at((g * per + o, ch, *k)))

    channels = [m] if group == 1 else [int_expr(group), per]
    y = c.b.reduce(hint, "sum", [x.shape[0], *channels, *win.out], [depth, *win.kernel], element, dtype)
    return y if group == 1 else y.reshape([x.shape[0], m, *win.out])


def add_bias(c: Ctx, y: Val, bias: Val | None, hint: str) -> Val:
    if bias is None:
        return y
    same_dtype(c, y, bias)
    wide = bias.reshape([y.shape[1], *([1] * (y.rank - 2))])
    return c.b.map(hint, lambda a, e: apply("add", a, e), y, wide)


@op("Conv")
def conv(c: Ctx) -> Result:
    x, w, bias = c.x(0), c.x(1), c.opt(2)
    same_dtype(c, x, w)
    y = convolve(c, x, w, f"{c.hint}_product" if bias is not None else c.hint, x.dtype)
    return add_bias(c, y, bias, c.hint)


@op("ConvInteger")
def conv_integer(c: Ctx) -> Result:
    x = c.b.materialize(minus_zero_point(c, c.x(0), c.opt(2), 0), f"{c.hint}_in")
    w = minus_zero_point(c, c.x(1), c.opt(3), 0)
    return convolve(c, x, w, c.hint, I32)


@op("ConvTranspose")
def conv_transpose(c: Ctx) -> Result:
    x, w, bias = c.x(0), c.x(1), c.opt(2)
    same_dtype(c, x, w)
    n = x.rank - 2
    if n < 1 or w.rank != x.rank:
        c.bad(f"operands have ranks {x.rank} and {w.rank}")
    group = c.int_("group", 1)
    strides, dilations = c.ints("strides", (1,) * n), c.ints("dilations", (1,) * n)
    extra = c.ints("output_padding", (0,) * n)
    pads = list(c.ints("pads", (0,) * (2 * n)))
    kernel, spatial = kernel_of(c, w), x.shape[2:]
    auto, wanted = c.str_("auto_pad", "NOTSET"), c.ints("output_shape", None)
    before: list[IntExpr] = []
    out: list[IntExpr] = []
    for d in range(n):
        full = (spatial[d] - 1) * strides[d] + extra[d] + (kernel[d] - 1) * dilations[d] + 1
        if wanted is not None or auto in ("SAME_UPPER", "SAME_LOWER"):
            size = int_expr(wanted[len(wanted) - n + d]) if wanted is not None else spatial[d] * strides[d]
            total = full - size
            half = total // 2
            before.append(half if auto != "SAME_LOWER" else total - half)
            # ONNX: an odd total goes to the end for SAME_UPPER, to the beginning otherwise.
            if wanted is not None and auto != "SAME_UPPER":
                before[-1] = total - half
            out.append(size)
        else:
            before.append(int_expr(pads[d] if auto == "NOTSET" else 0))
            out.append(full - before[d] - (pads[n + d] if auto == "NOTSET" else 0))
    depth, per = x.shape[1] // group, w.shape[1]
    weights = c.tensor(1).numbers
    if weights is not None and all(r == 1 or d == 1 for r, d in zip(strides, dilations, strict=True)):
        return by_phases(c, x, weights, bias, group, strides, dilations, before, out)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        g, o, spot, ch, k = i[1], i[2], i[3:], r[0], r[1:]
        # Output place p takes input j through kernel element k where p + before = j*stride + k*dilation.
        reach = [spot[d] + before[d] - k[d] * dilations[d] for d in range(n)]
        places = [reach[d] // strides[d] for d in range(n)]
        value = source.at((i[0], g * depth + ch, *places))
        return where_whole(reach, strides, apply("mul", value, w.at((g * depth + ch, o, *k))), const(0, x.dtype))

    source = guarded(c, x, f"{c.hint}_in")
    shape = [x.shape[0], int_expr(group), per, *out]
    y = c.b.reduce(f"{c.hint}_product", "sum", shape, [depth, *kernel], element, x.dtype)
    return add_bias(c, y.reshape([x.shape[0], per * group, *out]), bias, c.hint)


def where_whole(places: Sequence[IntExpr], strides: Sequence[int], value: Expr, otherwise: Expr) -> Expr:
    """`value` where every place is a multiple of its stride."""
    tests = [apply("eq", Index(p % s), const(0, I64)) for p, s in zip(places, strides, strict=True) if s > 1]
    if not tests:
        return value
    return Piecewise(((reduce(lambda a, b: apply("and", a, b), tests), value),), otherwise)


def by_phases(
    c: Ctx,
    x: Val,
    weights: Array,
    bias: Val | None,
    group: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    before: Sequence[IntExpr],
    out: Sequence[IntExpr],
) -> Val:
    """A transposed convolution as a plain one: each residue of the output place modulo the stride is an output channel.

    Output place p, with p + before = q*s + f, takes input q - m through kernel element f + s*m. So the kernel is split by f
    (padded with zeros to whole steps) and turned round; the channels (o, f...) of the result are then spread out in space.
    """
    n = len(strides)
    channels, per, *kernel = weights.shape
    taps = [-(-k // s) for k, s in zip(kernel, strides, strict=True)]
    whole = np.pad(weights, [(0, 0), (0, 0), *((0, m * s - k) for m, s, k in zip(taps, strides, kernel, strict=True))])
    split = whole.reshape(group, channels // group, per, *(e for m, s in zip(taps, strides, strict=True) for e in (m, s)))
    steps, phases = [3 + 2 * d for d in range(n)], [4 + 2 * d for d in range(n)]
    turned = np.flip(split, tuple(steps)).transpose(0, 2, *phases, 1, *steps)
    wide = per * int(np.prod(strides))
    kept = np.ascontiguousarray(turned.reshape(group * wide, channels // group, *taps))
    w = c.b.constant(kept, f"{c.hint}_weights")
    extents = [(e + b - 1) // s + 1 for e, b, s in zip(out, before, strides, strict=True)]
    source = guarded(c, x, f"{c.hint}_in") if any(m > 1 for m in taps) or not exact(extents, x) else x
    depth = channels // group

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        places = [i[d - n] + (r[1 + d] - (taps[d] - 1)) * dilations[d] for d in range(n)]
        if group == 1:
            return apply("mul", source.at((i[0], r[0], *places)), w.at((i[1], *r)))
        g, o = i[1], i[2]
        return apply("mul", source.at((i[0], g * depth + r[0], *places)), w.at((g * wide + o, *r)))

    rows = [wide] if group == 1 else [group, wide]
    y = c.b.reduce(f"{c.hint}_product", "sum", [x.shape[0], *rows, *extents], [depth, *taps], element, x.dtype)
    y = y.reshape([x.shape[0], group * per, *strides, *extents])
    y = y.permute([0, 1, *(e for d in range(n) for e in (2 + n + d, 2 + d))])
    y = y.reshape([x.shape[0], group * per, *(e * s for e, s in zip(extents, strides, strict=True))])
    for d in range(n):
        y = y.slice(2 + d, before[d], out[d])
    return add_bias(c, y, bias, c.hint) if bias is not None else c.b.materialize(y, c.hint)


def exact(extents: Sequence[IntExpr], x: Val) -> bool:
    return tuple(extents) == x.shape[2:]


@op("Col2Im")
def col2im(c: Ctx) -> Result:
    x = c.x(0)
    image = c.known(c.extents(1, "its image shape"), "its image shape")
    block = c.known(c.extents(2, "its block shape"), "its block shape")
    n = len(image)
    strides, dilations = c.ints("strides", (1,) * n), c.ints("dilations", (1,) * n)
    pads = c.ints("pads", (0,) * (2 * n))
    counts = [
        (image[d] + pads[d] + pads[n + d] - dilations[d] * (block[d] - 1) - 1) // strides[d] + 1 for d in range(n)
    ]
    channels = x.shape[1] // int(product([int_expr(k) for k in block]).const or 1)
    # x[N, C * prod(block), prod(counts)] as [N, C, block..., counts...]
    columns = guarded(c, x.reshape([x.shape[0], channels, *block, *counts]), f"{c.hint}_in")

    def places(i: tuple[IntExpr, ...], k: tuple[IntExpr, ...]) -> list[IntExpr]:
        return [i[2 + d] + pads[d] - k[d] * dilations[d] for d in range(n)]

    def element(i: tuple[IntExpr, ...], k: tuple[IntExpr, ...]) -> Expr:
        reach = places(i, k)
        value = columns.at((i[0], i[1], *k, *(p // s for p, s in zip(reach, strides, strict=True))))
        return where_whole(reach, strides, value, const(0, x.dtype))

    return c.b.reduce(c.hint, "sum", [x.shape[0], channels, *image], block, element, x.dtype)


@op("DeformConv")
def deform_conv(c: Ctx) -> Result:
    x, w, offset, bias, mask = c.x(0), c.x(1), c.x(2), c.opt(3), c.opt(4)
    if x.rank != 4:
        c.refuse(f"it is defined for 2 spatial dimensions, not {x.rank - 2}")
    group, shared = c.int_("group", 1), c.int_("offset_group", 1)
    kernel = kernel_of(c, w)
    win = window(c, x.shape[2:], kernel)
    kh, kw = kernel
    oh, ow = win.out
    n, channels = x.shape[0], x.shape[1]
    moves = c.b.materialize(offset, f"{c.hint}_offset").reshape([n, shared, kh, kw, 2, oh, ow])
    weights = None if mask is None else mask.reshape([n, shared, kh, kw, oh, ow])
    t = wide_type(x.dtype)
    image = guarded(c, x, f"{c.hint}_in")
    part = channels // shared

    def sample(*i: IntExpr) -> Expr:
        b, ch, ky, kx, y, z = i
        og = ch // part
        at = []
        for d, (spot, k) in enumerate(((y, ky), (z, kx))):
            base = Cast(t, Index(win.position(d, spot, k)))
            at.append(apply("add", base, Cast(t, moves(b, og, ky, kx, d, y, z)) if t != x.dtype else moves(b, og, ky, kx, d, y, z)))
        low = [apply("floor", a) for a in at]
        part_ = [apply("sub", a, f) for a, f in zip(at, low, strict=True)]
        whole = [index_value(Cast(I64, f)) for f in low]
        total: Expr | None = None
        for dy in (0, 1):
            for dx in (0, 1):
                value = image(b, ch, whole[0] + dy, whole[1] + dx)
                fy = part_[0] if dy else apply("sub", const(1, t), part_[0])
                fx = part_[1] if dx else apply("sub", const(1, t), part_[1])
                term = apply("mul", apply("mul", fy, fx), value if t == x.dtype else Cast(t, value))
                total = term if total is None else apply("add", total, term)
        assert total is not None
        if weights is not None:
            factor = weights(b, og, ky, kx, y, z)
            total = apply("mul", total, factor if t == x.dtype else Cast(t, factor))
        return total

    samples = c.b.compute(f"{c.hint}_samples", [n, channels, kh, kw, oh, ow], sample, t)
    m, depth = w.shape[0], w.shape[1]
    per = m // group

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        b, g, o, y, z = i
        ch, ky, kx = r
        value = w(g * per + o, ch, ky, kx)
        return apply("mul", samples(b, g * depth + ch, ky, kx, y, z), value if t == x.dtype else Cast(t, value))

    y = c.b.reduce(f"{c.hint}_product", "sum", [n, group, per, oh, ow], [depth, kh, kw], element, x.dtype if t == x.dtype else t)
    y = y.reshape([n, m, oh, ow])
    return add_bias(c, y if t == x.dtype else c.b.cast(y, x.dtype), bias, c.hint)

