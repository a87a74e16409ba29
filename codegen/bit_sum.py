"""Contractions over packed bits: words of a panel of columns beside a word of the rows, whose common bits are counted.

    P[m, n, g] = sum(p, q, w) popcount(and(A[p, m, g, w], W[n // 32, g, q, w, n % 32])) * F[p, q]

The lanes hold columns, a lane's word 32 neighbouring terms. Pairs of planes come one after the other: the counts of a group are summed
in registers and multiplied once by what the pair stands for. What differs is counted as what it has in common with a word of ones,
which the processor need not look for.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING

from dlc.codegen.contraction_tiles import ROW_BLOCK
from dlc.codegen.panel_sum import PanelLowering, even, find_panels
from dlc.codegen.point import Emitter, Space
from dlc.ir.bit_sums import BitSum, bit_sum
from dlc.ir.dtype import I32, U1
from dlc.ir.extent import IntExpr, int_expr

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered

_UNROLL = 8


def find_bits(low: KernelLowering) -> BitSum | None:
    """The kernel's first step as a sum over packed bits, where those that follow run on its tile; else None."""
    return find_panels(low, bit_sum)


class BitLowering(PanelLowering[BitSum]):
    """One kernel: the sum over bits, perhaps one over groups, and what follows point by point."""

    def __init__(self, low: KernelLowering, found: BitSum) -> None:
        super().__init__(low, found, 4, bit_sum)
        self.planes = {n: e.const or 0 for n, e in self.first.reduced.items() if n != self.sum.word and e.const != 1}
        self.words = self.first.reduced.get(self.sum.word, int_expr(1))

    def run(self) -> Lowered:
        """A task for each panel of columns and block of rows."""
        rows = self._rows_of()
        height = even(rows.const, self._most_rows()) if self.row is not None else 1
        block = max(height, ROW_BLOCK // height * height)
        tasks, here = self._begin(block)
        self._as_they_come(self.em.scoped(), here, height, self._of_group)
        pairs = 1
        for n in self.planes.values():
            pairs *= n
        return self._end(tasks, block, self.words * pairs)

    def _most_rows(self) -> int:
        """Rows of a tile: their sums, of one pair of planes and of all, fit the registers beside the words and what is counted."""
        sums = self.vectors * (1 + bool(self.planes) + (self.fold is not None))
        return max(1, min(8, (self.target.vector_registers - self.vectors - 4) // sums))

    def _of_group(self, em: Emitter, space: Space, total: str | None) -> str:
        assert total is None
        for at in itertools.product(*(range(n) for n in self.planes.values())):
            here = space
            for name, index in zip(self.planes, at, strict=True):
                here = here.at(name, int_expr(index))
            counted = self._counted(em.scoped(), here)
            if self.sum.factor is not None:
                counted = self.b.op("mul", counted, em.value(self.sum.factor, here))
            total = counted if total is None else self.b.op("add", total, counted)
        assert total is not None
        return total

    def _counted(self, em: Emitter, space: Space) -> str:
        """How many bits the words of a group have in common, or in which they differ."""
        total = self.b.const(space.tile(I32), 0)
        if not self.sum.word:
            return self._words(em, space, int_expr(0), total)
        unroll = next(u for u in range(_UNROLL, 0, -1) if (self.words.const or 0) % u == 0)
        with self.b.loop("word", 0, self.words, carries=(total,), unroll=unroll) as loop:
            loop.yields(self._words(em.scoped(), space, loop.index, loop.carries[0]))
        return loop.results[0]

    def _words(self, em: Emitter, space: Space, at: IntExpr, total: str) -> str:
        here = replace(space.at(self.sum.word, at) if self.sum.word else space, mask=None)  # panels are padded
        rows, codes = (em.raw(em.storage[a.tensor], a.index, here) for a in (self.sum.row_access, self.sum.codes))
        if self.sum.differ:
            rows, codes = self.b.op("xor", rows, codes), self.b.const(I32, -1)
        return self.b.dot(U1, U1, rows, codes, total)


def lower_bits(low: KernelLowering, found: BitSum) -> Lowered:
    """Lower the kernel: a stream of words for each panel of columns."""
    return BitLowering(low, found).run()


__all__ = ["find_bits", "lower_bits"]
