"""`dlc.Quantize`: what `dlc.compile(..., quantize=)` and `dlc compile --quantize` take, and what is done with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from dlc.errors import BadInput
from dlc.frontend.imported import Imported
from dlc.ir.interpret import arrange
from dlc.passes.calibration import calibrate
from dlc.passes.quantisers import Quantised
from dlc.passes.quantize_weights import (
    BadQuantisation,
    Calibration,
    QuantisedLayer,
    QuantizeWeights,
    choices,
    quantize_weights,
)
from dlc.runtime.tree import Flattener, check_tree


class UnknownQuantisation(BadInput):
    """The text of `--quantize` cannot be read."""

    code = "DLC0623"
    template = "cannot read the quantisation '{text}': {reason}"
    hint = "write TYPE or auto:4.5bits, then any of :g64 :row :a=i8 :s=bf16 :z=codes :skip=lm_head|head :no-tables"


@dataclass(frozen=True)
class Quantize(QuantizeWeights):
    """How to store a model's matrices in few bits (docs/quantisation.md).

        dlc.compile(model, (x,), quantize=dlc.Quantize(weights="i4", group=32, activation="i8", skip=("lm_head",)))

    Attributes:
        weights: a type of 1 to 8 bits, or a budget: `auto:4.5bits` a weight, `auto:0.02error`.
        group: weights along a row that share a scale; None for the row.
        activation: `f32`, `bf16`, or `i8`: rows are rounded to bytes when they are multiplied, with a scale found then; or to `i4` to
            `i2` and `b4` to `b1`, bits that are counted beside weights of few bits.
        activation_group: terms that share such a scale; None for the row.
        scales: type of the weights' scales.
        zero_point: `none`, `codes` (integers of the weights' type), `real` (numbers of the scales' type); `auto` is what the type needs.
        skip: names of parameters to leave alone: parts of names, or patterns with wildcards.
        tables: whether embedding tables are quantised too.
        method: `nearest`; `compensated` passes each column's error on to those that follow (GPTQ), and needs `calibrate`; `auto` is
            compensated when it is given.
        outliers: columns in which an activation of the calibration inputs reaches this are multiplied as they are; 0 for none.
        calibrate: example calls: a tuple of arguments each.
        given: matrices that are quantised already, by the name of the constant they are for (`dlc.load_gguf` reads some).

    Raises:
        BadQuantisation, NeedsCalibration: what is asked for does not exist, or does not go together.
    """

    calibrate: Sequence[Any] | None = field(default=None, compare=False)
    given: Mapping[str, Quantised] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        QuantizeWeights.__post_init__(self)
        if self.calibrate is not None and not isinstance(self.calibrate, Sequence):
            raise BadQuantisation(reason="`calibrate` is a sequence of example calls")
        if self.calibrate is not None and not len(self.calibrate):
            raise BadQuantisation(reason="`calibrate` holds no example")

    @classmethod
    def of(cls, wish: object) -> Quantize | None:
        """What `quantize=` was given: options, their short form, or None for none.

        Raises:
            UnknownQuantisation, BadQuantisation.
        """
        if wish is None or isinstance(wish, cls):
            return wish
        if isinstance(wish, str):
            return cls.parse(wish)
        raise BadQuantisation(
            reason=f"`quantize` is dlc.Quantize(...), its short form as 'i4:g64' or None, not {wish!r}"
        )

    @classmethod
    def parse(cls, text: str) -> Quantize:
        """Read `i3:g64`, `auto:4.5bits:row:a=i8`.

        Raises:
            UnknownQuantisation, BadQuantisation.
        """
        first, *rest = text.split(":")
        if first == "auto" and rest:
            first = f"auto:{rest.pop(0)}"
        if not first:
            raise UnknownQuantisation(text=text, reason="it begins with no type")
        options: dict[str, Any] = {"weights": first}
        for part in rest:
            ((name, value),) = _option(text, part).items()
            if name in options:
                raise UnknownQuantisation(text=text, reason=f"'{part}' says '{name}' again")
            options[name] = value
        return cls(**options)

    def key(self) -> str:
        """All that the result depends on, as text."""
        digest = hashlib.sha256()
        for call in self.calibrate or ():
            for a in call if isinstance(call, (tuple, list)) else (call,):
                digest.update(repr(type(a)).encode() + np.ascontiguousarray(np.asarray(a)).tobytes())
        for name, matrix in sorted((self.given or {}).items()):
            digest.update(f"{name} {matrix.grid}".encode())
            for array in (matrix.codes, matrix.scales, matrix.zeros):
                digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        return f"{self.plain()} {digest.hexdigest()}"

    def plain(self) -> QuantizeWeights:
        """The pass with these options."""
        return QuantizeWeights(**{f.name: getattr(self, f.name) for f in fields(QuantizeWeights)})


_CHOICES = {"a": "activation", "s": "scales", "z": "zero_point"}


def _option(text: str, part: str) -> Mapping[str, Any]:
    name, equals, value = part.partition("=")
    if part == "row":
        return {"group": None}
    if part == "no-tables":
        return {"tables": False}
    if name == "skip" and value:
        return {"skip": tuple(value.split("|"))}
    if not equals and part[:1] == "g" and part[1:].isdecimal():
        return {"group": int(part[1:])}
    if name in _CHOICES:
        known = choices()[_CHOICES[name]]
        if value not in known:
            raise UnknownQuantisation(text=text, reason=f"'{name}' is one of {', '.join(known)}, not '{value}'")
        return {_CHOICES[name]: value}
    raise UnknownQuantisation(text=text, reason=f"'{part}' is no option")


def quantise(imported: Imported, options: Quantize) -> tuple[Imported, tuple[QuantisedLayer, ...]]:
    """The model with its matrices quantised, and what became of each."""
    program = imported.program
    known: dict[int, Calibration] | None = None
    if options.calibrate is not None:
        known = calibrate(program, options, [_flat(imported, call) for call in options.calibrate])
    made, layers = quantize_weights(program, options, known, options.given)
    return replace(imported, program=made), layers


def _flat(imported: Imported, call: Any) -> list[Any]:
    """The arrays of one example call, in the order of the program's parameters."""
    from dlc.compiler import interface_of

    interface = interface_of(imported)
    args = tuple(call) if isinstance(call, (tuple, list)) else (call,)
    count = len(imported.program.params)
    tree = check_tree(interface.in_tree, "in_tree", count, is_input=True)
    flat = Flattener(tree, interface.arg_names, count)(args, {})
    return list(arrange(imported.program.params, [_array(a) for a in flat]).values())


def _array(a: Any) -> Any:
    if hasattr(a, "detach"):
        from dlc.frontend.torch_types import numpy_view

        return numpy_view(a)
    return np.asarray(a)
