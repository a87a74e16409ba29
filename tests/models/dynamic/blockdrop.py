"""BlockDrop: a policy network looks at the image once and decides which blocks of FlatResNet-32 are computed.

Three segments of five blocks of 16, 32 and 64 channels; the policy is a ResNet-8 with a sigmoid for each block.

Source: Wu, Nagarajan, Kumar, Rennie, Davis, Grauman and Feris, BlockDrop: Dynamic Inference Paths in Residual Networks,
CVPR 2018 (arXiv 1711.08393), section 3.
"""

from __future__ import annotations

import torch
from tests.models.dynamic.entry import Dynamic, batch_of, picture, standardise
from tests.models.dynamic.shallow_deep import SIZE, Pooled, Residual, convolution, residual_blocks
from tests.models.entry import calibrate_batch_norm, randomise
from torch import nn
from torch.nn import functional

SEGMENTS, BLOCKS = 3, 5
SOURCE = "Wu et al., CVPR 2018 (arXiv 1711.08393)"


class Branch(nn.Module):
    """Two convolutions without a shortcut."""

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(channels, features, 3, stride)
        self.second = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.second(self.first(x)))


class Downsample(nn.Module):
    """A shortcut without weights: every other position, and new channels that are zero."""

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.missing = (features - channels) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.missing == 0:
            return x
        x = functional.avg_pool2d(x, 2)
        return functional.pad(x, (0, 0, 0, 0, self.missing, self.missing))


class Policy(nn.Module):
    """ResNet-8: probabilities f32[N, 15] of computing each block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = convolution(3, 16, 3)
        self.blocks = nn.Sequential(*residual_blocks(Residual, (16, 32, 64), 1, 16))
        self.linear = nn.Linear(64, SEGMENTS * BLOCKS)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.stem(x)).mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.linear(self.features(x)))


class BlockDrop(nn.Module):
    """The policy and the network that it steers."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = Policy()
        self.stem = convolution(3, 16, 3)
        widths = (16, 16, 32, 64)
        self.segments = nn.ModuleList(
            nn.ModuleList(
                Branch(widths[s] if b == 0 else widths[s + 1], widths[s + 1], 2 if b == 0 and s else 1)
                for b in range(BLOCKS)
            )
            for s in range(SEGMENTS)
        )
        self.shortcuts = nn.ModuleList(Downsample(widths[s], widths[s + 1]) for s in range(SEGMENTS))
        self.head = Pooled(64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores f32[1, 10] and the policy, i64[15]."""
        probabilities = self.policy(x)
        policy = (probabilities > 0.5).long().squeeze(0)
        x = self.stem(x)
        t = 0
        for segment, blocks in enumerate(self.segments):
            for b, block in enumerate(blocks):
                residual = self.shortcuts[segment](x) if b == 0 else x
                if policy[t] == 1:
                    x = torch.relu(residual + block(x))
                else:
                    x = residual
                t += 1
        return self.head(x), policy


class Everything(nn.Module):
    """Policy and all blocks, to fit batch norms with."""

    def __init__(self, model: BlockDrop) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.model.policy(x)
        x = self.model.stem(x)
        for shortcut, blocks in zip(self.model.shortcuts, self.model.segments):
            for b, block in enumerate(blocks):
                x = torch.relu((shortcut(x) if b == 0 else x) + block(x))
        return x


def blockdrop() -> nn.Module:
    model = BlockDrop()
    randomise(model, 71)
    with torch.no_grad():
        for blocks in model.segments:
            for block in blocks:
                block.norm.weight.mul_(0.4)
    (x,) = batch_of(picture(SIZE))
    calibrate_batch_norm(Everything(model), (x,))
    model.eval()
    with torch.no_grad():
        standardise(model.policy.linear, model.policy.features(x), spread=2.0)
    return model


ENTRIES = (Dynamic("blockdrop", blockdrop, picture(SIZE), SOURCE),)
