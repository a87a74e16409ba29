"""What one dynamic network is: how to build it, what to call it with, and helpers that make it decide both ways.

Weights are random but seeded. Thresholds are set in the constructor, from quantiles of the network's own values over a
seeded sample, and rounded, so that they are the same where sums differ in the last bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tests.models.entry import images
from torch import nn

SAMPLE = 96
"""Inputs from which thresholds are found."""


@dataclass(frozen=True, slots=True)
class Dynamic:
    """One network whose computation depends on its input.

    Attributes:
        name: the key in `DYNAMIC`.
        build: the module in eval mode; every call gives equal weights and thresholds.
        sample: a seed to the positional inputs, for one sample (batch 1), as such networks decide.
        source: where the network is described.
        by_place: whether a loop of unknown length holds decisions, whose arms are then counted by line, not by turn.
        large: like `sample`, of the size that the source has, where the tests use a smaller one.
    """

    name: str
    build: Callable[[], nn.Module]
    sample: Callable[[int], tuple[torch.Tensor, ...]]
    source: str
    by_place: bool = False
    large: Callable[[int], tuple[torch.Tensor, ...]] | None = None


def coarse(value: float) -> float:
    """To 10 bits: machines whose sums differ in the last ones find the same threshold."""
    mantissa, exponent = torch.frexp(torch.tensor(float(value), dtype=torch.float64))
    return float(torch.ldexp(torch.round(mantissa * 1024) / 1024, exponent))


def threshold_at(values: torch.Tensor, share: float) -> float:
    """A number that `share` of the values lie above."""
    return coarse(float(torch.quantile(values.double().flatten(), 1.0 - share)))


def standardise(linear: nn.Linear, features: torch.Tensor, spread: float = 1.0, directions: int = 8) -> None:
    """Let a layer see how these features f32[N, F] differ; each of its outputs has mean 0 and deviation `spread` over them.

    A trained head looks where its inputs differ. A random one looks everywhere, and the differences drown in the features'
    mean and in its rounding errors; so it is projected on the features' first principal directions. These come from the
    first half of the features, the scales from the second, which the directions do not fit better than any others.
    """
    with torch.no_grad():
        first, second = features.chunk(2)
        centred = first - first.mean(dim=0)
        count = min(directions, *first.shape)
        main = torch.linalg.svd(centred.double(), full_matrices=False).Vh[:count].float()
        linear.weight.copy_(linear.weight @ main.T @ main)
        values = linear(second)
        scale = spread / values.std(dim=0).clamp(min=1e-6)
        scale = torch.tensor([coarse(float(s)) for s in scale])
        centre = torch.tensor([coarse(float(m)) for m in values.mean(dim=0)])
        linear.bias.copy_((linear.bias - centre) * scale)
        linear.weight.mul_(scale[:, None])


def picture(size: int) -> Callable[[int], tuple[torch.Tensor, ...]]:
    """One random image f32[1, 3, size, size] per seed."""

    def sample(seed: int) -> tuple[torch.Tensor, ...]:
        return (images(1, size, 1_000_003 + 97 * seed),)

    return sample


def batch_of(sample: Callable[[int], tuple[torch.Tensor, ...]], count: int = SAMPLE) -> tuple[torch.Tensor, ...]:
    """Samples to find thresholds with, side by side; their seeds are none that tests use."""
    drawn = [sample(-1 - k) for k in range(count)]
    return tuple(torch.cat(column) for column in zip(*drawn))
