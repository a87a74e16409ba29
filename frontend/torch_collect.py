"""Lists that a loop of unknown length appends to: their elements are collected along a new leading dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dlc.frontend.torch_numbers import Number
from dlc.frontend.torch_values import Elided


def row(x: torch.Tensor, i: Number) -> torch.Tensor:
    """`x[i]` at an index from data, by value."""
    return torch.index_select(x, 0, i.tensor.reshape(1)).squeeze(0)


def one_of(flow: Any, items: Sequence[torch.Tensor], i: Number) -> torch.Tensor:
    """`items[i]`: in eager Python the very tensor."""
    root = torch.index_select(torch.stack(list(items)), 0, i.tensor.reshape(1))
    flow.recorder.rows.chosen(root, items, i.tensor)
    return root.squeeze(0)


class Growing(Elided):
    """What such a list holds at the start of a step, while the loop is recorded."""

    __slots__ = ()


class Collected(Elided):
    """All elements that a loop appended: `parts[j][i]` is the j-th element of step i.

    Attributes:
        kinds: for each part its Python type, if its elements are numbers.
    """

    __slots__ = ("kinds", "owner", "parts")

    def __init__(
        self, owner: Any, place: str, parts: Sequence[torch.Tensor], kinds: Sequence[type | None]
    ) -> None:
        super().__init__(owner, "the list", place, "as long as the number of its steps, which is data")
        for name, value in (("parts", tuple(parts)), ("kinds", tuple(kinds)), ("owner", owner)):
            object.__setattr__(self, name, value)

    @property
    def count(self) -> Any:
        """How many elements there are."""
        steps = self.parts[0].shape[0]
        return Number(int, torch.scalar_tensor(steps, dtype=torch.int64), self.owner) * len(self.parts)

    @property
    def whole(self) -> torch.Tensor:
        """All elements along a new leading dimension."""
        if len(self.parts) == 1:
            first: torch.Tensor = self.parts[0]
            return first
        return torch.stack(self.parts, dim=1).flatten(0, 1)

    def total(self) -> Any:
        """The sum of all elements."""
        value = self.whole.sum(0)
        kind = self.kinds[0]
        return value if kind is None else Number(int if kind is bool else kind, value, self.owner)

    def item(self, i: Any) -> Any:
        """Element `i`, a number that is not negative."""
        kind, value = self.kinds[0], row(self.whole, i)
        if kind is not None:
            return Number(kind, value, self.owner)
        self.owner.recorder.rows.shows(value, self.parts)
        return value

    def joined(self, function: Any, dim: int) -> torch.Tensor:
        """`torch.stack` or `torch.cat` of the elements."""
        whole = self.whole
        if function is torch.stack:
            return whole.movedim(0, dim)
        rank = whole.dim() - 1
        at = dim % rank
        return whole.movedim(0, at).flatten(at, at + 1)
