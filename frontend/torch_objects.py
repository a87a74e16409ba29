"""Python objects that are another object on some paths: a change of one that the other may show.

Where two arms leave different lists (dicts, records) in a variable, the list after the branch is a third one with the elements of
either. In eager Python it is one of the two: what changes it in place changes that one, too. Such objects are kin; the change
of one takes the contents of its kin away, so that whoever looks at them afterwards is refused, and nobody else.

Source: Andersen, Program Analysis and Specialization for the C Programming Language (1994), chapter 4, as `torch_alias` has it
for tensors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from dlc.frontend.torch_heap import Cell
from dlc.frontend.torch_values import parts, same


def changeable(v: Any) -> bool:
    """Whether code may change this container in place."""
    if dataclasses.is_dataclass(v) and not isinstance(v, type):
        return not type(v).__dataclass_params__.frozen  # type: ignore[attr-defined]  # what dataclasses keeps, without a public name
    return parts(v) is not None and isinstance(v, (list, dict))


def cells_of(v: Any) -> Iterable[Cell]:
    """The places that hold the contents of a container."""
    if dataclasses.is_dataclass(v):
        return [Cell(v, f.name) for f in dataclasses.fields(v)]
    return [Cell(v, None)]


def same_keys(a: Any, b: Any) -> bool:
    """Whether two dicts have their keys in the same order, two sets the same elements; lists have positions, which are always the same."""
    if isinstance(a, dict):
        return all(same(p, q) for p, q in zip(a, b, strict=True))
    return not isinstance(a, set) or all(any(same(p, q) for q in b) for p in a)


@dataclass(eq=False)
class Kinship:
    """Which objects may be one at run time.

    Attributes:
        kin: by its address an object (kept alive, so that its address stays its own) and those that it may be.
    """

    kin: dict[int, tuple[Any, list[Any]]] = field(default_factory=dict)

    def relate(self, a: Any, b: Any) -> None:
        if a is b or not changeable(a) or not changeable(b):
            return
        for one, other in ((a, b), (b, a)):
            known = self.kin.setdefault(id(one), (one, []))[1]
            if not any(other is k for k in known):
                known.append(other)

    def of(self, v: Any) -> list[Any]:
        return self.kin.get(id(v), (v, []))[1]


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
        if not dataclasses.is_dataclass(v) or isinstance(v, type):
            return v
        became = {f.name: self.changes[id(v), f.name][2] for f in dataclasses.fields(v) if (id(v), f.name) in self.changes}
        if not became:
            return v
        import copy

        made = copy.copy(v)
        for name, value in became.items():
            object.__setattr__(made, name, value)
        return made


Shown = Callable[[Any], Any]

__all__ = ["AtTheEnd", "Kinship", "Shown", "cells_of", "changeable", "same_keys"]
