"""Pieces of random programs: contractions and convolutions in the forms that choose between code paths."""

from __future__ import annotations

from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, F16, F32, F64, I8, I32, I64, DType
from dlc.ir.expr import Cast, Expr, Index, access, apply, const
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.view import Val
from tests.fuzz.generate import Extent, Gen, Piece, Tensor

SPECS = (
    "mk,kn->mn",
    "mk,nk->mn",
    "km,kn->mn",
    "km,nk->nm",
    "bmk,bkn->bmn",
    "bmk,kn->bmn",
    "bmk,nk->bmn",
    "bmk,bnk->bnm",
    "bhmk,bhnk->bhmn",
    "bmhk,bnhk->bhmn",
    "bhmn,bnhk->bmhk",
    "k,kn->n",
    "mk,k->m",
    "k,k->",
    "mk,mk->m",
    "i,j->ij",
    "mk,mk->k",
    "bk,bk->b",
    "mjk,njk->mn",
    "mk,kn,n->mn",
    "bmk,cmk->bc",
    "mij,ijn->mn",
    "mk,gkn->gmn",
    "bik,bkj->ij",
)


def _extents(g: Gen, spec: str, work: int) -> dict[str, Extent]:
    letters = sorted({c for c in spec if c.isalpha()})
    result: dict[str, Extent] = {}
    left = work
    for n, c in enumerate(letters):
        share = max(3, int(left ** (1 / (len(letters) - n)) * 1.6))
        e = g.extent(0, min(65, share), 0.3)
        result[c] = e
        left = max(1, left // max(e.value, 1))
    if g.chance(0.12):  # more than a block of rows or a panel of columns
        n = g.pick((96, 100, 129, 130, 200, 257, 300))
        c = g.pick(letters)
        if all(e.value <= 33 for k, e in result.items() if k != c):
            result[c] = Extent(int_expr(n), n)
            g.tag("contraction:blocks")
    return result


def epilogue(g: Gen, t: Tensor) -> Tensor:
    """Bias, activation, residual after a contraction."""
    b, val, dtype = g.builder, t.val, t.dtype
    if not dtype.is_float:
        return t
    if g.chance(0.6) and t.rank:
        bias = g.leaf(dtype, [g.extents(t)[-1]])
        val = b.map("biased", lambda u, v: apply("add", u, v), val, bias.val)
    if g.chance(0.6):
        op = g.pick(("relu", "tanh", "sigmoid", "gelu"))
        zero = const(0.0, dtype)

        def act(u: Expr) -> Expr:
            if op == "relu":
                return apply("max", u, zero)
            if op == "gelu":
                return apply("mul", u, apply("erf", apply("mul", u, const(0.7071, dtype))))
            return apply(op, u)

        val = b.map("act", act, val)
    if g.chance(0.25):
        rest = g.leaf(dtype, g.extents(t))
        val = b.map("res", lambda u, v: apply("add", u, v), val, rest.val)
    g.tag("epilogue")
    return Tensor(val, t.shape, False)


def contraction(g: Gen) -> None:
    spec = g.pick(SPECS)
    dtype = g.pick((F32,) * 7 + (F64, F16, BF16, I32, I64))
    work = g.pick((600, 4000, 20000, 60000))
    ext = _extents(g, spec, work)
    if work >= 4000:
        g.tag("contraction:tiled")
    labels = spec.split("->")[0].split(",")
    args: list[Val] = []
    for label in labels:
        dims = [ext[c] for c in label]
        args.append(operand(g, dtype, dims))
    accumulator = F64 if dtype == F32 and g.chance(0.08) else None
    out = g.builder.contract("mm", spec, *args, accumulator=accumulator)
    g.tag("contraction", f"contraction:{spec}", f"contraction:{dtype}")
    t = Tensor(out, tuple(ext[c].value for c in spec.split("->")[1]), False)
    if g.chance(0.5):
        t = epilogue(g, t)
    if g.chance(0.2) and t.rank >= 2:  # heads: the result is read through a permuted reshape
        dims = list(range(t.rank))
        g.rng.shuffle(dims)
        out = g.builder.compute(
            "perm", [t.val.shape[d] for d in dims], lambda *i, v=t.val.permute(dims): v.at(i), t.dtype
        )
        t = Tensor(out, tuple(t.shape[d] for d in dims), False)
    g.pool.append(t)


def operand(g: Gen, dtype: DType, dims: list[Extent]) -> Val:
    """A tensor of that shape: input, constant, earlier result, or a view of something else."""
    kind = g.pick(("input", "input", "constant", "pool", "merged", "permuted", "cast", "computed", "sliced"))
    static = all(d.expr.const is not None for d in dims)
    if kind == "pool":
        found = [t for t in g.pool if t.dtype == dtype and t.val.shape == tuple(d.expr for d in dims)]
        if found:
            t = g.pick(found)
            g.used.add(id(t))
            return t.val
    if kind == "constant" and static:
        g.tag("contraction:constant")
        return g.constant(dtype, [d.value for d in dims], hint="w").val
    if kind == "merged" and dims:  # (b, s, h*e) read as (b, s, h, e)
        g.tag("contraction:reshaped")
        flat = Extent(int_expr(1), 1)
        for d in dims:
            flat = Extent(flat.expr * d.expr, flat.value * d.value)
        if static or sum(d.expr.const is None for d in dims) == 1:
            return g.leaf(dtype, [flat]).val.reshape([d.expr for d in dims])
    if kind == "permuted" and len(dims) > 1:
        order = list(range(len(dims)))
        g.rng.shuffle(order)
        g.tag("contraction:permuted")
        source = g.leaf(dtype, [dims[k] for k in order])
        return source.val.permute([order.index(k) for k in range(len(dims))])
    if kind == "cast":
        of = g.pick((F16, BF16, F32, I8, I32))
        g.tag("contraction:cast")
        return g.builder.cast(g.leaf(of, dims).val, dtype)
    if kind == "computed":
        t = g.leaf(dtype, dims)
        if dtype.is_float:
            return g.builder.map("pre", lambda u: apply(g.pick(("tanh", "abs", "neg")), u), t.val)
        return t.val
    if kind == "sliced" and dims:
        k = g.rng.randrange(len(dims))
        more = list(dims)
        more[k] = Extent(dims[k].expr + 3, dims[k].value + 3)
        return g.leaf(dtype, more).val.slice(k, g.rng.randint(0, 3), dims[k].expr)
    return g.input(dtype, dims).val


def convolution(g: Gen) -> None:
    """Channels-first convolutions: stride, padding, dilation, groups, depthwise, 1-d and 2-d."""
    b: Builder = g.builder
    dtype = g.pick((F32, F32, F32, F32, F64, F16, BF16))
    two = g.chance(0.65)
    n = g.extent(0, 3, 0.4)
    groups = g.pick((1, 1, 1, 2, 3, "depthwise"))
    cin = g.pick((1, 2, 3, 4, 6, 8, 16, 17))
    if groups == "depthwise":
        cg, groups, per = 1, cin, g.pick((1, 1, 2))
        g.tag("conv:depthwise")
    else:
        cg = max(1, cin // groups)
        cin = cg * groups
        per = g.pick((1, 2, 5, 8, 16, 20)) if groups == 1 else g.pick((1, 2, 4, 16))
        g.tag("conv:groups" if groups > 1 else "conv:plain")
    cout = groups * per
    stride, dil = g.pick((1, 1, 2, 3)), g.pick((1, 1, 1, 2))
    kernels = [g.pick((1, 2, 3)) for _ in range(2 if two else 1)]
    if g.chance(0.15):
        kernels = [1] * len(kernels)
    pads = [g.rng.randint(0, k - 1) for k in kernels]
    space = [g.extent(6, 13 if two else 33, 0.25) for _ in kernels]
    if stride > 1:
        g.tag("conv:stride")
    if dil > 1:
        g.tag("conv:dilation")
    x = g.input(dtype, [n, Extent(int_expr(cin), cin), *space])
    wshape = [cout, cg, *kernels]
    w = (
        g.constant(dtype, wshape, hint="w")
        if g.chance(0.8)
        else g.input(dtype, [Extent(int_expr(s), s) for s in wshape])
    )
    outs = [(e.expr + 2 * p - dil * (k - 1) - 1) // stride + 1 for e, p, k in zip(space, pads, kernels, strict=True)]
    name = x.val.name
    assert name is not None
    padded = any(pads)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        at = [i[2 + k] * stride + r[k + 1] * dil - pads[k] for k in range(len(kernels))]
        channel = i[1] // per * cg + r[0] if groups > 1 else r[0]
        read = access(name, i[0], channel, *at, default=const(0.0, dtype) if padded else None)
        return apply("mul", read, w.val(i[1], r[0], *r[1:]))

    out = b.reduce("conv", "sum", [n.expr, cout, *outs], [cg, *kernels], element, dtype)
    g.tag("conv", "window", *(["read:else"] if padded else []))
    t = Tensor(out, g.sized(out), False)
    if g.chance(0.6):
        bias = g.constant(dtype, [cout], hint="bias")
        val = bias.val.view(out.shape, lambda *i: [i[1]])
        out = b.map("cb", lambda u, v: apply("max", apply("add", u, v), const(0.0, dtype)), out, val)
        t = Tensor(out, t.shape, False)
    if g.chance(0.25):  # global average pool
        axes = list(range(2, t.rank))
        out = b.reduce_axes("gap", "sum", t.val, axes, False)
        t = Tensor(out, t.shape[:2], False)
    g.pool.append(t)


def grouped(g: Gen) -> None:
    """Groups written as a reshape: x[b, g, c, s] with w[g, o, c]."""
    dtype = g.pick((F32, F32, F64))
    gr, c, o = g.pick((2, 3, 4)), g.pick((1, 3, 8)), g.pick((2, 8, 16, 17))
    s, batch = g.extent(1, 33), g.extent(0, 3)
    flat = g.input(dtype, [batch, Extent(int_expr(gr * c), gr * c), s])
    x = flat.val.reshape([batch.expr, gr, c, s.expr])
    w = g.constant(dtype, [gr, o, c], hint="w")
    out = g.builder.contract("grp", "bgcs,goc->bgos", x, w.val)
    merged = out.reshape([batch.expr, gr * o, s.expr])
    val = g.builder.compute("flat", merged.shape, lambda *i: merged.at(i), dtype)
    g.tag("contraction", "contraction:groups")
    g.add(val, (batch.value, gr * o, s.value), False)


def attention(g: Gen) -> None:
    """Scores, masked or not, softmax and the weighted sum; heads from a packed projection."""
    b = g.builder
    dtype = g.pick((F32, F32, F32, F16))
    batch, s, h, e = g.extent(1, 2), g.extent(1, 19), g.pick((1, 2, 3)), g.pick((1, 4, 8, 16))
    width = Extent(int_expr(h * e), h * e)
    q, k, v = (g.input(dtype, [batch, s, width]).val.reshape([batch.expr, s.expr, h, e]) for _ in range(3))
    a = b.contract("scores", "bphe,bmhe->bhpm", q, k)
    a = b.map("scaled", lambda u: apply("mul", u, const(e**-0.5, dtype)), a)
    causal = g.chance(0.5)
    if causal:
        g.tag("chain:causal")
        lowest = const(-60000.0, dtype)
        a = b.compute(
            "masked",
            a.shape,
            lambda *i, a=a: apply("select", apply("le", Index(i[3]), Index(i[2])), a.at(i), lowest),
            dtype,
        )
    m = b.reduce_axes("m", "max", a, [3], True)
    p = b.map("e", lambda u, w: apply("exp", apply("sub", u, w)), a, m)
    d = b.reduce_axes("d", "sum", p, [3], True)
    p = b.map("probs", lambda u, w: apply("div", u, w), p, d)
    o = b.contract("av", "bhpm,bmhe->bphe", p, v).reshape([batch.expr, s.expr, h * e])
    w = g.constant(dtype, [h * e, g.pick((5, 16, 33))], hint="wo")
    out = b.contract("proj", "bsk,kn->bsn", o, w.val)
    g.tag("chain:attention", "contraction", "contraction:constant")
    g.add(out, (batch.value, s.value, w.shape[1]), False)


def quantised(g: Gen) -> None:
    """An integer contraction: i8 operands widened to i32."""
    m, k, n = g.extent(0, 17), g.extent(0, 33), g.extent(1, 33)
    x, w = g.input(I8, [m, k]), g.leaf(I8, [k, n])
    val = g.builder.reduce(
        "q",
        "sum",
        [m.expr, n.expr],
        [k.expr],
        lambda i, r: apply("mul", Cast(I32, x.val(i[0], r[0])), Cast(I32, w.val(r[0], i[1]))),
        I32,
    )
    g.tag("contraction", "contraction:int8")
    g.add(val, (m.value, n.value), True)


PRODUCTS: list[tuple[str, float, Piece]] = [
    ("contraction", 5.0, contraction),
    ("convolution", 2.0, convolution),
    ("grouped", 0.4, grouped),
    ("attention", 0.8, attention),
    ("quantised", 0.4, quantised),
]

__all__ = ["PRODUCTS", "F64", "I64"]
