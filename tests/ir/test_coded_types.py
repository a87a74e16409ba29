"""Coded types in the IR: their text, casts both ways, and a quantised linear layer, as the interpreter means them."""

import numpy as np
import pytest

from dlc.ir.codes import codes_of, coded, encode, values
from dlc.ir.dtype import CODED, DTYPES, F4E2M1, F8E4M3, F8E5M2, F8E8M0, F32, I4, U4
from dlc.ir.errors import WrongKind
from dlc.ir.interpret import run_cascade, run_program
from dlc.ir.parser import parse
from dlc.ir.verify import verify

coded_types = pytest.mark.parametrize("dtype", CODED, ids=str)

LINEAR = """
program linear(X: f32[b, {k}]) -> (Y) {{
  const C: {t}[{n}, {k}]
  const S: f16[{n}, {groups}]
  const Z: {t}[{n}, {groups}]
  const B: f32[{n}]
  W[n:{n}, k:{k}] = (cast<f32>(C[n, k]) - cast<f32>(Z[n, k // {group}])) * cast<f32>(S[n, k // {group}])
  P[b, n:{n}] = sum(k:{k}) X[b, k] * W[n, k]
  Y[b, n:{n}] = P[b, n] + B[n]
}}
"""


@coded_types
def test_text_round_trip(dtype):
    text = f"cascade f(X: {dtype}[n], Y: f32[n]) -> (A, B) {{\n  A[n] = cast<f32>(X[n]) + Y[n]\n  B[n]: {dtype} = cast<{dtype}>(Y[n])\n}}\n"
    cascade = parse(text)
    verify(cascade)
    assert parse(str(cascade)) == cascade and f"cast<{dtype}>" in str(cascade)


@coded_types
def test_a_cast_reads_every_code(dtype):
    cascade = parse(f"cascade f(X: {dtype}[n]) -> Y {{\n  Y[n] = cast<f64>(X[n])\n}}\n")
    codes = np.arange(dtype.codes, dtype=np.uint8)
    (y,) = run_cascade(cascade, [coded(codes, dtype)])
    np.testing.assert_array_equal(y, values(dtype))


@coded_types
def test_a_cast_to_it_saturates(dtype):
    cascade = parse(f"cascade f(X: f32[n]) -> Y {{\n  Y[n] = cast<{dtype}>(X[n])\n}}\n")
    x = np.array([-1e30, -300.0, -1.0, -0.4, 0, 0.4, 1.0, 2.5, 300.0, 1e30], np.float32)
    (y,) = run_cascade(cascade, [x])
    want = encode(np.trunc(x) if dtype.is_int else x, dtype)
    np.testing.assert_array_equal(codes_of(y), want)


def test_the_mode_decides_what_a_float_overflows_to():
    for dtype, beyond in ((F8E4M3, np.nan), (F8E5M2, np.inf), (F4E2M1, 6.0)):
        text = (
            f"cascade f(X: f32[n]) -> (A, B) {{\n  A[n] = cast<{dtype}>(X[n])\n  B[n] = cast<{dtype}, wrap>(X[n])\n}}\n"
        )
        a, b = run_cascade(parse(text), [np.array([1e9], np.float32)])
        assert values(dtype)[codes_of(a)] == {F8E4M3: 448, F8E5M2: 57344, F4E2M1: 6}[dtype]
        np.testing.assert_array_equal(values(dtype)[codes_of(b)], [beyond])


def test_ints_wrap_between_each_other():
    cascade = parse("cascade f(X: i32[n]) -> (A, B) {\n  A[n] = cast<u4>(X[n])\n  B[n] = cast<i4>(X[n])\n}\n")
    a, b = run_cascade(cascade, [np.array([-1, 8, 17], np.int32)])
    assert values(U4)[codes_of(a)].tolist() == [15, 8, 1] and values(I4)[codes_of(b)].tolist() == [-1, -8, 1]


def test_arithmetic_on_codes_alone_is_refused():
    with pytest.raises(WrongKind, match="b2"):
        verify(parse("cascade f(X: b2[n]) -> Y {\n  Y[n] = X[n] + X[n]\n}\n"))


@pytest.mark.parametrize("dtype", [t for t in CODED if t != F8E8M0], ids=str)
def test_a_quantised_linear_layer(dtype):
    n, k, group = 6, 24, 8
    rng = np.random.default_rng(0)
    finite = np.flatnonzero(np.isfinite(values(dtype).astype(float)) & (np.abs(values(dtype).astype(float)) < 1e4))
    c, z = (finite[rng.integers(0, len(finite), shape)].astype(np.uint8) for shape in ((n, k), (n, k // group)))
    scales = rng.uniform(0.5, 2, (n, k // group)).astype(np.float16)
    bias, x = rng.standard_normal(n).astype(np.float32), rng.standard_normal((3, k)).astype(np.float32)
    program = parse(LINEAR.format(t=dtype, n=n, k=k, group=group, groups=k // group))
    verify(program)
    (y,) = run_program(program, [x], {"C": coded(c, dtype), "S": scales, "Z": coded(z, dtype), "B": bias})
    table = values(dtype).astype(np.float64)
    weights = (table[c] - np.repeat(table[z], group, 1)) * np.repeat(scales.astype(np.float64), group, 1)
    want = x.astype(np.float64) @ weights.T + bias
    size = np.abs(x.astype(np.float64)) @ np.abs(weights.T) + np.abs(bias)
    assert (np.abs(y - want) <= 4 * 2.0**-24 * size).all()


def test_a_stored_ml_dtypes_array_is_taken_as_an_input():
    import ml_dtypes

    cascade = parse("cascade f(X: i4[n]) -> Y {\n  Y[n] = cast<f32>(X[n])\n}\n")
    (y,) = run_cascade(cascade, [np.array([-8, 7, -1], ml_dtypes.int4)])
    assert y.dtype == DTYPES["f32"].numpy == F32.numpy and y.tolist() == [-8, 7, -1]
