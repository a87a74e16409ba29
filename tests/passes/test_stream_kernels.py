"""Streaming kernels made: what attention becomes, what joins, and each reason for which a chain stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tests.passes.samples import assert_same_result

from dlc.compiler import run_passes
from dlc.ir.einsum import Einsum, Scan, flat
from dlc.ir.parser import parse_program
from dlc.ir.program import Launch, Program, cascade_types
from dlc.ir.streamed import lane_rank
from dlc.ir.verify import verify
from dlc.passes.reduce_passes import ReducePasses
from dlc.passes.refusals import Reason
from dlc.passes.pipeline import BadOption, Pipeline
from dlc.passes.registry import passes
from dlc.passes.stream_kernels import StreamKernels

QKV = "Q: f32[2, 20, 4], K: f32[2, 30, 4], V: f32[2, 30, 3]"
SCORES = "QK[h:2, p:20, m:30] = sum(e:4) Q[h, p, e] * K[h, m, e]"
SOFTMAX = """GM[h:2, p:20] = max(m:30) QK[h, p, m]
  SN[h:2, p:20, m:30] = exp(QK[h, p, m] - GM[h, p])
  SD[h:2, p:20] = sum(m:30) SN[h, p, m]"""
VALUES = """AV[h:2, p:20, f:3] = sum(m:30) SN[h, p, m] * V[h, m, f]
  O[h:2, p:20, f:3] = AV[h, p, f] / SD[h, p]"""
ATTENTION = f"{SCORES}\n  {SOFTMAX}\n  {VALUES}"


def program(params: str, steps: str, results: str = "O") -> Program:
    return parse_program(f"cascade f({params}) -> ({results}) {{\n  {steps}\n}}")


def streamed(before: Program, rule: StreamKernels | None = None) -> Program:
    after = (rule or StreamKernels()).apply(before)
    verify(after)
    assert_same_result(before, after, {}, rtol=2e-5)
    return after


def left(after: Program) -> list[str]:
    """The first result of each statement that is no launch."""
    return [s.outs[0] for s in after.body.body if not isinstance(s, Launch)]


def test_attention_as_text(golden: Callable[..., None]) -> None:
    golden(str(streamed(program(QKV, ATTENTION))))


def test_equal_layers_are_one_kernel() -> None:
    second = ATTENTION
    for name in ("QK", "GM", "SN", "SD", "AV", "O"):
        second = second.replace(f"{name}[", f"{name}2[")
    second = second.replace("Q[h", "P[h").replace("2P[h", "2[h")
    after = streamed(program(f"{QKV}, P: f32[2, 20, 4]", f"{ATTENTION}\n  {second}", "O, O2"))
    assert len(after.kernels) == 1 and not left(after) and len(after.body.body) == 2


JOINS = {
    "results that are read inside": ("", "O, SD, QK"),
    "what follows point by point": ("R[p:20, h:2, f:3] = O[h, p, f] + 1.0", "R"),
    "a reduction of the result": ("R[h:2, p:20] = max(f:3) O[h, p, f]", "O, R"),
    "another contraction": ("R[h:2, p:20, g:5] = sum(f:3) O[h, p, f] * G[h, g, f]", "R"),
}
STAYS = {
    "a sum over the heads": ("R[p:20, f:3] = sum(h:2) O[h, p, f]", "R"),
    "a mean over the queries": ("R[h:2, f:3] = sum(p:20) O[h, p, f]", "R"),
    "the query before": ("R[h:2, p:20, f:3] = O[h, p, f] + (O[h, p - 1, f] else 0.0)", "R"),
    "the other head": ("R[h:2, p:20, f:3] = O[h, p, f] + O[1 - h, p, f]", "R"),
    "a reshape": ("R[h:2, p:20, f:3] = O[h, (3*p + f) // 3, f]", "R"),
}


@pytest.mark.parametrize("name", JOINS)
def test_what_joins(name: str) -> None:
    steps, results = JOINS[name]
    assert not left(streamed(program(f"{QKV}, G: f32[2, 5, 3]", f"{ATTENTION}\n  {steps}", results)))


@pytest.mark.parametrize("name", STAYS)
def test_what_does_not_join(name: str) -> None:
    """It follows the kernel; attention itself streams all the same."""
    steps, results = STAYS[name]
    assert left(streamed(program(QKV, f"{ATTENTION}\n  {steps}", results))) == ["R"]


def test_a_projection_is_a_contraction_of_its_own() -> None:
    text = f"""program f({QKV}) -> (R) {{
  const W: f32[3, 6]
  {ATTENTION}
  R[h:2, p:20, g:6] = sum(f:3) O[h, p, f] * W[f, g]
}}"""
    before = replace(parse_program(text), data={"W": np.ones((3, 6), np.float32)})
    assert left(streamed(before)) == ["R"]


ALONE = {
    "one contraction": (f"{SCORES}\n  {SOFTMAX}\n  O[h:2, p:20, m:30] = SN[h, p, m] / SD[h, p]", StreamKernels()),
    "a block that does not fit": (ATTENTION, StreamKernels(lane_bytes=4 * 30)),
    "both operands move along the queries": (
        ATTENTION.replace("V[h, m, f]", "cast<f32>(p)").replace("K[h, m, e]", "Q[h, p, e] * K[h, m, e]"),
        StreamKernels(),
    ),
}


@pytest.mark.parametrize("name", ALONE)
def test_what_is_left_alone(name: str) -> None:
    steps, rule = ALONE[name]
    assert not streamed(program(QKV, steps), rule).kernels


def test_the_longest_rank_has_the_lanes() -> None:
    """Queries, and not the three heads that share keys, whatever their order in the result."""
    steps = """QK[k:2, g:3, p:20, m:30] = sum(e:4) Q[k, g, p, e] * K[k, m, e]
  GM[k:2, g:3, p:20] = max(m:30) QK[k, g, p, m]
  SN[k:2, g:3, p:20, m:30] = exp(QK[k, g, p, m] - GM[k, g, p])
  SD[k:2, g:3, p:20] = sum(m:30) SN[k, g, p, m]
  AV[p:20, k:2, g:3, f:3] = sum(m:30) SN[k, g, p, m] * V[k, m, f]
  O[p:20, k:2, g:3, f:3] = AV[p, k, g, f] / SD[k, g, p]"""
    before = program("Q: f32[2, 3, 20, 4], K: f32[2, 30, 4], V: f32[2, 30, 3]", steps)
    assert not left(streamed(before))


ENDS = {
    "divided under the sum": "O[p:20, f:3] = sum(m:300) SN[p, m] * V[m, f] / SD[p]",
    "weights divided first": "A[p:20, m:300] = SN[p, m] / SD[p]\n  O[p:20, f:3] = sum(m:300) A[p, m] * V[m, f]",
    "divided at the end": "AV[p:20, f:3] = sum(m:300) SN[p, m] * V[m, f]\n  O[p:20, f:3] = AV[p, f] / SD[p]",
    "a reciprocal": "I[p:20] = 1.0 / SD[p]\n  O[p:20, f:3] = sum(m:300) SN[p, m] * I[p] * V[m, f]",
}


@pytest.mark.parametrize("name", ENDS)
def test_wherever_the_division_stands(name: str) -> None:
    steps = f"""QK[p:20, m:300] = sum(e:4) Q[p, e] * K[m, e]
  GM[p:20] = max(m:300) QK[p, m]
  SN[p:20, m:300] = exp(QK[p, m] - GM[p])
  SD[p:20] = sum(m:300) SN[p, m]
  {ENDS[name]}"""
    before = program("Q: f32[20, 4], K: f32[300, 4], V: f32[300, 3]", steps)
    after = run_passes(before, "reduce-passes,stream-kernels")
    assert len(after.kernels) == 1 and not left(after)
    assert_same_result(before, after, {}, rtol=2e-5)


ONE_PASS = {
    "sigmoid": "G[p:20, m:300] = sigmoid(QK[p, m] * 0.5 - 1.0)\n  O[p:20, f:3] = sum(m:300) G[p, m] * V[m, f]",
    "written inside the sum": "O[p:20, f:3] = sum(m:300) V[m, f] * sigmoid(QK[p, m] * 0.5 - 1.0)",
    "causal": "O[p:20, f:3] = sum(m:300) (QK[p, m] * QK[p, m]) * V[m, f] where m <= 10*p",
    "two functions": "O[p:20, f:3] = sum(m:300) sigmoid(QK[p, m]) * tanh(V[m, f])",
    "three products": "A[p:20, g:5] = sum(m:300) QK[p, m] * W[m, g]\n  O[p:20, f:3] = sum(m:300) QK[p, m] * V[m, f]",
}


@pytest.mark.parametrize("name", ONE_PASS)
def test_one_pass_keeps_a_block(name: str) -> None:
    """No fold needs another: the scan has no corrections, and the scores stay in the core."""
    steps = f"QK[p:20, m:300] = sum(e:4) Q[p, e] * K[m, e]\n  {ONE_PASS[name]}"
    before = program("Q: f32[20, 4], K: f32[300, 4], V: f32[300, 3], W: f32[300, 5]", steps)
    after = run_passes(before, "reduce-passes{block=64},stream-kernels")
    assert_same_result(before, after, {}, rtol=2e-5)
    if name == "three products":  # the scores have two readers: they are no sum's alone
        assert not any(isinstance(s, Scan) for k in after.kernels for s in k.cascade.steps)
        return
    assert len(after.kernels) == 1
    assert left(after) == (["O_factor_2"] if name == "two functions" else [])  # of V: made once, outside
    assert [s.rank.extent.const for s in after.kernels[0].cascade.steps if isinstance(s, Scan)] == [5]
    assert ReducePasses(block=300).apply(before) is before


@pytest.mark.parametrize(("given", "adds", "result"), [("f32", "f64", "f32"), ("bf16", "f32", "bf16")])
def test_one_pass_is_rounded_once(given: str, adds: str, result: str) -> None:
    """What goes from block to block has the type that the sum adds up in."""
    steps = f"""QK[p:20, m:300]: f32 = sum<f32>(e:4) cast<f32>(Q[p, e]) * cast<f32>(K[m, e])
  O[p:20, f:3]: {result} = sum<{adds}>(m:300) cast<{adds}>(max(QK[p, m], 0.0)) * cast<{adds}>(V[m, f])"""
    before = program(f"Q: {given}[20, 4], K: {given}[300, 4], V: {given}[300, 3]", steps)
    after = run_passes(before, "reduce-passes{block=64},stream-kernels")
    (kernel,) = after.kernels
    (scan,) = (s for s in kernel.cascade.steps if isinstance(s, Scan))
    types = cascade_types(kernel.cascade)
    assert [str(types[c.init].dtype) for c in scan.carries] == [adds]
    assert_same_result(before, after, {}, rtol=1e-6)


def test_what_is_given_in_a_layout_of_its_own() -> None:
    """A launch reads row-major tensors: scores in another order are made outside, and stay apart."""
    steps = ATTENTION.replace("QK[h:2, p:20, m:30] =", "QK[h:2, p:20, m:30]: f32{0, 2, 1} =")
    assert len(streamed(program(QKV, steps)).kernels) == 1  # made inside
    before = program(QKV, steps)
    (told,) = ReducePasses(block=8).explain(before)
    assert told.reason is Reason.APART and "a layout of its own" in told.detail
    assert ReducePasses(block=8).apply(before) is before


@pytest.mark.parametrize("text", ["reduce-passes{block=0}", "stream-kernels{lane_bytes=0}"])
def test_options_below_one(text: str) -> None:
    with pytest.raises(BadOption, match="at least 1"):
        Pipeline.parse(text, passes())


REASONS = {
    "few queries": (ATTENTION.replace("p:20", "p:7"), QKV.replace("20", "7"), "7 points, fewer than 8"),
    "heads without queries": (ATTENTION.replace("p:20", "p:1"), QKV.replace("20", "1"), "no rank that all steps have"),
    "too wide": (
        ATTENTION.replace("f:3", "f:4000"), QKV.replace("30, 3]", "30, 4000]"), "bytes in the cache, more than 12288",
    ),
    "a sum of three factors": (
        ATTENTION.replace("V[h, m, f]", "V[h, m, f] * U[m]"), f"{QKV}, U: f32[30]", "not one of plain products",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_a_running_form_that_no_kernel_streams(name: str) -> None:
    """It stays as it is, and the reason is told."""
    steps, params, reason = REASONS[name]
    before = program(params, steps)
    (told,) = ReducePasses(block=8).explain(before)
    assert told.reason is Reason.APART and reason in told.detail and told.loc.line > 1
    assert ReducePasses(block=8).apply(before) is before


def test_a_chain_that_reads_what_another_carried() -> None:
    """Attention over 300 keys, then a softmax over its 260 values: the second chain reads the first one's sums."""
    steps = ATTENTION.replace("30", "300").replace("f:3", "f:260")
    steps += """
  FM[h:2, p:20] = max(f:260) O[h, p, f]
  FD[h:2, p:20] = sum(f:260) exp(O[h, p, f] - FM[h, p])
  Z[h:2, p:20, g:3] = sum(f:260) exp(O[h, p, f] - FM[h, p]) * W[h, f, g] / FD[h, p]"""
    params = "Q: f32[2, 20, 4], K: f32[2, 300, 4], V: f32[2, 300, 260], W: f32[2, 260, 3]"
    before = program(params, steps, "Z")
    after = run_passes(before, "reduce-passes,stream-kernels")
    assert sum(isinstance(s, Scan) for k in after.kernels for s in k.cascade.steps) == 2
    assert_same_result(before, after, {}, rtol=2e-5)


