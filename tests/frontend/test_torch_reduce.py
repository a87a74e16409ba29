"""Reductions, softmax and cumulative operators of the PyTorch importer against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.frontend.torch_case import check, data
from torch.export import Dim

REDUCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sum": lambda x: (x.sum(), x.sum(0), x.sum((0, 2), keepdim=True), x.sum(-1, dtype=torch.float64)),
    "mean": lambda x: (x.mean(), x.mean(1), x.mean((0, -1), True)),
    "amax": lambda x: (x.amax(), x.amax(1), x.amin((0, 2), True), x.max(), x.min()),
    "max_dim": lambda x: (*x.max(1), *x.min(-1, keepdim=True), *torch.max(x, 0)),
    "arg": lambda x: (x.argmax(), x.argmin(1), x.argmax(2, keepdim=True), x.argmax(keepdim=True)),
    "var": lambda x: (
        x.var(),
        x.var(1),
        x.var((0, 1), unbiased=False, keepdim=True),
        x.std(2),
        x.std(),
        torch.var(x, 1, correction=0),
    ),
    "var_mean": lambda x: (*torch.var_mean(x, 1), *torch.std_mean(x, (0, 1), keepdim=True)),
    "prod": lambda x: (x.prod(), x.prod(1), x.prod(2, keepdim=True)),
    "any": lambda x: ((x > 0).any(), (x > 1).any(1), (x > -3).all(2), (x > 0).all(), x.any(0, keepdim=True)),
    "logsumexp": lambda x: (x.logsumexp(1), torch.logsumexp(x, (0, 2), keepdim=True)),
    "norm": lambda x: (
        x.norm(),
        x.norm(dim=1),
        torch.linalg.vector_norm(x, 1, dim=2),
        x.norm(3, dim=(0, 1)),
        torch.linalg.vector_norm(x, float("inf"), dim=1),
        torch.linalg.vector_norm(x, 0),
        x.norm(p="fro"),
    ),
    "normalize": lambda x: torch.nn.functional.normalize(x, dim=1),
    "softmax": lambda x: (x.softmax(1), x.softmax(-1), x.log_softmax(0), torch.nn.functional.softmin(x, 1)),
    "cumsum": lambda x: (x.cumsum(1), x.cumsum(0), x.cumprod(2), x.cumsum(-1, dtype=torch.float64)),
    "cummax": lambda x: (*x.cummax(1), *x.cummin(0)),
    "logcumsumexp": lambda x: x.logcumsumexp(1),
    "diff": lambda x: (x.diff(), torch.diff(x, dim=1, n=2), torch.diff(x, dim=0, prepend=x[:1])),
    "aminmax": lambda x: (*torch.aminmax(x), *torch.aminmax(x, dim=1)),
    "count": lambda x: (torch.count_nonzero(x > 0), torch.count_nonzero(x > 0, dim=1)),
    "cosine": lambda x: torch.cosine_similarity(x, x.flip(1), dim=2),
}


@pytest.mark.parametrize("name", sorted(REDUCTIONS))
def test_reduction(name: str) -> None:
    check(REDUCTIONS[name], data(3, 4, 5))


@pytest.mark.parametrize("name", ["sum", "mean", "amax", "softmax", "norm", "var", "cumsum", "arg"])
def test_symbolic_extents(name: str) -> None:
    a, b = Dim("a", min=1, max=64), Dim("b", min=1, max=64)
    check(REDUCTIONS[name], data(3, 4, 5), dynamic={0: a, 1: b}, others=[[data(2, 7, 5)], [data(6, 2, 5)]])


def test_integers_and_booleans() -> None:
    i, b = data(4, 6, dtype=torch.int32), data(4, 6, dtype=torch.bool)

    def several(i, b):  # type: ignore[no-untyped-def]
        return (
            i.sum(),
            i.sum(1),
            i.prod(0),
            i.amax(1),
            b.sum(),
            b.any(1),
            b.all(),
            i.cumsum(0),
            b.cumsum(1),
            *i.max(1),
            i.argmin(1),
        )

    check(several, i, b)


def test_nan_and_ties() -> None:
    x = torch.tensor([[1.0, float("nan"), 2.0, float("nan")], [3.0, 3.0, -1.0, 3.0]])
    check(lambda x: (x.amax(1), *x.max(1), *x.min(1), x.argmax(1), x.nansum(1), x.softmax(1)), x)


def test_rows_without_a_finite_element() -> None:
    x = torch.full((2, 3), float("-inf"))
    x[1, 0] = 0
    check(lambda x: (x.softmax(1), x.log_softmax(1), x.logsumexp(1)), x)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), ()])
def test_odd_extents(shape: tuple[int, ...]) -> None:
    def several(x):  # type: ignore[no-untyped-def]
        return x.sum(), x.sum(-1), x.prod(), (x > 0).any(), (x > 0).all(-1), x.cumsum(-1), x.softmax(-1), x.mean(-1)

    check(several, data(*shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats(dtype: torch.dtype) -> None:
    def several(x):  # type: ignore[no-untyped-def]
        return (
            x.sum(1),
            x.mean(1),
            x.var(1),
            x.softmax(1),
            x.log_softmax(1),
            x.norm(dim=1),
            x.logsumexp(1),
            x.cumsum(1),
            x.amax(1),
        )

    check(several, data(3, 40, dtype=dtype))
