"""ATen pooling and resizing: window reductions, adaptive windows, and interpolation by separable taps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from dlc.frontend.torch_context import Ctx, add, both, div, extent_scalar, index_cmp, mul, op, sub, wide_type
from dlc.ir.dtype import I64, DType
from dlc.ir.expr import Cast, Expr, Index, apply, const
from dlc.ir.extent import IntExpr, evaluate, int_expr, maximum, minimum, variables
from dlc.ir.limits import at_most
from dlc.ir.monoid import MONOIDS
from dlc.ir.view import Shape, Val

_TRIED = 256
"""Values of a symbol for which two extents are compared."""


def _spatial(c: Ctx, n: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> list[list[int]]:
    k = c.ints(kernel, n)
    s = c.ints(stride, n) if stride is not None and c.ints(stride, n) else k
    return [k, s, c.ints(padding, n), c.ints(dilation, n)]


def _window(x: Val, n: int, s: Sequence[int], p: Sequence[int], d: Sequence[int], i: Any, r: Any) -> list[IntExpr]:
    lead = x.rank - n
    return [*i[:lead], *(a * st + b * di - pa for a, st, b, di, pa in zip(i[lead:], s, r, d, p, strict=True))]


def _overhang(x: Val, n: int, out: Sequence[IntExpr], k: Any, s: Any, p: Any, d: Any) -> list[IntExpr]:
    """How far windows reach past the end, per spatial dimension (0 where they do not)."""
    from dlc.frontend.torch_conv import _fits

    reach = []
    for o, kk, ss, pp, dd, e in zip(out, k, s, p, d, x.shape[x.rank - n :], strict=True):
        need = (o - 1) * ss + (kk - 1) * dd + 1 - pp - e
        reach.append(
            int_expr(max(need.const, 0)) if need.const is not None else int_expr(0) if _fits(need, pp, ss) else need
        )
    return reach


def _pooled(c: Ctx, x: Val, n: int, k: Any, s: Any, p: Any, d: Any, *, ceil_mode: bool) -> Shape:
    """The result's shape, which torch knows; but in ceil mode a last window that begins past the end is left out, and torch
    decides by the example whether there is one. Where it depends on the size of the input no other size may be given.
    """
    if ceil_mode:
        for out, e, kk, ss, pp, dd in zip(c.shape[-n:], x.shape[-n:], k, s, p, d, strict=True):
            right = minimum((e + 2 * pp - dd * (kk - 1) - 2 + ss) // ss + 1, (e + pp - 1) // ss + 1)
            if not _same_in_range(c, out, right):
                raise c.unsupported(f"'{e}' decides whether a last window begins past the end; fix that size, or take ceil_mode=False")
    return c.shape


def _same_in_range(c: Ctx, a: IntExpr, b: IntExpr) -> bool:
    """Whether two extents agree for the first values of each symbol: they differ again and again or never, with the strides."""
    symbols = {name: c.b.symbols.get(name[1:]) for name in variables(a) | variables(b)}
    least: dict[str, int] = {name: known.lo if known is not None else 1 for name, known in symbols.items()}
    for name, known in symbols.items():
        highest = least[name] + _TRIED if known is None or known.hi is None else min(known.hi, least[name] + _TRIED)
        env: dict[str, Any] = {**least, name: np.arange(least[name], highest + 1)}
        first, second = evaluate(a, env), evaluate(b, env)
        if bool(np.any((first != second) & (second > 0))):
            return False
    return True


def _reach(x: Val, n: int, k: Sequence[int], p: Sequence[int], d: Sequence[int]) -> list[int]:
    """The window's extents less what lies beyond the input for every output: padding there adds nothing to a fold."""
    extents = [e.const for e in x.shape[-n:]]
    return [kk if e is None else max(1, min(kk, (e + pp - 1) // dd + 1)) for kk, e, pp, dd in zip(k, extents, p, d, strict=True)]


def _padded(c: Ctx, x: Val, n: int, p: Sequence[int], past: Sequence[IntExpr], fill: Expr) -> Val:
    if all(v == 0 for v in p) and all(v.const == 0 for v in past):
        return x
    lead = [0] * (x.rank - n)
    return c.b.materialize(x).pad([*lead, *p], [*lead, *past], fill)


@op("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(
    c: Ctx, x: Val, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
) -> Val:
    n = int(c.target[c.target.index("pool") + 4])
    k, s, p, d = _spatial(c, n, kernel_size, stride, padding, dilation)
    shape = _pooled(c, x, n, k, s, p, d, ceil_mode=ceil_mode)
    past = _overhang(x, n, shape[-n:], k, s, p, d)
    fill = MONOIDS["max"].identity((x.dtype,))[0]
    y = _padded(c, x, n, p, past, fill)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        return y.at(tuple(_window(x, n, s, [0] * n, d, i, r)))

    return c.b.reduce(c.hint, "max", shape, _reach(x, n, k, p, d), element, x.dtype)


@op("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d_with_indices")
def max_pool_indices(c: Ctx, x: Val, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
                     ceil_mode: bool = False) -> tuple[Val, Val]:  # fmt: skip
    n = int(c.target[c.target.index("pool") + 4])
    if not any(u.op == "call_function" and u.args[1:] == (1,) for u in c.node.users):
        out = max_pool(c, x, kernel_size, stride, padding, dilation, ceil_mode)
        return out, c.b.scalar(0, I64).broadcast_to(out.shape)
    k, s, p, d = _spatial(c, n, kernel_size, stride, padding, dilation)
    extents = x.shape[x.rank - n :]
    fill = MONOIDS["max"].identity((x.dtype,))[0]
    past = _overhang(x, n, _pooled(c, x, n, k, s, p, d, ceil_mode=ceil_mode)[-n:], k, s, p, d)
    y = _padded(c, x, n, p, past, fill)
    end = const(I64.highest, I64)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> tuple[Expr, ...]:
        at = _window(x, n, s, p, d, i, r)[x.rank - n :]
        flat = int_expr(0)
        for a, e in zip(at, extents, strict=True):
            flat = flat * e + a
        value = y.at(tuple(_window(x, n, s, [0] * n, d, i, r)))
        inside = [index_cmp("ge", a, 0) for a, pa in zip(at, p, strict=True) if pa]
        inside += [index_cmp("lt", a, e) for a, e, q in zip(at, extents, past, strict=True) if q.const != 0]
        # Padding never wins a tie against an element: it has the last index.
        return value, apply("select", both(*inside), Index(flat), end) if inside else Index(flat)

    window = _reach(x, n, k, p, d)
    values, indices = c.b.tuple_reduce((c.hint, f"{c.hint}_index"), "argmax", c.shape, window, element, (x.dtype, I64))
    return values, indices


@op("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(c: Ctx, x: Val, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
             count_include_pad: bool = True, divisor_override: int | None = None) -> Val:  # fmt: skip
    n = int(c.target[c.target.index("pool") + 4])
    k, s, p, d = _spatial(c, n, kernel_size, stride, padding, 1)
    t = c.dtype
    w = wide_type(t)
    shape = _pooled(c, x, n, k, s, p, d, ceil_mode=ceil_mode)
    past = _overhang(x, n, shape[-n:], k, s, p, d)
    y = c.cast(_padded(c, x, n, p, past, const(0, x.dtype)), w)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        return y.at(tuple(_window(x, n, s, [0] * n, d, i, r)))

    total = c.b.reduce(f"{c.hint}_sum", "sum", shape, _reach(x, n, k, p, d), element, w)
    lead = x.rank - n
    # In ceil mode a last window may begin in the padding; what lies beyond the padding is not counted.
    clipped = any(q.const is None or q.const > pp for q, pp in zip(past, p, strict=True))

    def divisor(i: Sequence[IntExpr]) -> Expr:
        if divisor_override:
            return const(divisor_override, w)
        if count_include_pad and not (ceil_mode and clipped):
            return const(math.prod(k), w)
        count = int_expr(1)
        for a, ss, kk, pp, e in zip(i[lead:], s, k, p, x.shape[lead:], strict=True):
            first = a * ss - pp
            last = minimum(first + kk, e + pp) if count_include_pad else minimum(first + kk, e)
            if not count_include_pad:
                first = maximum(first, 0)
            count = count * (last - first)
        return extent_scalar(count, w)

    return c.b.compute(c.hint, shape, lambda *i: _to(t, w, div(total.at(i), divisor(i))), t)


def _to(t: DType, w: DType, e: Expr) -> Expr:
    return e if t == w else Cast(t, e)


@op("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def adaptive_avg_pool(c: Ctx, x: Val, output_size: Any) -> Val:
    t = c.dtype
    w = wide_type(t)
    y = c.cast(x, w)
    n = int(c.target[c.target.index("pool") + 4])
    shape, lead = c.shape, x.rank - n
    k, even = _adaptive(x, shape, n)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        return reach.at(tuple(_adaptive_index(x, shape, lead, i, r, even)))

    reach = y if all(even) else _padded(c, y, n, [0] * n, [int_expr(1)] * n, const(0, w))
    where = None if all(even) else (lambda i, r: _adaptive_inside(x, shape, lead, i, r, even))
    s = c.b.reduce(f"{c.hint}_sum", "sum", shape, k, element, w, where=where)

    def count(i: Sequence[IntExpr]) -> Expr:
        total = int_expr(1)
        for d, (o, size, same) in enumerate(zip(i[lead:], k, even, strict=True)):
            e, out = x.shape[lead + d], shape[lead + d]
            total = total * (size if same else ((o + 1) * e + out - 1) // out - (o * e) // out)
        return extent_scalar(total, w)

    return c.b.compute(c.hint, shape, lambda *i: _to(t, w, div(s.at(i), count(i))), t)


def _adaptive(x: Val, shape: Sequence[IntExpr], n: int) -> tuple[list[IntExpr], list[bool]]:
    """Window extents that are large enough, and whether all windows of a dimension are that large."""
    k, even = [], []
    for e, o in zip(x.shape[x.rank - n :], shape[len(shape) - n :], strict=True):
        whole = (e % o).const == 0
        even.append(whole)
        k.append(e // o if whole else (e + o - 1) // o + 1)
    return k, even


def _adaptive_index(x: Val, shape: Any, lead: int, i: Any, r: Any, even: Sequence[bool]) -> list[IntExpr]:
    at = list(i[:lead])
    for d, (o, step, same) in enumerate(zip(i[lead:], r, even, strict=True)):
        e, out = x.shape[lead + d], shape[lead + d]
        at.append(o * (e // out) + step if same else (o * e) // out + step)
    return at


def _adaptive_inside(x: Val, shape: Any, lead: int, i: Any, r: Any, even: Sequence[bool]) -> Expr:
    guards = []
    for d, (o, step, same) in enumerate(zip(i[lead:], r, even, strict=True)):
        e, out = x.shape[lead + d], shape[lead + d]
        if not same:
            guards.append(index_cmp("lt", (o * e) // out + step, ((o + 1) * e + out - 1) // out))
    return both(*guards)


@op("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(c: Ctx, x: Val, output_size: Any) -> tuple[Val, Val]:
    n = int(c.target[c.target.index("pool") + 4])
    shape, lead = c.shape, x.rank - n
    k, even = _adaptive(x, shape, n)
    fill = MONOIDS["max"].identity((x.dtype,))[0]
    y = x if all(even) else _padded(c, x, n, [0] * n, [int_expr(1)] * n, fill)
    end = const(I64.highest, I64)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> tuple[Expr, ...]:
        at = _adaptive_index(x, shape, lead, i, r, even)
        flat = int_expr(0)
        for a, e in zip(at[lead:], x.shape[lead:], strict=True):
            flat = flat * e + a
        if all(even):
            return x.at(tuple(at)), Index(flat)
        inside = _adaptive_inside(x, shape, lead, i, r, even)
        return apply("select", inside, y.at(tuple(at)), fill), apply("select", inside, Index(flat), end)

    values, indices = c.b.tuple_reduce((c.hint, f"{c.hint}_index"), "argmax", shape, k, element, (x.dtype, I64))
    return values, indices


# --- resizing --------------------------------------------------------------------------------------------------------


def _ratio(c: Ctx, x: IntExpr, out: IntExpr, scale: Any) -> tuple[IntExpr, IntExpr]:
    """Input elements per output element as a fraction (numerator, denominator)."""
    if scale is not None and isinstance(scale, (int, float)) and scale > 0:
        f = Fraction(float(scale)).limit_denominator(1 << 12)
        if abs(float(f) - float(scale)) > 1e-7 * float(scale):
            raise c.unsupported(f"the scale factor {scale} is no small fraction; give sizes instead")
        if (x * f.numerator - out * f.denominator).const != 0:
            return int_expr(f.denominator), int_expr(f.numerator)
    return x, out


def _factors(c: Ctx, n: int, args: Sequence[Any]) -> list[Any]:
    """Scale factors of a resize: `.vec` overloads have one list, the others one number per dimension."""
    if "vec" in c.target:
        given = args[-1]
        return list(given) if given is not None else [None] * n
    return [*args, *[None] * n][:n]


def _not_empty(c: Ctx, x: Val) -> Val:
    """The images, of which no extent is 0: where a run finds the extent, that is checked then, as ATen does."""
    shape = list(x.shape)
    for d, e in enumerate(x.shape[2:], 2):
        found = variables(e) - {f"#{name}" for name in c.b.symbols}
        if found and not c.proven(e - 1):
            extent = c.b.compute(f"{c.hint}_extent", [], lambda *_, e=e: extent_scalar(e, I64), I64)
            most = at_most(e, variables(e) - found, {})
            shape[d] = c.b.bind(extent, f"{c.hint}_extent", 1, most=most)
    if shape == list(x.shape):
        return x
    after = [new - old for new, old in zip(shape, x.shape, strict=True)]
    return c.b.materialize(x).pad([0] * x.rank, after, const(0, x.dtype))


@op("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_nearest1d.vec", "upsample_nearest2d.vec",
    "upsample_nearest3d.vec", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
    "_upsample_nearest_exact1d.vec", "_upsample_nearest_exact2d.vec", "_upsample_nearest_exact3d.vec")  # fmt: skip
def upsample_nearest(c: Ctx, x: Val, output_size: Any, *scales: Any) -> Val:
    x = _not_empty(c, x)
    n = x.rank - 2
    shape = c.shape
    exact = "exact" in c.target
    ratios = [_ratio(c, e, o, f) for e, o, f in zip(x.shape[2:], shape[2:], _factors(c, n, scales), strict=True)]

    def index(*i: IntExpr) -> list[IntExpr]:
        at = []
        for o, (num, den), e, out in zip(i[2:], ratios, x.shape[2:], shape[2:], strict=True):
            place = ((2 * o + 1) * num) // (2 * den) if exact else (o * num) // den
            inside = num == e and den == out
            at.append(place if inside else minimum(place, e - 1))
        return [i[0], i[1], *at]

    return c.b.materialize(x.view(shape, index), c.hint)


@op("upsample_linear1d", "upsample_linear1d.vec", "upsample_bilinear2d", "upsample_bilinear2d.vec", "upsample_trilinear3d",
    "upsample_trilinear3d.vec")  # fmt: skip
def upsample_linear(c: Ctx, x: Val, output_size: Any, align_corners: bool, *scales: Any) -> Val:
    """One dimension at a time: two taps each, at integer positions of an exact fraction."""
    x = _not_empty(c, x)
    n = x.rank - 2
    t = c.dtype
    w = wide_type(t)
    y = c.cast(x, w)
    shape = c.shape
    for d, factor in enumerate(_factors(c, n, scales)):
        e, o = x.shape[2 + d], shape[2 + d]
        if e == o:
            continue
        num, den = (e - 1, o - 1) if align_corners else _ratio(c, e, o, factor)
        if align_corners and o.const == 1:
            num, den = int_expr(0), int_expr(1)
        last = d == n - 1
        y = _linear_taps(c, y, 2 + d, o, num, den, align_corners, c.hint if last else f"{c.hint}_{d}")
    return c.cast(y, t)


def _linear_taps(c: Ctx, x: Val, d: int, out: IntExpr, num: IntExpr, den: IntExpr, corners: bool, hint: str) -> Val:
    e, w = x.shape[d], x.dtype

    def element(*i: IntExpr) -> Expr:
        # Position = top / bottom; clamped at 0 before the floor, as ATen does.
        top, bottom = (i[d] * num, den) if corners else (maximum((2 * i[d] + 1) * num - den, 0), 2 * den)
        lo = minimum(top // bottom, e - 1)
        hi = minimum(lo + 1, e - 1)
        share = div(extent_scalar(top - (top // bottom) * bottom, w), extent_scalar(bottom, w))
        a, b = x.at((*i[:d], lo, *i[d + 1 :])), x.at((*i[:d], hi, *i[d + 1 :]))
        return add(mul(sub(const(1, w), share), a), mul(share, b))

    return c.b.compute(hint, [*x.shape[:d], out, *x.shape[d + 1 :]], element, w)


@op("upsample_bicubic2d", "upsample_bicubic2d.vec")
def upsample_bicubic(c: Ctx, x: Val, output_size: Any, align_corners: bool, *scales: Any) -> Val:
    x = _not_empty(c, x)
    t = c.dtype
    w = wide_type(t)
    y = c.cast(x, w)
    shape = c.shape
    for d, factor in enumerate(_factors(c, 2, scales)):
        e, o = x.shape[2 + d], shape[2 + d]
        num, den = (e - 1, o - 1) if align_corners else _ratio(c, e, o, factor)
        if align_corners and o.const == 1:
            num, den = int_expr(0), int_expr(1)
        y = _cubic_taps(c, y, 2 + d, o, num, den, align_corners, c.hint if d == 1 else f"{c.hint}_{d}")
    return c.cast(y, t)


def _cubic_taps(c: Ctx, x: Val, d: int, out: IntExpr, num: IntExpr, den: IntExpr, corners: bool, hint: str) -> Val:
    """Four taps of the cubic convolution kernel with A = -0.75, positions clamped to the edge."""
    e, w = x.shape[d], x.dtype
    one, two, a = const(1, w), const(2, w), -0.75

    def near(z: Expr) -> Expr:  # |z| <= 1
        return add(mul(mul(sub(mul(const(a + 2, w), z), const(a + 3, w)), z), z), one)

    def far(z: Expr) -> Expr:  # 1 < |z| < 2
        return sub(mul(add(mul(sub(mul(const(a, w), z), const(5 * a, w)), z), const(8 * a, w)), z), const(4 * a, w))

    def element(*i: IntExpr) -> Expr:
        top, bottom = (i[d] * num, den) if corners else ((2 * i[d] + 1) * num - den, 2 * den)
        lo = top // bottom
        z = div(extent_scalar(top - lo * bottom, w), extent_scalar(bottom, w))
        weights = (far(add(z, one)), near(z), near(sub(one, z)), far(sub(two, z)))
        total: Expr | None = None
        for n, weight in enumerate(weights):
            at = maximum(minimum(lo + (n - 1), e - 1), 0)
            term = mul(weight, x.at((*i[:d], at, *i[d + 1 :])))
            total = term if total is None else add(total, term)
        assert total is not None
        return total

    return c.b.compute(hint, [*x.shape[:d], out, *x.shape[d + 1 :]], element, w)
