"""ATen operators that are no Einsum: sorting, top-k, nonzero, unique; and integers read from tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlc.frontend.torch_context import Ctx, op
from dlc.ir.dtype import BOOL, F64, I64
from dlc.ir.expr import apply
from dlc.ir.extent import IntExpr, int_expr, sym
from dlc.ir.view import Val


def sorted_of(c: Ctx, x: Val, d: int, descending: bool) -> tuple[Val, Val]:
    """Values along `d` in order (stable), and where each was."""
    attrs: dict[str, int | float | bool | str] = {"axis": d, "descending": descending, "stable": True}
    results = [(c.hint, x.dtype, x.shape), (f"{c.hint}_index", I64, x.shape)]
    values, indices = c.b.library("sort", [x], results, attrs)
    return values, indices


@op("sort", "sort.stable", "argsort", "argsort.stable", "msort")
def sort(c: Ctx, x: Val, dim: int = -1, descending: bool = False, *, stable: Any = None) -> Any:
    if c.target.startswith("aten.msort"):
        dim = 0
    if x.rank == 0:
        pair: tuple[Val, Val] = (x, c.b.scalar(0, I64))
    else:
        pair = sorted_of(c, x, c.dim(dim, x.rank), descending)
    return pair[1] if "argsort" in c.target else pair[0] if "msort" in c.target else pair


@op("topk")
def topk(c: Ctx, x: Val, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Val, Val]:
    if x.rank == 0:
        return x, c.b.scalar(0, I64)
    d, size = c.dim(dim, x.rank), int_expr(k)
    shape = [*x.shape[:d], size, *x.shape[d + 1 :]]
    attrs: dict[str, int | float | bool | str] = {"axis": d, "largest": largest, "sorted": True}
    if size.const is not None:
        attrs["k"] = size.const
    values, indices = c.b.library("topk", [x], [(c.hint, x.dtype, shape), (f"{c.hint}_index", I64, shape)], attrs)
    return values, indices


@op("kthvalue", "median.dim", "median")
def kthvalue(c: Ctx, x: Val, *args: Any, **_: Any) -> Any:
    if x.rank == 0:
        return x if c.target == "aten.median.default" else (x, c.b.scalar(0, I64))
    if c.target == "aten.median.default":
        flat = x.reshape([x.elements])
        values, _index = sorted_of(c, flat, 0, False)
        return values.select(0, (x.elements - 1) // 2)
    if "median" in c.target:
        dim, keepdim = (*args, False)[:2] if args else (-1, False)
        d = c.dim(dim, x.rank)
        place = (x.shape[d] - 1) // 2
    else:
        k, dim, keepdim = (*args, *(-1, False)[len(args) - 1 :])[:3]
        d = c.dim(dim, x.rank)
        place = int_expr(k) - 1
    values, indices = sorted_of(c, x, d, False)
    found = values.select(d, place), indices.select(d, place)
    return tuple(v.unsqueeze(d) for v in found) if keepdim else found


def nonzero_of(c: Ctx, x: Val, symbols: Sequence[Any]) -> Val:
    """Coordinates of the elements that are not zero, i64[rank, n]; `n` is a new symbol, that of the traced shape if known."""
    source = x.reshape([1]) if x.rank == 0 else x
    count = source.elements
    name = c.b.fresh(f"{c.hint}_n")
    (found,) = c.b.library(
        "nonzero", [source], [(f"{c.hint}_at", I64, [source.rank, sym(name)])], binds=[(name, 0, count.const)]
    )
    for s in symbols:
        c.extents.symbols[s] = sym(name)
    return found


@op("nonzero", "nonzero_numpy", "argwhere", "where")
def nonzero(c: Ctx, x: Val) -> Any:
    found = nonzero_of(c, x, c.graph.unbacked(c.meta))
    if c.target in ("aten.nonzero_numpy.default", "aten.where.default"):
        return [found.select(0, d) for d in range(max(x.rank, 1))]
    if x.rank == 0:
        return found.transpose(0, 1).slice(1, 0, 0)
    return found.transpose(0, 1)


@op("unique_dim", "_unique2", "unique_consecutive", "_unique", "unique_dim_consecutive")
def unique(
    c: Ctx, x: Val, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False, *_: Any, **__: Any
) -> Any:
    if c.target != "aten._unique2.default":
        raise c.unsupported("only torch.unique without dim is imported")
    m, name = x.elements, c.b.fresh(f"{c.hint}_n")
    n = sym(name)
    rows = x.reshape([m, 1])
    results: list[tuple[str, Any, list[IntExpr]]] = [
        (c.hint, x.dtype, [n, int_expr(1)]), ("first", I64, [n]), ("inverse", I64, [m]), ("counts", I64, [n])
    ]  # fmt: skip
    values, _first, inverse, counts = c.b.library(
        "unique", [rows], results, {"sorted": True}, binds=[(name, 0, m.const)]
    )
    for s in c.graph.unbacked(c.meta):
        c.extents.symbols[s] = n
    none = c.b.scalar(0, I64).broadcast_to([0])
    return values.reshape([n]), inverse.reshape(x.shape) if return_inverse else none, counts if return_counts else none


@op("searchsorted.Tensor", "bucketize.Tensor", "bucketize.Scalar", "searchsorted.Scalar")
def searchsorted(
    c: Ctx, *args: Any, out_int32: bool = False, right: bool = False, side: Any = None, sorter: Any = None
) -> Val:
    """The number of boundaries below each value: a comparison summed, since Einsums have no early exit."""
    from dlc.ir.expr import Cast, Expr

    bucket = "bucketize" in c.target
    values, edges = (args[0], args[1]) if bucket else (args[1], args[0])
    if sorter is not None:
        raise c.unsupported("a sorter is given")
    common = c.common(values, edges)
    v, e = c.val(values, common), c.val(edges, common)
    if not bucket and e.rank > 1:
        raise c.unsupported("the boundaries have more than one dimension")
    below = "le" if (right or side == "right") else "lt"
    t = c.dtype

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        return Cast(t, apply(below, e.at((r[0],)), v.at(i)))

    return c.b.reduce(c.hint, "sum", v.shape, [e.shape[0]], element, t)


@op("item", "_local_scalar_dense")
def item(c: Ctx, x: Val) -> Any:
    """A tensor's value as a Python number: an integer becomes an extent, a float stays a tensor of rank 0."""
    flat = x.reshape([])
    if x.dtype.is_float or x.dtype == BOOL:
        return flat
    symbols = c.graph.unbacked(c.meta)
    lo, hi = c.graph.range_of(symbols)
    bound = c.b.bind(c.cast(flat, I64), c.hint, lo, hi)
    for s in symbols:
        c.extents.symbols[s] = bound
    return bound


