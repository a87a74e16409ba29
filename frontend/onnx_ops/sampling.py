"""Reading an image at computed places: GridSample and RoiAlign."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlc.frontend.onnx_ops.convolution import guarded
from dlc.frontend.onnx_ops.pointwise import wide_type
from dlc.frontend.onnx_ops.registry import Ctx, Result, op
from dlc.ir.dtype import I64, DType
from dlc.ir.expr import Cast, Expr, Index, apply, const, index_value
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.view import Val


def extent_of(e: IntExpr, t: DType) -> Expr:
    return const(e.const, t) if e.const is not None else Cast(t, Index(e))


def minus(a: Expr, b: Expr) -> Expr:
    return apply("sub", a, b)


def times(a: Expr, b: Expr) -> Expr:
    return apply("mul", a, b)


def clamp(e: Expr, low: Expr, high: Expr) -> Expr:
    return apply("min", apply("max", e, low), high)


def reflect(e: Expr, low: Expr, high: Expr, t: DType) -> Expr:
    """`e` folded into [low, high] by mirrors at both ends."""
    span = minus(high, low)
    away = apply("abs", minus(e, low))
    period = times(span, const(2, t))
    # A span of 0 has one place.
    rest = apply("rem_floor", away, apply("select", apply("gt", period, const(0, t)), period, const(1, t)))
    folded = apply("min", rest, minus(period, rest))
    return apply("select", apply("gt", span, const(0, t)), apply("add", low, folded), low)


def whole(e: Expr) -> IntExpr:
    return index_value(Cast(I64, e))


def cubic_weights(r: Expr, t: DType) -> list[Expr]:
    """Keys' kernel (a = -0.75) at distances 1 + r, r, 1 - r, 2 - r."""
    a = -0.75
    one = const(1, t)

    def near(d: Expr) -> Expr:
        inner = minus(times(const(a + 2, t), d), const(a + 3, t))
        return apply("add", times(times(inner, d), d), one)

    def far(d: Expr) -> Expr:
        e = apply("add", times(minus(times(const(a, t), d), const(5 * a, t)), d), const(8 * a, t))
        return minus(times(e, d), const(4 * a, t))

    back = minus(one, r)
    return [far(apply("add", one, r)), near(r), near(back), far(apply("add", one, back))]


@op("GridSample")
def grid_sample(c: Ctx) -> Result:
    x, grid = c.x(0), c.x(1)
    n = x.rank - 2
    (depth,) = c.known([grid.shape[-1]], "the last extent of its grid")
    if n < 1 or grid.rank != x.rank or depth != n:
        c.bad(f"an input of rank {x.rank} and a grid of rank {grid.rank} with {depth} coordinates")
    mode = {"bilinear": "linear", "bicubic": "cubic"}.get(c.str_("mode", "linear"), c.str_("mode", "linear"))
    padding, corners = c.str_("padding_mode", "zeros"), c.flag("align_corners", 0)
    if mode not in ("linear", "nearest", "cubic") or padding not in ("zeros", "border", "reflection"):
        c.bad(f"mode {mode!r} with padding_mode {padding!r}")
    t = wide_type(x.dtype)
    gt = wide_type(grid.dtype)
    spatial = x.shape[2:]
    source = guarded(c, x, f"{c.hint}_in")

    def edges(d: int) -> tuple[Expr, Expr]:
        last = minus(extent_of(spatial[d], t), const(1, t))
        half = const(0.5, t)
        return (const(0, t), last) if corners else (const(-0.5, t), apply("add", last, half))

    def at_border(d: int, e: Expr) -> Expr:
        """A coordinate moved inside as `padding` says."""
        if padding == "border":
            return clamp(e, const(0, t), minus(extent_of(spatial[d], t), const(1, t)))
        if padding == "reflection":
            low, high = edges(d)
            return reflect(e, low, high, t)
        return e

    def place(d: int, e: Expr) -> IntExpr:
        """A whole coordinate as an index; far outside it is clamped to just outside, so that the cast is exact."""
        last = extent_of(spatial[d], t)
        if padding == "reflection":
            low, high = edges(d)
            e = apply("trunc", reflect(e, low, high, t))
        elif padding == "border":
            e = at_border(d, e)
        return whole(clamp(e, const(-1, t), last) if padding == "zeros" else clamp(e, const(0, t), minus(last, const(1, t))))

    # Coordinates in elements; the grid holds them in the reverse order of the dimensions.
    coords: list[Val] = []
    for d in range(n):
        def element(*i: IntExpr, d: int = d) -> Expr:
            e = grid.at((*i, int_expr(n - 1 - d)))
            e = e if grid.dtype == gt else Cast(gt, e)
            e = e if gt == t else Cast(t, e)
            size = extent_of(spatial[d], t)
            up = apply("add", e, const(1, t))
            if corners:
                p = times(apply("div", up, const(2, t)), minus(size, const(1, t)))
            else:
                p = apply("div", minus(times(up, size), const(1, t)), const(2, t))
            p = apply("round", p) if mode == "nearest" else p
            return at_border(d, p)

        coords.append(c.b.compute(f"{c.hint}_at{d}", grid.shape[:-1], element, t))

    def sample(*i: IntExpr) -> Expr:
        b, ch, spot = i[0], i[1], i[2:]
        at = [v.at((b, *spot)) for v in coords]
        if mode == "nearest":
            value = source.at((b, ch, *(place(d, at[d]) for d in range(n))))
            return value
        low = [apply("floor", a) for a in at]
        rest = [minus(a, f) for a, f in zip(at, low, strict=True)]
        first = 0 if mode == "linear" else -1
        weights = [[minus(const(1, t), r), r] if mode == "linear" else cubic_weights(r, t) for r in rest]
        places = [[place(d, apply("add", low[d], const(first + k, t))) for k in range(len(weights[d]))] for d in range(n)]

        def blend(d: int, index: tuple[IntExpr, ...]) -> Expr:
            if d == n:
                value = source.at((b, ch, *index))
                return value if t == x.dtype else Cast(t, value)
            total: Expr | None = None
            for k, w in enumerate(weights[d]):
                term = times(w, blend(d + 1, (*index, places[d][k])))
                total = term if total is None else apply("add", total, term)
            assert total is not None
            return total

        value = blend(0, ())
        return value if t == x.dtype else Cast(x.dtype, value)

    return c.b.compute(c.hint, [*x.shape[:2], *grid.shape[1:-1]], sample, x.dtype)


