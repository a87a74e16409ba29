"""Products of matrices on a warp: the layouts are PTX's, the meaning is that of whole registers, the instruction is in the PTX."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dlc import gpu
from dlc.codegen.gpu_targets import GPU_TARGETS
from dlc.codegen.layout_inference import LayoutConflict
from dlc.codegen.matrix_unit import A, B, C, column_layout, row_layout, sum_layout
from dlc.codegen.ptx import ptx_kernel
from dlc.codegen.tile import TileProgram
from dlc.codegen.tile_parse import parse
from dlc.codegen.tile_verify import InvalidTile, verify
from dlc.codegen.warp import distribute
from dlc.codegen.warp_matrix import find_matrices
from dlc.ir.layout import LayoutMismatch, column_spatial, local, spatial
from dlc.ir.parser import parse_program
from dlc.ir.program import Program

sys.path.insert(0, str(Path(__file__).parent))
from warp_harness import SM_80, compare, memory, tiles

# --- layouts: PTX ISA 8.0, 9.7.13.4.8 and 9.7.13.4.10, where i counts a thread's elements -------------------------------


def a_16(t: int, i: int) -> tuple[int, int]:
    """Of m16n8k16: row and column of a_i."""
    row = t // 4 if 0 <= i < 2 or 4 <= i < 6 else t // 4 + 8
    return row, t % 4 * 2 + (i & 1) + (8 if i >= 4 else 0)


def b_16(t: int, i: int) -> tuple[int, int]:
    return t % 4 * 2 + (i & 1) + (8 if i >= 2 else 0), t // 4


def a_8(t: int, i: int) -> tuple[int, int]:
    """Of m16n8k32."""
    row = t // 4 if 0 <= i < 4 or 8 <= i < 12 else t // 4 + 8
    return row, t % 4 * 4 + (i & 3) + (16 if i >= 8 else 0)


def b_8(t: int, i: int) -> tuple[int, int]:
    return t % 4 * 4 + (i & 3) + (16 if i >= 4 else 0), t // 4


def c_f32(t: int, i: int) -> tuple[int, int]:
    return (t // 4 if i < 2 else t // 4 + 8), t % 4 * 2 + (i & 1)


Place = Callable[[int, int], tuple[int, int]]


@pytest.mark.parametrize(("place", "layout", "parts"), [(a_16, A, (1, 2)), (a_8, A, (1, 4)), (b_16, B, (2, 1)), (b_8, B, (4, 1)), (c_f32, C, (1, 1))])
def test_the_layouts_are_those_of_the_instruction(place: Place, layout: Any, parts: tuple[int, int]) -> None:
    elements = layout @ local(*parts)
    assert elements.threads == 32
    assert dict(elements.elements()) == {at: place(*at) for at, _ in elements.elements()}
    assert len({place(t, i) for t in range(32) for i in range(elements.slots)}) == 32 * elements.slots


def test_whole_tiles_are_blocks_of_the_instruction_s() -> None:
    assert (row_layout(48) / A).same(local(3, 1))
    assert (sum_layout(32, 3, 64) / (local(2, 1, 1) @ spatial(8, 1, 4) @ local(1, 1, 2))).same(local(2, 3, 8))
    assert (column_layout(3, 32) / (local(2, 1, 1) @ column_spatial(4, 1, 8))).same(local(1, 3, 4))
    assert sum_layout(16, 1, 8).reshape(16, 8).same(C) and column_layout(1, 8).reshape(8, 8).same(B)


# --- tile programs ------------------------------------------------------------------------------------------------------

KINDS = {"bf16, bf16": ("f32", 2), "u8, i8": ("i32", 4), "i8, u8": ("i32", 4)}


def product(kind: str, rows: int, vectors: int, rest: str = "") -> TileProgram:
    """Two steps of 8 words, a bias for the columns, a factor for the rows, all but the last two columns stored."""
    (left, right), (total, size) = kind.split(", "), KINDS[kind]
    n = 32 * vectors
    return parse(f"""tile k(in a: {left}[{rows * 16 * size}], in b: {right}[{16 * n * size}], in c: {total}[{n}], in d: {total}[{rows}],
      out z: {total}[{rows * n}],) task t in 1 {{
      s = const {total}[{rows}, {vectors} x 32] {"0.0" if total == "f32" else "0"}
      (r) = for k in 0 .. 2 step 1 carry (acc = s) {{
        x = load {left}[{rows} x {8 * size}] a[{8 * size}*k; {16 * size} | 1]
        u = view<i32>(x)
        y = load {right}[8, {vectors} x {32 * size}] b[{8 * n * size}*k; {n * size}, {32 * size} | 1]
        w = view<i32>(y)
        p = matdot<{kind}>(u, w, acc)
        yield (p)
      }}
      bias = load {total}[1, {vectors} x 32] c[0; 0, 32 | 1]
      q = add(r, bias)
      factor = load {total}[{rows}, 1 x 1] d[0; 1, 0 | 0]
      o = mul(q, factor)
      m0 = mask 32 below 30
      m = stack({", ".join(["m0"] * vectors)})
      {rest}
      store z[0; {n}, 32 | 1] = o mask m
    }}""")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "vectors"), [(16, 1), (48, 3), pytest.param(16, 2, marks=pytest.mark.slow)])
def test_the_meaning_is_that_of_whole_registers(kind: str, rows: int, vectors: int) -> None:
    program = product(kind, rows, vectors)
    got = compare(program)["z"].reshape(rows, -1).astype(np.float64)
    data = {k: v.astype(np.float64) for k, v in memory(program, {}).items()}
    size, n = KINDS[kind][1], 32 * vectors
    b = data["b"].reshape(16, n, size).transpose(0, 2, 1).reshape(-1, n)
    want = (data["a"].reshape(rows, -1) @ b + data["c"]) * data["d"][:, None]
    stored = np.arange(n) % 32 < 30
    np.testing.assert_allclose(got[:, stored], want[:, stored], rtol=1e-5, atol=1e-5)


def test_a_step_is_16_rows_of_8_words_by_8_columns(golden: Callable[..., None]) -> None:
    golden(str(distribute(product("bf16, bf16", 16, 2))))


PTX = {
    "bf16, bf16": "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
    "u8, i8": "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32",
    "i8, u8": "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32",
}


@pytest.mark.parametrize("target", GPU_TARGETS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_instruction_is_in_the_ptx(kind: str, target: str) -> None:
    kernel = ptx_kernel("k", product(kind, 32, 1), GPU_TARGETS[target])
    found = re.findall(r"mma\.sync\S*", kernel.ptx)
    assert set(found) == {PTX[kind]} and len(found) % 8 == 0, "two blocks of rows by four of columns, in each copy of the loop's body"
    assert (kernel.usage is None) == (shutil.which("ptxas") is None)
    assert kernel.usage is None or kernel.usage.spilled_stores == 0


def test_registers_go_to_the_instruction_in_its_order() -> None:
    """What a thread has lies in the order of the tile's dimensions: row g, words w and w + 4, then row g + 8; PTX wants row g + 8 second."""
    (mlir,) = (ptx_kernel("k", product("u8, i8", 16, 1), SM_80).mlir,)
    loads = {name: number for number, name in enumerate(re.findall(r"(%\d+) = llvm.load .* -> vector<4xi8>", mlir))}
    words = {new: loads[old] for new, old in re.findall(r"(%\d+) = vector.bitcast (%\d+) : vector<4xi8> to vector<1xi32>", mlir) if old in loads}
    words |= {new: loads[old] for new, old in re.findall(r"(%\d+) = llvm.bitcast (%\d+) : vector<4xi8> to i32", mlir) if old in loads}
    words |= {new: words[old] for new, old in re.findall(r"(%\d+) = vector.extract (%\d+)\[0\]", mlir) if old in words}
    operands = re.findall(r"nvvm.mma.sync A\[(.*?)\] B\[(.*?)\]", mlir)
    assert [[words[x] for x in a.split(", ")] for a, _ in operands] == [[0, 2, 1, 3]] * 4
    assert [[words[x] - 4 for x in b.split(", ")] for _, b in operands] == [[n, n + 4] for n in range(4)]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("matdot<u8, i8>", "matdot<u8, u8>", "there is no matrix product of u8 and u8"),
        ("matdot<u8, i8>", "matdot<bf16, bf16>", "and a sum in f32"),
        ("matdot<u8, i8>(u, w", "matdot<u8, i8>(w, u", r"needs words in i32 twice, \[M x 8\] and \[8, V x L\]"),
        ("load u8[16 x 32]", "load u8[8 x 32]", "are no matrices of 16 rows, 8 words and 8 columns or a multiple"),
    ],
)
def test_what_is_no_product_of_matrices(old: str, new: str, said: str) -> None:
    text = str(product("u8, i8", 16, 1))
    assert old in text
    with pytest.raises(InvalidTile, match=said):
        verify(parse(text.replace(old, new)))


