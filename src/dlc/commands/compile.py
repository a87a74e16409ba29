"""Compile a model into one .dlc file, which runs where only NumPy is installed.

  dlc compile model.onnx
  dlc compile model.onnx -o small.dlc --target avx2
  dlc compile mypackage.models:make_bert --dump-dir dumps
  dlc compile kernel.ein --print-ir-after-change --timing

MODEL is an .onnx, .pt2 (torch.export.save) or .ein file, or a Python object as module:name or file.py:name: an
nn.Module, or a function that returns one, or (module, example_inputs), or (module, example_inputs, dynamic_shapes).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from dlc.commands import options as shared
from dlc.commands.quantised import facts_of, say_quantised
from dlc.console import Console, bytes_text, seconds_text
from dlc.feeds import signature
from dlc.models import open_model


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="what to compile")
    parser.add_argument("-o", "--output", metavar="FILE", help="the artifact (default: the model's name with .dlc)")
    shared.add_threads(parser)
    shared.add_compile(parser)
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    began = time.perf_counter()
    model = open_model(options.model)
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
