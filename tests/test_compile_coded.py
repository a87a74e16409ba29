"""Programs over types of 1 to 8 bits, compiled for every level, against the interpreter: linear layers, tables, rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import dlc
from dlc.ir.codes import coded, values
from dlc.ir.dtype import CODED, F8E8M0, DType
from dlc.ir.error_model import bounded_cascade, worst
from dlc.ir.parser import parse
from dlc.ir.program import Cascade, Program

LEVELS = ("host", "avx2", "baseline")
coded_types = pytest.mark.parametrize(("at", "dtype"), list(enumerate(CODED)), ids=lambda v: str(v))

TEXT = """
program layer(I: i64[b], A: f32[b, {k}]) -> (Y, R) {{
  const E: {t}[7, {k}]
  const C: {t}[{n}, {k}]
  const S: f16[{n}, {groups}]
  const Z: {t}[{n}, {groups}]
  const B: f32[{n}]
  X[b, k:{k}] = A[b, k] + cast<f32>(E[I[b], k])
  W[n:{n}, k:{k}] = (cast<f32>(C[n, k]) - cast<f32>(Z[n, k // {group}])) * cast<f32>(S[n, k // {group}])
  P[b, n:{n}] = sum(k:{k}) X[b, k] * W[n, k]
  Y[b, n:{n}] = P[b, n] + B[n]
  Q[b, k:{k}]: {rounded} = cast<{rounded}>(A[b, k] * 3.0)
  R[b, k:{k}] = cast<f32>(Q[b, k])
}}
"""


def some_codes(dtype: DType, rng: Any, *shape: int) -> Any:
    """Codes of numbers that a sum of products stays finite with."""
    numbers = values(dtype).astype(np.float64)
    usable = np.flatnonzero(np.isfinite(numbers) & (np.abs(numbers) < 1e4))
    return coded(usable[rng.integers(0, len(usable), shape)].astype(np.uint8), dtype)


def layer(dtype: DType, k: int, n: int, group: int, seed: int) -> Program:
    rng = np.random.default_rng(seed)
    f = dtype.format
    roundable = f is None or (f.rule not in ("scale", "fnuz") and f.mantissa > 0)
    groups = -(-k // group)
    text = TEXT.format(t=dtype, k=k, n=n, group=group, groups=groups, rounded=dtype if roundable else "u4")
    made = parse(text)
    assert isinstance(made, Program)
    data = {  # in the order of the text
        "E": some_codes(dtype, rng, 7, k),
        "C": some_codes(dtype, rng, n, k),
        "S": rng.uniform(0.5, 2, (n, groups)).astype(np.float16),
        "Z": some_codes(dtype, rng, n, groups),
        "B": rng.standard_normal(n).astype(np.float32),
    }
    return replace(made, data=data)


@coded_types
def test_a_layer_of_every_type(at: int, dtype: DType) -> None:
    """One level per type and another each time, so that every level sees every kind of type."""
    if dtype == F8E8M0:
        pytest.skip("powers of two from 2^-127 on are scales, not weights")
    k, n, group = [(40, 24, 8), (33, 17, 16), (64, 32, 64)][at % 3]
    program = layer(dtype, k, n, group, at)
    rng = np.random.default_rng(at)
    inputs = [rng.integers(0, 7, 3), rng.standard_normal((3, k)).astype(np.float32)]
    exe = dlc.compile(program, target=LEVELS[at % len(LEVELS)], cache=False)
    results = [np.asarray(y) for y in exe(*inputs)]
    cascade = Cascade("layer", (*program.params, *program.consts), program.body.body, program.results)  # type: ignore[arg-type]
    assert worst(results, bounded_cascade(cascade, [*inputs, *program.data.values()])) is None