def test_what_takes_all_of_a_matrix_cannot_lie_so() -> None:
    for rest in ("e = slice r[0, 0]", "e = reduce add lanes r", "e = reduce add slot 0 r", "e = stack(" + ", ".join(["bias"] * 2) + ")"):
        with pytest.raises(LayoutMismatch, match=f"`{rest.split()[2].split('(')[0]}` is not done|is none of tile"):
            find_matrices(product("bf16, bf16", 16, 1, rest))
    rows = "i = load bf16[16 x 16] a[0; 32 | 1]\n g = view<i32>(i)"
    columns = "j = load bf16[8, 1 x 64] b[0; 64, 64 | 1]\n h = view<i32>(j)"
    again = f"{rows}\n{columns}\n f = matdot<bf16, bf16>(g, h, q)\n l = const f32[8, 1 x 32] 0.0\n e = bitcast<f32>(h)\n v = add(e, l)"
    assert "v" in find_matrices(product("bf16, bf16", 16, 1, again)).layouts
    with pytest.raises(LayoutConflict, match="as the matrix instruction has it"):
        find_matrices(product("bf16, bf16", 16, 1, again + "\n x2 = slice q[0, 0]\n y2 = stack(x2)\n v2 = add(y2, v)"))


# --- models -------------------------------------------------------------------------------------------------------------


