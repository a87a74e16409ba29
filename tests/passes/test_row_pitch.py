"""Which rows lie apart: those of which a reader takes more than a set of the first cache holds, by an oracle that counts sets."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from tests.passes.test_winograd import convolution

from dlc.ir.einsum import Einsum
from dlc.ir.parser import parse_program
from dlc.ir.program import Program, tensor_types
from dlc.ir.verify import verify
from dlc.passes.prepare_contractions import PrepareContractions
from dlc.passes.row_pitch import LINE_BYTES, SET_BYTES
from dlc.passes.winograd import Winograd

DTYPES = {"f32": 4, "f16": 2, "f64": 8}


def prepared(text: str, pitch: bool = True) -> Program:
    before = parse_program(text)
    after = PrepareContractions(pitch=pitch).apply(before)
    verify(after)
    return after


def pitches(program: Program) -> dict[str, int]:
    """Of the tensors that have one."""
    return {n: t.pitch for n, t in tensor_types(program).items() if t.pitch}


def layers(c: int, stride: int = 1, dtype: str = "f32", size: int = 14) -> str:
    """An activation of `c` channels read by a 1x1 convolution."""
    out = -(-size // stride)
    return f"""program p(X: {dtype}[1, 64, {size}, {size}], A: {dtype}[64, {c}], B: {dtype}[{c}, 64]) -> (Y) {{
  T[b:1, c:{c}, y:{size}, x:{size}] = sum(k:64) X[b, k, y, x] * A[k, c]
  R[b:1, c:{c}, y:{size}, x:{size}] = max(T[b, c, y, x], cast<{dtype}>(0.0))
  Y[b:1, f:64, y:{out}, x:{out}] = sum(c:{c}) R[b, c, {stride}*y, {stride}*x] * B[c, f]
}}"""


def sets_of_rows(step_bytes: int, rows: int = 16) -> int:
    """Sets of the first cache (64 of lines of 64 bytes) that the first lines of neighbouring rows fall into."""
    return len({row * step_bytes // LINE_BYTES % (SET_BYTES // LINE_BYTES) for row in range(rows)})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [1, 2, 3, 8])
@pytest.mark.parametrize("c", [128, 256, 512, 768, 1000, 1008, 1024, 2048, 3072])
def test_rows_of_register_tiles(c: int, stride: int, dtype: str) -> None:
    size = DTYPES[dtype]
    found = pitches(prepared(layers(c, stride, dtype)))
    collide = sets_of_rows(stride * c * size) == 1 and c * size >= 1024
    assert found == ({"R": LINE_BYTES // size} if collide else {})
    if collide:
        assert sets_of_rows(stride * (c * size + LINE_BYTES)) >= 8, "and with the pitch two of 16 at most"


def test_only_readers_that_take_several_rows() -> None:
    text = layers(1024)
    assert pitches(prepared(text)) == {"R": 16}
    assert pitches(prepared(text, pitch=False)) == {}
    points = text.replace("sum(c:1024) R[b, c, 1*y, 1*x] * B[c, f]", "X[b, f, y, x] + R[b, f, y, x]")
    assert pitches(prepared(points)) == {}
    assert pitches(prepared(layers(1024, size=1))) == {}, "one row has no neighbours"
    whole = text.replace("-> (Y)", "-> (Y, R)")
    assert "R" not in pitches(prepared(whole)), "a result of the program has no gaps"


@pytest.mark.parametrize("rows", [8, 15, 16, 20, 21])
@pytest.mark.parametrize("terms", [1024, 2048, 3072, 4096, 6144])
def test_rows_of_bytes_beside_codes(terms: int, rows: int) -> None:
    """Up to 20 rows are one tile: as many lines of a set as it holds are too many, beside the codes."""
    text = f"""program p(X: f32[{rows}, {terms}], W: i8[64, {terms}]) -> (Y) {{
      Q[m:{rows}, k:{terms}] = cast<i8>(round(X[m, k]))
      Y[m:{rows}, n:64] = sum(k:{terms}) cast<i32>(Q[m, k]) * cast<i32>(W[n, k])
    }}"""
    together = rows if rows <= 20 else 8
    collide = together // sets_of_rows(terms, together) >= 8
    assert pitches(prepared(text)) == ({"Q": 64} if collide else {})


def test_a_padded_copy_lies_apart() -> None:
    text = """program p(X: f32[1, 1024, 7, 7], A: f32[32, 1024, 3, 3]) -> (Y) {
  Y[b:1, c:32, y:7, x:7] = sum(k:1024, i:3, j:3) (X[b, k, y+i-1, x+j-1] else 0.0) * A[c, k, i, j]
}"""
    (name,) = pitches(prepared(text))
    assert name.startswith("X_rows")


@pytest.mark.parametrize("size, channels", list(itertools.product((7, 12, 14), (256, 272, 512))))
def test_planes_of_transforms(size: int, channels: int) -> None:
    """The 36 products of a tile are planes apart; where more than 8 of them fall into one set, the planes lie apart."""
    program = Winograd(gain=1e9).apply(convolution(size, size, 8, channels))
    after = PrepareContractions().apply(program)
    verify(after)
    products = [s for s in after.body.body if isinstance(s, Einsum) and s.out.endswith("_m")]
    (product,) = products
    plane = (-(-size // 4)) ** 2 * channels * 4
    sets = Counter(k * plane // LINE_BYTES % (SET_BYTES // LINE_BYTES) for k in range(36))
    assert bool(product.pitch) == (max(sets.values()) > 8)
