"""Pieces of random programs: elementwise arithmetic, reductions, domains, views, pieces."""

from __future__ import annotations

from dataclasses import replace

from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I32, I64, DType
from dlc.ir.einsum import Einsum, Rank
from dlc.ir.expr import Bitcast, Cast, Expr, Index, Piecewise, apply, const
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, var
from dlc.ir.scalar import SCALAR_OPS
from dlc.ir.view import Val
from tests.fuzz.generate import ALL, FLOATS, SIGNED, UNSIGNED, Extent, Gen, Piece, Tensor, Unfit

UNARY = [n for n, o in SCALAR_OPS.items() if o.arity == 1]
BINARY = [n for n, o in SCALAR_OPS.items() if o.arity == 2]
BITS = {8: ("i8", "u8"), 16: ("i16", "u16", "f16", "bf16"), 32: ("i32", "u32", "f32"), 64: ("i64", "u64", "f64")}


# --- expressions -----------------------------------------------------------------------------------------------------


def operators(dtype: DType, typing: tuple[str, ...], arity: int) -> list[str]:
    kind = dtype.kind
    return [n for n, o in SCALAR_OPS.items() if o.arity == arity and o.typing in typing and kind in o.kinds]


def expression(g: Gen, dtype: DType, leaves: list[tuple[Expr, DType]], depth: int) -> Expr:
    """A random expression of type `dtype` over `leaves`."""
    fitting = [e for e, t in leaves if t == dtype]
    if depth <= 0 or g.chance(0.12):
        if fitting and g.chance(0.85):
            return g.pick(fitting)
        others = [(e, t) for e, t in leaves if t != dtype]
        if others and g.chance(0.5):
            return conversion(g, dtype, *g.pick(others))
        return g.literal(dtype)
    choice = g.rng.random()
    if choice < 0.08:
        g.tag("op:select")
        return apply(
            "select",
            expression(g, BOOL, leaves, depth - 1),
            expression(g, dtype, leaves, depth - 1),
            expression(g, dtype, leaves, depth - 1),
        )
    if dtype == BOOL and choice < 0.75:
        of = g.pick([t for _, t in leaves] or [F32])
        if of != BOOL:
            if of.is_float and g.chance(0.2):
                op = g.pick(("isnan", "isinf", "signbit"))
                g.tag(f"op:{op}")
                return apply(op, expression(g, of, leaves, depth - 1))
            op = g.pick(("eq", "ne", "lt", "le", "gt", "ge"))
            g.tag(f"op:{op}")
            return apply(op, expression(g, of, leaves, depth - 1), expression(g, of, leaves, depth - 1))
    if choice < 0.16:
        other = g.pick([t for _, t in leaves] or [dtype])
        return conversion(g, dtype, expression(g, other, leaves, depth - 1), other)
    if choice < 0.5:
        names = operators(dtype, ("same",), 1)
        op = g.pick(names)
        g.tag(f"op:{op}")
        return apply(op, expression(g, dtype, leaves, depth - 1))
    op = g.pick(operators(dtype, ("same",), 2))
    if g.chance(0.35) and dtype != BOOL:
        op = g.pick(("add", "sub", "mul"))
    g.tag(f"op:{op}")
    return apply(op, expression(g, dtype, leaves, depth - 1), expression(g, dtype, leaves, depth - 1))


def conversion(g: Gen, to: DType, e: Expr, of: DType) -> Expr:
    if to == of:
        return e
    if to.bits == of.bits and BOOL not in (to, of) and g.chance(0.25):
        g.tag("bitcast")
        return Bitcast(to, e)
    mode = g.pick(("sat", "wrap"))
    g.tag(f"cast:{mode}", f"cast:{of.kind}{to.kind}")
    return Cast(to, e, mode)


# --- elementwise -----------------------------------------------------------------------------------------------------


