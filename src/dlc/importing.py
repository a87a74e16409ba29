"""Which frontend reads what the user gave: a torch module or export, an ONNX model, cascade text, a program of the IR.

Frontends are imported when they are needed, so that compiling a text needs neither torch nor onnx.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlc.collector import collector_put_off
from dlc.errors import BadInput, MissingPackage
from dlc.frontend.imported import Imported, flat_tree, leaf
from dlc.ir.einsum import TensorType
from dlc.ir.program import Cascade, Launch, Param, Program, Region, program_of


class UnknownModel(BadInput):
    """The object or file is none of the kinds of model that dlc reads."""

    code = "DLC0611"
    template = "cannot compile {what}"
    hint = (
        "give an nn.Module with example inputs, an ExportedProgram, an ONNX model (path, bytes or ModelProto), "
        "cascade text, an .ein file or a program of the IR"
    )


class ModelFileMissing(BadInput):
    """The model's file cannot be read."""

    code = "DLC0612"
    template = "cannot read '{path}': {reason}"
    hint = "check the path; relative ones start at the working directory"


class NeedsExample(BadInput):
    """A torch module can only be exported with example inputs."""

    code = "DLC0613"
    template = "compiling the module '{name}' needs example inputs"
    hint = "call dlc.compile(model, (x,)) with tensors of the types and shapes that the model takes"


@collector_put_off()
def import_any(
    model: Any,
    args: tuple[Any, ...] | None,
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
    specialise: Mapping[str, Any] | None,
    name: str | None = None,
) -> Imported:
    """The model as a program of the IR, with the nesting of its inputs and outputs.

    Raises:
        UnknownModel, ModelFileMissing, NeedsExample, MissingPackage: this is no model, or one that cannot be read here.
        DlcError: what a frontend finds.
    """
    if isinstance(model, Imported):
        return model
    if isinstance(model, Cascade):
        return of_program(program_of(model))
    if isinstance(model, Program):
        return of_program(model)
    torch = sys.modules.get("torch")  # a module of torch exists only when torch is imported
    if torch is not None:
        if isinstance(model, torch.nn.Module):
            return _torch_module(model, args, kwargs, dynamic_shapes, name)
        if isinstance(model, torch.export.ExportedProgram):
            return _exported(model, name)
    if is_onnx(model):
        return _onnx(model, args, kwargs, specialise)
    if isinstance(model, Path) or _is_path(model):
        return _file(Path(model))
    if isinstance(model, str):
        return import_text(model, "<text>")
    raise UnknownModel(what=f"an object of type {type(model).__module__}.{type(model).__qualname__}")


def _is_path(model: Any) -> bool:
    return isinstance(model, str) and "\n" not in model and "{" not in model


def is_onnx(model: Any) -> bool:
    """Whether this is an ONNX model: a path that ends so, the bytes of a file, or a ModelProto."""
    if isinstance(model, Path) or _is_path(model):
        return Path(model).suffix.lower() == ".onnx"
    is_proto = type(model).__name__ == "ModelProto" and hasattr(model, "SerializeToString")
    return is_proto or isinstance(model, (bytes, bytearray))


def is_ir(model: Any) -> bool:
    """Whether the model is the IR's own: a program, a cascade, or the text of one."""
    if isinstance(model, Path) or _is_path(model):
        return Path(model).suffix.lower() == ".ein"
    return isinstance(model, (Program, Cascade, str))


def onnx_inputs(model: Any) -> tuple[str, ...]:
    """Names of an ONNX model's inputs, those with a default left out."""
    from dlc.frontend.onnx_load import load_model

    graph = load_model(model)[0].graph
    defaults = {t.name for t in graph.initializer}
    return tuple(i.name for i in graph.input if i.name not in defaults)


def _file(path: Path) -> Imported:
    suffix = path.suffix.lower()
    if suffix not in (".ein", ".onnx", ".pt2", ".dlc"):
        raise UnknownModel(what=f"the file '{path}': its suffix says no format (known: .onnx, .ein, .pt2)")
    if suffix == ".dlc":
        raise UnknownModel(what=f"'{path}': it is compiled already; use dlc.load")
    if not path.is_file():
        raise ModelFileMissing(path=str(path), reason="it is a folder" if path.is_dir() else "there is no such file")
    if suffix == ".pt2":
        return _exported(_need("torch", "reading a .pt2 file", "dlc[torch]").export.load(path))
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelFileMissing(path=str(path), reason=getattr(error, "strerror", None) or str(error)) from error
    return import_text(text, str(path), path)