def test_groups_of_heads_and_queries_of_any_number() -> None:
    """An unknown number of queries has the lanes before three heads, and not before thirty-two."""
    steps = """QK[k:2, g:3, p:n, m:300] = sum(e:4) Q[k, g, p, e] * K[k, m, e]
  GM[k:2, g:3, p:n] = max(m:300) QK[k, g, p, m]
  SN[k:2, g:3, p:n, m:300] = exp(QK[k, g, p, m] - GM[k, g, p])
  SD[k:2, g:3, p:n] = sum(m:300) SN[k, g, p, m]
  AV[p:n, k:2, g:3, f:3] = sum(m:300) SN[k, g, p, m] * V[k, m, f]
  O[p:n, k:2, g:3, f:3] = AV[p, k, g, f] / SD[k, g, p]"""
    for heads in (3, 32):
        text = steps.replace("g:3", f"g:{heads}")
        before = program(f"Q: f32[2, {heads}, n, 4], K: f32[2, 300, 4], V: f32[2, 300, 3]", text)
        (kernel,) = run_passes(before, "reduce-passes,stream-kernels").kernels
        extents = {r.name: r.extent for s in flat(kernel.cascade.steps) for r in s.ranks}
        assert extents[lane_rank(kernel.cascade.steps, kernel.outer) or ""].const == (None if heads == 3 else 32)


