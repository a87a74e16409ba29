"""Register tiles of a contraction: how many rows and vectors, and how the rows of a block are covered by them.

Source: register blocking as in Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (TOMS 2008).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dlc.codegen.borders import safe_range, unproven
from dlc.codegen.nest import PointStep, in_tiles
from dlc.codegen.point import Emitter
from dlc.codegen.target import Target
from dlc.ir.expr import Access, accesses
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, variables

MOST_EDGES = 4  # tiles that are written out one by one because a border cuts them
ROW_BLOCK = 128  # rows of one task: the operand's rows stay in L2 while the columns' panel stays in L1
Tile = Callable[[Emitter, int, IntExpr], None]
"""Emits a tile of so many rows from a row on, with an emitter that knows which guards hold there."""


@dataclass(frozen=True)
class TileShape:
    """A register tile: MR rows by NV vectors of `lanes` columns."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


def choose_tile(columns: int, lanes: int, row_extent: IntExpr | None, target: Target) -> TileShape:
    """MR as large as the registers allow (sums, one row of vectors, one broadcast), dividing the rows if it can."""
    vectors = max(1, columns // lanes)
    most = max(1, min(14, (target.vector_registers - vectors - 1) // vectors))
    if vectors >= 3 and target.vector_registers >= 32:
        most = min(most, 8)
    if row_extent is None:
        return TileShape(1, vectors, lanes)
    size = row_extent.const
    if size is None:
        return TileShape(min(most, 8), vectors, lanes)
    embedded = target.vector_registers >= 32  # AVX-512 multiplies by a scalar in memory: no register for the broadcast
    if size <= most or (embedded and size * vectors + vectors <= target.vector_registers):
        return TileShape(size, vectors, lanes)
    # the fewest tiles; among those the smallest tile, so that the last one is nearly full
    tiles = -(-size // most)
    return TileShape(-(-size // tiles), vectors, lanes)


def guarded(step: PointStep) -> list[Access]:
    """What it reads that may be outside of its tensor."""
    return [a for a in accesses(step.exprs[0]) if a.default is not None]


@dataclass(frozen=True)
class RowTiles:
    """The tiles that cover rows of a contraction.

    Attributes:
        row: the rank, of this extent; most: rows of a whole tile.
        step: the contraction, some of whose operands may have borders.
    """

    em: Emitter
    row: str
    extent: IntExpr
    most: int
    step: PointStep

    def run(self, first: IntExpr, last: IntExpr, tile: Tile) -> None:
        """Tiles of the rows `first <= row < last`: under guards only where a border of the operand cuts them."""
        row, extent, most, b = self.row, self.extent, self.most, self.em.b
        pairs = [p for p in unproven(self.em, guarded(self.step)) if row in variables(p[0])]
        if not pairs:
            rest = (extent % most).const
            in_tiles(b, row, first, last, extent.const, most, lambda rows, at: tile(self.em, rows, at), rest=rest)
            return
        inner = self.em.assuming(pairs)
        lo, hi = safe_range(pairs, row, extent, self.step.reduced)
        if (first.const, last.const) == (0, extent.const) and lo.const is not None and hi.const is not None:
            starts = range(0, last.const or 0, most)
            cut = [s for s in starts if not lo.const <= s <= hi.const - min(most, (extent - s).const or most)]
            if len(cut) <= MOST_EDGES:
                self._known(starts, cut, inner, tile)
                return
        lo = b.named(minimum(maximum(lo, first), last))
        hi = b.named(maximum(minimum(hi, last), lo))
        in_tiles(b, row, lo, hi, None, most, lambda rows, at: tile(inner, rows, at))
        for start, stop in ((first, lo), (hi, last)):
            with b.loop(row, start, stop) as loop:
                tile(self.em, 1, loop.index)

    def _known(self, starts: range, cut: list[int], inner: Emitter, tile: Tile) -> None:
        """Tiles of rows at known places: those that a border cuts, where each row's guards are constants, and the rest."""
        extent = self.extent.const or 0
        whole = [s for s in starts if s not in cut and s + starts.step <= extent]
        if whole:  # next to each other, as the range is that needs no guard
            with self.em.b.loop(self.row, whole[0], whole[-1] + starts.step, starts.step) as loop:
                tile(inner, starts.step, loop.index)
        for s in starts:
            if s not in whole:
                tile(self.em if s in cut else inner, min(starts.step, extent - s), int_expr(s))


__all__ = ["ROW_BLOCK", "RowTiles", "TileShape", "choose_tile", "guarded"]
