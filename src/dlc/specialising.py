"""Models whose structure depends on the value of an input (a target shape, a list of axes): one executable per value.

`dlc.compile` returns a `Specialising` for them unless the values are given. It is called like an executable; for values
it has not seen it compiles, and it keeps the executables of the values seen last. Each of these checks its value
itself, so that a saved one cannot be called with another.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dlc.errors import BadInput, DlcError
from dlc.runtime.executable import Executable

KEPT = 16
"""Executables that are kept, least recently used ones go first."""


class ManyPrograms(BadInput):
    """One file holds one program, but this model is another one for each value of some inputs."""

    code = "DLC0615"
    template = "cannot {what} a model whose structure depends on the value of {inputs}"
    hint = "choose the value when compiling: dlc.compile(model, specialise={{name: value}})"


class MissingValue(BadInput):
    """A call left out an input whose value decides the structure."""

    code = "DLC0616"
    template = "the input '{name}', whose value decides the structure of the model, is missing"
    hint = "the inputs are, in order: {names}"


class Specialising:
    """A model that is compiled anew for each value of some of its inputs.

    Args:
        compile_for: (values by input name, the call's arguments) -> the executable for them; raises `needs` when another
            value is needed.
        names: the model's inputs, in order.
        needed: inputs whose values are known to be needed.
        needs: the error that says which values are missing, in its attribute `names`.
    """

    def __init__(
        self,
        compile_for: Callable[[Mapping[str, Any], tuple[Any, ...], Mapping[str, Any]], Executable],
        names: Sequence[str],
        needed: Sequence[str],
        needs: type[DlcError],
    ) -> None:
        self._compile_for = compile_for
        self._needs = needs
        self.names = tuple(names)
        self.needed = tuple(needed)
        self._kept: OrderedDict[tuple[Any, ...], Executable] = OrderedDict()
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<dlc.Specialising on {', '.join(self.needed)}; {len(self._kept)} executables>"

    def __call__(self, *args: Any, out: Any = None, **kwargs: Any) -> Any:
        """Run the model, compiling it first for values that are new."""
        return self.executable(*args, **kwargs)(*args, out=out, **kwargs)

    def executable(self, *args: Any, **kwargs: Any) -> Executable:
        """The executable for the values in these arguments."""
        while True:
            needed = self.needed
            values = {name: self._value(name, args, kwargs) for name in needed}
            key = tuple((name, v.dtype.str, v.shape, v.tobytes()) for name, v in values.items())
            with self._lock:
                found = self._kept.get(key)
                if found is not None:
                    self._kept.move_to_end(key)
                    return found
            try:
                made = self._compile_for(values, args, kwargs)
            except self._needs as error:
                more = [n for n in getattr(error, "names", ()) if n not in needed]
                if not more:
                    raise
                self.needed = (*needed, *more)
                continue
            with self._lock:
                self._kept[key] = made
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            return made

    def save(self, path: object) -> None:
        """Refused: a file holds one program."""
        raise ManyPrograms(what="save", inputs=", ".join(self.needed))

    def _value(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray[Any, Any]:
        if name in kwargs:
            value = kwargs[name]
        else:
            index = self.names.index(name) if name in self.names else len(args)
            if index >= len(args):
                raise MissingValue(name=name, names=", ".join(self.names))
            value = args[index]
        if hasattr(value, "detach"):
            value = value.detach().cpu().numpy()
        return np.array(value)  # a copy: the caller may change what was passed
