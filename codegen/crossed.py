"""Transposes: pointwise kernels in which one tensor is contiguous along one rank and another along a second.

    O[i, j] = X[j, i] + Y[i, j]

The lanes run along `j`, where the result is contiguous. A vector of X would be one element from each of as many lines; so a
tile is a square, as many `i` as lanes, and X's part of it is read by whole vectors along `i` that are transposed in registers
(`tile_memory`). A task does a few squares of `i` for all of `j`, so that lines and pages that it touches are used whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlc.codegen.nest import PointStep, VectorRank, compute, for_vectors, lanes_for
from dlc.codegen.point import Emitter, Slot, Space
from dlc.codegen.tile import IndexCond
from dlc.ir.expr import Access, accesses
from dlc.ir.extent import IntExpr, int_expr, minimum, product, split_linear

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered

SQUARES = 4
"""Squares side by side that one task does: four cache lines of each row."""
LEAST = 4
"""Rows that a transposed vector is worth, at least."""


def find_cross(em: Emitter, steps: Sequence[PointStep], ranks: dict[str, IntExpr], vector: VectorRank) -> str | None:
    """The rank along which something is contiguous that is strided along the lanes; None when there is none."""
    if vector.name is None or vector.reduced or any(s.reduce is not None for s in steps):
        return None
    reads = {a for s in steps for e in s.scalars for a in accesses(e) if a.default is None and a.tensor in em.storage}
    for name in reversed(ranks):
        extent = ranks[name].const
        if name != vector.name and (extent is None or extent >= LEAST) and any(_crosses(em, a, name, vector.name) for a in reads):
            return name
    return None


def _crosses(em: Emitter, a: Access, cross: str, vector: str) -> bool:
    flat = em.flat(em.storage[a.tensor], a.index)
    along, across = split_linear(flat, cross), split_linear(flat, vector)
    return along is not None and along[0].const == 1 and across is not None and across[0].const not in (0, 1)


def lower_crossed(
    low: KernelLowering, steps: list[PointStep], ranks: dict[str, IntExpr], vector: str, cross: str, per_point: int
) -> Lowered:
    """Lower the kernel in squares of `cross` by `vector`."""
    lanes = lanes_for(steps, low.em, low.target)
    others = {n: e for n, e in ranks.items() if n not in (vector, cross)}
    extent, block = ranks[cross], lanes * SQUARES
    blocks = (extent + (block - 1)) // block
    base = low.task_base({**others, "block": blocks})
    first = base.pop("block") * block
    last = minimum(first + block, extent)
    b = low.builder

    def rows(em: Emitter, at: Space, count: int, lo: IntExpr, hi: IntExpr) -> None:
        """`count` rows at a time, from `lo` to below `hi`, at the lanes of `at`."""
        with b.loop(cross, lo, hi, count) as loop:
            space = Space({**at.base, cross: loop.index}, at.vector, at.lanes, (Slot(cross, count, 1),), at.mask)
            compute(em.scoped(), steps, space, VectorRank(None), lanes)

    def body(em: Emitter, at: Space) -> None:
        square = at.lanes if at.lanes > 1 else lanes
        if extent.const is not None and extent.const % square == 0:
            rows(em, at, square, first, last)
            return
        whole = first + (last - first) // square * square
        rows(em, at, square, first, whole)
        with b.branch(IndexCond(whole, "lt", last)) as branch, branch.then():
            rows(em.scoped(), at, 1, whole, last)

    for_vectors(low.em.scoped(), Space(base), vector, int_expr(0), ranks[vector], lanes, 1, body)
    return low.finish(blocks * product(others.values()), ranks[vector] * (block * per_point))
