"""The zoo itself: models are reproducible and well-conditioned, and both exporters take them with symbolic extents."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.entry import BATCHES, Entry
from tests.models.zoo import ZOO, export, export_onnx

QUICK = ("lstm_tagger", "unet", "minilm")
ENTRIES = [pytest.param(e, id=e.name, marks=() if e.name in QUICK else pytest.mark.slow) for e in ZOO.values()]
TOLERANCE = 2e-5  # largest difference relative to the largest output, between two correct implementations in f32


def _run(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        result = model(*inputs)
    return (result,) if isinstance(result, torch.Tensor) else tuple(result)


def _difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    assert expected.shape == actual.shape
    return float((expected - actual).abs().max() / expected.abs().max())


def _cases(entry: Entry) -> list[tuple[torch.Tensor, ...]]:
    return [entry.inputs(batch, length, 7) for batch in BATCHES for length in entry.lengths]


@pytest.mark.parametrize("entry", ENTRIES)
def test_make_is_reproducible_and_outputs_depend_on_inputs(entry: Entry) -> None:
    one, two = entry.make(), entry.make()
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    first = _run(one, entry.inputs(2, entry.lengths[0], 1))
    second = _run(one, entry.inputs(2, entry.lengths[0], 2))
    assert len(first) == len(entry.outputs)
    for a, b in zip(first, second, strict=True):
        assert torch.isfinite(a).all()
        assert 0.03 < float(a.std()) < 3
        assert float((a - b).std()) > 0.03 * float(a.std())


@pytest.mark.parametrize("entry", ENTRIES)
def test_rounding_errors_stay_small(entry: Entry) -> None:
    model, inputs = entry.make(), entry.inputs(2, entry.lengths[-1], 3)
    wide = tuple(t.double() if t.is_floating_point() else t for t in inputs)
    for a, b in zip(_run(model, inputs), _run(copy.deepcopy(model).double(), wide), strict=True):
        assert _difference(b, a.double()) < TOLERANCE


@pytest.mark.parametrize("entry", ENTRIES)
def test_torch_export_serves_every_batch_and_length(entry: Entry) -> None:
    model = entry.make()
    exported = export(entry, model).module()
    for inputs in _cases(entry):
        for a, b in zip(_run(model, inputs), _run(exported, inputs), strict=True):
            assert _difference(a, b) < TOLERANCE


@pytest.mark.parametrize("entry", ENTRIES)
def test_onnx_export_serves_every_batch_and_length(entry: Entry, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = entry.make()
    session = onnxruntime.InferenceSession(export_onnx(entry, tmp_path / "model.onnx", model))
    names = [given.name for given in session.get_inputs()]
    for inputs in _cases(entry):
        results = session.run(None, {n: t.numpy() for n, t in zip(names, inputs, strict=True)})
        for a, b in zip(_run(model, inputs), results, strict=True):
            assert _difference(a, torch.from_numpy(np.asarray(b))) < TOLERANCE


@pytest.mark.slow
def test_whisper_wrapper_equals_the_encoder_it_wraps() -> None:
    entry = ZOO["whisper_tiny_encoder"]
    model = entry.make()
    inputs = entry.inputs(2, 3000, 5)
    with torch.no_grad():
        expected = model.encoder(inputs[0]).last_hidden_state
    assert _difference(expected, _run(model, inputs)[0]) < 1e-6


@pytest.mark.slow
def test_decoding_continues_a_prefill() -> None:
    prefill, decode = ZOO["smollm2_prefill"].make(), ZOO["smollm2_decode"].make()
    (ids,) = ZOO["smollm2_prefill"].inputs(2, 12, 9)
    whole = _run(prefill, (ids,))
    start = _run(prefill, (ids[:, :-1],))
    step = _run(decode, (ids[:, -1:], *start[1:]))
    assert _difference(whole[0][:, -1:], step[0]) < TOLERANCE
    for a, b in zip(whole[1:], step[1:], strict=True):
        assert _difference(a, b) < TOLERANCE
