"""Running reductions: what cascades become, that they compute the same as well as before, and what is refused and why."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.passes.samples import random_inputs

from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.error_model import agrees, bounded_cascade
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Cascade, Program
from dlc.ir.verify import verify
from dlc.passes.pipeline import BadOption, Pipeline
from dlc.passes.refusals import Reason, Refusal
from dlc.passes.registry import passes
from dlc.passes.running_reduction import RunningReduction

CASCADES = Path(__file__).parent / "cascades"
NAMES = sorted(f.stem for f in CASCADES.glob("*.ein"))
SIZES = {"a": 3, "z": 10, "b": 2, "h": 2, "g": 3, "p": 5, "m": 11, "e": 4, "f": 3, "k": 11}


def load(name: str) -> Program:
    return parse_program((CASCADES / f"{name}.ein").read_text())


def scans(program: Program) -> int:
    return sum(isinstance(s, Scan) for s in program.body.body)


def as_cascade(program: Program) -> Cascade:
    steps: list[Step] = []
    for s in program.body.body:
        assert isinstance(s, (Einsum, Scan))
        steps.append(s)
    return Cascade(program.name, program.params, tuple(steps), program.results, program.symbols)


def assert_within_bounds(before: Program, after: Program, inputs: list[Any], *, cautious: bool = True) -> None:
    """The two differ by no more than what compiled code of either may be off by (`dlc.ir.error_model`)."""
    with np.errstate(all="ignore"):
        a, b = bounded_cascade(as_cascade(before), inputs), bounded_cascade(as_cascade(after), inputs)
    for want, got, limit, own in zip(a.values, b.values, a.bounds, b.bounds, strict=True):
        if cautious:  # no bound is known through a power of a sum
            limit = np.where(np.isinf(limit + own), 1e-4 * np.abs(want) + 1e-5, limit)
            own = np.where(np.isinf(own), 0.0, own)
        assert np.all(agrees(got, want, limit + own)), (want, got, limit + own)


def derived(text: str, block: int = 4) -> tuple[Program, Program]:
    before = parse_program(text)
    after = RunningReduction(block=block).apply(before)
    verify(after)
    return before, after


def refusals(text: str, block: int = 4) -> tuple[Refusal, ...]:
    program = parse_program(text)
    found = RunningReduction(block=block).explain(program)
    assert found
    return found


@pytest.mark.parametrize("name", NAMES)
def test_cascade(name: str, golden: Callable[..., None]) -> None:
    """One traversal, and the same results: the whole rank in blocks that do and do not divide it."""
    before = load(name)
    after = RunningReduction(block=4).apply(before)
    verify(after)
    assert scans(after) == 1 and RunningReduction(block=4).explain(before) == ()
    golden(f"{before}\n\n{after}")
    assert parse_program(str(after)) == after
    for seed, (m, block) in enumerate([(11, 4), (8, 4), (5, 1), (3, 7)]):
        sizes = {**SIZES, "m": m, "k": m, "z": m}
        other = RunningReduction(block=block).apply(before)
        for program in (after, other):
            assert_within_bounds(before, program, random_inputs(before, sizes, seed))


@pytest.mark.parametrize("name", NAMES)
def test_parts_side_by_side(name: str) -> None:
    """Shares of the rank are traversed apart and joined; some have few elements, or none."""
    before = load(name)
    for block, parts in ((3, 2), (2, 3), (4, 4)):
        after = RunningReduction(block=block, parts=parts).apply(before)
        verify(after)
        assert scans(after) == 1
        for m in (11, 3, 0):
            assert_within_bounds(before, after, random_inputs(before, {**SIZES, "m": m, "k": m, "z": m}, m))


def test_split_keys(golden: Callable[..., None]) -> None:
    """One query: the keys in two parts; and keys that the cascade itself has in pages."""
    golden(str(RunningReduction(block=4, parts=2).apply(load("attention-decode"))))
    text = (CASCADES / "attention-decode.ein").read_text()
    paged = text.replace("m]", "n, m]").replace("m, ", "n, m, ").replace("(m)", "(n, m)").replace("n, n, ", "n, ")
    before, after = derived(paged)
    assert scans(after) == 1 and "max(n0:4, m)" in str(after)
    assert_within_bounds(before, after, random_inputs(before, {**SIZES, "n": 6}, 0))


@pytest.mark.parametrize("name", NAMES)
def test_after_deferral(name: str) -> None:
    """The two passes in a row, as text, give one traversal at most, and the same results."""
    before = load(name)
    after = Pipeline.parse("defer-factors,running-reduction{block=4}", passes()).run(before)
    assert scans(after) <= 1
    assert_within_bounds(before, after, random_inputs(before, SIZES, 1))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("paper-pair",)])
@pytest.mark.parametrize("scale", ["wide", "far"])
def test_as_stable_as_written(name: str, scale: str) -> None:
    """Logits of +-1e4, and data far from 0: no further from f64 than the cascade as written, but for a few roundings."""
    before = load(name)
    after = RunningReduction(block=4).apply(before)
    exact = parse_program(str(before).replace("f32", "f64"))
    for seed in range(3):
        inputs = random_inputs(before, SIZES, seed)
        inputs[0] = (inputs[0] * 1e4 if scale == "wide" else inputs[0] + 1e3).astype(np.float32)
        with np.errstate(all="ignore"):
            truth = run_program(exact, [x.astype(np.float64) if x.dtype.kind == "f" else x for x in inputs])
            plain, running = run_program(before, inputs), run_program(after, inputs)
        for t, a, b in zip(truth, plain, running, strict=True):
            assert np.array_equal(np.isfinite(a), np.isfinite(b))
            whole = np.isfinite(t) & np.isfinite(a)
            size = np.max(np.abs(t[whole]), initial=0.0)
            worst = np.max(np.abs(a.astype(np.float64) - t)[whole], initial=0.0)
            assert np.max(np.abs(b.astype(np.float64) - t)[whole], initial=0.0) <= 8 * worst + 32 * 2.0**-24 * size


SPECIAL_ROWS = {
    "all -inf": [-np.inf] * 11,
    "-inf first": [-np.inf] * 5 + [1.0, 2.0, -np.inf, 0.5, 3.0, -np.inf],
    "-inf last": [1.0, 2.0, 3.0, 4.0] + [-np.inf] * 7,
    "nan first": [np.nan] + [1.0] * 10,
    "nan last": [1.0] * 10 + [np.nan],
    "inf": [1.0] * 4 + [np.inf] + [2.0] * 6,
    "lowest": [-3.4028234663852886e38] * 11,
    "climbing": list(np.linspace(-1e4, 1e4, 11)),
    "falling": list(np.linspace(1e4, -1e4, 11)),
}


@pytest.mark.parametrize("name", ["logsumexp", "softmax-statistics", "logsumexp-safe", "cross-entropy", "entropy"])
@pytest.mark.parametrize("row", SPECIAL_ROWS)
def test_special_rows(name: str, row: str) -> None:
    before = load(name)
    after = RunningReduction(block=4).apply(before)
    inputs = random_inputs(before, {**SIZES, "p": 1}, 0)
    inputs[0] = np.array([SPECIAL_ROWS[row]], np.float32)
    if len(inputs) > 1:
        inputs[1] = np.eye(11, dtype=np.float32)[[6]]
    with np.errstate(all="ignore"):
        for want, got in zip(run_program(before, inputs), run_program(after, inputs), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("row", SPECIAL_ROWS)
@pytest.mark.parametrize("power", [
    "exp2((X[p, m] - GM[p]) * 3.0)",
    "pow(7.0, 0.25 * X[p, m] - GM[p] / 4.0)",
    "exp(-2.0 * (GM[p] - X[p, m]))",
    "exp2(3.0 * X[p, m] - 3.0 * select(isinf(GM[p]), 0.0, GM[p]))",
])  # fmt: skip
def test_special_rows_of_scaled_powers(power: str, row: str) -> None:
    """The clamped reference stays finite when it is scaled."""
    before, after = derived(f"""cascade f(X: f32[p, m]) -> (O, SD) {{
  GM[p] = max(m) X[p, m]
  SD[p] = sum(m) {power}
  SX[p] = sum(m) {power} * X[p, m]
  O[p] = SX[p] / SD[p]
}}""")
    assert scans(after) == 1
    x = np.array([SPECIAL_ROWS[row]], np.float32)
    with np.errstate(all="ignore"):
        for want, got in zip(run_program(before, [x]), run_program(after, [x]), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5)


@pytest.mark.parametrize("row", SPECIAL_ROWS)
@pytest.mark.parametrize("name", ["attention-additive-mask", "attention-masked-select"])
def test_masked_rows_of_attention(name: str, row: str) -> None:
    """Every kind of row as the additive mask; and a row that is hidden as a whole: NaN as written, 0 where the program says so."""
    before = load(name)
    after = RunningReduction(block=4).apply(before)
    inputs = random_inputs(before, {**SIZES, "p": 2}, 0)
    mask = np.array([SPECIAL_ROWS[row], SPECIAL_ROWS["climbing"]])
    inputs[3] = mask.astype(np.float32) if inputs[3].dtype == np.float32 else np.isfinite(mask)
    with np.errstate(all="ignore"):
        (want,), (got,) = run_program(before, inputs), run_program(after, inputs)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    if row == "all -inf":
        assert np.all(np.isnan(got[:, 0])) if name == "attention-additive-mask" else np.all(got[:, 0] == 0)


@pytest.mark.parametrize("form", ["A", "AV"])
def test_rows_without_keys(form: str) -> None:
    """Nothing to attend to: 0 where weights are divided first, 0/0 where the sum is; as each cascade says."""
    before = load("attention-key-padding") if form == "A" else parse_program(
        (CASCADES / "attention-key-padding.ein").read_text().replace("O[b, h, p, f] = sum(m) A[", "N[b, h, p, f] = sum(m) SN[")
        .replace("  A[b, h, p, m] = SN[b, h, p, m] / SD[b, h, p]\n", "").replace("}", "  O[b, h, p, f] = N[b, h, p, f] / SD[b, h, p]\n}")
    )  # fmt: skip
    after = RunningReduction(block=4).apply(before)
    assert scans(after) == 1
    inputs = random_inputs(before, SIZES, 0)
    inputs[3][0] = False
    with np.errstate(all="ignore"):
        (want,), (got,) = run_program(before, inputs), run_program(after, inputs)
    assert np.all(want[0] == 0) if form == "A" else np.all(np.isnan(want[0]))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_no_elements() -> None:
    for name in NAMES:
        before = load(name)
        inputs = random_inputs(before, {**SIZES, "m": 0, "k": 0, "z": 0}, 0)
        with np.errstate(all="ignore"):
            want = run_program(before, inputs)
            got = run_program(RunningReduction(block=4).apply(before), inputs)
        for a, b in zip(want, got, strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, err_msg=name)  # the window's keys are its queries: some are left


# --- what is refused -------------------------------------------------------------------------------------------------

SOFTMAX = """GM[p] = max(m) X[p, m]
  SN[p, m] = exp(X[p, m] - GM[p])
  SD[p] = sum(m) SN[p, m]"""

LOOK_ALIKES = [
    ("X: f32[p, 4]", "GM[p] = max(m:4) X[p, m]\n  SD[p] = sum(m:4) exp(X[p, m] - GM[p])", "SD", Reason.SHORT, "4 in blocks of 4"),
    ("X: f32[p, m]", SOFTMAX, "SN, SD", Reason.KEPT, "SN"),
    ("X: f32[p, m]", SOFTMAX + "\n  C[m] = sum(p) SN[p, m]", "SD, C", Reason.KEPT, "SN"),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  SD[p] = sum(m) exp(max(X[p, m] - GM[p], -5.0))", "SD", Reason.INSEPARABLE, "max("),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  SN[p, m] = exp(max(X[p, m] - GM[p], -5.0))\n  SD[p] = sum(m) SN[p, m]", "SD", Reason.INSEPARABLE, "max("),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  SD[p] = sum(m) tanh(X[p, m] - GM[p])", "SD", Reason.INSEPARABLE, "tanh("),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  SD[p] = sum(m) exp(X[p, m] * GM[p])", "SD", Reason.INSEPARABLE, "X[p, m] * GM[p]"),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  SD[p] = sum(m) exp(X[p, m] + GM[p])", "SD", Reason.UNSTABLE, "exp("),
    ("X: f32[p, m]", "GM[p] = min(m) X[p, m]\n  SD[p] = sum(m) exp(X[p, m] - GM[p])", "SD", Reason.UNSTABLE, "exp("),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  SD[p] = sum(m) exp(2.0 * X[p, m] - GM[p])", "SD", Reason.UNSTABLE, "exp("),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  SD[p] = sum(m) pow(0.5, X[p, m] - GM[p])", "SD", Reason.UNSTABLE, "pow("),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  SD[p] = sum(m) exp(-2.0 * (X[p, m] - GM[p]))", "SD", Reason.UNSTABLE, "exp("),
    ("X: f32[p, m], Y: f32[p, m]", "GM[p] = max(m) X[p, m] * Y[p, m]\n  SD[p] = sum(m) exp(X[p, m] - GM[p])", "SD", Reason.UNSTABLE, "exp("),
    ("X: f32[p, m]", "S[p] = sum(m) X[p, m]\n  MU[p] = S[p] / cast<f32>(m)\n  SD[p] = sum(m) exp(X[p, m] - MU[p])", "SD", Reason.UNSTABLE, "exp("),
    ("X: f32[p, m]", "S[p] = sum(m) X[p, m]\n  MU[p] = S[p] * 0.3\n  Q[p] = sum(m) (X[p, m] - MU[p]) * (X[p, m] - MU[p])", "Q", Reason.UNSTABLE, "X[p, m] - MU[p]"),
    ("X: f32[p, m]", "S[p] = sum(m) X[p, m] * X[p, m]\n  MU[p] = S[p] / cast<f32>(m)\n  Q[p] = sum(m) (X[p, m] - MU[p]) * (X[p, m] - MU[p])", "Q", Reason.UNSTABLE, "X[p, m] - MU[p]"),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m] where m < p\n  SD[p] = sum(m) exp(X[p, m] - GM[p])", "SD", Reason.UNSTABLE, "exp("),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  (V, I)[p] = argmax(m) (X[p, m] - GM[p], m)", "V, I", Reason.TUPLE, "argmax"),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  U[p] = sum(m) (X[p, m] - GM[p]) * (X[p, m] - GM[p])", "U", Reason.UNSTABLE, "neither a mean nor the extreme"),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  V[p] = max(m) X[p, m] * GM[p]", "V", Reason.SIGN, "GM[p]"),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  V[p] = prod(m) exp(X[p, m] - GM[p]) where m < p", "V", Reason.MONOID, "prod under a domain"),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  V[p] = prod(m) X[p, m] / GM[p]", "V", Reason.UNSTABLE, "power of the number"),
    ("X: f16[p, m]", "GM[p] = max(m) X[p, m]\n  SD[p] = sum(m) exp(X[p, m] - GM[p])", "SD", Reason.NARROW, "f16"),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  SD[p]: f32 = sum<f64>(m) exp(X[p, m] - GM[p])", "SD", Reason.NARROW, "f64 to f32"),
    ("X: bf16[p, m]", "S[p]: bf16 = sum<f32>(m) cast<f32>(X[p, m])\n  SD[p] = sum(m) exp(cast<f32>(X[p, m]) - cast<f32>(S[p]))", "SD", Reason.NARROW, "f32 to bf16"),
    ("X: f32[p, m]", "GM[p] = max(m) X[p, m]\n  SD[p] = sum(m) exp(X[p, m] - GM[p]) where m < p & p > 1\n  T[p] = (SD[p] else 0.0)", "T", Reason.PARTIAL, "p > 1"),
]  # fmt: skip


@pytest.mark.parametrize(("params", "steps", "results", "reason", "detail"), LOOK_ALIKES)
def test_refused(params: str, steps: str, results: str, reason: Reason, detail: str) -> None:
    """Look-alikes stay as they are, and the failing side condition is named, with the place."""
    text = f"cascade f({params}) -> ({results}) {{\n  {steps}\n}}"
    found = refusals(text)
    assert [r.reason for r in found] == [reason]
    assert detail in found[0].detail and found[0].rank == "m"
    assert found[0].loc.line > 1 and str(found[0].loc) in str(found[0]) and str(reason) in str(found[0])
    before, after = derived(text)
    assert after is before or scans(after) == 0


@pytest.mark.parametrize("dtype", ["i8", "u8", "i32", "i64"])
def test_integers_wrap_in_the_running_form_too(dtype: str) -> None:
    text = f"""cascade f(X: {dtype}[p, m], V: {dtype}[m, g]) -> (Y, Z) {{
  G[p] = max(m) X[p, m]
  D[p, m] = X[p, m] - G[p]
  Y[p, g] = sum(m) D[p, m] * V[m, g]
  Z[p] = sum(m) D[p, m]
}}"""
    before, after = derived(text)
    assert scans(after) == 1
    rng = np.random.default_rng(0)
    kind = {"i8": np.int8, "u8": np.uint8, "i32": np.int32, "i64": np.int64}[dtype]
    inputs = [rng.integers(0, 100, s).astype(kind) for s in ((3, 11), (11, 2))]
    for want, got in zip(run_program(before, inputs), run_program(after, inputs), strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_refused_fold_follows_the_traversal() -> None:
    """What cannot join is done after the scan, from its results; the rest is one traversal all the same."""
    text = """cascade f(X: f32[p, m]) -> (SD, T) {
  GM[p] = max(m) X[p, m]
  SD[p] = sum(m) exp(X[p, m] - GM[p])
  T[p] = sum(m) tanh(X[p, m] - GM[p])
}"""
    before, after = derived(text)
    assert scans(after) == 1 and [r.tensor for r in refusals(text)] == ["T"]
    assert_within_bounds(before, after, random_inputs(before, SIZES, 0))


def test_unrelated_steps_and_chains_stay_apart() -> None:
    """Two chains of the same data are two scans; steps in between keep their order."""
    text = """cascade f(X: f32[p, m], Y: f32[q, m]) -> (A, B, C, D, F) {
  GX[p] = max(m) X[p, m]
  GY[q] = max(m) Y[q, m]
  C[p] = GX[p] * 2.0
  E[] = sum(p) GX[p] * GX[p]
  F[] = E[] + 1.0
  SX[p] = sum(m) exp(X[p, m] - GX[p])
  D[p, q] = sum(m) X[p, m] * Y[q, m]
  SY[q] = sum(m) exp(Y[q, m] - GY[q])
  A[p] = log(SX[p])
  B[q] = log(SY[q]) + GY[q]
}"""
    before, after = derived(text)
    assert scans(after) == 2
    assert_within_bounds(before, after, random_inputs(before, {**SIZES, "q": 3}, 0))


def test_chains_of_the_same_data_stay_apart() -> None:
    """A softmax's statistics and a variance of one tensor have nothing to do with each other but the data."""
    text = """cascade f(X: f32[p, m]) -> (A, B, N) {
  GM[p] = max(m) X[p, m]
  S[p] = sum(m) X[p, m]
  MU[p] = S[p] / cast<f32>(m)
  SD[p] = sum(m) exp(X[p, m] - GM[p])
  Q[p] = sum(m) (X[p, m] - MU[p]) * (X[p, m] - MU[p])
  A[p] = log(SD[p]) + GM[p]
  B[p] = Q[p] * 2.0
  N[p] = min(m) X[p, m]
}"""
    before, after = derived(text)
    assert scans(after) == 2 and "N[p]: f32 = min(m) X[p, m]" in str(after)
    assert_within_bounds(before, after, random_inputs(before, SIZES, 0))
    assert RunningReduction(block=4).statistics(before, after) == {"scans": 2}
    assert RunningReduction(block=4).statistics(before, before) == {}


