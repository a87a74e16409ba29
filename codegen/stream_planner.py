"""Planning a streaming kernel: what it makes goes to scratch or registers, operands along the lanes are staged, scans are loops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dlc.codegen.point import compute_type
from dlc.codegen.stream_groups import Grouping
from dlc.codegen.stream_idle import is_idle
from dlc.codegen.stream_plan import Group, Item, Local, Loop, Plan, Stage
from dlc.ir.einsum import Einsum, Rank, Scan, Step, einsum, flat
from dlc.ir.errors import OuterRank
from dlc.ir.expr import Access, rename_tensors
from dlc.ir.extent import int_expr, var
from dlc.ir.program import fresh_name
from dlc.ir.streamed import dimensions

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering


def make_plan(low: KernelLowering, lane_rank: str, lane: str) -> Plan:
    """The parts of `low`'s kernel, whose lanes run along `lane_rank`."""
    return _Planner(low, lane_rank, lane).run()


class _Planner:
    def __init__(self, low: KernelLowering, lane_rank: str, lane: str) -> None:
        self.low, self.lane_rank = low, lane_rank
        self.tasks = low.outer | low.units
        self.plan = Plan(lane, self.tasks)
        self.grouping = Grouping(low, self.plan)
        self.steps = self._with_copies(low.structure)
        self.dims = dimensions(self.steps)
        self.extents = {r.name: r.extent for s in flat(self.steps) for r in s.ranks}
        self.read = {name for s in flat(self.steps) for name in s.reads}

    def run(self) -> Plan:
        results = set(self.low.cascade.results)
        for name, dims in self.dims.items():
            if name not in results:
                kept = tuple(d not in self.tasks for d in dims)
                inner = tuple(self.extents[d] for d in dims if d not in self.tasks)
                self.plan.locals[name] = Local(self.low.types[name].dtype, inner, kept)
        items, before = self._level(self.steps, None)
        return replace(self.plan, items=(*before, *items))

    def _with_copies(self, steps: Sequence[Step]) -> tuple[Step, ...]:
        """A result that is more than what a point-wise step leaves is made here and copied out at the end."""
        tail: list[Einsum] = []
        names: dict[str, str] = {}
        makers = {o: s for s in steps if isinstance(s, Einsum) for o in s.outs}
        read = {r for s in flat(steps) for r in s.reads} | {r for s in steps if isinstance(s, Scan) for r in s.reads}
        dims = dimensions(steps)
        extents = {r.name: r.extent for s in flat(steps) for r in s.ranks}
        for name in self.low.cascade.results:
            maker = makers.get(name)
            if maker is not None and maker.reduce is None and name not in read:
                continue
            inside = names[name] = fresh_name(f"{name}_inside", self.low.types)
            self.low.types[inside] = self.low.types[name]
            ranks = tuple(Rank(d, extents[d]) for d in dims[name])
            index = tuple(int_expr(0) if d in self.low.units else var(d) for d in dims[name])
            of = self.low.types[name]
            tail.append(replace(einsum(name, ranks, Access(inside, index), of.dtype), order=of.order, pitch=of.pitch))
        return (*(_renamed(s, names) for s in steps), *tail)

    # --- a level: the kernel, or the body of a scan ---

    def _level(self, steps: Sequence[Step], scan: Scan | None) -> tuple[list[Item], list[Stage]]:
        """The items of `steps`, and the stages that belong before the scan whose body they are."""
        items: list[Item] = []
        hoisted: list[Stage] = []
        parts = self.grouping.groups(steps)
        self._keep_in_registers(parts, scan)
        for part in parts:
            if isinstance(part, Scan):
                loop, before = self._scan(part)
                items += [*before, loop]
                continue
            if part.kind != "rows":
                for stage in self._stages(part, scan):
                    (items if scan is None or stage.moves(scan.rank.name) else hoisted).append(stage)
            items.append(part)
        return items, hoisted

    def _keep_in_registers(self, parts: Sequence[Group | Scan], scan: Scan | None) -> None:
        """What a group makes, and no other part reads, needs no scratch."""
        for n, part in enumerate(parts):
            if isinstance(part, Scan):
                continue
            read = {r for other in (*parts[:n], *parts[n + 1 :]) for r in _reads(other)}
            read.update(scan.yields if scan is not None else ())
            for out in (o for s in part.steps for o in s.outs):
                if out in self.plan.locals and out not in read:
                    self.plan.locals[out] = replace(self.plan.locals[out], stored=False)

    # --- scans ---

    def _scan(self, scan: Scan) -> tuple[Loop, list[Stage]]:
        """The loop of `scan`, whose states lie where they begin and end, and the stages that belong before it."""
        copies: list[Einsum] = []
        makers = {o: s for s in scan.body if isinstance(s, Einsum) for o in s.outs}
        for carry, after, final in zip(scan.carries, scan.yields, scan.finals, strict=True):
            self._begins_alone(scan, carry.init)
            self.plan.aliases.update({carry.init: carry.name, final: carry.name})
            maker = makers[after]
            if self._replaces(scan, maker, carry.name, after):
                self.plan.aliases[after] = carry.name
            else:
                value = Access(after, self.low.own_index(maker))
                copies.append(einsum(carry.name, maker.ranks, value, self.low.types[after].dtype))
        items, before = self._level(scan.body, scan)
        return Loop(scan, tuple(items), tuple(copies), is_idle(scan)), before

    def _begins_alone(self, scan: Scan, init: str) -> None:
        """Refuse a scan whose state would overwrite what is needed elsewhere."""
        uses = [*(c.init for c in scan.carries), *self.low.cascade.results].count(init)
        if uses != 1 or init not in self.plan.locals or init in self.read:
            reason = f"'{init}', with which its scan begins, is not made for it alone"
            raise OuterRank(scan.loc, kernel=self.low.kernel.name, reason=reason)

    def _replaces(self, scan: Scan, maker: Einsum, state: str, after: str) -> bool:
        """Whether the next value may lie where its state does: the state is not read after it, nor elsewhere than at its point.

        Steps before it may run in the same loops, so that they see what other points left.
        """
        steps = list(flat(scan.body))
        later = steps[steps.index(maker) + 1 :]
        if scan.yields.count(after) != 1 or any(state in s.reads for s in later):
            return False
        own = self.low.own_index(maker)
        return maker.reduce is None and all(a.index == own for s in steps for a in s.accesses() if a.tensor == state)

    # --- operands along the lanes ---

    def _stages(self, group: Group, scan: Scan | None) -> Iterator[Stage]:
        for step in group.steps:
            bound = frozenset(step.where.variables) if step.where is not None else frozenset()
            for a in dict.fromkeys(a for e in step.scalars for a in self.plan.outside(e, step.where)):
                if self.lane_rank not in a.variables:
                    continue
                ranks = {r.name: r.extent for r in step.all_ranks if r.name not in self.tasks and r.name in a.variables}
                bounded = step.where is not None and not (bound.isdisjoint(ranks) and self._inside(a))
                name = fresh_name(f"{a.tensor}_turned", self.low.types | self.plan.locals)
                dtype = compute_type(self.low.types[a.tensor].dtype)
                self.plan.locals[name] = Local(dtype, tuple(ranks.values()), (True,) * len(ranks))
                self.plan.stages[a, step.where if bounded else None] = Access(name, (*map(var, ranks), var(self.plan.lane)))
                yield Stage(name, a, ranks, step, bounded)

    def _inside(self, a: Access) -> bool:
        """Whether `a` is within its tensor at every point of its ranks."""
        shape = self.low.types[a.tensor].shape
        return not a.children and all(self.low.em.facts.within(i, e) for i, e in zip(a.index, shape, strict=True))


def _reads(part: Group | Scan) -> Iterable[str]:
    if isinstance(part, Scan):
        return part.reads
    return (r for s in part.steps for r in s.reads)


def _renamed(step: Step, names: Mapping[str, str]) -> Step:
    if not names:
        return step
    if isinstance(step, Scan):
        return replace(
            step,
            body=tuple(_renamed(s, names) for s in step.body),
            finals=tuple(names.get(f, f) for f in step.finals),
            carries=tuple(replace(c, init=names.get(c.init, c.init)) for c in step.carries),
        )
    return replace(
        step,
        outs=tuple(names.get(o, o) for o in step.outs),
        exprs=tuple(rename_tensors(e, names) for e in step.exprs),
        where=rename_tensors(step.where, names) if step.where is not None else None,
    )


__all__ = ["make_plan"]
