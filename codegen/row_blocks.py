"""Row kernels several rows at a time.

A task takes a block of neighbouring rows, which are slots of each tile: what all rows read (a scale, a bias) is loaded once for
the block, and while one row waits for its registers and lanes to be folded into one the others do too. Scratch holds a row
for each. Rows that do not fill a block are done one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlc.codegen.merge import substitute_in
from dlc.codegen.nest import VectorRank, compute, emit_sweep, most_registers
from dlc.codegen.point import Slot, Space
from dlc.codegen.row_quotient import RowQuotients
from dlc.codegen.rows import inner_ranks, sweeps
from dlc.codegen.tile import IndexCond
from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, walk
from dlc.ir.extent import IntExpr, int_expr, split_linear, var
from dlc.ir.facts import Facts
from dlc.ir.program import fresh_name

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering

WIDEST = 1024
NARROW = 256
"""Elements of rows that are done four at a time; up to `WIDEST` they are in pairs if they share what they read.

The longer a row the less there is to hide at its end, and each row of a block is one more stream from memory and to it.
"""


class RowBlocks:
    """Blocks of `count` rows of `rank`.

    Attributes:
        start: a name for the index of the block's first row.
        row: a name for the row in the block.
    """

    def __init__(self, low: KernelLowering, rank: str, extent: IntExpr, count: int) -> None:
        self.low, self.rank, self.extent, self.count = low, rank, extent, count
        taken = {r.name for s in low.steps for r in s.all_ranks}
        self.start, self.row = fresh_name("start", taken), fresh_name("row", taken)
        ranks = {n: e for n, e in low.em.facts.ranks.items() if n != rank}
        low.em.facts = Facts({**ranks, self.start: extent, self.row: int_expr(count)}, low.em.facts.symbols)

    def emit(self, groups: Sequence[Sequence[Einsum]], outer: dict[str, IntExpr]) -> IntExpr:
        """The code of a task; how many tasks there are."""
        b = self.low.builder
        others = {n: e for n, e in outer.items() if n != self.rank}
        blocks = (self.extent + (self.count - 1)) // self.count
        base = self.low.task_base({**others, "block": blocks})
        first = base.pop("block") * self.count
        first = first if first.const is not None else b.index_of(b.from_index(first))
        if self.extent.const is not None and self.extent.const % self.count == 0:
            self._block(groups, base, first, self.count)
        else:
            with b.branch(IndexCond(first + self.count, "le", self.extent)) as branch:
                with branch.then():
                    self._block(groups, base, first, self.count)
                with branch.orelse(), b.loop(self.start, first, self.extent) as loop:
                    self._block(groups, base, loop.index, 1)
        tasks = blocks
        for e in others.values():
            tasks = tasks * e
        return tasks

    def _block(self, groups: Sequence[Sequence[Einsum]], base: dict[str, IntExpr], first: IntExpr, count: int) -> None:
        low, em = self.low, self.low.em.scoped()
        slots = (Slot(self.row, count, 1), Slot("", 1, 1))  # the second is for the registers along a row
        space = Space({**base, self.start: first, self.row: int_expr(0)}, slots=slots)
        quotients = RowQuotients(em, low.steps)
        env = {self.rank: var(self.start) + var(self.row)}
        for group in groups:
            loops = inner_ranks(low, group[0])
            steps = [substitute_in(low.point_step(s, tuple(o in low.storage for o in s.outs)), env, em.facts) for s in group]
            steps = quotients.divide_once(steps, loops, space)
            if loops:
                emit_sweep(em, steps, loops, space, low.target)
            else:
                compute(em, steps, space, VectorRank(None), 1)


def find_row_blocks(low: KernelLowering, groups: Sequence[Sequence[Einsum]], outer: dict[str, IntExpr]) -> RowBlocks | None:
    """How to block the rows of a kernel; None where they are long, or not all alike."""
    if not outer:
        return None
    rank, extent = next(reversed(outer.items()))
    widest = 1
    for group in groups:
        loops = inner_ranks(low, group[0])
        if loops and any(s.reduce is not None for s in group) and not sweeps(low, group):
            return None
        sizes = [e.const for e in loops.values()]
        if None in sizes:
            return None
        widest = max(widest, math.prod(n for n in sizes if n is not None))
    if not all(_is_plain(low, s, rank) for s in low.steps):
        return None
    count = min(most_registers(low.point_step(s, ()), low.target) for s in low.steps)
    pairs = widest <= WIDEST and any(_is_shared(low, s, rank) for s in low.steps)
    count = min(count, 4 if widest <= NARROW else 2 if pairs else 1)
    while extent.const is not None and extent.const < count:
        count //= 2
    return RowBlocks(low, rank, extent, count) if count > 1 else None


def _is_plain(low: KernelLowering, step: Einsum, row: str) -> bool:
    """Whether each row does the same at addresses a constant apart."""
    if step.where is not None:
        return False
    return all(_is_alike(low, n, row) for e in step.exprs for n in walk(e))


def _is_shared(low: KernelLowering, step: Einsum, row: str) -> bool:
    """Whether the step reads along a row what is the same for all rows."""
    along = set(inner_ranks(low, step))
    return any(a.tensor in low.storage and row not in a.variables and along & a.variables for a in step.accesses())


def _is_alike(low: KernelLowering, e: Expr, row: str) -> bool:
    match e:
        case Access(tensor, index, None) if not e.children:
            at = low.em.flat(low.storage[tensor], index) if tensor in low.storage else int_expr(0)
            return split_linear(at, row) is not None
        case _:
            return isinstance(e, (Apply, Cast, Const))


__all__ = ["RowBlocks", "find_row_blocks"]
