"""Pieces that a loop decides: cut along tasks, inner loops and lanes; bounds that are symbols; what is left to a choice."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.pieces import parts_of
from dlc.codegen.target import AVX512, Target
from dlc.ir.dtype import BOOL
from dlc.ir.expr import Apply, Const, Expr, Index, Piecewise, apply, const
from dlc.ir.extent import IntExpr, evaluate, int_expr, sym, var
from dlc.ir.facts import Facts, SymbolFact
from dlc.ir.scalar import SCALAR_OPS

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import check, targets

FACTS = Facts({"r": int_expr(9)}, {"#a": SymbolFact(0, None), "#b": SymbolFact(0, None)})


def guard(op: str, left: IntExpr, right: IntExpr) -> Expr:
    return apply(op, Index(left), Index(right))


def holds(e: Expr, at: dict[str, int]) -> bool:
    """The truth of a guard at a point."""
    if isinstance(e, Const):
        return bool(e.value)
    assert isinstance(e, Apply)
    args = [evaluate(a.expr, at) if isinstance(a, Index) else holds(a, at) for a in e.args]
    return bool(SCALAR_OPS[e.op].meaning(*args))


@pytest.mark.parametrize("op", ["lt", "le", "ge", "gt"])
@pytest.mark.parametrize("slope", [1, -1])
@pytest.mark.parametrize("swapped", [False, True])
def test_every_comparison_is_decided_as_it_is(op: str, slope: int, swapped: bool) -> None:
    """For each bound inside, at and beyond the ends: the parts cover the range once, and the guard is what it was."""
    for bound in range(-2, 12):
        sides = (slope * var("r") + 3, int_expr(slope * bound + 3))
        g = guard(op, *(sides[::-1] if swapped else sides))
        e = Piecewise(((g, const(1.0)),), const(2.0))
        seen = []
        for part in parts_of([e], "r", int_expr(9), FACTS):
            lo, hi = part.lo.const, part.hi.const
            assert lo is not None and hi is not None
            chosen = part.choose(e)
            for r in range(lo, hi):
                assert chosen == const(1.0 if holds(g, {"r": r}) else 2.0), (bound, r)
            seen += range(lo, hi)
        assert seen == list(range(9))


def test_conjunctions_and_negations() -> None:
    inside = apply("and", guard("ge", var("r"), int_expr(2)), guard("lt", var("r"), int_expr(5)))
    for g in (inside, apply("not", inside), apply("or", guard("lt", var("r"), int_expr(1)), inside)):
        e = Piecewise(((g, const(1.0)),), const(2.0))
        parts = parts_of([e], "r", int_expr(9), FACTS)
        assert len(parts) > 2
        for part in parts:
            for r in range(part.lo.const or 0, part.hi.const or 0):
                assert part.choose(e) == const(1.0 if holds(g, {"r": r}) else 2.0)


def test_bounds_that_are_symbols_are_cut_where_their_order_is_known() -> None:
    a, b = sym("a"), sym("b")
    e = Piecewise(((guard("lt", var("r"), a), const(1.0)), (guard("lt", var("r"), a + b), const(2.0))), const(3.0))
    parts = parts_of([e], "r", int_expr(9), FACTS)
    for sizes in itertools.product(range(5), range(12)):
        env = dict(zip(("#a", "#b"), sizes, strict=True))
        seen = []
        for part, value in zip(parts, (1.0, 2.0, 3.0), strict=True):
            assert part.choose(e) == const(value)
            seen += [(r, value) for r in range(evaluate(part.lo, env), evaluate(part.hi, env))]
        assert seen == [(r, 1.0 if r < env["#a"] else 2.0 if r < env["#a"] + env["#b"] else 3.0) for r in range(9)]
    unordered = Piecewise(((guard("lt", var("r"), a), const(1.0)), (guard("lt", var("r"), b), const(2.0))), const(3.0))
    (whole,) = parts_of([unordered], "r", int_expr(9), FACTS)
    assert whole.choose(unordered) is unordered


@pytest.mark.parametrize(
    "g",
    [
        guard("lt", var("r") * 2, int_expr(5)),
        guard("lt", var("r"), var("q")),
        guard("eq", var("r"), int_expr(3)),
        guard("lt", var("q"), int_expr(3)),
        Const(True, BOOL),
    ],
    ids=["a slope of two", "another rank", "equality", "no mention", "a constant"],
)
def test_what_is_left_whole(g: Expr) -> None:
    e = Piecewise(((g, const(1.0)),), const(2.0))
    (whole,) = parts_of([e], "r", int_expr(9), FACTS)
    assert (whole.lo, whole.hi) == (int_expr(0), int_expr(9)) and whole.choose(e) is e


STACK = """
cascade f(D: f32[b, 20], X: f32[7, 20], Y: f32[9, 20], I: i64[b, 2]) -> (O) symbols (b in 1..) {
  O[b, k:12, j:20] = { D[b, j] when k < 1 | X[I[b, 0], j] when k < 2 | Y[I[b, 1], j] when k < 3 | D[b, j] * 2.0 when k < 11 | 0.5 }
}"""


@targets
def test_a_stack_of_gathered_rows(target: Target) -> None:
    for batch in (1, 5):
        (tile,) = check(STACK, {"b": batch}, target=target).tiles
    assert "select" not in tile
    assert "gather" not in tile
    assert re.search(rf"x {target.lanes}\] a1\[", tile), "an index of 64 bits, the same for all lanes, does not halve them"


def test_an_index_of_a_part_is_checked() -> None:
    rows = np.array([[3, 8]])
    check(STACK, inputs=[np.ones((1, 20), np.float32), np.ones((7, 20), np.float32), np.ones((9, 20), np.float32), rows])


CONCATS = {
    "lanes": "O[i:n, j:57] = { A[i, j] when j < 20 | B[i, j - 20] }",
    "lanes, a short part": "O[i:n, j:40] = { A[i, j] when j < 3 | B[i, j - 3] }",
    "tasks": "O[k:57, j:9] = { A[0, k] * 2.0 + B[0, j] when k < 20 | B[0, k - 20] }",
    "symbols": "O[k:2*n, j:20] = { A[k, j] when k < n | A[k - n, j] + 1.0 }",
    "a pad": "O[k:n + 4, j:20] = { A[k - 2, j] when (k >= 2) & (k < n + 2) | 0.25 }",
    "nested": "O[k:9, j:57] = { { A[0, j] when j < 20 | B[0, j - 20] } when k < 4 | { B[0, 0] when j < 5 | 3.0 } }",
    "reduced": "O[i:n] = sum(j:57) { A[i, j] when j < 20 | B[i, j - 20] }",
    "rows": "P[i:n, j:57] = { A[i, j] when j < 20 | B[i, j - 20] }\n S[i:n] = sum(j:57) P[i, j]\n O[i:n, j:57] = P[i, j] / S[i]",
}


@pytest.mark.parametrize("name", CONCATS)
@targets
def test_concatenations(name: str, target: Target) -> None:
    text = f"cascade f(A: f32[n, 20], B: f32[n, 37]) -> (O) symbols (n in 1..) {{ {CONCATS[name]} }}"
    for n in (1, 2, 11):
        check(text, {"n": n}, target=target)


def test_long_lanes_in_chunks() -> None:
    """A rank of many chunks, a bound inside of one of them."""
    text = "cascade f(A: f32[30000], B: f32[10001]) -> (O) { O[k:40001] = { A[k] when k < 30000 | B[k - 30000] } }"
    (tile,) = check(text, target=AVX512, interpret=False).tiles
    assert "select" not in tile
