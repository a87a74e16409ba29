"""ATen matrix products: each is one contraction Einsum; scaling and bias are a pointwise Einsum after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlc.frontend.torch_context import Ctx, Operand, add, div, mul, op
from dlc.ir.dtype import BF16, F16, F32, DType
from dlc.ir.expr import Cast, Expr
from dlc.ir.extent import IntExpr
from dlc.ir.view import Val

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def kept_type(dtype: DType) -> DType:
    """The type of a product that is worked on further before it is rounded."""
    return F32 if dtype in (F16, BF16) else dtype


def product(c: Ctx, x: Val, y: Val, dtype: DType | None = None, hint: str | None = None) -> Val:
    """NumPy's matmul: the last two dimensions multiply, the others broadcast."""
    a = x.unsqueeze(0) if x.rank == 1 else x
    b = y.unsqueeze(1) if y.rank == 1 else y
    lead = max(a.rank, b.rank) - 2
    labels = _LETTERS[: lead + 3]
    batch, m, k, n = labels[:lead], labels[lead], labels[lead + 1], labels[lead + 2]
    spec_a, spec_b = batch[lead - (a.rank - 2) :] + m + k, batch[lead - (b.rank - 2) :] + k + n
    out = batch + ("" if x.rank == 1 else m) + ("" if y.rank == 1 else n)
    if x.rank == 1:
        a, spec_a = x, k
    if y.rank == 1:
        b, spec_b = y, k
    # An operand whose batch extents are all 1 is read without them.
    while len(spec_a) > 2 and a.shape[0].const == 1 and spec_a[0] in spec_b:
        a, spec_a = a.squeeze(0), spec_a[1:]
    while len(spec_b) > 2 and b.shape[0].const == 1 and spec_b[0] in spec_a:
        b, spec_b = b.squeeze(0), spec_b[1:]
    return c.b.contract(hint or c.hint, f"{spec_a},{spec_b}->{out}", a, b, dtype=dtype or x.dtype)


def affine(c: Ctx, x: Val, scale: Operand, bias: Val | None, bias_scale: Operand, dtype: DType) -> Val:
    """`scale * x + bias_scale * bias`, rounded to `dtype`."""
    one_x, one_b = _is_one(scale), _is_one(bias_scale)
    if bias is None and one_x:
        return c.cast(x, dtype)
    w = x.dtype
    args = [x] + ([c.cast(bias, w)] if bias is not None else [])
    k, kb = c.val(scale, w).at(()), c.val(bias_scale, w).at(())

    def element(p: Expr, *q: Expr) -> Expr:
        e = p if one_x else mul(k, p)
        if q:
            e = add(e, q[0] if one_b else mul(kb, q[0]))
        return e if w == dtype else Cast(dtype, e)

    return c.b.map(c.hint, element, *args, dtype=dtype)


def _is_one(v: Any) -> bool:
    return isinstance(v, (int, float)) and v == 1


@op("mm", "bmm", "matmul", "mv", "dot", "vdot", "inner", "linalg_matmul", "chain_matmul", "linalg_vecdot")
def matmul(c: Ctx, x: Val, y: Val, **_: Any) -> Val:
    if "inner" in c.target and y.rank > 1:
        out = [*x.shape[:-1], *y.shape[:-1]]
        flat = product(c, x, y.transpose(0, 1)) if y.rank == 2 else None
        if flat is None:
            raise c.unsupported("an operand has more than two dimensions")
        return flat.reshape(out)
    if "vecdot" in c.target:
        from dlc.frontend.torch_reduce import reduce_dims

        return reduce_dims(c, "sum", c.map("product", mul, x, y, dtype=x.dtype), [max(x.rank, y.rank) - 1], False)
    return product(c, x, y)


@op("linear")
def linear(c: Ctx, x: Val, weight: Val, bias: Val | None = None) -> Val:
    t = c.dtype
    w = weight.transpose(0, 1) if weight.rank == 2 else weight
    if bias is None:
        return product(c, x, w, t)
    return affine(c, product(c, x, w, kept_type(t), f"{c.hint}_product"), 1, bias, 1, t)


def _scaled(c: Ctx, bias: Val, x: Val, y: Val, beta: Any, alpha: Any) -> Val:
    t = c.dtype
    bias_used = None if isinstance(beta, (int, float)) and beta == 0 else bias
    if bias_used is None and _is_one(alpha):
        return product(c, x, y, t)
    return affine(c, product(c, x, y, kept_type(t), f"{c.hint}_product"), alpha, bias_used, beta, t)


