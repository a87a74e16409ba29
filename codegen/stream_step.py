"""A step of a streaming kernel as the emitter wants it: over what exists of it in a block, with its tensors where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dlc.codegen.nest import PointStep
from dlc.codegen.stream_domain import StepDomain, is_end, step_domain
from dlc.codegen.stream_frame import Block, Frame
from dlc.ir.einsum import Einsum, Rank, Reduce
from dlc.ir.expr import Access, Expr, transform
from dlc.ir.extent import IntExpr, substitute, variables

Extents = Mapping[str, IntExpr]


@dataclass(frozen=True)
class BlockStep:
    """A step in a block.

    Attributes:
        ends: where its free inner ranks end, by name.
    """

    point: PointStep
    ends: dict[str, IntExpr]

    @property
    def loops(self) -> dict[str, IntExpr]:
        """All inner ranks, free ones first, and where they end."""
        return {**self.ends, **self.point.reduced}


@dataclass(frozen=True)
class Steps:
    """The steps of the kernel of `frame`, each made to fit a block."""

    frame: Frame

    def fit(self, step: Einsum, block: Block) -> BlockStep:
        """The step over what exists of it in the block."""
        domain, extents = self.domain(step, block), self.extents(step, block)
        inner = self._without_lane(extents)
        ends, where = dict(inner), None
        if block.edge:
            ends, where = self.ends(domain, extents, inner, block), self.domain(step).mask(extents, inner)
        guarded = not self._readable(step, domain, extents)
        if step.reduce is None and not guarded:
            where = None  # what does not exist may be computed, since nothing that exists reads it
        point = PointStep(
            step.outs,
            tuple(self._in_lanes(e, step.where) for e in step.exprs),
            step.dtypes,
            _ended(step.reduce, ends),
            self._in_lanes(where, step.where) if where is not None else None,
            self._place(step),
            tuple(o in self.frame.low.storage for o in step.outs),
            guarded=guarded,
        )
        return BlockStep(point, {r.name: ends[r.name] for r in step.ranks if r.name in ends})

    def _in_lanes(self, e: Expr, where: Expr | None) -> Expr:
        """`e` of a step over `where`, with the kernel's own tensors read in scratch, and the lane rank as start + lane."""
        plan = self.frame.plan

        def visit(node: Expr) -> Expr | None:
            if isinstance(node, Access) and node.tensor in plan.locals:
                return Access(node.tensor, plan.local_index(node.tensor, node.index))
            return None

        return plan.with_stages(transform(e, visit), where).substitute({self.frame.lane_rank: self.frame.position})

    def _place(self, step: Einsum) -> tuple[IntExpr, ...]:
        """The index of what it writes: in scratch, or in what the kernel leaves."""
        index = self.frame.low.own_index(step)
        if step.out in self.frame.plan.locals:
            return self.frame.plan.local_index(step.out, index)
        return tuple(substitute(i, {self.frame.lane_rank: self.frame.position}) for i in index)

    # --- the points ---

    def domain(self, step: Einsum, block: Block | None = None) -> StepDomain:
        """The domain of `step`; in a block, its lanes are counted from the first."""
        at = self.frame.position + (block.first if block is not None else 0)
        return step_domain(step.where, {self.frame.lane_rank: at})

    def extents(self, step: Einsum, block: Block) -> dict[str, IntExpr]:
        """The ranks that move inside a block, with their extents."""
        inner = {r.name: r.extent for r in step.all_ranks if r.name not in self.frame.plan.tasks}
        return {**inner, self.frame.lane: block.points}

    def ends(self, domain: StepDomain, extents: Extents, loops: Extents, block: Block) -> dict[str, IntExpr]:
        """Where each of `loops` ends in the block."""
        found = domain.bounds(extents, loops)
        return {n: e if e == loops[n] else self.frame.b.named(substitute(e, block.base)) for n, e in found.items()}

    def across(self, step: Einsum) -> bool:
        """Whether the domain ends at another place in each lane."""
        return any(self.frame.lane in variables(e) for e in self.domain(step).inequalities)

    def _without_lane(self, extents: Extents) -> dict[str, IntExpr]:
        return {n: e for n, e in extents.items() if n != self.frame.lane}

    # --- what may be read ---

    def _readable(self, step: Einsum, domain: StepDomain, extents: Extents) -> bool:
        """Whether everything it reads of what the kernel did not make is there wherever the loops go."""
        reads = (a for e in step.exprs for a in self.frame.plan.outside(e, step.where))
        return all(self.safe(a, domain, extents) for a in reads)

    def safe(self, a: Access, domain: StepDomain, extents: Extents) -> bool:
        """Whether `a` is in bounds wherever the loops go, masks aside."""
        if a.default is not None:
            return True
        if a.children:
            return False
        loops = self._without_lane(extents)
        if self.frame.lane_rank not in a.variables and self._some_lane(domain, extents, loops):
            return True
        ends = [e for e in domain.inequalities if is_end(e, extents, loops)]
        shape = self.frame.low.types[a.tensor].shape
        return all(self._within(i, extent, ends) for i, extent in zip(a.index, shape, strict=True))

    def _within(self, index: IntExpr, extent: IntExpr, ends: list[IntExpr]) -> bool:
        """Whether `index` is, by the ranks' bounds or since one of `ends` says so."""
        facts = self.frame.written
        if facts.within(index, extent):
            return True
        rest = [(extent - 1 - index - e).const for e in ends]
        return facts.nonneg(index) and any(n is not None and n >= 0 for n in rest)

    def _some_lane(self, domain: StepDomain, extents: Extents, loops: Extents) -> bool:
        """Whether each point that the loops visit exists in one lane at least."""
        lane = self.frame.lane
        moving = sum(lane in variables(e) for e in domain.inequalities)
        relaxed = domain.over({lane: extents[lane]})
        known = not domain.opaque and len(relaxed.inequalities) == len(domain.inequalities)
        return known and moving <= 1 and all(is_end(e, extents, loops) for e in relaxed.inequalities)


def _ended(reduce: Reduce | None, ends: Extents) -> Reduce | None:
    """`reduce` up to `ends`."""
    if reduce is None:
        return None
    return replace(reduce, ranks=tuple(Rank(r.name, ends.get(r.name, r.extent)) for r in reduce.ranks))


__all__ = ["BlockStep", "Extents", "Steps"]
