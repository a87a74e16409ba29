"""What outlives a call of a model: attributes, containers, class and global variables that its code can reach.

A compiled call leaves nothing behind, so whatever tracing has changed of these matters: the next eager call would begin with it.
`Kept.of(model)` notes them, `changes` says which are no longer as they were, `restore` puts them back. Weights, buffers and
child modules are not among them: PyTorch and the importer follow these.
"""

from __future__ import annotations

import contextvars
import dis
import functools
import sys
import threading
import types
import weakref
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import torch
from torch import nn

from dlc.frontend.python_rewrite import DEAD_NAME, RUNTIME, SITES
from dlc.frontend.torch_callers import LEFT_ALONE, asking, left_alone, module_of
from dlc.frontend.torch_errors import MutatedState, RandomOperator
from dlc.frontend.torch_heap import MISSING, Cell, Globals
from dlc.frontend.torch_ticks import Tick, reads_otherwise, tick_of, ticks_of_all
from dlc.ir.loc import Loc

_OF_EVERY_MODULE = frozenset(vars(nn.Module())) - {"training"}
_STORE_GLOBAL = dis.opmap["STORE_GLOBAL"]
_STORE_ATTR = dis.opmap["STORE_ATTR"]
_IMPORT_NAME = dis.opmap["IMPORT_NAME"]
_CONTAINERS = (list, dict, set, deque)
_PLAIN = (bool, int, float, complex, str, bytes)
LISTS_OF_MODULES = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_HOLDERS = frozenset("types.SimpleNamespace argparse.Namespace _thread._local collections queue".split())
"""Classes of the standard library for what users keep, or modules with such classes."""


class Variable:
    """The value of a context variable as an attribute."""

    def __init__(self, variable: contextvars.ContextVar[Any]) -> None:
        self._variable = variable

    @property
    def value(self) -> Any:
        try:
            return self._variable.get()
        except LookupError:
            raise AttributeError(self._variable.name) from None

    @value.setter
    def value(self, value: Any) -> None:
        self._variable.set(value)

    @value.deleter
    def value(self) -> None:
        """Nothing: no way leads back to a variable without a value, but out of its context."""


@dataclass(frozen=True, eq=False)
class Place:
    """A place that outlives a call, as it was.

    Attributes:
        cell: the place.
        name: what it is to the user.
        before: what it held.
        line: of the code that changes it, where that is known: file and number.
    """

    cell: Cell
    name: str
    before: Any
    line: tuple[str, int] | None = None


@dataclass(frozen=True, eq=False)
class Change:
    """A place that a call has changed, or may have.

    Attributes:
        cell, name: the place, and what it is to the user.
        before, after: what it held and what it holds.
        place, source: the line that changed it, and its text.
    """

    cell: Cell
    name: str
    before: Any
    after: Any
    place: Loc | None = None
    source: str | None = None


