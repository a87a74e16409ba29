"""The order of a program's kernels that holds the least memory, or moves the least of it in and out of a fast one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from dlc.ir.program import Bind, Program, bound_symbols
from dlc.passes.pipeline import Pass

if TYPE_CHECKING:
    from dlc.passes.cosma.graph import Graph


@dataclass(frozen=True)
class Schedule(Pass):
    """Reorder the kernels of the body: COSMA's optimum for a memory of `budget` bytes, or of least peak without one (0).

        k0(X) -> (A)    k1(X) -> (B)    k2(A) -> (S)    k3(B, S) -> (Y)        A and B wait side by side
     -> k0(X) -> (A)    k2(A) -> (S)    k1(X) -> (B)    k3(B, S) -> (Y)        A has gone when B comes

    With `level=scratchpad` inputs and outputs count while they are used, as in an accelerator's memory; with `level=arena` only what the
    program allocates does. The order stays as it is where it is as good as the best found in `time` seconds, and
    in programs whose statements bind extents. Addresses, and what leaves when, are in `dlc explain --target scratchpad`.

    Source: Li et al., COSMA (arXiv 2311.18246).
    """

    name: ClassVar[str] = "schedule"
    budget: int = 0
    level: Literal["arena", "scratchpad"] = "arena"
    time: float = 1.0

    def apply(self, program: Program) -> Program:
        body = program.body.body
        if len(body) < 3 or any(isinstance(stmt, Bind) or bound_symbols(stmt) for stmt in body):
            return program
        order = self.order(program)
        if list(order) == sorted(order):
            return program
        return program.with_body(replace(program.body, body=tuple(body[o] for o in order)))

    def order(self, program: Program) -> tuple[int, ...]:
        from dlc.passes.cosma.from_program import graph_of

        graph = graph_of(program)
        if self.level == "arena":
            graph = replace(graph, tensors=tuple(t for t in graph.tensors if t.producers and not t.output))
        return least_traffic_order(graph, self.budget, self.time) if self.budget else least_peak_order(graph, self.time)


def least_peak_order(graph: Graph, time_limit_s: float) -> tuple[int, ...]:
    """The given order if none has a lower peak, or else one of the lowest found in time."""
    from dlc.passes.cosma.graph import Tables
    from dlc.passes.cosma.peak import least_peak, peak_of

    tables = Tables(graph)
    given = tuple(range(tables.count))
    found = least_peak(tables, time_limit_s)
    return given if peak_of(tables, given) <= found.peak_bytes else found.order


def least_traffic_order(graph: Graph, budget: int, time_limit_s: float) -> tuple[int, ...]:
    """The same for the traffic within a budget."""
    from dlc.passes.cosma.graph import Tables
    from dlc.passes.cosma.optimise import optimise, traffic_of_order

    given = tuple(range(len(graph.operators)))
    best = optimise(graph, budget, time_limit_s)
    return given if traffic_of_order(Tables(graph), given, budget) <= best.value else best.plan.order
