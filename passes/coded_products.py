"""Contractions with weights that are stored as codes read the codes, packed for the kernel, and decode them in registers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from dlc.costmodel.words import WordCosts
from dlc.ir.coded_sums import TALL, TERMS, part_of
from dlc.ir.codes import coded, codes_of, decode
from dlc.ir.dtype import BF16, F16, F32, I8, I16, I32, U1, U8, UNSIGNED, DType
from dlc.ir.einsum import Einsum, Rank, Reduce, TensorType, einsum
from dlc.ir.expr import (
    Access,
    Apply,
    Cast,
    Const,
    Expr,
    Index,
    Piecewise,
    accesses,
    apply,
    const,
    dtype_of,
    map_indices,
    transform,
)
from dlc.ir.extent import IntExpr, evaluate, int_expr, minimum, split_linear, substitute, var
from dlc.ir.facts import Facts
from dlc.ir.products import plain_access
from dlc.ir.program import Param, Program, Region, Stmt, fresh_name, tensor_types
from dlc.passes.bit_products import BitProduct, plane_factors
from dlc.passes.decoded import Affine, Decoded, affine, decoded, factors, group_of, integers, is_code, table_of
from dlc.passes.inline_pointwise import inline_access, is_pointwise
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.relayout import relayout
from dlc.passes.rewrite import Names, drop_dead, map_regions

_LONG, _BLOCK = 1024, 512  # terms of a group beyond which it is summed in blocks, and those of a block


@dataclass(frozen=True)
class CodedProducts(Pass):
    """Multiply by codes, and by what they have in common afterwards.

        W[n, k] = (cast<f32>(C[n, k]) - cast<f32>(Z[n, k // 32])) * S[n, k // 32]                  C: u4 in memory as it came
        Y[m, n] = sum(k) (A[m] * cast<f32>(Q[m, k])) * W[n, k]                                     Q: i8

    ->  T[m, g]    = sum(j:32) cast<i32>(Q[m, 32*g + j])
        P[m, n, g] = sum(j:32) cast<i32>(Q[m, 32*g + j]) * cast<i32>(D[n // 32, g, j // 8, n % 32, j % 4, j // 4 % 2])
        R[m, n]    = sum(g) cast<f32>(P[m, n, g] - Z[n, g] * T[m, g]) * S[n, g]
        Y[m, n]    = R[m, n] * A[m]

    D has the codes of C in the order in which a register tile takes them up (`dlc.ir.coded_sums`), so that a panel of columns is
    one stream. Activations that are floats stay so: `P = sum(j) X * (cast<f32>(D) - Z)`, in f32, or in bf16 where they are bf16. Codes
    of floats whose numbers are whole ones of a byte times a power of two are multiplied as such by i8; other numbers by i8 in bf16,
    which holds both factors exactly. A group of more than 1024 terms is summed in blocks of 512. Activations of at most 4 bits meet
    weights as counts of common bits (`dlc.passes.bit_products`) where that costs less, else as bytes.

    Left alone are weights that are no constant, codes read otherwise than by rows and columns, scales and zero points that vary
    inside a group, and codes that stand for NaN or an infinity beside i8.

    `dot` and `bits` are what the processor needs for a register of words (`dlc.costmodel.words`).

    Source: Tilus (arXiv 2504.12984); the zero point's part of a sum as in Jacob et al. (CVPR 2018), section 2.3.
    """

    name: ClassVar[str] = "coded-products"
    lanes: int = 16
    registers: int = 32
    dot: int = WordCosts.dot
    bits: int = WordCosts.bits

    def __post_init__(self) -> None:
        for option in ("lanes", "registers"):
            value = getattr(self, option)
            if value < 1 or value & (value - 1):
                raise BadOption(option=option, name=self.name, wanted="a power of two", value=value)
        for option in ("dot", "bits"):
            if getattr(self, option) < 1:
                raise BadOption(option=option, name=self.name, wanted="at least 1", value=getattr(self, option))

    def apply(self, program: Program) -> Program:
        return _Products(program, self).run()


@dataclass
class _Products:
    program: Program
    options: CodedProducts
    data: dict[str, Any] = field(default_factory=dict)
    consts: list[Param] = field(default_factory=list)
    laid_out: dict[tuple[object, ...], str] = field(default_factory=dict)

    def run(self) -> Program:
        self.types = tensor_types(self.program)
        self.held = {c.name: c.type for c in self.program.consts if c.name in self.program.data}
        if not any(is_code(t.dtype) and t.rank > 1 for t in self.held.values()):
            return self.program
        self.data, self.consts = dict(self.program.data), list(self.program.consts)
        self.names = Names(self.program)
        program = map_regions(self.program, self.region)
        if program is self.program:
            return program
        return drop_dead(replace(program, consts=tuple(self.consts), data=self.data))

    def region(self, region: Region) -> Region:
        known: dict[str, Einsum] = {}
        body: list[Stmt] = []
        for stmt in region.body:
            made = self.replaced(stmt, known) if isinstance(stmt, Einsum) else None
            for step in made if made is not None else [stmt]:
                body.append(step)
                if isinstance(step, Einsum) and is_pointwise(step):
                    known[step.out] = step
        same = len(body) == len(region.body) and all(a is b for a, b in zip(body, region.body, strict=True))
        return region if same else Region(tuple(body), region.yields)

    def replaced(self, step: Einsum, known: Mapping[str, Einsum]) -> list[Einsum] | None:
        product = _find(self, step, known)
        return None if product is None else product.steps()

    # --- constants in another layout ---

    def constant(self, hint: str, key: tuple[object, ...], dtype: DType, ranks: Sequence[tuple[str, int]], make: Any) -> str:
        """A new constant; the same layout of the same one twice is one."""
        if key not in self.laid_out:
            name = self.names.fresh(hint)
            self.data[name] = make()
            type_ = TensorType(dtype, tuple(int_expr(n) for _, n in ranks))
            self.consts.append(Param(name, type_))
            self.types[name] = type_
            self.laid_out[key] = name
        return self.laid_out[key]


def _find(pass_: _Products, step: Einsum, known: Mapping[str, Einsum]) -> CodedProduct | None:
    """The step as a product with decoded weights; None when it is none that a kernel streams."""
    if step.reduce is None or step.reduce.op != "sum" or step.where is not None or step.write is not None:
        return None
    if len(step.exprs) != 1 or step.dtype not in (F32, F16, BF16) or step.reduce.accumulator not in (None, F32):
        return None
    if len(step.reduced) != 1 or step.reduced[0].extent.const is None or step.order is not None or step.pitch:
        return None
    opened = _Opened(pass_, step, known)
    parts = tuple(f for e in factors(step.expr) for f in opened.factor(e))
    term = step.reduced[0]
    weights = decoded(_times(parts), pass_.held, term.name) if len(parts) > 1 else None
    if weights is None:
        return None
    terms = term.extent.const or 0
    free = [r for r in step.ranks if r.name in weights.codes.variables]
    rows = [s for s in weights.scales if group_of((s,), term.name, terms) is None]
    if len(free) != 1 or len(rows) != 1 or weights.codes.variables != {free[0].name, term.name} or terms < 1:
        return None
    column = free[0]
    rest = tuple(s for s in weights.scales if s is not rows[0])
    size = group_of((*rest, *((weights.zero,) if weights.zero is not None else ())), term.name, terms)
    if size is None or column.name in rows[0].variables or (column.extent.const or 0) < 2:
        return None
    if not pass_.held[weights.codes.tensor].dtype.is_coded and size == terms and opened.bytes_in(rows[0]):
        return None  # bytes by bytes, with one scale for the whole sum: `integer-products`
    found = CodedProduct(pass_, step, replace(weights, scales=rest), rows[0], column, term, size)
    return found if found.kind is not None else None


@dataclass(frozen=True)
class _Opened:
    """Reads through point-wise producers, as far as there are codes or bytes behind them."""

    pass_: _Products
    step: Einsum
    known: Mapping[str, Einsum]

    def factor(self, e: Expr) -> tuple[Expr, ...]:
        if isinstance(e, Access) and e.default is None and e.tensor in self.known and self.behind(e.tensor):
            facts = Facts(self.step.extents, self.pass_.program.facts)
            return tuple(f for part in factors(inline_access(e, self.known[e.tensor], facts)) for f in self.factor(part))
        if isinstance(e, Apply) and e.op in ("mul", "sub"):
            parts = [_times(self.factor(a)) for a in e.args]
            e = e if all(a is b for a, b in zip(parts, e.args, strict=True)) else Apply(e.op, tuple(parts))
            return factors(e)
        return (e,)

    def bytes_in(self, e: Expr) -> bool:
        """Whether bytes lie behind `e`, point by point."""
        for a in accesses(e):
            if self.pass_.types[a.tensor].dtype == U8 or _is_byte(a, self.pass_.types):
                return True
            if a.tensor in self.known and self.bytes_in(self.known[a.tensor].expr):
                return True
        return False

    def behind(self, tensor: str) -> bool:
        """Whether a matrix of codes, or bytes made at run time, lie behind a point-wise tensor."""
        read = list(self.known[tensor].accesses())
        if any(a.tensor in self.pass_.held and _matrix_of_codes(self.pass_.held[a.tensor]) for a in read):
            return True
        if any(isinstance(p, Cast) and _is_byte(p.arg, self.pass_.types) for p in factors(self.known[tensor].expr)):
            return True
        return any(a.tensor in self.known and self.behind(a.tensor) for a in read)


def _matrix_of_codes(of: TensorType) -> bool:
    return is_code(of.dtype) and of.rank > 1


def _is_byte(e: Expr, types: Mapping[str, TensorType]) -> bool:
    """Whether `e` is a byte of a tensor, or an integer of a few bits that fits a signed one."""
    if isinstance(e, Access) and e.default is not None:
        return False
    dtype = dtype_of(e, lambda t: types[t].dtype)
    small = dtype.is_coded and not dtype.is_float and -128 <= dtype.lowest and dtype.highest <= 127
    return small or (isinstance(e, Access) and dtype == I8)


def _times(parts: Sequence[Expr]) -> Expr:
    total = parts[0]
    for part in parts[1:]:
        total = apply("mul", total, part)
    return total


@dataclass
class CodedProduct:
    """One contraction, as a sum of products with codes.

    Attributes:
        rows: the factor of activations; scales in `weights` are all the others.
        size: terms of a group.
    """

    pass_: _Products
    step: Einsum
    weights: Decoded
    rows: Expr
    column: Rank
    term: Rank
    size: int
    made: list[Einsum] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kind = self._kind()

    # --- what is multiplied ---

    def _kind(self) -> DType | None:
        """The type of what meets the codes of the activations': u1 (bits of them), i8, bf16 or f32; None when the codes do not suit."""
        dtype = self.pass_.held[self.weights.codes.tensor].dtype
        self.table = table_of(self.weights.value, self.weights.codes, dtype)
        self.line = affine(self.table)
        if self.line is None:  # codes that do not occur are as good as 0
            self.table = np.where(self.occurs(len(self.table)), self.table, 0.0)
        self.bytes = integers(self.table) if self.line is None else None
        rows = dtype_of(self.rows, lambda t: self.pass_.types[t].dtype)
        if isinstance(self.rows, Cast) and _is_byte(self.rows.arg, self.pass_.types):
            if self._bit_by_bit():
                return U1
            if self.line is not None or self.bytes is not None:
                return I8
            return BF16 if np.isfinite(self.table).all() and _in_bf16(self.table) and self.weights.zero is None else None
        if isinstance(self.rows, Cast) and dtype_of(self.rows.arg, lambda t: self.pass_.types[t].dtype) == BF16:
            return BF16 if self.numbers_in_bf16() else F32
        if rows == BF16:
            return BF16 if self.numbers_in_bf16() else F32
        return F32 if rows in (F32, F16) else None

    def _bit_by_bit(self) -> bool:
        """Whether numbers of few bits on both sides cost less as bits than as bytes."""
        assert isinstance(self.rows, Cast)
        dtype = self.dtype(self.rows.arg)
        if self.line is None or plane_factors(dtype) is None:
            return False
        rows = None if any(r.extent.const is None for r in self.row_ranks()) else self.row_count()
        costs = WordCosts(self.pass_.options.dot, self.pass_.options.bits)
        return costs.planes_pay(dtype.bits, self.code_type().bits, self.size, rows)

    def occurs(self, count: int) -> np.ndarray[Any, Any]:
        """Which of the codes the constant has."""
        return np.bincount(np.asarray(self.pass_.program.data[self.weights.codes.tensor]).view(np.uint8).reshape(-1), minlength=count) > 0

    def numbers_in_bf16(self) -> bool:
        """Whether what meets a bf16 activation, the zero point apart, is a bf16 number."""
        return _in_bf16(self.table if self.line is None else np.arange(len(self.table), dtype=np.float64))

    # --- ranks ---

    def steps(self) -> list[Einsum]:
        self.layout()
        partial, scale = self.bit_sum() if self.kind == U1 else self.partial(self.row_operand(), self.packed())
        scales = [self.moved(s) for s in self.weights.scales]
        inside = [self.in_panels(s) for s in scales if self.group.name in s.variables]
        outside = [s for s in scales if self.group.name not in s.variables]
        value = partial
        if self.groups > 1:
            whole = apply("mul", partial, _times(inside)) if inside else partial
            value = self.emit("sum", self.step.ranks, whole, F32, Reduce("sum", (self.group,)))
        if scale != 1:
            outside = [const(float(scale)), *outside]
        value = _times([value, *outside])
        value = value if self.step.dtype == F32 else Cast(self.step.dtype, value)
        return [*self.made, replace(self.step, exprs=(value,), reduce=None)]

    def layout(self) -> None:
        """Ranks of groups and of the terms of one; how codes share bytes; the width of a panel."""
        terms = self.term.extent.const or 0
        if self.size > self.most_terms():
            blocks = [d for d in range(_BLOCK, 31, -1) if self.size % d == 0 and d % 32 == 0]
            self.size = blocks[0] if blocks else _BLOCK if self.size >= terms else self.size
        used = {r.name for r in self.step.all_ranks}
        self.groups = -(-terms // self.size)
        bits = self.code_type().bits
        self.together = 8 // bits if 8 % bits == 0 else 1
        inner = -(-self.size // TERMS) * TERMS
        self.aligned = self.groups * self.size == terms and inner == self.size and self.contiguous()
        if self.aligned and inner % (TERMS * self.together):
            self.together = 1
        inner = -(-inner // (TERMS * self.together)) * TERMS * self.together
        if self.kind == U1:
            inner = self.size
        self.group = Rank(fresh_name("g", used), int_expr(self.groups))
        self.inner = Rank(fresh_name("j", used | {self.group.name}), int_expr(inner))
        self.at = self.group_start() + var(self.inner.name)
        lanes = self.pass_.options.lanes
        self.width = lanes * min(self.panel_registers(), -(-(self.column.extent.const or 0) // lanes))
        self.facts = Facts(
            {**self.step.extents, self.group.name: self.group.extent, self.inner.name: int_expr(min(self.size, inner))},
            self.pass_.program.facts,
        )

    def most_terms(self) -> int:
        """Terms of a group beyond which it is summed in blocks: sums of products of few bits are whole in f32 for longer."""
        if self.kind != U1 or not isinstance(self.rows, Cast):
            return _LONG
        return 1 << (24 - self.dtype(self.rows.arg).bits - self.code_type().bits)

    def group_start(self) -> IntExpr:
        """The first term of a group."""
        return (var(self.group.name) if self.groups > 1 else int_expr(0)) * self.size

    def panel_registers(self) -> int:
        """Registers of columns: as many as leave room for the sums of all rows, so that one tile takes the codes apart. Numbers
        in f32 are multiplied long enough to be decoded before, and their rows lie as they were given.
        """
        if self.pass_.options.registers < 32 or any(r.extent.const is None for r in self.row_ranks()):
            return 2
        rows = self.row_count()
        return 4 if rows <= 2 else 1 if 8 < rows <= TALL and self.kind != F32 else 2

    def row_ranks(self) -> list[Rank]:
        return [r for r in self.step.ranks if r.name in self.rows.variables]

    def row_count(self) -> int:
        total = 1
        for r in self.row_ranks():
            total *= r.extent.const or 0
        return total

    def contiguous(self) -> bool:
        """Whether the activations are read as they lie, the terms next to each other."""
        plain = plain_access(self.rows)
        if plain is None or self.pass_.types[plain.tensor].dtype != self.kind:
            return False
        flat = int_expr(0)
        for i, s in zip(plain.index, self.pass_.types[plain.tensor].strides, strict=True):
            flat = flat + i * s
        parts = split_linear(Facts(self.step.extents, self.pass_.program.facts).simplify(flat), self.term.name)
        return parts is not None and parts[0].const == 1

    def moved(self, e: Expr) -> Expr:
        """A scale or zero point over groups: a group lies in one of those whose size divides the terms, so its first term tells which."""
        return map_indices(e.substitute({self.term.name: self.group_start()}), self.facts.simplify)

    # --- operands ---

    def row_operand(self) -> Expr:
        """The activations, each group filled up with zeros where groups do not come out even."""
        assert self.kind is not None
        plain = plain_access(self.rows)
        source = self.rows.arg if self.kind == I8 and isinstance(self.rows, Cast) else self.rows
        if self.aligned and plain is not None:
            return Access(plain.tensor, tuple(substitute(i, {self.term.name: self.at}) for i in plain.index))
        if self.inner.extent.const == self.size and self.most().const == self.term.extent.const:  # rows in one piece
            held = source if self.dtype(source) == self.kind else Cast(self.kind, source)
            whole = self.emit("rows", (*self.row_ranks(), self.term), held, self.kind)
            return Access(whole.tensor, tuple(substitute(i, {self.term.name: self.at}) for i in whole.index))
        ranks = (*self.row_ranks(), *((self.group,) if self.groups > 1 else ()), self.inner)
        inside = source.substitute({self.term.name: minimum(self.at, self.term.extent - 1)})
        bounds = ((var(self.inner.name), int_expr(self.size), self.inner.extent), (self.at, self.term.extent, self.most()))
        guards = [apply("lt", Index(e), Index(n)) for e, n, most in bounds if (most - n).const != 0]
        value = inside if self.dtype(source) == self.kind else Cast(self.kind, inside)
        if guards:
            guard = guards[0] if len(guards) == 1 else apply("and", *guards)
            value = Piecewise(((guard, value),), const(0 if self.kind == I8 else 0.0, self.kind))
        return self.emit("rows", ranks, value, self.kind)

    def most(self) -> IntExpr:
        return int_expr((self.groups - 1) * self.size) + self.inner.extent

    def dtype(self, e: Expr) -> DType:
        return dtype_of(e, lambda t: self.pass_.types[t].dtype)

    def code_type(self) -> DType:
        """The type of the packed constant: codes on a line are unsigned numbers."""
        own = self.pass_.held[self.weights.codes.tensor].dtype
        if self.line is None:
            return own
        bits = own.bits if own.is_coded else 8
        return U8 if bits == 8 else UNSIGNED[bits - 1]

    def packed(self) -> Access:
        """The element of the packed constant."""
        assert self.kind is not None
        tensor, dtype = self.weights.codes.tensor, self.code_type()
        step_terms = TERMS * self.together
        columns, extent = self.column.extent.const or 0, self.inner.extent.const or 0
        panels = -(-columns // self.width)
        ranks = [
            ("panel", panels), ("group", self.groups), ("step", extent // step_terms),
            ("lane", self.width), ("part", TERMS), ("turn", self.together),
        ]  # fmt: skip
        column = var("panel") * self.width + var("lane")
        inner = var("step") * step_terms + var("turn") * TERMS + var("part")
        term = var("group") * self.size + inner
        source = tuple(substitute(i, {self.column.name: column, self.term.name: term}) for i in self.weights.codes.index)
        terms = self.term.extent.const or 0
        limits = [(column, columns, panels * self.width), (inner, self.size, extent), (term, terms, self.groups * extent)]
        guards = [(e, n) for e, n, most in limits if n < most]
        parts = tuple(evaluate(part_of(int_expr(p), self.kind), {}) for p in range(TERMS))

        def make() -> np.ndarray[Any, Any]:
            made = relayout(self.recoded(), source, ranks, guards)
            return made if parts == tuple(range(TERMS)) else made[:, :, :, :, parts]

        key = (tensor, dtype, source, tuple(ranks), tuple(guards), parts)
        name = self.pass_.constant(f"{tensor}_packed", key, dtype, ranks, make)
        n, j, g = var(self.column.name), var(self.inner.name), var(self.group.name) if self.groups > 1 else int_expr(0)
        index = (n // self.width, g, j // step_terms, n % self.width, part_of(j, self.kind), j // TERMS % self.together)
        facts = Facts({self.inner.name: self.inner.extent, self.column.name: self.column.extent})
        return Access(name, tuple(facts.simplify(i) for i in index))

    def recoded(self) -> np.ndarray[Any, Any]:
        """The constant with the codes that the kernel sees."""
        array = np.asarray(self.pass_.program.data[self.weights.codes.tensor])
        if self.line is None:
            return array
        plain = codes_of(array) if array.dtype.names is not None else array.view(np.uint8)
        plain = plain ^ np.uint8(self.line.flip) if self.line.flip else plain
        dtype = self.code_type()
        return plain if dtype == U8 else coded(plain, dtype)

    def in_panels(self, e: Expr) -> Expr:
        """Constants of the columns with those of a panel side by side, and zero points as numbers."""

        def visit(a: Expr) -> Expr | None:
            if not isinstance(a, Access) or a.tensor not in self.pass_.held or a.default is not None:
                return None
            if not a.variables <= {self.group.name, self.column.name}:
                return None
            array, dtype = self.native(a.tensor)
            if self.column.name not in a.variables or self.group.name not in a.variables:
                if dtype == self.pass_.types[a.tensor].dtype:
                    return None
                shape = [(f"d{d}", n) for d, n in enumerate(array.shape)]
                name = self.pass_.constant(f"{a.tensor}_{dtype}", (a.tensor, dtype), dtype, shape, lambda: array)
                return Access(name, a.index)
            columns = self.column.extent.const or 0
            panels = -(-columns // self.width)
            ranks = [("panel", panels), ("group", self.groups), ("lane", self.width)]
            column = var("panel") * self.width + var("lane")
            source = tuple(substitute(i, {self.column.name: column, self.group.name: var("group")}) for i in a.index)
            guards = [(column, columns)] if columns % self.width else []
            name = self.pass_.constant(
                f"{a.tensor}_panels", (a.tensor, source, tuple(ranks)), dtype, ranks, lambda: relayout(array, source, ranks, guards)
            )
            n = var(self.column.name)
            return Access(name, (n // self.width, var(self.group.name), n % self.width))

        return transform(e, visit)

    def native(self, tensor: str) -> tuple[np.ndarray[Any, Any], DType]:
        """A constant in a type that kernels compute with: codes become the numbers they stand for."""
        dtype, array = self.pass_.types[tensor].dtype, np.asarray(self.pass_.program.data[tensor])
        if not dtype.is_coded:
            return array, dtype
        numbers = decode(array, dtype)
        kind = F32 if dtype.is_float else I8 if dtype.highest < 128 and dtype.lowest >= -128 else I16
        return numbers.astype(kind.numpy), kind

    # --- the sums ---

    def partial(self, rows: Expr, codes: Access) -> tuple[Expr, Fraction]:
        """The sum over a group, an f32 expression, and a factor of the result."""
        if self.kind == I8:
            return self.integer_sum(rows, codes)
        held = rows if self.dtype(rows) == F32 else Cast(F32, rows)
        slope, value, zero = Fraction(1), self.value_of(codes), None
        if self.weights.zero is not None:
            zero = self.in_panels(self.moved(self.weights.zero))
        if self.line is not None:
            slope, value, zero = self.line.slope, Cast(F32, codes), _shifted(zero, self.line)
        elif self.dtype(value) != F32:
            value = Cast(F32, value)
        if zero is not None and self.kind == F32:
            value = apply("sub", value, zero)
        total: Expr = self.partial_sum(apply("mul", held, value), F32)
        if zero is not None and self.kind == BF16:
            total = apply("sub", total, self.zero_part(zero, rows, F32))
        return total, slope

    def value_of(self, codes: Access) -> Expr:
        """What a code stands for, read from the packed constant."""
        return transform(self.weights.value, lambda a: codes if a == self.weights.codes else None)

    def integer_sum(self, rows: Expr, codes: Access) -> tuple[Expr, Fraction]:
        value: Expr = Cast(I32, codes)
        if self.line is not None:
            line = self.line
        else:
            assert self.bytes is not None
            power, least = self.bytes
            line = Affine(Fraction(2) ** -power, least * Fraction(2) ** -power, 0)
            number = self.value_of(codes)
            scaled = apply("mul", number, const(2.0**power, self.dtype(number)))
            value = Cast(I32, scaled) if least == 0 else apply("sub", Cast(I32, scaled), const(least, I32))
        total: Expr = self.partial_sum(apply("mul", Cast(I32, rows), value), I32)
        zero = None if self.weights.zero is None else self.in_panels(self.moved(self.weights.zero))
        whole = self.whole(zero, line)
        if whole is not None:
            subtrahend, factor = whole
            if factor != 1:
                total = apply("mul", total, const(factor, I32))
            if subtrahend is not None:
                total = apply("sub", total, self.zero_part(subtrahend, rows, I32))
            return Cast(F32, total), line.slope / factor
        shifted = _shifted(zero, line)
        assert shifted is not None
        return apply("sub", Cast(F32, total), self.zero_part(shifted, rows, F32)), line.slope

    def bit_sum(self) -> tuple[Expr, Fraction]:
        """The sum over a group, counted bit by bit, an f32 expression, and a factor of the result."""
        assert self.line is not None and isinstance(self.rows, Cast)
        dtype = self.dtype(self.rows.arg)
        factors = plane_factors(dtype)
        assert factors is not None
        if not isinstance(self.rows.arg, Access):
            self.rows = Cast(F32, self.emit("codes", (*self.row_ranks(), self.term), self.rows.arg, dtype))
        bits = BitProduct(self, dtype, factors)
        zero = None if self.weights.zero is None else self.in_panels(self.moved(self.weights.zero))
        whole = self.whole(zero, self.line)
        if whole is not None:
            subtrahend, factor = whole
            return Cast(F32, bits.total(subtrahend, factor)), self.line.slope / factor
        shifted = _shifted(zero, self.line)
        assert shifted is not None
        away = apply("mul", shifted, Cast(F32, bits.numbers_sum()))
        return apply("sub", Cast(F32, bits.total(None, 1)), away), self.line.slope

    def partial_sum(self, product: Expr, dtype: DType) -> Access:
        ranks = (*self.step.ranks, *((self.group,) if self.groups > 1 else ()))
        return self.emit("part", ranks, product, dtype, Reduce("sum", (self.inner,)))

    def whole(self, zero: Expr | None, line: Affine) -> tuple[Expr | None, int] | None:
        """`_whole`, where what it makes of the sums of a group fits i32."""
        found = _whole(zero, line, self.pass_.types)
        if found is None:
            return None
        assert isinstance(self.rows, Cast)
        subtrahend, factor = found
        rows, codes = self.dtype(self.rows.arg), 255 if self.line is None else (1 << self.code_type().bits) - 1
        most = self.size * max(-rows.lowest, rows.highest) * (codes * factor + self.greatest(subtrahend))
        return found if most <= I32.highest else None

    def greatest(self, zero: Expr | None) -> int:
        """A bound of the magnitude of what `_whole` subtracts."""
        match zero:
            case None:
                return 0
            case Const(value):
                return abs(int(value))
            case Cast(_, Access(tensor)) if tensor in self.pass_.data:
                return int(np.abs(self.pass_.data[tensor].astype(np.int64)).max(initial=0))
            case Cast(_, Access(tensor)):
                dtype = self.pass_.types[tensor].dtype
                return max(-dtype.lowest, dtype.highest)
            case _:
                return sum(map(self.greatest, zero.children))

    def zero_part(self, zero: Expr, rows: Expr, dtype: DType) -> Expr:
        """The zero point times the sum of a group's activations; an integer for all columns is multiplied into each, exactly."""
        if isinstance(zero, Const) and dtype == I32:
            return self.row_sum(apply("mul", Cast(I32, rows), zero), I32)
        total: Expr = self.row_sum(rows, I32 if self.kind == I8 else dtype)
        return apply("mul", zero, total if self.dtype(total) == dtype else Cast(dtype, total))

    def row_sum(self, rows: Expr, dtype: DType) -> Access:
        """The sum of a group's activations."""
        ranks = (*self.row_ranks(), *((self.group,) if self.groups > 1 else ()))
        return self.emit("rowsum", ranks, Cast(dtype, rows) if self.dtype(rows) != dtype else rows, dtype, Reduce("sum", (self.inner,)))

    def emit(self, hint: str, ranks: Sequence[Rank], expr: Expr, dtype: DType, reduce: Reduce | None = None) -> Access:
        name = self.pass_.names.fresh(f"{self.step.out}_{hint}")
        step = replace(einsum(name, tuple(ranks), expr, dtype, loc=self.step.loc), reduce=reduce)
        self.made.append(step)
        self.pass_.types[name] = TensorType(dtype, tuple(r.extent for r in ranks))
        return Access(name, tuple(var(r.name) for r in ranks))


def _in_bf16(table: np.ndarray[Any, Any]) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.array_equal(table.astype(np.float32).astype(BF16.numpy).astype(np.float64), table, equal_nan=True))


def _shifted(zero: Expr | None, line: Affine) -> Expr | None:
    """`(zero - start) / slope`, an f32 expression; None for 0."""
    literal = Fraction(float(zero.value)) if isinstance(zero, Const) else Fraction(0) if zero is None else None
    if literal is not None:
        shift = (literal - line.start) / line.slope
        return const(float(shift)) if shift else None
    assert zero is not None
    moved = apply("sub", zero, const(float(line.start))) if line.start else zero
    return moved if line.slope == 1 else apply("mul", moved, const(float(1 / line.slope)))


def _whole(zero: Expr | None, line: Affine, types: Mapping[str, TensorType]) -> tuple[Expr | None, int] | None:
    """(z, f) with `f * (zero - start) / slope = z` in whole numbers, z an i32 expression or None for 0; None when it is real."""
    if zero is None or isinstance(zero, Const):
        shift = ((Fraction(float(zero.value)) if isinstance(zero, Const) else Fraction(0)) - line.start) / line.slope
        if shift.denominator > 2:
            return None
        number = shift * shift.denominator
        return (const(int(number), I32) if number else None), shift.denominator
    if line.slope != 1 or line.start.denominator != 1:
        return None
    inner: Expr = zero
    while isinstance(inner, Cast):
        inner = inner.arg
    if not isinstance(inner, Access) or not types[inner.tensor].dtype.is_int or types[inner.tensor].dtype.bits > 16:
        return None
    whole: Expr = Cast(I32, inner)
    return (whole if not line.start else apply("sub", whole, const(int(line.start), I32))), 1


__all__ = ["CodedProduct", "CodedProducts"]
