"""Shallow-Deep networks: classifiers at six depths, and the first that is sure of its answer gives it.

Six internal classifiers at about 15, 30, ... 90 % of the computation, each of mixed pooling and one layer; MobileNet, VGG,
ResNet-56 and WideResNet-32-4 for images of 32 x 32 with 10 classes.

Source: Kaya, Hong and Dumitras, Shallow-Deep Networks: Understanding and Mitigating Network Overthinking, ICML 2019
(arXiv 1810.07052), sections 4 and 5; Howard et al., MobileNets (1704.04861); Simonyan and Zisserman, VGG (1409.1556); He et
al., ResNet (1512.03385); Zagoruyko and Komodakis, Wide Residual Networks (1605.07146).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tests.models.dynamic.entry import Dynamic, batch_of, picture, standardise, threshold_at
from tests.models.entry import calibrate_batch_norm, randomise
from torch import nn
from torch.nn import functional

CLASSES, EXITS, SIZE = 10, 6, 32
SOURCE = "Kaya et al., ICML 2019 (arXiv 1810.07052)"


class Classifier(nn.Module):
    """An internal classifier: the mean of max and average pooling to 4 x 4, and a linear layer."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.window = max(size // 4, 1)
        self.mix = nn.Parameter(torch.tensor(0.5))
        side = size // self.window
        self.linear = nn.Linear(channels * side * side, CLASSES)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        largest, mean = functional.max_pool2d(x, self.window), functional.avg_pool2d(x, self.window)
        return torch.flatten(self.mix * largest + (1 - self.mix) * mean, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.features(x))


