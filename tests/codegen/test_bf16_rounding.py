"""Tiles of f32 rounded to bf16: every number on the border of two, subnormals among others and alone, and the instructions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.native import compile_mlir
from dlc.codegen.normal_sums import normal_sums
from dlc.codegen.target import AVX2, AVX512, Target, parse_target
from dlc.codegen.tile import Buffer, TileProgram, TileType
from dlc.codegen.tile_build import Builder
from dlc.codegen.tile_parse import parse
from dlc.codegen.tile_to_mlir import lower
from dlc.ir.dtype import BF16, F32
from dlc.ir.extent import int_expr

sys.path.insert(0, str(Path(__file__).parent))
from tile_harness import compare

ROUNDS = parse_target("avx512+avx512_bf16")
SLOTS = 3


def rounding(lanes: int, count: int) -> TileProgram:
    """Three registers of `lanes` numbers at a time, `count` numbers in all."""
    types = {"X": F32, "Y": BF16}
    b = Builder(types)
    with b.loop("i", 0, count, SLOTS * lanes) as each:
        x = b.load(TileType(F32, (SLOTS,), lanes), "X", each.index, (lanes,))
        b.store("Y", each.index, b.cast(x, BF16), (lanes,))
    buffers = tuple(Buffer(n, types[n], role, int_expr(count)) for n, role in (("X", "in"), ("Y", "out")))
    return TileProgram(f"round{lanes}", buffers, (), int_expr(1), "task", b.body())


def borders() -> np.ndarray:
    """Every bf16 number, the middle between it and the next, and both sides of each."""
    high = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    bits = (high | np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)).ravel()
    return bits.view(np.float32)


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("mixed", [False, True], ids=["in order", "mixed"])
def test_every_border(lanes: int, mixed: bool) -> None:
    """In order, most registers have no subnormal numbers and some have nothing else; mixed, one in 128 numbers is subnormal."""
    x = borders()
    if mixed:
        x = np.random.default_rng(lanes).permutation(x)
    x = x[: x.size - x.size % (SLOTS * lanes)]
    data = {"X": x, "Y": np.zeros(x.size, BF16.numpy)}
    result = compare(rounding(lanes, x.size), data, targets=[ROUNDS, AVX512, AVX2])
    with np.errstate(invalid="ignore"):
        want = x.astype(BF16.numpy).astype(np.float32)
    got = result["Y"].astype(np.float32)
    assert np.array_equal(got, want, equal_nan=True) and np.array_equal(np.signbit(got), np.signbit(want))


@pytest.mark.parametrize("slot", range(SLOTS))
@pytest.mark.parametrize("value", [2.0**-149, -(2.0**-130), 1.5 * 2.0**-127, 0.0, 2.0**-126])
def test_one_small_number(slot: int, value: float) -> None:
    """It is not lost whichever register it is in; the others are rounded all the same."""
    x = np.full(SLOTS * 16, 1 + 2.0**-8 + 2.0**-20, np.float32)
    x[16 * slot + 5] = value
    result = compare(rounding(16, x.size), {"X": x, "Y": np.zeros(x.size, BF16.numpy)}, targets=[ROUNDS])
    got = result["Y"].astype(np.float32)
    assert got[16 * slot + 5] == np.float32(value).astype(BF16.numpy) and (np.delete(got, 16 * slot + 5) == 1 + 2.0**-7).all()


def asm(target: Target, lanes: int) -> str:
    return compile_mlir(lower(rounding(lanes, 96), target), target, want_asm=True).asm or ""


def test_instructions() -> None:
    """Registers of 16 numbers are rounded in pairs."""
    text = asm(ROUNDS, 8)
    assert text.count("vcvtneps2bf16") == text.count("vfpclassps") >= SLOTS
    text = asm(ROUNDS, 16)
    assert text.count("vcvtne2ps2bf16") == text.count("vcvtneps2bf16") == text.count("vfpclassps") // SLOTS >= 1
    assert "vcvtne" not in asm(AVX512, 8) + asm(AVX512, 16)
    assert "vcvtne" not in asm(ROUNDS, 4)  # no such register is looked at


def rounded_twice(slots: int, count: int) -> TileProgram:
    """Numbers rounded to bf16, as f32, doubled and rounded again."""
    types = {"X": F32, "Y": BF16, "Z": F32}
    b = Builder(types)
    with b.loop("i", 0, count, slots * 16) as each:
        x = b.load(TileType(F32, (slots,), 16), "X", each.index, (16,))
        z = b.cast(b.cast(x, BF16), F32)
        b.store("Z", each.index, z, (16,))
        b.store("Y", each.index, b.cast(b.op("add", z, z), BF16), (16,))
    buffers = tuple(Buffer(n, types[n], role, int_expr(count)) for n, role in (("X", "in"), ("Y", "out"), ("Z", "out")))
    return TileProgram("twice", buffers, (), int_expr(1), "task", b.body())


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("mixed", [False, True], ids=["in order", "mixed"])
def test_a_rounded_number_goes_on_as_f32(slots: int, mixed: bool) -> None:
    """From whichever half of a pair it is in, or from a register of its own."""
    x = borders()
    if mixed:
        x = np.random.default_rng(slots).permutation(x)
    x = x[: x.size - x.size % (slots * 16)]
    data = {"X": x, "Y": np.zeros(x.size, BF16.numpy), "Z": np.zeros(x.size, np.float32)}
    result = compare(rounded_twice(slots, x.size), data, targets=[ROUNDS])
    with np.errstate(invalid="ignore", over="ignore"):
        once = x.astype(BF16.numpy).astype(np.float32)
        twice = (once + once).astype(BF16.numpy).astype(np.float32)
    for got, want in ((result["Z"], once), (result["Y"].astype(np.float32), twice)):
        assert np.array_equal(got, want, equal_nan=True) and np.array_equal(np.signbit(got), np.signbit(want))


SUMS = """
tile k(in A: bf16[4], in B: bf16[64], in C: f32[32], out Y: bf16[32]) task t in 1 {
  c = const f32[2 x 16] BEGIN
  e = load f32[2 x 16] C[0; 16 | 1]
  (s) = for j in 0 .. 2 step 1 carry (outer = INIT) {
    (r) = for i in 0 .. 2 step 1 carry (inner = outer) {
      a = load bf16[1 x 2] A[0; 0 | 1]
      b = load bf16[2 x 32] B[0; 32 | 1]
      v = view<i32>(a)
      w = view<i32>(b)
      d = dot<bf16, bf16>(v, w, inner)
      yield (d)
    }
    z = add(r, r)
    yield (YIELD)
  }
  y = cast<bf16, sat>(s)
  store Y[0; 16 | 1] = y
}
"""


@pytest.mark.parametrize(
    ("begin", "init", "end", "sure"),
    [
        ("0.0", "c", "r", True),
        ("-2.0", "c", "r", True),
        ("1.0e-40", "c", "r", False),  # a loop may have no rounds
        ("0.0", "e", "r", False),
        ("0.0", "c", "z", False),
        ("0.0", "c", "e", False),
    ],
)
def test_sums_of_the_instruction_are_known_to_be_normal(begin: str, init: str, end: str, sure: bool) -> None:
    text = SUMS.replace("BEGIN", begin).replace("INIT", init).replace("YIELD", end)
    program = parse(text)
    assert ("s" in normal_sums(program)) == ("outer" in normal_sums(program)) == sure
    assert "d" in normal_sums(program) and "z" not in normal_sums(program) and "e" not in normal_sums(program)
    asm = compile_mlir(lower(program, ROUNDS), ROUNDS, want_asm=True).asm or ""
    assert ("vfpclassps" in asm) != sure and "vcvtne2ps2bf16" in asm


def test_a_widened_number_is_not_rounded_again() -> None:
    b = Builder({"X": BF16, "Y": BF16})
    x = b.load(TileType(BF16, (), 16), "X", 0)
    wide = b.cast(x, F32)
    assert b.cast(wide, BF16) == x
    assert b.cast(b.op("add", wide, wide), BF16) != x
