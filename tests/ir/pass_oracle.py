"""The definition of a pass, by brute force: how few traversals of a fiber let every operation on its elements happen.

A cascade of a few points is unrolled into single operations: one for each point of an Einsum, those of a fold being partial sums
in any order. An operation visits the coordinates of the fiber elements it reads, directly or through values that stand for one
element (made from it alone). A traversal takes the coordinates in some order; at each, all operations that visit it and whose
operands are known may happen, any number of those that visit nothing too. All orders of all traversals are tried.

State that a scan carries is kept, so a carried value stands for nothing; nor does a fold of several elements. Where a cascade
works on blocks, `block` elements next to each other are visited at once. Fibers must have at least as many coordinates as there are
passes: the last one of a traversal already knows its end, so that short fibers get by with fewer.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.extent import evaluate
from dlc.ir.program import Cascade, cascade_types

MOST = 4
"""Passes that are told apart; more count as one more."""

Element = tuple[str, tuple[int, ...], tuple[int, ...]]
"""A tensor, its index, and the steps of the scans around it."""


@dataclass
class Operation:
    """One point of an Einsum: what it reads, and the element that is known when all its operations have happened."""

    reads: frozenset[Element]
    makes: Element
    visits: frozenset[int] = frozenset()


@dataclass
class Unrolled:
    """A cascade's operations; `names` says which element a name stands for at the present step."""

    sizes: Mapping[str, int]
    operations: list[Operation] = field(default_factory=list)
    alias: dict[Element, Element] = field(default_factory=dict)
    carried: set[Element] = field(default_factory=set)

    def run(
        self, steps: Iterable[Step], env: Mapping[str, int], at: tuple[int, ...], scope: dict[str, tuple[int, ...]]
    ) -> None:
        for step in steps:
            if isinstance(step, Einsum):
                self._einsum(step, env, at, scope)
            else:
                self._scan(step, env, at, scope)

    def _einsum(
        self, step: Einsum, env: Mapping[str, int], at: tuple[int, ...], scope: dict[str, tuple[int, ...]]
    ) -> None:
        extents = [int(evaluate(r.extent, self.sizes)) for r in step.all_ranks]
        for point in itertools.product(*map(range, extents)):
            here = {**self.sizes, **env, **dict(zip((r.name for r in step.all_ranks), point, strict=True))}
            reads = frozenset(
                (a.tensor, tuple(int(evaluate(i, here)) for i in a.index), scope.get(a.tensor, ()))
                for a in step.accesses()
            )
            for out in step.outs:
                self.operations.append(Operation(reads, (out, point[: len(step.ranks)], at)))
        scope.update(dict.fromkeys(step.outs, at))

    def _scan(self, scan: Scan, env: Mapping[str, int], at: tuple[int, ...], scope: dict[str, tuple[int, ...]]) -> None:
        sources = {c.name: (c.init, scope.get(c.init, ())) for c in scan.carries}
        for t in range(int(evaluate(scan.rank.extent, self.sizes))):
            inner, here = dict(scope), (*at, t)
            for name, (source, place) in sources.items():
                self._alias(name, here, source, place, carried=True)
                inner[name] = here
            self.run(scan.body, {**env, scan.rank.name: t}, here, inner)
            sources = {c.name: (y, inner[y]) for c, y in zip(scan.carries, scan.yields, strict=True)}
            for outer, name in scan.stacked:
                self._alias(outer, at, name, inner[name], lead=(t,))
        for final, c in zip(scan.finals, scan.carries, strict=True):
            self._alias(final, at, *sources[c.name], carried=True)
        scope.update(dict.fromkeys(scan.outs, at))

    def _alias(
        self,
        name: str,
        at: tuple[int, ...],
        of: str,
        place: tuple[int, ...],
        *,
        lead: tuple[int, ...] = (),
        carried: bool = False,
    ) -> None:
        made = [o.makes for o in self.operations if o.makes[0] == of and o.makes[2] == place]
        made += [e for e in self.alias if e[0] == of and e[2] == place]
        for element in dict.fromkeys(made):
            new = (name, lead + element[1], at)
            self.alias[new] = element
            if carried:
                self.carried.add(new)


