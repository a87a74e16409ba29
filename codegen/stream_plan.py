"""The parts of a streaming kernel, before code is made of them: which steps are one nest, what lies in scratch, what is turned.

    stage   an operand that moves along the lanes, brought into scratch once (per step of a scan, if it moves with that)
    tile    a contraction on register tiles, with the point-wise steps that follow on the tile
    sweep   point-wise steps and folds over one inner rank in one loop, then point-wise steps over the lanes alone
    nest    any other point-wise steps and folds, lane by lane
    rows    point-wise steps whose results leave the kernel
    loop    a scan: its states lie in scratch; a next value that is computed point by point replaces its state in place
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeAlias

from dlc.codegen.point import compute_type
from dlc.codegen.stream_idle import is_idle
from dlc.ir.domain import conjuncts
from dlc.ir.dtype import DType
from dlc.ir.einsum import Einsum, Rank, Scan, Step, einsum
from dlc.ir.errors import OuterRank
from dlc.ir.expr import Access, Expr, accesses, rename_tensors, transform
from dlc.ir.extent import IntExpr, int_expr, var
from dlc.ir.program import fresh_name
from dlc.ir.streamed import dimensions, factors, flat

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering


@dataclass(frozen=True)
class Local:
    """A tensor in scratch (or, unless `stored`, in registers): the extents of its inner dimensions; the lanes are innermost.

    Attributes:
        kept: for each dimension of the tensor, whether it is an inner one.
    """

    dtype: DType
    inner: tuple[IntExpr, ...]
    kept: tuple[bool, ...]
    stored: bool = True


@dataclass(frozen=True)
class Stage:
    """`name[ranks..., lane] = access`; `bounded` when that is read only where `reader` exists."""

    name: str
    access: Access
    ranks: dict[str, IntExpr]
    reader: Einsum
    bounded: bool

    def moves(self, rank: str) -> bool:
        """Whether it is another one at another index of `rank`."""
        where = self.reader.where
        return rank in self.access.variables or (self.bounded and where is not None and rank in where.variables)


@dataclass(frozen=True)
class Group:
    """Steps that run together: kind 'tile', 'sweep', 'nest' or 'rows'."""

    kind: str
    steps: tuple[Einsum, ...]


@dataclass(frozen=True)
class Loop:
    """A scan inside a task.

    Attributes:
        copies: what moves next values into states that they could not replace in place.
        idle: whether a step in which every reduction is over nothing leaves all states as they are.
    """

    scan: Scan
    items: tuple[Item, ...]
    copies: tuple[Einsum, ...]
    idle: bool

    @property
    def einsums(self) -> Iterator[Einsum]:
        return flat(self.scan.body)


Item: TypeAlias = Stage | Group | Loop


@dataclass
class Plan:
    """A streaming kernel in parts.

    Attributes:
        lane: the name of the index along the lanes.
        tasks: ranks with one index in a task.
        locals: tensors that the kernel makes for itself.
        aliases: locals that lie in another one's buffer.
        stages: what a read of an operand along the lanes becomes, by the read and the domain that bounds it.
    """

    lane: str
    tasks: set[str]
    items: tuple[Item, ...] = ()
    locals: dict[str, Local] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    stages: dict[tuple[Access, Expr | None], Access] = field(default_factory=dict)

    def loops(self) -> Iterator[Loop]:
        return (i for i in self.items if isinstance(i, Loop))

    def local_index(self, tensor: str, index: Sequence[IntExpr]) -> tuple[IntExpr, ...]:
        """Where scratch has the element that `index` names."""
        kept = self.locals[tensor].kept
        return (*(i for i, k in zip(index, kept, strict=True) if k), var(self.lane))

    def with_stages(self, e: Expr, where: Expr | None) -> Expr:
        """`e` of a step over `where` with what is staged read in scratch; an index that is staged too gives way."""
        written = {stage: a for (a, _), stage in self.stages.items()}

        def visit(node: Expr) -> Expr | None:
            if not isinstance(node, Access):
                return None
            as_written = transform(node, lambda n: written.get(n) if isinstance(n, Access) else None)
            return self.staged(as_written, where) if isinstance(as_written, Access) else None

        return transform(e, visit)

    def staged(self, a: Access, where: Expr | None) -> Access | None:
        """Where scratch has what `a` reads in a step over `where`."""
        return self.stages.get((a, where)) or self.stages.get((a, None))

    def outside(self, e: Expr, where: Expr | None) -> list[Access]:
        """The reads of `e`, in a step over `where`, that go to memory the kernel did not make."""
        return [a for a in self._reads(e) if self.staged(a, where) is None]

    def _reads(self, e: Expr) -> Iterator[Access]:
        """The reads of memory in `e`, without those in their indices and defaults."""
        if isinstance(e, Access) and e.tensor not in self.locals:
            yield e
        else:
            for child in e.children:
                yield from self._reads(child)

    def work(self) -> IntExpr:
        """Operations of all steps per lane: two a point."""
        total = int_expr(0)
        for item in self.items:
            if isinstance(item, Group):
                total = total + self._points(item.steps)
            elif isinstance(item, Loop):
                total = total + self._points(item.einsums) * item.scan.rank.extent
        return total * 2

    def _points(self, steps: Iterable[Einsum]) -> IntExpr:
        total = int_expr(0)
        for step in steps:
            product = int_expr(1)
            for r in step.all_ranks:
                product = product * (1 if r.name in self.tasks else r.extent)
            total = total + product
        return total


def make_plan(low: KernelLowering, lane_rank: str, lane: str) -> Plan:
    """The parts of `low`'s kernel, whose lanes run along `lane_rank`."""
    return _Planner(low, lane_rank, lane).run()


