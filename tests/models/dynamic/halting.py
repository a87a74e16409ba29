"""Adaptive computation time: a recurrent network that thinks as long about each element of its input as it wants to.

Source: Graves, Adaptive Computation Time for Recurrent Neural Networks (arXiv 1603.08983), section 2.
"""

from __future__ import annotations

import torch
from tests.models.dynamic.entry import Dynamic, coarse
from tests.models.entry import normal, randomise
from torch import nn

INPUT, HIDDEN, LENGTH, MOST, EPSILON = 16, 48, 6, 8, 0.01


class Halting(nn.Module):
    """A GRU with a halting unit."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(INPUT + 1, HIDDEN)
        self.halt = nn.Linear(HIDDEN, 1)
        self.read = nn.Linear(HIDDEN, 4)

    def forward(self, xs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From f32[L, 16]: outputs f32[L, 4], steps taken for each i64[L], and the ponder cost."""
        state = xs.new_zeros(1, HIDDEN)
        outputs = []
        steps = torch.zeros(LENGTH, dtype=torch.int64)
        cost = xs.new_zeros(())
        for t in range(LENGTH):
            total = xs.new_zeros(())
            mixed = torch.zeros_like(state)
            first = xs.new_ones(1, 1)
            n = 0
            while True:
                state = self.cell(torch.cat([xs[t : t + 1], first], dim=1), state)
                first = torch.zeros_like(first)
                p = torch.sigmoid(self.halt(state)).squeeze()
                n += 1
                if n == MOST or total + p >= 1 - EPSILON:
                    rest = 1 - total
                    mixed = mixed + rest * state
                    break
                total = total + p
                mixed = mixed + p * state
            state = mixed
            cost = cost + n + rest
            steps[t] = n
            outputs.append(self.read(state))
        return torch.cat(outputs), steps, cost


def sequence(seed: int) -> tuple[torch.Tensor, ...]:
    return (normal((LENGTH, INPUT), 900_001 + seed),)


def build() -> nn.Module:
    model = Halting()
    randomise(model, 111)
    model.eval()
    with torch.no_grad():
        model.halt.weight.mul_(coarse(3.0))
        model.halt.bias.fill_(-1.0)
    return model


ENTRIES = (Dynamic("adaptive_time", build, sequence, "Graves (arXiv 1603.08983)", by_place=True),)
