"""A cascade laid on a target: the array, pass and phase of each operation, the level each tensor lives on, the tiles.

Levels, from the inside: `file`, the register files of the array that made it; `stage`, those of the 1-D array seen from the
2-D one; `buffer`, on chip; `dram`. A tensor goes no further out than its farthest reader asks:

same array, same step of the stream     file
another array, at most one rank of an array dimension (a broadcast or a column's sum)     stage
another array, a whole tile; a later pass; after the stream; the next step; once more along the parallel rank     buffer
another phase; a result; what does not fit the buffer over a whole pass     dram
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from dlc.costmodel.spatial.cascade import Normal, Operation, Tensor
from dlc.costmodel.spatial.errors import BufferTooSmall, UnknownOperation, UnmappableCascade
from dlc.costmodel.spatial.roles import Roles, in_passes, outside_stream, roles_of
from dlc.costmodel.spatial.target import Nest, Selector, Target

LEVELS = ("file", "stage", "buffer", "dram")


@dataclass(frozen=True, slots=True)
class Bound:
    """An operation with its place in space and time.

    Attributes:
        crossings: how often the longest path to it within a step changes the array.
        feeds: arrays that read its result within the step.
        outside: not in the loop over the stream.
    """

    op: Operation
    array: str
    pass_index: int
    phase: int
    crossings: int
    feeds: frozenset[str]
    outside: bool


@dataclass(frozen=True)
class Plan:
    """Everything the counts depend on.

    Attributes:
        spilled: tensors that a whole pass of would not fit the buffer.
        tiles: per phase, how many array-wide pieces of the parallel rank a tile of the buffer holds.
    """

    target: Target
    normal: Normal
    roles: Roles
    bound: tuple[Bound, ...]
    spilled: frozenset[str] = frozenset()
    tiles: tuple[int, ...] = ()

    @cached_property
    def producer(self) -> dict[str, Bound]:
        """Who makes a tensor; a state's maker is that of its next value."""
        made = {b.op.out: b for b in self.bound}
        return made | {state: made[after] for state, after in self.normal.next_of.items() if after in made}

    @cached_property
    def phases(self) -> range:
        return range(max(b.phase for b in self.bound) + 1)

    def of_phase(self, phase: int) -> list[Bound]:
        return [b for b in self.bound if b.phase == phase]

    def readers(self, tensor: str, phase: int | None = None) -> list[Bound]:
        return [b for b in self.bound if tensor in b.op.reads and phase in (None, b.phase)]

    def extent(self, rank: str) -> int:
        return self.normal.extents[rank]

    def nest(self, array: str) -> Nest:
        return self.target.mapping.nests[array]

    def lanes(self, array: str, role: str) -> int:
        """Elements of the array that a role is laid over; a rank shorter than the array leaves some idle."""
        nest = self.nest(array)
        if role not in nest.space:
            return 1
        rank = self.roles.stream if role == "stream" else self.roles.parallel
        return min(self.target.arrays[array].shape[nest.space.index(role)], self.extent(rank))

    def block(self, array: str) -> int:
        """Elements of the stream that go by in one step: as many as lie over the array, or over the one beside it."""
        if "stream" in self.nest(array).space:
            return self.lanes(array, "stream")
        return max(self.lanes(a, "stream") for a in self.target.arrays)

    def steps(self, array: str) -> int:
        return -(-self.extent(self.roles.stream) // self.block(array))

    def pieces(self, array: str) -> int:
        """How often the parallel rank fills the array."""
        return -(-self.extent(self.roles.parallel) // self.lanes(array, "parallel"))

    def held(self, bound: Bound) -> int:
        """Pieces of the parallel rank inside a tile of the buffer."""
        return self.tiles[bound.phase] if "parallel1" in self.nest(bound.array).below else 1

    # --- where tensors live ------------------------------------------------------------------------------------------

    def made_in(self, tensor: str, phase: int) -> bool:
        maker = self.producer.get(tensor)
        return maker is not None and maker.phase == phase

    def source(self, tensor: str, reader: Bound) -> str:
        """The level an operation takes a tensor from (`file`: it is there already)."""
        maker = self.producer.get(tensor)
        if maker is None or maker.phase != reader.phase:
            return "dram" if tensor in self.spilled or self.goes_round(tensor, reader) else "buffer"
        if maker.pass_index != reader.pass_index and tensor in self.spilled:
            return "dram"
        is_state = tensor in self.normal.next_of
        if maker.pass_index != reader.pass_index or is_state or maker.outside != reader.outside:
            return "buffer"
        if self.roles.parallel in reader.op.all_ranks and self.roles.parallel not in maker.op.all_ranks:
            return "buffer"  # made once, read again for every piece of the parallel rank
        if maker.array == reader.array:
            return "file"
        ranks = self.normal.tensors[tensor].ranks
        return "buffer" if {self.roles.stream, self.roles.parallel} <= set(ranks) else "stage"

    def goes_round(self, tensor: str, reader: Bound) -> bool:
        """Whether an earlier phase's result is taken from memory past the buffer: it is read once."""
        if tensor not in self.producer:
            return False
        passes = {b.pass_index for b in self.readers(tensor, reader.phase)}
        ranks = set(self.normal.tensors[tensor].ranks)
        return len(passes) == 1 and {self.roles.stream, self.roles.parallel} <= ranks

    def home(self, bound: Bound) -> str:
        """The outermost level that an operation's result is written to."""
        out = bound.op.out
        if out in self.normal.results:
            return "dram"
        found = "file"
        for name in {out, *(s for s, after in self.normal.next_of.items() if after == out)}:
            for reader in self.readers(name):
                level = "dram" if reader.phase != bound.phase else self.source(name, reader)
                found = max(found, level, key=LEVELS.index)
        return found

    def accumulates(self, bound: Bound) -> bool:
        """Whether partial sums stay over the steps of the stream, though each step's result is a tensor of its own."""
        return any(matches(s, self, bound) for s in self.target.mapping.accumulate)

    # --- the buffer --------------------------------------------------------------------------------------------------

    def crosses_passes(self, tensor: str, phase: int) -> bool:
        """Whether a tensor with the streamed rank must outlive a pass within the phase."""
        if self.roles.stream not in self.normal.tensors[tensor].ranks:
            return False
        passes = {b.pass_index for b in self.readers(tensor, phase)}
        if self.made_in(tensor, phase):
            passes.add(self.producer[tensor].pass_index)
        return len(passes) > 1

    def buffered(self, phase: int) -> Iterator[tuple[Tensor, Bound]]:
        """Tensors with a place in the buffer during a phase, each with an operation whose loops it lies under."""
        seen: set[str] = set()
        for b in self.of_phase(phase):
            for name in b.op.reads:
                if name not in seen and self.source(name, b) == "buffer":
                    seen.add(name)
                    yield self.normal.tensors[name], b
            out = self.normal.tensors[b.op.out]
            spills = (
                self.roles.stream in b.op.reduced and b.op.place == "outside" and "stream1" in self.nest(b.array).above
            )
            if out.name not in seen and out.kind != "state" and spills and self.home(b) == "dram":
                seen.add(out.name)
                yield out, b

    def footprint(self, tensor: Tensor, b: Bound, held: int) -> int:
        """Words of a tensor in the buffer while a tile is worked on."""
        words = 1
        for r in tensor.ranks:
            if r == self.roles.parallel:
                words *= min(self.lanes(b.array, "parallel") * held, self.extent(r))
            elif r == self.roles.stream:
                whole = self.crosses_passes(tensor.name, b.phase) and tensor.name not in self.spilled
                words *= self.extent(r) if whole else self.block(b.array)
            elif r not in self.roles.batch:
                words *= self.extent(r)
        return words

    def live_bytes(self, phase: int, held: int) -> int:
        return self.target.value_bytes * sum(self.footprint(t, b, held) for t, b in self.buffered(phase))


def matches(s: Selector, plan: Plan, b: Bound) -> bool:
    """Whether an operation has a selector's properties."""
    ranks = b.op.all_ranks
    return (
        s.array in (None, b.array)
        and s.stream in (None, plan.roles.stream in ranks)
        and s.parallel in (None, plan.roles.parallel in ranks)
        and s.inner in (None, bool(plan.roles.inner(ranks)))
        and s.folds_stream in (None, plan.roles.stream in b.op.reduced)
        and s.outside in (None, b.outside)
        and (s.feeds is None or s.feeds in b.feeds)
        and (s.crossings_min is None or b.crossings >= s.crossings_min)
        and (s.crossings_max is None or b.crossings <= s.crossings_max)
    )


def lay_out(normal: Normal, target: Target) -> Plan:
    """Bind a cascade's operations to the target's arrays and choose the largest tiles that fit.

    Raises:
        UnmappableCascade: more passes than the mapping covers, work on the stream outside the scan, no array.
        UnknownOperation: one that the array cannot do.
        BufferTooSmall: the smallest tile does not fit.
    """
    roles = roles_of(normal, target.name)
    passes = in_passes(normal, roles.stream)
    _check_covered(normal, roles, passes, target)
    bound = _bind(normal, roles, passes, target)
    plan = Plan(target, normal, roles, bound)
    for _ in range(len(normal.tensors) + 1):
        tiles = tuple(_tile(plan, phase) for phase in plan.phases)
        if all(tiles):
            return Plan(target, normal, roles, bound, plan.spilled, tiles)
        phase = tiles.index(0)
        long = [
            (t, b) for t, b in plan.buffered(phase) if plan.crosses_passes(t.name, phase) and t.name not in plan.spilled
        ]
        if not long:
            raise BufferTooSmall(
                plan.of_phase(phase)[0].op.loc,
                needed_bytes=plan.live_bytes(phase, 1),
                target=target.name,
                buffer_bytes=target.buffer.bytes,
                ranks=", ".join(roles.inner(normal.extents)) or roles.stream,
            )
        largest = max(long, key=lambda pair: plan.footprint(pair[0], pair[1], 1))[0].name
        plan = Plan(target, normal, roles, bound, plan.spilled | {largest})
    raise AssertionError("every round spills a tensor")


def _tile(plan: Plan, phase: int) -> int:
    """The most pieces of the parallel rank that fit the buffer and divide all of them; 0 where not one does."""
    arrays = {b.array for b in plan.of_phase(phase) if "parallel1" in plan.nest(b.array).below}
    pieces = max((plan.pieces(a) for a in arrays), default=1)
    fits = [
        d for d in range(1, pieces + 1) if pieces % d == 0 and plan.live_bytes(phase, d) <= plan.target.buffer.bytes
    ]
    return max(fits, default=0)


def _check_covered(normal: Normal, roles: Roles, passes: dict[str, int], target: Target) -> None:
    most = target.mapping.passes
    if normal.streamed is not None and target.mapping.phases == "arrays":
        reason = "it runs each array's part by itself, and the body of a scan is one loop nest"
        way_out = "give the cascade as it is without a scan, in several passes"
        raise UnmappableCascade(normal.operations[0].loc, target=target.name, reason=reason, way_out=way_out)
    for op in normal.operations:
        if most is not None and passes[op.out] >= most:
            reason = f"'{op.out}' is in pass {passes[op.out] + 1} over '{roles.stream}', and it covers {most}"
            way_out = "give a cascade of fewer passes (a running reduction: a scan over blocks), or another target"
            raise UnmappableCascade(op.loc, target=target.name, reason=reason, way_out=way_out)
        if normal.streamed is not None and op.place == "outside" and roles.stream in op.all_ranks:
            reason = f"'{op.out}' walks '{roles.stream}' outside the scan over it"
            raise UnmappableCascade(
                op.loc,
                target=target.name,
                reason=reason,
                way_out="give it a cascade of its own, or move it into the scan",
            )


def _bind(normal: Normal, roles: Roles, passes: dict[str, int], target: Target) -> tuple[Bound, ...]:
    arrays: dict[str, str] = {}
    bound: list[Bound] = []
    probe = Plan(target, normal, roles, ())
    for op in normal.operations:
        plain = Bound(op, "", passes[op.out], 0, 0, frozenset(), outside_stream(op, roles.stream))
        array = next((a for s, a in target.mapping.bind if matches(s, probe, plain)), None)
        if array is None:
            reason = f"no rule binds '{op.out}' to an array"
            raise UnmappableCascade(
                op.loc, target=target.name, reason=reason, way_out="add a rule to the target's `bind`"
            )
        known = target.arrays[array].operations
        for name in op.work:
            if name not in known:
                raise UnknownOperation(op.loc, target=target.name, op=name, array=array, known=", ".join(known))
        arrays[op.out] = array
    crossings = _crossings(normal, arrays)
    phase = -1
    for n, op in enumerate(normal.operations):
        array = arrays[op.out]
        if n == 0 or (target.mapping.phases == "arrays" and array != bound[-1].array):
            phase += 1
        feeds = frozenset(arrays[r.out] for r in normal.operations if op.out in r.reads and r.place == op.place)
        outside = outside_stream(op, roles.stream)
        bound.append(Bound(op, array, passes[op.out], phase, crossings[op.out], feeds, outside))
    return tuple(bound)


def _crossings(normal: Normal, arrays: dict[str, str]) -> dict[str, int]:
    """Per operation, array changes on the longest path to it within a step; a state is of the step before."""
    found: dict[str, int] = {}
    for op in normal.operations:
        count = 0
        for tensor in op.reads:
            if tensor in found:
                count = max(count, found[tensor] + (arrays[tensor] != arrays[op.out]))
        found[op.out] = count
    return found
