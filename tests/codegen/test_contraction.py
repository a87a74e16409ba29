"""Register-tiled contractions: every remainder of rows and columns, packed and streamed, with what follows them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.contraction_tiles import TileShape, choose_tile
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target
from dlc.costmodel.tiles import panel_columns
from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, F16, F32, F64, DType
from dlc.ir.expr import Cast, apply, const
from dlc.ir.extent import int_expr, sym

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import TARGETS, check, sample, targets

PLAIN = """
cascade f(A: f32[m, k], W: f32[k, n]) -> (O) {
  O[m, n] = sum(k) A[m, k] * W[k, n]
}"""

EPILOGUE = """
cascade f(A: f32[m, k], W: f32[k, n], B: f32[n], R: f32[m, n], G: f32[m]) -> (S, O) {
  S[m, n] = sum(k) A[m, k] * W[k, n]
  T[m, n] = max(S[m, n] + B[n], 0.0)
  U[m, n] = T[m, n] * G[m] + R[m, n]
  O[m, n] = tanh(U[m, n])
}"""


@targets
def test_every_remainder_of_rows_and_columns(target: Target) -> None:
    """One kernel for all sizes: rows 1..17 and more than a block, columns 1..100, K of 0, 1, odd, even."""
    for n in range(1, 101):
        m, k = (n * 7) % 17 + 1, (0, 1, 2, 3, 5, 8)[n % 6]
        ran = check(PLAIN, {"m": m, "k": k, "n": n}, target=target, interpret=n % 17 == 0, seed=n)
        assert ran.strategies == ["contraction"]
    for m in (128, 129, 131, 0):
        check(PLAIN, {"m": m, "k": 3, "n": 50}, target=target, interpret=False)


@targets
@pytest.mark.parametrize("columns", [1, 2, 7, 16, 17, 48, 49, 63, 64, 100])
def test_packed_constants(columns: int, target: Target) -> None:
    """A constant operand lies in panels, whose padding is zero and is not stored."""
    b = Builder("f")
    x = b.input("x", F32, (b.symbol("m", 0), 37))
    w = b.constant(sample(np.random.default_rng(columns), F32, (columns, 37)), "w")
    y = b.contract("y", "mk,nk->mn", x, w)
    bias = b.constant(sample(np.random.default_rng(1), F32, (columns,)), "bias")
    z = b.map("z", lambda u, v: apply("max", apply("add", u, v), const(0.0)), y, bias)
    program = b.finish([z])
    for m in (0, 1, 2, 3, 5, 8, 9, 15, 17):
        ran = check(program, {"m": m}, target=target, interpret=m == 9, seed=m)
    assert ran.strategies == (["contraction"] if columns > 1 else ran.strategies)
    if columns > 1:
        packed = next(v for k, v in ran.values.items() if "packed" in k)
        width = panel_columns(int_expr(columns), target.lanes, target.vector_registers)
        assert packed.shape == (-(-columns // width), 37, width)
        assert not packed.transpose(1, 0, 2).reshape(37, -1)[:, columns:].any()


@targets
def test_what_follows_runs_on_the_tile(target: Target) -> None:
    for m, k, n in ((1, 4, 1), (6, 9, 33), (13, 1, 100), (9, 0, 20)):
        ran = check(EPILOGUE, {"m": m, "k": k, "n": n}, target=target)
        assert ran.strategies == ["contraction"], "one kernel, its intermediate results in registers"


@targets
@pytest.mark.parametrize("dtype", [F64, F16, BF16], ids=str)
def test_other_types(dtype: DType, target: Target) -> None:
    b = Builder("f")
    x, w = b.input("x", dtype, (b.symbol("m", 0), 19)), b.input("w", dtype, (19, b.symbol("n", 0)))
    y = b.contract("y", "mk,kn->mn", x, w)
    program = b.finish([b.map("z", lambda u: apply("mul", u, u), y), y])
    for m, n in ((1, 1), (5, 9), (7, 33), (17, 50)):
        ran = check(program, {"m": m, "n": n}, target=target, interpret=m == 5)
        assert ran.strategies == ["contraction"]


@targets
def test_widened_operands(target: Target) -> None:
    """16-bit operands, an f32 product: converted as they are loaded."""
    b = Builder("f")
    x, w = b.input("x", F16, (b.symbol("m", 1), 21)), b.constant(sample(np.random.default_rng(0), BF16, (40, 21)), "w")
    wide = [b.cast(t, F32) for t in (x, w)]
    program = b.finish([b.contract("y", "mk,nk->mn", *wide)])
    for m in (1, 6):
        assert check(program, {"m": m}, target=target).strategies == ["contraction"]


BATCHED = {
    "both": "O[b, m, n] = sum(k) A[b, m, k] * B[b, k, n]",
    "shared columns": "O[b, m, n] = sum(k) A[b, m, k] * B[0, k, n]",
    "results transposed": "O[b, n, m] = sum(k) A[b, m, k] * B[b, k, n]",
    "rows transposed": "O[b, m, n] = sum(k) T[b, k, m] * B[b, k, n]",
    "columns transposed": "O[b, m, n] = sum(k) A[b, m, k] * C[b, n, k]",
    "batch inside": "O[m, b, n] = sum(k) A[b, m, k] * B[b, k, n]",
    "reduced twice": "O[m, n] = sum(b, k) A[b, m, k] * B[b, k, n]",
    "a vector": "O[b, n] = sum(k) A[b, 0, k] * B[b, k, n]",
    "heads": "O[b, h:2, m, n] = sum(e:4) D[b, m, 4*h + e] * D[b, n, 4*h + e]",
    "heads back": "O[b, m, n] = sum(r:8) E[b, r // 4, m, r % 4] * B[b, r % 4, n]",
}


SYMBOLS = "b in 1.., m in 1.., n in 1.., k in 1.., s in 1.."


@pytest.mark.parametrize("name", BATCHED)
def test_batches_and_transposes(name: str) -> None:
    text = f"""
    cascade f(A: f32[b, m, k], B: f32[b, k, n], C: f32[b, n, k], D: f32[b, s, 8], E: f32[b, 2, m, 4], T: f32[b, k, m]) -> (O) symbols ({SYMBOLS}) {{
      {BATCHED[name]}
    }}"""
    text = text.replace("m, n] = sum(e:4)", "m:s, n:s] = sum(e:4)")
    if "B[b, r % 4" in text:
        text = text.replace("B: f32[b, k, n]", "B: f32[b, 4, n]").replace("A: f32[b, m, k]", "A: f32[b, m, 4]")
        text = text.replace("C: f32[b, n, k]", "C: f32[b, n, 4]").replace("k in 1.., ", "").replace(", T: f32[b, k, m]", "")
    target = TARGETS[list(BATCHED).index(name) % 3]
    for b, m, n, k in ((1, 1, 1, 1), (2, 9, 50, 7), (3, 8, 16, 4)):
        sizes = {"b": b, "m": m, "n": n, "k": k, "s": m}
        check(text, {s: v for s, v in sizes.items() if f"{s} in" in text}, target=target, interpret=b == 2)


def test_no_columns_is_no_contraction() -> None:
    """Row-wise products and squares have no rank of one operand alone: they are reductions along the lanes."""
    ran = check("cascade f(A: f32[m, k]) -> O { O[m] = sum(k) A[m, k] * A[m, k] }", {"m": 5, "k": 67})
    assert ran.strategies == ["points"]


def test_an_integer_product_is_no_contraction() -> None:
    text = "cascade f(A: i32[m, k], B: i32[k, n]) -> O { O[m, n] = sum(k) A[m, k] * B[k, n] }"
    for target in TARGETS:
        assert check(text, {"m": 3, "k": 5, "n": 37}, target=target).strategies == ["points"]


@pytest.mark.parametrize("target", [AVX512, AVX2, BASELINE], ids=lambda t: t.name)
def test_tiles_fit_the_registers(target: Target) -> None:
    """Sums, a row of vectors and a broadcast; rows are split evenly, unknown ones in eights at most."""
    for columns in range(target.lanes, 4 * target.lanes + 1, target.lanes):
        for rows in (None, int_expr(1), int_expr(7), int_expr(14), int_expr(50), int_expr(196), sym("m")):
            tile = choose_tile(columns, target.lanes, rows, target)
            assert tile.columns == columns
            if tile.vectors <= 2 or target.vector_registers >= 32:
                broadcast = target.vector_registers < 32  # with 32 it can be an operand in memory
                assert tile.rows * tile.vectors + tile.vectors + broadcast <= target.vector_registers
            if rows is not None and rows.const is not None:
                assert -(-rows.const // tile.rows) * tile.rows - rows.const < tile.rows
                assert tile.rows <= rows.const
    assert choose_tile(48, 16, sym("m"), AVX512) == TileShape(8, 3, 16)
    assert choose_tile(16, 8, sym("m"), AVX2) == TileShape(6, 2, 8)


@pytest.mark.parametrize(("rows", "heights"), [(14, [5, 4]), (16, [6, 4]), (18, [6]), (131, [6, 5])])
def test_a_known_rest_is_one_tile(rows: int, heights: list[int]) -> None:
    """Rows 0..9 of 14 by fives and then four: not three, and one that waits for its own sums."""
    b = Builder("f")
    x, w = b.input("x", F32, (rows, 64)), b.constant(sample(np.random.default_rng(0), F32, (128, 64)), "w")
    ran = check(b.finish([b.contract("y", "mk,nk->mn", x, w)]), {}, target=AVX512)
    assert [int(n) for n in re.findall(r"const f32\[(\d+), 4 x 16\] 0.0", ran.tiles[0])] == heights


@pytest.mark.parametrize(
    ("rows", "terms", "inner"),
    [(800, 64, "panel"), (800, 4096, "block"), (400, 64, "block"), (None, 64, "block")],
    ids=["near", "large", "few blocks", "perhaps few"],
)
def test_tasks_that_follow_each_other_share_what_is_large(rows: int | None, terms: int, inner: str) -> None:
    """Rows where there are many and the columns' operand is near as a whole, else a panel of columns."""
    b = Builder("f")
    x = b.input("x", F32, (rows or b.symbol("m", 1), terms))
    w = b.constant(sample(np.random.default_rng(0), F32, (512, terms)), "w")
    sizes = {} if rows else {"m": 800}
    ran = check(b.finish([b.contract("y", "mk,nk->mn", x, w)]), sizes, target=AVX512, interpret=False)
    panels = 8
    assert (f"(task % {panels})" in ran.tiles[0]) == (inner == "panel")


