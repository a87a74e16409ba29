"""All models of the zoo by name.

    entry = ZOO["bert_base"]
    model = entry.make()
    exported = torch.export.export(model, entry.example(), dynamic_shapes=entry.dynamic_shapes, strict=False)

Each has the original configuration and random weights, except `minilm`, which has its published weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tests.models import audio, causal, dense, text, vision
from tests.models.entry import Entry
from tests.models.recurrence import symbolic_recurrence

ZOO: dict[str, Entry] = {
    entry.name: entry
    for entry in (*text.ENTRIES, *causal.ENTRIES, *vision.ENTRIES, *audio.ENTRIES, *dense.ENTRIES)
}


def export(entry: Entry, model: torch.nn.Module | None = None) -> torch.export.ExportedProgram:
    """`torch.export.export` of the entry with symbolic batch (and length), operators as exported."""
    module = entry.make() if model is None else model
    with torch.no_grad(), symbolic_recurrence():  # with gradients on, the model's own `no_grad` blocks are sub-graphs
        return torch.export.export(module, entry.example(), dynamic_shapes=entry.dynamic_shapes, strict=False)


def export_onnx(entry: Entry, path: Path, model: torch.nn.Module | None = None) -> Path:
    """Write the model by `torch.onnx.export` with symbolic batch (and length) as named dimensions.

    Weights lie beside the file, as external data.
    """
    module = entry.make() if model is None else model
    with torch.no_grad(), symbolic_recurrence():
        torch.onnx.export(
            module,
            entry.example(),
            path,
            dynamo=True,
            dynamic_shapes=entry.dynamic_shapes,
            output_names=list(entry.outputs),
            external_data=True,
            verbose=False,
        )
    return path
