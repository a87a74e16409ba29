"""Domains: which points of a partial tensor exist, and what readers inherit.

A tensor written under a `where` on its free ranks is partial. A reader that names it without `else` iterates only points where
it exists: the predicate, with the reader's index expressions in place of the writer's ranks, joins the reader's own `where`.
Of the joined conjuncts those over free ranks alone make the reader's result partial in turn; one that mentions a reduced rank
only restricts the reduction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from dlc.ir.einsum import Einsum, Step
from dlc.ir.expr import Access, Apply, Expr, Piecewise, accesses, walk


@dataclass(frozen=True, slots=True)
class Domain:
    """The tensor's dimensions by name, and predicates over them that all hold where it exists."""

    ranks: tuple[str, ...]
    conjuncts: tuple[Expr, ...]

    def at(self, access: Access) -> tuple[Expr, ...]:
        """The predicates at the point that `access` reads."""
        env = dict(zip(self.ranks, access.index, strict=True))
        return tuple(c.substitute(env) for c in self.conjuncts)


Domains: TypeAlias = Mapping[str, Domain]


def conjuncts(predicate: Expr | None) -> tuple[Expr, ...]:
    """The predicates whose conjunction `predicate` is (`&` at the top is split)."""
    match predicate:
        case None:
            return ()
        case Apply("and", (a, b)):
            return conjuncts(a) + conjuncts(b)
        case _:
            return (predicate,)


def conjunction(predicates: Iterable[Expr]) -> Expr | None:
    """`a & b & ...`, None for nothing; duplicates are dropped."""
    result: Expr | None = None
    for p in dict.fromkeys(predicates):
        result = p if result is None else Apply("and", (result, p))
    return result


def unconditional_accesses(e: Expr) -> Iterable[Access]:
    """Reads that happen at every point: those without `else` outside of Piecewise cases, indices included."""
    match e:
        case Piecewise(cases, _):
            yield from unconditional_accesses(cases[0][0])
        case Access(_, _, default):
            if default is None:
                yield e
            for child in e.children:
                if child is not default:
                    yield from unconditional_accesses(child)
        case _:
            for child in e.children:
                yield from unconditional_accesses(child)


def inherited(step: Einsum, domains: Domains) -> tuple[Expr, ...]:
    """Predicates that `step` takes over from the partial tensors it reads, except those that hold anyway."""
    if not domains:
        return ()
    found: dict[Expr, None] = {}
    for e in step.exprs:
        for a in unconditional_accesses(e):
            if a.tensor in domains:
                found.update(dict.fromkeys(domains[a.tensor].at(a)))
    if not found:
        return ()
    from dlc.ir.facts import Facts
    from dlc.ir.prove import Assumptions

    own = Assumptions(Facts(step.extents)).given(step.where)
    return tuple(p for p in found if not own.holds(p))


def effective_where(step: Einsum, domains: Domains) -> Expr | None:
    """The step's own `where` joined with what it inherits."""
    extra = inherited(step, domains)
    return step.where if not extra else conjunction((*conjuncts(step.where), *extra))


def result_domain(step: Einsum, where: Expr | None) -> Domain | None:
    """The domain of what `step` writes, given its effective `where`; None when it is total (a scatter always is)."""
    if where is None or step.write is not None:
        return None
    reduced = frozenset(r.name for r in step.reduced)
    kept = tuple(c for c in conjuncts(where) if reduced.isdisjoint(c.variables))
    return Domain(tuple(r.name for r in step.ranks), kept) if kept else None


def add_domains(step: Step, known: dict[str, Domain]) -> None:
    """Add the domains of what `step` writes to `known`."""
    if isinstance(step, Einsum):
        domain = result_domain(step, effective_where(step, known))
        if domain is not None:
            known.update(dict.fromkeys(step.outs, domain))
        return
    for inner in step.body:
        add_domains(inner, known)
    for outer, name in step.stacked:
        if name in known:
            inside = known[name]
            known[outer] = Domain((step.rank.name, *inside.ranks), inside.conjuncts)


def reads_tensor(e: Expr) -> bool:
    """Whether a predicate depends on data."""
    return any(True for x in walk(e) for _ in accesses(x))
