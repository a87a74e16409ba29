"""Models of plain features: an MLP, and a recommendation model of embeddings and MLPs in the manner of DLRM."""

from __future__ import annotations

import torch
from tests.models.entry import Entry, normal, randomise
from torch import nn
from torch.export import Dim

ROWS = Dim("batch", min=1, max=4096)
TABLES, CATEGORIES, WIDTH, NUMBERS = 26, 10000, 64, 13
"""As the Criteo data has them: 26 categorical and 13 numeric features; the tables are cut to 10,000 rows."""


class Recommender(nn.Module):
    """Embeddings and a bottom MLP, their pairwise products, and a top MLP.

    Source: Naumov et al., Deep Learning Recommendation Model (arXiv 1906.00091).
    """

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(CATEGORIES, WIDTH) for _ in range(TABLES))
        self.bottom = _mlp(NUMBERS, 512, 256, WIDTH)
        pairs = (TABLES + 1) * TABLES // 2
        self.top = nn.Sequential(_mlp(pairs + WIDTH, 512, 256), nn.Linear(256, 1))
        rows, columns = torch.tril_indices(TABLES + 1, TABLES + 1, offset=-1)
        self.register_buffer("pairs", rows * (TABLES + 1) + columns)

    def forward(self, numbers: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        """From f32[B, 13] and i64[B, 26] to a score f32[B, 1]."""
        dense = self.bottom(numbers)
        looked_up = [table(categories[:, k]) for k, table in enumerate(self.tables)]
        features = torch.stack([dense, *looked_up], dim=1)
        products = torch.bmm(features, features.transpose(1, 2)).flatten(1)
        scores: torch.Tensor = self.top(torch.cat([dense, products[:, self.pairs]], dim=1))
        return scores


def _mlp(*widths: int) -> nn.Module:
    """Linear layers, each with a ReLU."""
    layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in zip(widths, widths[1:])]
    return nn.Sequential(*layers)


def make_mlp() -> nn.Module:
    """1024 - 4096 - 1024 with GELU between."""
    model = nn.Sequential(nn.Linear(1024, 4096), nn.GELU(), nn.Linear(4096, 1024))
    randomise(model, seed=31)
    return model.eval()


def make_dlrm() -> nn.Module:
    """The recommender, its embeddings of unit length and its scores of the order of one."""
    model = Recommender()
    randomise(model, seed=32)
    return model.eval()


def mlp_inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Standard normal rows; `length` is not used."""
    return (normal((batch, 1024), seed),)


def dlrm_inputs(batch: int, length: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Numbers and categories, both random; `length` is not used."""
    generator = torch.Generator().manual_seed(seed)
    return normal((batch, NUMBERS), seed), torch.randint(0, CATEGORIES, (batch, TABLES), generator=generator)


ENTRIES = (
    Entry("mlp", make_mlp, mlp_inputs, ({0: ROWS},), (1,), ("features",), "dense"),
    Entry("dlrm", make_dlrm, dlrm_inputs, ({0: ROWS}, {0: ROWS}), (1,), ("score",), "dense"),
)