def test_contraction_as_a_tile_program(golden) -> None:  # type: ignore[no-untyped-def]
    """The text of a small one: a packed constant, bias, a masked last panel, and rows that one tile covers."""
    b = Builder("f")
    x = b.input("x", F32, (5, 32))
    w = b.constant(sample(np.random.default_rng(0), F32, (100, 32)), "w")
    bias = b.constant(np.zeros(100, np.float32), "bias")
    y = b.contract("y", "mk,nk->mn", x, w)
    ran = check(b.finish([b.map("z", lambda u, v: apply("add", u, v), y, bias)]), {})
    golden(f"{ran.program.kernels[0]}\n\n{ran.tiles[0]}")


@targets
def test_a_cast_between_is_kept(target: Target) -> None:
    """The sum may keep more bits than f16, within the error model's bound, when f32 arithmetic follows."""
    b = Builder("f")
    x, w = b.input("x", F16, (5, 64)), b.input("w", F16, (64, 33))
    y = b.contract("y", "mk,kn->mn", x, w)
    check(b.finish([b.compute("z", (5, 33), lambda i, j: apply("add", Cast(F32, y(i, j)), const(0.1)), F32)]), target=target)


def test_the_example_of_the_documentation_is_what_is_made() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "codegen.md").read_text()
    b = Builder("f")
    x = b.input("x", F32, (6, 64))
    w, bias = b.constant(np.ones((48, 64), np.float32), "w"), b.constant(np.ones(48, np.float32), "bias")
    y = b.contract("y", "mk,nk->mn", x, w)
    program = b.finish([b.map("z", lambda u, v: apply("max", apply("add", u, v), const(0.0)), y, bias)])
    for line in str(program).splitlines()[3:5]:
        assert line.strip() in page
    ran = check(program, {}, interpret=False)
    (kernel,) = ran.program.kernels
    shown = re.findall(r"```(?:ein|tile)\n(.*?)```", page, re.S)
    assert [s.replace(" k(", f" {kernel.name}(") for s in shown] == [f"{kernel}\n", ran.tiles[0]]
