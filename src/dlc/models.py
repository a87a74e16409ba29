"""What a model argument of the command line may be, and how it is opened.

model.onnx            an ONNX file
model.pt2             a program saved by torch.export.save
model.ein             a program or cascade in the IR's text form (constants/ beside it are read, too)
package.module:name   a Python object: an nn.Module, or a function that returns one, or a tuple of a module, its
file.py:name          example inputs and (optionally) its dynamic_shapes
model.dlc             a compiled artifact, for the verbs that run one
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from dlc.errors import BadInput, MissingPackage

Kind = Literal["onnx", "torch", "exported", "ein", "dlc"]


class NoSuchModel(BadInput):
    """The model argument names nothing that exists."""

    code = "DLC0660"
    template = "there is no model '{spec}': {reason}"
    hint = "give a file (.onnx, .pt2, .ein, .dlc) or a Python object as package.module:name or file.py:name"


class BadModelObject(BadInput):
    """The Python object that was named is no model."""

    code = "DLC0661"
    template = "'{spec}' is {what}, not a model"
    hint = (
        "name an nn.Module, or a function without arguments that returns one, or (module, example_inputs), "
        "or (module, example_inputs, dynamic_shapes)"
    )


@dataclass(frozen=True, slots=True)
class Model:
    """An opened model.

    Attributes:
        spec: what the user typed.
        kind: which frontend reads it.
        source: what `dlc.compile` takes: a path, an nn.Module or an ExportedProgram.
        inputs: example inputs, None where the model needs none to be imported.
        dynamic_shapes: as torch.export takes them.
    """

    spec: str
    kind: Kind
    source: Any
    inputs: tuple[Any, ...] | None = None
    dynamic_shapes: Any = None

    @property
    def name(self) -> str:
        """A short name, good as a file name."""
        stem = self.spec.rpartition(":")[2] if self.kind == "torch" else Path(self.spec).stem
        return stem or "model"


class BadShape(BadInput):
    """A --shape option names no input, or no shape."""

    code = "DLC0662"
    template = "--shape {given}: {reason}"
    hint = "the inputs are: {known}"


def with_shapes(model: Model, given: Mapping[str, Sequence[int | str]]) -> Model:
    """An ONNX model with other extents declared for some inputs: integers fix a dimension, names make it symbolic.

    Raises:
        BadShape: an input that does not exist, another rank, or a model that is no ONNX model.
    """
    if not given:
        return model
    shown = ", ".join(f"{name}={','.join(map(str, shape))}" for name, shape in given.items())
    if model.kind != "onnx":
        raise BadShape(given=shown, reason="only ONNX models take it; Python models have dynamic_shapes", known="-")
    onnx = _package("onnx", "an ONNX model", "dlc[onnx]")
    proto = onnx.ModelProto()
    proto.CopyFrom(model.source if isinstance(model.source, onnx.ModelProto) else onnx.load(str(model.source)))
    inputs = {i.name: i.type.tensor_type.shape for i in proto.graph.input}
    for name, shape in given.items():
        if name not in inputs or len(inputs[name].dim) not in (0, len(shape)):
            reason = f"it has rank {len(inputs[name].dim)}" if name in inputs else "there is no such input"
            raise BadShape(given=shown, reason=reason, known=", ".join(inputs))
        del inputs[name].dim[:]
        for extent in shape:
            dimension = inputs[name].dim.add()
            if isinstance(extent, int):
                dimension.dim_value = extent
            else:
                dimension.dim_param = extent
    del proto.graph.value_info[:]  # what was inferred held for the old extents
    return replace(model, source=proto)


def open_model(spec: str) -> Model:
    """Open what the user named.

    Raises:
        NoSuchModel, BadModelObject, MissingPackage: with what would be right.
    """
    path = Path(spec)
    kinds: dict[str, Kind] = {".onnx": "onnx", ".pt2": "exported", ".ein": "ein", ".dlc": "dlc"}
    kind = kinds.get(path.suffix.lower())
    if kind is not None:
        if not path.is_file():
            raise NoSuchModel(spec=spec, reason="no such file")
        if kind == "exported":
            torch = _package("torch", "reading a .pt2 file", "dlc[torch]")
            return Model(spec, kind, torch.export.load(path))
        return Model(spec, kind, path)
    module, colon, name = spec.rpartition(":")
    if not colon:
        reason = "its suffix says no format" if path.is_file() else "no such file"
        raise NoSuchModel(spec=spec, reason=reason)
    _package("torch", "a Python model", "dlc[torch]")
    return _from_object(spec, _attribute(spec, module, name))


def _from_object(spec: str, value: Any) -> Model:
    import torch

    if not isinstance(value, torch.nn.Module | tuple) and callable(value):
        value = value()
    parts = value if isinstance(value, tuple) else (value,)
    if len(parts) > 3 or not isinstance(parts[0], torch.nn.Module | torch.export.ExportedProgram):
        raise BadModelObject(spec=spec, what=f"a {type(parts[0]).__name__}")
    model, inputs, shapes = (*parts, None, None)[:3]
    if isinstance(inputs, torch.Tensor):
        inputs = (inputs,)
    if isinstance(model, torch.export.ExportedProgram):
        return Model(spec, "exported", model, inputs, shapes)
    return Model(spec, "torch", model.eval(), inputs, shapes)


def _attribute(spec: str, module: str, name: str) -> Any:
    try:
        if module.endswith(".py"):
            loader = importlib.util.spec_from_file_location(Path(module).stem, module)
            if loader is None or loader.loader is None or not Path(module).is_file():
                raise NoSuchModel(spec=spec, reason=f"no such file: {module}")
            loaded = importlib.util.module_from_spec(loader)
            sys.modules[loader.name] = loaded
            loader.loader.exec_module(loaded)
        else:
            if "" not in sys.path:
                sys.path.insert(0, "")  # as `python -m` has it: modules of the working directory
            loaded = importlib.import_module(module)
    except ImportError as error:
        raise NoSuchModel(spec=spec, reason=str(error)) from error
    value: Any = loaded
    for part in name.split("."):
        if not hasattr(value, part):
            raise NoSuchModel(spec=spec, reason=f"'{module}' has no '{name}'")
        value = getattr(value, part)
    return value


def _package(package: str, what: str, install: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise MissingPackage(what=what, package=package, install=install) from error
