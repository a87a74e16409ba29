"""The optimum of a graph: order and residency first, then addresses, and all three together where these do not fit.

Every plan is replayed by the simulator before it is handed out.

Source: Li et al., COSMA (arXiv 2311.18246).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dlc.errors import EXIT_INFEASIBLE, DlcError
from dlc.passes.cosma import joint
from dlc.passes.cosma.graph import Graph, Tables, bits, frugal_order, least_budget
from dlc.passes.cosma.peak import least_peak
from dlc.passes.cosma.placing import as_buffers, place, with_offsets
from dlc.passes.cosma.plan import Plan, Span, Stay
from dlc.passes.cosma.residency import decode, encode, partial_order, parts, solve, total_order
from dlc.passes.cosma.search import Rest, search
from dlc.passes.cosma.simulate import Replay, simulate
from dlc.passes.packing import pack_least

RECTANGLES_PER_SECOND = 300
"""Uses of tensors in a model with addresses, above which it finds nothing: to write it down alone takes as long."""


class BudgetTooSmall(DlcError):
    """Fast memory that one operator's inputs and outputs do not fit in."""

    code = "DLC0322"
    template = "{budget} bytes cannot hold the inputs and outputs of {operator}"
    hint = "the least budget of this program is {least} bytes"
    exit_code = EXIT_INFEASIBLE


@dataclass(frozen=True, slots=True)
class Schedule:
    """The best plan found, and what is known of the best there can be.

    Attributes:
        budget: bytes of fast memory, or None when the plan has the least peak instead.
        value: bytes of traffic that are not compulsory; without a budget, of memory.
        bound: no plan's value is lower.
        method: which part of the solver had the last word.
    """

    plan: Plan
    replay: Replay
    budget: int | None
    value: int
    bound: int
    seconds: float
    method: str

    @property
    def proven(self) -> bool:
        return self.value == self.bound

    @property
    def gap(self) -> float:
        """How far the value may be from the optimum, as a share of the value."""
        return (self.value - self.bound) / self.value if self.value else 0.0


def optimise(graph: Graph, budget: int | None = None, time_limit_s: float = 60.0) -> Schedule:
    """The plan of least traffic within `budget` bytes, or without a budget of least memory.

    Raises:
        BudgetTooSmall: carries the least budget.
    """
    if budget is None:
        return _least_memory(graph, time_limit_s)
    tables = Tables(graph)
    least = least_budget(graph)
    if budget < least:
        order = frugal_order(tables)
        done = [sum(1 << o for o in order[:step]) for step in range(len(order))]
        greediest = max(range(len(order)), key=lambda step: tables.footprint(order[step], done[step]))
        raise BudgetTooSmall(budget=budget, operator=f"'{graph.operators[order[greediest]]}'", least=least)
    return _LeastTraffic(graph, tables, budget, time_limit_s).run()


