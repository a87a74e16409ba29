"""The arena of a program: its buffers packed for the extents that it was compiled for.

Sizes are expressions over symbols. The compiler packs them at the bounds that are stated, each symbol at its upper one
where there is one, and the runtime places them anew for each combination of shapes, guided by this plan and never above
it (`runtime/arena.py`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dlc.codegen.host import HostKernel
from dlc.codegen.host_manifest import scratch_extent
from dlc.codegen.in_place import may_take
from dlc.codegen.tile import TileProgram
from dlc.errors import Infeasible, Unsupported
from dlc.ir.extent import evaluate
from dlc.ir.memory import ArenaBuffer, AtBuffer, MemoryPlan
from dlc.ir.program import Kernel, Launch, Program, Symbol, bound_symbols, cascade_types, walk_statements
from dlc.native_packing import native_advance
from dlc.passes.packing import Buffer, Placement, fit_least, pack_least
from dlc.passes.schedule import Heirs, plan_memory
from dlc.passes.spill import (
    Steps,
    Transfers,
    kept_outside,
    least_traffic,
    restless,
    steps_of,
    traffic_bytes,
    with_transfers,
)
from dlc.runtime.arena import MAX_ARENA_BYTES, align
from dlc.runtime.cpu import default_threads

SCHEDULE_SECONDS = 1.0
"""Time for the plan of an arena by default; most take a thousandth of it."""

DECISIONS_PER_SECOND = 4000
"""Of each search. A count rather than the clock ends them, so that the same program gets the same plan."""

SMALL = 12
"""Up to so many buffers the search is as fast in Python as its native code is loaded."""

SHARES = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)
"""Parts of a budget that are given up in turn, for tensors whose addresses do not fit together in all of it."""

LARGEST = 4000
"""Above, the search's tables grow too large and the usual allocators have the last word."""


class OverMemoryBudget(Infeasible):
    """No plan keeps a program's arena below the budget."""

    code = "DLC0695"
    template = "no plan keeps the arena within {budget} bytes: the least that does is {least}"
    hint = "compile with memory_budget={least} or more"


class BudgetNeedsBounds(Unsupported):
    """A budget holds for all shapes, so they have to be bounded."""

    code = "DLC0696"
    template = "not supported: a memory budget where an extent has no upper bound ({symbols})"
    hint = "state it: torch.export.Dim(name, max=...), or compile for one shape"


@dataclass(frozen=True, slots=True)
class ArenaPlan:
    """The memory plan with offsets, and how good they are.

    Attributes:
        program: with transfers, where a budget asks for them.
        symbols: the extents that they are for.
        height: bytes of the arena, its threads' scratch memory excluded.
        bound: no plan for these lives is smaller.
        spill_bytes: bytes outside the arena.
        traffic_bytes: bytes that are copied there and back in one run.
        outside: tensors that never are in the arena: kernels read and write them in the mapped file.
    """

    program: Program
    memory: MemoryPlan
    symbols: Mapping[str, int]
    height: int
    bound: int
    seconds: float
    spill_bytes: int = 0
    traffic_bytes: int = 0
    outside: frozenset[str] = frozenset()

    @property
    def gap(self) -> float:
        """How much of the arena may be too much: 0 when it is proven least for these lives."""
        return (self.height - self.bound) / self.bound if self.bound else 0.0

    @property
    def facts(self) -> dict[str, Any]:
        """What the artifact keeps of the plan, for people."""
        return {
            "bytes": self.height,
            "bound": self.bound,
            "gap": round(self.gap, 4),
            "traffic": self.traffic_bytes,
            "symbols": {name[1:]: value for name, value in self.symbols.items()},
        }


def plan_arena(program: Program, seconds: float = SCHEDULE_SECONDS, heirs: Heirs | None = None) -> ArenaPlan:
    """The program's memory with offsets that make the arena as small as is found in `seconds`.

    Args:
        heirs: what kernels may write in place (`heirs_of`).
    """
    memory = plan_memory(program, heirs=heirs)
    symbols = stated_extents(program, memory)
    found = _packed(program, memory, symbols, seconds)
    if not heirs or found.height == found.bound:
        return found
    apart = _packed(program, plan_memory(program), symbols, seconds)  # shared storage is less, and harder to place
    return min(found, apart, key=lambda plan: plan.height)


