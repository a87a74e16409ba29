"""The grouped dot product of tile programs: its meaning, its code on every level, and the instructions it becomes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.native import compile_mlir
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target, parse_target
from dlc.codegen.tile import Buffer, TileProgram, TileType
from dlc.codegen.tile_build import Builder
from dlc.codegen.tile_parse import parse
from dlc.codegen.tile_to_mlir import lower
from dlc.codegen.tile_verify import InvalidTile, verify
from dlc.ir.dtype import BF16, F32, I8, I32, U1, U8, DType
from dlc.ir.extent import int_expr

sys.path.insert(0, str(Path(__file__).parent))
from tile_harness import compare

VNNI = parse_target("avx512+avx512_vnni")
BF16_DOT = parse_target("avx512+avx512_bf16")
POPCOUNT = parse_target("avx512+avx512_vnni+avx512_vpopcntdq")
WORDS = 6


def products(left: DType, right: DType, total: DType, lanes: int) -> TileProgram:
    """Three rows by two registers of sums over `WORDS` words of each operand."""
    group = 32 // left.bits
    types = {"A": left, "B": right, "Y": total}
    b = Builder(types)
    acc = b.const(TileType(total, (3, 2), lanes), 1)
    with b.loop("k", 0, WORDS, carries=(acc,)) as k:
        x = b.view(b.load(TileType(left, (3, 1), group), "A", k.index * group, (WORDS * group, 0)), I32)
        w = b.view(b.load(TileType(right, (1, 2), group * lanes), "B", k.index * (2 * group * lanes), (0, group * lanes)), I32)
        k.yields(b.dot(left, right, x, w, k.carries[0]))
    b.store("Y", 0, k.results[0], (2 * lanes, lanes))
    sizes = {"A": ("in", 3 * WORDS * group), "B": ("const", 2 * WORDS * group * lanes), "Y": ("out", 6 * lanes)}
    buffers = tuple(Buffer(n, types[n], role, int_expr(size)) for n, (role, size) in sizes.items())
    return TileProgram(f"dot{lanes}", buffers, (), int_expr(1), "task", b.body())


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("extremes", [False, True])
def test_bytes(lanes: int, extremes: bool) -> None:
    """Exact on every level, products of 255 and -128 side by side included (where vpmaddubsw would saturate)."""
    rng = np.random.default_rng(lanes)
    a, w = rng.integers(0, 256, 3 * WORDS * 4), rng.integers(-128, 128, 2 * WORDS * 4 * lanes)
    if extremes:
        a, w = np.full_like(a, 255), np.full_like(w, -128)
    data = {"A": a.astype(np.uint8), "B": w.astype(np.int8), "Y": np.zeros(6 * lanes, np.int32)}
    result = compare(products(U8, I8, I32, lanes), data, targets=[VNNI, AVX512, AVX2, BASELINE])
    left = data["A"].reshape(3, WORDS, 1, 1, 4).astype(np.int64)
    right = data["B"].reshape(1, WORDS, 2, lanes, 4).astype(np.int64)
    np.testing.assert_array_equal(result["Y"].reshape(3, 2, lanes), 1 + (left * right).sum((1, 4)))


@pytest.mark.parametrize("lanes", [1, 4, 8, 16])
def test_bfloat16_pairs(lanes: int) -> None:
    rng = np.random.default_rng(lanes)
    a = rng.standard_normal(3 * WORDS * 2).astype(BF16.numpy)
    w = rng.standard_normal(2 * WORDS * 2 * lanes).astype(BF16.numpy)
    data = {"A": a, "B": w, "Y": np.zeros(6 * lanes, np.float32)}
    # sums of 13 terms of magnitude 1 that may cancel: the relative bound is loose, the absolute one is below
    result = compare(products(BF16, BF16, F32, lanes), data, targets=[BF16_DOT, AVX512, AVX2, BASELINE], exact=False, rtol=1e-3)
    left = a.astype(np.float64).reshape(3, WORDS, 1, 1, 2)
    right = w.astype(np.float64).reshape(1, WORDS, 2, lanes, 2)
    bound = 13 * 2.0**-24 * (1 + np.abs(left * right).sum((1, 4)))
    assert (np.abs(result["Y"].reshape(3, 2, lanes) - (1 + (left * right).sum((1, 4)))) <= bound).all()


def common_bits(lanes: int) -> TileProgram:
    """Three rows by two registers of how many bits words have in common, over `WORDS` of them."""
    b = Builder({"A": I32, "B": I32, "Y": I32})
    acc = b.const(TileType(I32, (3, 2), lanes), 1)
    with b.loop("k", 0, WORDS, carries=(acc,)) as k:
        x = b.load(TileType(I32, (3, 1), 1), "A", k.index, (WORDS, 0))
        w = b.load(TileType(I32, (1, 2), lanes), "B", k.index * (2 * lanes), (0, lanes))
        k.yields(b.dot(U1, U1, x, w, k.carries[0]))
    b.store("Y", 0, k.results[0], (2 * lanes, lanes))
    sizes = {"A": ("in", 3 * WORDS), "B": ("const", 2 * WORDS * lanes), "Y": ("out", 6 * lanes)}
    buffers = tuple(Buffer(n, I32, role, int_expr(size)) for n, (role, size) in sizes.items())
    return TileProgram(f"bits{lanes}", buffers, (), int_expr(1), "task", b.body())


@pytest.mark.parametrize("lanes", [1, 2, 4, 8, 16])
def test_bits(lanes: int) -> None:
    """Every byte beside every other, and words of ones: no sum of a word's bytes may wrap on the way."""
    rng = np.random.default_rng(lanes)
    a, w = (rng.integers(-(2**31), 2**31, n).astype(np.int32) for n in (3 * WORDS, 2 * WORDS * lanes))
    a[:3] = w[: 2 * lanes : 2] = -1
    result = compare(common_bits(lanes), {"A": a, "B": w, "Y": np.zeros(6 * lanes, np.int32)}, targets=[POPCOUNT, VNNI, AVX512, AVX2, BASELINE])
    both = a.reshape(3, WORDS, 1, 1) & w.reshape(1, WORDS, 2, lanes)
    want = 1 + np.array([int(x).bit_count() for x in both.view(np.uint32).reshape(-1)]).reshape(both.shape).sum(1)
    np.testing.assert_array_equal(result["Y"].reshape(3, 2, lanes), want)


