"""Python's functions of single numbers, where the number is data or an extent: rounding, `math`, `divmod`, text."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from dlc.frontend.torch_errors import UncapturedDecision
from dlc.frontend.torch_numbers import Number
from dlc.frontend.torch_values import leaves

if TYPE_CHECKING:
    from dlc.frontend.torch_calls import Calls


def function_of_math(function: Callable[[torch.Tensor], torch.Tensor], plain: Any) -> Callable[..., Any]:
    def apply(rt: Calls, *args: Any) -> Any:
        if len(args) == 1 and isinstance(args[0], torch.Tensor):
            args = (rt.item(args[0]),)
        args = tuple(map(rt.counted, args))
        if len(args) != 1 or not isinstance(args[0], Number):
            return plain(*args)
        for kind in (ValueError, OverflowError):
            rt.may_raise(kind)
        return Number(float, function(args[0].as_(float)), rt)

    return apply


def whole(rt: Calls, v: Any) -> None:
    """A float is about to become an integer: NaN and the infinities cannot."""
    if isinstance(v, Number) and v.kind is float:
        for kind in (ValueError, OverflowError):
            rt.may_raise(kind)


def rounded(plain: Any) -> Callable[..., Any]:
    def apply(rt: Calls, v: Any, *more: Any) -> Any:
        if isinstance(v, torch.Tensor) and plain is not round:
            v = rt.item(v)
        if isinstance(v, torch.SymInt) and not more:
            return v
        if not more:
            whole(rt, v)
        return plain(rt.counted(v), *more)

    return apply


def test_of(function: Callable[[torch.Tensor], torch.Tensor], plain: Any) -> Callable[..., Any]:
    def apply(rt: Calls, v: Any) -> Any:
        v = rt.item(v) if isinstance(v, torch.Tensor) else rt.counted(v)
        return Number(bool, function(v.as_(float)), rt) if isinstance(v, Number) else plain(v)

    return apply


def textual(plain: Any) -> Callable[..., Any]:
    def apply(rt: Calls, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(v, (torch.SymInt, torch.SymFloat)) for v in leaves(args)):
            raise rt.refused(UncapturedDecision, what="an extent", why="it is turned into text")
        return rt.native(plain, args, kwargs)

    return apply


def divided(rt: Calls, a: Any, b: Any) -> Any:
    return divmod(rt.counted(a), rt.counted(b))


def magnitude(rt: Calls, v: Any) -> Any:
    return abs(rt.counted(v))
