"""A complete search for a packing below a capacity: the buffers from the lowest address up, each as low as it goes.

Whatever can be packed can be packed *canonically*: push every buffer down until it rests on another or on address 0,
and read the buffers by rising offset. So the search places buffers in an order of rising offsets, each at the lowest
offset that what is placed leaves it, and only has to decide which is next. What it leaves out, and why nothing is lost:

- an offset below the last one: that buffer would have come earlier (monotonic floor);
- a buffer that would lie above the end another could have: the other could be moved into the hole (dominance);
- the second of two buffers of equal size and life (symmetry);
- a state in which some time has more to place than fits above the lowest offset that any of it can still have, so with
  the holes that nothing can fill any more counted as lost, or in which a buffer cannot end below the capacity;
- where no buffer left crosses a time, both sides are searched on their own, and one that fails fails both.

Times at which no more is alive than at a neighbouring time say nothing and are dropped (*sections* are what remains).
The order of trial is (offset, rank); ranks come from a *preorder*. One preorder may need an hour for what another finds
at once, so the caller restarts with many.

Source: Moffitt, MiniMalloc, ASPLOS 2023 (canonical solutions, sections, monotonic floor, dominance, decomposition,
preorders). The children of a node are judged together here, one array operation each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlc.passes.packing.buffers import Buffer

Ints = NDArray[np.int64]

PLACED = 1 << 60
"""Offset of a buffer that is placed already: above every other."""

TOGETHER = 8
"""Children that are judged in one go."""


class OutOfNodes(Exception):
    """The node limit or the deadline came first."""


class Instance:
    """What all searches of one set of buffers share, as arrays over buffers and sections.

    Attributes:
        first, last: sections of each buffer, `[first, last)`.
        members: buffers of each section, padded with the index of a buffer that is always placed.
        weight: bytes of each buffer in each section.
        meets: whether two buffers are alive at the same time.
        klass: buffers that can be exchanged for each other have the same.
    """

    def __init__(self, buffers: Sequence[Buffer]) -> None:
        self.buffers = buffers
        self.count = len(buffers)
        lower, upper, self.size, self.alignment = (
            np.array([getattr(b, name) for b in buffers], np.int64) for name in ("lower", "upper", "size", "alignment")
        )
        self.fixed = np.array([-1 if b.offset is None else b.offset for b in buffers], np.int64)
        self.is_free = self.fixed < 0
        self.life = upper - lower
        self.aligned = bool((self.alignment > 1).any())
        self.sections = _sections(lower, upper)
        self.meets = (lower[:, None] < upper) & (lower < upper[:, None])
        np.fill_diagonal(self.meets, False)
        inside = np.array([[i in s for s in map(set, self.sections)] for i in range(self.count)], bool)
        self.first = inside.argmax(axis=1)
        self.last = len(self.sections) - inside[:, ::-1].argmax(axis=1)
        self.weight = inside * self.size[:, None]
        self.load = self.weight.sum(axis=0)
        widest = max(map(len, self.sections))
        self.members = np.array([[*s, *[self.count] * (widest - len(s))] for s in self.sections], np.int64)
        cuts = np.arange(len(self.sections) + 1)
        self.crosses = ((self.first[:, None] < cuts) & (cuts < self.last[:, None])).astype(np.int64)
        self.klass, self.twins = self._classes()

    def _classes(self) -> tuple[Ints, bool]:
        keys = [(b.size, f, e, b.alignment, b.offset) for b, f, e in zip(self.buffers, self.first, self.last)]
        number = {key: n for n, key in enumerate(dict.fromkeys(keys))}
        return np.array([number[key] for key in keys], np.int64), len(number) < self.count

    def keys(self, letters: str) -> list[NDArray[np.float64]]:
        """One array per letter: W life, Z size, A area, T the most that is alive during the life."""
        most = np.array([self.load[f:e].max() for f, e in zip(self.first, self.last, strict=True)], np.int64)
        known = {"W": self.life, "Z": self.size, "A": self.life * self.size, "T": most}
        return [known[letter].astype(np.float64) for letter in letters]


@dataclass(slots=True)
class _Part:
    """Buffers to be placed in sections `[low, high)`, and what is known of them.

    Attributes:
        items: the buffers, in the preorder.
        offsets: the lowest offset of each buffer of the instance; PLACED where it is placed.
        left: bytes to place in each section.
        crossing: how many of the buffers cross each section's start.
        floor: offset of the last buffer that was placed.
    """

    items: Ints
    offsets: Ints
    left: Ints
    crossing: Ints
    low: int
    high: int
    floor: int


@dataclass(slots=True)
class _Frame:
    """A decision: which buffer of a part is next.

    Attributes:
        children: (buffer, offset, state after it), best first.
        waiting: parts to be packed once this one is, the next one last, each with its `keep`.
        keep: how many frames stay when this part fails: up to the decision that split the part off, for no other
            decision since has touched it.
        chosen: the buffer and its offset.
    """

    children: Iterator[tuple[int, int, _Part]]
    waiting: tuple[tuple[_Part, int], ...]
    keep: int
    chosen: tuple[int, int] = (0, 0)


class Search:
    """Searches for packings of one instance below `capacity`, one preorder at a time.

    Attributes:
        nodes: decisions opened so far, by all runs.
    """

    def __init__(self, instance: Instance, capacity: int, deadline: float) -> None:
        self.instance = instance
        self.capacity = capacity
        self.deadline = deadline
        self.nodes = 0
        latest = capacity - instance.size
        self.latest = np.where(instance.is_free, latest, np.minimum(latest, instance.fixed))

    def run(self, order: Ints, limit: int) -> tuple[int, ...] | None:
        """Offsets, or None when there is no packing; `order` is the preorder.

        Raises:
            OutOfNodes: neither was found within `limit` nodes or before the deadline.
        """
        stop = self.nodes + limit
        stack = [_Frame(self._children(self._whole(order)), (), 0)]
        while stack:
            frame = stack[-1]
            child = next(frame.children, None)
            if child is None:
                del stack[frame.keep :]
                continue
            buffer, offset, part = child
            frame.chosen = (buffer, offset)
            waiting = (*frame.waiting, *((p, len(stack)) for p in _split(part, self.instance)))
            if not waiting:
                return self._offsets(stack)
            self.nodes += 1
            if self.nodes > stop or (self.nodes % 16 == 0 and time.monotonic() > self.deadline):
                raise OutOfNodes
            following, keep = waiting[-1]
            stack.append(_Frame(self._children(following), waiting[:-1], keep))
        return None

    def _whole(self, order: Ints) -> _Part:
        of = self.instance
        offsets = np.append(np.where(of.is_free, 0, of.fixed), PLACED)
        return _Part(order, offsets, of.load, of.crosses.sum(axis=0), 0, len(of.sections), 0)

    def _offsets(self, stack: Sequence[_Frame]) -> tuple[int, ...]:
        found = [0] * self.instance.count
        for frame in stack:
            buffer, offset = frame.chosen
            found[buffer] = offset
        return tuple(found)

    def _children(self, part: _Part) -> Iterator[tuple[int, int, _Part]]:
        candidates = self._candidates(part)
        for begin in range(0, len(candidates), TOGETHER):
            yield from self._judge(part, candidates[begin : begin + TOGETHER])

    def _candidates(self, part: _Part) -> Ints:
        """The buffers that may be next, best first."""
        of, items = self.instance, part.items
        offsets = part.offsets[items]
        ends = np.maximum(offsets, part.floor) + of.size[items]
        lowest_end = ends[of.is_free[items]].min(initial=PLACED)
        may = (offsets >= part.floor) & (offsets < lowest_end)
        chosen = items[may]
        if of.twins:
            _, once = np.unique(of.klass[chosen], return_index=True)
            chosen = chosen[np.sort(once)]
        return chosen[np.argsort(part.offsets[chosen], kind="stable")]

    def _judge(self, part: _Part, candidates: Ints) -> Iterator[tuple[int, int, _Part]]:
        """Those candidates that leave a state nothing speaks against, with this state."""
        of, sections = self.instance, slice(part.low, part.high)
        floors = part.offsets[candidates]
        tops = floors + of.size[candidates]
        new = np.repeat(part.offsets[None, :], len(candidates), axis=0)
        if of.aligned:
            raised = -(-tops[:, None] // of.alignment) * of.alignment
            np.maximum(new[:, :-1], raised, out=new[:, :-1], where=of.meets[candidates])
        else:
            np.maximum(new[:, :-1], tops[:, None], out=new[:, :-1], where=of.meets[candidates])
        new[np.arange(len(candidates)), candidates] = PLACED
        lowest = np.maximum(new, floors[:, None])
        mine = lowest[:, part.items]
        late = ((mine > self.latest[part.items]) & (mine < PLACED)).any(axis=1)
        left = part.left[None, sections] - of.weight[candidates, sections]
        reach = lowest[:, of.members[sections]].min(axis=2) + left
        full = ((reach > self.capacity) & (left > 0)).any(axis=1)
        for k in np.flatnonzero(~(late | full)):
            buffer, floor = int(candidates[k]), int(floors[k])
            after = part.left.copy()
            after[sections] = left[k]
            crossing = part.crossing - of.crosses[buffer]
            items = part.items[part.items != buffer]
            yield buffer, floor, _Part(items, new[k], after, crossing, part.low, part.high, floor)


def _split(part: _Part, of: Instance) -> list[_Part]:
    """The part in pieces that share no section, the largest first; none when nothing is left to place."""
    if not len(part.items):
        return []
    inner = part.crossing[part.low + 1 : part.high]
    if inner.all():
        return [part]
    borders = [part.low, *(np.flatnonzero(inner == 0) + part.low + 1).tolist(), part.high]
    pieces = []
    for low, high in zip(borders, borders[1:]):
        first = of.first[part.items]
        items = part.items[(first >= low) & (first < high)]
        if len(items):
            pieces.append(_Part(items, part.offsets, part.left, part.crossing, low, high, part.floor))
    return sorted(pieces, key=lambda piece: -len(piece.items))


def _sections(lower: Ints, upper: Ints) -> list[tuple[int, ...]]:
    """The sets of buffers alive at some time that are part of no neighbouring set, in the order of time."""
    kept: list[frozenset[int]] = []
    for now in np.unique(lower):
        alive = frozenset(np.flatnonzero((lower <= now) & (now < upper)).tolist())
        if kept and kept[-1] <= alive:
            kept[-1] = alive
        elif not kept or not alive <= kept[-1]:
            kept.append(alive)
    return [tuple(sorted(s)) for s in kept]
