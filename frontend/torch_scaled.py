"""`torch.add(x, y, alpha=n)` and its like, for `n` from data: ATen multiplies in a wider type than its tensors' and rounds once."""

from __future__ import annotations

from typing import Any

import torch

from dlc.frontend.torch_numbers import Number

_NEGATIVE = frozenset(("sub", "sub_", "subtract", "subtract_", "rsub"))


def scaled(rt: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The sum or difference, whose `alpha` is a number from data: a scalar of the graph, negative for a difference.

    PyTorch traces no difference with such a scalar.
    """
    owner, name = getattr(function, "__self__", None), function.__name__
    alpha = kwargs["alpha"]
    rest = {k: v for k, v in kwargs.items() if k not in ("alpha", "input", "self", "other")}
    operands = [*([owner] if isinstance(owner, torch.Tensor) else ()), *args]
    operands += [kwargs[k] for k in ("input", "self", "other") if k in kwargs]
    first = next(v for v in operands if isinstance(v, torch.Tensor))
    x, y = (v.operand(first) if isinstance(v, Number) else v for v in operands)
    if name == "rsub":
        x, y = (y if isinstance(y, torch.Tensor) else torch.full_like(first, y, dtype=torch.result_type(first, y))), x
    if name in _NEGATIVE:
        alpha = -alpha
    if torch.result_type(x, y).is_floating_point:
        scale = rt.scalar(alpha.to(float))
    else:  # exact, and an integer scalar of the graph is an extent
        y, scale = y * alpha, 1
    return x.add_(y, alpha=scale) if name.endswith("_") else torch.add(x, y, alpha=scale, **rest)


__all__ = ["scaled"]
