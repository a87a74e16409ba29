"""Which traced values share memory, and which calls write to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx


def storage_of(node: fx.Node) -> int | None:
    """Identity of the memory of a traced value (of the first of several); None for what has none."""
    v = node.meta.get("val", node.meta.get("example_value"))
    if isinstance(v, (tuple, list)):
        v = next((x for x in v if isinstance(x, torch.Tensor)), None)
    if not isinstance(v, torch.Tensor) or v.layout != torch.strided:
        return None
    return int(v.untyped_storage()._cdata)


_RENAMING = frozenset("detach unsqueeze squeeze transpose t swapaxes swapdims as_strided requires_grad".split())
"""In-place operators that change how a tensor is seen, not what it holds."""


def functional_name(target: str) -> str | None:
    """`aten.relu.default` for `aten.relu_.default`; None for what is not in place."""
    parts = target.split(".")
    if len(parts) != 3 or not parts[1].endswith("_") or parts[1].endswith("__"):
        return None
    return f"{parts[0]}.{parts[1][:-1]}.{parts[2]}"


def writes(node: fx.Node) -> bool:
    """Whether the node changes the values of its first argument."""
    name = _changed_by(node)
    return name is not None and name not in _RENAMING


def renames(node: fx.Node) -> bool:
    """Whether the node changes how its first argument is seen."""
    return _changed_by(node) in _RENAMING


def _changed_by(node: fx.Node) -> str | None:
    """The name of an in-place operator, without its underscore."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    plain = functional_name(str(node.target))
    return None if plain is None else plain.split(".")[1]


def contiguous(node: fx.Node) -> bool:
    """Whether a traced tensor's elements lie one after the other, whatever its size."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    v = node.meta["val"]
    expected: Any = 1
    for size, stride in zip(reversed(v.shape), reversed(v.stride()), strict=True):
        if not statically_known_true(size == 1) and not statically_known_true(stride == expected):
            return False
        expected = expected * size
    return True
