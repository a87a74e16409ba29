"""Packing below a capacity, and packing as low as possible: bounds, then fits, then the complete search with restarts."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlc.passes.packing.buffers import Answer, Buffer, Infeasible, NotFound, Packed, height, most_live
from dlc.passes.packing.fit import first_fit, fits
from dlc.passes.packing.search import FOUND, NONE, OPEN, Advance, Instance, Ints, Search

PREORDERS = ("AT", "WAT", "TWA")
"""Keys of the first preorders, each falling (see `Instance.key`)."""

VARIED = ("AT", "AT", "WAT", "AT")
"""Keys of the preorders that restarts vary, in turn."""

NATIVE_CHUNK, PYTHON_CHUNK = 200, 10
"""Decisions between two looks at the clock."""

NOISE = 0.5
"""A restart multiplies each buffer's keys by up to this much more or less,"""

LEARN = 1.0
"""and by up to this much more where earlier runs failed most often."""

RUN = 100
"""Decisions of the shortest runs, above one per buffer."""


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
    buffers: Sequence[Buffer],
    capacity: int,
    *,
    time_limit: float = 60.0,
    seed: int = 0,
    node_limit: int | None = None,
    native: Advance | None = None,
) -> Answer:
    """Offsets below `capacity` for all buffers, or a proof that there are none, or neither in time.

    Args:
        time_limit: seconds of wall time.
        seed: of the restarts' preorders; one seed gives one answer, if time does not decide.
        node_limit: gives up after so many decisions of the search, for answers that no clock decides.
        native: the search as native code (`dlc.native_packing`); in Python it is much slower.
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
    given = [b.offset or 0 for b in buffers]
    for part in _parts(buffers):
        left = time_limit - (time.monotonic() - began)
        answer = _search([buffers[i] for i in part], capacity, left, seed, node_limit, native)
        if not isinstance(answer, Packed):
            return answer
        for i, offset in zip(part, answer.offsets, strict=True):
            given[i] = offset
    return Packed(tuple(given))


def _parts(buffers: Sequence[Buffer]) -> list[list[int]]:
    """Buffers in groups of which no two are alive at the same time, the hardest first."""
    parts: list[list[int]] = []
    end = -math.inf
    for i in sorted((i for i, b in enumerate(buffers) if not b.empty), key=lambda i: buffers[i].lower):
        if buffers[i].lower >= end:
            parts.append([])
        parts[-1].append(i)
        end = max(end, buffers[i].upper)
    return sorted(parts, key=lambda part: -most_live([buffers[i] for i in part])[0])


def _search(
    buffers: Sequence[Buffer],
    capacity: int,
    time_limit: float,
    seed: int,
    node_limit: int | None,
    native: Advance | None,
) -> Answer:
    """The complete search with restarts, for buffers none of which is empty."""
    began = time.monotonic()
    unit = _unit(buffers)
    search = Search(Instance([_scaled(b, unit) for b in buffers]), capacity // unit, native)
    chunk = NATIVE_CHUNK if native else PYTHON_CHUNK
    for order, limit in _restarts(search, seed):
        search.begin(order)
        answer, stop = OPEN, search.nodes + limit
        while answer == OPEN and search.nodes < stop:
            if time.monotonic() - began > time_limit or (node_limit is not None and search.nodes >= node_limit):
                return NotFound(time.monotonic() - began, search.nodes)
            answer = search.advance(min(chunk, stop - search.nodes))
        if answer == NONE:
            proof = f"a complete search of {search.nodes} decisions found no way below {capacity}"
            return Infeasible(proof, (capacity // unit + 1) * unit)
        if answer == FOUND:
            return Packed(tuple(offset * unit for offset in search.offsets()))
    raise AssertionError("restarts do not end")


def pack_least(
    buffers: Sequence[Buffer],
    *,
    time_limit: float = 1.0,
    seed: int = 0,
    node_limit: int | None = None,
    native: Advance | None = None,
) -> Placement | None:
    """The lowest placement that is found in time, with a bound; None where fixed offsets collide.

    The most that is alive at once is tried first, which is nearly always enough; then capacities between what is
    proven impossible and what is found.
    """
    deadline = time.monotonic() + time_limit
    fitted = fit_least(buffers, time_limit=time_limit / 2)
    if fitted is None:
        return None
    best, top, bound = fitted.offsets, fitted.height, fitted.bound
    unit = _unit([b for b in buffers if not b.empty])
    low = bound  # nothing below is worth a try: impossible, or not found before
    capacity = low
    while low < top and time.monotonic() < deadline:
        limit = (deadline - time.monotonic()) / 2
        match pack(buffers, capacity, time_limit=limit, seed=seed, node_limit=node_limit, native=native):
            case Packed(offsets):
                best, top = offsets, height(buffers, offsets)
            case Infeasible(_, least):
                bound = max(bound, least)
                low = max(low, least)
            case NotFound():
                low = capacity + unit
        capacity = low + (top - low) // (2 * unit) * unit
    return Placement(best, top, min(bound, top))


def fit_least(buffers: Sequence[Buffer], *, time_limit: float = 1.0) -> Placement | None:
    """The lowest placement that the usual allocators find; None where fixed offsets collide."""
    deadline = time.monotonic() + time_limit
    solid = [b for b in buffers if not b.empty]
    bound = max([most_live(solid)[0], *((b.offset or 0) + b.size for b in solid)], default=0)
    best: Placement | None = None
    for offsets in _fits(buffers):
        found = Placement(offsets, height(buffers, offsets), bound)
        if best is None or found.height < best.height:
            best = found
        if best.height == bound or time.monotonic() > deadline:
            break
    return best


def _fits(buffers: Sequence[Buffer]) -> Iterator[tuple[int, ...]]:
    """What costs no search: in the order of the hints, when there are any, and the usual allocators."""
    if any(b.hint is not None for b in buffers):
        found = first_fit(buffers, _by_hint(buffers))
        if found is not None:
            yield found
    yield from fits(buffers)


def _by_hint(buffers: Sequence[Buffer]) -> list[int]:
    """By rising hint; those without one last."""
    hints = [b.hint for b in buffers]
    return sorted(range(len(buffers)), key=lambda i: (hints[i] is None, hints[i] or 0, -buffers[i].size))


def _restarts(search: Search, seed: int) -> Iterator[tuple[Ints, int]]:
    """Preorders and how many decisions each may take: short runs mostly, and now and then a long one.

    Source of the lengths: Luby, Sinclair and Zuckerman, Optimal speedup of Las Vegas algorithms, 1993.
    """
    of = search.instance
    if any(b.hint is not None for b in of.buffers):
        yield np.array(_by_hint(of.buffers), np.int64), of.count * 2
    random = np.random.default_rng(seed)
    for letters in PREORDERS:
        yield _preorder(of, letters, np.ones(of.count)), of.count + RUN
    for step in itertools.count(1):
        for letters in VARIED:
            noise = random.uniform(1 - NOISE, 1 + NOISE, of.count) * (1 + LEARN * search.blame())
            search.fade()
            yield _preorder(of, letters, noise), _luby(step) * (of.count + RUN)


def _preorder(of: Instance, letters: str, factors: NDArray[np.float64]) -> Ints:
    """The buffers by falling keys, the first letter's first, each key times a factor."""
    return np.lexsort([-of.key(letter) * factors for letter in reversed(letters)]).astype(np.int64)


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


__all__ = ["Placement", "fit_least", "pack", "pack_least"]
