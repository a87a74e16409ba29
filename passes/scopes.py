"""Rewriting Einsums with what surrounds them known: extents of scans, facts of symbols, domains of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from dlc.ir.domain import Domain, add_domains
from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.extent import IntExpr
from dlc.ir.facts import Facts, FactsPool
from dlc.ir.program import For, If, Loop, Program, Region, Stmt
from dlc.passes.rewrite import map_regions


def map_einsums(program: Program, change: Callable[[Einsum, Facts], Einsum]) -> Program:
    """The program with `change` applied to every Einsum, given facts of symbols, of enclosing scans and of its own ranks."""
    symbols, pool = program.facts, FactsPool()

    def step(s: Step, outer: dict[str, IntExpr]) -> Step:
        if isinstance(s, Einsum):
            return change(s, pool.facts({**outer, **s.extents}, symbols))
        inner = {**outer, s.rank.name: s.rank.extent}
        body = tuple(step(x, inner) for x in s.body)
        return s if all(a is b for a, b in zip(body, s.body, strict=True)) else replace(s, body=body)

    def region(r: Region) -> Region:
        body = tuple(step(s, {}) if isinstance(s, (Einsum, Scan)) else s for s in r.body)
        return r if all(a is b for a, b in zip(body, r.body, strict=True)) else Region(body, r.yields)

    return map_regions(program, region)


def partial_tensors(program: Program) -> dict[str, Domain]:
    """Domains of the tensors that do not exist everywhere, those of inner regions included."""
    known: dict[str, Domain] = {}

    def carry(outer: tuple[str, ...], inner: tuple[str, ...]) -> None:
        known.update({o: known[i] for o, i in zip(outer, inner, strict=False) if i in known})

    def visit(region: Region) -> None:
        for stmt in region.body:
            _visit_statement(stmt)

    def _visit_statement(stmt: Stmt) -> None:
        match stmt:
            case Einsum() | Scan():
                add_domains(stmt, known)
            case If():
                visit(stmt.then)
                visit(stmt.orelse)
                carry(stmt.outs, stmt.then.yields)
                carry(stmt.outs, stmt.orelse.yields)
            case Loop() | For():
                carry(tuple(n for n, _ in stmt.carries), tuple(i for _, i in stmt.carries))
                visit(stmt.body)
                carry(stmt.finals, tuple(i for _, i in stmt.carries))
            case _:
                pass

    if _any_where(program.body):
        visit(program.body)
    return known


def _any_where(region: Region) -> bool:
    def step(s: Step) -> bool:
        return s.where is not None if isinstance(s, Einsum) else any(step(x) for x in s.body)

    for stmt in region.body:
        match stmt:
            case Einsum() | Scan():
                if step(stmt):
                    return True
            case If():
                if _any_where(stmt.then) or _any_where(stmt.orelse):
                    return True
            case Loop() | For():
                if _any_where(stmt.body):
                    return True
            case _:
                pass
    return False
