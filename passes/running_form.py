"""Writing a planned chain as a scan over blocks of its rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlc.ir.einsum import TensorType
from dlc.ir.facts import Facts
from dlc.ir.program import Stmt
from dlc.passes.reduction_chains import Kind, ordered
from dlc.passes.rewrite import Names
from dlc.passes.running_blocks import Blocks
from dlc.passes.running_folds import FoldWriter
from dlc.passes.running_parts import join_parts
from dlc.passes.running_plan import Plan
from dlc.passes.running_results import Results
from dlc.passes.running_scan import ScanBody


@dataclass(frozen=True)
class RunningForm:
    """The scan of one plan, and the statements around it.

    Attributes:
        types: of the program's tensors.
        block: elements of the rank in one step of the scan.
        parts: shares of the rank that are traversed side by side.
    """

    plan: Plan
    names: Names
    types: Mapping[str, TensorType]
    block: int
    facts: Facts
    parts: int = 1

    def rewritten(self, body: Sequence[Stmt]) -> list[Stmt]:
        """The statements with the chain replaced: what it needs, the scan, and what depends on it.

        Raises:
            Refused: something that would be done after the scan is in bounds only inside.
        """
        chain, plans = self.plan.chain, {id(p.member.step): p for p in self.plan.folds}
        scan = ScanBody(chain, Blocks.of(chain, self.block, self.parts, self.facts), self.names)
        folds = FoldWriter(scan, Results(self.names, self.types, self.facts))
        members = ordered(chain, body)
        for member in members:
            if member.kind is Kind.LOCAL:
                scan.add_local(member)
            elif member.kind is Kind.FOLD:
                folds.write(plans[id(member.step)])
        whole = scan.scan(members[-1].step.loc)
        made: Sequence[Stmt] = (*scan.inits, whole) if self.parts == 1 else join_parts(scan, whole, folds.joins)
        return _placed(self.plan, body, made, folds.after)


def _placed(plan: Plan, body: Sequence[Stmt], scan: Sequence[Stmt], after: Mapping[str, Sequence[Stmt]]) -> list[Stmt]:
    """Statements that need nothing of the chain come before the scan, the others after it, in their order."""
    members = plan.chain.members.values()
    ids = {id(m.step): m for m in members}
    late = {o for m in members if m.kind is not Kind.LOCAL for o in m.step.outs}
    last = max(k for k, s in enumerate(body) if id(s) in ids)
    first: list[Stmt] = []
    rest: list[Stmt] = []
    for stmt in body[: last + 1]:
        member = ids.get(id(stmt))
        if member is None or member.kind is Kind.VALUE:
            if late.isdisjoint(stmt.reads):
                first.append(stmt)
            else:
                late.update(stmt.outs)
                rest.append(stmt)
        elif member.kind is Kind.FOLD:
            rest += after.get(member.step.out, [])
    return [*first, *scan, *rest, *body[last + 1 :]]
