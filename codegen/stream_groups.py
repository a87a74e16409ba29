"""Which neighbouring steps of a streaming kernel run together, and how (the kinds of `stream_plan`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlc.codegen.stream_plan import Group, Kind, Plan
from dlc.ir.domain import conjuncts
from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.expr import Expr, accesses
from dlc.ir.products import factors

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering


@dataclass(frozen=True)
class Grouping:
    """The rules, for a kernel whose local tensors `plan` knows."""

    low: KernelLowering
    plan: Plan

    def groups(self, steps: Sequence[Step]) -> list[Group | Scan]:
        """The steps in groups, each as long as can be; scans stand between them."""
        found: list[Group | Scan] = []
        for step in steps:
            last = found[-1] if found else None
            if isinstance(step, Scan):
                found.append(step)
            elif isinstance(last, Group) and (kind := self._joined(last, step)) is not None:
                found[-1] = Group(kind, (*last.steps, step))
            else:
                found.append(Group(self._kind(step), (step,)))
        return found

    def _kind(self, step: Einsum) -> Kind:
        if any(o not in self.plan.locals for o in step.outs):
            return "rows"
        if factors(step) is not None and self._inner(step):
            return "tile"
        return "sweep" if self._sweeps((step,)) else "nest"

    def _joined(self, group: Group, step: Einsum) -> Kind | None:
        """The kind of `group` with `step` in it; None when it cannot be."""
        kind = self._kind(step)
        if kind == "tile" or (kind == "rows") != (group.kind == "rows"):
            return None
        if group.kind in ("nest", "sweep") and self._sweeps((*group.steps, step)):
            return "sweep"
        if group.kind == "sweep" or group.kind == "tile" and (step.reduce is not None or len(step.outs) > 1):
            return None
        if not self._within(group, step):
            return None
        return group.kind if self.low.joins(list(group.steps), step) else None

    def _inner(self, step: Einsum) -> tuple[str, ...]:
        """Its free ranks that are loops in a task."""
        return tuple(r.name for r in step.ranks if r.name not in self.plan.tasks)

    # --- domains ---

    def _within(self, group: Group, step: Einsum) -> bool:
        """Whether the loops of `group` go wherever `step` exists, and it may be computed wherever they go."""
        own, wanted = self._bounds(group.steps[0]), self._bounds(step)
        inside = all(a.tensor in self.plan.locals for e in step.exprs for a in accesses(e))
        return own == wanted or (group.kind == "tile" and own <= wanted and inside)

    def _bounds(self, step: Einsum) -> frozenset[Expr]:
        """What may end the loops over the free inner ranks of `step`."""
        inner = self._inner(step)
        return frozenset(c for c in conjuncts(step.where) if not c.variables.isdisjoint(inner))

    # --- sweeps ---

    def _sweeps(self, steps: Sequence[Einsum]) -> bool:
        """Whether the steps are one loop over one inner rank, and after it what needs the folds of it."""
        inside = [s for s in steps if self._in_loop(s)]
        return self._one_loop(inside) and self._folds_end(steps) and self._at_own_points(steps)

    def _in_loop(self, step: Einsum) -> bool:
        return bool(self._loops(step)) or step.reduce is not None

    def _loops(self, step: Einsum) -> tuple[str, ...]:
        """All of its ranks that are loops in a task."""
        return (*self._inner(step), *(r.name for r in step.reduced))

    def _one_loop(self, inside: Sequence[Einsum]) -> bool:
        """Whether the steps run over one rank, the same one, as far as each other."""
        loops = {self._loops(s) for s in inside}
        return len(loops) == 1 and all(len(names) == 1 for names in loops) and len({s.where for s in inside}) == 1

    def _folds_end(self, steps: Sequence[Einsum]) -> bool:
        """Whether something is folded, no step inside needs it or what is made of it, and all other steps come behind a fold."""
        folds = [n for n, s in enumerate(steps) if s.reduce is not None]
        after = [n for n, s in enumerate(steps) if not self._in_loop(s)]
        if not folds or any(n < folds[0] or not steps[n].reads for n in after):
            return False
        late = {o for n in (*folds, *after) for o in steps[n].outs}
        return all(late.isdisjoint(s.reads) for s in steps if self._in_loop(s))

    def _at_own_points(self, steps: Sequence[Einsum]) -> bool:
        """Whether what is computed at a point of the loop is read at that point alone."""
        point = {o: self.low.own_index(s) for s in steps if self._inner(s) for o in s.outs}
        return all(a.index == point[a.tensor] for s in steps for a in s.accesses() if a.tensor in point)


__all__ = ["Grouping"]
