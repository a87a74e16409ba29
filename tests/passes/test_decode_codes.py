"""Coded tensors in native types: the text, every type against the interpreter, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tests.passes.samples import body

from dlc.errors import Unsupported
from dlc.ir.codes import coded, codes_of, decode, values
from dlc.ir.dtype import CODED, DTYPES, DType
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse
from dlc.ir.program import Program, program_of
from dlc.ir.verify import verify
from dlc.passes.decode_codes import DecodeCodes

coded_types = pytest.mark.parametrize("dtype", CODED, ids=str)
ROUNDED = [t for t in CODED if t.format is None or t.format.rule not in ("fnuz", "scale") and t.format.mantissa]

TABLE = """
program table(I: i64[b]) -> (Y) {{
  const E: {t}[5, 11]
  const S: f32[5]
  Y[b, d:11] = cast<f32>(E[I[b], d]) * S[I[b]]
}}
"""


def program(text: str, **data: Any) -> Program:
    made = parse(text)
    assert isinstance(made, Program)
    return replace(made, data=data)


def codes(dtype: DType, *shape: int) -> np.ndarray[Any, Any]:
    return coded(np.random.default_rng(0).integers(0, dtype.codes, shape).astype(np.uint8), dtype)


def decoded(before: Program) -> Program:
    verify(before)
    after = DecodeCodes().apply(before)
    verify(after)
    return after


def test_what_it_makes() -> None:
    before = program(
        """
        program f(X: f32[n], I: i64[b], P: bool[n]) -> (Y, V, Q, R) {
          const C: i4[3, 4]
          const E: u3[5, 11]
          const B: b2[4]
          Y[i:3, k:4] = cast<f32>(C[i, k]) * 2.0
          V[b, d:11] = cast<f32>(E[I[b], d])
          T[n]: i4 = cast<i4>(X[n])
          W[n] = select(P[n], T[n], i4(-3))
          Q[n] = cast<f32>(W[n])
          R[k:4] = cast<f32>(B[k])
        }
        """,
        C=codes(DTYPES["i4"], 3, 4),
        E=codes(DTYPES["u3"], 5, 11),
        B=codes(DTYPES["b2"], 4),
    )
    after = decoded(before)
    assert body(after) == [
        "const C: i8[3, 4]",
        "const E: u8[5, 6]",
        "const B: i8[4]",
        "Y[i:3, k:4]: f32 = cast<f32>(C[i, k]) * 2.0",
        "V[b, d:11]: f32 = cast<f32>(cast<u8, wrap>(shr(cast<u16>(E[I[b], ((3*d) // 8)]) | shl(cast<u16>(E[I[b], "
        "((3*d) // 8) + 1]), u16(8)), cast<u16>(cast<u8, wrap>(idx(((3*d) % 8))))) & u16(7)))",
        "T[n]: i8 = max(min(cast<i8>(X[n]), i8(7)), i8(-8))",
        "W[n]: i8 = select(P[n], T[n], i8(-3))",
        "Q[n]: f32 = cast<f32>(W[n])",
        "R[k:4]: f32 = cast<f32>(B[k])",
    ]
    x = np.array([-100.0, -2.5, 2.5, 7.9, np.nan], np.float32)
    inputs = [x, np.array([4, 0, 2]), np.array([True, True, True, False, True])]
    for got, want in zip(run_program(after, inputs), run_program(before, inputs), strict=True):
        np.testing.assert_array_equal(got, want)


@coded_types
def test_a_gathered_table_stays_packed(dtype: DType) -> None:
    before = program(TABLE.format(t=dtype), E=codes(dtype, 5, 11), S=np.arange(1, 6, dtype=np.float32))
    after = decoded(before)
    if dtype.bits < 8:
        assert after.data["E"].dtype == np.uint8 and after.data["E"].nbytes <= 5 * ((11 * dtype.bits + 7) // 8 + 1)
    inputs = [np.array([4, 0, 3, 3, 1, 2])]
    np.testing.assert_array_equal(run_program(after, inputs)[0], run_program(before, inputs)[0])


@coded_types
def test_every_code_keeps_its_number_through_native_types(dtype: DType) -> None:
    text = f"program f(X: f32[n]) -> (Y) {{\n  const C: {dtype}[{dtype.codes}]\n  Y[i:{dtype.codes}] = cast<f64>(C[i])\n}}\n"
    after = decoded(program(text, C=coded(np.arange(dtype.codes, dtype=np.uint8), dtype)))
    np.testing.assert_array_equal(run_program(after, [np.zeros(1, np.float32)])[0], values(dtype))


@pytest.mark.parametrize("mode", ["sat", "wrap"])
@pytest.mark.parametrize("dtype", ROUNDED, ids=str)
def test_rounding_in_native_types_is_that_of_the_type(dtype: DType, mode: str) -> None:
    """At every number of the type, half way between, just beside that, and beyond."""
    numbers = values(dtype).astype(np.float64)
    numbers = np.unique(numbers[np.isfinite(numbers)])
    middle = (numbers[:-1] + numbers[1:]) / 2
    far = numbers[-1] * np.array([1.03, 1.05, 1.0625, 1.07, 1.125, 1.13, 1.3, 2, 1e9])
    x = np.concatenate([numbers, middle, far, -far, [np.inf, -np.inf, np.nan, -0.0]]).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(0)), np.nextafter(x, np.float32(np.inf))])
    text = (
        f"program f(X: f32[n]) -> (Y) {{\n  Q[n]: {dtype} = cast<{dtype}, {mode}>(X[n])\n  Y[n] = cast<f64>(Q[n])\n}}\n"
    )
    before = program(text)
    after = decoded(before)
    got, want = run_program(after, [x])[0], run_program(before, [x])[0]
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("dtype", [t for t in CODED if t.is_bipolar], ids=str)
def test_odd_numbers_beside_a_tie(dtype: DType, source: str) -> None:
    """The nearest numbers to both sides of each tie, the least that is not 0 among them."""
    kind = DTYPES[source].numpy
    ties = np.arange(dtype.lowest - 3, dtype.highest + 4).astype(kind)
    beside = [np.nextafter(ties, kind.type(to)) for to in (-np.inf, np.inf)]
    x = np.concatenate([ties, *beside, np.array([np.nan, np.inf, -np.inf], kind)])
    before = program(f"program f(X: {source}[{len(x)}]) -> (Y) {{\n  Y[n:{len(x)}]: f32 = cast<f32>(cast<{dtype}>(X[n]))\n}}\n")
    (want,), (got,) = (run_program(p, [x]) for p in (before, DecodeCodes().apply(before)))
    np.testing.assert_array_equal(got, want)


def test_whole_numbers_wrap() -> None:
    for name in ("u1", "u5", "i1", "i4", "i7"):
        before = program(f"program f(X: i32[n]) -> (Y) {{\n  Q[n] = cast<{name}>(X[n])\n  Y[n] = cast<i32>(Q[n])\n}}\n")
        x = np.arange(-300, 300, dtype=np.int32)
        np.testing.assert_array_equal(run_program(decoded(before), [x])[0], run_program(before, [x])[0])


def test_the_greatest_of_codes_is_found_among_the_numbers() -> None:
    text = "program f(X: f32[n]) -> (Y) {\n  const C: i3[4, 6]\n  M[i:4] = max(j:6) C[i, j]\n  Y[i:4] = cast<f32>(M[i])\n}\n"
    data = codes(DTYPES["i3"], 4, 6)
    (y,) = run_program(decoded(program(text, C=data)), [np.zeros(1, np.float32)])
    assert (y == decode(data, DTYPES["i3"]).max(axis=1)).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("cascade f(X: u4[n]) -> Y {\n  Y[n] = cast<f32>(X[n])\n}\n", "input 'X' because an input of type u4"),
        ("cascade f(X: f32[n]) -> Y {\n  Y[n]: u4 = cast<u4>(X[n])\n}\n", "output 'Y' because an output of type u4"),
        (
            "cascade f(X: f32[n]) -> Y {\n  Y[n] = cast<f32>(cast<u4>(X[n]) + cast<u4>(X[n]))\n}\n",
            "add because arithmetic in u4",
        ),
        (
            "cascade f(X: f32[n]) -> Y {\n  Z[n] = cast<u4>(X[n])\n  Y[n] = cast<f32>(bitcast<i4>(Z[n]))\n}\n",
            "bitcast<i4>",
        ),
        (
            "cascade f(X: f32[n]) -> Y {\n  Z[] = sum(n) cast<u4>(X[n])\n  Y[] = cast<f32>(Z)\n}\n",
            "sum because sums in u4",
        ),
        ("cascade f(X: f32[n]) -> Y {\n  Z[n] = cast<f8e8m0>(X[n])\n  Y[n] = cast<f32>(Z[n])\n}\n", "cast<f8e8m0>"),
        ("cascade f(X: f32[n]) -> Y {\n  Z[n] = cast<f4e3m0>(X[n])\n  Y[n] = cast<f32>(Z[n])\n}\n", "cast<f4e3m0>"),
    ],
)
def test_what_has_no_native_form_is_refused(text: str, said: str) -> None:
    cascade = parse(text)
    verify(cascade)
    with pytest.raises(Unsupported, match=re.escape(said)):
        DecodeCodes().apply(program_of(cascade))


def test_a_program_without_codes_is_left_alone() -> None:
    plain = program_of(parse("cascade f(X: f32[n]) -> Y {\n  Y[n] = X[n] * 2.0\n}\n"))
    assert DecodeCodes().apply(plain) is plain
    assert codes_of(codes(DTYPES["u4"], 3)).dtype == np.uint8
