"""What importing from PyTorch can fail with (DLC0210 to DLC0239; DLC0200 is every frontend's)."""

from __future__ import annotations

import re
from typing import ClassVar

from dlc.errors import BadInput, Unsupported
from dlc.ir.loc import Loc


class TrainingMode(Unsupported):
    """The model would drop values at random or update its statistics."""

    code: ClassVar[str] = "DLC0211"
    template: ClassVar[str] = "not supported: {op} because the model is in training mode"
    hint: ClassVar[str | None] = "call model.eval() before compiling"


class ExportFailed(BadInput):
    """`torch.export.export` refused the model, or the model raises an exception for the example inputs."""

    code: ClassVar[str] = "DLC0212"
    template: ClassVar[str] = "torch.export cannot trace the model: {message}"
    hint: ClassVar[str | None] = (
        "call the model on the same inputs without dlc: what it raises there, too, is a fault of the model or the inputs; else"
        " call torch.export.export yourself to see torch's full report, and compile the ExportedProgram it gives"
    )


class ExtentIsConstant(ExportFailed):
    """An extent that `dynamic_shapes` names can only be the example's."""

    code: ClassVar[str] = "DLC0218"
    template: ClassVar[str] = "extent '{extent}' in dynamic_shapes can only be {value}: torch takes it for a constant"
    hint: ClassVar[str | None] = (
        "torch does so with extents of 0 and 1: give example inputs where it is 2 or more; with other values the model's code fixes it"
    )


def export_failed(error: Exception) -> ExportFailed:
    """What torch's error becomes: its kind and text, or which extent is constant."""
    text = " ".join(str(error).split()) or type(error).__name__
    constant = re.search(r"You marked (\S+) as dynamic but your code specialized it to be a constant \((\d+)\)", text)
    if constant:
        return ExtentIsConstant(None, extent=constant[1], value=constant[2])
    return ExportFailed(None, message=f"{type(error).__name__}: {text[:800]}")


class LeftPyTorch(ExportFailed):
    """Values go where PyTorch cannot follow them."""

    code: ClassVar[str] = "DLC0210"
    template: ClassVar[str] = "not supported: what {call} gives is computed with outside of PyTorch, where nothing is recorded"
    hint: ClassVar[str | None] = "compute it with torch; single numbers may be taken out by .item() or .tolist()"


def model_raised(error: Exception, place: Loc | None, source: str | None) -> ExportFailed:
    """What an exception of the model's own becomes while it is recorded."""
    text = " ".join(str(error).split())
    if ".numpy() is not supported" in text:
        return LeftPyTorch(place, source=source, call=".numpy() (or NumPy, of a tensor)")
    return ExportFailed(place, source=source, message=f"{type(error).__name__}: {text[:600]}")


class UnsupportedType(Unsupported):
    """An element type without a place in the IR."""

    code: ClassVar[str] = "DLC0213"
    template: ClassVar[str] = "not supported: {op} because its element type is {dtype}"
    hint: ClassVar[str | None] = "cast to a type of the list in docs/frontend-torch.md"


class UnsupportedExtent(Unsupported):
    """A shape computed in a way that integer expressions do not cover."""

    code: ClassVar[str] = "DLC0214"
    template: ClassVar[str] = "not supported: {op} because '{extent}' is no integer expression of the input extents"
    hint: ClassVar[str | None] = "give that dimension a fixed size, or a Dim of its own, in dynamic_shapes"


class MutatedState(Unsupported):
    """The model writes to its buffers, attributes or inputs."""

    code: ClassVar[str] = "DLC0215"
    template: ClassVar[str] = "not supported: {op} because the model changes {what} in place, and a compiled call leaves nothing behind"
    hint: ClassVar[str | None] = (
        "return the new value as an output, and make it an input if the next call reads it; a value that nothing reads later"
        " belongs in a local variable"
    )


class MutatedInput(MutatedState):
    """The model writes to a tensor that the caller holds."""

    template: ClassVar[str] = (
        "not supported: {op} because the model writes to its input {what} in place, and a compiled call leaves the caller's tensor alone"
    )
    hint: ClassVar[str | None] = (
        "begin with a copy, `x = x.clone()`, or write `x = x + 1` for `x.add_(1)` and `torch.where(mask, v, x)` for `x[mask] = v`;"
        " return the new value as well if the caller needs it"
    )


class RandomOperator(Unsupported):
    """Random numbers."""

    code: ClassVar[str] = "DLC0216"
    template: ClassVar[str] = "not supported: {op} because its result is random"
    hint: ClassVar[str | None] = "make the random tensor an input of the model"


