"""A model and its exported program run with other sizes of the examples: whether the program does what the model does.

For given sizes the operators of both are fixed, so that one run tells two computations apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from dlc.frontend.torch_dims import user_nodes


def same_results(
    exported: torch.export.ExportedProgram, model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], sizes: Mapping[Any, int]
) -> bool | None:
    """Whether program and model give the same results, to within the roundings of two ways to compute one thing; None if the model raises.

    Args:
        exported: with what it asserts of sizes left aside.
        args, kwargs: examples; dimensions are cut, or filled by repetition.
        sizes: by symbol; others are as in the examples.
    """
    flat, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
    try:
        sized = [_sized(value, node.meta.get("val"), sizes) for value, node in zip(flat, user_nodes(exported), strict=True)]
        call_args, call_kwargs = pytree.tree_unflatten([_copy(v) for v in sized], spec)
        want = pytree.tree_leaves(model(*call_args, **call_kwargs))
    except Exception:
        return None
    try:
        given = iter(sized)
        inputs = [
            _copy(next(given)) if s.kind == InputKind.USER_INPUT else _held(exported, s.target)
            for s in exported.graph_signature.input_specs
        ]
        got = _Unasserted(exported.graph_module, sizes).results(inputs)
    except Exception:
        return False
    return all(itertools.starmap(_close, zip(got[len(got) - len(want) :], want, strict=True)))


class _Unasserted(fx.Interpreter):
    """Runs a program without what it asserts of sizes; a tensor must have the shape that was traced."""

    def __init__(self, module: fx.GraphModule, sizes: Mapping[Any, int]) -> None:
        super().__init__(module)
        self.sizes = sizes

    def results(self, inputs: Sequence[Any]) -> Any:
        """As `run`, which draws a progress bar with tqdm: that starts a thread, and writes to what models may hold, too."""
        self.env = dict(zip(self.graph.find_nodes(op="placeholder"), inputs, strict=True))
        for n in self.graph.nodes:
            if n not in self.env:
                self.env[n] = self.run_node(n)
                for used in self.user_to_last_uses.get(n, []):
                    del self.env[used]
        return self.env[next(iter(self.graph.find_nodes(op="output")))]

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        traced = n.meta.get("val")
        if isinstance(made, torch.Tensor) and isinstance(traced, torch.Tensor):
            if tuple(made.shape) != tuple(_size(e, self.sizes) for e in traced.shape):
                raise ValueError(f"{n.name} has another shape")
        return made

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return None if target is torch.ops.aten._assert_scalar.default else super().call_function(target, args, kwargs)


def _held(exported: torch.export.ExportedProgram, name: Any) -> Any:
    return exported.state_dict[name] if name in exported.state_dict else exported.constants.get(name)


def _copy(v: Any) -> Any:
    return v.clone() if isinstance(v, torch.Tensor) else v


def _sized(value: Any, traced: Any, sizes: Mapping[Any, int]) -> Any:
    if isinstance(traced, torch.SymInt):
        return _size(traced, sizes)
    if not isinstance(value, torch.Tensor) or not isinstance(traced, torch.Tensor):
        return value
    for d, extent in enumerate(traced.shape):
        size = _size(extent, sizes)
        if size != value.shape[d]:
            value = value.index_select(d, torch.arange(size) % value.shape[d])
    return value


def _size(extent: Any, sizes: Mapping[Any, int]) -> int:
    if not isinstance(extent, torch.SymInt):
        return int(extent)
    return int(extent.node.expr.subs({**extent.node.shape_env.backed_var_to_val, **sizes}))


def _close(got: Any, want: Any) -> bool:
    if not isinstance(got, torch.Tensor) or not isinstance(want, torch.Tensor):
        return bool(got == want)
    if got.shape != want.shape or got.dtype != want.dtype:
        return False
    if not got.dtype.is_floating_point:
        return torch.equal(got, want)
    scale = float(want.abs().nan_to_num(posinf=0.0).max()) if want.numel() else 0.0
    return torch.allclose(got, want, rtol=0.0, atol=torch.finfo(got.dtype).eps ** 0.5 * scale, equal_nan=True)


__all__ = ["same_results"]
