"""Compile a model into one .dlc file, which runs where only NumPy is installed.

  dlc compile model.onnx
  dlc compile model.onnx -o small.dlc --target avx2
  dlc compile mypackage.models:make_bert --dump-dir dumps
  dlc compile kernel.ein --print-ir-after-change --timing
  dlc compile model.onnx --target sm_80 -o folder     PTX of each kernel, not run (docs/gpu.md)

MODEL is an .onnx, .pt2 (torch.export.save) or .ein file, or a Python object as module:name or file.py:name: an
nn.Module, or a function that returns one, or (module, example_inputs), or (module, example_inputs, dynamic_shapes).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from dlc.codegen.gpu_targets import GPU_TARGETS
from dlc.commands import options as shared
from dlc.commands.quantised import facts_of, say_quantised
from dlc.console import Console, bytes_text, seconds_text
from dlc.feeds import signature
from dlc.models import Model, open_model


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="what to compile")
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="the artifact (default: the model's name with .dlc); for sm_80 and sm_90 a folder"
    )
    shared.add_threads(parser)
    shared.add_compile(parser)
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    began = time.perf_counter()
    model = open_model(options.model)
    if options.target in GPU_TARGETS:
        return _ptx(model, options, console)
    executable = shared.compile_model(model, options, console)
    output = Path(options.output or f"{model.name}.dlc")
    with console.step(f"writing {output}"):
        executable.save(output)
    seconds = time.perf_counter() - began
    manifest = executable.manifest
    facts = {
        "output": str(output),
        "bytes": output.stat().st_size,
        "seconds": round(seconds, 3),
        "kernels": len(manifest.get("kernels", ())),
        "objects": len(manifest.get("objects", ())),
        "inputs": manifest.get("inputs", ()),
        "outputs": manifest.get("outputs", ()),
        "target": manifest.get("target"),
        "quantised": facts_of(executable),
    }
    console.emit(facts)
    console.say(
        f"{output}: {bytes_text(output.stat().st_size)}, {facts['kernels']} kernel calls, {seconds_text(seconds)}"
    )
    console.say(f"  inputs: {signature(manifest)}")
    say_quantised(executable, console)
    folder = shared.dump_dir(options)
    if folder:
        console.say(f"  report: {Path(folder) / 'index.html'}")
    return 0


def _ptx(model: Model, options: argparse.Namespace, console: Console) -> int:
    """PTX instead of an artifact."""
    from dlc import gpu

    model = shared.with_shapes(model, dict(options.shape))
    with console.step(f"compiling {model.spec}"):
        kernels = gpu.compile_ptx(
            model.source,
            model.inputs,
            dynamic_shapes=model.dynamic_shapes,
            target=options.target,
            accuracy=options.accuracy,
            disable_passes=tuple(options.disable_pass),
            name=model.spec,
            specialise=shared.specialised(model, options.specialise) if model.kind == "onnx" else None,
            quantize=options.quantize,
        )
    folder = Path(options.output or f"{model.name}.{options.target}")
    gpu.write(kernels, folder)
    console.emit({"output": str(folder), "target": options.target, "kernels": [gpu.facts(k) for k in kernels]})
    console.say(f"{folder}: {len(kernels)} kernels as PTX for {options.target}, not run")
    for k in kernels:
        console.say(f"  {k.name}: {gpu.usage_text(k)}")
    return 0
