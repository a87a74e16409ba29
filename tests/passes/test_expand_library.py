"""Library operations as programs compute what the operations mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, BOOL, DTYPES, F16, F32, F64, I8, I32, I64, U8, DType
from dlc.ir.extent import IntLike, sym
from dlc.ir.interpret import run_program
from dlc.ir.program import Library, Program, walk_statements
from dlc.ir.verify import verify
from dlc.passes.expand_library import ExpandLibrary
from dlc.passes.library_tools import KEY_TYPES, Expansion, keys

SPECIAL = (0.0, -0.0, 1.0, 1.0, -1.0, 2.5, -2.5, float("inf"), float("-inf"), float("nan"))


def some(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> Any:
    """Values with ties, and NaN and signed zeros among floats."""
    if dtype.is_float:
        return rng.choice(np.array(SPECIAL), shape).astype(dtype.numpy)
    if dtype == BOOL:
        return rng.random(shape) < 0.5
    return rng.choice(np.array([0, 1, 2, dtype.highest, dtype.lowest]), shape).astype(dtype.numpy)


def check(program: Program, *inputs: Any) -> Program:
    verify(program)
    after = ExpandLibrary().apply(program)
    verify(after)
    assert not any(isinstance(s, Library) for s in walk_statements(after.body))
    for a, b in zip(run_program(program, inputs), run_program(after, inputs), strict=True):
        assert a.dtype == b.dtype
        if a.dtype.name == "bfloat16":
            a, b = a.astype(np.float32), b.astype(np.float32)
        np.testing.assert_array_equal(b, a)
    return after


def ordering(op: str, dtype: DType, shape: tuple[IntLike, ...], axis: int, flag: bool, k: int | None = None) -> Program:
    b = Builder("f")
    for e in shape:
        if not isinstance(e, int):
            b.symbol(str(e).lstrip("#"))
    x = b.input("X", dtype, shape)
    result = [*shape[:axis], k, *shape[axis + 1 :]] if k is not None else list(shape)
    attrs: dict[str, Any] = {"axis": axis, ("largest" if op == "topk" else "descending"): flag}
    return b.finish(b.library(op, [x], [("V", dtype, result), ("P", I64, result)], attrs))


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I64, I8, U8, BOOL], ids=str)
@pytest.mark.parametrize("descending", [False, True])
def test_sort(dtype: DType, descending: bool) -> None:
    rng = np.random.default_rng(0)
    check(ordering("sort", dtype, (3, 17, 2), 1, descending), some(rng, dtype, (3, 17, 2)))
    check(ordering("sort", dtype, (sym("n"),), 0, descending), some(rng, dtype, (9,)))
    check(ordering("sort", dtype, (sym("n"),), 0, descending), some(rng, dtype, (0,)))


@pytest.mark.parametrize("dtype", [F32, I64, U8, BOOL], ids=str)
@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize(("n", "k"), [(7, 3), (7, 7), (7, 0), (200, 5), (None, 4)])
def test_topk(dtype: DType, largest: bool, n: int | None, k: int) -> None:
    rng = np.random.default_rng(1)
    size = n if n is not None else 11
    program = ordering("topk", dtype, (2, n if n is not None else sym("n"), 3), 1, largest, k)
    if n is None:
        b = program.symbols[0]
        assert b.lo == 0
    check(program, some(rng, dtype, (2, size, 3)))


@pytest.mark.parametrize("dtype", [F32, I32, BOOL], ids=str)
@pytest.mark.parametrize("shape", [(5,), (3, 4, 30), (2, 0), (200,)])
def test_nonzero(dtype: DType, shape: tuple[int, ...]) -> None:
    b = Builder("f")
    x = b.input("X", dtype, shape)
    (found,) = b.library("nonzero", [x], [("at", I64, [len(shape), sym("n")])], binds=[("n", 0, None)])
    program = b.finish([found])
    rng = np.random.default_rng(2)
    check(program, some(rng, dtype, shape))
    check(program, np.zeros(shape, dtype.numpy))
    check(program, np.ones(shape, dtype.numpy))


@pytest.mark.parametrize("dtype", [F32, I64, BOOL], ids=str)
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("shape", [(20, 1), (40, 3), (0, 1), (90, 2), (1, 4)])
def test_unique(dtype: DType, in_order: bool, shape: tuple[int, ...]) -> None:
    b = Builder("f")
    x = b.input("X", dtype, shape)
    n = sym("n")
    results = [("V", dtype, [n, shape[1]]), ("first", I64, [n]), ("inverse", I64, [shape[0]]), ("counts", I64, [n])]
    program = b.finish(b.library("unique", [x], results, {"sorted": in_order}, [("n", 0, shape[0])]))  # type: ignore[arg-type]
    rng = np.random.default_rng(3)
    rows = some(rng, dtype, shape)
    if dtype.is_float and shape[1] > 1:  # in which order rows with a NaN come is not defined beyond one column
        rows = np.nan_to_num(rows, nan=2.0, posinf=np.inf, neginf=-np.inf)
    check(program, rows)
    if dtype.is_float:
        check(program, rng.integers(0, 3, shape).astype(np.float32))


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("has_score", [False, True])
def test_nms(center: bool, has_score: bool) -> None:
    b = Builder("f")
    boxes, scores = b.input("boxes", F32, (2, 12, 4)), b.input("scores", F32, (2, 3, 12))
    limit, iou, score = b.input("limit", I64, ()), b.input("iou", F32, ()), b.input("score", F32, ())
    attrs: dict[str, Any] = {"center_point_box": center, "has_score": has_score}
    (out,) = b.library(
        "nms", [boxes, scores, limit, iou, score], [("chosen", I64, [sym("n"), 3])], attrs, [("n", 0, 72)]
    )
    program = b.finish([out])
    rng = np.random.default_rng(4)
    for most, overlap, least in ((5, 0.3, 0.2), (0, 0.5, 0.0), (100, 0.9, 0.5), (3, 0.0, 2.0), (-1, 0.5, 0.1)):
        places = rng.random((2, 12, 4)).astype(np.float32)
        values = np.round(rng.random((2, 3, 12)), 1).astype(np.float32)
        check(program, places, values, np.int64(most), np.float32(overlap), np.float32(least))


def test_keys_have_the_order_of_the_numbers() -> None:
    for dtype in KEY_TYPES:
        values = [*SPECIAL, 1e-30, -1e-30] if dtype.is_float else [0, 1, dtype.highest if dtype != BOOL else 1]
        array = np.asarray(values).astype(dtype.numpy)
        b = Builder("f")
        x = b.input("X", dtype, array.shape)
        e = Expansion(Library("sort", ("X",), ("K",), ()), b.types, {"X"}, {})
        name = e.own(keys(e, x))
        b.types.update(e.types)
        for s in e.statements:
            b.emit(s)
        (key,) = run_program(b.finish([b.tensor(name)]), [array])
        number = array.astype(np.float64) if dtype.is_float else array
        for i in range(len(array)):
            for j in range(len(array)):
                nan_i, nan_j = (dtype.is_float and np.isnan(number[k]) for k in (i, j))
                less = not nan_i and (nan_j or number[i] < number[j])
                assert (key[i] < key[j]) == less, (dtype, array[i], array[j])


def test_names_stay_unique_with_several_operations() -> None:
    b = Builder("f")
    x = b.input("X", DTYPES["f32"], (6,))
    v, p = b.library("sort", [x], [("V", F32, [6]), ("P", I64, [6])], {"axis": 0})
    w, q = b.library("sort", [v], [("V", F32, [6]), ("P", I64, [6])], {"axis": 0, "descending": True})
    check(b.finish([v, p, w, q]), np.array([3, 1, 2, 5, 4, 0], np.float32))
