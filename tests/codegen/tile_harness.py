"""Run a tile program natively, with canaries around every buffer, and compare it with the interpreter."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc.codegen import tile, tile_interp
from dlc.codegen.native import compile_mlir
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target, host_flags
from dlc.codegen.tile import TileProgram
from dlc.codegen.tile_parse import parse
from dlc.codegen.tile_to_mlir import lower
from dlc.ir.extent import evaluate

sys.path.insert(0, str(Path(__file__).parent))
from native_loader import load

TARGETS = [AVX512, AVX2, BASELINE]
GUARD = 256  # bytes


@lru_cache(maxsize=256)
def _symbol(text: str, name: str, target: Target) -> int:
    return load(compile_mlir(text, target).object)[name]


def native(
    program: TileProgram, buffers: dict[str, np.ndarray], symbols: dict[str, int], target: Target, threads: int = 2
) -> list[str]:
    """Execute natively, tasks split over `threads` thread ids one after the other; returns the failed check, if any."""
    if not host_flags().issuperset(target.features):
        pytest.skip("the host lacks this level")
    address = _symbol(lower(program, target), program.name, target)
    env = {("#" + k.lstrip("#")): v for k, v in symbols.items()}
    guarded: dict[str, np.ndarray] = {}
    error = np.zeros(1, np.int64)
    stride = int(evaluate(tile.scratch_offsets(program)[1], env))
    scratch = np.full(stride * threads + 2 * GUARD, 0xFF, np.uint8)
    words: list[int] = []
    checks = tile.check_ids(program)
    for word in tile.arg_words(program):
        match word.kind:
            case "buffer":
                array = buffers[word.name]
                twin = next((name for name in guarded if buffers[name] is array), None)  # one array given twice is one place
                block = np.full(array.nbytes + 2 * GUARD, 0x5A, np.uint8) if twin is None else guarded[twin]
                block[GUARD : GUARD + array.nbytes] = array.reshape(-1).view(np.uint8)
                guarded[word.name] = block
                words.append(block.ctypes.data + GUARD)
            case "symbol":
                words.append(env[word.name])
            case "scratch_base":
                words.append(scratch.ctypes.data + GUARD)
            case "scratch_stride":
                words.append(stride)
            case "error":
                words.append(error.ctypes.data)
            case "check":
                words.append(1 + checks.index(word.name))
    args = np.array(words, np.int64)
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(address)
    count = int(evaluate(program.tasks, env))
    for thread in range(threads):
        kernel(args.ctypes.data, count * thread // threads, count * (thread + 1) // threads, thread)
    for name, block in guarded.items():
        array = buffers[name]
        assert (block[:GUARD] == 0x5A).all() and (block[GUARD + array.nbytes :] == 0x5A).all(), f"wrote outside {name}"
        array.reshape(-1).view(np.uint8)[:] = block[GUARD : GUARD + array.nbytes]
    assert (scratch[:GUARD] == 0xFF).all() and (scratch[GUARD + stride * threads :] == 0xFF).all()
    return [checks[int(error[0]) - 1]] if error[0] else []


def compare(
    program: TileProgram,
    buffers: dict[str, np.ndarray],
    symbols: dict[str, int] | None = None,
    *,
    targets: list[Target] | None = None,
    exact: bool = True,
    rtol: float = 1e-6,
) -> dict[str, np.ndarray]:
    """Interpret, run on every level, and compare; returns the interpreter's buffers. Also checks the round trip."""
    assert parse(str(program)) == program
    want = {k: v.copy() for k, v in buffers.items()}
    failed = tile_interp.run(program, want, symbols)
    for target in targets or TARGETS:
        got = {k: v.copy() for k, v in buffers.items()}
        assert native(program, got, symbols or {}, target) == failed[:1]
        for name in buffers:
            same(got[name], want[name], f"{name} on {target}", exact, rtol)
    return want


def same(got: np.ndarray, want: np.ndarray, what: str, exact: bool, rtol: float) -> None:
    kind: Any = want.dtype.kind
    if kind not in "fV":
        np.testing.assert_array_equal(got, want, what)
        return
    got, want = got.astype(np.float64), want.astype(np.float64)
    if exact:
        equal = (got == want) & (np.signbit(got) == np.signbit(want)) | (np.isnan(got) & np.isnan(want))
        where = np.flatnonzero(~equal)[:5]
        assert equal.all(), (what, where, got.reshape(-1)[where], want.reshape(-1)[where])
    else:
        np.testing.assert_allclose(got, want, rtol=rtol, atol=0, err_msg=what)
