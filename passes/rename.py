"""Statements with the tensors they read renamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from dlc.ir.einsum import Carry, Einsum, Scan, Step
from dlc.ir.program import Bind, For, If, Launch, Library, Loop, Region, Stmt, Transfer
from dlc.ir.rename import rename_einsum

Names: TypeAlias = Mapping[str, str]


def rename_reads(stmt: Stmt, names: Names) -> Stmt:
    """`stmt` reading `names[t]` wherever it read `t`, nested regions and what they yield included."""
    if not names or (names.keys().isdisjoint(stmt.reads)):
        return stmt
    match stmt:
        case Einsum() | Scan():
            return rename_step(stmt, names)
        case Launch() | Library():
            return replace(stmt, args=_all(stmt.args, names))
        case Bind() | Transfer():
            return replace(stmt, tensor=names.get(stmt.tensor, stmt.tensor))
        case If():
            then, orelse = rename_region(stmt.then, names), rename_region(stmt.orelse, names)
            return replace(stmt, cond=names.get(stmt.cond, stmt.cond), then=then, orelse=orelse)
        case Loop():
            limit = None if stmt.limit is None else names.get(stmt.limit, stmt.limit)
            cond = None if stmt.cond is None else names.get(stmt.cond, stmt.cond)
            body = rename_region(stmt.body, names)
            return replace(stmt, limit=limit, cond=cond, carries=_inits(stmt.carries, names), body=body)
        case For():
            return replace(stmt, carries=_inits(stmt.carries, names), body=rename_region(stmt.body, names))


def rename_region(region: Region, names: Names) -> Region:
    return Region(tuple(rename_reads(s, names) for s in region.body), _all(region.yields, names))


def rename_step(step: Step, names: Names) -> Step:
    if isinstance(step, Einsum):
        return rename_operands(step, names)
    carries = tuple(Carry(c.name, names.get(c.init, c.init)) for c in step.carries)
    body = tuple(rename_step(s, names) for s in step.body)
    return replace(step, carries=carries, body=body, yields=_all(step.yields, names))


def rename_operands(step: Einsum, names: Names) -> Einsum:
    """`step` reading `names[t]` for `t`; what it writes keeps its name."""
    if names.keys().isdisjoint(step.reads):
        return step
    return replace(rename_einsum(step, {r.name: r.name for r in step.all_ranks}, names), outs=step.outs)


def _all(tensors: tuple[str, ...], names: Names) -> tuple[str, ...]:
    return tuple(names.get(t, t) for t in tensors)


def _inits(carries: tuple[tuple[str, str], ...], names: Names) -> tuple[tuple[str, str], ...]:
    return tuple((name, names.get(init, init)) for name, init in carries)
