"""Common sub-Einsums and constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tests.passes.samples import assert_same_result, body, rewrite

from dlc.ir.einsum import Einsum
from dlc.ir.parser import parse_program
from dlc.passes.common_einsums import CommonEinsums, canonical
from dlc.passes.dead_code import DeadCode

BEFORE = """
program f(X: f32[n, n], C: bool[], S: f32[4]) -> (O, R, F) {
  const V: f32[4]
  const W: f32[4]
  A[i:n, j:n] = exp(X[i, j])
  B[p:n, q:n] = exp(X[p, q])
  D[p:n, q:n] = exp(X[q, p])
  a[i:n] = sum(j:n) A[i, j]
  b[j:n] = sum(i:n) B[j, i]
  O[i:n] = a[i] + b[i] + D[i, i] + V[0] + W[0]
  if C {
    E[i:n] = sum(k:n) A[i, k]
    G[i:n] = E[i] * 2.0
    yield (G)
  } else {
    H[i:n] = sum(k:n) A[k, i]
    yield (H)
  } -> (R)
  scan t:4 carry (s = S) {
    u[i:4] = s[i] + V[t]
    v[k:4] = s[k] + W[t]
    w[k:4] = u[k] * v[k]
    yield (w)
  } -> (F)
}
"""


def test_one_of_each_is_left() -> None:
    before = replace(parse_program(BEFORE), data={n: np.arange(4, dtype=np.float32) for n in "VW"})
    after = CommonEinsums().apply(before)
    assert body(after) == [
        "const V: f32[4]",
        "A[i:n, j:n]: f32 = exp(X[i, j])",
        "D[p:n, q:n]: f32 = exp(X[q, p])",
        "a[i:n]: f32 = sum(j:n) A[i, j]",
        "O[i:n]: f32 = a[i] + a[i] + D[i, i] + V[0] + V[0]",
        "if C {",
        "G[i:n]: f32 = a[i] * 2.0",
        "yield (G)",
        "} else {",
        "H[i:n]: f32 = sum(k:n) A[k, i]",
        "yield (H)",
        "} -> (R)",
        "scan t:4 carry (s = S) {",
        "u[i:4]: f32 = s[i] + V[t]",
        "w[k:4]: f32 = u[k] * u[k]",
        "yield (w)",
        "} -> (F)",
    ]
    assert_same_result(before, after, {"n": 3})


def test_yielded_twins_both_stay() -> None:
    before, after = rewrite(
        """
        cascade f(X: f32[n]) -> (A, B) {
          A[i:n] = exp(X[i])
          B[i:n] = exp(X[i])
        }
        """,
        CommonEinsums(),
    )
    assert after is before


def test_different_einsums_stay_different() -> None:
    texts = [
        "A[i:n, j:n] = X[i, j]",
        "A[i:n, j:n] = X[j, i]",
        "A[i:n, j:n]: f32 = X[i, j] where i < j",
        "A[i:n, j:n]: f32 = sum(k:n) X[i, k]",
        "A[i:n, j:n]: f32 = sum(k:n) X[k, j]",
        "A[i:n, j:n]: f32 = max(k:n) X[k, j]",
        "A[i:n, j:n]: f32 = X[i, j] + 0.0",
        "A[i:n, j:n]: f32 = X[i, j] + (-0.0)",
    ]
    steps = [parse_program(f"cascade f(X: f32[n, n]) -> (A) {{\n{t}\n}}").body.body[0] for t in texts]
    forms = [canonical(s) for s in steps if isinstance(s, Einsum)]
    assert len(set(forms)) == len(texts)
    for text, form in zip(texts, forms, strict=True):
        renamed = text.replace("i:", "a:").replace("j:", "i:").replace("[i, ", "[a, ").replace(", i]", ", @]")
        renamed = renamed.replace(", j", ", i").replace("[j,", "[i,").replace("@", "a").replace("i < j", "a < i")
        step = parse_program(f"cascade f(X: f32[n, n]) -> (A) {{\n{renamed}\n}}").body.body[0]
        assert isinstance(step, Einsum)
        assert canonical(step) == form, (text, renamed)


def test_dead_code_goes() -> None:
    before, after = rewrite(
        """
        program f(X: f32[n]) -> (O) {
          const W: f32[n]
          A[i:n] = X[i] + W[i]
          B[i:n] = A[i] * 2.0
          O[i:n] = X[i]
        }
        """,
        DeadCode(),
    )
    assert body(after) == ["O[i:n]: f32 = X[i]"]
