"""How often a cascade has to traverse a fiber: passes, the barriers that force them, and what must stay live between.

A new pass over a fiber begins where an element has to be visited again after every other element was: an Einsum reads the fiber
and needs a value that only a fold of all of it gives. Each Einsum gets an index, `1 + the passes its inputs need to be over`; running
values inside a scan are known step by step and add nothing. `dlc.ir.fiber` has the rules.

What is counted: the fibers of every tensor, inputs and intermediate ones. A fiber whose tensor holds one fold per block of a
larger fiber (the local maxima of a partition), or one block of it, is a *partition*: it has its own count but is no part of the
cascade's, as its length is that of the blocks' number or size.

Conservative (never fewer passes than needed): a gather visits whatever it might; a fold over a part of an index that is no
nested sum of ranks counts as one of all; two ranks that meet in one Einsum on the same fiber (a Gram matrix) need its end;
scans in opposite directions are put in passes in the order of the text.

Source: Nayak et al., FuseMax, MICRO 2024 (arXiv 2406.10491), section on passes of a cascade.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from dlc.ir.einsum import Einsum, Scan, Step, TensorType, flat
from dlc.ir.errors import NoSuchFiber
from dlc.ir.extent import IntExpr, int_expr, show_extent, var, variables
from dlc.ir.facts import Facts
from dlc.ir.fiber import FiberWalk, Trace, covering, dimension
from dlc.ir.program import Cascade, Program, Region, cascade_types, regions, tensor_types
from dlc.ir.program import Param as ProgramParam
from dlc.ir.rank_class import RankClass, name_of, rank_classes

Splits: TypeAlias = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Barrier:
    """A read-read barrier: all of a fiber is read before any element of it is read again.

    Attributes:
        reduction: the tensor whose fold needs the whole fiber.
        reader: the Einsum (its result) that visits the fiber again.
        through: the tensor by which it does: the fiber's own, or one that carries it.
        level: the pass that begins here, 2 for the first barrier.
        against: the reason is the direction of a scan alone.
    """

    reduction: str
    reader: str
    through: str
    rank: str
    tensor: str
    level: int
    against: bool = False

    @property
    def why(self) -> str:
        """One sentence."""
        if self.against:
            return f"{self.reader} steps {self.through} along {self.rank} against the direction of {self.reduction}"
        return (
            f"{self.reader} reads {self.through} along {self.rank} and needs {self.reduction}, which is known only after "
            f"every element along {self.rank} of {self.tensor} has been read"
        )


@dataclass(frozen=True, slots=True)
class Footprint:
    """The least that stays live between visits: the whole fiber across a barrier, else a block (or one element).

    Attributes:
        elements: per fiber, over extent symbols.
        bytes: of that many elements of the tensor.
        whole: whether it is the whole fiber.
    """

    elements: IntExpr
    bytes: IntExpr
    whole: bool


@dataclass(frozen=True, slots=True)
class PassCount:
    """The passes over the fibers of one tensor along one rank.

    Attributes:
        tensor: whose fibers.
        rank: the rank's name.
        dims: the tensor's dimensions that enumerate the fiber; more than one where they split it.
        passes: traversals of the fiber; 0 when nobody reads it.
        index: (Einsum by its result, pass) for all that have something of the fiber; one that folds or combines folds is in the
            pass that it ends.
        visits: the Einsums among them that read elements of the fiber.
        barriers: what begins each further pass.
        footprint: what stays live.
        partition: whether the fiber is made of blocks of a larger one.
        repeats: ranks of scans around, each step of which traverses the fiber that often again, with their extents.
    """

    tensor: str
    rank: str
    dims: tuple[int, ...]
    passes: int
    index: tuple[tuple[str, int], ...]
    visits: frozenset[str]
    barriers: tuple[Barrier, ...]
    footprint: Footprint
    partition: bool = False
    repeats: tuple[tuple[str, IntExpr], ...] = ()

    def pass_of(self, einsum: str) -> int:
        """The pass that an Einsum is in; 0 when it has nothing of the fiber."""
        return dict(self.index).get(einsum, 0)


def count_passes(
    cascade: Cascade | Program, rank: str | RankClass | tuple[str, ...], tensor: str, splits: Splits = ()
) -> PassCount:
    """The passes over `tensor`'s fibers along `rank` (a rank's name, an extent symbol, a class, or the names of a declared split).

    A program is taken cascade by cascade (`cascades_of`): the first that knows the tensor counts.

    Raises:
        NoSuchFiber: when the tensor has no dimension of that rank.
    """
    if isinstance(rank, tuple):
        splits, rank = (*splits, rank), rank[0]
    for part in cascades_of(cascade):
        types = cascade_types(part)
        if tensor in types:
            dims = _dims_of(part, types[tensor], rank, tensor)
            rows = [row for row in all_passes(part, splits) if row.tensor == tensor]
            for n in dims:
                row = next((r for r in rows if n in r.dims), None)
                if row is not None:
                    return row
    raise NoSuchFiber(cascade.loc, rank=str(rank), tensor=tensor, cascade=cascade.name)


def all_passes(cascade: Cascade | Program, splits: Splits = ()) -> tuple[PassCount, ...]:
    """The passes of every tensor along every rank with more than one point; fibers that nobody reads are left out.

    Args:
        splits: ranks that are parts of one, outer ones first, such as `(("m1", "m0"),)` for an input that comes in blocks,
            `K[m1, m0, e]`. Splits that the accesses show (`K[128*m1 + m0, e]`) need not be told.
    """
    return tuple(row for part in cascades_of(cascade) for row in _cascade_passes(part, splits))


def passes(cascade: Cascade | Program, splits: Splits = ()) -> int:
    """The greatest number of passes over any tensor and rank (partitions of a fiber do not count)."""
    return max((row.passes for row in all_passes(cascade, splits) if not row.partition), default=0)


# --- the fibers of a cascade -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Fiber:
    tensor: str
    dims: tuple[int, ...]


@lru_cache(maxsize=256)
def _cascade_passes(cascade: Cascade, splits: Splits = ()) -> tuple[PassCount, ...]:
    types = cascade_types(cascade)
    facts = Facts({}, {"#" + s.name: s.fact for s in cascade.symbols})
    around = dict(_scans_around(cascade.steps, {}))
    single = [_Fiber(t, (n,)) for t, of in types.items() for n, e in enumerate(of.shape) if e.const != 1]
    walks = {f: _walk(cascade, types, facts, f) for f in single}
    joint = dict.fromkeys(_split_fibers(walks, types, around, facts))
    joint.update(dict.fromkeys(_declared(cascade, types, splits)))
    parts = _partitions(walks, types, around, facts)
    for fiber in joint:
        walk = _walk(cascade, types, facts, fiber)
        parts |= _partitions({fiber: walk}, types, around, facts)
        walks[fiber] = walk
        for n in fiber.dims:
            parts.add((fiber.tensor, n))
    classes = rank_classes(cascade)
    rows = [
        _row(walk, fiber, types[fiber.tensor], classes, len(fiber.dims) == 1 and (fiber.tensor, fiber.dims[0]) in parts)
        for fiber, walk in sorted(walks.items(), key=lambda item: _order(item[0], types))
        if walk.visits
    ]
    return tuple(rows)


def _order(fiber: _Fiber, types: Mapping[str, TensorType]) -> tuple[int, int, int]:
    """By tensor, joint fibers before those of their parts."""
    return list(types).index(fiber.tensor), -len(fiber.dims), fiber.dims[0]


def _walk(cascade: Cascade, types: Mapping[str, TensorType], facts: Facts, fiber: _Fiber) -> FiberWalk:
    place = int_expr(0)
    for n in fiber.dims:
        place = place * types[fiber.tensor].shape[n] + var(dimension(n))
    own = frozenset().union(*(variables(e) for p in cascade.params for e in p.type.shape))
    walk = FiberWalk(facts, (fiber.tensor, place), own)
    walk.seed(p.name for p in cascade.params)
    walk.run(cascade.steps)
    return walk


def _scans_around(steps: Iterable[Step], outer: dict[str, IntExpr]) -> Iterator[tuple[str, dict[str, IntExpr]]]:
    """Extents of the scan ranks around each tensor."""
    for step in steps:
        for out in step.outs:
            yield out, outer
        if isinstance(step, Scan):
            inner = {**outer, step.rank.name: step.rank.extent}
            for c in step.carries:
                yield c.name, inner
            yield from _scans_around(step.body, inner)


def _places(
    walks: Mapping[_Fiber, FiberWalk],
    types: Mapping[str, TensorType],
    around: Mapping[str, dict[str, IntExpr]],
    facts: Facts,
) -> Iterator[tuple[str, Trace, list[int], bool]]:
    """For each tensor with a coordinate: its trace, its dimensions in the coordinate, and whether a scan's or loop's step is in it too."""
    for walk in walks.values():
        for tensor, trace in walk.traces.items():
            if trace.at is None:
                continue
            extents = {dimension(n): e for n, e in enumerate(types[tensor].shape)}
            ranks = covering(trace.at, {**around.get(tensor, {}), **extents}, facts).ranks
            scanned = any(r not in extents for r in ranks) or bool(walk.steps_outside(trace.at))
            yield tensor, trace, [int(r[1:]) for r in ranks if r in extents], scanned


def _split_fibers(
    walks: Mapping[_Fiber, FiberWalk],
    types: Mapping[str, TensorType],
    around: Mapping[str, dict[str, IntExpr]],
    facts: Facts,
) -> Iterator[_Fiber]:
    """Several dimensions of a tensor that split one dimension of another."""
    for tensor, trace, dims, scanned in _places(walks, types, around, facts):
        if trace.whole and len(dims) > 1 and not scanned:
            yield _Fiber(tensor, tuple(dims))


def _partitions(
    walks: Mapping[_Fiber, FiberWalk],
    types: Mapping[str, TensorType],
    around: Mapping[str, dict[str, IntExpr]],
    facts: Facts,
) -> set[tuple[str, int]]:
    """Dimensions that number the blocks of a larger fiber, or the elements of one of its blocks."""
    found: set[tuple[str, int]] = set()
    for tensor, trace, dims, scanned in _places(walks, types, around, facts):
        if not trace.whole or len(dims) > 1 or scanned:
            found.update((tensor, n) for n in dims)
    found.update((f.tensor, n) for f, walk in walks.items() if walk.window for n in f.dims)
    return found


def _declared(cascade: Cascade, types: Mapping[str, TensorType], splits: Splits) -> Iterator[_Fiber]:
    """Tensors that have all ranks of a declared split."""
    for tensor, of in types.items():
        for names in splits:
            dims = [_dims_of(cascade, of, name, tensor) for name in names]
            if all(dims):
                yield _Fiber(tensor, tuple(d[0] for d in dims))


# --- rows ------------------------------------------------------------------------------------------------------------


def _row(walk: FiberWalk, fiber: _Fiber, of: TensorType, classes: Iterable[RankClass], partition: bool) -> PassCount:
    rank = _rank_name(fiber, of, classes)
    count = max(walk.index[v] for v in walk.visits)
    barriers = tuple(
        Barrier(r.reduction, r.reader, r.tensor, rank, fiber.tensor, r.level, r.against) for r in walk.revisits
    )
    return PassCount(
        fiber.tensor,
        rank,
        fiber.dims,
        count,
        tuple(walk.index.items()),
        frozenset(walk.visits),
        barriers,
        _footprint(walk, fiber, of, count),
        partition,
        tuple(walk.repeats.items()),
    )


def _rank_name(fiber: _Fiber, of: TensorType, classes: Iterable[RankClass]) -> str:
    n = fiber.dims[0]
    if len(fiber.dims) == 1 and of.shape[n].is_var:
        return show_extent(of.shape[n])
    for c in classes:
        if (fiber.tensor, n) in c.dims and c.names:
            return c.name
    return name_of(of.shape[n], n)


def _footprint(walk: FiberWalk, fiber: _Fiber, of: TensorType, count: int) -> Footprint:
    elements = int_expr(1)
    whole = list(walk.window.values()) or [of.shape[n] for n in fiber.dims]
    parts = whole if count > 1 else list(walk.blocks.values())
    for extent in parts:
        elements = elements * extent
    return Footprint(elements, elements * of.dtype.bytes, count > 1)


def _dims_of(cascade: Cascade, of: TensorType, rank: str | RankClass, tensor: str) -> list[int]:
    """Dimensions of a tensor that `rank` names: by the extent's symbol, else by the class it is in."""
    if isinstance(rank, str):
        named = [n for n, e in enumerate(of.shape) if e.is_var and show_extent(e) == rank]
        named += [
            n for s in flat(cascade.steps) if tensor in s.outs for n, r in enumerate(s.ranks) if r.name == rank
        ]
        if named:
            return named
        classes = [c for c in rank_classes(cascade) if rank in c.names]
    else:
        classes = [rank]
    return sorted(n for c in classes for t, n in c.dims if t == tensor)


