"""What leaves the arena when: every plan is replayed, and the least traffic compared with every residency there is."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest

from dlc.passes.spill import Moves, Steps, furthest_first, kept_outside, least_traffic, restless, traffic_bytes


def some_steps(seed: int, count: int = 6) -> Steps:
    rng = random.Random(seed)
    uses, sizes = {}, {}
    for i in range(rng.randint(2, 5)):
        chosen = sorted(rng.sample(range(count), rng.randint(1, 4)))
        uses[f"t{i}"], sizes[f"t{i}"] = tuple(chosen), rng.randint(1, 4)
    return Steps(uses, sizes, tuple(rng.choice((0, 0, 1)) for _ in range(count)))


def replay(steps: Steps, moves: Sequence[Moves]) -> int:
    """The most bytes at once; everything needed is there, what comes back was out, what leaves was in."""
    inside: set[str] = set()
    outside: set[str] = set()
    most = 0
    for step, (before, fixed, needed) in enumerate(zip(moves, steps.fixed, steps.needed, strict=True)):
        assert set(before.leave) <= inside
        inside, outside = inside - set(before.leave), outside | set(before.leave)
        assert set(before.return_) <= outside and not set(before.return_) & inside
        inside |= set(before.return_)
        inside |= {name for name in needed if steps.uses[name][0] == step}
        assert set(needed) <= inside
        most = max(most, fixed + sum(steps.sizes[name] for name in inside))
        inside = {name for name in inside if steps.uses[name][-1] > step}
    return most


def least_by_trying(steps: Steps, capacity: int) -> int:
    """Over all choices, for every two uses of a tensor in a row, whether it stays between them."""
    gaps = [(name, a, b) for name, uses in steps.uses.items() for a, b in itertools.pairwise(uses) if b > a + 1]
    best = 1 << 60
    for gone in itertools.product((False, True), repeat=len(gaps)):
        out = [gap for gap, left in zip(gaps, gone, strict=True) if left]
        at = [
            fixed
            + sum(
                steps.sizes[name]
                for name, uses in steps.uses.items()
                if uses[0] <= step <= uses[-1] and not any(n == name and a < step < b for n, a, b in out)
            )
            for step, fixed in enumerate(steps.fixed)
        ]
        if max(at) <= capacity:
            cost = sum(steps.sizes[n] for n in {n for n, _, _ in out}) + sum(steps.sizes[n] for n, _, _ in out)
            best = min(best, cost)
    return best


def test_least_traffic_is_the_least() -> None:
    spilled = worse = 0
    for seed in range(150):
        steps = some_steps(seed)
        capacity = steps.least + seed % 3
        moves = least_traffic(steps, capacity, 10.0)
        assert moves is not None and replay(steps, moves) <= capacity
        assert traffic_bytes(steps, moves) == least_by_trying(steps, capacity), seed
        belady = furthest_first(steps, capacity)
        assert belady is not None and replay(steps, belady) <= capacity
        spilled += traffic_bytes(steps, moves) > 0
        worse += traffic_bytes(steps, belady) > traffic_bytes(steps, moves)
    assert spilled > 30 and worse > 3


@pytest.mark.parametrize("plan", (furthest_first, lambda steps, capacity: least_traffic(steps, capacity, 1.0)))
def test_no_plan_below_what_a_step_needs(plan) -> None:  # type: ignore[no-untyped-def]
    steps = some_steps(1)
    assert plan(steps, steps.least) is not None and plan(steps, steps.least - 1) is None


def test_restless_has_nothing_but_what_a_step_needs() -> None:
    for seed in range(100):
        steps = some_steps(seed)
        assert replay(steps, restless(steps)) == steps.least


def test_kept_outside_is_enough_and_not_too_much() -> None:
    for seed in range(100):
        steps = some_steps(seed)
        for capacity in range(max(steps.fixed), steps.least + 1):
            outside = kept_outside(steps, capacity)
            assert steps.without(outside).least <= capacity
            assert bool(outside) == (capacity < steps.least)
