"""The order of a program's kernels that holds the least memory, or moves the least of it in and out of a fast one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from dlc.ir.program import Bind, Program, bound_symbols
from dlc.passes.pipeline import Pass


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
        from dlc.passes.cosma.optimise import optimise, value_of_order

        graph = graph_of(program)
        if self.level == "arena":
            graph = replace(graph, tensors=tuple(t for t in graph.tensors if t.producers and not t.output))
        best = optimise(graph, self.budget or None, self.time)
        given = tuple(range(len(graph.operators)))
        return given if value_of_order(graph, given, best.budget) <= best.value else best.plan.order