# --- programs --------------------------------------------------------------------------------------------------------


def cascades_of(program: Cascade | Program) -> tuple[Cascade, ...]:
    """A program's straight-line parts as cascades: its kernels, and the runs of Einsums and scans between other statements."""
    if isinstance(program, Cascade):
        return (program,)
    found = [k.cascade for k in program.kernels]
    types = tensor_types(program)
    runs = list(_runs(program.body))
    wanted = set(_read_by_control(program.body))
    for number, run in enumerate(runs):
        made = [o for s in run for o in s.outs]
        elsewhere = wanted.union(r for other in runs if other is not run for s in other for r in s.reads)
        reads = dict.fromkeys(r for s in run for r in s.reads if r not in made)
        params = tuple(ProgramParam(r, types[r]) for r in reads)
        name = program.name if number == 0 else f"{program.name}_{number + 1}"
        results = tuple(o for o in made if o in elsewhere)
        found.append(Cascade(name, params, run, results, program.symbols, loc=program.loc))
    return tuple(found)


def _read_by_control(region: Region) -> Iterator[str]:
    """What regions yield and statements other than Einsums and scans read."""
    yield from region.yields
    for stmt in region.body:
        if not isinstance(stmt, (Einsum, Scan)):
            yield from stmt.reads
        for inner in regions(stmt):
            yield from _read_by_control(inner)


def _runs(region: Region) -> Iterator[tuple[Step, ...]]:
    run: list[Step] = []
    for stmt in region.body:
        if isinstance(stmt, (Einsum, Scan)):
            run.append(stmt)
            continue
        if run:
            yield tuple(run)
            run = []
        for inner in regions(stmt):
            yield from _runs(inner)
    if run:
        yield tuple(run)
