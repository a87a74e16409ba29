"""Addresses for the stays of a plan: rectangles in time, packed into the capacity."""

from __future__ import annotations

from collections.abc import Sequence

from ortools.sat.python import cp_model

from dlc.passes.cosma.graph import Graph
from dlc.passes.cosma.plan import Plan, Span, Stay


def place(
    graph: Graph, order: Sequence[int], spans: Sequence[Span], capacity: int, time_limit_s: float = 10.0
) -> Plan | None:
    """The plan with addresses below `capacity`, or None where none were found."""
    owner, buffers = merge_heirs(graph, order, spans)
    sizes = [graph.tensors[a].bytes for a, _, _ in spans]
    unit = graph.unit
    model = cp_model.CpModel()
    at, times, heights = {}, [], []
    for index, (first, end) in buffers.items():
        size = sizes[index] // unit
        at[index] = model.new_int_var(0, max(capacity // unit - size, 0), "")
        if size:
            times.append(model.new_fixed_size_interval_var(first, end - first, ""))
            heights.append(model.new_fixed_size_interval_var(at[index], size, ""))
    model.add_no_overlap_2d(times, heights)
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = time_limit_s
    solver.parameters.num_workers = 1
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return None
    offsets = {i: solver.value(v) * unit for i, v in at.items()}
    return Plan(
        tuple(order), tuple(Stay(a, first, last, offsets[owner[i]]) for i, (a, first, last) in enumerate(spans))
    )


def merge_heirs(
    graph: Graph, order: Sequence[int], spans: Sequence[Span]
) -> tuple[dict[int, int], dict[int, tuple[int, int]]]:
    """Stays that are one piece of storage: by stay its first owner, and by owner [from step, before step)."""
    step = {o: at for at, o in enumerate(order)}
    ends = {(a, last): i for i, (a, _, last) in enumerate(spans)}
    owner: dict[int, int] = {}
    buffers: dict[int, tuple[int, int]] = {}
    for index in sorted(range(len(spans)), key=lambda i: spans[i][1]):
        a, first, last = spans[index]
        t = graph.tensors[a]
        before = None
        if t.takes is not None and first == step[t.producers[0]]:
            old = graph.tensors[t.takes]
            if max(step[u] for u in old.uses) == first:
                before = ends.get((t.takes, first))
        owner[index] = index if before is None else owner[before]
        start = buffers[owner[index]][0] if before is not None else first
        buffers[owner[index]] = (start, last + 1)
    return owner, buffers