def asm_of(program: TileProgram, target: Target) -> str:
    return compile_mlir(lower(program, target), target, want_asm=True).asm or ""


@pytest.mark.parametrize(
    ("target", "lanes", "wanted", "unwanted"),
    [
        (VNNI, 16, "vpdpbusd", "vpmaddwd"),
        (AVX512, 16, "vpmaddwd", "vpdpbusd"),
        (AVX2, 8, "vpmaddwd", "vpdpbusd"),
        (BASELINE, 4, "pmaddwd", "vpmaddwd"),
    ],
    ids=str,
)
def test_instructions_of_bytes(target: Target, lanes: int, wanted: str, unwanted: str) -> None:
    asm = asm_of(products(U8, I8, I32, lanes), target)
    assert wanted in asm and unwanted not in asm
    registers = {"avx512": "z", "avx2": "y", "baseline": "x"}[target.name]
    assert max(re.findall(r"%([xyz])mm\d", asm)) == registers
    assert re.search(r"\b(v?pbroadcastd|v?pshufd|vpdpbusd[^\n]*1to16)", asm)  # four elements of the rows in one broadcast


def test_instructions_of_bfloat16() -> None:
    assert "vdpbf16ps" in asm_of(products(BF16, BF16, F32, 16), BF16_DOT)
    for target, lanes in ((AVX512, 16), (AVX2, 8)):
        asm = asm_of(products(BF16, BF16, F32, lanes), target)
        assert "vdpbf16ps" not in asm and asm.count("vfmadd") >= 12
    assert "vfmadd" not in asm_of(products(BF16, BF16, F32, 4), BASELINE)


@pytest.mark.parametrize(
    ("target", "lanes", "wanted", "unwanted"),
    [
        (POPCOUNT, 16, ("vpopcntd",), ("vpshufb", "vpdpbusd")),
        (VNNI, 16, ("vpshufb", "vpdpbusd"), ("vpopcntd", "vpmaddubsw")),
        (AVX512, 16, ("vpshufb", "vpmaddubsw", "vpmaddwd"), ("vpopcntd",)),
        (AVX2, 8, ("vpshufb", "vpmaddubsw", "vpmaddwd"), ("popcnt", "%zmm")),
        (BASELINE, 4, ("pshufb", "pmaddubsw", "pmaddwd"), ("popcnt", "%ymm")),
        (BASELINE, 1, ("popcnt",), ("pshufb",)),
    ],
    ids=str,
)
def test_instructions_of_bits(target: Target, lanes: int, wanted: tuple[str, ...], unwanted: tuple[str, ...]) -> None:
    asm = asm_of(common_bits(lanes), target)
    assert all(w in asm for w in wanted) and not any(w in asm for w in unwanted), asm


def test_round_trip() -> None:
    program = products(U8, I8, I32, 16)
    assert "view<i32>(" in str(program) and "dot<u8, i8>(" in str(program)
    assert parse(str(program)) == program


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("dot<i8, i8>(a, b, c)", "there is no dot product of i8 and i8"),
        ("dot<u8, i8>(a, b, f)", "needs words in i32 twice and a sum in i32"),
        ("dot<bf16, bf16>(a, b, c)", "needs words in i32 twice and a sum in f32"),
        ("dot<u1, u1>(a, b, f)", "needs words in i32 twice and a sum in i32"),
        ("dot<u1, i8>(a, b, c)", "there is no dot product of u1 and i8"),
        ("dot<u8, i8>(a, e, c)", "do not broadcast"),
        ("view<i32>(h)", "are no whole number of i32"),
    ],
)
def test_what_is_refused(text: str, reason: str) -> None:
    types = "a = const i32[x 4] 1  b = const i32[x 4] 1  c = const i32[x 4] 1  f = const f32[x 4] 1.0"
    program = parse(f"tile k() task t in 1 {{ {types} e = const i32[x 8] 1 h = const u8[x 2] 1 y = {text} }}")
    with pytest.raises(InvalidTile, match=reason):
        verify(program)
