"""Small ONNX models in onnx's own text form, imported and interpreted; onnx's reference evaluator is the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import parser
from onnx.reference import ReferenceEvaluator

from dlc.frontend.imported import Imported
from dlc.frontend.onnx_import import import_for
from dlc.ir.interpret import run_program
from dlc.ir.verify import verify


def parse(text: str, opset: int = 18) -> Any:
    """A model from the text of its graph, `g (float[n] x) => (float[n] y) { y = Relu(x) }`."""
    head = "" if text.lstrip().startswith("<") else f'<ir_version: 9, opset_import: ["" : {opset}]>\n'
    model = parser.parse_model(head + text)
    onnx.checker.check_model(model)
    return model


def evaluate(imported: Imported, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """The program's outputs, after the verifier has passed it."""
    verify(imported.program)
    return run_program(imported.program, list(inputs))


def check(text: str | Any, inputs: Mapping[str, Any], *, opset: int = 18, rtol: float = 1e-5, **options: Any) -> Imported:
    """Import, interpret, compare with the reference evaluator; returns what was imported."""
    model = parse(text, opset) if isinstance(text, str) else text
    expected = ReferenceEvaluator(model).run(None, dict(inputs))
    imported = import_for(model, inputs, **options)
    got = evaluate(imported, [inputs[n] for n in imported.input_names])
    assert len(got) == len(expected)
    for a, e in zip(got, expected, strict=True):
        e = np.asarray(e)
        assert a.dtype == e.dtype and a.shape == e.shape, (a.dtype, a.shape, e.dtype, e.shape)
        np.testing.assert_allclose(a, e, rtol=rtol, atol=1e-6)
    return imported


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
