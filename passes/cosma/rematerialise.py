"""Make a cheap tensor again instead of bringing it back, where that moves fewer bytes.

For a tensor that comes back in the best plan, its operator is copied right before the use it comes back for, and the later
readers read the copy.  A copy is kept if the optimum of the graph with it is lower.

Source: Jain et al., Checkmate (arXiv 1910.02653); only operators that the graph calls cheap are copied.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from dlc.passes.cosma.graph import Graph, Tensor
from dlc.passes.cosma.optimise import Schedule, optimise


@dataclass(frozen=True, slots=True)
class Rematerialised:
    """The graph with the copies that pay, its schedule, and what they save.

    Attributes:
        copies: operators that run again, by name.
        saved_bytes: traffic of the best plan without copies, less that with them.
    """

    graph: Graph
    schedule: Schedule
    copies: tuple[str, ...]
    saved_bytes: int


def rematerialise(graph: Graph, budget: int, time_limit_s: float = 60.0) -> Rematerialised:
    """The best plan within `budget` in which cheap operators may run more than once."""
    deadline = time.monotonic() + time_limit_s
    best = first = optimise(graph, budget, time_limit_s / 2)
    copies: list[str] = []
    improved = True
    while improved and best.value and time.monotonic() < deadline:
        improved = False
        for tensor, step in returns(graph, best):
            candidate = with_copy(graph, best, tensor, step)
            left = max(deadline - time.monotonic(), 0.1)
            found = optimise(candidate, budget, left / 2)
            if found.value < best.value:
                copies.append(graph.operators[graph.tensors[tensor].producers[0]])
                graph, best, improved = candidate, found, True
                break
            if time.monotonic() > deadline:
                break
    return Rematerialised(graph, best, tuple(copies), first.value - best.value)


def returns(graph: Graph, schedule: Schedule) -> list[tuple[int, int]]:
    """(tensor, step) of all that comes back and could be made again, the largest first."""
    found = [
        (t.tensor, t.step)
        for t in schedule.replay.transfers
        if t.kind == "fill" and not t.compulsory and _cheap(graph, t.tensor)
    ]
    return sorted(found, key=lambda item: -graph.tensors[item[0]].bytes)


def _cheap(graph: Graph, tensor: int) -> bool:
    t = graph.tensors[tensor]
    if len(t.producers) != 1 or t.producers[0] not in graph.cheap:
        return False
    operator = t.producers[0]
    return sum(operator in other.producers for other in graph.tensors) == 1


def with_copy(graph: Graph, schedule: Schedule, tensor: int, step: int) -> Graph:
    """The graph in the plan's order, with a copy of the operator of `tensor` right before `step`, for all later readers."""
    order = schedule.plan.order
    place = {o: at + (at >= step) for at, o in enumerate(order)}
    made = graph.tensors[tensor].producers[0]
    operators = [graph.operators[o] for o in order]
    operators.insert(step, f"{graph.operators[made]} again")
    tensors: list[Tensor] = []
    for index, t in enumerate(graph.tensors):
        readers = [place[c] for c in t.consumers]
        if index == tensor:
            readers = [c for c in readers if c < step]
        if made in t.consumers:
            readers.append(step)
        producers = tuple(place[p] for p in t.producers)
        takes = t.takes
        if takes == tensor and producers[0] > step:
            takes = len(graph.tensors)  # it reads the copy now
        tensors.append(replace(t, producers=producers, consumers=tuple(sorted(readers)), takes=takes))
    later = tuple(sorted(place[c] for c in graph.tensors[tensor].consumers if place[c] > step))
    copy = replace(graph.tensors[tensor], name=f"{graph.tensors[tensor].name} again", output=False)
    tensors.append(replace(copy, producers=(step,), consumers=later))
    cheap = tuple(sorted({place[o] for o in graph.cheap} | {step}))
    return replace(graph, operators=tuple(operators), tensors=tuple(tensors), cheap=cheap)
