"""Kernels that stream: a block of points in the lanes, several contractions, and everything between them in the core's cache.

A task holds a block of the lane rank (`dlc.ir.streamed`), a few registers wide. What the kernel makes lies in scratch with
the lanes innermost; so a contraction is a register tile of rows by lanes whose other operand is read as scalars where it lies,
and a reduction is lane by lane. Operands that move along the lanes are brought into that order once (`Q[p, e]` becomes
`[e][p]`, in squares), results are turned back the same way when they leave. A scan is a loop; where its body has a `where`,
there are two bodies: one for blocks that are inside as a whole, one with bounds and masks (`stream_domain`).

Source: lanes along the queries after the recipe in KERNELS.md (attention); Dao, FlashAttention-2 (arXiv 2307.08691).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dlc.codegen.nest import PointStep, VectorRank, accumulate, compute, emit_nest, for_vectors, keep
from dlc.codegen.point import Emitter, Slot, Space, Storage, compute_type
from dlc.codegen.stream_domain import StepDomain, is_end, step_domain
from dlc.codegen.stream_plan import Group, Loop, Stage, make_plan
from dlc.codegen.tile import IndexCond
from dlc.costmodel.tiles import stream_vectors
from dlc.ir.einsum import Einsum, Rank, TensorType
from dlc.ir.expr import Access, Apply, Cast, Expr, accesses, transform
from dlc.ir.extent import IntExpr, int_expr, minimum, split_linear, substitute, var, variables
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import fresh_name

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered


def lower_streamed(low: KernelLowering, lane: str) -> Lowered:
    """Lower the kernel with blocks of `lane` in the lanes."""
    return _Streamed(low, lane).run()


@dataclass(frozen=True)
class _Block:
    """The block a task is at.

    Attributes:
        base: index of every rank that has one.
        vectors: registers side by side.
        count: how many of the lanes exist; None when all do.
        edge: whether conditions are looked at.
        first: the lane it begins with: at an edge that runs across the lanes the registers are done one by one.
    """

    base: Mapping[str, IntExpr]
    vectors: int
    count: IntExpr | None = None
    edge: bool = True
    first: IntExpr = int_expr(0)  # noqa: RUF009 (a frozen value)

    def at(self, name: str, index: IntExpr) -> _Block:
        return replace(self, base={**self.base, name: index})


class _Streamed:
    def __init__(self, low: KernelLowering, lane: str) -> None:
        self.low, self.b, self.target, self.lane_rank = low, low.builder, low.target, lane
        self.lanes = low.target.lanes
        ranks = {r.name: r.extent for s in low.steps for r in s.all_ranks}
        self.extent = ranks[lane]
        self.lane, self.start = fresh_name("lane", ranks), fresh_name("start", ranks)
        self.plan = make_plan(low, lane, self.lane)
        scans = {loop.scan.rank.name: loop.scan.rank.extent for loop in self.plan.loops()}
        self.points = Facts({**low.em.facts.ranks, **scans}, low.em.facts.symbols)  # of the steps as they are written
        size = self.extent.const
        most = stream_vectors(self.target.vector_registers)
        self.vectors = most if size is None else min(most, -(-size // self.lanes))
        self.width = self.vectors * self.lanes
        self.em = low.em
        facts = {n: e for n, e in self.em.facts.ranks.items() if n != lane}
        facts |= {self.lane: int_expr(self.width), self.start: self.extent}
        facts |= scans
        self.em.facts = Facts(facts, self.em.facts.symbols)
        self.scan: str | None = None  # the rank of the scan that is being made
        self._place_locals()

    def _place_locals(self) -> None:
        for name, local in self.plan.locals.items():
            self.em.dtypes[name] = local.dtype
            if not local.stored:
                continue
            strides, size = [], int_expr(self.width)
            for extent in reversed(local.inner):
                strides.append(size)
                size = size * extent
            buffer = self.plan.aliases.get(name, name)
            type_ = TensorType(local.dtype, (*local.inner, int_expr(self.width)))
            self.low.types[name] = type_
            self.low.storage[name] = Storage(buffer, type_, (*reversed(strides), int_expr(1)))
            if buffer == name:
                self.low.local(name, local.dtype, size)
                self.b.buffers = {**self.b.buffers, name: local.dtype}

    # --- tasks ---

    def run(self) -> Lowered:
        others = {n: e for n, e in self.low.task_ranks().items() if n != self.lane_rank}
        blocks = (self.extent + (self.width - 1)) // self.width
        base = self.low.task_base({**others, "block": blocks})
        start = self._named(base.pop("block") * self.width)
        size = self.extent.const
        if size is not None and size % self.width == 0:
            self._block(_Block({**base, self.start: start}, self.vectors))
        elif size is not None and size < self.width:
            self._block(_Block({**base, self.start: start}, self.vectors, int_expr(size)))
        else:
            with self.b.branch(IndexCond(start + self.width, "le", self.extent)) as branch:
                with branch.then():
                    self._block(_Block({**base, self.start: start}, self.vectors))
                with branch.orelse():
                    self._last_block(base, start)
        total = blocks
        for e in others.values():
            total = total * e
        return self.low.finish(total, self.plan.work() * self.width)

    def _last_block(self, base: Mapping[str, IntExpr], start: IntExpr) -> None:
        """What is left of the lane rank, a register at a time."""
        with self.b.loop(self.lane_rank, start, self.extent, self.lanes) as loop:
            count = self._named(minimum(self.extent - loop.index, self.lanes))
            self._block(_Block({**base, self.start: loop.index}, 1, count))

    def _named(self, e: IntExpr) -> IntExpr:
        """`e` computed once, under a name of its own."""
        return e if e.const is not None or e.is_var else self.b.index_of(self.b.from_index(e))

    def _block(self, block: _Block) -> None:
        self._items(self.plan.items, block)

    def _items(self, items: Sequence[Stage | Group | Loop], block: _Block) -> None:
        for item in items:
            match item:
                case Stage():
                    self._stage(item, block)
                case Loop():
                    self._loop(item, block)
                case Group(kind="tile"):
                    self._tile_group(item.steps, block)
                case Group(kind="rows"):
                    self._leave(item.steps, block)
                case Group(kind="sweep"):
                    self._sweep(item.steps, block)
                case Group():
                    self._nest(item.steps, block)

    # --- scans ---

    def _loop(self, item: Loop, block: _Block) -> None:
        self.scan = item.scan.rank.name
        with self.b.loop(self.scan, 0, item.scan.rank.extent) as loop:
            self._body(item, block.at(self.scan, loop.index))
        self.scan = None

    def _body(self, item: Loop, block: _Block) -> None:
        whole, _ = self._conditions(item, block)
        if whole is None:
            self._edges(item, block)
            return
        if not whole:
            self._step(item, replace(block, edge=False))
            return
        with self.b.branch(whole) as branch:
            with branch.then():
                self._step(item, replace(block, edge=False))
            with branch.orelse():
                self._edges(item, block)

    def _edges(self, item: Loop, block: _Block) -> None:
        """A step that is not inside as a whole."""
        if block.vectors > 1 and any(self._across(s) for s in item.einsums):
            size = int_expr(block.vectors * self.lanes) if block.count is None else block.count
            with self.b.loop(self.lane, 0, size, self.lanes) as loop:
                left = None if block.count is None else self._named(minimum(block.count - loop.index, self.lanes))
                self._edge(item, replace(block, vectors=1, first=loop.index, count=left))
        else:
            self._edge(item, block)

    def _edge(self, item: Loop, block: _Block) -> None:
        some = self._conditions(item, block)[1]
        if not some:
            self._step(item, block)
            return
        with self.b.branch(some) as branch, branch.then():
            self._step(item, block)

    def _across(self, step: Einsum) -> bool:
        """Whether the domain ends at another place in each lane."""
        return any(self.lane in variables(e) for e in self._domain(step).inequalities)

    def _step(self, item: Loop, block: _Block) -> None:
        self._items(item.items, block)
        for copy in item.copies:
            self._nest((copy,), replace(block, edge=False))

    def _conditions(
        self, item: Loop, block: _Block
    ) -> tuple[tuple[IndexCond, ...] | None, tuple[IndexCond, ...]]:
        """(conditions that a block is inside as a whole, None if there are none such; that something of it is inside)."""
        whole: dict[IntExpr, None] | None = {}
        some: set[tuple[IntExpr, ...]] = set()
        for step in item.einsums:
            domain, extents = self._domain(step, block), self._extents(step, block)
            least = domain.least(extents)
            if least is None:
                whole = None
            elif whole is not None:
                whole.update(dict.fromkeys(least))
            if step.reduce is not None and step.where is not None:
                some.add(tuple(dict.fromkeys(domain.greatest(extents))))
        inside = some.pop() if item.idle and len(some) == 1 else ()
        conditions = None if whole is None else self._nonnegative(whole, block)
        return conditions, self._nonnegative(inside, block)

    def _nonnegative(self, exprs: Sequence[IntExpr] | dict[IntExpr, None], block: _Block) -> tuple[IndexCond, ...]:
        facts = self.em.facts
        return tuple(
            IndexCond(self._named(substitute(e, block.base)), "ge", int_expr(0)) for e in exprs if not facts.nonneg(e)
        )

    # --- steps as the emitter wants them ---

    def _in_lanes(self, e: Expr, where: Expr | None) -> Expr:
        """`e` of a step over `where`, with the kernel's own tensors read in scratch, and the lane rank as start + lane."""

        def visit(node: Expr) -> Expr | None:
            if isinstance(node, Access) and node.tensor in self.plan.locals:
                return Access(node.tensor, self.plan.local_index(node.tensor, node.index))
            return None

        return self.plan.with_stages(transform(e, visit), where).substitute({self.lane_rank: self._position})

    @property
    def _position(self) -> IntExpr:
        return var(self.start) + var(self.lane)

    def _domain(self, step: Einsum, block: _Block | None = None) -> StepDomain:
        """The domain of `step`; in a block, its lanes are counted from the first."""
        at = self._position + (block.first if block is not None else 0)
        return step_domain(step.where, {self.lane_rank: at})

    def _extents(self, step: Einsum, block: _Block) -> dict[str, IntExpr]:
        """The ranks that move inside a block, with their extents."""
        inner = {r.name: r.extent for r in step.all_ranks if r.name not in self.low.outer | self.low.units}
        return {**inner, self.lane: int_expr(block.vectors * self.lanes) if block.count is None else block.count}

    def _point_step(self, step: Einsum, block: _Block) -> tuple[PointStep, dict[str, IntExpr]]:
        """The step over what exists of it in the block, and the ends of its free inner ranks."""
        domain, extents = self._domain(step, block), self._extents(step, block)
        inner = {n: e for n, e in extents.items() if n != self.lane}
        ends, where = dict(inner), None
        if block.edge:
            ends = self._ends(domain, extents, inner, block)
            where = self._domain(step).mask(extents, inner)
        reads = [a for e in step.exprs for a in self.plan.outside(e, step.where)]
        guarded = not all(self._safe(a, domain, extents) for a in reads)
        if step.reduce is None and not guarded:
            where = None  # what does not exist may be computed, since nothing that exists reads it
        where = self._in_lanes(where, step.where) if where is not None else None
        reduce = step.reduce
        if reduce is not None:
            reduce = replace(reduce, ranks=tuple(Rank(r.name, ends.get(r.name, r.extent)) for r in reduce.ranks))
        local = [o in self.plan.locals for o in step.outs]
        index = self.low.own_index(step)
        here = self.plan.local_index(step.out, index) if local[0] else tuple(
            substitute(i, {self.lane_rank: self._position}) for i in index
        )
        exprs = tuple(self._in_lanes(e, step.where) for e in step.exprs)
        point = PointStep(
            step.outs, exprs, step.dtypes, reduce, where, here, tuple(o in self.low.storage for o in step.outs), guarded=guarded
        )
        free = {r.name for r in step.ranks}
        return point, {n: e for n, e in ends.items() if n in free}

    def _ends(
        self, domain: StepDomain, extents: Mapping[str, IntExpr], loops: Mapping[str, IntExpr], block: _Block
    ) -> dict[str, IntExpr]:
        found = domain.bounds(extents, loops)
        return {n: e if e == loops[n] else self._named(substitute(e, block.base)) for n, e in found.items()}

    def _safe(self, a: Access, domain: StepDomain, extents: Mapping[str, IntExpr]) -> bool:
        """Whether `a` is in bounds wherever the loops go, masks aside."""
        if a.default is not None:
            return True
        if a.children:
            return False
        loops = {n: e for n, e in extents.items() if n != self.lane}
        if self.lane_rank not in a.variables and self._some_lane(domain, extents, loops):
            return True
        ends = [e for e in domain.inequalities if is_end(e, extents, loops)]
        facts = self.points
        for i, extent in zip(a.index, self.low.types[a.tensor].shape, strict=True):
            if facts.within(i, extent):
                continue
            rest = [(extent - 1 - i - e).const for e in ends]
            if not (facts.nonneg(i) and any(n is not None and n >= 0 for n in rest)):
                return False
        return True

    def _some_lane(self, domain: StepDomain, extents: Mapping[str, IntExpr], loops: Mapping[str, IntExpr]) -> bool:
        """Whether each point that the loops visit exists in one lane at least."""
        moving = sum(self.lane in variables(e) for e in domain.inequalities)
        relaxed = domain.over({self.lane: extents[self.lane]})
        known = not domain.opaque and len(relaxed.inequalities) == len(domain.inequalities)
        return known and moving <= 1 and all(is_end(e, extents, loops) for e in relaxed.inequalities)

    # --- contractions ---

    def _tile_group(self, steps: Sequence[Einsum], block: _Block) -> None:
        points = [self._point_step(s, block) for s in steps]
        first, ends = points[0]
        row = max(ends, key=lambda n: _size(ends[n])) if ends else None
        with_loops = [n for n in ends if n != row]

        def nest(names: Sequence[str], here: _Block) -> None:
            if names:
                with self.b.loop(names[0], 0, ends[names[0]]) as loop:
                    nest(names[1:], here.at(names[0], loop.index))
            elif row is None:
                self._tile([p for p, _ in points], here, None, 1)
            else:
                self._rows([p for p, _ in points], here, row, ends[row])

        nest(with_loops, block)

    def _rows(self, steps: Sequence[PointStep], block: _Block, row: str, end: IntExpr) -> None:
        """Full tiles of rows, then the rest in halves down to one row."""
        rows = self._tile_rows(block.vectors, self.em.facts.ranks[row])
        whole = self._named(end // rows * rows)
        with self.b.loop(row, 0, whole, rows) as loop:
            self._ahead(steps[0], block, row, loop.index, rows)
            self._tile(steps, block.at(row, loop.index), row, rows)
        if end.const is not None and end.const % rows == 0:
            return
        position = whole
        while rows > 1:
            rows = (rows + 1) // 2
            with self.b.branch(IndexCond(end - position, "ge", int_expr(rows))) as branch, branch.then():
                self._tile(steps, block.at(row, position), row, rows)
            position = self._named(position + minimum((end - position) // rows, 1) * rows)

    def _ahead(self, step: PointStep, block: _Block, row: str, index: IntExpr, rows: int) -> None:
        """Fetch what the next step of the scan reads as scalars, a share of it with each tile.

        It lies further apart than the processor looks ahead by itself; without this a task waits for memory in each block.
        """
        if block.edge or self.scan is None:
            return
        for a in {a for e in step.exprs for a in accesses(e)}:
            if self.lane in a.variables or self.scan not in a.variables or a.tensor in self.plan.locals:
                continue
            flat = self.em.flat(self.low.storage[a.tensor], a.index)
            inner = {**step.reduced, row: self.em.facts.ranks[row]}
            along = next((n for n in inner if (p := split_linear(flat, n)) is not None and p[0].const == 1), None)
            across = [n for n in inner if n in a.variables and n != along]
            if along is None or len(across) != 1:
                continue
            self._fetch(a.tensor, flat, block, across[0], along, self._share(inner[across[0]], inner[row], across[0] == row, index, rows))

    def _share(
        self, extent: IntExpr, row_extent: IntExpr, own: bool, index: IntExpr, rows: int
    ) -> tuple[IntExpr, IntExpr]:
        """The part of `extent` that goes with the tile at `index`."""
        if own:
            return index, minimum(index + rows, extent)
        tiles = (row_extent + (rows - 1)) // rows
        each = (extent + tiles - 1) // tiles
        first = index // rows * each
        return self._named(first), self._named(minimum(first + each, extent))

    def _fetch(
        self, tensor: str, flat: IntExpr, block: _Block, across: str, along: str, share: tuple[IntExpr, IntExpr]
    ) -> None:
        line = self.target.line_bytes // self.low.types[tensor].dtype.bytes
        assert self.scan is not None
        following = {**block.base, self.scan: block.base[self.scan] + 1}
        with self.b.loop(across, *share) as outer, self.b.loop(along, 0, self.em.facts.ranks[along], line) as inner:
            at = {**following, across: outer.index, along: inner.index}
            self.b.prefetch(self.low.storage[tensor].buffer, substitute(flat, at), locality=2)

    def _tile_rows(self, vectors: int, extent: IntExpr) -> int:
        """Rows of a register tile: as many as registers allow, a divisor of the extent if one is at least half of that."""
        registers = self.target.vector_registers
        embedded = registers >= 32  # AVX-512 multiplies by a scalar in memory: no register for the broadcast
        # more than 8 rows have more addresses than there are registers for
        most = min(8, (registers - vectors - (0 if embedded else 1)) // vectors)
        size = extent.const
        if size is None:
            return 1 << (most.bit_length() - 1)  # widths are multiples of powers of two more often than not
        if size < most:
            return max(size, 1)
        for rows in range(most, most // 2, -1):
            if size % rows == 0:
                return rows
        return -(-size // -(-size // most))

    def _tile(self, steps: Sequence[PointStep], block: _Block, row: str | None, rows: int) -> None:
        first = steps[0]
        assert first.reduce is not None
        em = self.em.scoped()
        slots = (Slot(row or "@none", rows, 1), Slot(self.lane, block.vectors, self.lanes))
        space = Space({**block.base, self.lane: block.first}, self.lane, self.lanes, slots)
        kind = compute_type(first.reduce.accumulator or first.dtypes[0])
        acc = self._reduce(em, first, space, first.reduced, em.b.const(space.tile(kind), 0.0))
        keep(em, first, [acc], space)
        for later in steps[1:]:
            keep(em, later, [em.value(e, space) for e in later.exprs], space)

    def _reduce(self, em: Emitter, step: PointStep, space: Space, loops: Mapping[str, IntExpr], acc: str) -> str:
        assert step.reduce is not None
        if not loops:
            kind = compute_type(step.reduce.accumulator or step.dtypes[0])
            return accumulate(em, step, MONOIDS["sum"], (kind,), space, (acc,))[0]
        name = next(iter(loops))
        rest = {n: e for n, e in loops.items() if n != name}
        with self.b.loop(name, 0, loops[name], carries=(acc,), unroll=1) as loop:
            loop.yields(self._reduce(em.scoped(), step, space.at(name, loop.index), rest, loop.carries[0]))
        return loop.results[0]

    # --- nests ---

    def _nest(self, steps: Sequence[Einsum], block: _Block) -> None:
        self._point_nest([self._point_step(s, block) for s in steps], block)

    def _point_nest(self, points: Sequence[tuple[PointStep, dict[str, IntExpr]]], block: _Block) -> None:
        width = int_expr(block.vectors * self.lanes)
        stays = all(o in self.plan.locals for s, _ in points for o in s.outs)
        width = width if stays or block.count is None else block.count
        loops, bounds = {**points[0][1], self.lane: width}, {self.lane: (block.first, block.first + width)}
        emit_nest(
            self.em.scoped(), [p for p, _ in points], loops, VectorRank(self.lane), dict(block.base), self.target, bounds
        )

    def _sweep(self, steps: Sequence[Einsum], block: _Block) -> None:
        """One loop over an inner rank: what is computed at each of its points, and folds of it; then what needs the folds."""
        found = [self._point_step(s, block) for s in steps]
        points = [p for p, _ in found]
        space = Space(
            {**block.base, self.lane: block.first}, self.lane, self.lanes, (Slot(self.lane, block.vectors, self.lanes),)
        )
        em = self.em.scoped()
        rank, end = _swept(found)
        loops = [{r.name for r in s.reduced} | self.low.moving(s) for s in steps]  # a block of one index has no rank of it
        inside = [p for p, names in zip(points, loops, strict=True) if rank in names]
        for point in inside:
            self._settle(em, point, rank, space)
        folds = [p for p in inside if p.reduce is not None]
        firsts = [t for p in folds for t in self._identity(p, space)]
        with self.b.loop(rank, 0, end, carries=tuple(firsts)) as loop:
            loop.yields(*self._at_point(em.scoped(), inside, space.at(rank, loop.index), loop.carries))
        results = list(loop.results)
        for point in folds:
            keep(em, point, results[: len(point.outs)], space)
            del results[: len(point.outs)]
        for point in points:
            if point not in inside:
                keep(em, point, [em.value(e, space) for e in point.exprs], space)

    def _identity(self, step: PointStep, space: Space) -> list[str]:
        assert step.reduce is not None
        types = tuple(compute_type(step.reduce.accumulator or d) for d in step.dtypes)
        values = MONOIDS[step.reduce.op].identity(types)
        return [self.b.const(space.tile(t), v.value) for t, v in zip(types, values, strict=True)]

    def _settle(self, em: Emitter, step: PointStep, rank: str, space: Space) -> None:
        """Compute what does not move with the loop before it."""

        def visit(e: Expr) -> None:
            if rank not in e.variables:
                em.value(e, space)
            elif isinstance(e, (Apply, Cast)):
                for child in e.children:
                    visit(child)

        if step.where is None or not step.guarded:
            for e in step.exprs:
                visit(e)

    def _at_point(
        self, em: Emitter, steps: Sequence[PointStep], space: Space, accs: Sequence[str]
    ) -> list[str]:
        """The steps at one point of the swept rank; the folds so far with it."""
        left = list(accs)
        done: list[str] = []
        for step in steps:
            if step.reduce is None:
                keep(em, step, [em.value(e, space, self._reads_where(em, step, space)) for e in step.exprs], space)
                continue
            types = tuple(compute_type(step.reduce.accumulator or d) for d in step.dtypes)
            own, left = left[: len(types)], left[len(types) :]
            done += accumulate(em, step, MONOIDS[step.reduce.op], types, space, tuple(own))
        return done

    def _reads_where(self, em: Emitter, step: PointStep, space: Space) -> str | None:
        return em.value(step.where, space) if step.where is not None else None

    # --- into and out of the order of the lanes ---

    def _stage(self, stage: Stage, block: _Block) -> None:
        """An operand that moves along the lanes, brought into scratch."""
        loops, where = self._stage_domain(stage, block) if stage.bounded and block.edge else (stage.ranks, None)
        access = stage.access.substitute({self.lane_rank: self._position})
        index = (*(var(n) for n in loops), var(self.lane))
        step = PointStep((stage.name,), (access,), (self.plan.locals[stage.name].dtype,), None, where, index, (True,))
        self._turned([step], loops, self._contiguous(stage.access, loops), block)

    def _stage_domain(self, stage: Stage, block: _Block) -> tuple[Mapping[str, IntExpr], Expr | None]:
        """Ends of the ranks of an operand that exists where its reader does, and what is left to ask at each point."""
        extents = self._extents(stage.reader, block)
        others = {n: e for n, e in extents.items() if n != self.lane and n not in stage.ranks}
        own = {n: e for n, e in extents.items() if n not in others}
        domain = self._domain(stage.reader, block).over(others)
        ends = self._ends(domain, own, stage.ranks, block)
        safe = self._safe(stage.access, domain, own)
        mask = self._domain(stage.reader).over(others).mask(own, stage.ranks)
        return ends, None if safe or mask is None else mask.substitute({self.lane_rank: self._position})

    def _leave(self, steps: Sequence[Einsum], block: _Block) -> None:
        """Point-wise steps whose results leave the kernel, with the lanes along the innermost rank in memory."""
        points = [self._point_step(s, block) for s in steps]
        last = steps[-1]
        order = last.order or tuple(range(len(last.ranks)))
        inner = next((last.ranks[d].name for d in reversed(order) if last.ranks[d].name not in self.low.units), None)
        loops = points[0][1]
        if inner not in loops:
            self._point_nest(points, block)
            return
        b, em = self.b, self.em.scoped()
        found = [p for p, _ in points]

        def body(inner_em: Emitter, at: Space) -> None:
            self._by_squares(found, at, block, at.lanes if at.lanes > 1 else self.lanes)

        with_loops = [n for n in loops if n != inner]

        def nest(names: Sequence[str], base: dict[str, IntExpr]) -> None:
            if names:
                with b.loop(names[0], 0, loops[names[0]]) as loop:
                    nest(names[1:], {**base, names[0]: loop.index})
            else:
                for_vectors(em.scoped(), Space(base), str(inner), int_expr(0), loops[str(inner)], self.lanes, 1, body)

        nest(with_loops, dict(block.base))

    def _by_squares(self, steps: Sequence[PointStep], at: Space, block: _Block, square: int) -> None:
        """The points of the lane rank as rows under the lanes of `at`: squares, then single ones."""
        count = int_expr(block.vectors * self.lanes) if block.count is None else block.count
        whole = self._named(count // square * square)
        with self.b.loop(self.lane, 0, whole, square) as loop:
            space = replace(at.at(self.lane, loop.index), slots=(Slot(self.lane, square, 1),))
            compute(self.em.scoped(), steps, space, VectorRank(None), self.lanes)
        if block.count is None or (count.const is not None and count.const % square == 0):
            return
        with self.b.loop(self.lane, whole, count) as loop:
            compute(self.em.scoped(), steps, at.at(self.lane, loop.index), VectorRank(None), self.lanes)

    def _contiguous(self, a: Access, ranks: Mapping[str, IntExpr]) -> str | None:
        """The rank of `ranks` along which `a` is contiguous while it is strided along the lane rank."""
        if a.default is not None or a.children:
            return None
        flat = self.em.flat(self.low.storage[a.tensor], a.index)
        lane = split_linear(flat, self.lane_rank)
        if lane is None or lane[0].const == 1:
            return None
        for name in ranks:
            parts = split_linear(flat, name)
            if parts is not None and parts[0].const == 1:
                return name
        return None

    def _turned(
        self, steps: Sequence[PointStep], loops: Mapping[str, IntExpr], along: str | None, block: _Block
    ) -> None:
        """Compute `steps` into scratch; squares of lanes by `along`, where the operand is contiguous."""
        count = int_expr(block.vectors * self.lanes) if block.count is None else block.count
        outer = [n for n in loops if n != along]

        def nest(names: Sequence[str], base: dict[str, IntExpr]) -> None:
            if names:
                with self.b.loop(names[0], 0, loops[names[0]]) as loop:
                    nest(names[1:], {**base, names[0]: loop.index})
            elif along is None:
                for_vectors(
                    self.em.scoped(), Space(base), self.lane, block.first, block.first + count, self.lanes, 1,
                    lambda e, s: compute(e, steps, s, VectorRank(None), self.lanes),
                )
            else:
                self._squares(steps, base, along, loops[along], block.first, count)

        nest(outer, dict(block.base))

    def _squares(
        self, steps: Sequence[PointStep], base: dict[str, IntExpr], along: str, end: IntExpr, first: IntExpr, count: IntExpr
    ) -> None:
        square = self.lanes
        whole, rows = self._named(count // square * square), self._named(end // square * square)

        def at(lane: IntExpr, index: IntExpr, slots: tuple[Slot, ...]) -> None:
            space = Space({**base, self.lane: lane, along: index}, self.lane, square, slots)
            compute(self.em.scoped(), steps, space, VectorRank(None), self.lanes)

        with self.b.loop(self.lane, first, first + whole, square) as lane:
            with self.b.loop(along, 0, rows, square) as row:
                at(lane.index, row.index, (Slot(along, square, 1),))
            with self.b.loop(along, rows, end) as row:
                at(lane.index, row.index, ())
        if count.const is not None and count.const % square == 0:
            return
        with self.b.loop(self.lane, first + whole, first + count) as lane:
            single = Space({**base, self.lane: lane.index})
            for_vectors(
                self.em.scoped(), single, along, int_expr(0), end, self.lanes, 1,
                lambda e, s: compute(e, steps, s, VectorRank(None), self.lanes),
            )


def _swept(steps: Sequence[tuple[PointStep, dict[str, IntExpr]]]) -> tuple[str, IntExpr]:
    """The rank that the steps share, and where it ends in the block."""
    return next((name, end) for point, free in steps for name, end in {**free, **point.reduced}.items())


def _size(e: IntExpr) -> int:
    return e.const if e.const is not None else 64


__all__ = ["lower_streamed"]
