"""Tensors of rank 0 that are a Python number on some paths: what their type does to others must not depend on the path.

`s = x.sum() if c else 3` is recorded as a tensor. Beside integers a float tensor makes floats and the number 3 does not, and a
number that its type rounds compares otherwise than Python's own: where that matters, the value is refused.

Source: PyTorch, "Tensor Attributes", type promotion: dimensioned tensors, tensors of rank 0 and numbers take part by category.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from dlc.frontend.torch_errors import ArmsDiffer
from dlc.frontend.torch_numbers import DTYPES, SAMPLES, Number, kind_of
from dlc.frontend.torch_types import promote
from dlc.frontend.torch_values import leaves


@dataclass(frozen=True)
class Also:
    """What else a tensor may be.

    Attributes:
        kind: the type of the Python number.
        exact: whether the tensor's type has the number's value.
        name, place: the variable, and where it became one of both.
    """

    kind: type
    exact: bool
    name: str
    place: str


class Loose:
    """The tensors that are Python numbers on some paths."""

    def __init__(self, flow: Any) -> None:
        self.flow = flow
        self._held = WeakTensorKeyDictionary()

    def of(self, v: Any) -> Also | None:
        found: Also | None = self._held.get(v) if isinstance(v, torch.Tensor) else None
        return found

    def note(self, made: torch.Tensor, also: Also | None) -> None:
        if also is not None:
            self._held[made] = also

    def joined(self, made: torch.Tensor, sides: tuple[Any, ...], name: str, place: str) -> None:
        """`made` is one of several: numbers, or tensors that may be numbers, among them."""
        for v in sides:
            if isinstance(v, (Number, bool, int, float)):
                self.note(made, Also(kind_of(v), _exact(v, made.dtype), name, place))
            else:
                self.note(made, self.of(v))

    def before(self, name: str, args: Any, kwargs: Any) -> Also | None:
        """Refuse a call whose result has another type where these are numbers; what the result may be if it may be one, too."""
        if not self._held:
            return None
        operands = list(leaves((args, kwargs)))
        soft = [v for v in operands if self.of(v) is not None]
        if not soft or name.startswith("__get") or name in _KEEPING or name.endswith("_") and not name.endswith("__"):
            return None
        others = [v for v in operands if isinstance(v, torch.Tensor) and self.of(v) is None]
        if name == "where" and args and others and others[0] is args[0]:
            del others[0]  # a condition
        numbers = [v for v in operands if isinstance(v, (bool, int, float))]
        also = [a for v in soft if (a := self.of(v)) is not None]
        if not others:
            kinds = [*(a.kind for a in also), *map(kind_of, numbers)]
            inexact = next((a for a in also if not a.exact), None)
            if inexact is not None and name in _COMPARISONS:
                self._refuse(inexact, soft[also.index(inexact)])
            kind = float if float in kinds or "div" in name and "floor" not in name else int
            return Also(kind, all(a.exact for a in also), also[0].name, also[0].place)
        plain = [(t.dtype, t.dim() > 0) for t in others]
        one = promote([*plain, *((t.dtype, False) for t in soft)], numbers)
        other = promote(plain, [*numbers, *(SAMPLES[a.kind] for a in also)])
        if one != other:
            self._refuse(also[0], soft[0])
        return None

    def after(self, made: Any, also: Also | None) -> None:
        """A call has given this, of numbers and what may be numbers alone."""
        if isinstance(made, torch.Tensor) and made.dim() == 0 and made.dtype != torch.bool:
            self.note(made, also)

    def _refuse(self, also: Also, t: torch.Tensor) -> None:
        one = f"a tensor {str(t.dtype).removeprefix('torch.')}[]"
        reason = f"{one} on one path and a Python {also.kind.__name__} on the other, which matters to its type here"
        raise self.flow.refused(ArmsDiffer, name=also.name, place=also.place, reason=reason)


_COMPARISONS = frozenset("__eq__ __ne__ __lt__ __le__ __gt__ __ge__ eq ne lt le gt ge".split())
_KEEPING = frozenset("__setitem__ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ stack cat".split())
"""What leaves the type of its first operand as it is, or takes no numbers."""


def _exact(v: Any, dtype: torch.dtype) -> bool:
    """Whether a tensor of this type has the number's value."""
    if isinstance(v, Number):
        return v.kind is not float or dtype == torch.float64
    if not dtype.is_floating_point or not math.isfinite(v):
        return True
    return dtype == torch.float64 or _rounded(v, dtype) == v


def _rounded(v: float, dtype: torch.dtype) -> float:
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes(), torch._C.DisableTorchFunction():
        return float(torch.tensor(v, dtype=torch.float64).to(dtype).item())


def as_tensor(v: Any, t: torch.Tensor) -> bool:
    """Whether a Python number, which `t` of rank 0 is on another path, can as well be a tensor of that type."""
    if t.dim() or not isinstance(v, (bool, int, float, Number)) or t.dtype.is_complex:
        return False
    if isinstance(v, Number):
        return not v.mixed and t.dtype in (DTYPES[v.kind], torch.float32 if v.kind is float else DTYPES[v.kind])
    if not t.dtype.is_floating_point:
        return isinstance(v, bool) == (t.dtype == torch.bool) and isinstance(v, int)
    if isinstance(v, bool):
        return False
    if isinstance(v, float) and (t.dtype in (torch.float32, torch.float64) or not math.isfinite(v)):
        return True
    return float(v).is_integer() and abs(v) <= 1 / torch.finfo(t.dtype).eps


def tensor_like(v: Any, t: torch.Tensor) -> torch.Tensor:
    """A number as a tensor of the type of `t`."""
    return v.tensor.to(t.dtype, copy=True) if isinstance(v, Number) else torch.scalar_tensor(v, dtype=t.dtype)


__all__ = ["Also", "Loose", "as_tensor", "tensor_like"]
