"""A reduced rank that accesses take apart becomes two ranks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.einsum import Einsum, Rank, Reduce
from dlc.ir.expr import Access, Expr, Index, walk
from dlc.ir.extent import FloorDiv, IntExpr, Mod, atoms, substitute, var, variables
from dlc.ir.facts import Facts
from dlc.ir.program import Program, fresh_name
from dlc.passes.index_facts import simplify_index, simplify_indices_in
from dlc.passes.pipeline import Pass
from dlc.passes.scopes import map_einsums


@dataclass(frozen=True)
class SplitRanks(Pass):
    """Split a reduced rank so that no index divides it.

        Z[s, o] = sum(r:768) A[r // 64, s, r % 64] * W[o, r]
        ->  Z[s, o] = sum(r_o:12, r_i:64) A[r_o, s, r_i] * W[o, 64*r_o + r_i]

    Holds when the divisor divides the extent; done when it leaves no division of the rank. The order of a reduction is
    free, so nothing else changes. A free rank is a dimension of the result and stays.
    """

    name: ClassVar[str] = "split-ranks"

    def apply(self, program: Program) -> Program:
        return map_einsums(program, split_ranks)


def split_ranks(step: Einsum, facts: Facts) -> Einsum:
    """`step` with every reduced rank split where that rids the accesses of divisions."""
    for rank in step.reduced:
        if not _divisions(step, {rank.name}):
            continue
        found = _split(step, rank, facts, depth=3)
        if found is not None:
            step = found
    return step


def _split(step: Einsum, rank: Rank, facts: Facts, depth: int) -> Einsum | None:
    """The step after one or more splits of `rank` that leave no division of its parts; None if there are none."""
    for divisor in _divisors(step, rank):
        new, outer, inner = _split_by(step, rank, divisor, facts)
        left = _divisions(new, {outer.name, inner.name})
        if not left:
            return new
        if depth > 0:
            known = facts.with_ranks(new.extents)
            for part in (outer, inner):
                again = _split(new, part, known, depth - 1)
                if again is not None and not _divisions(again, _new_names(again, step)):
                    return again
    return None


def _new_names(after: Einsum, before: Einsum) -> set[str]:
    return set(after.extents) - set(before.extents)


def _divisors(step: Einsum, rank: Rank) -> list[IntExpr]:
    """Divisors of the rank in accesses that also divide its extent, each once."""
    found: dict[IntExpr, None] = {}
    for atom in _divisions(step, {rank.name}):
        if rank.name in variables(atom.num) and rank.name not in variables(atom.den):
            d = atom.den
            whole = rank.extent // d if d.const != 0 else None
            if whole is not None and d.const != 1 and whole.const not in (0, 1) and whole * d == rank.extent:
                found[d] = None
    return list(found)


def _divisions(step: Einsum, names: set[str]) -> list[FloorDiv | Mod]:
    """Divisions and modulos in which a rank of `names` occurs."""
    return [
        a
        for i in _indices(step)
        for a in atoms(i)
        if isinstance(a, (FloorDiv, Mod)) and not names.isdisjoint(variables(a.num) | variables(a.den))
    ]


def _indices(step: Einsum) -> Iterable[IntExpr]:
    def inside(e: Expr) -> Iterable[IntExpr]:
        for n in walk(e):
            if isinstance(n, Access):
                yield from n.index
            elif isinstance(n, Index):
                yield n.expr

    for e in step.scalars:
        yield from inside(e)
    if step.write is not None:
        for i in step.write.index:
            yield from inside(Index(i))


def _split_by(step: Einsum, rank: Rank, divisor: IntExpr, facts: Facts) -> tuple[Einsum, Rank, Rank]:
    assert step.reduce is not None
    taken = {r.name for r in step.all_ranks} | set(facts.ranks) | {n[1:] for n in facts.symbols}
    outer = Rank(fresh_name(f"{rank.name}_o", taken), rank.extent // divisor)
    inner = Rank(fresh_name(f"{rank.name}_i", taken | {outer.name}), divisor)
    env = {rank.name: divisor * var(outer.name) + var(inner.name)}
    ranks = tuple(p for r in step.reduced for p in ((outer, inner) if r == rank else (r,)))
    known = facts.with_ranks({outer.name: outer.extent, inner.name: inner.extent})

    def change(e: Expr) -> Expr:
        return simplify_indices_in(e.substitute(env), known)

    write = step.write
    if write is not None:
        write = replace(write, index=tuple(simplify_index(substitute(i, env), known) for i in write.index))
    new = replace(
        step,
        exprs=tuple(map(change, step.exprs)),
        reduce=Reduce(step.reduce.op, ranks, step.reduce.accumulator),
        where=None if step.where is None else change(step.where),
        write=write,
    )
    return new, outer, inner
