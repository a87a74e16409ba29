"""Resize and Upsample: one weighted gather per resized axis, its places and weights computed at import."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

import numpy as np

from dlc.frontend.onnx_ops.pointwise import wide_type
from dlc.frontend.onnx_ops.registry import Ctx, Result, op
from dlc.frontend.onnx_value import Array
from dlc.ir.dtype import F32, I64
from dlc.ir.expr import Cast, Expr, Index, apply, const, index_value
from dlc.ir.extent import IntExpr, maximum, minimum
from dlc.ir.view import Val


@dataclass(frozen=True, slots=True)
class Taps:
    """Along one axis: out[o] = sum_k weight[o, k] * in[place[o, k]], or `outside` where that is set.

    Attributes:
        place: i64[out, k].
        weight: f64[out, k].
        outside: bool[out], positions that take the extrapolation value.
    """

    place: Array
    weight: Array
    outside: Array


@dataclass(frozen=True, slots=True)
class Sampling:
    """The attributes of Resize."""

    mode: str
    coordinates: str
    nearest: str
    cubic_a: float
    exclude_outside: bool
    antialias: bool


def coordinate(s: Sampling, o: int, n: int, size: int, scale: float, roi: tuple[float, float]) -> float:
    """Where output `o` of `size` lies in the input of `n`."""
    width = scale * n
    match s.coordinates:
        case "align_corners":
            return 0.0 if width == 1 else o * (n - 1) / (width - 1)
        case "asymmetric":
            return o / scale
        case "half_pixel":
            return (o + 0.5) / scale - 0.5
        case "pytorch_half_pixel":
            return -0.5 if width == 1 else (o + 0.5) / scale - 0.5
        case "half_pixel_symmetric":
            offset = n / 2 * (1 - size / width)
            return offset + (o + 0.5) / scale - 0.5
        case "tf_crop_and_resize":
            start, end = roi
            step = (end - start) * (n - 1) / 2 if width == 1 else o * (end - start) * (n - 1) / (width - 1)
            return start * (n - 1) + step
        case _:
            raise ValueError(f"coordinate_transformation_mode {s.coordinates!r} is unknown")


def cubic(a: float, distance: float) -> float:
    """Keys' cubic convolution kernel."""
    d = abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def nearest_of(x: float, mode: str) -> int:
    match mode:
        case "round_prefer_floor" | "simple":
            return ceil(x - 0.5)
        case "round_prefer_ceil":
            return floor(x + 0.5)
        case "floor":
            return floor(x)
        case "ceil":
            return ceil(x)
        case _:
            raise ValueError(f"nearest_mode {mode!r} is unknown")


def neighbours(s: Sampling, x: float, scale: float) -> list[tuple[int, float]]:
    """Places around `x` and their weights."""
    if s.mode == "nearest":
        return [(nearest_of(x, s.nearest), 1.0)]
    reach = 1 if s.mode == "linear" else 2
    shrink = min(scale, 1.0) if s.antialias else 1.0

    def weight(distance: float) -> float:
        return max(1 - abs(distance), 0.0) if s.mode == "linear" else cubic(s.cubic_a, distance)

    first = floor(x) - ceil(reach / shrink) + 1
    found = [(j, weight((j - x) * shrink)) for j in range(first, floor(x) + ceil(reach / shrink) + 1)]
    if s.antialias:
        total = sum(w for _, w in found)
        found = [(j, w / total) for j, w in found]
    return found


