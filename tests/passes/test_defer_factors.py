"""Deferral: what moves past a reduction, that the results stay, and which factors must not move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.passes.samples import assert_same_result, random_inputs
from tests.passes.test_running_reduction import CASCADES, NAMES, SIZES, assert_within_bounds, load

from dlc.ir.einsum import Einsum
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.ir.verify import verify
from dlc.passes.defer_factors import DeferFactors
from dlc.passes.refusals import Reason

DEFERRED = ["attention-3-pass", "attention-key-padding", "paper-pair", "rms-norm-contraction", "soft-product", "spread", "entropy"]


def deferred(params: str, steps: str, results: str = "T", *, distribute: bool = False) -> tuple[Program, Program]:
    before = parse_program(f"cascade f({params}) -> ({results}) {{\n{steps}\n}}")
    after = DeferFactors(distribute=distribute).apply(before)
    verify(after)
    return before, after


@pytest.mark.parametrize("name", DEFERRED)
def test_cascade(name: str, golden: Callable[..., None]) -> None:
    before = load(name)
    golden(f"{before}\n\n{DeferFactors().apply(before)}", "deferred")


@pytest.mark.parametrize("distribute", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_same_results(name: str, distribute: bool) -> None:
    before = load(name)
    after = DeferFactors(distribute=distribute).apply(before)
    verify(after)
    for m in (11, 0):
        inputs = random_inputs(before, {**SIZES, "m": m, "k": m, "z": m}, m)
        assert_within_bounds(before, after, inputs)


def test_two_passes_become_one() -> None:
    """The paper's pair: the sum over A no longer waits for Y."""
    before, after = deferred("A: f32[k], B: f32[k]", "Y[] = sum(k) A[k] * B[k]\nT[] = sum(k) Y[] * A[k]")
    sums = [s for s in after.body.body if isinstance(s, Einsum) and s.reduce is not None]
    assert [s.reads for s in sums] == [("A", "B"), ("A",)]
    assert DeferFactors().statistics(before, after) == {"reductions": 1}
    assert DeferFactors().statistics(before, before) == {}


def test_quotients_that_something_else_reads_stay() -> None:
    steps = "A[m, p] = SN[m, p] / SD[p]\nT[f, p] = sum(m) A[m, p] * V[f, m]"
    params = "SN: f32[m, p], SD: f32[p], V: f32[f, m]"
    before, after = deferred(params, steps)
    assert "A[" not in str(after) and "T_sum[f, p] / SD[p]" in str(after)
    before, after = deferred(params, steps, "T, A")
    assert "A[m, p]: f32 = SN[m, p] / SD[p]" in str(after)
    assert_within_bounds(before, after, random_inputs(before, SIZES, 0))


# One reduction each; whether something moves, and what the reduction is then.
PAIRS = [
    ("sum(m) X[p, m] * S[p]", "sum(m) X[p, m]"),
    ("sum(m) X[p, m] / S[p]", "sum(m) X[p, m]"),
    ("sum(m) neg(X[p, m] * S[p])", "sum(m) X[p, m]"),
    ("sum(m) S[p] / X[p, m]", "sum(m) 1.0 / X[p, m]"),
    ("sum(m) X[p, m] * 0.125", "sum(m) X[p, m]"),
    ("sum(m) X[p, m] * (S[p] * Y[p, m] / 3.0)", "sum(m) X[p, m] * Y[p, m]"),
    ("sum(m) S[p]", "sum(m) 1.0"),
    ("sum(m) X[p, m] * Y[p, m]", None),
    ("sum(m) X[p, m] + S[p]", None),
    ("sum(m) exp(X[p, m] * S[p])", None),
    ("sum(m) select(X[p, m] > 0.0, S[p], 0.0)", None),
    ("prod(m) X[p, m] * S[p]", "prod(m) X[p, m]"),
    ("prod(m) X[p, m] / S[p]", "prod(m) X[p, m]"),
    ("max(m) X[p, m] + S[p]", "max(m) X[p, m]"),
    ("min(m) S[p] - X[p, m]", "min(m) neg(X[p, m])"),
    ("max(m) X[p, m] * abs(S[p])", "max(m) X[p, m]"),
    ("max(m) X[p, m] / exp(S[p])", "max(m) X[p, m]"),
    ("max(m) X[p, m] * 2.0", "max(m) X[p, m]"),
    ("max(m) X[p, m] * Y[p, m]", None),
    ("max(m) min(X[p, m], S[p])", None),
]


@pytest.mark.parametrize("domain", ["", " where m < p", " where m < 3 & p > 1"])
@pytest.mark.parametrize(("reduction", "inner"), PAIRS)
def test_every_small_reduction(reduction: str, inner: str | None, domain: str) -> None:
    steps = f"R[p] = {reduction}{domain}\nT[p] = (R[p] else 7.0)"
    product = reduction.startswith("prod")
    before, after = deferred("X: f32[p, m], Y: f32[p, m], S: f32[p]", steps, distribute=product)
    moves = inner is not None and not (product and domain)
    assert (after is not before and f"R_{reduction[:3]}" in str(after)) == moves
    if moves:
        assert f"{inner}{domain}" in str(after).replace("idx(3)", "3").replace("idx(1)", "1")
    assert_within_bounds(before, after, random_inputs(before, SIZES, 0))


