"""Calls that look at, or change, Python objects which may not be the same on every path.

Source: Chen et al., DyCL (ISSTA 2023), section 4.1: what both arms of a branch see must be what each would see alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from dlc.frontend.torch_errors import UncapturedDecision
from dlc.frontend.torch_heap import Cell
from dlc.frontend.torch_values import DEAD, Unset

if TYPE_CHECKING:
    from dlc.frontend.torch_calls import Calls
    from dlc.frontend.torch_flow import Flow

WRITING = (setattr, delattr, object.__setattr__, object.__delattr__)
"""Functions that change an attribute, and store whatever they are given."""


def advance(flow: Flow, iterator: Any) -> None:
    """An iterator is about to be stepped: where that is not done on every path, it must have been made there."""
    if len(flow.frames) > 1 and id(iterator) not in flow.frame.born:
        why = "it is stepped on one path only, and was made before; make it there, or count an index"
        raise flow.refused(UncapturedDecision, what="how far an iterator has come", why=why)


def followed(rt: Calls, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function of the standard library, whose changes to the containers that it is given are journalled."""
    if not rt.on_one_path:
        return function(*args, **kwargs)
    cells = [Cell(v, None) for v in args if isinstance(v, (list, dict, set, deque))]
    before = [cell.read() for cell in cells]
    for cell in cells:
        rt.frame.touch(cell)
    made = function(*args, **kwargs)
    for cell, old in zip(cells, before, strict=True):
        if len(old) != len(cell.owner) or any(p is not q for p, q in zip(old, cell.owner, strict=True)):
            rt.touch(cell.owner)
    return made


def has(rt: Calls, owner: Any, name: str) -> bool:
    held = getattr(owner, name, DEAD)
    if isinstance(held, Unset):
        held.refuse()
    return held is not DEAD


def writing(write: Callable[..., None]) -> Callable[..., None]:
    def written(rt: Calls, owner: Any, name: str, *value: Any) -> None:
        if not isinstance(owner, torch.Tensor):
            rt.touch(owner, name)
        write(owner, name, *value)

    return written


def step(rt: Calls, iterator: Any, *default: Any) -> Any:
    advance(rt, iterator)
    return next(iterator, *default)


__all__ = ["WRITING", "advance", "followed", "has", "step", "writing"]
