"""MLIR to objects: instruction sets are honoured, contraction is explicit, threads may compile at once."""

from __future__ import annotations

import ctypes
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.native import InvalidMlir, compile_mlir
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target, UnknownTarget, host_flags, host_target, parse_target

sys.path.insert(0, str(Path(__file__).parent))
from native_loader import load, undefined_symbols


def axpy(lanes: int, op: str = "%w = vector.fma %v, %v, %acc") -> str:
    vector = f"vector<{lanes}xf32>"
    return f"""
llvm.func @k(%args: !llvm.ptr, %lo: i64, %hi: i64, %thread: i64) {{
  %c1 = arith.constant {lanes} : i64
  %zero = arith.constant dense<0.0> : {vector}
  %p = llvm.load %args : !llvm.ptr -> !llvm.ptr
  %a1 = llvm.getelementptr %args[1] : (!llvm.ptr) -> !llvm.ptr, i64
  %q = llvm.load %a1 : !llvm.ptr -> !llvm.ptr
  %r = scf.for %i = %lo to %hi step %c1 iter_args(%acc = %zero) -> ({vector}) : i64 {{
    %a = llvm.getelementptr %p[%i] : (!llvm.ptr, i64) -> !llvm.ptr, f32
    %v = llvm.load %a {{alignment = 4 : i64}} : !llvm.ptr -> {vector}
    {op} : {vector}
    scf.yield %w : {vector}
  }}
  llvm.store %r, %q {{alignment = 4 : i64}} : {vector}, !llvm.ptr
  llvm.return
}}"""


@pytest.mark.parametrize(
    ("target", "allowed"), [(AVX512, "xyz"), (AVX2, "xy"), (BASELINE, "x")], ids=str
)
@pytest.mark.parametrize("lanes", [4, 8, 16, 32])
def test_only_the_targets_registers_appear(target: Target, allowed: str, lanes: int) -> None:
    asm = compile_mlir(axpy(lanes), target, want_asm=True).asm
    assert asm is not None
    used = set(re.findall(r"%([xyz])mm\d", asm))
    assert used <= set(allowed)
    if lanes >= target.lanes:
        assert max(used) == max(allowed)  # and the full width is used
    assert ("vfmadd" in asm) == target.has_fma
    assert undefined_symbols(compile_mlir(axpy(lanes), target).object) == []


def test_no_512_bit_instructions_without_avx512_even_when_vectors_are_wide() -> None:
    asm = compile_mlir(axpy(64), AVX2, want_asm=True).asm or ""
    assert "zmm" not in asm and "%k" not in asm.replace("%k:", "")


@pytest.mark.parametrize("target", [AVX512, AVX2], ids=str)
def test_contraction_is_explicit_only(target: Target) -> None:
    separate = axpy(target.lanes, "%m = arith.mulf %v, %v : vector<%xf32>\n    %w = arith.addf %m, %acc")
    asm = compile_mlir(separate.replace("%x", f"{target.lanes}x"), target, want_asm=True).asm or ""
    assert "vfmadd" not in asm and "vmulps" in asm


@pytest.mark.parametrize("target", [AVX512, AVX2, BASELINE], ids=str)
def test_code_runs(target: Target) -> None:
    if not host_flags().issuperset(target.features):
        pytest.skip("the host lacks this level")
    symbols = load(compile_mlir(axpy(target.lanes), target).object)
    x = np.arange(64, dtype=np.float32)
    out = np.zeros(target.lanes, np.float32)
    words = np.array([x.ctypes.data, out.ctypes.data], np.int64)
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(symbols["k"])
    kernel(words.ctypes.data, 0, 64, 0)
    np.testing.assert_array_equal(out, (x * x).reshape(-1, target.lanes).sum(0))


def test_compiles_in_threads_with_the_same_bytes() -> None:
    texts = [axpy(lanes) for lanes in (4, 8, 16, 32)] * 4
    alone = {text: compile_mlir(text, AVX512).object for text in set(texts)}
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda text: compile_mlir(text, AVX512, opt_level=2).object, texts))
    assert together == [alone[text] for text in texts]


def test_bad_mlir_is_reported_with_its_line() -> None:
    with pytest.raises(InvalidMlir, match="arith.nonsense"):
        compile_mlir("llvm.func @k() {\n  arith.nonsense\n  llvm.return\n}", BASELINE)


def test_target_names() -> None:
    assert parse_target("avx2").lanes == 8
    assert parse_target("avx512+avx512_vnni").has("avx512_vnni")
    assert str(parse_target("avx512+avx512_vnni")) == "avx512+avx512_vnni"
    assert parse_target("host") == host_target()
    with pytest.raises(UnknownTarget):
        parse_target("sparc")
