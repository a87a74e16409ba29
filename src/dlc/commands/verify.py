"""Compile a model, run it and its reference on the same inputs, compare; where they depart, name the first node.

  dlc verify model.onnx                           against onnxruntime (or onnx.reference)
  dlc verify mypackage.models:make_bert           against eager PyTorch
  dlc verify model.onnx --symbol b=3 --symbol s=77 --int-range 0:1000
  dlc verify model.onnx --input in.npz --every-tensor

The error of a tensor is its largest |difference| divided by the largest |value| of the reference. Ends with 0 when all
are within the tolerance, and with 4 otherwise.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dlc.commands import options as shared
from dlc.commands.diff import compare
from dlc.console import Console
from dlc.errors import EXIT_MISMATCH
from dlc.feeds import call_arguments, flat_outputs
from dlc.models import Model, open_model, with_shapes


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="an .onnx, .pt2 or .ein file, or a Python model")
    parser.add_argument("--tolerance", type=float, default=1e-4, metavar="T", help="largest error (default 1e-4)")
    parser.add_argument("--reference", choices=("auto", "onnxruntime", "onnx"), default="auto", help="for ONNX models")
    parser.add_argument("--every-tensor", action="store_true", help="compare every intermediate tensor, too")
    shared.add_inputs(parser)
    shared.add_threads(parser)
    shared.add_compile(parser)
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    from dlc.verification import reference_for

    model = with_shapes(open_model(options.model), dict(options.shape))
    options.shape = []
    executable = shared.compile_model(model, options, console)
    reference = reference_for(model, executable.manifest, options.reference, executable.threads)
    names = [i["name"] for i in executable.manifest["inputs"]]
    feeds = dict(zip(names, shared.arrays_for(executable, options)))
    console.progress(f"running dlc and {reference.name}")
    labels = [o["name"] for o in executable.manifest["outputs"]]
    rows = compare_outputs(executable, reference.run(feeds), feeds, labels, options.tolerance)
    equal = all(row["equal"] for row in rows)
    first: Mapping[str, Any] | None = None
    rows_inside: list[dict[str, Any]] = []
    if options.every_tensor or not equal:
        rows_inside = _every_tensor(model, feeds, options, console)
        first = next((row for row in rows_inside if not row["equal"]), None)
        if options.every_tensor:
            rows = rows_inside + rows
            equal = equal and first is None
    console.emit({"equal": equal, "reference": reference.name, "first": first}, rows)
    for row in rows:
        console.say(f"{'ok ' if row['equal'] else 'NOT'} {row['name']}: {row['what']}")
    verdict = "equal to" if equal else "departs from"
    console.say(f"{verdict} {reference.name} (tolerance {options.tolerance:g})")
    if first is not None:
        console.say(f"the first node that departs: {first['node']}, tensor '{first['name']}': {first['what']}")
    elif not equal and rows_inside:
        console.say("no single node departs when all tensors are outputs: a rewrite across nodes is at fault")
    return 0 if equal else EXIT_MISMATCH


def compare_outputs(
    executable: Any, wanted: list[np.ndarray], feeds: Mapping[str, np.ndarray], labels: list[str], tolerance: float
) -> list[dict[str, Any]]:
    """One row per output: {name, equal, what, error}."""
    args, kwargs = call_arguments(executable.manifest, list(feeds.values()))
    outputs = flat_outputs(executable(*args, **kwargs))
    rows = [{"name": label, **compare(got, want, tolerance)} for label, got, want in zip(labels, outputs, wanted)]
    if len(outputs) != len(wanted):
        what = f"{len(outputs)} outputs instead of {len(wanted)}"
        rows.append({"name": "outputs", "equal": False, "what": what, "error": None})
    return rows


def _every_tensor(
    model: Model, feeds: Mapping[str, np.ndarray], options: argparse.Namespace, console: Console
) -> list[dict[str, Any]]:
    """Rows for every intermediate tensor, in the order of computation, with its node."""
    from dlc.verification import opened_up, reference_for

    if model.kind not in ("onnx", "torch", "exported"):
        return []
    opened, made = opened_up(replace(model, inputs=model.inputs))
    executable = shared.compile_model(opened, options, console)
    reference = reference_for(opened, executable.manifest, options.reference, executable.threads)
    rows = compare_outputs(executable, reference.run(feeds), feeds, [name for name, _ in made], options.tolerance)
    return [{**row, "node": node} for row, (_, node) in zip(rows, made)]
