"""What importing from PyTorch can fail with (DLC0210 to DLC0239; DLC0200 is every frontend's)."""

from __future__ import annotations

from typing import ClassVar

from dlc.errors import BadInput, Unsupported


class TrainingMode(Unsupported):
    """The model would drop values at random or update its statistics."""

    code: ClassVar[str] = "DLC0211"
    template: ClassVar[str] = "not supported: {op} because the model is in training mode"
    hint: ClassVar[str | None] = "call model.eval() before compiling"


class ExportFailed(BadInput):
    """`torch.export.export` refused the model."""

    code: ClassVar[str] = "DLC0212"
    template: ClassVar[str] = "torch.export cannot trace the model: {message}"
    hint: ClassVar[str | None] = (
        "call torch.export.export yourself to see torch's full report, and compile the ExportedProgram it gives"
    )


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
    """The model writes to its buffers or inputs."""

    code: ClassVar[str] = "DLC0215"
    template: ClassVar[str] = "not supported: {op} because the model changes {what} in place"
    hint: ClassVar[str | None] = "return the new value as an output"


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