def taps(s: Sampling, n: int, size: int, scale: float, roi: tuple[float, float]) -> Taps:
    """The gather along one axis from `n` to `size`."""
    rows: list[list[tuple[int, float]]] = []
    outside = np.zeros(size, bool)
    for o in range(size):
        x = coordinate(s, o, n, size, scale, roi)
        outside[o] = s.coordinates == "tf_crop_and_resize" and not 0 <= x <= n - 1
        row = neighbours(s, x, scale)
        if s.exclude_outside:
            row = [(j, w if 0 <= j < n else 0.0) for j, w in row]
            total = sum(w for _, w in row) or 1.0
            row = [(j, w / total) for j, w in row]
        merged: dict[int, float] = {}
        for j, w in row:
            at = min(max(j, 0), n - 1)
            merged[at] = merged.get(at, 0.0) + w
        rows.append([(j, w) for j, w in merged.items() if w != 0.0] or [(0, 0.0)])
    width = max((len(r) for r in rows), default=1)
    place, weight = np.zeros((size, width), np.int64), np.zeros((size, width))
    for o, row in enumerate(rows):
        for k, (j, w) in enumerate(row):
            place[o, k], weight[o, k] = j, w
        place[o, len(row) :] = place[o, len(row) - 1]
    return Taps(place, weight, outside)


