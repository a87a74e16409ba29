"""What every step of a loop computes again is computed once, before the loop."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from dlc.costmodel.interface import Peaks
from dlc.costmodel.roofline import steps_time_s
from dlc.ir.einsum import Einsum, Scan, Step, flat
from dlc.ir.expr import Const
from dlc.ir.extent import has_value, variables
from dlc.ir.facts import Facts
from dlc.ir.program import Library, Loop, Program, Region, Stmt, bound_symbols, walk_statements
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.pipeline import Pass
from dlc.passes.rewrite import has_loops, map_regions


@dataclass(frozen=True)
class HoistInvariants(Pass):
    """Einsums, scans and library operations that do not change from step to step leave their loop.

        loop i < N while C carry (H = H0) {            K[t, d] = sum(e) X[t, e] * W[d, e]
          K[t, d] = sum(e) X[t, e] * W[d, e]     ->    loop i < N while C carry (H = H0) {
          H1[d] = sum(t) H[t] * K[t, d] ...              H1[d] = sum(t) H[t] * K[t, d] ...

    A loop that does at least one step would have computed them anyway. Of a loop that may do none only those leave that
    cost no more than a launch (`Peaks.launch_s`, by the roofline) and cannot fail: no unguarded read through an index
    that a tensor holds, no scatter, no library operation.

    Source: loop-invariant code motion, Muchnick, Advanced Compiler Design and Implementation (1997), section 13.2.
    """

    name: ClassVar[str] = "hoist-invariants"

    def apply(self, program: Program) -> Program:
        if not has_loops(program):
            return program
        program = explicit_domains(program)
        known = _Known(program)

        def hoisted(region: Region) -> Region:
            body = tuple(s for stmt in region.body for s in known.hoisted(stmt))
            return region if len(body) == len(region.body) else Region(body, region.yields)

        return map_regions(program, hoisted)


class _Known:
    """What is known of scalars and symbols: whether a loop surely does a step."""

    def __init__(self, program: Program) -> None:
        self.facts = Facts({}, program.facts)
        self.scalars: dict[str, Any] = {c.name: program.data[c.name] for c in program.consts if c.name in program.data}
        for stmt in walk_statements(program.body):
            if isinstance(stmt, Einsum) and stmt.reduce is None and isinstance(stmt.expr, Const):
                self.scalars[stmt.out] = stmt.expr.value

    def hoisted(self, stmt: Stmt) -> list[Stmt]:
        """The statements that leave the loop, and the loop; for another statement that alone."""
        match stmt:
            case Loop():
                inside = {stmt.index, *(name for name, _ in stmt.carries)}
                out, body = self.split(stmt.body.body, inside, frozenset(), self.runs(stmt))
                return [*out, replace(stmt, body=Region(tuple(body), stmt.body.yields))] if out else [stmt]
            case Scan():
                return list(self.of_scan(stmt))
            case _:
                return [stmt]

    def of_scan(self, scan: Scan) -> list[Step]:
        steps = [s for step in scan.body for s in (self.of_scan(step) if isinstance(step, Scan) else [step])]
        runs = self.facts.nonneg(scan.rank.extent - 1)
        out, body = self.split(steps, {c.name for c in scan.carries}, {scan.rank.name}, runs)
        same = len(body) == len(scan.body) and all(a is b for a, b in zip(body, scan.body, strict=True))
        left = scan if same else replace(scan, body=tuple(s for s in body if isinstance(s, (Einsum, Scan))))
        return [*(s for s in out if isinstance(s, (Einsum, Scan))), left]

    def split(
        self, body: Iterable[Stmt], inside: Collection[str], ranks: Collection[str], runs: bool
    ) -> tuple[list[Stmt], list[Stmt]]:
        """(what leaves, what stays) of a loop's body; `inside` and `ranks` change from step to step."""
        varying, bound = set(inside), set(ranks)
        out: list[Stmt] = []
        rest: list[Stmt] = []
        for stmt in body:
            fixed = varying.isdisjoint(stmt.reads) and bound.isdisjoint(_variables(stmt))
            if fixed and (_is_pure(stmt) if runs else _is_harmless(stmt)):
                out.append(stmt)
                continue
            rest.append(stmt)
            varying |= set(stmt.outs)
            bound |= {"#" + s.name for s in bound_symbols(stmt)}
        return out, rest

    def runs(self, loop: Loop) -> bool:
        """Whether the loop does at least one step."""
        cond = loop.cond is None or bool(self.scalar(loop.cond))
        limit = None if loop.limit is None else self.scalar(loop.limit)
        return cond and (loop.limit is None or (limit is not None and int(limit) > 0))

    def scalar(self, name: str) -> Any:
        found = self.scalars.get(name)
        return None if found is None else np.asarray(found).reshape(-1)[0]


def _variables(stmt: Stmt) -> frozenset[str]:
    """Names of ranks and symbols (with `#`) that a statement's results depend on."""
    names: frozenset[str] = frozenset()
    match stmt:
        case Einsum() | Scan():
            for step in flat((stmt,)):
                names = names.union(step.symbols, *(e.variables for e in step.scalars))
                if step.write is not None:
                    names = names.union(*map(variables, step.write.index))
            return names | stmt.symbols
        case Library():
            return names.union(*(variables(e) for t in stmt.types for e in t.shape))
        case _:
            return names


def _is_pure(stmt: Stmt) -> bool:
    return isinstance(stmt, (Einsum, Scan)) or (isinstance(stmt, Library) and not stmt.binds)


def _is_harmless(stmt: Stmt) -> bool:
    """Whether computing the statement in vain costs next to nothing and cannot fail."""
    if not isinstance(stmt, Einsum) or stmt.write is not None:
        return False
    if any(a.default is None and any(map(has_value, a.index)) for a in stmt.accesses()):
        return False
    if stmt.symbols or any(r.extent.const is None for r in stmt.all_ranks):
        return False
    peaks = Peaks()
    return steps_time_s([[stmt]], {}, peaks) <= 2 * peaks.launch_s
