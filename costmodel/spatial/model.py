"""Cycles, latency, utilisation and energy of a cascade on a spatial target.

A stage of the schedule takes as long as the array with more to do; a phase as long as its stages, or as its memory traffic;
phases come one after the other. Energy is counts times energy per action, with no leakage.

Source: FuseMax (arXiv 2406.10491), sections 5 and 6, and the published artifact, whose rows the tests compare with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlc.costmodel.spatial.binding import Bound, Plan, lay_out, matches
from dlc.costmodel.spatial.cascade import normalise
from dlc.costmodel.spatial.count import Counts, compute_counts, memory_counts, operand_counts, points
from dlc.costmodel.spatial.roles import in_passes
from dlc.costmodel.spatial.target import Array, Target
from dlc.ir.program import Cascade


@dataclass(frozen=True, slots=True)
class EinsumCost:
    """One operation of the mapped cascade.

    Attributes:
        array: `2d` or `1d`.
        stage: which stretch of its phase's schedule it runs in, counted from 1 over all phases.
        share: of the latency, the part its array works on it.
    """

    name: str
    array: str
    stage: int
    points: int
    cycles: float
    time_s: float
    share: float


@dataclass(frozen=True, slots=True)
class SpatialCost:
    """What a cascade costs on a target.

    Attributes:
        passes: over the streamed rank.
        bound: what limits the latency, `compute` or `memory` (the longer in sum over phases).
        energy_parts_j: arithmetic, and each level.
        accesses: values read and written per level; register files over all elements.
    """

    target: str
    passes: int
    traffic_bytes: float
    latency_s: float
    util_2d: float
    util_1d: float
    energy_j: float
    bound: str
    einsums: tuple[EinsumCost, ...]
    energy_parts_j: Mapping[str, float]
    accesses: Mapping[str, Mapping[str, int]]
    ranks: Mapping[str, str]
    tiles: tuple[int, ...]
    spilled: tuple[str, ...]


def predict_spatial(
    cascade: Cascade,
    target: Target,
    extents: Mapping[str, int],
    *,
    traffic_bytes: float | None = None,
    as_published: bool = False,
) -> SpatialCost:
    """The cost of `cascade` on `target` at values of its symbols.

    Args:
        traffic_bytes: of memory, where it is known from elsewhere (FLAT's own search) and not to be counted here.
        as_published: repeat what `target.published` says the published figures got wrong.

    Raises:
        BadExtents, UnmappableCascade, UnknownOperation, BufferTooSmall: see there.
    """
    normal = normalise(cascade, extents, target.name)
    plan = lay_out(normal, target)
    memory = [memory_counts(plan, phase) for phase in plan.phases]
    counted = [_bytes(plan, m) for m in memory]
    traffic = sum(counted) if traffic_bytes is None else traffic_bytes
    times = [_phase_cycles(plan, phase) / target.clock_hz for phase in plan.phases]
    moves = [b / sum(counted) * traffic / target.dram_bytes_per_s for b in counted]
    latency = sum(max(t, m) for t, m in zip(times, moves, strict=True))
    stage_of = _stages(plan)
    einsums = tuple(_einsum_cost(plan, b, stage_of[b.op.out], latency) for b in plan.bound)
    use = {a: sum(e.share for e in einsums if e.array == a) for a in target.arrays}
    accesses = _accesses(plan, memory, as_published)
    more = (traffic - sum(counted)) / target.value_bytes
    energy = _energy(plan, accesses, more, as_published)
    return SpatialCost(
        target=target.name,
        passes=max(in_passes(normal, plan.roles.stream).values()) + 1,
        traffic_bytes=traffic,
        latency_s=latency,
        util_2d=use["2d"],
        util_1d=use["1d"],
        energy_j=sum(energy.values()),
        bound="memory" if sum(moves) > sum(times) else "compute",
        einsums=einsums,
        energy_parts_j=energy,
        accesses={
            level: {"reads": accesses.reads[level], "writes": accesses.writes[level]}
            for level in ("dram", "buffer", "stage", "file_1d", "file_2d")
        },
        ranks={
            "stream": plan.roles.stream,
            "parallel": plan.roles.parallel,
            "batch": ", ".join(plan.roles.batch),
            "inner": ", ".join(plan.roles.inner(normal.extents)),
        },
        tiles=plan.tiles,
        spilled=tuple(sorted(plan.spilled)),
    )


def cycles_of(plan: Plan, b: Bound) -> float:
    """Cycles an operation keeps its array busy: rounds of the array times what a point takes."""
    array = plan.target.arrays[b.array]
    rounds = 1
    for rank in b.op.all_ranks:
        if rank == plan.roles.stream and "stream" in plan.nest(b.array).space:
            rounds *= plan.steps(b.array)
        elif rank == plan.roles.parallel:
            rounds *= plan.pieces(b.array)
        else:
            rounds *= plan.extent(rank)
    if plan.roles.stream not in b.op.all_ranks and not b.outside:
        rounds *= plan.steps(b.array)
    return rounds * sum(array.operations[op].cycles * n for op, n in b.op.work.items())


def _bytes(plan: Plan, counts: Counts) -> int:
    return plan.target.value_bytes * (counts.reads["dram"] + counts.writes["dram"])


def _stages(plan: Plan) -> dict[str, int]:
    """The stage of each operation, counted over phases."""
    stages = plan.target.mapping.stages
    found: dict[str, int] = {}
    for b in plan.bound:
        chosen = next((n for n, s in enumerate(stages) if any(matches(t, plan, b) for t in s.takes)), len(stages))
        found[b.op.out] = b.phase * (len(stages) + 1) + chosen
    order = {old: new for new, old in enumerate(sorted(set(found.values())), 1)}
    return {name: order[old] for name, old in found.items()}


def _phase_cycles(plan: Plan, phase: int) -> float:
    """A phase's stages one after the other, each as long as its busier array."""
    stages = plan.target.mapping.stages
    busy: dict[tuple[int, str], float] = {}
    filled = [0.0] * (len(stages) + 1)
    for b in plan.of_phase(phase):
        n = next((n for n, s in enumerate(stages) if any(matches(t, plan, b) for t in s.takes)), len(stages))
        busy[n, b.array] = busy.get((n, b.array), 0.0) + cycles_of(plan, b)
        if n < len(stages) and stages[n].fill and b.array == "2d":
            filled[n] = float(_tiles_filled(plan, b) * plan.target.arrays["2d"].shape[0])
    longest = [max((c for (n, _), c in busy.items() if n == stage), default=0.0) for stage in range(len(stages) + 1)]
    return sum(longest) + sum(filled)


def _tiles_filled(plan: Plan, b: Bound) -> int:
    batch = 1
    for rank in plan.roles.batch:
        batch *= plan.extent(rank) if rank in b.op.all_ranks else 1
    return batch * plan.steps(b.array) * plan.pieces(b.array)


def _einsum_cost(plan: Plan, b: Bound, stage: int, latency_s: float) -> EinsumCost:
    cycles = cycles_of(plan, b)
    time = cycles / plan.target.clock_hz
    return EinsumCost(b.op.out, b.array, stage, points(plan, b), cycles, time, time / latency_s)


def _accesses(plan: Plan, memory: list[Counts], as_published: bool) -> Counts:
    total = Counts()
    wrapping = as_published and plan.target.published.wrapping_elision
    for b in plan.bound:
        total += compute_counts(plan, b, wrapping=wrapping)
    for phase, moved in zip(plan.phases, memory, strict=True):
        total += operand_counts(plan, phase)
        total += moved
    return total


def _energy(plan: Plan, accesses: Counts, more_words: float, as_published: bool) -> dict[str, float]:
    """Joules of the arithmetic and of each level.

    Args:
        more_words: memory traffic beyond what was counted; it is written to the buffer.
    """
    target = plan.target
    published = target.published if as_published else None
    skipped = published.free_operations if published else ()
    arithmetic = 0.0
    for b in plan.bound:
        each = sum(target.arrays[b.array].operations[op].pj * n for op, n in b.op.work.items() if op not in skipped)
        arithmetic += points(plan, b) * each
    parts = {"arithmetic": arithmetic}
    levels = {"dram": target.dram, "buffer": target.buffer, "stage": target.stage}
    more = {"dram": more_words, "buffer": max(more_words, 0.0)}
    for level, memory in levels.items():
        if memory is not None:
            written = accesses.writes[level] + more.get(level, 0.0)
            parts[level] = (accesses.reads[level] * memory.read_pj + written * memory.write_pj) / memory.row_words
    for name, array in target.arrays.items():
        counted = _file_share(array, published is not None and published.one_element_files)
        file, level = array.file, f"file_{name}"
        parts[level] = counted * (accesses.reads[level] * file.read_pj + accesses.writes[level] * file.write_pj)
    return {name: pj * 1e-12 for name, pj in parts.items()}


def _file_share(array: Array, one_element: bool) -> float:
    return 1 / array.size if one_element else 1.0