def test_only_the_data_is_made_in_the_block() -> None:
    """Scores are made block by block; what makes K and V, which have no row, is made once."""
    text = """cascade f(X: f32[p, e], Y: f32[m, e], W: f32[e, d], U: f32[m, f]) -> (O) {
  K[m, d] = sum(e) Y[m, e] * W[e, d]
  Q[p, d] = sum(e) X[p, e] * W[e, d]
  V[m, f] = U[m, f] * 2.0
  QK[p, m] = sum(d) Q[p, d] * K[m, d]
  B[p, m] = QK[p, m] + 1.0
  GM[p] = max(m) B[p, m]
  SN[p, m] = exp(B[p, m] - GM[p])
  SD[p] = sum(m) SN[p, m]
  AV[p, f] = sum(m) SN[p, m] * V[m, f]
  O[p, f] = AV[p, f] / SD[p]
}"""
    before, after = derived(text)
    (scan,) = (s for s in after.body.body if isinstance(s, Scan))
    inside = {o for s in scan.body for o in s.outs}
    assert {"QK_block", "B_block", "SN_block"} <= inside
    assert not {"K_block", "V_block", "Q_block"} & inside
    assert_within_bounds(before, after, random_inputs(before, {**SIZES, "d": 2}, 0))
    _, kept = derived(text.replace("-> (O)", "-> (O, QK)"))
    (scan,) = (s for s in kept.body.body if isinstance(s, Scan))
    assert "QK_block" not in {o for s in scan.body for o in s.outs}


