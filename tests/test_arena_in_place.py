"""A transformer's layer compiled with kernels that write in place and without: equal to the bit, in less memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import dlc
from dlc import compiler


class Layer(nn.Module):
    """Norms after residual sums, as in BERT: where the layer's memory is largest the residual dies."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x * 1.5)
        for _ in range(2):
            x = self.norm(x + self.down(nn.functional.gelu(self.up(x))))
        return torch.tanh(x)


@pytest.mark.parametrize("threads", [1, 2])
def test_equal_to_the_bit_in_less_memory(threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Layer().eval(), torch.randn(150, 64)
    shared = dlc.compile(model, (x,), threads=threads, dump_dir=tmp_path / "dump")
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "heirs_of", lambda program, kernels: {})
        apart = dlc.compile(model, (x,), threads=threads, cache=False)
    for scale in (1.0, 3.0, 1.0):
        assert torch.equal(shared(scale * x), apart(scale * x))
    assert _arena(shared) <= 0.84 * _arena(apart)
    buffers = json.loads((tmp_path / "dump/memory.json").read_text())["buffers"]
    assert any(buffer["in_place"] for buffer in buffers)
    assert torch.allclose(shared(x), model(x), atol=1e-5)


def _arena(executable: dlc.Executable) -> int:
    return max(plan.arena_bytes for plan in executable._plans.values())