def heirs_of(program: Program, kernels: Mapping[str, HostKernel]) -> Heirs:
    """For the launches of the program's body, the operands that a result may be written over."""
    definitions, known, found = program.kernel_table, dict[str, list[tuple[int, int]]](), dict[str, tuple[str, ...]]()
    for stmt in program.body.body:
        if isinstance(stmt, Launch):
            if stmt.kernel not in known:
                known[stmt.kernel] = _in_place(definitions[stmt.kernel], kernels[stmt.kernel].tile)
            for number, name in enumerate(stmt.outs):
                if operands := tuple(stmt.args[p] for p, result in known[stmt.kernel] if result == number):
                    found[name] = operands
    return found


def _in_place(kernel: Kernel, program: TileProgram) -> list[tuple[int, int]]:
    """Numbers of parameters and of results that may lie where they do, of those alike in size."""
    types = cascade_types(kernel.cascade)
    return [
        (number, result)
        for result, name in enumerate(kernel.cascade.results)
        for number, param in enumerate(kernel.cascade.params)
        if (elements := types[name].elements.const) is not None
        and types[name].stored * types[name].dtype.bytes == param.type.stored * param.type.dtype.bytes
        and may_take(program, param.name, name, elements)
    ]


def plan_within(
    program: Program,
    memory_budget: int,
    scratch: int = 0,
    seconds: float = SCHEDULE_SECONDS,
    heirs: Heirs | None = None,
) -> ArenaPlan:
    """The program with transfers, if it needs any, and an arena of at most `memory_budget` bytes, `scratch` included.

    Where one step needs more than the budget, some of its tensors never enter the arena. Which of the others leave, and in
    which order kernels run, is decided for as many bytes as the budget has and then, where their addresses do not fit
    together, for a little fewer; at last everything but what a step needs leaves, which needs no luck with addresses.

    Raises:
        BudgetNeedsBounds: an extent that the inputs bind has no upper bound.
        OverMemoryBudget: no plan fits; names the least budget that one was found for.
    """
    began = time.monotonic()
    memory = plan_memory(program)
    open_ended = sorted(name[1:] for name, s in _facts(program, memory).items() if s.hi is None)
    if open_ended:
        raise BudgetNeedsBounds(program.loc, symbols=", ".join(open_ended))
    symbols = stated_extents(program, memory)
    budget = memory_budget - scratch
    natural = plan_arena(program, seconds, heirs)
    if natural.height <= budget:
        return natural
    steps = steps_of(program, memory, buffer_bytes(memory, symbols), heirs)
    least = max(steps.fixed, default=0)
    if budget < least:
        raise OverMemoryBudget(program.loc, budget=memory_budget, least=least + scratch)
    best: ArenaPlan | None = None
    for share in SHARES:
        room = budget - round((budget - least) * share)
        outside = kept_outside(steps, room)
        inside = steps.without(outside)
        moves = least_traffic(inside, room, seconds)
        found = _with_moves(program, symbols, inside, moves, outside, seconds / len(SHARES))
        if found.height <= budget and (best is None or _moved(steps, found) < _moved(steps, best)):
            best = found
        if found.height <= budget and moves.settled:
            break
    if best is None:
        outside = kept_outside(steps, budget)
        inside = steps.without(outside)
        best = _with_moves(program, symbols, inside, restless(inside), outside, seconds)
    if best.height > budget:  # what cannot leave the arena lies in the way
        raise OverMemoryBudget(program.loc, budget=memory_budget, least=best.height + scratch)
    return replace(best, seconds=time.monotonic() - began)


def _moved(steps: Steps, plan: ArenaPlan) -> int:
    """Bytes copied, and those that kernels read and write outside."""
    return plan.traffic_bytes + sum(steps.sizes[name] * len(steps.uses[name]) for name in plan.outside)


def _with_moves(
    program: Program,
    symbols: Mapping[str, int],
    steps: Steps,
    moves: Transfers,
    outside: frozenset[str],
    seconds: float,
) -> ArenaPlan:
    moved = with_transfers(program, moves)
    memory = plan_memory(moved, outside, {new: (old,) for new, old in steps.takes.items()})
    plan = _packed(moved, memory, symbols, seconds, _hints(memory, moves))
    return replace(plan, traffic_bytes=traffic_bytes(steps, moves.moves), outside=outside)


