"""Pieces of random programs: gathers, scatters, windows."""

from __future__ import annotations

from dlc.ir.dtype import BF16, F16, F32, F64, I32, I64, DType
from dlc.ir.expr import Cast, Expr, Index, access, apply, const
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, value
from tests.fuzz.generate import INTS, Extent, Gen, Piece, Tensor, Unfit
from tests.fuzz.pieces import expression


def index_tensor(g: Gen, shape: list[Extent], n: int, extent: IntExpr, lo: int | None = None) -> Tensor:
    """Integers within `lo`..n-1, `n` being the value of `extent`."""
    dtype = g.pick((I64, I64, I32))
    return g.input(dtype, shape, 0 if lo is None else lo, n - 1, hint="ix", below=extent)


def as_index(e: Expr, dtype: DType) -> IntExpr:
    return value(e if dtype == I64 else Cast(I64, e))


def gather(g: Gen) -> None:
    t = g.some(None, (1, 3))
    d = g.rng.randrange(t.rank)
    n = t.shape[d]
    if n == 0:
        raise Unfit
    dims = g.shape(g.rng.randint(0, 2), 200)
    kind = g.pick(("plain", "negative", "elementwise", "clamp", "two-level"))
    g.tag("gather", f"gather:{kind}")
    if kind == "elementwise":  # torch.gather: the index tensor has the result's shape
        dims = g.extents(t)
        dims[d] = g.extent(0, 17)
        ix = index_tensor(g, dims, n, t.val.shape[d])
        out = g.builder.compute(
            "g",
            [e.expr for e in dims],
            lambda *i: t.val.at((*i[:d], as_index(ix.val.at(i), ix.dtype), *i[d + 1 :])),
            t.dtype,
        )
        g.add(out, [e.value for e in dims], t.clean)
        return
    ix = index_tensor(g, dims, n, t.val.shape[d], -n if kind == "negative" else (-5 if kind == "clamp" else None))
    if (
        kind == "plain"
        and g.inputs[-1].size
        and t.shape[:d].count(0) + t.shape[d + 1 :].count(0) == 0
        and g.chance(0.6)
    ):
        g.tag("gather:outside")  # must be refused at run time
        g.inputs[-1].reshape(-1)[g.rng.randrange(g.inputs[-1].size)] = g.pick((n, -1, n + 3))
    extent = t.val.shape[d]
    inner = index_tensor(g, [Extent(extent, n)], n, extent) if kind == "two-level" else None

    def at(i: tuple[IntExpr, ...]) -> IntExpr:
        e = ix.val.at(i)
        if ix.dtype != I64:
            e = Cast(I64, e)
        match kind:
            case "negative":
                e = apply("select", apply("lt", e, const(0, I64)), _add(e, extent), e)
            case "clamp":
                return maximum(0, minimum(value(e), extent - 1))
            case "two-level":
                assert inner is not None
                return as_index(inner.val(value(e)), inner.dtype)
        return value(e)

    def element(*i: IntExpr) -> Expr:
        before, middle, after = i[:d], i[d : d + len(dims)], i[d + len(dims) :]
        return t.val.at((*before, at(middle), *after))

    shape = [*t.val.shape[:d], *(e.expr for e in dims), *t.val.shape[d + 1 :]]
    out = g.builder.compute("g", shape, element, t.dtype)
    g.add(out, (*t.shape[:d], *(e.value for e in dims), *t.shape[d + 1 :]), t.clean)


def _add(e: Expr, extent: IntExpr) -> Expr:
    return apply("add", e, Index(extent))


def scatter(g: Gen) -> None:
    t = g.some((F32, F32, F64, F16, BF16, I32, I64, *INTS[4:6]), (1, 3))
    d = g.rng.randrange(t.rank)
    n = t.shape[d]
    op = g.pick(("set", "sum", "prod", "max", "min"))
    drop = g.chance(0.35)
    if n == 0:
        raise Unfit
    k = g.extent(0, 9)
    ix = index_tensor(g, [k], n, t.val.shape[d], -2 if drop else None)
    if drop:
        g.inputs[-1][...] = g.np_rng.integers(-2, n + 2, g.inputs[-1].shape)
    dims = g.extents(t)
    dims[d] = k
    u = g.leaf(t.dtype, dims)
    where = None
    if g.chance(0.25):
        g.tag("scatter:where")
        where = lambda *i: apply("ne", Index(i[d] % 3), const(1, I64))  # noqa: E731
    out = g.builder.scatter(
        "sc",
        t.val,
        [e.expr for e in dims],
        lambda *i: (*i[:d], as_index(ix.val.at((i[d],)), ix.dtype), *i[d + 1 :]),
        lambda *i: expression(g, t.dtype, [(u.val.at(i), t.dtype)], g.pick((0, 0, 1))),
        op,
        drop=drop,
        where=where,
    )
    g.tag("scatter", f"scatter:{op}", *(["scatter:drop"] if drop else []))
    g.add(out, t.shape, False)


