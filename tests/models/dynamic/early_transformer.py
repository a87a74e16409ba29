"""An early-exit transformer: a classifier after each of six layers, and the first of low entropy gives the answer.

Source: Xin, Tang, Lee, Yu and Lin, DeeBERT: Dynamic Early Exiting for Accelerating BERT Inference, ACL 2020
(arXiv 2004.12993), section 3.
"""

from __future__ import annotations

import torch
from tests.models.dynamic.entry import Dynamic, batch_of, standardise, threshold_at
from tests.models.entry import randomise, token_ids
from torch import nn

WORDS, WIDTH, HEADS, LAYERS, LENGTH, CLASSES = 1000, 128, 4, 6, 24, 4


class Layer(nn.Module):
    """Self-attention and two linear layers, norms after each (BERT's)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_in = nn.Linear(WIDTH, 3 * WIDTH)
        self.attention_out = nn.Linear(WIDTH, WIDTH)
        self.norm1 = nn.LayerNorm(WIDTH)
        self.wide = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.attention_in(x).view(b, n, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.norm1(x + self.attention_out(y.transpose(1, 2).reshape(b, n, WIDTH)))
        return self.norm2(x + self.narrow(nn.functional.gelu(self.wide(x))))


def entropy(scores: torch.Tensor) -> torch.Tensor:
    """Of the distribution that the scores f32[N, classes] stand for, in nats."""
    p = torch.softmax(scores, dim=1)
    return -(p * torch.log_softmax(scores, dim=1)).sum(dim=1)


class EarlyTransformer(nn.Module):
    """Tokens to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(LAYERS))
        self.thresholds = [0.5] * LAYERS

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        return self.words(ids) + self.places(torch.arange(ids.shape[1]))

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor | int]:
        """Scores f32[1, 4] and the number of layers that were computed."""
        x = self.embed(ids)
        depth = 0
        scores = torch.zeros(1, CLASSES, dtype=x.dtype)
        for layer, head, threshold in zip(self.layers, self.heads, self.thresholds):
            x = layer(x)
            scores = head(x[:, 0])
            depth += 1
            if depth < LAYERS and entropy(scores).item() < threshold:
                break
        return {"scores": scores, "depth": depth}


def tokens(seed: int) -> tuple[torch.Tensor, ...]:
    return (token_ids(1, LENGTH, WORDS, 500_009 + seed),)


def build() -> nn.Module:
    model = EarlyTransformer()
    randomise(model, 91)
    model.eval()
    (ids,) = batch_of(tokens, 512)
    with torch.no_grad():
        for embedding in (model.words, model.places):
            embedding.weight.mul_(WIDTH**0.5)
        x, inside = model.embed(ids), torch.arange(len(ids)) >= len(ids) // 2
        for k in range(LAYERS):
            x = model.layers[k](x)
            standardise(model.heads[k], x[:, 0], spread=2.0)
            if k < LAYERS - 1:
                sure = -entropy(model.heads[k](x[:, 0]))
                model.thresholds[k] = -threshold_at(sure[inside], 1 / (LAYERS - k))
                inside &= sure <= -model.thresholds[k]
    return model


ENTRIES = (Dynamic("early_transformer", build, tokens, "Xin et al., ACL 2020 (arXiv 2004.12993)"),)
