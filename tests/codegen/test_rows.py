"""Rows: steps that share outer ranks and pass rows on in scratch; reductions along the lanes and along the others."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.target import AVX2, Target
from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I8, I32, I64, DType
from dlc.ir.expr import Index
from dlc.ir.monoid import MONOIDS

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import TARGETS, check, targets

SOFTMAX = """
cascade softmax(X: f32[p, m]) -> (O) {
  G[p] = max(m) X[p, m]
  E[p, m] = exp(X[p, m] - G[p])
  S[p] = sum(m) E[p, m]
  O[p, m] = E[p, m] / S[p]
}"""

LAYER_NORM = """
cascade norm(X: f32[p, m], R: f32[p, m], W: f32[m], B: f32[m]) -> (Y, O) {
  Y[p, m] = X[p, m] + R[p, m]
  A[p] = sum(m) Y[p, m]
  C[p] = A[p] / cast<f32>(#m)
  D[p, m] = Y[p, m] - C[p]
  V[p] = sum(m) D[p, m] * D[p, m]
  I[p] = rsqrt(V[p] / cast<f32>(#m) + 1e-5)
  O[p, m] = D[p, m] * I[p] * W[m] + B[m]
}"""

LENGTHS = (0, 1, 2, 15, 16, 17, 33, 64, 65, 200)


@targets
@pytest.mark.parametrize("text", [SOFTMAX, LAYER_NORM], ids=["softmax", "layer norm"])
def test_one_kernel_serves_every_length(text: str, target: Target) -> None:
    for m in LENGTHS:
        ran = check(text, {"p": 3, "m": m}, target=target, interpret=m in (1, 17, 65), seed=m)
    assert ran.strategies == ["rows"]
    assert "scratch" in ran.tiles[0]
    check(text, {"p": 0, "m": 5}, target=target, interpret=False)


STATIC = """
cascade softmax(X: f32[9, M]) -> (O) {
  G[p:9] = max(m:M) X[p, m]
  E[p:9, m:M] = exp(X[p, m] - G[p])
  S[p:9] = sum(m:M) E[p, m]
  O[p:9, m:M] = E[p, m] / S[p]
}"""


@pytest.mark.parametrize("m", [1, 5, 16, 20, 64, 67])
def test_static_lengths(m: int) -> None:
    for target in TARGETS:
        check(STATIC.replace("M", str(m)), target=target, interpret=target is AVX2)


def _reduced(op: str, dtype: DType, along: int) -> str:
    index = "p, m" if along else "m, p"
    return f"cascade f(X: {dtype}[{index}]) -> (O) {{ O[p] = {op}(m) X[{index}] }}"


@targets
def test_a_row_read_at_other_places_is_finished_first(target: Target) -> None:
    """Reversed, at its start, rotated, as a window: another nest, over what the first left in scratch."""
    text = """
    cascade f(X: f32[p, m]) -> (O) symbols (m in 2..) {
      G[p] = max(m) X[p, m]
      E[p, m] = exp(X[p, m] - G[p])
      F[p, m] = E[p, #m - 1 - m] + 2.0 * E[p, 0]
      H[p, m] = F[p, (m + 1) % #m] * E[p, m]
      W[p, m] = sum(j:2) H[p, (m + j) % #m] * X[p, j]
      O[p, m] = W[p, m] + H[p, m]
    }"""
    for m in (2, 15, 16, 40):
        ran = check(text, {"p": 3, "m": m}, target=target, interpret=m == 15)
    assert "rows" in ran.strategies


REDUCTIONS = [
    ("sum", F32), ("sum", F64), ("sum", F16), ("sum", BF16), ("sum", I32), ("sum", I8), ("prod", F32), ("prod", I64),
    ("max", F32), ("max", F16), ("max", I8), ("min", F64), ("min", I64), ("and", BOOL), ("or", BOOL), ("xor", I32), ("and", I32),
]  # fmt: skip


@pytest.mark.parametrize(("op", "dtype"), REDUCTIONS, ids=lambda v: str(v))
def test_reductions_along_the_lanes_and_across(op: str, dtype: DType) -> None:
    target = TARGETS[REDUCTIONS.index((op, dtype)) % 3]
    for along in (0, 1):
        for p, m in ((3, 0), (2, 1), (5, 16), (17, 37), (1, 130)):
            rng = np.random.default_rng(m)
            shape = (p, m) if along else (m, p)
            values = rng.standard_normal(shape) * 2 if dtype.is_float else rng.integers(0, 3, shape)
            check(_reduced(op, dtype, along), inputs=[values.astype(dtype.numpy)], target=target, interpret=m in (16, 37))


@targets
def test_nan_and_infinity_in_reductions(target: Target) -> None:
    """max and min keep NaN; a sum of both infinities is NaN."""
    x = np.ones((6, 37), np.float32)
    x[0, 5], x[1, 36], x[2, 0], x[2, 30] = np.nan, np.inf, np.inf, -np.inf
    x[3], x[4, 20:] = -np.inf, -np.inf
    text = "cascade f(X: f32[p, m]) -> (A, B, C) { A[p] = max(m) X[p, m]\n B[p] = min(m) X[p, m]\n C[p] = sum(m) X[p, m] }"
    check(text, inputs=[x], target=target)
    check(text.replace("f32[p, m]", "f32[m, p]").replace("X[p, m]", "X[m, p]"), inputs=[x.T.copy()], target=target)


@targets
@pytest.mark.parametrize("op", [m.name for m in MONOIDS.values() if m.arity == 2])
def test_tuple_reductions(op: str, target: Target) -> None:
    """Ties, NaN and the sides of the lanes: along the innermost rank, and across it."""
    b = Builder("f")
    m, p = b.symbol("m", 1), b.symbol("p", 1)
    x = b.input("x", F32, (p, m))
    rows = b.tuple_reduce(("v", "i"), op, (p,), (m,), lambda i, r: (x(i[0], r[0]), Index(r[0])), (F32, I64))
    cols = b.tuple_reduce(("w", "j"), op, (m,), (p,), lambda i, r: (x(r[0], i[0]), Index(r[0])), (F32, I64))
    program = b.finish([*rows, *cols])
    for pp, mm in ((1, 1), (3, 17), (20, 33)):
        values = np.random.default_rng(pp).integers(-3, 4, (pp, mm)).astype(np.float32)
        values.reshape(-1)[::11] = np.nan
        check(program, inputs=[values], target=target, interpret=mm == 17)


@targets
def test_welford(target: Target) -> None:
    text = """
    cascade f(X: f32[p, m]) -> (N, A, Q) {
      (N, A, Q)[p]: f32, f32, f32 = welford(m) (1.0, X[p, m], 0.0)
    }"""
    for m in (1, 2, 17, 100):
        check(text, {"p": 5, "m": m}, target=target, interpret=m == 17)


@targets
def test_where_domains(target: Target) -> None:
    """Domains over indices and over data, in the lanes and outside of them; what does not exist is not read."""
    text = """
    cascade f(X: f32[p, m], M: bool[p, m], K: bool[p], Y: f32[p]) -> (A, B, C, D) {
      A[p] = sum(m) X[p, m] where m <= p
      B[p] = max(m) X[p, m] where M[p, m] & m != 2
      C[p] = min(m) X[p, m] + Y[p] where K[p] | m == 1
      D[m] = sum(p) X[p, m] where M[p, m]
    }"""
    for p, m in ((1, 1), (9, 21), (20, 40)):
        check(text, {"p": p, "m": m}, target=target, interpret=m == 21)


@targets
def test_masked_softmax_in_one_kernel(target: Target) -> None:
    text = """
    cascade f(Q: f32[p, m], V: bool[m]) -> (O) symbols (m in 1.., p in 1..) {
      S[p, m] = Q[p, m] * 0.5 where m <= p & V[m]
      G[p] = max(m) S[p, m]
      E[p, m] = exp(S[p, m] - G[p])
      D[p] = sum(m) E[p, m]
      O[p, m] = ({ (E[p, m] else 0.0) when D[p] > 0.0 | 0.0 }) / max(D[p], 1e-9)
    }"""
    for p, m in ((1, 1), (5, 9), (33, 33), (7, 40)):
        check(text, {"p": p, "m": m}, target=target, interpret=m == 9)


def test_two_reduced_ranks_and_a_window() -> None:
    text = """
    cascade f(X: f32[n, h, w]) -> (A, P, W) {
      A[n] = sum(h, w) X[n, h, w]
      P[n, y:h, x:w] = max(i:3, j:3) (X[n, y + i - 1, x + j - 1] else -inf)
      W[n, y:h] = sum(i:3, w) (X[n, y + i - 1, w] else 0)
    }"""
    for target in TARGETS:
        for n, h, w in ((1, 1, 1), (2, 5, 19), (3, 4, 64)):
            check(text, {"n": n, "h": h, "w": w}, target=target, interpret=w == 19)


def test_accumulator_types() -> None:
    text = """
    cascade f(A: f16[m, k], B: i8[m, k]) -> (S, T, U) {
      S[m]: f16 = sum<f32>(k) A[m, k]
      T[m]: f32 = sum<f64>(k) cast<f32>(A[m, k])
      U[m]: i32 = sum(k) cast<i32>(B[m, k]) * cast<i32>(B[m, k])
    }"""
    for target in TARGETS:
        check(text, {"m": 4, "k": 67}, target=target)


# -- sweeps -----------------------------------------------------------------------------------------------------------


def loops(tile: str) -> int:
    return sum(line.strip().startswith(("for ", "(r")) for line in tile.splitlines())


SWEEPS = {
    "what is folded as it is made": (2, "S[p] = sum(k:64) Y[p, k]", "Y[p, m] * S[p]"),
    "two folds of a row": (2, "A[p] = sum(k:64) Y[p, k]\n B[p] = max(j:64) Y[p, j]", "Y[p, m] * A[p] + B[p]"),
    "past what it does not need": (
        2, "A[p] = sum(k:64) Y[p, k]\n C[p] = A[p] / 64.0\n B[p] = sum(j:64) Y[p, j] * Y[p, j]", "Y[p, m] * C[p] + B[p]",
    ),
    "not before the fold it waits for": (3, "A[p] = sum(k:64) Y[p, k]\n B[p] = sum(k:64) (Y[p, k] - A[p]) * Y[p, k]", "Y[p, m] + B[p]"),
    "not where it reads another point": (3, "S[p] = sum(k:64) Y[p, 63 - k] * sin(Y[p, k])", "Y[p, m] * S[p]"),
    "not over another length": (3, "A[p] = sum(k:64) Y[p, k]\n B[p] = sum(k:32) Y[p, k]", "Y[p, m] * A[p] + B[p]"),
}  # fmt: skip


@pytest.mark.parametrize("case", SWEEPS)
def test_what_shares_a_loop(case: str) -> None:
    expected, steps, last = SWEEPS[case]
    text = f"cascade f(X: f32[p, 64]) -> (O) {{\n Y[p, m:64] = exp(X[p, m])\n{steps}\n O[p, m:64] = {last}\n}}"
    for target in reversed(TARGETS):
        ran = check(text, {"p": 9}, target=target)
    assert [loops(t) for t in ran.tiles] == [2 * expected + 1], ran.tiles  # in blocks of rows, and in a loop over single ones


@targets
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])
def test_point_by_point_and_folds_of_all_types(dtype: DType, target: Target) -> None:
    """A value, its sum, its greatest, a count and a mask of it, in one loop."""
    text = f"""
    cascade f(X: {dtype}[p, m], I: i32[p, m]) -> (E, S, G, N, A) {{
      E[p, m] = exp(X[p, m])
      S[p] = sum(a) E[p, a]
      G[p] = max(b) E[p, b]
      N[p]: i32 = sum(c) I[p, c] * I[p, c]
      A[p] = and(d) E[p, d] > E[p, d] - E[p, d]
    }}"""
    for m in (1, 2, 7, 16, 31, 64, 97):
        x = (np.random.default_rng(m).standard_normal((4, m)) * 3).astype(dtype.numpy)
        x[1, m // 2], x[2, 0], x[3, m - 1] = np.nan, np.inf, -np.inf
        check(text, inputs=[x, np.arange(4 * m, dtype=np.int32).reshape(4, m)], target=target, interpret=m in (7, 97))


@targets
def test_softmax_of_special_values(target: Target) -> None:
    x = np.random.default_rng(0).standard_normal((7, 37)).astype(np.float32)
    x[0, 5], x[1, 36], x[2], x[3, ::2], x[4], x[5, 1:] = np.nan, np.inf, -np.inf, -np.inf, 1e30, -104.0
    check(SOFTMAX, inputs=[x], target=target)


# -- blocks of rows ---------------------------------------------------------------------------------------------------

NORM = """
cascade norm(X: f32[b, p, 37], W: f32[37], B: f32[p]) -> (O) {
  A[b, p] = sum(m:37) X[b, p, m]
  D[b, p, m:37] = exp(X[b, p, m] - A[b, p] / 37.0)
  V[b, p] = sum(m:37) D[b, p, m] * D[b, p, m]
  O[b, p, m:37] = D[b, p, m] / V[b, p] * W[m] + B[p]
}"""


@targets
@pytest.mark.parametrize("width", [37, 2, 256, 300])
def test_rows_in_blocks_and_those_left_over(width: int, target: Target) -> None:
    for text in (NORM, NORM.replace("f32", "f16"), NORM.replace("D[b, p, m] / V[b, p] * W[m]", "D[b, p, m] / V[b, p]")):
        for b, p in ((1, 0), (3, 1), (1, 3), (2, 4), (1, 7), (2, 9)):
            ran = check(text.replace("37", str(width)), {"b": b, "p": p}, target=target, interpret=(b, p) == (2, 9))
    many = 4 if target.vector_registers == 32 and width < 300 else 2
    assert any(f"(#p + {many - 1}) // {many}" in t for t in ran.tiles) == (width < 300), ran.tiles


@pytest.mark.parametrize("rows", [2, 3, 8, 9])
def test_a_known_number_of_rows(rows: int) -> None:
    for target in TARGETS:
        check(STATIC.replace("M", "40").replace("9", str(rows)), target=target)


def test_rows_that_are_not_alike_are_done_one_by_one() -> None:
    """A domain, an index that a tensor holds, an edge: what is read differs from row to row by more than an address."""
    text = """
    cascade f(X: f32[p, 40], I: i64[p, 40]) -> (O) {
      E[p, m:40] = LOAD
      S[p] = sum(k:40) E[p, k]
      O[p, m:40] = E[p, m] / S[p]
    }"""
    plain = "exp(X[p, m])"
    for load in (plain, "exp(X[p, I[p, m] % 40])", "exp((X[p - 1, m] else 0.0))", "exp(X[p, m]) where m <= p"):
        inputs = [np.random.default_rng(0).standard_normal((9, 40)).astype(np.float32), np.arange(360).reshape(9, 40) % 40]
        tile = check(text.replace("LOAD", load), inputs=inputs, target=AVX2).tiles[0]
        assert ("(#p + 1) // 2" in tile) == (load == plain), tile


# -- divisions by a row's value ---------------------------------------------------------------------------------------


def divisions_in_loops(tile: str) -> int:
    depth, found = 0, 0
    for line in tile.splitlines()[1:]:
        found += depth > 0 and "= div(" in line
        depth += (line.strip().startswith(("for ", "(r"))) - (depth > 0 and line.strip() == "}")
    return found


SUM = "cascade f(X: DTYPE[p, m]) -> (O) { S[p] = sum(m) X[p, m]\n O[p, m] = X[p, m] / S[p] }"
EXTREMES = (0.0, 5e-324, 1e-310, 1e-300, 1e-45, 1e-42, 2.0**-130, 2.0**-126, 1.0, 3e37, 1e38, 1e200, 1e307, np.inf, np.nan)


@targets
@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16])
@pytest.mark.filterwarnings("ignore:overflow")
def test_quotients_by_a_sum_of_every_size(dtype: DType, target: Target) -> None:
    """The divisor is subnormal, 0, near the ends of the range, infinite and NaN; the quotient has its sign and its size."""
    for m in (1, 3, 20, 64):
        x = np.random.default_rng(m).uniform(0.5, 1.0, (2 * len(EXTREMES), m))
        x = (x * np.array([*EXTREMES, *(-e for e in EXTREMES)])[:, None] / m).astype(dtype.numpy)
        x[:, 0] *= np.asarray(-0.5 if m > 1 else 1, dtype.numpy)
        ran = check(SUM.replace("DTYPE", str(dtype)), inputs=[x], target=target, interpret=m == 20)
    assert any(map(divisions_in_loops, ran.tiles)) == (dtype == F64)


@targets
def test_quotients_by_a_divisor_whose_reciprocal_is_subnormal(target: Target) -> None:
    """A product with that would be 4 units in the last place off."""
    x = np.random.default_rng(3).uniform(3.2e38, 3.4e38, (500, 1)).astype(np.float32)
    ran = check(SUM.replace("DTYPE", "f32"), inputs=[x], target=target, interpret=target is AVX2)
    assert not any(map(divisions_in_loops, ran.tiles))
    assert np.abs(ran.values["O"] - 1).max() <= 2.0**-23


EXACT = {
    "the greatest": "D[p] = max(m) X[p, m]",
    "a count": "N[p] = sum(m) cast<i32>(X[p, m] > 0.0)\n D[p] = cast<f32>(N[p])",
    "a choice": "S[p] = sum(m) X[p, m]\n D[p] = { S[p] when S[p] > 0.0 | 3.0 }",
    "a sign": "S[p] = sum(m) X[p, m]\n D[p] = 3.0 * sign(S[p])",
    "an input": "S[p] = sum(m) X[p, m]\n D[p] = Y[p]",
}


@pytest.mark.parametrize("divisor", EXACT)
def test_exact_divisors_divide(divisor: str) -> None:
    """A quotient by a number that the error model holds exact is rounded once, and no further off than that."""
    text = f"cascade f(X: f32[p, m], Y: f32[p]) -> (O) {{ {EXACT[divisor]}\n O[p, m] = X[p, m] / D[p] }}"
    for target in TARGETS:
        x = np.random.default_rng(1).standard_normal((40, 67)).astype(np.float32)
        y = np.random.default_rng(2).standard_normal(40).astype(np.float32)
        ran = check(text, inputs=[x, y], target=target, interpret=target is AVX2)
    assert any(map(divisions_in_loops, ran.tiles))


def test_rows_as_a_tile_program(golden) -> None:  # type: ignore[no-untyped-def]
    """Three sweeps over a row of 32: the second stores exponentials in scratch and sums them, the third scales them."""
    ran = check(STATIC.replace("M", "32").replace("9", "16"))
    golden(f"{ran.program.kernels[0]}\n\n{ran.tiles[0]}")
