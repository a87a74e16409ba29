"""Python objects that are another object on some paths: a change of one that the other may show.

Where two arms leave different lists (dicts, records) in a variable, the list after the branch is a third one with the elements of
either. In eager Python it is one of the two: what changes it in place changes that one, too. Such objects are kin; the change
of one takes the contents of its kin away, so that whoever looks at them afterwards is refused, and nobody else.

Source: Andersen, Program Analysis and Specialization for the C Programming Language (1994), chapter 4, as `torch_alias` has it
for tensors.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dlc.frontend.torch_heap import MISSING, Cell
from dlc.frontend.torch_plain import attributes_of
from dlc.frontend.torch_values import is_record, parts, same


def changeable(v: Any) -> bool:
    """Whether code may change this container in place."""
    if dataclasses.is_dataclass(v) and not isinstance(v, type):
        return not type(v).__dataclass_params__.frozen  # type: ignore[attr-defined]  # what dataclasses keeps, without a public name
    return parts(v) is not None and (isinstance(v, (list, dict, set, deque)) or is_record(v))


def cells_of(v: Any) -> Iterable[Cell]:
    """The places that hold the contents of a container."""
    named = [Cell(v, name) for name in attributes_of(v)]
    return named if is_record(v) else [Cell(v, None), *named]


def same_keys(a: Any, b: Any) -> bool:
    """Whether two dicts have their keys in the same order, two sets the same elements; lists have positions, which are always the same."""
    if isinstance(a, dict):
        return all(same(p, q) for p, q in zip(a, b, strict=True))
    return not isinstance(a, set) or all(any(same(p, q) for q in b) for p in a)


@dataclass(eq=False)
class Kinship:
    """Which objects may be one at run time.

    Attributes:
        origins: by its address an object (kept alive, so that its address stays its own) and those that it may be.
        descended: by its address an object, and those that may be it.
    """

    origins: dict[int, tuple[Any, dict[int, Any]]] = field(default_factory=dict)
    descended: dict[int, dict[int, Any]] = field(default_factory=dict)

    def relate(self, a: Any, b: Any) -> None:
        """`a` may be `b`, and what `b` may be."""
        if a is b or not changeable(a) or not changeable(b):
            return
        for v in (a, b):
            self._origin(v, {id(v): v})
        self._origin(a, self.origins[id(b)][1])

    def _origin(self, v: Any, origins: dict[int, Any]) -> None:
        self.origins.setdefault(id(v), (v, {}))[1].update(origins)
        for at in origins:
            self.descended.setdefault(at, {})[id(v)] = v

    def of(self, v: Any) -> list[Any]:
        """The objects that may be `v` at run time: those that may be an object that `v` may be."""
        if id(v) not in self.origins:
            return []
        found = {at: other for origin in self.origins[id(v)][1] for at, other in self.descended[origin].items()}
        return [other for other in found.values() if other is not v]


@dataclass(frozen=True)
class AtTheEnd:
    """What objects held at the end of an arm whose changes have been taken back.

    Attributes:
        changes: the changed places: what each was and what it had become.
    """

    changes: dict[tuple[int, str | None], tuple[Cell, Any, Any]]

    def __call__(self, v: Any) -> Any:
        """`v` as it was then; itself if nothing changed."""
        whole = self.changes.get((id(v), None))
        if whole is not None:
            return whole[2]
        became = self.attributes.get(id(v))
        found = parts(v) if became is not None else None
        if became is None or found is None:
            return v
        made = found[1](found[0])
        for name, value in became.items():
            if value is not MISSING:
                object.__setattr__(made, name, value)
            elif hasattr(made, name):
                object.__delattr__(made, name)
        return made

    @functools.cached_property
    def attributes(self) -> dict[int, dict[str, Any]]:
        """By its owner's address what attributes had become."""
        found: defaultdict[int, dict[str, Any]] = defaultdict(dict)
        for (owner, name), (_, _, became) in self.changes.items():
            if name is not None:
                found[owner][name] = became
        return dict(found)


Shown = Callable[[Any], Any]

__all__ = ["AtTheEnd", "Kinship", "Shown", "cells_of", "changeable", "same_keys"]
