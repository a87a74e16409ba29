"""Lists that a loop of unknown length appends to: their elements are collected along a new leading dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dlc.frontend.torch_numbers import Number, is_number, kind_of, tensor_of
from dlc.frontend.torch_values import Elided, Sometimes, alike


def row(x: torch.Tensor, i: Number) -> torch.Tensor:
    """`x[i]` at an index from data, by value."""
    return torch.index_select(x, 0, i.tensor.reshape(1)).squeeze(0)


def one_of(flow: Any, items: Sequence[torch.Tensor], i: Number) -> torch.Tensor:
    """`items[i]`: in eager Python the very tensor."""
    root = torch.index_select(torch.stack(list(items)), 0, i.tensor.reshape(1))
    flow.recorder.rows.chosen(root, items, i.tensor)
    return root.squeeze(0)


@dataclass(eq=False)
class Progress:
    """How far a list has grown.

    Attributes:
        before: its elements before the loop.
        by: how many a step appends.
        index: how many steps there have been.
        newest: holds the last element as `value`, where that is known.
        asked, wanted: whether the length has been asked for, and whether the last element.
    """

    before: Sequence[Any]
    by: int
    index: Any = 0
    newest: Any = None
    asked: bool = False
    wanted: bool = False


class Counted(Elided):
    """Stands for elements whose number is data: each kind has it as `count`."""

    __slots__ = ()


class Growing(Counted):
    """What such a list holds at the start of a step, while the loop is recorded."""

    __slots__ = ("now",)

    def __init__(self, owner: Any, name: str, place: str, now: Progress) -> None:
        super().__init__(owner, name, place, "with another length after every step of the loop")
        object.__setattr__(self, "now", now)

    @property
    def count(self) -> Any:
        """How many elements there are."""
        self.now.asked = True
        return self.now.index * self.now.by + counted(self.now.before)

    def last(self) -> Any:
        """The last element."""
        self.now.wanted = True
        if self.now.newest is None:
            self.refuse()
        return self.now.newest.value


class Collected(Counted):
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
    def kind(self) -> type | None:
        """The Python type of the elements, if they are numbers."""
        if len(set(self.kinds)) > 1:
            self.refuse()
        found: type | None = self.kinds[0]
        return found

    @property
    def whole(self) -> torch.Tensor:
        """All elements along a new leading dimension."""
        first: torch.Tensor = self.parts[0]
        if len(self.parts) == 1:
            return first
        if None in self.kinds and any(alike(first, p) is not None for p in self.parts):
            self.refuse()
        return torch.stack(self.parts, dim=1).flatten(0, 1)

    def total(self) -> Any:
        """The sum of all elements."""
        whole = self.whole
        value = whole.sum(0, dtype=None if whole.dtype == torch.bool else whole.dtype)
        kind = None if None in self.kinds else float if float in self.kinds else int
        return value if kind is None else Number(kind, value, self.owner)

    def item(self, i: Any) -> Any:
        """Element `i`, a number that is not negative."""
        value = row(self.whole, i)
        kind = self.kind
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


def counted(items: Sequence[Any]) -> Any:
    """How many elements a list has of which some stand for others."""
    total: Any = 0
    for v in items:
        if isinstance(v, Elided) and not isinstance(v, (Counted, Sometimes)):
            v.refuse()
        total = total + (v.count if isinstance(v, Counted) else v.flag if isinstance(v, Sometimes) else 1)
    return total


def united(items: Sequence[Any]) -> tuple[torch.Tensor, type | None]:
    """The elements of a list along a new leading dimension, and their one Python type if they are numbers."""
    kinds = {v.kind if isinstance(v, Collected) else kind_of(v) if is_number(v) else None for v in items}
    plain = all(isinstance(v, (Collected, torch.Tensor)) or is_number(v) for v in items)
    if len(kinds) > 1 or not plain:
        next(v for v in items if isinstance(v, Elided)).refuse()
    kind = kinds.pop()
    rows = [v.whole if isinstance(v, Collected) else (v if kind is None else tensor_of(v, kind)).unsqueeze(0) for v in items]
    if len({r.dtype for r in rows}) > 1:
        next(v for v in items if isinstance(v, Elided)).refuse()  # without a step there is another type
    return rows[0] if len(rows) == 1 else torch.cat(rows), kind
