"""Tile programs: memory access, control flow, reductions, checks, scratch; the verifier; the text form."""

from __future__ import annotations

import ctypes
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.codegen import tile, tile_interp
from dlc.codegen.native import compile_mlir
from dlc.codegen.target import AVX512, BASELINE, Target, host_flags
from dlc.codegen.tile import Buffer, IndexCond, TileProgram, TileType
from dlc.codegen.tile_build import Builder
from dlc.codegen.tile_parse import TileSyntax, parse
from dlc.codegen.tile_to_mlir import lower
from dlc.codegen.tile_verify import InvalidTile, verify
from dlc.ir.dtype import BF16, BOOL, DTYPES, F16, F32, F64, I8, I32, I64, U8, DType
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, sym, var
from dlc.ir.loc import Loc

sys.path.insert(0, str(Path(__file__).parent))
from native_loader import load
from tile_harness import TARGETS, compare

T = var("t")
V16 = TileType(F32, (), 16)


def program(
    b: Builder, roles: dict[str, tuple[str, int | IntExpr]], tasks: int | IntExpr = 1, symbols: tuple[str, ...] = ()
) -> TileProgram:
    buffers = tuple(Buffer(n, b.buffers[n], role, int_expr(size)) for n, (role, size) in roles.items())
    return TileProgram("k", buffers, symbols, int_expr(tasks), "t", b.body(), Loc("model.py:3"))


