"""Every step says by itself where it computes: what readers inherit from partial tensors is written out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.domain import Domain, conjunction, effective_where, reads_tensor
from dlc.ir.dtype import I64
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Access, Apply, Expr, Index, Piecewise, const, transform
from dlc.ir.facts import Facts
from dlc.ir.program import Program, tensor_types
from dlc.passes.pipeline import Pass
from dlc.passes.scopes import map_einsums, partial_tensors


@dataclass(frozen=True)
class ExplicitDomains(Pass):
    """Write inherited domains as `where`, and an `else` that stands for a missing point as a guard.

        QK[p, m] = ...                  where m <= p         QK[p, m] = ...                  where m <= p
        SN[p, m] = exp(QK[p, m])                       ->    SN[p, m] = exp(QK[p, m])        where m <= p
        SD[p]    = sum(m) SN[p, m]                           SD[p]    = sum(m) SN[p, m]      where m <= p
        Z[p, m]  = QK[p, m] else 0                           Z[p, m]  = { QK[p, m] when m <= p | 0 }

    After it no reader needs to see the writer: steps may go to different kernels.
    """

    name: ClassVar[str] = "explicit-domains"

    def apply(self, program: Program) -> Program:
        return explicit_domains(program)


def explicit_domains(program: Program) -> Program:
    """The program in which no reader inherits; the same one when that is so already.

    Passes that move steps apart call it, so that they are right on any program, not only after the pass.
    """
    domains = partial_tensors(program)
    if not domains:
        return program
    types = tensor_types(program)
    return map_einsums(program, lambda step, facts: _resolve(step, facts, domains, types))


def _resolve(step: Einsum, facts: Facts, domains: Mapping[str, Domain], types: Mapping[str, TensorType]) -> Einsum:
    if domains.keys().isdisjoint(step.reads):
        return step
    where = effective_where(step, domains)

    def visit(e: Expr) -> Expr | None:
        if isinstance(e, Access) and e.default is not None and e.tensor in domains:
            return guarded_read(e, domains[e.tensor], types[e.tensor], facts)
        return None

    exprs = tuple(transform(e, visit) for e in step.exprs)
    same = all(a is b for a, b in zip(exprs, step.exprs, strict=True))
    return step if same and where == step.where else replace(step, exprs=exprs, where=where)


def guarded_read(e: Access, domain: Domain, of: TensorType, facts: Facts) -> Expr:
    """`{ X[i] when i is inside and X exists there | default }` for a read of a partial tensor with `else`."""
    assert e.default is not None
    bounds: list[Expr] = []
    for i, extent in zip(e.index, of.shape, strict=True):
        if not facts.nonneg(i):
            bounds.append(Apply("ge", (Index(i), const(0, I64))))
        if not facts.less(i, extent):
            bounds.append(Apply("lt", (Index(i), Index(extent))))
    exists = domain.at(e)
    plain: Expr = Access(e.tensor, e.index)
    if not any(map(reads_tensor, exists)):
        both = conjunction((*bounds, *exists))
        return plain if both is None else Piecewise(((both, plain),), e.default)
    # a predicate that reads a tensor is looked at only inside of it
    predicate, inside = conjunction(exists), conjunction(bounds)
    assert predicate is not None
    plain = Piecewise(((predicate, plain),), e.default)
    return plain if inside is None else Piecewise(((inside, plain),), e.default)
