"""Intervals against enumeration, and the proofs that need them."""

from __future__ import annotations

import random
from itertools import product

import pytest

from dlc.ir.expr import Apply, Index
from dlc.ir.extent import IntExpr, evaluate, int_expr, maximum, minimum, var
from dlc.ir.facts import Facts
from dlc.ir.interval import interval
from dlc.ir.prove import Assumptions

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


def guard(name: str, a: IntExpr, b: IntExpr) -> Apply:
    return Apply(name, (Index(a), Index(b)))


def test_a_padded_window_over_a_reshaped_image_is_in_bounds() -> None:
    facts = Facts({"y": int_expr(8), "r": int_expr(3), "x": int_expr(8), "s": int_expr(3)})
    inside = Assumptions(facts)
    for a, b in (("y", "r"), ("x", "s")):
        at = var(a) + var(b) - 1
        inside = inside.given(guard("ge", at, int_expr(0))).given(guard("lt", at, int_expr(8)))
    place = 4 * ((var("y") + var("r") - 1) // 2) + (var("x") + var("s") - 1) // 2
    assert inside.within(place, int_expr(16))
    assert not inside.within(place + 1, int_expr(16))
    assert not Assumptions(facts).within(place, int_expr(16))


@pytest.mark.parametrize("seed", range(150))
def test_nothing_false_is_proven_under_two_guards(seed: int) -> None:
    pick = random.Random(seed)
    facts = Facts({"i": int_expr(5), "j": int_expr(3), "k": int_expr(4)})
    slope, shift, width = pick.choice([1, -1, 2]), pick.randint(-3, 3), pick.randint(1, 7)
    at = var("i") * slope + var("j") * pick.choice([1, 2, -1]) + shift
    inside = Assumptions(facts).given(guard("ge", at, int_expr(0))).given(guard("lt", at, int_expr(width)))
    e = (
        (at + pick.randint(0, 4)) // pick.randint(1, 4) * pick.randint(-3, 3)
        + var("k") * pick.randint(-2, 2)
        + pick.randint(-4, 9)
    )
    if inside.nonneg(e):
        for i, j, k in product(range(5), range(3), range(4)):
            env = {"i": i, "j": j, "k": k}
            if 0 <= evaluate(at, env) < width:
                assert evaluate(e, env) >= 0, (str(e), env)
