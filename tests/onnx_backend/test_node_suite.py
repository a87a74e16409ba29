"""ONNX's node cases: interpreted (a sample always, all when slow), compiled to a file and run (a sample; all when slow)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.onnx_backend.runner import Outcome, compare, is_near, node_cases, run_all, run_case, summary

# Cases whose expected values carry the reference's own rounding; see `is_near`.
KNOWN_NEAR = ("test_dft_inverse", "_bf16")


def faults(outcomes: Sequence[Outcome]) -> list[str]:
    """Outcomes that must not be: wrong numbers, crashes, refusals without a reason."""
    bad = [f"{o.name}: {o.status} {o.code} {o.reason}" for o in outcomes if o.status in ("wrong", "crash")]
    bad += [f"{o.name}: {o.reason}" for o in outcomes if o.status == "refused" and " because " not in o.reason]
    bad += [f"{o.name}: near" for o in outcomes if o.status == "near" and not any(k in o.name for k in KNOWN_NEAR)]
    return bad


def test_a_sample_interpreted():
    outcomes = run_all(list(node_cases())[3::40], jobs=1)
    assert not faults(outcomes)
    assert sum(o.status == "pass" for o in outcomes) > 0.8 * len(outcomes)


@pytest.mark.slow
def test_every_case_interpreted():
    outcomes = run_all(node_cases())
    counts = summary(outcomes)
    assert not faults(outcomes)
    assert counts["pass"] >= 1600 and counts["pass native"] >= 1300, counts


@pytest.mark.parametrize("name", ["test_add", "test_softmax_axis_1", "test_conv_with_strides_padding", "test_lstm_defaults"])
def test_compiled_and_loaded(name):
    from tests.onnx_backend.runner import compiled

    assert run_case(name, compiled).status == "pass"


@pytest.mark.slow
def test_every_case_compiled():
    outcomes = run_all(node_cases(), "compiled")
    assert not faults(outcomes)
    assert summary(outcomes)["pass"] >= 1300


def test_the_comparison_sees_differences():
    import numpy as np

    x = np.arange(4, dtype=np.float32)
    assert not compare([x], [x], 1e-3, 1e-7)
    assert "differs" in compare([x + 1], [x], 1e-3, 1e-7)
    assert "type" in compare([x.astype(np.float64)], [x], 1e-3, 1e-7)
    assert "shape" in compare([x[None]], [x], 1e-3, 1e-7)
    assert "outputs" in compare([], [x], 1e-3, 1e-7)
    assert not is_near([x + 0.1], [x]) and is_near([x * np.float32(1 + 1e-7)], [x])


def test_docs_hold_the_table():
    text = (Path(__file__).parents[2] / "docs" / "onnx-operators.md").read_text()
    assert "| Conv |" in text and " give wrong numbers" in text
