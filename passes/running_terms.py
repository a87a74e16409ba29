"""The running sums of one term of a fold's operand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dlc.ir.einsum import Rank
from dlc.ir.expr import Access, Apply, Expr, const
from dlc.ir.monoid import MONOIDS
from dlc.passes.finite_references import with_running
from dlc.passes.reduction_chains import Kind, Member
from dlc.passes.running_corrections import Corrections
from dlc.passes.running_parts import Join
from dlc.passes.running_plan import Part
from dlc.passes.running_scan import ScanBody, State
from dlc.passes.separate import Factor, numerators_first, product, signed_sum
from dlc.passes.shared_steps import SharedSteps


@dataclass
class TermWriter:
    """Writes the terms of sums and products into a scan's body; `joins` are what they need when it has several parts."""

    scan: ScanBody
    shared: SharedSteps
    corrections: Corrections
    joins: list[Join]

    def write(self, member: Member, part: Part, base: str, final: str) -> State:
        """The carry of the term, named after `base`; `final` is its value at the end."""
        if part.centre is None:
            return self._product(member, part, base, final)
        return self._moments(member, part, base, final)

    # --- terms without a shift ---

    def _product(self, member: Member, part: Part, base: str, final: str) -> State:
        """The running sum (or product) of a product: `run * fix + block`."""
        step = member.step
        assert step.reduce is not None
        (zero,) = MONOIDS[step.reduce.op].identity((step.dtype,))
        state = self.scan.carry(base, final, step.ranks, zero, step.loc)
        value = product(numerators_first(self._factors(part, member)), const(1, step.dtype))
        self.scan.fold_block(member, (state,), (value,))
        old = self.corrections.fixed(Access(state.run, state.index), part, member)
        joined = Apply("mul" if step.reduce.op == "prod" else "add", (old, Access(state.block, state.index)))
        self.scan.advance(state, joined, step.loc)

        def corrected(corrections: Corrections) -> tuple[Expr]:
            return (corrections.fixed(Access(state.final, state.index), part, member),)

        self.joins.append(Join(step, (state,), corrected))
        return state

    def _factors(self, part: Part, member: Member) -> tuple[Factor, ...]:
        """A term's factors at the block's element, with its references as they are after the block."""
        here = self.scan.here
        factors = tuple(Factor(here(f.expr, member.rank), f.inverse) for f in part.term.local)
        if not part.references:
            return factors
        together = product(numerators_first(self._powers(part, member)), const(1, member.step.dtype))
        return (Factor(self.shared.read(together, member, f"{member.step.out}_powers")), *factors)

    def _powers(self, part: Part, member: Member) -> tuple[Factor, ...]:
        chain, powers = self.scan.chain, []
        for reference, power in zip(part.references, part.term.powers, strict=True):
            name = reference.read.tensor
            whole = chain.inlined(power.factor.expr, Kind.VALUE)
            now = with_running(whole, reference, self.scan.now[name], chain.members[name].step.dtype)
            powers.append(Factor(self.scan.here(now, member.rank), power.factor.inverse))
        return tuple(powers)

    # --- terms with a shift ---

    def _moments(self, member: Member, part: Part, base: str, final: str) -> State:
        """`sum w (x - c)^k` for k up to the shift's power, from the lowest on; the state of the last.

        When c moves by d, each gets `d^(k-i)` of the lower ones, binomially. The lowest of a term without factors, on the
        whole rank, is the number of elements and needs no state.
        """
        assert part.term.shift is not None
        step, power = member.step, part.term.shift.power
        deviation, factors = self._deviation(member, part), self._factors(part, member)
        counted = not factors and step.where is None and len(step.reduced) == 1
        states: list[State | None] = [None] if counted else []
        for k in range(len(states), power + 1):
            last = k == power
            name = base if last else f"{base}_moment{k}"
            end = final if last else self.scan.names.fresh(f"{name}_last")
            ranks = step.ranks if k else _ranks_of_weights(member, part)
            state = self.scan.carry(name, end, ranks, const(0, step.dtype), step.loc)
            value = product(numerators_first((*factors, *[Factor(deviation)] * k)), const(1, step.dtype))
            self.scan.fold_block(member, (state,), (value,))
            states.append(state)
            before = _Moments(member, part, tuple(states), ended=False)
            (old,) = before.recentred(self.corrections)
            self.scan.advance(state, Apply("add", (old, Access(state.block, state.index))), step.loc)
            self.joins.append(Join(step, (state,), replace(before, ended=True).recentred))
        return state

    def _deviation(self, member: Member, part: Part) -> Expr:
        """The shift at the block's element, from the centre after the block."""
        assert part.centre is not None and part.term.shift is not None
        new, _ = self.corrections.centre(part.centre, part.sign)
        data = tuple(replace(a, sign=a.sign * part.sign) for a in part.term.shift.data)
        x = self.scan.here(signed_sum(data, member.step.dtype), member.rank)
        deviation = self.shared.read(Apply("sub", (x, new)), member, f"{member.step.out}_deviations")
        return deviation if part.sign > 0 else Apply("neg", (deviation,))


def _ranks_of_weights(member: Member, part: Part) -> tuple[Rank, ...]:
    """Free ranks that the sum of a term's weights needs; all of them under a domain."""
    if member.step.where is not None:
        return member.step.ranks
    factors = (*part.term.local, *(p.factor for p in part.term.powers))
    names = {n for f in factors for n in f.expr.variables}
    return tuple(r for r in member.step.ranks if r.name in names)


@dataclass(frozen=True)
class _Moments:
    """The moments of a term up to some power as they are before a step; None is the number of elements.

    Attributes:
        ended: whether the step is the join that follows the scan, and not one of its own.
    """

    member: Member
    part: Part
    states: tuple[State | None, ...]
    ended: bool

    def recentred(self, corrections: Corrections) -> tuple[Expr]:
        """The last of them about the centre after the step."""
        moments: list[Expr] = []
        for s in self.states:
            if s is None:
                moments.append(corrections.seen(self.member.step.dtype))
            else:
                moments.append(Access(s.final if self.ended else s.run, s.index))
        return (corrections.recentred(moments, self.part, self.member),)