class BadExample(BadInput):
    """Example inputs, or a model, that cannot be imported at all."""

    code: ClassVar[str] = "DLC0217"
    template: ClassVar[str] = "cannot import from PyTorch: {message}"
    hint: ClassVar[str | None] = "pass the nn.Module in eval mode and a tuple of the positional arguments it takes"


class MalformedGraph(BadInput):
    """A graph that is no valid ATen graph."""

    code: ClassVar[str] = "DLC0219"
    template: ClassVar[str] = "the exported graph is malformed at {op}: {message}"


class UncapturedDecision(Unsupported):
    """Python code needs a value that is known at run time only, where it cannot be recorded."""

    code: ClassVar[str] = "DLC0220"
    template: ClassVar[str] = "not supported: the value of {what} decides here, and cannot be recorded: {why}"
    hint: ClassVar[str | None] = (
        "decide with if, while, for over range(), and, or, not or a conditional expression in a function whose source is"
        " at hand, or compute with torch.where; docs/dynamic.md lists what is recorded"
    )


class ArmsDiffer(Unsupported):
    """A value that has different structure, shape or type on the two paths through a branch, and is used afterwards."""

    code: ClassVar[str] = "DLC0221"
    template: ClassVar[str] = "not supported: '{name}' is used here, but the branch at {place} leaves it {reason}"
    hint: ClassVar[str | None] = "make both arms give tensors of equal shape and type, or numbers of one type"


class NotAlwaysDefined(Unsupported):
    """A variable that only some paths define."""

    code: ClassVar[str] = "DLC0222"
    template: ClassVar[str] = "not supported: '{name}' is used here, but {place} defines it on some paths only"
    hint: ClassVar[str | None] = "give the variable a value before the branch or loop"


class CannotRecordLoop(Unsupported):
    """A loop whose length depends on data and whose state changes structure from step to step."""

    code: ClassVar[str] = "DLC0223"
    template: ClassVar[str] = "not supported: the length of this loop depends on data, and {reason}"
    hint: ClassVar[str | None] = (
        "start with values of the structure, shapes and types that the loop's body leaves; a tensor that grows needs a bound in "
        "the loop's condition: `while n < 200` of a counter that goes up by one number, or `ids.shape[0] < 200`"
    )


class RecursionOnData(CannotRecordLoop):
    """A function that calls itself as often as data say."""

    template: ClassVar[str] = "not supported: how often '{name}' calls itself depends on data"
    hint: ClassVar[str | None] = "write it as a `while` loop, or as a `for` loop over a known number of steps with `break`"


class EffectOnData(Unsupported):
    """An effect on the world outside, or an exception, that depends on data."""

    code: ClassVar[str] = "DLC0224"
    template: ClassVar[str] = "not supported: {what} depends on data"
    hint: ClassVar[str | None] = "do it outside the model, on a value that the model returns"


class HiddenEffect(EffectOnData):
    """An object is changed on some paths only, by code whose changes cannot be taken back."""

    template: ClassVar[str] = "not supported: {owner} is changed by {by} on one path only, which cannot be recorded"
    hint: ClassVar[str | None] = (
        "change it on every path, before the branch or loop, or make it there; or keep the values in a list, a dict or an attribute,"
        " whose changes are recorded"
    )


class EscapedValue(Unsupported):
    """A value computed on one path is reachable from code that runs on every path."""

    code: ClassVar[str] = "DLC0225"
    template: ClassVar[str] = "not supported: {op} uses a value that exists on one path through the model only"
    hint: ClassVar[str | None] = "carry the value in a local variable that every path sets, instead of an object that a path changes"


class SharedMemory(Unsupported):
    """A tensor is written that may or may not be another one, depending on the path taken."""

    code: ClassVar[str] = "DLC0227"
    template: ClassVar[str] = "not supported: {op} writes to a tensor that on one path is the memory of another tensor still in use: {why}"
    hint: ClassVar[str | None] = "clone the tensor before the branch, or write `x = x + y` instead of `x += y`"


class SharedObject(Unsupported):
    """An object is looked at that another one may be, depending on the path taken, and that one was changed."""

    code: ClassVar[str] = "DLC0228"
    template: ClassVar[str] = "not supported: {what} is used here, but on one path it is another one, which was changed at {place}"
    hint: ClassVar[str | None] = "copy it in the branch (`list(x)`, `dict(x)`), or make a new one instead of changing it in place"
