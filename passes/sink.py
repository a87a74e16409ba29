"""Work that one arm of a branch alone needs is done in that arm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.einsum import Einsum, Scan
from dlc.ir.program import For, If, Library, Loop, Program, Region, Stmt
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.pipeline import Pass
from dlc.passes.rewrite import has_branches


@dataclass(frozen=True)
class Sink(Pass):
    """Einsums, scans, library operations and branches whose results one arm of a later branch alone reads move into it.

        A[i] = sum(k) X[k] * W[i, k]           if C { A[i] = sum(k) X[k] * W[i, k]
        if C { yield (A) } else { yield (X) }     ->       yield (A) } else { yield (X) }

    Computed only when that arm runs, next to its reader, with which it fuses there. Nothing moves into a loop. An index
    out of range is then an error of the run only if the run gets there.

    Source: partial dead code elimination, Knoop, Rüthing and Steffen, PLDI 1994.
    """

    name: ClassVar[str] = "sink"

    def apply(self, program: Program) -> Program:
        if not has_branches(program):
            return program
        program = explicit_domains(program)
        body = _sunk(program.body)
        return program if body == program.body else program.with_body(body)


def _sunk(region: Region) -> Region:
    """The region with what its branches alone need inside these, and so on inwards."""
    later: list[Stmt] = []  # the last statement first
    readers: dict[str, set[int]] = {}
    kept = set(region.yields)
    for stmt in reversed(region.body):
        reading = set().union(*(readers.get(o, ()) for o in stmt.outs))
        place = len(later)
        moved = None
        if len(reading) == 1 and _may_move(stmt) and kept.isdisjoint(stmt.outs):
            (reader,) = reading
            moved = _into(stmt, later[reader])
            if moved is not None:
                later[reader], place = moved, reader
        if moved is None:
            later.append(stmt)
        for name in stmt.reads:
            readers.setdefault(name, set()).add(place)
    return Region(tuple(_inside(s) for s in reversed(later)), region.yields)


def _into(stmt: Stmt, reader: Stmt) -> If | None:
    """The branch `reader` with `stmt` at the start of the one arm that reads its results."""
    if not isinstance(reader, If) or reader.cond in stmt.outs:
        return None
    outs = set(stmt.outs)
    then, orelse = (not outs.isdisjoint(arm.reads) for arm in (reader.then, reader.orelse))
    if then and orelse:
        return None
    if then:
        return replace(reader, then=Region((stmt, *reader.then.body), reader.then.yields))
    return replace(reader, orelse=Region((stmt, *reader.orelse.body), reader.orelse.yields))


def _inside(stmt: Stmt) -> Stmt:
    match stmt:
        case If():
            return replace(stmt, then=_sunk(stmt.then), orelse=_sunk(stmt.orelse))
        case Loop() | For():
            return replace(stmt, body=_sunk(stmt.body))
        case _:
            return stmt


def _may_move(stmt: Stmt) -> bool:
    return isinstance(stmt, (Einsum, Scan, If)) or (isinstance(stmt, Library) and not stmt.binds)
