"""Random chains of views, writes and reductions: the composed index maps must read what PyTorch reads."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.frontend.torch_case import check, data
from torch.export import Dim

Step = Callable[[torch.Tensor], torch.Tensor]


def factors(n: int, pick: random.Random) -> list[int]:
    """`n` as a product of up to three extents."""
    found = []
    while n > 1 and len(found) < 2:
        d = pick.choice([k for k in range(1, n + 1) if n % k == 0])
        found.append(d)
        n //= d
    return [*found, n]


def step(x: torch.Tensor, pick: random.Random) -> Step:
    """A random operator that fits `x`; constants of its arguments never depend on dimension 0 where that is symbolic."""
    rank = x.dim()
    d = pick.randrange(rank)
    n = x.shape[d]
    kinds: list[Step] = [
        lambda y: y.permute(order),
        lambda y: y.flip(d),
        lambda y: y.unsqueeze(d),
        lambda y: y.roll(shift, d),
        lambda y: torch.cat([y, y.flip(d)], d),
        lambda y: y + y.mean(d, keepdim=True),
        lambda y: y.transpose(0, rank - 1).contiguous(),
        lambda y: (y * 2).relu(),
        lambda y: y.amax(d, keepdim=True).expand_as(y) - y,
        lambda y: torch.stack([y, -y], d),
        lambda y: y.cumsum(d),
        lambda y: torch.nn.functional.pad(y, (1, 0)),
    ]
    order = pick.sample(range(rank), rank)
    shift = pick.randint(-3, 3)
    if n > 1:
        start, stride = pick.randrange(n // 2 + 1), pick.choice([1, 1, 2])
        kinds += [
            lambda y: y.narrow(d, start, n - start),
            lambda y: y[(slice(None),) * d + (slice(start, None, stride),)],
        ]
    whole = math.prod(x.shape)
    if 1 < whole <= 4000:
        shape = factors(whole, pick)
        kinds += [lambda y: y.reshape(shape), lambda y: y.reshape(shape)]
    return pick.choice(kinds)


def chain(x: torch.Tensor, pick: random.Random, length: int) -> list[Step]:
    steps = []
    for _ in range(length):
        f = step(x, pick)
        y = f(x)
        if y.numel() > 6000 or y.dim() > 6:
            continue
        steps.append(f)
        x = y
    return steps


@pytest.mark.parametrize("seed", range(12))
def test_chains_of_views(seed: int) -> None:
    pick = random.Random(seed)
    shape = [pick.randint(1, 4) for _ in range(pick.randint(2, 4))]
    x = data(*shape, seed=seed)
    chains = [chain(x, pick, 6) for _ in range(5)]

    def run(x: torch.Tensor) -> Any:
        found = []
        for steps in chains:
            y = x
            for f in steps:
                y = f(y)
            found.append(y)
        return tuple(found)

    check(run, x)


def symbolic_step(x: torch.Tensor, pick: random.Random) -> Step:
    """The same for tensors f32[n, ...] whose first extent is symbolic: it stays first."""
    d = pick.randrange(1, x.dim())
    n = x.shape[d]
    kinds: list[Step] = [
        lambda y: y.flip(0),
        lambda y: y.flip(d),
        lambda y: torch.cat([y, y * 2], 0)[: y.shape[0]],
        lambda y: torch.cat([y[1:], y[:1]], 0),
        lambda y: y.flatten(0, 1).reshape(y.shape[0], -1),
        lambda y: y.reshape(-1).reshape(y.shape),
        lambda y: y.transpose(0, 1).reshape(y.shape[1], -1).t().reshape(y.shape[0], -1)[:, : y.shape[1]],
        lambda y: y - y.mean(0, keepdim=True),
        lambda y: y.unsqueeze(1).expand(-1, 3, *y.shape[1:]).flatten(1, 2),
        lambda y: y.softmax(d),
        lambda y: y.roll(2, 0),
        lambda y: y.reshape(y.shape[0], -1),
        lambda y: y * torch.arange(y.shape[0]).reshape(-1, *[1] * (y.dim() - 1)),
        lambda y: y.unflatten(d, (n // k, k)),
    ]
    k = pick.choice([v for v in range(1, n + 1) if n % v == 0])
    return pick.choice(kinds)


@pytest.mark.parametrize("seed", range(8))
def test_chains_with_a_symbolic_extent(seed: int) -> None:
    pick = random.Random(100 + seed)
    x = data(5, pick.choice([2, 4, 6]), pick.choice([1, 3]), seed=seed)
    chains = []
    for _ in range(4):
        y, steps = x, []
        for _ in range(5):
            f = symbolic_step(y, pick)
            z = f(y)
            if z.numel() <= 4000 and 2 <= z.dim() <= 5:
                steps.append(f)
                y = z
        chains.append(steps)

    def run(x: torch.Tensor) -> Any:
        found = []
        for steps in chains:
            y = x
            for f in steps:
                y = f(y)
            found.append(y)
        return tuple(found)

    others = [[data(n, *x.shape[1:], seed=n)] for n in (3, 8)]
    check(run, x, dynamic={0: Dim("n", min=3, max=64)}, others=others)
