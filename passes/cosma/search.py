"""Order and residency together, exactly: a best-first search over (what has run, what is in fast memory, what has a copy).

A tensor that leaves pays for its return at once, and for its write if it has no valid copy; nothing leaves before it has
to.  So the cost so far is the bytes of a plan's past plus what is already sure of its future, and the search, which takes up the cheapest
state, stops at the optimum.  It is kept small by
* dominance: of two states after the same operators one is left out if the other can become it for no more than the difference;
* immediate steps: an operator (or a chain) that fits, and leaves no more alive than there was, runs at once, unless
  what it leaves could be dearer to send away than what it took;
* least evictions: of what leaves, no part could have stayed;
* late operators (`Tables.late`) are no choices of their own: they run right before what needs them.
A bound on what is still to come (`Rest`) makes it A*.

All of this is about bytes alone; addresses come after (`optimise`).
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from dlc.passes.cosma.graph import Tables, bits
from dlc.passes.cosma.plan import Span

LONGEST_CHAIN = 16
WIDEST_CHECK = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """The cheapest order and stays found, and what no plan can go below; `spans` is None if none was found in time."""

    order: tuple[int, ...]
    spans: tuple[Span, ...] | None
    cost: int
    bound: int


@dataclass(order=True, slots=True)
class State:
    """A point of the search.

    Attributes:
        cost: bytes, past and certain.
        done: operators that have run.
        here: tensors in fast memory that are still needed.
        copied: tensors whose present value slow memory has.
        ready: operators that may run next.
        forced: operators that have to, before any other.
        steps: (operator, tensors in fast memory while it runs) since `origin`.
    """

    cost: int
    to_go: int
    serial: int
    done: int = field(compare=False)
    here: int = field(compare=False)
    copied: int = field(compare=False)
    ready: int = field(compare=False)
    forced: tuple[int, ...] = field(compare=False)
    origin: State | None = field(compare=False)
    steps: tuple[tuple[int, int], ...] = field(compare=False)


class Moves:
    """Steps from a state to the next ones, for a graph and a capacity."""

    def __init__(self, tables: Tables, capacity: int) -> None:
        self.tables = tables
        self.capacity = capacity
        self.serial = count(1)
        self.twins = _twin_key(tables)

    def start(self) -> State:
        t = self.tables
        return State(0, t.count, 0, 0, 0, t.inputs, t.ready(0), (), None, ())

    def eviction_cost(self, tensors: int, copied: int) -> int:
        return self.tables.total(tensors) + self.tables.total(tensors & ~copied)

    def run(self, state: State, operator: int, limit: int) -> Iterator[tuple[int, int]]:
        """(what leaves, its cost) for each least set of tensors that makes room for `operator`."""
        t = self.tables
        idle = state.here & ~t.touched[operator]
        over = t.total(idle) + t.footprint(operator, state.done) - self.capacity
        if over <= 0:
            return iter(((0, 0),))
        return self.evictions(idle, state.copied, over, limit - state.cost)

    def choices(self, state: State) -> Iterator[tuple[int, tuple[int, ...]]]:
        """What may run next, and what has to run after that."""
        if state.forced:
            yield state.forced[0], state.forced[1:]
            return
        for o in bits(state.ready):
            first, *then = self.tables.sequence(o, state.done)
            yield first, tuple(then)

    def after(self, state: State, operator: int, gone: int = 0, cost: int = 0, forced: tuple[int, ...] = ()) -> State:
        t = self.tables
        done = state.done | 1 << operator
        here = (state.here & ~gone) | t.touched[operator]
        copied = state.copied | gone
        steps = ((operator, here),)
        for a in t.touched_list[operator]:
            if t.written[a] >> operator & 1:
                whole = not t.written[a] & ~done
                copied = copied | 1 << a if whole and t.clean_outputs >> a & 1 else copied & ~(1 << a)
            if not t.uses[a] & ~done:
                here &= ~(1 << a)
                copied &= ~(1 << a)
        ready = state.ready if t.late >> operator & 1 else t.ready_after(state.ready, done, operator)
        return State(
            state.cost + cost, state.to_go - 1, next(self.serial), done, here, copied, ready, forced, state, steps
        )  # fmt: skip

    def evictions(self, idle: int, copied: int, over: int, budget: int) -> Iterator[tuple[int, int]]:
        """Sets of tensors of `over` bytes or more, none of which could stay, that cost at most `budget`."""
        t = self.tables
        tensors = sorted((a for a in bits(idle) if t.sizes[a]), key=lambda a: (-t.sizes[a], self.twins[a], a))
        rest = [0]
        for a in reversed(tensors):
            rest.append(rest[-1] + t.sizes[a])
        rest.reverse()

        def choose(at: int, gone: int, size: int, least: int, cost: int) -> Iterator[tuple[int, int]]:
            if size >= over:
                if size - least < over:
                    yield gone, cost
                return
            if at == len(tensors) or size + rest[at] < over:
                return
            a = tensors[at]
            price = cost + t.sizes[a] * (1 if copied >> a & 1 else 2)
            if price <= budget:
                yield from choose(at + 1, gone | 1 << a, size + t.sizes[a], t.sizes[a], price)
            skip = at + 1  # of twins, those with the lowest numbers go
            while skip < len(tensors) and self.are_twins(a, tensors[skip], copied):
                skip += 1
            yield from choose(skip, gone, size, least, cost)

        yield from choose(0, 0, 0, 0, 0)

    def are_twins(self, a: int, b: int, copied: int) -> bool:
        return self.twins[a] == self.twins[b] and (copied >> a & 1) == (copied >> b & 1)

    # -- immediate steps

    def settle(self, state: State) -> State:
        """The state after every operator and chain that may run at once without loss."""
        again = not state.forced
        while again:
            again = False
            for first in bits(state.ready):
                after = self.immediate(state, first)
                if after is not None:
                    state, again = after, True
                    break
        return state

    def immediate(self, start: State, operator: int) -> State | None:
        t = self.tables
        state, alive = start, []
        involved = 0
        for _ in range(LONGEST_CHAIN):
            after = state
            for o in t.sequence(operator, state.done):
                if not self.fits(after, o):
                    return None
                involved |= t.touched[o]
                alive.append((after.here & involved, after.copied))
                after = self.after(after, o)
            left = after.here & involved
            new = left & ~start.here
            freed = [(h & ~left | h & new, c) for h, c in alive]
            if all(self.replaces(new, after.copied, h, c) for h, c in freed):
                return self.joined(start, after)
            ready = after.ready & ~state.ready
            if not ready or ready & (ready - 1):
                return None
            state, operator = after, ready.bit_length() - 1
        return None

    def fits(self, state: State, operator: int) -> bool:
        """Whether nothing has to leave or come back for `operator`."""
        t = self.tables
        touched = t.touched[operator]
        if any(t.uses[a] & state.done for a in bits(touched & ~state.here)):
            return False
        return t.total(state.here & ~touched) + t.footprint(operator, state.done) <= self.capacity

    def joined(self, start: State, after: State) -> State:
        steps: tuple[tuple[int, int], ...] = ()
        at: State | None = after
        while at is not None and at is not start:
            steps = at.steps + steps
            at = at.origin
        return State(
            after.cost, after.to_go, after.serial, after.done, after.here, after.copied, after.ready, (),
            start.origin, start.steps + steps,
        )  # fmt: skip

    def replaces(self, new: int, copied_new: int, old: int, copied_old: int) -> bool:
        """Whether having `new` instead of `old` can never cost more: it is no larger, nor dearer to send away."""
        t = self.tables
        size, spare = t.total(new), t.total(old) - t.total(new)
        if spare < 0:
            return False
        if size == 0:
            return True
        price = self.eviction_cost(new, copied_new)
        tensors = [a for a in bits(old) if t.sizes[a]]
        if len(tensors) > WIDEST_CHECK:
            return False
        cheapest = self.cheapest_above(tensors, copied_old, spare)
        return cheapest is None or cheapest >= price

    def cheapest_above(self, tensors: list[int], copied: int, spare: int) -> int | None:
        """Least cost of sending away more than `spare` bytes of `tensors`."""
        best: dict[int, int] = {0: 0}
        found: int | None = None
        for a in tensors:
            size = self.tables.sizes[a]
            price = size if copied >> a & 1 else 2 * size
            for gone, cost in list(best.items()):
                if gone + size > spare:
                    found = cost + price if found is None else min(found, cost + price)
                elif cost + price < best.get(gone + size, cost + price + 1):
                    best[gone + size] = cost + price
        return found


def _twin_key(tables: Tables) -> list[tuple[int, int, int]]:
    """Tensors of one key are interchangeable for as long as both are there."""
    return [(size, uses, written) for size, uses, written in zip(tables.sizes, tables.uses, tables.written, strict=True)]


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors that cost `cost` bytes of traffic in whatever order, counted apart from all other parts.

    Attributes:
        operators: those beside which not all of the tensors that are alive there can be.
    """

    tensors: tuple[int, ...]
    operators: int
    cost: int


