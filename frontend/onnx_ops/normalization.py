"""Normalisations: batch, instance, group, layer, RMS, Lp, local response; dropout as inference has it."""

from __future__ import annotations

from dlc.frontend.onnx_load import ELEMENT_TYPES
from dlc.frontend.onnx_ops.pointwise import wide_type
from dlc.frontend.onnx_ops.reductions import count_of, fold, standardise, widened
from dlc.frontend.onnx_ops.registry import Ctx, Result, op
from dlc.ir.dtype import BOOL, DType
from dlc.ir.expr import Cast, Expr, access, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.view import Val


def per_channel(v: Val, rank: int) -> Val:
    """A vector over channels, to broadcast against [N, C, ...]."""
    return v.reshape([v.shape[0], *([1] * (rank - 2))])


def rounded(e: Expr, source: DType, to: DType) -> Expr:
    return e if source == to else Cast(to, e)


def affine(c: Ctx, y: Val, scale: Val | None, bias: Val | None, dtype: DType) -> Val:
    """`y * scale + bias`, operands broadcast, rounded to `dtype` once."""
    t = y.dtype
    operands = [y, *(v for v in (scale, bias) if v is not None)]

    def element(*args: Expr) -> Expr:
        rest = [rounded(a, v.dtype, t) for a, v in zip(args[1:], operands[1:], strict=True)]
        e = args[0]
        if scale is not None:
            e = apply("mul", e, rest.pop(0))
        if bias is not None:
            e = apply("add", e, rest.pop(0))
        return rounded(e, t, dtype)

    return c.b.map(c.hint, element, *operands, dtype=dtype)


@op("BatchNormalization")
def batch_normalization(c: Ctx) -> Result:
    x, scale, bias, mean, var = (c.x(i) for i in range(5))
    epsilon = c.float_("epsilon", 1e-5)
    t = wide_type(x.dtype)
    if c.flag("spatial", 1) != 1:
        c.refuse("spatial = 0 has no native form")
    if c.flag("training_mode", 0):
        return training_batch(c, x, (scale, bias, mean, var), epsilon)
    if c.outputs > 1 and any(c.wants(i) for i in range(1, c.outputs)):
        c.refuse("it asks for training outputs")
    args = [per_channel(v, x.rank) for v in (scale, bias, mean, var)]

    def element(e: Expr, s: Expr, b: Expr, m: Expr, v: Expr) -> Expr:
        e, s, b, m, v = (rounded(a, w.dtype, t) for a, w in zip((e, s, b, m, v), (x, scale, bias, mean, var), strict=True))
        deviation = apply("sqrt", apply("add", v, const(epsilon, t)))
        return rounded(apply("add", apply("mul", apply("div", apply("sub", e, m), deviation), s), b), t, x.dtype)

    return c.b.map(c.hint, element, x, *args)


def training_batch(c: Ctx, x: Val, args: tuple[Val, Val, Val, Val], epsilon: float) -> Result:
    """Statistics of the batch itself, and the running ones moved towards them."""
    scale, bias, mean, var = args
    momentum = c.float_("momentum", 0.9)
    dims = [d for d in range(x.rank) if d != 1]
    t = wide_type(x.dtype)
    normal, batch_mean, _ = standardise(c, x, dims, epsilon)
    y = affine(c, normal, per_channel(scale, x.rank), per_channel(bias, x.rank), x.dtype)
    centred = c.b.map(f"{c.hint}_away", lambda a, m: apply("sub", a, m), widened(x), batch_mean, dtype=t)
    squares = fold(c, "sum", centred, dims, lambda e: apply("mul", e, e), t, f"{c.hint}_spread")
    batch_var = c.b.map(f"{c.hint}_variance", lambda a: apply("div", a, count_of(x, dims, t)), squares)

    def move(old: Val, new: Val, hint: str) -> Val:
        flat = new.squeeze(*dims)

        def element(o: Expr, n: Expr) -> Expr:
            kept = apply("mul", rounded(o, old.dtype, t), const(momentum, t))
            return rounded(apply("add", kept, apply("mul", n, const(1 - momentum, t))), t, old.dtype)

        return c.b.map(hint, element, old, flat, dtype=old.dtype)

    return y, move(mean, batch_mean, f"{c.hint}_mean_out"), move(var, batch_var, f"{c.hint}_var_out")


@op("InstanceNormalization")
def instance_normalization(c: Ctx) -> Result:
    x, scale, bias = c.x(0), c.x(1), c.x(2)
    y, _, _ = standardise(c, x, list(range(2, x.rank)), c.float_("epsilon", 1e-5))
    return affine(c, y, per_channel(scale, x.rank), per_channel(bias, x.rank), x.dtype)


