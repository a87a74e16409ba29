"""The folds of a running form: what each carries through the scan, and what is left to do when it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Expr, transform
from dlc.ir.monoid import MONOIDS
from dlc.passes.running_corrections import Corrections
from dlc.passes.running_parts import Join
from dlc.passes.running_plan import FoldPlan
from dlc.passes.running_results import Results, total
from dlc.passes.running_scan import ScanBody, State
from dlc.passes.running_terms import TermWriter
from dlc.passes.shared_steps import SharedSteps


@dataclass
class FoldWriter:
    """Writes planned folds into a scan's body.

    Attributes:
        joins: what makes one state of those of several parts, in the order of the folds.
        after: by fold, the steps that make its result from what the scan carried; none where that is the result.
    """

    scan: ScanBody
    results: Results
    joins: list[Join] = field(default_factory=list)
    after: dict[str, list[Einsum]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scan = self.scan
        corrections = Corrections(scan.chain, scan.names, scan.blocks.progress(), scan.now, scan.before, scan.steps)
        self.terms = TermWriter(scan, SharedSteps(scan), corrections, self.joins)

    def write(self, plan: FoldPlan) -> None:
        states = self._corrected(plan) if plan.parts else self._plain(plan)
        out = plan.member.step.out
        if not plan.is_direct:
            self.scan.pending[out] = total(plan, [s.next for s in states])
            self.after[out] = self.results.of(plan, states)
        elif plan.parts:
            self.scan.now[out] = states[0].next
        else:
            for out, state in zip(plan.member.step.outs, states, strict=True):
                self.scan.now[out], self.scan.before[out] = state.next, state.run

    def _plain(self, plan: FoldPlan) -> list[State]:
        """A fold of data alone: its monoid joins the blocks."""
        member, step, scan = plan.member, plan.member.step, self.scan
        assert step.reduce is not None
        monoid = MONOIDS[step.reduce.op]
        states = [
            scan.carry(*self._names(plan, out), step.ranks, zero, step.loc)
            for out, zero in zip(step.outs, monoid.identity(step.dtypes), strict=True)
        ]
        operands = step.exprs if plan.operand is None else (plan.operand,)
        scan.fold_block(member, states, tuple(scan.here(e, member.rank) for e in operands))
        sides = {f"a{k}": s.run for k, s in enumerate(states)} | {f"b{k}": s.block for k, s in enumerate(states)}
        index = states[0].index

        def element(node: Expr) -> Expr | None:
            return Access(sides[node.tensor], index) if isinstance(node, Access) else None

        for state, joined in zip(states, monoid.combine(), strict=True):
            scan.advance(state, transform(joined, element), step.loc)
        finals = tuple(Access(s.final, index) for s in states)
        self.joins.append(Join(step, tuple(states), lambda _: finals))
        return states

    def _corrected(self, plan: FoldPlan) -> list[State]:
        """A sum of terms: each has its states, corrected when its references change."""
        states = []
        for k, part in enumerate(plan.parts):
            base, final = self._names(plan, plan.member.step.out, str(k + 1) if len(plan.parts) > 1 else "")
            states.append(self.terms.write(plan.member, part, base, final))
        return states

    def _names(self, plan: FoldPlan, out: str, suffix: str = "") -> tuple[str, str]:
        """(what a state is named after, its name at the end): the result's, if it is the result."""
        if plan.is_direct:
            return out, out
        reduce = plan.member.step.reduce
        assert reduce is not None
        base = f"{out}_{reduce.op}{suffix}"
        return base, self.scan.names.fresh(base)