class Rest:
    """A bound on what a state has still to pay: the parts of which nothing has come into being yet.

    A part of one tensor counts for longer: until the tensor leaves.
    """

    def __init__(self, tables: Tables, parts: Sequence[Part]) -> None:
        self.tables = tables
        self.parts = [(self.born(part), part) for part in parts]

    def born(self, part: Part) -> int:
        born = 0
        for a in part.tensors:
            born |= self.tables.uses[a]
        return born

    def after(self, state: State) -> int:
        total = 0
        for born, part in self.parts:
            if not born & state.done:
                total += part.cost
            elif len(part.tensors) == 1 and part.operators & ~state.done:
                a = part.tensors[0]
                if state.here >> a & 1:
                    size = self.tables.sizes[a]
                    total += min(part.cost, size if state.copied >> a & 1 else 2 * size)
        return total


class Front:
    """States after the same operators of which none makes another one needless."""

    def __init__(self, moves: Moves) -> None:
        self.moves = moves
        self.kept: dict[tuple[int, tuple[int, ...]], list[tuple[int, int, int]]] = {}

    def add(self, state: State) -> bool:
        """Whether the state is worth going on from."""
        kept = self.kept.setdefault((state.done, state.forced), [])
        mine = (state.here, state.copied, state.cost)
        if any(self.covers(other, mine) for other in kept):
            return False
        kept[:] = [other for other in kept if not self.covers(mine, other)]
        kept.append(mine)
        return True

    def covers(self, one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
        """Whether `one` can become `other` for no more than the difference in cost."""
        here, copied, cost = one
        here2, copied2, cost2 = other
        if cost > cost2:
            return False
        t = self.moves.tables
        extra = here & ~here2
        missing_copies = here & here2 & copied2 & ~copied
        return cost + self.moves.eviction_cost(extra, copied) + t.total(missing_copies) <= cost2


@dataclass(order=True, slots=True)
class _Move:
    """A step that is not taken yet: from `state`, run `operator` when `gone` has left."""

    estimate: int
    to_go: int
    serial: int
    state: State = field(compare=False)
    operator: int = field(compare=False)
    gone: int = field(compare=False)
    price: int = field(compare=False)
    forced: tuple[int, ...] = field(compare=False)


def search(
    tables: Tables,
    capacity: int,
    *,
    limit: int | None = None,
    rest: Rest | None = None,
    time_limit_s: float = 60.0,
) -> Outcome:
    """The least traffic of any order within `capacity`.

    Args:
        limit: cost of a plan that is known; only cheaper ones are looked for.
        rest: a bound on the cost of what is still to run.
    """
    deadline = time.monotonic() + time_limit_s
    moves = Moves(tables, capacity)
    front = Front(moves)
    rest = rest or Rest(tables, ())
    top = limit - 1 if limit is not None else 4 * tables.total((1 << len(tables.sizes)) - 1) * (tables.count + 1)
    seen: dict[tuple[int, int, int, tuple[int, ...]], int] = {}  # the bound is no metric: what comes later may be cheaper
    heap: list[_Move] = []
    state = moves.start()
    estimate = rest.after(state)
    for taken in count():
        key = (state.done, state.here, state.copied, state.forced)
        if state.cost < seen.get(key, state.cost + 1):
            seen[key] = state.cost
            state = moves.settle(state)
            if state.done == tables.all:
                order, spans = trace(tables, state)
                return Outcome(order, spans, state.cost, state.cost)
            if front.add(state):
                estimate = max(estimate, state.cost + rest.after(state))
                for o, then in moves.choices(state):
                    for gone, price in moves.run(state, o, top):
                        new = max(estimate, state.cost + price)
                        if new <= top:
                            move = _Move(new, state.to_go, next(moves.serial), state, o, gone, price, then)
                            heapq.heappush(heap, move)
        if not heap or heap[0].estimate > top:
            return Outcome((), None, top + 1, top + 1)
        move = heapq.heappop(heap)
        if taken % 64 == 0 and time.monotonic() > deadline:
            return Outcome((), None, top + 1, move.estimate)
        state, estimate = moves.after(move.state, move.operator, move.gone, move.price, move.forced), move.estimate
    raise AssertionError("the loop ends by returning")


def beam(tables: Tables, capacity: int, *, width: int, deadline: float) -> Outcome:
    """A plan by keeping, of all states after as many operators, the `width` cheapest; its bound is 0."""
    moves = Moves(tables, capacity)
    front = Front(moves)
    top = 4 * tables.total((1 << len(tables.sizes)) - 1) * (tables.count + 1)
    layers: list[list[State]] = [[] for _ in range(tables.count + 1)]
    layers[0].append(moves.start())
    for layer in layers[:-1]:
        if time.monotonic() > deadline:
            return Outcome((), None, top, 0)
        layer.sort(key=lambda state: (state.cost, tables.total(state.here)))
        for state in layer[:width]:
            for o, then in moves.choices(state):
                best = sorted(moves.run(state, o, top), key=lambda move: move[1])[:4]
                for gone, price in best:
                    new = moves.settle(moves.after(state, o, gone, price, then))
                    if front.add(new):
                        layers[new.done.bit_count()].append(new)
        layer.clear()
    final = min(layers[-1])
    order, spans = trace(tables, final)
    return Outcome(order, spans, final.cost, 0)


def trace(tables: Tables, state: State) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    """Order and stays on the way to `state`, each stay from a use to a use."""
    steps: list[tuple[int, int]] = []
    at: State | None = state
    while at is not None:
        steps += reversed(at.steps)
        at = at.origin
    steps.reverse()
    spans: list[Span] = []
    begun: dict[int, tuple[int, int]] = {}
    for step, (operator, here) in enumerate(steps):
        for a in [a for a in begun if not here >> a & 1]:
            spans.append((a, *begun.pop(a)))
        for a in bits(tables.touched[operator]):
            begun[a] = (begun[a][0] if a in begun else step, step)
    spans += [(a, *span) for a, span in begun.items()]
    return tuple(o for o, _ in steps), tuple(sorted(spans))
