"""References for a compiled model: eager PyTorch, onnxruntime or onnx.reference, whole or tensor by tensor.

`reference_for(model)` runs a model elsewhere. `opened_up(model)` is the same model with every intermediate tensor an
output, so that the first node at which dlc departs can be named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dlc.errors import BadInput, MissingPackage
from dlc.feeds import call_arguments, flat_outputs
from dlc.models import Model


class NoReference(BadInput):
    """A model that nothing here can run but dlc."""

    code = "DLC0650"
    template = "'{model}' has no reference to compare with: {reason}"
    hint = "verify takes .onnx files, Python models, .pt2 files and .ein programs"


@dataclass(frozen=True, slots=True)
class Reference:
    """Another implementation of a model.

    Attributes:
        name: what it is, for people.
        run: the model's inputs, in the order and with the names of the manifest, to its outputs in their order.
    """

    name: str
    run: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


def reference_for(model: Model, manifest: Mapping[str, Any], choice: str = "auto", threads: int = 2) -> Reference:
    """The reference of a model: eager PyTorch for Python models, onnxruntime (or onnx.reference) for ONNX.

    Args:
        model: opened, not compiled.
        manifest: of the compiled model, for the structure of its inputs.
        choice: auto, onnxruntime or onnx.
        threads: of the reference.
    """
    match model.kind:
        case "onnx":
            return _onnx_reference(model.source, choice, threads)
        case "torch" | "exported":

            def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
                call = call_arguments(manifest, list(feeds.values()))
                return flat_outputs(eager_call(model, call, threads)())

            return Reference("eager PyTorch", run)
        case "ein":
            from dlc.commands.numbers import with_data
            from dlc.commands.opt import read_program
            from dlc.ir.interpret import run_program

            program = with_data(read_program(str(model.source)))
            return Reference("the interpreter", lambda feeds: list(run_program(program, list(feeds.values()))))
        case _:
            raise NoReference(model=model.spec, reason="it is already compiled")


def eager_call(
    model: Model, call: tuple[tuple[Any, ...], dict[str, Any]], threads: int | None = None
) -> Callable[[], Any]:
    """A call of the eager model on the given arrays."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    module = model.source.module() if model.kind == "exported" else model.source
    args, kwargs = _tensors(call)

    def run() -> Any:
        with torch.no_grad():
            return module(*args, **kwargs)

    return run


def ort_session(model: Any, threads: int | None = None) -> Any:
    """An onnxruntime session on the CPU; `model` is a path or bytes."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackage(what="this comparison", package="onnxruntime", install="dlc[bench]") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def opened_up(model: Model) -> tuple[Model, list[tuple[str, str]]]:
    """The model with every intermediate tensor as an output, in the order of computation.

    Returns:
        The model, and for each of its outputs (tensor, the node that makes it).
    """
    if model.kind == "onnx":
        return _opened_onnx(model)
    if model.kind in ("torch", "exported"):
        return _opened_torch(model)
    raise NoReference(model=model.spec, reason="its nodes cannot be made outputs")


def _onnx_reference(source: Any, choice: str, threads: int) -> Reference:
    import onnx

    path = str(source) if isinstance(source, str | Path) else None
    if choice in ("auto", "onnxruntime"):
        try:
            session = ort_session(path or source.SerializeToString(), threads)
        except MissingPackage:
            if choice == "onnxruntime":
                raise
        except Exception as error:  # onnxruntime's own exceptions have no public base
            if choice == "onnxruntime":
                raise NoReference(model=str(path), reason=f"onnxruntime refuses it: {error}") from error
        else:
            return Reference("onnxruntime", lambda feeds: _listed(session.run(None, dict(feeds))))
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load(path) if path else source)
    return Reference("onnx.reference", lambda feeds: _listed(evaluator.run(None, dict(feeds))))


def _opened_onnx(model: Model) -> tuple[Model, list[tuple[str, str]]]:
    import onnx

    proto = onnx.load(str(model.source)) if isinstance(model.source, str | Path) else model.source
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    made = [(o, n.name or n.op_type, n.op_type) for n in copy.graph.node for o in n.output if o]
    try:
        inferred = onnx.shape_inference.infer_shapes(copy)
        known = {v.name: v for v in inferred.graph.value_info}
    except Exception:  # a model that onnx cannot infer can still be run
        known = {}
    known |= {o.name: o for o in copy.graph.output}
    # only tensors: sequences and optionals cannot be compared element by element
    made = [m for m in made if m[0] not in known or known[m[0]].type.HasField("tensor_type")]
    del copy.graph.output[:]
    for name, _, _ in made:
        copy.graph.output.append(known.get(name) or onnx.helper.make_empty_tensor_value_info(name))
    return replace(model, source=copy), [(name, f"{kind} '{node}'") for name, node, kind in made]


def _opened_torch(model: Model) -> tuple[Model, list[tuple[str, str]]]:
    import torch

    program = model.source
    if model.kind == "torch":
        program = torch.export.export(
            model.source, tuple(model.inputs or ()), dynamic_shapes=model.dynamic_shapes, strict=False
        )
    module = program.module()
    nodes = [n for n in module.graph.nodes if n.op == "call_function" and isinstance(n.meta.get("val"), torch.Tensor)]
    output = next(n for n in module.graph.nodes if n.op == "output")
    output.args = (tuple(nodes),)
    spec = module.graph._codegen.pytree_info  # keep how inputs are nested, but return the flat tuple of tensors
    module.graph._codegen.pytree_info = spec._replace(
        out_spec=torch.utils._pytree.tree_structure(tuple(range(len(nodes))))
    )
    module.recompile()
    names = [(n.name, f"{n.target} {_torch_place(n)}".strip()) for n in nodes]
    return replace(model, kind="torch", source=module), names


def _torch_place(node: Any) -> str:
    trace = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    return lines[-1] if lines else ""


def _tensors(value: Any) -> Any:
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {k: _tensors(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_tensors(v) for v in value)
    return value


def _listed(values: Sequence[Any]) -> list[np.ndarray]:
    return [np.asarray(v) for v in values]
