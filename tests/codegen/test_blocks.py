"""Blocks: steps that read each other at a few points run unrolled, and the last block ends with the tensor."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from tests.passes.test_winograd import convolution

from dlc.codegen.target import AVX512, Target, host_flags
from dlc.ir.blocked import unrolls
from dlc.ir.einsum import Einsum
from dlc.ir.parser import parse_program
from dlc.passes.default import default_pipeline

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import check, targets

# S at four points of a block, O block by block along `y`, with an epilogue that reads O and another tensor there.
BLOCKED = """
program p(X: f32[T, 20], R: f32[Y, 20]) -> (P, O) {
  S[t:T, e:4, c:20]: f32 = { X[t, c] + 1.0 when e < 1 | X[t, c] * 2.0 when e < 2 | X[t, c] - 3.0 when e < 3 | 0.0 - X[t, c] }
  O[y:Y, c:20]: f32 = max(S[y // 4, y % 4, c], -0.5)
  P[y:Y, c:20]: f32 = O[y, c] * R[y, c]
}"""
FUSE_ONLY = "explicit-domains,fuse"


@targets
@pytest.mark.parametrize("size", [1, 3, 4, 13, 16])
def test_the_last_block_ends_with_the_tensor(size: int, target: Target) -> None:
    text = BLOCKED.replace(":Y", f":{size}").replace("[Y", f"[{size}")
    text = text.replace(":T", f":{-(-size // 4)}").replace("[T", f"[{-(-size // 4)}")
    ran = check(text, target=target, passes=FUSE_ONLY)
    assert ran.strategies == ["blocks"]


def test_symbols() -> None:
    text = BLOCKED.replace("t:T", "t:(h + 3) // 4").replace("[T,", "[t_n,").replace(":Y", ":h").replace("[Y", "[h")
    text = text.replace("X: f32[t_n, 20]", "X: f32[(h + 3) // 4, 20]")
    for h in (1, 2, 7, 8):
        ran = check(text, {"h": h}, passes=FUSE_ONLY)
    assert ran.strategies == ["blocks"]


def test_pieces_are_chosen_while_compiling() -> None:
    """A short rank that pieces tell apart is unrolled: no comparison is left, and nothing is read twice."""
    text = """
    program p(X: f32[9, 32], Z: f32[9, 32]) -> (Y) {
      Y[i:9, e:3, c:32]: f32 = { X[i, c] when e < 1 | Z[i, c] when e < 2 | X[i, c] + Z[i, c] }
    }"""
    ran = check(text, passes=FUSE_ONLY)
    assert ran.strategies == ["blocks"]
    (tile,) = ran.tiles
    assert " lt(" not in tile and tile.count("load") == 2 and tile.count("store") == 3


@targets
@pytest.mark.parametrize("shape", [(7, 9), (8, 4), (1, 1), (13, 5)], ids=str)
def test_winograd_kernels(shape: tuple[int, int], target: Target) -> None:
    """Transforms and products of a convolution, each compared with its meaning."""
    before = convolution(*shape, 17, 24, b=2)
    options = f"lanes={target.lanes} registers={target.vector_registers}"
    passes = (
        f"explicit-domains,winograd{{gain=1e9}},prepare-contractions{{{options} least_work=1}},"
        "inline-pointwise,simplify-indices,fuse"
    )
    ran = check(before, target=target, passes=passes, seed=3)
    assert ran.strategies.count("blocks") >= 1 and "contraction" in ran.strategies


def test_a_network_keeps_its_channels_innermost() -> None:
    """Between two convolutions: transform in, product, transform out with the activation; no copy for a border."""
    two = """
    program p(X: f32[1, 16, 12, 12]) -> (Z) {
      const G: f32[16, 16, 3, 3]
      A[n:1, c:16, y:12, x:12]: f32 = sum(k:16, i:3, j:3) (X[0, k, y + i - 1, x + j - 1] else 0.0) * G[c, k, i, j]
      B[n:1, c:16, y:12, x:12]: f32 = max(A[0, c, y, x], 0.0)
      D[n:1, c:16, y:12, x:12]: f32 = sum(k:16, i:3, j:3) (B[0, k, y + i - 1, x + j - 1] else 0.0) * G[c, k, i, j]
      Z[n:1, c:16]: f32 = max(y:12, x:12) D[0, c, y, x]
    }"""
    parsed = parse_program(two)
    weights = np.random.default_rng(0).standard_normal((16, 16, 3, 3)).astype(np.float32)
    before = type(parsed)(**{**{f: getattr(parsed, f) for f in parsed.__dataclass_fields__}, "data": {"G": weights}})
    passes = default_pipeline().replace("winograd", "winograd{gain=1e9}")
    ran = check(before, passes=passes)
    assert [ran.kinds[s.kernel] for s in ran.program.body.body] == [
        "blocks", "contraction", "blocks", "blocks", "contraction", "blocks", "points",
    ]  # fmt: skip


def steps(text: str) -> list[Einsum]:
    return [s for s in parse_program(text).body.body if isinstance(s, Einsum)]


WHOLE = ["S[t:3, e:4, c:16] = X[t, c] + 1.0", "O[y:12, c:16] = S[y // 4, y % 4, c] * 2.0"]
CONDITIONS = {
    "as it is": (WHOLE, True),
    "another block": ([WHOLE[0], "O[y:12, c:16] = S[(y + 4) // 4 - 1, y % 4, c] * 2.0"], True),
    "a neighbour's block": ([WHOLE[0], "O[y:8, c:16] = S[y // 4 + 1, y % 4, c] * 2.0"], False),
    "a block of another size": (["S[t:3, e:4, c:16] = X[t, c]", "O[y:6, c:16] = S[y // 2, y % 4, c]"], False),
    "only some blocks": ([WHOLE[0], "O[y:8, c:16] = S[y // 4, y % 4, c]"], False),
    "a point that the task decides": (["S[t:3, e:4, c:16] = X[t, c]", "O[t:3, c:16] = S[t, t, c]"], False),
    "lanes in the block": (["S[t:3, c:16, e:4] = X[t, c]", "O[t:3, c:16] = S[t, c, 1]"], False),
    "short lanes": (["S[t:3, e:4, c:4] = X[t, c]", "O[t:3, c:4] = S[t, 1, c]"], False),
    "a sum": (["S[t:3, e:4, c:16] = X[t, c]", "O[t:3, c:16] = sum(e:4) S[t, e, c]"], False),
    "too many points": (["S[t:3, e:65, c:16] = X[t, c]", "O[t:3, c:16] = S[t, 1, c]"], False),
    "two ranks follow one task": (["S[t:3, e:4, c:16] = X[t, c]", "O[y:12, z:12, c:16] = S[y // 4, y % 4, c] + S[z // 4, z % 4, c]"], False),
    "a rank beside the task it follows": (["S[t:3, e:4, c:16] = X[t, c]", "O[t:3, y:12, c:16] = S[y // 4, y % 4, c] + S[t, 0, c]"], False),
    "a step without the task": (["S[t:3, e:4, c:16] = X[t, c]", "O[e:4, c:16] = X[0, c]"], False),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions(name: str) -> None:
    lines, wanted = CONDITIONS[name]
    body = "\n".join(lines)
    text = f"program p(X: f32[4, 16]) -> (O) {{\n{body}\n}}"
    assert unrolls(steps(text), ("t", "c")) == wanted


@pytest.mark.skipif(not host_flags().issuperset(AVX512.features), reason="the host lacks this level")
def test_the_host_runs_them() -> None:
    """Odd sizes through the whole compiler, against the interpreter of the direct form."""
    import dlc
    from dlc.ir.interpret import run_program

    for size in (5, 8):
        before = convolution(size, size + 1, 24, 16)
        x = np.random.default_rng(0).standard_normal((1, 24, size, size + 1)).astype(np.float32)
        (want,) = run_program(before, [x], before.data)
        exe = dlc.compile(before, passes=default_pipeline().replace("winograd", "winograd{gain=1e9}"), target=str(AVX512))
        np.testing.assert_allclose(exe(x), want, atol=2e-5 * np.abs(want).max())


def test_what_is_no_block_is_no_kernel() -> None:
    """Every element is written where a step pairs all blocks, and rows of another task are not read."""
    import dlc
    from dlc.ir.interpret import run_program

    head = "program p(X: f32[8, 64]) -> (O) {\n"
    softmax = (
        "G[t:8] = max(c:64) X[t, c]\nE[t:8, c:64] = exp(X[t, c] - G[t])\nD[t:8] = sum(c:64) E[t, c]\nS[t:8, c:64] = E[t, c] / D[t]\n"
    )
    bodies = (
        "S[t:8, c:64] = exp(X[t, c])\nO[t:8, y:32, c:64] = S[t, c] * S[y // 4, c]",
        "S[t:8, c:64] = exp(X[t, c])\nO[y:16, z:16, c:64] = S[y // 2, c] + S[z // 2, c]",
        softmax + "O[t:8, y:32, c:64] = S[t, c] * S[y // 4, c]",
    )
    x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    for body in bodies:
        text = head + body + "\n}"
        (want,) = run_program(parse_program(text), [x])
        np.testing.assert_allclose(dlc.compile(text)(x), want, rtol=1e-5)


def test_a_step_without_ranks_is_no_block() -> None:
    text = "program p(X: f32[4]) -> (Y) {\n  F[]: f32 = X[1] * 0.5\n  G[]: f32 = F[] - 0.3\n  Y[t:4]: f32 = X[t] * G[]\n}"
    assert not unrolls(steps(text), ())