@op("addmm", "baddbmm", "addmv", "addbmm")
def addmm(c: Ctx, bias: Val, x: Val, y: Val, *, beta: Any = 1, alpha: Any = 1) -> Val:
    if c.target == "aten.addbmm.default":
        s = c.b.contract(f"{c.hint}_product", "bmk,bkn->mn", x, y, dtype=kept_type(c.dtype))
        return affine(c, s, alpha, None if beta == 0 else bias, beta, c.dtype)
    return _scaled(c, bias, x, y, beta, alpha)


@op("_addmm_activation")
def addmm_activation(
    c: Ctx, bias: Val, x: Val, y: Val, *, beta: Any = 1, alpha: Any = 1, use_gelu: bool = False
) -> Val:
    from dlc.frontend.torch_pointwise import gelu, relu

    out = _scaled(c, bias, x, y, beta, alpha)
    return gelu(c, out) if use_gelu else relu(c, out)


@op("outer", "ger", "linalg_outer")
def outer(c: Ctx, x: Val, y: Val) -> Val:
    return c.map(c.hint, mul, c.val(x, c.dtype).unsqueeze(1), c.val(y, c.dtype).unsqueeze(0), dtype=c.dtype)


@op("addr")
def addr(c: Ctx, bias: Val, x: Val, y: Val, *, beta: Any = 1, alpha: Any = 1) -> Val:
    return affine(c, outer(c, x, y), alpha, None if beta == 0 else bias, beta, c.dtype)


@op("einsum")
def einsum(c: Ctx, equation: str, tensors: Sequence[Val], *, path: Any = None) -> Val:
    text = equation.replace(" ", "")
    left, _, right = text.partition("->")
    labels = left.split(",")
    free = iter(x for x in _LETTERS if x not in text)
    depth = max(
        (x.rank - len(s.replace("...", "")) for s, x in zip(labels, tensors, strict=True) if "..." in s), default=0
    )
    dots = "".join(next(free) for _ in range(depth))
    operands: list[Val] = []
    specs: list[str] = []
    for s, x in zip(labels, tensors, strict=True):
        own = x.rank - len(s.replace("...", ""))
        spec = s.replace("...", dots[depth - own :] if own else "")
        x, spec = _diagonals(x, spec)
        operands.append(c.cast(x, c.dtype))
        specs.append(spec)
    if "->" not in text:
        plain = "".join(labels).replace("...", "")
        right = dots + "".join(sorted(ch for ch in set(plain) if plain.count(ch) == 1))
    else:
        right = right.replace("...", dots)
    return c.b.contract(c.hint, f"{','.join(specs)}->{right}", *operands, dtype=c.dtype)


def _diagonals(x: Val, spec: str) -> tuple[Val, str]:
    """A label that an operand carries twice reads its diagonal."""
    distinct = "".join(dict.fromkeys(spec))
    if distinct == spec:
        return x, spec
    shape = [x.shape[spec.index(ch)] for ch in distinct]

    def index(*i: IntExpr) -> list[IntExpr]:
        at = dict(zip(distinct, i, strict=True))
        return [at[ch] for ch in spec]

    return x.view(shape, index), distinct


@op("tensordot")
def tensordot(c: Ctx, x: Val, y: Val, dims_self: Sequence[int], dims_other: Sequence[int]) -> Val:
    a = list(_LETTERS[: x.rank])
    b = list(_LETTERS[x.rank : x.rank + y.rank])
    for p, q in zip(dims_self, dims_other, strict=True):
        b[c.dim(q, y.rank)] = a[c.dim(p, x.rank)]
    out = [ch for ch in a if ch not in b] + [ch for ch in b if ch not in a]
    return c.b.contract(c.hint, f"{''.join(a)},{''.join(b)}->{''.join(out)}", x, y, dtype=c.dtype)


