"""Packing below a capacity, and packing as low as possible: bounds, then fits, then the complete search with restarts."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dlc.passes.packing.buffers import Answer, Buffer, Infeasible, NotFound, Packed, check, height, most_live
from dlc.passes.packing.fit import first_fit, lowest_fit
from dlc.passes.packing.search import Instance, Ints, OutOfNodes, Search

PREORDERS = ("WAT", "AT", "TWA")
"""Keys of the preorders, each falling, that restarts take in turn; see `Instance.keys`."""

NOISE = 0.5
"""A restart multiplies each buffer's keys by up to this much more or less."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Addresses, and how far from the best they can be.

    Attributes:
        offsets: one per buffer.
        height: bytes they need.
        bound: no placement needs less.
    """

    offsets: tuple[int, ...]
    height: int
    bound: int

    @property
    def gap(self) -> float:
        """How much of the height may be too much: 0 when it is proven least."""
        return (self.height - self.bound) / self.bound if self.bound else 0.0


def pack(
    buffers: Sequence[Buffer], capacity: int, *, time_limit: float = 60.0, seed: int = 0, node_limit: int | None = None
) -> Answer:
    """Offsets below `capacity` for all buffers, or a proof that there are none, or neither in time.

    Args:
        time_limit: seconds of wall time.
        seed: of the restarts' preorders; one seed gives one answer, if time does not decide.
        node_limit: gives up after so many decisions of the search, for answers that no clock decides.
    """
    began = time.monotonic()
    for b in buffers:
        least = (b.offset or 0) + b.size
        if not b.empty and least > capacity:
            return Infeasible(f"'{b.id}' alone ends at {least}", least)
    bound, at = most_live(buffers)
    if bound > capacity:
        return Infeasible(f"{bound} bytes are alive at time {at}", bound)
    for offsets in _fits(buffers):
        if height(buffers, offsets) <= capacity:
            return Packed(offsets)
    solid = [i for i, b in enumerate(buffers) if not b.empty]
    unit = _unit([buffers[i] for i in solid])
    search = Search(Instance([_scaled(buffers[i], unit) for i in solid]), capacity // unit, began + time_limit)
    for order, limit in _restarts(search.instance, seed):
        left = limit if node_limit is None else min(limit, node_limit - search.nodes)
        if left <= 0 or time.monotonic() > search.deadline:
            break
        try:
            found = search.run(order, left)
        except OutOfNodes:
            continue
        if found is None:
            proof = f"a complete search of {search.nodes} decisions found no way below {capacity}"
            return Infeasible(proof, (capacity // unit + 1) * unit)
        offsets = [b.offset or 0 for b in buffers]
        for i, offset in zip(solid, found, strict=True):
            offsets[i] = offset * unit
        assert check(buffers, offsets, capacity) is None
        return Packed(tuple(offsets))
    return NotFound(time.monotonic() - began, search.nodes)


def pack_least(
    buffers: Sequence[Buffer], *, time_limit: float = 1.0, seed: int = 0, node_limit: int | None = None
) -> Placement | None:
    """The lowest placement that is found in time, with a bound; None where fixed offsets collide.

    The most that is alive at once is tried first, which is nearly always enough; then capacities between what is
    proven impossible and what is found.
    """
    deadline = time.monotonic() + time_limit
    best = min(_fits(buffers), key=lambda f: height(buffers, f), default=None)
    if best is None:
        return None
    solid = [b for b in buffers if not b.empty]
    unit = _unit(solid)
    bound = max([most_live(solid)[0], *((b.offset or 0) + b.size for b in solid)], default=0)
    low, top = bound, height(buffers, best)  # nothing below `low` is worth a try: impossible, or not found before
    capacity = low
    while low < top and time.monotonic() < deadline:
        limit = (deadline - time.monotonic()) / 2
        match pack(buffers, capacity, time_limit=limit, seed=seed, node_limit=node_limit):
            case Packed(offsets):
                best, top = offsets, height(buffers, offsets)
            case Infeasible(_, least):
                bound = max(bound, least)
                low = max(low, least)
            case NotFound():
                low = capacity + unit
        capacity = low + (top - low) // (2 * unit) * unit
    return Placement(best, top, min(bound, top))


def _fits(buffers: Sequence[Buffer]) -> Iterator[tuple[int, ...]]:
    """What costs no search: in the order of the hints, when there are any, and the usual allocators."""
    if any(b.hint is not None for b in buffers):
        found = first_fit(buffers, _by_hint(buffers))
        if found is not None:
            yield found
    found = lowest_fit(buffers)
    if found is not None:
        yield found


def _by_hint(buffers: Sequence[Buffer]) -> list[int]:
    """By rising hint; those without one last."""
    hints = [b.hint for b in buffers]
    return sorted(range(len(buffers)), key=lambda i: (hints[i] is None, hints[i] or 0, -buffers[i].size))


def _restarts(of: Instance, seed: int) -> Iterator[tuple[Ints, int]]:
    """Preorders and how many decisions each may take: short runs mostly, and now and then a long one.

    Source of the lengths: Luby, Sinclair and Zuckerman, Optimal speedup of Las Vegas algorithms, 1993.
    """
    if any(b.hint is not None for b in of.buffers):
        yield np.array(_by_hint(of.buffers), np.int64), of.count * 2
    random = np.random.default_rng(seed)
    step = 0
    while True:
        step += 1
        for letters in PREORDERS:
            keys = of.keys(letters)
            if step > 1:
                noise = random.uniform(1 - NOISE, 1 + NOISE, of.count)
                keys = [key * noise for key in keys]
            order = np.lexsort([-key for key in reversed(keys)]).astype(np.int64)
            yield order, _luby(step) * (of.count + 100)


def _luby(step: int) -> int:
    """1 1 2 1 1 2 4 1 1 2 1 1 2 4 8 ..., from step 1."""
    power = step.bit_length()
    return 1 << (power - 1) if step == (1 << power) - 1 else _luby(step - (1 << (power - 1)) + 1)


def _unit(buffers: Sequence[Buffer]) -> int:
    """What divides every size, alignment and fixed offset: no canonical offset is anything but a multiple of it."""
    numbers = [n for b in buffers for n in (b.size, b.alignment, b.offset or 0)]
    alignments = {b.alignment for b in buffers}
    if all(size % alignment == 0 for alignment in alignments for size in (b.size for b in buffers)):
        numbers = [n for b in buffers for n in (b.size, b.offset or 0)]  # alignment holds by itself
    return math.gcd(*numbers) or 1


def _scaled(b: Buffer, unit: int) -> Buffer:
    offset = None if b.offset is None else b.offset // unit
    return replace(b, size=b.size // unit, alignment=max(1, b.alignment // unit), offset=offset)


__all__ = ["Placement", "pack", "pack_least"]
