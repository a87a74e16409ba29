"""The results of a running form's folds, from what the scan carried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlc.ir.einsum import Einsum, TensorType, einsum
from dlc.ir.expr import Access, Apply, Const, Expr, Piecewise, const
from dlc.ir.extent import var
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import collect_step_types
from dlc.passes.emptiness import check_bounds, nonempty
from dlc.passes.rewrite import Names
from dlc.passes.running_plan import FoldPlan, Part
from dlc.passes.running_scan import State
from dlc.passes.separate import Factor, numerators_first, product


def total(plan: FoldPlan, names: Sequence[str]) -> Expr:
    """The fold's value from that of its states, of which these are the names."""
    index = tuple(var(r.name) for r in plan.member.step.ranks)
    if plan.outer:
        value: Expr = Access(names[0], index)
        for op, e in plan.outer:
            value = Apply(op, (value, e))
        return value
    return _sum_of_terms([Access(n, index) for n in names], plan.parts)


def _sum_of_terms(values: Sequence[Access], parts: Sequence[Part]) -> Expr:
    """Each term's value with its sign, times the factors that moved past it."""
    result: Expr | None = None
    for value, part in zip(values, parts, strict=True):
        term = product((Factor(value), *numerators_first(part.term.outer)), None)
        if result is None:
            result = Apply("neg", (term,)) if part.term.sign < 0 else term
        else:
            result = Apply("sub" if part.term.sign < 0 else "add", (result, term))
    assert result is not None
    return result


@dataclass(frozen=True)
class Results:
    """Writes what follows a scan."""

    names: Names
    types: Mapping[str, TensorType]
    facts: Facts

    def of(self, plan: FoldPlan, states: Sequence[State]) -> list[Einsum]:
        """The fold's result from its terms; the identity where there was nothing to fold.

        Raises:
            Refused: what moved past the fold is in bounds only inside.
        """
        step = plan.member.step
        value = total(plan, [s.merged for s in states])
        moved = _has_moved(plan)
        if not moved and not plan.exposed:
            return [einsum(step.out, step.ranks, value, step.dtype, loc=step.loc)]
        condition, extra = nonempty(step, self.facts, self.names.fresh)
        if moved and condition is not None:
            assert step.reduce is not None
            (zero,) = MONOIDS[step.reduce.op].identity((step.dtype,))
            value = Piecewise(((condition, value),), zero)
        if plan.exposed:
            value = Apply("select", (_all_infinite(plan, condition), const(float("nan"), step.dtype), value))
        new = einsum(step.out, step.ranks, value, step.dtype, loc=step.loc)
        self._check(new, states, extra)
        return [*extra, new]

    def _check(self, new: Einsum, states: Sequence[State], extra: Sequence[Einsum]) -> None:
        types = dict(self.types)
        types |= {s.merged: TensorType(s.dtype, tuple(r.extent for r in s.ranks)) for s in states}
        for e in extra:
            collect_step_types(e, types)
        check_bounds(new, types, self.facts.symbols)


def _has_moved(plan: FoldPlan) -> bool:
    """Whether anything but constants is applied after the scan."""
    outer = [f.expr for p in plan.parts for f in p.term.outer] + [e for _, e in plan.outer]
    return any(not isinstance(e, Const) for e in outer)


def _all_infinite(plan: FoldPlan, some: Expr | None) -> Expr:
    """Whether a row has data, and nothing but the identity of a reference."""
    found: Expr | None = None
    for reference in dict.fromkeys(r for p in plan.parts for r in p.references if r.unguarded):
        bound = const(float("-inf") if reference.sign < 0 else float("inf"), plan.member.step.dtype)
        here = Apply("eq", (reference.read, bound))
        found = here if found is None else Apply("or", (found, here))
    assert found is not None
    return found if some is None else Apply("and", (found, some))
