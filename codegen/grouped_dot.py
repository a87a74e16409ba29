"""Sums of products of small elements, several per 32-bit word: bytes by fours, bf16 numbers by twos.

    O[m, n] = sum(k) cast<i32>(A[m, k]) * cast<i32>(B[n // 48, k // 4, n % 48, k % 4])

The rows' operand has `k` contiguous, so that a word of it is broadcast as one number is elsewhere; the columns' operand was
packed with the elements of a word innermost, so that a register of it has one word per column. Terms that fill up the last
word are zero in the packed operand and masked off in the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dlc.codegen.gpu_targets import MATRIX_UNIT
from dlc.codegen.matrix_unit import ROWS, WORDS
from dlc.codegen.point import Emitter, Space
from dlc.codegen.target import Target
from dlc.codegen.tile import TileType
from dlc.costmodel.tiles import word_group
from dlc.ir.dtype import I8, I32, U8, U16
from dlc.ir.expr import Access
from dlc.ir.extent import IntExpr, int_expr, split_linear, substitute, var, variables
from dlc.ir.facts import Facts

_WORD, _PART = "word", "part"


@dataclass(frozen=True)
class Grouping:
    """How a contraction's operands hold their words.

    Attributes:
        rank: the reduced rank whose neighbours share a word; `size` of them do.
        facts: those of the kernel, with `word` and `part` in place of the rank.
    """

    rank: str
    size: int
    facts: Facts

    def columns(self, cols: Access) -> tuple[IntExpr, ...]:
        """The index of `cols` over words and the parts of one."""
        word = int_expr(0) if self.facts.ranks[_WORD].const == 1 else var(_WORD)
        env = {self.rank: word * self.size + var(_PART)}
        return tuple(self.facts.simplify(substitute(i, env)) for i in cols.index)


def find_grouping(em: Emitter, rows: Access, cols: Access, column: str, lanes: int) -> Grouping | None:
    """The words of the operands; None where they are not laid out in words.

    Args:
        column: the rank whose neighbours have neighbouring words in `cols`, in panels of whole registers.
        lanes: words of one register.
    """
    size = word_group(em.dtype(rows.tensor), em.dtype(cols.tensor))
    type_ = em.storage[cols.tensor].type
    shape = type_.shape
    words = type_.row_major and len(shape) >= 3 and shape[-1].const == size
    if size == 1 or not words or not shape[-2].const or shape[-2].const % lanes:
        return None
    if column not in variables(cols.index[-2]):
        return None
    for name in sorted(variables(cols.index[-1])):
        along = split_linear(em.flat(em.storage[rows.tensor], rows.index), name)
        if along is None or along[0].const != 1 or name not in em.facts.ranks:
            continue
        facts = em.facts.with_ranks({_WORD: (em.facts.ranks[name] + (size - 1)) // size, _PART: int_expr(size)})
        found = Grouping(name, size, facts)
        index = found.columns(cols)
        if index[-1] == var(_PART) and split_linear(facts.simplify(em.storage[cols.tensor].offset(index)), _WORD):
            return found
    return None


def rows_of_tile(vectors: int, row_extent: IntExpr | None, target: Target, *, floats: bool) -> int:
    """The tallest tile whose sums, words and temporaries fit the registers, in the fewest equal parts of the rows.

    Two registers are left for the broadcasts: with one LLVM moves sums about in the loop, or spills them.
    """
    if target.has(MATRIX_UNIT) and row_extent is not None and (row_extent.const or ROWS) >= ROWS:
        return ROWS
    fused = target.has("avx512_bf16" if floats else "avx512_vnni")
    spare = vectors + (3 if target.vector_registers >= 32 else 1) if fused else 2 * vectors + 3
    most = max(1, min(14, (target.vector_registers - spare) // vectors))
    if vectors >= 3 and target.vector_registers >= 32:
        most = min(most, 8)
    size = 1 if row_extent is None else row_extent.const
    if size is None:
        return min(most, 8)
    return size if size <= most else -(-size // -(-size // most))


@dataclass(frozen=True)
class GroupedSum:
    """Emits the sum of one register tile.

    Attributes:
        rows, cols: the operands, the columns split into `panel` and `column`.
        matrices: whether 8 words of all rows are multiplied at a time.
    """

    em: Emitter
    rows: Access
    cols: Access
    grouping: Grouping
    matrices: bool = False

    def run(self, space: Space, loops: Mapping[str, IntExpr], acc: str) -> str:
        """`acc` plus the sum over `loops`, the grouped rank innermost."""
        outer = {n: e for n, e in loops.items() if n != self.grouping.rank and e.const != 1}
        base = {n: int_expr(0) for n, e in loops.items() if n != self.grouping.rank and e.const == 1}
        space = replace(space, base={**space.base, **base})
        return self._outer(space, outer, loops[self.grouping.rank], acc)

    def _outer(self, space: Space, outer: dict[str, IntExpr], terms: IntExpr, acc: str) -> str:
        if not outer:
            return self._words(space, terms, acc)
        name = next(iter(outer))
        rest = {n: e for n, e in outer.items() if n != name}
        with self.em.b.loop(name, 0, outer[name], carries=(acc,)) as loop:
            loop.yields(self._outer(space.at(name, loop.index), rest, terms, loop.carries[0]))
        return loop.results[0]

    def _words(self, space: Space, terms: IntExpr, acc: str) -> str:
        b, size = self.em.b, self.grouping.size
        begin = terms // (size * WORDS) * WORDS if self.matrices else int_expr(0)
        if begin.const != 0:
            with b.loop("word", 0, begin, WORDS, carries=(acc,)) as loop:
                loop.yields(self._matdot(space, loop.index, loop.carries[0]))
            (acc,) = loop.results
        if begin.const != 0 and (terms % (size * WORDS)).const == 0:
            return acc
        whole = terms // size  # two rounds are written out: LLVM makes a loop with a truth value as its counter of them
        with b.loop("word", begin, whole, carries=(acc,), unroll=2 if whole.const == 2 else 1) as loop:
            loop.yields(self._dot(space, loop.index, None, loop.carries[0]))
        (acc,) = loop.results
        left = (terms % size).const
        if left == 0:
            return acc
        if left == 1:
            return self._dot(space, whole, None, acc, first=True)
        with b.loop("word", whole, (terms + (size - 1)) // size, carries=(acc,)) as loop:
            mask = b.mask(size, terms - loop.index * size)
            loop.yields(self._dot(space, loop.index, mask, loop.carries[0]))
        return loop.results[0]

    def _matdot(self, space: Space, word: IntExpr, acc: str) -> str:
        """`acc` plus the products of 8 words of the tile's rows."""
        em, rank, size = self.em, self.grouping.rank, self.grouping.size
        slots = tuple(s for s in space.slots if s.rank != "column")
        here = replace(space.at(rank, word * size), vector=rank, lanes=size * WORDS, slots=slots, mask=None)
        rows = em.b.view(em.raw(em.storage[self.rows.tensor], self.rows.index, here), I32)
        cols = em.b.view(self._columns(space, word, WORDS), I32)
        return em.b.matdot(em.dtype(self.rows.tensor), em.dtype(self.cols.tensor), rows, cols, acc)

    def _dot(self, space: Space, word: IntExpr, mask: str | None, acc: str, *, first: bool = False) -> str:
        """`acc` plus the products of one word, of which the mask's terms exist or the `first` alone."""
        em, b = self.em, self.em.b
        left, right = em.dtype(self.rows.tensor), em.dtype(self.cols.tensor)
        rows = self._first(space, word) if first else b.view(self._rows(space, word, mask), I32)
        cols = b.view(self._columns(space, word, 1), I32)
        if left == I8:  # the unsigned operand comes first
            return b.dot(right, left, cols, rows, acc)
        return b.dot(left, right, rows, cols, acc)

    def _rows(self, space: Space, word: IntExpr, mask: str | None) -> str:
        rank, size = self.grouping.rank, self.grouping.size
        slots = tuple(s if s.rank != "column" else replace(s, count=1) for s in space.slots)
        here = replace(space.at(rank, word * size), vector=rank, lanes=size, slots=slots, mask=mask)
        return self.em.raw(self.em.storage[self.rows.tensor], self.rows.index, here)

    def _first(self, space: Space, word: IntExpr) -> str:
        """Words with one element and zeros: that element alone, widened."""
        b, rank, size = self.em.b, self.grouping.rank, self.grouping.size
        slots = tuple(s if s.rank != "column" else replace(s, count=1) for s in space.slots)
        here = replace(space.at(rank, word * size), vector=None, lanes=1, slots=slots, mask=None)
        bits = self.em.raw(self.em.storage[self.rows.tensor], self.rows.index, here)
        return b.cast(b.view(bits, U16 if size == 2 else U8), I32)

    def _columns(self, space: Space, word: IntExpr, words: int) -> str:
        store, facts = self.em.storage[self.cols.tensor], self.grouping.facts
        offset = facts.simplify(store.offset(self.grouping.columns(self.cols)))
        start = substitute(offset, {**space.base, _WORD: word, _PART: int_expr(0)})
        vectors, step = space.slots[-1].count, space.lanes * self.grouping.size
        along = split_linear(offset, _WORD) if words > 1 else None
        type_ = TileType(store.type.dtype, (words, vectors), step)
        return self.em.b.load(type_, store.buffer, start, (along[0] if along is not None else 0, step))
