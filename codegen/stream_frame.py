"""What all parts of a streaming kernel share: how wide a task is, what lies in scratch, and the block that a task is at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dlc.codegen.point import Emitter, Slot, Space, Storage
from dlc.codegen.stream_plan import Plan
from dlc.codegen.stream_planner import make_plan
from dlc.codegen.tile_build import Builder
from dlc.costmodel.tiles import stream_vectors
from dlc.ir.einsum import TensorType
from dlc.ir.extent import IntExpr, int_expr, var
from dlc.ir.facts import Facts
from dlc.ir.program import fresh_name

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering


@dataclass(frozen=True)
class Block:
    """The lanes that a task is at, in a step of a scan or outside of one.

    Attributes:
        base: index of every rank that has one.
        lanes: points in a register.
        vectors: registers side by side.
        count: how many of the lanes exist; None when all do.
        edge: whether conditions are looked at.
        first: the lane it begins with: at an edge that runs across the lanes the registers are done one by one.
        scan: the rank of the scan whose step it is.
    """

    base: Mapping[str, IntExpr]
    lanes: int
    vectors: int
    count: IntExpr | None = None
    edge: bool = True
    first: IntExpr = int_expr(0)
    scan: str | None = None

    @property
    def width(self) -> int:
        """Its lanes, those included that do not exist."""
        return self.vectors * self.lanes

    @property
    def points(self) -> IntExpr:
        """How many of the lanes exist."""
        return int_expr(self.width) if self.count is None else self.count

    def at(self, name: str, index: IntExpr) -> Block:
        return replace(self, base={**self.base, name: index})


@dataclass(frozen=True)
class Frame:
    """The streaming kernel that is being made.

    Attributes:
        lane_rank: the rank along the lanes; it is `position`, the block's start and the lane, in what is made.
        start: the name of the index that a block starts with.
        vectors: registers side by side in a full block.
        written: bounds of the ranks as the steps are written.
    """

    low: KernelLowering
    plan: Plan
    lane_rank: str
    start: str
    vectors: int
    written: Facts

    @property
    def em(self) -> Emitter:
        return self.low.em

    @property
    def b(self) -> Builder:
        return self.low.builder

    @property
    def lane(self) -> str:
        return self.plan.lane

    @property
    def lanes(self) -> int:
        return self.low.target.lanes

    @property
    def width(self) -> int:
        return self.vectors * self.lanes

    @property
    def position(self) -> IntExpr:
        return var(self.start) + var(self.lane)

    def space(self, block: Block, *outer: Slot) -> Space:
        """All registers of `block`, under slots for other ranks."""
        slots = (*outer, Slot(self.lane, block.vectors, self.lanes))
        return Space({**block.base, self.lane: block.first}, self.lane, self.lanes, slots)

    def in_loops(
        self, loops: Mapping[str, IntExpr], base: Mapping[str, IntExpr], body: Callable[[dict[str, IntExpr]], None]
    ) -> None:
        """Run `body` at each point of `loops` (name to extent, innermost last), with the index of every rank."""
        if not loops:
            body(dict(base))
            return
        name, *rest = loops
        with self.b.loop(name, 0, loops[name]) as loop:
            self.in_loops({n: loops[n] for n in rest}, {**base, name: loop.index}, body)


def make_frame(low: KernelLowering, lane_rank: str) -> Frame:
    """Plan the kernel, and tell its emitter of the ranks and of the scratch that the plan has."""
    ranks = {r.name: r.extent for s in low.steps for r in s.all_ranks}
    extent = ranks[lane_rank]
    start, lane = fresh_name("start", ranks), fresh_name("lane", ranks)
    plan = make_plan(low, lane_rank, lane)
    vectors = _vectors(low, extent)
    width = vectors * low.target.lanes
    facts = low.em.facts
    scans = {loop.scan.rank.name: loop.scan.rank.extent for loop in plan.loops()}
    others = {n: e for n, e in facts.ranks.items() if n != lane_rank}
    low.em.facts = Facts({**others, lane: int_expr(width), start: extent, **scans}, facts.symbols)
    _place_locals(low, plan, width)
    return Frame(low, plan, lane_rank, start, vectors, Facts({**facts.ranks, **scans}, facts.symbols))


def _vectors(low: KernelLowering, extent: IntExpr) -> int:
    most = stream_vectors(low.target.vector_registers)
    return most if extent.const is None else min(most, -(-extent.const // low.target.lanes))


def _place_locals(low: KernelLowering, plan: Plan, width: int) -> None:
    """Scratch for what the plan keeps there, each tensor's inner dimensions as written and the lanes innermost."""
    for name, local in plan.locals.items():
        low.em.dtypes[name] = local.dtype
        if not local.stored:
            continue
        buffer = plan.aliases.get(name, name)
        type_ = low.types[name] = TensorType(local.dtype, (*local.inner, int_expr(width)))
        low.storage[name] = Storage(buffer, type_, type_.strides)
        if buffer == name:
            low.local(name, local.dtype, type_.elements)
            low.builder.buffers = {**low.builder.buffers, name: local.dtype}


__all__ = ["Block", "Frame", "make_frame"]
