"""Small hand-written models for the runtime's tests: MLIR text compiled by the code generator's own back end."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import numpy as np
import pytest

# for i in [lo, hi): t[i] = x[i] * 2          args: x, t
DOUBLE = """
func.func @k_double(%args: !llvm.ptr, %lo: i64, %hi: i64, %thread: i64) {
  %x = llvm.load %args : !llvm.ptr -> !llvm.ptr
  %a1 = llvm.getelementptr %args[8] : (!llvm.ptr) -> !llvm.ptr, i8
  %t = llvm.load %a1 : !llvm.ptr -> !llvm.ptr
  %one = arith.constant 1 : i64
  %two = arith.constant 2.0 : f32
  scf.for %i = %lo to %hi step %one : i64 {
    %p = llvm.getelementptr %x[%i] : (!llvm.ptr, i64) -> !llvm.ptr, f32
    %v = llvm.load %p : !llvm.ptr -> f32
    %w = arith.mulf %v, %two : f32
    %q = llvm.getelementptr %t[%i] : (!llvm.ptr, i64) -> !llvm.ptr, f32
    llvm.store %w, %q : f32, !llvm.ptr
  }
  return
}
"""

# for r in [lo, hi): for j < s: y[r, j] = t[r, j] + w[j]     args: t, y, w, s
BIAS = """
func.func @k_bias(%args: !llvm.ptr, %lo: i64, %hi: i64, %thread: i64) {
  %t = llvm.load %args : !llvm.ptr -> !llvm.ptr
  %a1 = llvm.getelementptr %args[8] : (!llvm.ptr) -> !llvm.ptr, i8
  %y = llvm.load %a1 : !llvm.ptr -> !llvm.ptr
  %a2 = llvm.getelementptr %args[16] : (!llvm.ptr) -> !llvm.ptr, i8
  %w = llvm.load %a2 : !llvm.ptr -> !llvm.ptr
  %a3 = llvm.getelementptr %args[24] : (!llvm.ptr) -> !llvm.ptr, i8
  %s = llvm.load %a3 : !llvm.ptr -> i64
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  scf.for %r = %lo to %hi step %one : i64 {
    %row = arith.muli %r, %s : i64
    scf.for %j = %zero to %s step %one : i64 {
      %i = arith.addi %row, %j : i64
      %p = llvm.getelementptr %t[%i] : (!llvm.ptr, i64) -> !llvm.ptr, f32
      %v = llvm.load %p : !llvm.ptr -> f32
      %wp = llvm.getelementptr %w[%j] : (!llvm.ptr, i64) -> !llvm.ptr, f32
      %b = llvm.load %wp : !llvm.ptr -> f32
      %sum = arith.addf %v, %b : f32
      %q = llvm.getelementptr %y[%i] : (!llvm.ptr, i64) -> !llvm.ptr, f32
      llvm.store %sum, %q : f32, !llvm.ptr
    }
  }
  return
}
"""

# frame: 16 x, 17 y, 18 b, 19 s, 20 arena buffer t
ENTRY = """
llvm.func @k_double(!llvm.ptr, i64, i64, i64)
llvm.func @k_bias(!llvm.ptr, i64, i64, i64)
llvm.func @dlc_main(%f: !llvm.ptr) -> i64 {
  %zero = llvm.mlir.constant(0 : i64) : i64
  %one = llvm.mlir.constant(1 : i64) : i64
  %two = llvm.mlir.constant(2 : i64) : i64
  %fp = llvm.getelementptr %f[1] : (!llvm.ptr) -> !llvm.ptr, i64
  %for = llvm.load %fp : !llvm.ptr -> !llvm.ptr
  %pp = llvm.getelementptr %f[2] : (!llvm.ptr) -> !llvm.ptr, i64
  %pool = llvm.load %pp : !llvm.ptr -> !llvm.ptr
  %cp = llvm.getelementptr %f[4] : (!llvm.ptr) -> !llvm.ptr, i64
  %const = llvm.load %cp : !llvm.ptr -> i64
  %rp = llvm.getelementptr %f[9] : (!llvm.ptr) -> !llvm.ptr, i64
  %prof = llvm.load %rp : !llvm.ptr -> !llvm.ptr
  %null = llvm.mlir.zero : !llvm.ptr
  %off = llvm.icmp "eq" %prof, %null : !llvm.ptr
  %xp = llvm.getelementptr %f[16] : (!llvm.ptr) -> !llvm.ptr, i64
  %x = llvm.load %xp : !llvm.ptr -> i64
  %yp = llvm.getelementptr %f[17] : (!llvm.ptr) -> !llvm.ptr, i64
  %y = llvm.load %yp : !llvm.ptr -> i64
  %bp = llvm.getelementptr %f[18] : (!llvm.ptr) -> !llvm.ptr, i64
  %b = llvm.load %bp : !llvm.ptr -> i64
  %sp = llvm.getelementptr %f[19] : (!llvm.ptr) -> !llvm.ptr, i64
  %s = llvm.load %sp : !llvm.ptr -> i64
  %tp = llvm.getelementptr %f[20] : (!llvm.ptr) -> !llvm.ptr, i64
  %t = llvm.load %tp : !llvm.ptr -> i64
  %four = llvm.mlir.constant(4 : i64) : i64
  %args = llvm.alloca %four x i64 : (i64) -> !llvm.ptr
  %a1 = llvm.getelementptr %args[1] : (!llvm.ptr) -> !llvm.ptr, i64
  %a2 = llvm.getelementptr %args[2] : (!llvm.ptr) -> !llvm.ptr, i64
  %a3 = llvm.getelementptr %args[3] : (!llvm.ptr) -> !llvm.ptr, i64
  %n = llvm.mul %b, %s : i64
  %k1 = llvm.mlir.addressof @k_double : !llvm.ptr
  %k2 = llvm.mlir.addressof @k_bias : !llvm.ptr
  %grain = llvm.mlir.constant(16 : i64) : i64
  llvm.store %x, %args : i64, !llvm.ptr
  llvm.store %t, %a1 : i64, !llvm.ptr
  %c0 = llvm.call_intrinsic "llvm.readcyclecounter"() : () -> i64
  llvm.call %for(%pool, %k1, %args, %n, %grain) : !llvm.ptr, (!llvm.ptr, !llvm.ptr, !llvm.ptr, i64, i64) -> ()
  %c1 = llvm.call_intrinsic "llvm.readcyclecounter"() : () -> i64
  llvm.store %t, %args : i64, !llvm.ptr
  llvm.store %y, %a1 : i64, !llvm.ptr
  llvm.store %const, %a2 : i64, !llvm.ptr
  llvm.store %s, %a3 : i64, !llvm.ptr
  llvm.call %for(%pool, %k2, %args, %b, %one) : !llvm.ptr, (!llvm.ptr, !llvm.ptr, !llvm.ptr, i64, i64) -> ()
  %c2 = llvm.call_intrinsic "llvm.readcyclecounter"() : () -> i64
  llvm.cond_br %off, ^done, ^profile
^profile:
  llvm.store %c0, %prof : i64, !llvm.ptr
  %p1 = llvm.getelementptr %prof[1] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %c1, %p1 : i64, !llvm.ptr
  %p2 = llvm.getelementptr %prof[2] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %c1, %p2 : i64, !llvm.ptr
  %p3 = llvm.getelementptr %prof[3] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %c2, %p3 : i64, !llvm.ptr
  llvm.br ^done
^done:
  llvm.return %zero : i64
}
"""

# Keeps the elements of x: i32[n] that are not 0, fails on a negative one.
# frame: 16 x, 17 y (dynamic), 18 n, 19 m (dynamic)
NONZERO = """
llvm.func @dlc_main(%f: !llvm.ptr) -> i64 {
  %zero = llvm.mlir.constant(0 : i64) : i64
  %one = llvm.mlir.constant(1 : i64) : i64
  %four = llvm.mlir.constant(4 : i64) : i64
  %zero32 = llvm.mlir.constant(0 : i32) : i32
  %xp = llvm.getelementptr %f[16] : (!llvm.ptr) -> !llvm.ptr, i64
  %x = llvm.load %xp : !llvm.ptr -> !llvm.ptr
  %np = llvm.getelementptr %f[18] : (!llvm.ptr) -> !llvm.ptr, i64
  %n = llvm.load %np : !llvm.ptr -> i64
  %mp = llvm.getelementptr %f[10] : (!llvm.ptr) -> !llvm.ptr, i64
  %malloc = llvm.load %mp : !llvm.ptr -> !llvm.ptr
  %bytes = llvm.mul %n, %four : i64
  %y = llvm.call %malloc(%bytes) : !llvm.ptr, (i64) -> !llvm.ptr
  %yp = llvm.getelementptr %f[17] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %y, %yp : !llvm.ptr, !llvm.ptr
  %tmp = llvm.call %malloc(%four) : !llvm.ptr, (i64) -> !llvm.ptr
  %dp = llvm.getelementptr %f[20] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %tmp, %dp : !llvm.ptr, !llvm.ptr
  llvm.br ^loop(%zero, %zero : i64, i64)
^loop(%i: i64, %m: i64):
  %more = llvm.icmp "slt" %i, %n : i64
  llvm.cond_br %more, ^body, ^end
^body:
  %p = llvm.getelementptr %x[%i] : (!llvm.ptr, i64) -> !llvm.ptr, i32
  %v = llvm.load %p : !llvm.ptr -> i32
  %i1 = llvm.add %i, %one : i64
  %neg = llvm.icmp "slt" %v, %zero32 : i32
  llvm.cond_br %neg, ^fail, ^test
^test:
  %isz = llvm.icmp "eq" %v, %zero32 : i32
  llvm.cond_br %isz, ^loop(%i1, %m : i64, i64), ^keep
^keep:
  %q = llvm.getelementptr %y[%m] : (!llvm.ptr, i64) -> !llvm.ptr, i32
  llvm.store %v, %q : i32, !llvm.ptr
  %m1 = llvm.add %m, %one : i64
  llvm.br ^loop(%i1, %m1 : i64, i64)
^fail:
  %ep = llvm.getelementptr %f[8] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %one, %ep : i64, !llvm.ptr
  llvm.return %zero : i64
^end:
  %sp = llvm.getelementptr %f[19] : (!llvm.ptr) -> !llvm.ptr, i64
  llvm.store %m, %sp : i64, !llvm.ptr
  llvm.return %zero : i64
}
"""

# adds 1 to each element of i64[n] where it lies.  frame: 16 x, 17 y, 18 n
INCREMENT = """
llvm.func @dlc_main(%f: !llvm.ptr) -> i64 {
  %zero = llvm.mlir.constant(0 : i64) : i64
  %one = llvm.mlir.constant(1 : i64) : i64
  %yp = llvm.getelementptr %f[17] : (!llvm.ptr) -> !llvm.ptr, i64
  %y = llvm.load %yp : !llvm.ptr -> !llvm.ptr
  %np = llvm.getelementptr %f[18] : (!llvm.ptr) -> !llvm.ptr, i64
  %n = llvm.load %np : !llvm.ptr -> i64
  llvm.br ^loop(%zero : i64)
^loop(%i: i64):
  %more = llvm.icmp "slt" %i, %n : i64
  llvm.cond_br %more, ^body, ^end
^body:
  %p = llvm.getelementptr %y[%i] : (!llvm.ptr, i64) -> !llvm.ptr, i64
  %v = llvm.load %p : !llvm.ptr -> i64
  %w = llvm.add %v, %one : i64
  llvm.store %w, %p : i64, !llvm.ptr
  %i1 = llvm.add %i, %one : i64
  llvm.br ^loop(%i1 : i64)
^end:
  llvm.return %zero : i64
}
"""

# burns time: kernel spins `n` million times.  frame: 16 n (i64), 17 y (i64)
SPIN_KERNEL = """
func.func @k_spin(%args: !llvm.ptr, %lo: i64, %hi: i64, %thread: i64) {
  %n = llvm.load %args : !llvm.ptr -> i64
  %zero = arith.constant 0 : i64
  %one = arith.constant 1 : i64
  %million = arith.constant 1000000 : i64
  %m = arith.muli %n, %million : i64
  scf.for %i = %zero to %m step %one : i64 {
    llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()
  }
  return
}
"""
SPIN = """
llvm.func @k_spin(!llvm.ptr, i64, i64, i64)
llvm.func @dlc_main(%f: !llvm.ptr) -> i64 {
  %zero = llvm.mlir.constant(0 : i64) : i64
  %one = llvm.mlir.constant(1 : i64) : i64
  %two = llvm.mlir.constant(2 : i64) : i64
  %fp = llvm.getelementptr %f[1] : (!llvm.ptr) -> !llvm.ptr, i64
  %for = llvm.load %fp : !llvm.ptr -> !llvm.ptr
  %pp = llvm.getelementptr %f[2] : (!llvm.ptr) -> !llvm.ptr, i64
  %pool = llvm.load %pp : !llvm.ptr -> !llvm.ptr
  %xp = llvm.getelementptr %f[16] : (!llvm.ptr) -> !llvm.ptr, i64
  %x = llvm.load %xp : !llvm.ptr -> !llvm.ptr
  %yp = llvm.getelementptr %f[17] : (!llvm.ptr) -> !llvm.ptr, i64
  %y = llvm.load %yp : !llvm.ptr -> !llvm.ptr
  %k = llvm.mlir.addressof @k_spin : !llvm.ptr
  llvm.call %for(%pool, %k, %x, %two, %one) : !llvm.ptr, (!llvm.ptr, !llvm.ptr, !llvm.ptr, i64, i64) -> ()
  %v = llvm.load %x : !llvm.ptr -> i64
  llvm.store %v, %y : i64, !llvm.ptr
  llvm.return %zero : i64
}
"""


@functools.cache
def code(text: str) -> bytes:
    from dlc.codegen.native import compile_mlir
    from dlc.codegen.target import parse_target

    return compile_mlir(text, parse_target("baseline")).object


@functools.cache
def pool_code() -> bytes:
    from dlc.codegen.pool import pool_mlir

    return code(pool_mlir())


WEIGHTS = np.arange(64, dtype=np.float32) / 8


def bias_model() -> tuple[dict, dict[str, bytes], np.ndarray]:
    """y[b, s] = 2 * x[b, s] + w[s], over two kernels, an arena buffer and constants."""
    manifest = {
        "format": 1,
        "abi": 1,
        "producer": "test",
        "target": {"isa": "x86-64", "features": ["sse2", "avx"]},
        "entry": {"object": "main", "symbol": "dlc_main"},
        "pool": "pool",
        "symbols": [
            {"name": "b", "lo": 0, "hi": 4096, "inputs": [[0, 0]]},
            {"name": "s", "lo": 1, "hi": 64, "inputs": [[0, 1]]},
        ],
        "inputs": [{"name": "x", "dtype": "f32", "shape": ["b", "s"]}],
        "outputs": [{"name": "y", "dtype": "f32", "shape": ["b", "s"]}],
        "buffers": [{"name": "t", "bytes": "4 * b * s", "first": 0, "last": 1}],
        "kernels": [
            {"name": "double", "symbol": "k_double", "object": "k1", "flops": "b*s", "bytes": "8*b*s", "loc": "m.py:1"},
            {"name": "bias", "symbol": "k_bias", "object": "k2", "flops": "b*s", "bytes": "8*b*s", "loc": "m.py:2"},
        ],
        "checks": [],
        "arg_names": ["x"],
        "frame": {"inputs": 16, "outputs": 17, "symbols": 18, "buffers": 20, "dynamic": 21, "size": 21},
    }
    objects = {"main": code(ENTRY), "k1": code(DOUBLE), "k2": code(BIAS), "pool": pool_code()}
    return manifest, objects, WEIGHTS.view(np.uint8)


def nonzero_model() -> tuple[dict, dict[str, bytes], bytes]:
    """y[m] = the elements of x[n] that are not 0; a check fails on negative ones."""
    manifest = {
        "format": 1,
        "abi": 1,
        "entry": {"object": "main", "symbol": "dlc_main"},
        "symbols": [{"name": "n", "lo": 0, "hi": None}, {"name": "m", "lo": 0, "hi": None, "dynamic": True}],
        "inputs": [{"name": "x", "dtype": "i32", "shape": ["n"]}],
        "outputs": [{"name": "y", "dtype": "i32", "shape": ["m"], "dynamic": True}],
        "dynamic": [{"name": "tmp"}],
        "checks": [{"code": "DLC0542", "message": "an element is negative", "loc": "model.py:7"}],
        "frame": {"inputs": 16, "outputs": 17, "symbols": 18, "buffers": 20, "dynamic": 20, "size": 21},
    }
    return manifest, {"main": code(NONZERO)}, b""


def increment_model(*, donate: bool) -> tuple[dict, dict[str, bytes], bytes]:
    """y[n] = x[n] + 1, in place if donated."""
    manifest = {
        "format": 1,
        "abi": 1,
        "entry": {"object": "main", "symbol": "dlc_main"},
        "symbols": [{"name": "n", "lo": 0, "hi": None}],
        "inputs": [{"name": "x", "dtype": "i64", "shape": ["n"], "donate": donate}],
        "outputs": [{"name": "y", "dtype": "i64", "shape": ["n"], "alias": ["input", 0]}],
        "frame": {"inputs": 16, "outputs": 17, "symbols": 18, "buffers": 19, "dynamic": 19, "size": 19},
    }
    return manifest, {"main": code(INCREMENT)}, b""


def spin_model() -> tuple[dict, dict[str, bytes], bytes]:
    """Spins for n million pauses on two tasks, and returns n."""
    manifest = {
        "format": 1,
        "abi": 1,
        "entry": {"object": "main", "symbol": "dlc_main"},
        "pool": "pool",
        "inputs": [{"name": "n", "dtype": "i64", "shape": []}],
        "outputs": [{"name": "y", "dtype": "i64", "shape": []}],
        "frame": {"inputs": 16, "outputs": 17, "symbols": 18, "buffers": 18, "dynamic": 18, "size": 18},
    }
    return manifest, {"main": code(SPIN), "k": code(SPIN_KERNEL), "pool": pool_code()}, b""


@pytest.fixture(scope="session")
def models() -> SimpleNamespace:
    return SimpleNamespace(
        bias=bias_model,
        nonzero=nonzero_model,
        increment=increment_model,
        spin=spin_model,
        weights=WEIGHTS,
        entry=ENTRY,
        code=code,
        pool_code=pool_code,
    )
