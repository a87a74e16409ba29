"""The arena of the models in `tests/models`: greedy by size, packed, and packed with kernels that write in place; and other programs'.

    python -m benchmarks.arena [NAME ...] [--peers onnxruntime,openvino,inductor]

The passes decide what lies in the arena, and the kernels' tile programs what may be written over an operand. With `--peers` the model is
compiled, too, and what a call takes for activations is measured, its own and the peers' (`benchmarks.activations`). Rows go to
`benchmarks/results/arena.json` and the page beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from tests.models.vision import images
from tests.models.zoo import ZOO

import dlc
from benchmarks.activations import ENVIRONMENT
from benchmarks.artifacts import default_work, onnx_file
from dlc.arena_plan import buffer_bytes, heirs_of, plan_arena
from dlc.codegen.host import HostKernel
from dlc.codegen.lower import lower_kernel
from dlc.codegen.target import host_target
from dlc.compiler import run_passes
from dlc.importing import import_any
from dlc.ir.program import Program
from dlc.passes.assume_bounds import assume_bounds
from dlc.runtime import arena

MODELS = {
    "bert_base": (1, 128),
    "minilm": (1, 128),
    "t5_encoder": (1, 128),
    "gpt2": (1, 128),
    "vit_base": (1, 224),
    "resnet50": (1, 224),
    "mobilenet_v2": (1, 224),
    "efficientnet_b0": (1, 224),
    "convnext_tiny": (1, 224),
    "densenet121": (1, 224),
    "unet": (1, 512),
    "whisper_tiny_encoder": (1, 0),
}
"""Batch and length (pixels for pictures; 0 for the only one there is)."""

PEERS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "inductor": "torch"}
"""Kinds of `benchmarks.activations`, and the distribution whose version counts."""

RESULTS = Path(__file__).parent / "results" / "arena.json"


def inputs_of(name: str) -> tuple[torch.Tensor, ...]:
    """Inputs of the size in `MODELS`."""
    batch, length = MODELS[name]
    entry = ZOO[name]
    if entry.family == "vision":
        return (images(batch, length, 0),)
    return tuple(entry.inputs(batch, length or entry.lengths[0], 0))


def measure(name: str, peers: Sequence[str] = (), seconds: float = 1.0) -> dict[str, Any]:
    """Bytes of the arena of a model of the zoo, and of what calls of it and of peers take."""
    inputs = inputs_of(name)
    with torch.no_grad():
        model = ZOO[name].make()
        program = run_passes(assume_bounds(import_any(model, inputs, None, None, None, name).program))
    plan = plan_arena(program, seconds)
    in_place = plan_arena(program, seconds, heirs_of(program, tiles(program)))
    buffers = plan.memory.buffers
    sizes = buffer_bytes(plan.memory, plan.symbols)
    found = {
        "model": name,
        "buffers": len(buffers),
        "sum": sum(sizes),
        "greedy": arena.plan(sizes, [(b.first, b.last) for b in buffers])[1],
        "packed": plan.height,
        "bound": plan.bound,
        "in_place": in_place.height,
        "in_place_bound": in_place.bound,
        "in_place_buffers": len(in_place.memory.buffers),
        "seconds": round(plan.seconds, 4),
    }
    return found | ({"touched": touched(name, model, inputs, peers)} if peers else {})


def tiles(program: Program) -> dict[str, HostKernel]:
    """The program's kernels, lowered but not compiled."""
    target = host_target()
    lowered = {k.name: lower_kernel(k, program.facts, target) for k in program.kernels}
    return {name: HostKernel(name, low.tile, low.work_per_task) for name, low in lowered.items()}


