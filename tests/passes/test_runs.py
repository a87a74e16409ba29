"""Runs go on past control that has nothing to do with them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.passes.control_programs import control_program
from tests.passes.samples import assert_same_result, outputs, random_inputs

from dlc.ir.parser import parse_program
from dlc.ir.program import Launch, Program, Region
from dlc.ir.verify import verify
from dlc.passes.fuse import Fuse
from dlc.passes.rewrite import map_regions
from dlc.passes.runs import longer_runs

TEXT = """
program f(X: f32[4, 8], V: f32[8, 8], C: bool[], N: i64[]) -> (R, {results}) {{
  A[i:4, j:8] = sum(k:8) X[i, k] * V[k, j]
  {between}
  B[i:4, j:8] = exp(A[i, j])
  {more}
}}
"""
BRANCH = """if C {
    D[i:4, j:8] = X[i, j] + 1.0
    yield (D)
  } else {
    yield (X)
  } -> (R)"""


def program(results: str = "B", between: str = BRANCH, more: str = "") -> Program:
    return parse_program(TEXT.format(results=results, between=between, more=more))


def outs(p: Program) -> list[str]:
    return [s.outs[0] if s.outs else "" for s in longer_runs(p.body.body, p.results)]


def test_an_only_reader_joins_its_operand() -> None:
    before = program()
    assert outs(before) == ["A", "B", "R"]
    after = Fuse().apply(before)
    launches = [s for s in after.body.body if isinstance(s, Launch)]
    assert [s.outs for s in launches] == [("B",)]  # the sum stays in registers
    assert_same_result(before, after, {}, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "order"),
    [
        (program("A, B"), ["A", "R", "B"]),  # A is stored anyway
        (program("B, E", more="E[i:4, j:8] = A[i, j] * 2.0"), ["A", "R", "B", "E"]),
        (program(between=BRANCH.replace("X[i, j] + 1.0", "A[i, j] + 1.0")), ["A", "R", "B"]),
        (program("E", more="E[i:4, j:8] = B[i, j] + R[i, j]"), ["A", "B", "R", "E"]),
        (program("E", more="E[i:4] = sum(j:8) B[i, j]"), ["A", "B", "E", "R"]),
        (
            program(between="bind n in 0..8 = N\n  " + BRANCH, more="E[i:n] = B[0, i]", results="E"),
            ["A", "B", "", "R", "E"],
        ),
    ],
    ids=["a result", "two readers", "the branch reads it", "a chain up to the branch", "a chain", "an extent"],
)
def test_what_may_move_and_what_not(given: Program, order: list[str]) -> None:
    assert outs(given) == order
    verify(given.with_body(type(given.body)(longer_runs(given.body.body, given.results), given.results)))


def test_what_depends_on_the_branch_stays() -> None:
    given = program("B", more="")
    text = str(given).replace("exp(A[i, j])", "exp(A[i, j] + R[i, j])")
    assert outs(parse_program(text)) == ["A", "R", "B"]


def test_random_control_in_longer_runs() -> None:
    moved = 0
    for seed in range(300):
        before = control_program(seed)
        longer = map_regions(before, lambda r: Region(longer_runs(r.body, r.yields), r.yields))
        if longer == before:
            continue
        verify(longer)
        after = Fuse().apply(before)
        verify(after)
        moved += 1
        for n in range(2):
            arrays = random_inputs(before, {}, n)
            for a, b in zip(outputs(before, arrays), outputs(after, arrays), strict=True):
                np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)
    assert moved > 3