def test_shared_key_heads() -> None:
    """Grouped queries read the key head of their group by a division."""
    text = (CASCADES / "attention-3-pass.ein").read_text()
    text = text.replace("K: f32[h, m, e], V: f32[h, m, f]", "K: f32[2, m, e], V: f32[2, m, f]").replace("Q: f32[h, p, e]", "Q: f32[6, p, e]")
    text = text.replace("K[h, m, e]", "K[h // 3, m, e]").replace("V[h, m, f]", "V[h // 3, m, f]").replace("[h, p, m] =", "[h:6, p, m] =")
    text = text.replace("[h, p] =", "[h:6, p] =").replace("[h, p, f] =", "[h:6, p, f] =")
    before, after = derived(text)
    assert scans(after) == 1
    assert_within_bounds(before, after, random_inputs(before, SIZES, 0))


def test_a_contraction_of_the_same_data_joins_only_when_it_is_needed() -> None:
    """`D` reads the same X and could run along, but is no summary of it: it stays a contraction of its own."""
    text = """cascade f(X: f32[p, m], W: f32[m, f]) -> (D, L) {
  GM[p] = max(m) X[p, m]
  D[p, f] = sum(m) X[p, m] * W[m, f]
  SD[p] = sum(m) exp(X[p, m] - GM[p])
  L[p] = SD[p] + sum_of[p]
}""".replace("  L[p]", "  sum_of[p] = sum(f) D[p, f]\n  L[p]")
    before, after = derived(text)
    (scan,) = (s for s in after.body.body if isinstance(s, Scan))
    assert len(scan.carries) == 2
    assert_within_bounds(before, after, random_inputs(before, SIZES, 0))
    before, after = derived("""cascade f(X: f32[p, m], W: f32[m, f]) -> (T) {
  D[p, f] = sum(m) X[p, m] * W[m, f]
  T[p, f] = sum(m) X[p, m] * D[p, f]
}""")
    assert scans(after) == 1
    assert_within_bounds(before, after, random_inputs(before, SIZES, 0))


