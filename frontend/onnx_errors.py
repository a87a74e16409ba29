"""Errors of the ONNX frontend (DLC0240-0279)."""

from __future__ import annotations

from typing import Any, ClassVar

from dlc.errors import BadInput, Unsupported
from dlc.frontend.errors import UnsupportedOperator


class OnnxError(BadInput):
    """Something is wrong with an ONNX model."""


class UnreadableModel(OnnxError):
    code = "DLC0240"
    template = "this is not a readable ONNX model: {reason}"
    hint = "check that the file is complete and was written by an ONNX exporter"


class MalformedModel(OnnxError):
    code = "DLC0241"
    template = "the ONNX model is malformed: {reason}"
    hint = "`python -m onnx.checker` style validation fails on it too; export the model again"


class UndefinedValue(OnnxError):
    code = "DLC0242"
    template = "value '{name}' is read here, but no input, initializer or earlier node defines it"
    hint = "nodes must come in an order in which each value is defined before its use, without cycles"


class WrongAttribute(OnnxError):
    code = "DLC0243"
    template = "attribute '{attribute}' of {op}: {reason}"


class ExternalData(OnnxError):
    code = "DLC0244"
    template = "external data of tensor '{tensor}' cannot be used: {reason}"
    hint = "the data file must lie in the folder of the model, or below it, and be complete"


class InvalidNode(OnnxError):
    code = "DLC0245"
    template = "{op} does not fit its inputs: {reason}"


class BadSpecialisation(OnnxError):
    code = "DLC0246"
    template = "input '{name}' cannot take the value given for it: {reason}"


class UnsupportedOpset(Unsupported):
    code = "DLC0247"
    template = "not supported: operator set '{domain}' version {version} because {reason}"


class UnsupportedType(Unsupported):
    code = "DLC0248"
    template = "not supported: {op} because {reason}"


class TooLarge(Unsupported):
    code = "DLC0249"
    template = "not supported: {op} because {reason}"


class NeedsValue(UnsupportedOperator):
    """The values of these inputs decide shapes or structure: import again with `specialise={name: array}`.

    Attributes:
        names: the graph inputs whose values are needed.
    """

    code: ClassVar[str] = "DLC0250"
    template = "not supported: {op} because {reason}, and that depends on the value of input {inputs}"
    hint = "give the value when compiling (`specialise={{name: array}}`); the result then holds for that value alone"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.fields["names"])


class NeedsStructure(Unsupported):
    """A sequence or optional input, whose structure the call must show: import again with `structure={name: ...}`."""

    code = "DLC0251"
    template = "not supported: input '{name}' because the {what} of a {kind} must be known when compiling"
    hint = "give an example of the input when compiling"

    @property
    def name(self) -> str:
        return str(self.fields["name"])


def shown(value: Any, limit: int = 120) -> str:
    """`str(value)` on one line, cut to `limit` characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."
