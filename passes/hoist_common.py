"""Work that both arms of a branch do is done before it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.einsum import Einsum, Scan
from dlc.ir.program import If, Library, Program, Region, Stmt
from dlc.passes.common_einsums import canonical, library_key
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.kernels import renamed
from dlc.passes.pipeline import Pass
from dlc.passes.rename import rename_reads, rename_region
from dlc.passes.rewrite import has_branches, map_regions


@dataclass(frozen=True)
class HoistCommon(Pass):
    """Einsums, scans and library operations that both arms of a branch have are computed before it.

        if C {                                       A[i] = exp(X[i])
          A[i] = exp(X[i]);  yield (A)               if C { yield (A) }
        } else {                               ->    else { D[i] = A[i] * 2.0;  yield (D) }
          B[k] = exp(X[k])
          D[i] = B[i] * 2.0;  yield (D)
        }

    Equal up to names of ranks and tensors. One of the arms runs, so nothing is computed that was not before, and what
    was a branch around equal work is then straight-line code that fuses with what precedes it.

    Source: very busy expressions, Muchnick, Advanced Compiler Design and Implementation (1997), section 13.5.
    """

    name: ClassVar[str] = "hoist-common"

    def apply(self, program: Program) -> Program:
        return map_regions(explicit_domains(program), _hoisted) if has_branches(program) else program


def _hoisted(region: Region) -> Region:
    body: list[Stmt] = []
    for stmt in region.body:
        body += hoist_common(stmt) if isinstance(stmt, If) else (stmt,)
    return region if len(body) == len(region.body) else Region(tuple(body), region.yields)


def hoist_common(branch: If) -> list[Stmt]:
    """What both arms compute from tensors of outside, and the branch that is left."""
    hoisted: list[Stmt] = []
    names: dict[str, str] = {}  # of the second arm's tensors in the first
    rest = _Arm(branch.orelse.body)
    inside = {o for s in branch.then.body for o in s.outs}
    then: list[Stmt] = []
    for stmt in branch.then.body:
        key = None if not inside.isdisjoint(stmt.reads) else statement_key(stmt)
        twin = None if key is None else rest.take(key)
        if twin is None:
            then.append(stmt)
            continue
        hoisted.append(stmt)
        inside -= set(stmt.outs)
        same = dict(zip(twin.outs, stmt.outs, strict=True))
        rest.rename(same)
        names.update(same)
    if not hoisted:
        return [branch]
    orelse = rename_region(Region(tuple(rest.left), branch.orelse.yields), names)
    return [*hoisted, replace(branch, then=Region(tuple(then), branch.then.yields), orelse=orelse)]


class _Arm:
    """The statements of an arm by what they compute."""

    def __init__(self, body: Sequence[Stmt]) -> None:
        self.left = list(body)
        self.keys = [statement_key(s) for s in body]

    def take(self, key: Hashable) -> Stmt | None:
        """The first statement that computes that, which is then no longer in the arm."""
        if key not in self.keys:
            return None
        at = self.keys.index(key)
        del self.keys[at]
        return self.left.pop(at)

    def rename(self, names: Mapping[str, str]) -> None:
        """Tensors are known by names of the other arm from now on."""
        for n, stmt in enumerate(self.left):
            if not names.keys().isdisjoint(stmt.reads):
                self.left[n] = rename_reads(stmt, names)
                self.keys[n] = statement_key(self.left[n])


def statement_key(stmt: Stmt) -> Hashable:
    """Equal for statements that compute the same from the same tensors, whatever they call it; None for control."""
    match stmt:
        case Einsum():
            return canonical(stmt)
        case Scan():
            return _canonical_scan(stmt)
        case Library() if not stmt.binds:
            return library_key(stmt)
        case _:
            return None


def _canonical_scan(scan: Scan) -> Scan:
    """The scan with names of its own for every rank and tensor that it makes."""
    ranks: dict[str, str] = {}
    tensors: dict[str, str] = {}

    def visit(step: Einsum | Scan) -> None:
        if isinstance(step, Einsum):
            own = [r.name for r in step.all_ranks]
        else:
            own = [step.rank.name]
            tensors.update({c.name: f"%{len(tensors) + n}" for n, c in enumerate(step.carries)})
            for inner in step.body:
                visit(inner)
        for name in own:
            ranks.setdefault(name, f"%r{len(ranks)}")
        tensors.update({o: f"%{len(tensors) + n}" for n, o in enumerate(step.outs)})

    visit(scan)
    found = renamed(scan, ranks, tensors)
    assert isinstance(found, Scan)
    return found
