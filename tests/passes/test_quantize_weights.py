"""Matrices in few bits: the text, that products are those of the dequantised weights, what is found and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.passes.samples import body

from dlc.ir.codes import codes_of, values
from dlc.ir.dtype import CODED, DTYPES, F8E8M0, I8, U8, DType
from dlc.ir.evaluate import hold
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse
from dlc.ir.program import Program
from dlc.ir.verify import verify
from dlc.passes.calibration import calibrate
from dlc.passes.quantize_weights import (
    BadQuantisation,
    NeedsCalibration,
    QuantizeWeights,
    SkipsNothing,
    UnevenActivations,
    linear_layers,
    quantize_weights,
)

WEIGHT_TYPES = [t for t in (*CODED, U8, I8) if t != F8E8M0]

LINEAR = (
    "program f(X: f32[m, {k}]) -> (Y) {{\n  const W: f32[{n}, {k}]\n  Y[m, n:{n}] = sum(k:{k}) X[m, k] * W[n, k]\n}}\n"
)


def program(text: str, **data: Any) -> Program:
    made = parse(text)
    assert isinstance(made, Program)
    made = replace(made, data=data)
    verify(made)
    return made


def linear(n: int, k: int, seed: int = 0) -> Program:
    w = np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)
    return program(LINEAR.format(n=n, k=k), W=w)


def quantised(before: Program, **options: Any) -> Program:
    after = QuantizeWeights(**options).apply(before)
    verify(after)
    return after


def dense(p: Program, name: str, group: int | None) -> Any:
    """The weights that the constants of a quantised program stand for, f64."""

    def numbers(constant: str) -> Any:
        array = p.data[constant]
        dtype = next(c.type.dtype for c in p.consts if c.name == constant)
        return (
            values(dtype).astype(np.float64)[codes_of(array)]
            if dtype.is_coded
            else hold(array, dtype).astype(np.float64)
        )

    codes = numbers(f"{name}_codes")
    size = group or codes.shape[1]

    def spread(constant: str) -> Any:
        return np.repeat(numbers(constant), size, 1)[:, : codes.shape[1]]

    zeros = spread(f"{name}_zeros") if f"{name}_zeros" in p.data else 0.0
    return (codes - zeros) * spread(f"{name}_scales")


def test_what_it_makes() -> None:
    assert body(quantised(linear(8, 64), weights="i4", group=32)) == [
        "const W_codes: i4[8, 64]",
        "const W_scales: f16[8, 2]",
        "W_dequantised[n:8, k:64]: f32 = cast<f32>(W_codes[n, k]) * cast<f32>(W_scales[n, (k // 32)])",
        "Y[m, n:8]: f32 = sum(k:64) X[m, k] * W_dequantised[n, k]",
    ]
    assert body(quantised(linear(8, 64), weights="u4", group=None, scales="f32")) == [
        "const W_zeros: u4[8, 1]",
        "const W_codes: u4[8, 64]",
        "const W_scales: f32[8, 1]",
        "W_dequantised[n:8, k:64]: f32 = (cast<f32>(W_codes[n, k]) - cast<f32>(W_zeros[n, 0])) * W_scales[n, 0]",
        "Y[m, n:8]: f32 = sum(k:64) X[m, k] * W_dequantised[n, k]",
    ]


def test_what_it_makes_with_bytes() -> None:
    assert body(quantised(linear(8, 64), weights="i3", group=32, activation="i8"))[2:] == [
        "W_dequantised[n:8, k:64]: f32 = cast<f32>(W_codes[n, k]) * cast<f32>(W_scales[n, (k // 32)])",
        "Y_greatest[m]: f32 = max(k:64) abs(X[m, k])",
        "Y_scales[m]: f32 = select(Y_greatest[m] == 0.0, 1.0, Y_greatest[m] / 127.0)",
        "Y_bytes[m, k:64]: i8 = cast<i8>(round(X[m, k] / Y_scales[m]))",
        "Y[m, n:8]: f32 = sum(k:64) cast<f32>(Y_bytes[m, k]) * Y_scales[m] * W_dequantised[n, k]",
    ]
    text = "\n".join(body(quantised(linear(8, 64), weights="i3", group=32, activation="i8", activation_group=16)))
    assert "Y_greatest[m, g:4]: f32 = max(j:16) abs(X[m, 16*g + j])" in text
    assert "Y_bytes[m, k:64]: i8 = cast<i8>(round(X[m, k] / Y_scales[m, (k // 16)]))" in text
    assert "sum(k:64) cast<f32>(Y_bytes[m, k]) * Y_scales[m, (k // 16)] * W_dequantised[n, k]" in text


def test_what_it_makes_with_fewer_bits() -> None:
    """Signs with the mean of the row; the greatest of a row is the greatest code."""
    assert body(quantised(linear(8, 64), weights="b1", group=None, activation="b1"))[3:] == [
        "Y_total[m]: f32 = sum(k:64) abs(X[m, k])",
        "Y_scales[m]: f32 = select(Y_total[m] == 0.0, 1.0, Y_total[m] / 64.0)",
        "Y_codes[m, k:64]: b1 = cast<b1>(X[m, k] / Y_scales[m])",
        "Y[m, n:8]: f32 = sum(k:64) cast<f32>(Y_codes[m, k]) * Y_scales[m] * W_dequantised[n, k]",
    ]
    text = "\n".join(body(quantised(linear(8, 64), weights="b1", activation="i3", activation_group=16)))
    assert "select(Y_greatest[m, g] == 0.0, 1.0, Y_greatest[m, g] / 3.0)" in text
    assert "Y_codes[m, k:64]: i3 = cast<i3>(round(X[m, k] / Y_scales[m, (k // 16)]))" in text
    assert "Y_greatest[m] / 15.0" in "\n".join(body(quantised(linear(8, 64), weights="b1", activation="b4")))


def test_the_scale_of_signs_is_the_best() -> None:
    """No other number times the signs of a row is as near to it."""
    x = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    after = quantised(linear(8, 64), weights="i8", activation="b1")
    scales, codes = run_program(replace(after, body=replace(after.body, yields=("Y_scales", "Y_codes"))), [x])

    def error(scale: Any) -> Any:
        return ((x - scale[:, None] * values(DTYPES["b1"])[codes_of(codes)]) ** 2).sum(1)

    assert (error(scales) < error(scales * 1.01)).all() and (error(scales) < error(scales * 0.99)).all()


@pytest.mark.parametrize("seed", range(120))
def test_products_are_those_of_the_dequantised_weights(seed: int) -> None:
    """Random (type, shape, group, batch), with f32 activations, against f64."""
    rng = np.random.default_rng(seed)
    dtype = WEIGHT_TYPES[seed % len(WEIGHT_TYPES)]
    n, k, m = int(rng.integers(8, 40)), int(rng.integers(32, 100)), int(rng.integers(1, 9))
    group = [None, 16, 32, 64][int(rng.integers(4))]
    after = quantised(linear(n, k, seed), weights=str(dtype), group=group, scales=["f16", "bf16", "f32"][seed % 3])
    x = rng.standard_normal((m, k)).astype(np.float32)
    (y,) = run_program(after, [x])
    w = dense(after, "W", group)
    limit = 2.0**-22 * (np.abs(x.astype(np.float64)) @ np.abs(w.T)) + 1e-30
    assert (np.abs(y - x.astype(np.float64) @ w.T) <= limit).all()


@pytest.mark.parametrize("group", [None, 16])
def test_activations_in_bytes_are_within_half_a_step(group: int | None) -> None:
    before = linear(16, 64)
    after = quantised(before, weights="i8", group=32, activation="i8", activation_group=group)
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    x[1] = 0
    (y,) = run_program(after, [x])
    w = dense(after, "W", 32)
    steps = np.abs(x.reshape(5, -1, group or 64)).max(axis=2) / 127
    slack = np.repeat(steps, group or 64, 1) / 2
    assert (np.abs(y - x.astype(np.float64) @ w.T) <= slack @ np.abs(w.T) + 1e-4).all()
    assert (y[1] == 0).all()


def test_nan_and_infinity_are_not_hidden() -> None:
    after = quantised(linear(16, 32), weights="i4", activation="i8")
    x = np.ones((3, 32), np.float32)
    x[0, 3], x[1, 4] = np.nan, np.inf
    (y,) = run_program(after, [x])
    assert np.isnan(y[0]).all() and not np.isfinite(y[1]).any() and np.isfinite(y[2]).all()


# --- what is found ---------------------------------------------------------------------------------------------------


def test_a_matrix_stored_the_other_way_round_is_grouped_along_the_sum() -> None:
    before = program(
        "program f(X: f32[m, 64]) -> (Y) {\n  const W: f32[64, 24]\n  Y[m, n:24] = sum(k:64) X[m, k] * W[k, n]\n}\n",
        W=np.random.default_rng(0).standard_normal((64, 24)).astype(np.float32),
    )
    after = quantised(before, weights="i6", group=32)
    assert after.data["W_codes"].shape == (24, 64) and after.data["W_scales"].shape == (24, 2)
    assert np.linalg.norm(dense(after, "W", 32).T - before.data["W"]) < 0.03 * np.linalg.norm(before.data["W"])


def test_a_view_is_looked_through_and_a_tied_table_is_kept_once() -> None:
    before = program(
        """program f(I: i64[b]) -> (Y) {
          const E: f32[50, 32]
          T[k:32, v:50] = E[v, k]
          X[b, k:32] = E[I[b], k]
          Y[b, v:50] = sum(k:32) X[b, k] * T[k, v]
        }""",
        E=np.random.default_rng(0).standard_normal((50, 32)).astype(np.float32),
    )
    after = quantised(before, weights="i5", group=16)
    assert [c.name for c in after.consts] == ["E_codes", "E_scales"]
    w, rows = dense(after, "E", 16), np.array([3, 49, 0])
    (y,) = run_program(after, [rows])
    np.testing.assert_allclose(y, w[rows] @ w.T, rtol=1e-5, atol=1e-5)


def test_half_precision_models_keep_their_result_s_type() -> None:
    before = program(
        "program f(X: bf16[m, 32]) -> (Y) {\n  const W: bf16[16, 32]\n  Y[m, n:16]: bf16 = sum<f32>(k:32) X[m, k] * W[n, k]\n}\n",
        W=np.ones((16, 32), DTYPES["bf16"].numpy),
    )
    for activation in ("f32", "bf16", "i8"):
        after = quantised(before, weights="i4", activation=activation)
        (y,) = run_program(after, [np.ones((2, 32), DTYPES["bf16"].numpy)])
        assert y.dtype == DTYPES["bf16"].numpy and (y.astype(np.float32) == 32).all()


def test_layers_inside_a_scan_are_quantised_and_rounded_there() -> None:
    before = program(
        """program f(X: f32[t, 16], H0: f32[16]) -> (H) {
          const U: f32[16, 16]
          scan t carry (h = H0) {
            P[i:16] = sum(j:16) h[j] * U[i, j]
            h1[i:16] = tanh(P[i] + X[t, i])
            yield (h1)
          } -> (H)
        }""",
        U=np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32),
    )
    x, h0 = np.ones((3, 16), np.float32), np.ones(16, np.float32)
    after = quantised(before, weights="i8", group=16, activation="i8")
    (got,), (want,) = run_program(after, [x, h0]), run_program(before, [x, h0])
    assert "U_codes" in after.data and 0 < np.abs(got - want).max() < 0.1


def test_bytes_that_a_scan_makes_are_not_read_after_it() -> None:
    before = program(
        """program f(X: f32[t, 16], A: f32[16], H0: f32[16]) -> (H, Y) {
          const U: f32[16, 16]
          scan t carry (h = H0) {
            P[i:16] = sum(j:16) A[j] * U[i, j]
            h1[i:16] = h[i] + P[i] * X[t, i]
            yield (h1)
          } -> (H)
          Y[i:16] = sum(j:16) A[j] * U[i, j]
        }""",
        U=np.eye(16, dtype=np.float32),
    )
    after = quantised(before, weights="i8", group=16, activation="i8")
    x, a = np.ones((3, 16), np.float32), np.arange(16, dtype=np.float32)
    h, y = run_program(after, [x, a, np.zeros(16, np.float32)])
    np.testing.assert_allclose(h, 3 * y, rtol=1e-5)


LEFT = {
    "a vector": "Y[m, n:64] = X[m, n] * V[n]",
    "a sum over two ranks": "Y[m, n:64] = sum(k:64, j:1) X[m, k] * W[n, k]",
    "a maximum": "Y[m, n:64] = max(k:64) X[m, k] * W[n, k]",
    "a diagonal": "Y[m, n:1] = sum(k:64) X[m, k] * W[k, k]",
    "a part of the matrix": "Y[m, n:32] = sum(k:64) X[m, k] * W[n, k]",
    "rows that move with the column": "Y[m, n:64] = sum(k:64) X[m, k] * X[m, n] * W[n, k]",
    "a domain": "Z[m, n:64] = sum(k:64) X[m, k] * W[n, k] where k <= n\n  Y[m, n:64] = Z[m, n]",
    "the matrix itself": "Y[m, n:64] = X[m, n] + W[n, n]",
}


@pytest.mark.parametrize("statement", LEFT.values(), ids=LEFT)
def test_everything_else_is_left_alone(statement: str) -> None:
    text = f"program f(X: f32[m, 64]) -> (Y) {{\n  const W: f32[64, 64]\n  const V: f32[64]\n  {statement}\n}}\n"
    before = program(text, W=np.ones((64, 64), np.float32), V=np.ones(64, np.float32))
    assert QuantizeWeights().apply(before) is before


@pytest.mark.parametrize(
    ("skip", "left"),
    [
        ((), ""),
        (("head",), "lm_head_weight"),
        (("lm_*",), "lm_head_weight"),
        (("h?_*",), "h0_fc_weight"),
        (("h0", "fc"), "h0_fc_weight"),
    ],
)
def test_what_is_named_is_skipped(skip: tuple[str, ...], left: str) -> None:
    text = """program f(X: f32[m, 32]) -> (Y) {
      const h0_fc_weight: f32[32, 32]
      const lm_head_weight: f32[32, 32]
      Z[m, n:32] = sum(k:32) X[m, k] * h0_fc_weight[n, k]
      Y[m, n:32] = sum(k:32) Z[m, k] * lm_head_weight[n, k]
    }"""
    w = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    after = quantised(program(text, h0_fc_weight=w, lm_head_weight=w), skip=skip)
    assert [c.name for c in after.consts if c.type.dtype == DTYPES["f32"]] == ([left] if left else [])


@pytest.mark.parametrize(
    ("skip", "way"),
    [
        ("ead", "did you mean 'head' or 'lm_head'?"),
        ("lm_heads", "did you mean 'lm_head' or 'head' or 'lm_head_weight'?"),
        ("w*", "what can be quantised is 'lm_head_weight'"),
        ("", "what can be quantised is 'lm_head_weight'"),
    ],
)
def test_a_skip_that_names_nothing_is_refused_with_names_near_it(skip: str, way: str) -> None:
    text = "program f(X: f32[m, 32]) -> (Y) {\n const lm_head_weight: f32[32, 32]\n Y[m, n:32] = sum(k:32) X[m, k] * lm_head_weight[n, k]\n}"
    before = program(text, lm_head_weight=np.ones((32, 32), np.float32))
    with pytest.raises(SkipsNothing) as caught:
        QuantizeWeights(skip=("lm_head", skip)).apply(before)
    assert caught.value.help == way


def test_tables_can_be_left_alone() -> None:
    before = program(
        "program f(I: i64[b]) -> (Y) {\n  const E: f32[50, 32]\n  Y[b, k:32] = E[I[b], k]\n}\n",
        E=np.ones((50, 32), np.float32),
    )
    assert QuantizeWeights(tables=False).apply(before) is before
    assert body(quantised(before, weights="i4"))[-1] == (
        "Y[b, k:32]: f32 = cast<f32>(E_codes[I[b], k]) * cast<f32>(E_scales[I[b], 0])"
    )


# --- calibration -----------------------------------------------------------------------------------------------------


def calibrated(before: Program, calls: list[Any], **options: Any) -> tuple[Program, Any]:
    wanted = QuantizeWeights(**options)
    after, layers = quantize_weights(before, wanted, calibrate(before, wanted, calls))
    verify(after)
    return after, layers


def correlated(m: int, k: int, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((m, 8)) @ rng.standard_normal((8, k)) + 0.2 * rng.standard_normal((m, k))).astype(
        np.float32
    )


def test_moments_are_those_of_the_rows_that_are_multiplied() -> None:
    before = linear(16, 32)
    x = correlated(20, 32)
    (found,) = calibrate(before, QuantizeWeights(), [[x[:7]], [x[7:]]]).values()
    np.testing.assert_allclose(found.moments, x.astype(np.float64).T @ x.astype(np.float64), rtol=1e-12)
    np.testing.assert_array_equal(found.greatest, np.abs(x).max(axis=0))
    assert len(linear_layers(before, QuantizeWeights())) == 1


def test_compensated_layers_have_better_products() -> None:
    before, x = linear(32, 64), correlated(200, 64)
    errors = {}
    for method in ("nearest", "compensated"):
        after, (layer,) = calibrated(before, [[x]], weights="i3", method=method)
        (y,), (want,) = run_program(after, [x]), run_program(before, [x])
        errors[method] = float(np.linalg.norm(y - want) / np.linalg.norm(want))
        assert abs(layer.output_error - errors[method]) < 1e-3
    assert errors["compensated"] < 0.5 * errors["nearest"]


def test_outlier_columns_are_multiplied_as_they_are() -> None:
    before, x = linear(32, 64), correlated(50, 64)
    x[:, [5, 40]] *= 50
    for activation in ("f32", "i8"):
        plain, _ = calibrated(before, [[x]], weights="i8", activation=activation, method="nearest")
        after, (layer,) = calibrated(
            before, [[x]], weights="i8", activation=activation, method="nearest", outliers=40.0
        )
        assert layer.outliers == 2
        (want,) = run_program(before, [x])
        errors = [float(np.linalg.norm(run_program(p, [x])[0] - want)) for p in (plain, after)]
        assert errors[1] < 0.3 * errors[0]


def test_a_budget_mixes_types() -> None:
    text = """program f(X: f32[m, 64]) -> (Y) {
      const A: f32[64, 64]
      const B: f32[64, 64]
      Z[m, n:64] = sum(k:64) X[m, k] * A[n, k]
      Y[m, n:64] = sum(k:64) Z[m, k] * B[n, k]
    }"""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((64, 64)).astype(np.float32)
    b = rng.standard_normal((64, 64)).astype(np.float32)
    b[:, ::32] = 8.0  # one large weight in each group: hard to quantise
    after, layers = quantize_weights(program(text, A=a, B=b), QuantizeWeights(weights="auto:5.5bits"))
    verify(after)
    kinds = {layer.name: DTYPES[layer.dtype].bits for layer in layers}
    assert kinds["B"] > kinds["A"] and sum(layer.bits for layer in layers) / 2 <= 5.5
    _, tight = quantize_weights(program(text, A=a, B=b), QuantizeWeights(weights="auto:0.05error"))
    assert np.sqrt(np.mean([layer.weight_error**2 for layer in tight])) <= 0.05


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": "i9"}, "'i9' is no type of 1 to 8 bits for weights"),
        ({"weights": "f32"}, "'f32' is no type of 1 to 8 bits"),
        ({"weights": "f8e8m0"}, "'f8e8m0' is no type"),
        ({"weights": "auto:4"}, "'auto:4' is no budget"),
        ({"group": 1}, "a group of 1 weights"),
        ({"weights": "b4", "zero_point": "codes"}, "b4 has no zero point among its codes"),
        ({"weights": "u4", "zero_point": "none"}, "u4 has no numbers below 0"),
        ({"weights": "u4", "zero_point": "real", "scales": "f8e8m0"}, "f8e8m0 .* holds no zero points"),
        ({"weights": "u1", "scales": "f8e8m0"}, "f8e8m0 .* holds no zero points"),
        ({"activation": "i7"}, "'activation' is one of f32, bf16, i8, .*, not 'i7'"),
        ({"scales": "f64"}, "'scales' is one of f16, .*, not 'f64'"),
        ({"method": "gptq"}, "'method' is one of auto, nearest, compensated, not 'gptq'"),
        ({"zero_point": "some"}, "'zero_point' is one of auto, .*, not 'some'"),
        ({"weights": 4}, "4 is no name of a type"),
        ({"group": 2.5}, "a group of 2.5 weights"),
        ({"skip": "lm_head"}, "`skip` is a tuple of names, not the text 'lm_head'"),
        ({"outliers": -1.0}, "outliers from -1.0"),
    ],
)
def test_what_does_not_exist_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadQuantisation, match=said):
        QuantizeWeights(**options)


def test_other_refusals() -> None:
    with pytest.raises(NeedsCalibration, match="method='compensated' needs example inputs"):
        QuantizeWeights(method="compensated").apply(linear(16, 32))
    with pytest.raises(NeedsCalibration, match="outliers needs"):
        QuantizeWeights(outliers=6.0).apply(linear(16, 32))
    bad = linear(16, 32)
    bad.data["W"][3, 4] = np.nan  # type: ignore[index]
    with pytest.raises(BadQuantisation, match="'W' holds an infinity or NaN"):
        QuantizeWeights().apply(bad)
    with pytest.raises(UnevenActivations, match="groups of 32, and 'W' multiplies 33 of them"):
        QuantizeWeights(activation="i8", activation_group=32).apply(linear(16, 33))
    with pytest.raises(BadQuantisation, match="1 bits per weight: the smallest types take"):
        QuantizeWeights(weights="auto:1bits").apply(linear(16, 32))


def test_it_is_a_pass_of_the_pipeline() -> None:
    from dlc.passes.pipeline import Pipeline
    from dlc.passes.registry import passes

    text = "quantize-weights{weights=i3 group=none activation=i8 skip=[head,lm]}"
    assert str(Pipeline.parse(text, passes())) == text


@pytest.mark.parametrize("dtype", [t for t in WEIGHT_TYPES if t.bits >= 6], ids=str)
def test_many_bits_lose_little(dtype: DType) -> None:
    _, (layer,) = quantize_weights(linear(16, 64), QuantizeWeights(weights=str(dtype)))
    mantissa = dtype.format.mantissa if dtype.format is not None else dtype.bits - 2
    assert layer.weight_error < 2.0 ** -(mantissa + 1)
