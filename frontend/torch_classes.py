"""The model's own classes while it is recorded: their methods run rewritten, also where no call is written.

    a + b, len(a), a.total, for v in a, f"{a}", sorted(items), [a] == [b]      ->      Class.__add__(a, b), ...

Python itself, PyTorch and the standard library call such methods by looking into the class. So while a model is recorded
each function in its classes is a short one that hands the call to the runtime, as a call that is written does; afterwards the
classes hold their own again. Other threads meet the functions as they were.

Source: Python's data model, section 3.3.12 (special method lookup): implicit calls find methods in the class, never in the instance.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import types
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch import nn

from dlc.frontend.torch_callers import left_alone
from dlc.frontend.torch_errors import EffectOnData, UncapturedDecision
from dlc.frontend.torch_heap import MISSING
from dlc.frontend.torch_numbers import Number
from dlc.frontend.torch_plain import plain_method
from dlc.frontend.torch_state import foreign
from dlc.frontend.torch_values import Absent, Unset, same

_NEEDED = frozenset(
    "__bool__ __len__ __length_hint__ __index__ __int__ __float__ __complex__ __hash__ __str__ __repr__ __format__ __bytes__".split()
)
"""Methods whose results Python itself needs, of a type of its own."""
_GENERATED = frozenset("__init__ __eq__ __lt__ __le__ __gt__ __ge__ __repr__ __hash__".split())
"""Methods that `dataclass` writes: they do nothing but ask the fields."""

ONE_AT_A_TIME = threading.RLock()
"""Classes, and what PyTorch traces with, belong to all threads: one model at a time is traced."""


class Classes:
    """The classes met so far, and what is in the place of their functions.

    Attributes:
        rt: its `call` does what a call does that is written.
        met: the classes, by address.
        originals: the functions by those in their place.
    """

    def __init__(self, rt: Any) -> None:
        self.rt = rt
        self.met: dict[int, type] = {}
        self.originals: dict[Any, types.FunctionType] = {}
        self._changed: list[tuple[Any, Any, Any, Any]] = []
        self._thread: int | None = None

    @contextmanager
    def rewritten(self, objects: Iterable[Any]) -> Iterator[None]:
        """The classes among these, and those of objects that turn up, hold rewritten functions inside."""
        with ONE_AT_A_TIME:
            self._thread = threading.get_ident()
            try:
                for v in objects:
                    self.meet(v if isinstance(v, type) else type(v))
                with mock.patch.object(threading.Thread, "start", self._starting(threading.Thread.start)):
                    yield
            finally:
                self._thread = None
                for owner, name, made, before in reversed(self._changed):
                    if _held(owner).get(name) is made:
                        _put(owner, name, before)
                self._changed.clear()

    def _starting(self, start: Callable[..., None]) -> Callable[..., None]:
        """`Thread.start`, in an arm refused: what a thread does is not seen here."""

        def started(thread: threading.Thread) -> None:
            if self.on and len(self.rt.frames) > 1:
                raise self.rt.refused(EffectOnData, what="what a thread does that is started here")
            start(thread)

        return started

    @property
    def on(self) -> bool:
        return self._thread == threading.get_ident()

    def meet(self, kind: type) -> None:
        """Objects of this class are about to be used."""
        if id(kind) in self.met or not self.on:
            return
        self.met[id(kind)] = kind
        if foreign(kind) or not _changeable(kind):
            return
        for base in kind.__mro__[1:]:
            self.meet(base)
        self.meet(type(kind))
        for name, held in list(vars(kind).items()):
            if not _of_the_class(kind, name):
                self._replace(kind, name, self._in_place_of(kind, name, held), held)

    def hooks(self, module: nn.Module) -> None:
        """What PyTorch calls before and after a module."""
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                self._replace(hooks, key, self.handed(hook), hook)

    def _replace(self, owner: Any, name: Any, made: Any, before: Any) -> None:
        if made is not before and self.on:
            _put(owner, name, made)
            self._changed.append((owner, name, made, before))

    def _in_place_of(self, kind: type, name: str, held: Any) -> Any:
        if isinstance(held, types.FunctionType):
            if left_alone(held) or name == "__del__" or _generated(kind, name, held):
                return held
            return self._lookup(held) if name == "__getattribute__" else self._function(held)
        if type(held) in (staticmethod, classmethod) and isinstance(held.__func__, types.FunctionType):
            named = name == "__new__" and hasattr(kind, "_fields")  # what `namedtuple` writes
            return held if named or left_alone(held.__func__) else type(held)(self._function(held.__func__))
        if isinstance(held, property) and type(held).__init__ is property.__init__:
            made: Callable[..., property] = type(held)
            return made(*map(self._maybe, (held.fget, held.fset, held.fdel)), held.__doc__)
        if type(held) is functools.cached_property:
            return _Computed(self.rt, held)
        if type(held) is functools.singledispatchmethod:
            return _Dispatched(self.rt, held)
        if hasattr(type(held), "__get__"):
            self.meet(type(held))
        return held

    def _maybe(self, function: Any) -> Any:
        return (
            self._function(function)
            if isinstance(function, types.FunctionType) and not left_alone(function)
            else function
        )

    def _function(self, function: types.FunctionType) -> Callable[..., Any]:
        if function in self.originals:
            return function

        @functools.wraps(function)
        def called(*args: Any, **kwargs: Any) -> Any:
            if not self.on:
                return function(*args, **kwargs)
            found = self.rt.call(function, *args, **kwargs)
            if function.__name__ in _NEEDED and isinstance(found, (Number, Absent)):
                what = f"the result of '{function.__qualname__}'"
                raise self.rt.refused(UncapturedDecision, what=what, why="Python itself needs it here")
            return found

        self.originals[called] = function
        return called

    def _lookup(self, function: types.FunctionType) -> Callable[..., Any]:
        """`__getattribute__`: names of Python's own (`__class__`) are looked up as everywhere, as the runtime asks for them, too.

        Outside of arms it is run as it is: its effects are on every path, and configurations ask it hundreds of thousands of times.
        """

        @functools.wraps(function)
        def called(owner: Any, name: str) -> Any:
            if not self.on or len(self.rt.frames) == 1:
                return function(owner, name)
            if name.startswith("__") and name.endswith("__"):
                return plain_method(owner, "__getattribute__")(owner, name)
            return self.rt.call(function, owner, name)

        self.originals[called] = function
        return called

    def original(self, function: types.FunctionType) -> types.FunctionType:
        """The function that this one is in the place of; itself, mostly."""
        return self.originals.get(function, function)

    def keeps(self, value: Any) -> bool:
        """Whether all that an object holds is in its attributes, which its own methods and nobody else's change."""
        return id(type(value)) in self.met and all(
            k in (object, nn.Module) or not foreign(k) for k in type(value).__mro__
        )

    def method(self, value: Any, *names: str) -> Any:
        """The first of these methods that an object's class has, if it is rewritten; else None."""
        kind = type(value)
        if id(kind) not in self.met or foreign(kind):
            return None
        found = next((m for n in names if (m := getattr(kind, n, None)) is not None), None)
        return found if self.rt.writes(found) else None

    def refuse_ending(self, kind: type, args: tuple[Any, ...]) -> None:
        """An object is about to be made: when it ends, which is later here than in eager Python, nothing may be done.

        Raises:
            EffectOnData: its class has a `__del__`; it calls back when another object ends.
        """
        if kind is weakref.finalize or issubclass(kind, weakref.ref) and len(args) > 1:
            raise self.rt.refused(EffectOnData, what="when an object ends, and what is called then,")
        end = getattr(kind, "__del__", None)
        if isinstance(end, types.FunctionType) and not left_alone(end):
            raise self.rt.refused(EffectOnData, what=f"when '{end.__qualname__}' runs")

    def handed(self, v: Any) -> Any:
        """An argument of a function that is not rewritten: if it is a function itself, as one whose calls are seen."""
        if isinstance(v, types.FunctionType):
            known = left_alone(v) or v.__code__ in self.rt.own
            return v if known else made if (made := self.rt.rewriting(v)) is not self.original(v) else self._function(v)
        if isinstance(v, types.MethodType) and (made := self.handed(v.__func__)) is not v.__func__:
            return types.MethodType(made, v.__self__)
        if isinstance(v, types.BuiltinMethodType) and isinstance(v.__self__, (list, dict, set)):
            return functools.partial(self.rt.call, v)
        if type(v) is functools.partial and (made := self.handed(v.func)) is not v.func:
            return functools.partial(made, *v.args, **v.keywords)
        return v