class ShallowDeep(nn.Module):
    """Stages with a classifier after all but the last, and the network's own after that."""

    def __init__(self, stages: Sequence[nn.Module], final: nn.Module) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.final = final
        shapes = _shapes(stages)
        self.classifiers = nn.ModuleList(Classifier(c, side) for c, side in shapes[:-1])
        self.thresholds = [0.5] * (len(stages) - 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
        """Scores f32[1, 10], and which classifier gave them."""
        for k, classifier in enumerate(self.classifiers):
            x = self.stages[k](x)
            scores = classifier(x)
            confidence = torch.softmax(scores, dim=1).max()
            if confidence > self.thresholds[k]:
                return scores, k
        x = self.stages[-1](x)
        return self.final(x), len(self.classifiers)


class Everything(nn.Module):
    """All stages, to fit batch norms with."""

    def __init__(self, model: ShallowDeep) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.model.stages:
            x = stage(x)
        return self.model.final(x)


def _shapes(stages: Sequence[nn.Module]) -> list[tuple[int, int]]:
    """Channels and side after each stage."""
    x, found = torch.zeros(1, 3, SIZE, SIZE), []
    with torch.no_grad():
        for stage in stages:
            x = stage.eval()(x)
            found.append((x.shape[1], x.shape[2]))
    return found


def calibrated(model: ShallowDeep, seed: int, shift: float = 0.0) -> ShallowDeep:
    """Seeded weights; as many samples leave at each exit as at any other.

    With a `shift` of the norms fewer channels are cut off by ReLU, and rounding errors grow less from layer to layer: without
    shortcuts a random network is nearly chaotic, a trained one is not.
    """
    randomise(model, seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.add_(shift)
        for name, parameter in model.named_parameters():
            if name.endswith("last.weight"):  # a block adds little to its input, as in trained networks
                parameter.mul_(0.4)
    for classifier in model.classifiers:
        classifier.mix.data.fill_(0.5)
    (x,) = batch_of(picture(SIZE), 256)
    calibrate_batch_norm(Everything(model), (x,))
    model.eval()
    with torch.no_grad():
        inside = torch.arange(len(x)) >= len(x) // 2
        for k, classifier in enumerate(model.classifiers):
            x = model.stages[k](x)
            standardise(classifier.linear, classifier.features(x), spread=1.5)
            confidence = torch.softmax(classifier(x), dim=1).amax(dim=1)
            model.thresholds[k] = threshold_at(confidence[inside], 1 / (len(model.stages) - k))
            inside &= confidence <= model.thresholds[k]
    return model


def split(blocks: Sequence[nn.Module], stem: Sequence[nn.Module] = ()) -> list[nn.Module]:
    """Blocks in order as stages of equal number, an exit after each but the last."""
    ends = [round(len(blocks) * (k + 1) / (EXITS + 1)) for k in range(EXITS + 1)]
    starts = [0, *ends[:-1]]
    parts = [list(blocks[a:b]) for a, b in zip(starts, ends)]
    parts[0] = [*stem, *parts[0]]
    return [nn.Sequential(*p) for p in parts]


def convolution(channels: int, features: int, size: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution with batch norm and ReLU."""
    padding = size // 2
    return nn.Sequential(
        nn.Conv2d(channels, features, size, stride, padding, groups=groups, bias=False), nn.BatchNorm2d(features), nn.ReLU()
    )


class Residual(nn.Module):
    """ResNet's block of two 3 x 3 convolutions; a projection where the shape changes."""

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(channels, features, 3, stride)
        self.second = nn.Conv2d(features, features, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(features)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != features:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, features, 1, stride, bias=False), nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.last(self.second(self.first(x))) + self.shortcut(x))


class Wide(nn.Module):
    """WideResNet's block: norm and ReLU come first."""

    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, features, 3, padding=1, bias=True)
        self.dropout = nn.Dropout(0.3)
        self.norm2 = nn.BatchNorm2d(features)
        self.conv2 = nn.Conv2d(features, features, 3, stride, padding=1, bias=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != features:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, features, 1, stride, bias=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.dropout(self.conv1(torch.relu(self.norm1(x))))
        return 0.5 * self.conv2(torch.relu(self.norm2(y))) + self.shortcut(x)


class Pooled(nn.Module):
    """Mean over positions, then a linear layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.mean(dim=(2, 3)))


def residual_blocks(kind: type[nn.Module], widths: Sequence[int], count: int, channels: int) -> list[nn.Module]:
    """`count` blocks of each width; all widths but the first begin with stride 2."""
    blocks: list[nn.Module] = []
    for group, width in enumerate(widths):
        for k in range(count):
            blocks.append(kind(channels, width, 2 if k == 0 and group else 1))
            channels = width
    return blocks


def mobilenet() -> nn.Module:
    """13 depthwise separable blocks behind a first convolution."""
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    blocks, channels = [], 32
    for width, stride in plan:
        blocks.append(nn.Sequential(convolution(channels, channels, 3, stride, channels), convolution(channels, width, 1)))
        channels = width
    return calibrated(ShallowDeep(split(blocks, [convolution(3, 32, 3)]), Pooled(channels)), seed=51, shift=1.0)


def vgg19() -> nn.Module:
    """16 convolutions with batch norm in five groups, each but the last followed by max pooling, and two hidden layers."""
    blocks, channels = [], 3
    for width, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for k in range(count):
            pool = [nn.MaxPool2d(2)] if k == count - 1 else []
            blocks.append(nn.Sequential(convolution(channels, width, 3), *pool))
            channels = width
    final = nn.Sequential(
        nn.Flatten(), nn.Linear(512, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, CLASSES)
    )
    return calibrated(ShallowDeep(split(blocks), final), seed=52, shift=1.0)


def resnet56() -> nn.Module:
    """27 blocks of 16, 32 and 64 channels."""
    blocks = residual_blocks(Residual, (16, 32, 64), 9, 16)
    return calibrated(ShallowDeep(split(blocks, [convolution(3, 16, 3)]), Pooled(64)), seed=53)


def wideresnet() -> nn.Module:
    """WideResNet-32-4: 15 blocks of 64, 128 and 256 channels."""
    blocks = residual_blocks(Wide, (64, 128, 256), 5, 16)
    final = nn.Sequential(nn.BatchNorm2d(256), nn.ReLU(), Pooled(256))
    return calibrated(ShallowDeep(split(blocks, [nn.Conv2d(3, 16, 3, padding=1)]), final), seed=54)


ENTRIES = tuple(
    Dynamic(f"shallow_deep_{make.__name__}", make, picture(SIZE), SOURCE) for make in (mobilenet, vgg19, resnet56, wideresnet)
)