@op("GroupNormalization")
def group_normalization(c: Ctx) -> Result:
    x, scale, bias = c.x(0), c.x(1), c.x(2)
    groups = c.int_("num_groups")
    n, channels = x.shape[0], x.shape[1]
    if groups < 1 or (channels.const is not None and channels.const % groups):
        c.bad(f"{channels} channels cannot be split into {groups} groups")
    split = x.reshape([n, groups, channels // groups, *x.shape[2:]])
    y, _, _ = standardise(c, split, list(range(2, split.rank)), c.float_("epsilon", 1e-5))
    y = y.reshape(x.shape)
    if scale.shape[0] == channels:
        return affine(c, y, per_channel(scale, x.rank), per_channel(bias, x.rank), x.dtype)
    each = channels // groups
    wide = [v.view([channels], lambda i, v=v: [i // each]) for v in (scale, bias)]
    return affine(c, y, per_channel(wide[0], x.rank), per_channel(wide[1], x.rank), x.dtype)


@op("LayerNormalization")
def layer_normalization(c: Ctx) -> Result:
    x, scale, bias = c.x(0), c.opt(1), c.opt(2)
    axis = c.axis(c.int_("axis", -1), x.rank)
    dims = list(range(axis, x.rank))
    stash = ELEMENT_TYPES.get(c.int_("stash_type", 1))
    y, mean, inverse = standardise(c, x, dims, c.float_("epsilon", 1e-5))
    out = affine(c, y, scale, bias, x.dtype)
    if not (c.wants(1) or c.wants(2)):
        return out
    if stash is None:
        c.refuse("its stash_type has no native form")
    return out, c.b.cast(mean, stash), c.b.cast(inverse, stash)


@op("RMSNormalization")
def rms_normalization(c: Ctx) -> Result:
    x, scale = c.x(0), c.opt(1)
    axis = c.axis(c.int_("axis", -1), x.rank)
    dims = list(range(axis, x.rank))
    small = widened(x)
    t = small.dtype
    squares = fold(c, "sum", small, dims, lambda e: apply("mul", e, e), t, f"{c.hint}_squares")
    epsilon = c.float_("epsilon", 1e-5)

    def inverse(a: Expr) -> Expr:
        mean = apply("div", a, count_of(x, dims, t))
        return apply("div", const(1, t), apply("sqrt", apply("add", mean, const(epsilon, t))))

    factor = c.b.map(f"{c.hint}_inverse", inverse, squares)

    def element(e: Expr, f: Expr, *s: Expr) -> Expr:
        y = apply("mul", rounded(e, x.dtype, t), f)
        return rounded(apply("mul", y, rounded(s[0], scale.dtype, t)) if scale is not None else y, t, x.dtype)

    return c.b.map(c.hint, element, x, factor, *([scale] if scale is not None else []))


@op("LpNormalization")
def lp_normalization(c: Ctx) -> Result:
    x = c.x(0)
    axis = c.axis(c.int_("axis", -1), x.rank)
    p = c.int_("p", 2)
    if p not in (1, 2):
        c.bad(f"p is {p}, not 1 or 2")
    small = widened(x)
    t = small.dtype

    def power(e: Expr) -> Expr:
        return apply("mul", e, e) if p == 2 else apply("abs", e)

    total = fold(c, "sum", small, [axis], power, t, f"{c.hint}_sum")

    def element(e: Expr, s: Expr) -> Expr:
        norm = apply("sqrt", s) if p == 2 else s
        y = apply("div", rounded(e, x.dtype, t), norm)
        # A vector of zeros stays zero.
        return rounded(apply("select", apply("eq", norm, const(0, t)), const(0, t), y), t, x.dtype)

    return c.b.map(c.hint, element, x, total)


@op("LRN")
def lrn(c: Ctx) -> Result:
    x = c.x(0)
    size, alpha, beta, bias = c.int_("size"), c.float_("alpha", 1e-4), c.float_("beta", 0.75), c.float_("bias", 1.0)
    base = c.b.materialize(x, f"{c.hint}_in")
    assert base.name is not None
    name, t = base.name, wide_type(x.dtype)
    before = (size - 1) // 2

    def near(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        e = rounded(access(name, i[0], i[1] + r[0] - before, *i[2:], default=const(0, x.dtype)), x.dtype, t)
        return apply("mul", e, e)

    squares = c.b.reduce(f"{c.hint}_squares", "sum", x.shape, [size], near, t)

    def element(e: Expr, s: Expr) -> Expr:
        scale = apply("add", const(bias, t), apply("mul", const(alpha / size, t), s))
        return rounded(apply("div", rounded(e, x.dtype, t), apply("pow", scale, const(beta, t))), t, x.dtype)

    return c.b.map(c.hint, element, x, squares)


@op("Dropout")
def dropout(c: Ctx) -> Result:
    x = c.x(0)
    training = False
    if c.version >= 12 and c.has(2):
        training = bool(c.scalar_number(2, "its training_mode"))
    ratio = 0.5
    if training:
        ratio = float(c.scalar_number(1, "its ratio")) if c.has(1) else 0.5
        if ratio != 0.0:
            c.refuse("training mode draws random numbers")
    mask_type = BOOL if c.version >= 10 else x.dtype
    mask = c.b.scalar(True if mask_type == BOOL else 1, mask_type).broadcast_to(x.shape)
    return (x, mask) if c.wants(1) else x


