"""ATen reductions, softmax, and cumulative sums. Each reduction is an Einsum with a monoid; a cumulative one is a scan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dlc.frontend.torch_context import Ctx, add, div, mul, op, select, sub, wide_type
from dlc.ir.dtype import BOOL, I64, DType
from dlc.ir.expr import Expr, Index, apply, const
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.view import Val


def reduce_dims(c: Ctx, name: str, x: Val, dims: Sequence[int], keepdim: bool, hint: str | None = None) -> Val:
    """Fold `x` over `dims` with the monoid `name`."""
    if not dims:
        return x
    return c.b.reduce_axes(hint or c.hint, name, x, list(dims), keepdim)


def total(c: Ctx, x: Val, dims: Sequence[int]) -> IntExpr:
    """Number of elements folded into one."""
    n = int_expr(1)
    for d in dims:
        n = n * x.shape[d]
    return n


@op("sum", "sum.dim_IntList", "nansum")
def sum_(c: Ctx, x: Val, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Val:
    y = c.cast(x, c.dtype)
    if "nansum" in c.target and x.dtype.is_float:
        y = c.b.map("finite", lambda e: select(apply("isnan", e), const(0, y.dtype), e), y, dtype=y.dtype)
    return reduce_dims(c, "sum", y, c.dims(dim, x.rank), keepdim)


def mean_dims(c: Ctx, x: Val, dims: Sequence[int], keepdim: bool, dtype: DType, hint: str = "mean") -> Val:
    """The mean over `dims` as `dtype`; `x` is in the type to add in."""
    s = reduce_dims(c, "sum", x, dims, keepdim, f"{hint}_sum")
    n = c.count([total(c, x, dims)], x.dtype)
    out = c.b.map(hint, lambda e: div(e, n), s, dtype=x.dtype) if dtype == x.dtype else None
    return out or _cast_map(c, hint, lambda e: div(e, n), s, dtype)


def _cast_map(c: Ctx, hint: str, element: Any, x: Val, dtype: DType) -> Val:
    from dlc.ir.expr import Cast

    return c.b.map(hint, lambda e: Cast(dtype, element(e)), x, dtype=dtype)


@op("mean", "mean.dim")
def mean(c: Ctx, x: Val, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Val:
    t = c.dtype
    return mean_dims(c, c.cast(x, wide_type(t)), c.dims(dim, x.rank), keepdim, t, c.hint)


@op("prod", "prod.dim_int")
def prod(c: Ctx, x: Val, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Val:
    return reduce_dims(c, "prod", c.cast(x, c.dtype), c.dims(dim, x.rank), keepdim)


def _extreme(name: str, word: str) -> None:
    @op(f"a{word}")
    def over_dims(c: Ctx, x: Val, dim: Any = (), keepdim: bool = False) -> Val:
        return reduce_dims(c, name, x, c.dims(list(dim) if not isinstance(dim, int) else dim, x.rank), keepdim)

    @op(word)
    def whole(c: Ctx, x: Val) -> Val:
        return reduce_dims(c, name, x, range(x.rank), False)

    @op(f"{word}.dim")
    def with_index(c: Ctx, x: Val, dim: int, keepdim: bool = False) -> tuple[Val, Val]:
        return extreme_index(c, f"arg{name}", x, c.dim(dim, x.rank), keepdim)

    @op(f"arg{word}")
    def arg(c: Ctx, x: Val, dim: int | None = None, keepdim: bool = False) -> Val:
        if dim is None:
            out = extreme_index(c, f"arg{name}", x.reshape([x.elements]), 0, False)[1]
            return out.reshape([1] * x.rank) if keepdim else out
        return extreme_index(c, f"arg{name}", x, c.dim(dim, x.rank), keepdim)[1]


_extreme("max", "max")
_extreme("min", "min")


def extreme_index(c: Ctx, monoid: str, x: Val, dim: int, keepdim: bool) -> tuple[Val, Val]:
    """The greatest (least) value along `dim` and its first index."""
    if x.rank == 0:
        return x, c.b.scalar(0, I64)
    kept = [d for d in range(x.rank) if d != dim]

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> tuple[Expr, ...]:
        where = dict(zip(kept, i, strict=True))
        where[dim] = r[0]
        return x.at(tuple(where[d] for d in range(x.rank))), Index(r[0])

    hints = (c.hint, f"{c.hint}_index")
    outs = c.b.tuple_reduce(hints, monoid, [x.shape[d] for d in kept], [x.shape[dim]], element, (x.dtype, I64))
    values, indices = (o.unsqueeze(dim) for o in outs) if keepdim else outs
    return values, indices


@op("aminmax")
def aminmax(c: Ctx, x: Val, *, dim: int | None = None, keepdim: bool = False) -> tuple[Val, Val]:
    dims = c.dims(dim, x.rank)
    return reduce_dims(c, "min", x, dims, keepdim, "amin"), reduce_dims(c, "max", x, dims, keepdim, "amax")


def _quantifier(name: str, word: str) -> None:
    @op(word, f"{word}.dim", f"{word}.dims")
    def handler(c: Ctx, x: Val, dim: Any = None, keepdim: bool = False) -> Val:
        return c.cast(reduce_dims(c, name, c.cast(x, BOOL), c.dims(dim, x.rank), keepdim), c.dtype)


_quantifier("or", "any")
_quantifier("and", "all")


@op("count_nonzero", "count_nonzero.dim_IntList")
def count_nonzero(c: Ctx, x: Val, dim: Any = None) -> Val:
    return reduce_dims(c, "sum", c.cast(c.cast(x, BOOL), I64), c.dims(dim, x.rank), False)


# --- variance --------------------------------------------------------------------------------------------------------


def variance(c: Ctx, x: Val, dims: Sequence[int], correction: Any, keepdim: bool) -> tuple[Val, Val]:
    """(variance, mean) in the type of `x`, two passes."""
    m = mean_dims(c, x, dims, True, x.dtype, f"{c.hint}_mean")
    centred = c.b.map(f"{c.hint}_square", lambda a, b: mul(sub(a, b), sub(a, b)), x, m, dtype=x.dtype)
    s = reduce_dims(c, "sum", centred, dims, keepdim, f"{c.hint}_sum")
    n = sub(c.count([total(c, x, dims)], x.dtype), const(float(correction), x.dtype))
    zero = const(0, x.dtype)
    v = c.b.map(c.hint, lambda e: div(e, apply("max", n, zero)), s, dtype=x.dtype)
    return v, m if keepdim else m.squeeze(*dims) if dims else m


def _var(c: Ctx, x: Val, dim: Any, correction: Any, keepdim: bool, root: bool) -> tuple[Val, Val]:
    v, m = variance(c, c.wide(x), c.dims(dim, x.rank), 1 if correction is None else correction, keepdim)
    if root:
        v = c.b.map("std", lambda e: apply("sqrt", e), v, dtype=v.dtype)
    return c.cast(v, x.dtype), c.cast(m, x.dtype)


@op("var.correction", "std.correction")
def var_correction(c: Ctx, x: Val, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Val:
    return _var(c, x, dim, correction, keepdim, "std" in c.target)[0]


@op("var_mean.correction", "std_mean.correction")
def var_mean(c: Ctx, x: Val, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> tuple[Val, Val]:
    return _var(c, x, dim, correction, keepdim, "std" in c.target)


@op("var", "std")
def var_all(c: Ctx, x: Val, unbiased: bool = True) -> Val:
    return _var(c, x, None, int(unbiased), False, "std" in c.target)[0]


@op("var.dim", "std.dim")
def var_dim(c: Ctx, x: Val, dim: Any, unbiased: bool = True, keepdim: bool = False) -> Val:
    return _var(c, x, dim, int(unbiased), keepdim, "std" in c.target)[0]


@op("var_mean", "std_mean")
def var_mean_all(c: Ctx, x: Val, unbiased: bool = True) -> tuple[Val, Val]:
    return _var(c, x, None, int(unbiased), False, "std" in c.target)


@op("var_mean.dim", "std_mean.dim")
def var_mean_dim(c: Ctx, x: Val, dim: Any, unbiased: bool = True, keepdim: bool = False) -> tuple[Val, Val]:
    return _var(c, x, dim, int(unbiased), keepdim, "std" in c.target)


# --- norms of vectors ------------------------------------------------------------------------------------------------


@op("linalg_vector_norm")
def vector_norm(c: Ctx, x: Val, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Val:
    return _norm(c, x, float(ord), c.dims(dim, x.rank), keepdim)


@op("norm.Scalar", "norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype", "norm.ScalarOpt_dtype")
def norm(c: Ctx, x: Val, p: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Val:
    return _norm(c, x, 2.0 if p is None else float(p), c.dims(dim, x.rank), keepdim)


def _norm(c: Ctx, x: Val, p: float, dims: Sequence[int], keepdim: bool) -> Val:
    t = c.dtype
    w = wide_type(t)
    y = c.cast(x, w)
    b, hint = c.b, c.hint
    if p == 0:
        ones = b.map(
            f"{hint}_nonzero", lambda e: select(apply("ne", e, const(0, w)), const(1, w), const(0, w)), y, dtype=w
        )
        return c.cast(reduce_dims(c, "sum", ones, dims, keepdim), t)
    if p == 2:
        s = reduce_dims(c, "sum", _lazy(y, lambda e: mul(e, e)), dims, keepdim, f"{hint}_sum")
        return c.cast(b.map(hint, lambda e: apply("sqrt", e), s, dtype=w), t)
    size = _lazy(y, lambda e: apply("abs", e))
    if math.isinf(p):
        return c.cast(reduce_dims(c, "max" if p > 0 else "min", size, dims, keepdim), t)
    if p == 1:
        return c.cast(reduce_dims(c, "sum", size, dims, keepdim), t)
    s = reduce_dims(c, "sum", _lazy(size, lambda e: apply("pow", e, const(p, w))), dims, keepdim, f"{hint}_sum")
    return c.cast(b.map(hint, lambda e: apply("pow", e, const(1 / p, w)), s, dtype=w), t)


def _lazy(x: Val, element: Any) -> Val:
    """`element` of `x` computed where it is read: for the one reader that folds it."""
    base = x.at
    return Val(x.dtype, x.shape, lambda i: element(base(i)))


# --- softmax ---------------------------------------------------------------------------------------------------------


@op("softmax.int", "_softmax", "special_softmax", "_safe_softmax")
def softmax(c: Ctx, x: Val, dim: int, dtype: Any = None) -> Val:
    t = c.dtype
    if x.rank == 0:
        return c.b.scalar(1, t)
    return c.cast(softmax_of(c, c.cast(x, wide_type(t)), c.dim(dim, x.rank), safe="_safe" in c.target), t)


def softmax_of(c: Ctx, x: Val, d: int, safe: bool = False, hint: str | None = None) -> Val:
    """Softmax along `d` in the type of `x`; `safe` gives 0 instead of NaN where all of `x` is -inf."""
    b, h, t = c.b, hint or c.hint, x.dtype
    top = b.reduce_axes(f"{h}_max", "max", x, [d], True)
    if safe:
        lowest, zero = const(-math.inf, t), const(0, t)
        grown = b.map(
            f"{h}_exp", lambda a, m: apply("exp", sub(a, select(apply("eq", m, lowest), zero, m))), x, top, dtype=t
        )
        s = b.reduce_axes(f"{h}_sum", "sum", grown, [d], True)
        return b.map(h, lambda a, m: div(a, select(apply("eq", m, zero), const(1, t), m)), grown, s, dtype=t)
    grown = b.map(f"{h}_exp", lambda a, m: apply("exp", sub(a, m)), x, top, dtype=t)
    s = b.reduce_axes(f"{h}_sum", "sum", grown, [d], True)
    return b.map(h, div, grown, s, dtype=t)


@op("log_softmax.int", "_log_softmax", "special_log_softmax")
def log_softmax(c: Ctx, x: Val, dim: int, dtype: Any = None) -> Val:
    t = c.dtype
    if x.rank == 0:
        return c.b.scalar(0, t)
    b, h, w = c.b, c.hint, wide_type(t)
    y, d = c.cast(x, w), c.dim(dim, x.rank)
    top = b.reduce_axes(f"{h}_max", "max", y, [d], True)
    grown = b.map(f"{h}_exp", lambda a, m: apply("exp", sub(a, m)), y, top, dtype=w)
    s = b.reduce_axes(f"{h}_sum", "sum", grown, [d], True)
    return c.cast(b.map(h, lambda a, m, z: sub(sub(a, m), apply("log", z)), y, top, s, dtype=w), t)


@op("logsumexp")
def logsumexp(c: Ctx, x: Val, dim: Any, keepdim: bool = False) -> Val:
    t = c.dtype
    b, h, w = c.b, c.hint, wide_type(t)
    y, dims = c.cast(x, w), c.dims(dim, x.rank)
    top = reduce_dims(c, "max", y, dims, True, f"{h}_max")
    shift = b.map(f"{h}_shift", lambda m: select(apply("isinf", m), const(0, w), m), top, dtype=w)
    grown = b.map(f"{h}_exp", lambda a, m: apply("exp", sub(a, m)), y, shift, dtype=w)
    s = reduce_dims(c, "sum", grown, dims, True, f"{h}_sum")
    out = b.map(h, lambda z, m: add(apply("log", z), m), s, shift, dtype=w)
    return c.cast(out if keepdim or not dims else out.squeeze(*dims), t)


# --- cumulative ------------------------------------------------------------------------------------------------------


def _cumulative(name: str, word: str, start: float) -> None:
    @op(word)
    def handler(c: Ctx, x: Val, dim: int, *, dtype: Any = None) -> Val:
        t = c.dtype
        if x.rank == 0:
            return c.cast(x, t)
        w = wide_type(t)
        y, d = c.cast(x, w), c.dim(dim, x.rank)
        shape = [*x.shape[:d], *x.shape[d + 1 :]]

        def body(step: IntExpr, states: tuple[Val, ...]) -> tuple[list[Val], list[Val]]:
            term = y.select(d, step)
            after = c.b.map("step", lambda a, e: apply(name, a, e), states[0], term, dtype=w)
            return [after], [after]

        _, (out,) = c.b.scan(c.hint, x.shape[d], [c.b.scalar(start, w).broadcast_to(shape)], body)
        return c.cast(_lead_to(out, d), t)


def _lead_to(x: Val, d: int) -> Val:
    """The leading dimension moved to `d`."""
    return x.permute([*range(1, d + 1), 0, *range(d + 1, x.rank)])


_cumulative("add", "cumsum", 0)
_cumulative("mul", "cumprod", 1)


@op("cummax", "cummin")
def cummax(c: Ctx, x: Val, dim: int) -> tuple[Val, Val]:
    if x.rank == 0:
        return x, c.b.scalar(0, I64)
    d = c.dim(dim, x.rank)
    shape = [*x.shape[:d], *x.shape[d + 1 :]]
    better = "ge" if "cummax" in c.target else "le"
    name = "max" if better == "ge" else "min"
    from dlc.ir.monoid import MONOIDS

    start = c.b.scalar(MONOIDS[name].identity((x.dtype,))[0].value, x.dtype).broadcast_to(shape)

    def body(step: IntExpr, states: tuple[Val, ...]) -> tuple[list[Val], list[Val]]:
        term = x.select(d, step)

        def wins(best: Expr, e: Expr) -> Expr:
            return apply("or", apply(better, e, best), apply("ne", e, e))

        value = c.b.map("best", lambda a, e: apply(name, a, e), states[0], term, dtype=x.dtype)
        index = c.b.map(
            "best_index", lambda j, a, e: select(wins(a, e), Index(step), j), states[1], states[0], term, dtype=I64
        )
        return [value, index], [value, index]

    _, (values, indices) = c.b.scan(c.hint, x.shape[d], [start, c.b.scalar(0, I64).broadcast_to(shape)], body)
    return _lead_to(values, d), _lead_to(indices, d)


@op("logcumsumexp")
def logcumsumexp(c: Ctx, x: Val, dim: int) -> Val:
    if x.rank == 0:
        return x
    t, d = c.dtype, c.dim(dim, x.rank)
    w = wide_type(t)
    y = c.cast(x, w)
    shape = [*x.shape[:d], *x.shape[d + 1 :]]

    def merge(a: Expr, e: Expr) -> Expr:
        top, gap = apply("max", a, e), apply("neg", apply("abs", sub(a, e)))
        same = apply("and", apply("isinf", a), apply("eq", a, e))
        return select(same, a, add(top, apply("log1p", apply("exp", gap))))

    def body(step: IntExpr, states: tuple[Val, ...]) -> tuple[list[Val], list[Val]]:
        after = c.b.map("step", merge, states[0], y.select(d, step), dtype=w)
        return [after], [after]

    _, (out,) = c.b.scan(c.hint, x.shape[d], [c.b.scalar(-math.inf, w).broadcast_to(shape)], body)
    return c.cast(_lead_to(out, d), t)


@op("diff")
def diff(c: Ctx, x: Val, n: int = 1, dim: int = -1, prepend: Val | None = None, append: Val | None = None) -> Val:
    from dlc.frontend.torch_views import concat

    d = c.dim(dim, x.rank)
    parts = [p for p in (prepend, x, append) if p is not None]
    y = concat(c, parts, d) if len(parts) > 1 else x
    for _ in range(n):
        size = y.shape[d] - 1
        a, b = y.slice(d, 1, size), y.slice(d, 0, size)
        name = "ne" if y.dtype == BOOL else "sub"
        y = c.b.map(c.hint, lambda p, q, name=name: apply(name, p, q), a, b, dtype=y.dtype)
    return y
