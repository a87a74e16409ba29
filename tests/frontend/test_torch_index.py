"""Gathers, scatters, sorting, recurrences, control flow and run-time extents of the PyTorch importer against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.frontend.torch_case import check, compare, data, module
from torch import nn
from torch.export import Dim

from dlc.frontend.torch_export import import_torch

X = data(5, 6, 4)
I = torch.tensor([[0, -1, 3], [2, 2, 1]])
J = torch.tensor([4, 0, -2])
U = torch.tensor([3, 0, 1])

READS: dict[str, Callable[..., Any]] = {
    "index": lambda x, i, j: (
        x[i],
        x[:, j],
        x[j, j],
        x[:, :, j - 1],
        x[j, :, torch.tensor([0, 1, 2])],
        x[i[:, :, None], j],
        x[j, 1:3],
        x[None, j],
    ),
    "select": lambda x, i, j: (
        x.index_select(0, j % 5),
        x.index_select(-1, j % 4),
        x.take(j),
        torch.take_along_dim(x, i[:1, :, None] % 6, 1),
    ),
    "gather": lambda x, i, j: (
        x.gather(1, i[:, :, None].expand(2, 3, 4) % 6),
        x[0].gather(0, i % 6),
        x[:, 0].gather(1, i % 4),
    ),
    "embedding": lambda x, i, j: (F.embedding(i % 5, x[:, 0]), F.embedding(j % 5, x[:, 0], padding_idx=0)),
    "python": lambda x, i, j: (
        x[torch.arange(5), torch.arange(5)],
        x[..., torch.arange(3)],
        x[torch.arange(2)[:, None], torch.arange(3)],
    ),
}


@pytest.mark.parametrize("name", sorted(READS))
def test_read(name: str) -> None:
    check(READS[name], X, I, J)


WRITES: dict[str, Callable[..., Any]] = {
    "scatter": lambda x, i, u: (
        x[0].scatter(0, i % 6, 7.0),
        x[0].scatter(1, (i % 4), x[1, :2, :3]),
        x[0].scatter_add(0, i % 6, x[1]),
        x[0].scatter(0, i % 6, x[1], reduce="add"),
    ),
    "reduce": lambda x, i, u: tuple(
        x[0].scatter_reduce(0, i % 6, x[1], r, include_self=s)
        for r in ("sum", "prod", "amax", "amin", "mean")
        for s in (True, False)
    ),
    "index_put": lambda x, i, u: (
        x.index_put((u,), x[0]),
        x.index_put((u, u), x[0, 0], accumulate=True),
        x.index_put((u,), torch.tensor(1.0)),
    ),
    "setitem": lambda x, i, u: _set(x, u),
    "index_ops": lambda x, i, u: (
        x.index_add(0, u, x[:3], alpha=2),
        x.index_copy(1, u, x[:, :3]),
        x.index_fill(2, u, 9.0),
        x.index_add(-1, u, x[..., :3]),
    ),
    "masked": lambda x, i, u: (
        x.masked_fill(x > 0, 1.0),
        torch.where(x > 0, x, -x),
        x.masked_scatter(x > 0, x.flip(0)),
    ),
    "index_reduce": lambda x, i, u: (
        x.index_reduce(1, u, x[:, :3], "amax"),
        x.index_reduce(0, u, x[:3], "mean", include_self=False),
    ),
    "select_scatter": lambda x, i, u: (
        torch.select_scatter(x, x[0] * 2, 0, -1),
        torch.slice_scatter(x, x[:2] + 1, 0, 1, 5, 2),
        torch.diagonal_scatter(x[0], x[1, 0], 0),
        torch.slice_scatter(x, x[:3], 0, 1, -1),
    ),
}


def _set(x: torch.Tensor, u: torch.Tensor) -> Any:
    y = x.clone()
    y[u, 1] = 5.0
    y[:, u] += 1
    y[y > 2] = 0
    y[0, :, u] = x[1, :3].t()[:3].mean()
    return y


@pytest.mark.parametrize("name", sorted(WRITES))
def test_write(name: str) -> None:
    check(WRITES[name], X, I.abs(), U)


def test_gather_with_symbolic_extents() -> None:
    n, t = Dim("n", min=1, max=9), Dim("t", min=2, max=99)
    table = data(7, 3)

    def read(x: torch.Tensor, i: torch.Tensor) -> Any:
        rows = torch.arange(x.shape[0])
        return F.embedding(i, x[0]), x[rows, -1], x[:, i[0]], x.gather(1, i[:, :, None].expand(-1, -1, 3) % 2)

    check(
        read,
        data(2, 5, 3),
        torch.tensor([[0, 1, 4], [2, 0, 1]]),
        dynamic=({0: n, 1: t}, {0: n}),
        others=[[data(1, 6, 3), torch.tensor([[5, 0, 2]])]],
    )
    assert table.shape == (7, 3)


SORTS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sort": lambda x: (*x.sort(1), *x.sort(0, descending=True), x.argsort(-1), x.msort()),
    "topk": lambda x: (*x.topk(3, 1), *x.topk(2, 0, largest=False)),
    "kth": lambda x: (*x.kthvalue(2, 1), *x.median(1), x.median()),
    "buckets": lambda x: (
        torch.bucketize(x, torch.tensor([-1.0, 0.0, 0.5])),
        torch.searchsorted(torch.tensor([-1.0, 0.0, 0.5]), x, right=True),
    ),
}


@pytest.mark.parametrize("name", sorted(SORTS))
def test_sort(name: str) -> None:
    check(SORTS[name], data(4, 6))


def test_run_time_extents() -> None:
    x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
    check(lambda x: (x.nonzero(), x[x > 0] * 2, x[x[:, 0] > 0]), x, others=[[torch.zeros(2, 3)], [torch.ones(2, 3)]])

    def cut(n: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        k = n.item()
        torch._check_is_size(k)
        torch._check(k <= 6)
        return x[:k].sum(0) + torch.arange(k).sum()

    check(cut, torch.tensor(4), data(6, 3), others=[[torch.tensor(2), data(6, 3)], [torch.tensor(6), data(6, 3)]])


RECURRENT: dict[str, nn.Module] = {
    "lstm": nn.LSTM(3, 4),
    "lstm_deep": nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True),
    "lstm_projected": nn.LSTM(3, 4, proj_size=2, bias=False),
    "gru": nn.GRU(3, 4, num_layers=2, batch_first=True),
    "gru_both_ways": nn.GRU(3, 4, bidirectional=True, bias=False),
    "rnn": nn.RNN(3, 4, num_layers=2),
    "rnn_relu": nn.RNN(3, 4, nonlinearity="relu", bidirectional=True, batch_first=True),
}


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_recurrent(name: str) -> None:
    n, t = Dim("n", min=1, max=9), Dim("t", min=2, max=99)
    layer = RECURRENT[name]
    axes = {0: n, 1: t} if layer.batch_first else {0: t, 1: n}
    check(layer, data(4, 5, 3), dynamic=(axes,), others=[[data(7, 2, 3)], [data(2, 3, 3)]])


def test_recurrent_with_states() -> None:
    check(nn.LSTM(3, 4), data(5, 2, 3), (data(1, 2, 4), data(1, 2, 4, seed=1)))
    check(nn.GRU(3, 4), data(5, 3), data(1, 4))
    check(nn.LSTMCell(3, 4), data(2, 3), (data(2, 4), data(2, 4, seed=1)))
    check(nn.GRUCell(3, 4), data(2, 3), data(2, 4))
    check(nn.RNNCell(3, 4), data(2, 3), data(2, 4))


def test_branches() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: (x - 1).relu() + x.sum(0), (x,))

    check(Branch(), data(3, 4).abs(), others=[[-data(3, 4).abs()]])


def test_loop() -> None:
    from torch._higher_order_ops.while_loop import while_loop

    class Loop(nn.Module):
        def forward(self, n: torch.Tensor, x: torch.Tensor) -> Any:
            return while_loop(
                lambda i, x: i < n, lambda i, x: (i + 1, x * 1.5 + i), (torch.zeros((), dtype=torch.int64), x)
            )

    check(Loop(), torch.tensor(3), data(2, 2), others=[[torch.tensor(0), data(2, 2)], [torch.tensor(7), data(2, 2)]])


def test_gradients_off_inside() -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = x.exp()
        with torch.autocast("cpu", torch.bfloat16):
            z = y @ x.t()
        return z.float() + 1

    model = module(inner)
    exported = torch.export.export(model, (data(3, 4),), strict=False)  # with gradients on: sub-graphs
    compare(import_torch(exported), model, (data(3, 4),))
