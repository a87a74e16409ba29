"""What goes on from call to call and is no place that holds a value: iterators, arrays, random numbers of Python and NumPy."""

from __future__ import annotations

import array
import io
import pickle
import random
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

_STANDARD = ("builtins", "collections", "typing")
_READING = ("__iter__", "__len__", "__copy__", "__reduce__", "__reduce_ex__", "items", "keys", "values")
_SHOWN = (bool, int, float, complex, str, bytes, range)


@dataclass(frozen=True, eq=False)
class Tick:
    """Something whose state can be seen, but not recorded.

    Attributes:
        name, kind: what it is to the user.
        seen: gives its state.
        before: what its state was.
        put: sets its state; None where that cannot be done.
        random: whether it gives random numbers.
        holds: what its code can reach.
    """

    name: str
    kind: str
    seen: Callable[[], Any]
    before: Any
    put: Callable[[Any], Any] | None = None
    random: bool = False
    holds: tuple[Any, ...] = ()

    @property
    def changed(self) -> bool:
        return bool(self.seen() != self.before)

    def restore(self) -> None:
        if self.put is not None and self.changed:
            self.put(self.before)


def ticks_of_all() -> list[Tick]:
    """What every model can change: settings of PyTorch, random numbers."""
    found: list[tuple[str, Callable[[], Any], Callable[[Any], Any]]]
    found = [("random", random.getstate, random.setstate), ("np.random", _numpy_random, _set_numpy_random)]
    drawn = [Tick(name, "random numbers", seen, seen(), put, random=True) for name, seen, put in found]
    dtype = torch.get_default_dtype
    return [*drawn, Tick("torch.get_default_dtype()", "a setting", dtype, dtype(), torch.set_default_dtype)]


def tick_of(v: Any, name: str) -> Tick | None:
    """The state of an object that goes on from call to call; None for other objects."""
    if isinstance(v, Iterator):
        seen: Callable[[], Any] = partial(_position, v)
        frame = v.gi_frame if isinstance(v, types.GeneratorType) else None
        return Tick(name, "an iterator", seen, seen(), holds=tuple(frame.f_locals.values()) if frame is not None else ())
    if reads_otherwise(v):
        elements = partial(_elements, v)
        return Tick(name, f"a {type(v).__name__}", elements, elements(), holds=tuple(elements()))
    if isinstance(v, random.Random):
        return Tick(name, "random numbers", v.getstate, v.getstate(), v.setstate, random=True)
    if isinstance(v, (np.random.Generator, np.random.RandomState)):
        source: Any = v.bit_generator if isinstance(v, np.random.Generator) else v._bit_generator
        seen = partial(_state_of, source)
        return Tick(name, "random numbers", seen, seen(), partial(_set_state_of, source), random=True)
    if isinstance(v, np.ndarray):
        seen = v.tolist if v.dtype.hasobject else v.tobytes
        return Tick(name, "an array of NumPy", seen, seen(), None if v.dtype.hasobject else partial(_set_array, v))
    if isinstance(v, (bytearray, array.array)):
        return Tick(name, "a bytearray" if isinstance(v, bytearray) else "an array", partial(bytes, v), bytes(v), partial(_set_bytes, v))
    return None


def reads_otherwise(v: Any) -> bool:
    """Whether a container's class says itself what is read of it: that may load, or count, what is not there yet."""
    own = next((kind for kind in (list, dict, set, tuple) if isinstance(v, kind)), None)
    return own is not None and any(
        name in vars(kind) for kind in type(v).__mro__[:-1] if kind.__module__ not in _STANDARD for name in _READING
    )


def _elements(v: Any) -> list[Any]:
    """What a container itself holds."""
    if isinstance(v, dict):
        return [x for pair in dict.items(v) for x in pair]
    own = next(kind for kind in (list, set, tuple) if isinstance(v, kind))
    return list(own.__iter__(v))


def _set_array(a: np.ndarray[Any, Any], data: bytes) -> None:
    a[...] = np.frombuffer(data, a.dtype).reshape(a.shape)


def _set_bytes(a: Any, data: bytes) -> None:
    a[:] = type(a)(a.typecode, data) if isinstance(a, array.array) else data


def _numpy_random() -> Any:
    return pickle.dumps(np.random.get_state())  # noqa: NPY002  # what models without a Generator draw from


def _set_numpy_random(state: bytes) -> None:
    np.random.set_state(pickle.loads(state))  # noqa: NPY002, S301  # `_numpy_random` made it


def _state_of(source: Any) -> Any:
    return pickle.dumps(source.state)


def _set_state_of(source: Any, state: bytes) -> None:
    source.state = pickle.loads(state)  # noqa: S301  # `_state_of` made it


def _position(it: Any) -> Any:
    """Where an iterator is; None where that cannot be seen."""
    if isinstance(it, types.GeneratorType):
        frame = it.gi_frame
        return frame and (frame.f_lasti, _shown(frame.f_locals.values()))
    if isinstance(it, io.IOBase):
        return None if it.closed or not it.seekable() else it.tell()
    own: Any = type(it).__reduce__
    if own is object.__reduce__:
        return None
    try:
        return _shown(it.__reduce__())
    except Exception:
        return None


def _shown(values: Iterable[Any]) -> tuple[Any, ...]:
    """Equal for values that are the same, or iterators that are where they were."""
    return tuple(_show(v) for v in values)


def _show(v: Any) -> Any:
    if isinstance(v, Iterator):
        return _position(v)
    if isinstance(v, (tuple, list)):
        return _shown(v)
    return repr(v) if isinstance(v, _SHOWN) else id(v)


__all__ = ["Tick", "tick_of", "ticks_of_all"]
