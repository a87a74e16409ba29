"""The arena of the models in `tests/models`: greedy by size, packed, and packed with kernels that write in place.

    python -m benchmarks.arena [NAME ...]

The passes decide what lies in the arena, and the kernels' tile programs what may be written over an operand; nothing is compiled.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from dlc.arena_plan import buffer_bytes, heirs_of, plan_arena
from dlc.codegen.host import HostKernel
from dlc.codegen.lower import lower_kernel
from dlc.codegen.target import host_target
from dlc.compiler import run_passes
from dlc.importing import import_any
from dlc.ir.program import Program
from dlc.passes.assume_bounds import assume_bounds
from dlc.runtime import arena
from tests.models.zoo import ZOO

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


def measure(name: str, seconds: float = 1.0) -> dict[str, Any]:
    """Bytes of the arena of a model of the zoo."""
    import torch
    from tests.models.vision import images

    entry = ZOO[name]
    batch, length = MODELS[name]
    with torch.no_grad():
        model = entry.make()
        pictures = entry.family == "vision"
        inputs = (images(batch, length, 0),) if pictures else entry.inputs(batch, length or entry.lengths[0], 0)
        program = run_passes(assume_bounds(import_any(model, inputs, None, None, None, name).program))
    plan = plan_arena(program, seconds)
    in_place = plan_arena(program, seconds, heirs_of(program, tiles(program)))
    buffers = plan.memory.buffers
    sizes = buffer_bytes(plan.memory, plan.symbols)
    return {
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


def tiles(program: Program) -> dict[str, HostKernel]:
    """The program's kernels, lowered but not compiled."""
    target = host_target()
    lowered = {k.name: lower_kernel(k, program.facts, target) for k in program.kernels}
    return {name: HostKernel(name, low.tile, low.work_per_task) for name, low in lowered.items()}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.arena")
    parser.add_argument("names", nargs="*", default=list(MODELS))
    for name in parser.parse_args(argv).names:
        print(measure(name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