def test_weights_are_no_stream() -> None:
    """A network of two layers: its products are packed for the lanes."""
    text = """program f(X: f32[20, 4]) -> (O) {
  const A: f32[9, 4]
  const B: f32[9, 3]
  H[p:20, m:9] = sum(e:4) X[p, e] * A[m, e]
  R[p:20, m:9] = max(H[p, m], 0.0)
  O[p:20, f:3] = sum(m:9) R[p, m] * B[m, f]
}"""
    before = replace(parse_program(text), data={"A": np.ones((9, 4), np.float32), "B": np.ones((9, 3), np.float32)})
    assert not streamed(before).kernels
    given = program("X: f32[20, 4], A: f32[9, 4], B: f32[9, 3]", "\n".join(text.splitlines()[3:-1]))
    assert len(streamed(given).kernels) == 1  # the same of activations


# --- scans ---

SCAN = """{first}
  scan t:3 carry ({carry}) {{
    X[h:2, p:20, r:5] = sum(e:4) A[h, p, e] * B[h, t, r, e]
    Y[h:2, p:20] = sum(r:5) X[h, p, r]
    Z[h:2, p:20] = S[h, p] * 0.5 + Y[h, p]
    yield ({yields})
  }} -> ({finals}){stack}
  O[h:2, p:20] = F[h, p] * 2.0"""
