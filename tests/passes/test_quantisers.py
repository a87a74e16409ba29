"""Quantisers: what is nearest, what compensation gains, and the choice of bits for a budget against enumeration."""

from __future__ import annotations

import itertools
from math import sqrt
from typing import Any

import numpy as np
import pytest

from dlc.ir.codes import values
from dlc.ir.dtype import BF16, CODED, DTYPES, F16, F32, F8E8M0, I8, U8, DType
from dlc.ir.evaluate import hold
from dlc.passes.bit_budget import Choice, assign
from dlc.passes.quantisers import Grid, codes_for, compensated, group_parameters, relative_error, round_to_nearest

WEIGHT_TYPES = [t for t in (*CODED, U8, I8) if t != F8E8M0]
TYPES = pytest.mark.parametrize("dtype", WEIGHT_TYPES, ids=str)


def grid(dtype: DType, group: int | None, scales: DType = F16) -> Grid:
    zero = "none" if dtype.kind != "u" else "real" if dtype.bits == 1 else "codes"
    return Grid(dtype, group, scales, zero)


def matrix(n: int, k: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal((n, k)) * 0.05


@TYPES
@pytest.mark.parametrize("group", [8, None, 100])
def test_no_other_code_is_nearer(dtype: DType, group: int | None) -> None:
    """With the scales and zero points that were chosen, by trying all codes."""
    w = matrix(3, 20)
    made = round_to_nearest(w, grid(dtype, group))
    size = group or 20
    numbers = values(dtype).astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    scales = np.repeat(hold(made.scales, F16), size, 1)[:, :20]
    zeros = 0.0
    if made.zeros is not None:
        held = values(dtype).astype(np.float64)[made.zeros] if made.grid.zero == "codes" else hold(made.zeros, F16)
        zeros = np.repeat(held, size, 1)[:, :20]
    every = (numbers[:, None, None] - zeros) * scales
    np.testing.assert_allclose(np.abs(w - made.dense()), np.abs(every - w).min(axis=0), rtol=1e-9, atol=1e-12)


@TYPES
def test_more_bits_are_worth_it(dtype: DType) -> None:
    """No type does worse than a bound that follows from how finely it divides its range."""
    w = matrix(16, 256)
    numbers = np.unique(values(dtype)[np.isfinite(values(dtype))].astype(np.float64))
    worst_gap = float(np.diff(numbers).max()) if len(numbers) > 1 else 1.0
    reach = max(abs(numbers[0]), abs(numbers[-1]))
    error = relative_error(w, round_to_nearest(w, grid(dtype, 32)).dense())
    assert error <= min(1.0, 1.5 * worst_gap / reach)  # the greatest of 32 normal numbers is about 2 deviations


def test_a_group_of_zeros_stays_zeros() -> None:
    for dtype in (DTYPES["i4"], DTYPES["u4"], DTYPES["f4e2m1"], DTYPES["t2"]):
        w = matrix(2, 16)
        w[0, :8] = 0
        made = round_to_nearest(w, grid(dtype, 8))
        assert (made.dense()[0, :8] == 0).all()


def test_scales_too_small_to_keep_do_no_harm() -> None:
    made = round_to_nearest(matrix(2, 16) * 1e-12, grid(DTYPES["i4"], 8))
    assert np.isfinite(made.dense()).all() and np.abs(made.dense()).max() <= 0.5


@TYPES
@pytest.mark.parametrize("scales", ["f16", "bf16", "f32", "f8e8m0"])
def test_zeros_beside_any_type_are_almost_none(dtype: DType, scales: str) -> None:
    """Bipolar numbers have no 0: what is left is the least scale."""
    of = grid(dtype, 8, DTYPES[scales])
    if of.zero == "real" and scales == "f8e8m0":  # powers of two alone: refused when it is asked for (test_quantize_weights)
        of = grid(dtype, 8, DTYPES["f16"])
    assert np.abs(round_to_nearest(np.zeros((2, 16)), of).dense()).max() < 2e-5


def test_scales_beyond_their_type_are_the_nearest_it_has() -> None:
    """1e-6 / 7 is no number of f16: the least one leaves something of the weights; and 1e7 is cut off at the greatest."""
    for size, error in ((2e-6, 0.1), (4e5, 0.1)):
        w = np.random.default_rng(0).uniform(-size, size, (4, 32))
        assert relative_error(w, round_to_nearest(w, grid(DTYPES["i4"], 8)).dense()) < error


@pytest.mark.parametrize("dtype", ["u1", "u4", "i8", "f4e2m1", "b3"])
@pytest.mark.parametrize("spread", [0.0, 1e-6])
def test_a_group_of_nearly_one_number_has_a_zero_point_within_reach(dtype: str, spread: float) -> None:
    w = -0.37 + spread * matrix(2, 20)
    made = round_to_nearest(w, Grid(DTYPES[dtype], 8, F16, "real"))
    assert relative_error(w, made.dense()) < 2e-3
    part = round_to_nearest(np.full((2, 9), 0.37), grid(DTYPES["b2"], 8))  # and what fills up a group is no weight
    assert relative_error(np.full((2, 9), 0.37), part.dense()) < 2e-3


def test_two_s_complement_uses_its_lowest_number() -> None:
    w = np.array([[0.7, 0.1, -0.2, -0.8]])
    scales, _ = group_parameters(w, grid(DTYPES["i4"], None, F32))
    assert codes_for(w, grid(DTYPES["i4"], None, F32), scales, None).tolist() == [[7, 1, 14, 8]]  # -0.8 is -8 steps


@pytest.mark.parametrize("scales", ["f16", "bf16", "f32", "f8e8m0"])
def test_scales_are_kept_in_their_type(scales: str) -> None:
    kind = DTYPES[scales]
    made = round_to_nearest(matrix(4, 32), grid(DTYPES["i4"], 16, kind))
    assert made.scales.dtype == kind.numpy and made.scales.shape == (4, 2)


def test_bits_count_scales_and_zero_points() -> None:
    assert grid(DTYPES["i4"], 32).bits(64) == 4.5
    assert grid(DTYPES["u4"], 32).bits(64) == 4 + (16 + 4) / 32
    assert grid(DTYPES["u1"], 32, BF16).bits(64) == 1 + 32 / 32
    assert grid(DTYPES["t5"], None).bits(160) == 1.6 + 0.1


@pytest.mark.parametrize("name", ["i2", "i3", "i4", "u4", "f4e2m1", "b2", "t2"])
@pytest.mark.parametrize("group", [32, None])
def test_compensation_makes_products_better(name: str, group: int | None) -> None:
    rng = np.random.default_rng(1)
    w = matrix(48, 160)
    x = rng.standard_normal((160, 20)) @ rng.standard_normal((20, 400)) + 0.3 * rng.standard_normal((160, 400))
    moments = x @ x.T
    g = grid(DTYPES[name], group)
    plain = relative_error(w, round_to_nearest(w, g).dense(), moments)
    better = relative_error(w, compensated(w, g, moments).dense(), moments)
    assert better < 0.6 * plain


def test_with_independent_inputs_compensation_is_rounding() -> None:
    """Errors cannot be made up for by inputs that have nothing to do with them."""
    w = matrix(8, 40)
    g = grid(DTYPES["i4"], 8)
    moments = np.eye(40) * 3.0
    np.testing.assert_array_equal(compensated(w, g, moments).codes, round_to_nearest(w, g).codes)


def test_inputs_that_are_always_zero_are_no_obstacle() -> None:
    w, moments = matrix(4, 16), np.eye(16)
    moments[3] = 0
    assert np.isfinite(compensated(w, grid(DTYPES["i4"], 8), moments).dense()).all()


# --- budgets ---------------------------------------------------------------------------------------------------------


def choices(seed: int, matrices: int, kinds: int) -> dict[int, list[Choice]]:
    """Errors that fall by a factor with each bit more, as they do."""
    rng = np.random.default_rng(seed)
    made = {}
    for m in range(matrices):
        weights = int(rng.integers(10, 100))
        error = float(rng.uniform(0.5, 2))
        made[m] = [
            Choice((b + 2.5) * weights, error * float(rng.uniform(0.2, 0.3)) ** b, weights) for b in range(kinds)
        ]
    return made


@pytest.mark.parametrize("seed", range(20))
def test_the_budget_is_kept_and_nearly_exhausted(seed: int) -> None:
    """Against all assignments: never over the limit, and no worse than the best one that leaves room for one step."""
    options = choices(seed, 4, 4)
    weights = sum(c[0].weights for c in options.values())
    limit = 4.0
    at = assign(options, limit, "bits")

    def size(picked: Any) -> float:
        return sum(options[m][i].bits for m, i in enumerate(picked))

    def error(picked: Any) -> float:
        return sum(options[m][i].error for m, i in enumerate(picked))

    mine = [at[m] for m in range(4)]
    assert size(mine) <= limit * weights
    step = max(c[1].bits - c[0].bits for c in options.values())
    within = [p for p in itertools.product(range(4), repeat=4) if size(p) <= limit * weights - step]
    assert not within or error(mine) <= min(map(error, within)) + 1e-12


def test_the_error_is_reached_with_the_fewest_steps() -> None:
    options = choices(3, 4, 4)
    at = assign(options, 0.3, "error")
    reached = sqrt(sum(options[m][i].error for m, i in at.items()) / 4)
    assert reached <= 0.3
    smaller = [
        p
        for p in itertools.product(range(4), repeat=4)
        if sqrt(sum(options[m][i].error for m, i in enumerate(p)) / 4) <= 0.3
    ]
    best = min(sum(options[m][i].bits for m, i in enumerate(p)) for p in smaller)
    step = max(c[1].bits - c[0].bits for c in options.values())
    assert sum(options[m][i].bits for m, i in at.items()) <= best + step


def test_what_is_out_of_reach_is_said() -> None:
    with pytest.raises(ValueError, match="2 bits per weight: the smallest types take 2.5"):
        assign(choices(0, 2, 3), 2.0, "bits")
    with pytest.raises(ValueError, match="an error of 1e-09: the largest types come to"):
        assign(choices(0, 2, 3), 1e-9, "error")