class _LeastTraffic:
    """Cheap parts first: each may end it, because a plan meets the bound."""

    def __init__(self, graph: Graph, tables: Tables, budget: int, time_limit_s: float) -> None:
        self.graph = graph
        self.tables = tables
        self.budget = budget
        self.begun = time.monotonic()
        self.deadline = self.begun + time_limit_s
        self.found: list[tuple[int, tuple[int, ...], tuple[Span, ...]]] = []  # cost, order, stays; not yet placed
        self.best: tuple[int, Plan] | None = None
        self.bound = 0

    def left(self, share: float = 1.0) -> float:
        return max((self.deadline - time.monotonic()) * share, 0.1)

    def run(self) -> Schedule:
        peak = least_peak(self.tables, self.left(0.2))
        if peak.peak_bytes <= self.budget:
            self.found.append((0, peak.order, whole_lives(self.tables, peak.order)))
        else:
            self.relax()
            self.known_orders((tuple(range(self.tables.count)), peak.order))
        if min((cost for cost, _, _ in self.found), default=None) != self.bound:
            self.search()
        self.place()
        if self.best is not None and self.best[0] == min(cost for cost, _, _ in self.found):
            return self.schedule("search")  # addresses cost nothing; what is not proven is the order
        self.with_addresses()
        return self.schedule("model with addresses")

    def settled(self) -> bool:
        return self.best is not None and self.best[0] == self.bound

    def relax(self) -> None:
        """A bound for all orders."""
        answer = solve(encode(self.tables, partial_order(self.tables), self.budget), self.left(0.2))
        if answer is not None:
            self.bound = answer.bound

    def known_orders(self, orders: Sequence[tuple[int, ...]]) -> None:
        """The exact residency of orders that are at hand."""
        for order in orders:
            programme = encode(self.tables, total_order(order), self.budget)
            answer = solve(programme, self.left(0.2))
            if answer is not None:
                self.found.append((answer.cost, order, decode(self.tables, order, programme, answer)))

    def search(self) -> None:
        known = min((cost for cost, _, _ in self.found), default=None)
        rest = Rest(self.tables, parts(self.tables, self.budget, self.left(0.1)))
        found = search(self.tables, self.budget, limit=known, rest=rest, time_limit_s=self.left(0.6))
        if found.spans is not None:
            self.found.append((found.cost, found.order, found.spans))
        self.bound = max(self.bound, found.bound)

    def place(self) -> None:
        """Addresses for what was found, the cheapest first."""
        self.found.sort(key=lambda item: item[0])
        for cost, order, spans in self.found:
            if self.best is None or cost < self.best[0]:
                plan = place(self.graph, order, spans, self.budget, self.left(0.3))
                if plan is not None:
                    self.keep(plan)

    def with_addresses(self) -> None:
        """Order or not, residency and addresses in one model, unless it is too large to be of use in the time left."""
        if sum(len(t.uses) for t in self.graph.tensors) > RECTANGLES_PER_SECOND * self.left():
            return
        cheapest = self.found[0][1] if self.found else None
        for order in dict.fromkeys((cheapest, None)):
            if time.monotonic() > self.deadline:
                return
            model = joint.encode(self.graph, self.budget, order=order, least_cost=self.bound)
            answer = joint.decode(self.graph, model, *joint.solve(model, self.left(0.5 if order else 1.0)))
            if answer.plan is not None:
                self.keep(answer.plan)
            if order is None:
                self.bound = max(self.bound, answer.bound)
            if self.settled():
                return

    def keep(self, plan: Plan) -> None:
        cost = simulate(self.graph, plan, self.budget).traffic_bytes
        if self.best is None or cost < self.best[0]:
            self.best = (cost, plan)

    def schedule(self, method: str) -> Schedule:
        if self.best is None:
            self.keep(lone_operators(self.tables, frugal_order(self.tables)))
            method = "one operator at a time"
        assert self.best is not None
        value, plan = self.best
        replay = simulate(self.graph, plan, self.budget)
        seconds = time.monotonic() - self.begun
        return Schedule(plan, replay, self.budget, value, min(self.bound, value), seconds, method)


def lone_operators(tables: Tables, order: Sequence[int]) -> Plan:
    """The plan that always works: nothing stays from one operator to the next."""
    stays = []
    done = 0
    for step, operator in enumerate(order):
        at = 0
        places: dict[int, int] = {}
        heirs = {new: old for new, old in tables.takes[operator] if tables.taken(operator, done) >> old & 1}
        for a in sorted(bits(tables.touched[operator]), key=lambda a: a in heirs):
            places[a] = places[heirs[a]] if a in heirs else at
            at += 0 if a in heirs else tables.sizes[a]
            stays.append(Stay(a, step, step, places[a]))
        done |= 1 << operator
    return Plan(tuple(order), tuple(stays))


def _least_memory(graph: Graph, time_limit_s: float) -> Schedule:
    begun = time.monotonic()
    tables = Tables(graph)
    found = least_peak(tables, time_limit_s * 0.6)
    spans = whole_lives(tables, found.order)
    owner, buffers = as_buffers(graph, found.order, spans)
    placed = pack_least(tuple(buffers.values()), time_limit=time_limit_s * 0.2)
    assert placed is not None
    plan = with_offsets(found.order, spans, owner, dict(zip(buffers, placed.offsets, strict=True)))
    bound, method = found.bound_bytes, "search"
    if placed.height > bound:
        method = "model with addresses"
        model = joint.encode(graph, None, most=placed.height)
        solved = joint.solve(model, max(time_limit_s - (time.monotonic() - begun), 0.1))
        answer = joint.decode(graph, model, *solved)
        bound = max(bound, answer.bound)
        plan = answer.plan or plan
    replay = simulate(graph, plan)
    return Schedule(plan, replay, None, replay.peak_bytes, bound, time.monotonic() - begun, method)


def whole_lives(tables: Tables, order: tuple[int, ...]) -> tuple[Span, ...]:
    """Stays of an order in which nothing ever leaves."""
    step = {o: at for at, o in enumerate(order)}
    uses = [[step[o] for o in t.uses] for t in tables.graph.tensors]
    return tuple((a, min(steps), max(steps)) for a, steps in enumerate(uses) if steps)


def traffic_of_order(tables: Tables, order: Sequence[int], budget: int) -> int:
    """What an order costs at best within a budget, addresses aside."""
    answer = solve(encode(tables, total_order(order), budget), 10.0)
    assert answer is not None
    return answer.cost
