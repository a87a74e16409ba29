"""Constants, branches and extents known at compile time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.passes.samples import assert_same_result, body

from dlc.ir.dtype import DTYPES
from dlc.ir.evaluate import Block, Reader
from dlc.ir.expr import Apply, Cast, Const, const
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.ir.scalar import SCALAR_OPS
from dlc.passes.fold_constants import FoldConstants, fold_scalar


def fold(text: str, **data: np.ndarray) -> tuple[Program, Program]:
    before = replace(parse_program(text), data=data)
    return before, FoldConstants().apply(before)


def test_einsums_of_constants_become_constants() -> None:
    before, after = fold(
        """
        program f(X: f32[n, 3]) -> (O) {
          const W: f32[3, 4]
          const s: f32[1]
          V[i:4, j:3] = W[j, i] * s[0] + 2.0 * 3.0
          m[j:3] = max(i:4) V[i, j]
          O[n, i:4] = sum(j:3) X[n, j] * V[i, j] + m[j]
        }
        """,
        W=np.arange(12, dtype=np.float32).reshape(3, 4),
        s=np.array([0.5], np.float32),
    )
    assert str(after).splitlines()[1:-1] == [
        "  const V: f32[4, 3]",
        "  const m: f32[3]",
        "  O[n, i:4]: f32 = sum(j:3) X[n, j] * V[i, j] + m[j]",
    ]
    np.testing.assert_array_equal(after.data["m"], [7.5, 9.5, 11.5])
    assert_same_result(before, after, {"n": 2})


def test_views_and_index_tables_are_left_to_be_read_through() -> None:
    text = """
        program f(X: f32[512]) -> (O) {
          const W: f32[512, 512]
          V[i:512, j:512] = W[j, i]
          D[i:512, j:512]: bool = i < j
          O[i:512] = sum(j:512) select(D[i, j], V[i, j], 0.0) * X[j]
        }
        """
    before, after = fold(text, W=np.ones((512, 512), np.float32))
    assert after is before


def test_branches_and_loops_and_extents() -> None:
    before, after = fold(
        """
        program f(X: f32[s, 4]) -> (O, L, Y) {
          c[]: bool = 1.0 < 2.0
          d[]: bool = c[] ^ true
          if c {
            A[s, i:4] = X[s, i] + 1.0
            yield (A)
          } else {
            B[s, i:4] = X[s, i] * 2.0
            yield (B)
          } -> (R)
          k[]: i64 = idx(s) * 2
          bind n in 0.. = k
          O[n, i:4] = R[n // 2, i]
          loop t while d carry (H = X) {
            e[]: bool = false
            G[s, i:4] = H[s, i] * 2.0
            yield (e, G, G)
          } -> (L) collect (Y) upto m in 0..8
        }
        """
    )
    assert body(after) == [
        "A[s, i:4]: f32 = X[s, i] + 1.0",
        "R[i0:s, i1:4]: f32 = A[i0, i1]",
        "O[n:2*s, i:4]: f32 = R[(n // 2), i]",
        "L[i0:s, i1:4]: f32 = X[i0, i1]",
        "Y[i0:0, i1:s, i2:4]: f32 = 0.0",
    ]
    assert_same_result(before, after, {"s": 3})


def test_what_an_arm_yields_may_be_a_constant() -> None:
    before, after = fold(
        """
        program f(X: f32[3], C: bool[]) -> (R) {
          const W: f32[3]
          if C {
            A[i:3] = W[i] + 1.0
            yield (A)
          } else {
            B[i:3] = X[i]
            yield (B)
          } -> (R)
        }
        """,
        W=np.arange(3, dtype=np.float32),
    )
    assert "const A: f32[3]" in str(after) and "A[i:3]" not in str(after)


def test_an_index_out_of_range_stays_an_error_of_the_run() -> None:
    before, after = fold(
        """
        program f(X: f32[3]) -> (O) {
          const I: i64[2]
          const W: f32[4]
          G[i:2] = W[I[i]]
          O[i:2] = G[i] + X[i]
        }
        """,
        I=np.array([1, 9]),
        W=np.arange(4, dtype=np.float32),
    )
    for p in (before, after):
        with pytest.raises(Exception, match="9"):
            run_program(p, [np.zeros(3, np.float32)], p.data)


VALUES = (
    0,
    1,
    2,
    3,
    7,
    63,
    64,
    -1,
    -2,
    -7,
    0.5,
    -0.5,
    1.5,
    -2.5,
    1e30,
    float("inf"),
    float("-inf"),
    float("nan"),
    -0.0,
)


@given(st.sampled_from(sorted(SCALAR_OPS)), st.sampled_from(sorted(DTYPES)), st.tuples(*[st.sampled_from(VALUES)] * 3))
def test_any_operator_on_literals_is_what_the_interpreter_says(op: str, kind: str, values: tuple[float, ...]) -> None:
    entry, dtype = SCALAR_OPS[op], DTYPES[kind]
    if not dtype.native or dtype.kind not in entry.kinds:
        return
    if not dtype.is_float:
        values = tuple(max(dtype.lowest, min(dtype.highest, int(v))) if abs(v) < 100 else 5 for v in values)
    args: list[Const] = [const(v, dtype) for v in values[: entry.arity]]
    if entry.typing == "select":
        args[0] = const(bool(values[0]), DTYPES["bool"])
    e = Apply(op, tuple(args))
    folded = fold_scalar(e)
    if folded is None:  # not exact in so few bits: inside of an expression it is not rounded
        assert dtype.is_float and dtype.bits < 32
        return
    assert isinstance(folded, Const)
    expected, kind_found = Reader({}, {}).values(e, Block((), (), (), {}))
    assert folded.dtype == kind_found
    np.testing.assert_array_equal(np.asarray(folded.value), expected.astype(kind_found.numpy).astype(np.float64))


def test_casts_of_literals() -> None:
    assert fold_scalar(Cast(DTYPES["i8"], const(300.0), "sat")) == const(127, DTYPES["i8"])
    assert fold_scalar(Cast(DTYPES["i8"], const(300.0), "wrap")) == const(44, DTYPES["i8"])
    assert fold_scalar(Cast(DTYPES["f16"], const(1e-9))) == const(0.0, DTYPES["f16"])
