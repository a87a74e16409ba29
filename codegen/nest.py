"""Loop nests: Einsums that share their free ranks, computed point by point in registers and stored once.

A nest runs its free ranks as loops, one of them in vector lanes; a reduction runs its own loops inside, or, when the lanes
lie along a reduced rank, keeps one partial result per lane and folds them at the end. Remainders are masked lanes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from dlc.codegen.pieces import Part, parts_of
from dlc.codegen.point import Emitter, Slot, Space, compute_type
from dlc.codegen.sweep import accumulate, identities, keep, pointwise, sweep
from dlc.codegen.target import Target
from dlc.codegen.tile import IndexCond
from dlc.codegen.tile_build import Builder
from dlc.ir.dtype import DType
from dlc.ir.einsum import Reduce
from dlc.ir.expr import Access, Apply, Expr, accesses, walk
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, split_linear
from dlc.ir.monoid import MONOIDS, Monoid

UNROLL = 4  # independent vector chains in flight: hides the latency of an add or FMA


@dataclass(frozen=True)
class PointStep:
    """An Einsum as the nest sees it, its free ranks already rewritten to the kernel's.

    Attributes:
        index: the index of the result's element, over the kernel's ranks.
        where: points where it is false do not exist; nothing is read for them.
        partial: whether what does not exist may also not be written (the last block reaches over the end).
        stored: whether the result is written to memory (else it lives in registers).
        guarded: whether points that do not exist may not even be read.
    """

    outs: tuple[str, ...]
    exprs: tuple[Expr, ...]
    dtypes: tuple[DType, ...]
    reduce: Reduce | None
    where: Expr | None
    index: tuple[IntExpr, ...]
    stored: tuple[bool, ...]
    partial: bool = False
    guarded: bool = True

    @property
    def reduced(self) -> dict[str, IntExpr]:
        return {r.name: r.extent for r in self.reduce.ranks} if self.reduce is not None else {}

    @property
    def fold_types(self) -> tuple[DType, ...]:
        """The types that a reduction folds in."""
        accumulator = self.reduce.accumulator if self.reduce is not None else None
        return tuple(compute_type(accumulator or d) for d in self.dtypes)

    @property
    def scalars(self) -> tuple[Expr, ...]:
        return self.exprs + ((self.where,) if self.where is not None else ())


@dataclass(frozen=True)
class VectorRank:
    """The rank in the lanes; `name` None computes point by point."""

    name: str | None
    reduced: bool = False


def lanes_for(steps: Sequence[PointStep], em: Emitter, target: Target, along: str | None = None) -> int:
    """Lanes that fill a register with the widest element type the nest touches; what does not move `along` takes no lanes."""
    bits = [d.bits for s in steps for d in s.dtypes]
    reads = [a for s in steps for e in s.scalars for a in accesses(e)]
    bits += [em.dtype(a.tensor).bits for a in reads if along is None or along in a.variables or a.tensor not in em.storage]
    return target.lanes if max(bits, default=32) <= 32 else max(2, target.lanes // 2)


def choose_vector(steps: Sequence[PointStep], free: dict[str, IntExpr], em: Emitter, target: Target) -> VectorRank:
    """The rank whose lanes touch memory best: contiguous before broadcast before strided before gathered."""
    candidates = dict.fromkeys(free, False)
    folding = [s for s in steps if s.reduce is not None]
    if len(folding) == 1 and folding[0].reduce is not None and MONOIDS[folding[0].reduce.op].arity == 1:
        candidates |= dict.fromkeys(folding[0].reduced, True)
    best, best_score = VectorRank(None), -1e9
    for name, reduced in candidates.items():
        extent = free.get(name) or folding[0].reduced[name]
        score = _extent_score(extent, target) + sum(_access_score(em, s, name, reduced) for s in steps)
        if reduced:
            score -= 3
        if score > best_score:
            best, best_score = VectorRank(name, reduced), score
    if best.name is not None and (free | (folding[0].reduced if folding else {}))[best.name].const in (0, 1):
        return VectorRank(None)
    return best


def sweep_lanes(steps: Sequence[PointStep], loops: Mapping[str, IntExpr], em: Emitter, target: Target) -> str:
    """As `choose_vector`, the rank for the lanes of steps that are swept together."""

    def score(name: str) -> float:
        return _extent_score(loops[name], target) + sum(_access_score(em, s, name, s.reduce is not None) for s in steps)

    return max(loops, key=score)


def emit_sweep(
    em: Emitter, steps: Sequence[PointStep], loops: Mapping[str, IntExpr], space: Space, target: Target
) -> None:
    """Compute `steps` over `loops` in one nest at the points of `space`: points of them, and folds over them."""
    along = sweep_lanes(steps, loops, em, target)
    lanes = lanes_for(steps, em, target, along)
    folds = sum(s.reduce is not None for s in steps)
    registers = min(most_registers(s, target) for s in steps)
    if folds > 1:
        registers = min(registers, max(1, target.vector_registers // (4 * folds)))
    rows = math.prod(s.count for s in space.slots)
    results = sweep(em.scoped(), steps, space, loops, along, lanes, max(1, registers // rows))
    for step, result in zip((s for s in steps if s.reduce is not None), results, strict=True):
        keep(em, step, [result], space)


def _extent_score(extent: IntExpr, target: Target) -> float:
    size = extent.const
    if size is None:
        return 0.0
    if size <= 1:
        return -1000.0
    if size < target.lanes // 2:
        return -14.0
    return -4.0 if size < target.lanes else 0.0


def _access_score(em: Emitter, step: PointStep, name: str, reduced: bool) -> float:
    total = 0.0
    for e in step.scalars:
        for a in accesses(e):
            if a.tensor not in em.storage:
                continue
            total += _slope_score(em, a, name)
    for out, stored in zip(step.outs, step.stored, strict=True):
        if stored and not reduced and out in em.storage:
            score = _slope_score(em, Access(out, step.index), name)
            total += 2 * score if score < 0 else score
    return total


def _slope_score(em: Emitter, a: Access, name: str) -> float:
    parts = split_linear(em.flat(em.storage[a.tensor], a.index), name)
    if parts is None:
        return -10.0
    if parts[0].const == 1:
        return 8.0
    return 4.0 if parts[0].const == 0 else -6.0


# --- ranges of a vector rank -----------------------------------------------------------------------------------------


def for_vectors(
    em: Emitter,
    space: Space,
    name: str,
    lo: IntExpr,
    hi: IntExpr,
    lanes: int,
    unroll: int,
    body: Callable[[Emitter, Space], None],
) -> None:
    """Run `body` over `lo <= name < hi`, in groups of `unroll` registers, then single ones, the last one masked."""
    size = (hi - lo).const
    if size is not None and size <= 0:
        return
    if size is not None and size < lanes:
        _one_vector(em, space, name, lo, size, lanes, body)
        return
    unroll = 1 if size is None and unroll == 1 else min(unroll, (size or unroll * lanes) // lanes)
    start = lo
    if unroll > 1:
        whole = (hi - lo) // (unroll * lanes) * (unroll * lanes)
        slots = (*space.slots, Slot(name, unroll, lanes))
        with em.b.loop(name, lo, lo + whole, unroll * lanes) as loop:
            body(em.scoped(), replace(space.at(name, loop.index), vector=name, lanes=lanes, slots=slots))
        start = lo + whole
    elif size is not None:
        whole = int_expr(size // lanes * lanes)
        with em.b.loop(name, lo, lo + whole, lanes) as loop:
            body(em.scoped(), replace(space.at(name, loop.index), vector=name, lanes=lanes))
        start = lo + whole
    left = (hi - start).const
    if left == 0:
        return
    with em.b.loop(name, start, hi, lanes) as loop:
        inner = em.scoped()
        mask = None if left is not None and left % lanes == 0 else em.b.mask(lanes, hi - loop.index)
        body(inner, replace(space.at(name, loop.index), vector=name, lanes=lanes, mask=mask))


def in_tiles(
    b: Builder,
    name: str,
    lo: IntExpr,
    hi: IntExpr,
    size: int | None,
    count: int,
    body: Callable[[int, IntExpr], None],
    *,
    rest: int | None = None,
) -> None:
    """Run `body(tile, index)` over `lo <= name < hi`: tiles of `count` indices, then the rest in halves down to one.

    Args:
        size: extent of the whole rank where it is known; `lo` is a multiple of `count`.
        rest: what tiles of `count` leave of the whole rank, where that is known and may be one tile.
    """
    whole = (hi - lo) // count * count
    position = lo
    if size is None or size >= count:
        with b.loop(name, lo, lo + whole, count) as loop:
            body(count, loop.index)
        position = b.named(lo + whole)
    if size is not None and size % count == 0 or rest == 0:
        return
    if rest is not None:  # not in every part of the rank
        with b.branch(IndexCond(hi - position, "ge", int_expr(rest))) as branch, branch.then():
            body(rest, position)
        return
    while count > 1:
        count = (count + 1) // 2
        # one tile of `count`; a remainder below twice that is left to the smaller ones
        with b.branch(IndexCond(hi - position, "ge", int_expr(count))) as branch, branch.then():
            body(count, position)
        position = b.named(position + minimum((hi - position) // count, 1) * count)


def _one_vector(
    em: Emitter, space: Space, name: str, lo: IntExpr, size: int, lanes: int, body: Callable[[Emitter, Space], None]
) -> None:
    width = 1
    while width < size:
        width *= 2
    width = min(width, lanes)
    mask = None if width == size else em.b.mask(width, size)
    body(em, replace(space.at(name, lo), vector=name if width > 1 else None, lanes=width, mask=mask))


# --- the nest --------------------------------------------------------------------------------------------------------


Bounds = Mapping[str, tuple[IntExpr, IntExpr]]


def emit_nest(
    em: Emitter,
    steps: Sequence[PointStep],
    loops: dict[str, IntExpr],
    vector: VectorRank,
    base: dict[str, IntExpr],
    target: Target,
    bounds: Bounds | None = None,
    most_unroll: int = UNROLL,
) -> None:
    """Compute `steps` over `loops` (name to extent), innermost last, inside the point `base` of the other ranks.

    `bounds` is the part of a rank to do, where it is not the whole of it. Loops are cut where pieces change (`pieces.py`).
    """
    # a tile over inner ranks is of this nest's points; one over the task's alone serves the next nest, too
    inner = em.scoped() if loops else em
    _Nest(loops, vector, target, bounds or {}, lanes_for(steps, em, target, vector.name), most_unroll).run(inner, steps, base)


@dataclass(frozen=True)
class _Nest:
    loops: dict[str, IntExpr]
    vector: VectorRank
    target: Target
    bounds: Bounds
    lanes: int
    most_unroll: int

    def run(self, em: Emitter, steps: Sequence[PointStep], base: dict[str, IntExpr]) -> None:
        outer = [n for n in self.loops if n != self.vector.name and n not in base]
        if outer:
            for part, mine, inner in self._parts(em, steps, outer[0]):
                with inner.b.loop(part.rank, part.lo, part.hi) as loop:
                    self.run(inner, mine, {**base, part.rank: loop.index})
        elif self.vector.name is None or self.vector.reduced:
            compute(em, steps, Space(base), self.vector, self.lanes)
        else:
            for part, mine, inner in self._parts(em, steps, self.vector.name):
                unroll = min(self.most_unroll, *(most_registers(s, self.target) for s in mine))
                body = partial(_compute_lanes, mine, self.lanes)
                for_vectors(inner, Space(base), part.rank, part.lo, part.hi, self.lanes, unroll, body)

    def _parts(
        self, em: Emitter, steps: Sequence[PointStep], rank: str
    ) -> Iterator[tuple[Part, Sequence[PointStep], Emitter]]:
        """The parts of a rank's range, each with the steps as they are there and an emitter for it."""
        extent = self.loops[rank]
        parts = parts_of((e for s in steps for e in s.scalars), rank, extent, em.facts)
        if rank == self.vector.name and any((p.hi - p.lo).const is None or (p.hi - p.lo).const < self.lanes for p in parts):
            parts = (Part(rank, int_expr(0), extent),)  # a part of less than a register would be a register all the same
        for part in parts:
            if rank in self.bounds:
                lo, hi = self.bounds[rank]
                whole = len(parts) == 1
                part = replace(part, lo=lo if whole else maximum(part.lo, lo), hi=hi if whole else minimum(part.hi, hi))
                part = part if whole else replace(part, hi=maximum(part.lo, part.hi))
            mine = [replace(s, exprs=tuple(map(part.choose, s.exprs))) for s in steps] if len(parts) > 1 else steps
            yield part, mine, em.scoped() if len(parts) > 1 else em


