"""The order in which the least memory is live at a time (M_P), proven, by a best-first search over what has been run.

What is live after a set of operators depends on the set alone, so the order is a path through the closed sets (those
that hold all predecessors of their members) whose greatest footprint is least.  The search takes up sets in the order of that footprint
(Serenity's dynamic programme, but best first, so that it stops at the optimum).  Its reduction: a chain of operators
that is ready, fits below the footprint reached so far and ends with no more live memory than it began is run at once.
That loses nothing: live memory is the cut of a hypergraph and so submodular.  If live(D + S) <= live(X) for all sets X
between D and D + S, then live(D + S + R) <= live(D + R) for every later R, the footprints of the operators likewise.

Operators that may as well run late (`Tables.late`) are no choices of their own.

Source: Ahn et al., Serenity (arXiv 2003.02369), section 3.1; Liu, the generalised tree pebbling problem (SIAM J. Alg.
Disc. Meth. 1987) for runs that end in a valley.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

from dlc.passes.cosma.graph import Tables, bits

LONGEST_CHAIN = 24


@dataclass(frozen=True, slots=True)
class LeastPeak:
    """An order and its peak; no order's peak is below `bound_bytes`."""

    order: tuple[int, ...]
    peak_bytes: int
    bound_bytes: int

    @property
    def proven(self) -> bool:
        return self.peak_bytes == self.bound_bytes


def least_peak(tables: Tables, time_limit_s: float = 60.0) -> LeastPeak:
    """The order of least peak, or after `time_limit_s` the best one found and a bound."""
    deadline = time.monotonic() + time_limit_s
    search = _Search(tables)
    found = search.run(deadline)
    if found is not None:
        return found
    order, peak = beam(tables, 256)
    return LeastPeak(order, peak, min(search.level, peak))


def peak_of(tables: Tables, order: Sequence[int]) -> int:
    """Most bytes alive at a time in an order."""
    runner, live, done, most = Runner(tables), 0, 0, 0
    for operator in order:
        needed, live = runner.step(done, live, operator)
        most, done = max(most, needed), done | 1 << operator
    return most


class Runner:
    """Steps from one set of operators to the next, with what is live."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def step(self, done: int, live: int, operator: int) -> tuple[int, int]:
        """(bytes needed while `operator` runs, bytes live after it)."""
        t = self.tables
        after = done | 1 << operator
        needed, left = live, live
        for a in bits(t.touched[operator]):
            uses, size = t.uses[a], t.sizes[a]
            if not uses & done:
                needed += size
                left += size
            if not uses & ~after:
                left -= size
        for _, old in t.takes[operator]:
            if not t.uses[old] & ~after:
                needed -= t.sizes[old]
        return needed, left

    def run(self, done: int, live: int, operator: int) -> tuple[int, int, int, tuple[int, ...]]:
        """(bytes needed, bytes live after it, operators run, which ones) of `operator` and the late ones before it."""
        steps = self.tables.sequence(operator, done)
        most = 0
        for o in steps:
            needed, live = self.step(done, live, o)
            most, done = max(most, needed), done | 1 << o
        return most, live, done, steps

    def settle(self, done: int, live: int, ready: int, level: int) -> tuple[int, int, int, tuple[int, ...]]:
        """Run every chain that fits in `level` and leaves no more alive than before: (done, live, ready, what ran)."""
        ran: list[int] = []
        again = True
        while again:
            again = False
            for first in bits(ready):
                chain = self.valley(done, live, ready, first, level)
                if chain is not None:
                    done, live, ready, steps = chain
                    ran += steps
                    again = True
                    break
        return done, live, ready, tuple(ran)

    def valley(
        self, done: int, live: int, ready: int, operator: int, level: int
    ) -> tuple[int, int, int, list[int]] | None:
        start = live
        ran: list[int] = []
        while len(ran) < LONGEST_CHAIN:
            needed, live, done, steps = self.run(done, live, operator)
            if needed > level:
                return None
            ready_now = self.tables.ready_after(ready, done, operator)
            ran += steps
            new = ready_now & ~ready
            ready = ready_now
            if live <= start:
                return done, live, ready, ran
            if new == 0 or new & (new - 1):
                return None
            operator = new.bit_length() - 1
        return None


@dataclass(order=True, slots=True)
class _State:
    """A set of operators to take up: least peak first, then the one that is furthest."""

    peak: int
    to_go: int
    serial: int
    done: int = field(compare=False)
    live: int = field(compare=False)
    ready: int = field(compare=False)
    origin: int = field(compare=False)
    ran: tuple[int, ...] = field(compare=False)


class _Search:
    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.runner = Runner(tables)
        self.level = 0
        self.came: dict[int, tuple[int, tuple[int, ...]]] = {}

    def run(self, deadline: float) -> LeastPeak | None:
        t = self.tables
        heap = [_State(0, t.count, 0, 0, 0, t.ready(0), 0, ())]
        for serial in count(1):
            state = heapq.heappop(heap)
            self.level = max(self.level, state.peak)
            done, live, ready, settled = self.runner.settle(state.done, state.live, state.ready, self.level)
            if done in self.came:
                continue
            self.came[done] = (state.origin, (*state.ran, *settled))
            if done == t.all:
                return self.result()
            if serial % 256 == 0 and time.monotonic() > deadline:
                return None
            for o in bits(ready):
                needed, left, after, steps = self.runner.run(done, live, o)
                if after not in self.came:
                    now = t.ready_after(ready, after, o)
                    to_go = t.count - after.bit_count()
                    new = _State(max(self.level, needed), to_go, serial * t.count + o, after, left, now, done, steps)
                    heapq.heappush(heap, new)
        raise AssertionError("a graph without cycles has an order")

    def result(self) -> LeastPeak:
        order: list[int] = []
        at = self.tables.all
        while at:
            at, ran = self.came[at]
            order += reversed(ran)
        order.reverse()
        return LeastPeak(tuple(order), self.level, self.level)


def beam(tables: Tables, width: int) -> tuple[tuple[int, ...], int]:
    """An order of low peak: of all sets of a size only the `width` best are kept."""
    runner = Runner(tables)
    layers: list[dict[int, tuple[int, int, int, int, tuple[int, ...]]]] = [{} for _ in range(tables.count + 1)]
    layers[0][0] = (0, 0, tables.ready(0), 0, ())
    for layer in layers:
        best = sorted(layer.items(), key=lambda item: item[1][:2])[:width]
        for done, (peak, live, ready, _, _) in best:
            for o in bits(ready):
                needed, left, after, steps = runner.run(done, live, o)
                new = (max(peak, needed), left)
                following = layers[after.bit_count()]
                if after not in following or new < following[after][:2]:
                    following[after] = (*new, tables.ready_after(ready, after, o), done, steps)
    at, order = tables.all, list[int]()
    while at:
        _, _, _, at, steps = layers[at.bit_count()][at]
        order += reversed(steps)
    order.reverse()
    return tuple(order), layers[-1][tables.all][0]
