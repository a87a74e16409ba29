"""Contractions of bytes and of bf16 numbers in 32-bit words: every remainder, convolutions, what follows, instructions."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.native import compile_mlir
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target, parse_target
from dlc.codegen.tile_to_mlir import lower
from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, F32, I8, I32, U8, DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.program import Program
from dlc.passes.default import default_pipeline

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import Ran, check

DOT = parse_target("avx512+avx512_vnni+avx512_bf16")
LEVELS = pytest.mark.parametrize("target", [DOT, AVX512, AVX2, BASELINE], ids=str)
TYPES = pytest.mark.parametrize("types", [(U8, I8, I32), (I8, U8, I32), (BF16, BF16, F32)], ids=lambda t: f"{t[0]}x{t[1]}")
Types = tuple[DType, DType, DType]


def values(rng: np.random.Generator, dtype: DType, *shape: int) -> np.ndarray:
    if dtype.is_float:
        return rng.standard_normal(shape).astype(dtype.numpy)
    return rng.integers(dtype.lowest, dtype.highest, shape, dtype=dtype.numpy, endpoint=True)


def linear(types: Types, terms: int, columns: int) -> Program:
    left, right, total = types
    b = Builder("f")
    x = b.input("x", left, (b.symbol("m", 0), terms))
    w = b.constant(values(np.random.default_rng(columns), right, columns, terms), "w")
    y = b.contract("y", "mk,nk->mn", *(b.cast(t, total) for t in (x, w)))
    z = b.map("z", lambda u: apply("mul", Cast(F32, u), const(0.5)), y, dtype=F32)
    return b.finish([z])


def run(program: Program, target: Target, rows: int, *, interpret: bool = False) -> Ran:
    (x,) = program.params
    rng = np.random.default_rng(rows)
    terms = x.type.shape[1].const or 0
    return check(program, {"m": rows}, inputs=[values(rng, x.type.dtype, rows, terms)], target=target, interpret=interpret)


@LEVELS
@TYPES
@pytest.mark.parametrize(
    ("terms", "columns"), [(4, 17), (5, 48), (7, 97), (31, 2), (64, 64), (66, 23), (67, 31), (127, 16), (8, 113)]
)
def test_every_remainder(types: Types, terms: int, columns: int, target: Target) -> None:
    """Rows 0..17, one kernel for all; terms that do not fill a word, prime columns."""
    program = linear(types, terms, columns)
    if terms * columns * 64 < 2048:
        pytest.skip("too little work for tiles")
    for rows in (*range(18), 131):
        ran = run(program, target, rows, interpret=rows == 7)
        assert ran.strategies == ["contraction"]
    assert f"dot<{'bf16, bf16' if types[0] == BF16 else 'u8, i8'}>" in ran.tiles[0]


@LEVELS
@TYPES
def test_extreme_sums(types: Types, target: Target) -> None:
    """Integers wrap as the interpreter's do; nothing saturates on the way."""
    program = linear(types, 70, 50)
    if types[0] == BF16:
        x = np.full((5, 70), 2.0**60).astype(BF16.numpy)
        program.data["w"] = np.full((50, 70), -(2.0**60)).astype(BF16.numpy)
    else:
        x = np.full((5, 70), types[0].highest if types[0] == U8 else -128).astype(types[0].numpy)
        program.data["w"] = np.full((50, 70), types[1].highest if types[1] == U8 else -128).astype(types[1].numpy)
    check(program, {"m": 5}, inputs=[x], target=target, interpret=False)


def convolution(types: Types, channels: int, features: int, size: int, kernel: int, stride: int, pad: int) -> Program:
    left, right, total = types
    b = Builder("f")
    out = (size + 2 * pad - kernel) // stride + 1
    x = b.input("x", left, (2, channels, size, size))
    padded = x.pad([0, 0, pad, pad], [0, 0, pad, pad], const(0.0 if left.is_float else 3, left)) if pad else x
    w = b.constant(values(np.random.default_rng(0), right, features, channels, kernel, kernel), "w")

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        at = padded.at((i[0], r[0], i[2] * stride + r[1], i[3] * stride + r[2]))
        return apply("mul", Cast(total, at), Cast(total, w.at((i[1], *r))))

    y = b.reduce("y", "sum", [2, features, out, out], [channels, kernel, kernel], element, total)
    return b.finish([b.map("z", lambda u: apply("max", u, const(0.0 if total.is_float else 0, total)), y)])


CONVOLUTIONS = [(3, 20, 11, 7, 2, 3), (2, 40, 29, 5, 2, 0), (16, 24, 9, 3, 1, 1), (17, 5, 8, 3, 2, 1), (32, 48, 7, 1, 1, 0), (6, 7, 6, 2, 1, 0)]


