"""Objects as they are kept, past the methods of the model's own classes.

A class may store its attributes elsewhere, refuse `update`, copy itself by a function that has effects: none of that is run when
the recorder reads, copies and restores what a branch changes.

Source: Python's data model: `object.__setattr__`, `dict.__setitem__` and the like, the methods of the types that hold the data.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping
from types import FunctionType, MemberDescriptorType
from typing import Any
from weakref import WeakKeyDictionary

from dlc.frontend.torch_callers import left_alone

_BASES = (list, OrderedDict, dict, set, deque)
_FOUND: WeakKeyDictionary[type, dict[str, Any]] = WeakKeyDictionary()
"""By class and name; what a base class in C has does not go away."""
_NAMED: WeakKeyDictionary[type, tuple[str, ...]] = WeakKeyDictionary()


def plain_method(owner: Any, name: str) -> Any:
    """The method that reads, stores or deletes an attribute or item, past those of the model's own classes.

    Raises:
        AttributeError: there is no other.
    """
    known = _FOUND.setdefault(type(owner), {})
    if name not in known:
        methods = (vars(kind)[name] for kind in type(owner).__mro__ if name in vars(kind))
        found = next((m for m in methods if not isinstance(m, FunctionType) or left_alone(m)), None)
        if found is None:
            raise AttributeError(name)
        known[name] = found
    return known[name]


def attributes_of(v: Any) -> dict[str, Any]:
    """What an object keeps beside its elements: the attributes of a record, or of a class made of `dict` or a named tuple."""
    kind: Any = type(v)
    return {name: getattr(v, name) for name in _named(kind) if hasattr(v, name)} | getattr(v, "__dict__", {})


def _named(kind: type) -> tuple[str, ...]:
    """The attributes of a class's objects that may be in no `__dict__`: the class's defaults of fields, and slots."""
    if kind not in _NAMED:
        fields = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else []
        _NAMED[kind] = tuple(dict.fromkeys([*fields, *slots_of(kind)]))
    return _NAMED[kind]


def slots_of(kind: type) -> list[str]:
    """The names for which classes written in Python keep a place in their objects."""
    return [
        name
        for k in kind.__mro__
        for name, held in vars(k).items()
        if "__slots__" in vars(k) and isinstance(held, MemberDescriptorType)
    ]


def copied(container: Any) -> Any:
    """A list, dict, set or deque, of whatever class, with the same contents and attributes."""
    base = next((kind for kind in _BASES if isinstance(container, kind)), None)
    if base is None:
        return copy.copy(container)
    made = base.__new__(type(container))
    if isinstance(container, deque):
        deque.__init__(made, (), container.maxlen)
    if isinstance(container, defaultdict):
        defaultdict.__init__(made, container.default_factory)
    refill(made, container)
    for name, held in attributes_of(container).items():
        object.__setattr__(made, name, held)
    return made


def refill(container: Any, value: Any) -> None:
    """Put what another container holds in the place of its contents."""
    mapping = isinstance(value, Mapping)
    held = list(plain_method(value, "items" if mapping else "__iter__")(value))
    plain_method(container, "clear")(container)
    if mapping:
        put = plain_method(container, "__setitem__")
        for k, v in held:
            put(container, k, v)  # a Counter would count pairs that it is updated with
    else:
        plain_method(container, "update" if isinstance(container, set) else "extend")(container, held)


__all__ = ["attributes_of", "copied", "plain_method", "refill", "slots_of"]
