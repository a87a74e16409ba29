"""Every scalar operator and cast, natively and interpreted, on awkward values and all levels."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen import tile, vecmath
from dlc.codegen.tile import Buffer, TileProgram, TileType
from dlc.codegen.tile_build import Builder
from dlc.ir.dtype import BF16, BOOL, DTYPES, F16, F32, F64, DType
from dlc.ir.extent import int_expr, var
from dlc.ir.scalar import SCALAR_OPS

sys.path.insert(0, str(Path(__file__).parent))
from tile_harness import compare

NATIVE = [t for t in DTYPES.values() if t.native]
COMPUTE = [t for t in NATIVE if t not in (F16, BF16)]


def awkward(dtype: DType, count: int = 256, seed: int = 0) -> np.ndarray:
    """Special values first, then random ones of every magnitude."""
    rng = np.random.default_rng(seed + sum(map(ord, dtype.name)))
    if dtype == BOOL:
        return rng.integers(0, 2, count).astype(bool)
    if dtype.is_int:
        base = [dtype.lowest, dtype.highest, 0, 1, 2, 3, 5, 7, 8, 15, 31, 63, dtype.bits, dtype.bits - 1, dtype.bits + 1]
        base += [-x for x in base if dtype.kind == "i"] + [dtype.lowest + 1]
        base = [x for x in base if dtype.lowest <= x <= dtype.highest]
        wide = rng.integers(dtype.lowest, dtype.highest, count, dtype=dtype.numpy, endpoint=True)
        small = rng.integers(max(dtype.lowest, -9), 9, count).astype(dtype.numpy)
        values = np.concatenate([np.array(base, dtype=object).astype(dtype.numpy), wide, small])
        head, rest = values[: len(base)], values[len(base) :]
        return np.concatenate([head, rng.permutation(rest)])[:count]
    special = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, 127.5, -128.5, 255.5, 3e9, -3e9,
               2.0**31, -(2.0**31), 2.0**32, 2.0**63, -(2.0**63), 1e19, 2.0**64, 65519.0, 65520.0, 65536.0, 6e-8, 3e-8,
               6.1e-5, 1e-40, 2049.0, 1e300, 1e-300, 0.1]  # fmt: skip
    normal = rng.standard_normal(count) * np.exp2(rng.integers(-20, 20, count))
    with np.errstate(all="ignore"):
        return np.concatenate([special, normal])[:count].astype(dtype.numpy)


def columns_of(op: str, dtype: DType, arity: int) -> list[np.ndarray]:
    """Arguments: all pairs of awkward values where there are two."""
    if arity == 1:
        return [awkward(dtype, 1024)]
    columns = [g.reshape(-1) for g in np.meshgrid(awkward(dtype, 32), awkward(dtype, 32, seed=1))]
    if op in ("shl", "shr", "pow") and dtype.is_int:
        columns[1] = np.resize(awkward(dtype, 24), len(columns[0]))
    if op == "select":
        columns = [awkward(BOOL, len(columns[0]), seed=2), *columns]
    elif arity == 3:
        columns = [*columns, np.roll(columns[0], 5)]
    if dtype.is_float and (op in vecmath.FUNCTIONS or op == "fma"):
        # these have their own tests with error bounds over all arguments
        columns = [np.where(np.abs(c) > 80, 1, c).astype(dtype.numpy) for c in columns]
    return columns


@pytest.mark.parametrize("op", [*SCALAR_OPS, "fma"])
def test_operator(op: str) -> None:
    """On every type it is defined on, the first half as vectors and the second as scalars."""
    arity, kinds = (3, "f") if op == "fma" else (SCALAR_OPS[op].arity, SCALAR_OPS[op].kinds)
    b = Builder()
    buffers: list[Buffer] = []
    data: dict[str, np.ndarray] = {}
    types: dict[str, DType] = {}
    b.buffers = types
    count = 1024
    for dtype in COMPUTE:
        if dtype.kind not in kinds:
            continue
        columns = columns_of(op, dtype, arity)
        operands = [BOOL if op == "select" and i == 0 else dtype for i in range(arity)]
        result = tile.op_type(op, tuple(TileType(t) for t in operands))
        assert isinstance(result, TileType)
        names = [f"A{i}_{dtype}" for i in range(arity)]
        types |= dict(zip(names, operands, strict=True))
        for lanes, half in ((16, 0), (1, 1)):
            with b.loop("i", half * count // 2, (half + 1) * count // 2, lanes) as loop:
                args = [b.load(TileType(t, (), lanes), n, loop.index) for n, t in zip(names, operands, strict=True)]
                b.store(f"R_{dtype}", loop.index, b.op(op, *args))
        buffers += [Buffer(n, t, "in", int_expr(count)) for n, t in zip(names, operands, strict=True)]
        buffers.append(Buffer(f"R_{dtype}", result.dtype, "out", int_expr(count)))
        data |= {n: np.ascontiguousarray(np.resize(c, count)) for n, c in zip(names, columns, strict=True)}
        data[f"R_{dtype}"] = np.zeros(count, result.dtype.numpy)
    program = TileProgram("k", tuple(buffers), (), int_expr(1), "t", b.body())
    loose = op in vecmath.FUNCTIONS or op == "fma"
    loose |= op in ("min", "max", "minnum", "maxnum")  # which of two zeros of different sign is not defined
    compare(program, data, exact=not loose, rtol=1e-3 if op == "fma" else 4e-6)


@pytest.mark.parametrize("source", NATIVE, ids=str)
@pytest.mark.parametrize("mode", ["sat", "wrap"])
def test_cast(source: DType, mode: str) -> None:
    """To every type, the first half as vectors and the second as scalars."""
    count = 512
    b = Builder({"A": source})
    for lanes, half in ((16, 0), (1, 1)):
        with b.loop("i", half * count // 2, (half + 1) * count // 2, lanes) as loop:
            x = b.load(TileType(source, (), lanes), "A", loop.index)
            for to in NATIVE:
                b.store(f"R_{to}", loop.index, b.cast(x, to, mode))
    size = int_expr(count)
    buffers = (Buffer("A", source, "in", size), *(Buffer(f"R_{to}", to, "out", size) for to in NATIVE))
    program = TileProgram("k", buffers, (), int_expr(1), "t", b.body())
    values = awkward(source, count // 2)
    results = {f"R_{to}": np.zeros(count, to.numpy) for to in NATIVE}
    compare(program, {"A": np.concatenate([values, values]), **results})


@pytest.mark.parametrize("half", [F16, BF16], ids=str)
def test_all_halves(half: DType) -> None:
    """Every f16 and bf16 to f32 and back; f32 and f64 near every rounding boundary to half."""
    count = 1 << 16
    b = Builder({"A": half, "B": F32, "C": F64})
    at = var("t") * 16
    b.store("RA", at, b.cast(b.load(TileType(half, (), 16), "A", at), F32))
    b.store("RB", at, b.cast(b.load(TileType(F32, (), 16), "B", at), half))
    b.store("RC", at, b.cast(b.load(TileType(F64, (), 16), "C", at), half))
    size = int_expr(count)
    spec = [("A", half, "in"), ("B", F32, "in"), ("C", F64, "in"), ("RA", F32, "out"), ("RB", half, "out"), ("RC", half, "out")]
    buffers = tuple(Buffer(n, t, r, size) for n, t, r in spec)
    program = TileProgram("k", buffers, (), int_expr(count // 16), "t", b.body())
    rng = np.random.default_rng(0)
    halves = np.arange(count, dtype=np.uint16).view(half.numpy)
    wide = halves.astype(np.float64)
    with np.errstate(all="ignore"):
        middle = wide + (np.roll(wide, -1) - wide) / 2  # exact ties
        nudged = np.nextafter(middle, np.where(rng.integers(0, 2, count) == 0, np.inf, -np.inf))
        data = {"A": halves, "B": middle.astype(np.float32), "C": np.where(rng.integers(0, 2, count) == 0, middle, nudged)}
    if half == BF16:
        data["C"] = data["C"].astype(np.float32).astype(np.float64)  # the reference rounds twice
    data |= {n: np.zeros(count, t.numpy) for n, t, r in spec if r == "out"}
    compare(program, data)