def touched(name: str, model: torch.nn.Module, inputs: Sequence[torch.Tensor], peers: Sequence[str]) -> dict[str, Any]:
    """By contender the bytes that a call touches, or why it has none; versions of the peers."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="dlc-arena-") as temporary:
        folder = Path(temporary)
        np.savez(folder / "inputs.npz", **{str(i): t.numpy() for i, t in enumerate(inputs)})
        with torch.no_grad():
            dlc.compile(model, tuple(inputs), threads=1).save(folder / "model.dlc")
        files = {"dlc": (folder / "model.dlc", ""), "inductor": (Path("-"), "")}
        for kind in ("dlc", *peers):
            path, absent = files.get(kind) or peers_file(name, model, inputs)
            found[kind] = absent or one(kind, name, path, folder / "inputs.npz")
            print(f"{name}: {kind} {found[kind]}", flush=True)
    return found | {"versions": {kind: metadata.version(PEERS[kind]) for kind in peers}}


def peers_file(name: str, model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> tuple[Path, str]:
    """The model as ONNX: the file of the suite, or, where that is for other sizes than these, one for these."""
    path, absent = onnx_file(name, default_work())
    if absent:
        return path, absent
    given = onnx.load(path, load_external_data=False).graph.input
    sizes = [[d.dim_value for d in i.type.tensor_type.shape.dim] for i in given]
    if all(size in (0, n) for known, t in zip(sizes, inputs, strict=True) for size, n in zip(known, t.shape, strict=True)):
        return path, ""
    own = path.with_name(f"model-{'x'.join(map(str, MODELS[name]))}.onnx")
    if not own.exists():
        with torch.no_grad():
            torch.onnx.export(model, tuple(inputs), own, dynamo=True, external_data=True, verbose=False)
    return own, ""


def one(kind: str, name: str, path: Path, inputs: Path) -> int | str:
    """A contender's bytes, measured in a process of its own, or its last words."""
    cache = str(default_work() / "inductor")
    environment = {**os.environ, **ENVIRONMENT, "DLC_INPUTS": str(inputs), "TORCHINDUCTOR_CACHE_DIR": cache}
    command = [sys.executable, "-m", "benchmarks.activations", kind, name, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:300]
    return int(done.stdout.strip().splitlines()[-1])


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the plans, and what calls take."""
    lines = ["# The arena, in bytes", "", "`python -m benchmarks.arena --peers onnxruntime,openvino,inductor`; one thread, f32.", ""]
    lines += ["| model | buffers | sum | greedy | packed | in place | in place over packed | alive, in place |"]
    lines += ["|---|--:|--:|--:|--:|--:|--:|--:|"]
    for r in rows:
        cells = (r["buffers"], r["sum"], r["greedy"], r["packed"], r["in_place"])
        share = f"{r['in_place'] / r['packed']:.3f}"
        lines.append(f"| {r['model']} | {' | '.join(f'{c:,}' for c in cells)} | {share} | {r['in_place_bound']:,} |")
    measured = [r for r in rows if "touched" in r]
    if measured:
        kinds = ("dlc", *PEERS)
        lines += ["", "Measured, per call (`benchmarks/activations.py` says how):", ""]
        lines += [f"| model | {' | '.join(kinds)} |", "|---|" + "--:|" * len(kinds)]
        for r in measured:
            values = [r["touched"].get(kind, "") for kind in kinds]
            lines.append(f"| {r['model']} | {' | '.join(f'{v:,}' if isinstance(v, int) else v for v in values)} |")
        versions = measured[0]["touched"]["versions"]
        lines += ["", ", ".join(f"{kind} {version}" for kind, version in versions.items()) + "."]
    return "\n".join(lines) + "\n"


def keep(row: dict[str, Any]) -> None:
    """The row among the others, in the order of `MODELS`, and the page anew; what was measured before stays if it was not now."""
    known = {r["model"]: r for r in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    known[row["model"]] = {**{k: v for k, v in known.get(row["model"], {}).items() if k == "touched"}, **row}
    rows = [known[name] for name in MODELS if name in known]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    RESULTS.with_suffix(".md").write_text(page(rows))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.arena")
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--peers", default="", help=f"of {', '.join(PEERS)}")
    options = parser.parse_args(argv)
    for name in options.names:
        row = measure(name, [p for p in options.peers.split(",") if p])
        print(row, flush=True)
        keep(row)
    return 0


if __name__ == "__main__":
    sys.exit(main())
