"""A scan of a streaming kernel: a loop whose body has two forms, for blocks that are inside as a whole and for others.

Inside, no condition is looked at. A block that provably holds no point, in a scan whose states such a step leaves alone, is left
out; what remains is an edge, and one that ends at another place in each lane is done register by register, each to its own end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from dlc.codegen.stream_frame import Block
from dlc.codegen.stream_plan import Loop
from dlc.codegen.stream_step import Steps
from dlc.codegen.tile import IndexCond
from dlc.ir.extent import IntExpr, int_expr, minimum, substitute


def emit_scan(steps: Steps, loop: Loop, block: Block, body: Callable[[Block], None]) -> None:
    """Run `body` for each step of the scan."""
    rank = loop.scan.rank
    with steps.frame.b.loop(rank.name, 0, rank.extent) as index:
        _Scan(steps, loop, body).step(replace(block.at(rank.name, index.index), scan=rank.name))


@dataclass(frozen=True)
class _Scan:
    """The steps of one scan, each `body` in the block that it is given."""

    steps: Steps
    loop: Loop
    body: Callable[[Block], None]

    def step(self, block: Block) -> None:
        """One step: in whichever form the block needs."""
        least = self._least(block)
        if least is None:
            self._edges(block)
            return
        whole = self._nonnegative(least, block)
        if not whole:
            self.body(replace(block, edge=False))
            return
        with self.steps.frame.b.branch(whole) as branch:
            with branch.then():
                self.body(replace(block, edge=False))
            with branch.orelse():
                self._edges(block)

    def _edges(self, block: Block) -> None:
        """A step that is not inside as a whole."""
        if block.vectors == 1 or not any(map(self.steps.across, self.loop.einsums)):
            self._edge(block)
            return
        b, lanes = self.steps.frame.b, block.lanes
        with b.loop(self.steps.frame.lane, 0, block.points, lanes) as loop:
            left = None if block.count is None else b.named(minimum(block.count - loop.index, lanes))
            self._edge(replace(block, vectors=1, first=loop.index, count=left))

    def _edge(self, block: Block) -> None:
        """A step under conditions; left out where it has no point, if that is known and changes no state."""
        some = self._nonnegative(self._greatest(block), block)
        if not some:
            self.body(block)
            return
        with self.steps.frame.b.branch(some) as branch, branch.then():
            self.body(block)

    # --- conditions ---

    def _least(self, block: Block) -> Iterable[IntExpr] | None:
        """What may not be negative for the block to be inside as a whole; None when that is not known."""
        found: dict[IntExpr, None] = {}
        for step in self.loop.einsums:
            least = self.steps.domain(step, block).least(self.steps.extents(step, block))
            if least is None:
                return None
            found.update(dict.fromkeys(least))
        return found

    def _greatest(self, block: Block) -> Iterable[IntExpr]:
        """What is negative only if the step has no point and can be left out: all reductions have to agree on it."""
        if not self.loop.idle:
            return ()
        found = {
            tuple(dict.fromkeys(self.steps.domain(step, block).greatest(self.steps.extents(step, block))))
            for step in self.loop.einsums
            if step.reduce is not None and step.where is not None
        }
        return found.pop() if len(found) == 1 else ()

    def _nonnegative(self, exprs: Iterable[IntExpr], block: Block) -> tuple[IndexCond, ...]:
        """That `exprs` are not negative, those that never are left out."""
        frame = self.steps.frame
        return tuple(
            IndexCond(frame.b.named(substitute(e, block.base)), "ge", int_expr(0))
            for e in exprs
            if not frame.em.facts.nonneg(e)
        )


__all__ = ["emit_scan"]
