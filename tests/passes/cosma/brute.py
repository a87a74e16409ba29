"""All orders, residencies and addresses, tried out: what the optimiser must equal.  Shares nothing with it but the graph.

Between two operators any tensors may leave, and what the next one needs comes back, at any free address; the cheapest way
through all (operators run, tensor -> address, tensors with a copy) is found by Dijkstra's algorithm.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import combinations, count

from dlc.passes.cosma.graph import Graph

Places = tuple[tuple[int, int], ...]
"""(tensor, address) of what is in fast memory, sorted."""


def least_traffic(graph: Graph, capacity: int, *, addresses: bool = True, below: int | None = None) -> int | None:
    """Least bytes of transfers that are not compulsory; without `addresses` only the sizes have to fit.

    With `below`, None where nothing costs less than that.
    """
    whole = frozenset(range(len(graph.operators)))
    inputs = frozenset(i for i, t in enumerate(graph.tensors) if not t.producers)
    serial = count()
    heap = [(0, 0, next(serial), frozenset(), (), inputs)]
    seen: set[tuple[frozenset[int], Places, frozenset[int]]] = set()
    while heap:
        cost, _, _, done, places, copied = heapq.heappop(heap)
        if done == whole:
            return cost
        if (done, places, copied) in seen:
            continue
        seen.add((done, places, copied))
        for operator in whole - done:
            if _may_run(graph, operator, done):
                for price, now, copies in _steps(graph, capacity, operator, done, places, copied, addresses):
                    after = done | {operator}
                    if (after, now, copies) not in seen and (below is None or cost + price < below):
                        heapq.heappush(heap, (cost + price, -len(after), next(serial), after, now, copies))
    return None


def _may_run(graph: Graph, operator: int, done: frozenset[int]) -> bool:
    return all(set(t.producers) <= done for t in graph.tensors if operator in t.consumers)


def _steps(
    graph: Graph,
    capacity: int,
    operator: int,
    done: frozenset[int],
    places: Places,
    copied: frozenset[int],
    addresses: bool,
) -> Iterator[tuple[int, Places, frozenset[int]]]:
    after = done | {operator}
    needed = [i for i, t in enumerate(graph.tensors) if operator in t.uses]
    heirs = _heirs(graph, operator, after)
    needed.sort(key=lambda a: a in heirs)
    for left in range(len(places) + 1):
        for gone in combinations(places, left):
            kept = [p for p in places if p not in gone]
            price = sum(graph.tensors[a].bytes for a, _ in gone if a not in copied)
            valid = copied | {a for a, _ in gone}
            missing = [a for a in needed if a not in dict(kept)]
            for a in missing:
                first = not set(graph.tensors[a].uses) & done
                price += 0 if first else graph.tensors[a].bytes
            for now in _placements(graph, capacity, kept, missing, heirs, addresses):
                yield price, *_written(graph, operator, after, now, valid)


def _heirs(graph: Graph, operator: int, after: frozenset[int]) -> dict[int, int]:
    """Results of the operator that may lie where an operand does that nothing needs any more."""
    return {
        i: t.takes
        for i, t in enumerate(graph.tensors)
        if t.takes is not None and operator in t.producers and set(graph.tensors[t.takes].uses) <= after
    }


def _placements(
    graph: Graph,
    capacity: int,
    kept: list[tuple[int, int]],
    missing: list[int],
    heirs: dict[int, int],
    addresses: bool,
) -> Iterator[list[tuple[int, int]]]:
    if not addresses:
        now = kept + [(a, 0) for a in missing]
        shared = sum(graph.tensors[a].bytes for a in missing if a in heirs)
        if sum(graph.tensors[a].bytes for a, _ in now) - shared <= capacity:
            yield now
        return
    if not missing:
        yield kept
        return
    a, size = missing[0], graph.tensors[missing[0]].bytes
    for at in range(capacity - size + 1):
        if all(
            at + size <= b or b + graph.tensors[other].bytes <= at or (heirs.get(a) == other and at == b) for other, b in kept
        ):
            yield from _placements(graph, capacity, [*kept, (a, at)], missing[1:], heirs, addresses)


def _written(
    graph: Graph, operator: int, after: frozenset[int], now: list[tuple[int, int]], valid: frozenset[int]
) -> tuple[Places, frozenset[int]]:
    for a, _ in now:
        t = graph.tensors[a]
        if operator in t.producers:
            valid = valid | {a} if t.output and set(t.producers) <= after else valid - {a}
    alive = {a for a, _ in now if not set(graph.tensors[a].uses) <= after}
    needed_later = frozenset(a for a in valid if not set(graph.tensors[a].uses) <= after)
    return tuple(sorted(p for p in now if p[0] in alive)), needed_later


def least_peak(graph: Graph) -> int:
    """Least number of bytes alive at a time over all orders, addresses aside."""
    best: dict[frozenset[int], int] = {frozenset(): 0}
    for _ in graph.operators:
        following: dict[frozenset[int], int] = {}
        for done, peak in best.items():
            for operator in set(range(len(graph.operators))) - done:
                if _may_run(graph, operator, done):
                    after = done | {operator}
                    alive = [t for t in graph.tensors if set(t.uses) & after and set(t.uses) - done]
                    shared = sum(graph.tensors[i].bytes for i in _heirs(graph, operator, after))
                    worst = max(peak, sum(t.bytes for t in alive) - shared)
                    following[after] = min(worst, following.get(after, worst))
        best = following
    return best[frozenset(range(len(graph.operators)))]


def feasible_order(graph: Graph, most: int) -> bool:
    """Whether some order holds at most `most` bytes at a time: depth first over sets of operators, failures remembered.

    An operator that fits and leaves no more than there was is run without looking at others.
    """
    count = len(graph.operators)
    uses = [set(t.uses) for t in graph.tensors]
    of = [[i for i, u in enumerate(uses) if o in u] for o in range(count)]
    needs = [set().union(*(graph.tensors[i].producers for i in of[o] if o in graph.tensors[i].consumers)) for o in range(count)]
    readers = [{c for i in of[o] if o in graph.tensors[i].producers for c in graph.tensors[i].consumers} for o in range(count)]
    failed: set[frozenset[int]] = set()
    stack = [(frozenset[int](), 0, frozenset(o for o in range(count) if not needs[o]))]
    while stack:
        done, live, ready = stack.pop()
        if len(done) == count:
            return True
        if done in failed:
            continue
        failed.add(done)
        found = []
        for o in ready:
            new = sum(graph.tensors[i].bytes for i in of[o] if not uses[i] & done)
            old = sum(graph.tensors[i].bytes for i in of[o] if uses[i] <= done | {o})
            if live + new > most:
                continue
            after = done | {o}
            state = (after, live + new - old, ready - {o} | {r for r in readers[o] if needs[r] <= after})
            if new <= old:
                found = [state]
                break
            found.append(state)
        stack += sorted(found, key=lambda state: -state[1])
    return False
