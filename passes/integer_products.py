"""Sums of products of scaled bytes become integer sums, with what the zero points add computed apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from dlc.ir.dtype import F32, I8, I32, U8, DType
from dlc.ir.einsum import Einsum, Rank, Reduce, TensorType, einsum
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, accesses, apply, const, transform
from dlc.ir.extent import IntExpr, int_expr, var
from dlc.ir.facts import Facts, SymbolFact
from dlc.ir.interval import interval
from dlc.ir.program import Program, Region, Stmt, tensor_types
from dlc.passes.inline_pointwise import inline_access, is_pointwise
from dlc.passes.pipeline import Pass
from dlc.passes.quantised import BYTES, Quantised, flipped, quantised, through
from dlc.passes.rewrite import Names, drop_dead, map_regions

_ZEROS = 1 << 16  # elements of a tensor that may be zero points; beyond that it is weights


@dataclass(frozen=True)
class IntegerProducts(Pass):
    """Move scales and zero points out of contractions of quantised values.

        Y[m, n]: f32 = sum(k) (s * cast<f32>(cast<i32>(A[m, k]) - z)) * (t[n] * cast<f32>(W[n, k]))
    ->  S[m, n]: i32 = sum(k) cast<i32>(A[m, k]) * cast<i32>(W[n, k])
        C[n]:    i32 = z * (sum(k) cast<i32>(W[n, k]))                           a constant when W is
        Y[m, n]: f32 = cast<f32>(S[m, n] - C[n]) * (s * t[n])

    With zero points on both sides: `sum (a - z)(w - v) = sum a w - z sum w - v sum a + K z v`. The integers are exact, so the
    result has two roundings where each term had two before; sums of i32 are exact modulo 2^32 whatever the values are. A float
    sum is left alone when its integer part could leave i32, when a scale or zero point varies along the sum, and when what lies
    beyond an edge is not the zero point. One operand becomes u8 and the other i8, by 128 and its zero point, for that is what
    processors multiply.

    Source: Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference (CVPR
    2018), section 2.3.
    """

    name: ClassVar[str] = "integer-products"

    def apply(self, program: Program) -> Program:
        return _Products(program).run()


@dataclass
class _Products:
    program: Program
    types: dict[str, TensorType] = field(default_factory=dict)
    consts: frozenset[str] = frozenset()
    literals: dict[str, Const | None] = field(default_factory=dict)

    def run(self) -> Program:
        self.types = tensor_types(self.program)
        self.consts = frozenset(c.name for c in self.program.consts)
        self.names = Names(self.program)
        self.symbols: dict[str, SymbolFact] = self.program.facts
        program = map_regions(self.program, self.region)
        return drop_dead(program) if program is not self.program else program

    def uniform(self, e: Expr) -> Expr | None:
        """The literal that a constant of integers holds everywhere: zero points are often one number, and that 0."""
        if not isinstance(e, Access) or e.tensor not in self.consts or not self.types[e.tensor].dtype.is_int:
            return None
        if self.types[e.tensor].dtype.is_coded:  # weights, zero points or not: what their codes mean is for `coded-products`
            return None
        if e.tensor not in self.literals:
            array = np.asarray(self.program.data[e.tensor]) if e.tensor in self.program.data else np.empty(0)
            same = 0 < array.size <= _ZEROS and (array == array.flat[0]).all()
            self.literals[e.tensor] = const(int(array.flat[0]), self.types[e.tensor].dtype) if same else None
        return self.literals[e.tensor]

    def region(self, region: Region) -> Region:
        known: dict[str, Einsum] = {}
        constant = set(self.consts)
        body: list[Stmt] = []
        other: dict[str, str] = {}  # tensor -> its bytes with the other sign
        for stmt in region.body:
            made = _Product(self, stmt, known, constant, other).steps() if isinstance(stmt, Einsum) else None
            for step in made if made is not None else [stmt]:
                body.append(step)
                if isinstance(step, Einsum) and len(step.outs) == 1:
                    known[step.out] = step
                    if set(step.reads) <= constant and step.write is None:
                        constant.add(step.out)
        same = len(body) == len(region.body) and all(a is b for a, b in zip(body, region.body, strict=True))
        return region if same else Region(tuple(body), region.yields)


@dataclass
class _Product:
    """One step, looked at as a sum of products of scaled bytes."""

    pass_: _Products
    step: Einsum
    known: dict[str, Einsum]
    constant: set[str]
    other: dict[str, str]
    made: list[Einsum] = field(default_factory=list)

    def steps(self) -> list[Einsum] | None:
        """What replaces the step; None when it stays."""
        step, types = self.step, self.pass_.types
        if step.reduce is None or step.reduce.op != "sum" or step.where is not None or step.write is not None:
            return None
        if len(step.exprs) != 1 or step.dtype not in (F32, I32) or step.reduce.accumulator not in (None, step.dtype):
            return None
        if not isinstance(step.expr, Apply) or step.expr.op != "mul":
            return None
        left, right = (self.factor(f) for f in step.expr.args)
        if left is None or right is None or not (self.holds_along(left) and self.holds_along(right)):
            return None
        plain = left.zero is None and right.zero is None and left.scale is None and right.scale is None
        signs = {types[q.byte.tensor].dtype for q in (left, right)}
        if step.dtype == I32 and plain and signs == set(BYTES) and self.is_direct():
            return None
        if step.dtype == F32 and not self.fits(left, right):
            return None
        left, right = self.signed(left, right)
        return [*self.made, *self.result(left, right)]

    def is_direct(self) -> bool:
        """Whether the factors are widened bytes already."""
        assert isinstance(self.step.expr, Apply)
        return all(isinstance(f, Cast) and isinstance(f.arg, Access) for f in self.step.expr.args)

    def factor(self, e: Expr) -> Quantised | None:
        facts = Facts(self.step.extents, self.pass_.symbols)
        while isinstance(e, Access) and _is_view(self.known.get(e.tensor)):
            e = inline_access(e, self.known[e.tensor], facts)
        if not isinstance(e, Access):
            return quantised(transform(e, self.pass_.uniform), self.pass_.types)
        producer = self.known.get(e.tensor)
        if producer is None:
            return None
        literal = self.pass_.uniform
        return through(
            e, replace(producer, exprs=tuple(transform(x, literal) for x in producer.exprs)), self.pass_.types
        )

    def holds_along(self, q: Quantised) -> bool:
        """Whether the byte moves along every reduced rank, and scale and zero point along none."""
        reduced = {r.name for r in self.step.reduced}
        fixed = [e for e in (q.zero, q.scale) if e is not None]
        inner = q.byte.default
        if inner is not None and not isinstance(inner, Const):
            return False
        return reduced <= q.byte.variables and all(reduced.isdisjoint(e.variables) for e in fixed)

    # --- the range of the integer part ---

    def terms(self) -> IntExpr:
        return math.prod((r.extent for r in self.step.reduced), start=int_expr(1))

    def fits(self, *operands: Quantised) -> bool:
        """Whether the sum of products stays inside i32."""
        most = interval(self.terms(), {}, self.pass_.symbols)[1]
        if most is None:
            return False
        for q in operands:
            most *= self.reach(q)
        return most < 1 << 31

    def reach(self, q: Quantised) -> int:
        """The largest |byte - zero|."""
        dtype = self.pass_.types[q.byte.tensor].dtype
        if q.zero is None:
            return max(-dtype.lowest, dtype.highest)
        if isinstance(q.zero, Const):
            return max(abs(dtype.lowest - int(q.zero.value)), abs(dtype.highest - int(q.zero.value)))
        return 510  # a byte and a byte of either sign

    # --- signs ---

    def signed(self, left: Quantised, right: Quantised) -> tuple[Quantised, Quantised]:
        """One operand unsigned and one signed; of two alike the one is changed that leaves least to do at run time."""
        types = self.pass_.types
        if types[left.byte.tensor].dtype != types[right.byte.tensor].dtype:
            return left, right
        if self.flip_cost(left, right) <= self.flip_cost(right, left):
            return self.flip(left), right
        return left, self.flip(right)

    def flip_cost(self, q: Quantised, other: Quantised) -> int:
        dtype = self.pass_.types[q.byte.tensor].dtype
        zero = flipped(q, "", dtype).zero
        sums_other = zero is not None and other.byte.tensor not in self.constant
        sums_mine = other.zero is not None and q.byte.tensor not in self.constant
        return 4 * (sums_other + sums_mine) + (q.byte.tensor not in self.constant)

    def flip(self, q: Quantised) -> Quantised:
        types, tensor = self.pass_.types, q.byte.tensor
        old = types[tensor]
        dtype = U8 if old.dtype == I8 else I8
        if tensor not in self.other:
            ranks = tuple(Rank(f"i{n}", e) for n, e in enumerate(old.shape))
            byte = Access(tensor, tuple(var(r.name) for r in ranks))
            if dtype == U8:
                expr: Expr = apply("xor", Bitcast(U8, byte), const(128, U8))
            else:
                expr = Bitcast(I8, apply("xor", byte, const(128, U8)))
            self.other[tensor] = self.emit(f"{tensor}_{dtype}", ranks, expr, dtype)
        return flipped(q, self.other[tensor], old.dtype)

    def emit(self, hint: str, ranks: tuple[Rank, ...], expr: Expr, dtype: DType, reduce: Reduce | None = None) -> str:
        name = self.pass_.names.fresh(hint)
        step = replace(einsum(name, ranks, expr, dtype, loc=self.step.loc), reduce=reduce)
        self.made.append(step)
        self.pass_.types[name] = TensorType(dtype, tuple(r.extent for r in ranks))
        if set(step.reads) <= self.constant:
            self.constant.add(name)
        return name

    # --- the result ---

    def result(self, left: Quantised, right: Quantised) -> list[Einsum]:
        step = self.step
        before = len(self.made)
        product = apply("mul", Cast(I32, left.byte), Cast(I32, right.byte))
        sums = self.emit(f"{step.out}_sums", step.ranks, product, I32, Reduce("sum", step.reduced))
        whole: Expr = Access(sums, tuple(var(r.name) for r in step.ranks))
        fixed: list[Expr] = []  # known at compile time, negative
        for zero, q in ((left.zero, right), (right.zero, left)):
            if zero is not None:
                part = self.zeroed_sum(zero, q)
                if self.is_constant(part):
                    fixed.append(part)
                else:
                    whole = apply("sub", whole, part)
        if left.zero is not None and right.zero is not None:
            part = self.all_zeros(left.zero, right.zero)
            fixed = [apply("sub", fixed[0], part), *fixed[1:]] if fixed and self.is_constant(part) else fixed
            whole = whole if fixed and self.is_constant(part) else apply("add", whole, part)
        for part in fixed:
            whole = apply("sub", whole, self.constant_of("zero", part, I32))
        value = whole
        if step.dtype != I32:
            value = Cast(step.dtype, whole)
            scale = self.scale(left.scale, right.scale)
            value = value if scale is None else apply("mul", value, scale)
        made = self.made[before:]
        del self.made[before:]
        return [*made, replace(step, exprs=(value,), reduce=None)]

    def zeroed_sum(self, zero: Expr, q: Quantised) -> Expr:
        """`zero * sum(k) q`."""
        free = tuple(r for r in self.step.ranks if r.name in q.byte.variables)
        reduce = Reduce("sum", self.step.reduced)
        name = self.emit(f"{self.step.out}_sum", free, Cast(I32, q.byte), I32, reduce)
        total: Expr = Access(name, tuple(var(r.name) for r in free))
        return apply("mul", total, zero)

    def all_zeros(self, left: Expr, right: Expr) -> Expr:
        terms = self.terms()
        count = const(terms.const, I32) if terms.const is not None else Cast(I32, Index(terms), "wrap")
        return apply("mul", apply("mul", left, right), count)

    def scale(self, left: Expr | None, right: Expr | None) -> Expr | None:
        if left is None or right is None:
            return left if right is None else right
        return self.constant_of("scale", apply("mul", left, right), self.step.dtype)

    def is_constant(self, e: Expr) -> bool:
        return {a.tensor for a in accesses(e)} <= self.constant and not any(n.startswith("#") for n in e.variables)

    def constant_of(self, hint: str, e: Expr, dtype: DType) -> Expr:
        """`e` by itself when it is constant, so that it is computed now, over the ranks that it uses."""
        free = tuple(r for r in self.step.ranks if r.name in e.variables)
        if not free or not self.is_constant(e):
            return e
        name = self.emit(f"{self.step.out}_{hint}", free, e, dtype)
        return Access(name, tuple(var(r.name) for r in free))


def _is_view(step: Einsum | None) -> bool:
    """Whether the step only reads elsewhere, a pad included."""
    return step is not None and is_pointwise(step) and isinstance(step.expr, Access)
