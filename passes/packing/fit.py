"""The usual allocators: buffers one after the other, each into the first or the tightest gap that takes it.

Source: Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020 (arXiv 2001.03288): "greedy by
size"; TFLite's linear allocator is first fit in the order of allocation.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence

from dlc.passes.packing.buffers import Buffer, align


def first_fit(buffers: Sequence[Buffer], order: Sequence[int] | None = None) -> tuple[int, ...] | None:
    """Offsets: each buffer, in `order` (of birth by default), at the lowest gap that is free for its whole life.

    None where a fixed offset is taken already.
    """
    return _fit(buffers, order, tightest=False)


def best_fit(buffers: Sequence[Buffer], order: Sequence[int] | None = None) -> tuple[int, ...] | None:
    """Offsets: each buffer, in `order` (of birth by default), in the smallest gap that takes it, at the gap's start."""
    return _fit(buffers, order, tightest=True)


def orders(buffers: Sequence[Buffer]) -> Iterator[tuple[int, ...]]:
    """Orders that are worth a first fit: by size, by area, by life, each falling, and by birth."""
    everything = range(len(buffers))

    def by(*keys: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(sorted(everything, key=lambda i: (*(-k[i] for k in keys), i)))

    sizes = tuple(b.size for b in buffers)
    lives = tuple(b.upper - b.lower for b in buffers)
    yield by(sizes, lives)
    yield by(tuple(s * w for s, w in zip(sizes, lives, strict=True)))
    yield by(lives, sizes)
    yield tuple(sorted(everything, key=lambda i: (buffers[i].lower, -sizes[i], i)))


def fits(buffers: Sequence[Buffer]) -> Iterator[tuple[int, ...]]:
    """The packings by first fit in all `orders`, then those by best fit."""
    for fit in (first_fit, best_fit):
        for order in orders(buffers):
            found = fit(buffers, order)
            if found is not None:
                yield found


def _fit(buffers: Sequence[Buffer], order: Sequence[int] | None, tightest: bool) -> tuple[int, ...] | None:
    if order is None:
        order = sorted(range(len(buffers)), key=lambda i: (buffers[i].lower, i))
    offsets = [0] * len(buffers)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, lower, upper; ascending by offset
    for index in sorted(order, key=lambda i: buffers[i].offset is None):  # what is fixed is there first
        b = buffers[index]
        if b.empty:
            offsets[index] = b.offset or 0
            continue
        at = _gap(placed, b, tightest) if b.offset is None else b.offset
        if b.offset is not None and _taken(placed, b, b.offset):
            return None
        offsets[index] = at
        insort(placed, (at, at + b.size, b.lower, b.upper))
    return tuple(offsets)


def _gap(placed: Sequence[tuple[int, int, int, int]], b: Buffer, tightest: bool) -> int:
    """Offset of the first, or the smallest, gap for `b` among what is placed."""
    at, best, room = 0, None, 0
    for low, high, lower, upper in placed:
        if lower >= b.upper or upper <= b.lower:
            continue
        start = align(at, b.alignment)
        if low - start >= b.size and (best is None or low - at < room):
            if not tightest:
                return start
            best, room = start, low - at
        at = max(at, high)
    return align(at, b.alignment) if best is None else best


def _taken(placed: Sequence[tuple[int, int, int, int]], b: Buffer, at: int) -> bool:
    return any(
        low < at + b.size and at < high and lower < b.upper and b.lower < upper for low, high, lower, upper in placed
    )
