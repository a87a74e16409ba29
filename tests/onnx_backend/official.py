"""ONNX's own test runner over the dlc backend, node cases only. Not collected by default; `pytest tests/onnx_backend/official.py`."""

from __future__ import annotations


from onnx.backend.test import BackendTest


from tests.onnx_backend.backend import DlcBackend

suite = BackendTest(DlcBackend, __name__)
suite.include("^test_.*_cpu$")
suite.exclude("_(resnet|vgg|alexnet|inception|densenet|bvlc|shufflenet|squeezenet|zfnet)")

globals().update(suite.test_cases)
