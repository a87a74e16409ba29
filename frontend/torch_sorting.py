"""`sorted` and `list.sort` of values that are data, or by keys that are: a stable sort, and the items by their positions in it.

Python's order is torch.sort's with `stable`, but for NaN, with which Python's is that of no order at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dlc.frontend.torch_errors import UncapturedDecision
from dlc.frontend.torch_numbers import Number, is_number, tensor_of
from dlc.frontend.torch_subscripts import choose_item
from dlc.frontend.torch_values import described, joined_kind, leaves


def in_order(flow: Any, items: list[Any], key: Callable[[Any], Any] | None, reverse: bool) -> list[Any]:
    """The items in the order of their keys, each of which is computed once."""
    keys = items if key is None else [flow.call(key, v) for v in items]
    if not any(isinstance(v, (Number, torch.Tensor)) for v in leaves(keys)):
        at = sorted(range(len(items)), key=keys.__getitem__, reverse=reverse)
        return [items[n] for n in at]
    stacked, kind, mixed = _stacked(flow, keys)
    values, at = torch.sort(stacked, stable=True, descending=reverse)
    if key is None and kind is not None:
        return [Number(kind, v, flow, mixed=mixed) for v in values.unbind(0)]
    return [choose_item(flow, items, Number(int, n, flow)) for n in at.unbind(0)]


def _stacked(flow: Any, keys: Sequence[Any]) -> tuple[torch.Tensor, type | None, bool]:
    """The keys as a tensor; with their Python type, and whether that depends on data."""
    first = keys[0]
    if all(is_number(k) for k in keys):
        kind, mixed = joined_kind(first, first)
        for k in keys[1:]:
            kind, more = joined_kind(Number(kind, torch.empty(()), flow), k)
            mixed |= more
        return torch.stack([tensor_of(k, kind) for k in keys]), kind, mixed
    if all(isinstance(k, torch.Tensor) and k.numel() == 1 and k.dtype == first.dtype for k in keys):
        return torch.stack([k.reshape(()) for k in keys]), None, False
    other = next((k for k in keys if not is_number(k) and not (isinstance(k, torch.Tensor) and k.numel() == 1)), None)
    why = f"among the keys is {described(other)}" if other is not None else "the keys are of several types"
    raise flow.refused(UncapturedDecision, what="the order of these values", why=f"{why}; sort by one number each, or use torch.sort")
