"""Order, residency and addresses in one model, for when the cheapest plan's tensors do not pack: CP-SAT with rectangles.

Each use of a tensor is a rectangle in time and address.  It ends where the next use's begins, at the same address, if the
tensor stays in between, and after one step if it leaves.  Which use is the next one is a circuit through the tensor's
uses.  So there are O(uses) rectangles instead of the paper's O(|T||A|^2) pairs (equations 9-11).

Source: Li et al., COSMA (arXiv 2311.18246); OR-tools' `AddNoOverlap2D` and `AddCircuit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ortools.sat.python import cp_model

from dlc.passes.cosma.graph import Graph
from dlc.passes.cosma.plan import Plan, Stay

Literal: TypeAlias = Any
"""A Boolean variable or its negation: OR-tools publishes no type for both."""
Linear: TypeAlias = Any


@dataclass(slots=True)
class Joint:
    """The model and its variables.

    Attributes:
        step: by operator.
        offset: by (tensor, use), in units of `unit` bytes.
        stays: by (tensor, use), whether the tensor stays until its next use; absent for sure last uses.
        follows: by tensor, (use, next use) -> literal.
    """

    model: cp_model.CpModel
    unit: int
    step: list[cp_model.IntVar] = field(default_factory=list)
    offset: dict[tuple[int, int], cp_model.IntVar] = field(default_factory=dict)
    stays: dict[tuple[int, int], cp_model.IntVar] = field(default_factory=dict)
    follows: dict[int, dict[tuple[int, int], Literal]] = field(default_factory=dict)
    capacity: cp_model.IntVar | int = 0


@dataclass(frozen=True, slots=True)
class JointAnswer:
    """A plan, or None if there is none (`bound` None) or none was found in time; and what no plan goes below."""

    plan: Plan | None
    cost: int
    bound: int


def encode(
    graph: Graph, capacity: int | None, *, order: Sequence[int] | None = None, least_cost: int = 0, most: int = 0
) -> Joint:
    """The model of least traffic within `capacity`, or without one of the least address in use, at most `most`.

    Args:
        order: a given order instead of a free one.
        least_cost: bytes that are known to be needed.
    """
    return _Encoder(graph, capacity, order, least_cost, most).encode()


class _Encoder:
    def __init__(
        self, graph: Graph, capacity: int | None, order: Sequence[int] | None, least_cost: int, most: int
    ) -> None:
        self.graph = graph
        self.order = order
        self.least_cost = least_cost
        self.spills = capacity is not None
        self.unit = graph.unit
        self.top = (capacity if capacity is not None else most) // self.unit
        self.model = cp_model.CpModel()
        self.joint = Joint(self.model, self.unit)
        self.horizon = len(graph.operators)
        self.cost: list[Linear] = []
        self.times: list[cp_model.IntervalVar] = []
        self.heights: list[cp_model.IntervalVar] = []
        self.sizes: list[int] = []
        self.last: dict[tuple[int, int], Literal] = {}

    def encode(self) -> Joint:
        self.steps()
        if not self.spills:
            self.joint.capacity = self.model.new_int_var(0, self.top, "capacity")
        else:
            self.joint.capacity = self.top
        for a, t in enumerate(self.graph.tensors):
            most = max(self.top - t.bytes // self.unit, 0)
            for u in t.uses:
                self.joint.offset[a, u] = self.model.new_int_var(0, most, f"offset{a},{u}")
        for a, t in enumerate(self.graph.tensors):
            if t.uses:
                self.tensor(a)
        self.model.add_no_overlap_2d(self.times, self.heights)
        self.model.add_cumulative(self.times, self.sizes, self.joint.capacity)
        if self.spills:
            total = sum(self.cost)
            self.model.add(total >= self.least_cost // self.unit)
            self.model.minimize(total)
        else:
            self.model.minimize(self.joint.capacity)
        return self.joint

    def steps(self) -> None:
        n = self.horizon
        self.joint.step = [self.model.new_int_var(0, max(n - 1, 0), f"step{o}") for o in range(n)]
        if self.order is not None:
            for at, o in enumerate(self.order):
                self.model.add(self.joint.step[o] == at)
            return
        self.model.add_all_different(self.joint.step)
        for t in self.graph.tensors:
            for p in t.producers:
                for c in t.consumers:
                    self.model.add(self.joint.step[p] < self.joint.step[c])

    def tensor(self, a: int) -> None:
        t = self.graph.tensors[a]
        size = t.bytes // self.unit
        follows = self.joint.follows[a] = self.succession(a)
        dirty: dict[int, Literal] = {u: self.model.new_bool_var(f"dirty{a},{u}") for u in t.uses}
        for u in t.uses:
            if not self.spills:
                self.model.add(self.joint.offset[a, u] + size <= self.joint.capacity)
            stays = self.joint.stays[a, u] = self.model.new_bool_var(f"stays{a},{u}")
            if not self.spills:
                self.model.add(stays + self.last[a, u] == 1)
            self.model.add_implication(self.last[a, u], ~stays)
            self.value_after(a, u, dirty)
            if self.spills:
                self.price(a, u, size, stays, dirty[u])
        for (u, v), arc in follows.items():
            both = [arc, self.joint.stays[a, u]]
            self.model.add(self.joint.offset[a, u] == self.joint.offset[a, v]).only_enforce_if(both)
            if v not in t.producers:
                self.model.add(dirty[v] == 0).only_enforce_if([arc, ~self.joint.stays[a, u]])
                self.model.add(dirty[v] == dirty[u]).only_enforce_if(both)
        for u in t.uses:
            self.rectangle(a, u, size, follows)

    def succession(self, a: int) -> dict[tuple[int, int], Literal]:
        """Literals that say which use comes next; steps rise along them."""
        t = self.graph.tensors[a]
        step = self.joint.step
        arcs: list[tuple[int, int, Literal]] = []
        found: dict[tuple[int, int], Literal] = {}
        place = {u: i + 1 for i, u in enumerate(t.uses)}
        for u in t.uses:
            first, last = self.model.new_bool_var(""), self.model.new_bool_var("")
            self.last[a, u] = last
            arcs += [(0, place[u], first), (place[u], 0, last)]
            for v in t.uses:
                if u == v or (u in t.consumers and v in t.producers):
                    continue
                arc = found[u, v] = self.model.new_bool_var("")
                arcs.append((place[u], place[v], arc))
                self.model.add(step[u] < step[v]).only_enforce_if(arc)
        self.model.add_circuit(arcs)
        return found

    def value_after(self, a: int, u: int, dirty: dict[int, Literal]) -> None:
        """Whether slow memory lacks the value after a use: so after a write, unless it is a whole result."""
        t = self.graph.tensors[a]
        if u not in t.producers:
            if not t.producers:
                self.model.add(dirty[u] == 0)
            return
        if not t.output:
            self.model.add(dirty[u] == 1)
            return
        more = [arc for (x, v), arc in self.joint.follows.get(a, {}).items() if x == u and v in t.producers]
        self.model.add(dirty[u] == (sum(more) if more else 0))

    def price(self, a: int, u: int, size: int, stays: Literal, dirty: Literal) -> None:
        leaves, written = self.model.new_bool_var(""), self.model.new_bool_var("")
        self.model.add(leaves + stays + self.last[a, u] == 1)
        self.model.add(written >= leaves + dirty - 1)
        self.cost += [size * leaves, size * written]

    def rectangle(self, a: int, u: int, size: int, follows: dict[tuple[int, int], Literal]) -> None:
        if size == 0:
            return
        step, stays = self.joint.step, self.joint.stays[a, u]
        length = self.model.new_int_var(0, self.horizon, f"length{a},{u}")
        end = self.model.new_int_var(0, self.horizon, f"end{a},{u}")
        for (x, v), arc in follows.items():
            if x == u:
                self.model.add(end == step[v]).only_enforce_if([arc, stays])
        heir = next((i for i, t in enumerate(self.graph.tensors) if t.takes == a and t.producers == (u,)), None)
        if heir is None:
            self.model.add(length == 1).only_enforce_if(~stays)
        else:
            self.model.add(length == 1 - self.last[a, u]).only_enforce_if(~stays)
            self.model.add(self.joint.offset[a, u] == self.joint.offset[heir, u]).only_enforce_if(self.last[a, u])
        self.times.append(self.model.new_interval_var(step[u], length, end, f"time{a},{u}"))
        self.heights.append(self.model.new_fixed_size_interval_var(self.joint.offset[a, u], size, f"place{a},{u}"))
        self.sizes.append(size)


def solve(joint: Joint, time_limit_s: float, workers: int = 1) -> tuple[cp_model.CpSolver, int]:
    """Run CP-SAT; its status says whether there is a solution."""
    solver = cp_model.CpSolver()
    solver.parameters.max_time_in_seconds = max(time_limit_s, 0.01)
    solver.parameters.num_workers = workers
    return solver, solver.solve(joint.model)


def decode(graph: Graph, joint: Joint, solver: cp_model.CpSolver, status: int) -> JointAnswer:
    """The plan that a solution describes."""
    bound = math.ceil(solver.best_objective_bound - 1e-6) * joint.unit
    if status not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return JointAnswer(None, 0, max(bound, 0))
    steps = [solver.value(s) for s in joint.step]
    order = tuple(sorted(range(len(steps)), key=steps.__getitem__))
    stays: list[Stay] = []
    for a, t in enumerate(graph.tensors):
        first = None
        for use in sorted(t.uses, key=steps.__getitem__):
            first = steps[use] if first is None else first
            if not solver.value(joint.stays[a, use]):
                stays.append(Stay(a, first, steps[use], solver.value(joint.offset[a, use]) * joint.unit))
                first = None
    return JointAnswer(Plan(order, tuple(stays)), round(solver.objective_value) * joint.unit, bound)
