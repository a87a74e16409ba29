"""Kernels that stream: a block of points in the lanes, several contractions, and everything between them in the core's cache.

A task holds a block of the lane rank (`dlc.ir.streamed`), a few registers wide. What the kernel makes lies in scratch with
the lanes innermost; so a contraction is a register tile of rows by lanes whose other operand is read as scalars where it lies,
and a reduction is lane by lane. A scan is a loop.

    stream_plan     the kernel in parts; made by stream_planner, which asks stream_groups what runs together
    stream_frame    how wide a task is, and the block that it is at
    stream_step     a step over what exists of it in a block (stream_domain)
    stream_scan     the loop of a scan, with and without conditions (stream_idle)
    stream_tile     contractions, with fetches ahead of them (stream_ahead)
    stream_nest     other steps, lane by lane
    stream_turn     operands into the order of the lanes, results out of it

Source: lanes along the queries after the recipe in KERNELS.md (attention); Dao, FlashAttention-2 (arXiv 2307.08691).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dlc.codegen.stream_frame import Block, Frame, make_frame
from dlc.codegen.stream_nest import emit_lanes, emit_sweep
from dlc.codegen.stream_plan import Group, Item, Loop, Stage
from dlc.codegen.stream_scan import emit_scan
from dlc.codegen.stream_step import Steps
from dlc.codegen.stream_tile import emit_tiles
from dlc.codegen.stream_turn import emit_results, emit_stage
from dlc.codegen.tile import IndexCond
from dlc.ir.extent import IntExpr, int_expr, minimum, product

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered


def lower_streamed(low: KernelLowering, lane: str) -> Lowered:
    """Lower the kernel with blocks of `lane` in the lanes."""
    extent = low.task_ranks()[lane]
    frame = make_frame(low, lane)
    others = {n: e for n, e in low.task_ranks().items() if n != lane}
    blocks = (extent + (frame.width - 1)) // frame.width
    base = low.task_base({**others, "block": blocks})
    start = frame.b.named(base.pop("block") * frame.width)
    _Tasks(frame, Steps(frame), extent).run(base, start)
    return low.finish(blocks * product(others.values()), frame.plan.work() * frame.width)


@dataclass(frozen=True)
class _Tasks:
    """The tasks of a kernel whose lane rank has `extent` points."""

    frame: Frame
    steps: Steps
    extent: IntExpr

    def run(self, base: Mapping[str, IntExpr], start: IntExpr) -> None:
        """The task whose block begins at `start`: a full block, or the last one, which may have fewer points."""
        width, size = self.frame.width, self.extent.const
        full = self._block(base, start, self.frame.vectors)
        if size is not None and size % width == 0:
            self._items(self.frame.plan.items, full)
        elif size is not None and size < width:
            self._items(self.frame.plan.items, replace(full, count=int_expr(size)))
        else:
            with self.frame.b.branch(IndexCond(start + width, "le", self.extent)) as branch:
                with branch.then():
                    self._items(self.frame.plan.items, full)
                with branch.orelse():
                    self._last(base, start)

    def _last(self, base: Mapping[str, IntExpr], start: IntExpr) -> None:
        """What is left of the lane rank, a register at a time."""
        b, lanes = self.frame.b, self.frame.lanes
        with b.loop(self.frame.lane_rank, start, self.extent, lanes) as loop:
            count = b.named(minimum(self.extent - loop.index, lanes))
            self._items(self.frame.plan.items, replace(self._block(base, loop.index, 1), count=count))

    def _block(self, base: Mapping[str, IntExpr], start: IntExpr, vectors: int) -> Block:
        return Block({**base, self.frame.start: start}, self.frame.lanes, vectors)

    def _items(self, items: Sequence[Item], block: Block) -> None:
        for item in items:
            match item:
                case Stage():
                    emit_stage(self.steps, item, block)
                case Loop():
                    self._scan(item, block)
                case Group():
                    self._group(item, block)

    def _scan(self, loop: Loop, block: Block) -> None:
        def body(at: Block) -> None:
            self._items(loop.items, at)
            for copy in loop.copies:
                emit_lanes(self.frame, [self.steps.fit(copy, replace(at, edge=False))], at)

        emit_scan(self.steps, loop, block, body)

    def _group(self, group: Group, block: Block) -> None:
        fitted = [self.steps.fit(s, block) for s in group.steps]
        match group.kind:
            case "tile":
                emit_tiles(self.frame, fitted, block)
            case "rows":
                emit_results(self.frame, fitted, group.steps[-1], block)
            case "sweep":
                emit_sweep(self.frame, fitted, block)
            case "nest":
                emit_lanes(self.frame, fitted, block)


__all__ = ["lower_streamed"]
