"""A complete search for a packing below a capacity: the buffers from the lowest address up, each as low as it goes.

Whatever can be packed can be packed *canonically*: push every buffer down until it rests on another or on address 0,
and read the buffers by rising offset. So the search places buffers in an order of rising offsets, each at the lowest
offset that what is placed leaves it, and only has to decide which is next. What it leaves out, and why nothing is lost:

- an offset below the last one: that buffer would have come earlier (monotonic floor);
- a buffer that would lie above the end another could have: the other could be moved into the hole (dominance);
- the second of two buffers of equal size and life (symmetry);
- a state in which some time has more to place than fits above the lowest offset that any of it can still have, so with
  the holes that nothing can fill any more counted as lost, or in which a buffer cannot end below the capacity;
- where no buffer left crosses a time, both sides are searched on their own, and one that fails fails both: what was
  decided in the other is not tried again.

Times at which no more is alive than at a neighbouring time say nothing and are dropped (*sections* are what remains).
Children are tried by (offset, rank); ranks come from a *preorder*. One preorder may need an hour for what another finds
at once, so the caller restarts with many.

`advance` is written in the integers and arrays that `codegen/integers.py` compiles: the same text runs in Python, for
small instances, and as native code, two hundred times as fast.

Source: Moffitt, MiniMalloc, ASPLOS 2023 (canonical solutions, sections, monotonic floor, dominance, decomposition,
preorders).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dlc.passes.packing.buffers import Buffer

Ints: TypeAlias = NDArray[np.int64]
Advance: TypeAlias = Callable[..., int]

PLACED = 1 << 60
"""Offset of a buffer that is placed already: above every other."""

OPEN = 0
FOUND = 1
NONE = 2
"""Answers of `advance`: the node limit came first, a packing, no packing."""

FADE = 50
"""Percent of the blame that stays."""

# A frame is the decision which buffer is next. It has these fields, and a state after it in the slot one above its own.
FRAME = 10
SLOT = 0  # state before the decision: the lowest offset of each buffer, the bytes to place in each section
LOW = 1  # sections [LOW, HIGH) are what it is about
HIGH = 2
FLOOR = 3  # offset of the last buffer placed here
BELOW = 4  # a buffer has to start below this: the lowest end of one that is left
OFFSET = 5  # of the child tried last
BUFFER = 6  # the child tried last, -1 before the first
KEEP = 7  # frames that stay when this one fails: up to the decision that split these sections off
WAITING = 8  # pieces to pack afterwards, -1 when there are none
TOP = 9  # the first piece that is free

# A piece is sections that wait: a list through NEXT.
PIECE = 6
PIECE_SLOT = 0
PIECE_LOW = 1
PIECE_HIGH = 2
PIECE_FLOOR = 3
PIECE_KEEP = 4
NEXT = 5

# Registers
DEPTH = 0
NODES = 1
WORST = 2  # the section that failed last


class Instance:
    """What all searches of one set of buffers share, as arrays over buffers and sections.

    Attributes:
        first, last: sections of each buffer, `[first, last)`.
        starts, members: buffers of section s are `members[starts[s]:starts[s + 1]]`.
        load: bytes alive in each section.
        twin: buffers that can be exchanged for each other have the same number; -1 for all others.
    """

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.buffers = buffers
        self.count = len(buffers)
        lower, upper, self.size, self.alignment = (
            np.array([getattr(b, name) for b in buffers], np.int64) for name in ("lower", "upper", "size", "alignment")
        )
        self.fixed = np.array([-1 if b.offset is None else b.offset for b in buffers], np.int64)
        self.life = upper - lower
        sections = _sections(lower, upper)
        self.first, self.last = np.full(self.count, len(sections)), np.zeros(self.count, np.int64)
        for number, members in enumerate(sections):
            self.first[members] = np.minimum(self.first[members], number)
            self.last[members] = number + 1
        self.starts = np.cumsum([0, *map(len, sections)])
        self.members = np.concatenate(sections)
        self.load = np.array([self.size[s].sum() for s in sections])
        self.twin = self._twins()

    def _twins(self) -> Ints:
        keys = [(b.size, f, e, b.alignment, b.offset) for b, f, e in zip(self.buffers, self.first, self.last)]
        groups: dict[object, list[int]] = {}
        for index, key in enumerate(keys):
            groups.setdefault(key, []).append(index)
        twin = np.full(self.count, -1, np.int64)
        for number, group in enumerate(groups.values()):
            if len(group) > 1:
                twin[group] = number
        return twin

    def key(self, letter: str) -> NDArray[np.float64]:
        """A number per buffer: W its life, Z its size, A its area, T the most that is alive during its life."""
        match letter:
            case "W":
                return self.life.astype(np.float64)
            case "Z":
                return self.size.astype(np.float64)
            case "A":
                return self.life.astype(np.float64) * self.size
            case _:
                most = [self.load[f:e].max() for f, e in zip(self.first, self.last, strict=True)]
                return np.array(most, np.float64)


class Search:
    """Searches for packings of one instance below `capacity`, one preorder at a time.

    Attributes:
        nodes: decisions opened so far, by all runs.
    """

    def __init__(self, instance: Instance, capacity: int, native: Advance | None = None) -> None:
        count, sections = instance.count, len(instance.load)
        self.instance = instance
        self.nodes = 0
        latest = capacity - instance.size
        latest = np.where(instance.fixed < 0, latest, np.minimum(latest, instance.fixed))
        arrays = (
            instance.size, instance.first, instance.last, instance.alignment, instance.fixed, latest,
            instance.twin, np.zeros(count), instance.starts, instance.members,
            np.zeros((count + 2) * count), np.zeros((count + 2) * sections), np.zeros((count + 2) * FRAME),
            np.zeros((2 * count + 4) * PIECE), np.zeros(sections + 1), np.zeros(sections),
            np.zeros(3),
        )  # fmt: skip
        whole = [np.ascontiguousarray(a, np.int64) for a in arrays]
        self._advance = native or advance
        self._arrays: list[Any] = list(whole) if native else [a.tolist() for a in whole]  # lists are faster in Python
        self._scalars = (count, sections, capacity)
        self._rank, self._offsets, self._left = (self._arrays[i] for i in (7, 10, 11))
        self._frames, self._blame, self._registers = (self._arrays[i] for i in (12, 15, 16))

    def begin(self, order: Ints) -> None:
        """Start again, with another preorder."""
        of = self.instance
        for rank, buffer in enumerate(order.tolist()):
            self._rank[buffer] = rank
        self._offsets[: of.count] = np.maximum(of.fixed, 0).tolist()
        self._left[: len(of.load)] = of.load.tolist()
        below = int(np.where(of.fixed < 0, of.size, PLACED).min())
        self._frames[:FRAME] = [0, 0, len(of.load), 0, below, -1, -1, 0, -1, 0]
        self._registers[:] = [0, 0, 0]

    def advance(self, limit: int) -> int:
        """Open up to `limit` more decisions; FOUND, NONE or OPEN."""
        before = int(self._registers[NODES])
        answer = self._advance(*self._scalars, limit, *self._arrays)
        self.nodes += int(self._registers[NODES]) - before
        return answer

    def blame(self) -> NDArray[np.float64]:
        """For each buffer how often a section of its life was what failed, most of its sections, from 0 to 1."""
        of, failed = self.instance, np.array(self._blame, np.float64)
        most = np.array([failed[f:e].max() for f, e in zip(of.first, of.last, strict=True)])
        return most / max(most.max(), 1.0)

    def fade(self) -> None:
        """Blame of long ago counts less."""
        self._blame[:] = [n * FADE // 100 for n in map(int, self._blame)]

    def offsets(self) -> tuple[int, ...]:
        """The packing, after FOUND."""
        found = [0] * self.instance.count
        for depth in range(int(self._registers[DEPTH]) + 1):
            frame = self._frames[depth * FRAME : (depth + 1) * FRAME]
            found[int(frame[BUFFER])] = int(frame[OFFSET])
        return tuple(found)


def _sections(lower: Ints, upper: Ints) -> list[Ints]:
    """The sets of buffers alive at some time that are part of no neighbouring set, in the order of time."""
    kept: list[set[int]] = []
    for now in np.unique(lower):
        alive = set(np.flatnonzero((lower <= now) & (now < upper)).tolist())
        if kept and kept[-1] <= alive:
            kept[-1] = alive
        elif not kept or not alive <= kept[-1]:
            kept.append(alive)
    return [np.array(sorted(s), np.int64) for s in kept]


def advance(
    count: int, sections: int, capacity: int, limit: int,
    size: Any, first: Any, last: Any, alignment: Any, fixed: Any, latest: Any, twin: Any, rank: Any,
    starts: Any, members: Any, offsets: Any, left: Any, frames: Any, pieces: Any, crossing: Any, blame: Any, registers: Any,
) -> int:  # fmt: skip
    """Go on with the search where the arrays say it stands."""
    depth = registers[DEPTH]
    nodes = 0
    while depth >= 0:
        if nodes >= limit:
            registers[DEPTH] = depth
            registers[NODES] += nodes
            return OPEN
        f = depth * FRAME
        state = frames[f + SLOT] * count
        bytes_left = frames[f + SLOT] * sections
        low = frames[f + LOW]
        high = frames[f + HIGH]

        # the next child by (offset, rank)
        p = -1
        tried = frames[f + BUFFER]
        at = frames[f + BELOW]
        for j in range(count):
            o = offsets[state + j]
            if o >= frames[f + FLOOR] and o <= at and first[j] >= low and first[j] < high:
                if o < at or (p >= 0 and rank[j] < rank[p]):
                    if tried < 0 or o > frames[f + OFFSET] or (o == frames[f + OFFSET] and rank[j] > rank[tried]):
                        p = j
                        at = o
        if p < 0:
            depth = frames[f + KEEP] - 1
            continue
        frames[f + BUFFER] = p
        frames[f + OFFSET] = at
        if twin[p] >= 0:
            again = 0
            for j in range(count):
                if twin[j] == twin[p] and rank[j] < rank[p] and offsets[state + j] < PLACED:
                    again = 1
            if again:
                continue

        if at > latest[p]:
            continue
        end = at + size[p]

        # what failed last fails most often: see first whether it does again
        s = registers[WORST]
        if s >= low and s < high:
            more = left[bytes_left + s]
            inside = 0
            if s >= first[p] and s < last[p]:
                more -= size[p]
                inside = 1
            if more > 0:
                highest = capacity - more  # some buffer has to start here or below
                fits = 0
                if at <= highest and (inside == 0 or end <= highest):
                    for i in range(starts[s], starts[s + 1]):
                        j = members[i]
                        o = offsets[state + j]
                        if o <= highest and j != p:
                            if end <= highest or first[j] >= last[p] or last[j] <= first[p]:
                                fits = 1
                                break
                if fits == 0:
                    blame[s] += 1
                    continue

        # the state after it
        after = (depth + 1) * count
        left_after = (depth + 1) * sections
        fits = 1
        for j in range(count):
            o = offsets[state + j]
            if o < end and first[j] < last[p] and first[p] < last[j]:
                o = end
                if alignment[j] > 1:
                    o = (end + alignment[j] - 1) // alignment[j] * alignment[j]
            if first[j] >= low and first[j] < high and o < PLACED:
                if max(o, at) > latest[j] and j != p:
                    fits = 0
            offsets[after + j] = o
        if fits == 0:
            continue
        offsets[after + p] = PLACED
        for s in range(low, high):
            more = left[bytes_left + s]
            if s >= first[p] and s < last[p]:
                more -= size[p]
            left[left_after + s] = more
            if more > 0:
                highest = capacity - more
                fits = 0
                if at <= highest:
                    for i in range(starts[s], starts[s + 1]):
                        if offsets[after + members[i]] <= highest:
                            fits = 1
                            break
                if fits == 0:
                    blame[s] += 1
                    registers[WORST] = s
                    break
        if fits == 0:
            continue
        nodes += 1

        # what is left, in pieces that share no section
        waiting = frames[f + WAITING]
        top = frames[f + TOP]
        for s in range(low, high + 1):
            crossing[s] = 0
        for j in range(count):
            if offsets[after + j] < PLACED and first[j] >= low and first[j] < high:
                crossing[first[j] + 1] += 1
                crossing[last[j]] -= 1
        running = 0
        some = 0
        begin = low
        for border in range(low + 1, high + 1):
            running += crossing[border]
            if left[left_after + border - 1] > 0:
                some = 1
            if running == 0:
                if some:
                    pieces[top * PIECE + PIECE_SLOT] = depth + 1
                    pieces[top * PIECE + PIECE_LOW] = begin
                    pieces[top * PIECE + PIECE_HIGH] = border
                    pieces[top * PIECE + PIECE_FLOOR] = at
                    pieces[top * PIECE + PIECE_KEEP] = depth + 1
                    pieces[top * PIECE + NEXT] = waiting
                    waiting = top
                    top += 1
                some = 0
                begin = border
        if waiting < 0:
            registers[DEPTH] = depth
            registers[NODES] += nodes
            return FOUND

        # the next decision is about the first piece
        depth += 1
        f = depth * FRAME
        q = waiting * PIECE
        frames[f + SLOT] = pieces[q + PIECE_SLOT]
        frames[f + LOW] = pieces[q + PIECE_LOW]
        frames[f + HIGH] = pieces[q + PIECE_HIGH]
        frames[f + FLOOR] = pieces[q + PIECE_FLOOR]
        frames[f + KEEP] = pieces[q + PIECE_KEEP]
        frames[f + WAITING] = pieces[q + NEXT]
        frames[f + BUFFER] = -1
        frames[f + TOP] = top
        below = PLACED
        for j in range(count):
            o = offsets[pieces[q + PIECE_SLOT] * count + j]
            if o < PLACED and fixed[j] < 0 and first[j] >= pieces[q + PIECE_LOW] and first[j] < pieces[q + PIECE_HIGH]:
                below = min(below, max(o, pieces[q + PIECE_FLOOR]) + size[j])
        frames[f + BELOW] = below
    registers[DEPTH] = depth
    registers[NODES] += nodes
    return NONE
