"""Library operations as native code against their meaning in NumPy: ties, NaN, empty and odd sizes, every type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dlc.codegen.target import BASELINE
from dlc.compiler import compile_program
from dlc.errors import DlcError
from dlc.ir.dtype import DTYPES
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.runtime.executable import Executable

TYPES = ["f32", "f64", "f16", "i64", "u64", "i32", "u8", "i8", "bool", "bf16"]


def native(text: str) -> tuple[Executable, Any]:
    program = parse_program(text)
    return compile_program(program, BASELINE), program


def agree(exe: Executable, program: Any, *inputs: np.ndarray) -> None:
    want = run_program(program, list(inputs))
    got = exe(*inputs)
    got = got if isinstance(got, tuple) else (got,)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if a.dtype.kind == "V":  # NumPy knows no NaN in bfloat16
            a, b = a.astype(np.float32), b.astype(np.float32)
        np.testing.assert_array_equal(a, b)


def data(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    """Few distinct values, so that there are ties; some NaN and signed zeros among floats."""
    rng = np.random.default_rng(seed)
    x = rng.integers(-4 if DTYPES[dtype].kind in "fi" else 0, 5, shape).astype(np.float64)
    if DTYPES[dtype].kind == "f" and x.size:
        x[rng.random(shape) < 0.1] = np.nan
        x[rng.random(shape) < 0.1] = -0.0
    with np.errstate(invalid="ignore"):
        return x.astype(DTYPES[dtype].numpy)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("descending", ["true", "false"])
def test_sort(dtype: str, descending: str) -> None:
    exe, program = native(
        f"""program p(x: {dtype}[a, n, b]) -> (v, i) symbols (a in 0.., n in 0.., b in 0..) {{
  (v: {dtype}[a, n, b], i: i64[a, n, b]) = library sort(x) {{axis = 1, descending = {descending}, stable = true}}
}}"""
    )
    for shape in ((2, 7, 3), (1, 1, 1), (1, 64, 1), (2, 100, 1), (0, 4, 2), (2, 0, 2)):
        agree(exe, program, data(shape, dtype))


@pytest.mark.parametrize("largest", ["true", "false"])
@pytest.mark.parametrize("k", ["3", "n", "1"])
def test_topk(largest: str, k: str) -> None:
    exe, program = native(
        f"""program p(x: f32[a, n]) -> (v, i) symbols (a in 0.., n in 0..) {{
  (v: f32[a, {k}], i: i64[a, {k}]) = library topk(x) {{axis = 1, largest = {largest}, sorted = true}}
}}"""
    )
    for shape in ((2, 7), (3, 50), (1, 3)):
        agree(exe, program, data(shape, "f32"))
    if k == "3":
        with pytest.raises(DlcError, match="DLC0542"):
            exe(data((2, 2), "f32"))


@pytest.mark.parametrize("dtype", TYPES)
def test_nonzero(dtype: str) -> None:
    exe, program = native(
        f"""program p(x: {dtype}[a, b]) -> (i) symbols (a in 0.., b in 0..) {{
  (i: i64[2, n]) = library nonzero(x) {{}} binds (n in 0..)
}}"""
    )
    for shape in ((3, 5), (1, 1), (0, 3), (40, 41)):
        agree(exe, program, data(shape, dtype))
    agree(exe, program, np.zeros((4, 4), DTYPES[dtype].numpy))


@pytest.mark.parametrize("dtype", ["f32", "i64", "u8", "f16"])
@pytest.mark.parametrize("ordered", ["true", "false"])
def test_unique(dtype: str, ordered: str) -> None:
    exe, program = native(
        f"""program p(x: {dtype}[m, w]) -> (v, f, i, c) symbols (m in 0.., w in 0..) {{
  (v: {dtype}[n, w], f: i64[n], i: i64[m], c: i64[n]) = library unique(x) {{sorted = {ordered}}} binds (n in 0..)
}}"""
    )
    for shape in ((9, 1), (30, 1), (1, 1), (0, 2), (25, 2), (8, 3)):
        agree(exe, program, data(shape, dtype))


@pytest.mark.parametrize("center", ["true", "false"])
@pytest.mark.parametrize("scored", ["true", "false"])
def test_nms(center: str, scored: str) -> None:
    exe, program = native(
        "program p(boxes: f32[b, k, 4], scores: f32[b, c, k], limit: i64[], iou: f32[], score: f32[]) -> (i) "
        "symbols (b in 0.., c in 0.., k in 0..) {\n"
        "  (i: i64[n, 3]) = library nms(boxes, scores, limit, iou, score) "
        f"{{center_point_box = {center}, has_score = {scored}}} binds (n in 0..)\n}}"
    )
    rng = np.random.default_rng(0)
    for b, c, k, limit in ((1, 1, 6, 3), (2, 3, 20, 100), (1, 2, 1, 1), (1, 1, 0, 5), (2, 2, 9, 0)):
        boxes = rng.random((b, k, 4), np.float32)
        scores = rng.integers(0, 6, (b, c, k)).astype(np.float32) / 5
        agree(exe, program, boxes, scores, np.int64(limit), np.float32(0.3), np.float32(0.25))


@pytest.mark.parametrize("scores", ["f16", "f32", "f64"])
def test_nms_compares_scores_in_the_wider_type(scores: str) -> None:
    exe, program = native(
        f"program p(boxes: f32[b, k, 4], scores: {scores}[b, c, k], limit: i64[], iou: f32[], score: f32[]) -> (i) "
        "symbols (b in 0.., c in 0.., k in 0..) {\n"
        "  (i: i64[n, 3]) = library nms(boxes, scores, limit, iou, score) {has_score = true} binds (n in 0..)\n}"
    )
    boxes = np.arange(24, dtype=np.float32).reshape(1, 6, 4)
    values = np.array([[[0.7, 0.3, 0.9, 0.7, 0.2, 0.71]]]).astype(DTYPES[scores].numpy)
    for limit in (0.7, 0.3, 0.2):
        agree(exe, program, boxes, values, np.int64(9), np.float32(0.5), np.float32(limit))


EMPTY = {
    "sort": "(v: f32[2, 3, 0], i: i64[2, 3, 0]) = library sort(x) {axis = 1, descending = true, stable = true}",
    "topk": "(v: f32[2, 1, 0], i: i64[2, 1, 0]) = library topk(x) {axis = 1, largest = true, sorted = true}",
    "nonzero": "(v: i64[3, n]) = library nonzero(x) {} binds (n in 0..)",
    "nms": "(v: i64[n, 3]) = library nms(y, z, l, t, t) {has_score = true} binds (n in 0..)",
}


@pytest.mark.parametrize("op", EMPTY)
def test_static_extents_of_zero(op: str) -> None:
    yields = "v, i" if " i: " in EMPTY[op] else "v"
    params = "y: f32[2, 3, 4], z: f32[2, 0, 3], l: i64[], t: f32[]" if op == "nms" else "x: f32[2, 3, 0]"
    exe, program = native(f"program p({params}) -> ({yields}) {{ {EMPTY[op]} }}")
    agree(exe, program, *(np.zeros([e.const or 0 for e in p.type.shape], p.type.dtype.numpy) for p in program.params))


def test_what_follows_has_the_extent() -> None:
    exe, program = native(
        """kernel over (j) double(i: i64[2, n]) -> (y) symbols (n in 0..) { y[d:2, j:n]: i64 = i[d, j] + i[d, j] }
program p(x: f32[a, b], y: f32[a, b]) -> (u, v, s) symbols (a in 0.., b in 0..) {
  (i: i64[2, n]) = library nonzero(x) {} binds (n in 0..)
  (j: i64[2, m]) = library nonzero(y) {} binds (m in 0..5)
  (u) = launch double(i)
  (v: i64[2, m], s: i64[2, m]) = library sort(j) {axis = 1, descending = true, stable = true}
}"""
    )
    x = data((5, 6), "f32")
    y = np.zeros((5, 6), np.float32)
    y[2, 3] = y[4, 1] = 1
    for _ in range(2):
        agree(exe, program, x, y)
    with pytest.raises(DlcError, match="DLC0541"):
        exe(x, np.ones((5, 6), np.float32))
