"""Arena plans: no two live buffers overlap, and memory is reused."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from dlc.runtime import arena
from dlc.runtime.errors import NotEnoughMemory


def test_disjoint_lifetimes_share_addresses():
    offsets, total = arena.plan([1000, 1000, 1000], [(0, 1), (1, 2), (2, 3)])
    assert total == 2 * 1024
    assert offsets[0] == offsets[2]


def test_random_plans_never_overlap_and_stay_near_the_bound():
    rng = random.Random(7)
    for _ in range(200):
        count = rng.randrange(0, 40)
        sizes = [rng.choice([0, 1, 64, 100, 4096, rng.randrange(1, 10**6)]) for _ in range(count)]
        lives = [(first := rng.randrange(20), first + rng.randrange(6)) for _ in range(count)]
        offsets, total = arena.plan(sizes, lives)
        for i in range(count):
            assert offsets[i] % 64 == 0
            assert offsets[i] + sizes[i] <= total or sizes[i] == 0
            for j in range(i):
                together = lives[i][0] <= lives[j][1] and lives[j][0] <= lives[i][1]
                apart = offsets[i] + sizes[i] <= offsets[j] or offsets[j] + sizes[j] <= offsets[i]
                assert apart or not together or not sizes[i] or not sizes[j]
        bound = max(
            (sum(arena.align(s) for s, (a, b) in zip(sizes, lives) if a <= t <= b) for t in range(30)), default=0
        )
        assert total <= 2 * bound + 64


def test_hints_hold_for_every_smaller_size():
    """A plan that first fit by size does not find, and what it becomes for other sizes."""
    rng = random.Random(3)
    better = 0
    for _ in range(300):
        count = rng.randrange(2, 12)
        lives = [(first := rng.randrange(8), first + rng.randrange(5)) for _ in range(count)]
        sizes = [64 * rng.randrange(1, 9) for _ in range(count)]
        plans = [arena._place(sizes, lives, rng.sample(range(count), count)) for _ in range(30)]
        hints, total = min(plans, key=lambda plan: plan[1])
        better += total < arena.plan(sizes, lives)[1]
        for _ in range(10):
            smaller = [rng.randrange(0, size + 1) for size in sizes]
            offsets, found = arena.plan(smaller, lives, hints)
            assert found <= total
            assert all(o + arena.align(s) <= found for o, s in zip(offsets, smaller) if s)
    assert better > 5


def test_hints_that_make_no_sense_do_no_harm():
    offsets, total = arena.plan([100, 100], [(0, 1), (0, 1)], [0, 0])
    assert sorted(offsets) == [0, 128] and total == 256


def test_spilled_bytes_lie_in_a_file():
    slab = arena.FileSlab(5000)
    assert slab.size_bytes == 8192 and slab.base % 64 == 0
    maps = Path("/proc/self/maps").read_text()
    line = next(m for m in maps.splitlines() if m.startswith(f"{slab.base:x}-"))
    assert " rw-s " in line and line.endswith("(deleted)")
    with pytest.raises(NotEnoughMemory, match="spilled to a file"):
        arena.FileSlab(1 << 60)


def test_slabs_are_reused_grow_and_are_aligned():
    pool = arena.SlabPool()
    first = pool.take(100)
    second = pool.take(100)
    assert first.base != second.base
    assert first.base % 64 == 0
    pool.give(first)
    assert pool.take(50) is first
    pool.give(first)
    pool.give(second)
    large = pool.take(10**6)
    assert large.size_bytes >= 10**6
    assert pool.idle_bytes == first.size_bytes  # one of the outgrown ones was dropped


def test_huge_slabs_are_given_back():
    pool = arena.SlabPool()
    small, huge = pool.take(1), pool.take(arena.KEEP_BYTES + 1)
    pool.give(small)
    pool.give(huge)
    assert pool.idle_bytes == small.size_bytes


def test_impossible_sizes_are_an_error():
    with pytest.raises(NotEnoughMemory):
        arena.Slab(1 << 60)
    with pytest.raises(NotEnoughMemory):
        arena.Slab(1 << 45)


def test_concurrent_use():
    pool = arena.SlabPool()
    owned: set[int] = set()
    failed = []

    def work():
        for _ in range(500):
            slab = pool.take(4096)
            if slab.base in owned:
                failed.append(slab.base)
            owned.add(slab.base)
            owned.discard(slab.base)
            pool.give(slab)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
