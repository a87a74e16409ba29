"""Deciding which folds of a chain run in one traversal, and which follow it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Access, Apply, Expr, accesses
from dlc.ir.facts import Facts
from dlc.ir.program import Stmt
from dlc.passes.plan_fold import FoldPlanner
from dlc.passes.reduction_chains import Chain, Kind, Member
from dlc.passes.refusals import Reason, Refusal, Refused
from dlc.passes.running_plan import FoldPlan, Plan
from dlc.passes.separate import Term


def plan_chain(
    chain: Chain, body: Sequence[Stmt], outside: frozenset[str], types: Mapping[str, TensorType], facts: Facts
) -> tuple[Plan | None, list[Refusal]]:
    """The plan of a chain, and the folds that had to be left out of it (they follow the traversal).

    Raises:
        Refused: where nothing of the chain can be done in one traversal.
    """
    plans, refusals = _plan_folds(FoldPlanner(chain, types, facts), chain)
    try:
        _check_kept(chain, body, outside)
    except Refused:
        if refusals:  # what is kept is kept for the folds that were left out: their reasons are the cause
            return None, refusals
        raise
    if not any(p.parts or p.outer for p in plans):
        return None, refusals
    shown = _exposed(chain, body, outside, _zero_for_nan(plans))
    return Plan(chain, tuple(replace(p, exposed=p.member.step.out in shown) for p in plans)), refusals


def _plan_folds(planner: FoldPlanner, chain: Chain) -> tuple[list[FoldPlan], list[Refusal]]:
    """Plans of the folds that have one; the others leave the chain."""
    refusals: list[Refusal] = []
    plans: list[FoldPlan] = []
    for member in chain.folds:
        if any(not chain.is_running(t) and t in chain.tainted for t in member.step.reads):
            _leave(chain, member)
            continue
        try:
            plans.append(planner.plan(member))
        except Refused as error:
            detail = error.detail.replace("#", "")
            refusals.append(Refusal(member.step.out, member.rank, error.reason, detail, member.step.loc))
            _leave(chain, member)
    return plans, refusals


def _leave(chain: Chain, member: Member) -> None:
    """The fold is done after the traversal, and so is all that depends on it."""
    left = set(member.step.outs)
    for name, m in list(chain.members.items()):
        if name in left or not left.isdisjoint(m.step.reads):
            left.update(m.step.outs)
            del chain.members[name]
            chain.tainted[name] = m.step


def _check_kept(chain: Chain, body: Sequence[Stmt], outside: frozenset[str]) -> None:
    """Nothing but the chain reads what is point-wise along the rank of folds."""
    inside = {id(m.step) for m in chain.members.values()}
    mixed = {m.step.out for m in chain.of(Kind.MIXED)}
    kept = mixed & outside
    for s in body:
        if isinstance(s, Einsum) and id(s) not in inside:
            kept |= mixed & set(s.reads)
    if kept:
        raise Refused(Reason.KEPT, ", ".join(sorted(kept)))


# --- where 0 in place of NaN is seen ---


def _zero_for_nan(plans: Sequence[FoldPlan]) -> set[str]:
    """Sums that are 0 in the running form where the cascade as written has NaN, and that no such sum divides."""
    sums = {p.member.step.out for p in plans if any(r.unguarded for q in p.parts for r in q.references)}
    return sums - {p.member.step.out for p in plans if p.parts and all(_divides(q.term, sums) for q in p.parts)}


def _exposed(chain: Chain, body: Sequence[Stmt], outside: frozenset[str], sums: set[str]) -> set[str]:
    """Of the sums that are 0 in the running form where the cascade as written has NaN, those that are not divided by one.

    Where all data of a row are the reference's identity, `exp(x - GM)` is `exp(-inf + inf)`, which is NaN; the running form,
    whose reference is finite, has 0 there. A quotient by such a sum is NaN either way.
    """
    found = sums & outside
    inside = {id(m.step) for m in chain.members.values() if m.kind is not Kind.VALUE}
    for s in body:
        if isinstance(s, Einsum) and id(s) not in inside and not sums.isdisjoint(s.reads):
            found |= {a.tensor for e in s.scalars for a in _undivided(e, sums)}
    return found


def _divides(term: Term, sums: set[str]) -> bool:
    """Whether a term is divided by one of `sums` itself."""
    return any(f.inverse and any(a.tensor in sums for a in accesses(f.expr)) for f in term.outer)


def _undivided(e: Expr, sums: set[str]) -> Iterator[Access]:
    """Reads of `sums` that are not in a quotient by one of them."""
    if isinstance(e, Apply) and e.op == "div" and any(a.tensor in sums for a in accesses(e.args[1])):
        return
    if isinstance(e, Access) and e.tensor in sums:
        yield e
    for child in e.children:
        yield from _undivided(child, sums)