def data(dtype: DType, size: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype == BOOL:
        return rng.integers(0, 2, size).astype(bool)
    if dtype.is_int:
        return rng.integers(max(dtype.lowest, -1000), min(dtype.highest, 1000), size, endpoint=True).astype(dtype.numpy)
    return rng.standard_normal(size).astype(dtype.numpy)


@pytest.mark.parametrize("dtype", [F32, F64, F16, BF16, I8, U8, I32, I64, BOOL], ids=str)
def test_load_and_store_in_every_way(dtype: DType) -> None:
    """Contiguous, broadcast, strided, symbolic stride, masked, gathered; of vectors, grids and scalars."""
    b = Builder({"A": dtype, "R": dtype, "I": I64})
    at = 0

    def put(x: str) -> None:
        nonlocal at
        type_ = b.types[x]
        strides, step = [], type_.lanes
        for n in reversed(type_.slots):
            strides.insert(0, step)
            step *= n
        b.store("R", at, x, tuple(strides))
        at += step

    wide = TileType(dtype, (), 16)
    grid = TileType(dtype, (2, 3), 8)
    m = b.mask(16, sym("n"))
    m8 = b.mask(8, 5)
    pad: float | int | bool = True if dtype == BOOL else 3 if dtype.is_int else 3.5
    put(b.load(wide, "A", 3))
    put(b.load(wide, "A", 5, (), 0))
    put(b.load(wide, "A", 1, (), 3))
    for stride in (-5, -4, -3, -2, -1, 2, 3, 4, 5):  # exactly the elements read are in bounds
        put(b.load(wide, "A", 0 if stride > 0 else 255, (), stride))
        put(b.load(wide, "A", 255 - 15 * stride if stride > 0 else -15 * stride, (), stride))
    put(b.load(TileType(dtype, (), 2), "A", 9, (), 3))
    put(b.load(wide, "A", 1, (), sym("n")))
    put(b.load(wide, "A", 250, mask=m, pad=pad))  # the lanes off lie outside
    put(b.load(wide, "A", 250, (), 1, m, pad))
    put(b.load(wide, "A", 255 - 3 * (sym("n") - 1), (), 3, m, pad))
    put(b.load(wide, "A", 9, (), 0, m, pad))
    put(b.load(wide, "A", 1 << 40, (), 0, b.mask(16, sym("n") - 100), pad))
    put(b.load(grid, "A", 2, (50, 11)))
    put(b.load(grid, "A", 2, (sym("n") * 4, 11), 2, m8, pad))
    put(b.load(TileType(dtype, (4,), 1), "A", 7, (9,)))
    put(b.load(TileType(dtype), "A", 7))
    put(b.load(TileType(dtype), "A", 1 << 40, mask=b.mask(1, sym("n") - 100), pad=pad))
    offsets = b.load(TileType(I64, (), 16), "I", 0)
    put(b.gather("A", offsets))
    put(b.gather("A", b.op("mul", offsets, b.const(I64, 1000)), b.op("eq", offsets, b.const(I64, 0)), pad))
    put(b.gather("A", b.load(TileType(I64), "I", 3)))
    x = b.load(wide, "A", 100)
    b.store("R", at, x, (), 2)
    b.store("R", at + 1, x, (), sym("n") - 4, m)
    b.store("R", at + 64, x, (), 0)
    b.store("R", at + 65, x, (), 1, m)
    b.store("R", at + 90, x, (), 0, m)
    b.store("R", at + 91, b.load(TileType(dtype), "A", 9), mask=b.mask(1, sym("n") - 100))
    b.scatter("R", b.op("add", offsets, b.const(I64, at + 100)), x, m)
    b.scatter("R", b.const(I64, at + 120), b.load(TileType(dtype), "A", 9))
    b.prefetch("A", sym("n"), 2)
    size = at + 140
    p = program(b, {"A": ("in", 256), "R": ("out", size), "I": ("in", 16)}, symbols=("#n",))
    offsets_data = np.array([0, 3, 3, 1, 9, 0, 15, 2, 8, 8, 4, 5, 6, 7, 1, 0], np.int64)
    buffers = {"A": data(dtype, 256), "R": np.zeros(size, dtype.numpy), "I": offsets_data}
    compare(p, buffers, {"n": 6})


@pytest.mark.parametrize("dtype", [F32, F16, I32, U8], ids=str)
@pytest.mark.parametrize("op", ["add", "mul", "min", "max"])
def test_scatter_combines_in_lane_order(dtype: DType, op: str) -> None:
    b = Builder({"A": dtype, "R": dtype, "I": I64})
    x, i = b.load(TileType(dtype, (2,), 8), "A", 0, (8,)), b.load(TileType(I64, (2,), 8), "I", 0, (8,))
    b.scatter("R", i, x, op=op)
    b.scatter("R", i, x, b.mask(8, 3), op)
    p = program(b, {"A": ("in", 16), "R": ("inout", 4), "I": ("in", 16)})
    compare(p, {"A": data(dtype, 16), "R": np.ones(4, dtype.numpy), "I": np.arange(16, dtype=np.int64) * 7 % 4})


REDUCTIONS = [
    (op, t)
    for t in (F32, F64, I32, U8, BOOL)
    for op in tile.REDUCE_OPS
    if isinstance(tile.op_type(op, (TileType(t), TileType(t))), TileType)
]


def test_reduce_lanes_and_slots() -> None:
    types = {f"A_{t}": t for t in {t for _, t in REDUCTIONS}}
    b = Builder({**types, **{f"R{op}_{t}": t for op, t in REDUCTIONS}})
    roles: dict[str, tuple[str, int | IntExpr]] = dict.fromkeys(types, ("in", 128))
    for op, t in REDUCTIONS:
        x = b.load(TileType(t, (2, 3), 16), f"A_{t}", 0, (48, 16))
        r = f"R{op}_{t}"
        roles[r] = ("out", 200)
        b.store(r, 0, b.reduce(op, x), (3, 1))
        b.store(r, 6, b.reduce(op, x, 0), (48, 16))
        b.store(r, 60, b.reduce(op, x, 1), (16, 16))
        b.store(r, 100, b.reduce(op, b.load(TileType(t), f"A_{t}", 3)))
        b.store(r, 101, b.reduce(op, b.reduce(op, b.reduce(op, x), 0), 1), (1, 1))
        b.store(r, 102, b.reduce(op, b.load(TileType(t, (), 2), f"A_{t}", 3)))
    p = program(b, roles)
    buffers = {n: data(b.buffers[n], int(size), 4) for n, (_, size) in roles.items()}  # type: ignore[call-overload]
    compare(p, buffers)


def test_fold_lanes_of_several_registers() -> None:
    types = {f"A_{t}": t for t in {t for _, t in REDUCTIONS}}
    b = Builder({**types, **{f"R{op}_{t}": t for op, t in REDUCTIONS}})
    roles: dict[str, tuple[str, int | IntExpr]] = dict.fromkeys(types, ("in", 128))
    shapes = [(count, lanes) for lanes in (1, 2, 4, 8, 16) for count in (1, 2, 4, 8, 16) if count <= lanes and count * lanes <= 64]
    for op, t in REDUCTIONS:
        r = f"R{op}_{t}"
        roles[r] = ("out", 2 * sum(count for count, _ in shapes))
        at = 0
        for count, lanes in shapes:
            x = b.load(TileType(t, (2, count), lanes), f"A_{t}", 0, (count * lanes, lanes))
            b.store(r, at, b.fold(op, x), (count,))
            at += 2 * count
    p = program(b, roles)
    buffers = {n: data(b.buffers[n], int(size), 4) for n, (_, size) in roles.items()}  # type: ignore[call-overload]
    compare(p, buffers)


def test_a_fold_is_the_reduction_of_each_register() -> None:
    b = Builder({"A": F32, "R": F32, "S": F32})
    x = b.load(TileType(F32, (2, 4), 16), "A", 0, (64, 16))
    b.store("R", 0, b.fold("add", x), (4,))
    b.store("S", 0, b.reduce("add", x), (4, 1))
    out = compare(program(b, {"A": ("in", 128), "R": ("out", 8), "S": ("out", 8)}), {
        "A": data(F32, 128), "R": np.zeros(8, np.float32), "S": np.zeros(8, np.float32),
    })  # fmt: skip
    assert (out["R"] == out["S"]).all()


def test_a_reduction_keeps_nan() -> None:
    b = Builder({"A": F32, "R": F32})
    x = b.load(V16, "A", T * 16)
    b.store("R", T * 2, b.reduce("max", x))
    b.store("R", T * 2 + 1, b.reduce("min", x))
    a = data(F32, 256)
    a.reshape(16, 16)[np.arange(16), np.arange(16)] = np.nan
    out = compare(program(b, {"A": ("in", 256), "R": ("out", 32)}, 16), {"A": a, "R": np.zeros(32, np.float32)})
    assert np.isnan(out["R"]).all()


@pytest.mark.parametrize("n", [0, 1, 7, 16, 33, 64])
@pytest.mark.parametrize("unroll", [1, 3, 8])
def test_loops_with_tails(n: int, unroll: int) -> None:
    """A dynamic bound, carried tiles of two kinds, unrolling with a rest, a masked tail, an inner constant loop."""
    b = Builder({"A": F32, "R": F32, "S": I64})
    zero, count = b.const(V16, 0.0), b.const(I64, 0)
    with b.loop("i", 0, sym("n"), 16, carries=(zero, count), unroll=unroll) as loop:
        x = b.load(V16, "A", loop.index, mask=b.mask(16, sym("n") - loop.index))
        with b.loop("j", 0, 3, 1, carries=(loop.carries[0],), unroll=4) as inner:
            factor = b.from_index(inner.index + loop.index + 1, F32)
            inner.yields(b.op("fma", x, factor, inner.carries[0]))
        loop.yields(inner.results[0], b.op("add", loop.carries[1], b.from_index(loop.index)))
    b.store("R", 0, loop.results[0])
    b.store("S", 0, loop.results[1])
    with b.loop("r", sym("n") - 1, 2 * sym("n"), 2, unroll=unroll) as tail:  # starts at -1 for n = 0
        b.store("S", tail.index + 2, b.from_index(tail.index))
    p = program(
        b, {"A": ("in", sym("n")), "R": ("out", 16), "S": ("out", 2 * sym("n") + 4)}, symbols=("#n",)
    )
    buffers = {"A": data(F32, n), "R": np.zeros(16, np.float32), "S": np.zeros(2 * n + 4, np.int64)}
    compare(p, buffers, {"n": n}, exact=False, rtol=1e-5)


def test_branches() -> None:
    b = Builder({"A": F32, "R": F32})
    x = b.load(TileType(F32), "A", T)
    with b.branch((IndexCond(T, "ge", sym("n")), IndexCond(T % 3, "ne", int_expr(1)))) as br:
        with br.then():
            br.yields(b.op("neg", x), b.const(V16, 1.0))
        with br.orelse():
            br.yields(x, b.const(V16, 2.0))
    b.store("R", T * 32, br.results[0])
    b.store("R", T * 32 + 1, br.results[1])
    with b.branch(b.op("gt", x, b.const(F32, 0.0))) as br2:
        with br2.then():
            b.store("R", T * 32 + 20, x)
    with b.branch(IndexCond(T, "lt", T + 1)) as br3:  # known to hold
        with br3.then():
            br3.yields(b.op("mul", x, x))
        with br3.orelse():
            br3.yields(x)
    b.store("R", T * 32 + 21, br3.results[0])
    p = program(b, {"A": ("in", 12), "R": ("out", 400)}, 12, ("#n",))
    compare(p, {"A": data(F32, 12), "R": np.zeros(400, np.float32)}, {"n": 5})


def test_while_and_index_of() -> None:
    """Collatz lengths, then a gather by a value."""
    b = Builder({"A": I64, "R": I64})
    n = b.load(TileType(I64), "A", T)
    one, two, three, zero = (b.const(I64, c) for c in (1, 2, 3, 0))

    def body(c: tuple[str, ...]) -> tuple[str, ...]:
        odd = b.op("eq", b.op("rem_floor", c[0], two), one)
        grown = b.op("add", b.op("mul", c[0], three), one)
        return b.op("select", odd, grown, b.op("div_floor", c[0], two)), b.op("add", c[1], one)

    _, steps = b.while_((n, zero), lambda c: b.op("gt", c[0], one), body)
    b.store("R", T, steps)
    at = b.index_of(n)
    b.store("R", T + 20, b.load(TileType(I64), "A", at % 7 + (at - 30) // 4 + 8))
    p = program(b, {"A": ("in", 20), "R": ("out", 40)}, 20)
    out = compare(p, {"A": np.arange(1, 21), "R": np.zeros(40, np.int64)})
    assert out["R"][26 - 20] == 16  # 7 takes 16 steps


def test_index_arithmetic_matches_python() -> None:
    """Floor division and modulo of negative numbers, by symbols, min and max, and an extent of zero."""
    b = Builder({"R": I64})
    m, n = sym("m"), sym("n")
    exprs = [
        T // 4, T % 4, (T - 9) // 4, (T - 9) % 4, T // 3, T % 3, (T - 9) // 3, (T - 9) % 3, T // m, T % m,
        (T - 9) // m, (T - 9) % m, minimum(T, m, 7), maximum(T - 3, m), minimum(T * 5, m) // 2, -(T * m) + 3,
        (T * m + 5) // (m + 1), (5 - T) // (-1 - m), T * T * m - 4 * T, (-T) // 8, ((T + 3) // 2 * m) % 5,
    ]  # fmt: skip
    for i, expr in enumerate(exprs):
        b.store("R", T * len(exprs) + i, b.from_index(expr))
    with b.branch(IndexCond(n, "gt", int_expr(0))) as br, br.then():
        b.store("R", 0, b.from_index(T // n))
    p = program(b, {"R": ("out", 20 * len(exprs))}, 20, ("#m", "#n"))
    for m_value in (1, 3, 8):
        compare(p, {"R": np.zeros(20 * len(exprs), np.int64)}, {"m": m_value, "n": 2})


def test_scratch_is_private_to_the_thread() -> None:
    b = Builder({"A": F32, "S": F32, "U": U8, "R": F32})
    with b.loop("i", 0, sym("n"), 1) as up:
        b.store("S", up.index, b.load(TileType(F32), "A", T * sym("n") + up.index))
    b.store("U", 0, b.const(U8, 7))
    with b.loop("i", 0, sym("n"), 1) as down:
        b.store("R", T * sym("n") + down.index, b.load(TileType(F32), "S", sym("n") - 1 - down.index))
    n = sym("n")
    p = program(b, {"A": ("in", 8 * n), "S": ("scratch", n), "U": ("scratch", 3), "R": ("out", 8 * n)}, 8, ("#n",))
    compare(p, {"A": data(F32, 40), "R": np.zeros(40, np.float32)}, {"n": 5})


def test_checks_report_the_first_failure() -> None:
    b = Builder({"A": I64, "R": I64})
    x = b.load(TileType(I64, (2,), 4), "A", T * 8, (4,))
    b.check(b.op("lt", x, b.const(I64, 100)), "too large")
    b.check(b.op("ge", x, b.const(I64, 0)), 'nega"tive')
    b.store("R", T * 8, x, (4,))
    p = program(b, {"A": ("in", 16), "R": ("out", 16)}, 2)
    for bad, at in ((0, 0), (100, 5), (-1, 15), (-1, 0)):
        a = np.zeros(16, np.int64)
        a[at] = bad
        compare(p, {"A": a, "R": np.zeros(16, np.int64)})


def test_shapes_iota_stack_slice_bitcast() -> None:
    b = Builder({"A": F32, "R": F32, "I": I32})
    x = b.load(TileType(F32, (2, 1), 8), "A", 0, (8, 0))
    y = b.load(TileType(F32, (1, 3)), "A", 20, (0, 1))
    z = b.op("sub", x, y)
    b.store("R", 0, z, (24, 8))
    b.store("R", 48, b.slice(z, 1, 2))
    b.store("R", 56, b.stack(b.slice(z, 0, 0), b.slice(z, 1, 1)), (8,))
    b.store("R", 72, b.broadcast(y, TileType(F32, (2, 3), 4)), (12, 4))
    b.store("I", 0, b.bitcast(x, I32), (8, 0))
    b.store("I", 16, b.op("mul", b.iota(I32, 8, T + 3), b.const(I32, 3)))
    p = program(b, {"A": ("in", 32), "R": ("out", 100), "I": ("out", 24)})
    compare(p, {"A": data(F32, 32), "R": np.zeros(100, np.float32), "I": np.zeros(24, np.int32)})


def test_nontemporal_stores_need_no_alignment() -> None:
    b = Builder({"A": F32, "R": F32})
    with b.loop("i", 0, sym("n") // 16 * 16, 16) as loop:
        b.store("R", loop.index + T, b.load(V16, "A", loop.index), nontemporal=True)
    p = program(b, {"A": ("in", 100), "R": ("out", 100)}, 3, ("#n",))
    compare(p, {"A": data(F32, 100), "R": np.zeros(100, np.float32)}, {"n": 90})
    assert "movnt" in (compile_mlir(lower(p, AVX512), AVX512, want_asm=True).asm or "")


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_a_fence_follows_the_stores_past_the_caches(target: Target) -> None:
    """One, behind the loop over the tasks, before the function returns; none where every store is an ordinary one."""
    for nontemporal in (True, False):
        b = Builder({"A": F32, "R": F32})
        with b.loop("i", 0, sym("n"), 16) as loop, b.branch(IndexCond(loop.index, "lt", T)) as branch, branch.then():
            b.store("R", loop.index, b.load(TileType(F32, (), target.lanes), "A", loop.index), nontemporal=nontemporal)
        p = program(b, {"A": ("in", 100), "R": ("out", 100)}, 3, ("#n",))
        asm = compile_mlir(lower(p, target), target, want_asm=True).asm or ""
        words = [w for w in re.findall(r"^\s+([a-z]\w*)", asm, re.M) if w == "sfence" or "movnt" in w or w.startswith("ret")]
        assert words.count("sfence") == ("movnt" in asm) == nontemporal
        ends = [before for before, w in itertools.pairwise(words) if w.startswith("ret")]
        assert not nontemporal or ends == ["sfence"], words


@pytest.mark.skipif(not host_flags().issuperset(AVX512.features), reason="the host lacks this level")
def test_lead_is_the_way_to_the_next_line() -> None:
    """Elements are skipped up to a multiple of 64 bytes, wherever the buffer lies: the stores after them are aligned."""
    b = Builder({"A": F32, "R": F32, "L": I32})
    lead = b.lead("R", 64)
    b.store("L", T, b.from_index(lead, I32))
    b.store("R", lead, b.load(V16, "A", 0))
    p = program(b, {"A": ("in", 16), "R": ("out", 100), "L": ("out", 1)})
    function = load(compile_mlir(lower(p, AVX512), AVX512).object)[p.name]
    call = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(function)
    for shift in range(0, 64, 4):
        memory = np.zeros(1024, np.int8)
        at = (shift - memory.ctypes.data) % 64
        a, r, n = data(F32, 16), memory[at : at + 400].view(np.float32), np.zeros(1, np.int32)
        call(np.array([x.ctypes.data for x in (a, r, n)]).ctypes.data, 0, 1, 0)
        assert 4 * int(n[0]) == -r.ctypes.data % 64
        np.testing.assert_array_equal(r[n[0] : n[0] + 16], a)


# -- what the generated code looks like ------------------------------------------------------------------------------


def microkernel() -> TileProgram:
    b = Builder({"X": F32, "W": F32, "Y": F32})
    acc = b.const(TileType(F32, (8, 3), 16), 0.0)
    with b.loop("k", 0, 768, 1, carries=(acc,)) as k:
        w = b.load(TileType(F32, (1, 3), 16), "W", k.index * 48, (0, 16))
        x = b.load(TileType(F32, (8, 1)), "X", T * 8 * 768 + k.index, (768, 0))
        k.yields(b.op("fma", x, w, k.carries[0]))
    b.store("Y", T * 8 * 48, k.results[0], (48, 16))
    m = sym("m")
    return program(b, {"X": ("in", m * 768), "W": ("const", 768 * 48), "Y": ("out", m * 48)}, m // 8, ("#m",))


def test_a_microkernel_keeps_its_accumulators_in_registers() -> None:
    asm = compile_mlir(lower(microkernel(), AVX512), AVX512, want_asm=True).asm or ""
    assert asm.count("vfmadd") >= 24
    assert "rsp)" not in "".join(line for line in asm.splitlines() if "zmm" in line)  # nothing spilt


def test_code_does_not_depend_on_the_run() -> None:
    assert lower(microkernel(), AVX512) == lower(microkernel(), AVX512)


# -- the verifier and the reader -------------------------------------------------------------------------------------

GOOD = """
tile k(
  in A: f32[#n],
  out R: f32[#n],
) symbols(#n) task t in #n {
  x = load f32[x 4] A[t | 1]
  i = index i64 t
  c = const f32 1.0
  b = lt(x, c)
  store R[t | 1] = x
}
"""

BAD = [
    ("store R[t | 1] = x", "store A[t | 1] = x", 10, "'in', not writable"),  # lines of GOOD, which begins with an empty one
    ("store R[t | 1] = x", "store R[t | 1] = y", 10, "tile 'y' is not defined here"),
    ("store R[t | 1] = x", "store R[t; 4 | 1] = x", 10, "1 slot strides for the 0 slot dimensions"),
    ("store R[t | 1] = x", "store R[t | 1] = i", 10, "holds f32, 'i' is i64"),
    ("store R[t | 1] = x", "store R[j | 1] = x", 10, "uses j, not defined here"),
    ("store R[t | 1] = x", "store R[t | 1] = x mask x", 10, "not bool"),
    ("store R[t | 1] = x", "x = neg(c)", 10, "'x' is already defined"),
    ("store R[t | 1] = x", "t = neg(c)", 10, "'t' is already defined"),
    ("store R[t | 1] = x", "store Q[t | 1] = x", 10, "no buffer 'Q'"),
    ("b = lt(x, c)", "b = lt(x, i)", 9, "operands of one type"),
    ("b = lt(x, c)", "b = lte(x, c)", 9, "no scalar operator 'lte'"),
    ("b = lt(x, c)", "b = lt(x)", 9, "takes 2 operands"),
    ("b = lt(x, c)", "b = shl(x, c)", 9, "not defined on f32"),
    ("b = lt(x, c)", "b = slice x[0]", 9, "no slot of"),
    ("b = lt(x, c)", "b = bitcast<f64>(x)", 9, "not the same bits"),
    ("b = lt(x, c)", "b = cast<i32, fits>(x)", 9, "'fits' is for f32 that are integers of 16 bits"),
    ("b = lt(x, c)", "b = gather A[i] mask c", 9, "not bool"),
    ("b = lt(x, c)", "b = gather A[x]", 9, "not i64"),
    ("b = lt(x, c)", "let v = x", 9, "not a scalar integer"),
    ("b = lt(x, c)", "for j in 0 .. 4 step 0 {\n}", 9, "not positive"),
    ("b = lt(x, c)", "(r) = for j in 0 .. 4 step 1 carry (a = x) {\nyield (c)\n}", 9, "is carried"),
    ("b = lt(x, c)", "for j in 0 .. 4 step 1 {\ny = neg(c)\n}\nz = neg(y)", 12, "'y' is not defined here"),
    ("b = lt(x, c)", "(r) = if t < 3 {\nyield (c)\n} else {\nyield (x)\n}", 9, "is carried"),
    ("const f32 1.0", "const i8 300", 8, "does not fit i8"),
    ("load f32[x 4]", "load f32[x 3]", 6, "power of two"),
    ("load f32[x 4]", "load f64[x 4]", 6, "holds f32, not f64"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), BAD, ids=[m for *_, m in BAD])
def test_the_verifier_names_the_line(old: str, new: str, line: int, message: str) -> None:
    verify(parse(GOOD.strip()))
    assert old in GOOD
    with pytest.raises(InvalidTile) as caught:
        verify(parse(GOOD.strip().replace(old, new)))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"k.tile:{line - 1}:")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("load f32[3 x 4] A[0; 4 | 1]", "f32[3 x 4] has no last slots that become lanes: a power of two, 4 at most"),
        ("load f32[8 x 4] A[0; 4 | 1]", "f32[8 x 4] has no last slots that become lanes: a power of two, 4 at most"),
        ("load f32[x 4] A[0 | 1]", "f32[x 4] has no last slots that become lanes: a power of two, 4 at most"),
    ],
)
def test_a_fold_needs_slots_that_become_lanes(source: str, message: str) -> None:
    text = f"tile k(\n  in A: f32[32],\n) task t in 1 {{\n  x = {source}\n  y = fold add x\n}}"
    with pytest.raises(InvalidTile) as caught:
        verify(parse(text))
    assert message in str(caught.value) and str(caught.value).startswith("k.tile:5:")


def test_syntax_errors_have_a_place() -> None:
    with pytest.raises(TileSyntax, match="x.tile:5:"):
        parse(GOOD.strip().replace("load", "lode"), "x.tile")
    with pytest.raises(TileSyntax, match="element type 'f31'"):
        parse(GOOD.replace("in A: f32", "in A: f31"))


def test_the_interpreter_refuses_access_outside() -> None:
    with pytest.raises(InvalidTile, match="access to 'A' at 0..3, which has 3 elements"):
        tile_interp.run(parse(GOOD), {"A": np.zeros(3, np.float32), "R": np.zeros(9, np.float32)}, {"n": 3})


NAMES = st.sampled_from(["a", "x", "in", "t0", "yield1", "A.b", "_q", "tile", "index", "task"])
INDEX = st.recursive(
    st.integers(-70, 70).map(int_expr) | st.sampled_from([var("i"), var("x"), sym("n"), sym("x")]),
    lambda e: st.one_of(
        st.tuples(e, e).map(lambda p: p[0] + p[1]),
        st.tuples(e, e).map(lambda p: p[0] * p[1]),
        st.tuples(e, st.integers(2, 9)).map(lambda p: p[0] // p[1]),
        st.tuples(e, st.integers(2, 9)).map(lambda p: p[0] % p[1]),
        st.tuples(e, e).map(lambda p: minimum(*p)),
        st.tuples(e, e).map(lambda p: maximum(*p)),
    ),
    max_leaves=5,
)
VALUES = st.booleans() | st.integers(-(2**63), 2**64) | st.floats(width=64)
TYPES = st.builds(
    TileType, st.sampled_from(list(DTYPES.values())), st.lists(st.integers(1, 9), max_size=3).map(tuple), st.integers(1, 64)
)
MASKS = st.none() | NAMES
DT = st.sampled_from(list(DTYPES.values()))
STRIDES = st.lists(INDEX, max_size=3).map(tuple)
MANY = st.lists(NAMES, min_size=1, max_size=3).map(tuple)
FLAT = st.one_of(
    st.builds(tile.Const, NAMES, TYPES, VALUES),
    st.builds(tile.Iota, NAMES, DT, st.integers(1, 64), INDEX),
    st.builds(tile.FromIndex, NAMES, DT, INDEX),
    st.builds(tile.IndexOf, NAMES, NAMES),
    st.builds(tile.Lead, NAMES, NAMES, st.sampled_from([16, 64])),
    st.builds(tile.Load, NAMES, TYPES, NAMES, INDEX, STRIDES, INDEX, MASKS, VALUES),
    st.builds(tile.Gather, NAMES, NAMES, NAMES, MASKS, VALUES),
    st.builds(tile.Store, NAMES, INDEX, NAMES, STRIDES, INDEX, MASKS, st.booleans()),
    st.builds(tile.Scatter, NAMES, NAMES, NAMES, MASKS, st.none() | st.sampled_from(tile.SCATTER_OPS)),
    st.builds(tile.Op, NAMES, st.sampled_from(["add", "and", "or", "min", "fma", "select"]), MANY),
    st.builds(tile.Cast, NAMES, NAMES, DT, st.sampled_from(["sat", "wrap"])),
    st.builds(tile.Bitcast, NAMES, NAMES, DT),
    st.builds(tile.Broadcast, NAMES, TYPES, NAMES),
    st.builds(tile.Slice, NAMES, NAMES, st.lists(st.integers(0, 9), max_size=3).map(tuple)),
    st.builds(tile.Stack, NAMES, MANY),
    st.builds(tile.Fold, NAMES, st.sampled_from(tile.REDUCE_OPS), NAMES),
    st.builds(tile.Reduce, NAMES, st.sampled_from(tile.REDUCE_OPS), NAMES, st.none() | st.integers(0, 3)),
    st.builds(tile.Mask, NAMES, st.integers(1, 64), INDEX),
    st.builds(tile.Prefetch, NAMES, INDEX, st.integers(0, 3), st.booleans()),
    st.builds(tile.Check, NAMES, st.text("ab \"\\{}#\n'é", max_size=6)),
)
CARRIES = st.lists(st.tuples(NAMES, NAMES), max_size=2).map(tuple)
CARRIED = st.lists(st.tuples(NAMES, NAMES), min_size=1, max_size=2).map(tuple)
CONDS = st.lists(st.builds(IndexCond, INDEX, st.sampled_from(list(tile.COMPARISONS)), INDEX), min_size=1, max_size=2)
STMTS = st.recursive(
    FLAT,
    lambda s: st.one_of(
        st.builds(
            tile.For, NAMES, INDEX, INDEX, INDEX, st.lists(s, max_size=3).map(tuple), CARRIES, MANY | st.just(()),
            MANY | st.just(()), st.integers(1, 9),
        ),
        st.builds(
            tile.If, CONDS.map(tuple) | NAMES, st.lists(s, max_size=2).map(tuple), st.lists(s, max_size=2).map(tuple),
            MANY | st.just(()), MANY | st.just(()), MANY | st.just(()),
        ),
        st.builds(
            tile.While, CARRIED, st.lists(s, max_size=2).map(tuple), NAMES,
            st.lists(s, max_size=2).map(tuple), MANY, MANY,
        ),
    ),
    max_leaves=6,
)  # fmt: skip
PROGRAMS = st.builds(
    TileProgram,
    NAMES,
    st.lists(st.builds(Buffer, NAMES, DT, st.sampled_from(tile.ROLES), INDEX), max_size=3).map(tuple),
    st.sampled_from([(), ("#n",), ("#n", "#x")]),
    INDEX,
    NAMES,
    st.lists(STMTS, max_size=5).map(tuple),
)


@settings(max_examples=300, deadline=None)
@given(PROGRAMS)
def test_round_trip(p: TileProgram) -> None:
    assert parse(str(p)) == p, str(p)


def test_lowering_works_for_the_least_machine() -> None:
    assert compile_mlir(lower(microkernel(), BASELINE), BASELINE).object
