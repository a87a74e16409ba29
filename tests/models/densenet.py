"""DenseNet-121: every layer of a block reads what all layers before it wrote.

Source: Huang et al., Densely Connected Convolutional Networks, CVPR 2017 (arXiv 1608.06993), table 1.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

GROWTH = 32
"""Features that each layer adds."""


class DenseLayer(nn.Module):
    """From C channels to the same C and GROWTH more, by a 1 x 1 and a 3 x 3 convolution with norms before them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 4 * GROWTH, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * GROWTH)
        self.conv2 = nn.Conv2d(4 * GROWTH, GROWTH, 3, padding=1, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        narrow = self.conv1(nn.functional.relu(self.norm1(features)))
        new = self.conv2(nn.functional.relu(self.norm2(narrow)))
        return torch.cat([features, new], dim=1)


class Transition(nn.Sequential):
    """Half the channels at half the resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels // 2, 1, bias=False),
            nn.AvgPool2d(2),
        )


def densenet121(classes: int = 1000) -> nn.Module:
    """The network, f32[B, 3, 224, 224] -> f32[B, classes], with torch's own initial weights."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    channels = 2 * GROWTH
    parts["stem"] = nn.Sequential(
        nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    )
    for block, layers in enumerate((6, 12, 24, 16), start=1):
        parts[f"block{block}"] = nn.Sequential(*(DenseLayer(channels + i * GROWTH) for i in range(layers)))
        channels += layers * GROWTH
        if block < 4:
            parts[f"transition{block}"] = Transition(channels)
            channels //= 2
    parts["norm"] = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["classes"] = nn.Linear(channels, classes)
    return nn.Sequential(parts)
