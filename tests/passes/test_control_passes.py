"""Passes over control: what the host assigns, work of both arms, of every step, and of one arm alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from tests.passes.control_programs import control_program
from tests.passes.samples import assert_same_result, body, outputs, random_inputs, rewrite

import dlc
from dlc.ir.parser import parse_program
from dlc.ir.program import If, Loop, walk_statements
from dlc.ir.verify import verify
from dlc.passes.common_einsums import CommonEinsums
from dlc.passes.dead_code import DeadCode
from dlc.passes.default import DEFAULT_PIPELINE
from dlc.passes.fold_constants import FoldConstants
from dlc.passes.hoist_common import HoistCommon
from dlc.passes.hoist_invariants import HoistInvariants
from dlc.passes.host_assignments import HostAssignments
from dlc.passes.pipeline import Pass
from dlc.passes.sink import Sink

PASSES: tuple[Pass, ...] = (
    DeadCode(), CommonEinsums(), FoldConstants(), HoistCommon(), HostAssignments(), HoistInvariants(), Sink()
)  # fmt: skip
SEEDS, OFTEN = range(60), 2


def test_control_as_text(golden: Callable[[str], None]) -> None:
    before = parse_program(
        """
        program f(X: f32[n], G: bool[], K: i64[]) -> (R, S) {
          const W: f32[4]
          heavy[i:n] = sum(k:4) X[i] * W[k]
          off[] = not(G[])
          if off {
            same[i:n] = X[i]
            twin[i:n] = exp(X[i])
            yield (same, twin)
          } else {
            other[j:n] = exp(X[j])
            scaled[i:n] = heavy[i] + other[i]
            if G {
              once[i:n] = scaled[i] * 2.0
              yield (once)
            } else {
              never[i:n] = scaled[i] * 3.0
              yield (never)
            } -> (chosen)
            yield (chosen, other)
          } -> (A, B)
          N[] = 3
          loop s < N carry (H = A, F = X) {
            fixed[i:n] = B[i] * B[i]
            next[i:n] = H[i] + fixed[i] + F[i]
            yield (next, F)
          } -> (R, last) collect ()
          S[i:n] = last[i] + R[i]
        }
        """
    )
    before = replace(before, data={"W": np.arange(4, dtype=np.float32)})
    after = before
    for step in PASSES:
        after = step.apply(after)
        assert_same_result(before, after, {"n": 5})
    golden(str(after))


def test_what_an_arm_passes_on_is_assigned() -> None:
    """Both yields were kernels: a copy, and a constant; now neither arm has a statement."""
    before, after = rewrite(
        """
        program f(X: f32[3], C: bool[]) -> (Z) {
          if C {
            A[i:3] = X[i]
            yield (A)
          } else {
            B[i:3] = 2.0
            yield (B)
          } -> (R)
          Z[i:3] = R[i] + 1.0
        }
        """,
        FoldConstants(),
    )
    after = HostAssignments().apply(after)
    assert body(after) == [
        "const B: f32[3]", "if C {", "yield (X)", "} else {", "yield (B)", "} -> (R)", "Z[i:3]: f32 = R[i] + 1.0"
    ]  # fmt: skip
    assert_same_result(before, after, {})


def test_equal_arms_are_no_choice_and_results_keep_their_names() -> None:
    before, after = rewrite(
        """
        program f(X: f32[3], C: bool[]) -> (R, Z) {
          if C {
            yield (X, X)
          } else {
            A[i:3] = X[i]
            yield (A, X)
          } -> (R, S)
          Z[i:3] = S[i] + 1.0
        }
        """,
        HostAssignments(),
    )
    assert body(after) == ["R[i0:3]: f32 = X[i0]", "Z[i:3]: f32 = X[i] + 1.0"]
    assert_same_result(before, after, {})


@pytest.mark.parametrize("copy", ["X[j, i]", "X[i, j] + 0.0", "cast<f64>(X[i, j])", "X[0, j]", "X[i, j] else 0.0"])
def test_what_is_no_copy_stays(copy: str) -> None:
    kind = "f64" if "f64" in copy else "f32"
    _, after = rewrite(
        f"""
        program f(X: f32[3, 3], C: bool[], Y: {kind}[3, 3]) -> (R) {{
          if C {{
            A[i:3, j:3]: {kind} = {copy}
            yield (A)
          }} else {{
            yield (Y)
          }} -> (R)
        }}
        """,
        HostAssignments(),
    )
    assert any(line.startswith("A[") for line in body(after))


def test_a_partial_tensor_is_not_renamed() -> None:
    """Readers of the copy inherit the domain through it; the renamed read would too, but a mask might be gone by then."""
    _, after = rewrite(
        """
        cascade f(X: f32[p, m]) -> (S) {
          Y[p, m] = X[p, m] where m <= p
          Z[p, m] = Y[p, m]
          S[p] = sum(m) Z[p, m]
        }
        """,
        HostAssignments(),
    )
    assert len(body(after)) == 3


def test_conditions_are_known_in_their_arms() -> None:
    before, after = rewrite(
        """
        program f(X: f32[3], C: bool[], D: bool[]) -> (R) {
          E[] = C[] & D[]
          if E {
            if D {
              A[i:3] = X[i] + 1.0
              yield (A)
            } else {
              yield (X)
            } -> (B)
            yield (B)
          } else {
            if D {
              F[i:3] = X[i] + 2.0
              yield (F)
            } else {
              yield (X)
            } -> (G)
            yield (G)
          } -> (R)
        }
        """,
        HostAssignments(),
    )
    # in the second arm only one of C and D is known to be false, so D is asked for
    assert [s.cond for s in walk_statements(after.body) if isinstance(s, If)] == ["E", "D"]
    for c in (False, True):
        for d in (False, True):
            given = [np.arange(3, dtype=np.float32), np.asarray(c), np.asarray(d)]
            np.testing.assert_array_equal(outputs(before, given)[0], outputs(after, given)[0])


def test_states_that_nothing_changes_are_no_states() -> None:
    before, after = rewrite(
        """
        program f(X: f32[3], Y: f32[3], N: i64[]) -> (R, S) {
          loop s < N carry (H = X, K = Y, L = X) {
            A[i:3] = L[i]
            B[i:3] = H[i] + K[i] * A[i]
            yield (B, K, A)
          } -> (R, T, U) collect ()
          S[i:3] = T[i] + U[i]
        }
        """,
        HostAssignments(),
    )
    (loop,) = (s for s in walk_statements(after.body) if isinstance(s, Loop))
    assert loop.carries == (("H", "X"),)
    assert body(after)[-1] == "S[i:3]: f32 = Y[i] + X[i]"
    assert_same_result(before, after, {})


def test_values_and_states_that_nothing_reads_go() -> None:
    before, after = rewrite(
        """
        program f(X: f32[3], C: bool[], N: i64[]) -> (R) {
          if C {
            A[i:3] = X[i] + 1.0
            B[i:3] = X[i] + 2.0
            yield (A, B)
          } else {
            yield (X, X)
          } -> (P, Q)
          loop s < N carry (H = P, K = X, L = X) {
            H1[i:3] = H[i] + 1.0
            K1[i:3] = K[i] + L[i]
            L1[i:3] = L[i] * 2.0
            yield (H1, K1, L1)
          } -> (R, S, T) collect ()
          loop u < N carry (M = X) {
            M1[i:3] = M[i] + 1.0
            yield (M1)
          } -> (V) collect (W) upto w in 0..
        }
        """.replace("yield (M1)", "yield (M1, M1)"),
        DeadCode(),
    )
    text = "\n".join(body(after))
    assert "B[" not in text and "K1" not in text and "L1" not in text and "M1" not in text
    assert "-> (P)" in text and "upto w in 0.." in text  # an extent stays bound
    assert_same_result(before, after, {})


def test_a_state_that_a_needed_one_reads_stays() -> None:
    before, after = rewrite(
        """
        program f(X: f32[3], N: i64[]) -> (R) {
          loop s < N carry (H = X, K = X) {
            H1[i:3] = H[i] + K[i]
            K1[i:3] = K[i] * 2.0
            yield (H1, K1)
          } -> (R, S) collect ()
        }
        """,
        DeadCode(),
    )
    assert after is before


def test_equal_work_of_both_arms() -> None:
    before, after = rewrite(
        """
        program f(X: f32[4, 5], S: f32[4], C: bool[]) -> (R, T) {
          if C {
            A[i:4] = sum(k:5) X[i, k]
            scan t:4 carry (h = S) {
              u[i:4] = h[i] + A[t]
              yield (u)
            } -> (E)
            (V: f32[2], P: i64[2]) = library topk(A) {axis = 0, largest = true}
            D[i:4] = A[i] + E[i]
            yield (D, V)
          } else {
            B[p:4] = sum(q:5) X[p, q]
            scan w:4 carry (g = S) {
              v[j:4] = g[j] + B[w]
              yield (v)
            } -> (F)
            (M: f32[2], Q: i64[2]) = library topk(B) {axis = 0, largest = true}
            G[i:4] = B[i] - F[i]
            yield (G, M)
          } -> (R, T)
        }
        """,
        HoistCommon(),
    )
    (branch,) = (s for s in after.body.body if isinstance(s, If))
    assert [len(branch.then.body), len(branch.orelse.body)] == [1, 1]
    assert branch.then.yields[1] == branch.orelse.yields[1] == "V"
    assert_same_result(before, after, {})


@pytest.mark.parametrize(
    "second",
    ["sum(q:5) X[p, q] + 0.0", "max(q:5) X[p, q]", "sum(q:5) Y[p, q]", "sum(q:5) X[p, q] where q < 3", "sum(q:5) A2[p, q]"],
)
def test_unequal_work_stays(second: str) -> None:
    _, after = rewrite(
        f"""
        program f(X: f32[4, 5], Y: f32[4, 5], C: bool[]) -> (R) {{
          if C {{
            A1[i:4, j:5] = X[i, j] + 1.0
            A[i:4] = sum(k:5) X[i, k]
            yield (A)
          }} else {{
            A2[i:4, j:5] = X[i, j] + 2.0
            B[p:4] = {second}
            yield (B)
          }} -> (R)
        }}
        """,
        HoistCommon(),
    )
    (branch,) = after.body.body
    assert isinstance(branch, If) and len(branch.then.body) == 2


LOOP = """
program f(X: f32[4], W: f32[4, 4], I: i64[4], N: i64[], C: bool[]) -> (R) {{
  two[] = 2
  yes[] = true
  loop s < {limit}{cond} carry (H = X) {{
    A[i:4] = {work}
    B[i:4] = A[i] * H[i]
    yield ({more}B)
  }} -> (R) collect ()
}}
"""


@pytest.mark.parametrize(
    ("limit", "cond", "work", "leaves"),
    [
        ("two", "", "sum(k:4) W[i, k]", True),
        ("two", "", "X[I[i]]", True),
        ("two", " while yes", "X[I[i]]", True),
        ("two", " while C", "X[I[i]]", False),  # it may fail, in a loop that may do nothing
        ("N", "", "X[I[i]]", False),
        ("N", "", "X[I[i]] else 0.0", True),
        ("N", "", "sum(k:4) W[i, k]", True),  # small
        ("N", "", "sum(k:4, l:4096, m:4096) W[i, k] * cast<f32>(l + m)", False),
        ("two", "", "sum(k:4, l:4096, m:4096) W[i, k] * cast<f32>(l + m)", True),
        ("two", "", "H[i] + W[0, i]", False),
        ("two", "", "cast<f32>(s[]) + W[0, i]", False),
    ],
)
def test_what_leaves_a_loop(limit: str, cond: str, work: str, leaves: bool) -> None:
    text = LOOP.format(limit=limit, cond=cond, work=work, more="yes, " if cond else "")
    before = parse_program(text)
    after = HoistInvariants().apply(before)
    assert any(line.startswith("A[") for line in body(after)[:3]) == leaves
    if "4096" not in work:
        assert_same_result(before, after, {})


def test_what_leaves_scans_leaves_both() -> None:
    before, after = rewrite(
        """
        program f(X: f32[n, 4], S: f32[4]) -> (R) {
          scan t: n carry (h = S) {
            scan u:3 carry (g = h) {
              free[i:4] = sum(k:4) S[k] * S[i]
              outer[i:4] = X[t, i] * free[i]
              inner[i:4] = g[i] + outer[i] + cast<f32>(u)
              yield (inner)
            } -> (last)
            yield (last)
          } -> (R)
        }
        """,
        HoistInvariants(),
    )
    lines = body(after)
    depth = {line.split("[")[0]: sum("scan" in x for x in lines[: lines.index(line)]) for line in lines if "=" in line}
    # over no rows `free` is computed for nothing, which costs less than a launch; the inner scan does three steps
    assert (depth["free"], depth["outer"], depth["inner"]) == (0, 1, 2)
    for n in (0, 3):
        assert_same_result(before, after, {"n": n})


def test_what_one_arm_needs_sinks_into_it() -> None:
    before, after = rewrite(
        """
        program f(X: f32[4], C: bool[], D: bool[]) -> (R, U) {
          A[i:4] = exp(X[i])
          B[i:4] = A[i] + 1.0
          E[i:4] = B[i] * 2.0
          U[i:4] = X[i] + 1.0
          F[i:4] = U[i] * 3.0
          G[i:4] = X[i] - 7.0
          if C {
            if D {
              H[i:4] = E[i] + G[i]
              yield (H)
            } else {
              yield (X)
            } -> (Q)
            yield (Q)
          } else {
            K[i:4] = G[i] + F[i]
            yield (K)
          } -> (R)
        }
        """,
        Sink(),
    )
    (branch,) = (s for s in after.body.body if isinstance(s, If))
    assert [s.outs[0] for s in after.body.body] == ["U", "G", "R"]
    (inner,) = branch.then.body
    assert isinstance(inner, If) and [s.outs[0] for s in inner.then.body] == ["A", "B", "E", "H"]
    assert [s.outs[0] for s in branch.orelse.body] == ["F", "K"]
    assert_same_result(before, after, {})


def test_nothing_sinks_into_a_loop_or_below_its_condition() -> None:
    _, after = rewrite(
        """
        program f(X: f32[4], N: i64[]) -> (R, S) {
          A[i:4] = exp(X[i])
          loop s < N carry (H = X) {
            B[i:4] = H[i] + A[i]
            yield (B)
          } -> (R) collect ()
          C[] = X[0] > 1.0
          if C {
            D[i:4] = select(C[], X[i], 0.0)
            yield (D)
          } else {
            yield (X)
          } -> (S)
        }
        """,
        Sink(),
    )
    assert [s.outs[0] for s in after.body.body] == ["A", "R", "C", "S"]


@pytest.mark.parametrize("step", PASSES, ids=lambda p: p.name)
def test_random_control_means_the_same_after_each_pass(step: Pass) -> None:
    changed = 0
    for seed in SEEDS:
        before = control_program(seed)
        after = step.apply(before)
        changed += after != before
        verify(after)
        for n in range(2):
            arrays = random_inputs(before, {}, n)
            for a, b in zip(outputs(before, arrays), outputs(after, arrays), strict=True):
                np.testing.assert_array_equal(b, a)
    assert changed >= OFTEN


def test_random_control_compiled() -> None:
    """The whole pipeline and the native host program, against the interpreter."""
    assert "hoist-common,host-assignments,hoist-invariants,sink" in DEFAULT_PIPELINE
    kinds: Counter[str] = Counter()
    for seed in range(25):
        program = control_program(seed)
        kinds.update(type(s).__name__ for s in walk_statements(program.body))
        exe = dlc.compile(program, threads=1)
        for n in range(3):
            arrays = random_inputs(program, {}, n)
            got = exe(*arrays)
            for a, b in zip(outputs(program, arrays), got if isinstance(got, tuple) else (got,), strict=True):
                np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
    assert kinds["If"] > 20 and kinds["Loop"] > 20
