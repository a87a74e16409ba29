"""Counts of operations and bytes, and the time they predict."""

from __future__ import annotations

import pytest

from dlc.costmodel.interface import CostModel, Peaks, peaks_of_core
from dlc.costmodel.roofline import Roofline, fits, predict
from dlc.ir.parser import parse_cascade
from dlc.ir.program import Kernel


def kernel(text: str) -> Kernel:
    return Kernel(parse_cascade(text))


GEMM = kernel("cascade g(A: f32[m, k], B: f32[k, n]) -> (C) {\nC[m, n] = sum(k) A[m, k] * B[k, n]\n}")


@pytest.mark.parametrize(
    ("text", "flops", "special", "moved"),
    [
        ("cascade g(A: f32[m, k], B: f32[k, n]) -> (C) {\nC[m, n] = sum(k) A[m, k] * B[k, n]\n}", 2, 0, "gemm"),
        ("cascade g(A: f32[m]) -> (C) {\nC[m] = exp(A[m]) / 3.0\n}", 2, 2, "unary"),
        ("cascade g(A: f32[m]) -> (C) {\nC[m] = select(m % 4 < 2, A[m], -A[m])\n}", 1, 0, "unary"),
    ],
)
def test_counts(text: str, flops: int, special: int, moved: str) -> None:
    found = predict(kernel(text))
    at = {"m": 10, "k": 20, "n": 30}
    points = 10 * 20 * 30 if moved == "gemm" else 10
    work = {"gemm": 4 * (200 + 600 + 300), "unary": 80}[moved]
    from dlc.ir.extent import evaluate

    env = {"#" + n: v for n, v in at.items()}
    assert (evaluate(found.flops, env), evaluate(found.special, env)) == (flops * points, special * points)
    assert evaluate(found.bytes, env) == work


def test_a_gather_reads_rows_not_the_table() -> None:
    text = "cascade g(I: i64[s], W: f32[30000, 64]) -> (C) {\nC[s, e:64] = W[I[s], e]\n}"
    costs = predict(kernel(text))
    assert costs.time_s({"s": 2}) < costs.time_s({"s": 1000}) < costs.time_s({"s": 20000})
    assert fits(kernel(text), 4096, {"s": 2})
    assert not fits(kernel(text), 4096, {"s": 200})


def test_time_is_the_longer_of_the_two() -> None:
    slow_memory, slow_units = Peaks(1e12, 1e9, 1e12, 0.0), Peaks(1e9, 1e12, 1e9, 0.0)
    at = {"m": 100, "n": 100, "k": 100}
    assert predict(GEMM, slow_memory).time_s(at) == pytest.approx(4 * 3e4 / 1e9)
    assert predict(GEMM, slow_units).time_s(at) == pytest.approx(2e6 / 1e9)
    model: CostModel = Roofline()
    assert model.predict(GEMM, peaks_of_core(512)).time_s(at) < model.predict(GEMM, peaks_of_core(128)).time_s(at)


def test_a_scan_costs_all_its_steps() -> None:
    text = """cascade g(X: f32[t, n], H0: f32[n]) -> (H) {
      scan t carry (h = H0) {
        g[n] = h[n] * 0.5 + X[t, n]
        yield (g)
      } -> (H)
    }"""
    assert str(predict(kernel(text)).flops) == "2*#n*#t"
