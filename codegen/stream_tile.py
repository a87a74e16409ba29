"""A contraction of a streaming kernel: register tiles of rows by lanes, and the point-wise steps that follow on them.

The operand that moves along the lanes is read as vectors, the other one as scalars wherever it lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dlc.codegen.nest import PointStep, in_tiles
from dlc.codegen.point import Emitter, Slot, Space
from dlc.codegen.stream_ahead import fetch_ahead
from dlc.codegen.stream_frame import Block, Frame
from dlc.codegen.stream_step import BlockStep
from dlc.codegen.sweep import accumulate, identities, keep
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.monoid import MONOIDS

MOST_ROWS = 8
"""Of a tile: more have more addresses than there are registers for."""
_UNKNOWN = 64  # what an extent counts as that is not known


def emit_tiles(frame: Frame, steps: Sequence[BlockStep], block: Block) -> None:
    """Compute the contraction `steps[0]`, and the others with it, tile by tile along the longest of its free ranks."""
    ends = steps[0].ends
    row = max(ends, key=lambda n: _size(ends[n])) if ends else None
    tiles = _Tiles(frame, [s.point for s in steps], row)

    def body(base: dict[str, IntExpr]) -> None:
        here = replace(block, base=base)
        if row is None:
            tiles.tile(here, 1)
        else:
            tiles.along(here, row, ends[row])

    frame.in_loops({n: e for n, e in ends.items() if n != row}, block.base, body)


@dataclass(frozen=True)
class _Tiles:
    """Tiles of the points of `steps`, with rows along the rank `row`."""

    frame: Frame
    steps: Sequence[PointStep]
    row: str | None

    def along(self, block: Block, row: str, end: IntExpr) -> None:
        """Full tiles of rows, then the rest in halves down to one row."""
        most = _tile_rows(self.frame, block.vectors, self.frame.em.facts.ranks[row])

        def tile(rows: int, index: IntExpr) -> None:
            if rows == most:
                fetch_ahead(self.frame, self.steps[0], block, row, index, rows)
            self.tile(block.at(row, index), rows)

        in_tiles(self.frame.b, row, int_expr(0), end, end.const, most, tile)

    def tile(self, block: Block, rows: int) -> None:
        """The tile of `rows` rows at `block`."""
        first, *later = self.steps
        em = self.frame.em.scoped()
        space = self.frame.space(block, Slot(self.row or "@none", rows, 1))
        (acc,) = identities(em, first, tuple(s.count for s in space.slots), space.lanes)
        keep(em, first, [_sum(em, first, space, first.reduced, acc)], space)
        for step in later:
            keep(em, step, [em.value(e, space) for e in step.exprs], space)


def _sum(em: Emitter, step: PointStep, space: Space, loops: Mapping[str, IntExpr], acc: str) -> str:
    """`acc` with all points of `loops` added, the last innermost."""
    if not loops:
        return accumulate(em, step, MONOIDS["sum"], step.fold_types, space, (acc,))[0]
    name, *rest = loops
    with em.b.loop(name, 0, loops[name], carries=(acc,), unroll=1) as loop:
        inner = {n: loops[n] for n in rest}
        loop.yields(_sum(em.scoped(), step, space.at(name, loop.index), inner, loop.carries[0]))
    return loop.results[0]


def _tile_rows(frame: Frame, vectors: int, extent: IntExpr) -> int:
    """Rows of a register tile: as many as registers allow, a divisor of the extent if one is at least half of that."""
    registers = frame.low.target.vector_registers
    spare = 0 if registers >= 32 else 1  # AVX-512 multiplies by a scalar in memory: no register for the broadcast
    most = min(MOST_ROWS, (registers - vectors - spare) // vectors)
    size = extent.const
    if size is None:
        return 1 << (most.bit_length() - 1)  # widths are multiples of powers of two more often than not
    if size < most:
        return max(size, 1)
    divisor = next((rows for rows in range(most, most // 2, -1) if size % rows == 0), None)
    return divisor or -(-size // -(-size // most))


def _size(e: IntExpr) -> int:
    return e.const if e.const is not None else _UNKNOWN


__all__ = ["emit_tiles"]
