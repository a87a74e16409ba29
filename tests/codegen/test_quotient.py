"""Quotients of quantisation, computed without a division, are those of the division: every mantissa, halves, specials."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.native import compile_mlir
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target
from dlc.codegen.tile_to_mlir import lower
from dlc.ir.builder import Builder
from dlc.ir.dtype import F32, I32, U8, DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.program import Program

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import Ran, check, targets

SCALES = [0.019999999552965164, 0.5, 3.0, 0.1, 1.9999998807907104, 1.1754944e-10, 7e9, -0.3]


def quantise(scale: float, count: int, out: DType = U8) -> Program:
    b = Builder("f")
    x = b.input("x", F32, (count,))

    def element(e: Expr) -> Expr:
        r = apply("add", apply("round", apply("div", e, const(scale, F32))), const(120.0, F32))
        return Cast(out, apply("min", apply("max", r, const(0.0, F32)), const(255.0, F32)) if out == U8 else r)

    return b.finish([b.map("q", element, x, dtype=out)])


def awkward(scale: float) -> np.ndarray:
    """Multiples of half a step and their neighbours, every exponent, and what is no number."""
    rng = np.random.default_rng(0)
    ties = (np.arange(-300, 300) / 2).astype(np.float32) * np.float32(scale)
    near = np.concatenate([ties, np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))])
    bits = rng.integers(0, 1 << 32, 4096, dtype=np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4e38, -3.4e38, 1.2e-38], np.float32)
    return np.concatenate([near, bits, special])


@targets
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("out", [U8, I32], ids=str)
def test_as_the_division(scale: float, out: DType, target: Target) -> None:
    x = awkward(scale)
    ran = check(quantise(scale, len(x), out), {}, inputs=[x], target=target, interpret=False)
    with np.errstate(all="ignore"):
        want = np.rint(x / np.float32(scale)) + np.float32(120)
    want = np.where(np.isnan(want), 0, np.clip(want, out.lowest, min(out.highest, 2**31 - 128)))
    np.testing.assert_array_equal(ran.values["q"][np.abs(want) < 2**30], want[np.abs(want) < 2**30].astype(out.numpy))


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.019999999552965164, 1.9999996423721313, 0.1])
def test_every_mantissa(scale: float) -> None:
    """With 2^24 numbers from 1 to 4: the three operations round as one division does."""
    x = np.arange(1 << 24, dtype=np.uint32) + np.uint32(0x3F800000)
    x = x.view(np.float32)
    c, r = np.float32(scale), np.float32(1) / np.float32(scale)
    near = x * r
    off = (x.astype(np.float64) - near.astype(np.float64) * float(c)).astype(
        np.float32
    )  # exact: 48 bits and a difference
    exact = (near.astype(np.float64) + off.astype(np.float64) * float(r)).astype(np.float32)
    np.testing.assert_array_equal(exact, x / c)


def code(target: Target, scale: float = 0.02) -> tuple[Ran, str]:
    ran = check(quantise(scale, 64), {}, target=target, interpret=False)
    (kernel,) = ran.lowered.values()
    return ran, compile_mlir(lower(kernel.tile, target), target, want_asm=True).asm or ""


def test_there_is_no_division_where_multiply_adds_round_once() -> None:
    for target in (AVX512, AVX2):
        assert "vdivps" not in code(target)[1]
        assert "vdivps" in code(target, 1.9999998807907104)[1], "two of its quotients would be wrong"
    assert "divps" in code(BASELINE)[1]


@targets
def test_what_is_dequantised_again(target: Target) -> None:
    """The second of two quantisers goes on from the first one's float: the same bytes as through the byte."""
    x = awkward(0.02)
    b = Builder("f")
    given = b.input("x", F32, (len(x),))

    def clamped(e: Expr, scale: float, zero: float) -> Expr:
        r = apply("add", apply("round", apply("div", e, const(scale, F32))), const(zero, F32))
        return Cast(U8, apply("min", apply("max", r, const(0.0, F32)), const(255.0, F32)))

    def again(e: Expr) -> Expr:
        whole = apply("sub", Cast(I32, clamped(e, 0.02, 117.0)), const(117, I32))
        return clamped(apply("mul", Cast(F32, whole), const(0.02, F32)), 0.03, 3.0)

    ran = check(b.finish([b.map("q", again, given, dtype=U8)]), {}, inputs=[x], target=target, interpret=False)
    with np.errstate(all="ignore"):
        first = np.clip(np.rint(x / np.float32(0.02)) + np.float32(117), 0, 255)
        first = np.where(np.isnan(first), 0, first)
        want = np.clip(np.rint((first - 117).astype(np.float32) * np.float32(0.02) / np.float32(0.03)) + 3, 0, 255)
    np.testing.assert_array_equal(ran.values["q"], want.astype(np.uint8))
    (kernel,) = ran.lowered.values()
    text = str(kernel.tile)
    assert ("cast<u8, fits>" in text) == target.has_fma and ("cast<i32" in text) != target.has_fma
