"""Which steps of a row kernel share a loop over the row.

    G = max(m) X[m]                                    one sweep
    E[m] = exp(X[m] - G);  S = sum(k) E[k]             one sweep: S folds what is computed at the same points
    O[m] = E[m] / S                                    another, for all of S has to be known

A step joins the nearest earlier group that it can, unless it reads something in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dlc.codegen.pieces import parts_of
from dlc.ir.einsum import Einsum
from dlc.ir.extent import IntExpr
from dlc.ir.monoid import MONOIDS
from dlc.ir.rename import rename_einsum

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering


def group_rows(low: KernelLowering) -> list[list[Einsum]]:
    """The steps in groups, each a nest; steps of one sweep have the same names for the same ranks."""
    groups: list[list[Einsum]] = []
    for step in low.steps:
        for group in reversed(groups):
            same = _in_names_of(low, group[0], step)
            if same is not None and sweeps(low, [*group, same]):
                group.append(same)
                break
            if group is groups[-1] and not sweeps(low, group) and not sweeps(low, [step]) and low.joins(group, step):
                group.append(step)
                break
            if any(o in step.reads for s in group for o in s.outs):
                groups.append([step])
                break
        else:
            groups.append([step])
    return groups


def inner_ranks(low: KernelLowering, step: Einsum) -> dict[str, IntExpr]:
    """The ranks of `step` that run inside a task, reduced ones last."""
    free = [r for r in step.ranks if r.name in low.moving(step) - low.outer]
    return {r.name: r.extent for r in (*free, *step.reduced)}


def sweeps(low: KernelLowering, steps: Sequence[Einsum]) -> bool:
    """Whether the steps are one loop over the same inner ranks, with folds that none of them waits for."""
    loops = inner_ranks(low, steps[0])
    if not loops or any(e.const in (0, 1) for e in loops.values()):
        return False
    folded: set[str] = set()
    made: dict[str, Einsum] = {}
    for step in steps:
        if inner_ranks(low, step) != loops or not folded.isdisjoint(step.reads):
            return False
        if any(a.index != low.own_index(made[a.tensor]) for a in step.accesses() if a.tensor in made):
            return False
        if len(steps) > 1 and _is_cut(low, step, loops):
            return False
        if step.reduce is None:
            made |= dict.fromkeys(step.outs, step)
        elif low.moving(step) <= low.outer and MONOIDS[step.reduce.op].arity == 1:
            folded |= set(step.outs)
        else:
            return False
    return bool(folded)


def _is_cut(low: KernelLowering, step: Einsum, loops: dict[str, IntExpr]) -> bool:
    """Whether a nest of its own spares the step questions at each point (`pieces.py`)."""
    exprs = (*step.exprs, *(() if step.where is None else (step.where,)))
    return any(len(parts_of(exprs, n, e, low.em.facts)) > 1 for n, e in loops.items())


def _in_names_of(low: KernelLowering, first: Einsum, step: Einsum) -> Einsum | None:
    """`step` with the names that `first` has for its inner ranks; None when the two have not the same extents."""
    own, wanted = inner_ranks(low, step), inner_ranks(low, first)
    if list(own.values()) != list(wanted.values()):
        return None
    names = dict(zip(own, wanted, strict=True))
    if all(a == b for a, b in names.items()):
        return step
    return rename_einsum(step, {r.name: names.get(r.name, r.name) for r in step.all_ranks}, {})


__all__ = ["group_rows", "inner_ranks", "sweeps"]
