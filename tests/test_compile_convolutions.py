"""`dlc.compile` on convolutions: borders of every kind after layers whose results lie channels-last, and images done in bands."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import dlc
from dlc.arena_plan import plan_arena
from dlc.compiler import run_passes
from dlc.importing import import_any
from dlc.ir.program import For

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402


class Pads(nn.Module):
    """A layer whose result convolutions of several strides, dilations and paddings read, one per channel among them."""

    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, 24, 1)
        self.plain = nn.Conv2d(24, 20, 3, padding=1)
        self.strided = nn.Conv2d(24, 17, 3, stride=2, padding=(1, 2))
        self.wide = nn.Conv2d(24, 16, 5, stride=3, padding=2)
        self.dilated = nn.Conv2d(24, 8, 3, padding=3, dilation=3)
        self.each = nn.Conv2d(24, 24, 3, stride=2, groups=24)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.expand(x) * 1.5)
        uneven = nn.functional.pad(y, (0, 1, 2, 0))
        return self.plain(y), self.strided(y), self.wide(y).tanh(), self.dilated(y), self.each(uneven), y.mean((2, 3))


@pytest.mark.parametrize("accuracy", ["default", "strict"])
@pytest.mark.parametrize("size", [(7, 9), (16, 33)], ids=str)
def test_several_readers_with_borders_of_their_own(size: tuple[int, int], accuracy: str) -> None:
    torch.manual_seed(0)
    model = Pads().eval()
    batch = torch.export.Dim("batch", min=1, max=8)
    exe = dlc.compile(model, (torch.randn(2, 3, *size),), dynamic_shapes=({0: batch},), accuracy=accuracy)
    for n in (1, 3):
        x = torch.randn(n, 3, *size)
        with torch.no_grad():
            want = model(x)
        for a, b in zip(exe(x), want, strict=True):
            np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=2e-4, atol=2e-5)


def test_a_large_image_in_bands() -> None:
    """A network whose transformed tensors no cache holds: a loop over bands, and an arena smaller than one of them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(64, 8, 3, padding=1)
    ).eval()
    x = torch.randn(1, 3, 128, 144)
    with torch.no_grad():
        exe, want = dlc.compile(model, (x,), threads=2), model(x)
    np.testing.assert_allclose(exe(x).numpy(), want.numpy(), rtol=1e-3, atol=1e-4)
    program = run_passes(import_any(model, (x,), None, None, None, "bands").program)
    (loop,) = (s for s in program.body.body if isinstance(s, For))
    assert len(loop.body.body) == 3, "the transforms and the products, with what follows"
    image, transformed = 4 * 64 * 128 * 144, 4 * 64 * 36 * 32 * 36
    assert plan_arena(program, 0.1).height < 2 * image + transformed


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (torch.nn.Conv2d(32, 32, 3), (2, 32, 15, 19)),
        (torch.nn.Conv2d(32, 32, (3, 1), groups=2), (2, 32, 15, 19)),
        (torch.nn.Conv2d(4, 4, 1, groups=4), (2, 4, 5, 5)),
        (torch.nn.Conv2d(4, 48, 1, groups=4), (2, 4, 5, 5)),
        (torch.nn.ConvTranspose2d(4, 4, 1, groups=4), (2, 4, 5, 5)),
        (torch.nn.Linear(1, 5), (3, 1)),
    ],
    ids=str,
)
def test_sums_of_half_types_are_rounded_once(module: torch.nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Winograd is for f32 only, and the one term of a sum over windows of one pixel is no product rounded by itself."""
    torch.manual_seed(0)
    x = torch.randn(*shape).to(dtype)
    half = copy.deepcopy(module).to(dtype).eval()
    with torch.no_grad():
        got = dlc.compile(half, (x,), cache=False)(x).float()
        exact = copy.deepcopy(half).double()(x.double())
    step = torch.finfo(dtype).eps * exact.abs().clamp(min=2**-10)
    assert ((got - exact).abs() <= step).all(), "half a step of rounding, and the sum's own error"
