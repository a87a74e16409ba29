"""Values that no input has a part in: computed from weights and constants alone, so that decisions on them fold away."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from dlc.frontend.torch_storage import storage_of, writes

_LARGEST = 1 << 22  # elements; folding is for masks and tables, not for computing with weights
_ABSENT = object()


def constant_value(flow: Any, value: torch.Tensor) -> torch.Tensor | None:
    """The value of a recorded tensor if it depends on no input, and was never written in place."""
    recorder = flow.recorder
    found = _evaluate(recorder.node_of(value), recorder.constants, recorder.written)
    return found if isinstance(found, torch.Tensor) else None


def constant_item(flow: Any, value: torch.Tensor) -> Any:
    """The single element of such a tensor as a Python number; None if it is data."""
    found = constant_value(flow, value)
    if found is None:
        return None
    with _plain():
        return found.item()


@contextmanager
def _plain() -> Iterator[None]:
    """PyTorch as it is without any tracing."""
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def _evaluate(node: fx.Node, memo: dict[fx.Node, Any], written: set[int]) -> Any:
    if node in memo:
        return memo[node]
    pending = [node]
    while pending:  # without recursion: chains are as long as networks are deep
        n = pending[-1]
        missing = [a for a in n.all_input_nodes if a not in memo] if _foldable(n) else []
        if missing and not any(memo.get(a) is _ABSENT for a in n.all_input_nodes):
            pending += missing
            continue
        pending.pop()
        memo.setdefault(n, _ABSENT if storage_of(n) in written else _value(n, memo))
    return memo[node]


def _foldable(n: fx.Node) -> bool:
    if n.op != "call_function":
        return False
    if n.target is operator.getitem:
        return True
    if not isinstance(n.target, torch._ops.OpOverload):
        return False
    random = torch.Tag.nondeterministic_seeded in n.target.tags
    return not random and (not n.target._schema.is_mutable or not writes(n))


def _value(n: fx.Node, memo: dict[fx.Node, Any]) -> Any:
    val = n.meta.get("val")
    if not _foldable(n) or (isinstance(val, torch.Tensor) and not _small(val)):
        return _ABSENT
    if any(memo.get(a, _ABSENT) is _ABSENT for a in n.all_input_nodes):
        return _ABSENT
    args = fx.map_arg(n.args, memo.__getitem__)
    kwargs = fx.map_arg(n.kwargs, memo.__getitem__)
    with _plain():
        return n.target(*args, **kwargs)


def _small(val: torch.Tensor) -> bool:
    return all(isinstance(e, int) for e in val.shape) and val.numel() <= _LARGEST