PLAIN = {"first": "A0[h:2, p:20] = 0.0", "carry": "S = A0", "yields": "Z", "finals": "F", "stack": ""}
INPUTS = "A: f32[2, 20, 4], B: f32[2, 3, 5, 4], C: f32[2, 20]"


def scanning(**parts: str) -> str:
    return SCAN.format(**{**PLAIN, **parts})


def test_a_scan_is_a_loop_in_the_kernel(golden: Callable[..., None]) -> None:
    after = streamed(program(INPUTS, scanning()))
    assert not left(after)
    golden(str(after))


TWO = {"first": "A0[h:2, p:20] = 0.0\n  C0[h:2, p:20] = 3.0", "carry": "S = A0, T = C0", "finals": "F, G"}
LOOPS = {
    "states that start from an input": scanning(first="", carry="S = C"),
    "states that start from what is computed": scanning(first="A0[h:2, p:20] = C[h, p] + 1.0"),
    "two states of one start": scanning(**{**TWO, "carry": "S = A0, T = A0", "yields": "Z, Y"}),
    "a state that stays": scanning(**{**TWO, "yields": "Z, T"}),
    "states that change places": scanning(**{**TWO, "yields": "T, Z"}),
    "what each step leaves": scanning(stack=" stack (W = Z)"),
    "a contraction of nothing inner": scanning().replace("r:5", "r:1").replace("A[h, p, e] *", "C[h, p] *"),
}


