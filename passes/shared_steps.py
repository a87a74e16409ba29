"""Steps of a scan's body that several sums need: written once, whatever each of them names its ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dlc.ir.domain import conjuncts
from dlc.ir.einsum import Rank, einsum
from dlc.ir.expr import Access, Apply, Expr, accesses
from dlc.ir.extent import var, variables
from dlc.passes.reduction_chains import Kind, Member
from dlc.passes.running_scan import ScanBody


@dataclass
class SharedSteps:
    """Point-wise steps of the body by their expression and domain, with ranks numbered in the order of their use."""

    scan: ScanBody
    known: dict[tuple[Expr, Expr | None], str] = field(default_factory=dict)

    def read(self, e: Expr, member: Member, hint: str) -> Access:
        """A read of the step that computes `e` on the domain of `member` in the block.

        Args:
            hint: name of a new step, unless it has the operator of a mixed member, whose name it then gets.
        """
        scan, inner = self.scan, self.scan.blocks.inner
        where = scan.where(member.step, member.rank)
        extents = {**member.step.extents, inner.name: inner.extent}
        order = [n for n in _rank_names((e, *conjuncts(where))) if n in extents]
        env = {n: var(f"@{k}") for k, n in enumerate(order)}
        key = (e.substitute(env), None if where is None else where.substitute(env))
        if key not in self.known:
            name = scan.names.fresh(self._base(e) or hint)
            ranks = tuple(Rank(n, extents[n]) for n in order)
            scan.steps.append(einsum(name, ranks, e, member.step.dtype, where=where, loc=member.step.loc))
            self.known[key] = name
        return Access(self.known[key], tuple(var(n) for n in order))

    def _base(self, e: Expr) -> str | None:
        """The name of the first mixed member with the operator of `e` whose name in the block is still free."""
        for m in self.scan.chain.of(Kind.MIXED):
            name, whole = f"{m.step.out}_block", m.step.expr
            if (
                isinstance(whole, Apply)
                and isinstance(e, Apply)
                and whole.op == e.op
                and name not in self.scan.names.taken
            ):
                return name
        return None


def _rank_names(exprs: Sequence[Expr]) -> list[str]:
    """Ranks in the order of their first use: reads first, by position, so that it does not depend on names."""
    found: dict[str, None] = {}
    for e in exprs:
        for a in accesses(e):
            for i in a.index:
                found.update(dict.fromkeys(sorted(variables(i))))
    for e in exprs:
        found.update(dict.fromkeys(sorted(e.variables)))
    return list(found)
