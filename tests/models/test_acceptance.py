"""Whole models from a saved artifact equal eager PyTorch (a sample here; all of them with --all)."""

from __future__ import annotations

import pytest

from tests.ledger import Ledger, source_digest
from tests.models.acceptance import ROUTES, check
from tests.models.zoo import ZOO

SAMPLE = {("minilm", "onnx"), ("lstm_tagger", "torch"), ("mobilenet_v2", "torch")}
CASES = [
    pytest.param(name, route, marks=[] if (name, route) in SAMPLE else [pytest.mark.slow], id=f"{name}-{route}")
    for name in ZOO
    for route in ROUTES
]


@pytest.mark.parametrize(("name", "route"), CASES)
def test_equals_eager_from_a_saved_artifact(name: str, route: str) -> None:
    ledger = Ledger("models")
    key = ledger.key(f"{name}/{route}", digest=source_digest(), packages=("torch", "onnx"))
    row = ledger.get(key)
    if row is None:
        row = check(ZOO[name], route)
        ledger.put(key, row)
    assert row["ok"], row
