"""What an object holds, to see whether code that is not rewritten has changed it.

A method of an array, a text buffer or a queue leaves no trace that could be journalled. What such an object holds is read from
the outside before and after: its attributes, its items, and what it would be copied by (`__reduce_ex__`).

Source: Python's data model, `object.__reduce_ex__` (PEP 307): the state of an object, without knowing its type.
"""

from __future__ import annotations

import contextvars
import datetime
import enum
import fractions
import functools
import numbers
import pathlib
import re
import types
import weakref
from collections import OrderedDict, UserDict, deque
from collections.abc import ItemsView, Iterator, KeysView, Sequence, ValuesView
from typing import Any

import numpy as np
import torch
from torch import nn

from dlc.frontend.torch_callers import left_alone
from dlc.frontend.torch_heap import MISSING, Cell
from dlc.frontend.torch_numbers import Number
from dlc.frontend.torch_plain import slots_of
from dlc.frontend.torch_state import foreign
from dlc.frontend.torch_values import Absent

_FIXED = (
    torch.Tensor, Number, Absent, numbers.Number, torch.SymInt, torch.SymFloat, torch.SymBool, str, bytes, tuple, frozenset,
    range, slice, type(None), type(Ellipsis), type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType,
    types.MethodType, torch.dtype, torch.device, torch._ops.OperatorBase, torch._ops.OpOverloadPacket, torch._ops._OpNamespace,
    re.Pattern, re.Match, enum.Enum, fractions.Fraction, datetime.date, datetime.time, datetime.timedelta, pathlib.PurePath,
    types.MappingProxyType, weakref.ref, np.ufunc, np.generic,
)  # fmt: skip
"""Types whose objects never change, or whose changes are the recorder's own business."""

_CONTAINERS = (list, dict, set, deque, OrderedDict, UserDict)
_VIEWS = (KeysView, ValuesView, ItemsView)

HIDDEN = object()
"""What is held by an object that shows nothing of it."""


def fixed(v: Any) -> bool:
    """Whether no method of this object changes it."""
    return isinstance(v, (*_FIXED, *_VIEWS))


def journalled(v: Any) -> bool:
    """Whether the frames can take back a change of the contents of this container."""
    return isinstance(v, _CONTAINERS)


def held(v: Any) -> list[Any]:
    """All that an object holds, down to what is no container; `HIDDEN` where it does not say."""
    found: list[Any] = []
    pending, seen = [_state(v)], {id(v)}
    alive: list[Any] = []
    while pending:
        x = pending.pop()
        if not isinstance(x, (list, tuple, dict, set, frozenset, deque)):
            found.append(x)
            continue
        if id(x) in seen:
            continue
        seen.add(id(x))
        alive.append(x)  # so that no other object gets its address
        found.append(len(x))
        pending += (*x, *x.values()) if isinstance(x, dict) else x
    return found


def _state(v: Any) -> Any:
    if isinstance(v, functools._lru_cache_wrapper):
        return None if isinstance(v.__wrapped__, types.FunctionType) and left_alone(v.__wrapped__) else v.cache_info().misses
    if isinstance(v, contextvars.ContextVar):
        return [v.get(None)]
    own = dict(vars(v)) if hasattr(v, "__dict__") else {}
    if isinstance(v, nn.Module) or not any(map(foreign, type(v).__mro__[:-1])):
        return own
    try:
        return [own, *_listed(v.__reduce_ex__(4))]
    except Exception:
        return [own, HIDDEN]


def _listed(reduced: Any) -> list[Any]:
    """What `__reduce_ex__` gives, with the items that it has iterators over."""
    if not isinstance(reduced, tuple):
        return [reduced]
    return [list(part) if n > 2 and part is not None else part for n, part in enumerate(reduced)]


def differ(before: Sequence[Any], after: Sequence[Any]) -> bool:
    """Whether an object holds something else now."""
    return len(before) != len(after) or any(not _same(p, q) for p, q in zip(before, after, strict=True))


def _same(p: Any, q: Any) -> bool:
    return p is q or type(p) is type(q) and type(p) in (int, float, bool, str, bytes, complex) and p == q


class Reach:
    """The attributes of an object of the model's own class, and the containers that these hold, as they are."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.names = {*slots_of(type(owner)), *getattr(owner, "__dict__", ())}
        cells = [Cell(owner, name) for name in self.names]
        self.before = {cell.key: (cell, cell.read()) for cell in cells}
        pending = [held for _, held in self.before.values()]
        while pending:
            x = pending.pop()
            cell = Cell(x, None)
            if journalled(x) and cell.key not in self.before:
                self.before[cell.key] = cell, cell.read()
            elif not isinstance(x, tuple):
                continue
            pending += (*x, *x.values()) if isinstance(x, dict) else x

    def changes(self) -> Iterator[tuple[Cell, Any]]:
        """The places that hold something else now, with what they held."""
        for cell, old in self.before.values():
            if cell.changed_from(old):
                yield cell, old
        for name in list(vars(self.owner)) if hasattr(self.owner, "__dict__") else ():
            if name not in self.names:
                yield Cell(self.owner, name), MISSING


__all__ = ["HIDDEN", "Reach", "differ", "fixed", "held", "journalled"]
