"""Kernels of a program as PTX for NVIDIA GPUs, compiled and assembled but not run.

The lanes of a register are a warp's threads (`codegen/warp.py`), a task is a block of one warp. `ptxas`, where it is on PATH, says
whether it takes the PTX, how many registers a thread needs and what it spills.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dlc.codegen import warp_to_mlir
from dlc.codegen.build import kernel_symbol
from dlc.codegen.gpu_targets import MATRIX_UNIT
from dlc.codegen.layout_inference import LayoutConflict, SplitElement
from dlc.codegen.library import library_kernels
from dlc.codegen.lower import lower_kernel
from dlc.codegen.native import ptx_of
from dlc.codegen.target import Target
from dlc.codegen.tile import TileProgram
from dlc.codegen.warp import distribute
from dlc.codegen.warp_staging import staged
from dlc.errors import Internal
from dlc.ir.facts import SymbolFact
from dlc.ir.layout import LayoutMismatch
from dlc.ir.program import Kernel, Library, Program, tensor_types, walk_statements


class PtxRejected(Internal):
    """`ptxas` does not take generated PTX: a fault of the compiler, not of the model."""

    code = "DLC0471"
    template = "ptxas rejects kernel '{name}': {reason}"


@dataclass(frozen=True, slots=True)
class Usage:
    """What `ptxas -v` says of a kernel, per thread."""

    registers: int
    spilled_stores: int
    spilled_loads: int


@dataclass(frozen=True, slots=True)
class PtxKernel:
    """A kernel of the program.

    Attributes:
        name: the program's name of it; `entry` is that of the function.
        whole, thread: the tile program of a task, and of one of its 32 threads.
        usage: None where there is no `ptxas`.
    """

    name: str
    entry: str
    whole: TileProgram
    thread: TileProgram
    mlir: str
    ptx: str
    usage: Usage | None


def ptx_kernels(program: Program, target: Target) -> list[PtxKernel]:
    """Each distinct kernel that the program launches.

    Raises:
        NotForWarps: a kernel does what has no GPU code.
        PtxRejected: `ptxas` is there and refuses the PTX.
    """
    named = [(k.name, lower_for_warps(k, program.facts, target)) for k in program.kernels]
    types = tensor_types(program)
    for stmt in walk_statements(program.body):
        if isinstance(stmt, Library):
            named += [(stmt.op, part.tile) for part in library_kernels(stmt, types)]
    made: dict[str, PtxKernel] = {}
    for name, tile in named:
        entry = kernel_symbol(tile, target)
        if entry not in made:
            made[entry] = ptx_kernel(name, tile, target)
    return list(made.values())


def lower_for_warps(kernel: Kernel, facts: Mapping[str, SymbolFact], target: Target) -> TileProgram:
    """The tile program of a kernel, scattered loads staged; without products of matrices where what follows them cannot lie as
    their instruction has it.
    """
    try:
        return staged(lower_kernel(kernel, facts, target).tile)
    except (LayoutConflict, LayoutMismatch, SplitElement):
        features = tuple(f for f in target.features if f != MATRIX_UNIT)
        return staged(lower_kernel(kernel, facts, replace(target, features=features)).tile)


def ptx_kernel(name: str, tile: TileProgram, target: Target) -> PtxKernel:
    """One tile program as PTX."""
    entry = kernel_symbol(tile, target)
    thread = distribute(tile)
    mlir = warp_to_mlir.lower(thread, target, entry)
    ptx = ptx_of(mlir)
    return PtxKernel(name, entry, tile, thread, mlir, ptx, assemble(name, ptx, target))


def assemble(name: str, ptx: str, target: Target) -> Usage | None:
    """What `ptxas` says of the PTX; None where it is not on PATH."""
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [ptxas, "-v", f"-arch={target.cpu}", "-o", str(source.with_suffix(".cubin")), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PtxRejected(name=name, reason=(done.stderr or done.stdout).strip().replace(str(source), "kernel.ptx"))
    said = done.stderr + done.stdout

    def number(pattern: str) -> int:
        found = re.search(pattern, said)
        return int(found.group(1)) if found else 0

    return Usage(number(r"Used (\d+) registers"), number(r"(\d+) bytes spill stores"), number(r"(\d+) bytes spill loads"))