def _compute_lanes(steps: Sequence[PointStep], lanes: int, em: Emitter, space: Space) -> None:
    compute(em, steps, space, VectorRank(None), lanes)


_COSTLY = frozenset("exp exp2 tanh erf sigmoid".split())
_VERY_COSTLY = frozenset("log log2 log1p expm1 sin cos tan pow atan atan2 sinh cosh asin acos asinh acosh atanh".split())


def most_registers(step: PointStep, target: Target) -> int:
    """How many registers of it fit at once: a function takes some of its own, a long expression many."""
    nodes = [n for e in step.scalars for n in walk(e)]
    ops = {n.op for n in nodes if isinstance(n, Apply)}
    if len(nodes) > 40 or "lgamma" in ops:
        return 1
    if ops & _VERY_COSTLY:
        return 2 if target.vector_registers >= 32 else 1
    return UNROLL if target.vector_registers >= 32 or not ops & _COSTLY else 2


def compute(em: Emitter, steps: Sequence[PointStep], space: Space, vector: VectorRank, lanes: int) -> None:
    """The steps at the points of `space`, in registers, and stored where they leave."""
    for step in steps:
        tiles = _fold(em, step, space, vector, lanes) if step.reduce is not None else pointwise(em, step, space)
        keep(em, step, tiles, space)


