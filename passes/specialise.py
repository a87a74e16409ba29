"""A program with extent symbols replaced by integer expressions over others, everywhere they occur."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

from dlc.ir.einsum import Einsum, Rank, Reduce, Scan, Step, TensorType
from dlc.ir.extent import IntExpr, substitute, variables
from dlc.ir.program import For, If, Library, Loop, Region, Stmt

Values: TypeAlias = Mapping[str, IntExpr]


def specialise_step(step: Step, values: Values) -> Step:
    """`step` with symbols (named with `#`) replaced by `values`."""
    if isinstance(step, Scan):
        body = tuple(specialise_step(s, values) for s in step.body)
        return replace(step, rank=_rank(step.rank, values), body=body)
    return specialise_einsum(step, values)


def specialise_einsum(step: Einsum, values: Values) -> Einsum:
    if step.symbols.isdisjoint(values):
        return step
    ranks = tuple(_rank(r, values) for r in step.ranks)
    reduce = step.reduce
    if reduce is not None:
        reduce = Reduce(reduce.op, tuple(_rank(r, values) for r in reduce.ranks), reduce.accumulator)
    exprs = tuple(e.substitute(values) for e in step.exprs)
    where = None if step.where is None else step.where.substitute(values)
    write = step.write
    if write is not None:
        write = replace(write, index=tuple(substitute(i, values) for i in write.index))
    return replace(step, ranks=ranks, reduce=reduce, exprs=exprs, where=where, write=write)


def specialise_region(region: Region, values: Values) -> Region:
    return Region(tuple(specialise_statement(s, values) for s in region.body), region.yields) if values else region


def specialise_statement(stmt: Stmt, values: Values) -> Stmt:
    """`stmt` and what is nested in it with symbols replaced."""
    match stmt:
        case Einsum() | Scan():
            return specialise_step(stmt, values)
        case Library():
            return replace(stmt, types=tuple(specialise_type(t, values) for t in stmt.types))
        case If():
            then, orelse = specialise_region(stmt.then, values), specialise_region(stmt.orelse, values)
            return replace(stmt, then=then, orelse=orelse)
        case Loop():
            return replace(stmt, body=specialise_region(stmt.body, values))
        case For():
            body = specialise_region(stmt.body, values)
            return replace(stmt, extent=substitute(stmt.extent, values), body=body)
        case _:
            return stmt


def _rank(r: Rank, values: Values) -> Rank:
    return r if variables(r.extent).isdisjoint(values) else Rank(r.name, substitute(r.extent, values))


def specialise_type(t: TensorType, values: Values) -> TensorType:
    return TensorType(t.dtype, tuple(substitute(e, values) for e in t.shape), t.order, t.pitch)
