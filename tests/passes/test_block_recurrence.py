"""Causal sums as recurrences over blocks: the same results for every length, and what must stay quadratic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.passes.samples import random_inputs
from tests.passes.test_running_reduction import assert_within_bounds, scans

from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.verify import verify
from dlc.passes.block_recurrence import BlockRecurrence
from dlc.passes.pipeline import BadOption
from dlc.passes.refusals import Reason

RECURRENCES = sorted((Path(__file__).parent / "recurrences").glob("*.ein"))
SIZES = {"h": 2, "e": 3, "f": 2, "c": 3}


@pytest.mark.parametrize("file", RECURRENCES, ids=lambda f: f.stem)
def test_recurrence(file: Path, golden: Callable[..., None]) -> None:
    before = parse_program(file.read_text())
    rule = BlockRecurrence(block=4)
    after = rule.apply(before)
    verify(after)
    assert scans(after) == (2 if file.stem == "linear-attention" else 1) and rule.explain(before) == ()
    golden(f"{before}\n\n{after}")
    assert parse_program(str(after)) == after
    for n, block in ((11, 4), (8, 4), (3, 4), (5, 1), (0, 4)):
        inputs = random_inputs(before, {**SIZES, "p": n, "t": n}, n)
        if file.stem == "retention":
            inputs[3] = np.array([0.9, 0.0], np.float32)
        other = BlockRecurrence(block=block).apply(before)
        assert_within_bounds(before, other, inputs)


def test_long_decay_neither_overflows_nor_loses_the_near() -> None:
    """`0.5^(p - m)` over 600 positions: powers are split at the start of a block, never divided."""
    before = parse_program(RECURRENCES[-1].read_text())
    after = BlockRecurrence(block=64).apply(before)
    inputs = random_inputs(before, {"h": 2, "e": 3, "f": 2, "p": 600}, 0)
    inputs[3] = np.array([0.5, 1.0], np.float32)
    exact = parse_program(str(before).replace("f32", "f64"))
    (truth,) = run_program(exact, [x.astype(np.float64) for x in inputs])
    (plain,), (got,) = run_program(before, inputs), run_program(after, inputs)
    size = np.abs(truth).max()
    assert np.abs(got - truth).max() <= 8 * np.abs(plain - truth).max() + 64 * 2.0**-24 * size


@pytest.mark.parametrize(
    ("steps", "reason", "detail"),
    [
        ("T[p] = sum(m:p) tanh(X[p] - X[m]) where m <= p", Reason.INSEPARABLE, "tanh("),
        ("T[p] = sum(m:p) X[m] * pow(2.0, cast<f32>(p - 2*m)) where m <= p", Reason.INSEPARABLE, "pow("),
        ("T[p] = sum(m:p) X[m] * pow(X[m], cast<f32>(p - m)) where m <= p", Reason.INSEPARABLE, "pow("),
        ("T[p] = sum(m:p) X[m] * exp(X[p] * cast<f32>(p - m)) where m <= p", Reason.INSEPARABLE, "exp("),
        ("T[p] = sum(m:p) X[m] * cast<f32>(p - m) where m <= p", Reason.INSEPARABLE, "cast<f32>"),
        ("T[p] = sum(m:p) X[p] where m <= p", Reason.INSEPARABLE, "no factor of 'T' has 'm'"),
        ("W[p, m:p] = max(e) X[p] * Y[m, e]\n  T[p] = sum(m:p) W[p, m] where m <= p", Reason.OPAQUE, "W[p, m]"),
        ("W[p, m:p] = sum(e) X[p] * Y[m, e] where m < p\n  T[p] = sum(m:p) W[p, m] where m <= p", None, ""),
        ("T[p] = sum(m:p) X[p] * X[m] where m < p", None, ""),
        ("T[p] = sum(m:p) X[p] * X[m] where m <= p & m > p - 3", None, ""),
        ("T[p] = max(m:p) X[p] * X[m] where m <= p", None, ""),
        ("T[p] = sum(m:p) X[p] * X[m]", None, ""),
    ],
)
def test_refused(steps: str, reason: Reason | None, detail: str) -> None:
    """Other weights, windows, and maxima stay as they are; what looks like a causal product says why it is none."""
    before = parse_program(f"cascade f(X: f32[p], Y: f32[p, e]) -> (T) {{\n  {steps}\n}}")
    rule = BlockRecurrence(block=4)
    assert scans(rule.apply(before)) == 0
    found = rule.explain(before)
    assert [r.reason for r in found] == ([] if reason is None else [reason])
    assert all(detail in r.detail and r.loc.line > 1 and (r.tensor, r.rank) == ("T", "m") for r in found)


def test_short_ranks_stay() -> None:
    before = parse_program("cascade f(X: f32[8]) -> (T) {\n  T[p:8] = sum(m:8) X[p] * X[m] where m <= p\n}")
    assert BlockRecurrence(block=8).apply(before) is before
    assert [r.reason for r in BlockRecurrence(block=8).explain(before)] == [Reason.SHORT]
    assert scans(BlockRecurrence(block=4).apply(before)) == 1


def test_block_must_be_positive() -> None:
    with pytest.raises(BadOption, match="'block' of pass 'block-recurrence' takes at least 1"):
        BlockRecurrence(block=0)
