"""Linear layers of activations and weights of a few bits each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from coded_layers import random_codes, scaled_codes

from dlc.ir.builder import Builder
from dlc.ir.dtype import DTYPES, F32
from dlc.ir.extent import IntExpr
from dlc.ir.program import Program


@dataclass(frozen=True)
class Layer:
    """`q @ ((C - Z) * S).T`, q and C numbers of a few bits."""

    rows: str
    weights: str
    count: int | None
    terms: int
    columns: int
    group: int
    zeros: str | None = None

    def program(self) -> Program:
        rng, b = np.random.default_rng(self.terms), Builder("layer")
        m: IntExpr | int = b.symbol("m", 0) if self.count is None else self.count
        x = b.input("x", F32, (m, self.terms))
        groups = -(-self.terms // self.group)
        codes = b.constant(random_codes(rng, DTYPES[self.weights], (self.columns, self.terms)), "C")
        scales = b.constant(rng.random((self.columns, groups)).astype(np.float16), "S")
        zeros = None
        if self.zeros == "f16":
            zeros = b.constant(rng.standard_normal((self.columns, groups)).astype(np.float16), "Z")
        elif self.zeros is not None:
            zeros = b.constant(random_codes(rng, DTYPES[self.zeros], (self.columns, groups)), "Z")

        w = scaled_codes(b, self.columns, self.terms, self.group, codes, scales, zeros)
        q = b.cast(b.cast(x, DTYPES[self.rows]), F32)
        return b.finish([b.contract("y", "mk,nk->mn", q, w)])

    def inputs(self, count: int) -> Any:
        return (np.random.default_rng(self.columns).standard_normal((count, self.terms)) * 4).astype(np.float32)


__all__ = ["Layer"]