def oracle_passes(
    cascade: Cascade, tensor: str, dims: tuple[int, ...], sizes: Mapping[str, int], block: int = 1
) -> int | None:
    """The greatest count over all fibers of `tensor` along `dims`; None when an operation needs two coordinates at once."""
    env = {"#" + n: v for n, v in sizes.items()}
    shape = [int(evaluate(e, env)) for e in cascade_types(cascade)[tensor].shape]
    unrolled = Unrolled(env)
    unrolled.run(cascade.steps, {}, (), {})
    counts = [
        _fiber_passes(unrolled, tensor, dims, shape, fixed, block)
        for fixed in itertools.product(*(range(1 if n in dims else e) for n, e in enumerate(shape)))
    ]
    return None if None in counts else max(c for c in counts if c is not None)


def _fiber_passes(
    unrolled: Unrolled, tensor: str, dims: tuple[int, ...], shape: list[int], fixed: tuple[int, ...], block: int
) -> int | None:
    coordinates = {}
    for number, point in enumerate(itertools.product(*(range(shape[d]) for d in dims))):
        index = list(fixed)
        for d, i in zip(dims, point, strict=True):
            index[d] = i
        coordinates[tensor, tuple(index), ()] = number
    operations = _with_visits(unrolled, coordinates, block)
    if any(len(o.visits) > 1 for o in operations):
        return None
    makers: dict[Element, int] = {}
    for o in operations:
        makers[o.makes] = makers.get(o.makes, 0) + 1
    operations = [
        Operation(frozenset(_known(e, unrolled, makers) for e in o.reads), o.makes, o.visits) for o in operations
    ]
    total = sum(1 for o in operations if o.visits)
    states: set[frozenset[int]] = {frozenset()}
    places = sorted({c // block for c in coordinates.values()})
    for count in range(MOST + 1):
        if any(sum(1 for n in s if operations[n].visits) == total for s in states):
            return count
        reached = {_traverse(operations, makers, s, order) for s in states for order in itertools.permutations(places)}
        states = {s for s in reached if not any(s < other for other in reached)}
    return MOST + 1


def _known(e: Element, unrolled: Unrolled, makers: Mapping[Element, int]) -> Element:
    while e in unrolled.alias and e not in makers:
        e = unrolled.alias[e]
    return e


def _with_visits(unrolled: Unrolled, coordinates: Mapping[Element, int], block: int) -> list[Operation]:
    stands: dict[Element, frozenset[int]] = {e: frozenset({c}) for e, c in coordinates.items()}

    def of(e: Element) -> frozenset[int]:
        if e in stands:
            return stands[e] if len(stands[e]) == 1 else frozenset()
        if e in unrolled.carried or e not in unrolled.alias:
            return frozenset()
        return of(unrolled.alias[e])

    result = []
    for o in unrolled.operations:
        visits = frozenset().union(*(of(e) for e in o.reads))
        if o.makes not in coordinates:
            stands[o.makes] = stands.get(o.makes, frozenset()) | visits
        result.append(Operation(o.reads, o.makes, frozenset(c // block for c in visits)))
    return result


def _traverse(
    operations: list[Operation], makers: Mapping[Element, int], done: frozenset[int], order: tuple[int, ...]
) -> frozenset[int]:
    happened = set(done)
    left = dict(makers)
    for n in happened:
        left[operations[n].makes] -= 1
    for now in order:
        for n in _ready(operations, left, happened, now):
            happened.add(n)
            left[operations[n].makes] -= 1
    return frozenset(happened)


def _ready(operations: list[Operation], left: dict[Element, int], happened: set[int], now: int) -> Iterator[int]:
    # operations are in an order in which they can happen, so one sweep finds all
    for n, o in enumerate(operations):
        if n not in happened and o.visits <= {now} and all(left.get(e, 0) == 0 for e in o.reads):
            yield n
