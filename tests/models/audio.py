"""Audio: the encoder of Whisper-tiny over log-mel frames."""

from __future__ import annotations

import torch
from tests.models.entry import Entry, normal, randomise
from tests.models.text import BATCH
from torch import nn
from torch.export import Dim

FRAMES = 2 * Dim("half", min=2, max=1500)  # a plain symbol leaves a guard that torch cannot prove


class WhisperEncoder(nn.Module):
    """Whisper's encoder for any number of frames up to the 3,000 of 30 seconds.

    The encoder of transformers refuses other lengths; this calls its parts and cuts the position table instead, and
    equals it at 3,000 frames.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From f32[B, 80, T] to hidden states f32[B, (T - 1) // 2 + 1, 384]."""
        parts = self.encoder
        hidden = nn.functional.gelu(parts.conv1(features))
        hidden = nn.functional.gelu(parts.conv2(hidden)).permute(0, 2, 1)
        hidden = hidden + parts.embed_positions.weight[: hidden.shape[1]]
        for layer in parts.layers:
            result = layer(hidden, None)
            hidden = result[0] if isinstance(result, tuple) else result
        hidden = parts.layer_norm(hidden)
        return hidden


def make_whisper_tiny_encoder() -> nn.Module:
    """Whisper-tiny's encoder: two convolutions and 4 layers of width 384."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder as Reference

    model = Reference(WhisperConfig(attn_implementation="sdpa")).eval()
    randomise(model, seed=21, keep=("embed_positions",))
    return WhisperEncoder(model).eval()


def whisper_inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Noise of the range that log-mel features have, f32[batch, 80, length]."""
    return (0.5 * normal((batch, 80, length), seed),)


ENTRIES = (
    Entry(
        "whisper_tiny_encoder",
        make_whisper_tiny_encoder,
        whisper_inputs,
        ({0: BATCH, 2: FRAMES},),
        (3000, 500),
        ("hidden",),
        "audio",
    ),
)
