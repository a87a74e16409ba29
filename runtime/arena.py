"""Memory for intermediate tensors: where each lies (`plan`) and the blocks they lie in (`Slab`, `FileSlab`, `SlabPool`).

Buffers whose lifetimes do not overlap share addresses.  The compiler has packed them for the extents it was told; what
it found comes as hints.  A call's sizes may be others, so buffers are placed anew, one after the other, each at the
lowest gap that is free for its whole life: in the order of the hints, and largest first; the lower of both is taken.

Why the hints' order keeps its promise: a buffer's neighbours with lower hints end, at sizes not above those planned for,
no higher than planned (by induction), so the planned place is free and first fit finds that or a lower one. The arena
is then never larger than planned, whatever smaller extents a call has, and overlaps are impossible whatever a file says.

Source: Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020 (arXiv 2001.03288),
"greedy by size for offset calculation".
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Final

from dlc.runtime.errors import NotEnoughMemory

ALIGNMENT: Final = 64
KEEP_BYTES: Final = 1 << 28
"""Idle slabs above this size, together, go back to the system ..."""
KEEP_ONE_BYTES: Final = 1 << 30
"""... but a single one may be this large, for mapping it anew in every call would cost its page faults."""
HUGE_PAGE_BYTES: Final = 1 << 21
MAX_ARENA_BYTES: Final = 1 << 46
"""More than any machine has; the sum of sizes stays far from overflow."""


def align(size: int) -> int:
    """`size` rounded up to the alignment of buffers."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def plan(
    sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]], hints: Sequence[int] | None = None
) -> tuple[tuple[int, ...], int]:
    """Offsets of buffers such that no two live ones overlap, and the bytes of the whole.

    Args:
        sizes: bytes of each buffer; empty and negative ones take no room.
        lifetimes: first and last statement that uses each, inclusive.
        hints: an offset for each, from a good plan for these or other sizes.
    """
    by_size = _place(sizes, lifetimes, sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)))
    if hints is None:
        return by_size
    by_hint = _place(sizes, lifetimes, sorted(range(len(sizes)), key=lambda i: (hints[i], i)))
    return by_hint if by_hint[1] <= by_size[1] else by_size


def _place(
    sizes: Sequence[int], lifetimes: Sequence[tuple[int, int]], order: Sequence[int]
) -> tuple[tuple[int, ...], int]:
    offsets = [0] * len(sizes)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last; ascending by offset
    total = 0
    for index in order:
        size = align(sizes[index])
        if size <= 0:
            continue
        first, last = lifetimes[index]
        at = 0
        for low, high, begin, end in placed:
            if begin > last or end < first:
                continue
            if low - at >= size:
                break
            if high > at:
                at = high
        offsets[index] = at
        _insert(placed, (at, at + size, first, last))
        total = max(total, at + size)
    return tuple(offsets), total


def _insert(placed: list[tuple[int, int, int, int]], item: tuple[int, int, int, int]) -> None:
    low, high = 0, len(placed)
    while low < high:
        middle = (low + high) // 2
        if placed[middle][0] <= item[0]:
            low = middle + 1
        else:
            high = middle
    placed.insert(low, item)


class Slab:
    """One block of memory at a fixed, page-aligned address, given back to the system when it is collected."""

    __slots__ = ("_memory", "base", "size_bytes")

    def __init__(self, size_bytes: int) -> None:
        if size_bytes > MAX_ARENA_BYTES:
            raise NotEnoughMemory(needed=size_bytes, what="intermediate results")
        self.size_bytes = max(-(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE, mmap.PAGESIZE)
        try:
            self._memory = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError, MemoryError):
            raise NotEnoughMemory(needed=size_bytes, what="intermediate results") from None
        if self.size_bytes >= 2 * HUGE_PAGE_BYTES:
            try:
                self._memory.madvise(mmap.MADV_HUGEPAGE)  # 512 times fewer page faults on the first call
            except OSError:
                pass
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))


class FileSlab(Slab):
    """A block for what leaves the arena during a call: a file without a name, mapped.

    The system may write its pages to disk and take their memory when that is short, which it cannot do with anonymous
    memory where there is no swap; while memory is plentiful they stay in the page cache and a spill is a copy in
    memory. The file's blocks are reserved at once, so that a full disk is an error here and not a fault in a kernel.
    """

    __slots__ = ()

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = max(-(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE, mmap.PAGESIZE)
        try:
            with tempfile.TemporaryFile(prefix="dlc-spill-") as file:
                os.posix_fallocate(file.fileno(), 0, self.size_bytes)
                self._memory = mmap.mmap(file.fileno(), self.size_bytes)
        except (OSError, ValueError, OverflowError, MemoryError):
            what = f"what is spilled to a file in {tempfile.gettempdir()}"
            raise NotEnoughMemory(needed=size_bytes, what=what) from None
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))


class SlabPool:
    """Idle slabs of one executable.  A list's `append` and `pop` are atomic, so no lock is needed."""

    __slots__ = ("_idle", "_make")

    def __init__(self, make: Callable[[int], Slab] = Slab) -> None:
        self._idle: list[Slab] = []
        self._make = make

    def take(self, size_bytes: int) -> Slab:
        """A slab of at least `size_bytes`; the caller owns it until `give`."""
        try:
            slab = self._idle.pop()
        except IndexError:
            return self._make(size_bytes)
        if slab.size_bytes >= size_bytes:
            return slab
        small = [slab]
        found = None
        while True:
            try:
                slab = self._idle.pop()
            except IndexError:
                break
            if slab.size_bytes >= size_bytes:
                found = slab
                break
            small.append(slab)
        if found is None:
            # the largest idle one is about to be outgrown: drop it, so that growing lengths do not pile up
            small.sort(key=lambda slab: slab.size_bytes)
            if small:
                small.pop()
            found = self._make(size_bytes)
        self._idle.extend(small)
        return found

    def give(self, slab: Slab) -> None:
        """Hand `slab` back for the next call."""
        idle = self.idle_bytes if self._idle else 0
        if idle + slab.size_bytes <= (KEEP_BYTES if idle else KEEP_ONE_BYTES):
            self._idle.append(slab)

    @property
    def idle_bytes(self) -> int:
        """Memory held for later calls."""
        return sum(slab.size_bytes for slab in list(self._idle))
