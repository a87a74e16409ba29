"""Objects that Python code changes while both arms of a branch are recorded: journalled, restored, united.

A frame is open while one arm or one attempt at a loop is recorded. What the frame's code changes (an attribute, the contents
of a list, dict or set) is kept with its value from before; when the frame is closed its changes are taken back and handed to
whoever unites the arms. Objects made inside a frame are nobody else's and are left alone.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dlc.errors import DlcError
from dlc.frontend.torch_plain import copied, plain_method, refill
from dlc.frontend.torch_recorder import Region
from dlc.frontend.torch_truth import Fact

MISSING = type("Missing", (), {"__repr__": lambda self: "<missing>"})()
"""The value of an attribute that is not set."""


class Globals:
    """The variables of a source file as attributes."""

    def __init__(self, names: dict[str, Any]) -> None:
        object.__setattr__(self, "_names", names)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._names[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._names[name] = value

    def __delattr__(self, name: str) -> None:
        del self._names[name]


@dataclass(frozen=True, eq=False)
class Cell:
    """A changeable place: an attribute `name` of `owner`, or the contents of the container `owner`."""

    owner: Any
    name: str | None

    @property
    def key(self) -> tuple[int, str | None]:
        owner = self.owner._names if isinstance(self.owner, Globals) else self.owner
        return id(owner), self.name

    def read(self) -> Any:
        if self.name is not None:
            try:
                return _attribute(self.owner, self.name)
            except (AttributeError, ValueError):  # it is not set; a variable's cell is empty
                return MISSING
        return self.owner.copy() if type(self.owner) in (list, dict, set, deque) else copied(self.owner)

    def changed_from(self, before: Any) -> bool:
        """Whether another object is here now, or the container holds others, than what `read` gave."""
        if self.name is not None:
            return self.read() is not before
        old, new = (list(_held(v)) for v in (before, self.owner))
        return len(old) != len(new) or any(p is not q for p, q in zip(old, new, strict=True))

    def write(self, value: Any) -> None:
        if self.name is not None:
            if value is MISSING:
                if self.read() is not MISSING:
                    plain_method(self.owner, "__delattr__")(self.owner, self.name)
            elif self.read() is not value:
                plain_method(self.owner, "__setattr__")(self.owner, self.name, value)
            return
        refill(self.owner, value)

    def __str__(self) -> str:
        kind = type(self.owner).__name__
        return f"{kind}.{self.name}" if self.name is not None else f"the {kind}"


def _held(container: Any) -> Iterator[Any]:
    """What a container holds: of a dict the keys and the values."""
    if isinstance(container, Mapping):
        return itertools.chain.from_iterable(plain_method(container, "items")(container))
    found: Iterator[Any] = plain_method(container, "__iter__")(container)
    return found


def _attribute(owner: Any, name: str) -> Any:
    """An attribute as it is kept, past the methods of the model's own classes that may compute another."""
    if isinstance(getattr(type(owner), name, None), functools.cached_property):
        return vars(owner).get(name, MISSING)
    try:
        return plain_method(owner, "__getattribute__")(owner, name)
    except AttributeError:
        if not hasattr(type(owner), "__getattr__"):
            raise
        return plain_method(owner, "__getattr__")(owner, name)


@dataclass(eq=False)
class Frame:
    """Changes since an arm or an attempt began.

    Attributes:
        region: where its nodes go; its own, or that of the frame around it from `start` on.
        cells: changed places with their values from before.
        born: objects made since (kept alive, so that their addresses stay theirs).
        facts: truth of conditions inside, by the address of their tensor.
        errors: how many refusals there had been.
        lasting: what to refuse where all this must be undone, as something has changed that cannot be.
        touches: how often a place was about to change.
    """

    region: Region
    start: int = 0
    cells: dict[tuple[int, str | None], tuple[Cell, Any]] = field(default_factory=dict)
    born: dict[int, Any] = field(default_factory=dict)
    facts: dict[int, Fact] = field(default_factory=dict)
    errors: int = 0
    lasting: DlcError | None = None
    touches: int = 0

    def touch(self, cell: Cell) -> None:
        """`cell` is about to change."""
        self.touches += 1
        if id(cell.owner) not in self.born and cell.key not in self.cells:
            self.cells[cell.key] = cell, cell.read()

    def restore(self) -> dict[tuple[int, str | None], tuple[Cell, Any, Any]]:
        """Take the changes back; by place: what it was and what it had become."""
        found = {key: (cell, before, cell.read()) for key, (cell, before) in self.cells.items()}
        for cell, before, _ in found.values():
            cell.write(before)
        return found

    def absorb(self, inner: Frame) -> None:
        """The changes of a frame inside are this one's too."""
        self.born |= inner.born
        for key, (cell, before) in inner.cells.items():
            if id(cell.owner) not in self.born:
                self.cells.setdefault(key, (cell, before))