@pytest.mark.parametrize("name", LOOPS)
def test_other_scans_stay_loops(name: str) -> None:
    results = "O, W" if "stack" in LOOPS[name] else "O"
    after = streamed(program(INPUTS, LOOPS[name], results))
    assert any(isinstance(s, Scan) for s in after.body.body)


def test_a_first_value_that_is_read_again_is_made_twice() -> None:
    after = streamed(program(INPUTS, scanning() + "\n  R[h:2, p:20] = O[h, p] + A0[h, p]", "R"))
    assert left(after) == ["A0", "R"]


def test_scans_inside_scans_stay_loops() -> None:
    inner = scanning().replace("\n", "\n  ").replace("  O[h:2, p:20] = F[h, p] * 2.0", "")
    text = f"""U0[h:2, p:20] = 0.0
  scan u:2 carry (U = U0) {{
  {inner}
    U1[h:2, p:20] = U[h, p] + F[h, p]
    yield (U1)
  }} -> (O)"""
    after = streamed(program(INPUTS, text))
    assert any(isinstance(s, Scan) for s in after.body.body)


def test_attention_with_weights_for_keys_is_left_alone() -> None:
    text = f"""program f(Q: f32[2, 20, 4], V: f32[2, 30, 3]) -> (O) {{
  const K: f32[2, 30, 4]
  {ATTENTION}
}}"""
    before = replace(parse_program(text), data={"K": np.ones((2, 30, 4), np.float32)})
    assert not streamed(before).kernels