def import_text(text: str, file: str, path: Path | None = None) -> Imported:
    """A program, cascade or kernel in text form; constants are read from beside `path`."""
    from dataclasses import replace

    _need("lark", "reading cascade text", "dlc[compile]")
    from dlc.ir.parser import parse

    program = _as_program(parse(text, file))
    if path is not None and program.consts:
        from dlc.dump import load_constants

        program = replace(program, data={**program.data, **load_constants(path)})
    return of_program(program)


def _as_program(parsed: Any) -> Program:
    """What a text holds as a program: a lone cascade runs, of kernels alone the last one is launched."""
    if isinstance(parsed, Program):
        return parsed
    if isinstance(parsed, Cascade):
        return program_of(parsed)
    kernel = parsed[-1]
    cascade = kernel.cascade
    params = tuple(Param(f"in_{p.name}", TensorType(p.type.dtype, p.type.shape)) for p in cascade.params)
    outs = tuple(f"out_{r}" for r in cascade.results)
    launch = Launch(kernel.name, tuple(p.name for p in params), outs)
    return Program(kernel.name, params, Region((launch,), outs), kernels=parsed, symbols=cascade.symbols)


def of_program(program: Program) -> Imported:
    """A program whose inputs are positional and flat; one output is returned bare, several as a tuple."""
    program = with_symbols(program)
    outs = len(program.results)
    in_tree = {"t": "tuple", "c": [flat_tree(len(program.params)), {"t": "dict", "k": [], "c": []}]}
    names = tuple(p.name for p in program.params)
    return Imported(
        program,
        in_tree,
        leaf(0) if outs == 1 else flat_tree(outs),
        names,
        tuple(program.results),
        arg_names=names,
    )


def with_symbols(program: Program) -> Program:
    """The program with all extent symbols of its inputs declared: text may leave out those without facts."""
    from dataclasses import replace

    from dlc.ir.extent import variables
    from dlc.ir.program import Symbol

    known = {s.name for s in program.symbols}
    used = dict.fromkeys(v for p in program.params for e in p.type.shape for v in sorted(variables(e)))
    missing = [v.removeprefix("#") for v in used if v.removeprefix("#") not in known]
    return replace(program, symbols=(*program.symbols, *map(Symbol, missing))) if missing else program


def _torch_module(model: Any, args: Any, kwargs: Any, dynamic_shapes: Any, name: str | None) -> Imported:
    if args is None and not kwargs:
        raise NeedsExample(name=type(model).__name__)
    from dlc.frontend import torch_export

    if args is not None and not isinstance(args, (tuple, list)):
        args = (args,)
    return torch_export.import_torch(model, tuple(args or ()), dict(kwargs or {}), dynamic_shapes, name=name)


def _exported(model: Any, name: str | None = None) -> Imported:
    from dlc.frontend import torch_export

    return torch_export.import_exported(model, name=name)


def _onnx(
    model: Any, args: tuple[Any, ...] | None, kwargs: Mapping[str, Any] | None, specialise: Mapping[str, Any] | None
) -> Imported:
    if isinstance(model, (str, Path)) and not Path(model).is_file():
        reason = "it is a folder" if Path(model).is_dir() else "there is no such file"
        raise ModelFileMissing(path=str(model), reason=reason)
    _need("onnx", "reading an ONNX model", "dlc[onnx]")
    from dlc.frontend.onnx_import import import_model

    examples = dict(kwargs or {})
    if args:
        examples |= dict(zip(onnx_inputs(model), args, strict=False))
    return import_model(model, specialise=specialise, examples=examples)


def _need(package: str, what: str, install: str) -> Any:
    if importlib.util.find_spec(package) is None:
        raise MissingPackage(what=what, package=package, install=install)
    return importlib.import_module(package)