def _fold(em: Emitter, step: PointStep, space: Space, vector: VectorRank, lanes: int) -> list[str]:
    assert step.reduce is not None
    if vector.reduced and vector.name in step.reduced:
        return sweep(em, [step], space, step.reduced, vector.name, lanes, UNROLL)
    accs = tuple(identities(em, step, tuple(s.count for s in space.slots), space.lanes))
    monoid = MONOIDS[step.reduce.op]
    return list(_fold_loops(em, step, monoid, step.fold_types, space, dict(step.reduced), accs))


def _fold_loops(
    em: Emitter,
    step: PointStep,
    monoid: Monoid,
    types: tuple[DType, ...],
    space: Space,
    loops: dict[str, IntExpr],
    accs: tuple[str, ...],
) -> tuple[str, ...]:
    """Fold over all of `loops`, the last innermost, into `accs`."""
    if not loops:
        return accumulate(em, step, monoid, types, space, accs)
    name = next(iter(loops))
    rest = {n: e for n, e in loops.items() if n != name}
    extent = loops[name]
    if extent.const == 1:
        return _fold_loops(em, step, monoid, types, space.at(name, int_expr(0)), rest, accs)
    with em.b.loop(name, 0, extent, carries=accs) as loop:
        loop.yields(*_fold_loops(em.scoped(), step, monoid, types, space.at(name, loop.index), rest, loop.carries))
    return loop.results


def split_tasks(ranks: dict[str, IntExpr], inner_work: int, wanted: int = 4096) -> tuple[dict[str, IntExpr], dict[str, IntExpr]]:
    """Outer ranks become tasks; trailing ones stay loops inside a task until a task has about `wanted` points.

    An unknown extent counts as 16.
    """
    names = list(ranks)
    inside: list[str] = []
    work = inner_work
    outer_size = 1
    for name in names:
        outer_size *= ranks[name].const or 16
    while names and work < wanted:
        size = ranks[names[-1]].const or 16
        if outer_size // size < 8 and work * size > wanted:
            break  # keep enough tasks for every core
        outer_size //= max(size, 1)
        work *= size
        inside.insert(0, names.pop())
    return {n: ranks[n] for n in names}, {n: ranks[n] for n in inside}


def decode_task(task: IntExpr, ranks: dict[str, IntExpr]) -> dict[str, IntExpr]:
    """Index of every rank for the row-major task number `task`."""
    base: dict[str, IntExpr] = {}
    for n, (name, extent) in enumerate(reversed(ranks.items())):
        last = n == len(ranks) - 1
        base[name] = task if last else task % extent
        task = task // extent
    return base