@op("histc")
def histc(c: Ctx, x: Val, bins: int = 100, min: Any = 0, max: Any = 0) -> Val:
    """Counts of the elements in `bins` equal parts of [min, max]; the last part has both its ends."""
    from dlc.ir.expr import Cast, Expr, Index, const

    if min == max:
        raise c.unsupported("the range is that of the data")
    t = c.dtype
    work = t if t.is_float else F64
    flat = c.cast(x.reshape([x.elements]), work)
    lo, hi = const(float(min), work), const(float(max), work)
    scale = const(bins / (float(max) - float(min)), work)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        e = flat.at(r)
        place = apply("min", Cast(I64, apply("floor", apply("mul", apply("sub", e, lo), scale))), const(bins - 1, I64))
        inside = apply("and", apply("ge", e, lo), apply("le", e, hi))
        return Cast(t, apply("and", inside, apply("eq", place, Index(i[0]))))

    return c.b.reduce(c.hint, "sum", c.shape, [x.elements], element, t)


@op("bincount", "linalg_inv", "linalg_inv_ex", "linalg_solve", "linalg_svd", "linalg_eigh", "linalg_qr", "linalg_cholesky",
    "linalg_det", "inverse", "cholesky")  # fmt: skip
def not_yet(c: Ctx, *_: Any, **__: Any) -> Val:
    raise c.unsupported("this library operation is not imported yet")
