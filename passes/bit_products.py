"""Products of numbers of few bits as counts of common bits: the weights' planes packed when compiling, the activations' when it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc.ir.bit_sums import WORD_BITS
from dlc.ir.codes import codes_of
from dlc.ir.dtype import I32, DType
from dlc.ir.einsum import Rank, Reduce
from dlc.ir.expr import Access, Cast, Const, Expr, Index, Piecewise, apply, const
from dlc.ir.extent import IntExpr, int_expr, minimum, substitute, var
from dlc.ir.program import fresh_name
from dlc.passes.relayout import relayout

if TYPE_CHECKING:
    from dlc.passes.coded_products import CodedProduct

_MOST_BITS = 4


def plane_factors(dtype: DType) -> tuple[int, ...] | None:
    """What each bit of a number's code stands for; None where such a type is not multiplied bit by bit.

    A bipolar number is the sum of its planes' -1 and 1 times these, any other that of 0 and 1.
    """
    if not dtype.is_coded or dtype.bits > _MOST_BITS or not (dtype.kind in "ui" or dtype.is_bipolar):
        return None
    factors = [1 << p for p in range(dtype.bits)]
    if dtype.kind == "i":
        factors[-1] = -factors[-1]
    return tuple(factors)


@dataclass(frozen=True)
class BitProduct:
    """The sum over a group of activations q times the weights' codes u, planes p and q of them beside each other.

        u1, i2, ...   sum(j) q * u = sum(p, q) F[p, q] * popcount(A[p] & W[q])
        b1, b2, ...   sum(j) q * u = (2^w - 1) * sum(j) c - sum(p, q) 2^(p + q) * popcount(A[p] ^ W[q])         q = 2c - (2^a - 1)

    so that nothing need be kept of the columns. Terms that fill up a word are 0 in all planes.
    """

    of: CodedProduct
    dtype: DType
    factors: tuple[int, ...]

    @property
    def words(self) -> int:
        return -(-self.of.size // WORD_BITS)

    # --- operands ---

    def number(self, term: IntExpr) -> Expr:
        """The activation of a term, i32."""
        assert isinstance(self.of.rows, Cast)
        return Cast(I32, self.of.rows.arg.substitute({self.of.term.name: term}))

    def code(self, term: IntExpr) -> Expr:
        """A number whose bits are the planes of a term's activation, i32."""
        number = self.number(term)
        if not self.dtype.is_bipolar:
            return number
        return apply("shr", apply("add", number, const((1 << self.dtype.bits) - 1, I32)), const(1, I32))

    def guarded(self, inner: IntExpr, most: int, value: Expr) -> Expr:
        """`value`, which reads term `inner` of a group, 0 where there is none; `inner` is below `most`."""
        of, terms = self.of, self.of.term.extent
        at = of.group_start() + inner
        bounds = ((inner, int_expr(of.size), most), (at, terms, (of.groups - 1) * of.size + most))
        guards = [apply("lt", Index(e), Index(n)) for e, n, highest in bounds if highest > (n.const or 0)]
        if not guards:
            return value
        guard = guards[0] if len(guards) == 1 else apply("and", *guards)
        return Piecewise(((guard, value),), const(0, I32))

    def term(self, inner: IntExpr, most: int) -> IntExpr:
        """The term of the sum that is `inner` of a group, or some term where there is none."""
        of = self.of
        at = of.group_start() + inner
        return at if (of.groups - 1) * of.size + most <= (of.term.extent.const or 0) else minimum(at, of.term.extent - 1)

    def group_ranks(self) -> tuple[Rank, ...]:
        return (self.of.group,) if self.of.groups > 1 else ()

    def row_words(self, plane: Rank, word: Rank) -> Access:
        """The activations' planes in words: A[p, m, g, w]."""
        of, bit = self.of, Rank(fresh_name("b", self._used() | {plane.name, word.name}), int_expr(WORD_BITS))
        most = self.words * WORD_BITS
        inner = var(word.name) * WORD_BITS + var(bit.name) if self.words > 1 else var(bit.name)
        number = self.code(self.term(inner, most))
        moved = apply("shr", number, Cast(I32, Index(var(plane.name)))) if self.dtype.bits > 1 else number
        placed = apply("shl", apply("and", moved, const(1, I32)), Cast(I32, Index(var(bit.name))))
        planes = (plane,) if self.dtype.bits > 1 else ()
        ranks = (*planes, *of.row_ranks(), *self.group_ranks(), *((word,) if self.words > 1 else ()))
        return of.emit("bits", ranks, self.guarded(inner, most, placed), I32, Reduce("sum", (bit,)))

    def weight_words(self, plane: Rank, word: Rank) -> Access:
        """The weights' planes in words, panel by panel: W[n // 32, g, q, w, n % 32]."""
        of, bits = self.of, self.of.code_type().bits
        columns, terms = of.column.extent.const or 0, of.term.extent.const or 0
        panels, most = -(-columns // of.width), self.words * WORD_BITS
        ranks = [("panel", panels), ("group", of.groups), ("word", self.words), ("bit", WORD_BITS), ("lane", of.width)]
        column, inner = var("panel") * of.width + var("lane"), var("word") * WORD_BITS + var("bit")
        at = var("group") * of.size + inner
        source = tuple(substitute(i, {of.column.name: column, of.term.name: at}) for i in of.weights.codes.index)
        limits = [(column, columns, panels * of.width), (inner, of.size, most), (at, terms, (of.groups - 1) * of.size + most)]
        guards = [(e, n) for e, n, highest in limits if n < highest]

        def make() -> np.ndarray[Any, Any]:
            codes = of.recoded()
            plain = codes_of(codes) if codes.dtype.names is not None else codes
            laid = relayout(plain, source, ranks, guards)
            planes = [np.packbits(laid >> np.uint8(q) & np.uint8(1), axis=3, bitorder="little") for q in range(bits)]
            packed = np.moveaxis(np.stack(planes, axis=2), 4, 5)  # panel, group, plane, word, lane, byte
            return np.ascontiguousarray(packed).view("<i4")[..., 0]

        shape = [("panel", panels), ("group", of.groups), ("plane", bits), ("word", self.words), ("lane", of.width)]
        key = ("bits", of.weights.codes.tensor, of.code_type(), source, tuple(ranks), tuple(guards))
        name = of.pass_.constant(f"{of.weights.codes.tensor}_bits", key, I32, shape, make)
        n, zero = var(of.column.name), int_expr(0)
        g = var(of.group.name) if of.groups > 1 else zero
        q, w = var(plane.name) if bits > 1 else zero, var(word.name) if self.words > 1 else zero
        return Access(name, (n // of.width, g, q, w, n % of.width))

    def _used(self) -> set[str]:
        return {r.name for r in self.of.step.all_ranks} | {self.of.group.name, self.of.inner.name}

    # --- the sum ---

    def counted(self) -> Expr:
        """The sum of the planes' counts over a group, each times what its bits stand for."""
        of, bits = self.of, self.of.code_type().bits
        used = self._used()
        p = Rank(fresh_name("p", used), int_expr(self.dtype.bits))
        q = Rank(fresh_name("q", used | {p.name}), int_expr(bits))
        w = Rank(fresh_name("w", used | {p.name, q.name}), int_expr(self.words))
        rows, weights = self.row_words(p, w), self.weight_words(q, w)
        count = apply("popcount", apply("xor" if self.dtype.is_bipolar else "and", rows, weights))
        table = np.array([[f << k for k in range(bits)] for f in self.factors], np.int32)
        planes = [r for r in (p, q) if r.extent.const != 1]
        if planes:
            count = apply("mul", count, self.factor(table, planes))
        reduced = tuple(r for r in (*planes, w) if r.extent.const != 1)
        reduce = Reduce("sum", reduced or (w,), None if reduced else I32)  # a sum of its own type stays one, over a single word, too
        total = of.emit("part", (*of.step.ranks, *self.group_ranks()), count, I32, reduce)
        return total if planes else _times(total, int(table[0, 0]))

    def factor(self, table: np.ndarray[Any, Any], planes: list[Rank]) -> Expr:
        """What the bits of a pair of planes stand for."""
        shape = [(r.name, r.extent.const or 0) for r in planes]
        array = table.reshape([n for _, n in shape])
        name = self.of.pass_.constant("planes", ("planes", array.tobytes(), array.shape), I32, shape, lambda: array)
        return Access(name, tuple(var(r.name) for r in planes))

    def total(self, zero: Expr | None, factor: int) -> Expr:
        """`factor` times the sum over a group, less `zero` times the sum of its activations; i32."""
        counted = self.counted()
        if not self.dtype.is_bipolar:
            whole = _times(counted, factor)
            return whole if zero is None else self.less(whole, zero)
        ones, high = (1 << self.of.code_type().bits) - 1, (1 << self.dtype.bits) - 1
        away = _times(counted, factor)
        if zero is not None and not isinstance(zero, Const):
            return self.less(apply("sub", _times(self.codes_sum(), ones * factor), away), zero)
        number = int(zero.value) if isinstance(zero, Const) else 0
        kept = ones * factor - 2 * number  # of the sum of the codes, as that of the numbers is twice it less `high` for each term
        total: Expr | None = _times(self.codes_sum(), kept) if kept else None
        if number:
            terms = self.terms_of_group()
            each = const(terms * high * number, I32) if isinstance(terms, int) else _times(terms, high * number)
            total = each if total is None else apply("add", total, each)
        return apply("neg", away) if total is None else apply("sub", total, away)

    def less(self, whole: Expr, zero: Expr) -> Expr:
        """`whole` less the zero point's part."""
        return apply("sub", whole, apply("mul", zero, self.numbers_sum()))

    def numbers_sum(self) -> Access:
        """The sum of a group's activations."""
        return self.summed("rowsum", self.number)

    def codes_sum(self) -> Access:
        """The sum of their codes."""
        return self.summed("codesum", self.code)

    def summed(self, hint: str, value: Callable[[IntExpr], Expr]) -> Access:
        of, j = self.of, Rank(self.of.inner.name, int_expr(self.of.size))
        at = var(j.name)
        e = self.guarded(at, of.size, value(self.term(at, of.size)))
        return of.emit(hint, (*of.row_ranks(), *self.group_ranks()), e, I32, Reduce("sum", (j,)))

    def terms_of_group(self) -> int | Expr:
        of, terms = self.of, self.of.term.extent.const or 0
        if of.groups * of.size == terms:
            return of.size
        return Cast(I32, Index(minimum(int_expr(of.size), int_expr(terms) - of.group_start())))


def _times(e: Expr, factor: int) -> Expr:
    return e if factor == 1 else apply("neg", e) if factor == -1 else apply("mul", e, const(factor, I32))


__all__ = ["BitProduct", "plane_factors"]
