"""Reductions: Reduce*, ArgMax, softmax and its kin, losses, cumulative sums, means."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlc.frontend.onnx_ops.pointwise import wide_type
from dlc.frontend.onnx_ops.registry import Ctx, Result, op
from dlc.ir.dtype import BOOL, F64, I64, DType
from dlc.ir.expr import Cast, Expr, Index, apply, const
from dlc.ir.extent import IntExpr, product
from dlc.ir.view import Val


def reduce_dims(c: Ctx, x: Val) -> list[int] | None:
    """Dimensions to reduce; None when the operator does nothing (noop_with_empty_axes)."""
    axes = c.axes(1)
    if not axes:
        if c.flag("noop_with_empty_axes", 0):
            return None
        return list(range(x.rank))
    return sorted(c.axis_list(axes, x.rank))


def widened(x: Val) -> Val:
    """16-bit floats as f32, to be read inside a formula."""
    wide = wide_type(x.dtype)
    return x if wide == x.dtype else Val(wide, x.shape, lambda i: Cast(wide, x.at(i)))


def fold(c: Ctx, name: str, x: Val, dims: Sequence[int], element: Callable[[Expr], Expr], dtype: DType, hint: str) -> Val:
    """Reduce `element(x)` over `dims`, keeping them with extent 1."""
    kept = [d for d in range(x.rank) if d not in dims]

    def at(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        where = dict(zip(kept, i, strict=True)) | dict(zip(dims, r, strict=True))
        return element(x.at(tuple(where[d] for d in range(x.rank))))

    out = c.b.reduce(hint, name, [x.shape[d] for d in kept], [x.shape[d] for d in dims], at, dtype)
    for d in dims:
        out = out.unsqueeze(d)
    return out


def keep(c: Ctx, x: Val, dims: Sequence[int]) -> Val:
    return x if c.flag("keepdims", 1) else (x.squeeze(*dims) if dims else x)


def finish(c: Ctx, y: Val, f: Callable[[Expr], Expr], dtype: DType) -> Val:
    return c.b.map(c.hint, lambda a: _round(f(a), y.dtype, dtype), y, dtype=dtype)


def _round(e: Expr, source: DType, dtype: DType) -> Expr:
    return e if source == dtype else Cast(dtype, e)


def count_of(x: Val, dims: Sequence[int], dtype: DType) -> Expr:
    return Cast(dtype, Index(product([x.shape[d] for d in dims])))


def reducer(
    name: str,
    monoid: str,
    element: Callable[[Expr, DType], Expr] = lambda e, t: e,
    after: Callable[[Expr, DType, Expr], Expr] | None = None,
    formula: bool = False,
) -> None:
    """Register a Reduce operator: `after(monoid over element(x), type, count)`.

    With `formula` an integer operand is computed in f64 when there is an `after` to apply.
    """

    def handler(c: Ctx) -> Result:
        x = c.x(0)
        dims = reduce_dims(c, x)
        if dims is None:
            if name in ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceMean"):
                return x
            dims = []
        small = widened(x) if after is not None or monoid not in ("max", "min") else x
        if formula and not x.dtype.is_float:
            small = Val(F64, x.shape, lambda i: Cast(F64, x.at(i)))
        t = small.dtype
        kind = {"max": "or", "min": "and"}.get(monoid, monoid) if t == BOOL else monoid
        y = fold(c, kind, small, dims, lambda e: element(e, t), t, c.hint)
        if after is not None:
            y = finish(c, y, lambda a: after(a, t, count_of(x, dims, t)), x.dtype)
        elif t != x.dtype:
            y = c.b.cast(y, x.dtype)
        return keep(c, y, dims)

    op(name)(handler)


def _square(e: Expr, t: DType) -> Expr:
    return apply("mul", e, e)


reducer("ReduceSum", "sum")
reducer("ReduceProd", "prod")
reducer("ReduceMax", "max")
reducer("ReduceMin", "min")
reducer("ReduceL1", "sum", lambda e, t: apply("abs", e))
reducer("ReduceSumSquare", "sum", _square)
reducer("ReduceL2", "sum", _square, lambda a, t, n: apply("sqrt", a), formula=True)
reducer("ReduceLogSum", "sum", lambda e, t: e, lambda a, t, n: apply("log", a), formula=True)


@op("ReduceMean")
def reduce_mean(c: Ctx) -> Result:
    x = c.x(0)
    dims = reduce_dims(c, x)
    if dims is None:
        return x
    y = fold(c, "sum", widened(x), dims, lambda e: e, wide_type(x.dtype), f"{c.hint}_sum")
    divide = "div" if x.dtype.is_float else "div_trunc"
    return keep(c, finish(c, y, lambda a: apply(divide, a, count_of(x, dims, y.dtype)), x.dtype), dims)


@op("ReduceLogSumExp")
def reduce_log_sum_exp(c: Ctx) -> Result:
    x = c.x(0)
    dims = reduce_dims(c, x)
    dims = [] if dims is None else dims
    small = widened(x) if x.dtype.is_float else Val(F64, x.shape, lambda i: Cast(F64, x.at(i)))
    t = small.dtype
    top = fold(c, "max", small, dims, lambda e: e, t, f"{c.hint}_max")
    # An infinite maximum would give inf - inf; the sum then decides alone.
    safe = c.b.map(f"{c.hint}_shift", lambda m: apply("select", apply("isinf", m), const(0, t), m), top)
    shifted = c.b.map(f"{c.hint}_exp", lambda e, m: apply("exp", apply("sub", e, m)), small, safe, dtype=t)
    total = fold(c, "sum", shifted, dims, lambda e: e, t, f"{c.hint}_sum")
    y = c.b.map(
        c.hint, lambda s, m: _round(apply("add", apply("log", s), m), t, x.dtype), total, safe, dtype=x.dtype
    )
    return keep(c, y, dims)


# --- argmax ----------------------------------------------------------------------------------------------------------


@op("ArgMax", "ArgMin")
def arg_extreme(c: Ctx) -> Result:
    x = c.x(0)
    axis = c.axis(c.int_("axis", 0), x.rank)
    name = c.op.lower() + ("_last" if c.flag("select_last_index", 0) else "")
    if x.shape[axis].const == 0:
        c.bad(f"dimension {axis} is empty")
    kept = [d for d in range(x.rank) if d != axis]

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> tuple[Expr, ...]:
        where = dict(zip(kept, i, strict=True)) | {axis: r[0]}
        return x.at(tuple(where[d] for d in range(x.rank))), Index(r[0])

    hints = (f"{c.hint}_value", c.hint)
    _, y = c.b.tuple_reduce(hints, name, [x.shape[d] for d in kept], [x.shape[axis]], element, (x.dtype, I64))
    return y.unsqueeze(axis) if c.flag("keepdims", 1) else y


# --- softmax ---------------------------------------------------------------------------------------------------------


def softmax_parts(c: Ctx, x: Val, dims: Sequence[int], small: Val) -> tuple[Val, Val, Val]:
    """(shifted input, its exponentials, their sum over `dims`), in the type of `small`, which is `x` perhaps widened."""
    t = small.dtype
    top = fold(c, "max", small, dims, lambda e: e, t, f"{c.hint}_max")
    shifted = c.b.map(f"{c.hint}_shift", lambda e, m: apply("sub", e, m), small, top, dtype=t)
    powers = c.b.map(f"{c.hint}_exp", lambda e: apply("exp", e), shifted)
    total = fold(c, "sum", powers, dims, lambda e: e, t, f"{c.hint}_sum")
    return shifted, powers, total


def softmax_dims(c: Ctx, x: Val) -> list[int]:
    """Dimensions normalised over: one from version 13 on, before that all from `axis` on."""
    axis = c.int_("axis", -1 if c.version >= 13 else 1)
    if c.version >= 13:
        return [c.axis(axis, x.rank)]
    axis = axis + x.rank if axis < 0 else axis
    if not 0 <= axis <= x.rank:
        c.bad(f"axis {axis} is out of range for rank {x.rank}")
    return list(range(axis, x.rank))


def softmax(c: Ctx, x: Val, dims: Sequence[int]) -> Val:
    # ONNX defines Softmax by operators of the operand's own type, so each step rounds to it, 16-bit floats included.
    _, powers, total = softmax_parts(c, x, dims, x)
    t = powers.dtype
    return c.b.map(c.hint, lambda e, s: _round(apply("div", e, s), t, x.dtype), powers, total, dtype=x.dtype)


def log_softmax(c: Ctx, x: Val, dims: Sequence[int]) -> Val:
    shifted, _, total = softmax_parts(c, x, dims, widened(x))
    t = shifted.dtype
    return c.b.map(
        c.hint, lambda e, s: _round(apply("sub", e, apply("log", s)), t, x.dtype), shifted, total, dtype=x.dtype
    )


op("Softmax")(lambda c: softmax(c, c.x(0), softmax_dims(c, c.x(0))))
op("LogSoftmax")(lambda c: log_softmax(c, c.x(0), softmax_dims(c, c.x(0))))


@op("Hardmax")
def hardmax(c: Ctx) -> Result:
    x = c.x(0)
    dims = softmax_dims(c, x)
    shape = x.shape
    flat = x.reshape([*shape[: dims[0]], product([shape[d] for d in dims]), *shape[dims[-1] + 1 :]]) if len(dims) > 1 else x
    axis = dims[0]
    kept = [d for d in range(flat.rank) if d != axis]

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> tuple[Expr, ...]:
        where = dict(zip(kept, i, strict=True)) | {axis: r[0]}
        return flat.at(tuple(where[d] for d in range(flat.rank))), Index(r[0])

    hints = (f"{c.hint}_value", f"{c.hint}_place")
    _, place = c.b.tuple_reduce(hints, "argmax", [flat.shape[d] for d in kept], [flat.shape[axis]], element, (x.dtype, I64))

    def one_hot(*i: IntExpr) -> Expr:
        chosen = place.at(tuple(i[d] for d in kept))
        return apply("select", apply("eq", chosen, Index(i[axis])), const(1, x.dtype), const(0, x.dtype))

    return c.b.compute(c.hint, flat.shape, one_hot, x.dtype).reshape(shape)


# --- cumulative ------------------------------------------------------------------------------------------------------


@op("CumSum", "CumProd")
def cumulative(c: Ctx) -> Result:
    x = c.x(0)
    axis = c.axis(int(c.scalar_number(1, "its axis")), x.rank)
    exclusive, reverse = c.flag("exclusive", 0), c.flag("reverse", 0)
    name, unit = ("add", 0) if c.op == "CumSum" else ("mul", 1)
    small = widened(x)
    t = small.dtype
    n = x.shape[axis]
    rest = [*x.shape[:axis], *x.shape[axis + 1 :]]
    start = c.b.scalar(unit, t).broadcast_to(rest)

    def step(time: IntExpr, carries: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        place = n - 1 - time if reverse else time
        now = small.select(axis, place)
        state = c.b.map(f"{c.hint}_step", lambda s, e: apply(name, s, e), carries[0], now, dtype=t)
        out = c.b.map(f"{c.hint}_before", lambda s: s, carries[0]) if exclusive else state
        return [state], [out]

    _, (stacked,) = c.b.scan(c.hint, n, [start], step)
    y = stacked.permute([*range(1, axis + 1), 0, *range(axis + 1, x.rank)])
    y = y.flip(axis) if reverse else y
    return y if t == x.dtype else c.b.cast(y, x.dtype)


# --- means and losses ------------------------------------------------------------------------------------------------


@op("GlobalAveragePool")
def global_average_pool(c: Ctx) -> Result:
    x = c.x(0)
    dims = list(range(2, x.rank))
    y = fold(c, "sum", widened(x), dims, lambda e: e, wide_type(x.dtype), f"{c.hint}_sum")
    return finish(c, y, lambda a: apply("div", a, count_of(x, dims, y.dtype)), x.dtype)


@op("GlobalMaxPool")
def global_max_pool(c: Ctx) -> Result:
    x = c.x(0)
    return fold(c, "max", x, list(range(2, x.rank)), lambda e: e, x.dtype, c.hint)


@op("GlobalLpPool")
def global_lp_pool(c: Ctx) -> Result:
    x = c.x(0)
    p = c.int_("p", 2)
    t = wide_type(x.dtype)
    powers = fold(
        c, "sum", widened(x), list(range(2, x.rank)), lambda e: apply("pow", apply("abs", e), const(p, t)), t, f"{c.hint}_sum"
    )
    return finish(c, powers, lambda a: apply("pow", a, const(1.0 / p, t)), x.dtype)


@op("MeanVarianceNormalization")
def mean_variance_normalization(c: Ctx) -> Result:
    x = c.x(0)
    dims = c.axis_list(c.ints("axes", (0, 2, 3)), x.rank)
    y, _, _ = standardise(c, x, dims, 1e-9, "deviation")
    return y if y.dtype == x.dtype else c.b.cast(y, x.dtype)


def standardise(c: Ctx, x: Val, dims: Sequence[int], epsilon: float, form: str = "variance") -> tuple[Val, Val, Val]:
    """((x - mean) / deviation, mean, 1 / deviation) over `dims` in the wide type.

    form: where epsilon goes: "variance" (inside the root) or "deviation" (added to the root).
    """
    small = widened(x)
    t = small.dtype
    total = fold(c, "sum", small, dims, lambda e: e, t, f"{c.hint}_sum")
    mean = c.b.map(f"{c.hint}_mean", lambda a: apply("div", a, count_of(x, dims, t)), total)
    centred = c.b.map(f"{c.hint}_centred", lambda e, m: apply("sub", e, m), small, mean, dtype=t)
    squares = fold(c, "sum", centred, dims, lambda e: apply("mul", e, e), t, f"{c.hint}_squares")

    def inverse(a: Expr) -> Expr:
        variance = apply("div", a, count_of(x, dims, t))
        if form == "variance":
            return apply("div", const(1, t), apply("sqrt", apply("add", variance, const(epsilon, t))))
        return apply("div", const(1, t), apply("add", apply("sqrt", variance), const(epsilon, t)))

    scale = c.b.map(f"{c.hint}_inverse", inverse, squares)
    return c.b.map(f"{c.hint}_normal", lambda e, s: apply("mul", e, s), centred, scale), mean, scale


@op("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(c: Ctx) -> Result:
    scores, labels = c.x(0), c.x(1)
    logs = log_softmax(c, scores, [1])
    return negative_log_likelihood(c, logs, labels, c.opt(2)), logs


@op("NegativeLogLikelihoodLoss")
def nll_loss(c: Ctx) -> Result:
    return negative_log_likelihood(c, c.x(0), c.x(1), c.opt(2))


def negative_log_likelihood(c: Ctx, logs: Val, labels: Val, weight: Val | None) -> Val:
    """Of log-probabilities [N, C, d...] and labels [N, d...]."""
    if logs.rank != labels.rank + 1:
        c.bad(f"scores of rank {logs.rank} with labels of rank {labels.rank}")
    reduction = c.str_("reduction", "mean")
    ignore = c.int_("ignore_index", None)
    t = wide_type(logs.dtype)

    def label_of(i: tuple[IntExpr, ...]) -> Expr:
        return labels.at(i)

    def ignored(i: tuple[IntExpr, ...]) -> Expr:
        return apply("eq", label_of(i), const(ignore, labels.dtype))

    def place(i: tuple[IntExpr, ...]) -> IntExpr:
        from dlc.ir.expr import index_value

        label = label_of(i)
        return index_value(apply("select", ignored(i), const(0, labels.dtype), label) if ignore is not None else label)

    def weight_at(i: tuple[IntExpr, ...]) -> Expr:
        w = const(1, t) if weight is None else _round(weight.at((place(i),)), weight.dtype, t)
        return w if ignore is None else apply("select", ignored(i), const(0, t), w)

    def loss_at(*i: IntExpr) -> Expr:
        value = _round(logs.at((i[0], place(i), *i[1:])), logs.dtype, t)
        return apply("neg", apply("mul", value, weight_at(i)))

    if reduction not in ("none", "mean", "sum"):
        c.bad(f"reduction {reduction!r} is unknown")
    loss = c.b.compute(f"{c.hint}_each", labels.shape, loss_at, t)
    if reduction == "none":
        return loss if t == logs.dtype else c.b.cast(loss, logs.dtype)
    dims = list(range(labels.rank))
    total = c.b.reduce_axes(f"{c.hint}_total", "sum", loss, dims, False)
    if reduction == "mean":
        if weight is None and ignore is None:
            n = count_of(labels, dims, t)
            total = c.b.map(c.hint, lambda a: apply("div", a, n), total)
        else:
            weights = c.b.reduce(f"{c.hint}_weights", "sum", [], labels.shape, lambda i, r: weight_at(r), t)
            total = c.b.map(c.hint, lambda a, w: apply("div", a, w), total, weights)
    return total if t == logs.dtype else c.b.cast(total, logs.dtype)


__all__ = ["fold", "softmax", "standardise", "widened"]
