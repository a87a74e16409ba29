"""Scatters: every fold, equal targets in iteration order, lanes where they cannot collide, dropped writes, domains."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.target import Target
from dlc.ir.dtype import BF16, F16, F32, F64, I8, I32, I64, DType

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import TARGETS, check, sample, targets

FOLDS = ("set", "sum", "prod", "max", "min")


def arrays(dtype: DType, n: int, d: int, v: int, *, outside: bool = False) -> list[np.ndarray]:
    rng = np.random.default_rng(n + d)
    low, high = (-3, v + 3) if outside else (0, v)
    return [sample(rng, dtype, (n, d)), rng.integers(low, high, n), sample(rng, dtype, (v, d))]


@targets
@pytest.mark.parametrize("fold", FOLDS)
def test_folds_with_equal_targets(fold: str, target: Target) -> None:
    """More updates than rows, so that rows are hit many times."""
    text = f"cascade f(X: f32[n, d], I: i64[n], O: f32[v, d]) -> S {{ scatter(n, d) S[I[n], d] {fold}= X[n, d] onto O }}"
    for n, d, v in ((7, 1, 3), (9, 20, 4), (0, 5, 4), (6, 33, 2)):
        ran = check(text, inputs=arrays(F32, n, d, v), target=target, interpret=d == 20)
    assert ran.strategies == ["scatter"]


@targets
@pytest.mark.parametrize("fold", FOLDS)
def test_targets_in_the_lanes_rank_are_visited_in_order(fold: str, target: Target) -> None:
    text = f"cascade f(X: f32[n], I: i64[n], O: f32[v]) -> S {{ scatter(n) S[I[n]] {fold}= X[n] onto O }}"
    rng = np.random.default_rng(0)
    for n, v in ((40, 3), (1, 1)):
        inputs = [sample(rng, F32, (n,)), rng.integers(0, v, n), sample(rng, F32, (v,))]
        check(text, inputs=inputs, target=target, interpret=n == 40)


@pytest.mark.parametrize("dtype", [F64, F16, BF16, I8, I32, I64], ids=str)
def test_types(dtype: DType) -> None:
    for number, fold in enumerate(FOLDS):
        text = f"cascade f(X: {dtype}[n, d], I: i64[n], O: {dtype}[v, d]) -> S {{ scatter(n, d) S[I[n], d] {fold}= X[n, d] onto O }}"
        check(text, inputs=arrays(dtype, 5, 19, 4), target=TARGETS[number % 3])


@targets
def test_writes_outside_are_dropped_when_asked(target: Target) -> None:
    text = "cascade f(X: f32[n, d], I: i64[n], O: f32[v, d]) -> S { scatter(n, d) S[I[n], d + 0] sum= X[n, d] onto O drop }"
    check(text, inputs=arrays(F32, 30, 18, 5, outside=True), target=target)


def test_and_fail_the_call_otherwise() -> None:
    import dlc
    from dlc.runtime.errors import RuntimeCheckFailed

    text = "cascade f(X: f32[n, d], I: i64[n], O: f32[v, d]) -> S { scatter(n, d) S[I[n], d] sum= X[n, d] onto O }"
    exe = dlc.compile(text)
    for bad in (-1, 5, 1 << 40):
        x, _, o = arrays(F32, 3, 18, 5)
        with pytest.raises(RuntimeCheckFailed):
            exe(x, np.array([0, bad, 1]), o)


@targets
def test_domains_and_affine_targets(target: Target) -> None:
    text = """
    cascade f(X: f32[n, d], M: bool[n], O: f32[v, 2*d + 1]) -> (S, T) symbols (v in 1..) {
      scatter(n, d) S[n % #v, 2*d + 1] sum= X[n, d] where M[n] & d != 1 onto O
      scatter(n, d) T[0, d] set= X[n, d] * 2.0 onto O
    }"""
    rng = np.random.default_rng(1)
    inputs = [sample(rng, F32, (7, 21)), rng.random(7) < 0.5, sample(rng, F32, (3, 43))]
    check(text, inputs=inputs, target=target)


@targets
def test_reduced_values(target: Target) -> None:
    """What is written is a sum itself: one segment after the other."""
    text = """
    cascade f(X: f32[n, k], I: i64[n], O: f32[v]) -> S {
      scatter(n) S[I[n]] sum= sum(k) X[n, k] onto O
    }"""
    rng = np.random.default_rng(2)
    inputs = [sample(rng, F32, (9, 19)), rng.integers(0, 4, 9), sample(rng, F32, (4,))]
    check(text, inputs=inputs, target=target)