@op("kron")
def kron(c: Ctx, x: Val, y: Val) -> Val:
    rank = max(x.rank, y.rank)
    a = x.reshape([*[1] * (rank - x.rank), *x.shape])
    b = y.reshape([*[1] * (rank - y.rank), *y.shape])

    def element(*i: IntExpr) -> Expr:
        return mul(
            a.at(tuple(n // e for n, e in zip(i, b.shape, strict=True))),
            b.at(tuple(n % e for n, e in zip(i, b.shape, strict=True))),
        )

    return c.b.compute(c.hint, c.shape, element, c.dtype)


@op("bilinear")
def bilinear(c: Ctx, x: Val, y: Val, weight: Val, bias: Val | None = None) -> Val:
    lead = _LETTERS[: x.rank - 1]
    s = c.b.contract(f"{c.hint}_product", f"{lead}X,{lead}Y,OXY->{lead}O", x, y, weight, dtype=kept_type(c.dtype))
    return affine(c, s, 1, bias, 1, c.dtype)


@op("cosine_similarity")
def cosine_similarity(c: Ctx, x: Val, y: Val, dim: int = 1, eps: float = 1e-8) -> Val:
    from dlc.frontend.torch_context import apply, const
    from dlc.frontend.torch_reduce import reduce_dims

    t = c.dtype
    w = kept_type(t)
    shape = c.broadcast(x, y)
    a, b = (c.cast(v, w).broadcast_to(shape) for v in (x, y))
    d = c.dim(dim, len(shape))

    def fold(p: Val, q: Val, hint: str) -> Val:
        both = Val(w, shape, lambda i: mul(p.at(i), q.at(i)))
        return reduce_dims(c, "sum", both, [d], False, hint)

    low = const(eps, w)

    def element(z: Expr, p: Expr, q: Expr) -> Expr:
        return div(z, mul(apply("max", apply("sqrt", p), low), apply("max", apply("sqrt", q), low)))

    out = c.b.map(c.hint, element, fold(a, b, "dot"), fold(a, a, "square"), fold(b, b, "square"), dtype=w)
    return c.cast(out, t)


@op("cdist", "_cdist_forward")
def cdist(c: Ctx, x: Val, y: Val, p: float = 2, compute_mode: Any = None) -> Val:
    from dlc.frontend.torch_context import apply, const, select, sub

    t = x.dtype
    shape = c.shape
    lead = len(shape) - 2
    a, b = x.broadcast_to([*shape[:lead], *x.shape[-2:]]), y.broadcast_to([*shape[:lead], *y.shape[-2:]])
    zero, one, power = const(0, t), const(1, t), const(float(p), t)

    def term(d: Expr) -> Expr:
        if p == 2:
            return mul(d, d)
        if p == 0:
            return select(apply("ne", d, zero), one, zero)
        size = apply("abs", d)
        return size if p in (1, float("inf")) else apply("pow", size, power)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        return term(sub(a.at((*i[:lead], i[-2], r[0])), b.at((*i[:lead], i[-1], r[0]))))

    if x.shape[-1].const == 0:
        return c.b.scalar(0, t).broadcast_to(shape)
    fold = "max" if p == float("inf") else "sum"
    s = c.b.reduce(f"{c.hint}_fold", fold, shape, [x.shape[-1]], element, t)
    if p in (0, 1, float("inf")):
        return s
    return c.b.map(c.hint, lambda e: apply("sqrt", e) if p == 2 else apply("pow", e, div(one, power)), s, dtype=t)


@op("_grouped_mm", "transformers.grouped_mm_fallback.default")
def grouped_mm(c: Ctx, x: Val, weight: Val, offsets: Val, bias: Val | None = None, out_dtype: Any = None) -> Val:
    """`O[s] = X[s] @ W[e]`, with `e` the group of row `s`: rows are sorted by group, `offsets` i64[E] are the groups' ends."""
    from dlc.frontend.torch_context import apply, const, select
    from dlc.ir.dtype import I64
    from dlc.ir.expr import Index, index_value

    if x.rank != 2 or weight.rank != 3 or bias is not None:
        raise c.unsupported("only rows in groups over one weight per group, without bias, are imported")
    ends, groups = c.cast(offsets, I64), weight.shape[0]

    def before(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        return Cast(I64, apply("le", ends.at((r[0],)), Index(i[0])))

    group = c.b.reduce(f"{c.hint}_group", "sum", [x.shape[0]], [groups], before, I64)
    last = c.count([groups - 1], I64)

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        e = index_value(apply("min", group.at((i[0],)), last))
        return mul(x.at((i[0], r[0])), weight.at((e, r[0], i[1])))

    t = c.dtype
    w = kept_type(t)
    y = c.b.reduce(f"{c.hint}_product", "sum", [x.shape[0], weight.shape[2]], [x.shape[1]], element, w)
    # Rows after the last group belong to none and are 0.
    zero = const(0, w)
    out = c.b.map(c.hint, lambda a, e: select(apply("le", e, last), a, zero), y, group.unsqueeze(1), dtype=w)
    return c.cast(out, t)