def layer(rows: str, terms: int, columns: int, after: str, kind: str = "bf16") -> Program:
    total = "f32" if kind == "bf16" else "i32"
    made = parse_program(
        f"program c(X: {kind}[{rows}, {terms}], I: i64[{rows}], T: f32[9, {columns}]) -> (Z) {{\n const W: {kind}[{terms}, {columns}]\n"
        f" Y[m:{rows}, n:{columns}]: {total} = sum(k:{terms}) cast<{total}>(X[m, k]) * cast<{total}>(W[k, n])\n {after}\n}}".replace("m:m", "m")
    )
    assert isinstance(made, Program)
    w = np.random.default_rng(0).integers(-9, 9, (terms, columns))
    return replace(made, data={"W": w.astype(ml_dtypes.bfloat16 if kind == "bf16" else np.int8)})


LAYERS = {
    "whole blocks": layer("32", 64, 64, "Z[m:32, n:64]: bf16 = cast<bf16>(max(Y[m, n], 0.0))"),
    "rows, terms and columns that are left": layer("m", 75, 70, "Z[m, n:70]: i32 = Y[m, n] + 1", "i8"),
    "an odd term": layer("m", 33, 32, "Z[m, n:32]: f32 = erf(Y[m, n])"),
    "rows of a table": layer("m", 32, 40, "Z[m, n:40]: f32 = Y[m, n] + T[I[m], n]"),
}


SLOW = ("an odd term", "rows of a table")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in LAYERS])
def test_layers_are_products_of_matrices(name: str) -> None:
    (program,) = (p for p in tiles(LAYERS[name]) if "dot" in str(p))
    assert "matdot<" in str(program)
    for rows in (3, 37):
        compare(program, {s.lstrip("#"): rows for s in program.symbols})
    made = {target: gpu.compile_ptx(LAYERS[name], target=target) for target in GPU_TARGETS}
    assert all(any("mma.sync.aligned.m16n8k" in k.ptx for k in kernels) for kernels in made.values())


def test_what_cannot_lie_so_is_done_without() -> None:
    """The numbers of rows come as a stack of scalars, of which a thread would need those of its rows."""
    program = layer("m", 32, 40, "Z[m, n:40]: f32 = Y[m, n] * cast<f32>(m)")
    (whole,) = tiles(program)
    assert "matdot" not in str(whole) and "dot<bf16, bf16>" in str(whole)
    compare(whole, {"m": 37})
    (kernel,) = gpu.compile_ptx(program)
    assert "mma" not in kernel.ptx


def test_few_rows_and_few_terms_take_no_matrices() -> None:
    for program in (layer("8", 64, 64, "Z[m:8, n:64]: f32 = Y[m, n]"), layer("32", 8, 64, "Z[m:32, n:64]: f32 = Y[m, n]")):
        (kernel,) = tiles(program)
        assert "matdot" not in str(kernel) and "dot<bf16, bf16>" in str(kernel)
