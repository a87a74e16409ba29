"""Operands of a streaming kernel brought into the order of the lanes, and results out of it: `Q[p, e]` to `[e][p]`, in squares.

Where memory is contiguous along another rank than the lanes', a square of as many rows as lanes is read along that and turned in
registers; what fills no square goes line by line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from dlc.codegen.nest import PointStep, VectorRank, compute, for_vectors
from dlc.codegen.point import Emitter, Slot, Space
from dlc.codegen.stream_frame import Block, Frame
from dlc.codegen.stream_nest import emit_lanes
from dlc.codegen.stream_plan import Stage
from dlc.codegen.stream_step import BlockStep, Extents, Steps
from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Expr
from dlc.ir.extent import IntExpr, int_expr, split_linear, var

# --- in ---


def emit_stage(steps: Steps, stage: Stage, block: Block) -> None:
    """Bring an operand that moves along the lanes into scratch."""
    frame = steps.frame
    loops, where = _stage_domain(steps, stage, block) if stage.bounded and block.edge else (stage.ranks, None)
    access = stage.access.substitute({frame.lane_rank: frame.position})
    index = (*(var(n) for n in loops), var(frame.lane))
    step = PointStep((stage.name,), (access,), (frame.plan.locals[stage.name].dtype,), None, where, index, (True,))
    along = _contiguous(frame, stage.access, loops)
    turn = _Turn(frame, [step], block)
    if along is None:
        frame.in_loops(loops, block.base, turn.by_lanes)
    else:
        others = {n: e for n, e in loops.items() if n != along}
        frame.in_loops(others, block.base, partial(turn.by_squares, along=along, end=loops[along]))


def _stage_domain(steps: Steps, stage: Stage, block: Block) -> tuple[Extents, Expr | None]:
    """Ends of the ranks of an operand that exists where its reader does, and what is left to ask at each point."""
    frame = steps.frame
    extents = steps.extents(stage.reader, block)
    others = {n: e for n, e in extents.items() if n != frame.lane and n not in stage.ranks}
    own = {n: e for n, e in extents.items() if n not in others}
    domain = steps.domain(stage.reader, block).over(others)
    ends = steps.ends(domain, own, stage.ranks, block)
    mask = steps.domain(stage.reader).over(others).mask(own, stage.ranks)
    if mask is None or steps.safe(stage.access, domain, own):
        return ends, None
    return ends, mask.substitute({frame.lane_rank: frame.position})


def _contiguous(frame: Frame, a: Access, ranks: Mapping[str, IntExpr]) -> str | None:
    """The rank of `ranks` along which `a` is contiguous while it is strided along the lane rank."""
    if a.default is not None or a.children:
        return None
    flat = frame.em.flat(frame.low.storage[a.tensor], a.index)
    lane = split_linear(flat, frame.lane_rank)
    if lane is None or lane[0].const == 1:
        return None
    return next((n for n in ranks if (p := split_linear(flat, n)) is not None and p[0].const == 1), None)


@dataclass(frozen=True)
class _Turn:
    """`steps`, whose results lie with the lanes innermost, over the lanes of `block`."""

    frame: Frame
    steps: Sequence[PointStep]
    block: Block

    def by_lanes(self, base: Mapping[str, IntExpr]) -> None:
        """At one point of the other ranks: whole registers along the lanes."""
        first = self.block.first
        self._vectors(Space(base), self.frame.lane, first, first + self.block.points)

    def by_squares(self, base: Mapping[str, IntExpr], along: str, end: IntExpr) -> None:
        """Up to `end` of the rank `along`, in which memory is contiguous: squares, single lines of lanes, single lanes."""
        b, lane, square = self.frame.b, self.frame.lane, self.frame.lanes
        first, count = self.block.first, self.block.points
        whole, rows = b.named(count // square * square), b.named(end // square * square)
        with b.loop(lane, first, first + whole, square) as across:
            space = Space({**base, lane: across.index}, lane, square)
            with b.loop(along, 0, rows, square) as row:
                self._compute(self.frame.em.scoped(), replace(space.at(along, row.index), slots=(Slot(along, square, 1),)))
            with b.loop(along, rows, end) as row:
                self._compute(self.frame.em.scoped(), space.at(along, row.index))
        if count.const is not None and count.const % square == 0:
            return
        with b.loop(lane, first + whole, first + count) as across:
            self._vectors(Space({**base, lane: across.index}), along, int_expr(0), end)

    def _vectors(self, space: Space, rank: str, lo: IntExpr, hi: IntExpr) -> None:
        for_vectors(self.frame.em.scoped(), space, rank, lo, hi, self.frame.lanes, 1, self._compute)

    def _compute(self, em: Emitter, space: Space) -> None:
        compute(em, self.steps, space, VectorRank(None), self.frame.lanes)


# --- out ---


def emit_results(frame: Frame, steps: Sequence[BlockStep], last: Einsum, block: Block) -> None:
    """Compute point-wise steps whose results leave the kernel, with the lanes along the rank that is innermost in `last`'s."""
    inner, loops = _innermost(frame, last), steps[0].ends
    if inner is None or inner not in loops:
        emit_lanes(frame, steps, block)
        return
    body = partial(_columns, frame, steps, block)

    def line(base: dict[str, IntExpr]) -> None:
        for_vectors(frame.em.scoped(), Space(base), inner, int_expr(0), loops[inner], frame.lanes, 1, body)

    frame.in_loops({n: e for n, e in loops.items() if n != inner}, block.base, line)


def _innermost(frame: Frame, step: Einsum) -> str | None:
    """The rank along which the result of `step` is contiguous."""
    order = step.order or tuple(range(len(step.ranks)))
    names = (step.ranks[d].name for d in reversed(order))
    return next((n for n in names if n not in frame.low.units), None)


def _columns(frame: Frame, steps: Sequence[BlockStep], block: Block, em: Emitter, at: Space) -> None:
    """The points of the lane rank as rows under the lanes of `at`: squares, then single ones."""
    b, points, count = frame.b, [s.point for s in steps], block.points
    square = at.lanes if at.lanes > 1 else frame.lanes
    whole = b.named(count // square * square)
    with b.loop(frame.lane, 0, whole, square) as loop:
        space = replace(at.at(frame.lane, loop.index), slots=(Slot(frame.lane, square, 1),))
        compute(em.scoped(), points, space, VectorRank(None), frame.lanes)
    if block.count is None or (count.const is not None and count.const % square == 0):
        return
    with b.loop(frame.lane, whole, count) as loop:
        compute(em.scoped(), points, at.at(frame.lane, loop.index), VectorRank(None), frame.lanes)


__all__ = ["emit_results", "emit_stage"]
