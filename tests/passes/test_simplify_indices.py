"""Index expressions, guards, domains and unit ranks that bounds decide."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.passes.samples import assert_same_result, body, rewrite

from dlc.ir.extent import IntExpr, evaluate, int_expr, var
from dlc.ir.facts import Facts
from dlc.ir.parser import parse_program
from dlc.ir.verify import verify
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.index_facts import simplify_index
from dlc.passes.simplify_indices import SimplifyIndices

BEFORE = """
cascade f(X: f32[12, 1, 1], Y: f32[b, 768], Z: f32[4, 1]) -> (O, P, Q, R, S, T) {
  O[h:12, f:64, b:1]: f32 = sum(k:1) (X[(64*h + f)//64, b, k] else 0.0)
  P[b, h:6, g:128]: f32 = Y[b, 128*h + g] + Y[b, (128*h+g) % 256 + (128*h+g)//256]
  Q[b, i:10]: f32 = { Y[b, i] when i < 10 | Y[b, i-10] }
  R[i:4]: f32 = max(k:1) Z[i, k] where i < k + 2
  S[b, i:4]: f32 = sum(k:4) Y[b, i+k] where k < 4 & i - 5 > k
  T[i:6, b]: f32 = (Y[b, i - 1] else 0.0) + select(i < 3 & i < 6, 1.0, 2.0) + { 3.0 when i > 5 | 4.0 when i < 9 | 5.0 }
}
"""


def test_bounds_decide() -> None:
    before, after = rewrite(BEFORE, SimplifyIndices())
    assert body(after) == [
        "O[h:12, f:64, b:1]: f32 = X[h, 0, 0]",
        "P[b, h:6, g:128]: f32 = Y[b, g + 128*h] + Y[b, g + 128*(h % 2) + (h // 2)]",
        "Q[b, i:10]: f32 = Y[b, i]",
        "R[i:4]: f32 = max(k:1) Z[i, k] where i < k + 2",
        "S[b, i:4]: f32 = 0.0",
        "T[i:6, b]: f32 = (Y[b, i - 1] else 0.0) + select(i < 3, 1.0, 2.0) + 4.0",
    ]
    assert_same_result(before, after, {"b": 2})


def test_a_partial_tensor_keeps_its_default() -> None:
    before, after = rewrite(
        """
        cascade f(X: f32[n]) -> (O) {
          A[i:n] = X[i] where i < 3
          O[i:n] = A[i] else -1.0
        }
        """,
        SimplifyIndices(),
    )
    assert "else (-1.0)" in str(after)
    assert_same_result(before, after, {"n": 5})


FACTS = Facts({"i": int_expr(4), "j": int_expr(6), "k": int_expr(1)})
LEAVES = st.one_of(st.sampled_from([var("i"), var("j"), var("k")]), st.integers(-3, 14).map(int_expr))


def _grow(inner: st.SearchStrategy[IntExpr]) -> st.SearchStrategy[IntExpr]:
    positive = st.integers(1, 26)
    return st.one_of(
        st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
        st.tuples(inner, positive).map(lambda p: p[0] * p[1]),
        st.tuples(inner, positive).map(lambda p: p[0] // p[1]),
        st.tuples(inner, positive).map(lambda p: p[0] % p[1]),
    )


@settings(max_examples=300, deadline=None)
@given(st.recursive(LEAVES, _grow, max_leaves=6))
def test_every_point_keeps_its_index(e: IntExpr) -> None:
    points = dict(zip("ijk", np.meshgrid(np.arange(4), np.arange(6), np.arange(1), indexing="ij"), strict=True))
    short = simplify_index(e, FACTS)
    np.testing.assert_array_equal(evaluate(e, points) + 0 * points["i"], evaluate(short, points) + 0 * points["i"])


def test_a_condition_stays_over_the_rank_that_is_reduced() -> None:
    """Where it fails the sum is 0; on free ranks alone the sum would not exist."""
    text = "cascade f(X: f32[n, 5], B: bool[n, 2]) -> (Y) {\n  Y[n] = sum(m:5) X[n, m] where B[n, m//5]\n}"
    before, after = rewrite(text, SimplifyIndices())
    assert_same_result(before, after, {"n": 9}, rtol=1e-6)


def test_a_condition_at_one_key() -> None:
    """Its rank has one index; without the rank the sum over it would be partial, and so would what reads the sum."""
    text = """cascade f(Q: f32[6, 4], K: f32[1, 4], B: bool[6, 1], V: f32[1, 3], G: f32[6, 3]) -> (O) {
  S[p:6, m:1] = sum(e:4) Q[p, e] * K[m, e] where B[p, m]
  T[p:6, m:1] = S[p, m] * 0.5
  Y[p:6, f:3] = sum(m:1) max(T[p, m], 0.0) * V[m, f]
  O[p:6, f:3] = Y[p, f] + G[p, f]
}"""
    before = parse_program(text)
    verify(before)
    after = SimplifyIndices().apply(explicit_domains(before))
    verify(after)
    assert_same_result(before, after, {})
