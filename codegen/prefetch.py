"""Prefetches of an operand that streams through a kernel once.

Loads that feed a few multiply-adds each wait in the processor's queues together with those, which leaves fewer of them under
way than memory needs to be busy; a prefetch waits for nothing. Lines go to L2, whose own prefetching carries on from there.
(Keys f32[8, 4096, 128] under 4 queries, 2 threads of a Zen 4: 570 to 660 us without, 470 to 490 us with; their sum takes 475 to
525 us.)
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from dlc.codegen.point import Emitter, Space, affine_parts
from dlc.codegen.target import Target
from dlc.ir.expr import Access
from dlc.ir.extent import split_linear
from dlc.ir.interval import interval

AHEAD_BYTES = 16384
"""How far ahead of the loads."""
MOST_ROWS = 8
"""Rows with which the arithmetic on a line takes no longer than its way from memory."""
_L2 = 2
_LEAST_TASKS = 8


@dataclass(frozen=True)
class Stream:
    """An access whose lines are asked for `distance` indices of `rank` before they are read."""

    access: Access
    rank: str
    distance: int

    def ask(self, em: Emitter, space: Space) -> None:
        """Prefetch what a tile at `space` will read, a line for each of its registers."""
        store = em.storage[self.access.tensor]
        later = replace(space, base={**space.base, self.rank: space.base[self.rank] + self.distance})
        parts = affine_parts(em.flat(store, self.access.index), later)
        if parts is None:
            return  # a tile whose registers lie at places of their own
        start, _, slopes = parts
        counts = [s.count if slope.const != 0 else 1 for s, slope in zip(space.slots, slopes, strict=True)]
        for slot in itertools.product(*map(range, counts)):
            offset = start
            for k, slope in zip(slot, slopes, strict=True):
                offset = offset + slope * k
            em.b.prefetch(store.buffer, offset, _L2)


def find_stream(em: Emitter, access: Access, rank: str, target: Target) -> Stream | None:
    """How to ask for `access` ahead of time along `rank`; None when it may lie in the caches anyway."""
    store = em.storage[access.tensor]
    most = interval(store.type.elements, em.facts.ranks, em.facts.symbols)[1]
    along = split_linear(em.flat(store, access.index), rank)
    if along is None or along[0].const is None or along[0].const < 1:
        return None
    if most is not None and most * store.type.dtype.bytes < 2 * target.l2_bytes:
        return None
    pace = along[0].const * store.type.dtype.bytes
    length = em.facts.ranks[rank].const
    if length is not None and length * pace < 2 * AHEAD_BYTES:
        return None  # many short ones: the next begins before this one could be asked for
    distance = -(-AHEAD_BYTES // pace)
    return Stream(access, rank, distance)


def streamed_vectors(columns: int, rows: int, lanes: int, target: Target, groups: int) -> int:
    """Vectors of a panel that is read where it lies, for all rows in one tile: as much of a line of memory as the registers hold.

    Args:
        groups: tasks there are for each panel; with fewer than eight in all, the panels are made smaller.
    """
    # AVX-512 multiplies by a scalar in memory. Sums that leave no register for the vector itself cost a spill each time,
    # lines left out of a row more: under 4 queries 8 vectors read f32[8, 32768, 128] at 31 to 34 GB/s, 4 at 25 to 28
    embedded = target.vector_registers >= 32
    most = max(1, target.vector_registers // rows if embedded else (target.vector_registers - 1) // (rows + 1))
    vectors = -(-columns // lanes)
    panels = max(-(-vectors // most), min(vectors, -(-_LEAST_TASKS // max(groups, 1))))
    return -(-vectors // panels)


__all__ = ["MOST_ROWS", "Stream", "find_stream", "streamed_vectors"]
