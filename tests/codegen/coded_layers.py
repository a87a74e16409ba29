"""Random linear layers with weights in codes: any type, shape, group and number of rows, activations f32, bf16 or i8."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlc.ir.builder import Builder
from dlc.ir.codes import coded, values
from dlc.ir.dtype import BF16, CODED, DTYPES, F8E8M0, F32, I8, DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.program import Program
from dlc.ir.view import Val

Array = Any
TYPES = (*(t.name for t in CODED if t != F8E8M0), "u8", "i8")
ACTIVATIONS = ("f32", "i8", "bf16")


def scaled_codes(b: Builder, columns: int, terms: int, group: int, codes: Val, scales: Val, zeros: Val | None) -> Val:
    """`(C - Z) * S`, f32[columns, terms]."""

    def weight(n: IntExpr, k: IntExpr) -> Expr:
        number: Expr = Cast(F32, codes.at((n, k)))
        if zeros is not None:
            number = apply("sub", number, Cast(F32, zeros.at((n, k // group))))
        return apply("mul", number, Cast(F32, scales.at((n, k // group))))

    return b.compute("w", [columns, terms], weight, F32)


@dataclass(frozen=True)
class Case:
    """`max(x @ ((C - Z) * S).T + bias, 0)`.

    Attributes:
        rows: None for a symbol; `count` is how many there are.
        zeros: type of zero points for each column and group, if any.
        per_group: whether rounded activations have a scale for each group, and not one for the whole row.
    """

    weights: str
    activation: str
    rows: int | None
    count: int
    terms: int
    columns: int
    group: int
    scales: str = "f16"
    zeros: str | None = None
    per_group: bool = False

    @property
    def streamed(self) -> bool:
        """Whether its codes are packed: one term is no sum, and bytes by bytes with one scale are the pass `integer-products`'."""
        return self.terms > 1 and not (self.weights in ("u8", "i8") and self.activation == "i8" and self.group >= self.terms)

    def program(self) -> Program:
        rng, b = np.random.default_rng(self.terms), Builder("layer")
        m: IntExpr | int = b.symbol("m", 0) if self.rows is None else self.rows
        x = b.input("x", F32, (m, self.terms))
        dtype = DTYPES[self.weights]
        codes = b.constant(random_codes(rng, dtype, (self.columns, self.terms)), "C")
        groups = -(-self.terms // self.group)
        top = float(np.abs(values(dtype)[np.isfinite(values(dtype))]).max()) if dtype.is_coded else 128.0
        sizes = (rng.random((self.columns, groups)) + 0.5) / top / self.terms**0.5
        scales = b.constant(sizes.astype(DTYPES[self.scales].numpy), "S")
        zeros = None
        if self.zeros is not None:
            zeros = b.constant(random_codes(rng, DTYPES[self.zeros], (self.columns, groups)), "Z")

        w = scaled_codes(b, self.columns, self.terms, self.group, codes, scales, zeros)
        y = b.contract("y", "mk,nk->mn", self._activations(b, x, m), w)
        bias = b.constant(rng.standard_normal(self.columns).astype(np.float32), "bias")
        z = b.compute("z", [m, self.columns], lambda i, n: apply("max", apply("add", y.at((i, n)), bias.at((n,))), const(0.0)), F32)
        return b.finish([z])

    def _activations(self, b: Builder, x: Val, m: IntExpr | int) -> Val:
        if self.activation == "f32":
            return x
        if self.activation == "bf16":
            return b.cast(b.cast(x, BF16), F32)
        size = self.group if self.per_group else self.terms
        parts = -(-self.terms // size)
        padded = x.pad([0, 0], [0, parts * size - self.terms], const(0.0)) if parts * size != self.terms else x
        most = b.reduce("most", "max", [m, parts], [size], lambda i, r: apply("abs", padded.at((i[0], i[1] * size + r[0]))), F32)
        step = b.map("step", lambda u: apply("div", apply("max", u, const(1e-20)), const(127.0)), most, dtype=F32)

        def byte(i: IntExpr, k: IntExpr) -> Expr:
            return Cast(I8, apply("round", apply("div", x.at((i, k)), step.at((i, k // size)))))

        q = b.compute("q", [m, self.terms], byte, I8)
        return b.compute("xq", [m, self.terms], lambda i, k: apply("mul", Cast(F32, q.at((i, k))), step.at((i, k // size))), F32)

    def inputs(self) -> Array:
        return np.random.default_rng(self.columns).standard_normal((self.count, self.terms)).astype(np.float32)


def random_codes(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> Array:
    """Codes that stand for finite numbers, as the IR stores them."""
    if not dtype.is_coded:
        return rng.integers(dtype.lowest, dtype.highest + 1, shape).astype(dtype.numpy)
    finite = np.flatnonzero(np.isfinite(values(dtype))).astype(np.uint8)
    return coded(finite[rng.integers(0, len(finite), shape)], dtype)


def case(number: int) -> Case:
    """The layer of this number: types and activations in turn, the rest by chance."""
    rng = np.random.default_rng(number)
    weights, activation = TYPES[number % len(TYPES)], ACTIVATIONS[number // len(TYPES) % 3]
    rows = [None, None, 1, 1, 2, 4, 7, 16, 19][rng.integers(9)]
    terms = int(rng.integers(1, 300) if rng.random() < 0.8 else rng.integers(300, 5000))
    columns = int(rng.integers(2, 110))
    group = min(terms, int(rng.choice([16, 32, 64, 128, 10, 100, terms])))
    zeros = [None, None, "u8", "u4"][rng.integers(4)] if DTYPES[weights].is_int else None
    count = rows if rows is not None else int(rng.integers(0, 40))
    scales = ["f16", "f32", "bf16"][rng.integers(3)]
    return Case(weights, activation, rows, count, terms, columns, group, scales, zeros, bool(rng.integers(2)))


__all__ = ["ACTIVATIONS", "TYPES", "Case", "case", "random_codes"]
