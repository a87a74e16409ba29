"""Convolutions that read their input as it lies, 0 outside of it: borders of every kind, and no padded copy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc.codegen.target import AVX512, BASELINE, Target
from dlc.ir.einsum import flat

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import Ran, check, targets

# channels in and out, height, width, window, stride, dilation, padding before (vertical, horizontal) and after
SHAPES = [
    (16, 20, 7, 7, 3, 1, 1, (1, 1), (1, 1)),
    (17, 33, 9, 12, 3, 2, 1, (1, 1), (0, 0)),
    (16, 48, 9, 12, 3, 2, 1, (0, 0), (1, 1)),
    (24, 5, 11, 40, 3, 2, 1, (1, 2), (3, 0)),
    (16, 16, 8, 29, 5, 3, 1, (2, 2), (2, 2)),
    (32, 70, 6, 23, 3, 1, 2, (2, 2), (2, 2)),
    (16, 16, 3, 2, 5, 1, 1, (4, 4), (4, 4)),
    (16, 16, 5, 5, 3, 1, 1, (0, 5), (5, 0)),
    (16, 16, 1, 300, 3, 1, 1, (1, 1), (1, 1)),
    (16, 8, 4, 1, 3, 1, 1, (1, 1), (1, 1)),
]


RELU = "max(T[b, c, y, x] + B[c], -1.0)"


def convolution(
    shape: tuple[Any, ...], *, height: str = "", width: str = "", after: str = RELU
) -> tuple[str, dict[str, int]]:
    """A convolution of what a point-wise kernel stores channels-last, with an epilogue, as cascade text."""
    k, c, h, w, size, s, d, before, behind = shape
    y, x = (_outputs(n, size, s, d, p + q) for n, p, q in zip((height or h, width or w), before, behind, strict=True))
    read = f"(Z[b, {s}*y + {d}*i - {before[0]}, {s}*x + {d}*j - {before[1]}, k] else 0.0)"
    symbols = "symbols (b in 0.., n in 4..)" if height or width else "symbols (b in 0..)"
    text = f"""
    cascade f(X: f32[b, {height or h}, {width or w}, {k}], Wt: f32[{size}, {size}, {k}, {c}], B: f32[{c}]) -> (O) {symbols} {{
      Z[b, y:{height or h}, x:{width or w}, k:{k}] = cos(X[b, y, x, k] * 3.0)
      T[b, c:{c}, y:{y}, x:{x}] = sum(i:{size}, j:{size}, k:{k}) {read} * Wt[i, j, k, c]
      O[b, c:{c}, y:{y}, x:{x}] = {after}
    }}"""
    return text, {"b": 2} | ({"n": 19} if height or width else {})


def _outputs(size: int | str, window: int, stride: int, dilation: int, padding: int) -> int | str:
    taken = padding - dilation * (window - 1) - 1
    return (size + taken) // stride + 1 if isinstance(size, int) else f"({size} + {taken}) // {stride} + 1"


def bordered(ran: Ran, count: int = 1) -> list[str]:
    """The tile programs of the contractions that read with a border; there is no step that only copies."""
    steps = [s for k in ran.program.kernels for s in flat(k.cascade.steps)]
    assert not any(s.reduce is None and "else" in str(s) for s in steps), str(ran.program)
    found = [k.name for k in ran.program.kernels if "else" in str(k.cascade)]
    assert len(found) == count and all(ran.kinds[n] == "contraction" for n in found), ran.kinds
    return [str(ran.lowered[n].tile) for n in found]


@targets
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_border(shape: tuple[Any, ...], target: Target, everything: bool) -> None:
    if target is BASELINE and shape not in SHAPES[:3] and not everything:
        pytest.skip("slow: the other shapes without vectors of eight run with --all")
    text, sizes = convolution(shape)
    bordered(check(text, sizes, target=target))
    check(text, {"b": 0}, target=target, interpret=False)


@pytest.mark.parametrize("shape", SHAPES[:7], ids=str)
@pytest.mark.parametrize("symbolic", ["height", "width"])
def test_sizes_that_vary(shape: tuple[Any, ...], symbolic: str) -> None:
    text, sizes = convolution(shape, **{symbolic: "n"})
    for n in (9, 10, 31):
        ran = check(text, sizes | {"n": n}, interpret=n == 9)
        bordered(ran)


@pytest.mark.parametrize(("pixels", "copied"), [(7, True), (60, False)])
def test_a_small_image_is_copied_beside_large_weights(pixels: int, copied: bool) -> None:
    """Weights of 2.4 MB come from far for every image; the elements of one image count, however many there are."""
    text, sizes = convolution((256, 256, pixels, pixels, 3, 2, 1, (1, 1), (1, 1)))
    ran = check(text, sizes | {"b": 1}, interpret=False)
    if not copied:
        bordered(ran)
        return
    (found,) = (k for k in ran.program.kernels if ran.kinds[k.name] == "contraction")
    assert "else" not in str(found.cascade)


def test_rows_in_several_blocks() -> None:
    """A line of more than a block of rows: each task has its part of it, and the ends are single rows."""
    for stride in (1, 2):
        text, sizes = convolution((16, 16, 1, 301, 3, stride, 1, (0, 1), (0, 1)))
        bordered(check(text, sizes))


def test_two_readers_with_borders_of_their_own() -> None:
    """One tensor, read with different paddings and plainly: it is stored once."""
    text = """
    cascade f(X: f32[b, 9, 12, 16], V: f32[3, 3, 16, 20], W: f32[5, 5, 16, 24], U: f32[16, 20]) -> (O, P, Q) symbols (b in 0..) {
      Z[b, y:9, x:12, k:16] = cos(X[b, y, x, k] * 3.0)
      O[b, c:20, y:9, x:12] = sum(i:3, j:3, k:16) (Z[b, y + i - 1, x + j - 1, k] else 0.0) * V[i, j, k, c]
      P[b, c:24, y:5, x:6] = sum(i:5, j:5, k:16) (Z[b, 2*y + i - 2, 2*x + j - 2, k] else 0.0) * W[i, j, k, c]
      Q[b, y:9, x:12, c:20] = sum(k:16) Z[b, y, x, k] * U[k, c]
    }"""
    bordered(check(text, {"b": 2}), 2)


def test_outside_is_a_number_as_any_other() -> None:
    """0 times an infinite weight is NaN at the border, too."""
    text, _ = convolution((16, 16, 5, 6, 3, 1, 1, (1, 1), (1, 1)))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 3, 16, 16)).astype(np.float32)
    weights[0, 0, 3, 5] = np.inf
    inputs = [rng.standard_normal((1, 5, 6, 16)).astype(np.float32), weights, np.zeros(16, np.float32)]
    ran = check(text, inputs=inputs, target=AVX512)
    bordered(ran)
    assert np.isnan(ran.values["O"][0, 5, 0]).all() and not np.isnan(ran.values["O"][0, 4]).any()
