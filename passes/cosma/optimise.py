"""The optimum of a graph: order and residency first, then addresses, and all three together where these do not fit.

Every plan is replayed by the simulator before it is handed out.

Source: Li et al., COSMA (arXiv 2311.18246).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from dlc.errors import EXIT_INFEASIBLE, DlcError
from dlc.passes.cosma import joint
from dlc.passes.cosma.graph import Graph, Tables, least_budget
from dlc.passes.cosma.peak import least_peak
from dlc.passes.cosma.placing import place
from dlc.passes.cosma.plan import Plan, Span
from dlc.passes.cosma.residency import decode, encode, partial_order, solve_highs, total_order
from dlc.passes.cosma.search import search
from dlc.passes.cosma.simulate import Replay, simulate


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
        whole = tables.all
        needs = [tables.footprint(o, whole & ~(tables.after[o] | 1 << o)) for o in range(tables.count)]
        raise BudgetTooSmall(budget=budget, operator=f"'{graph.operators[needs.index(max(needs))]}'", least=least)
    return _LeastTraffic(graph, tables, budget, time_limit_s).run()


class _LeastTraffic:
    def __init__(self, graph: Graph, tables: Tables, budget: int, time_limit_s: float) -> None:
        self.graph = graph
        self.tables = tables
        self.budget = budget
        self.begun = time.monotonic()
        self.deadline = self.begun + time_limit_s
        self.best: tuple[int, Plan] | None = None
        self.bound = 0

    def left(self, share: float = 1.0) -> float:
        return max((self.deadline - time.monotonic()) * share, 0.1)

    def run(self) -> Schedule:
        found = search(self.tables, self.budget, time_limit_s=self.left(0.5))
        self.bound = found.bound
        if found.spans is not None:
            self.offer(found.order, found.spans)
            if self.best is not None:
                return self.schedule("search")
        self.relax()
        if not self.settled():
            self.known_orders()
        if not self.settled():
            self.with_addresses(found.order)
        return self.schedule("model with addresses")

    def settled(self) -> bool:
        return self.best is not None and self.best[0] == self.bound

    def relax(self) -> None:
        answer = solve_highs(encode(self.tables, partial_order(self.tables), self.budget), self.left(0.2))
        if answer is not None:
            self.bound = max(self.bound, answer.bound)

    def known_orders(self) -> None:
        """Exact residency of the orders that are at hand."""
        for order in (tuple(range(self.tables.count)), least_peak(self.tables, self.left(0.2)).order):
            programme = encode(self.tables, total_order(order), self.budget)
            answer = solve_highs(programme, self.left(0.2))
            if answer is not None:
                self.offer(order, decode(self.tables, order, programme, answer))

    def with_addresses(self, order: tuple[int, ...]) -> None:
        for given in ([order] if order else []) + [None]:  # type: ignore[list-item]
            model = joint.encode(self.graph, self.budget, order=given, least_cost=self.bound)
            solver, status = joint.solve(model, self.left(0.5 if given else 1.0))
            answer = joint.decode(self.graph, model, solver, status)
            if answer.plan is not None:
                self.keep(answer.plan)
            if given is None:
                self.bound = max(self.bound, answer.bound)
            if self.settled():
                return

    def offer(self, order: tuple[int, ...], spans: tuple[Span, ...]) -> None:
        plan = place(self.graph, order, spans, self.budget, self.left(0.2))
        if plan is not None:
            self.keep(plan)

    def keep(self, plan: Plan) -> None:
        cost = simulate(self.graph, plan, self.budget).traffic_bytes
        if self.best is None or cost < self.best[0]:
            self.best = (cost, plan)

    def schedule(self, method: str) -> Schedule:
        assert self.best is not None
        value, plan = self.best
        replay = simulate(self.graph, plan, self.budget)
        return Schedule(
            plan, replay, self.budget, value, min(self.bound, value), time.monotonic() - self.begun, method
        )


def _least_memory(graph: Graph, time_limit_s: float) -> Schedule:
    begun = time.monotonic()
    tables = Tables(graph)
    found = least_peak(tables, time_limit_s * 0.6)
    spans = whole_lives(tables, found.order)
    plan = place(graph, found.order, spans, found.peak_bytes, time_limit_s * 0.2)
    bound, method = found.bound_bytes, "search"
    if plan is None:
        method = "model with addresses"
        model = joint.encode(graph, None, most=2 * found.peak_bytes)
        solver, status = joint.solve(model, max(time_limit_s - (time.monotonic() - begun), 0.1))
        answer = joint.decode(graph, model, solver, status)
        bound = max(bound, answer.bound)
        assert answer.plan is not None
        plan = answer.plan
    replay = simulate(graph, plan)
    return Schedule(plan, replay, None, replay.peak_bytes, bound, time.monotonic() - begun, method)


def whole_lives(tables: Tables, order: tuple[int, ...]) -> tuple[Span, ...]:
    """Stays of an order in which nothing ever leaves."""
    step = {o: at for at, o in enumerate(order)}
    uses = [[step[o] for o in t.uses] for t in tables.graph.tensors]
    return tuple((a, min(steps), max(steps)) for a, steps in enumerate(uses) if steps)