class _Computed(functools.cached_property[Any]):
    """A `cached_property` whose function is rewritten, and what it keeps journalled."""

    def __init__(self, rt: Any, held: functools.cached_property[Any]) -> None:
        super().__init__(held.func)
        self.rt = rt
        self.held = held
        self.attrname: str = held.attrname or ""
        self.found: dict[int, tuple[Any, Any]] = {}  # by address an object, and what was computed for it first

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        return self if instance is None else self._of(instance, owner)

    def _of(self, owner: Any, kind: type[Any] | None) -> Any:
        kept = vars(owner).get(self.attrname, MISSING)
        if kept is not MISSING and not isinstance(kept, Unset):
            return kept
        if not self.rt.classes.on:
            return self.held.__get__(owner, kind)
        touches = self.rt.frame.touches
        made = self.rt.call(self.func, owner)
        if isinstance(kept, Unset) and (self.rt.frame.touches != touches or not same(made, self.found[id(owner)][1])):
            kept.refuse()  # computed here or not, it is not the same
        self.found.setdefault(id(owner), (owner, made))
        self.__set__(owner, made)
        return made

    def __set__(self, owner: Any, value: Any) -> None:
        self.rt.touch(owner, self.attrname)
        vars(owner)[self.attrname] = value

    def __delete__(self, owner: Any) -> None:
        self.rt.touch(owner, self.attrname)
        del vars(owner)[self.attrname]


