"""The user's Dims and the symbols that stand for them in an exported program."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree


def dims_of(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any, exported: Any
) -> dict[Any, Any]:
    """By traced symbol: the user's Dim at a dimension of the inputs; of a derived one, its root."""
    if dynamic_shapes is None:
        return {}
    try:
        bound = inspect.signature(model.forward).bind(*args, **(kwargs or {})).arguments
    except TypeError:
        return {}
    specs: dict[int, Any] = {}
    tops = dynamic_shapes if isinstance(dynamic_shapes, dict) else dict(zip(bound, dynamic_shapes, strict=False))
    for key, value in bound.items():
        for part, spec in _paired(value, tops.get(key)):
            specs[id(part)] = spec
    flat = pytree.tree_leaves((tuple(args), dict(kwargs or {})))
    fakes = [n.meta.get("val") for n in user_nodes(exported)]
    dims: dict[Any, Any] = {}
    for original, fake in zip(flat, fakes, strict=False):
        spec = specs.get(id(original))
        if not isinstance(fake, torch.Tensor) or spec is None:
            continue
        items = spec.items() if isinstance(spec, dict) else enumerate(spec)
        for d, dim in items:
            root = getattr(dim, "root", dim)
            label = getattr(root, "__name__", None)
            extent = fake.shape[d]
            if (
                isinstance(label, str)
                and isinstance(root, type(torch.export.Dim("x")))
                and isinstance(extent, torch.SymInt)
            ):
                free = extent.node.expr.free_symbols
                if len(free) == 1:
                    dims.setdefault(next(iter(free)), root)
    return dims


def _paired(value: Any, spec: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, torch.Tensor):
        yield value, spec
    elif isinstance(value, (list, tuple)) and isinstance(spec, (list, tuple)):
        for v, s in zip(value, spec, strict=False):
            yield from _paired(v, s)
    elif isinstance(value, dict) and isinstance(spec, dict):
        for k, v in value.items():
            yield from _paired(v, spec.get(k))


def user_nodes(exported: Any) -> list[Any]:
    """Placeholders of the user's inputs, in order."""
    kinds = [s.kind for s in exported.graph_signature.input_specs]
    places = [n for n in exported.graph.nodes if n.op == "placeholder"]
    return [n for n, k in zip(places, kinds, strict=True) if k == InputKind.USER_INPUT]


__all__ = ["dims_of", "user_nodes"]
