"""SkipNet: ResNet-38 whose gates decide, block by block, whether the next one is computed.

Blocks (6, 6, 6) of 16, 32 and 64 channels for images of 32 x 32. The recurrent gate is one LSTM for all blocks that reads the
mean of the activations; the feed-forward gate is a small network for each block. The first block has no gate, and
neither has one that changes the shape.

Source: Wang, Yu, Dou, Darrell and Gonzalez, SkipNet: Learning Dynamic Routing in Convolutional Networks, ECCV 2018
(arXiv 1711.09485), section 3 and figure 3 (FFGate-II, RNNGate).
"""

from __future__ import annotations

import torch
from tests.models.dynamic.entry import Dynamic, batch_of, picture, standardise, threshold_at
from tests.models.dynamic.shallow_deep import SIZE, Pooled, Residual, convolution, residual_blocks
from tests.models.entry import calibrate_batch_norm, randomise
from torch import nn

HIDDEN = 10
SOURCE = "Wang et al., ECCV 2018 (arXiv 1711.09485)"


class FeedForwardGate(nn.Module):
    """A convolution of stride 2, the mean over positions, a linear layer to one score."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = convolution(channels, channels, 3, stride=2)
        self.linear = nn.Linear(channels, 1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.convolution(x).mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.linear(self.features(x)))


class RecurrentGate(nn.Module):
    """An LSTM over the blocks, whose state goes from gate to gate."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(HIDDEN, HIDDEN)
        self.score = nn.Linear(HIDDEN, 1)

    def forward(
        self, x: torch.Tensor, state: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        hidden, cell = self.cell(x, state)
        return torch.sigmoid(self.score(hidden)), (hidden, cell)


class Blocks(nn.Module):
    """What both have: the network without its gates."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 16, 3)
        self.blocks = nn.ModuleList(residual_blocks(Residual, (16, 32, 64), 6, 16))
        self.head = Pooled(64)
        self.gated = [k for k in range(18) if k % 6]
        self.thresholds = [0.5] * 18

    def every(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class SkipNetFeedForward(Blocks):
    """A gate for each block."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(FeedForwardGate(16 << (k // 6)) if k % 6 else nn.Identity() for k in range(18))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Scores f32[1, 10], and which blocks were computed."""
        x = self.stem(x)
        taken = []
        for k, block in enumerate(self.blocks):
            if k % 6 == 0:
                x = block(x)
                continue
            gate = self.gates[k](x)
            if gate.item() > self.thresholds[k]:
                x = block(x)
                taken.append(1)
            else:
                taken.append(0)
        return self.head(x), taken


class SkipNetRecurrent(Blocks):
    """One recurrent gate."""

    def __init__(self) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(16 << group, HIDDEN) for group in range(3))
        self.gate = RecurrentGate()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores f32[1, 10], and which blocks were computed, bool[15]."""
        x = self.stem(x)
        state = (x.new_zeros(1, HIDDEN), x.new_zeros(1, HIDDEN))
        taken = []
        for k, block in enumerate(self.blocks):
            if k % 6 == 0:
                x = block(x)
                continue
            probability, state = self.gate(self.projections[k // 6](x.mean(dim=(2, 3))), state)
            compute = probability[0, 0] > self.thresholds[k]
            taken.append(compute)
            if compute:
                x = block(x)
        return self.head(x), torch.stack(taken)


class Everything(nn.Module):
    """All blocks and gates, to fit batch norms with."""

    def __init__(self, model: Blocks) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.model.stem(x)
        for k, block in enumerate(self.model.blocks):
            if k % 6 and isinstance(self.model, SkipNetFeedForward):
                self.model.gates[k](x)
            x = block(x)
        return self.model.head(x)


def _prepared(model: Blocks, seed: int) -> torch.Tensor:
    randomise(model, seed)
    with torch.no_grad():
        for block in model.blocks:
            block.last.weight.mul_(0.4)
    (x,) = batch_of(picture(SIZE))
    calibrate_batch_norm(Everything(model), (x,))
    model.eval()
    return x


def feed_forward() -> nn.Module:
    model = SkipNetFeedForward()
    x = _prepared(model, 61)
    with torch.no_grad():
        x = model.stem(x)
        for k, block in enumerate(model.blocks):
            computed = block(x)
            if k in model.gated:
                gate = model.gates[k]
                standardise(gate.linear, gate.features(x), spread=2.0)
                values = gate(x)
                model.thresholds[k] = threshold_at(values, 0.6 if k % 2 else 0.4)
                computed = torch.where((values > model.thresholds[k])[:, :, None, None], computed, x)
            x = computed
    return model


def recurrent() -> nn.Module:
    model = SkipNetRecurrent()
    x = _prepared(model, 62)
    with torch.no_grad():
        model.gate.score.weight.mul_(6.0)
        x = model.stem(x)
        state = (x.new_zeros(len(x), HIDDEN), x.new_zeros(len(x), HIDDEN))
        seen = set()
        for k, block in enumerate(model.blocks):
            computed = block(x)
            if k in model.gated:
                projection, pooled = model.projections[k // 6], x.mean(dim=(2, 3))
                if k // 6 not in seen:
                    standardise(projection, pooled, spread=2.0)
                    seen.add(k // 6)
                values, state = model.gate(projection(pooled), state)
                model.thresholds[k] = threshold_at(values, 0.6 if k % 2 else 0.4)
                computed = torch.where((values > model.thresholds[k])[:, :, None, None], computed, x)
            x = computed
    return model


ENTRIES = (
    Dynamic("skipnet_rnn", recurrent, picture(SIZE), SOURCE),
    Dynamic("skipnet_ff", feed_forward, picture(SIZE), SOURCE),
)

