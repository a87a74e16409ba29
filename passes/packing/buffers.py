"""What is packed, and what packing answers.

A buffer occupies `[lower, upper) x [offset, offset + size)`: a rectangle whose time is given and whose address is
wanted. Two buffers overlap in time when their half-open lives do; an empty life or size takes no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Buffer:
    """One buffer.

    Attributes:
        lower, upper: its life, half-open.
        size: bytes.
        alignment: its offset is a multiple of this.
        offset: the offset it has to have, or None where it is free.
        hint: an offset to try first; it changes what is found, never what exists.
    """

    id: str
    lower: int
    upper: int
    size: int
    alignment: int = 1
    offset: int | None = None
    hint: int | None = None

    @property
    def empty(self) -> bool:
        """Whether it takes no room at all."""
        return self.size <= 0 or self.upper <= self.lower

    def meets(self, other: Buffer) -> bool:
        """Whether both are alive at some time."""
        return self.lower < other.upper and other.lower < self.upper


@dataclass(frozen=True, slots=True)
class Packed:
    """Offsets, one for each buffer in the order given."""

    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No packing exists.

    Attributes:
        proof: why, in words: a time with too much alive, or a search that left nothing out.
        least: no capacity below this one can do, so far as the proof shows.
    """

    proof: str
    least: int


@dataclass(frozen=True, slots=True)
class NotFound:
    """The time was up, or the search gave up, with the question open."""

    seconds: float
    nodes: int


Answer: TypeAlias = Packed | Infeasible | NotFound


def align(offset: int, alignment: int) -> int:
    """The least multiple of `alignment` that is not below `offset`."""
    return -(-offset // alignment) * alignment


def most_live(buffers: Sequence[Buffer]) -> tuple[int, int]:
    """The most bytes that are alive at once, and the first time at which they are: no packing is lower."""
    best, at, live = 0, 0, 0
    events = [(b.lower, b.size) for b in buffers if not b.empty] + [(b.upper, -b.size) for b in buffers if not b.empty]
    for time, change in sorted(events):  # at one time what ends comes first: lives are half-open
        live += change
        if live > best:
            best, at = live, time
    return best, at


def height(buffers: Sequence[Buffer], offsets: Sequence[int]) -> int:
    """Bytes up to the highest end."""
    return max((o + b.size for b, o in zip(buffers, offsets, strict=True) if not b.empty), default=0)


def check(buffers: Sequence[Buffer], offsets: Sequence[int], capacity: int | None = None) -> str | None:
    """What is wrong with a packing, or None: read against the definition, pair by pair."""
    for b, offset in zip(buffers, offsets, strict=True):
        if offset < 0 or offset % b.alignment:
            return f"'{b.id}' is at {offset}, no multiple of {b.alignment}"
        if b.offset is not None and offset != b.offset:
            return f"'{b.id}' is at {offset}, not at {b.offset}"
        if capacity is not None and not b.empty and offset + b.size > capacity:
            return f"'{b.id}' ends at {offset + b.size}, above {capacity}"
    placed = sorted(
        ((o, b) for b, o in zip(buffers, offsets, strict=True) if not b.empty), key=lambda p: (p[0], p[1].lower)
    )
    for index, (low, a) in enumerate(placed):
        for other, b in placed[index + 1 :]:
            if other >= low + a.size:
                break
            if a.meets(b):
                return f"'{a.id}' and '{b.id}' overlap"
    return None