@dataclass(eq=False)
class Kept:
    """What a model's code can reach and change.

    Attributes:
        places: by their keys.
        spaces: what has attributes, which may become more: the owner, its attributes, and what it is to the user.
        following: attributes in which PyTorch's own modules list their weights once more.
        ticking: what has no places: iterators, arrays, random numbers of Python.
        caches: of functions that keep their results, with how often they had been computed.
        seen: all that has been met, by its address.
        files: the variables of source files, by the address of the dict that holds them.
    """

    places: dict[tuple[int, str | None], Place] = field(default_factory=dict)
    spaces: list[tuple[Any, Any, str]] = field(default_factory=list)
    following: set[tuple[int, str | None]] = field(default_factory=set)
    ticking: list[Tick] = field(default_factory=list)
    caches: list[tuple[Any, int]] = field(default_factory=list)
    seen: dict[int, Any] = field(default_factory=dict)
    files: dict[int, Globals] = field(default_factory=dict)

    @staticmethod
    def of(model: nn.Module) -> Kept:
        """All that the model can reach, as it is now."""
        walk = _Walk(Kept())
        for m in model.modules():
            walk.pending.append((m, type(m).__name__))
        walk.run()
        walk.kept.ticking += ticks_of_all()
        return walk.kept

    def follow(self, values: Iterable[Any], name: str) -> list[Place]:
        """Note what other objects hold now, too; the places that are new."""
        count = len(self.places)
        walk = _Walk(self)
        walk.pending = [(v, name) for v in values]
        walk.run()
        return list(self.places.values())[count:]

    def refuse_ticks(self, op: str) -> None:
        """Refuse a model whose call has drawn from what goes on from call to call.

        Raises:
            MutatedState: from an iterator.
            RandomOperator: from random numbers of Python or NumPy.
        """
        for tick in self.ticking:
            if tick.changed and tick.random:
                raise RandomOperator(None, op=f"{tick.name} in {op}")
            if tick.changed:
                raise MutatedState(None, op=op, what=f"'{tick.name}' ({tick.kind})")

    def changes(self) -> list[Place]:
        """The places that hold something else now."""
        found = [p for p in self.places.values() if not _unchanged(p.before, p.cell.read(), p.cell.name is None)]
        known = self.places.keys() | self.following
        for owner, names, prefix in self.spaces:
            for name in names:
                if Cell(owner, name).key not in known and _noted(owner, name, names[name]):
                    found.append(Place(Cell(owner, name), f"{prefix}.{name}", MISSING))
        return found

    @property
    def registers(self) -> bool:
        """Whether a module has other buffers or parameters now."""
        return any(p.name.endswith(("._buffers", "._parameters")) for p in self.changes())

    @property
    def known(self) -> set[int]:
        """The addresses of the objects and containers."""
        return {id(owner) for owner, _, _ in self.spaces} | {key for key, name in self.places if name is None}

    def restore(self) -> None:
        for inside in (True, False):  # an attribute can be set where no child has its name any more
            for place in self.changes():
                if (place.cell.name is None) is inside:
                    place.cell.write(place.before)
        for tick in self.ticking:
            tick.restore()
        for cache, computed in self.caches:
            if cache.cache_info().misses != computed:  # what tracing has put there are its own tensors
                cache.cache_clear()


def _unchanged(a: Any, b: Any, inside: bool = False) -> bool:
    """Whether a place holds what it held; of a container, `inside`, its elements."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, _PLAIN):
        return repr(a) == repr(b)
    if isinstance(a, dict) and inside:
        return list(a) == list(b) and all(map(_unchanged, a.values(), b.values()))
    if isinstance(a, set) and inside:
        return a == b
    if isinstance(a, tuple) or inside:
        return len(a) == len(b) and all(map(_unchanged, a, b))
    # An attribute of a class gives a new method object each time.
    return isinstance(a, types.MethodType) and a == b


def _noted(owner: Any, name: str, value: Any) -> bool:
    """Whether an attribute is one that may change, not part of what the owner is."""
    if isinstance(owner, nn.Module):
        return name not in _OF_EVERY_MODULE
    if isinstance(owner, Globals):
        return not name.startswith("__")
    if isinstance(owner, type):
        # Of what has `__get__`, reading the attribute gives something else, or another each time.
        return not (name.startswith("__") and name.endswith("__") or isinstance(value, type) or hasattr(type(value), "__get__"))
    return True


@contextmanager
def data_kept() -> Iterator[None]:
    """Refuse that the model's code gives a tensor other data by `t.data = ...`: nothing that records PyTorch sees that."""
    with mock.patch.object(torch.Tensor, "data", _Data()):
        yield


class _Data:
    """`torch.Tensor.data`, which only PyTorch may set. Asked of the class it is PyTorch's own: modes compare functions with that."""

    def __init__(self) -> None:
        self.plain: Any = vars(torch._C.TensorBase)["data"]

    def __get__(self, tensor: torch.Tensor | None, kind: type) -> Any:
        return self.plain.__get__(tensor, kind)

    def __set__(self, tensor: torch.Tensor, data: torch.Tensor) -> None:
        if asking() is not None:
            raise MutatedState(None, op="`t.data = ...`", what="the data of a tensor")
        self.plain.__set__(tensor, data)


def _follows_weights(owner: Any, value: Any) -> bool:
    """Whether an attribute of a module of PyTorch's lists its weights, as recurrent layers do: what sets these changes it, too."""
    if not isinstance(owner, nn.Module) or not foreign(type(owner)) or not isinstance(value, list) or not value:
        return False
    held = (v() if isinstance(v, weakref.ref) else v for v in value)
    return all(v is None or isinstance(v, nn.Parameter) for v in held)


@contextmanager
def weight_lists_kept(model: nn.Module) -> Iterator[None]:
    """What recurrent layers list of their weights is as it was afterwards: tracing puts its own tensors there."""
    layers = [(vars(m), name, v) for m in model.modules() for name, v in vars(m).items() if _follows_weights(m, v)]
    held = [(names, name, v, list(v)) for names, name, v in layers]
    try:
        yield
    finally:
        for names, name, v, items in held:
            v[:] = items
            names[name] = v


