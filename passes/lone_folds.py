"""Sums of products that run along alone: no fold depends on another, but a contraction makes what the sum takes.

    S[h, p, m] = sum(e) Q[h, p, e] * K[h, m, e]       scan m1: (m + 127)//128 carry (O_run = 0) {
    G[h, p, m] = sigmoid(S[h, p, m])            ->      S_block, G_block: for 128 of m
    O[h, p, f] = sum(m) G[h, p, m] * V[h, m, f]         O_next[h, p, f] = O_run[h, p, f] + sum(m0) G_block * V
                                                      } -> (O)

One pass over m as it stands, and a fibre of it kept; the scan keeps a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from dlc.ir.domain import conjuncts
from dlc.ir.einsum import Einsum, TensorType, einsum
from dlc.ir.expr import Access, Apply, Cast, Expr, dtype_of
from dlc.ir.extent import var
from dlc.ir.facts import Facts
from dlc.ir.products import plain_access
from dlc.ir.program import Stmt
from dlc.passes.plan_fold import FoldPlanner, accumulates_wider, accumulator
from dlc.passes.reduction_chains import Chain, Kind, Member, add_locals
from dlc.passes.refusals import Refused
from dlc.passes.rewrite import Names
from dlc.passes.running_plan import Plan


def lone_folds(
    step: Einsum, body: Sequence[Stmt], outside: frozenset[str], types: Mapping[str, TensorType], names: Names
) -> Iterator[tuple[list[Stmt], Plan]]:
    """(`body` with the operands of `step` in tensors, the plan of its scan) for each operand that steps of `body` make.

    Args:
        outside: tensors that something other than a direct Einsum of `body` reads.
    """
    if step.reduce is None or step.reduce.op != "sum" or len(step.reduced) != 1 or step.write is not None:
        return
    made, fold = _outlined(step, types, names)
    if fold is None:
        return
    fold, rounded = _unrounded(fold, names)
    place = next(n for n, s in enumerate(body) if s is step)
    whole = [*body[:place], *made, fold, *rounded, *body[place + 1 :]]
    rank = fold.reduced[0]
    for operand in fold.accesses():
        member = Member(fold, Kind.FOLD, rank.name)
        chain = Chain(rank.name, rank.extent, dict.fromkeys(fold.outs, member))
        try:
            plan = Plan(chain, (FoldPlanner(chain, types, Facts()).plan(member),))
        except Refused:
            return
        add_locals(chain, whole, outside, operand.tensor)
        if chain.of(Kind.LOCAL):
            yield whole, plan


def _unrounded(fold: Einsum, names: Names) -> tuple[Einsum, list[Einsum]]:
    """(`fold` in the type that it adds up in, the step that rounds it): blocks are added unrounded."""
    if not accumulates_wider(fold):
        return fold, []
    wide = replace(fold, outs=(names.fresh(f"{fold.out}_sum"),), dtypes=(accumulator(fold),))
    whole = Access(wide.out, tuple(var(r.name) for r in fold.ranks))
    return wide, [replace(fold, exprs=(Cast(fold.dtype, whole),), reduce=None, where=None)]


def _outlined(step: Einsum, types: Mapping[str, TensorType], names: Names) -> tuple[list[Einsum], Einsum | None]:
    """(Einsums of the factors of `step` that are no accesses, the sum of products of accesses); None for other sums."""
    if not (isinstance(step.expr, Apply) and step.expr.op == "mul"):
        return [], None
    made: list[Einsum] = []
    factors: list[Expr] = []
    for e in step.expr.args:
        if plain_access(e) is not None:
            factors.append(e)
            continue
        ranks = tuple(r for r in step.all_ranks if r.name in e.variables)
        within = {r.name for r in ranks}
        if any(not c.variables <= within for c in conjuncts(step.where)):
            return [], None  # outside of the domain its operands may not exist
        name = names.fresh(f"{step.out}_factor")
        dtype = dtype_of(e, lambda t: types[t].dtype)
        made.append(einsum(name, ranks, e, dtype, where=step.where, loc=step.loc))
        factors.append(Access(name, tuple(var(r.name) for r in ranks)))
    return made, replace(step, exprs=(Apply("mul", tuple(factors)),)) if made else step


__all__ = ["lone_folds"]
