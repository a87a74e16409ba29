"""Blocks that repeat are compiled once: kernels and cascades of a network do not grow with its depth or number of steps.

Source: Chen et al., DyCL (ISSTA 2023), whose unrolled networks have a sub-DNN for each occurrence (table 2).
"""

from __future__ import annotations

import pytest
import torch
from tests.models.dynamic.captioner import Captioner
from tests.models.dynamic.shallow_deep import Pooled, Residual, convolution, residual_blocks
from tests.models.dynamic.skipnet import FeedForwardGate
from tests.models.entry import randomise
from torch import nn

import dlc


class Skipping(nn.Module):
    """SkipNet with feed-forward gates, of any depth: three groups of `count` blocks, all gated but the first of each.

    Each gate has its own bias, of one element, and its own threshold, so that both are literals of its kernel.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.thresholds = [0.45 + 0.01 * k for k in range(3 * count)]
        self.stem = convolution(3, 8, 3)
        self.blocks = nn.ModuleList(residual_blocks(Residual, (8, 16, 32), count, 8))
        self.gates = nn.ModuleList(FeedForwardGate(8 << (k // count)) if k % count else nn.Identity() for k in range(3 * count))
        self.head = Pooled(32)
        randomise(self, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        x = self.stem(x)
        taken = []
        for k, block in enumerate(self.blocks):
            if k % self.count == 0:
                x = block(x)
            elif self.gates[k](x).item() > self.thresholds[k]:
                x = block(x)
                taken.append(1)
            else:
                taken.append(0)
        return self.head(x), taken


IMAGE = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_kernels_of_a_skipnet_do_not_grow_with_its_depth() -> None:
    four, eight = (dlc.compile(Skipping(n).eval(), (IMAGE,), cache=False).compile_report for n in (4, 8))
    assert four.distinct == eight.distinct
    assert eight.launches > four.launches + 12


@pytest.mark.parametrize("backend", [None, "eager"])
def test_each_gate_of_a_skipnet_decides_by_its_own_numbers(backend: str | None) -> None:
    model = Skipping(4).eval()
    exe = dlc.compile(model, (IMAGE,), **({"backend": backend} if backend else {"cache": False}))
    decisions = set()
    for seed in range(6):
        x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * (1 + seed)
        (logits, taken), (expected, chosen) = exe(x), model(x)
        assert [int(t) for t in taken] == chosen
        torch.testing.assert_close(torch.as_tensor(logits), expected, rtol=1e-4, atol=1e-4)
        decisions.add(tuple(chosen))
    assert len(decisions) > 1


def test_a_skipnet_has_no_more_cascades_than_distinct_blocks() -> None:
    """Per group: the gated block; a gate after a block; a gate after a skipped one; the first block and its gate. And the head."""
    cascades = [len(dlc.compile(Skipping(n).eval(), (IMAGE,), backend="eager").program.kernels) for n in (4, 8)]
    assert cascades[0] == cascades[1] <= 3 * 4 + 1


@pytest.mark.parametrize("backend", [None, "eager"])
def test_a_captioner_compiles_to_one_step_of_it(backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Captioner(nn.Sequential(convolution(3, 8, 3)), 8)
    randomise(model, 4)
    found = []
    for limit in (20, 200):
        monkeypatch.setattr("tests.models.dynamic.captioner.LIMIT", limit)
        exe = dlc.compile(model.eval(), (IMAGE,), **({"backend": backend} if backend else {"cache": False}))
        found.append(len(exe.program.kernels) if backend else exe.compile_report.distinct)
    assert found[0] == found[1]
