"""Tensors with gaps between their rows: every lowering writes none of the gaps and reads none of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

import dlc
from dlc.codegen.target import AVX512, Target
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import cascade_types

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import Ran, check, random_arrays, targets

MAKE = "cos(X[b, c, y, x] * 3.0) + sin(X[b, c, y, x])"
IMAGE = f"Z[b, c:{{c}}, y:{{h}}, x:{{w}}]: f32{{layout}} = {MAKE}"
READERS = {
    "contraction": "O[b, f:40, y:{h}, x:{w}] = sum(c:{c}) Z[b, c, y, x] * W[c, f]",
    "strided contraction": "O[b, f:40, y:{h} // 2, x:{w} // 2] = sum(c:{c}) Z[b, c, 2*y, 2*x] * W[c, f]",
    "inner product": "O[b, y:{h}, f:40] = sum(c:{c}, x:{w}) Z[b, c, y, x] * V[c, x, f]",
    "window": "O[b, c:{c}, y:{h}, x:{w}] = sum(i:3, j:3) (Z[b, c, y+i-1, x+j-1] else 0.0) * T[i, j, c]",
    "pool": "O[b, c:{c}, y:{h} - 2, x:{w} - 2] = max(i:3, j:3) Z[b, c, y + i, x + j]",
    "points": "O[b, c:{c}, y:{h}, x:{w}] = Z[b, c, y, x] * Z[b, c, y, x] + X[b, c, y, x]",
    "merged ranks": "O[n: b*{c}*{h}*{w}] = Z[n // ({c}*{h}*{w}), n // ({h}*{w}) % {c}, n // {w} % {h}, n % {w}] * 2.0",
    "whole": "O[b] = sum(c:{c}, y:{h}, x:{w}) Z[b, c, y, x]",
    "rows": "M[b, y:{h}, x:{w}] = max(c:{c}) Z[b, c, y, x]\n"
    "      O[b, c:{c}, y:{h}, x:{w}] = exp(Z[b, c, y, x] - M[b, y, x])",
    "argmax": "(O, I)[b, c:{c}, y:{h}]: f32, i64 = argmax(x:{w}) (Z[b, c, y, x], x)",
    "gather": "O[b, y:{h}] = Z[b, 0, y, K[y]] * 0.5",
}
LAYOUTS = ["{0, 2, 3, 1 + 16}", "{+ 16}", "{2, 0, 1, 3 + 5}"]


def text(reader: str, layout: str, c: int = 35, h: int = 6, w: int = 9) -> str:
    """A cascade whose `Z` lies in `layout` and is read by `reader`."""
    body = f"{IMAGE}\n      {READERS[reader]}"
    for name, value in (("c", c), ("h", h), ("w", w), ("layout", layout)):
        body = body.replace("{" + name + "}", str(value))
    params = f"X: f32[b, {c}, {h}, {w}], W: f32[{c}, 40], V: f32[{c}, {w}, 40], T: f32[3, 3, {c}], K: i64[{h}]"
    return f"cascade f({params}) -> (O{', I' if reader == 'argmax' else ''}) symbols (b in 0..) {{\n      {body}\n}}"


def pitches(ran: Ran) -> set[int]:
    """Of all tensors that kernels pass on."""
    types = [cascade_types(k.cascade) | {p.name: p.type for p in k.cascade.params} for k in ran.program.kernels]
    results = [r for k in ran.program.kernels for r in k.cascade.results]
    return {t.pitch for of in types for n, t in of.items() if n in results} - {0}


@targets
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("reader", READERS)
def test_readers(reader: str, layout: str, target: Target) -> None:
    ran = check(text(reader, layout), {"b": 2}, target=target, interpret=target is AVX512)
    if layout == LAYOUTS[0] and reader in ("window", "pool", "contraction", "strided contraction"):
        assert pitches(ran), "the image is stored as it was asked for"


def test_buffers_have_room_for_the_gaps() -> None:
    tile = check(text("contraction", LAYOUTS[0]), {"b": 2}).tiles[0]
    assert f"out t0: f32[{6 * 9 * (35 + 16)}*#b]" in tile


LATER = {
    "contraction": "Y[b, f:24, y:3, x:3] = sum(c:1024) R[b, c, 2*y, 2*x] * W[c, f]",
    "merged ranks": "Y[n: b*25*1024] = R[n // 25600, n % 1024, n // 5120 % 5, n // 1024 % 5] * 2.0",
    "residual": "Y[b, c:1024, y:5, x:5] = exp(R[b, c, y, x]) + X[b, 0, y, x]",
    "mean": "Y[b, c:1024] = sum(y:5, x:5) R[b, c, y, x]",
}


@targets
@pytest.mark.parametrize("reader", LATER)
def test_pitch_that_the_passes_chose(reader: str, target: Target) -> None:
    """One reader wants the rows apart; another one of the same tensor is right as well."""
    source = f"""cascade f(X: f32[b, 8, 5, 5], A: f32[8, 1024], W: f32[1024, 24]) -> (Y, Z) symbols (b in 1..) {{
      T[b, c:1024, y:5, x:5] = sum(k:8) X[b, k, y, x] * A[k, c]
      R[b, c:1024, y:5, x:5] = max(T[b, c, y, x], 0.0)
      {LATER[reader]}
      Z[b, f:24, y:5, x:5] = sum(c:1024) R[b, c, y, x] * W[c, f]
    }}"""
    ran = check(source, {"b": 2}, target=target, interpret=False)
    assert pitches(ran) == {16}


@pytest.mark.parametrize("batch", ["3", "b"])
def test_the_memory_plan_has_room(batch: str) -> None:
    """The whole program: what is planned, or found at run time, for a tensor counts what lies between its rows."""
    source = f"""cascade f(X: f32[{batch}, 8, 5, 5], A: f32[8, 1024], W: f32[1024, 24]) -> (Z) {{
      R[b: {batch}, c:1024, y:5, x:5] = sum(k:8) X[b, k, y, x] * A[k, c]
      Z[b: {batch}, f:24, y:5, x:5] = sum(c:1024) R[b, c, y, x] * W[c, f]
    }}"""
    program = parse_program(source)
    compiled = dlc.compile(program)
    (planned,) = [b for b in compiled.manifest["buffers"] if b["name"].startswith("R")]
    assert str(25 * (1024 + 16) * 4 * (3 if batch == "3" else 1)) in str(planned["bytes"])
    arrays = random_arrays(program, {"b": 3})
    np.testing.assert_allclose(compiled(*arrays), run_program(program, arrays)[0], rtol=1e-4, atol=1e-3)
