"""The arena of a program: its buffers packed for the extents that it was compiled for.

Sizes are expressions over symbols. The compiler packs them at the bounds that are stated, each symbol at its upper one
where there is one, and the runtime places them anew for each combination of shapes, guided by this plan and never above
it (`runtime/arena.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dlc.ir.extent import evaluate
from dlc.ir.memory import MemoryPlan
from dlc.ir.program import Program, bound_symbols, walk_statements
from dlc.native_packing import native_advance
from dlc.passes.packing import Buffer, Placement, fit_least, pack_least
from dlc.runtime.arena import MAX_ARENA_BYTES, align

SCHEDULE_SECONDS = 1.0
"""Time for the plan of an arena by default; most take a thousandth of it."""

DECISIONS_PER_SECOND = 4000
"""Of each search. A count rather than the clock ends them, so that the same program gets the same plan."""

SMALL = 12
"""Up to so many buffers the search is as fast in Python as its native code is loaded."""

LARGEST = 4000
"""Above, the search's tables grow too large and the usual allocators have the last word."""


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """The memory plan with offsets, and how good they are.

    Attributes:
        symbols: the extents that they are for.
        height: bytes of the arena, its threads' scratch memory excluded.
        bound: no plan for these lives is smaller.
    """

    memory: MemoryPlan
    symbols: Mapping[str, int]
    height: int
    bound: int
    seconds: float

    @property
    def gap(self) -> float:
        return (self.height - self.bound) / self.bound if self.bound else 0.0


def plan_arena(program: Program, memory: MemoryPlan, seconds: float = SCHEDULE_SECONDS) -> ArenaPlan:
    """`memory` with offsets that make the arena as small as is found in `seconds`."""
    began = time.monotonic()
    symbols = stated_extents(program, memory)
    sizes = buffer_bytes(memory, symbols)
    buffers = [
        Buffer(str(i), b.first, b.last + 1, size) for i, (b, size) in enumerate(zip(memory.buffers, sizes, strict=True))
    ]
    found = _pack(buffers, seconds)
    placed = tuple(replace(b, offset=at) for b, at in zip(memory.buffers, found.offsets, strict=True))
    return ArenaPlan(
        replace(memory, buffers=placed), symbols, found.height, found.bound, time.monotonic() - began
    )


def _pack(buffers: list[Buffer], seconds: float) -> Placement:
    found = fit_least(buffers, time_limit=seconds / 2)
    assert found is not None  # nothing is fixed
    if found.height == found.bound or len(buffers) > LARGEST:
        return found
    native = native_advance() if len(buffers) > SMALL else None
    least = pack_least(
        buffers, time_limit=seconds, node_limit=round(DECISIONS_PER_SECOND * seconds), native=native
    )
    assert least is not None
    return least


def buffer_bytes(memory: MemoryPlan, symbols: Mapping[str, int]) -> list[int]:
    """Bytes that each buffer takes in the arena."""
    return [align(max(int(evaluate(b.bytes, symbols)), 0)) for b in memory.buffers]


def stated_extents(program: Program, memory: MemoryPlan) -> dict[str, int]:
    """A value per symbol (with `#`) that the inputs bind: its upper bound, or, without one, the least that is not 0."""
    facts = {"#" + s.name: s for s in program.symbols}
    for stmt in walk_statements(program.body):
        facts.update({"#" + s.name: s for s in bound_symbols(stmt) if "#" + s.name in memory.values})
    least = {name: max(s.lo, 1) for name, s in facts.items()} | {n: 1 for n in memory.values if n not in facts}
    most = least | {name: s.hi for name, s in facts.items() if s.hi is not None}
    return most if sum(buffer_bytes(memory, most)) <= MAX_ARENA_BYTES else least


def memory_report(plan: ArenaPlan) -> dict[str, Any]:
    """The arena as `Dump.json` wants it."""
    sizes = buffer_bytes(plan.memory, plan.symbols)
    listed = [
        {"name": b.name, "bytes": size, "offset": b.offset, "first": b.first, "last": b.last}
        for b, size in zip(plan.memory.buffers, sizes, strict=True)
    ]
    return {
        "arena_bytes": plan.height,
        "steps": 1 + max((b.last for b in plan.memory.buffers), default=0),
        "buffers": listed,
        "symbols": {name[1:]: value for name, value in plan.symbols.items()},
    }
