"""The interpreter's edges: inputs and symbols, run-time checks, loops, library operations, number types."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dlc.ir import errors
from dlc.ir.dtype import BF16, F16
from dlc.ir.evaluate import round_to
from dlc.ir.interpret import eval_einsum, run_cascade, run_program
from dlc.ir.library import LIBRARY
from dlc.ir.parser import parse_cascade, parse_program

F = np.float32


def run(text: str, *inputs: Any) -> tuple[Any, ...]:
    return run_program(parse_program(text), inputs)


ADD = "cascade f(X: f32[n, 2*m + 1], Y: f32[n]) -> Z symbols (n in 1..8 by 2) {\n  Z[n, i: m] = X[n, 2*i] + Y[n]\n}"


def test_symbols_are_solved_from_shapes() -> None:
    (z,) = run(ADD, np.ones((2, 7), F), np.ones(2, F))
    assert z.shape == (2, 3)


@pytest.mark.parametrize(
    ("shapes", "error", "message"),
    [
        (((2, 6), (2,)), errors.SymbolMismatch, "does not follow from the shapes"),
        (((2, 7), (4,)), errors.SymbolMismatch, "dimension 0 of input 'Y' is 4, but n = 2"),
        (((3, 7), (3,)), errors.RunTimeExtent, "'n' is bound to 3, outside 1..8 by 2"),
        (((10, 7), (10,)), errors.RunTimeExtent, "outside 1..8"),
        (((2, 7, 1), (2,)), errors.WrongInputs, "has 3 dimensions"),
        (((2, 7),), errors.WrongInputs, "2 inputs are expected, 1 given"),
    ],
)
def test_wrong_shapes(shapes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(ADD, *(np.ones(s, F) for s in shapes))


def test_wrong_type_and_name() -> None:
    with pytest.raises(errors.WrongInputs, match="holds float64"):
        run(ADD, np.ones((2, 7)), np.ones(2, F))
    program = parse_program(ADD)
    with pytest.raises(errors.WrongInputs, match="'Y' is not given"):
        run_program(program, {"X": np.ones((2, 7), F)})
    by_name = run_program(program, {"Y": np.ones(2, F), "X": np.ones((2, 7), F)})
    assert (by_name[0] == 2).all()


def test_every_tensor_can_be_watched() -> None:
    seen: dict[str, Any] = {}
    text = "cascade f(X: f32[n]) -> Z {\n  Y[n] = X[n] * 2.0\n  Z[n] = Y[n] + 1.0\n}"
    run_cascade(parse_cascade(text), [np.ones(3, F)], observe=seen.__setitem__)
    assert list(seen) == ["Y", "Z"] and (seen["Y"] == 2).all()


def test_gather_out_of_range() -> None:
    text = "cascade f(E: f32[v], I: i64[n]) -> Z {\n  Z[n] = E[I[n]]\n}"
    with pytest.raises(errors.IndexOutOfRange, match="reads index 9 of dimension 0, which has extent 4"):
        run(text, np.ones(4, F), np.array([0, 9]))
    with pytest.raises(errors.IndexOutOfRange, match="index -1"):
        run(text, np.ones(4, F), np.array([-1]))


def test_scatter_out_of_range() -> None:
    text = "cascade f(X: f32[n], I: i64[n], O: f32[v]) -> Z {\n  scatter(n) Z[I[n]] sum= X[n] onto O\n}"
    with pytest.raises(errors.ScatterOutOfRange, match="writes index 4"):
        run(text, np.ones(1, F), np.array([4]), np.ones(4, F))


def test_a_guarded_gather_is_not_made() -> None:
    text = "cascade f(E: f32[v], I: i64[n]) -> Z {\n  Z[n] = { E[I[n]] when I[n] < 4 | 7.0 }\n}"
    assert run(text, np.ones(4, F), np.array([0, 9]))[0].tolist() == [1, 7]


def test_bind_is_checked() -> None:
    text = "program p(K: i64[]) -> (Z) {\n  bind k in 1..4 = K\n  Z[i: k]: f32 = 1.0\n}"
    assert run(text, np.array(3))[0].shape == (3,)
    with pytest.raises(errors.RunTimeExtent, match="'k' is bound to 5, outside 1..4"):
        run(text, np.array(5))


FOR = """
kernel over () step(H: f32[n], X: f32[t, n]) -> (H1) symbols (i in 0..) {
  H1[n]: f32 = H[n] * 0.5 + X[#i, n]
}

program p(H0: f32[n], X: f32[t, n]) -> (HT, Y) {
  for i in 0.. < t carry (H = H0) {
    (H1) = launch step(H, X)
    yield (H1)
  } -> (HT) stack (Y = H1)
}
"""


@pytest.mark.parametrize("t", [0, 1, 3])
def test_for(t: int) -> None:
    program = parse_program(FOR)
    assert parse_program(str(program)) == program
    x, h = np.arange(2.0 * t, dtype=F).reshape(t, 2), np.ones(2, F)
    last, rows = run_program(program, [h, x])
    wanted = []
    for row in x:
        h = h * F(0.5) + row
        wanted.append(h)
    assert (last == h).all() and rows.shape == (t, 2)
    assert (rows == np.array(wanted, F).reshape(t, 2)).all()


def test_a_loop_may_do_nothing() -> None:
    text = """
    program p(X: f32[n], L: i64[]) -> (H, Y) {
      loop i < L carry (h = X) {
        g[n]: f32 = h[n] * 2.0
        yield (g, g)
      } -> (H) collect (Y) upto c in 0..
    }"""
    h, y = run(text, np.ones(3, F), np.array(0))
    assert h.tolist() == [1, 1, 1] and y.shape == (0, 3)
    h, y = run(text, np.ones(3, F), np.array(2))
    assert h.tolist() == [4, 4, 4] and y.shape == (2, 3)


def test_constants_by_reference() -> None:
    program = parse_program("program p(X: f32[2]) -> (Z) {\n  const W: f32[2]\n  Z[i:2] = X[i] * W[i]\n}")
    with pytest.raises(errors.WrongInputs, match="'W' has no data"):
        run_program(program, [np.ones(2, F)])
    w = {"W": np.array([2, 3], F)}
    assert run_program(program, [np.ones(2, F)], w)[0].tolist() == [2, 3]
    assert run_program(replace(program, data=w), [np.ones(2, F)])[0].tolist() == [2, 3]


def test_one_einsum() -> None:
    (step,) = parse_cascade(
        "cascade f(A: f32[m, k], B: f32[k, n]) -> C {\n  C[m, n] = sum(k) A[m, k] * B[k, n]\n}"
    ).steps
    a, b = np.random.default_rng(0).standard_normal((2, 40, 40)).astype(F)
    (c,) = eval_einsum(step, {"A": a, "B": b}, {"m": 40, "n": 40, "k": 40})  # type: ignore[arg-type]
    assert (c == (a.astype(np.float64) @ b).astype(F)).all()


def test_infinities_in_contractions() -> None:
    a, b = np.ones((30, 30), F), np.ones((30, 30), F)
    a[0, 0], b[3, 3] = np.inf, np.nan
    text = "cascade f(A: f32[m, k], B: f32[k, n]) -> C {\n  C[m, n] = sum(k) A[m, k] * B[k, n] where k <= m\n}"
    (c,) = run(text, a, b)
    wanted = np.array([[sum(a[m, k] * b[k, n] for k in range(m + 1)) for n in range(30)] for m in range(30)], F)
    assert ((c == wanted) | np.isnan(c) & np.isnan(wanted)).all()


def test_rounding_is_done_once() -> None:
    halfway = 1 + 2.0**-8 + 2.0**-40  # just above the middle of two bf16: by way of f32 it would round down
    assert float(round_to(np.array(halfway), BF16)) == 1 + 2.0**-7
    assert float(round_to(np.array(1 + 2.0**-11 + 2.0**-40), F16)) == 1 + 2.0**-10
    assert np.isinf(round_to(np.array(1e40), BF16))
    every = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)
    back = round_to(every.astype(np.float64), BF16)
    assert ((back == every) | np.isnan(back.astype(F)) & np.isnan(every.astype(F))).all()


def library(op: str, *args: Any, shapes: Any = None, **attrs: Any) -> list[Any]:
    return [a.tolist() for a in LIBRARY[op].meaning(args, attrs, shapes or [(None,) * 3] * 4)]


def test_sort_and_topk() -> None:
    x = np.array([2, np.nan, 1, 2, -np.inf], F)
    values, at = LIBRARY["sort"].meaning([x], {"axis": 0, "descending": False}, [])
    assert at.tolist() == [4, 2, 0, 3, 1]
    values, at = LIBRARY["sort"].meaning([x], {"axis": 0, "descending": True}, [])
    assert at.tolist() == [1, 0, 3, 2, 4] and np.isnan(values[0])
    assert library("topk", np.array([[3, 1, 3, 2]], F), shapes=[(1, 2)], axis=1, largest=True)[1] == [[0, 2]]
    assert library("topk", np.array([[3, 1, 3, 2]], F), axis=1, k=2, largest=False) == [[[1, 2]], [[1, 3]]]


def test_nonzero_and_unique() -> None:
    assert library("nonzero", np.array([[0, 2], [3, 0]])) == [[[0, 1], [1, 0]]]
    rows = np.array([[2], [1], [2]])
    assert library("unique", rows, sorted=True) == [[[1], [2]], [1, 0], [1, 0, 1], [1, 2]]
    assert library("unique", rows, sorted=False) == [[[2], [1]], [0, 1], [0, 1, 0], [2, 1]]


def test_nms() -> None:
    boxes = np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 10, 1, 11]]], F)
    scores = np.array([[[0.9, 0.95, 0.5]]], F)
    limits = (np.array(3), np.array(0.5, F), np.array(0.6, F))
    assert library("nms", boxes, scores, *limits, has_score=True) == [[[0, 0, 1]]]
    assert library("nms", boxes, scores, *limits, has_score=False) == [[[0, 0, 1], [0, 0, 2]]]
