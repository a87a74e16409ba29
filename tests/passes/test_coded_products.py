"""Contractions with weights in codes: what becomes of them, that they mean the same, and what is left alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from dlc.ir.codes import coded, codes_of
from dlc.ir.coded_sums import coded_sum
from dlc.ir.dtype import DTYPES
from dlc.ir.einsum import Einsum
from dlc.ir.interpret import run_program
from dlc.ir.layout import Layout
from dlc.ir.packing import pack
from dlc.ir.parser import parse_program
from dlc.ir.program import Program, tensor_types
from dlc.ir.verify import verify
from dlc.passes.coded_products import CodedProducts
from dlc.passes.decode_codes import DecodeCodes
from dlc.passes.pipeline import BadOption

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


def test_the_stream_beside_bf16() -> None:
    """Every other byte of a word makes a pair: these are of neighbouring terms."""
    after = changed(FLOATS.replace("x: f32", "x: bf16").replace("x[m, k] *", "cast<f32>(x[m, k]) *"))
    (name,) = (c.name for c in after.consts if c.type.rank == 6)
    stream = np.asarray(after.data[name]).view(np.uint8)[0, 1, 3, 7, :, 0]
    codes = np.asarray(filled(FLOATS).data["C"]).view(np.uint8)[44:48, 7] ^ 4
    assert stream.tolist() == codes[[0, 2, 1, 3]].tolist()


@pytest.mark.parametrize(("dtype", "part"), [("f32", "j % 4"), ("bf16", "2*(j % 2) + j % 4 // 2")])
def test_codes_in_another_order_are_no_stream(dtype: str, part: str) -> None:
    """What reads them takes the order of terms for granted: it has to be the one of the rows' type."""
    text = """program f(x: f32[3, 64]) -> (y) {
      const c: u3[2, 1, 16, 32, 4, 1]
      y[m:3, n:40]: f32 = sum(j:64) cast<f32>(x[m, j]) * cast<f32>(c[n // 32, 0, j // 4, n % 32, PART, 0])
    }""".replace("x: f32", f"x: {dtype}")
    for each, found in ((part, True), ("3 - j % 4", False), ("j % 4" if dtype == "bf16" else "2*(j % 2) + j % 4 // 2", False)):
        program = parse_program(text.replace("PART", each))
        (step,) = program.body.body
        assert isinstance(step, Einsum)
        assert (coded_sum(step, tensor_types(program)) is not None) == found, each


@pytest.mark.parametrize("rows", ["i8", "bf16"])
@pytest.mark.parametrize("bits", range(1, 8))
def test_the_stream_is_the_register_layout(bits: int, rows: str) -> None:
    """A lane has a column, its slots the terms of a step: part by part of a word, and in a part what shares a byte.

    Beside bf16 the inner two of a word's four terms change places. All as the layout maps it, panel by panel and step by step.
    """
    text = BYTES.replace("C: u4", f"C: u{bits}")
    if rows == "bf16":
        text = text.replace("q: i8", "q: bf16").replace("x[m, k] * w", "cast<f32>(q[m, k]) * w")
    before = filled(text)
    packed = codes_of(CodedProducts().apply(before).data["C_packed"])
    codes = np.zeros((-(-40 // packed.shape[3]) * packed.shape[3], 64), np.uint8)
    codes[:40] = codes_of(before.data["C"])
    together = packed.shape[5]
    assert together == (8 // bits if 8 % bits == 0 else 1)
    order = (2, 1, 0) if rows == "bf16" else (1, 2, 0)
    layout = Layout((4 * together, packed.shape[3]), (together, 2, 2, packed.shape[3]), (3,), order)
    streams = packed.reshape(*packed.shape[:4], layout.slots)
    for (panel, group, step), ((lane, slot), (term, column)) in itertools.product(np.ndindex(streams.shape[:3]), layout.elements()):
        want = codes[panel * packed.shape[3] + column, group * 32 + step * 4 * together + term]
        assert streams[panel, group, step, lane, slot] == want


@pytest.mark.parametrize("option", ["dot", "bits"])
def test_costs_are_positive(option: str) -> None:
    with pytest.raises(BadOption, match=f"'{option}' of pass 'coded-products' takes at least 1"):
        CodedProducts(**{option: 0})


def test_equal_matrices_are_packed_once() -> None:
    text = BYTES.replace("-> (y)", "-> (y, v)").replace("\n}", "\n  v[m:3, n:40]: f32 = sum(k:64) x[m, k] * w[n, k]\n}")
    assert sum(c.type.rank == 6 for c in changed(text).consts) == 1


def test_packed_codes_are_not_decoded_again() -> None:
    after = changed(BYTES)
    assert [c for c in DecodeCodes().apply(after).consts if c.type.rank == 6] == [c for c in after.consts if c.type.rank == 6]


def test_panels_follow_the_registers() -> None:
    def columns(text: str, options: CodedProducts) -> int | None:
        return next(c.type.shape[3].const for c in options.apply(filled(text)).consts if c.type.rank == 6)

    assert columns(FLOATS, CodedProducts(lanes=4, registers=16)) == 8
    assert columns(FLOATS, CodedProducts()) == 32


@pytest.mark.parametrize(("rows", "columns"), [(2, 48), (3, 32), (8, 32), (9, 16), (20, 16), (21, 32)])
def test_panels_leave_room_for_the_rows(rows: int, columns: int) -> None:
    """Sums of 9 to 20 rows by one register of columns are one tile; f32 rows keep two."""
    after = changed(BYTES.replace("i8[3, 64]", f"i8[{rows}, 64]").replace("a: f32[3]", f"a: f32[{rows}]").replace("m:3", f"m:{rows}"))
    assert {c.type.shape[3].const for c in after.consts if c.type.rank == 6} == {columns}
    wide = changed(FLOATS.replace("f32[3, 64]", f"f32[{rows}, 64]").replace("m:3", f"m:{rows}"))
    assert {c.type.shape[3].const for c in wide.consts if c.type.rank == 6} == {48 if rows <= 2 else 32}
