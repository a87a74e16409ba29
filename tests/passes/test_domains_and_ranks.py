"""Inherited domains written out; reduced ranks split."""

from __future__ import annotations

import pytest
from tests.passes.samples import assert_same_result, body, rewrite

from dlc.passes.explicit_domains import ExplicitDomains
from dlc.passes.split_ranks import SplitRanks


def test_readers_say_where_they_compute() -> None:
    before, after = rewrite(
        """
        cascade f(Q: f32[p, e], K: f32[m, e], M: bool[m], V: f32[p], W: f32[m]) -> (O, Z, Y) {
          QK[p, m] = sum(e) Q[p, e] * K[m, e] where m <= p & M[m]
          GM[p]    = max(m) QK[p, m]
          SN[p, m] = exp(QK[p, m] - GM[p])
          SD[p]    = sum(m) SN[p, m]
          O[p]     = SD[p] + 1.0
          Z[p, m]  = QK[p, m - 1] else 0.0
          T[p, m]  = V[p] where m < 2
          Y[p, m]  = (T[p, m + 1] else 1.0) + W[m]
        }
        """,
        ExplicitDomains(),
    )
    assert body(after) == [
        "QK[p, m]: f32 = sum(e) Q[p, e] * K[m, e] where m <= p & M[m]",
        "GM[p]: f32 = max(m) QK[p, m] where m <= p & M[m]",
        "SN[p, m]: f32 = exp(QK[p, m] - GM[p]) where m <= p & M[m]",
        "SD[p]: f32 = sum(m) SN[p, m] where m <= p & M[m]",
        "O[p]: f32 = SD[p] + 1.0",
        "Z[p, m]: f32 = ({ ({ QK[p, m - 1] when idx(m - 1) <= p & M[m - 1] | 0.0 }) when idx(m - 1) >= 0 | 0.0 })",
        "T[p, m]: f32 = V[p] where m < 2",
        "Y[p, m]: f32 = ({ T[p, m + 1] when idx(m + 1) < #m & idx(m + 1) < 2 | 1.0 }) + W[m]",
    ]
    assert_same_result(before, after, {"p": 5, "m": 4, "e": 3})


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        (
            "Z[s, o:5] = sum(r:24) A[r // 4, s, r % 4] * W[o, r]",
            "Z[s, o:5]: f32 = sum(r_o:6, r_i:4) A[r_o, s, r_i] * W[o, r_i + 4*r_o]",
        ),
        (
            "Z[s, o:5] = sum(r:24) B[r // 12, (r // 4) % 3, s, r % 4] * W[o, r]",
            "Z[s, o:5]: f32 = sum(r_o:2, r_i_o:3, r_i_i:4) B[r_o, r_i_o, s, r_i_i] * W[o, r_i_i + 4*r_i_o + 12*r_o]",
        ),
        ("Z[s, o:5] = sum(r:24) W[o, r // 5]", None),
        ("Z[s, o:5] = sum(r:24) W[o, (r + o) // 4]", None),
        ("Z[s, r:24] = A[r // 4, s, r % 4]", None),
        (
            "(Z[s], J[s]: i64) = argmax(r:24) (A[r // 4, s, r % 4], r)",
            "(Z, J)[s]: f32, i64 = argmax(r_o:6, r_i:4) (A[r_o, s, r_i], idx(r_i + 4*r_o))",
        ),
        (
            "Z[o:5] = sum(q:3*s) V[q // s, q % s] * W[o, 0]",
            "Z[o:5]: f32 = sum(q_o:3, q_i:s) V[q_o, q_i] * W[o, 0]",
        ),
    ],
)
def test_ranks_are_split_where_no_division_is_left(step: str, wanted: str | None) -> None:
    results = "(Z, J)" if "J" in step else "(Z)"
    text = f"""
        cascade f(A: f32[6, s, 4], B: f32[2, 3, s, 4], W: f32[5, 24], V: f32[3, s]) -> {results} {{
          {step}
        }}"""
    before, after = rewrite(text, SplitRanks())
    if wanted is None:
        assert after is before
        return
    assert body(after) == [wanted]
    assert_same_result(before, after, {"s": 3}, rtol=1e-5)
