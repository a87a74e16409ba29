"""Taking codes apart and looking them up: every width and table size at every level, against the interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen import tile_interp
from dlc.codegen.native import compile_mlir
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target, parse_target
from dlc.codegen.tile import Buffer, TileProgram, TileType
from dlc.codegen.tile_build import Builder
from dlc.codegen.tile_parse import parse
from dlc.codegen.tile_to_mlir import lower
from dlc.codegen.tile_verify import InvalidTile, verify
from dlc.ir.dtype import F32, I8, I32, U8, UNSIGNED
from dlc.ir.extent import int_expr
from dlc.ir.packing import pack

sys.path.insert(0, str(Path(__file__).parent))
from tile_harness import native

VBMI = parse_target("avx512+avx512vbmi")
levels = pytest.mark.parametrize("target", [VBMI, AVX512, AVX2, BASELINE], ids=str)


def program(lanes: int, bits: int, table: tuple[int, ...]) -> TileProgram:
    """Three registers of codes taken apart and looked up; words looked up as f32."""
    b = Builder({"x": U8, "codes": U8, "bytes": I8, "words": I32, "floats": F32})
    codes = b.unpack(b.load(TileType(U8, (3,), lanes), "x", 0, (bits * lanes // 8,)), bits)
    b.store("codes", 0, codes, (lanes,))
    b.store("bytes", 0, b.lookup(codes, I8, table), (lanes,))
    words = b.load(TileType(I32, (), lanes // 4), "words", 0)
    b.store("floats", 0, b.lookup(words, F32, tuple(map(float, table))))
    sizes = {"x": 600, "codes": 3 * lanes, "bytes": 3 * lanes, "words": 16, "floats": 16}
    buffers = tuple(Buffer(n, t, "in" if n in ("x", "words") else "out", int_expr(sizes[n])) for n, t in b.buffers.items())
    return TileProgram("k", buffers, (), int_expr(1), "task", b.body())


@levels
@pytest.mark.parametrize("bits", range(1, 8))
def test_every_width(bits: int, target: Target) -> None:
    lanes, rng = target.vector_bits // 8, np.random.default_rng(bits)
    codes = rng.integers(0, 1 << bits, 4 * lanes).astype(np.uint8)
    stream = np.resize(pack(codes, UNSIGNED[bits - 1]), 600)
    tile = program(lanes, bits, tuple(int(v) for v in rng.integers(-128, 128, 1 << bits)))
    assert parse(str(tile)) == tile
    results = []
    for run in (lambda b: tile_interp.run(tile, b), lambda b: native(tile, b, {}, target)):
        buffers = {b.name: np.zeros(b.size.const or 0, b.dtype.numpy) for b in tile.buffers}
        buffers["x"][:] = stream
        buffers["words"][:] = np.random.default_rng(0).integers(-1000, 1000, 16)
        run(buffers)
        results.append(buffers)
    np.testing.assert_array_equal(results[0]["codes"], codes[: 3 * lanes])
    for name in ("codes", "bytes", "floats"):
        np.testing.assert_array_equal(results[0][name], results[1][name], name)


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=str)
@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_bytes_are_not_moved_one_by_one(bits: int, target: Target) -> None:
    """Of the widths that no byte holds whole; the others are taken apart by masks and shifts."""
    tile = program(target.vector_bits // 8, bits, (0,) * (1 << bits))
    asm = compile_mlir(lower(tile, target), target, want_asm=True).asm or ""
    assert "pshufb" in asm and "pinsrb" not in asm


@levels
def test_a_table_of_256(target: Target) -> None:
    """Every byte as an index."""
    lanes = target.vector_bits // 8
    table = tuple(int(v) for v in np.random.default_rng(0).integers(0, 256, 256))
    b = Builder({"x": U8, "y": U8})
    with b.loop("i", 0, 256, lanes) as loop:
        b.store("y", loop.index, b.lookup(b.load(TileType(U8, (), lanes), "x", loop.index), U8, table))
    tile = TileProgram("k", (Buffer("x", U8, "in", int_expr(256)), Buffer("y", U8, "out", int_expr(256))), (), int_expr(1), "task", b.body())
    buffers = {"x": np.arange(256, dtype=np.uint8), "y": np.zeros(256, np.uint8)}
    native(tile, buffers, {}, target)
    np.testing.assert_array_equal(buffers["y"], np.array(table, np.uint8))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("y = unpack 8 x", "codes of 8 bits are not packed"),
        ("y = lookup u8 (1, 2, 3) x", "a table of 3 elements is none: a power of two up to 256 is needed"),
        ("y = lookup f32 (1.0, 2.0) x", "there is no lookup of f32 by u8"),
        ("y = lookup u8 (1, 256) x", "the table's element 256 does not fit u8"),
    ],
)
def test_what_is_refused(line: str, reason: str) -> None:
    text = f"tile k(\n  in a: u8[64],\n) task task in 1 {{\n  x = load u8[x 64] a[0 | 1]\n  {line}\n}}\n"
    with pytest.raises(InvalidTile, match="k.tile:5:3") as caught:
        verify(parse(text))
    assert reason in str(caught.value)


def test_one_lane_of_narrow_elements_is_stored_alone() -> None:
    """LLVM joins a truncation with a masked store; of one lane it would then store 32 bits."""
    text = """
    tile k(
      in a: f32[20],
      out b: i8[20],
    ) task task in 1 {
      for i in 0 .. 20 step 16 {
        m = mask 16 below -i + 17
        x = load f32[x 16] a[i | 1] mask m pad 0
        y = cast<i8, sat>(x)
        store b[i | 1] = y mask m
      }
    }"""
    buffers = {"a": np.arange(20, dtype=np.float32), "b": np.full(20, 77, np.int8)}
    native(parse(text), buffers, {}, AVX512)
    assert buffers["b"].tolist() == [*range(17), 77, 77, 77]


def test_instructions_of_a_register() -> None:
    """Three instructions with VBMI; none of AVX-512 on lesser levels."""
    asm = compile_mlir(lower(program(64, 5, tuple(range(32))), VBMI), VBMI, want_asm=True).asm or ""
    assert asm.count("vpmultishiftqb") == 3 and "vpermb" in asm and "vpermps" in asm
    lesser = compile_mlir(lower(program(32, 5, tuple(range(32))), AVX2), AVX2, want_asm=True).asm or ""
    assert "vpshufb" in lesser and "vpermps" in lesser.replace("vpermd", "vpermps") and "%zmm" not in lesser


@levels
@pytest.mark.parametrize("half", [0, 1])
def test_halves_zipped_into_pairs(half: int, target: Target) -> None:
    """Two bytes each of two registers, as 16-bit numbers in words."""
    lanes = target.vector_bits // 8
    b = Builder({"low": U8, "high": U8, "y": I32})
    low, high = (b.load(TileType(U8, (2,), lanes), n, 0, (lanes,)) for n in ("low", "high"))
    b.store("y", 0, b.zip(low, high, half), (lanes // 4,))
    sizes = {"low": 2 * lanes, "high": 2 * lanes, "y": lanes // 2}
    buffers = tuple(Buffer(n, t, "out" if n == "y" else "in", int_expr(sizes[n])) for n, t in b.buffers.items())
    tile = TileProgram("k", buffers, (), int_expr(1), "task", b.body())
    assert parse(str(tile)) == tile
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 1 << 16, 2 * lanes).astype(np.uint16)
    expected = np.ascontiguousarray(numbers.reshape(-1, 4)[:, half::2]).reshape(-1).view(np.int32)
    for run in (lambda d: tile_interp.run(tile, d), lambda d: native(tile, d, {}, target)):
        data = {"low": (numbers & 255).astype(np.uint8), "high": (numbers >> 8).astype(np.uint8), "y": np.zeros(lanes // 2, np.int32)}
        run(data)
        np.testing.assert_array_equal(data["y"], expected)
