"""Which rank of a cascade is streamed, which is laid over the array beside it, and in which pass each operation is.

Mappings speak of four roles: the *stream* rank (keys of attention) comes by in blocks; the *parallel* rank (queries) is laid
over the array and kept on chip; *batch* ranks index everything that is made; all others are *inner*, walked inside one
element of the array.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dlc.costmodel.spatial.cascade import Normal, Operation
from dlc.costmodel.spatial.errors import UnmappableCascade


@dataclass(frozen=True, slots=True)
class Roles:
    """The stream and parallel ranks and the batch ranks; whatever is left is inner."""

    stream: str
    parallel: str
    batch: tuple[str, ...]

    def inner(self, ranks: Iterable[str]) -> tuple[str, ...]:
        return tuple(r for r in ranks if r not in (self.stream, self.parallel, *self.batch))


def roles_of(normal: Normal, target: str) -> Roles:
    """The roles of a cascade's ranks.

    The stream is the scanned rank; without a scan the one over which the cascade makes the most passes; then one that an
    intermediate result has and a later operation folds; then a free rank of the widest operation, or one that it folds.
    The parallel rank is beside it in what is made: first one that some streamed input lacks (that input is used again along
    it), then the longest.

    Raises:
        UnmappableCascade: it has no two such ranks.
    """
    stream = normal.streamed or _stream_of(normal)
    made = {t for op in normal.operations for t in (op.out,)}
    beside = [r for op in normal.operations if stream in op.all_ranks for r in op.ranks if r != stream]
    everywhere = set.intersection(*(set(op.ranks) for op in normal.operations)) if normal.operations else set()
    streamed_inputs = [
        t for t in normal.tensors.values() if t.name not in made and stream in t.ranks and t.kind == "input"
    ]
    if not beside:
        reason = "no operation has a second rank to lay over the array"
        loc = normal.operations[0].loc if normal.operations else None
        raise UnmappableCascade(
            loc, target=target, reason=reason, way_out="the mapping is for results of two ranks or more"
        )

    def merit(rank: str) -> tuple[bool, bool, int]:
        reused = any(rank not in t.ranks for t in streamed_inputs)
        return reused, _beside_stream(normal, rank, stream), normal.extents[rank]

    parallel = max(dict.fromkeys(beside), key=merit)
    batch = tuple(r for r in dict.fromkeys(beside) if r in everywhere and r != parallel)
    return Roles(stream, parallel, batch)


def _beside_stream(normal: Normal, rank: str, stream: str) -> bool:
    return any(rank in op.ranks and stream in op.ranks for op in normal.operations)


def _stream_of(normal: Normal) -> str:
    ranks = sorted({r for op in normal.operations for r in op.all_ranks}, key=lambda r: (-normal.extents[r], r))
    by_passes = max(ranks, key=lambda r: max(passes_over(normal, r).values(), default=0), default="")
    if by_passes and max(passes_over(normal, by_passes).values(), default=0) > 0:
        return by_passes
    made: dict[str, tuple[str, ...]] = {}
    for op in normal.operations:
        for r in op.reduced:
            if any(r in made.get(t, ()) for t in op.reads):
                return r
        made[op.out] = op.ranks
    widest = max(normal.operations, key=lambda op: len(op.all_ranks))
    if len(widest.ranks) < 2 and widest.reduced:
        return widest.reduced[0]
    return min(widest.ranks, key=lambda r: (sum(r in t.ranks for t in normal.tensors.values()), -widest.ranks.index(r)))


def passes_over(normal: Normal, rank: str) -> Mapping[str, int]:
    """The pass over `rank`, counted from 0, in which each operation's result is made.

    What was made by folding the rank exists only after all of it was seen, so whoever walks the rank with it starts again.
    Of a cascade without a scan: a running value is known step by step and adds no pass.

    Source: FuseMax, section 3, as a longest path over the Einsums.
    """
    made_in: dict[str, tuple[int, bool]] = {}  # pass, and whether all of it must be over
    found: dict[str, int] = {}
    for op in normal.operations:
        walks = rank in op.all_ranks
        own, waits = 0, False
        for tensor in op.reads:
            at, over = made_in.get(tensor, (0, False))
            own = max(own, at + (over and walks))
            waits = waits or (over and not walks)
        made_in[op.out] = (own, rank in op.reduced or waits)
        found[op.out] = own
    return found


def in_passes(normal: Normal, stream: str) -> dict[str, int]:
    """The pass of each operation; a scan is one pass, and what is made of its last state belongs to it."""
    if normal.streamed is not None:
        return {op.out: 0 for op in normal.operations}
    return dict(passes_over(normal, stream))


def outside_stream(op: Operation, stream: str) -> bool:
    """Whether an operation runs once, after (or before) the stream has gone by, and not per block."""
    return op.place == "outside" and stream not in op.all_ranks