def resample(c: Ctx, x: Val, axis: int, t: Taps, fill: float, hint: str) -> Val:
    """`x` with `t` applied along `axis`."""
    size, width = t.place.shape
    shape = [*x.shape[:axis], size, *x.shape[axis + 1 :]]
    simple = width == 1 and bool(np.all(t.weight == 1.0)) and not t.outside.any()
    if simple:
        each = regular(t.place[:, 0])
        if each is not None:
            return x.view(shape, lambda *i: [*i[:axis], i[axis] // each, *i[axis + 1 :]])
        place = c.b.constant(np.ascontiguousarray(t.place[:, 0]), f"{hint}_place")
        return c.b.compute(hint, shape, lambda *i: x.at((*i[:axis], place.gather_value(i[axis]), *i[axis + 1 :])), x.dtype)
    if not x.dtype.is_float:
        c.refuse(f"interpolating {x.dtype} has no native form")
    wide = wide_type(x.dtype)
    place = c.b.constant(t.place, f"{hint}_place")
    weight = c.b.constant(t.weight.astype(wide.numpy), f"{hint}_weight")

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        value = x.at((*i[:axis], place.gather_value(i[axis], r[0]), *i[axis + 1 :]))
        return apply("mul", value if wide == x.dtype else Cast(wide, value), weight(i[axis], r[0]))

    y = c.b.reduce(hint, "sum", shape, [width], element, wide)
    if t.outside.any():
        outside = c.b.constant(t.outside, f"{hint}_outside")
        y = c.b.compute(
            f"{hint}_filled", shape, lambda *i: apply("select", outside(i[axis]), const(fill, wide), y.at(i)), wide
        )
    return y


def regular(place: Array) -> int | None:
    """`k` when `place[o] == o // k` for all o."""
    repeats = int(np.sum(place == 0))
    return repeats if repeats and np.array_equal(place, np.arange(len(place)) // repeats) else None


@op("Upsample")
def upsample(c: Ctx) -> Result:
    x = c.x(0)
    scales = [float(s) for s in (c.floats("scales") if c.version < 9 else c.numbers(1, "its scales").ravel())]
    mode = c.str_("mode", "nearest")
    mode = "linear" if mode in ("linear", "bilinear") else mode
    s = Sampling(mode, "asymmetric", "floor", -0.75, False, False)
    return resize_by(c, x, list(range(x.rank)), scales, None, s, [0.0] * x.rank + [1.0] * x.rank)


@op("Resize", since=10)
def resize(c: Ctx) -> Result:
    x = c.x(0)
    mode = c.str_("mode", "nearest")
    if mode not in ("nearest", "linear", "cubic"):
        c.bad(f"mode {mode!r} is unknown")
    if c.version < 11:
        s = Sampling(mode, "asymmetric", "floor", -0.75, False, False)
        return resize_by(c, x, list(range(x.rank)), floats_of(c, 1, "its scales"), None, s, [])
    s = Sampling(
        mode,
        c.str_("coordinate_transformation_mode", "half_pixel"),
        c.str_("nearest_mode", "round_prefer_floor"),
        c.float_("cubic_coeff_a", -0.75),
        c.flag("exclude_outside", 0),
        c.flag("antialias", 0),
    )
    axes = c.axis_list(c.ints("axes", tuple(range(x.rank))), x.rank)
    scales = floats_of(c, 2, "its scales") if c.has(2) else []
    sizes = c.extents(3, "its sizes") if c.has(3) else []
    roi = floats_of(c, 1, "its region") if c.has(1) and s.coordinates == "tf_crop_and_resize" else []
    if scales and len(scales) == len(axes):
        return resize_by(c, x, axes, scales, None, s, roi)
    if len(sizes) != len(axes):
        c.bad(f"neither scales nor sizes for its {len(axes)} axes")
    return resize_by(c, x, axes, None, sizes, s, roi)


def floats_of(c: Ctx, i: int, what: str) -> list[float]:
    return [float(v) for v in c.numbers(i, what).ravel()]


def resize_by(
    c: Ctx, x: Val, axes: list[int], scales: list[float] | None, sizes: list[IntExpr] | None, s: Sampling, roi: list[float]
) -> Val:
    dtype, fill = x.dtype, c.float_("extrapolation_value", 0.0)
    if len(scales or sizes or ()) != len(axes):
        c.bad(f"{len(scales or sizes or ())} scales or sizes for {len(axes)} axes")
    # An axis that keeps its size needs no known extent.
    if scales is not None:
        changed = [n for n in range(len(axes)) if scales[n] != 1.0 or s.coordinates == "tf_crop_and_resize"]
    else:
        assert sizes is not None
        changed = [n for n in range(len(axes)) if sizes[n] != x.shape[axes[n]] or s.coordinates == "tf_crop_and_resize"]
    policy = c.str_("keep_aspect_ratio_policy", "stretch") if sizes is not None else "stretch"
    if policy != "stretch":
        changed = list(range(len(axes)))
    repeated = whole_repeats(x, axes, changed, scales, s)
    if repeated is not None:
        return repeated
    sizes_known = sizes is None or all(sizes[n].const is not None for n in changed)
    if policy == "stretch" and not (sizes_known and all(x.shape[axes[n]].const is not None for n in changed)):
        for n in changed:
            scale = None if scales is None else scales[n]
            x = resample_symbolic(c, x, axes[n], scale, None if sizes is None else sizes[n], s)
        return x if x.dtype == dtype else c.b.cast(x, dtype)
    old = dict(zip(changed, c.known([x.shape[axes[n]] for n in changed], "a resized extent"), strict=True))
    if scales is not None:
        factors = {n: scales[n] for n in changed}
        new = {n: int(floor(np.float32(scales[n]) * old[n])) for n in changed}
    else:
        assert sizes is not None
        new = dict(zip(changed, c.known([sizes[n] for n in changed], "a resized extent"), strict=True))
        factors = {n: new[n] / old[n] for n in changed}
        if policy in ("not_larger", "not_smaller"):
            common = (min if policy == "not_larger" else max)(factors.values())
            factors = dict.fromkeys(changed, common)
            new = {n: floor(common * old[n] + 0.5) for n in changed}
        elif policy != "stretch":
            c.bad(f"keep_aspect_ratio_policy {policy!r} is unknown")
    for n in changed:
        region = (roi[n], roi[len(axes) + n]) if len(roi) == 2 * len(axes) else (0.0, 1.0)
        c.limit(new[n], 1 << 16, "a resized extent")
        if old[n] == 0 and new[n]:
            c.bad("an empty axis cannot be resized")
        x = resample(c, x, axes[n], taps(s, old[n], new[n], factors[n], region), fill, f"{c.hint}_{axes[n]}")
    return x if x.dtype == dtype else c.b.cast(x, dtype)


def whole_repeats(x: Val, axes: list[int], changed: list[int], scales: list[float] | None, s: Sampling) -> Val | None:
    """Nearest resizing of symbolic extents by whole factors: each element repeats."""
    if s.mode != "nearest" or scales is None or not changed or all(x.shape[axes[n]].const is not None for n in changed):
        return None
    if any(scales[n] < 1 or scales[n] != int(scales[n]) for n in changed):
        return None
    plain = s.coordinates == "asymmetric" and s.nearest == "floor"
    centred = s.coordinates in ("half_pixel", "half_pixel_symmetric") and s.nearest.startswith("round")
    if not plain and not centred:
        return None
    by = {axes[n]: int(scales[n]) for n in changed}
    shape = [e * by.get(d, 1) for d, e in enumerate(x.shape)]
    return x.view(shape, lambda *i: [e // by[d] if d in by else e for d, e in enumerate(i)])


def resample_symbolic(c: Ctx, x: Val, axis: int, scale: float | None, size: IntExpr | None, s: Sampling) -> Val:
    """`x` resized along an axis whose extent only the call knows: places and weights are computed with the elements."""
    if s.mode == "cubic" or s.antialias or s.exclude_outside or s.coordinates in ("tf_crop_and_resize", "half_pixel_symmetric"):
        c.refuse(f"mode {s.mode!r} with {s.coordinates!r} needs extents that are known when compiling")
    if not x.dtype.is_float and s.mode == "linear":
        c.refuse(f"interpolating {x.dtype} has no native form")
    n, t = x.shape[axis], wide_type(x.dtype) if x.dtype.is_float else F32
    if size is None:
        assert scale is not None
        ratio = Fraction(scale).limit_denominator(1 << 12)
        size = (n * ratio.numerator) // ratio.denominator
    wide = size

    def number(e: IntExpr) -> Expr:
        return Cast(t, Index(e)) if e.const is None else const(e.const, t)

    def coordinate_of(o: IntExpr) -> Expr:
        at = Cast(t, Index(o))
        step = const(1.0 / scale, t) if scale is not None else apply("div", number(n), number(wide))
        match s.coordinates:
            case "align_corners":
                last = number(maximum(wide - 1, 1))
                return apply("div", apply("mul", at, number(n - 1)), last)
            case "asymmetric":
                return apply("mul", at, step)
            case "half_pixel" | "pytorch_half_pixel":
                half = const(0.5, t)
                place = apply("sub", apply("mul", apply("add", at, half), step), half)
                if s.coordinates == "half_pixel":
                    return place
                return apply("select", apply("gt", Index(wide), const(1, I64)), place, const(-0.5, t))
            case _:
                c.bad(f"coordinate_transformation_mode {s.coordinates!r} is unknown")

    def place_of(e: Expr) -> IntExpr:
        return minimum(maximum(index_value(Cast(I64, e)), 0), n - 1)

    def element(*i: IntExpr) -> Expr:
        def read(place: IntExpr) -> Expr:
            return x.at((*i[:axis], place, *i[axis + 1 :]))

        at, half = coordinate_of(i[axis]), const(0.5, t)
        if s.mode == "nearest":
            chosen = {
                "round_prefer_floor": apply("ceil", apply("sub", at, half)),
                "round_prefer_ceil": apply("floor", apply("add", at, half)),
                "floor": apply("floor", at),
                "ceil": apply("ceil", at),
            }.get(s.nearest)
            if chosen is None:
                c.bad(f"nearest_mode {s.nearest!r} is unknown")
            return read(place_of(chosen))
        low = apply("floor", at)
        part = apply("sub", at, low)
        values = [read(place_of(low)), read(place_of(apply("add", low, const(1, t))))]
        a, b = (v if t == x.dtype else Cast(t, v) for v in values)
        mixed = apply("add", apply("mul", apply("sub", const(1, t), part), a), apply("mul", part, b))
        return mixed if t == x.dtype else Cast(x.dtype, mixed)

    shape = [*x.shape[:axis], wide, *x.shape[axis + 1 :]]
    return c.b.compute(f"{c.hint}_{axis}", shape, element, x.dtype)
