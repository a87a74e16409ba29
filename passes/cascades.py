"""Straight-line parts as one kernel each: what a host program hands to a back end other than dlc's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.program import For, If, Loop, Program, Region, Stmt, tensor_types
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.kernels import Kernels
from dlc.passes.pipeline import Pass
from dlc.passes.rewrite import drop_dead


@dataclass(frozen=True)
class Cascades(Pass):
    """Launch each run of Einsums and scans between control as one kernel, whatever it computes.

        A[i] = ...                                kernel k_1(..) -> (B) { A[i] = ..; B[i] = .. }
        B[i] = .. A[i] ..                  ->     (B) = launch k_1(..)
        if C { .. }                               if C { .. }

    These are the condition-free cascades of a dynamic network, which any compiler of static networks can take. Equal ones
    are one kernel. Code generation wants smaller ones (`fuse`).

    Source: Chen et al., DyCL, ISSTA 2023 (arXiv 2307.04963), sub-DNNs of the heterogeneous control flow graph.
    """

    name: ClassVar[str] = "cascades"

    def apply(self, program: Program) -> Program:
        program = explicit_domains(program)
        kernels = Kernels(tensor_types(program), program.facts, program.kernel_table)
        body = _region(program.body, kernels)
        return drop_dead(replace(program, body=body, kernels=tuple(kernels.table.values())))


def _region(region: Region, kernels: Kernels) -> Region:
    body: list[Stmt] = []
    run: list[Step] = []
    needed = set(region.yields)  # by what comes after the run
    for stmt in reversed(region.body):
        if isinstance(stmt, (Einsum, Scan)):
            run.insert(0, stmt)
            continue
        body[:0] = _launched(run, needed, kernels)
        needed.update(stmt.reads, *(s.reads for s in run))
        run = []
        body.insert(0, _inside(stmt, kernels))
    return Region((*_launched(run, needed, kernels), *body), region.yields)


def _launched(run: list[Step], needed: set[str], kernels: Kernels) -> list[Stmt]:
    results = tuple(o for s in run for o in s.outs if o in needed)
    if not results:
        return []
    ranks: dict[str, str] = {}

    def name(step: Step) -> None:
        own = [r.name for r in step.all_ranks] if isinstance(step, Einsum) else [step.rank.name]
        for rank in own:
            ranks.setdefault(rank, f"r{len(ranks)}")
        for inner in () if isinstance(step, Einsum) else step.body:
            name(inner)

    for step in run:
        name(step)
    return [kernels.launch(run, ranks, (), results)]


def _inside(stmt: Stmt, kernels: Kernels) -> Stmt:
    match stmt:
        case If():
            return replace(stmt, then=_region(stmt.then, kernels), orelse=_region(stmt.orelse, kernels))
        case Loop() | For():
            return replace(stmt, body=_region(stmt.body, kernels))
        case _:
            return stmt
