"""Pooling: average, maximum (with indices), Lp, and the inverse of maximum pooling."""

from __future__ import annotations

from collections.abc import Sequence

from dlc.frontend.onnx_ops.convolution import Window, guarded, window
from dlc.frontend.onnx_ops.pointwise import wide_type
from dlc.frontend.onnx_ops.registry import Ctx, Result, op
from dlc.ir.dtype import I64
from dlc.ir.expr import Cast, Expr, Index, apply, const, index_value
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, product
from dlc.ir.view import Val


def pool_window(c: Ctx, x: Val) -> Window:
    if x.rank < 3:
        c.bad(f"its input has {x.rank} dimensions, fewer than 3")
    kernel = [int_expr(k) for k in c.ints("kernel_shape")]
    return window(c, x.shape[2:], kernel, c.flag("ceil_mode", 0))


def read_extents(win: Window, spatial: Sequence[IntExpr]) -> list[IntExpr]:
    """How far into each window elements can lie inside the input: a kernel larger than the input is read that far only."""
    reach = []
    for k, e, before, step in zip(win.kernel, spatial, win.before, win.dilations, strict=True):
        inner = e + before
        clip = step == 1 and k.const is not None and inner.const is not None and inner.const < k.const
        reach.append(int_expr(max(inner.const or 0, 1)) if clip else k)
    return reach


def is_padded(win: Window, c: Ctx) -> bool:
    """Whether a window can reach outside (padding, or the last one under ceil_mode)."""
    return any(p.const != 0 for p in (*win.before, *win.after)) or c.flag("ceil_mode", 0)


def places(win: Window, spot: Sequence[IntExpr], k: Sequence[IntExpr]) -> list[IntExpr]:
    return [win.position(d, spot[d], k[d]) for d in range(len(spot))]


@op("MaxPool")
def max_pool(c: Ctx) -> Result:
    x = c.x(0)
    win = pool_window(c, x)
    lowest = float("-inf") if x.dtype.is_float else x.dtype.lowest
    source = guarded(c, x, f"{c.hint}_in", lowest) if is_padded(win, c) else x
    shape, reach = [*x.shape[:2], *win.out], read_extents(win, x.shape[2:])
    if not c.wants(1):
        return c.b.reduce(c.hint, "max", shape, reach, lambda i, k: source.at((*i[:2], *places(win, i[2:], k))), x.dtype)
    spatial = x.shape[2:]
    order = list(range(len(spatial)))
    if c.flag("storage_order", 0):
        order.reverse()

    def element(i: tuple[IntExpr, ...], k: tuple[IntExpr, ...]) -> tuple[Expr, ...]:
        at = places(win, i[2:], k)
        flat = int_expr(0)
        for d in order:
            flat = flat * spatial[d] + at[d]
        plane = (i[0] * x.shape[1] + i[1]) * product(spatial)
        return source.at((*i[:2], *at)), Index(plane + flat)

    return c.b.tuple_reduce((c.hint, f"{c.hint}_place"), "argmax", shape, reach, element, (x.dtype, I64))


def inside(win: Window, spatial: Sequence[IntExpr], d: int, at: IntExpr, padded: bool) -> IntExpr:
    """How many elements of the window at `at` lie inside along `d`: inside the input, or inside it and its padding."""
    start = win.position(d, at, int_expr(0))
    step = win.dilations[d]
    low = int_expr(0) if not padded else -win.before[d]
    high = spatial[d] if not padded else spatial[d] + win.after[d]
    first = maximum(-((start - low) // step), 0)
    last = minimum((high - 1 - start) // step, win.kernel[d] - 1)
    return last - first + 1


@op("AveragePool")
def average_pool(c: Ctx) -> Result:
    x = c.x(0)
    win = pool_window(c, x)
    include, padded = c.flag("count_include_pad", 0), is_padded(win, c)
    source = guarded(c, x, f"{c.hint}_in") if padded else x
    t = wide_type(x.dtype)
    shape = [*x.shape[:2], *win.out]

    def element(i: tuple[IntExpr, ...], k: tuple[IntExpr, ...]) -> Expr:
        value = source.at((*i[:2], *places(win, i[2:], k)))
        return value if t == x.dtype else Cast(t, value)

    total = c.b.reduce(f"{c.hint}_sum", "sum", shape, read_extents(win, x.shape[2:]), element, t)

    def mean(*i: IntExpr) -> Expr:
        if padded:
            count = product([inside(win, x.shape[2:], d, i[2 + d], include) for d in range(len(win.out))])
        else:
            count = product(win.kernel)
        value = apply("div", total.at(i), Cast(t, Index(count)) if count.const is None else const(count.const, t))
        return value if t == x.dtype else Cast(x.dtype, value)

    return c.b.compute(c.hint, shape, mean, x.dtype)


@op("LpPool")
def lp_pool(c: Ctx) -> Result:
    x = c.x(0)
    win = pool_window(c, x)
    p = c.int_("p", 2)
    source = guarded(c, x, f"{c.hint}_in") if is_padded(win, c) else x
    t = wide_type(x.dtype)

    def element(i: tuple[IntExpr, ...], k: tuple[IntExpr, ...]) -> Expr:
        value = source.at((*i[:2], *places(win, i[2:], k)))
        return apply("pow", apply("abs", value if t == x.dtype else Cast(t, value)), const(p, t))

    shape = [*x.shape[:2], *win.out]
    powers = c.b.reduce(f"{c.hint}_sum", "sum", shape, read_extents(win, x.shape[2:]), element, t)

    def root(a: Expr) -> Expr:
        value = apply("pow", a, const(1.0 / p, t))
        return value if t == x.dtype else Cast(x.dtype, value)

    return c.b.map(c.hint, root, powers, dtype=x.dtype)


@op("MaxUnpool")
def max_unpool(c: Ctx) -> Result:
    x, where = c.x(0), c.x(1)
    n = x.rank - 2
    kernel, strides = c.ints("kernel_shape"), c.ints("strides", (1,) * n)
    pads = c.ints("pads", (0,) * (2 * n))
    natural = [(x.shape[2 + d] - 1) * strides[d] - pads[d] - pads[n + d] + kernel[d] for d in range(n)]
    shape = [*x.shape[:2], *natural]
    zeros = c.b.scalar(0, x.dtype).broadcast_to([product(shape)])
    flat = c.b.scatter(c.hint, zeros, x.shape, lambda *i: [index_value(where.at(i))], lambda *i: x.at(i))
    moved = flat.reshape(shape)
    if not c.has(2):
        return moved
    # The indices are those of the natural output, which lies at the origin of the one asked for.
    wanted = c.extents(2, "its output shape")
    if len(wanted) != len(shape):
        c.bad(f"its output shape has {len(wanted)} dimensions, not {len(shape)}")
    return moved.pad([0] * len(shape), [w - e for w, e in zip(wanted, shape, strict=True)], const(0, x.dtype))
