"""Matrix products and Einsum, integer products included."""

from __future__ import annotations

from dlc.frontend.onnx_ops.registry import Ctx, Result, op, same_dtype
from dlc.frontend.onnx_ops.shapes import broadcast
from dlc.ir.dtype import I32, DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.view import Shape, Val


def matmul(c: Ctx, a: Val, b: Val, hint: str, dtype: DType | None = None) -> Val:
    """NumPy's matmul: vectors are promoted, leading dimensions broadcast."""
    if a.rank == 0 or b.rank == 0:
        c.bad("an operand is a scalar")
    row, column = a.rank == 1, b.rank == 1
    left = a.unsqueeze(0) if row else a
    right = b.unsqueeze(1) if column else b
    inner = agree(c, left.shape[-1], right.shape[-2])
    batch = broadcast(c, left.shape[:-2], right.shape[:-2])

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        lead = i[: len(batch)]
        return apply("mul", left.at((*_lead(lead, left, batch), i[-2], r[0])), right.at((*_lead(lead, right, batch), r[0], i[-1])))

    shape = [*batch, left.shape[-2], right.shape[-1]]
    y = c.b.reduce(hint, "sum", shape, [inner], element, dtype or a.dtype)
    y = y.squeeze(-1) if column else y
    return y.squeeze(y.rank - 1 if column else y.rank - 2) if row else y


def _lead(index: tuple[IntExpr, ...], v: Val, batch: Shape) -> list[IntExpr]:
    """Index of `v`'s leading dimensions at a point of the broadcast batch."""
    own = v.shape[:-2]
    tail = index[len(index) - len(own) :]
    wide = batch[len(batch) - len(own) :]
    return [int_expr(0) if e.const == 1 and w.const != 1 else i for i, e, w in zip(tail, own, wide, strict=True)]


def agree(c: Ctx, a: IntExpr, b: IntExpr) -> IntExpr:
    """The extent two operands share along a reduced dimension."""
    if a != b and a.const is not None and b.const is not None:
        c.bad(f"inner extents {a} and {b} differ")
    return c.b.equate(a, b)


@op("MatMul")
def mat_mul(c: Ctx) -> Result:
    a, b = c.x(0), c.x(1)
    same_dtype(c, a, b)
    return matmul(c, a, b, c.hint)


@op("Gemm")
def gemm(c: Ctx) -> Result:
    a, b, bias = c.x(0), c.x(1), c.opt(2)
    same_dtype(c, a, b)
    if a.rank != 2 or b.rank != 2:
        c.bad(f"operands have ranks {a.rank} and {b.rank}, not 2")
    a = a.transpose(0, 1) if c.flag("transA", 0) else a
    b = b.transpose(0, 1) if c.flag("transB", 0) else b
    alpha, beta = c.float_("alpha", 1.0), c.float_("beta", 1.0)
    plain = alpha == 1.0 and bias is None
    y = matmul(c, a, b, c.hint if plain else f"{c.hint}_product")
    if plain:
        return y
    t = y.dtype

    def scaled(e: Expr, by: float) -> Expr:
        if by == 1.0:
            return e
        if by == int(by) or t.is_float:
            return apply("mul", e, const(by if t.is_float else int(by), t))
        c.refuse("fractions of integers have no native form")

    if bias is None:
        return c.b.map(c.hint, lambda e: scaled(e, alpha), y)
    if bias.dtype != t:
        c.bad(f"its bias has type {bias.dtype}, its operands {t}")
    return c.b.map(c.hint, lambda e, s: apply("add", scaled(e, alpha), scaled(s, beta)), y, bias)


@op("Einsum")
def einsum(c: Ctx) -> Result:
    vals = [c.x(i) for i in range(len(c.ins))]
    same_dtype(c, *vals)
    inputs, output = parse_equation(c, c.str_("equation"), [v.rank for v in vals])
    extents: dict[str, IntExpr] = {}
    for labels, v in zip(inputs, vals, strict=True):
        for label, e in zip(labels, v.shape, strict=True):
            old = extents.get(label)
            if old is None or old.const == 1:
                extents[label] = e
            elif e.const not in (1, None) and old.const is not None and old != e:
                c.bad(f"label '{label}' has extents {old} and {e}")
            elif e.const != 1:
                extents[label] = c.b.equate(old, e)
    over = [n for n in extents if n not in output]
    if any(n not in extents for n in output):
        c.bad("an output label is in no input")

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        env = dict(zip(output, i, strict=True)) | dict(zip(over, r, strict=True))
        total: Expr | None = None
        for labels, v in zip(inputs, vals, strict=True):
            index = [
                int_expr(0) if e.const == 1 and extents[n].const != 1 else env[n] for n, e in zip(labels, v.shape, strict=True)
            ]
            factor = v.at(tuple(index))
            total = factor if total is None else apply("mul", total, factor)
        assert total is not None
        return total

    return c.b.reduce(c.hint, "sum", [extents[n] for n in output], [extents[n] for n in over], element, vals[0].dtype)


def parse_equation(c: Ctx, equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """Labels of every operand and of the result; the dimensions of an ellipsis are `.0`, `.1`, ... from the right."""
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        c.bad(f"equation {equation!r} has {len(terms)} operands, {len(ranks)} are given")
    inputs = [_labels(c, term, rank, equation) for term, rank in zip(terms, ranks, strict=True)]
    dots = sorted({n for labels in inputs for n in labels if n.startswith(".")}, key=lambda n: -int(n[1:]))
    if arrow:
        return inputs, _labels(c, right, len(right.replace("...", "")) + (len(dots) if "..." in right else 0), equation)
    once = sorted(n for n in set(left) if n.isalpha() and left.count(n) == 1)
    return inputs, dots + once


def _labels(c: Ctx, term: str, rank: int, equation: str) -> list[str]:
    head, dots, tail = term.partition("...")
    hidden = rank - len(head) - len(tail) if dots else 0
    if hidden < 0 or (not dots and len(term) != rank) or not all(x.isalpha() for x in head + tail):
        c.bad(f"'{term}' in equation {equation!r} does not fit rank {rank}")
    return [*head, *(f".{hidden - 1 - n}" for n in range(hidden)), *tail]


# --- integers --------------------------------------------------------------------------------------------------------


def minus_zero_point(c: Ctx, x: Val, zero: Val | None, axis: int) -> Val:
    """`x - zero` as i32, the zero point being one number or one per place of `axis`; a view."""
    if zero is None:
        return c.b.cast(x, I32, "wrap")
    if zero.dtype != x.dtype:
        c.bad(f"its zero point has type {zero.dtype}, its operand {x.dtype}")
    single = zero.rank == 0 or zero.elements.const == 1
    if not single and zero.rank == 1:
        zero = zero.reshape([zero.shape[0] if d == axis % x.rank else 1 for d in range(x.rank)])
    wide = zero.view((), lambda: [0] * zero.rank).broadcast_to(x.shape) if single else zero.broadcast_to(x.shape)
    return Val(I32, x.shape, lambda i: apply("sub", Cast(I32, x.at(i), "wrap"), Cast(I32, wide.at(i), "wrap")))


@op("MatMulInteger")
def mat_mul_integer(c: Ctx) -> Result:
    a, b = c.x(0), c.x(1)
    left = minus_zero_point(c, a, c.opt(2), -2)
    right = minus_zero_point(c, b, c.opt(3), -1)
    return matmul(c, left, right, c.hint, I32)
