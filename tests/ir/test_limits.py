"""Bounds of sizes that a run decides: never exceeded, over all small values, and found where one is plain to see."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from dlc.ir.extent import IntExpr, evaluate, int_expr, maximum, minimum, sym, variables
from dlc.ir.limits import at_most

B, M, N = sym("b"), sym("m"), sym("n")
KNOWN = {"#b"}
LIMITS = {"#m": B + 1}
"""Of `n` nothing is known."""


@pytest.mark.parametrize(
    ("e", "bound"),
    [
        (maximum(0, minimum(N, 28)) * B, 28 * B),
        (4 * M - N, 4 * B + 4),
        (minimum(N, B, 7), minimum(B, 7)),
        (maximum(M, B) + 3, B + 4),
        ((M + 7) // 8 * 8, (B + 8) // 8 * 8),
        (N % 5, int_expr(4)),
        (B - 3, B - 3),
        (minimum(B - 3, 5) * B, minimum(B - 3, 5) * B),
        (M * M * B, (B + 1) * (B + 1) * B),
        (64 - minimum(N, 9), int_expr(64)),
        (minimum(M, N - 4), B + 1),
    ],
    ids=str,
)
def test_a_bound_that_is_plain_to_see(e: IntExpr, bound: IntExpr) -> None:
    found = at_most(e, KNOWN, LIMITS)
    assert found is not None and all(evaluate(found, {"#b": b}) == evaluate(bound, {"#b": b}) for b in range(12))


@pytest.mark.parametrize("e", [N, N * B, maximum(N, 3), N // 2 + B, 3 - (4 - N), minimum(N, N + B)], ids=str)
def test_what_has_no_bound(e: IntExpr) -> None:
    assert at_most(e, KNOWN, LIMITS) is None


def test_limits_that_go_in_a_circle_end() -> None:
    assert at_most(M, set(), {"#m": N + 1, "#n": M + 1}) is None


def random_expression(rng: np.random.Generator, depth: int) -> IntExpr:
    if depth == 0:
        return [B, M, N, int_expr(int(rng.integers(-3, 6)))][int(rng.integers(0, 4))]
    x, y = (random_expression(rng, depth - 1) for _ in range(2))
    match int(rng.integers(0, 7)):
        case 0:
            return x + y
        case 1:
            return x - y
        case 2:
            return x * y
        case 3:
            return x // int(rng.integers(1, 5))
        case 4:
            return x % int(rng.integers(1, 5))
        case 5:
            return minimum(x, y)
        case _:
            return maximum(x, y)


def test_no_value_exceeds_the_bound() -> None:
    """2,000 random expressions at all values of `b` up to 4, of `m` up to its limit and of `n` up to 6."""
    rng = np.random.default_rng(0)
    bounded = 0
    for _ in range(2000):
        e = random_expression(rng, int(rng.integers(1, 4)))
        found = at_most(e, KNOWN, LIMITS)
        if found is None:
            continue
        assert variables(found) <= KNOWN
        bounded += "#n" in variables(e) or "#m" in variables(e)
        for b, n in product(range(5), range(7)):
            for m in range(b + 2):
                at = {"#b": b, "#m": m, "#n": n}
                assert evaluate(e, at) <= evaluate(found, at), (str(e), str(found), at)
    assert bounded > 500
