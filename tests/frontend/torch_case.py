"""A function of tensors, exported, imported, interpreted and compared with PyTorch itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from dlc.frontend.imported import Imported
from dlc.frontend.torch_export import import_torch
from dlc.frontend.torch_types import numpy_view
from dlc.ir.interpret import run_program
from dlc.ir.verify import verify


class Fn(nn.Module):
    """A function as a module; the module it closes over, if any, is a part, so that its weights are parameters."""

    def __init__(self, function: Callable[..., Any], part: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        self.part = part

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def module(function: Any) -> nn.Module:
    return function.eval() if isinstance(function, nn.Module) else Fn(function).eval()


TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def close(got: Any, want: torch.Tensor, name: str = "") -> None:
    """Equal types and shapes; floats within a tolerance relative to the largest element, NaN and infinities alike."""
    a, b = np.asarray(got), numpy_view(want.detach().contiguous())
    assert a.shape == b.shape, (name, a.shape, b.shape)
    assert a.dtype == b.dtype, (name, a.dtype, b.dtype)
    if want.dtype not in TOLERANCE:
        np.testing.assert_array_equal(a, b, err_msg=name)
        return
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(y)
    np.testing.assert_array_equal(np.isnan(x), np.isnan(y), err_msg=name)
    np.testing.assert_array_equal(x[~finite & ~np.isnan(y)], y[~finite & ~np.isnan(y)], err_msg=name)
    if finite.any():
        bound = TOLERANCE[want.dtype] * max(1.0, float(np.abs(y[finite]).max()))
        assert np.abs(x[finite] - y[finite]).max() <= bound, (name, np.abs(x[finite] - y[finite]).max(), bound)


def run(imported: Imported, args: Sequence[Any]) -> tuple[Any, ...]:
    flat = [a for a in pytree.tree_leaves(tuple(args)) if isinstance(a, torch.Tensor)]
    return run_program(imported.program, [numpy_view(a.contiguous()) for a in flat])


def compare(imported: Imported, model: nn.Module, args: Sequence[Any], name: str = "") -> None:
    """Interpreted program against eager PyTorch, output by output."""
    with torch.no_grad():
        want = [
            v
            for v in pytree.tree_leaves(model(*[a.clone() if isinstance(a, torch.Tensor) else a for a in args]))
            if v is not None
        ]
    got = run(imported, args)
    want = [torch.tensor(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in want]
    want = [v for v in want if isinstance(v, torch.Tensor)]
    assert len(got) == len(want), (name, len(got), len(want))
    for g, w in zip(got, want, strict=True):
        close(g, w, name)


def check(function: Any, *args: Any, dynamic: Any = None, others: Sequence[Sequence[Any]] = ()) -> Imported:
    """Import with `args` as the example, compare on them and on `others`."""
    model = module(function)
    if dynamic is not None and isinstance(model, Fn):  # `forward(*args)`: one spec, a tuple with one entry per argument
        dynamic = ((dynamic,) if isinstance(dynamic, dict) else dynamic,)
    imported = import_torch(model, args, dynamic_shapes=dynamic)
    verify(imported.program, bounds=False)  # the compiler's first pass proves what remains
    for inputs in [args, *others]:
        compare(imported, model, inputs, str(function))
    return imported


def data(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, lo: int = -5, hi: int = 6) -> torch.Tensor:
    """Seeded values: standard normal, or integers in [lo, hi)."""
    g = torch.Generator().manual_seed(seed + sum(shape))
    if dtype == torch.bool:
        return torch.rand(shape, generator=g) < 0.5
    if dtype.is_floating_point:
        return torch.randn(shape, generator=g).to(dtype)
    return torch.randint(0 if dtype == torch.uint8 else lo, hi, shape, generator=g).to(dtype)
