"""Shape operators, padding, concatenation, creation and in-place writes of the PyTorch importer against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.frontend.torch_case import check, data
from torch.export import Dim

VIEWS: dict[str, Callable[[torch.Tensor], Any]] = {
    "reshape": lambda x: (
        x.reshape(6, 20),
        x.view(-1),
        x.reshape(2, 3, 2, 10),
        x.flatten(1),
        x.unflatten(2, (2, -1)),
        x.ravel(),
    ),
    "permute": lambda x: (x.permute(2, 0, 1), x.transpose(0, 2), x.movedim(0, 2), x[0].t(), x.mT, x.swapaxes(0, 1)),
    "squeeze": lambda x: (x.unsqueeze(1), x.unsqueeze(-1).squeeze(-1), x[:1].squeeze(), x[:1].squeeze(0), x.squeeze(1)),
    "expand": lambda x: (
        x[:1].expand(3, -1, -1),
        x[None].expand(2, 2, 6, 10),
        x[:1].expand_as(x),
        torch.broadcast_to(x, (3, 2, 6, 10)),
    ),
    "slice": lambda x: (
        x[1],
        x[:, 1:3],
        x[..., -2:],
        x[:, ::2],
        x[:, 1:-1:3],
        x[:, 5:100],
        x[:, 4:2],
        x.narrow(1, 2, 3),
        x[-1, -2],
    ),
    "split": lambda x: (
        *x.split(4, 2),
        *x.chunk(3, 1),
        *x.split([1, 5], 1),
        *x.unbind(0),
        *torch.tensor_split(x, 4, 2),
    ),
    "diagonal": lambda x: (x[0].diagonal(), x.diagonal(1, 1, 2), x.diagonal(-2, 1, 2), torch.diagonal(x, 0, 0, 2)),
    "unfold": lambda x: (x.unfold(2, 3, 2), x.unfold(1, 2, 1)),
    "flip": lambda x: (
        x.flip(0),
        x.flip((1, 2)),
        x[0].fliplr(),
        x.rot90(1, (1, 2)),
        x.rot90(3, (0, 1)),
        x.rot90(2, (0, 1)),
    ),
    "roll": lambda x: (x.roll(1, 0), x.roll((2, -3), (1, 2)), x.roll(5)),
    "repeat": lambda x: (
        x.repeat(1, 2, 1),
        x.repeat(2, 1, 1, 3),
        x.tile((2,)),
        x.repeat_interleave(2, 1),
        x.repeat_interleave(3),
    ),
    "cat": lambda x: (
        torch.cat([x, x * 2], 1),
        torch.cat([x, x[:, :1], x], -2),
        torch.stack([x, x], 1),
        torch.hstack([x, x]),
        torch.vstack([x, x]),
        torch.dstack([x, x]),
        torch.cat([torch.empty(0), x], 2),
        torch.column_stack([x[0], x[0]]),
    ),
    "tril": lambda x: (x.tril(), x.triu(1), x.tril(-1), x.triu(-2)),
    "pad": lambda x: (F.pad(x, (1, 2)), F.pad(x, (0, 0, 2, 1), value=3.5), F.pad(x, (-1, 2)), F.pad(x, (1, 1, -2, 0))),
    "pad_modes": lambda x: (
        F.pad(x, (2, 3), mode="reflect"),
        F.pad(x, (4, 0), mode="reflect"),
        F.pad(x, (2, 3), mode="replicate"),
        F.pad(x, (2, 3), mode="circular"),
        F.pad(x[None], (1, 2, 2, 1), mode="reflect"),
        F.pad(x[None], (1, 2, 2, 1), mode="replicate"),
    ),
    "pixel": lambda x: (
        F.pixel_shuffle(x.reshape(1, 4, 3, 10), 2),
        F.pixel_unshuffle(x.reshape(2, 1, 6, 10), 2),
        F.channel_shuffle(x.reshape(1, 6, 2, 10), 3),
    ),
    "meshgrid": lambda x: (
        *torch.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"),
        *torch.meshgrid(x[0, 0], x[0, :, 0], indexing="xy"),
    ),
    "identities": lambda x: (x.contiguous(), x.clone(), x.detach(), x.to(torch.float32), x.type_as(x), x + 0),
    "kron": lambda x: torch.kron(x[0, :2, :3], x[1, :2, :2]),
}


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_view(name: str) -> None:
    check(VIEWS[name], data(2, 6, 10))


@pytest.mark.parametrize(
    "name", ["permute", "expand_batch", "slice", "cat", "flip", "roll", "repeat", "pad_modes", "flatten", "tril"]
)
def test_symbolic_extents(name: str) -> None:
    forms = VIEWS | {
        "expand_batch": lambda x: x.mean(0, keepdim=True).expand(x.shape[0], -1, -1) + x,
        "flatten": lambda x: (
            x.flatten(0, 1),
            x.reshape(-1, 10),
            x.reshape(x.shape[0], -1, 5),
            x.transpose(0, 1).reshape(6, -1),
        ),
        "slice": lambda x: (x[1:], x[:-1], x[..., 3:], x[: x.shape[0] - 1], x[::2]),
        "cat": lambda x: torch.cat([x, x[:1], x], 0),
        "permute": lambda x: (x.permute(2, 0, 1), x.transpose(0, 2)),
        "pad_modes": lambda x: (F.pad(x, (1, 2, 0, 0, 1, 1)), F.pad(x, (2, 3), mode="reflect")),
        "tril": lambda x: x.permute(1, 0, 2).tril(),
    }
    batch = Dim("batch", min=2, max=64)
    check(forms[name], data(3, 6, 10), dynamic={0: batch}, others=[[data(7, 6, 10)], [data(4, 6, 10)]])


CREATION: dict[str, Callable[[torch.Tensor], Any]] = {
    "arange": lambda x: (
        torch.arange(5),
        torch.arange(2, 9, 3),
        torch.arange(5.0),
        torch.arange(0.5, 3.1, 0.5),
        torch.arange(9, 2, -2),
    ),
    "constants": lambda x: (
        torch.zeros(2, 3),
        torch.ones(3, dtype=torch.int32),
        torch.full((2,), 1.5),
        x.new_zeros(2),
        x.new_ones(3),
        x.new_full((2, 2), 7.0),
        torch.zeros_like(x),
        torch.tensor([1, 2, 3]),
        torch.tensor(2.5) + x,
    ),
    "linspace": lambda x: (torch.linspace(0, 1, 7), torch.linspace(-3, 5, 4), torch.linspace(2, 3, 1)),
    "eye": lambda x: (torch.eye(3), torch.eye(2, 4), torch.eye(3, dtype=torch.int64)),
    "one_hot": lambda x: F.one_hot(x[0].abs().long() % 4, 4),
    "tril_indices": lambda x: (torch.tril_indices(3, 4), torch.triu_indices(3, 3, 1)),
    "sizes": lambda x: (torch.arange(x.shape[0]) + x.shape[1], x * x.shape[0], x / x.numel(), x * (x.shape[0] / 2)),
}


@pytest.mark.parametrize("name", sorted(CREATION))
def test_creation(name: str) -> None:
    check(CREATION[name], data(3, 4))


def test_sizes_as_values() -> None:
    check(
        lambda x: (
            torch.arange(x.shape[0]) * 2,
            x * x.shape[0],
            torch.zeros(x.shape[0] + 1, x.shape[1] // 2),
            x.shape[0] % 3 + x,
            torch.ones(x.shape[0], 2).cumsum(0),
            torch.full((x.shape[0],), x.shape[0]),
            x * (1.0 / x.shape[0]) ** 0.5,
            x.shape[0] + 3,
        ),
        data(3, 4),
        dynamic={0: Dim("n", min=2, max=99)},
        others=[[data(8, 4)]],
    )


def test_positions_from_the_end_with_symbols() -> None:
    n, m = Dim("n", min=2, max=9), Dim("m", min=12, max=99)

    def last(x: torch.Tensor, y: torch.Tensor) -> Any:
        k = x.shape[0]
        return y[-k:], y[:-k], y[k:], y[-1], y[-k], y[: y.shape[0] - k + 1], y[y.shape[0] // 2 :]

    check(last, data(3, 4), data(20, 4), dynamic=({0: n}, {0: m}), others=[[data(5, 4), data(13, 4)]])


def _writes(x: torch.Tensor) -> Any:
    y = x.clone()
    y[0] = 1
    y[:, 1:3] *= 2
    z = y.view(-1)
    z[3:5].add_(10)
    y.t()[2].zero_()
    y[x > 1] = -7.0
    w = y + 1
    w.relu_().mul_(x)
    part = w[1:]
    part.copy_(x[:-1])
    w.clamp_(max=3).unsqueeze_(0)
    return y, z.sum(), w, part


def _fills(x: torch.Tensor) -> Any:
    y = torch.zeros(4, 5)
    y[1:3, ::2] = x[:2, :3]
    y.diagonal().fill_(9.0)
    y[:, -1].masked_fill_(x[:, 0] > 0, 5.0)
    a, b = y.chunk(2)
    a.add_(1)
    return y, b


def _results(x: torch.Tensor) -> Any:
    values, indices = x.topk(2)
    values /= values.sum(-1, keepdim=True)
    indices += 1
    low, high = x.clone().split(2)
    low.mul_(2)
    return values, indices, low, high


@pytest.mark.parametrize("function", [_writes, _fills, _results])
def test_writes_reach_all_that_share_storage(function: Callable[[torch.Tensor], Any]) -> None:
    check(function, data(4, 5))


def test_write_with_a_symbolic_extent() -> None:
    def fill(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, 0] = 0
        y[1:] += 1
        return y

    check(fill, data(3, 4), dynamic={0: Dim("n", min=2, max=99)}, others=[[data(8, 4)]])


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (4, 1), (1, 1)])
def test_odd_extents(shape: tuple[int, int]) -> None:
    check(
        lambda x: (
            x.t(),
            x.flip(0),
            torch.cat([x, x], 0),
            x.reshape(-1),
            x.roll(1, 1),
            F.pad(x, (1, 1)),
            x.tril(),
            x.repeat(2, 2),
        ),
        data(*shape),
    )
