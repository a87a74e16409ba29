"""Running reductions: what attention becomes, and that it computes the same, extreme logits and empty rows included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.passes.samples import random_inputs

from dlc.ir.einsum import Scan
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.ir.verify import verify
from dlc.passes.running_reduction import RunningReduction

CASCADES = Path(__file__).parent / "cascades"
SIZES = {"a": 3, "z": 10, "b": 2, "h": 2, "g": 3, "p": 5, "m": 11, "e": 4, "f": 3, "k": 4, "n": 6}


def load(name: str) -> Program:
    return parse_program((CASCADES / f"{name}.ein").read_text())


@pytest.mark.parametrize("name", sorted(f.stem for f in CASCADES.glob("*.ein")))
def test_cascade(name: str, golden: Callable[..., None]) -> None:
    before = load(name)
    after = RunningReduction(block=4).apply(before)
    verify(after)
    assert any(isinstance(s, Scan) for s in after.body.body)
    golden(f"{before}\n\n{after}")
    for seed in range(3):
        inputs = random_inputs(before, SIZES, seed)
        for want, got in zip(run_program(before, inputs), run_program(after, inputs), strict=True):
            np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)