class _Dispatched(functools.singledispatchmethod):  # type: ignore[type-arg]  # generic for checkers alone: Python 3.11 cannot subscript it
    """A `singledispatchmethod` whose functions are rewritten."""

    def __init__(self, rt: Any, held: functools.singledispatchmethod[Any]) -> None:
        super().__init__(held.func)
        self.dispatcher = held.dispatcher
        self.rt = rt
        self.held = held

    def __get__(self, owner: Any, kind: type[Any] | None = None) -> Any:
        if not self.rt.classes.on:
            return self.held.__get__(owner, kind)

        def method(first: Any, /, *args: Any, **kwargs: Any) -> Any:
            function = self.dispatcher.dispatch(self.rt.call(type, first))
            return self.rt.call(function.__get__(owner, kind), first, *args, **kwargs)

        return method


def _generated(kind: type, name: str, function: types.FunctionType) -> bool:
    """Whether `dataclass` has written this function, and it calls nothing of the model's by name."""
    if (
        "__dataclass_fields__" not in vars(kind)
        or name not in _GENERATED
        or function.__code__.co_filename != "<string>"
    ):
        return False
    made = (f.default_factory for f in dataclasses.fields(kind))
    return name != "__init__" or not any(isinstance(f, types.FunctionType) for f in made)


_EXAMPLE: Any = contextlib.contextmanager(iter)
CONTEXT: types.CodeType = _EXAMPLE.__code__
"""Of the functions that make a context of a generator."""


def context_of(generator: Any) -> Any:
    return contextlib.contextmanager(generator)


def calls_back(function: Any) -> bool:
    """Whether a function that is not rewritten may call what it is given, and does not keep it to be asked for."""
    if not isinstance(function, type):
        return True
    return issubclass(function, (Iterator, defaultdict))


def _changeable(kind: type) -> bool:
    """Whether Python keeps the attributes of the class; a metaclass in C may do so itself."""
    metaclass: Any = type(kind)
    stores = (vars(k)["__setattr__"] for k in metaclass.__mro__ if "__setattr__" in vars(k))
    return next(m for m in stores if not isinstance(m, types.FunctionType)) is vars(type)["__setattr__"]


def _of_the_class(kind: type, name: str) -> bool:
    """Whether setting this attribute of a class means something to the class itself (`__name__`, `__class__`)."""
    metaclass: Any = type(kind)
    found = next((vars(k)[name] for k in metaclass.__mro__ if name in vars(k)), None)
    return hasattr(found, "__set__")


def _held(owner: Any) -> Any:
    return vars(owner) if isinstance(owner, type) else owner


def _put(owner: Any, name: Any, value: Any) -> None:
    if isinstance(owner, type):
        type.__setattr__(owner, name, value)
    else:
        owner[name] = value


__all__ = ["CONTEXT", "ONE_AT_A_TIME", "Classes", "calls_back", "context_of"]