def foreign(kind: type) -> bool:
    """Whether a class is PyTorch's, NumPy's, or the standard library's."""
    root = module_of(kind).partition(".")[0]
    return root in LEFT_ALONE or root in sys.stdlib_module_names


class _Walk:
    """Goes through all that can be reached, once."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.pending: list[tuple[Any, str]] = []
        self.whole_files: list[Globals] = []
        self.called = {"forward"}
        self.waiting: defaultdict[str, list[Any]] = defaultdict(list)  # methods that no code met so far names

    def run(self) -> None:
        while self.pending:
            value, name = self.pending.pop()
            if value is None or isinstance(value, (*_PLAIN, torch.Tensor)) or id(value) in self.kept.seen:
                continue
            self.kept.seen[id(value)] = value
            self._visit(value, name)

    def _note(self, cell: Cell, name: str, value: Any) -> None:
        self.kept.places[cell.key] = Place(cell, name, value)

    def _visit(self, v: Any, name: str) -> None:
        if isinstance(v, nn.Module):
            self._module(v)
        elif isinstance(v, type):
            if not foreign(v):
                self._class(v)
        elif isinstance(v, types.FunctionType):
            self._go_on((getattr(v, "__wrapped__", None),), name)
            if not left_alone(v):
                self._function(v)
        elif isinstance(v, types.MethodType):
            self._go_on((v.__func__, v.__self__), name)
        elif isinstance(v, (types.BuiltinMethodType, types.MethodWrapperType)):
            self._go_on((v.__self__,), name)
        elif isinstance(v, functools.partial):
            self._go_on((v.func, *v.args, *v.keywords.values()), name)
        elif isinstance(v, functools._lru_cache_wrapper):
            self.kept.caches.append((v, v.cache_info().misses))
            self._go_on((v.__wrapped__,), name)
        elif isinstance(v, weakref.ref):
            self._go_on((v(),), name)
        elif isinstance(v, contextvars.ContextVar):
            cell = Cell(Variable(v), "value")
            self._note(cell, v.name, cell.read())
            self._go_on((cell.read(),), v.name)
        elif not isinstance(v, (types.ModuleType, threading.Thread)):  # a thread changes by itself
            self._object(v, name)

    def _module(self, v: nn.Module) -> None:
        kind = type(v).__name__
        self._attributes(v, vars(v), kind)
        for name in LISTS_OF_MODULES:
            held = vars(v)[name]
            self._note(Cell(held, None), f"{kind}.{name}", Cell(held, None).read())
        self._go_on((type(v), *v._modules.values(), *v._forward_hooks.values(), *v._forward_pre_hooks.values()), kind)

    def _class(self, v: type) -> None:
        self._attributes(v, vars(v), v.__name__)
        self._go_on(v.__bases__, v.__name__)
        for method, held in vars(v).items():
            functions = [(f, method) for f in _functions(held)]
            inner = getattr(held, "__func__", held)
            if isinstance(inner, functools._lru_cache_wrapper) or (hasattr(type(held), "__get__") and not foreign(type(held))):
                self.pending.append((inner, f"{v.__name__}.{method}"))
            if method in self.called or method.startswith("__"):
                self.pending += functions
            else:
                self.waiting[method] += (f for f, _ in functions)

    def _object(self, v: Any, name: str) -> None:
        if isinstance(v, (*_CONTAINERS, tuple, frozenset)) and not reads_otherwise(v):
            if not isinstance(v, (tuple, frozenset)):
                self._note(Cell(v, None), name, Cell(v, None).read())
            self._go_on((*v, *v.values()) if isinstance(v, dict) else v, name)
        tick = tick_of(v, name)
        if tick is not None:
            self.kept.ticking.append(tick)
            self._go_on(tick.holds, name)
        module = module_of(type(v))
        if not foreign(type(v)) or not _HOLDERS.isdisjoint((module, f"{module}.{type(v).__name__}")):
            self._attributes(v, getattr(v, "__dict__", {}), type(v).__name__)
            self._slots(v)
            self._go_on((type(v),), name)

    def _slots(self, v: Any) -> None:
        for kind in type(v).__mro__:
            slots = () if foreign(kind) else vars(kind).get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if slot not in ("__dict__", "__weakref__"):
                    cell = Cell(v, f"_{kind.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot)
                    self._note(cell, f"{type(v).__name__}.{slot}", cell.read())
                    self._go_on((cell.read(),), f"{type(v).__name__}.{slot}")

    def _go_on(self, values: Any, name: str) -> None:
        self.pending.extend((v, name) for v in values)

    def _attributes(self, owner: Any, names: Any, prefix: str) -> None:
        self.kept.spaces.append((owner, names, prefix))
        for name, value in list(names.items()):
            if _follows_weights(owner, value):
                self.kept.following.add((id(owner), name))
            elif _noted(owner, name, value):
                self._note(Cell(owner, name), f"{prefix}.{name}", value)
                self.pending.append((value, f"{prefix}.{name}"))

    def _function(self, f: types.FunctionType) -> None:
        self._attributes(f, vars(f), f.__name__)
        self._go_on((*(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()), f"a default of {f.__name__}")
        for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
            if name in (RUNTIME, SITES, DEAD_NAME):
                continue
            place = Cell(cell, "cell_contents")
            self._note(place, name, place.read())
            self.pending.append((place.read(), name))
        for code in _codes(f.__code__):
            self._go_on_globals(f, code)

    def _go_on_globals(self, f: types.FunctionType, code: types.CodeType) -> None:
        names = f.__globals__
        for name in {*code.co_names, *(c for c in code.co_consts if type(c) is str)} - self.called:  # `getattr(x, "name")`, too
            self.called.add(name)
            self._go_on(self.waiting.pop(name, ()), name)
        self.pending.extend((names[name], name) for name in code.co_names if name in names)
        self._of_files([v for n in code.co_names if isinstance(v := names.get(n), types.ModuleType)] + _imported(f, code), code)
        owner = self.kept.files.setdefault(id(names), Globals(names))
        if "globals" in code.co_names and owner not in self.whole_files:
            self.whole_files.append(owner)
            self._attributes(owner, names, str(names.get("__name__")))
        for name, line in _stored(code, _STORE_GLOBAL).items():
            cell = Cell(owner, name)
            noted = self.kept.places.get(cell.key, Place(cell, name, names.get(name, MISSING)))
            self.kept.places[cell.key] = replace(noted, line=line)

    def _of_files(self, files: list[types.ModuleType], code: types.CodeType) -> None:
        """What the code names of other source files."""
        pending, met = list(files), set()
        lines = _stored(code, _STORE_ATTR)
        while pending:
            file = pending.pop()
            if file in met or file.__name__.partition(".")[0] in LEFT_ALONE | sys.stdlib_module_names:
                continue
            met.add(file)
            names = vars(file)
            owner = self.kept.files.setdefault(id(names), Globals(names))
            for name in code.co_names:
                if isinstance(names.get(name), types.ModuleType):
                    pending.append(names[name])
                elif not name.startswith("__") and (name in names or name in lines):
                    cell = Cell(owner, name)
                    self.kept.places.setdefault(cell.key, Place(cell, name, names.get(name, MISSING), lines.get(name)))
                    self.pending.append((names.get(name), name))


def _stored(code: types.CodeType, by: int) -> dict[str, tuple[str, int]]:
    """The names that instructions of a kind set, and where."""
    if by not in code.co_code[::2]:
        return {}
    found = [i for i in dis.get_instructions(code) if i.opcode == by]
    return {i.argval: (code.co_filename, (i.positions and i.positions.lineno) or code.co_firstlineno) for i in reversed(found)}


def _functions(v: Any) -> list[Any]:
    """The functions of a method or property; none for anything else that a class holds."""
    if isinstance(v, property):
        return [v.fget, v.fset, v.fdel]
    v = v.func if isinstance(v, (functools.cached_property, functools.partialmethod)) else getattr(v, "__func__", v)
    return [v] if isinstance(v, types.FunctionType) else []


def _imported(f: types.FunctionType, code: types.CodeType) -> list[types.ModuleType]:
    """The source files that a function imports itself, where these have been imported before."""
    if _IMPORT_NAME not in code.co_code[::2]:
        return []
    package = f.__globals__.get("__package__") or ""
    outer = ["", *(".".join(package.split(".")[:n]) + "." for n in range(1, package.count(".") + 2))]
    names = [i.argval for i in dis.get_instructions(code) if i.opcode == _IMPORT_NAME]
    return [sys.modules[o + n] for n in names for o in outer if o + n in sys.modules]


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from _codes(const)


__all__ = ["LISTS_OF_MODULES", "Change", "Kept", "Place", "data_kept", "foreign", "weight_lists_kept"]
