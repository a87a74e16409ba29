"""Calls that look at, or change, Python objects which may not be the same on every path.

Source: Chen et al., DyCL (ISSTA 2023), section 4.1: what both arms of a branch see must be what each would see alone.
"""

from __future__ import annotations

import inspect
import io
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch

from dlc.errors import DlcError
from dlc.frontend.torch_errors import HiddenEffect, UncapturedDecision
from dlc.frontend.torch_heap import Cell
from dlc.frontend.torch_held import HIDDEN, Reach, differ, fixed, held, journalled
from dlc.frontend.torch_ticks import ticks_of_all
from dlc.frontend.torch_values import DEAD, Unset

if TYPE_CHECKING:
    from dlc.frontend.torch_calls import Calls
    from dlc.frontend.torch_flow import Flow

WRITING = (setattr, delattr, object.__setattr__, object.__delattr__)
"""Functions that change an attribute, and store whatever they are given."""


def change(flow: Flow, owner: Any, kind: type[DlcError], /, **fields: Any) -> None:
    """An object changes in a way that cannot be taken back: refused on one path of several, or as soon as that is undone."""
    made = next((n for n in reversed(range(len(flow.frames))) if id(owner) in flow.frames[n].born), 0)
    if flow.frames[made].region is not flow.recorder.region:
        raise flow.refused(kind, **fields)
    for frame in flow.frames[made + 1 :]:
        frame.lasting = frame.lasting or flow.error_here(kind, **fields)


def advance(flow: Calls, iterator: Any) -> None:
    """An iterator is about to be stepped: where that is not done on every path, it must have been made there."""
    if flow.classes.method(iterator, "__next__") is not None:
        return  # what it changes is journalled
    why = "it is stepped on one path only, and was made before; make it there, or count an index"
    what = "how far an iterator has come"
    if any(v is known for v in _beneath(iterator) for known in flow.unsure):
        raise flow.refused(UncapturedDecision, what=what, why="a loop over it ends early where data say")
    change(flow, iterator, UncapturedDecision, what=what, why=why)


def _beneath(iterator: Any) -> Iterator[Any]:
    """An iterator, and those that it takes its items from, as far as it shows them (PEP 307)."""
    yield iterator
    with suppress(Exception):
        for v in iterator.__reduce__()[1]:
            if isinstance(v, Iterator):
                yield from _beneath(v)


def ends_early(flow: Flow, over: Any) -> None:
    """A loop over a value ends where data say: how far an iterator has come is not known from there on."""
    if isinstance(over, Iterator):
        flow.unsure += _beneath(over)


def advance_all(flow: Calls, values: Iterable[Any]) -> None:
    """Those of some values that are iterators are about to be used up."""
    for v in values:
        if isinstance(v, Iterator) and not isinstance(v, io.IOBase):
            advance(flow, v)


def alter(flow: Flow, owner: Any, by: str) -> None:
    """The contents of an object are about to change: journalled, or refused where that cannot be."""
    if journalled(owner):
        flow.touch(owner)
    elif not fixed(owner):
        change(flow, owner, HiddenEffect, owner=f"'{type(owner).__name__}'", by=by)


def late(rt: Flow, cell: Cell, before: Any, known: Collection[Any]) -> None:
    """A place has changed already: it is journalled with its value from before, unless it had been (`known`)."""
    frame = rt.frame
    rt.touch(cell.owner, cell.name)
    if cell.key in frame.cells and cell.key not in known:
        frame.cells[cell.key] = cell, before


def followed(rt: Calls, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], torchs: bool) -> Any:
    """A function that is not rewritten: its changes to the containers that it is given are journalled, others refused.

    Args:
        torchs: whether the function is PyTorch's: it changes the object whose method it is, or settings.
    """
    owner = _owner(function)
    if len(rt.frames) == 1 or (torchs and (isinstance(owner, (torch.Tensor, type, types.ModuleType)) or owner is function)):
        return function(*args, **kwargs)
    given = [owner] if torchs else [owner, *args, *kwargs.values()]
    advance_all(rt, given[1:])
    objects = [v for v in given if not fixed(v) and id(v) not in rt.frame.born]
    cells = [Cell(v, None) for v in objects if journalled(v)]
    before = [cell.read() for cell in cells]
    for cell in cells:
        rt.frame.touch(cell)
    name = getattr(function, "__name__", type(function).__name__)
    own = [Reach(v) for v in objects if not journalled(v) and rt.classes.keeps(v)]
    others = [(v, held(v)) for v in objects if not journalled(v) and not rt.classes.keeps(v)]
    known = set(rt.frame.cells)
    if others and others[0][0] is owner and HIDDEN in others[0][1]:
        alter(rt, owner, f"'{name}'")
    settings = ticks_of_all()
    made = function(*args, **kwargs)
    for cell, old in zip(cells, before, strict=True):
        if cell.changed_from(old):
            rt.touch(cell.owner)
    for v, was in others:
        if differ(was, held(v)):
            alter(rt, v, f"'{name}'")
    for reach in own:
        for cell, old in reach.changes():
            late(rt, cell, old, known)
    for setting in settings:
        if setting.changed:
            change(rt, setting, HiddenEffect, owner=f"'{setting.name}'", by=f"'{name}'")
    return made


def _owner(function: Any) -> Any:
    """The object that a function may change: the one whose method it is, itself where it is an object that can be called."""
    if isinstance(function, (types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType)):
        return getattr(function, "__self__", None)
    return function


def has(rt: Calls, owner: Any, name: str) -> bool:
    held = getattr(owner, name, DEAD)
    if isinstance(held, Unset):
        held.refuse()
    return held is not DEAD


def store(rt: Calls, write: Callable[..., None], owner: Any, name: str, *value: Any) -> None:
    """Write (`setattr`) or delete an attribute; what code of the model's own does in its place is that code's business."""
    verb = "set" if value else "delete"
    if write in (setattr, delattr) and rt.own_method(owner, "__setattr__" if value else "__delattr__", name, *value):
        return
    found = inspect.getattr_static(type(owner), name, None)
    if isinstance(found, property):
        function: Any = found.fset if value else found.fdel
        if function is not None:
            rt.call(function, owner, *value)
            return
    elif found is not None and rt.own_method(found, f"__{verb}__", owner, *value):
        return
    if not isinstance(owner, torch.Tensor):
        rt.touch(owner, name)
    write(owner, name, *value)


def writing(write: Callable[..., None]) -> Callable[..., None]:
    def written(rt: Calls, owner: Any, name: str, *value: Any) -> None:
        store(rt, write, owner, name, *value)

    return written


def step(rt: Calls, iterator: Any, *default: Any) -> Any:
    advance(rt, iterator)
    return next(iterator, *default)


__all__ = ["WRITING", "advance", "advance_all", "alter", "change", "ends_early", "followed", "has", "late", "step", "store", "writing"]
