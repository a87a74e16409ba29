"""Merging ranks: two ranks that every access walks as one become one, so that lanes and tasks run over long extents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dlc.codegen.nest import PointStep
from dlc.codegen.point import Emitter
from dlc.ir.expr import Access, Expr, Index, accesses, walk
from dlc.ir.extent import IntExpr, Var, has_value, rebuild, split_linear, substitute, var, variables
from dlc.ir.facts import Facts


def merge_ranks(em: Emitter, steps: Sequence[PointStep], ranks: dict[str, IntExpr]) -> tuple[list[PointStep], dict[str, IntExpr]]:
    """Merge neighbours in `ranks` (outermost first) while all accesses stay linear; `em.facts` is updated.

    A rank used other than in plain addresses (as a value, under a guard) is left alone.
    """
    steps = list(steps)
    names = list(ranks)
    position = 0
    while position + 1 < len(names):
        outer, inner = names[position], names[position + 1]
        merged = _merge_pair(em, steps, ranks, outer, inner)
        if merged is None:
            position += 1
            continue
        steps, fused, extent, facts = merged
        em.facts = facts
        ranks = {(fused if n == outer else n): (extent if n == outer else e) for n, e in ranks.items() if n != inner}
        names[position : position + 2] = [fused]
        position = max(position - 1, 0)
    return steps, ranks


def _merge_pair(
    em: Emitter, steps: list[PointStep], ranks: dict[str, IntExpr], outer: str, inner: str
) -> tuple[list[PointStep], str, IntExpr, Facts] | None:
    pair = {outer, inner}
    if ranks[inner].const == 0:
        return None
    if any(_used_as_value(e, pair) for s in steps for e in s.scalars):
        return None
    if any(not pair.isdisjoint(s.reduced) for s in steps):
        return None
    fused = f"{outer}_{inner}"
    extent = ranks[outer] * ranks[inner]
    facts = Facts({**{n: e for n, e in em.facts.ranks.items() if n not in pair}, fused: extent}, em.facts.symbols)
    env = {outer: var(fused) // ranks[inner], inner: var(fused) % ranks[inner]}
    for step in steps:
        reads = [a for e in step.scalars for a in accesses(e)]
        writes = [Access(o, step.index) for o, stored in zip(step.outs, step.stored, strict=True) if stored]
        for a in reads + writes:
            if a.tensor in em.storage and not _stays_linear(em, a, env, fused, facts):
                return None
    return [substitute_in(s, env, facts) for s in steps], fused, extent, facts


def _used_as_value(e: Expr, pair: set[str]) -> bool:
    for node in walk(e):
        if isinstance(node, Index) and not pair.isdisjoint(variables(node.expr)):
            return True
        if isinstance(node, Access) and node.default is not None and not pair.isdisjoint(node.variables):
            return True
    return False


def _stays_linear(em: Emitter, a: Access, env: dict[str, IntExpr], fused: str, facts: Facts) -> bool:
    offset = em.storage[a.tensor].offset(a.index)
    if has_value(offset):  # what a gathered index reads is judged on its own
        offset = rebuild(offset, lambda atom: var(atom.name) if isinstance(atom, Var) else var("@value"))
    return split_linear(facts.simplify(substitute(offset, env)), fused) is not None


def substitute_in(step: PointStep, env: dict[str, IntExpr], facts: Facts) -> PointStep:
    """The step with ranks replaced, and what it writes simplified."""
    index = tuple(facts.simplify(substitute(i, env)) for i in step.index)
    exprs = tuple(e.substitute(env) for e in step.exprs)
    where = step.where.substitute(env) if step.where is not None else None
    return replace(step, index=index, exprs=exprs, where=where)


