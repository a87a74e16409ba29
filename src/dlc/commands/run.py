"""Run a .dlc file, or compile a model and run it; print what comes out, or save it.

dlc run model.dlc                                  random inputs
dlc run model.dlc --symbol b=3 --symbol s=77       random inputs of that shape
dlc run model.dlc --input in.npz --save out.npz    given inputs; `dlc diff` compares saved outputs
dlc run model.onnx --format json
"""

from __future__ import annotations

import argparse
import time

from dlc.commands import options as shared
from dlc.console import Console, seconds_text
from dlc.feeds import call_arguments, flat_outputs, save_arrays, summary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FILE", help="a .dlc file or a model")
    parser.add_argument("--save", metavar="FILE", help="write the outputs there (.npz by name, or .npy)")
    parser.add_argument("--save-inputs", metavar="FILE", help="write the inputs there, for use as --input")
    shared.add_inputs(parser)
    shared.add_threads(parser)
    shared.add_compile(parser)
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    _, executable = shared.executable_of(options, console)
    arrays = shared.arrays_for(executable, options)
    names = [i["name"] for i in executable.manifest["inputs"]]
    if options.save_inputs:
        save_arrays(options.save_inputs, dict(zip(names, arrays)))
    args, kwargs = call_arguments(executable.manifest, arrays)
    began = time.perf_counter()
    outputs = flat_outputs(executable(*args, **kwargs))
    seconds = time.perf_counter() - began
    named = dict(zip((o["name"] for o in executable.manifest["outputs"]), outputs))
    if options.save:
        save_arrays(options.save, named)
    rows = [{"name": name, **summary(array)} for name, array in named.items()]
    console.emit({"seconds": seconds}, rows)
    for row in rows:
        numbers = "".join(f", {k} {row[k]:.6g}" for k in ("min", "max", "mean") if k in row)
        strange = f", {row['not_finite']} not finite" if "not_finite" in row else ""
        console.say(f"{row['name']}: {row['dtype']}{row['shape']}{numbers}{strange}")
        if named[row["name"]].size <= 8:
            console.say(f"  {named[row['name']].tolist()}")
    console.say(f"first call: {seconds_text(seconds)}")
    return 0
