"""The judge of all plans, ours and the baselines': replays one step by step, checks every state, counts every byte.

It shares nothing with what makes plans but the graph.  What it counts as compulsory: the first load of what comes from
outside, and one write of each result.  All other transfers are charged: a write when a tensor leaves that is still
needed and has no valid copy in slow memory, and a read when it comes back.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from dlc.errors import DlcError
from dlc.passes.cosma.graph import Graph
from dlc.passes.cosma.plan import Plan, Stay


class WrongPlan(DlcError):
    """A plan that does not compute the graph, or in which two tensors lie in one place."""

    code = "DLC0321"
    template = "step {step}: {what}"


@dataclass(frozen=True, slots=True)
class Transfer:
    """Before step `step`, tensor `tensor` is read (`fill`) or written (`spill`)."""

    step: int
    tensor: int
    kind: str
    bytes: int
    compulsory: bool = False


@dataclass(frozen=True, slots=True)
class Replay:
    """What a plan costs.

    Attributes:
        traffic_bytes: transfers that are not compulsory.
        compulsory_bytes: first loads and the results' writes.
        peak_bytes: highest address in use, plus one.
        live_bytes: most bytes in use at a time.
    """

    traffic_bytes: int
    compulsory_bytes: int
    peak_bytes: int
    live_bytes: int
    transfers: tuple[Transfer, ...]


def simulate(graph: Graph, plan: Plan, capacity: int | None = None) -> Replay:
    """The cost of `plan`.

    Raises:
        WrongPlan: an operator is missing or too early, a tensor is not there or lies over another or over `capacity`.
    """
    return _Replay(graph, plan, capacity).run()


class _Replay:
    def __init__(self, graph: Graph, plan: Plan, capacity: int | None) -> None:
        self.graph = graph
        self.plan = plan
        self.capacity = capacity
        self.remaining = [set(t.uses) for t in graph.tensors]
        self.unwritten = [set(t.producers) for t in graph.tensors]
        self.valid = [not t.producers for t in graph.tensors]  # whether slow memory has the present value
        self.seen = [False] * len(graph.tensors)
        self.touched: list[list[int]] = [[] for _ in graph.operators]
        for index, t in enumerate(graph.tensors):
            for o in t.uses:
                self.touched[o].append(index)
        self.resident: dict[int, Stay] = {}
        self.transfers: list[Transfer] = []
        self.peak = self.live = 0

    def run(self) -> Replay:
        if sorted(self.plan.order) != list(range(len(self.graph.operators))):
            raise WrongPlan(step=0, what="not every operator runs once")
        begins: dict[int, list[Stay]] = defaultdict(list)
        for stay in self.plan.stays:
            if not 0 <= stay.first <= stay.last < len(self.plan.order) or stay.offset < 0:
                raise WrongPlan(step=stay.first, what=f"{self.name(stay.tensor)} stays nowhere")
            begins[stay.first].append(stay)
        for step, operator in enumerate(self.plan.order):
            self.leave(step)
            for stay in begins[step]:
                self.enter(stay, operator)
            self.check_places(step, operator)
            self.execute(step, operator)
        missing = [self.name(i) for i, left in enumerate(self.remaining) if left]
        assert not missing, missing
        extra = [t for t in self.transfers if not t.compulsory]
        compulsory = sum(t.bytes for t in self.transfers if t.compulsory)
        return Replay(sum(t.bytes for t in extra), compulsory, self.peak, self.live, tuple(self.transfers))

    def name(self, tensor: int) -> str:
        return f"'{self.graph.tensors[tensor].name}'"

    def leave(self, step: int) -> None:
        for tensor, stay in list(self.resident.items()):
            if stay.last >= step:
                continue
            del self.resident[tensor]
            if self.remaining[tensor] and not self.valid[tensor]:
                self.transfers.append(Transfer(step, tensor, "spill", self.graph.tensors[tensor].bytes))
                self.valid[tensor] = True

    def enter(self, stay: Stay, operator: int) -> None:
        t = self.graph.tensors[stay.tensor]
        if stay.tensor in self.resident:
            raise WrongPlan(step=stay.first, what=f"{self.name(stay.tensor)} is there already")
        self.resident[stay.tensor] = stay
        first = not self.seen[stay.tensor]
        self.seen[stay.tensor] = True
        if first and t.producers:
            if operator not in t.producers:
                raise WrongPlan(step=stay.first, what=f"{self.name(stay.tensor)} does not exist yet")
            return
        if not self.valid[stay.tensor]:
            raise WrongPlan(step=stay.first, what=f"{self.name(stay.tensor)} is nowhere to be read from")
        self.transfers.append(Transfer(stay.first, stay.tensor, "fill", t.bytes, compulsory=first))

    def check_places(self, step: int, operator: int) -> None:
        places = sorted((s.offset, s.offset + self.graph.tensors[a].bytes, a) for a, s in self.resident.items())
        places = [p for p in places if p[0] < p[1]]
        handed = self.handed_over(step, operator)
        places = [p for p in places if p[2] not in handed]
        for (_, end, a), (start, _, b) in zip(places, places[1:]):
            if start < end:
                raise WrongPlan(step=step, what=f"{self.name(a)} and {self.name(b)} lie in one place")
        top = max((end for _, end, _ in places), default=0)
        if self.capacity is not None and top > self.capacity:
            raise WrongPlan(step=step, what=f"{top} bytes are in use, and there are {self.capacity}")
        self.peak = max(self.peak, top)
        self.live = max(self.live, sum(end - start for start, end, _ in places))

    def handed_over(self, step: int, operator: int) -> set[int]:
        """Tensors whose storage is a new tensor's from this step on."""
        found = set()
        for index in self.touched[operator]:
            t = self.graph.tensors[index]
            old = t.takes
            if old is None or operator not in t.producers or self.remaining[old] != {operator}:
                continue
            before, now = self.resident.get(old), self.resident.get(index)
            if before is not None and now is not None and before.last == step and before.offset == now.offset:
                found.add(old)
        return found

    def execute(self, step: int, operator: int) -> None:
        for index in self.touched[operator]:
            t = self.graph.tensors[index]
            if index not in self.resident:
                raise WrongPlan(step=step, what=f"{self.name(index)} is needed and not there")
            if operator in t.consumers and self.unwritten[index] - {operator}:
                raise WrongPlan(step=step, what=f"{self.name(index)} is read before it is whole")
            self.remaining[index].discard(operator)
            if operator in t.producers:
                self.unwritten[index].discard(operator)
                self.valid[index] = t.output and not self.unwritten[index]
                if self.valid[index]:
                    self.transfers.append(Transfer(step + 1, index, "spill", t.bytes, compulsory=True))
