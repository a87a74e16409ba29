"""Inner products: every remainder of rows, columns and terms, with what follows them, and large operands that stream."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from dlc.codegen.inner_product import tile_of
from dlc.codegen.lower import lower_kernel
from dlc.codegen.prefetch import streamed_vectors
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target
from dlc.compiler import run_passes
from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, F16, F64, DType
from dlc.ir.extent import int_expr, sym
from dlc.ir.parser import parse_program

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import TARGETS, check, targets

EPILOGUE = """
cascade f(A: f32[{m}, {k}], B: f32[{n}, {k}], C: f32[{n}], R: f32[{m}, {n}]) -> (S, O) {{
  S[m:{m}, n:{n}] = sum(r:{k}) A[m, r] * B[n, r]
  O[m:{m}, n:{n}] = tanh(S[m, n] * 0.25 + C[n]) + R[m, n]
}}"""


@targets
def test_every_remainder_of_rows_columns_and_terms(target: Target) -> None:
    sizes = [(m, n, k) for m, n in ((1, 1), (1, 9), (2, 7), (3, 17), (5, 4), (7, 13), (13, 3)) for k in (16, 37)]
    for m, n, k in sizes:
        ran = check(EPILOGUE.format(m=m, n=n, k=k), target=target, interpret=k == 37, seed=m)
        if m * n > 1:
            assert ran.strategies == ["inner product"], (m, n, k)


@targets
def test_no_terms_and_no_columns(target: Target) -> None:
    b = Builder("f")
    m, k = b.symbol("m", 0), b.symbol("k", 0)
    x, y = b.input("x", F64, (m, k)), b.input("y", F64, (5, k))
    program = b.finish([b.contract("o", "mk,nk->mn", x, y)])
    for rows, terms in ((0, 3), (3, 0), (1, 1), (6, 8), (5, 21)):
        ran = check(program, {"m": rows, "k": terms}, target=target)
    assert ran.strategies == ["inner product"]


@pytest.mark.parametrize("dtype", [F64, F16, BF16], ids=str)
@targets
def test_other_types(dtype: DType, target: Target) -> None:
    b = Builder("f")
    x, y = b.input("x", dtype, (2, 3, 40)), b.input("y", dtype, (2, 19, 40))
    ran = check(b.finish([b.contract("o", "bmk,bnk->bmn", x, y)]), target=target)
    assert ran.strategies == ["inner product"]


BATCHED = {
    "columns first": "O[b, n:9, m:3] = sum(k:20) A[b, m, k] * B[b, n, k]",
    "one row": "O[b, n:9] = sum(k:20) A[b, 0, k] * B[b, n, k]",
    "heads that share keys": "O[b, h:3, n:9] = sum(k:20) A[b, h, k] * B[0, n, k]",
    "two reduced ranks": "O[m:3, n:9] = sum(b, k:20) A[b, m, k] * B[b, n, k]",
    "of a matrix with itself": "O[b, m:3, n:3] = sum(k:20) A[b, m, k] * A[b, n, k]",
    "a matrix by a vector": "O[b, n:9] = sum(k:20) A[0, 0, k] * B[b, n, k]",
}


@pytest.mark.parametrize("name", BATCHED)
@targets
def test_batches(name: str, target: Target) -> None:
    text = f"cascade f(A: f32[b, 3, 20], B: f32[b, 9, 20]) -> (O) symbols (b in 1..) {{ {BATCHED[name]} }}"
    for batch in (1, 3):
        ran = check(text, {"b": batch}, target=target)
    assert ran.strategies == ["inner product"], name


def test_a_short_sum_is_none() -> None:
    """Fewer terms than lanes, or terms that are not contiguous: no whole vector to load."""
    short = "cascade f(A: f32[b, 3, 9], B: f32[b, 9, 9]) -> (O) { O[b, m:3, n:9] = sum(k:9) A[b, m, k] * B[b, n, k] }"
    apart = "cascade f(A: f32[b, 20, 3], B: f32[b, 9, 20]) -> (O) { O[b, m:3, n:9] = sum(k:20) A[b, k, m] * B[b, n, k] }"
    for text in (short, apart):
        assert "inner product" not in check(text, {"b": 2}, target=AVX512).strategies


def test_nothing_is_packed_for_few_rows() -> None:
    text = "cascade f(A: f32[{m}, 64], B: f32[100, 64]) -> (O) {{ O[m:{m}, n:100] = sum(k:64) A[m, k] * B[n, k] }}"
    few, many = (check(text.format(m=m), target=AVX512).strategies for m in (95, 96))
    assert few == ["inner product"] and many[-1] == "contraction" and len(many) == 2


KEYS = "cascade f(Q: f32[{g}, 64], K: f32[{m}, 64]) -> (O) {{ O[g:{g}, m:{m}] = sum(e:64) Q[g, e] * K[m, e] }}"
VALUES = "cascade f(P: f32[{g}, {m}], V: f32[{m}, 64]) -> (O) {{ O[g:{g}, f:64] = sum(m:{m}) P[g, m] * V[m, f] }}"


def last_tile(text: str) -> str:
    """The tile program of the last kernel, not run."""
    program = run_passes(parse_program(text))
    return str(lower_kernel(program.kernels[-1], program.facts, AVX512).tile)


@pytest.mark.parametrize("text", [KEYS, VALUES], ids=["keys", "values"])
@pytest.mark.parametrize("rows", [1, 3, 7])
def test_what_streams_is_computed_right(text: str, rows: int) -> None:
    ran = check(text.format(g=rows, m=2 * AVX512.l2_bytes // 256 + 3), interpret=False)
    assert ("prefetch" in ran.tiles[-1]) == (rows > 1)


@pytest.mark.parametrize("text", [KEYS, VALUES], ids=["keys", "values"])
def test_several_rows_ask_ahead_for_what_streams(text: str) -> None:
    """From twice L2 on, with 2 to 8 rows; a single row leaves it to the processor, and more rows read lines again."""
    large, small = 2 * AVX512.l2_bytes // 256, AVX512.l2_bytes // 256
    asked = {g: "prefetch" in last_tile(text.format(g=g, m=large)) for g in (1, 2, 4, 8, 9)}
    assert asked == {1: False, 2: True, 4: True, 8: True, 9: False}
    assert "prefetch" not in last_tile(text.format(g=4, m=small))


def test_many_short_operands_do_not_stream() -> None:
    text = "cascade f(A: f32[b, 4, 64], B: f32[b, {n}, 64]) -> (O) symbols (b in 1..) {{ O[b, m:4, n:{n}] = sum(k:64) A[b, m, k] * B[b, n, k] }}"
    assert ["prefetch" in last_tile(text.format(n=n)) for n in (100, 127, 128)] == [False, False, True]


def test_what_streams_under_few_rows_is_read_as_it_lies() -> None:
    """Column after column with up to four rows; what is small, or has more rows, in tiles of several columns."""
    large, small = 2 * AVX512.l2_bytes // 256, AVX512.l2_bytes // 256
    for g, m, tile in ((1, large, "1, 1"), (4, large, "1, 1"), (5, large, "1, 4"), (1, small, "1, 8"), (4, small, "1, 4")):
        assert f"load f32[{tile} x 16] a1" in last_tile(KEYS.format(g=g, m=m)), (g, m)


def test_tiles_fit_the_registers() -> None:
    for target, columns in itertools.product(TARGETS, (1, 3, 100, None)):
        for rows in (None, 1, 2, 3, 4, 6, 7, 27):
            extent = int_expr(rows) if rows is not None else sym("m")
            wide = int_expr(columns) if columns is not None else sym("n")
            height, width = tile_of(extent, wide, target.lanes, target.vector_registers)
            assert height * width + height + 2 <= target.vector_registers
            assert width <= min(target.lanes, columns or 64) and width & (width - 1) == 0
            assert rows is None or height <= rows
    assert tile_of(None, int_expr(100), 16, 32) == (1, 8)
    assert tile_of(int_expr(4), int_expr(100), 16, 32) == (4, 4)
    assert tile_of(int_expr(7), int_expr(100), 16, 32) == (4, 4)


def test_streamed_panels() -> None:
    """All rows in one tile, vectors shared out evenly, and at least eight tasks."""
    assert [streamed_vectors(128, rows, 16, AVX512, 8) for rows in (1, 2, 3, 4, 8)] == [8, 8, 8, 8, 4]
    assert streamed_vectors(128, 1, 16, AVX512, 1) == 1 and streamed_vectors(128, 1, 16, AVX512, 4) == 4
    assert streamed_vectors(100, 4, 8, AVX2, 8) == 3 and streamed_vectors(5, 4, 4, BASELINE, 8) == 2
