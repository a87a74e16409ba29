"""Addresses for the stays of a plan: rectangles in time, packed into the capacity."""

from __future__ import annotations

from collections.abc import Sequence

from dlc.passes.cosma.graph import Graph
from dlc.passes.cosma.plan import Plan, Span, Stay
from dlc.passes.packing import Buffer, Packed, pack


def place(
    graph: Graph, order: Sequence[int], spans: Sequence[Span], capacity: int, time_limit_s: float = 10.0
) -> Plan | None:
    """The plan with addresses below `capacity`, or None where none were found."""
    owner, buffers = as_buffers(graph, order, spans)
    found = pack(tuple(buffers.values()), capacity, time_limit=time_limit_s)
    if not isinstance(found, Packed):
        return None
    return with_offsets(order, spans, owner, dict(zip(buffers, found.offsets, strict=True)))


def with_offsets(
    order: Sequence[int], spans: Sequence[Span], owner: dict[int, int], offsets: dict[int, int]
) -> Plan:
    """The plan whose stays lie at their owners' offsets."""
    stays = (Stay(a, first, last, offsets[owner[i]]) for i, (a, first, last) in enumerate(spans))
    return Plan(tuple(order), tuple(stays))


def as_buffers(
    graph: Graph, order: Sequence[int], spans: Sequence[Span]
) -> tuple[dict[int, int], dict[int, Buffer]]:
    """By stay the one whose storage it has, and by such an owner the rectangle to place."""
    owner, lives = merge_heirs(graph, order, spans)
    names = [graph.tensors[a].name for a, _, _ in spans]
    sizes = [graph.tensors[a].bytes for a, _, _ in spans]
    return owner, {i: Buffer(names[i], *life, sizes[i]) for i, life in lives.items()}


def merge_heirs(
    graph: Graph, order: Sequence[int], spans: Sequence[Span]
) -> tuple[dict[int, int], dict[int, tuple[int, int]]]:
    """Stays that are one piece of storage: by stay its first owner, and by owner [from step, before step)."""
    step = {o: at for at, o in enumerate(order)}
    ends = {(a, last): i for i, (a, _, last) in enumerate(spans)}
    owner: dict[int, int] = {}
    buffers: dict[int, tuple[int, int]] = {}

    def made_here(index: int) -> bool:
        a, first, _ = spans[index]
        return graph.tensors[a].takes is not None and first == step[graph.tensors[a].producers[0]]

    for index in sorted(range(len(spans)), key=lambda i: (spans[i][1], made_here(i))):  # what is taken comes first
        a, first, last = spans[index]
        before = None
        if made_here(index):
            old = graph.tensors[a].takes
            assert old is not None
            if max(step[u] for u in graph.tensors[old].uses) == first:
                before = ends.get((old, first))
        owner[index] = index if before is None else owner[before]
        start = buffers[owner[index]][0] if before is not None else first
        buffers[owner[index]] = (start, last + 1)
    return owner, buffers
