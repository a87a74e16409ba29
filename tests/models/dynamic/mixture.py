"""A top-2 mixture of experts: each token goes to its two best experts, and an expert sees only its tokens.

Written as in Mixtral: a loop over experts, `torch.where` for the tokens of each, `index_add_` into the result; an expert that
no token chose is skipped.

Source: Jiang et al., Mixtral of Experts (arXiv 2401.04088), section 2.1; Shazeer et al., ICLR 2017 (1701.06538).
"""

from __future__ import annotations

import torch
from tests.models.dynamic.entry import Dynamic, batch_of, standardise
from tests.models.entry import normal, randomise
from torch import nn
from torch.nn import functional

WIDTH, INNER, EXPERTS, TOKENS, LAYERS = 64, 128, 8, 5, 3


class Expert(nn.Module):
    """A gated pair of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, INNER, bias=False)
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Mixture(nn.Module):
    """A router and its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(Expert() for _ in range(EXPERTS))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """From f32[T, 64]: the result, and the experts chosen, i64[T, 2]."""
        weights = torch.softmax(self.router(x), dim=1)
        weights, chosen = torch.topk(weights, 2, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        result = torch.zeros_like(x)
        for e in range(EXPERTS):
            token, slot = torch.where(chosen == e)
            if token.shape[0] > 0:
                result.index_add_(0, token, self.experts[e](x[token]) * weights[token, slot, None])
        return result, chosen


class MixtureModel(nn.Module):
    """Layers of mixtures with norms and residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))
        self.mixtures = nn.ModuleList(Mixture() for _ in range(LAYERS))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Tokens f32[T, 64] to tokens, and each layer's choices."""
        choices = []
        for norm, mixture in zip(self.norms, self.mixtures):
            y, chosen = mixture(norm(x))
            x = x + y
            choices.append(chosen)
        return x, choices


def tokens(seed: int) -> tuple[torch.Tensor, ...]:
    return (normal((TOKENS, WIDTH), 700_001 + seed),)


def build() -> nn.Module:
    model = MixtureModel()
    randomise(model, 101)
    model.eval()
    (x,) = batch_of(tokens)
    with torch.no_grad():
        for norm, mixture in zip(model.norms, model.mixtures):
            standardise(mixture.router, norm(x), spread=1.5)
            x = x + mixture(norm(x))[0]
    return model


ENTRIES = (Dynamic("mixture_top2", build, tokens, "Jiang et al. (arXiv 2401.04088)"),)
