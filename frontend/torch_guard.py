"""What PyTorch itself would decide on data while a model is recorded: it gives a `Number`, or is refused.

Code that is not rewritten asks tensors for Python values (`bool(x)`, `x.tolist()`, `torch.equal`); so do some of PyTorch's functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode

from dlc.frontend.torch_errors import UncapturedDecision
from dlc.frontend.torch_numbers import Number

_DATA = torch.Tensor.data.__get__


class Guard(TorchFunctionMode):
    """What takes a Python value out of a tensor gives a `Number`, or is refused where that cannot be."""

    def __init__(self, rt: Any) -> None:
        super().__init__()
        self.rt = rt

    def __torch_function__(self, func: Any, types_: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == _DATA:
            return args[0].detach()  # `x.data` itself is seen by no tracer
        name = getattr(func, "__name__", "")
        handler = _TAKING.get(name) or (_text if name == "__repr__" and self.rt.asked_by_model() else None)
        if handler is not None and args and isinstance(args[0], torch.Tensor):
            with self:
                return handler(self.rt, *args, **kwargs)
        try:
            also = self.rt.loose.before(name, args, kwargs)
            made = self.rt.recorder.positions.asked(name, args, kwargs)
            if made is None:
                made = func(*args, **kwargs)
            self.rt.recorder.rows.follow()
            self.rt.loose.after(made, also)
            return made
        except GuardOnDataDependentSymNode as error:
            why = f"{name} needs to know {error.cond} (in PyTorch's own code)"
            raise self.rt.refused(UncapturedDecision, what="a number computed from data", why=why) from error


def _needed(what: str) -> Callable[..., Any]:
    def needed(rt: Any, x: torch.Tensor, *_: Any) -> Any:
        kind = {"truth": bool, "float": float}.get(what, int)
        found = rt.decide(x) if what == "truth" and x.numel() == 1 else rt.item(x) if x.numel() == 1 else None
        if found is not None and not isinstance(found, Number):
            return kind(found)
        if x.numel() != 1:
            raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")
        why = rt.unwritten()
        raise rt.refused(UncapturedDecision, what="a tensor", why=f"its {what} is needed in {why}")

    return needed


def _to_list(rt: Any, x: torch.Tensor) -> Any:
    if x.dim() == 0:
        return rt.item(x)
    if not isinstance(x.shape[0], int):
        raise rt.refused(UncapturedDecision, what="a list as long as an extent", why="tolist() of a tensor of symbolic size")
    return rt.born([_to_list(rt, v) for v in x.unbind(0)])


def _text(rt: Any, x: torch.Tensor, *_: Any, **__: Any) -> str:
    raise rt.refused(UncapturedDecision, what="a tensor", why="it is turned into text")


def _equal(rt: Any, a: torch.Tensor, b: torch.Tensor) -> Any:
    return rt.decide((a == b).all()) if tuple(a.shape) == tuple(b.shape) else False


def _allclose(rt: Any, a: torch.Tensor, b: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    return rt.decide(torch.isclose(a, b, *args, **kwargs).all())


_TAKING: dict[str, Callable[..., Any]] = {
    "item": lambda rt, x: rt.item(x), "tolist": _to_list, "equal": _equal, "allclose": _allclose,
    "is_nonzero": lambda rt, x: rt.decide(x), "__bool__": _needed("truth"), "__int__": _needed("integer"),
    "__index__": _needed("integer"), "__float__": _needed("float"), "__format__": _text,
}  # fmt: skip


__all__ = ["Guard"]