def partners(g: Gen, t: Tensor, count: int) -> list[Tensor]:
    """Tensors that broadcast with `t`, which has the whole shape."""
    result = []
    for _ in range(count):

        def fits(o: Tensor) -> bool:
            return o.rank <= t.rank and all(
                a == b or a.const == 1 for a, b in zip(o.val.shape[::-1], t.val.shape[::-1], strict=False)
            )

        def make() -> Tensor:
            dims = g.extents(t)[g.rng.randint(0, t.rank) :] if g.chance(0.4) else g.extents(t)
            dims = [Extent(int_expr(1), 1) if g.chance(0.15) and d.value != 0 else d for d in dims]
            if len(dims) < t.rank or any(d.value == 1 for d in dims):
                g.tag("broadcast")
            return g.leaf(g.pick((t.dtype, t.dtype, g.any_type())), dims)

        result.append(g.take(fits, make, 0.6))
    return result


def pointwise(g: Gen) -> None:
    """A random expression of up to three operands."""
    t = g.some()
    others = partners(g, t, g.pick((0, 1, 1, 2)))
    dtype = g.pick((t.dtype, t.dtype, t.dtype, g.any_type()))
    depth = g.pick((1, 1, 2, 2, 3, 4))
    wide = [o.val.broadcast_to(t.val.shape) for o in [t, *others]]
    out = g.builder.compute(
        "p", t.val.shape, lambda *i: expression(g, dtype, [(w.at(i), w.dtype) for w in wide], depth), dtype
    )
    g.add(out, t.shape, False)


def each_operator(g: Gen) -> None:
    """Some operators alone, as outputs: every operator at every type, sooner or later."""
    wanted = g.pick(list(SCALAR_OPS))
    kinds = [t for t in ALL if t.kind in SCALAR_OPS[wanted].kinds]
    t = g.some([g.pick(kinds), g.pick(kinds), g.pick([k for k in kinds if k in (F32, I32, I64)] or kinds)], fresh=0.7)
    others = partners(g, t, 1)
    names = operators(t.dtype, ("same", "compare", "test"), 1) + operators(t.dtype, ("same", "compare", "test"), 2)
    for op in {wanted, *g.rng.sample(names, min(len(names), g.rng.randint(0, 3)))} - {"select"}:
        g.tag(f"op:{op}")
        arity = SCALAR_OPS[op].arity
        right = g.builder.cast(others[0].val.broadcast_to(t.val.shape), t.dtype)
        dtype = t.dtype if SCALAR_OPS[op].typing == "same" else BOOL
        out = g.builder.compute(
            "q", t.val.shape, lambda *i, op=op, n=arity, v=right: apply(op, *([t.val.at(i), v.at(i)][:n])), dtype
        )
        g.add(out, t.shape, False)


def long(g: Gen) -> None:
    """More elements than one task does: chunks of a long rank, many rows, reductions over thousands."""
    b, dtype = g.builder, g.pick((F32, F32, F64, F16, I32))
    n = g.pick((4095, 4096, 4097, 8192, 8200, 12291, 16500))
    rows = g.pick((0, 0, 1, 2, 3))
    e = Extent(int_expr(n), n)
    if g.chance(0.5):
        e = Extent(b.symbol(f"long{len(g.symbols)}", 1), n)
        g.symbols[f"long{len(g.symbols)}"] = e
        g.tag("extent:symbol")
    dims = [*([Extent(int_expr(rows), rows)] if rows else []), e]
    if g.chance(0.3):
        dims.reverse()
    x = g.input(dtype, dims, -2, 2)
    g.tag("extent:long")
    y = b.map("long", lambda u: expression(g, dtype, [(u, dtype)], 2), x.val)
    g.leaving.append(y)
    op = g.pick(("sum", "max", "min"))
    axis = g.rng.randrange(x.rank)
    g.leaving.append(b.reduce_axes("over", op, x.val, [axis], False))
    g.tag(f"monoid:{op}")


def crossing(g: Gen) -> None:
    """A step that needs an early kernel's points and a later kernel's result."""
    b, dtype = g.builder, g.pick((F32, F32, F64, F16))
    big = [Extent(int_expr(n), n) for n in (g.pick((64, 65)), g.pick((33, 65)), 2)]  # too large for one task's rows
    t = g.input(dtype, big) if g.chance(0.6) else g.some((dtype,), (1, 3))
    early = b.map("early", lambda u: apply("tanh", u), t.val)
    other = g.some((dtype,), (1, 3), fresh=0.7)
    total = b.reduce_axes("later", g.pick(("sum", "max")), other.val, range(other.rank), False)
    joined = b.map("joined", lambda u, v: apply("mul", u, v), early, total)
    g.add(early, t.shape, False)
    g.add(joined, t.shape, False)


