"""A memory budget: the same results to the bit, never more arena, and a refusal that names the least budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import dlc
from dlc.arena_plan import OverMemoryBudget
from dlc.byte_sizes import parse_bytes
from dlc.runtime.errors import OverBudget


class Ladder(nn.Module):
    """Down and up again with a connection on every level, as in a U-Net: all of the way down is alive at its end."""

    def __init__(self, levels: int = 5) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Linear(64, 64) for _ in range(levels))
        self.up = nn.ModuleList(nn.Linear(64, 64) for _ in range(levels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = []
        for layer in self.down:
            x = torch.tanh(layer(x))
            kept.append(x)
        for layer in self.up:
            x = torch.tanh(layer(x)) + kept.pop()
        return x


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Ladder().eval()


X = torch.randn(256, 64, generator=torch.Generator().manual_seed(1))
TENSOR_BYTES = 256 * 64 * 4


def test_spills_and_is_equal_to_the_bit(model: nn.Module, tmp_path: Path) -> None:
    free = dlc.compile(model, (X,), threads=1)
    natural = _arena(free)
    assert natural >= 5 * TENSOR_BYTES
    tight = dlc.compile(model, (X,), threads=1, memory_budget=natural // 2, dump_dir=tmp_path / "dump")
    moves = [m for m in json.loads((tmp_path / "dump/schedule.json").read_text())["order"] if "kernel" not in m]
    assert any("spill" in m for m in moves) and any("fill" in m for m in moves)
    assert tight.manifest["spill_bytes"] > 0 and _arena(tight) <= natural // 2
    assert torch.equal(tight(X), free(X))
    tight.save(tmp_path / "tight.dlc")
    loaded = dlc.load(tmp_path / "tight.dlc", threads=1)
    assert torch.equal(loaded(X), free(X)) and _arena(loaded) <= natural // 2


class Branches(nn.Module):
    """Two large tensors, each for a sum: in the order written both are there at once, in another one there is one at a time."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        a, b = torch.flip(x, (0,)) @ x.T, torch.flip(y, (0,)) @ y.T
        return torch.tanh(a).sum(0) + torch.tanh(b).sum(0) + a.amax(0) + b.amax(0)


def test_another_order_instead_of_transfers(tmp_path: Path) -> None:
    free = dlc.compile(Branches(), (X, X + 1), threads=1)
    want = free(X, X + 1)
    natural = max(plan.arena_bytes for plan in free._plans.values())
    order = _kernels(free)
    tight = dlc.compile(Branches(), (X, X + 1), threads=1, memory_budget=natural * 2 // 3, dump_dir=tmp_path / "dump")
    assert torch.equal(tight(X, X + 1), want)
    assert sorted(_kernels(tight)) == sorted(order) and _kernels(tight) != order
    assert max(plan.arena_bytes for plan in tight._plans.values()) <= natural * 2 // 3
    assert tight.manifest["spill_bytes"] == 0


def test_below_what_one_kernel_needs(model: nn.Module) -> None:
    """Kernels then read and write the mapped file: any budget is enough for a program without loops and scratch memory."""
    free = dlc.compile(model, (X,), threads=1)
    for budget in (TENSOR_BYTES, "1KiB"):
        tight = dlc.compile(model, (X,), threads=1, memory_budget=budget)
        assert torch.equal(tight(X), free(X)) and _arena(tight) <= parse_bytes(budget)


def test_impossible_budget_names_the_least_and_the_least_works() -> None:
    """What a loop carries from step to step cannot leave the arena."""
    torch.manual_seed(0)
    lstm, x = nn.LSTM(16, 16), torch.randn(5, 2, 16)
    with pytest.raises(OverMemoryBudget) as caught:
        dlc.compile(lstm, (x,), threads=1, memory_budget=64)
    assert caught.value.exit_code == 6
    least = caught.value.fields["least"]
    free, tight = dlc.compile(lstm, (x,), threads=1), dlc.compile(lstm, (x,), threads=1, memory_budget=least)
    assert torch.equal(tight(x)[0], free(x)[0]) and _arena(tight) <= least < _arena(free)
    with pytest.raises(OverMemoryBudget):
        dlc.compile(lstm, (x,), threads=1, memory_budget=least - 1)


def test_bounded_shapes_stay_within_the_budget(model: nn.Module) -> None:
    shapes = ({0: torch.export.Dim("n", min=1, max=256)},)
    free = dlc.compile(model, (X,), threads=1)
    budget = _arena(free) // 2
    tight = dlc.compile(model, (X,), threads=1, dynamic_shapes=shapes, memory_budget=budget)
    for n in (256, 255, 100, 3, 1):
        assert torch.equal(tight(X[:n]), free(X)[:n]) or torch.allclose(tight(X[:n]), free(X)[:n], atol=1e-6)
        assert _arena(tight) <= budget


def test_more_threads_than_planned_are_refused(model: nn.Module, tmp_path: Path) -> None:
    class Softmax(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x @ x.T, 1) @ x

    free = dlc.compile(Softmax(), (X,), threads=1)
    if not int(free.manifest["scratch"]):
        pytest.skip("needs no scratch memory")
    dlc.compile(Softmax(), (X,), threads=1, memory_budget=_arena(free)).save(tmp_path / "one.dlc")
    with pytest.raises(OverBudget, match="threads=1"):
        dlc.load(tmp_path / "one.dlc", threads=2)(X)


def _arena(executable: dlc.Executable) -> int:
    """Bytes of the arena of the last plan that was made."""
    if not executable._plans:
        executable(X)
    return max(plan.arena_bytes for plan in executable._plans.values())


def _kernels(executable: dlc.Executable) -> list[str]:
    return [kernel["name"] for kernel in executable.manifest["kernels"]]