def _hints(memory: MemoryPlan, moves: Transfers) -> dict[int, int]:
    """Offsets of buffers where the transfers were planned with some."""
    found: dict[int, int] = {}
    for name, offsets in moves.offsets.items():
        place = memory.places[name]
        assert isinstance(place, AtBuffer)
        for index, offset in zip(memory.stays.get(name, (place.index,)), offsets, strict=True):
            found.setdefault(index, offset)
    return found


def _packed(
    program: Program,
    memory: MemoryPlan,
    symbols: Mapping[str, int],
    seconds: float,
    hints: Mapping[int, int] | None = None,
) -> ArenaPlan:
    """Offsets for what lies in the arena and for what lies outside."""
    began = time.monotonic()
    buffers = [replace(b, hint=(hints or {}).get(i)) for i, b in enumerate(_buffers(memory.buffers, symbols))]
    inside = _pack(buffers, seconds)
    homes = tuple(memory.spilled.values())
    outside = _pack(_buffers(homes, symbols), seconds)
    placed = replace(
        memory,
        buffers=tuple(replace(b, offset=at) for b, at in zip(memory.buffers, inside.offsets, strict=True)),
        spilled={h.name: replace(h, offset=at) for h, at in zip(homes, outside.offsets, strict=True)},
    )
    took = time.monotonic() - began
    return ArenaPlan(program, placed, symbols, inside.height, inside.bound, took, outside.height)


def _buffers(buffers: Sequence[ArenaBuffer], symbols: Mapping[str, int]) -> list[Buffer]:
    return [Buffer(str(i), b.first, b.last + 1, _bytes(b, symbols)) for i, b in enumerate(buffers)]


def _bytes(buffer: ArenaBuffer, symbols: Mapping[str, int]) -> int:
    return align(max(int(evaluate(buffer.bytes, symbols)), 0))


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
    return [_bytes(b, symbols) for b in memory.buffers]


def scratch_bytes(program: Program, kernels: Mapping[str, HostKernel], threads: int | None) -> int:
    """Scratch memory of all threads, at the extents that are planned for."""
    memory = plan_memory(program)
    each = evaluate(scratch_extent(program, kernels, memory.values), stated_extents(program, memory))
    return align(int(each)) * (threads or default_threads())


def stated_extents(program: Program, memory: MemoryPlan) -> dict[str, int]:
    """A value per symbol (with `#`) that the inputs bind: its upper bound, or, without one, the least that is not 0."""
    facts = _facts(program, memory)
    least = {name: max(s.lo, 1) for name, s in facts.items()}
    most = least | {name: s.hi for name, s in facts.items() if s.hi is not None}
    return most if sum(buffer_bytes(memory, most)) <= MAX_ARENA_BYTES else least


def _facts(program: Program, memory: MemoryPlan) -> dict[str, Symbol]:
    """What is known of the symbols that the inputs bind."""
    facts = {"#" + s.name: s for s in program.symbols}
    for stmt in walk_statements(program.body):
        facts.update({"#" + s.name: s for s in bound_symbols(stmt) if "#" + s.name in memory.values})
    return facts


def memory_report(plan: ArenaPlan) -> dict[str, Any]:
    """The arena as `Dump.json` wants it."""
    sizes = buffer_bytes(plan.memory, plan.symbols)
    listed: list[dict[str, Any]] = [
        {"name": b.name, "bytes": size, "offset": b.offset, "first": b.first, "last": b.last, "in_place": []}
        for b, size in zip(plan.memory.buffers, sizes, strict=True)
    ]
    for name, place in plan.memory.places.items():
        if isinstance(place, AtBuffer) and name != listed[place.index]["name"]:
            listed[place.index]["in_place"].append(name)  # written over what the buffer is named after
    return {
        "arena_bytes": plan.height,
        "spill_bytes": plan.spill_bytes,
        "traffic_bytes": plan.traffic_bytes,
        "outside": sorted(plan.outside),
        "steps": 1 + max((b.last for b in plan.memory.buffers), default=0),
        "buffers": listed,
        "symbols": {name[1:]: value for name, value in plan.symbols.items()},
    }