def test_elements_of_all_reduced_ranks_count() -> None:
    """A product over two ranks corrects once for each of their elements."""
    text = """cascade f(X: f32[p, m, k]) -> (T) {
  GM[p] = max(m, k) X[p, m, k]
  T[p] = prod(m, k) exp(0.01 * (X[p, m, k] - GM[p]))
}"""
    before, after = derived(text)
    assert scans(after) == 1
    assert_within_bounds(before, after, random_inputs(before, {"p": 2, "m": 6, "k": 2}, 0))


def test_an_element_picked_is_no_pass() -> None:
    """Cross-entropy as frameworks import it reads one element of the log-softmax, which is computed there."""
    text = """cascade f(X: f32[p, m], T: i64[p]) -> (L) {
  GM[p] = max(m) X[p, m]
  SD[p] = sum(m) exp(X[p, m] - GM[p])
  LS[p, m] = X[p, m] - GM[p] - log(SD[p])
  L[p] = -LS[p, T[p]]
}"""
    before, after = derived(text)
    assert scans(after) == 1 and "LS" not in str(after)
    assert_within_bounds(before, after, random_inputs(before, SIZES, 0))


def test_views_and_batch_ranks() -> None:
    """As importers leave attention: fused projections read at offsets, batch ranks of extent 1 at 0, other names in each step."""
    text = """cascade f(x: f32[1, 10, 24]) -> (o) {
  s[i0:1, i1:2, i2:10, i3:10] = sum(r0:4) x[0, i2, 4*i1 + r0] * x[0, i3, 4*i1 + r0 + 8]
  k[i0:1, i1:2, i2:10, i3:10] = select(i3 <= i2, s[0, i1, i2, i3] * 0.5, -inf)
  g[i0:1, i1:2, i2:10] = max(r0:10) k[0, i1, i2, r0]
  w[i0:1, i1:2, i2:10, i3:10] = exp(k[0, i1, i2, i3] - g[0, i1, i2])
  d[i0:1, i1:2, i2:10] = sum(r0:10) w[0, i1, i2, r0]
  a[i0:1, i1:2, i2:10, i3:10] = w[0, i1, i2, i3] / d[0, i1, i2]
  o[i0:1, i1:10, i2:2, i3:4] = sum(r0:10) a[0, i2, i1, r0] * x[0, r0, 4*i2 + i3 + 16]
}"""
    before, after = derived(text)
    assert scans(after) == 1
    (scan,) = (s for s in after.body.body if isinstance(s, Scan))
    inside = [s for s in scan.body if isinstance(s, Einsum)]
    assert len(inside) == len(scan.body)
    assert len(scan.carries) == 3 and sum(s.reduce is not None for s in inside) == 4
    assert_within_bounds(before, after, random_inputs(before, {}, 0))


