"""All connected directed acyclic graphs of few operators, one of each shape."""

from __future__ import annotations

from dataclasses import replace
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


def varied(n: int, random: Random) -> Graph:
    """Any shape of `n` operators, with inputs that several read, sizes of 0, results that are read, two producers of a tensor."""
    graph = sized(n, random.choice(connected_dags(n)), random)
    tensors = []
    for t in graph.tensors:
        size = random.choice((0, 1, 1, 2, 3, 4)) if random.random() < 0.5 else t.bytes
        tensors.append(Tensor(t.name, size, t.producers, t.consumers, t.output or random.random() < 0.05))
    for k in range(random.randint(0, 2)):
        readers = tuple(sorted(random.sample(range(n), random.randint(1, 3))))
        tensors.append(Tensor(f"input{k}", random.randint(1, 4), (), readers))
    if random.random() < 0.3:
        a, b = sorted(random.sample(range(n), 2))
        readers = tuple(c for c in range(b + 1, n) if random.random() < 0.5)
        tensors.append(Tensor("sum", random.randint(1, 4), (a, b), readers, output=not readers))
    return Graph("varied", graph.operators, tuple(tensors))


def taking(n: int, random: Random) -> Graph:
    """Graphs in which many a result may lie where an operand does, the largest or the only one, an input's copy too."""
    graph = sized(n, random.choice(connected_dags(n)), random)
    tensors = list(graph.tensors)
    for o in range(n):
        read = [i for i, t in enumerate(tensors) if o in t.consumers]
        if read and random.random() < 0.7:
            old = random.choice(read)
            tensors[o] = replace(tensors[o], bytes=tensors[old].bytes, takes=old)
    return replace(graph, tensors=tuple(tensors))


def sparse(n: int, random: Random) -> Graph:
    """Any edges, sizes of 1 to 6: larger graphs, in which operators can be put off and chains run at once."""
    edges = {(i, j) for j in range(n) for i in range(j) if random.random() < 0.3}
    for o in range(1, n):
        if not any(j == o for _, j in edges) and random.random() < 0.7:
            edges.add((random.randrange(o), o))
    tensors = []
    for o in range(n):
        readers = tuple(sorted(j for i, j in edges if i == o))
        output = not readers or random.random() < 0.08
        tensors.append(Tensor(f"t{o}", random.randint(1, 6), (o,), readers, output))
    for k in range(random.randint(0, 2)):
        readers = tuple(sorted(random.sample(range(n), random.randint(2, 3))))
        tensors.append(Tensor(f"input{k}", random.randint(1, 5), (), readers))
    return Graph("sparse", tuple(f"o{i}" for i in range(n)), tuple(tensors))
