"""What one model of the zoo is: how to build it, how to call it, which of its extents are symbolic.

Weights are random but seeded, and drawn so that every parameter matters to the output: biases and norm weights are
not left at their 0 and 1, projections keep the variance of what they read, and batch norm statistics fit the data.
An importer that drops a bias, a mask or a running mean then fails the comparison instead of passing it by luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

BATCHES = (1, 3)
"""The batch sizes at which every model is compared with eager PyTorch."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One model of the zoo.

    Attributes:
        name: the key in `ZOO`; an identifier, so it also serves as a file name.
        make: builds the module in eval mode with seeded weights; every call gives equal weights.
        inputs: `(batch, length, seed)` to the positional inputs, a flat tuple of tensors.
        dynamic_shapes: for `torch.export.export` and `torch.onnx.export`; one spec per positional input.
        lengths: the lengths to compare at (tokens, frames); two where the length is symbolic, one where it is fixed.
        outputs: names of the outputs, in order, as a flat tuple.
        family: "text", "vision", "audio" or "dense".
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int, int], tuple[torch.Tensor, ...]]
    dynamic_shapes: tuple[Any, ...]
    lengths: tuple[int, ...]
    outputs: tuple[str, ...]
    family: str

    @property
    def symbolic_length(self) -> bool:
        """Whether one artifact has to serve several lengths."""
        return len(self.lengths) > 1

    def example(self, seed: int = 0) -> tuple[torch.Tensor, ...]:
        """Inputs to trace with: batch 2, since torch specialises the extents 0 and 1."""
        return self.inputs(2, self.lengths[0], seed)


def randomise(model: nn.Module, seed: int, keep: tuple[str, ...] = ()) -> None:
    """Draw every parameter anew from `seed`; afterwards none is constant and activations keep their scale.

    Args:
        model: changed in place.
        seed: of the generator; the parameters are visited in `named_parameters` order.
        keep: parts of parameter names to leave as the model's own initialisation drew them.
    """
    generator = torch.Generator().manual_seed(seed)
    transposed = {id(m.weight) for m in model.modules() if type(m).__name__ == "Conv1D"}  # GPT-2 stores [in, out]
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in keep):
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embedded:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)
            elif parameter.ndim >= 2:
                fan_in = parameter.shape[0] if id(parameter) in transposed else math.prod(parameter.shape[1:])
                parameter.copy_(noise * fan_in**-0.5)
            elif "bias" in name.rpartition(".")[2]:  # bias, or bias_ih_l0 and the like
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(1.0 + 0.1 * noise)


def calibrate_batch_norm(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
    """Set running statistics to those of `inputs`, coarsened to 6 bits, so that activations stay O(1) at any depth.

    Coarsening makes the result the same on machines whose sums differ in the last bits, and leaves statistics that
    do not exactly normalise, as in a trained network.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        model(*inputs)
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
            for statistic in (norm.running_mean, norm.running_var):
                assert statistic is not None
                mantissa, exponent = torch.frexp(statistic)
                statistic.copy_(torch.ldexp(torch.round(mantissa * 64) / 64, exponent))


def token_ids(batch: int, length: int, vocabulary: int, seed: int) -> torch.Tensor:
    """Random token numbers, i64[batch, length]."""
    return torch.randint(0, vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def padding_mask(batch: int, length: int) -> torch.Tensor:
    """Row i has its last i tokens padded away: i64[batch, length] of 1 (attend) and 0, never all 0."""
    kept = (length - torch.arange(batch)).clamp(min=1)
    return (torch.arange(length)[None, :] < kept[:, None]).long()


def images(batch: int, size: int, seed: int) -> torch.Tensor:
    """Random images f32[batch, 3, size, size] with detail at every scale, about standard normal.

    Plain noise averages out in the first layers; deep layers then see a nearly constant input, and batch norm
    magnifies what is left together with the rounding errors.
    """
    parts = [normal((batch, 3, max(size // scale, 1), max(size // scale, 1)), seed + scale) for scale in (1, 8, 32)]
    full = [nn.functional.interpolate(part, size=(size, size), mode="bilinear") for part in parts]
    mixed = 0.5 * full[0] + 0.8 * full[1] + full[2]
    return mixed.contiguous()


def normal(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Standard normal noise, f32[shape]."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
