"""ONNX's node cases: interpreted (a sample always, all when slow), compiled to a file and run (a sample; all when slow)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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


def ledger() -> Any:
    """Where results of the whole suite are kept until something they depend on changes."""
    from ledger import Ledger

    return Ledger("onnx_nodes")


def test_a_sample_interpreted():
    outcomes = run_all(list(node_cases())[3::40], jobs=1)
    assert not faults(outcomes)
    assert sum(o.status == "pass" for o in outcomes) > 0.8 * len(outcomes)


@pytest.mark.slow
def test_every_case_interpreted():
    outcomes = run_all(node_cases(), ledger=ledger())
    counts = summary(outcomes)
    assert not faults(outcomes)
    assert counts["pass"] >= 1600 and counts["pass native"] >= 1300, counts


@pytest.mark.parametrize("name", ["test_add", "test_softmax_axis_1", "test_conv_with_strides_padding", "test_lstm_defaults"])
def test_compiled_and_loaded(name):
    from tests.onnx_backend.runner import compiled

    assert run_case(name, compiled).status == "pass"


@pytest.mark.slow
def test_every_case_compiled():
    outcomes = run_all(node_cases(), "compiled", ledger=ledger())
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


@pytest.mark.slow
@pytest.mark.parametrize("part", range(6))
def test_random_inputs_agree_with_the_reference(part):
    """Other data than the cases' own, against onnx's reference evaluator."""
    import numpy as np
    from onnx.reference import ReferenceEvaluator

    from dlc.errors import DlcError
    from dlc.frontend.onnx_import import import_for
    from tests.onnx_backend.runner import data_sets, flatten, interpret, model_of

    r = np.random.default_rng(part)
    # The reference sums the elements, not their absolute values, for p = 1; and one-hot indices here are floats.
    left_out = ("test_l1normalization", "test_onehot")
    names = [n for n in node_cases() if "expanded" not in n and not n.startswith(left_out)][part::30]
    agreed = 0
    for name in names:
        case = node_cases()[name]
        model = model_of(case)
        inputs = [
            (r.standard_normal(v.shape) * 4).astype(v.dtype) if isinstance(v, np.ndarray) and v.dtype.kind == "f" and v.size > 1 else v
            for v in data_sets(case)[0][0]
        ]
        given = dict(zip([i.name for i in model.graph.input], inputs, strict=False))
        try:
            got = interpret(import_for(model, given), flatten(inputs))
            want = flatten(ReferenceEvaluator(model).run(None, given))
        except DlcError:
            continue
        except Exception:  # the reference cannot do it
            continue
        difference = compare(got, want, 1e-3, 1e-5)
        assert not difference or is_near(got, want), f"{name}: {difference}"
        agreed += 1
    assert agreed > len(names) // 2