def test_a_divisor_that_only_the_symbol_knows() -> None:
    """Blocks that divide the extent by what is known of its symbol need no guard, and the bounds are still proven."""
    before, after = derived("""cascade f(X: f32[p, m]) -> (L) symbols (m in 4..4096 by 4) {
  GM[p] = max(m) X[p, m]
  SD[p] = sum(m) exp(X[p, m] - GM[p])
  L[p] = GM[p] + log(SD[p])
}""")
    assert scans(after) == 1 and "where" not in str(after)
    assert_within_bounds(before, after, random_inputs(before, {"p": 2, "m": 12}, 0))
    verify(RunningReduction(block=2, parts=2).apply(before))


def test_order_of_steps_does_not_matter() -> None:
    """Every order of the steps that defines before it reads gives one traversal of the same size."""
    lines = [
        "S[p] = sum(m) X[p, m]",
        "MU[p] = S[p] / cast<f32>(m)",
        "GM[p] = max(m) X[p, m]",
        "SD[p] = sum(m) exp(X[p, m] - GM[p])",
        "Z[p] = GM[p] + log(SD[p]) - MU[p]",
    ]
    seen = set()
    for order in itertools.permutations(range(4)):
        if order.index(0) < order.index(1) and order.index(2) < order.index(3):
            text = "\n".join(["cascade f(X: f32[p, m]) -> (Z) {", *(lines[k] for k in order), lines[4], "}"])
            before, after = derived(text)
            (scan,) = (s for s in after.body.body if isinstance(s, Scan))
            seen.add(len(scan.carries))
            assert_within_bounds(before, after, random_inputs(before, SIZES, 0))
    assert seen == {3}