@LEVELS
@TYPES
@pytest.mark.parametrize("shape", CONVOLUTIONS, ids=str)
def test_convolutions(types: Types, shape: tuple[int, ...], target: Target) -> None:
    """Channels last; kernels of few channels run along the pixels, to the end of the last word, over zeros."""
    channels, features, size, kernel, stride, pad = shape
    program = convolution(types, channels, features, size, kernel, stride, pad)
    x = values(np.random.default_rng(1), types[0], 2, channels, size, size)
    ran = check(program, {}, inputs=[x], target=target, interpret=target == DOT)
    assert "contraction" in ran.strategies
    assert any("dot<" in t for t in ran.tiles)


@LEVELS
@TYPES
def test_both_operands_computed(types: Types, target: Target) -> None:
    """Attention's products: columns that are no constant are packed by a kernel of their own."""
    left, right, total = types
    b = Builder("f")
    n = b.symbol("n", 1)
    x, w = b.input("x", left, (3, 9, 37)), b.input("w", right, (3, n, 37))
    y = b.contract("y", "bmk,bnk->bmn", *(b.cast(t, total) for t in (x, w)))
    program = b.finish([y])
    rng = np.random.default_rng(0)
    for columns in (1, 5, 50):
        inputs = [values(rng, left, 3, 9, 37), values(rng, right, 3, columns, 37)]
        ran = check(program, {"n": columns}, inputs=inputs, target=target, interpret=columns == 5)
        assert any("dot<" in t for t in ran.tiles)


def test_instructions() -> None:
    """What each level is for, in full registers and with nothing spilt in the loop."""
    wanted = {DOT: ("vpdpbusd", "zmm"), AVX512: ("vpmaddwd", "zmm"), AVX2: ("vpmaddwd", "ymm"), BASELINE: ("pmaddwd", "xmm")}
    for target, (instruction, register) in wanted.items():
        ran = run(linear((U8, I8, I32), 256, 192), target, 24)
        (kernel,) = ran.lowered.values()
        asm = compile_mlir(lower(kernel.tile, target), target, want_asm=True).asm or ""
        lines = [line for line in asm.splitlines() if instruction in line]
        assert len(lines) >= 8 and any(register in line for line in lines)
        assert (target == DOT) == ("vpdpbusd" in asm)
        if target != DOT:
            assert "zmm" not in asm or target == AVX512


def test_an_odd_term_is_read_alone() -> None:
    """It has no neighbour that counts: what lies there is not read, for an infinity times 0 is none."""
    program = convolution((BF16, BF16, F32), 3, 64, 30, 7, 2, 3)
    x = values(np.random.default_rng(1), BF16, 2, 3, 30, 30)
    ran = check(program, {}, inputs=[x], target=DOT, interpret=False)
    tiles = "".join(ran.tiles)
    assert "dot<" in tiles and "view<u16>" in tiles and "mask" not in tiles[tiles.index("dot<") :]


def test_full_tiles_stay_rolled() -> None:
    """Three words of a window are a loop, though LLVM would write them out, and keep in registers what neighbours share."""
    ran = check(convolution((BF16, BF16, F32), 3, 64, 30, 7, 2, 3), {}, target=DOT, interpret=False)
    (kernel,) = (k for k in ran.lowered.values() if "dot<" in str(k.tile))
    asm = compile_mlir(lower(kernel.tile, DOT), DOT, want_asm=True).asm or ""
    lines = [line.split()[0] for line in asm.splitlines() if line.split()]
    first = lines.index("vdpbf16ps")
    assert lines[first:].index("jne") < 40 and "vmovaps" not in lines[first : first + lines[first:].index("jne")]


def test_bf16_rows_are_finished_one_by_one() -> None:
    """Each with its own look for subnormal numbers; bytes, which need none, as a tile."""
    for types, stores in (((BF16, BF16, F32), 6), ((U8, I8, I32), 1)):
        ran = run(linear(types, 64, 64), DOT, 6)
        tile_ = ran.tiles[0][: ran.tiles[0].index("if ")]
        assert tile_.count("store ") == stores


def test_strict_sums_keep_small_numbers() -> None:
    """Without words bf16 products are summed by f32 multiply-adds, which take numbers below 2^-126 for what they are."""
    program = linear((BF16, BF16, F32), 64, 48)
    program.data["w"] = np.full((48, 64), 1e38).astype(BF16.numpy)
    x = np.full((6, 64), 1e-39).astype(BF16.numpy)
    passes = default_pipeline(16, 32, "strict")
    ran = check(program, {"m": 6}, inputs=[x], target=DOT, passes=passes, interpret=False)
    assert "dot<" not in ran.tiles[0]
