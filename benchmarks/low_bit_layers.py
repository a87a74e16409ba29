"""Linear layers with weights in codes of a few bits, as programs of the IR."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.ir.builder import Builder
from dlc.ir.codes import coded, values
from dlc.ir.dtype import BF16, DTYPES, F16, F32, I8, DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.program import Program

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layer:
    """`y[m, n] = sum(k) x[m, k] * S[n, k // group] * C[n, k]`, scales in f16.

    Attributes:
        weights: type of the codes, `f32` or `bf16` for plain numbers.
        activation: `f32`, `bf16`, or `i8` (rounded to 255 steps, one scale for each row).
    """

    weights: str
    rows: int
    terms: int
    columns: int
    group: int = 128
    activation: str = "i8"

    @property
    def name(self) -> str:
        return f"{self.weights}-{self.activation}-g{self.group}-{self.rows}x{self.terms}x{self.columns}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of codes and scales."""
        dtype = DTYPES[self.weights]
        plain = dtype in (F32, BF16)
        scales = 0 if plain else 2 * self.columns * -(-self.terms // self.group)
        return self.terms * self.columns * dtype.bits // 8 + scales


@dataclass(frozen=True)
class Turn:
    """`run` goes once through `count` layers; `bytes` are those of one layer's weights and scales."""

    run: Callable[[], object]
    count: int
    bytes: int


def codes(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Random codes that stand for finite numbers, as the IR stores them."""
    if not dtype.is_coded:
        return rng.integers(dtype.lowest, dtype.highest + 1, shape).astype(dtype.numpy)
    finite = np.flatnonzero(np.isfinite(values(dtype))).astype(np.uint8)
    return coded(finite[rng.integers(0, len(finite), shape)], dtype)


def program(layer: Layer, seed: int = 0) -> Program:
    """The layer as an importer makes it: dequantised weights, and for `i8` activations that were rounded."""
    rng, dtype = np.random.default_rng(seed), DTYPES[layer.weights]
    b = Builder("layer")
    x = b.input("x", F32, (layer.rows, layer.terms))
    if dtype in (F32, BF16):
        w = b.constant((rng.standard_normal((layer.columns, layer.terms)) / layer.terms**0.5).astype(dtype.numpy), "w")
        rows = b.cast(b.cast(x, BF16), F32) if dtype == BF16 else x
        return b.finish([b.contract("y", "mk,nk->mn", rows, b.cast(w, F32))])
    numbers = b.constant(codes(rng, dtype, (layer.columns, layer.terms)), "codes")
    largest = float(np.nanmax(np.abs(values(dtype)[np.isfinite(values(dtype))]))) if dtype.is_coded else float(dtype.highest)
    size = (rng.random((layer.columns, -(-layer.terms // layer.group))) + 0.5) / layer.terms**0.5 / largest
    scales = b.constant(size.astype(F16.numpy), "scales")

    def weight(n: IntExpr, k: IntExpr) -> Expr:
        return apply("mul", Cast(F32, numbers.at((n, k))), Cast(F32, scales.at((n, k // layer.group))))

    w = b.compute("w", [layer.columns, layer.terms], weight, F32)
    rows = x
    if layer.activation == "bf16":
        rows = b.cast(b.cast(x, BF16), F32)
    elif layer.activation == "i8":
        most = b.reduce("most", "max", [layer.rows], [layer.terms], lambda i, r: apply("abs", x.at((i[0], r[0]))), F32)
        step = b.map("step", lambda u: apply("div", apply("max", u, const(1e-20)), const(127.0)), most, dtype=F32)

        def rounded(m: IntExpr, k: IntExpr) -> Expr:
            return Cast(I8, apply("round", apply("div", x.at((m, k)), step.at((m,)))))

        q = b.compute("q", [layer.rows, layer.terms], rounded, I8)
        rows = b.compute(
            "xq", [layer.rows, layer.terms], lambda m, k: apply("mul", Cast(F32, q.at((m, k))), step.at((m,))), F32
        )
    return b.finish([b.contract("y", "mk,nk->mn", rows, w)])


__all__ = ["Layer", "Turn", "codes", "program"]
