"""Windows that slide: depthwise convolutions and pooling of every stride, dilation and padding, edges and remainders."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.target import AVX512, Target

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import Ran, check, targets

# channels, height, width, window, stride, dilation, padding
SHAPES = [
    (16, 7, 7, 3, 1, 1, 1),
    (20, 7, 7, 5, 1, 1, 2),
    (35, 9, 20, 3, 2, 1, 1),
    (16, 30, 33, 3, 1, 2, 2),
    (48, 20, 20, 3, 2, 1, 0),
    (16, 5, 41, 7, 1, 1, 3),
    (16, 5, 3, 7, 1, 1, 3),
    (3, 11, 13, 4, 3, 1, 1),
    (130, 4, 6, 3, 1, 1, 1),
]


def depthwise(
    shape: tuple[int, ...], *, height: str = "", width: str = "", fold: str = "sum", default: str = "0.0"
) -> tuple[str, dict[str, int]]:
    """A depthwise convolution (or a pool) in channels-last memory with an epilogue, as cascade text."""
    c, h, w, k, s, d, p = shape
    y, x = _outputs(height or h, shape), _outputs(width or w, shape)
    taken = f"Z[b, c, {s}*y + {d}*i - {p}, {s}*x + {d}*j - {p}]"
    read = f"({taken} else {default})" if p else taken
    weight = " * Wt[i, j, c]" if fold == "sum" else ""
    params = f"X: f32[b, {c}, {height or h}, {width or w}], Wt: f32[{k}, {k}, {c}], B: f32[{c}]"
    text = f"""
    cascade f({params}) -> (O) symbols (b in 0..{", n in 8.." if height or width else ""}) {{
      Z[b, c:{c}, y:{height or h}, x:{width or w}]: f32{{0, 2, 3, 1}} = cos(X[b, c, y, x] * 3.0) + sin(X[b, c, y, x])
      T[b, c:{c}, y:{y}, x:{x}] = {fold}(i:{k}, j:{k}) {read}{weight}
      O[b, c:{c}, y:{y}, x:{x}] = max(T[b, c, y, x] + B[c], -1.0)
    }}"""
    return text, {"b": 2} | ({"n": 19} if height or width else {})


def _outputs(size: int | str, shape: tuple[int, ...]) -> int | str:
    _, _, _, k, s, d, p = shape
    taken = 2 * p - d * (k - 1) - 1
    return (size + taken) // s + 1 if isinstance(size, int) else f"({size} - {-taken}) // {s} + 1"


def windows(ran: Ran) -> list[str]:
    """Tile programs of the kernels that slide a window."""
    return [t for t, kind in zip(ran.tiles, ran.strategies, strict=True) if kind == "window"]


@targets
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise_convolutions(shape: tuple[int, ...], target: Target) -> None:
    text, sizes = depthwise(shape)
    (tile,) = windows(check(text, sizes, target=target, interpret=target is AVX512))
    assert "fma" in tile


@targets
@pytest.mark.parametrize("fold, default", [("max", "-inf"), ("min", "inf"), ("max", "0.5"), ("sum", "0.25")])
def test_pools(fold: str, default: str, target: Target, everything: bool) -> None:
    for shape in SHAPES[: 4 if everything else 2]:
        text, sizes = depthwise(shape, fold=fold, default=default)
        text = text.replace("-inf", "-1e38").replace("inf", "1e38") if "inf" in default else text
        assert windows(check(text, sizes, target=target))


@pytest.mark.parametrize("pad, stride", [(0, 1), (1, 1), (1, 2), (2, 1)])
def test_unknown_width_and_height(pad: int, stride: int) -> None:
    shape = (16, 10, 10, 3, stride, 1, pad)
    for height, width in (("", "n"), ("n", ""), ("n", "n")):
        text, sizes = depthwise(shape, height=height, width=width)
        for n in (8, 9, 19, 40):
            assert windows(check(text, sizes | {"n": n}, interpret=n == 9))


def test_the_taps_of_neighbours_share_a_tile() -> None:
    """28 points are four tiles of 7: the two at the edges written out, the two between them a loop without a guard."""
    text, sizes = depthwise((32, 28, 28, 3, 1, 1, 1))
    (tile,) = windows(check(text, sizes, interpret=False))
    assert tile.count("const f32[7 x 16]") == 3
    inner = tile[tile.index("for x_0" if "for x_0" in tile else "for o3_0") :]
    assert " mask " not in inner, inner
    assert len(re.findall(r"const bool false", tile)) == 2  # the first point of the first tile, the last of the last


def test_weights_that_are_no_numbers_are_seen_in_the_padding() -> None:
    """0 * inf is NaN: what lies outside is the default times the weight, not nothing."""
    text, sizes = depthwise((16, 6, 9, 3, 1, 1, 1))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((3, 3, 16)).astype(np.float32)
    weights[0, 0, 3] = np.inf
    x, bias = (rng.standard_normal(s).astype(np.float32) for s in ((2, 16, 6, 9), (16,)))
    ran = check(text, sizes, inputs=[x, weights, bias])
    (result,) = (ran.values[n] for n in ran.program.results)
    assert np.isnan(result[:, 3, 0]).all() and np.isnan(result[:, 3, :, 0]).all()


def test_lanes_along_the_width() -> None:
    """Row-major images: the window slides down the rows, with the lanes along them."""
    text = """
    cascade f(X: f32[2, 3, 20, 40], Wt: f32[3, 3, 3]) -> (O) {
      O[b:2, c:3, y:20, x:40] = sum(i:3, j:3) (X[b, c, y + i - 1, x + j - 1] else 0.0) * Wt[c, i, j]
    }"""
    for passes in (None, "explicit-domains,fuse"):
        ran = check(text, passes=passes)
    assert windows(ran)


def test_three_ranks_of_a_window() -> None:
    text = """
    cascade f(X: f32[2, 5, 9, 11, 32], Wt: f32[2, 3, 3, 32]) -> (O) {
      O[b:2, z:4, y:9, x:11, c:32] = sum(h:2, i:3, j:3) (X[b, z + h, y + i - 1, x + j - 1, c] else 0.0) * Wt[h, i, j, c]
    }"""
    assert windows(check(text, passes="explicit-domains,fuse"))
