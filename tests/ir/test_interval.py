"""Intervals against enumeration, and the proofs that need them."""

from __future__ import annotations

import random
from itertools import product

import pytest

from dlc.ir.extent import IntExpr, evaluate, int_expr, maximum, minimum, var
from dlc.ir.facts import Facts
from dlc.ir.interval import interval

RANKS = {"i": int_expr(5), "j": int_expr(3)}


def expression(pick: random.Random, depth: int) -> IntExpr:
    if depth == 0:
        return pick.choice([var("i"), var("j"), int_expr(pick.randint(-4, 6))])
    a, b = expression(pick, depth - 1), expression(pick, depth - 1)
    d = pick.randint(1, 5)
    return pick.choice([a + b, a - b, a * b, a // d, a % d, minimum(a, b), maximum(a, b)])


@pytest.mark.parametrize("seed", range(200))
def test_bounds_hold(seed: int) -> None:
    e = expression(random.Random(seed), 3)
    lo, hi = interval(e, RANKS, {})
    values = [evaluate(e, {"i": i, "j": j}) for i, j in product(range(5), range(3))]
    assert lo is not None and lo <= min(values)
    assert hi is not None and hi >= max(values)


def test_no_bound_where_there_is_none() -> None:
    assert interval(var("#s") * 2 + 1, {}, {}) == (1, None)
    assert interval(3 - var("#s"), {}, {}) == (None, 3)
    assert interval(var("i") * var("#s"), {"i": var("#s")}, {}) == (0, None)


def test_windows_of_an_image_are_in_bounds() -> None:
    eight = Facts({n: int_expr(8) for n in ("x", "y")})
    assert eight.within(4 * (var("x") // 2) + var("y") // 2, 16)
    assert not eight.within(4 * (var("x") // 2) + var("y") // 2, 15)
