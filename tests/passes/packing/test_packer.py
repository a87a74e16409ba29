"""Packing: every answer is checked against the definition, and against brute force where that is possible."""

from __future__ import annotations

import csv
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dlc.native_packing import native_advance
from dlc.passes.packing import Buffer, Infeasible, NotFound, Packed, best_fit, first_fit, most_live, pack, pack_least
from dlc.passes.packing.buffers import height

ANCHORS = Path(__file__).parent / "minimalloc"
CAPACITY = 1 << 20


def assert_valid(buffers: Sequence[Buffer], offsets: Sequence[int], capacity: int) -> None:
    """Nothing overlaps: read off a grid of time and address classes, not by the code under test."""
    for b, at in zip(buffers, offsets, strict=True):
        assert at >= 0 and at % b.alignment == 0 and at + b.size <= capacity
        assert b.offset is None or at == b.offset
    for now in {b.lower for b in buffers}:
        alive = sorted(
            (at, at + b.size) for b, at in zip(buffers, offsets, strict=True) if b.lower <= now < b.upper and b.size
        )
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(alive))


def can_be_packed(buffers: Sequence[Buffer], capacity: int) -> bool:
    """Every combination of offsets, buffer by buffer."""

    def place(done: list[tuple[Buffer, int]], rest: Sequence[Buffer]) -> bool:
        if not rest:
            return True
        b = rest[0]
        places = range(0, capacity - b.size + 1, b.alignment) if b.offset is None else [b.offset]
        for at in places:
            free = all(
                not b.meets(o) or at + b.size <= low or low + o.size <= at or not (b.size and o.size) for o, low in done
            )
            if free and at + b.size <= capacity and place([*done, (b, at)], rest[1:]):
                return True
        return False

    return place([], buffers)


def some_buffers(seed: int, with_extras: bool) -> tuple[list[Buffer], int]:
    rng = random.Random(seed)
    buffers = []
    for i in range(rng.randint(2, 6)):
        lower = rng.randint(0, 5)
        alignment = rng.choice((1, 1, 2, 3)) if with_extras else 1
        offset = rng.randint(0, 2) * alignment if with_extras and rng.random() < 0.15 else None
        buffers.append(Buffer(str(i), lower, lower + rng.randint(1, 4), rng.randint(1, 4), alignment, offset))
    return buffers, most_live(buffers)[0] + rng.choice((0, 0, 0, 1))


def full_buffers(seed: int, capacity: int = 5, times: int = 7) -> list[Buffer]:
    """As much alive at every time as there is room for: the few that cannot be packed are among these."""
    rng = random.Random(seed)
    load, buffers = [0] * times, []
    for now in range(times):
        while load[now] < capacity:
            end = min(times, now + rng.randint(1, 4))
            size = rng.randint(1, capacity - load[now])
            while max(load[now:end]) + size > capacity:
                size, end = (size - 1, end) if size > 1 else (1, end - 1)
            for t in range(now, end):
                load[t] += size
            buffers.append(Buffer(str(len(buffers)), now, end, size))
    return buffers


@pytest.mark.parametrize("native", (False, True), ids=("python", "native"))
def test_proofs_are_right(native: bool) -> None:
    """What is found is valid, and where nothing is found brute force finds nothing either."""
    refused = 0
    for seed in range(1200):
        buffers = full_buffers(seed)
        answer = pack(buffers, 5, native=native_advance() if native else None)
        if isinstance(answer, Packed):
            assert_valid(buffers, answer.offsets, 5)
        else:
            assert isinstance(answer, Infeasible) and answer.least == 6
            assert not can_be_packed(buffers, 5)
            refused += 1
    assert refused >= 1


@pytest.mark.parametrize("native", (False, True), ids=("python", "native"))
def test_equal_to_brute_force_with_alignments_and_fixed_offsets(native: bool) -> None:
    answers = {Packed: 0, Infeasible: 0}
    for seed in range(300):
        buffers, capacity = some_buffers(seed, with_extras=True)
        answer = pack(buffers, capacity, native=native_advance() if native else None)
        answers[type(answer)] += 1
        assert isinstance(answer, Packed) == can_be_packed(buffers, capacity), (seed, answer)
        if isinstance(answer, Packed):
            assert_valid(buffers, answer.offsets, capacity)
    assert min(answers.values()) >= 5, answers


def test_search_alone_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without the usual allocators, which find most of what exists before the search begins."""
    monkeypatch.setattr("dlc.passes.packing.packer._fits", lambda buffers: ())
    for seed in range(300):
        buffers, capacity = some_buffers(seed, with_extras=seed % 2 == 1)
        answer = pack(buffers, capacity)
        assert isinstance(answer, Packed) == can_be_packed(buffers, capacity), (seed, answer)
        if isinstance(answer, Packed):
            assert_valid(buffers, answer.offsets, capacity)


def test_least_height_is_the_least() -> None:
    for seed in range(150):
        buffers, _ = some_buffers(seed, with_extras=False)
        found = pack_least(buffers)
        assert found is not None and found.bound == found.height == height(buffers, found.offsets)
        assert_valid(buffers, found.offsets, found.height)
        assert not can_be_packed(buffers, found.height - 1)


@pytest.mark.parametrize("name", "ABCDEF")
def test_packs_minimalloc(name: str) -> None:
    with (ANCHORS / f"{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    buffers = [Buffer(r["id"], int(r["lower"]), int(r["upper"]), int(r["size"])) for r in rows]
    answer = pack(buffers, CAPACITY, native=native_advance())
    assert isinstance(answer, Packed), answer
    assert_valid(buffers, answer.offsets, CAPACITY)


def test_same_seed_same_answer() -> None:
    rng = np.random.default_rng(1)
    lower = rng.integers(0, 40, 30)
    buffers = [
        Buffer(str(i), int(at), int(at + w), int(s))
        for i, (at, w, s) in enumerate(zip(lower, rng.integers(1, 12, 30), rng.integers(1, 9, 30), strict=True))
    ]
    once, again = (pack_least(buffers, seed=3, node_limit=200, time_limit=60) for _ in range(2))
    assert once == again


def test_says_neither_when_the_nodes_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlc.passes.packing.packer._fits", lambda buffers: ())
    buffers = [Buffer(str(i), i % 7, i % 7 + 3 + i % 3, 1 + i % 5) for i in range(40)]
    answer = pack(buffers, most_live(buffers)[0], node_limit=3)
    assert isinstance(answer, NotFound) and answer.nodes >= 3


@pytest.mark.parametrize("fit", (first_fit, best_fit))
def test_usual_allocators_are_valid(fit) -> None:  # type: ignore[no-untyped-def]
    for seed in range(200):
        buffers, _ = some_buffers(seed, with_extras=seed % 2 == 1)
        offsets = fit(buffers)
        if offsets is not None:
            assert_valid(buffers, offsets, 1 << 20)


def test_first_and_best_fit_differ() -> None:
    """Gaps of 4 and 2 bytes: the first takes the lower one, the best the tighter one."""
    walls = [Buffer("a", 0, 2, 4), Buffer("b", 0, 9, 1), Buffer("c", 0, 2, 2), Buffer("d", 0, 9, 1)]
    buffers = [*walls, Buffer("e", 3, 5, 2)]
    assert first_fit(buffers) == (0, 4, 5, 7, 0)
    assert best_fit(buffers) == (0, 4, 5, 7, 5)
