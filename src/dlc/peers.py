"""IREE and TVM as contenders: an ONNX model compiled by them for given shapes.

Both are optional (`pip install 'dlc[peers]'`), and each is imported in its contender's process only: IREE's compiler and
the MLIR that dlc uses cannot live in one. What IREE compiles is kept in a folder, by model, shapes and version.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

Arrays = list[np.ndarray]


@dataclass(frozen=True, slots=True)
class StaticModel:
    """A model that a peer compiled for fixed shapes.

    Attributes:
        order: for each input of the model, its place among the caller's.
        run: the inputs, in the model's order, to the outputs.
        note: what a reader should know about the settings.
    """

    order: tuple[int, ...]
    run: Callable[[Arrays], Arrays]
    note: str


def iree_model(path: Path, arrays: Arrays, names: Sequence[str], threads: int, cache: Path) -> StaticModel:
    """The model compiled by IREE for this CPU and these shapes, run by its task system on `threads` workers."""
    import iree.runtime as rt

    model, order = static_onnx(path, arrays, names)
    code = cache / f"iree-{_digest(path, model, metadata.version('iree-base-compiler'))}.vmfb"
    if not code.exists():
        _iree_compile(model, code)
    rt.flags.parse_flags(f"--task_topology_group_count={threads}")
    config = rt.Config("local-task")
    module = rt.load_vm_module(rt.VmModule.mmap(config.vm_instance, str(code)), config)
    function = module[model.graph.name]

    def run(given: Arrays) -> Arrays:
        results = function(*given)
        return [r.to_host() for r in (results if isinstance(results, tuple | list) else (results,))]

    return StaticModel(order, run, "static shapes, -O3 for the host's CPU")


def _iree_compile(model: Any, code: Path) -> None:
    """Import with the weights inline, so that they can be packed at compile time, then compile."""
    import onnx

    code.parent.mkdir(parents=True, exist_ok=True)
    source, text, made = (code.with_suffix(s) for s in (".onnx", ".mlir", ".part"))
    try:
        onnx.save(model, str(source), save_as_external_data=True, location=source.name + ".data", convert_attribute=False)
        _tool(sys.executable, "-m", "iree.compiler.tools.import_onnx", str(source), "-o", str(text))
        options = (
            "--iree-input-type=onnx",
            "--iree-hal-target-backends=llvm-cpu",
            "--iree-llvmcpu-target-cpu=host",
            "--iree-opt-level=O3",
            "--iree-llvmcpu-stack-allocation-limit=1048576",  # its own layer norm of 128 x 768 exceeds the usual limit
        )
        _tool(str(Path(sys.executable).with_name("iree-compile")), str(text), *options, "-o", str(made))
        made.rename(code)
    finally:
        for path in (source, source.with_name(source.name + ".data"), text, made):
            path.unlink(missing_ok=True)


def _tool(*command: str) -> None:
    """Run a peer's tool; its first line of complaint becomes the error."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [f"status {done.returncode}"]
        raise RuntimeError(f"{Path(command[0]).name if 'iree-compile' in command[0] else 'import_onnx'}: {lines[-1][:280]}")


def tvm_model(path: Path, arrays: Arrays, names: Sequence[str], threads: int, cache: Path) -> StaticModel:
    """The model compiled by TVM's Relax for this CPU and these shapes, without tuning."""
    os.environ["TVM_NUM_THREADS"] = str(threads)
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    model, order = static_onnx(path, arrays, names)
    shapes = {i.name: list(arrays[k].shape) for i, k in zip(model.graph.input, order)}
    module = from_onnx(folded(model), shape_dict=shapes, keep_params_in_input=False)
    target = tvm.target.Target({"kind": "llvm", "mcpu": _llvm_cpu(), "num-cores": threads})
    with target:
        machine = relax.VirtualMachine(tvm.compile(module, target=target), tvm.cpu())
    function = machine["main"]

    def run(given: Arrays) -> Arrays:
        results = function(*map(tvm.runtime.from_dlpack, given))
        several = not hasattr(results, "shape")
        return [np.from_dlpack(r) for r in (results if several else (results,))]

    return StaticModel(order, run, "static shapes, not tuned")


def folded(model: Any) -> Any:
    """The model without what only computes shapes, which TVM's importer cannot do by itself."""
    import onnxscript.optimizer

    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # nodes that it leaves as they are
    return onnxscript.optimizer.optimize(model)


def _llvm_cpu() -> str:
    """LLVM's name of this CPU."""
    from dlc.codegen.target import host_target

    return host_target().cpu


def static_onnx(path: Path, arrays: Arrays, names: Sequence[str]) -> tuple[Any, tuple[int, ...]]:
    """The ONNX model with the arrays' shapes for its inputs, and for each of them its place among the arrays."""
    import onnx

    model = onnx.load(str(path))
    wanted = [i.name for i in model.graph.input]
    if set(wanted) <= set(names):
        order = tuple(list(names).index(name) for name in wanted)
    elif len(wanted) == len(arrays):
        order = tuple(range(len(arrays)))
    else:
        raise ValueError(f"it takes {len(wanted)} inputs ({', '.join(wanted)}), not {len(arrays)}")
    bound: dict[str, int] = {}
    for value, place in zip(model.graph.input, order):
        for dim, extent in zip(value.type.tensor_type.shape.dim, arrays[place].shape):
            if dim.dim_param:
                bound[dim.dim_param] = extent
            dim.dim_value = extent
    _bind(model.graph.output, bound)
    _bind(model.graph.value_info, bound)
    return model, order


def _bind(values: Any, bound: Mapping[str, int]) -> None:
    """Give symbolic dimensions their values; those that are computed from symbols become unknown."""
    for value in values:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in bound:
                dim.dim_value = bound[dim.dim_param]
            elif dim.dim_param:
                dim.Clear()


def _digest(path: Path, model: Any, version: str) -> str:
    """Of what the compiled code depends on: the file as it is, the shapes, the compiler."""
    shapes = [[d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input]
    state = path.stat()
    text = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {shapes} {version}"
    return hashlib.sha256(text.encode()).hexdigest()[:20]


__all__ = ["StaticModel", "folded", "iree_model", "static_onnx", "tvm_model"]
