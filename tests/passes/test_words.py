"""What contractions of bytes and bf16 numbers read and store: packed words, contiguous rows, results in the smaller type."""

from __future__ import annotations

import pytest

from dlc.ir.parser import parse_program
from dlc.ir.program import Program, tensor_types
from dlc.passes.default import default_pipeline
from dlc.passes.inline_pointwise import InlinePointwise
from dlc.passes.pipeline import Pipeline
from dlc.passes.registry import passes

CHAIN = """
program f(x: u8[8, 64], w: i8[64, 64], v: i8[64, 64], s: f32[64]) -> (z) {
  p[i:8, j:64]: i32 = sum(k:64) cast<i32>(x[i, k]) * cast<i32>(w[k, j])
  q[i:8, j:64]: u8 = cast<u8>(min(max(round(cast<f32>(p[i, j]) / 0.5), 0.0), 255.0))
  r[i:8, j:64]: i32 = sum(k:64) cast<i32>(x[i, k]) * cast<i32>(v[k, j])
  z[i:8, j:64]: f32 = cast<f32>(q[i, j]) * s[j] + cast<f32>(r[i, j])
}
"""


def through(text: str, pipeline: str) -> Program:
    return Pipeline.parse(pipeline, passes()).run(parse_program(text))


def test_a_sum_is_rounded_by_the_kernel_that_makes_it() -> None:
    """Inlined into `z`, the quotient would leave `p` as i32 in memory, four times what `q` takes."""
    after = InlinePointwise().apply(parse_program(CHAIN))
    assert "q" in tensor_types(after)
    whole = through(CHAIN, default_pipeline())
    assert {str(t.dtype) for n, t in tensor_types(whole).items() if n in ("p", "q", "r")} == {"u8"}


def test_a_wider_operand_is_rounded_once() -> None:
    """`cast<bf16>(y)` is stored in bf16, not rounded again for every column."""
    text = """
    program f(y: f32[16, 64], w: bf16[64, 48]) -> (o) {
      o[i:16, j:48]: f32 = sum(k:64) cast<bf16>(y[i, k]) * w[k, j]
    }"""
    prepared = through(text, "prepare-contractions")
    assert "y_bf16[" not in str(prepared), "columns that stream as they are stay, and with them the rows"
    packed = through(
        text.replace("w: bf16[64, 48]", "w: bf16[48, 64]").replace("w[k, j]", "w[j, k]"), "prepare-contractions"
    )
    assert "y_bf16[d0:16, d1:64]: bf16 = cast<bf16>(y[d0, d1])" in str(packed)
    assert "k // 2" in str(packed) and "k % 2" in str(packed)


def test_a_rounded_operand_is_one_whichever_type_takes_it() -> None:
    """`cast<f32>(cast<bf16>(y))` times bf16 weights, as an importer writes what rounds its activations."""
    text = """
    program f(y: f32[16, 64], w: bf16[48, 64]) -> (o) {
      o[i:16, j:48]: f32 = sum(k:64) cast<f32>(cast<bf16>(y[i, k])) * cast<f32>(w[j, k])
    }"""
    packed = str(through(text, "prepare-contractions"))
    assert "y_bf16[d0:16, d1:64]: bf16 = cast<bf16>(y[d0, d1])" in packed
    assert "cast<f32>(y_bf16[i, k])" in packed and "k // 2" in packed and "k % 2" in packed
    wide = str(through(text.replace("cast<bf16>(y[i, k])", "cast<f16>(y[i, k])"), "prepare-contractions"))
    assert "k // 2" not in wide, "only bf16 numbers share words"


@pytest.mark.parametrize(("accuracy", "words"), [("strict", False), ("default", True)])
def test_strict_sums_of_bf16_stay_in_f32(accuracy: str, words: bool) -> None:
    text = "program f(y: bf16[16, 64], w: bf16[48, 64]) -> (o) { o[i:16, j:48]: f32 = sum(k:64) y[i, k] * w[j, k] }"
    assert ("% 2" in str(through(text, default_pipeline(accuracy=accuracy)))) == words


def test_an_infinity_stays_where_the_filter_is() -> None:
    """The last word of a filter's taps may not read the next pixel: an infinity times a zero weight is no zero."""
    import dlc
    import torch

    with torch.no_grad():
        layer = torch.nn.Conv1d(16, 64, 3, groups=2, padding=1, bias=False).bfloat16()
        x = torch.randn(1, 16, 40).bfloat16()
        x[:, :, 20] = float("inf")
        got, want = dlc.compile(layer, (x,))(x), layer(x)
    assert torch.equal(torch.isfinite(got), torch.isfinite(want))
