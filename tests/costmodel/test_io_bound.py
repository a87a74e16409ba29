"""Traffic against the lower bound: found by rank structure, never below it, and the closed form of FuseMax for attention."""

from __future__ import annotations

import itertools
import random

import pytest

from dlc.costmodel.contractions import contractions, pairs
from dlc.costmodel.io_bound import traffic
from dlc.ir.extent import variables
from dlc.ir.parser import parse_cascade
from tests.ir import pass_cascades as texts
from tests.ir.strategies import random_cascade

GEMM = "cascade g(A: f32[m, k], B: f32[k, n]) -> C {\nC[m, n] = sum(k) A[m, k] * B[k, n]\n}"
CONV = """
cascade c(X: f32[b, c, 66, 66], W: f32[o, c, 3, 3]) -> Y {
  Y[b, o, y: 64, x: 64] = sum(c, i: 3, j: 3) X[b, c, y + i, x + j] * W[o, c, i, j]
}
"""
SOFTMAX = """
cascade s(X: f32[t, d]) -> Y {
  M[t] = max(d) X[t, d]
  N[t, d] = exp(X[t, d] - M[t])
  S[t] = sum(d) N[t, d]
  Y[t, d] = N[t, d] / S[t]
}
"""


@pytest.mark.parametrize("text", [texts.THREE_PASS, texts.TWO_PASS, texts.DEFERRED, texts.ONE_PASS])
def test_attention_is_a_pair_whatever_its_passes(text: str) -> None:
    cascade = parse_cascade(text)
    (pair,) = pairs(cascade)
    assert (pair.first.left, pair.first.right, pair.second.right) == ("Q", "K", "V")
    assert [str(x) for x in (pair.first.batch, pair.first.m, pair.first.k, pair.f)] == ["#h", "#p", "#e", "#f"]


def test_names_and_sides_do_not_count() -> None:
    turned = texts.THREE_PASS.replace("Q[h, p, e] * K[h, m, e]", "K[h, m, e] * Q[h, p, e]")
    (bound,) = traffic(parse_cascade(turned)).bounds
    (expected,) = traffic(parse_cascade(texts.THREE_PASS)).bounds
    sizes = {"#h": 3, "#p": 2048, "#m": 2048, "#e": 64, "#f": 64}
    assert bound.bytes_moved(1 << 16, sizes) == expected.bytes_moved(1 << 16, sizes)


def test_a_product_that_is_stored_has_the_bound_of_hong_and_kung() -> None:
    report = traffic(parse_cascade(GEMM))
    assert report.formula() == "max(4*k*m + 4*k*n + 4*m*n, 4*(2*(m*n)*(k)/sqrt(S)))"
    sizes = {"m": 4096, "n": 4096, "k": 4096}
    words = (64 << 10) // 4
    assert report.bound_bytes(64 << 10, sizes) == 4 * (2 * 4096**3 / words**0.5 - 2 * words)
    assert report.bound_bytes(1 << 40, sizes) == 4 * 3 * 4096**2


def test_windows_that_overlap_move_less() -> None:
    (c,) = contractions(parse_cascade(CONV))
    assert c.reuse.const == 9
    assert [str(x) for x in (c.m, c.n, c.k)] == ["4096*#b", "#o", "9*#c"]


def test_attention_bound_of_saha_and_ye() -> None:
    report = traffic(parse_cascade(texts.ONE_PASS))
    n, d, words = 16384, 64, (256 << 10) // 4
    sizes = {"h": 1, "p": n, "m": n, "e": d, "f": d}
    assert report.bound_bytes(256 << 10, sizes) == 4 * (n * n * d * d / words - words)
    small = 1 << 10  # 256 words: less than d^2
    assert report.bound_bytes(small, sizes) == 4 * (n * n * d / 256**0.5 - 2 * 256)


def test_one_pass_moves_what_fusemax_counts() -> None:
    """2c[(E + F) P + outer (E + F) M] bytes at 2 bytes; ours at 4, with blocks of as many rows as fit."""
    n, d, heads, cache = 16384, 64, 12, 64 << 10
    rows = (cache // 4 - 2 * d) // (2 * d + 2)
    outer = -(-n // rows)
    sizes = {"h": heads, "p": n, "m": n, "e": d, "f": d}
    moved = traffic(parse_cascade(texts.ONE_PASS)).moved_bytes(cache, sizes)
    assert moved == 4 * heads * (2 * d * n + outer * 2 * d * n)


@pytest.mark.parametrize("cache", [32 << 10, 256 << 10, 1 << 20])
def test_fewer_passes_move_less(cache: int) -> None:
    sizes = {"h": 12, "p": 16384, "m": 16384, "e": 64, "f": 64}
    moved = [
        traffic(parse_cascade(t)).moved_bytes(cache, sizes) for t in (texts.THREE_PASS, texts.TWO_PASS, texts.ONE_PASS)
    ]
    assert moved[0] > moved[1] > 2 * moved[2]


def test_a_fiber_that_does_not_fit_is_spilled() -> None:
    report = traffic(parse_cascade(SOFTMAX))
    sizes, once = {"t": 8, "d": 1 << 20}, 8 << 20
    assert report.moved_bytes(64 << 20, sizes) == 4 * 2 * once
    # X is read a second time, N written and read once more
    assert report.moved_bytes(1 << 20, sizes) == 4 * (2 + 1 + 2) * once
    assert report.ratio(64 << 20, sizes) == 1.0


@pytest.mark.parametrize("text", [GEMM, CONV, SOFTMAX, texts.THREE_PASS, texts.TWO_PASS, texts.ONE_PASS])
def test_nothing_moves_less_than_the_bound(text: str) -> None:
    report = traffic(parse_cascade(text))
    names = sorted(n for n in "mnkbcodtehpf")
    for seed, cache in itertools.product(range(40), (64, 1 << 10, 32 << 10, 1 << 20)):
        sizes = {n: 1 + (seed * 7919 * (i + 3)) % (17 if n in "hb" else 1500) for i, n in enumerate(names)}
        assert report.ratio(cache, sizes) >= 1.0, (sizes, cache)


def test_random_cascades_have_traffic_above_their_bound() -> None:
    for seed in range(60):
        cascade = random_cascade(random.Random(seed)).cascade
        report = traffic(cascade)
        names = {n for p in cascade.params for e in p.type.shape for n in variables(e)}
        if variables(report.compulsory) <= names:
            assert report.ratio(256, dict.fromkeys(names, 5)) >= 1.0, str(cascade)
