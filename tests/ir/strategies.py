"""Random cascades: well typed, verifiable, small; for round trips and for comparing compiled with interpreted.

    made = random_cascade(random.Random(seed))        # or, in hypothesis, `@given(cascades())`
    made.cascade, made.inputs, made.constructs

Each step is drawn from the constructs of docs/ir.md (`CONSTRUCTS`, by name); extents are constants or symbols with values from 0 and 1
to a few vector lengths and odd numbers around them. The inputs fit: index tensors hold valid indices where a construct needs it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np

from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType
from dlc.ir.einsum import Carry, Einsum, Rank, Reduce, Scan, Step, TensorType, Write, einsum
from dlc.ir.errors import IrError
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, Index, Piecewise, const
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, sym, value, var
from dlc.ir.program import Cascade, Param, Symbol, collect_step_types
from dlc.ir.verify import verify_cascade

EXTENTS = (0, 1, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33)
FLOATS = (F32, F32, F32, F32, F64, F16, BF16)
INTS = (I64, I32, I32, I8, U8, I16, U16, U32, U64)
ANY = (F32, F32, F32, F32, F32, F64, F16, BF16, *INTS, BOOL)
_LETTERS = "abcdefghij"


@dataclass(frozen=True)
class Generated:
    """A cascade with inputs that fit, the constructs it was made of, and how many drawn steps did not verify."""

    cascade: Cascade
    inputs: tuple[Any, ...]
    constructs: tuple[str, ...]
    refused: int

    def __repr__(self) -> str:
        shapes = ", ".join(f"{a.dtype}{list(a.shape)}" for a in self.inputs)
        return f"{self.cascade}\n;; inputs {shapes}; constructs {', '.join(self.constructs)}"


@dataclass(frozen=True)
class Size:
    """An extent and its value."""

    expr: IntExpr
    value: int


@dataclass
class Maker:
    """A cascade being made.

    Attributes:
        fill: what an input holds, by name, when it is not ordinary numbers.
        partial: names that not everyone may read.
    """

    rng: random.Random
    numbers: np.random.Generator
    sizes: list[Size] = field(default_factory=list)
    symbols: dict[str, int] = field(default_factory=dict)
    params: list[Param] = field(default_factory=list)
    fill: dict[str, Callable[[tuple[int, ...]], Any]] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    types: dict[str, TensorType] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    count: int = 0

    # --- small choices ---

    def chance(self, p: float) -> bool:
        return self.rng.random() < p

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.rng.randrange(len(options))]

    def name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}{self.count}"

    def new_size(self, least: int = 0) -> Size:
        number = max(least, self.pick(EXTENTS))
        if self.chance(0.5):
            return Size(int_expr(number), number)
        name = f"n{len(self.symbols)}"
        self.symbols[name] = number
        return Size(sym(name), number)

    def size(self, least: int = 0) -> Size:
        """One of the extents in use (so that ranks meet), at least `least`."""
        fitting = [s for s in self.sizes if s.value >= least]
        if fitting and self.chance(0.8):
            return self.pick(fitting)  # type: ignore[no-any-return]
        made = self.new_size(least)
        self.sizes.append(made)
        return made

    def ranks(self, low: int, high: int, start: int = 0, limit: int = 4096) -> list[tuple[Rank, Size]]:
        """Ranks over extents in use; the space stays small."""
        result: list[tuple[Rank, Size]] = []
        total = 1
        for k in range(self.rng.randint(low, high)):
            size = self.size()
            if total * max(size.value, 1) > limit:
                continue
            total *= max(size.value, 1)
            result.append((Rank(_LETTERS[start + k], size.expr), size))
        return result

    # --- tensors ---

    def param(
        self, dtype: DType, shape: Sequence[IntExpr], fill: Callable[[tuple[int, ...]], Any] | None = None
    ) -> str:
        name = self.name("P")
        kind = TensorType(dtype, tuple(shape))
        self.params.append(Param(name, kind))
        self.types[name] = kind
        if fill is not None:
            self.fill[name] = fill
        return name

    def add(self, step: Step) -> None:
        self.steps.append(step)
        collect_step_types(step, self.types)

    def reader(self, dtype: DType, scope: Sequence[tuple[Rank, Size]]) -> Expr:
        """A read of a tensor of `dtype`, over some ranks of the scope."""
        by_extent = {}
        for r, _ in scope:
            by_extent.setdefault(r.extent, []).append(r.name)
        old = [
            n for n, t in self.types.items() if t.dtype == dtype and n not in self.partial and not n.startswith("carry")
            and all(e in by_extent or (e.const or 0) > 0 for e in t.shape)
        ]  # fmt: skip
        if old and self.chance(0.6):
            name = self.pick(old)
            index = tuple(
                var(self.pick(by_extent[e])) if e in by_extent and self.chance(0.95) or e not in by_extent and False
                else int_expr(self.rng.randrange(e.const)) if e.const else var(self.pick(by_extent[e]))
                for e in self.types[name].shape
            )  # fmt: skip
        else:
            chosen = [r for r, _ in scope if self.chance(0.75)][:4]
            self.rng.shuffle(chosen)
            name = self.param(dtype, [r.extent for r in chosen])
            index = tuple(var(r.name) for r in chosen)
        if index and self.chance(0.12):  # shifted, mirrored or strided, with a default
            k = self.rng.randrange(len(index))
            moved = self.pick((index[k] - 1, index[k] + 2, index[k] * 2 - 1, self.types[name].shape[k] - index[k]))
            index = (*index[:k], moved, *index[k + 1 :])
            return Access(name, index, self.constant(dtype))
        if index and self.chance(0.08):
            k = self.rng.randrange(len(index))
            extent = self.types[name].shape[k]
            clamped = minimum(maximum(index[k] - 2, 0), extent - 1)
            return Access(name, (*index[:k], clamped, *index[k + 1 :]))
        return Access(name, index)

    def constant(self, dtype: DType) -> Const:
        if dtype == BOOL:
            return const(self.chance(0.5), BOOL)
        if dtype.is_float:
            return const(self.pick((0.0, 1.0, -0.5, 2.0, 0.25, -3.0)), dtype)
        return const(self.pick((0, 1, 2, 3, 5, 7)), dtype)

    # --- expressions ---

    def expr(self, dtype: DType, scope: Sequence[tuple[Rank, Size]], depth: int = 2) -> Expr:
        """A point-wise expression of `dtype`."""
        if depth == 0 or self.chance(0.2):
            return self.constant(dtype) if self.chance(0.1) else self.reader(dtype, scope)
        if self.chance(0.06):
            return Apply(
                "select",
                (self.condition(scope, depth - 1), self.expr(dtype, scope, depth - 1), self.reader(dtype, scope)),
            )
        if self.chance(0.05):
            guard = self.affine_guard(scope)
            if guard is not None:
                return Piecewise(((guard, self.expr(dtype, scope, depth - 1)),), self.reader(dtype, scope))
        if self.chance(0.08):
            source = self.pick(ANY)
            return Cast(dtype, self.expr(source, scope, depth - 1), self.pick(("sat", "sat", "wrap")))
        if scope and dtype.is_float and self.chance(0.04):
            return Cast(dtype, Index(var(self.pick(scope)[0].name)))
        if dtype == BOOL:
            return self.condition(scope, depth)
        return self.float_op(dtype, scope, depth) if dtype.is_float else self.int_op(dtype, scope, depth)

    def float_op(self, dtype: DType, scope: Sequence[tuple[Rank, Size]], depth: int) -> Expr:
        if self.chance(0.65):
            op = self.pick(("add", "add", "sub", "mul", "mul", "max", "min", "div", "copysign", "maxnum"))
            return Apply(op, (self.expr(dtype, scope, depth - 1), self.expr(dtype, scope, depth - 1)))
        inner = self.expr(dtype, scope, depth - 1)
        op = self.pick(
            ("neg", "abs", "tanh", "sigmoid", "exp", "erf", "sqrt", "log1p", "sin", "floor", "round", "sign", "rsqrt")
        )
        if op == "exp":
            inner = Apply("min", (inner, const(4.0, dtype)))
        if op in ("sqrt", "log1p"):
            inner = Apply("abs", (inner,))
        if op == "rsqrt":
            inner = Apply("add", (Apply("abs", (inner,)), const(1.0, dtype)))
        if op == "sin":
            inner = Apply("tanh", (inner,))
        return Apply(op, (inner,))

    def int_op(self, dtype: DType, scope: Sequence[tuple[Rank, Size]], depth: int) -> Expr:
        left = self.expr(dtype, scope, depth - 1)
        if self.chance(0.15):
            return Apply(self.pick(("neg", "abs", "not", "sign")), (left,))
        ops = "add add sub mul min max and or xor div_trunc div_floor rem_trunc rem_floor div_euclid shl shr".split()
        op = self.pick(ops)
        right = (
            const(self.pick((0, 1, 3, 7, 40)), dtype) if op in ("shl", "shr") else self.expr(dtype, scope, depth - 1)
        )
        return Apply(op, (left, right))

    def condition(self, scope: Sequence[tuple[Rank, Size]], depth: int) -> Expr:
        if self.chance(0.3):
            guard = self.affine_guard(scope)
            if guard is not None:
                return guard
        if self.chance(0.2):
            return self.reader(BOOL, scope)
        if depth > 0 and self.chance(0.25):
            parts = (self.condition(scope, depth - 1), self.condition(scope, depth - 1))
            return Apply(self.pick(("and", "or", "xor")), parts)
        dtype = self.pick((F32, F32, I64, I32))
        pair = (self.reader(dtype, scope), self.constant(dtype) if self.chance(0.5) else self.reader(dtype, scope))
        return Apply(self.pick(("lt", "le", "gt", "ge", "eq", "ne")), pair)

    def affine_guard(self, scope: Sequence[tuple[Rank, Size]]) -> Expr | None:
        if not scope:
            return None
        a = Index(var(self.pick(scope)[0].name))
        b: Expr = Index(var(self.pick(scope)[0].name))
        if a == b or self.chance(0.4):
            b = const(self.rng.randint(0, 6), I64)
        return Apply(self.pick(("lt", "le", "gt", "ge")), (a, b))


# --- constructs ------------------------------------------------------------------------------------------------------


def pointwise(m: Maker) -> None:
    scope, dtype = m.ranks(0, 3), m.pick(ANY)
    ranks = tuple(r for r, _ in scope)
    step = einsum(m.name("T"), ranks, m.expr(dtype, scope, 3), dtype)
    if len(ranks) > 1 and m.chance(0.15):
        order = list(range(len(ranks)))
        m.rng.shuffle(order)
        step = Einsum(step.outs, ranks, step.exprs, step.dtypes, order=tuple(order))
    m.add(step)


def pitched(m: Maker) -> None:
    """A tensor with gaps between its rows, in any order, read whole and folded along one rank."""
    scope, dtype = m.ranks(1, 3), m.pick(FLOATS)
    ranks = tuple(r for r, _ in scope)
    order = list(range(len(ranks)))
    m.rng.shuffle(order)
    step = einsum(m.name("T"), ranks, m.expr(dtype, scope, 2), dtype)
    m.add(replace(step, order=tuple(order) if m.chance(0.7) else None, pitch=m.pick((1, 3, 16))))
    m.partial.add(step.out)
    own = Access(step.out, tuple(var(r.name) for r in ranks))
    m.add(einsum(m.name("T"), ranks, own, dtype))
    if ranks:
        k = m.rng.randrange(len(ranks))
        rest = ranks[:k] + ranks[k + 1 :]
        m.add(einsum(m.name("T"), rest, own, dtype, reduce=Reduce(m.pick(("sum", "max")), (ranks[k],))))


def reduction(m: Maker) -> None:
    scope, dtype = m.ranks(1, 3), m.pick(ANY)
    cut = m.rng.randint(0, len(scope) - 1) if scope else 0
    free, reduced = scope[:cut], scope[cut:]
    if not reduced:
        return pointwise(m)
    if dtype == BOOL:
        op = m.pick(("and", "or", "xor"))
    else:
        op = m.pick(("sum", "sum", "max", "min", *(() if dtype.is_float else ("and", "or", "xor", "prod"))))
    ranks = tuple(r for r, _ in free)
    fold = Reduce(op, tuple(r for r, _ in reduced), F32 if dtype in (F16, BF16) and m.chance(0.5) else None)
    where = m.affine_guard(scope) if m.chance(0.25) else None
    if where is not None and {r.name for r, _ in reduced}.isdisjoint(where.variables):
        where = None
    m.add(einsum(m.name("T"), ranks, m.expr(dtype, scope, 1), dtype, reduce=fold, where=where))


def contraction(m: Maker) -> None:
    """Batched matrix product of tensors in any order of dimensions."""
    dtype = m.pick((F32, F32, F32, F64, F16, BF16, I32, I8))
    sizes = [m.size() for _ in range(4)]
    if np.prod([max(s.value, 1) for s in sizes], dtype=np.float64) > 40000:
        sizes = [min((s, m.size()), key=lambda x: x.value) for s in sizes]
    names = ("b", "m", "n", "k")
    ranks = {n: Rank(n, s.expr) for n, s in zip(names, sizes, strict=True)}
    batch = ["b"] if m.chance(0.4) else []
    wide = I32 if dtype == I8 else dtype
    operands: list[Expr] = []
    for own in (["m", "k"], ["k", "n"]):
        dims = [*batch, *own]
        if m.chance(0.4):
            m.rng.shuffle(dims)
        read: Expr = Access(m.param(dtype, [ranks[d].extent for d in dims]), tuple(var(d) for d in dims))
        operands.append(read if wide == dtype else Cast(wide, read))
    accumulator = F32 if dtype in (F16, BF16) and m.chance(0.5) else None
    free = tuple(ranks[d] for d in [*batch, "m", "n"])
    product = Apply("mul", (operands[0], operands[1]))
    folded = (ranks["k"], Rank("q", int_expr(2))) if m.chance(0.2) else (ranks["k"],)
    where = None
    if m.chance(0.2):
        where = Apply(m.pick(("le", "gt")), (Index(var("k")), Index(var("m"))))
    m.add(einsum(m.name("T"), free, product, wide, reduce=Reduce("sum", folded, accumulator), where=where))
    if m.chance(0.4) and wide.is_float:  # an epilogue for fusion
        bias = m.param(wide, [ranks["n"].extent])
        read = Access(m.steps[-1].outs[0], tuple(var(r.name) for r in free))
        m.add(
            einsum(
                m.name("T"),
                free,
                Apply("max", (Apply("add", (read, Access(bias, (var("n"),)))), const(0.0, wide))),
                wide,
            )
        )


def window(m: Maker) -> None:
    """Convolution or pooling with stride, dilation and padding."""
    kernel, stride, dilation, pad = m.rng.randint(1, 3), m.rng.randint(1, 2), m.rng.randint(1, 2), m.rng.randint(0, 2)
    span = dilation * (kernel - 1) + 1
    h = m.size(least=max(1, span - 2 * pad))
    batch, channels = m.size(), m.pick((1, 2, 3, 5))
    out = (h.expr + (2 * pad - span)) // stride + 1
    dtype = m.pick((F32, F32, F64, I32))
    depthwise = m.chance(0.3)
    x = m.param(dtype, [batch.expr, int_expr(channels), h.expr])
    index = (var("b"), var("c"), stride * var("y") + dilation * var("i") - pad)
    free = [Rank("b", batch.expr), Rank("y", out)]
    if m.chance(0.6):
        read = Access(x, index, const(0, dtype) if pad else None)
        if depthwise:
            weight = Access(m.param(dtype, [int_expr(channels), int_expr(kernel)]), (var("c"), var("i")))
            ranks, folded = (free[0], Rank("c", int_expr(channels)), free[1]), (Rank("i", int_expr(kernel)),)
        else:
            outs = m.pick((1, 2, 4, 7))
            weight = Access(
                m.param(dtype, [int_expr(outs), int_expr(channels), int_expr(kernel)]), (var("o"), var("c"), var("i"))
            )
            ranks = (free[0], Rank("o", int_expr(outs)), free[1])
            folded = (Rank("c", int_expr(channels)), Rank("i", int_expr(kernel)))
        m.add(einsum(m.name("T"), ranks, Apply("mul", (read, weight)), dtype, reduce=Reduce("sum", folded)))
        return
    lowest = const(float("-inf"), dtype) if dtype.is_float else const(dtype.lowest, dtype)
    read = Access(x, index, lowest if pad else None)
    ranks = (free[0], Rank("c", int_expr(channels)), free[1])
    m.add(einsum(m.name("T"), ranks, read, dtype, reduce=Reduce("max", (Rank("i", int_expr(kernel)),))))


def mask(m: Maker) -> None:
    """A softmax-like chain over a partial tensor."""
    scope = [(Rank("p", s.expr), s) for s in [m.size()]] + [(Rank("m", s.expr), s) for s in [m.size()]]
    ranks, dtype = tuple(r for r, _ in scope), m.pick((F32, F32, F64))
    p, q = Index(var("p")), Index(var("m"))
    where = m.pick(
        (
            Apply("le", (q, p)),
            Apply("lt", (p, const(m.rng.randint(0, 5), I64))),
            Apply("and", (Apply("le", (q, p)), Apply("le", (p, Apply("add", (q, const(3, I64))))))),
            Access(m.param(BOOL, [r.extent for r in ranks]), (var("p"), var("m"))),
        )
    )
    scores = m.name("T")
    m.add(einsum(scores, ranks, m.expr(dtype, scope, 1), dtype, where=where))
    read = Access(scores, (var("p"), var("m")))
    if m.chance(0.3):
        m.add(einsum(m.name("T"), ranks, Access(scores, read.index, m.constant(dtype)), dtype))
        m.partial.add(scores)
        return
    over_free = "m" not in where.variables and not isinstance(where, Access)
    made = [m.name("T") for _ in range(3)]
    fold = (Rank("m", scope[1][1].expr),)
    m.add(einsum(made[0], ranks[:1], read, dtype, reduce=Reduce("max", fold)))
    m.add(einsum(made[1], ranks, Apply("exp", (Apply("sub", (read, Access(made[0], (var("p"),)))),)), dtype))
    m.add(einsum(made[2], ranks[:1], Access(made[1], read.index), dtype, reduce=Reduce("sum", fold)))
    m.partial.update((scores, made[1]))
    if m.chance(0.6):  # the weighted sum of attention
        width = m.size()
        values = m.param(dtype, [scope[1][1].expr, width.expr])
        free = (ranks[0], Rank("f", width.expr))
        product = Apply("mul", (Access(made[1], read.index), Access(values, (var("m"), var("f")))))
        weighted = m.name("T")
        m.add(einsum(weighted, free, product, dtype, reduce=Reduce("sum", fold)))
        if over_free:
            m.partial.add(weighted)
            total = m.name("T")
            m.add(einsum(total, free, Access(weighted, (var("p"), var("f")), const(0.0, dtype)), dtype))
    if over_free:
        total = m.name("T")
        default = const(0.0, dtype)
        m.add(einsum(total, ranks[:1], Access(made[2], (var("p"),), default), dtype))
        m.partial.update((made[0], made[2]))


def gather(m: Maker) -> None:
    rows = m.size(least=1)
    scope = m.ranks(1, 2)
    if not scope:
        return pointwise(m)
    dtype = m.pick(ANY)
    inside = m.rng.randrange(1, len(scope) + 1)
    picked, rest = scope[:inside], scope[inside:]
    count = rows.value
    checked = m.chance(0.5)
    low, high = (0, count) if checked else (-3, count + 3)
    ids = m.param(m.pick((I64, I64, I32)), [r.extent for r, _ in picked], lambda s: m.numbers.integers(low, high, s))
    at = value(Access(ids, tuple(var(r.name) for r, _ in picked)))
    table = m.param(dtype, [rows.expr, *(r.extent for r, _ in rest)])
    if not checked and m.chance(0.5):
        at, default = minimum(maximum(at, 0), rows.expr - 1), None
    else:
        default = None if checked else m.constant(dtype)
    read = Access(table, (at, *(var(r.name) for r, _ in rest)), default)
    m.add(einsum(m.name("T"), tuple(r for r, _ in scope), read, dtype))


def scatter(m: Maker) -> None:
    rows, count, width = m.size(least=1), m.size(), m.size()
    dtype = m.pick((F32, F32, F64, I64, I32, U8))
    drop = m.chance(0.4)
    low, high = (-2, rows.value + 2) if drop else (0, rows.value)
    ids = m.param(I64, [count.expr], lambda s: m.numbers.integers(low, high, s))
    onto = m.param(dtype, [rows.expr, width.expr])
    scope = [(Rank("i", count.expr), count), (Rank("j", width.expr), width)]
    op = m.pick(("set", "sum", "max", "min", "sum"))
    write = Write((value(Access(ids, (var("i"),))), var("j")), onto, op, drop)
    where = m.affine_guard(scope) if m.chance(0.15) else None
    m.add(Einsum((m.name("T"),), tuple(r for r, _ in scope), (m.expr(dtype, scope, 1),), (dtype,), None, where, write))


def piecewise(m: Maker) -> None:
    """Concatenation or rotation along a rank."""
    a, b, dtype = m.size(), m.size(), m.pick(ANY)
    other = m.size()
    first, second = (m.param(dtype, [s.expr, other.expr]) for s in (a, b))
    i, j = var("i"), var("j")
    if m.chance(0.6):
        guard = Apply("lt", (Index(i), Index(a.expr)))
        e: Expr = Piecewise(((guard, Access(first, (i, j))),), Access(second, (i - a.expr, j)))
        ranks = (Rank("i", a.expr + b.expr), Rank("j", other.expr))
    else:
        shift = m.rng.randint(0, 2)
        guard = Apply("lt", (Index(i), Index(a.expr - shift)))
        e = Piecewise(((guard, Access(first, (i + shift, j))),), m.constant(dtype))
        ranks = (Rank("i", a.expr), Rank("j", other.expr))
    m.add(einsum(m.name("T"), ranks, e, dtype))


def reshape(m: Maker) -> None:
    """Merged or split dimensions, transposed or mirrored."""
    a, b, dtype = m.size(), m.size(least=1), m.pick(ANY)
    x = m.param(dtype, [a.expr, b.expr])
    i, j = var("i"), var("j")
    kind = m.rng.randrange(4)
    if kind == 0:
        step = einsum(m.name("T"), (Rank("i", a.expr * b.expr),), Access(x, (i // b.expr, i % b.expr)), dtype)
    elif kind == 1:
        step = einsum(m.name("T"), (Rank("j", b.expr), Rank("i", a.expr)), Access(x, (i, j)), dtype)
    elif kind == 2:
        step = einsum(m.name("T"), (Rank("i", a.expr), Rank("j", b.expr)), Access(x, (a.expr - 1 - i, j)), dtype)
    else:
        flat = m.param(dtype, [a.expr * b.expr])
        step = einsum(m.name("T"), (Rank("i", a.expr), Rank("j", b.expr)), Access(flat, (i * b.expr + j,)), dtype)
    m.add(step)


def tuple_reduction(m: Maker) -> None:
    scope = m.ranks(0, 2)
    size = m.size()
    ranks, folded = tuple(r for r, _ in scope), Rank("r", size.expr)
    names = tuple(m.name("T") for _ in range(3))
    if m.chance(0.3):
        x = m.reader(F32, [*scope, (folded, size)])
        step = Einsum(names, ranks, (const(1.0), x, const(0.0)), (F32, F32, F32), Reduce("welford", (folded,)))
    else:
        dtype = m.pick((F32, F32, F64, I64, I32, I8))
        op = m.pick(("argmax", "argmin", "argmax_last", "argmin_last"))
        x = m.reader(dtype, [*scope, (folded, size)])
        step = Einsum(names[:2], ranks, (x, Index(var("r"))), (dtype, I64), Reduce(op, (folded,)))
    m.add(step)


def scan(m: Maker) -> None:
    """A recurrence of one or two states, with a product of matrices or point-wise."""
    steps, width = m.size(), m.size()
    dtype = m.pick((F32, F32, F64, I32))
    scope = [(Rank("j", width.expr), width)]
    ranks = tuple(r for r, _ in scope)
    carry, cur = m.name("carry"), m.name("U")
    init = m.param(dtype, [width.expr])
    x = m.param(dtype, [steps.expr, width.expr])
    state, fresh = Access(carry, (var("j"),)), Access(x, (var("t"), var("j")))
    body: list[Step] = []
    if dtype.is_float and m.chance(0.4):
        w, product = m.param(dtype, [width.expr, width.expr]), m.name("U")
        read = Apply("mul", (Access(carry, (var("k"),)), Access(w, (var("k"), var("j")))))
        body.append(einsum(product, ranks, read, dtype, reduce=Reduce("sum", (Rank("k", width.expr),))))
        e: Expr = Apply("tanh", (Apply("add", (Access(product, (var("j"),)), fresh)),))
    elif dtype.is_float:
        half = const(0.5, dtype)
        e = Apply(m.pick(("add", "max", "sub")), (Apply("mul", (state, half)), fresh))
    else:
        e = Apply(m.pick(("add", "max", "xor")), (state, fresh))
    body.append(einsum(cur, ranks, e, dtype))
    stacked = ((m.name("T"), cur),)
    m.add(Scan(Rank("t", steps.expr), (Carry(carry, init),), tuple(body), (cur,), (m.name("T"),), stacked))
    m.types.pop(carry, None)
    for step in body:
        for out in step.outs:
            m.types.pop(out, None)


CONSTRUCTS: dict[str, Callable[[Maker], None]] = {
    f.__name__: f
    for f in (
        pointwise, pitched, reduction, contraction, window, mask, gather, scatter, piecewise, reshape, tuple_reduction, scan,
    )
}  # fmt: skip


# --- the whole -------------------------------------------------------------------------------------------------------


def random_cascade(rng: random.Random, constructs: Sequence[str] = tuple(CONSTRUCTS), most: int = 4) -> Generated:
    """A cascade of one to `most` constructs."""
    m = Maker(rng, np.random.default_rng(rng.getrandbits(32)))
    m.sizes = [m.new_size() for _ in range(4)]
    used: list[str] = []
    refused = 0
    for _ in range(rng.randint(1, most)):
        kind = m.pick(constructs)
        saved = (list(m.params), list(m.steps), dict(m.types), set(m.partial))
        CONSTRUCTS[kind](m)
        try:
            verify_cascade(_cascade(m))
            used.append(kind)
        except IrError:
            refused += 1
            m.params, m.steps, m.types, m.partial = saved
    if not m.steps:
        a = m.param(F32, [])
        m.add(einsum(m.name("T"), (), Access(a, ()), F32))
        used.append("pointwise")
    cascade = _cascade(m)
    return Generated(cascade, tuple(_input(m, p) for p in cascade.params), tuple(used), refused)


def _cascade(m: Maker) -> Cascade:
    made = [o for s in m.steps for o in s.outs if o not in m.partial]
    read = {r for s in m.steps for r in s.reads}
    results = [o for o in made if o not in read] or made[-1:]
    known = sorted({n[1:] for p in m.params for e in p.type.shape for n in _names(e)})
    symbols = tuple(Symbol(n, lo=min(m.symbols[n], 1)) for n in known)
    steps_need = {n[1:] for s in m.steps for n in s.symbols} - set(known)
    params = list(m.params)
    for n in sorted(steps_need):  # a symbol that no input's shape shows would have no value
        params.append(Param(f"shape_{n}", TensorType(BOOL, (sym(n),))))
    symbols += tuple(Symbol(n, lo=min(m.symbols[n], 1)) for n in sorted(steps_need))
    solvable = {n for p in params for e in p.type.shape if e.is_var for n in _names(e)}
    for n in sorted({n for p in params for e in p.type.shape for n in _names(e)} - solvable):
        params.append(Param(f"shape_{n[1:]}", TensorType(BOOL, (sym(n[1:]),))))
    return Cascade("random", tuple(params), tuple(m.steps), tuple(results), symbols)


def _names(e: IntExpr) -> frozenset[str]:
    from dlc.ir.extent import variables

    return variables(e)


def _input(m: Maker, p: Param) -> Any:
    from dlc.ir.extent import evaluate

    shape = tuple(int(evaluate(e, {"#" + n: v for n, v in m.symbols.items()})) for e in p.type.shape)
    dtype = p.type.dtype
    if p.name in m.fill:
        return m.fill[p.name](shape).astype(dtype.numpy)
    return random_array(m.numbers, dtype, shape, specials=m.chance(0.05))


def random_array(numbers: np.random.Generator, dtype: DType, shape: tuple[int, ...], specials: bool = False) -> Any:
    """Ordinary numbers; with `specials`, some zeros of both signs, infinities and NaN."""
    if dtype == BOOL:
        return numbers.random(shape) < 0.6
    if dtype.is_int:
        low, high = (-100, 100) if dtype.kind == "i" else (0, 200)
        return numbers.integers(low, high, shape).astype(dtype.numpy)
    a = numbers.standard_normal(shape)
    if specials and a.size:
        odd = numbers.random(shape) < 0.1
        a = np.where(odd, numbers.choice([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0], shape), a)
    return a.astype(dtype.numpy)


@st.composite
def cascades(draw: st.DrawFn, constructs: Sequence[str] = tuple(CONSTRUCTS), most: int = 3) -> Generated:
    """Hypothesis strategy of random cascades."""
    return random_cascade(draw(st.randoms(use_true_random=False)), constructs, most)
