"""Two captioners: a convolutional encoder, then an LSTM that writes word after word until it writes the stop word.

The encoders are ResNeXt-50 (32x4d) and GoogLeNet; greedy decoding of at most 200 words. The vocabulary has 2,000 words. The
encoders end in a mean over positions and take any size: the tests use 64 x 64 (Tiny ImageNet's), `large` is 224 x 224.

Source: Vinyals et al., Show and Tell, CVPR 2015 (arXiv 1411.4555), section 3; Xie et al., ResNeXt (1611.05431), table 1;
Szegedy et al., Going Deeper with Convolutions (1409.4842), table 1, with batch norm.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from tests.models.dynamic.entry import Dynamic, batch_of, coarse, picture, standardise
from tests.models.dynamic.shallow_deep import convolution
from tests.models.entry import calibrate_batch_norm, randomise
from torch import nn

WORDS, EMBEDDING, HIDDEN, LIMIT, STOP = 2000, 256, 512, 200, 2
SIZE = 64
SOURCE = "Vinyals et al., CVPR 2015 (arXiv 1411.4555)"


class Bottleneck(nn.Module):
    """ResNeXt's block: 1 x 1, 3 x 3 in 32 groups, 1 x 1."""

    def __init__(self, channels: int, width: int, features: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels, width, 1),
            convolution(width, width, 3, stride, groups=32),
            nn.Conv2d(width, features, 1, bias=False),
        )
        self.last = nn.BatchNorm2d(features)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != features:
            self.shortcut = nn.Sequential(nn.Conv2d(channels, features, 1, stride, bias=False), nn.BatchNorm2d(features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.last(self.body(x)) + self.shortcut(x))


def resnext50() -> nn.Sequential:
    """ResNeXt-50 (32x4d) up to the last feature map, 2,048 channels."""
    blocks: list[nn.Module] = [convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for group, count in enumerate((3, 4, 6, 3)):
        width = 128 << group
        for k in range(count):
            blocks.append(Bottleneck(channels, width, 2 * width, 2 if k == 0 and group else 1))
            channels = 2 * width
    return nn.Sequential(*blocks)


class Inception(nn.Module):
    """Four ways side by side."""

    def __init__(self, channels: int, plan: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = plan
        self.one = convolution(channels, one, 1)
        self.three = nn.Sequential(convolution(channels, three_in, 1), convolution(three_in, three, 3))
        self.five = nn.Sequential(convolution(channels, five_in, 1), convolution(five_in, five, 5))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, 1), convolution(channels, pooled, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pooled(x)], dim=1)


def googlenet() -> nn.Sequential:
    """GoogLeNet up to the last feature map, 1,024 channels."""
    plans = (
        (192, (64, 96, 128, 16, 32, 32)),
        (256, (128, 128, 192, 32, 96, 64)),
        (480, (192, 96, 208, 16, 48, 64)),
        (512, (160, 112, 224, 24, 64, 64)),
        (512, (128, 128, 256, 24, 64, 64)),
        (512, (112, 144, 288, 32, 64, 64)),
        (528, (256, 160, 320, 32, 128, 128)),
        (832, (256, 160, 320, 32, 128, 128)),
        (832, (384, 192, 384, 48, 128, 128)),
    )
    parts: list[nn.Module] = [
        convolution(3, 64, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        convolution(64, 64, 1),
        convolution(64, 192, 3),
        nn.MaxPool2d(3, 2, 1),
    ]
    for k, (channels, plan) in enumerate(plans):
        parts.append(Inception(channels, plan))
        if k in (1, 6):
            parts.append(nn.MaxPool2d(3, 2, 1))
    return nn.Sequential(*parts)


class Captioner(nn.Module):
    """Image to words."""

    def __init__(self, encoder: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.project = nn.Linear(channels, EMBEDDING)
        self.embedding = nn.Embedding(WORDS, EMBEDDING)
        self.cell = nn.LSTMCell(EMBEDDING, HIDDEN)
        self.scores = nn.Linear(HIDDEN, WORDS)

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return self.project(self.encoder(image).mean(dim=(2, 3)))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The words, i64[1, n], the stop word last if it was written; and the last state f32[1, 512]."""
        x = self.encode(image)
        hidden = x.new_zeros(1, HIDDEN)
        cell = x.new_zeros(1, HIDDEN)
        words = []
        for _ in range(LIMIT):
            hidden, cell = self.cell(x, (hidden, cell))
            word = self.scores(hidden).argmax(dim=1)
            words.append(word)
            if word.item() == STOP:
                break
            x = self.embedding(word)
        return torch.stack(words, dim=1), hidden


def captioner(encoder: Callable[[], nn.Sequential], channels: int, seed: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = Captioner(encoder(), channels)
        randomise(model, seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("last.weight"):
                    parameter.mul_(0.4)
                elif name in ("embedding.weight", "scores.weight"):
                    parameter.mul_(16.0 if name == "embedding.weight" else 4.0)
                elif name.startswith("cell.weight"):
                    parameter.mul_(1.5)
        (images,) = batch_of(picture(SIZE), 64)
        calibrate_batch_norm(model.encoder, (images,))
        model.eval()
        with torch.no_grad():
            standardise(model.project, model.encoder(images).mean(dim=(2, 3)))
            _calibrate_stop(model, model.encode(images))
        return model

    return build


def _calibrate_stop(model: Captioner, x: torch.Tensor) -> None:
    """The bias of the stop word at which seven captions of eight end before the limit."""
    model.scores.bias[STOP] = -1e9
    hidden, cell = x.new_zeros(len(x), HIDDEN), x.new_zeros(len(x), HIDDEN)
    least = torch.full((len(x),), torch.inf)
    for _ in range(LIMIT):
        hidden, cell = model.cell(x, (hidden, cell))
        scores = model.scores(hidden)
        stop = hidden @ model.scores.weight[STOP]
        least = torch.minimum(least, scores.amax(dim=1) - stop)
        x = model.embedding(scores.argmax(dim=1))
    model.scores.bias[STOP] = coarse(float(torch.quantile(least, 0.875)))


def _entry(name: str, build: Callable[[], nn.Module]) -> Dynamic:
    return Dynamic(name, build, picture(SIZE), SOURCE, by_place=True, large=picture(224))


ENTRIES = (
    _entry("caption_resnext", captioner(resnext50, 2048, 81)),
    _entry("caption_googlenet", captioner(googlenet, 1024, 82)),
)
