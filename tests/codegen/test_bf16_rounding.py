"""Tiles of f32 rounded to bf16: every number on the border of two, subnormals among others and alone, and the instructions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.native import compile_mlir
from dlc.codegen.target import AVX2, AVX512, Target, parse_target
from dlc.codegen.tile import Buffer, TileProgram, TileType
from dlc.codegen.tile_build import Builder
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


@pytest.mark.parametrize("lanes", [8, 16])
def test_instructions(lanes: int) -> None:
    text = asm(ROUNDS, lanes)
    assert text.count("vcvtneps2bf16") == text.count("vfpclassps") >= SLOTS
    assert "vcvtneps2bf16" not in asm(AVX512, lanes)
    assert "vcvtneps2bf16" not in asm(ROUNDS, 4)  # no such register is looked at


def test_a_widened_number_is_not_rounded_again() -> None:
    b = Builder({"X": BF16, "Y": BF16})
    x = b.load(TileType(BF16, (), 16), "X", 0)
    wide = b.cast(x, F32)
    assert b.cast(wide, BF16) == x
    assert b.cast(b.op("add", wide, wide), BF16) != x
