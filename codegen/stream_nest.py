"""Steps of a streaming kernel lane by lane: nests of loops, and sweeps, which fold what they compute in one loop.

    for m:  SN[m, p] = exp(S[m, p] - GM[p])     # what is computed at each point of the swept rank
            SD[p]   += SN[m, p]                 # folds of it
    L[p] = GM[p] + log(SD[p])                   # what needs the folds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlc.codegen.nest import PointStep, VectorRank, emit_nest
from dlc.codegen.point import Emitter, Space
from dlc.codegen.stream_frame import Block, Frame
from dlc.codegen.stream_step import BlockStep
from dlc.codegen.sweep import at_point, identities, keep
from dlc.ir.expr import Apply, Cast, Expr
from dlc.ir.extent import IntExpr, int_expr


def emit_lanes(frame: Frame, steps: Sequence[BlockStep], block: Block) -> None:
    """Compute the steps in one nest, with lanes that do not exist where they stay in scratch."""
    points = [s.point for s in steps]
    stays = all(o in frame.plan.locals for p in points for o in p.outs)
    width = int_expr(block.width) if stays else block.points
    loops, bounds = {**steps[0].ends, frame.lane: width}, {frame.lane: (block.first, block.first + width)}
    emit_nest(frame.em.scoped(), points, loops, VectorRank(frame.lane), dict(block.base), frame.low.target, bounds)


def emit_sweep(frame: Frame, steps: Sequence[BlockStep], block: Block) -> None:
    """Compute the steps in one loop over an inner rank, and after it what needs the folds."""
    rank, end = _swept(steps)
    space, em = frame.space(block), frame.em.scoped()
    sweep = _Sweep(rank, [s.point for s in steps if rank in s.loops], space)
    sweep.settle(em)
    results = sweep.run(em, end)
    for point, tiles in zip(sweep.folds, results, strict=True):
        keep(em, point, tiles, space)
    for step in steps:
        if rank not in step.loops:
            keep(em, step.point, [em.value(e, space) for e in step.point.exprs], space)


def _swept(steps: Sequence[BlockStep]) -> tuple[str, IntExpr]:
    """The rank that the steps share, and where it ends in the block."""
    return next((name, end) for s in steps for name, end in s.loops.items())


@dataclass(frozen=True)
class _Sweep:
    """The `steps` inside of a loop over `rank`, in the lanes of `space`."""

    rank: str
    steps: Sequence[PointStep]
    space: Space

    @property
    def folds(self) -> list[PointStep]:
        return [s for s in self.steps if s.reduce is not None]

    def settle(self, em: Emitter) -> None:
        """Compute what does not move with the loop before it."""
        for step in self.steps:
            if step.where is None or not step.guarded:
                for e in step.exprs:
                    self._settle(em, e)

    def _settle(self, em: Emitter, e: Expr) -> None:
        if self.rank not in e.variables:
            em.value(e, self.space)
        elif isinstance(e, (Apply, Cast)):
            for child in e.children:
                self._settle(em, child)

    def run(self, em: Emitter, end: IntExpr) -> list[Sequence[str]]:
        """The loop up to `end`; the results of each fold."""
        slots = tuple(t.count for t in self.space.slots)
        firsts = [t for s in self.folds for t in identities(em, s, slots, self.space.lanes)]
        with em.b.loop(self.rank, 0, end, carries=tuple(firsts)) as loop:
            loop.yields(*at_point(em.scoped(), self.steps, self.space.at(self.rank, loop.index), loop.carries))
        return self._by_fold(loop.results)

    def _by_fold(self, tiles: Sequence[str]) -> list[Sequence[str]]:
        """`tiles` of all folds one after the other, those of each together."""
        left = iter(tiles)
        return [[next(left) for _ in s.outs] for s in self.folds]


__all__ = ["emit_lanes", "emit_sweep"]
