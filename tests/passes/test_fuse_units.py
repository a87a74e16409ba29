"""A batch of one: what follows a contraction still runs on its tile, though indices of extent 1 were simplified to 0."""

from __future__ import annotations

import numpy as np

from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.verify import verify
from dlc.passes.fuse import Fuse

TEXT = """
program f(x: f32[1, m, 8], w: f32[8, 16], b: f32[16]) -> (z) symbols (m in 0..) {
  y[i:1, j:m, k:16]: f32 = sum(r:8) x[0, j, r] * w[r, k]
  z[i:1, j:m, k:16]: f32 = max(y[0, j, k] + b[k], 0.0)
}
"""


def test_the_epilogue_of_a_batch_of_one() -> None:
    before = parse_program(TEXT)
    after = Fuse().apply(before)
    verify(after)
    (kernel,) = after.kernels
    assert len(kernel.cascade.steps) == 2
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(s).astype(np.float32) for s in ((1, 3, 8), (8, 16), (16,))]
    np.testing.assert_array_equal(run_program(before, inputs)[0], run_program(after, inputs)[0])


def test_two_ranks_of_extent_1() -> None:
    """Each stands for its own dimension."""
    text = TEXT.replace("i:1, j:m", "i:1, h:1, j:m").replace("y[0, j", "y[0, 0, j")
    after = Fuse().apply(parse_program(text))
    verify(after)
    (kernel,) = after.kernels
    assert len(kernel.cascade.steps) == 2