@pytest.mark.parametrize(
    ("params", "reduction", "reason", "detail"),
    [
        ("X: f32[p, m], S: f32[p]", "max(m) X[p, m] * S[p]", Reason.SIGN, "S[p]"),
        ("X: f32[p, m], S: f32[p]", "min(m) X[p, m] / S[p]", Reason.SIGN, "S[p]"),
        ("X: f32[p, m], S: f32[p]", "max(m) neg(X[p, m] * abs(S[p]))", Reason.SIGN, "X[p, m]"),
        ("X: f32[p, m], S: f32[p]", "prod(m) X[p, m] * S[p]", Reason.UNSTABLE, "distribute=true allows it"),
        ("X: f16[p, m], S: f16[p]", "sum(m) X[p, m] * S[p]", Reason.NARROW, "f16"),
        ("X: f16[p, m], S: f16[p]", "max(m) X[p, m] + S[p]", Reason.NARROW, "f16"),
    ],
)
def test_refused(params: str, reduction: str, reason: Reason, detail: str) -> None:
    before, after = deferred(params, f"T[p] = {reduction}")
    assert after is before
    (found,) = DeferFactors().explain(before)
    assert (found.tensor, found.rank, found.reason) == ("T", "m", reason)
    assert detail in found.detail and found.loc.line == 2


def test_what_only_the_domain_keeps_in_bounds_stays_inside() -> None:
    """`S[p - 1]` is read where some m is below p, and `S[0]` where there is a point at all."""
    before, after = deferred("X: f32[p, m], S: f32[p]", "T[p] = sum(m) X[p, m] * S[p - 1] where m < p")
    assert after is before
    assert [r.reason for r in DeferFactors().explain(before)] == [Reason.BOUNDS]
    before, after = deferred("X: f32[m], S: f32[m]", "T[] = sum(m) X[m] * S[0]")
    assert after is not before
    for m in (0, 3):
        assert_within_bounds(before, after, random_inputs(before, {"m": m}, 0))


def test_integers_are_exact() -> None:
    """Products of integers distribute modulo 2^32; a maximum of wrapped sums does not."""
    params = "X: i32[p, m], S: i32[p]"
    before, after = deferred(params, "T[p] = sum(m) X[p, m] * S[p]")
    assert after is not before
    assert_same_result(before, after, {"p": 3, "m": 5})
    before, after = deferred(params, "T[p] = max(m) X[p, m] + S[p]")
    assert after is before


def test_nothing_to_reduce_gives_the_identity() -> None:
    """An empty sum divided by 0, or by NaN, would be NaN; it is 0 as before."""
    steps = "T[p] = sum(m) X[p, m] / S[p] where KEEP[p, m]"
    before, after = deferred("X: f32[p, m], S: f32[p], KEEP: bool[p, m]", steps)
    inputs = random_inputs(before, {"p": 3, "m": 4}, 0)
    inputs[1] = np.array([0.0, np.nan, 2.0], np.float32)
    inputs[2][:2] = False
    with np.errstate(all="ignore"):
        (want,), (got,) = run_program(before, inputs), run_program(after, inputs)
    assert list(want[:2]) == [0, 0]
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize(
    ("domain", "proven"),
    [("m <= p", True), ("m <= p & m > p - 3", True), ("m < 5", True), ("m < p", False), ("m > p", False)],
)
def test_a_witness_saves_the_question(domain: str, proven: bool) -> None:
    """Where some point is proven to be in the domain, nothing asks whether there is one."""
    before, after = deferred("X: f32[8, 8], S: f32[8]", f"T[p:8] = sum(m:8) X[p, m] / S[p] where {domain}")
    assert (" when " not in str(after)) == proven
    assert_within_bounds(before, after, random_inputs(before, {}, 0))


def test_distribution_is_for_those_who_ask() -> None:
    """`sum (x - mu)^2` apart is the textbook's cancellation: data around 1e4 lose all digits of their variance."""
    before = parse_program((CASCADES / "variance.ein").read_text())
    assert DeferFactors().apply(before) == before
    after = DeferFactors(distribute=True).apply(before)
    assert "X[p, m] * X[p, m]" in str(after)
    x = (np.random.default_rng(0).standard_normal((2, 64)) + 1e4).astype(np.float32)
    truth = x.astype(np.float64).var(axis=1)
    assert np.all(abs(run_program(before, [x])[1] / truth - 1) < 1e-3)
    assert np.any(abs(run_program(after, [x])[1] / truth - 1) > 1e-1)
