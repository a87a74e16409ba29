"""Gather, scatter, one-hot, compress, and the sorting operators (library operations)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlc.frontend.onnx_ops.registry import Ctx, Result, op, same_dtype
from dlc.frontend.onnx_value import Tensor
from dlc.ir.dtype import BOOL, F32, I64, DType
from dlc.ir.expr import Cast, Expr, Index, apply, const, index_value
from dlc.ir.extent import IntExpr, int_expr, product, sym
from dlc.ir.view import Val


def as_i64(e: Expr, dtype: DType) -> Expr:
    return e if dtype == I64 else Cast(I64, e, "wrap")


def from_back(e: Expr, dtype: DType, extent: IntExpr, safe: bool = False) -> IntExpr:
    """An index that may count from the back, as a position; `safe` when it is known not to be negative."""
    wide = as_i64(e, dtype)
    if safe or dtype.kind == "u":
        return index_value(wide)
    return index_value(apply("select", apply("lt", wide, const(0, I64)), apply("add", wide, Index(extent)), wide))


def never_negative(t: Tensor) -> bool:
    numbers = t.numbers
    return numbers is not None and (numbers.size == 0 or int(numbers.min()) >= 0)


def need_index(c: Ctx, i: int) -> Val:
    x = c.x(i)
    if not x.dtype.is_int:
        c.bad(f"its indices have type {x.dtype}")
    return x


# --- gather ----------------------------------------------------------------------------------------------------------


@op("Gather")
def gather(c: Ctx) -> Result:
    x, t = c.x(0), c.tensor(1)
    axis = c.axis(c.int_("axis", 0), x.rank)
    extent = x.shape[axis]
    plain = t.static
    if plain is not None and plain.ndim == 0:
        at = plain[()] if isinstance(plain[()], IntExpr) else int_expr(int(plain[()]))
        if at.const is not None and extent.const is not None and not -extent.const <= at.const < extent.const:
            c.bad(f"index {at} is out of range for extent {extent}")
        if at.const is not None:
            c.graph.demands.at_least(extent, at.const + 1 if at.const >= 0 else -at.const)
        return x.select(axis, extent + at if at.const is not None and at.const < 0 else at)
    index, safe = need_index(c, 1), never_negative(t)
    check_static(c, t, extent)
    n = index.rank

    def element(*i: IntExpr) -> Expr:
        at = from_back(index.at(i[axis : axis + n]), index.dtype, extent, safe)
        return x.at((*i[:axis], at, *i[axis + n :]))

    return c.b.compute(c.hint, [*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]], element, x.dtype)


def check_static(c: Ctx, t: Tensor, extent: IntExpr) -> None:
    numbers = t.numbers
    if numbers is not None and numbers.size and extent.const is not None:
        if numbers.min() < -extent.const or numbers.max() >= extent.const:
            c.bad(f"an index is out of range for extent {extent}")


@op("GatherElements")
def gather_elements(c: Ctx) -> Result:
    x, index = c.x(0), need_index(c, 1)
    axis = c.axis(c.int_("axis", 0), x.rank)
    if index.rank != x.rank:
        c.bad(f"its indices have rank {index.rank}, its input {x.rank}")
    safe = never_negative(c.tensor(1))
    check_static(c, c.tensor(1), x.shape[axis])
    agree_beside(c, x, index, axis)

    def element(*i: IntExpr) -> Expr:
        return x.at((*i[:axis], from_back(index.at(i), index.dtype, x.shape[axis], safe), *i[axis + 1 :]))

    return c.b.compute(c.hint, index.shape, element, x.dtype)


def agree_beside(c: Ctx, x: Val, index: Val, axis: int) -> None:
    """Indices may cover a part of the other dimensions; symbolic extents are taken to cover them, so that reads are proven."""
    for d, (e, f) in enumerate(zip(x.shape, index.shape, strict=True)):
        if d != axis and e != f and (e.const is None or f.const is None):
            c.b.equate(e, f)


@op("GatherND")
def gather_nd(c: Ctx) -> Result:
    x, index = c.x(0), need_index(c, 1)
    batch = c.int_("batch_dims", 0)
    if index.rank < 1 or not 0 <= batch < min(index.rank, x.rank):
        c.bad(f"batch_dims {batch} does not fit ranks {x.rank} and {index.rank}")
    (depth,) = c.known([index.shape[-1]], "the last extent of its indices")
    if depth > x.rank - batch:
        c.bad(f"indices of {depth} parts into rank {x.rank}")
    lead = index.rank - 1

    def element(*i: IntExpr) -> Expr:
        parts = [from_back(index.at((*i[:lead], int_expr(n))), index.dtype, x.shape[batch + n]) for n in range(depth)]
        return x.at((*i[:batch], *parts, *i[lead:]))

    return c.b.compute(c.hint, [*index.shape[:-1], *x.shape[batch + depth :]], element, x.dtype)


@op("Compress")
def compress(c: Ctx) -> Result:
    x, keep = c.x(0), c.x(1)
    if keep.dtype != BOOL or keep.rank != 1:
        c.bad("its condition must be a one-dimensional boolean")
    axis = c.int_("axis", None)
    flat = x.reshape([x.elements]) if axis is None else x
    d = 0 if axis is None else c.axis(axis, x.rank)
    numbers = c.tensor(1).numbers
    if numbers is not None:
        places = c.b.constant(np.flatnonzero(numbers).astype(np.int64))
    else:
        places = nonzero(c, keep).select(0, 0)
    shape = [*flat.shape[:d], places.shape[0], *flat.shape[d + 1 :]]
    return c.b.compute(c.hint, shape, lambda *i: flat.at((*i[:d], places.gather_value(i[d]), *i[d + 1 :])), x.dtype)


# --- scatter ---------------------------------------------------------------------------------------------------------

_FOLDS = {"none": "set", "add": "sum", "mul": "prod", "max": "max", "min": "min"}


def fold_of(c: Ctx) -> str:
    name = c.str_("reduction", "none")
    if name not in _FOLDS:
        c.bad(f"reduction {name!r} is unknown")
    return _FOLDS[name]


@op("Scatter", "ScatterElements")
def scatter_elements(c: Ctx) -> Result:
    x, index, updates = c.x(0), need_index(c, 1), c.x(2)
    same_dtype(c, x, updates)
    axis = c.axis(c.int_("axis", 0), x.rank)
    if index.rank != x.rank or updates.rank != x.rank:
        c.bad(f"ranks {x.rank}, {index.rank} and {updates.rank} differ")
    check_static(c, c.tensor(1), x.shape[axis])
    safe = never_negative(c.tensor(1))
    agree_beside(c, x, index, axis)
    for e, f in zip(index.shape, updates.shape, strict=True):
        c.b.equate(e, f)

    def place(*i: IntExpr) -> Sequence[IntExpr]:
        return (*i[:axis], from_back(index.at(i), index.dtype, x.shape[axis], safe), *i[axis + 1 :])

    return c.b.scatter(c.hint, x, index.shape, place, lambda *i: updates.at(i), fold_of(c))


@op("ScatterND")
def scatter_nd(c: Ctx) -> Result:
    x, index, updates = c.x(0), need_index(c, 1), c.x(2)
    same_dtype(c, x, updates)
    (depth,) = c.known([index.shape[-1]], "the last extent of its indices")
    lead = index.rank - 1
    if depth > x.rank or updates.rank != lead + x.rank - depth:
        c.bad(f"ranks {x.rank}, {index.rank} and {updates.rank} do not fit")
    for e, f in zip((*index.shape[:lead], *x.shape[depth:]), updates.shape, strict=True):
        if c.b.equate(e, f) != c.b.equate(f, e) or (e != f and e.const is not None and f.const is not None):
            c.refuse(f"the extents {e} and {f} of its indices and updates are not known to agree")

    def place(*i: IntExpr) -> Sequence[IntExpr]:
        parts = [from_back(index.at((*i[:lead], int_expr(n))), index.dtype, x.shape[n]) for n in range(depth)]
        return (*parts, *i[lead:])

    return c.b.scatter(c.hint, x, updates.shape, place, lambda *i: updates.at(i), fold_of(c))


@op("TensorScatter")
def tensor_scatter(c: Ctx) -> Result:
    cache, update = c.x(0), c.x(1)
    starts = c.opt(2)
    axis = c.axis(c.int_("axis", -2), cache.rank)
    mode = c.str_("mode", "linear")
    if mode not in ("linear", "circular"):
        c.bad(f"mode {mode!r} is unknown")

    def place(*i: IntExpr) -> Sequence[IntExpr]:
        start = int_expr(0) if starts is None else index_value(as_i64(starts(i[0]), starts.dtype))
        at = start + i[axis]
        return (*i[:axis], at % cache.shape[axis] if mode == "circular" else at, *i[axis + 1 :])

    return c.b.scatter(c.hint, cache, update.shape, place, lambda *i: update.at(i))


# --- one-hot ---------------------------------------------------------------------------------------------------------


@op("OneHot")
def one_hot(c: Ctx) -> Result:
    index, values = c.x(0), c.x(2)
    if not index.dtype.is_float and c.tensor(1).dtype.is_int:
        depth = c.bound(1, "its depth")[0]
    else:
        depth = int_expr(int(c.scalar_number(1, "its depth")))
    axis = c.int_("axis", -1)
    if not -index.rank - 1 <= axis <= index.rank:
        c.bad(f"axis {axis} is out of range for rank {index.rank}")
    d = axis + index.rank + 1 if axis < 0 else axis

    def element(*i: IntExpr) -> Expr:
        e = index.at((*i[:d], *i[d + 1 :]))
        wide = Cast(I64, e) if index.dtype != I64 else e
        at = apply("select", apply("lt", wide, const(0, I64)), apply("add", wide, Index(depth)), wide)
        return apply("select", apply("eq", at, Index(i[d])), values(1), values(0))

    return c.b.compute(c.hint, [*index.shape[:d], depth, *index.shape[d:]], element, values.dtype)


# --- library operations ----------------------------------------------------------------------------------------------


def fresh_extent(c: Ctx, hint: str) -> str:
    return c.b.fresh(hint)


def nonzero(c: Ctx, x: Val) -> Val:
    """Indices of the elements that are not zero, i64[rank, n] with n bound at run time."""
    n = fresh_extent(c, f"{c.hint}_n")
    limit = x.elements.const
    (found,) = c.b.library("nonzero", [x], [(c.hint, I64, [x.rank, sym(n)])], {}, [(n, 0, limit)])
    return found


@op("NonZero")
def non_zero(c: Ctx) -> Result:
    x = c.x(0)
    return nonzero(c, x.reshape([1]) if x.rank == 0 else x)


@op("TopK")
def top_k(c: Ctx) -> Result:
    x = c.x(0)
    axis = c.axis(c.int_("axis", -1), x.rank)
    k = c.bound(1, "its k")[0] if c.version >= 10 else int_expr(c.int_("k"))
    extent = x.shape[axis]
    if k.const is not None and (k.const < 0 or (extent.const is not None and k.const > extent.const)):
        c.bad(f"k is {k}, the extent {extent}")
    shape = [*x.shape[:axis], k, *x.shape[axis + 1 :]]
    attrs: dict[str, int | float | bool | str] = {"axis": axis}
    if k.const is not None:
        attrs["k"] = k.const
    attrs |= {"largest": c.flag("largest", 1), "sorted": c.flag("sorted", 1)}
    return c.b.library("topk", [x], [(c.hint, x.dtype, shape), (f"{c.hint}_index", I64, shape)], attrs)


@op("Unique")
def unique(c: Ctx) -> Result:
    x = c.x(0)
    axis = c.int_("axis", None)
    if axis is None:
        rows = x.reshape([x.elements, 1])
        rest: Sequence[IntExpr] = ()
    else:
        d = c.axis(axis, x.rank)
        moved = x.permute([d, *(n for n in range(x.rank) if n != d)])
        rest = moved.shape[1:]
        rows = moved.reshape([moved.shape[0], product(rest)])
    u = fresh_extent(c, f"{c.hint}_n")
    m, width = rows.shape
    results = [
        (c.hint, x.dtype, [sym(u), width]),
        (f"{c.hint}_first", I64, [sym(u)]),
        (f"{c.hint}_inverse", I64, [m]),
        (f"{c.hint}_counts", I64, [sym(u)]),
    ]
    values, first, inverse, counts = c.b.library(
        "unique", [rows], results, {"sorted": c.flag("sorted", 1)}, [(u, 0, m.const)]
    )
    if axis is None:
        return values.reshape([sym(u)]), first, inverse, counts
    shaped = values.reshape([sym(u), *rest])
    d = c.axis(axis, x.rank)
    return shaped.permute([*range(1, d + 1), 0, *range(d + 1, x.rank)]), first, inverse, counts


@op("NonMaxSuppression")
def non_max_suppression(c: Ctx) -> Result:
    boxes, scores = c.x(0), c.x(1)
    limit = one_number(c, 2, 0, I64)
    iou = one_number(c, 3, 0.0, F32)
    score = one_number(c, 4, 0.0, F32)
    n = fresh_extent(c, f"{c.hint}_n")
    attrs: dict[str, int | float | bool | str] = {
        "center_point_box": c.flag("center_point_box", 0),
        "has_score": c.has(4),
    }
    bound = product([scores.shape[0], scores.shape[1], scores.shape[2]]).const
    (found,) = c.b.library(
        "nms", [boxes, scores, limit, iou, score], [(c.hint, I64, [sym(n), 3])], attrs, [(n, 0, bound)]
    )
    return found


def one_number(c: Ctx, i: int, default: float, dtype: DType) -> Val:
    """Input `i` as a scalar, or a default."""
    if not c.has(i):
        return c.b.scalar(default if dtype.is_float else int(default), dtype)
    x = c.x(i)
    return x.view((), lambda: [0] * x.rank)
