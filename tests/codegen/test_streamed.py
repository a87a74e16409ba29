"""Streaming kernels: attention in three passes and in running form, every tail, mask, layout and type of it, special values."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.target import AVX2, AVX512, BASELINE, Target

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


def streamed(text: object, passes: str, **options: object) -> Ran:
    ran = check(str(text), passes=passes, **options)  # type: ignore[arg-type]
    assert ran.strategies == ["streamed"]
    return ran


@FORMS
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("target", [AVX512, BASELINE], ids=lambda t: t.name)
def test_what_attention_looks_like(name: str, passes: str, target: Target) -> None:
    streamed(MASKS[name], passes, target=target)
