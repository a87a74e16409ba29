"""Contractions with weights in codes: what becomes of them, that they mean the same, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dlc.ir.codes import coded
from dlc.ir.coded_sums import coded_sum
from dlc.ir.dtype import DTYPES
from dlc.ir.einsum import Einsum
from dlc.ir.interpret import run_program
from dlc.ir.packing import pack
from dlc.ir.parser import parse_program
from dlc.ir.program import Program, tensor_types
from dlc.ir.verify import verify
from dlc.passes.coded_products import CodedProducts
from dlc.passes.decode_codes import DecodeCodes

BYTES = """
program f(q: i8[3, 64], a: f32[3]) -> (y) {
  const C: u4[40, 64]
  const Z: u8[40, 2]
  const S: f16[40, 2]
  x[m:3, k:64]: f32 = cast<f32>(q[m, k]) * a[m]
  w[n:40, k:64]: f32 = (cast<f32>(C[n, k]) - cast<f32>(Z[n, k // 32])) * cast<f32>(S[n, k // 32])
  y[m:3, n:40]: f32 = sum(k:64) x[m, k] * w[n, k]
}
"""
FLOATS = """
program f(x: f32[3, 64]) -> (y) {
  const C: i3[64, 40]
  const S: f16[40, 2]
  w[k:64, n:40]: f32 = cast<f32>(C[k, n]) * cast<f32>(S[n, k // 32])
  y[m:3, n:40]: f32 = sum(k:64) x[m, k] * w[k, n]
}
"""


def filled(text: str) -> Program:
    """The program with random constants."""
    program, rng = parse_program(text), np.random.default_rng(0)
    for c in program.consts:
        shape = tuple(e.const or 0 for e in c.type.shape)
        dtype = c.type.dtype
        if dtype.is_coded:
            program.data[c.name] = coded(rng.integers(0, dtype.codes, shape, dtype=np.uint8), dtype)
        elif dtype.is_float:
            program.data[c.name] = (rng.random(shape) + 0.5).astype(dtype.numpy)
        else:
            program.data[c.name] = rng.integers(0, 16, shape).astype(dtype.numpy)
    return program


def inputs(program: Program) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = [(p.type.dtype, tuple(e.const or 0 for e in p.type.shape)) for p in program.params]
    return [
        rng.standard_normal(s).astype(d.numpy) if d.is_float else rng.integers(-127, 128, s).astype(d.numpy) for d, s in shapes
    ]


def changed(text: str) -> Program:
    """After the pass: valid, with the same results, and with sums of codes."""
    before = filled(text)
    after = CodedProducts().apply(before)
    verify(after)
    given = inputs(before)
    for a, b in zip(run_program(before, given), run_program(after, given), strict=True):
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=2e-5, atol=2e-5 * np.abs(a).max())
    types = tensor_types(after)
    assert any(isinstance(s, Einsum) and coded_sum(s, types) for s in after.body.body)
    return after


@pytest.mark.parametrize(("name", "text"), [("bytes", BYTES), ("floats", FLOATS)])
def test_what_it_looks_like(name: str, text: str, golden: Callable[..., None]) -> None:
    golden(str(changed(text)), name)


@pytest.mark.parametrize("dtype", ["u1", "i2", "t2", "t5", "b3", "b1", "u5", "i7", "f4e2m1", "f6e2m3", "i1"])
def test_zero_points_of_every_kind_of_number(dtype: str) -> None:
    """Against bytes: whole numbers in i32, halves doubled; a table where codes are on no line."""
    changed(BYTES.replace("u4", dtype))
    changed(BYTES.replace("u4", dtype).replace("- cast<f32>(Z[n, k // 32])", "").replace("  const Z: u8[40, 2]\n", ""))
    changed(BYTES.replace("u4", dtype).replace("cast<f32>(Z[n, k // 32])", "2.5").replace("  const Z: u8[40, 2]\n", ""))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("y[m:3, n:40]: f32 = sum(k:64) x[m, k] * w[n, k]", "y[n:40, m:3]: f32 = sum(k:64) w[n, k] * x[m, k]"),
        ("cast<f32>(S[n, k // 32])", "cast<f32>(S[n, 0])"),  # one scale for the row: after the sum
        ("q: i8[3, 64]", "q: i8[3, 3, 64]"),
    ],
)
def test_forms_that_mean_the_same(old: str, new: str) -> None:
    text = BYTES.replace(old, new)
    if "q: i8[3, 3" in new:
        text = text.replace("q[m, k]", "q[1, m, k]")
    changed(text)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cast<f32>(S[n, k // 32])", "cast<f32>(S[n, k % 2])"),  # not one for a group
        ("sum(k:64) x[m, k] * w[n, k]", "max(k:64) x[m, k] * w[n, k]"),
        ("sum(k:64) x[m, k] * w[n, k]", "sum(k:64) x[m, k] * w[n, k] where k <= n"),
        ("sum(k:64) x[m, k] * w[n, k]", "sum(k:64) x[m, k] * w[n, k] * w[n, k]"),
        ("y[m:3, n:40]: f32", "y[m:3, n:40]: f64"),
        ("const C: u4[40, 64]", "const C: u8[40, 64]"),  # bytes by bytes
    ],
)
def test_what_is_left_alone(old: str, new: str) -> None:
    text = BYTES.replace(old, new)
    if "u8[40, 64]" in new:
        text = text.replace("k // 32", "0")
    if "f64" in new:
        text = text.replace("x[m, k] * w[n, k]", "cast<f64>(x[m, k]) * cast<f64>(w[n, k])")
    program = filled(text)
    verify(program)
    assert CodedProducts().apply(program) is program


def test_the_stream_of_a_panel() -> None:
    """The bytes in memory: a panel's columns by words of four terms, codes of a byte eight terms apart."""
    after = changed(BYTES)
    (name,) = (c.name for c in after.consts if c.type.rank == 6)
    packed = pack(np.asarray(after.data[name]).view(np.uint8), DTYPES["u4"]).reshape(2, 2, 4, 32, 4)
    codes = np.asarray(filled(BYTES).data["C"]).view(np.uint8)
    for n, k in ((0, 0), (5, 13), (33, 63), (39, 32)):
        byte = packed[n // 32, k // 32, k % 32 // 8, n % 32, k % 4]
        assert byte >> 4 * (k // 4 % 2) & 15 == codes[n, k]
    assert not packed[1, :, :, 8:].any(), "columns that do not exist"


def test_equal_matrices_are_packed_once() -> None:
    text = BYTES.replace("-> (y)", "-> (y, v)").replace("\n}", "\n  v[m:3, n:40]: f32 = sum(k:64) x[m, k] * w[n, k]\n}")
    assert sum(c.type.rank == 6 for c in changed(text).consts) == 1


def test_packed_codes_are_not_decoded_again() -> None:
    after = changed(BYTES)
    assert [c for c in DecodeCodes().apply(after).consts if c.type.rank == 6] == [c for c in after.consts if c.type.rank == 6]


def test_panels_follow_the_registers() -> None:
    small = CodedProducts(lanes=4, registers=16).apply(filled(FLOATS))
    assert next(c.type.shape[3].const for c in small.consts if c.type.rank == 6) == 8
