"""Streaming kernels: attention in three passes and in running form, every tail, mask, layout and type of it, special values."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc.codegen.target import AVX2, BASELINE, Target

sys.path.insert(0, str(Path(__file__).parent))
from attention_text import Attention
from kernel_harness import Ran, check, targets

THREE_PASSES = "explicit-domains,common-einsums,dead-code,stream-kernels,fuse"


def running(block: int) -> str:
    return f"explicit-domains,common-einsums,dead-code,running-reduction{{block={block}}},stream-kernels,fuse"


FORMS = pytest.mark.parametrize("passes", [THREE_PASSES, running(16)], ids=["three passes", "running"])
MASKS = {
    "all keys": Attention(),
    "causal": Attention(where="m <= p"),
    "causal with a cache": Attention(where="m <= p + 26"),
    "sliding window": Attention(where="m <= p & p - m < 7"),
    "some keys twice bounded": Attention(where="m < 40 & m >= 3 & m <= 2*p + 5"),
    "padding": Attention(where="B[m]", params=("B: bool[45]",)),
    "padding, chosen": Attention(score="select(B[m], QK[h, p, m], -10000.0)", params=("B: bool[45]",)),
    "mask": Attention(where="B[p, m]", params=("B: bool[19, 45]",)),
    "mask, chosen": Attention(score="select(B[p, m], QK[h, p, m], -10000.0)", params=("B: bool[19, 45]",)),
    "mask and causal": Attention(where="B[p, m] & m <= p", params=("B: bool[19, 45]",)),
    "bias": Attention(score="QK[h, p, m] + B[p, m]", params=("B: f32[19, 45]",)),
    "bias of each head": Attention(score="QK[h, p, m] + B[h, p, m]", params=("B: f32[2, 19, 45]",)),
    "bias, causal": Attention(score="QK[h, p, m] + B[h, p, m]", where="m <= p", params=("B: f32[2, 19, 45]",)),
    "bias of the other order": Attention(score="QK[h, p, m] + B[m, p]", params=("B: f32[45, 19]",)),
    "bf16 bias": Attention(score="QK[h, p, m] + cast<f32>(B[p, m])", params=("B: bf16[19, 45]",)),
    "ALiBi": Attention(score="QK[h, p, m] + B[h] * cast<f32>(m - p)", where="m <= p", params=("B: f32[2]",)),
    "relative positions": Attention(score="QK[h, p, m] + B[h, p - m]", where="m <= p", params=("B: f32[2, 19]",)),
    "bucketed positions": Attention(
        score="QK[h, p, m] + B[h, I[p - m]]", where="m <= p", params=("B: f32[2, 4]", "I: i64[19]")
    ),
    "buckets of pairs": Attention(score="QK[h, p, m] + B[h, I[p, m]]", params=("B: f32[2, 4]", "I: i64[19, 45]")),
    "a neighbour's bias": Attention(score="QK[h, p, m] + (B[p - 1, m] else 0.0)", params=("B: f32[19, 45]",)),
    "grouped queries": Attention(H=6, key="h // 3", heads=2),
    "grouped queries, causal": Attention(H=6, key="h // 3", heads=2, where="m <= p"),
    "heads inside rows": Attention(flat=True),
    "result with heads inside rows": Attention(order="{1, 0, 2}"),
    "result with lanes innermost": Attention(order="{0, 2, 1}"),
    "logarithm of the sum": Attention(results=("L",)),
    "several results that are read inside": Attention(results=("SD", "GM")),
    "the unscaled sum, causal": Attention(results=("AV",), where="m <= p"),
    "least": Attention(limit="min"),
    "one wide": Attention(E=1, F=1),
    "wide": Attention(E=33, F=70, M=20),
    "one head": Attention(H=1),
    "f64": Attention(dtype="f64", score="QK[h, p, m] * 0.5"),
    "bf16": Attention(dtype="bf16"),
    "f16, causal": Attention(dtype="f16", where="m <= p"),
}


def streamed(text: object, passes: str, **options: Any) -> Ran:
    ran = check(str(text), passes=passes, **options)
    assert ran.strategies == ["streamed"]
    return ran


@FORMS
@pytest.mark.parametrize("name", MASKS)
def test_what_attention_looks_like(name: str, passes: str) -> None:
    streamed(MASKS[name], passes)


@FORMS
@pytest.mark.parametrize("name", ["causal", "mask", "bias, causal", "grouped queries", "relative positions", "f16, causal"])
@pytest.mark.parametrize("target", [AVX2, BASELINE], ids=lambda t: t.name)
def test_registers_of_another_width(name: str, passes: str, target: Target) -> None:
    streamed(MASKS[name], passes, target=target)


@pytest.mark.slow
@FORMS
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("target", [AVX2, BASELINE], ids=lambda t: t.name)
def test_every_construct_in_registers_of_another_width(name: str, passes: str, target: Target) -> None:
    streamed(MASKS[name], passes, target=target)


@FORMS
@pytest.mark.parametrize("where", ["", "m <= p", "m <= p & p - m < 9"])
@pytest.mark.parametrize("P", [8, 13, 16, 64, 67, 131])
def test_queries_that_fill_no_block(P: int, where: str, passes: str) -> None:
    streamed(Attention(P=P, M=max(P, 17), where=where), passes, interpret=P < 20)


@pytest.mark.parametrize("where", ["", "m <= p + 3"])
@pytest.mark.parametrize("block", [1, 16, 99, 128])
def test_blocks_of_keys(block: int, where: str) -> None:
    for M in (2, 101, 128, 131):
        if M > block:
            ran = streamed(Attention(P=21, M=M, where=where), running(block), interpret=M < 100)
            assert "scan s0" in str(ran.program)


@pytest.mark.parametrize("where", ["", "m <= p", "m <= p & p - m < 9"])
def test_one_kernel_for_all_lengths(where: str) -> None:
    text = Attention(P="P", M="M", where=where)
    for P, M in ((1, 1), (7, 1), (1, 70), (13, 13), (64, 64), (67, 131), (200, 5)):
        streamed(text, running(16), sizes={"P": P, "M": M}, interpret=P * M < 200)


def test_one_kernel_for_all_numbers_of_queries() -> None:
    text = Attention(P="P", score="QK[h, p, m] + B[p, m]", params=("B: f32[P, 45]",))
    for P in (1, 15, 64, 65):
        streamed(text, running(16), sizes={"P": P}, interpret=P < 20)


def test_a_sum_over_the_heads_is_a_kernel_of_its_own() -> None:
    text = str(Attention()).replace("(O)", "(R)").replace("\n}", "\n  R[p:19, f:3]: f32 = sum(h:2) O[h, p, f]\n}")
    for passes in (THREE_PASSES, running(16)):
        for where in ("", " where m <= p"):
            ran = check(text.replace("K[h, m, e]", f"K[h, m, e]{where}"), passes=passes)
            assert ran.strategies[0] == "streamed" and len(ran.strategies) == 2


# --- values that are no numbers ---


def special(where: str, seed: int) -> list[np.ndarray]:
    """Inputs of `Attention(P=11, M=45)`: logits of 1e4, infinities of both signs, NaN; values that masked keys may not show."""
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal(s).astype(np.float32) for s in ((2, 11, 5), (2, 45, 5), (2, 45, 3)))
    q[0, 2] *= 1e4
    q[0, 3, 0], q[0, 4, 1], q[1, 5] = np.inf, np.nan, -np.inf
    k[1, 7, 2] = np.inf
    k[1, 30] = np.nan
    if where:
        v[:, 12:] = np.inf
        v[0, 11, 0] = np.nan
    return [q, k, v]


@FORMS
@pytest.mark.parametrize("where", ["", "m <= p", "m <= p - 3", "m < 9", "m > p & m < 11"])
def test_values_that_are_no_numbers(where: str, passes: str) -> None:
    """Rows without keys too: `m <= p - 3` leaves none to the first three queries."""
    for seed in range(3):
        streamed(Attention(P=11, where=where), passes, inputs=special(where, seed))


@FORMS
def test_a_masked_key_does_not_count(passes: str) -> None:
    text = Attention(P=11, where="B[m]", params=("B: bool[45]",))
    keys = np.arange(45) % 3 == 0
    q, k, v = special("", 0)
    v[:, ~keys] = np.inf
    k[:, ~keys] = np.nan
    k[:, keys] = np.nan_to_num(k[:, keys], nan=0.5, posinf=0.5)
    ran = streamed(text, passes, inputs=[np.nan_to_num(q, nan=1.0, posinf=1.0, neginf=1.0), k, v, keys])
    assert np.isfinite(ran.values["O"]).all()
    empty = streamed(text, passes, inputs=[q, k, v, np.zeros(45, bool)])
    assert np.isnan(empty.values["O"]).all()


# --- kernels as they are written ---


def launched(head: str, steps: str) -> str:
    """A program that launches the kernel of `steps` over (o0, o1) once; `head` is its parameters and result."""
    params, result = (t.strip() for t in head.split("->"))
    names = ", ".join(p.split(":")[0].strip() for p in params.split("],"))
    return (
        f"kernel over (o0, o1) k({params}) -> ({result}) {{\n{steps}\n}}\n\n"
        f"program p({params}) -> (o) {{\n  (o) = launch k({names})\n}}\n"
    )


QK = "t3[o0:2, o1:20, r0:30]: f32 = sum(r2:4) a0[o0, o1, r2] * a1[o0, r0, r2]"
BLOCK = """t3[o0:2, o1:20, r3:5]: f32 = sum(r2:4) a0[o0, o1, r2] * a1[o0, s0, r3, r2]
    t4[o0:2, o1:20]: f32 = sum(r3:5) t3[o0, o1, r3]"""
INPUTS = "a0: f32[2, 20, 4], a1: f32[2, 30, 4]"
SCANNED = "a0: f32[2, 20, 4], a1: f32[2, 3, 5, 4]"
KERNELS = {
    "a lower bound": (
        "a0: f32[2, 20, 4], a1: f32[2, 30, 4], a2: f32[2, 30, 5] -> t1",
        """
  t3[o0:2, o1:20, r0:31]: f32 = sum(r2:4) a0[o0, o1, r2] * a1[o0, r0 - 1, r2] where r0 >= 1
  t2[o0:2, o1:20, r4:5]: f32 = sum(r0:31) t3[o0, o1, r0] * a2[o0, r0 - 1, r4] where r0 >= 1
  t1[o0:2, o1:20, r4:5]: f32 = t2[o0, o1, r4] * 2.0""",
    ),
    "a bound over two inner ranks": (
        "a0: f32[2, 20, 4], a1: f32[2, 30], a2: f32[2, 30, 5] -> t1",
        """
  t3[o0:2, o1:20, r0:30]: f32 = sum(r2:4) a0[o0, o1, r2] * a1[o0, r0 + r2] where r0 + r2 < 30
  t2[o0:2, o1:20, r4:5]: f32 = sum(r0:30) t3[o0, o1, r0] * a2[o0, r0, r4]
  t1[o0:2, o1:20, r4:5]: f32 = t2[o0, o1, r4] * 2.0""",
    ),
    "the tail of a reduced rank along the lanes": (
        "a0: f32[2, 20, 4], a1: f32[2, 30, 4], a3: f32[20, 30] -> t1",
        """
  t0[o0:2, o1:20]: f32 = -inf
  scan s0:2 carry (t2 = t0) {
    t3[o0:2, o1:20, r3:16]: f32 = sum(r2:4) a0[o0, o1, r2] * a1[o0, 16*s0 + r3, r2] where 16*s0 + r3 < 30
    t4[o0:2, o1:20]: f32 = max(r3:16) t3[o0, o1, r3] + a3[o1, 16*s0 + r3] where 16*s0 + r3 < 30
    t5[o0:2, o1:20]: f32 = max(t2[o0, o1], t4[o0, o1])
    yield (t5)
  } -> (t6)
  t1[o0:2, o1:20]: f32 = t6[o0, o1] * 2.0""",
    ),
    "one operand under two domains": (
        f"{INPUTS}, a3: f32[20, 30] -> t1",
        f"""
  {QK}
  t6[o0:2, o1:20, r0:30]: f32 = exp(t3[o0, o1, r0] * a3[o1, r0]) where r0 <= o1
  t5[o0:2, o1:20]: f32 = sum(r0:30) t6[o0, o1, r0] where r0 <= o1
  t7[o0:2, o1:20, r0:30]: f32 = exp(t3[o0, o1, r0] - a3[o1, r0])
  t8[o0:2, o1:20]: f32 = sum(r0:30) t7[o0, o1, r0]
  t1[o0:2, o1:20]: f32 = t5[o0, o1] + t8[o0, o1]""",
    ),
    "two domains beside each other": (
        f"{INPUTS} -> t1",
        f"""
  {QK}
  t4[o0:2, o1:20]: f32 = max(r0:30) t3[o0, o1, r0]
  t6[o0:2, o1:20, r0:30]: f32 = exp(t3[o0, o1, r0]) where r0 <= o1
  t7[o0:2, o1:20, r0:30]: f32 = exp(0.0 - t3[o0, o1, r0])
  t5[o0:2, o1:20]: f32 = sum(r0:30) t6[o0, o1, r0] where r0 <= o1
  t8[o0:2, o1:20]: f32 = sum(r0:30) t7[o0, o1, r0]
  t1[o0:2, o1:20]: f32 = t5[o0, o1] + t8[o0, o1] + t4[o0, o1]""",
    ),
    "the smaller domain later": (
        f"{INPUTS}, a3: f32[20, 13] -> t1",
        f"""
  {QK}
  t4[o0:2, o1:20]: f32 = max(r0:30) t3[o0, o1, r0]
  t6[o0:2, o1:20, r0:30]: f32 = exp(t3[o0, o1, r0] - t4[o0, o1])
  t7[o0:2, o1:20, r0:30]: f32 = a3[o1, r0] * 2.0 where r0 < 13
  t5[o0:2, o1:20]: f32 = sum(r0:30) t6[o0, o1, r0] * t7[o0, o1, r0] where r0 < 13
  t1[o0:2, o1:20]: f32 = t5[o0, o1] * 2.0""",
    ),
    "a result of some queries": (
        f"{INPUTS}, a3: f32[15] -> t1",
        f"""
  {QK}
  t4[o0:2, o1:20]: f32 = max(r0:30) t3[o0, o1, r0]
  t1[o0:2, o1:20]: f32 = a3[o1 - 5] * t4[o0, o1] where o1 >= 5""",
    ),
    "what a query picks": (
        f"{INPUTS}, a3: f32[2, 8], a4: i64[20] -> t1",
        f"""
  {QK}
  t6[o0:2, o1:20, r0:30]: f32 = t3[o0, o1, r0] + a3[o0, a4[o1]] + a3[o0, a4[o1 - r0]] where r0 <= o1
  t5[o0:2, o1:20]: f32 = max(r0:30) t6[o0, o1, r0] where r0 <= o1
  t1[o0:2, o1:20]: f32 = t5[o0, o1] * 2.0""",
    ),
    "the greatest and its place": (
        f"{INPUTS} -> t1",
        f"""
  {QK}
  (t4, t5)[o0:2, o1:20]: f32, i64 = argmax(r0:30) (t3[o0, o1, r0], r0) where r0 <= o1 + 2
  t1[o0:2, o1:20]: f32 = t4[o0, o1] + cast<f32>(t5[o0, o1])""",
    ),
    "a tuple of states": (
        f"{SCANNED} -> t1",
        """
  t0[o0:2, o1:20]: f32 = -inf
  t2[o0:2, o1:20]: i64 = 0
  scan s0:3 carry (t3 = t0, t4 = t2) {
    t5[o0:2, o1:20, r0:5]: f32 = sum(r2:4) a0[o0, o1, r2] * a1[o0, s0, r0, r2] where 5*s0 + r0 <= o1
    (t6, t7)[o0:2, o1:20]: f32, i64 = argmax(r0:5) (t5[o0, o1, r0], 5*s0 + r0) where 5*s0 + r0 <= o1
    t8[o0:2, o1:20]: f32 = select(t6[o0, o1] > t3[o0, o1], t6[o0, o1], t3[o0, o1])
    t9[o0:2, o1:20]: i64 = select(t6[o0, o1] > t3[o0, o1], t7[o0, o1], t4[o0, o1])
    yield (t8, t9)
  } -> (t10, t11)
  t1[o0:2, o1:20]: f32 = t10[o0, o1] + cast<f32>(t11[o0, o1])""",
    ),
    "a state that is contracted": (
        "a0: f32[2, 20, 40], a1: f32[2, 5, 40, 40] -> t1",
        """
  t0[o0:2, o1:20, r0:40]: f32 = 1.0
  scan s0:5 carry (t2 = t0) {
    t3[o0:2, o1:20, r0:40]: f32 = sum(r1:40) t2[o0, o1, r1] * a1[o0, s0, r1, r0]
    t4[o0:2, o1:20, r0:40]: f32 = t2[o0, o1, r0] * 0.5 + t3[o0, o1, r0] * 0.01
    yield (t4)
  } -> (t5)
  t1[o0:2, o1:20, r0:40]: f32 = t5[o0, o1, r0] * a0[o0, o1, r0]""",
    ),
    "a state that is read across": (
        "a0: f32[2, 20, 4], a1: f32[2, 3, 4, 6] -> t1",
        """
  t0[o0:2, o1:20, r0:6, r1:6]: f32 = 1.0
  scan s0:3 carry (t2 = t0) {
    t3[o0:2, o1:20, r0:6]: f32 = sum(r2:4) a0[o0, o1, r2] * a1[o0, s0, r2, r0]
    t4[o0:2, o1:20, r0:6, r1:6]: f32 = t2[o0, o1, r1, r0] + t3[o0, o1, r0]
    t5[o0:2, o1:20, r0:6, r1:6]: f32 = t2[o0, o1, r0, r1] * 0.5 + t4[o0, o1, r0, r1]
    yield (t5)
  } -> (t6)
  t1[o0:2, o1:20, r0:6, r1:6]: f32 = t6[o0, o1, r0, r1] * 2.0""",
    ),
    "steps without points that turn a state": (
        f"{SCANNED} -> t1",
        """
  t0[o0:2, o1:20, r0:6, r1:6]: f32 = 0.0
  t9[o0:2, o1:20, r0:6]: f32 = 0.0
  scan s0:3 carry (t2 = t0, t8 = t9) {
    t3[o0:2, o1:20, r3:5]: f32 = sum(r2:4) a0[o0, o1, r2] * a1[o0, s0, r3, r2] where 5*s0 + r3 < 5
    t4[o0:2, o1:20]: f32 = sum(r3:5) t3[o0, o1, r3] where 5*s0 + r3 < 5
    t5[o0:2, o1:20, r0:6, r1:6]: f32 = t2[o0, o1, r1, r0] + t4[o0, o1] * cast<f32>(r0)
    t7[o0:2, o1:20, r0:6]: f32 = t8[o0, o1, r0] + t4[o0, o1]
    yield (t5, t7)
  } -> (t6, t10)
  t1[o0:2, o1:20, r0:6, r1:6]: f32 = t6[o0, o1, r0, r1] * t10[o0, o1, r0]""",
    ),
}


@targets
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_as_written(name: str, target: Target) -> None:
    streamed(launched(*KERNELS[name]), "dead-code", target=target)