def slice_update(g: Gen) -> None:
    """A block written into a tensor at a fixed offset: KV append."""
    t = g.some(None, (1, 3))
    d = g.rng.randrange(t.rank)
    c = t.val.shape[d].const
    if c is None or c < 2:
        raise Unfit
    start = g.rng.randrange(c)
    dims = g.extents(t)
    size = g.rng.randint(1, c - start)
    dims[d] = Extent(int_expr(size), size)
    u = g.leaf(t.dtype, dims)
    out = g.builder.scatter(
        "upd", t.val, [e.expr for e in dims], lambda *i: (*i[:d], i[d] + start, *i[d + 1 :]), lambda *i: u.val.at(i)
    )
    g.tag("scatter", "scatter:set", "scatter:slice")
    g.add(out, t.shape, t.clean)


def windowed(g: Gen) -> None:
    """Pooling: max, sum or min over windows, padded or not."""
    dtype = g.pick((F32, F32, F16, I32, F64))
    dims = [g.extent(1, 3), g.extent(1, 5), g.extent(4, 17, 0.3), g.extent(4, 17, 0.2)]
    x = g.take(
        lambda t: t.rank == 4 and t.dtype == dtype and min(t.shape[2:]) >= 4 and all(e.const for e in t.val.shape[2:]),
        lambda: g.input(dtype, dims),
    )
    kh, kw, s, p, dil = g.pick((1, 2, 3)), g.pick((2, 3)), g.pick((1, 2, 3)), g.pick((0, 1)), g.pick((1, 1, 2))
    h, w = x.val.shape[2], x.val.shape[3]
    oh, ow = ((e + 2 * p - dil * (k - 1) - 1) // s + 1 for e, k in ((h, kh), (w, kw)))
    op = g.pick(("max", "sum", "min"))
    fill = (
        const(0, dtype)
        if op == "sum"
        else const(
            (float("-inf") if op == "max" else float("inf"))
            if dtype.is_float
            else (dtype.lowest if op == "max" else dtype.highest),
            dtype,
        )
    )
    name = g.builder.materialize(x.val).name
    assert name is not None
    out = g.builder.reduce(
        "pool",
        op,
        [x.val.shape[0], x.val.shape[1], oh, ow],
        (kh, kw),
        lambda i, r: access(name, i[0], i[1], i[2] * s + r[0] * dil - p, i[3] * s + r[1] * dil - p, default=fill),
        dtype,
    )
    g.tag("window", "read:else", f"monoid:{op}")
    g.add(out, g.sized(out), False)


def reducing_scatter(g: Gen) -> None:
    """Sums along a rank, added to where an index tensor says: a histogram of rows."""
    b, dtype = g.builder, g.pick((F32, F32, F64, I32, I64))
    n, k, w = g.extent(1, 17), g.extent(0, 13), g.extent(0, 33)
    base, x = g.leaf(dtype, [n]), g.leaf(dtype, [k, w])
    ix = index_tensor(g, [k], n.value, n.expr)
    total = b.reduce_axes("rowsum", "sum", x.val, [1], False)
    out = b.scatter(
        "hist",
        base.val,
        [k.expr],
        lambda i: (as_index(ix.val(i), ix.dtype),),
        lambda i: total(i),
        g.pick(("sum", "max")),
    )
    g.tag("scatter", "scatter:sum")
    g.add(out, (n.value,), False)


MEMORY: list[tuple[str, float, Piece]] = [
    ("gather", 1.2, gather),
    ("scatter", 1.0, scatter),
    ("slice-update", 0.5, slice_update),
    ("window", 0.7, windowed),
    ("histogram", 0.4, reducing_scatter),
]