@op("RoiAlign")
def roi_align(c: Ctx) -> Result:
    x, rois, batch = c.x(0), c.x(1), c.x(2)
    high, wide = c.int_("output_height", 1), c.int_("output_width", 1)
    ratio, scale = c.int_("sampling_ratio", 0), c.float_("spatial_scale", 1.0)
    mode = c.str_("mode", "avg")
    aligned = c.str_("coordinate_transformation_mode", "half_pixel" if c.version >= 16 else "output_half_pixel") == "half_pixel"
    if x.rank != 4 or mode not in ("avg", "max"):
        c.bad(f"an input of rank {x.rank} with mode {mode!r}")
    if ratio <= 0:
        c.refuse("a sampling_ratio of 0 makes the number of samples depend on the data")
    t = wide_type(x.dtype)
    rows, columns = x.shape[2], x.shape[3]
    shift = const(0.5 if aligned else 0.0, t)

    def box(r: IntExpr, k: int) -> Expr:
        e = rois(r, k)
        return minus(times(e if rois.dtype == t else Cast(t, e), const(scale, t)), shift)

    def along(r: IntExpr, p: IntExpr, s: IntExpr, start: int, bins: int) -> Expr:
        """The coordinate of sample `s` of bin `p`."""
        first = box(r, start)
        size = minus(box(r, start + 2), first)
        size = size if aligned else apply("max", size, const(1, t))
        each = apply("div", size, const(bins, t))
        inner = apply("div", apply("add", Cast(t, Index(s)), const(0.5, t)), const(ratio, t))
        return apply("add", first, times(each, apply("add", Cast(t, Index(p)), inner)))

    def parts(e: Expr, extent: IntExpr) -> tuple[Expr, Sequence[IntExpr], Sequence[Expr]]:
        """(whether it counts, the two places, their weights)."""
        size = extent_of(extent, t)
        outside = apply("or", apply("lt", e, const(-1, t)), apply("gt", e, size))
        inner = apply("max", e, const(0, t))
        last = minus(size, const(1, t))
        low = apply("min", apply("floor", inner), last)
        rest = apply("select", apply("ge", apply("floor", inner), last), const(0, t), minus(inner, low))
        high_ = apply("min", apply("add", low, const(1, t)), last)
        return outside, (whole(low), whole(high_)), (minus(const(1, t), rest), rest)

    def sample(r: IntExpr, ch: IntExpr, py: IntExpr, px: IntExpr, sy: IntExpr, sx: IntExpr, fold: Callable[..., Expr]) -> Expr:
        out_y, ys, wy = parts(along(r, py, sy, 1, high), rows)
        out_x, xs, wx = parts(along(r, px, sx, 0, wide), columns)
        b = batch.gather_value(r)
        total: Expr | None = None
        for j in (0, 1):
            for k in (0, 1):
                value = x(b, ch, ys[j], xs[k])
                term = times(times(wy[j], wx[k]), value if t == x.dtype else Cast(t, value))
                total = term if total is None else fold(total, term)
        assert total is not None
        return apply("select", apply("or", out_y, out_x), const(0, t), total)

    fold_name = "add" if mode == "avg" else "max"
    y = c.b.reduce(
        f"{c.hint}_sum" if mode == "avg" else c.hint,
        "sum" if mode == "avg" else "max",
        [rois.shape[0], x.shape[1], high, wide],
        [ratio, ratio],
        lambda i, r: sample(i[0], i[1], i[2], i[3], r[0], r[1], lambda a, e: apply(fold_name, a, e)),
        t,
    )
    if mode == "avg":
        y = c.b.map(c.hint, lambda a: apply("div", a, const(ratio * ratio, t)), y)
    return y if t == x.dtype else c.b.cast(y, x.dtype)