class _Planner:
    def __init__(self, low: KernelLowering, lane_rank: str, lane: str) -> None:
        self.low, self.lane_rank = low, lane_rank
        self.tasks = low.outer | low.units
        self.plan = Plan(lane, self.tasks)
        self.steps = self._with_copies(low.structure)
        self.dims = dimensions(self.steps)
        self.extents = {r.name: r.extent for s in flat(self.steps) for r in s.ranks}
        self.readers: dict[str, list[Einsum]] = {}
        for step in flat(self.steps):
            for name in step.reads:
                self.readers.setdefault(name, []).append(step)

    def run(self) -> Plan:
        results = set(self.low.cascade.results)
        for name, dims in self.dims.items():
            if name not in results:
                kept = tuple(d not in self.tasks for d in dims)
                inner = tuple(self.extents[d] for d in dims if d not in self.tasks)
                self.plan.locals[name] = Local(self.low.types[name].dtype, inner, kept)
        items, before = self._level(self.steps, None)
        self.plan.items = (*before, *items)
        return self.plan

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
        for part in self._groups(steps, scan):
            if isinstance(part, Scan):
                loop, before = self._scan(part)
                items += [*before, loop]
                continue
            if part.kind != "rows":
                for stage in self._stages(part, scan):
                    (items if scan is None or stage.moves(scan.rank.name) else hoisted).append(stage)
            items.append(part)
        return items, hoisted

    def _groups(self, steps: Sequence[Step], scan: Scan | None) -> list[Group | Scan]:
        found: list[Group | Scan] = []
        for step in steps:
            last = found[-1] if found else None
            if isinstance(step, Scan):
                found.append(step)
            elif isinstance(last, Group) and (kind := self._joined(last, step)) is not None:
                found[-1] = Group(kind, (*last.steps, step))
            else:
                found.append(Group(self._kind(step), (step,)))
        for n, part in enumerate(found):
            if isinstance(part, Group):
                later = {r for other in (*found[:n], *found[n + 1 :]) for r in _reads(other)}
                self._keep_in_registers(part, later | set(scan.yields if scan is not None else ()))
        return found

    def _kind(self, step: Einsum) -> str:
        if any(o not in self.plan.locals for o in step.outs):
            return "rows"
        inner = any(r.name not in self.tasks for r in step.ranks)
        return "tile" if factors(step) is not None and inner else "sweep" if self._sweeps((step,)) else "nest"

    def _joined(self, group: Group, step: Einsum) -> str | None:
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

    def _within(self, group: Group, step: Einsum) -> bool:
        """Whether the loops of `group` go wherever `step` exists, and it may be computed wherever they go."""
        own, wanted = self._bounds(group.steps[0]), self._bounds(step)
        inside = all(a.tensor in self.plan.locals for e in step.exprs for a in accesses(e))
        return own == wanted or (group.kind == "tile" and own <= wanted and inside)

    def _bounds(self, step: Einsum) -> frozenset[Expr]:
        """What may end the loops over the free inner ranks of `step`."""
        inner = {r.name for r in step.ranks if r.name not in self.tasks}
        return frozenset(c for c in conjuncts(step.where) if not c.variables.isdisjoint(inner))

    def _sweeps(self, steps: Sequence[Einsum]) -> bool:
        """Whether the steps are one loop over one inner rank: what is folded is not needed before the end of it."""
        folded: dict[str, Einsum] = {}
        swept: dict[str, Einsum] = {}
        ranks: set[str] = set()
        for step in steps:
            inner = tuple(r.name for r in step.ranks if r.name not in self.tasks)
            after = any(r in folded for r in step.reads)
            if after or (not inner and step.reduce is None and not folded.keys() >= set(step.reads)):
                if inner or step.reduce is not None or not folded:
                    return False
                folded |= dict.fromkeys(step.outs, step)
                continue
            over = tuple(r.name for r in step.reduced)
            if len(inner) + len(over) != 1 or step.where != steps[0].where:
                return False
            ranks |= {*inner, *over}
            (folded if over else swept).update(dict.fromkeys(step.outs, step))
        own = all(
            a.index == self.low.own_index(swept[a.tensor]) for s in steps for a in s.accesses() if a.tensor in swept
        )
        return own and len(ranks) == 1 and bool(folded)

    def _keep_in_registers(self, group: Group, read: set[str]) -> None:
        for step in group.steps:
            for out in step.outs:
                if out in self.plan.locals and out not in read:
                    self.plan.locals[out] = replace(self.plan.locals[out], stored=False)

    # --- scans ---

    def _scan(self, scan: Scan) -> tuple[Loop, list[Stage]]:
        copies: list[Einsum] = []
        makers = {o: s for s in scan.body if isinstance(s, Einsum) for o in s.outs}
        used = [*(c.init for c in scan.carries), *self.low.cascade.results]
        for carry, after, final in zip(scan.carries, scan.yields, scan.finals, strict=True):
            self.plan.aliases[final] = carry.name
            maker = makers[after]
            if used.count(carry.init) == 1 and carry.init in self.plan.locals and not self.readers.get(carry.init):
                self.plan.aliases[carry.init] = carry.name
            else:
                reason = f"'{carry.init}', with which its scan begins, is not made for it alone"
                raise OuterRank(scan.loc, kernel=self.low.kernel.name, reason=reason)
            if self._replaces(scan, maker, carry.name, after):
                self.plan.aliases[after] = carry.name
                continue
            index = self.low.own_index(maker)
            copies.append(einsum(carry.name, maker.ranks, Access(after, index), self.low.types[after].dtype))
        items, before = self._level(scan.body, scan)
        return Loop(scan, tuple(items), tuple(copies), is_idle(scan)), before

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


__all__ = ["Group", "Item", "Local", "Loop", "Plan", "Stage", "make_plan"]
