"""Transposes: squares in registers, rows and lanes that fill none, element types that are not exchanged."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dlc.codegen.target import AVX512, Target

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import check, targets

SIZES = ((16, 16), (64, 64), (65, 130), (5, 200), (200, 5), (33, 16), (150, 83))


@targets
def test_known_sizes_and_a_second_operand(target: Target) -> None:
    for n, m in SIZES:
        text = f"""
        cascade f(X: f32[{n}, {m}], Y: f32[{m}, {n}]) -> (O) {{
          O[i:{m}, j:{n}] = X[j, i] * 2.0 + Y[i, j]
        }}"""
        ran = check(text, target=target, interpret=n < 100)
    assert f"load f32[{target.lanes} x {target.lanes}] a0" in ran.tiles[0]


@targets
def test_one_kernel_for_all_sizes(target: Target) -> None:
    text = "cascade f(X: f32[n, m]) -> (O) symbols (n in 0.., m in 0..) { O[i:m, j:n] = X[j, i] }"
    for n, m in (*SIZES, (1, 1), (0, 3), (3, 0)):
        ran = check(text, {"n": n, "m": m}, target=target, interpret=n < 20)
    assert f"load f32[{target.lanes} x {target.lanes}] a0" in ran.tiles[0]


@pytest.mark.parametrize("dtype", ["f64", "f16", "i8", "bool", "i64"])
def test_other_types(dtype: str) -> None:
    text = f"cascade f(X: {dtype}[b, 40, 33]) -> (O) {{ O[b, i:33, j:40] = X[b, j, i] }}"
    check(text, {"b": 3})


def test_a_column_of_few_rows_is_read_as_it_is() -> None:
    (tile,) = check("cascade f(X: f32[n, 3]) -> (O) { O[i:3, n] = X[n, i] }", {"n": 100}, target=AVX512).tiles
    assert "x 16] a0" in tile and "16 x 16" not in tile
