"""What one would do without an optimiser: an order, a replacement rule and an allocator, step by step.

The orders are the default one and that of least peak; the rules are Belady's (whose next use is farthest leaves) and a greedy
one (those leave whose way out and back is shortest); the allocators take the first gap that fits, or the tightest, for the stays in
order of size (as TFLite's arena planner does).  Where that fails they allocate step by step, and more tensors leave until
there is a gap, which is kinder to the baselines than to let them fail at once.  The plans are replayed by the same simulator
as all others.

Source: Belady, IBM Systems Journal 1966; Li et al., COSMA (arXiv 2311.18246), evaluation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from dlc.passes.cosma.graph import Graph, Tables, bits
from dlc.passes.cosma.peak import least_peak
from dlc.passes.cosma.placing import as_buffers, with_offsets
from dlc.passes.cosma.plan import Plan, Stay
from dlc.passes.cosma.simulate import simulate
from dlc.passes.packing import best_fit, first_fit
from dlc.passes.packing.buffers import height

Rule = Literal["belady", "greedy"]
Allocator = Literal["first fit", "best fit"]
RULES: tuple[Rule, ...] = ("belady", "greedy")
ALLOCATORS: tuple[Allocator, ...] = ("first fit", "best fit")


@dataclass(frozen=True, slots=True)
class Baseline:
    """What one combination costs; `traffic_bytes` is None where it found no place for a tensor."""

    order: str
    rule: Rule
    allocator: Allocator
    traffic_bytes: int | None


def baselines(graph: Graph, capacity: int, peak_order: Sequence[int] | None = None) -> tuple[Baseline, ...]:
    """All eight combinations within `capacity`."""
    tables = Tables(graph)
    orders = {"default": range(tables.count), "least peak": peak_order or least_peak(tables).order}
    found = []
    for (name, order), rule, allocator in product(orders.items(), RULES, ALLOCATORS):
        plan = replace_and_allocate(graph, order, capacity, rule, allocator)
        cost = None if plan is None else simulate(graph, plan, capacity).traffic_bytes
        found.append(Baseline(name, rule, allocator, cost))
    return tuple(found)


def replace_and_allocate(
    graph: Graph, order: Sequence[int], capacity: int, rule: Rule, allocator: Allocator
) -> Plan | None:
    """The plan that a rule and an allocator make of an order; None if a tensor finds no place."""
    by_size = _Allocation(graph, order, capacity, rule, None).run()
    placed = None if by_size is None else _fit(graph, by_size, capacity, allocator)
    return placed or _Allocation(graph, order, capacity, rule, allocator).run()


def _fit(graph: Graph, plan: Plan, capacity: int, allocator: Allocator) -> Plan | None:
    """The stays of `plan` at the places that the allocator finds, the largest first."""
    spans = [(s.tensor, s.first, s.last) for s in plan.stays]
    owner, buffers = as_buffers(graph, plan.order, spans)
    rectangles = list(buffers.values())
    by_size = sorted(range(len(rectangles)), key=lambda i: -rectangles[i].size)
    offsets = (best_fit if allocator == "best fit" else first_fit)(rectangles, by_size)
    if offsets is None or height(rectangles, offsets) > capacity:
        return None
    return with_offsets(plan.order, spans, owner, dict(zip(buffers, offsets, strict=True)))


def find_gap(taken: Iterable[tuple[int, int]], size: int, capacity: int, allocator: Allocator) -> int | None:
    """Where `size` bytes fit between the `taken` ranges."""
    gaps, at = [], 0
    for start, end in [*sorted(taken), (capacity, capacity)]:
        if start - at >= size:
            gaps.append((start - at, at))
        at = max(at, end)
    if not gaps:
        return None
    return min(gaps)[1] if allocator == "best fit" else gaps[0][1]


class _Allocation:
    """Step by step; without an allocator only the sizes are looked at, and every address is 0."""

    def __init__(
        self, graph: Graph, order: Sequence[int], capacity: int, rule: Rule, allocator: Allocator | None
    ) -> None:
        self.tables = Tables(graph)
        self.order = tuple(order)
        self.capacity = capacity
        self.rule = rule
        self.allocator = allocator
        self.place: dict[int, int] = {}
        self.since: dict[int, int] = {}
        self.copied = self.tables.inputs
        self.stays: list[Stay] = []
        at = {o: step for step, o in enumerate(order)}
        self.steps = [sorted(at[o] for o in bits(uses)) for uses in self.tables.uses]
        self.step = 0

    def run(self) -> Plan | None:
        t = self.tables
        done = 0
        for step, operator in enumerate(self.order):
            self.step = step
            needed = t.touched[operator]
            if not self.make_room(needed, t.footprint(operator, done)):
                return None
            heirs = {new: old for new, old in t.takes[operator] if t.taken(operator, done) >> old & 1}
            for a in sorted(bits(needed & ~_mask(heirs)), key=lambda a: -t.sizes[a]):
                if a not in self.place and not self.allocate(a, needed):
                    return None
            for new, old in heirs.items():
                self.take_over(new, old)
            done |= 1 << operator
            self.finish(operator, done)
        return Plan(self.order, tuple(self.stays))

    def take_over(self, new: int, old: int) -> None:
        self.stays.append(Stay(old, self.since.pop(old), self.step, self.place[old]))
        self.place[new], self.since[new] = self.place.pop(old), self.step

    def make_room(self, needed: int, footprint: int) -> bool:
        idle = [a for a in self.place if not needed >> a & 1]
        over = sum(self.tables.sizes[a] for a in idle) + footprint - self.capacity
        while over > 0:
            victim = self.victim([a for a in self.place if not needed >> a & 1], over)
            if victim is None:
                return False
            over -= self.tables.sizes[victim]
            self.leave(victim)
        return True

    def allocate(self, a: int, needed: int) -> bool:
        while (offset := self.gap(self.tables.sizes[a])) is None:
            victim = self.victim([b for b in self.place if not needed >> b & 1], self.tables.sizes[a])
            if victim is None:
                return False
            self.leave(victim)
        self.place[a], self.since[a] = offset, self.step
        return True

    def victim(self, idle: list[int], over: int) -> int | None:
        idle = [a for a in idle if self.tables.sizes[a]]
        if not idle:
            return None
        if self.rule == "belady":
            return max(idle, key=lambda a: (self.next_use(a), self.tables.sizes[a], -a))
        alone = [a for a in idle if self.tables.sizes[a] >= over]
        return min(alone, key=lambda a: (self.price(a), a)) if alone else max(idle, key=lambda a: self.tables.sizes[a])

    def next_use(self, a: int) -> int:
        return next(step for step in self.steps[a] if step > self.step)

    def price(self, a: int) -> int:
        return self.tables.sizes[a] * (1 if self.copied >> a & 1 else 2)

    def leave(self, a: int) -> None:
        last = max(step for step in self.steps[a] if step < self.step)
        self.stays.append(Stay(a, self.since.pop(a), last, self.place.pop(a)))
        self.copied |= 1 << a

    def gap(self, size: int) -> int | None:
        if self.allocator is None:
            return 0
        taken = [(at, at + self.tables.sizes[a]) for a, at in self.place.items()]
        return find_gap(taken, size, self.capacity, self.allocator)

    def finish(self, operator: int, done: int) -> None:
        t = self.tables
        for a in bits(t.touched[operator]):
            if t.written[a] >> operator & 1:
                whole = not t.written[a] & ~done
                self.copied &= ~(1 << a)
                self.copied |= t.clean_outputs & 1 << a if whole else 0
            if not t.uses[a] & ~done and a in self.place:
                self.stays.append(Stay(a, self.since.pop(a), self.step, self.place.pop(a)))


def _mask(numbers: Iterable[int]) -> int:
    return sum(1 << number for number in numbers)
