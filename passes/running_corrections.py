"""What earlier partial results become when the running folds that they were taken against have moved on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import comb

from dlc.ir.dtype import DType
from dlc.ir.einsum import Einsum, einsum
from dlc.ir.expr import Access, Apply, Cast, Expr, Index, const
from dlc.ir.extent import int_expr, var
from dlc.passes.finite_references import clamped
from dlc.passes.reduction_chains import Chain, Member
from dlc.passes.rewrite import Names
from dlc.passes.running_blocks import Progress
from dlc.passes.running_plan import Centre, Part, Reference
from dlc.passes.separate import Factor, Power, product


@dataclass
class Corrections:
    """The corrections of one step of a traversal, each computed once, where it is first asked for.

    Attributes:
        now: the running folds of data alone, by their value after the step.
        before: the same, by their value before it.
        steps: what is computed, in order.
    """

    chain: Chain
    names: Names
    progress: Progress
    now: Mapping[str, str]
    before: Mapping[str, str]
    steps: list[Einsum]
    fixes: dict[Expr, str] = field(default_factory=dict)
    centres: dict[Centre, tuple[str, str]] = field(default_factory=dict)

    def seen(self, dtype: DType) -> Expr:
        """How many elements of the rank came before the step."""
        return Cast(dtype, Index(self.progress.before))

    # --- references ---

    def fixed(self, old: Expr, part: Part, member: Member) -> Expr:
        """The old value of a term, corrected for what its references changed; a product's, once for each element seen."""
        step = member.step
        for reference, power in zip(part.references, part.term.powers, strict=True):
            fix: Expr = self.fix(reference, power)
            if step.reduce is not None and step.reduce.op == "prod":
                fix = Apply("pow", (fix, _elements(self.seen(step.dtype), member)))
            old = Apply("mul", (old, fix))
        return old

    def fix(self, reference: Reference, power: Power) -> Access:
        """What a power changes by when its reference does: 1 where it does not, for infinities and NaN have no difference."""
        name = reference.read.tensor
        step = self.chain.members[name].step
        index = tuple(var(r.name) for r in step.ranks)
        new, old = Access(self.now[name], index), Access(self.before[name], index)
        if reference.sign < 0:
            moved, change = Apply("gt", (new, old)), Apply("sub", (old, new))
        else:
            moved, change = Apply("lt", (new, old)), Apply("sub", (new, old))
        expr = power.base(product((Factor(change), *reference.scales), None))
        made = Apply("select", (moved, expr, const(1, step.dtype)))
        if made not in self.fixes:
            self.fixes[made] = self.names.fresh(f"{name}_fix")
            self.steps.append(einsum(self.fixes[made], step.ranks, made, step.dtype, loc=step.loc))
        return Access(self.fixes[made], reference.read.index)

    # --- centres ---

    def recentred(self, moments: Sequence[Expr], part: Part, member: Member) -> Expr:
        """The last of a term's moments from itself and the lower ones, as it is about the new centre and references."""
        if len(moments) == 1:
            return self.fixed(moments[0], part, member)
        assert part.centre is not None
        _, move = self.centre(part.centre, part.sign)
        return self.fixed(_moved(moments, move, member.step.dtype), part, member)

    def centre(self, centre: Centre, sign: int) -> tuple[Access, Expr]:
        """(the centre after the step, what a shift of that sign gains by its move), as the shift reads the centre."""
        if centre not in self.centres:
            self.centres[centre] = self._computed(centre)
        new, move = self.centres[centre]
        moved: Expr = Access(move, centre.read.index)
        return Access(new, centre.read.index), moved if sign > 0 else Apply("neg", (moved,))

    def _computed(self, centre: Centre) -> tuple[str, str]:
        """Tensors with the centre after the step, and with its move."""
        name = centre.read.tensor
        step = self.chain.members[name].step
        index = tuple(var(r.name) for r in step.ranks)
        base = f"{name}_mean" if centre.mean else f"{name}_finite"
        new, old, move = (self.names.fresh(f"{base}_{s}") for s in ("next", "run", "move"))
        for out, expr in (
            (new, self._centred(centre, Access(self.now[name], index), step, before=False)),
            (old, self._centred(centre, Access(self.before[name], index), step, before=True)),
            (move, Apply("sub", (Access(old, index), Access(new, index)))),
        ):
            self.steps.append(einsum(out, step.ranks, expr, step.dtype, loc=step.loc))
        return new, move

    def _centred(self, centre: Centre, value: Access, step: Einsum, *, before: bool) -> Expr:
        """The centre from the state of its fold: finite where nothing has been seen."""
        if not centre.mean:
            sign = -1 if step.reduce is not None and "max" in step.reduce.op else 1
            return clamped(value, Reference(value, (), sign), step.dtype)
        if centre.count is None:
            return self._mean(value, step.dtype, before=before)
        return self._weighted_mean(centre.read, centre.count, value, step, before=before)

    def _mean(self, total: Access, dtype: DType, *, before: bool) -> Expr:
        if before:
            return Apply("div", (total, Apply("max", (self.seen(dtype), const(1, dtype)))))
        count = Cast(dtype, Index(self.progress.after))
        at_least_1 = Apply("max", (count, const(1, dtype))) if self.progress.may_be_none else count
        return Apply("div", (total, at_least_1))

    def _weighted_mean(self, read: Access, count: Access, total: Access, step: Einsum, *, before: bool) -> Expr:
        name = (self.before if before else self.now)[count.tensor]
        place = dict(zip(read.index, step.ranks, strict=True))
        weight = Access(name, tuple(var(place[i].name) if i in place else i for i in count.index))
        none = Apply("eq", (weight, const(0, step.dtype)))
        return Apply("div", (total, Apply("select", (none, const(1, step.dtype), weight))))


def _elements(along: Expr, member: Member) -> Expr:
    """Elements that a fold has seen: as many along the chain's rank, times those of its other ranks."""
    others = int_expr(1)
    for r in member.step.reduced:
        others = others * (r.extent if r.name != member.rank else 1)
    return along if others.const == 1 else Apply("mul", (along, Cast(member.step.dtype, Index(others))))


def _moved(moments: Sequence[Expr], move: Expr, dtype: DType) -> Expr:
    """The last moment about a centre that moves by `move`: `M2 + d*(2*M1 + d*M0)`."""
    k = len(moments) - 1
    total = moments[0]
    for i in range(1, k + 1):
        share = comb(k, i)
        term = moments[i] if share == 1 else Apply("mul", (const(share, dtype), moments[i]))
        total = Apply("add", (term, Apply("mul", (move, total))))
    return total
