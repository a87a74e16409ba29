"""Lowering a kernel (a fused cascade) to a tile program.

These shapes of loop cover every kernel: a contraction with its epilogue (`contraction.py`; with weights in codes,
`coded_sum.py`), points (all steps share all free ranks; one nest, everything in registers), blocks (`unroll.py`: a few points
of every step per task, unrolled into points) and rows (steps share outer ranks; inner ranks run in nests of their own, and
what passes between nests lives in scratch). A scatter is a kernel of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

from dlc.codegen.bit_sum import find_bits, lower_bits
from dlc.codegen.coded_sum import find_coded, lower_coded
from dlc.codegen.contraction import lower_contraction
from dlc.codegen.contraction_roles import find_contraction
from dlc.codegen.crossed import find_cross, lower_crossed
from dlc.codegen.inner_product import find_inner_product, lower_inner_product
from dlc.codegen.merge import merge_ranks
from dlc.codegen.nest import (
    PointStep,
    VectorRank,
    choose_vector,
    decode_task,
    emit_nest,
    emit_sweep,
    split_tasks,
)
from dlc.codegen.past_caches import chunk_past_caches, in_either_way, rows_past_caches, worth_in_rows
from dlc.codegen.pieces import parts_of
from dlc.codegen.point import Emitter, Space, Storage
from dlc.codegen.row_blocks import RowBlocks, find_row_blocks
from dlc.codegen.row_quotient import RowQuotients
from dlc.codegen.rows import group_rows, inner_ranks, sweeps
from dlc.codegen.scatter import lower_scatter
from dlc.codegen.streamed import lower_streamed
from dlc.codegen.target import Target
from dlc.codegen.tile import Buffer, TileProgram
from dlc.codegen.tile_build import Builder
from dlc.codegen.unroll import unroll_block
from dlc.codegen.window import Window, find_window, lower_window
from dlc.errors import Internal
from dlc.ir.blocked import unrolls
from dlc.ir.coded_sums import memory_of
from dlc.ir.dtype import DType
from dlc.ir.einsum import Einsum, Scan, Step, TensorType, flat
from dlc.ir.errors import OuterRank
from dlc.ir.expr import walk
from dlc.ir.extent import IntExpr, int_expr, minimum, product, substitute, var, variables
from dlc.ir.facts import Facts, SymbolFact
from dlc.ir.program import Kernel, cascade_types
from dlc.ir.streamed import lane_rank

CHUNK = 4096  # elements of a long rank that make one task


@dataclass(frozen=True)
class Lowered:
    """A kernel as a tile program.

    Attributes:
        work_per_task: about how many scalar operations one task does; decides how tasks are shared out.
    """

    tile: TileProgram
    work_per_task: IntExpr


def lower_kernel(kernel: Kernel, facts: Mapping[str, SymbolFact], target: Target) -> Lowered:
    """The tile program of `kernel`; its buffers are named after the cascade's params and results.

    Args:
        facts: what is known of extent symbols, by name with `#`.
    """
    lowering = KernelLowering(kernel, facts, target)
    return lowering.run()


class KernelLowering:
    """State of one lowering: the emitter, storage of tensors and the buffers they make."""

    def __init__(self, kernel: Kernel, facts: Mapping[str, SymbolFact], target: Target) -> None:
        self.kernel, self.target = kernel, target
        self.cascade = kernel.cascade
        self.types = cascade_types(self.cascade)
        # ranks of one index have no loops: their index is 0
        self.units = {r.name for s in flat(self.cascade.steps) for r in s.ranks if r.extent.const == 1}
        self.structure = tuple(_at_zero(s, self.units) for s in self.cascade.steps)
        self.steps = list(flat(self.structure))
        self.outer = set(kernel.outer) - self.units
        self.scratch: list[Buffer] = []
        memory = {p.name for p in self.cascade.params} | set(self.cascade.results)
        self.storage = {n: Storage(n, self.types[n], self.types[n].strides) for n in self.types if n in memory}
        self.builder = Builder({n: self.types[n].dtype for n in self.types})
        ranks = {r.name: r.extent for s in self.steps for r in s.all_ranks}
        dtypes = {n: t.dtype for n, t in self.types.items()}
        self.em = Emitter(self.builder, Facts(ranks, facts), self.storage, dtypes=dtypes, fused=target.has_fma)

    def run(self) -> Lowered:
        if any(s.write is not None for s in self.steps):
            assert len(self.steps) == 1, "a scatter is a kernel of its own"
            return lower_scatter(self, self.steps[0])
        if any(r.extent.const == 0 for s in self.steps for r in s.ranks if r.name in self.outer):
            return self.finish(int_expr(0), int_expr(0))  # no points, and a task number cannot be divided by 0
        coded = find_coded(self)
        if coded is not None:
            return lower_coded(self, coded)
        bits = find_bits(self)
        if bits is not None:
            return lower_bits(self, bits)
        packed = [p.name for p in self.cascade.params if p.type.dtype.is_coded]
        if packed:
            raise Internal(self.cascade.loc, message=f"kernel '{self.kernel.name}' reads packed codes, but not as a sum with them")
        lane = lane_rank(self.structure, self.kernel.outer)
        if lane is not None:
            return lower_streamed(self, lane)
        scan = next((s for s in self.structure if isinstance(s, Scan)), None)
        if scan is not None:
            reason = "its scan does not run inside a task: no rank moves one operand of each contraction (dlc.ir.streamed)"
            raise OuterRank(scan.loc, kernel=self.kernel.name, reason=reason)
        if all(self.moving(s) == self.outer for s in self.steps):
            roles = find_contraction(self)
            if roles is not None:
                return lower_contraction(self, roles)
            products = find_inner_product(self)
            return lower_inner_product(self, products) if products is not None else self._points()
        if unrolls(self.steps, self.outer):
            return self._blocks()
        return self._rows()

    # --- steps and ranks ---

    def moving(self, step: Einsum) -> set[str]:
        """The free ranks of `step` that have more than one index."""
        return {r.name for r in step.ranks} - self.units

    def own_index(self, step: Einsum) -> tuple[IntExpr, ...]:
        """Where a step writes at its point."""
        return tuple(int_expr(0) if r.name in self.units else var(r.name) for r in step.ranks)

    def point_step(self, step: Einsum, stored: tuple[bool, ...]) -> PointStep:
        index = self.own_index(step)
        return PointStep(step.outs, step.exprs, step.dtypes, step.reduce, step.where, index, stored)

    def stored(self, step: Einsum) -> tuple[bool, ...]:
        return tuple(o in self.cascade.results for o in step.outs)

    def task_ranks(self) -> dict[str, IntExpr]:
        """The kernel's outer ranks with extents, in the kernel's order."""
        extents = {r.name: r.extent for s in self.steps for r in s.ranks}
        return {n: extents[n] for n in self.kernel.outer if n in self.outer}

    def outer_ranks(self) -> dict[str, IntExpr]:
        """The kernel's outer ranks with extents, in the storage order of what it writes."""
        last = next(s for s in reversed(self.steps) if any(self.stored(s)))
        order = last.order or tuple(range(len(last.ranks)))
        names = [last.ranks[d].name for d in order if last.ranks[d].name in self.outer]
        extents = last.extents
        return {n: extents[n] for n in names}

    # --- points ---

    def _merged(self) -> tuple[list[PointStep], dict[str, IntExpr], VectorRank]:
        """The steps over ranks that were merged where they could be, and the rank of the lanes."""
        steps = [self.point_step(s, self.stored(s)) for s in self.steps]
        steps, ranks = merge_ranks(self.em, steps, self.outer_ranks())
        return steps, ranks, choose_vector(steps, ranks, self.em, self.target)

    def sliding(self) -> Window | None:
        """The window that a kernel of points slides, if it does."""
        return find_window(*self._merged())

    def _points(self) -> Lowered:
        steps, ranks, vector = self._merged()
        free_vector = vector.name if not vector.reduced else None
        window = find_window(steps, ranks, vector)
        if window is not None and free_vector is not None:
            return lower_window(self, steps, ranks, free_vector, window)
        others = {n: e for n, e in ranks.items() if n != free_vector}
        cut, per_point = self._cut(steps, ranks)
        cross = find_cross(self.em, steps, ranks, vector)
        if cross is not None and free_vector is not None:
            return lower_crossed(self, steps, ranks, free_vector, cross, per_point)
        if free_vector is not None and _long(ranks[free_vector]) and not _many(others):
            return self._chunked(steps, others, free_vector, ranks[free_vector], per_point)
        row = (ranks[free_vector].const or 256) if free_vector is not None else 1
        tasks, inside = split_tasks(others, row * max(per_point, 1))
        base = self.task_base(tasks)
        loops = dict(inside)
        bounds = {}
        if cut in tasks:  # a loop of one index, so that it can be cut
            at = base.pop(cut)
            loops, bounds = {cut: ranks[cut], **inside}, {cut: (at, at + 1)}
            inside = {n: e for n, e in loops.items() if n != cut}
        if free_vector is not None:
            loops[free_vector] = inside[free_vector] = ranks[free_vector]

        def plain() -> None:
            emit_nest(self.em.scoped(), steps, loops, vector, base, self.target, bounds)

        rows = free_vector is not None and cut in (None, free_vector) and worth_in_rows(self, steps, ranks, free_vector)
        in_either_way(self, rows, partial(rows_past_caches, self, steps, loops, base), plain)
        work = int_expr(per_point)
        for e in inside.values():
            work = work * e
        return self.finish(product(tasks.values()), work)

    def _cut(self, steps: list[PointStep], ranks: dict[str, IntExpr]) -> tuple[str | None, int]:
        """The rank whose loop is cut into most parts, and the scalar operations per point of the costliest part."""
        exprs = [e for s in steps for e in s.scalars]
        parts = max((parts_of(exprs, n, e, self.em.facts) for n, e in ranks.items()), key=len, default=())
        if len(parts) < 2:
            return None, sum(_points_of(s) for s in steps)
        chosen = ([replace(s, exprs=tuple(map(p.choose, s.exprs))) for s in steps] for p in parts)
        return parts[0].rank, max(sum(_points_of(s) for s in mine) for mine in chosen)

    # --- blocks ---

    def _blocks(self) -> Lowered:
        """A block of points per task point, unrolled: `points` with as many steps as the block has points."""
        steps = unroll_block(self.steps, self.outer, frozenset(self.cascade.results), self.em.facts)
        self.em.dtypes.update((o, d) for s in steps for o, d in zip(s.outs, s.dtypes, strict=True))
        self.em.facts = Facts(self.block_ranks(), self.em.facts.symbols)
        steps, ranks = merge_ranks(self.em, steps, self.block_ranks())
        vector = choose_vector(steps, ranks, self.em, self.target)
        others = {n: e for n, e in ranks.items() if n != vector.name}
        per_point = sum(_points_of(s) for s in steps)
        row = (ranks[vector.name].const or 256) if vector.name is not None else 1
        tasks, inside = split_tasks(others, row * max(per_point, 1))
        base = self.task_base(tasks)
        loops = dict(inside) | ({vector.name: ranks[vector.name]} if vector.name is not None else {})
        emit_nest(self.em, steps, loops, vector, base, self.target, most_unroll=1)
        work = int_expr(per_point)
        for e in loops.values():
            work = work * e
        return self.finish(product(tasks.values()), work)

    def block_ranks(self) -> dict[str, IntExpr]:
        """The task ranks with extents; those that blocks follow are no dimension of what is stored last."""
        extents = {r.name: r.extent for s in self.steps for r in s.ranks}
        last = self.outer_ranks() if any(self.stored(s) for s in self.steps) else {}
        lanes = next(reversed(last), None)
        names = [n for n in self.kernel.outer if n in self.outer and n != lanes] + ([lanes] if lanes is not None else [])
        return {n: extents[n] for n in names}

    def _chunked(
        self, steps: list[PointStep], others: dict[str, IntExpr], name: str, extent: IntExpr, per_point: int
    ) -> Lowered:
        chunks = (extent + (CHUNK - 1)) // CHUNK
        base = self.task_base({**others, "chunk": chunks})
        first = base.pop("chunk") * CHUNK

        def plain() -> None:
            bounds = (first, minimum(first + CHUNK, extent))
            emit_nest(self.em.scoped(), steps, {name: extent}, VectorRank(name), base, self.target, {name: bounds})

        alone = not others and all(s.reduce is None for s in steps)
        in_either_way(self, alone, partial(chunk_past_caches, self, steps, name, extent, (first, CHUNK), base), plain)
        return self.finish(product(others.values()) * chunks, int_expr(per_point * CHUNK))

    # --- rows ---

    def _rows(self) -> Lowered:
        outer = self.outer_ranks()
        groups = group_rows(self)
        blocks = find_row_blocks(self, groups, outer)
        self._place_locals(groups, blocks)
        if blocks is not None:
            return self.finish(blocks.emit(groups, outer), self._row_work() * blocks.count)
        base = self.task_base(outer)
        quotients = RowQuotients(self.em, self.steps)
        for group in groups:
            swept = sweeps(self, group)
            inner = inner_ranks(self, group[0])
            loops = inner if swept else {n: e for n, e in inner.items() if n not in {r.name for r in group[0].reduced}}
            steps = [self.point_step(s, tuple(o in self.storage for o in s.outs)) for s in group]
            steps = quotients.divide_once(steps, loops, Space(base))
            if swept:
                emit_sweep(self.em, steps, loops, Space(base), self.target)
            else:
                vector = choose_vector(steps, loops, self.em, self.target)
                emit_nest(self.em, steps, loops, vector, base, self.target)
        return self.finish(product(outer.values()), self._row_work())

    def _row_work(self) -> IntExpr:
        """Scalar operations of a row."""
        work = int_expr(0)
        for step in self.steps:
            points = int_expr(sum(1 for e in step.scalars for _ in walk(e)))
            for extent in inner_ranks(self, step).values():
                points = points * extent
            work = work + points
        return work

    def joins(self, group: list[Einsum], step: Einsum) -> bool:
        """Whether `step` can be computed in the nest of `group`, point by point."""
        names = self.moving(step)
        if self.moving(group[0]) != names:
            return False
        if step.reduce is not None and (names - self.outer or any(s.reduce is not None for s in group)):
            return False  # one fold in a nest: its reduced rank may have the lanes
        made = {o: s for s in group for o in s.outs}
        for a in step.accesses():
            if a.tensor in made and a.index != self.own_index(made[a.tensor]):
                return False
        return True

    def _place_locals(self, groups: list[list[Einsum]], blocks: RowBlocks | None) -> None:
        """Scratch for local tensors with inner ranks that another nest reads."""
        for n, group in enumerate(groups):
            for step in group:
                inner = self.moving(step) - self.outer
                for out in step.outs:
                    if out in self.cascade.results or not inner:
                        continue
                    if any(a.tensor == out for g in groups[n + 1 :] for s in g for a in s.accesses()):
                        self._add_scratch(out, step, inner, blocks)

    def _add_scratch(self, name: str, step: Einsum, inner_names: set[str], blocks: RowBlocks | None) -> None:
        strides: dict[str, IntExpr] = {}
        size = int_expr(1)
        for r in reversed(step.ranks):
            if r.name in inner_names:
                strides[r.name] = size
                size = size * r.extent
        before = int_expr(0)
        if blocks is not None:
            strides[blocks.rank] = size
            before = var(blocks.start) * size
            size = size * blocks.count
        type_ = TensorType(self.types[name].dtype, self.types[name].shape)
        self.storage[name] = Storage(name, type_, tuple(strides.get(r.name, int_expr(0)) for r in step.ranks), before)
        self.scratch.append(Buffer(name, type_.dtype, "scratch", size))

    # --- the program ---

    def task_base(self, tasks: dict[str, IntExpr]) -> dict[str, IntExpr]:
        """Index of every task rank as a variable of its own."""
        return {name: self.builder.named(e) for name, e in decode_task(var("task"), tasks).items()}

    def local(self, name: str, dtype: DType, size: IntExpr) -> None:
        """Declare scratch of the kernel's own making."""
        self.scratch.append(Buffer(name, dtype, "scratch", size))

    def finish(self, tasks: IntExpr, work: IntExpr, roles: Mapping[str, str] | None = None) -> Lowered:
        buffers = [
            Buffer(p.name, dtype, (roles or {}).get(p.name, "in"), size)
            for p in self.cascade.params
            for dtype, size in (memory_of(p.type),)
        ]
        buffers += [
            Buffer(r, self.types[r].dtype, (roles or {}).get(r, "out"), self.types[r].stored)
            for r in self.cascade.results
        ]
        symbols: set[str] = set()
        for step in self.steps:
            symbols |= step.symbols
        for p in self.cascade.params:
            for e in p.type.shape:
                symbols |= variables(e)
        body = self.builder.body()
        tile = TileProgram(
            self.cascade.name, tuple(buffers + self.scratch), tuple(sorted(symbols)), tasks, "task", body, self.cascade.loc
        )
        return Lowered(tile, work)


def _at_zero(step: Step, units: set[str]) -> Step:
    """The step with 0 for the index of its ranks of extent 1."""
    if isinstance(step, Scan):
        return replace(step, body=tuple(_at_zero(s, units) for s in step.body))
    env = {r.name: int_expr(0) for r in step.all_ranks if r.name in units and r.extent.const == 1}
    if not env:
        return step
    where = step.where.substitute(env) if step.where is not None else None
    write = step.write
    if write is not None:
        write = replace(write, index=tuple(substitute(i, env) for i in write.index))
    return replace(step, exprs=tuple(e.substitute(env) for e in step.exprs), where=where, write=write)


def _points_of(step: PointStep) -> int:
    """Scalar operations per free point, an unknown reduced extent counted as 64."""
    nodes = sum(1 for e in step.scalars for _ in walk(e))
    for extent in step.reduced.values():
        nodes *= extent.const if extent.const is not None else 64
    return nodes


def _long(extent: IntExpr) -> bool:
    return extent.const is None or extent.const > 2 * CHUNK


def _many(ranks: Mapping[str, IntExpr]) -> bool:
    total = product(ranks.values())
    return bool(ranks) and (total.const is None or total.const >= 8)


