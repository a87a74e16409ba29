"""Long reductions in parts: what is split, what is left whole, and that the meaning stays, ties and NaN included."""

from __future__ import annotations

import numpy as np
import pytest
from tests.passes.samples import assert_same_result, rewrite

from dlc.ir.einsum import Einsum
from dlc.ir.interpret import run_program
from dlc.ir.program import Program
from dlc.passes.split_reductions import SplitReductions

SMALL = SplitReductions(parts=8, least=64, most_points=4, least_row=32)


def split(params: str, steps: str, results: str, rule: SplitReductions = SMALL) -> tuple[Program, Program]:
    return rewrite(f"cascade f({params}) -> ({results}) {{\n{steps}\n}}", rule)


def count(program: Program) -> int:
    return sum(isinstance(s, Einsum) for s in program.body.body)


@pytest.mark.parametrize("op", ["sum", "max", "min", "prod"])
@pytest.mark.parametrize("n", [64, 65, 67, 100, 128])
def test_every_length(op: str, n: int) -> None:
    for params, step in (
        (f"X: f32[{n}]", f"S[] = {op}(n:{n}) X[n]"),
        (f"X: f32[3, {n}]", f"S[b:3] = {op}(n:{n}) X[b, n] * X[b, n] - 1.0"),
        (f"X: f32[{n}, 2]", f"S[] = {op}(n:{n}, k:2) X[n, k]"),
        (f"X: i32[{n}]", f"S[] = {op}(n:{n}) X[n]"),
    ):
        before, after = split(params, step, "S")
        assert count(after) == 2
        assert_same_result(before, after, {}, rtol=1e-4)


def test_means_over_pixels() -> None:
    """The lanes' rank is innermost in memory, wherever it is named; rows that are contiguous are tasks already."""
    rule = SplitReductions(parts=8, least=64, most_points=2, most_lanes=20)
    for params, step, split_up in (
        ("X: f32[1, 6, 6, 5]", "S[b:1, c:5] = sum(y:6, x:6) X[b, y, x, c]", True),
        ("X: f32[b, 6, 6, 5]", "S[b, c:5] = sum(y:6, x:6) X[b, y, x, c] * 2.0", True),
        ("X: f32[1, 5, 6, 6]", "S[b:1, c:5] = sum(y:6, x:6) X[b, c, y, x]", False),
        ("X: f32[6, 5]", "S[c:5] = sum(y:6) X[y, c]", False),
        ("X: f32[6, 40]", "S[c:40] = sum(y:6) X[y, c]", False),
    ):
        before, after = split(params, step, "S", rule)
        assert (count(after) == 2) == split_up, params
        assert_same_result(before, after, {"b": 2} if "[b" in params else {}, rtol=1e-4)
    laid_out = """Z[b:1, c:5, y:6, x:6]: f32{0, 2, 3, 1} = cos(X[b, c, y, x])
      S[b:1, c:5] = sum(y:6, x:6) Z[b, c, y, x]"""
    before, after = split("X: f32[1, 5, 6, 6]", laid_out, "S", rule)
    assert count(after) == 3
    assert_same_result(before, after, {}, rtol=1e-4)


def test_the_order_of_parts_is_as_written() -> None:
    _, after = split("X: f32[130]", "S[] = sum(n:130) X[n]", "S")
    assert "part:5" in str(after) and "share:26" in str(after) and " when " not in str(after)
    _, after = split("X: f32[131]", "S[] = sum(n:131) X[n]", "S")
    assert "part:8" in str(after) and "17*part + share) < idx(131)" in str(after)


@pytest.mark.parametrize("op", ["argmax", "argmin", "argmax_last", "argmin_last"])
def test_ties_and_nan(op: str) -> None:
    """Parts interleave, yet the first (or last) of equals wins, and NaN over numbers."""
    rng = np.random.default_rng(0)
    for n in (33, 64, 100):
        before, after = split(f"X: f32[4, {n}]", f"(V[b:4], I[b:4]) = {op}(n:{n}) (X[b, n], n)", "V, I")
        assert count(after) == 2
        for trial in range(6):
            x = rng.integers(0, 3, (4, n)).astype(np.float32)
            x[0, rng.integers(0, n, 2)] = np.nan
            x[1, :] = -np.inf if trial % 2 else np.inf
            for want, got in zip(run_program(before, [x]), run_program(after, [x]), strict=True):
                np.testing.assert_array_equal(got, want)


def test_what_is_left_whole() -> None:
    for params, step, reason in (
        ("X: f32[63]", "S[] = sum(n:63) X[n]", "short"),
        ("X: f32[5, 80]", "S[b:5] = sum(n:80) X[b, n]", "points enough for the cores"),
        ("X: f16[80]", "S[] = sum(n:80) X[n]", "a part would be rounded"),
        ("X: f32[80]", "S[] = sum(n:80) X[n] where n > 3", "a domain"),
        ("X: f32[80, 4]", "(V[b:4], I[b:4]) = argmax(n:80) (X[n, b], n)", "the lanes have points already"),
        ("X: f32[80], W: f32[80, 3]", "S[k:3] = sum(n:80) X[n] * W[n, k]", "a contraction"),
    ):
        _, after = split(params, step, "S" if step.startswith("S") else "V, I")
        assert count(after) == 1, reason
    many = SplitReductions(parts=64, least=64)
    _, after = split("X: f32[8, 15]", "S[] = sum(b:8, n:15) X[b, n]", "S", many)
    assert count(after) == 1, "no rank has a quarter as many indices as parts are asked for"


def test_a_rank_over_several_dimensions() -> None:
    """A share is of one dimension, so that no index divides; where extents do not fit, a share of the whole it is."""
    for params, step, plain in (
        ("X: f32[4, 8, 16]", "S[] = sum(n:512) X[n // 128, (n // 16) % 8, n % 16]", True),
        ("X: f32[4, 8, 16]", "S[] = max(n:512) X[n // 128, (n // 16) % 8, n % 16] * 2.0", True),
        ("X: f32[7, 13]", "S[] = sum(n:91) X[n // 13, n % 13]", True),
        ("X: f32[3, 4, 8, 16]", "S[b:3] = sum(n:512) X[b, n // 128, (n // 16) % 8, n % 16]", True),
        ("X: i32[4, 8, 16], Y: i32[512]", "S[] = sum(n:512) X[n // 128, (n // 16) % 8, n % 16] * Y[n] + 1", True),
        ("X: f32[4, 30]", "S[] = sum(n:120) X[n // 30, n % 30] + X[n % 4, n // 4]", False),
        ("X: f32[7, 13]", "S[] = sum(n:90) X[n // 13, n % 13]", False),
    ):
        before, after = split(params, step, "S")
        assert count(after) == 2
        assert ("//" not in str(after) and "%" not in str(after)) == plain, str(after)
        assert_same_result(before, after, {}, rtol=1e-4)