def cast(g: Gen) -> None:
    t = g.some((BOOL,) if g.chance(0.1) else ALL if g.chance(0.5) else None)
    for _ in range(g.rng.randint(1, 3)):
        to = g.any_type() if g.chance(0.5) else g.pick(ALL)
        same = [o for o in ALL if o.bits == t.dtype.bits and o != t.dtype and BOOL not in (o, t.dtype)]
        if same and g.chance(0.2):
            to = g.pick(same)
        out = g.builder.compute("c", t.val.shape, lambda *i, to=to: conversion(g, to, t.val.at(i), t.dtype), to)
        g.add(out, t.shape, False)


def chain(g: Gen) -> None:
    """Several small pointwise steps, each read once or twice: inlining and fusion."""
    dtype = g.float_type()
    t = g.some((dtype,), (1, 4))
    first = t
    for _ in range(g.rng.randint(2, 6)):
        op = g.pick(("add", "mul", "sub", "max", "min", "tanh", "exp", "sigmoid", "abs", "erf", "neg"))
        g.tag(f"op:{op}")
        if SCALAR_OPS[op].arity == 1:
            val = g.builder.map("h", lambda u, op=op: apply(op, apply("mul", u, const(0.5, dtype))), t.val)
        else:
            other = first if g.chance(0.4) else partners(g, t, 1)[0]
            second = g.builder.cast(other.val, dtype)
            val = g.builder.map("h", lambda u, v, op=op: apply(op, u, v), t.val, second)
        t = Tensor(val, t.shape, False)
        if g.chance(0.15):
            g.add(val, t.shape, False)
    g.pool.append(t)


# --- reductions ------------------------------------------------------------------------------------------------------


def monoids(dtype: DType) -> list[str]:
    if dtype == BOOL:
        return ["and", "or", "xor", "max", "min"]
    return ["sum", "prod", "max", "min"] + (["and", "or", "xor"] if dtype.is_int else [])


def reduction(g: Gen) -> None:
    t = g.some(None, (1, 4))
    op = g.pick(monoids(t.dtype))
    axes = [d for d in range(t.rank) if g.chance(0.5)] or [g.rng.randrange(t.rank)]
    kept = [d for d in range(t.rank) if d not in axes]
    dtype = t.dtype
    accumulator = None
    if dtype in (F16, BF16) and g.chance(0.3):
        accumulator = F32 if g.chance(0.5) else F64
        g.tag("accumulator")
    if dtype == F32 and g.chance(0.15):
        accumulator = F64
        g.tag("accumulator")
    depth = g.pick((0, 0, 1, 2))
    where = None
    if g.chance(0.3):
        where = domain(g, t, axes, kept)
        g.tag("where:reduced")

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        place = dict(zip(kept, i, strict=True)) | dict(zip(axes, r, strict=True))
        e = t.val.at(tuple(place[d] for d in range(t.rank)))
        return expression(g, dtype, [(e, dtype)], depth) if depth else e

    out = g.builder.reduce(
        "r",
        op,
        [t.val.shape[d] for d in kept],
        [t.val.shape[d] for d in axes],
        element,
        dtype,
        accumulator=accumulator,
        where=where,
    )
    g.tag(f"monoid:{op}")
    if any(t.shape[d] == 0 for d in axes):
        g.tag("empty-reduction")
    g.add(out, [t.shape[d] for d in kept], False)