def test_block_must_be_positive() -> None:
    with pytest.raises(BadOption, match="'block' of pass 'running-reduction' takes at least 1"):
        RunningReduction(block=0)
    with pytest.raises(BadOption, match="'parts' of pass 'running-reduction' takes at least 1"):
        RunningReduction(parts=0)


# --- random operands -------------------------------------------------------------------------------------------------

# Everything is bounded on data in (-2, 2), so that a difference is a wrong rewrite and not an overflow.
_DATA = st.sampled_from(["X[p, m]", "Y[p, m]", "(X[p, m] * Y[p, m])", "abs(Y[p, m])", "U[m]"])
_FREE = st.sampled_from(["GM[p]", "S[p]", "2.0", "(GM[p] - S[p] * 0.1)", "exp(0.1 * GM[p])"])
_MIXED = st.sampled_from(
    ["exp(X[p, m] - GM[p])", "exp2(0.5 * (X[p, m] - GM[p]))", "(X[p, m] - MU[p])", "(MU[p] - X[p, m])", "(X[p, m] - GM[p])",
     "(X[p, m] + GM[p])", "tanh(X[p, m] - S[p])", "exp(Y[p, m] - GM[p])", "select(U[m] > 0.0, exp(X[p, m] - GM[p]), 0.0)"]
)  # fmt: skip


@st.composite
def operands(draw: Any, depth: int = 2) -> str:
    if depth == 0:
        return str(draw(st.one_of(_DATA, _FREE, _MIXED)))
    a, b = draw(operands(depth=depth - 1)), draw(operands(depth=depth - 1))
    op = draw(st.sampled_from(["*", "*", "*", "+", "-"]))
    return f"({a} {op} {b})"


@given(operands(), st.sampled_from(["sum", "sum", "max", "min"]), st.integers(1, 6), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_any_operand_keeps_its_meaning(operand: str, op: str, block: int, seed: int) -> None:
    """Whatever is derived from it, or refused, a chain computes what it did."""
    before = parse_program(f"""cascade f(X: f32[p, m], Y: f32[p, m], U: f32[m]) -> (T, GM) {{
  GM[p] = max(m) X[p, m]
  S[p] = sum(m) X[p, m]
  MU[p] = S[p] / cast<f32>(m)
  T[p] = {op}(m) {operand}
}}""")
    rule = RunningReduction(block=block)
    after = rule.apply(before)
    verify(after)
    inputs = [np.clip(x, -2, 2) for x in random_inputs(before, {"p": 2, "m": 7}, seed)]
    assert_within_bounds(before, after, inputs, cautious=False)
