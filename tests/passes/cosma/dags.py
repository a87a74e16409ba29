"""All connected directed acyclic graphs of few operators, one of each shape."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from random import Random

from dlc.passes.cosma.graph import Graph, Tensor

Edges = frozenset[tuple[int, int]]


@cache
def connected_dags(n: int) -> tuple[Edges, ...]:
    """Edges (i, j) with i < j, one graph per isomorphism class: 1, 1, 4, 24, 267, 5647 of them."""
    pairs = [(i, j) for j in range(n) for i in range(j)]
    seen: set[int] = set()
    found = []
    swaps = [_image_table(pairs, p, n) for p in permutations(range(n))]
    for mask in range(1 << len(pairs)):
        edges = frozenset(pair for k, pair in enumerate(pairs) if mask >> k & 1)
        if not _connected(n, edges) or mask in seen:
            continue
        found.append(edges)
        for table in swaps:
            image = 0
            for k in range(len(pairs)):
                if mask >> k & 1:
                    if table[k] is None:
                        break
                    image |= 1 << table[k]
            else:
                seen.add(image)
    return tuple(found)


def _image_table(pairs: list[tuple[int, int]], p: tuple[int, ...], n: int) -> list[int | None]:
    place = {pair: k for k, pair in enumerate(pairs)}
    return [place.get((p[i], p[j])) for i, j in pairs]


def _connected(n: int, edges: Edges) -> bool:
    reached, grown = {0}, True
    while grown:
        more = {b for e in edges for b in e if reached & set(e)} - reached
        reached |= more
        grown = bool(more)
    return len(reached) == n


def sized(n: int, edges: Edges, random: Random) -> Graph:
    """Each operator writes one tensor of 1 to 4 units, read by its successors; sources read an input now and then."""
    tensors = []
    for o in range(n):
        readers = tuple(sorted(j for i, j in edges if i == o))
        tensors.append(Tensor(f"t{o}", random.randint(1, 4), (o,), readers, output=not readers or random.random() < 0.1))
    if random.random() < 0.3:
        readers = tuple(sorted(random.sample(range(n), random.randint(1, min(n, 2)))))
        tensors.append(Tensor("input", random.randint(1, 4), (), readers))
    return Graph("dag", tuple(f"o{o}" for o in range(n)), tuple(tensors))
