"""Extents and traced tensors answer the model's code as the numbers and tensors of eager do, while PyTorch traces it.

    isinstance(x.shape[0], int)     True, though PyTorch has a SymInt there
    type(x) is torch.Tensor         True, though it is a FakeTensor

What no symbol can answer so is told of: its text, its hash, and a value of the example that PyTorch would put in its place.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.sym_node import SymNode

from dlc.frontend.python_told import is_only_told
from dlc.frontend.torch_callers import asking_for

_SYMBOLS: dict[type, type] = {torch.SymInt: int, torch.SymFloat: float, torch.SymBool: bool}


def eager_type(v: Any) -> type:
    """The type of what eager has in the place of `v`."""
    if isinstance(v, FakeTensor):
        return nn.Parameter if getattr(v, "_is_param", False) else torch.Tensor
    return _SYMBOLS.get(type(v), type(v))


def eager_isinstance(v: Any, kinds: Any) -> bool:
    """`isinstance(v, kinds)` of what eager has in the place of `v`."""
    symbol = _SYMBOLS.get(type(v))
    return isinstance(v if symbol is None else symbol(), kinds)


class _Asked(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return eager_type(args[0]) if len(args) == 1 else type(*args, **kwargs)

    def __instancecheck__(cls, v: Any) -> bool:
        return isinstance(v, type)

    def __subclasscheck__(cls, kind: Any) -> bool:
        return issubclass(kind, type)


class _Type(type, metaclass=_Asked):
    """`type` in the model's code."""


_BUILTINS: dict[str, Any] = {"isinstance": eager_isinstance, "type": _Type}
_FLAGS = ("is_compiling", "is_exporting")
_PASSING_ON = {"torch._utils", "torch._dynamo.external_utils"}
"""Modules whose own `is_compiling` asks `torch.compiler`."""


@contextmanager
def like_eager(functions: Iterable[types.FunctionType], tell: Callable[[str], None]) -> Iterator[None]:
    """While torch.export traces these functions of the model; `tell` hears what cannot be answered.

    `torch.compiler.is_compiling()` and its like are False, as in eager.
    """
    files = {id(f.__globals__): f.__globals__ for f in functions}
    flags = {getattr(torch.compiler, name): _flag(name) for name in _FLAGS}
    with ExitStack() as stack:
        for names in files.values():
            imported = {name: flags[v] for name, v in names.items() if isinstance(v, types.FunctionType) and v in flags}
            builtins = {name: v for name, v in _BUILTINS.items() if name not in names}
            stack.enter_context(_variables(names, builtins | imported))
        for name in _FLAGS:
            stack.enter_context(mock.patch.object(torch.compiler, name, flags[getattr(torch.compiler, name)]))
        stack.enter_context(symbols_without_text(tell))
        for name in ("guard_int", "guard_float"):
            stack.enter_context(_kept_free(name, tell))
        yield


@contextmanager
def _variables(names: dict[str, Any], values: Mapping[str, Any]) -> Iterator[None]:
    """Global variables of a source file have these values inside; what is done to others stays."""
    before = {name: names[name] for name in values if name in names}
    names.update(values)
    try:
        yield
    finally:
        for name, v in values.items():
            if names.get(name) is v:
                del names[name]
        names.update(before)


def _flag(name: str) -> Callable[[], bool]:
    """A function of `torch.compiler` that is False for the model's code: PyTorch's own code goes by it."""
    plain = getattr(torch.compiler, name)

    def answer() -> bool:
        frame: Any = sys._getframe(1)
        while frame.f_globals.get("__name__") in _PASSING_ON:
            frame = frame.f_back
        return asking_for(frame) is None and plain()

    return answer


@contextmanager
def symbols_without_text(tell: Callable[[str], None]) -> Iterator[None]:
    """`tell` hears when the model's code turns a symbol into text, or makes a key of it: PyTorch's answer would be the symbol's own."""

    def told(kind: type, name: str, why: str) -> Any:
        plain = getattr(kind, name)

        @functools.wraps(plain)
        def answer(self: Any) -> Any:
            frame = asking_for(sys._getframe(1))
            if frame is not None and not (name == "__repr__" and is_only_told(frame)):
                tell(why)
            return plain(self)

        return mock.patch.object(kind, name, answer)

    with ExitStack() as stack:
        for kind in _SYMBOLS:
            stack.enter_context(told(kind, "__repr__", "it is turned into text"))
            stack.enter_context(told(kind, "__hash__", "it is a key of a dict or an element of a set"))
        yield


def _kept_free(name: str, tell: Callable[[str], None]) -> Any:
    """Where asserts are deferred, PyTorch takes `int(x.shape[0] * 0.75)` for the example's, and checks nothing."""
    plain = getattr(SymNode, name)

    def value(self: SymNode, *args: Any) -> Any:
        made = plain(self, *args)
        if getattr(self.expr, "free_symbols", ()):
            tell("Python needs its value")
        return made

    return mock.patch.object(SymNode, name, value)


__all__ = ["eager_isinstance", "eager_type", "like_eager", "symbols_without_text"]