def domain(g: Gen, t: Tensor, axes: list[int], kept: list[int]):  # type: ignore[no-untyped-def]
    """A predicate over the ranks of a reduction that mentions a reduced one."""
    kind = g.rng.randrange(3)
    limit = g.rng.randint(0, max(t.shape[axes[0]], 1))

    def where(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        if kind == 0 and i:
            return apply(g.pick(("le", "lt", "ge")), Index(r[0]), Index(i[-1]))
        if kind == 1:
            return apply("eq", Index(r[0] % 2), const(0, I64))
        return apply(g.pick(("lt", "ge", "ne")), Index(r[0]), const(limit, I64))

    return where


def pair_reduction(g: Gen) -> None:
    """A reduction over an expression of two tensors with different ranks, under a mask of data or of indices, or none."""
    b, dtype = g.builder, g.pick((F32, F32, F64, F16, BF16, I32, I64))
    m, n, k = g.extent(0, 17), g.extent(0, 33), g.extent(0, 33)
    x, y = g.leaf(dtype, [m, k]), g.leaf(dtype, g.pick(([k, n], [n, k])))
    turned = y.val.shape[0] == n.expr and y.val.shape[1] == k.expr
    mask = g.input(BOOL, g.pick(([k], [m, k], [n, k]))) if g.chance(0.35) else None
    kind = g.rng.random()
    op = g.pick(("sum", "max", "min", "sum"))

    def where(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        if mask is None:
            return apply(g.pick(("le", "ne")), Index(r[0]), Index(i[0]))
        if mask.rank == 1:
            return mask.val(r[0])
        return mask.val(i[0] if mask.val.shape[0] == m.expr else i[1], r[0])

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        u, v = x.val(i[0], r[0]), y.val(i[1], r[0]) if turned else y.val(r[0], i[1])
        if kind < 0.4:
            return apply("mul", u, v)
        if kind < 0.7:
            return apply(g.pick(("abs", "neg")), apply("sub", u, v))
        return expression(g, dtype, [(u, dtype), (v, dtype)], 2)

    domain_ = where if mask is not None or g.chance(0.4) else None
    if mask is not None and mask.rank == 2 and m.expr == n.expr and mask.shape[0] != m.value:
        raise Unfit
    out = b.reduce("pair", op, [m.expr, n.expr], [k.expr], element, dtype, where=domain_)
    g.tag(f"monoid:{op}", *(["where:reduced"] if domain_ else []), *(["where:data"] if mask is not None else []))
    g.add(out, (m.value, n.value), False)


def arg_reduction(g: Gen) -> None:
    t = g.some((F32, F32, F64, F16, BF16, I32, I64, *UNSIGNED[:1]), (1, 3))
    axis = g.rng.randrange(t.rank)
    kept = [d for d in range(t.rank) if d != axis]
    op = g.pick(("argmax", "argmin", "argmax_last", "argmin_last"))
    if t.shape[axis] == 0:
        raise Unfit
    v, at = g.builder.tuple_reduce(
        ("v", "at"),
        op,
        [t.val.shape[d] for d in kept],
        [t.val.shape[axis]],
        lambda i, r: (t.val.at((*i[:axis], r[0], *i[axis:])), Index(r[0])),
        (t.dtype, I64),
    )
    g.tag(f"monoid:{op}")
    shape = [t.shape[d] for d in kept]
    g.add(v, shape, False)
    g.add(at, shape, False)


def welford(g: Gen) -> None:
    t = g.some((F32,), (1, 3))
    axis = g.rng.randrange(t.rank)
    kept = [d for d in range(t.rank) if d != axis]
    outs = g.builder.tuple_reduce(
        ("count", "mean", "m2"),
        "welford",
        [t.val.shape[d] for d in kept],
        [t.val.shape[axis]],
        lambda i, r: (const(1.0), t.val.at((*i[:axis], r[0], *i[axis:])), const(0.0)),
        (F32, F32, F32),
    )
    g.tag("monoid:welford")
    for o in outs:
        g.add(o, [t.shape[d] for d in kept], False)


def normalisation(g: Gen) -> None:
    """Softmax, log-softmax, layer norm, RMS norm: reductions and readers of the same rows."""
    b = g.builder
    t = g.some((F32, F32, F64, F16), (1, 3))
    axis = g.rng.randrange(t.rank)
    kind = g.pick(("softmax", "log_softmax", "layer_norm", "rms_norm", "mean_centred"))
    g.tag(f"chain:{kind}")
    dtype = t.dtype
    if kind in ("softmax", "log_softmax"):
        m = b.reduce_axes("m", "max", t.val, [axis], True)
        e = b.map("e", lambda u, v: apply("exp", apply("sub", u, v)), t.val, m)
        s = b.reduce_axes("s", "sum", e, [axis], True)
        out = b.map("o", lambda u, v: apply("div", u, v), e, s)
        if kind == "log_softmax":
            out = b.map("o", lambda u, v, w: apply("sub", apply("sub", u, v), apply("log", w)), t.val, m, s)
    else:
        mean = b.reduce_axes("mu", "sum", t.val, [axis], True)
        mean = b.map("mean", lambda u: apply("mul", u, const(1 / max(t.shape[axis], 1), dtype)), mean)
        d = b.map("d", lambda u, v: apply("sub", u, v), t.val, mean) if kind != "rms_norm" else t.val
        sq = b.map("sq", lambda u: apply("mul", u, u), d)
        s = b.reduce_axes("s", "sum", sq, [axis], True)
        r = b.map("rs", lambda u: apply("rsqrt", apply("add", u, const(0.01, dtype))), s)
        out = b.map("o", lambda u, v: apply("mul", u, v), d, r)
    g.add(out, t.shape, False)


# --- domains ---------------------------------------------------------------------------------------------------------


def partial(g: Gen) -> None:
    """A partial tensor, a reader that inherits its domain, and a reduction that skips what does not exist."""
    b = g.builder
    dtype = g.pick((F32, F32, F64, F16, I32))
    n, m = g.extent(2, 23), g.extent(2, 37)
    lead = [g.extent(1, 4)] if g.chance(0.4) else []
    x = g.input(dtype, [*lead, n, m])
    ranks = tuple(Rank(f"i{k}", e.expr) for k, e in enumerate([*lead, n, m]))
    names = tuple(var(r.name) for r in ranks)
    p, q = names[-2], names[-1]
    shift = g.pick((0, 0, 1, -1))
    where = g.pick(
        (
            apply("le", Index(q), Index(p + shift)),
            apply("lt", Index(p), Index(q + 2)),
            apply("ne", Index(p), Index(q)),
            apply("eq", Index((p + q) % 2), const(0, I64)),
            apply("lt", Index(q), Index(minimum(p + 1, 5))),
        )
    )
    part = b.fresh("part")
    e = expression(g, dtype, [(x.val.at(names), dtype)], 1)
    b.emit(Einsum((part,), ranks, (e,), (dtype,), where=where))
    read = b.tensor(part)
    g.tag("where:free", "domain:inherited")
    shape = (*(d.value for d in lead), n.value, m.value)
    if g.chance(0.5):
        read = b.map("part2", lambda u: expression(g, dtype, [(u, dtype)], 1), read)
    op = g.pick(("sum", "max", "min"))
    out = b.reduce_axes("rows", op, read, [-1], False)
    g.tag(f"monoid:{op}")
    g.add(out, shape[:-1], False)
    if g.chance(0.5) and dtype.is_float:  # and back over the domain, as in a masked softmax
        over = b.map("back", lambda u, v: apply("sub", u, v), read, out.unsqueeze(-1))
        total = b.reduce_axes("cols", "sum", over, [-2], False)
        g.add(total, (*shape[:-2], shape[-1]), False)


# --- views -----------------------------------------------------------------------------------------------------------


def moved(g: Gen, t: Tensor) -> Tensor:
    """One view of `t`."""
    val, shape = t.val, t.shape
    kind = g.pick(
        ("permute", "reshape", "flip", "slice", "select", "unsqueeze", "pad", "clamp", "reflect", "roll", "split")
    )
    if t.rank == 0 and kind not in ("unsqueeze",):
        raise Unfit
    d = g.rng.randrange(max(t.rank, 1))
    g.tag(f"view:{kind}")
    match kind:
        case "permute":
            dims = list(range(t.rank))
            g.rng.shuffle(dims)
            return Tensor(val.permute(dims), tuple(shape[k] for k in dims), t.clean)
        case "reshape":  # merge two neighbours, or all
            if t.rank < 2:
                raise Unfit
            d = g.rng.randrange(t.rank - 1)
            new = [*val.shape[:d], val.shape[d] * val.shape[d + 1], *val.shape[d + 2 :]]
            dims2 = [*shape[:d], shape[d] * shape[d + 1], *shape[d + 2 :]]
            return Tensor(val.reshape(new), tuple(dims2), t.clean)
        case "split":
            c = val.shape[d].const
            if c is None or c < 2:
                raise Unfit
            f = g.pick([k for k in range(1, c + 1) if c % k == 0])
            return Tensor(
                val.reshape([*val.shape[:d], f, c // f, *val.shape[d + 1 :]]),
                (*shape[:d], f, c // f, *shape[d + 1 :]),
                t.clean,
            )
        case "flip":
            return Tensor(val.flip(d), shape, t.clean)
        case "slice":
            c = val.shape[d].const
            if c is None and not val.shape[d].is_var:
                raise Unfit
            if c is None:
                return Tensor(
                    val.slice(d, 0, minimum(val.shape[d], 3)), (*shape[:d], min(shape[d], 3), *shape[d + 1 :]), t.clean
                )
            if c == 0:
                raise Unfit
            start, step = g.rng.randrange(c), g.pick((1, 1, 2, 3))
            size = g.rng.randint(0 if g.zero else 1, (c - start + step - 1) // step)
            return Tensor(val.slice(d, start, size, step), (*shape[:d], size, *shape[d + 1 :]), t.clean)
        case "select":
            if val.shape[d].const in (None, 0):
                raise Unfit
            at = g.rng.randrange(shape[d])
            return Tensor(val.select(d, at), (*shape[:d], *shape[d + 1 :]), t.clean)
        case "unsqueeze":
            d = g.rng.randint(0, t.rank)
            return Tensor(val.unsqueeze(d), (*shape[:d], 1, *shape[d:]), t.clean)
        case "pad":
            lo, hi = g.rng.randint(0, 3), g.rng.randint(0, 3)
            before = [lo if k == d else 0 for k in range(t.rank)]
            after = [hi if k == d else 0 for k in range(t.rank)]
            g.tag("read:else")
            fill = g.literal(t.dtype)
            return Tensor(val.pad(before, after, fill), (*shape[:d], shape[d] + lo + hi, *shape[d + 1 :]), t.clean)
        case "clamp" | "reflect" | "roll":
            if shape[d] < 4 or val.shape[d].const is None:
                raise Unfit
            n, k = val.shape[d], g.rng.randint(1, 3)
            extra = 2 * k if kind != "roll" else 0

            def index(*i: IntExpr) -> list[IntExpr]:
                j = i[d]
                if kind == "clamp":
                    j = maximum(0, minimum(n - 1, j - k))
                elif kind == "roll":
                    j = (j + k) % n
                else:
                    j = maximum(j - k, k - j)
                    j = maximum(0, minimum(j, (n - 1) * 2 - j, n - 1))
                return [*i[:d], j, *i[d + 1 :]]

            new = [*val.shape[:d], n + extra, *val.shape[d + 1 :]]
            return Tensor(val.view(new, index), (*shape[:d], shape[d] + extra, *shape[d + 1 :]), t.clean)
    raise Unfit


def views(g: Gen) -> None:
    t = g.some(None, (1, 4))
    for _ in range(g.rng.randint(1, 4)):
        try:
            t = moved(g, t)
        except Unfit:
            continue
    t = t if t.rank <= 6 else g.some()
    val = g.builder.compute("view", t.val.shape, lambda *i: t.val.at(i), t.dtype)
    g.add(val, t.shape, t.clean)


def pieces(g: Gen) -> None:
    """Concatenation of two or three parts along a dimension, as a Piecewise definition."""
    t = g.some(None, (1, 3))
    d = g.rng.randrange(t.rank)
    parts = [t]
    for _ in range(g.pick((1, 1, 2))):
        dims = g.extents(t)
        dims[d] = g.extent(0, 17)
        parts.append(g.leaf(t.dtype, dims))
    starts, total, size = [], int_expr(0), 0
    for p in parts:
        starts.append(total)
        total, size = total + p.val.shape[d], size + p.shape[d]

    def element(*i: IntExpr) -> Expr:
        def read(k: int) -> Expr:
            return parts[k].val.at((*i[:d], i[d] - starts[k], *i[d + 1 :]))

        cases = tuple((apply("lt", Index(i[d]), Index(starts[k + 1])), read(k)) for k in range(len(parts) - 1))
        return Piecewise(cases, read(len(parts) - 1))

    out = g.builder.compute("cat", [*t.val.shape[:d], total, *t.val.shape[d + 1 :]], element, t.dtype)
    g.tag("piecewise:concat")
    g.add(out, (*t.shape[:d], size, *t.shape[d + 1 :]), t.clean)


def stack(g: Gen) -> None:
    t = g.some(None, (0, 3))
    other = g.take(lambda o: o.val.shape == t.val.shape and o.dtype == t.dtype, lambda: g.leaf(t.dtype, g.extents(t)))
    d = g.rng.randint(0, t.rank)

    def element(*i: IntExpr) -> Expr:
        rest = (*i[:d], *i[d + 1 :])
        return Piecewise(((apply("eq", Index(i[d]), const(0, I64)), t.val.at(rest)),), other.val.at(rest))

    out = g.builder.compute("stk", [*t.val.shape[:d], 2, *t.val.shape[d:]], element, t.dtype)
    g.tag("piecewise:stack")
    g.add(out, (*t.shape[:d], 2, *t.shape[d:]), t.clean)


def relayout(g: Gen) -> None:
    """An Einsum whose result is stored in another order, perhaps with a pitch, read again by others."""
    t = g.some(None, (2, 4))
    order = list(range(t.rank))
    g.rng.shuffle(order)
    b = g.builder
    inner = b.compute("lay", t.val.shape, lambda *i: expression(g, t.dtype, [(t.val.at(i), t.dtype)], 1), t.dtype)
    step = b._blocks[-1].pop()
    assert isinstance(step, Einsum)
    b.emit(replace(step, order=tuple(order), pitch=8 * (order[0] % 3)))
    g.tag("layout")
    dims = list(range(t.rank))
    g.rng.shuffle(dims)
    read = Tensor(inner, t.shape, t.clean)
    if g.chance(0.5):
        out = b.compute("unlay", t.val.shape, lambda *i: inner.at(i), t.dtype)
        g.add(out, t.shape, t.clean)
    else:
        view = read.val.permute(dims)
        out = b.reduce_axes("sumlay", g.pick(monoids(t.dtype)), view, [g.rng.randrange(t.rank)], False)
        g.add(out, g.sized(out), False)


def coordinates(g: Gen) -> None:
    """Values computed from ranks: //, %, min, max, products of ranks."""
    dims = g.shape(g.rng.randint(1, 3))
    a, c = g.pick((2, 3, 5)), g.pick((1, 2, 7))

    def element(*i: IntExpr) -> Expr:
        j, k = i[-1], i[0]
        e = g.pick(
            (j // a + k % a, minimum(j * a, k + c), maximum(j - c, k), (j * k + c) % a, j * a - k, (j + c) // a * c)
        )
        return Cast(I32, Index(e), "sat") if g.chance(0.4) else Index(e)

    e = element(*(var(f"i{n}") for n in range(len(dims))))
    dtype = e.dtype if isinstance(e, Cast) else I64
    out = g.builder.compute("coord", [d.expr for d in dims], lambda *i: e, dtype)
    g.tag("index-value")
    g.add(out, [d.value for d in dims], True)


def _late() -> list[tuple[str, float, Piece]]:
    from tests.fuzz.pieces_control import CONTROL
    from tests.fuzz.pieces_library import LIBRARY
    from tests.fuzz.pieces_memory import MEMORY
    from tests.fuzz.pieces_products import PRODUCTS

    return [*MEMORY, *PRODUCTS, *CONTROL, *LIBRARY]


PIECES: list[tuple[str, float, Piece]] = [
    ("pointwise", 3.0, pointwise),
    ("operator", 3.2, each_operator),
    ("cast", 1.9, cast),
    ("chain", 1.2, chain),
    ("crossing", 0.5, crossing),
    ("long", 0.35, long),
    ("reduction", 2.8, reduction),
    ("pair", 0.9, pair_reduction),
    ("arg", 0.7, arg_reduction),
    ("welford", 0.4, welford),
    ("norm", 1.2, normalisation),
    ("partial", 1.0, partial),
    ("views", 1.8, views),
    ("concat", 0.9, pieces),
    ("stack", 0.4, stack),
    ("relayout", 0.7, relayout),
    ("coordinates", 0.6, coordinates),
]
PIECES += _late()

__all__ = ["FLOATS", "PIECES", "SIGNED", "Val"]
