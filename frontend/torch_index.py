"""ATen indexing: gathers read at another tensor's value, scatters write there. Negative indices count from the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlc.frontend.torch_context import Ctx, Operand, add, index_cmp, mul, op, select, when, wrapped_index
from dlc.frontend.torch_views import from_front, slice_bounds
from dlc.ir.dtype import BOOL, I64
from dlc.ir.expr import Expr, apply, const, index_value
from dlc.ir.extent import IntExpr, IntLike, has_value
from dlc.ir.view import Val


def at_index(c: Ctx, index: Val, i: Sequence[IntExpr], extent: IntExpr) -> IntExpr:
    """The element `i` of an integer tensor as an index below `extent`, counted from the front."""
    return wrapped_index(c.cast(index, I64).at(tuple(i)), extent)


def settled(c: Ctx, x: Val) -> Val:
    """`x` as it is when it is read at plain indices, else computed: a gather is worth a tensor of its own."""
    if x.name is not None:
        return x
    from dlc.ir.expr import Access
    from dlc.ir.extent import var

    probe = x.at(tuple(var(f"i{n}") for n in range(x.rank)))
    plain = isinstance(probe, Access) and not any(has_value(i) for i in probe.index)
    return x if plain else c.b.materialize(x, c.hint)


@op("embedding")
def embedding(
    c: Ctx, weight: Val, indices: Val, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Val:
    wide = c.cast(indices, I64)
    shape = [*indices.shape, weight.shape[1]]
    return settled(c, weight.view(shape, lambda *i: [index_value(_plain(wide.at(i[:-1]))), i[-1]]))


def _plain(e: Expr) -> Expr:
    from dlc.ir.expr import Cast, Index

    return e.arg if isinstance(e, Cast) and e.dtype == I64 and isinstance(e.arg, Index) else e


@op("embedding_bag", "_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(c: Ctx, *_: Any, **__: Any) -> Val:
    raise c.unsupported("bags of embeddings are not imported yet")


@op("index_select")
def index_select(c: Ctx, x: Val, dim: int, index: Val) -> Val:
    d = c.dim(dim, x.rank)
    if x.rank == 0:
        return x
    idx = index.reshape([1]) if index.rank == 0 else index
    shape = [*x.shape[:d], idx.shape[0], *x.shape[d + 1 :]]
    return settled(c, x.view(shape, lambda *i: [*i[:d], at_index(c, idx, [i[d]], x.shape[d]), *i[d + 1 :]]))


@op("gather", "take_along_dim")
def gather(c: Ctx, x: Val, dim: Any, index: Any, *, sparse_grad: bool = False) -> Val:
    if "take_along" in c.target:
        dim, index = index, dim
        if dim is None:
            x, index, dim = x.reshape([x.elements]), index.reshape([index.elements]), 0
        d = c.dim(dim, x.rank)
        lead = c.broadcast(*(_without(v, d) for v in (x, index)))
        x = x.broadcast_to([*lead[:d], x.shape[d], *lead[d:]])
        index = index.broadcast_to([*lead[:d], index.shape[d], *lead[d:]])
    if x.rank == 0:
        return x
    d = c.dim(dim, x.rank)
    index = index.unsqueeze(0) if index.rank == 0 else index
    y = x.view(index.shape, lambda *i: [*i[:d], at_index(c, index, i, x.shape[d]), *i[d + 1 :]])
    return settled(c, y).reshape(c.shape)


def _without(x: Val, d: int) -> Val:
    return x.view([*x.shape[:d], *x.shape[d + 1 :]], lambda *i: [*i[:d], 0, *i[d:]])


@op("take")
def take(c: Ctx, x: Val, index: Val) -> Val:
    flat = x.reshape([x.elements])
    return settled(c, flat.view(index.shape, lambda *i: [at_index(c, index, i, flat.shape[0])]))


# --- advanced indexing -----------------------------------------------------------------------------------------------


def advanced(c: Ctx, x: Val, indices: Sequence[Val | None]) -> tuple[list[Val], list[int], int, list[IntExpr]]:
    """Index tensors broadcast together, the dimensions they index, where theirs go, and their common shape.

    A boolean tensor becomes the coordinates of its true elements.
    """
    found: list[Val] = []
    dims: list[int] = []
    d = 0
    for index in indices:
        if index is None:
            d += 1
            continue
        for part in _coordinates(c, index) if index.dtype == BOOL else [index]:
            found.append(part)
            dims.append(d)
            d += 1
    shape = c.broadcast(*found)
    wide = [v.broadcast_to(shape) for v in found]
    adjacent = all(b == a + 1 for a, b in zip(dims, dims[1:], strict=False))
    return wide, dims, dims[0] if adjacent else 0, list(shape)


def _coordinates(c: Ctx, mask: Val) -> list[Val]:
    from dlc.frontend.torch_library import nonzero_of

    found = nonzero_of(c, mask, c.graph.unbacked(c.meta))
    return [found.select(0, d) for d in range(mask.rank)]


@op("index.Tensor", "_unsafe_index.Tensor")
def index_tensor(c: Ctx, x: Val, indices: Sequence[Val | None]) -> Val:
    found, dims, place, shape = advanced(c, x, indices)
    rest = [d for d in range(x.rank) if d not in dims]
    n = len(shape)
    out = [x.shape[d] for d in rest]

    def index(*i: IntExpr) -> list[IntLike]:
        own, others = i[place : place + n], [*i[:place], *i[place + n :]]
        at: dict[int, IntLike] = dict(zip(rest, others, strict=True))
        for d, v in zip(dims, found, strict=True):
            at[d] = at_index(c, v, own, x.shape[d])
        return [at[d] for d in range(x.rank)]

    return settled(c, x.view([*out[:place], *shape, *out[place:]], index))


@op("index_put", "_unsafe_index_put", "_index_put_impl")
def index_put(
    c: Ctx, x: Val, indices: Sequence[Val | None], values: Val, accumulate: bool = False, unsafe: bool = False
) -> Val:
    values = c.cast(values, x.dtype)
    mask = indices[0] if len(indices) == 1 else None
    single = values.elements.const == 1
    if mask is not None and mask.dtype == BOOL and single and not accumulate:
        grown = mask.reshape([*mask.shape, *[1] * (x.rank - mask.rank)])
        flat = values.reshape([])
        return c.map(c.hint, lambda m, a, v: select(m, v, a), grown, x, flat, dtype=x.dtype)
    found, dims, place, shape = advanced(c, x, indices)
    rest = [d for d in range(x.rank) if d not in dims]
    n = len(shape)
    out = [x.shape[d] for d in rest]
    over = [*out[:place], *shape, *out[place:]]
    source = values.broadcast_to(over)

    def index(*i: IntExpr) -> list[IntLike]:
        own, others = i[place : place + n], [*i[:place], *i[place + n :]]
        at: dict[int, IntLike] = dict(zip(rest, others, strict=True))
        for d, v in zip(dims, found, strict=True):
            at[d] = at_index(c, v, own, x.shape[d])
        return [at[d] for d in range(x.rank)]

    return c.b.scatter(c.hint, x, over, index, lambda *i: source.at(i), "sum" if accumulate else "set")


# --- scatters --------------------------------------------------------------------------------------------------------


def _scatter(c: Ctx, x: Val, dim: int, index: Val, source: Val, fold: str) -> Val:
    if x.rank == 0:
        value = source if source.rank == 0 else source.reshape([])
        if fold == "set":
            return c.cast(value, x.dtype)
        name = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}[fold]
        return c.map(c.hint, lambda a, v: apply(name, a, v), x, c.cast(value, x.dtype), dtype=x.dtype)
    d = c.dim(dim, x.rank)
    idx = index.unsqueeze(0) if index.rank == 0 else index
    src = c.cast(source if source.rank or not index.rank else source.broadcast_to(idx.shape), x.dtype)
    src = src.unsqueeze(0) if src.rank == 0 else src
    return c.b.scatter(
        c.hint,
        x,
        idx.shape,
        lambda *i: [*i[:d], at_index(c, idx, i, x.shape[d]), *i[d + 1 :]],
        lambda *i: src.at(i),
        fold,
    )


@op("scatter.src", "scatter.value")
def scatter(c: Ctx, x: Val, dim: int, index: Val, src: Operand) -> Val:
    return _scatter(c, x, dim, index, c.val(src, x.dtype), "set")


@op("scatter.reduce", "scatter.value_reduce")
def scatter_with(c: Ctx, x: Val, dim: int, index: Val, src: Operand, *, reduce: str) -> Val:
    return _scatter(c, x, dim, index, c.val(src, x.dtype), {"add": "sum", "multiply": "prod"}[reduce])


@op("scatter_add")
def scatter_add(c: Ctx, x: Val, dim: int, index: Val, src: Val) -> Val:
    return _scatter(c, x, dim, index, src, "sum")


@op("scatter_reduce.two")
def scatter_reduce(c: Ctx, x: Val, dim: int, index: Val, src: Val, reduce: str, *, include_self: bool = True) -> Val:
    fold = {"sum": "sum", "prod": "prod", "amax": "max", "amin": "min", "mean": "sum"}[reduce]
    base = x
    one = c.b.scalar(1, I64)
    if not include_self:
        from dlc.ir.monoid import MONOIDS

        touched = _scatter(c, c.b.scalar(0, I64).broadcast_to(x.shape), dim, index, one, "sum")
        start = MONOIDS[fold].identity((x.dtype,))[0]
        base = c.map("fresh", lambda a, n: select(apply("gt", n, const(0, I64)), start, a), x, touched, dtype=x.dtype)
    out = _scatter(c, base, dim, index, src, fold)
    if reduce != "mean":
        return out
    count = _scatter(c, c.b.scalar(int(include_self), I64).broadcast_to(x.shape), dim, index, one, "sum")
    name = "div" if x.dtype.is_float else "div_floor"

    def element(a: Expr, n: Expr) -> Expr:
        return apply(name, a, apply("max", n, const(1, x.dtype)))

    return c.map(c.hint, element, out, c.cast(count, x.dtype), dtype=x.dtype)


@op("index_add", "index_copy", "index_fill.int_Scalar", "index_fill.int_Tensor", "index_reduce")
def index_add(c: Ctx, x: Val, dim: int, index: Val, source: Operand, reduce: str = "", *, alpha: Any = 1,
              include_self: bool = True) -> Val:  # fmt: skip
    kind = c.target.split(".")[1].rstrip("_")
    src = c.val(source, x.dtype)
    if kind == "index_reduce":
        if x.rank == 0:
            raise c.unsupported("index_reduce of a tensor without dimensions is not imported yet")
        d = c.dim(dim, x.rank)
        grid = index.reshape([1, index.elements, 1]).broadcast_to([1, index.elements, 1])
        rows = grid.view([*x.shape[:d], index.elements, *x.shape[d + 1 :]], lambda *i: [0, i[d], 0])
        return scatter_reduce(c, x, dim, rows, src, reduce, include_self=include_self)
    if x.rank == 0:
        if kind != "index_add":
            return src.reshape([])
        k = c.val(alpha, x.dtype)
        return c.map(c.hint, lambda a, v, f: add(a, mul(v, f)), x, src.reshape([]), k, dtype=x.dtype)
    d = c.dim(dim, x.rank)
    idx = index.reshape([1]) if index.rank == 0 else index
    over = [*x.shape[:d], idx.shape[0], *x.shape[d + 1 :]]
    src = src.broadcast_to(over)
    factor = c.val(alpha, x.dtype).at(())
    plain = isinstance(alpha, (int, float)) and alpha == 1
    return c.b.scatter(
        c.hint,
        x,
        over,
        lambda *i: [*i[:d], at_index(c, idx, [i[d]], x.shape[d]), *i[d + 1 :]],
        lambda *i: src.at(i) if plain else mul(src.at(i), factor),
        "sum" if kind == "index_add" else "set",
    )


@op("masked_scatter", "masked_select")
def masked_select(c: Ctx, x: Val, mask: Val, source: Val | None = None) -> Val:
    shape = c.broadcast(x, mask)
    a, m = x.broadcast_to(shape), c.cast(mask, BOOL).broadcast_to(shape)
    if source is None:
        if not shape:
            a, m, shape = a.reshape([1]), m.reshape([1]), a.reshape([1]).shape
        found = _coordinates(c, m)
        return settled(
            c, a.view(found[0].shape, lambda *i: [at_index(c, v, i, e) for v, e in zip(found, shape, strict=True)])
        )
    # The n-th true element takes the n-th of the source: its place is a running count.
    flags = c.cast(m, I64).reshape([a.elements])
    start = c.b.scalar(-1, I64)

    def body(t: IntExpr, states: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        count = c.b.map("count", add, states[0], flags.select(0, t), dtype=I64)
        return [count], [count]

    _, (order,) = c.b.scan(f"{c.hint}_count", a.elements, [start], body)
    places = order.reshape(shape)
    flat = c.cast(source, x.dtype).reshape([source.elements])

    def element(*i: IntExpr) -> Expr:
        place = apply("max", places.at(i), const(0, I64))
        return when(m.at(i), flat.at((index_value(place),)), a.at(i))

    return c.b.compute(c.hint, shape, element, x.dtype)


# --- writes at plain places ------------------------------------------------------------------------------------------


@op("slice_scatter")
def slice_scatter(c: Ctx, x: Val, src: Val, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Val:
    d = c.dim(dim, x.rank)
    lo, size = slice_bounds(c, x.shape[d], start, end, None, step)
    s = c.cast(src, x.dtype).broadcast_to([*x.shape[:d], size, *x.shape[d + 1 :]])

    def element(*i: IntExpr) -> Expr:
        at = i[d] - lo
        guard = apply("and", index_cmp("ge", at, 0), index_cmp("lt", at, size * step))
        if step != 1:
            guard = apply("and", guard, index_cmp("eq", at % step, 0))
        return when(guard, s.at((*i[:d], at // step, *i[d + 1 :])), x.at(i))

    return c.b.compute(c.hint, x.shape, element, x.dtype)


@op("select_scatter")
def select_scatter(c: Ctx, x: Val, src: Val, dim: int, index: Any) -> Val:
    d = c.dim(dim, x.rank)
    place = from_front(c, index, x.shape[d])
    s = c.cast(src, x.dtype)

    def element(*i: IntExpr) -> Expr:
        return when(index_cmp("eq", i[d], place), s.at((*i[:d], *i[d + 1 :])), x.at(i))

    return c.b.compute(c.hint, x.shape, element, x.dtype)


@op("diagonal_scatter")
def diagonal_scatter(c: Ctx, x: Val, src: Val, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Val:
    a, b = c.dim(dim1, x.rank), c.dim(dim2, x.rank)
    rest = [d for d in range(x.rank) if d not in (a, b)]
    s = c.cast(src, x.dtype)

    def element(*i: IntExpr) -> Expr:
        row = i[a] - max(-offset, 0)
        inside = index_cmp("eq", i[b] - i[a], offset)
        return when(inside, s.at((*(i[d] for d in rest), row)), x.at(i))

    return c.b.compute(c.hint, x.shape, element, x.dtype)
