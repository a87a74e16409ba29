"""Steps of a streaming kernel lane by lane: nests of loops, and sweeps, which fold what they compute in one loop.

    for m:  SN[m, p] = exp(S[m, p] - GM[p])     # what is computed at each point of the swept rank
            SD[p]   += SN[m, p]                 # folds of it
    L[p] = GM[p] + log(SD[p])                   # what needs the folds
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlc.codegen.nest import PointStep, VectorRank, accumulate, emit_nest, identities, keep
from dlc.codegen.point import Emitter, Space
from dlc.codegen.stream_frame import Block, Frame
from dlc.codegen.stream_step import BlockStep
from dlc.ir.expr import Apply, Cast, Expr
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.monoid import MONOIDS


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
        firsts = [identities(em.b, s, self.space) for s in self.folds]
        with em.b.loop(self.rank, 0, end, carries=tuple(t for tiles in firsts for t in tiles)) as loop:
            folded = self._at(em.scoped(), self.space.at(self.rank, loop.index), self._by_fold(loop.carries))
            loop.yields(*(t for tiles in folded for t in tiles))
        return self._by_fold(loop.results)

    def _at(self, em: Emitter, space: Space, accs: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
        """The steps at one point of the swept rank; the folds so far, `accs`, with it."""
        left = iter(accs)
        folded: list[tuple[str, ...]] = []
        for step in self.steps:
            if step.reduce is None:
                exists = em.value(step.where, space) if step.where is not None else None
                keep(em, step, [em.value(e, space, exists) for e in step.exprs], space)
            else:
                folded.append(accumulate(em, step, MONOIDS[step.reduce.op], step.fold_types, space, tuple(next(left))))
        return folded

    def _by_fold(self, tiles: Sequence[str]) -> list[Sequence[str]]:
        """`tiles` of all folds one after the other, those of each together."""
        left = iter(tiles)
        return [[next(left) for _ in s.outs] for s in self.folds]


__all__ = ["emit_lanes", "emit_sweep"]
