"""Run a tile program with whole registers and as a warp of 32 threads, first and last thread first, and compare the bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlc.codegen import tile_interp, warp_interp
from dlc.codegen.gpu_targets import GPU_TARGETS
from dlc.codegen.ptx import lower_for_warps
from dlc.codegen.tile import TileProgram
from dlc.codegen.tile_parse import parse
from dlc.codegen.warp import distribute
from dlc.compiler import run_passes
from dlc.ir.extent import evaluate
from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.passes.default import default_pipeline

Array = Any
SM_80 = GPU_TARGETS["sm_80"]


def passed(source: str | Program) -> Program:
    """The program after the passes for a warp's registers."""
    program = parse_program(source) if isinstance(source, str) else source
    return run_passes(program, default_pipeline(SM_80.lanes, SM_80.vector_registers))


def tiles(source: str | Program) -> list[TileProgram]:
    """The tile programs of a model's kernels for a warp."""
    after = passed(source)
    return [lower_for_warps(k, after.facts, SM_80) for k in after.kernels]


def memory(program: TileProgram, symbols: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Buffers of the program's sizes, integers small enough to be indices."""
    rng = np.random.default_rng(seed)
    made: dict[str, Array] = {}
    for b in program.buffers:
        if b.given:
            size = evaluate(b.size, {"#" + n: v for n, v in symbols.items()})
            value: Array = rng.standard_normal(size) if b.dtype.is_float else rng.integers(0, 2 if b.dtype.bits == 1 else 4, size)
            made[b.name] = value.astype(b.dtype.numpy)
    return made


def compare(
    program: TileProgram, symbols: Mapping[str, int] | None = None, buffers: Mapping[str, Array] | None = None
) -> dict[str, Array]:
    """The buffers after the program, the same bits (NaN is NaN) whichever way it is run."""
    symbols = symbols or {}
    start = dict(buffers) if buffers is not None else memory(program, symbols)
    thread = distribute(program)
    assert parse(str(thread)) == thread, "the text form reads back"
    want = {k: v.copy() for k, v in start.items()}
    failed = tile_interp.run(program, want, symbols)
    for backwards in (False, True):
        got = {k: v.copy() for k, v in start.items()}
        assert warp_interp.run(thread, got, symbols, backwards=backwards) == failed
        for name in want:
            same(got[name], want[name], f"{name}, backwards: {backwards}\n{thread}")
    return want


def same(got: Array, want: Array, what: str) -> None:
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want, what)
        return
    g, w = got.astype(np.float64), want.astype(np.float64)
    equal = (g == w) & (np.signbit(g) == np.signbit(w)) | (np.isnan(g) & np.isnan(w))
    assert equal.all(), (what, np.flatnonzero(~equal)[:5], g[~equal][:5], w[~equal][:5])
