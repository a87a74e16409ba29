"""What the tests of passes share: random inputs for a program, and the comparison of what two programs compute."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.extent import evaluate
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.passes.pipeline import Pass

SPECIAL = (0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 3.0, -2.5, 1e-40, 1e30, float("inf"), float("-inf"), float("nan"))


def random_inputs(program: Program, sizes: Mapping[str, int], seed: int = 0, special: bool = False) -> list[Any]:
    """Inputs of the program's types at the given symbol values; with `special`, floats of every awkward kind."""
    rng = np.random.default_rng(seed)
    env = {"#" + n: v for n, v in sizes.items()}
    arrays = []
    for p in program.params:
        shape = tuple(int(evaluate(e, env)) for e in p.type.shape)
        kind = p.type.dtype.numpy
        if p.type.dtype.is_float:
            a = rng.choice(np.array(SPECIAL), shape) if special else rng.standard_normal(shape)
        elif kind == np.bool_:
            a = rng.random(shape) < 0.5
        else:
            a = rng.integers(0, 4, shape)
        arrays.append(np.asarray(a).astype(kind))
    return arrays


def outputs(program: Program, arrays: Sequence[Any]) -> tuple[Any, ...]:
    return run_program(program, arrays, program.data)


def assert_same_result(
    before: Program, after: Program, sizes: Mapping[str, int], *, special: bool = False, rtol: float = 0.0
) -> None:
    """Both verify, and compute the same outputs (NaN is NaN; bits are equal unless `rtol` allows a difference)."""
    if importlib.util.find_spec("dlc.ir.verify"):
        from dlc.ir.verify import verify

        verify(after)
    assert after.results == before.results
    for seed in range(3):
        arrays = random_inputs(before, sizes, seed, special)
        for a, b in zip(outputs(before, arrays), outputs(after, arrays), strict=True):
            assert a.dtype == b.dtype
            if rtol:
                np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol)
                continue
            np.testing.assert_array_equal(b, a)
            if a.dtype.kind == "f":
                number = ~np.isnan(a)
                np.testing.assert_array_equal(np.signbit(b)[number], np.signbit(a)[number])


def rewrite(text: str, step: Pass) -> tuple[Program, Program]:
    """The program of a text, before and after a pass."""
    before = parse_program(text)
    return before, step.apply(before)


def body(program: Program) -> list[str]:
    """The statements' text, one line each, without head and tail."""
    return [line.strip() for line in str(program).splitlines()[1:-1]]
