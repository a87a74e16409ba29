"""Inherited domains are written out, so that a reader of a partial tensor no longer needs to see the writer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.domain import Domain, conjunction, effective_where, result_domain
from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.expr import Access, Expr, Piecewise, transform
from dlc.ir.program import For, If, Loop, Program, Region, Stmt
from dlc.passes.pipeline import Pass


@dataclass(frozen=True)
class ExplicitDomains(Pass):
    """Give every Einsum the `where` that it inherits, and every padded read of a partial tensor its guard.

        P[i, j] = exp(X[i, j]) where j <= i             P[i, j] = exp(X[i, j]) where j <= i
        S[i] = sum(j) P[i, j]                      ->   S[i] = sum(j) P[i, j] where j <= i
        Q[i] = P[i, i + 1] else 0.0                     Q[i] = ({ (P[i, i + 1] else 0.0) when i + 1 <= i | 0.0 })

    Passes after it may move steps into other kernels or substitute one into another.
    """

    name: ClassVar[str] = "explicit-domains"

    def apply(self, program: Program) -> Program:
        body = _region(program.body, {})
        return program if body == program.body else program.with_body(body)


def _region(region: Region, known: dict[str, Domain]) -> Region:
    body: list[Stmt] = []
    for stmt in region.body:
        match stmt:
            case Einsum() | Scan():
                body.append(_step(stmt, known))
            case If():
                body.append(replace(stmt, then=_region(stmt.then, known), orelse=_region(stmt.orelse, known)))
            case Loop() | For():
                body.append(replace(stmt, body=_region(stmt.body, known)))
            case _:
                body.append(stmt)
    return Region(tuple(body), region.yields)


def _step(step: Step, known: dict[str, Domain]) -> Step:
    """The step with its domain written out; domains of what it writes are added to `known` (names are unique)."""
    if isinstance(step, Scan):
        new: Step = replace(step, body=tuple(_step(s, known) for s in step.body))
        for outer, name in step.stacked:
            if name in known:
                known[outer] = Domain((step.rank.name, *known[name].ranks), known[name].conjuncts)
        return new
    where = effective_where(step, known)
    exprs = tuple(_guarded(e, known) for e in step.exprs)
    domain = result_domain(step, where)
    if domain is not None:
        known.update(dict.fromkeys(step.outs, domain))
    return step if (where, exprs) == (step.where, step.exprs) else replace(step, where=where, exprs=exprs)


def _guarded(e: Expr, known: dict[str, Domain]) -> Expr:
    if not known:
        return e

    def visit(node: Expr) -> Expr | None:
        if not isinstance(node, Access) or node.default is None or node.tensor not in known:
            return None
        exists = conjunction(known[node.tensor].at(node))
        return None if exists is None else Piecewise(((exists, node),), node.default)

    return transform(e, visit)