# --- the running form, where it streams ---


def reduced(before: Program, text: str = "reduce-passes{block=8}") -> Program:
    after = run_passes(before, text)
    verify(after)
    assert_same_result(before, after, {}, rtol=2e-5)
    return after


def scans(after: Program) -> int:
    return sum(isinstance(s, Scan) for s in after.body.body)


def test_attention_runs(golden: Callable[..., None]) -> None:
    after = reduced(program(QKV, ATTENTION))
    assert scans(after) == 1
    golden(str(after))


def test_two_layers_run_both() -> None:
    second = ATTENTION.replace("Q[h, p, e]", "O[h, p, e]").replace("e:4", "e:3").replace("K[h, m, e]", "V[h, m, e]")
    for name in ("QK", "GM", "SN", "SD", "AV"):
        second = second.replace(f"{name}[", f"{name}2[")
    second = second.replace("O[h:2", "O2[h:2")
    before = program(QKV, f"{ATTENTION}\n  {second}", "O2")
    assert scans(reduced(before)) == 2
    assert len(streamed(reduced(before)).body.body) == 2


PLAIN_CASCADES = {
    "a softmax without contractions": (
        "X: f32[20, 40]",
        """G[p:20] = max(m:40) X[p, m]
  N[p:20, m:40] = exp(X[p, m] - G[p])
  D[p:20] = sum(m:40) N[p, m]
  O[p:20, m:40] = N[p, m] / D[p]""",
    ),
    "layer norm and a product": (
        "X: f32[20, 40], W: f32[40, 6]",
        """S[p:20] = sum(m:40) X[p, m]
  C[p:20, m:40] = X[p, m] - S[p] / 40.0
  Q[p:20] = sum(m:40) C[p, m] * C[p, m]
  N[p:20, m:40] = C[p, m] / sqrt(Q[p] / 40.0 + 0.00001)
  O[p:20, n:6] = sum(m:40) N[p, m] * W[m, n]""",
    ),
    "one query": (QKV.replace("20", "1"), ATTENTION.replace("p:20", "p:1")),
    "fewer keys than a block": (QKV.replace("30", "8"), ATTENTION.replace("m:30", "m:8")),
}


@pytest.mark.parametrize("name", PLAIN_CASCADES)
def test_the_plain_cascade_stays(name: str) -> None:
    assert scans(reduced(program(*PLAIN_CASCADES[name]))) == 0


def test_scores_that_are_read_outside() -> None:
    """They are made once more, or kept: whichever, what reads them sees them."""
    steps = f"{ATTENTION}\n  R[h:2, p:20] = QK[h, p, 0] + QK[h, p, 29]"
    after = reduced(program(QKV, steps, "O, R"), "reduce-passes{block=8},stream-kernels,fuse")
    assert not any(isinstance(s, Einsum) for s in after.body.body)


def test_weights_that_are_read_outside_keep_the_plain_cascade() -> None:
    assert scans(reduced(program(QKV, ATTENTION, "O, SN"))) == 0


@pytest.mark.parametrize(("least", "kernels"), [(1, 0), (8, 1)])
def test_one_pass_of_unknown_queries(least: int, kernels: int) -> None:
    """A scan that saves no pass is not worth a single point in the lanes."""
    text = f"""cascade f(Q: f32[n, 4], K: f32[300, 4], V: f32[300, 3]) -> (O) symbols (n in {least}..) {{
  QK[p:n, m:300] = sum(e:4) Q[p, e] * K[m, e]
  O[p:n, f:3] = sum(m:300) sigmoid(QK[p, m]) * V[m, f]
}}"""
    assert len(run_passes(parse_program(text), "reduce-passes,stream-kernels").kernels) == kernels
