"""Tile programs on the threads of a warp: the same bits as with whole registers, for every strategy and statement."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen import tile, tile_interp, warp_interp
from dlc.codegen.tile import TileProgram
from dlc.codegen.tile_parse import parse
from dlc.codegen.tile_verify import InvalidTile
from dlc.codegen.warp import distribute
from dlc.codegen.warp_layout import held_tiles
from dlc.ir.extent import evaluate
from dlc.ir.layout import local, spatial
from dlc.ir.scalar import SCALAR_OPS

sys.path.insert(0, str(Path(__file__).parent))
from attention_text import Attention
from bit_layers import Layer as BitLayer
from coded_layers import case
from kernel_harness import strategy
from test_rows import LAYER_NORM, SOFTMAX
from warp_harness import SM_80, compare, memory, passed, tiles

CASCADES = {
    "contraction": "cascade c(X: f32[m, 24], W: f32[24, 40], B: f32[40]) -> (Z) {\n"
    " Y[m, n] = sum(k) X[m, k] * W[k, n]\n Z[m, n] = max(Y[m, n] + B[n], 0.0)\n}",
    "inner product": "cascade c(Q: f32[m, 96], K: f32[n, 96]) -> (S) {\n S[m, n] = sum(k) Q[m, k] * K[n, k]\n}",
    "points": "cascade c(X: f32[m, n], Y: f32[n]) -> (Z) {\n Z[m, n] = erf(X[m, n]) * Y[n] + 1.0\n}",
    "transpose": "cascade c(X: f32[m, n]) -> (Z) {\n Z[n, m] = X[m, n] * 2.0\n}",
    "total": "cascade c(X: f32[m, n]) -> (S) {\n S[m] = sum(n) X[m, n] * X[m, n]\n}",
    "doubles": "cascade c(X: f64[m, n]) -> (S) {\n S[m] = max(n) X[m, n] * X[m, n]\n}",
    "halves": "cascade c(X: f16[m, n], Y: bf16[m, n]) -> (Z) {\n Z[m, n] = cast<f16>(cast<f32>(X[m, n]) * cast<f32>(Y[m, n]))\n}",
    "bytes": "cascade c(X: i8[m, n]) -> (S) {\n S[m] = sum(n) cast<i32>(X[m, n])\n}",
    "softmax": SOFTMAX,
    "layer norm": LAYER_NORM,
}


@pytest.mark.parametrize("name", CASCADES)
def test_kernels_give_the_same_bits(name: str) -> None:
    for n in (1, 33, 70):
        for program in tiles(CASCADES[name]):
            long = "#n" if "#n" in program.symbols else "#m"
            compare(program, {s.lstrip("#"): n if s == long else 3 for s in program.symbols})


OTHERS = {
    "streamed": (str(Attention(H=1, P=19, M=9, where="m <= p")), "streamed"),
    "window": (
        "cascade c(X: f32[1, 40, 6, 6], W: f32[3, 3, 40]) -> (O) {\n Z[b:1, c:40, y:6, x:6]: f32{0, 2, 3, 1} = X[b, c, y, x] + 1.0\n"
        " O[b:1, c:40, y:6, x:6] = sum(i:3, j:3) (Z[b, c, y + i - 1, x + j - 1] else 0.0) * W[i, j, c]\n}",
        "window",
    ),
    "gathered": ("cascade c(X: f32[4, 40], I: i64[5]) -> (Z) {\n Z[m:5, k:40] = X[I[m], k]\n}", "points"),
    "scattered": ("cascade c(X: f32[50], I: i64[50], O: f32[4]) -> (Z) {\n scatter(n:50) Z[I[n]] sum= X[n] onto O\n}", "scatter"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_strategies_give_the_same_bits(name: str) -> None:
    text, kind = OTHERS[name]
    after = passed(text)
    assert kind in {strategy(k, after, SM_80) for k in after.kernels}
    for program in tiles(text):
        assert program.symbols == ()
        compare(program)


@pytest.mark.parametrize("number", [0, 40, 100, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 60, 80, 120, 140, 160))])
def test_layers_of_packed_codes_give_the_same_bits(number: int) -> None:
    layer = case(number)
    for program in tiles(replace(layer, terms=min(layer.terms, 70), columns=min(layer.columns, 40)).program()):
        compare(program, {s.lstrip("#"): 2 for s in program.symbols})


@pytest.mark.parametrize("layer", [BitLayer("b1", "b1", 3, 128, 40, 64), BitLayer("i2", "u1", 2, 96, 70, 32, "u4")])
def test_layers_of_bits_give_the_same_bits(layer: BitLayer) -> None:
    kernels = tiles(layer.program())
    assert any("dot<u1, u1>" in str(k) for k in kernels)
    for kernel in kernels:
        compare(kernel)


def tile_program(body: str, out: str = "f32[256]", tasks: int = 1, scratch: str = "") -> TileProgram:
    return parse(f"tile k(in a: f32[512], in b: u8[512], in i: i64[256], {scratch} out z: {out},) task t in {tasks} {{\n{body}\n}}")


@pytest.mark.parametrize("op", [o for o in tile.REDUCE_OPS if SCALAR_OPS[o].kinds.count("f")])
@pytest.mark.parametrize("lanes", [8, 32, 64])
def test_lanes_are_folded_in_the_same_order(op: str, lanes: int) -> None:
    compare(tile_program(f"x = load f32[3 x {lanes}] a[7; {lanes} | 1]\n y = reduce {op} lanes x\n store z[0; 1 | 1] = y"))
    compare(tile_program(f"x = load f32[2, 8 x {lanes}] a[0; 1, 5 | 1]\n y = fold {op} x\n store z[0; 8 | 1] = y"))


@pytest.mark.parametrize("bits", range(1, 8))
def test_codes_are_fetched_from_the_threads_that_hold_them(bits: int) -> None:
    compare(tile_program(f"x = load u8[2 x 128] b[0; 128 | 1]\n y = unpack {bits} x\n store z[0; 128 | 1] = y", "u8[256]"))


STATEMENTS = {
    "iota": "x = iota i32[x 64] from 5\n y = cast<f32, wrap>(x)\n store z[0 | 1] = y",
    "masks": "m = mask 64 below 37\n x = load f32[x 64] a[3 | 2] mask m pad 9.0\n store z[1 | 3] = x mask m",
    "strides": "x = load f32[4 x 32] a[100; 1 | -3]\n store z[0; 32 | 1] = x",
    "one element for all": "x = load f32[x 32] a[4 | 0]\n store z[0 | 1] = x",
    "gather": "o = load i64[x 32] i[0 | 1]\n x = gather a[o]\n store z[0 | 1] = x",
    "what all hold": "x = load f32[2 x 8] a[0; 8 | 1]\n store z[3; 8 | 1] = x",
    "broadcast": "x = load f32 a[5 | 1]\n y = broadcast f32[2 x 32] x\n store z[0; 32 | 1] = y",
    "slices": "x = load f32[2, 3 x 32] a[0; 96, 32 | 1]\n y = slice x[1, 2]\n w = slice x[0, 1]\n v = stack(y, w)\n"
    " store z[0; 32 | 1] = v",
    "scatter": "o = load i64[2 x 32] i[0; 32 | 1]\n x = load f32[2 x 32] a[0; 32 | 1]\n scatter z[o] = x op add",
    "scatter of one": "o = load i64 i[0 | 1]\n x = load f32 a[0 | 1]\n scatter z[o] = x op max",
    "loop": "x = load f32[x 32] a[0 | 1]\n (r) = for j in 0 .. 5 step 1 carry (c = x) {\n d = add(c, c)\n yield (d)\n }\n store z[0 | 1] = r",
    "branch": "x = load f32 a[0 | 1]\n y = load f32[x 32] a[0 | 1]\n c = lt(x, x)\n (r) = when c {\n w = add(y, y)\n yield (w)\n } else {\n"
    " v = mul(y, y)\n yield (v)\n }\n store z[0 | 1] = r",
    "check": "x = load f32[x 32] a[0 | 1]\n w = const f32 -9.0\n c = gt(x, w)\n check c \"low\"\n d = lt(x, w)\n check d \"high\"",
    "prefetch": "prefetch a[0] read 3\n x = load f32[x 32] a[0 | 1]\n store z[0 | 1] = x nontemporal",
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_statements_give_the_same_bits(name: str) -> None:
    compare(tile_program(STATEMENTS[name]))


def test_words_of_bytes() -> None:
    """A view moves nothing: four lanes of bytes are a thread's word."""
    compare(tile_program("x = load u8[x 128] b[0 | 1]\n y = view<i32>(x)\n store z[0 | 1] = y", "i32[32]"))
    body = "x = load u8[x 128] b[0 | 1]\n w = load u8[x 128] b[128 | 1]\n y = zip x w half 1\n store z[0 | 1] = y"
    compare(tile_program(body, "i32[32]"))


def test_a_share_is_the_layout_that_it_says() -> None:
    """`spatial(32).local(k)`: thread t has lanes k t and those after it, of a register numbered lane by lane."""
    for dtype, lanes in (("i32", 32), ("i32", 64), ("i32", 128)):
        program = tile_program(f"x = iota {dtype}[x {lanes}] from 0\n store z[0 | 1] = x", f"i32[{lanes}]")
        (numbers,) = (s for s in distribute(program).body if isinstance(s, tile.Iota))
        layout = spatial(32) @ local(numbers.lanes)
        for (thread, slot), (lane,) in layout.elements():
            assert evaluate(numbers.start, {"warp_thread": thread}) + slot == lane


STAGED = "x = load f32[x 32] a[0 | 1]\n store s[0 | 1] = x\n y = load f32[x 32] s[31 | -1]\n store z[0 | 1] = y"


def test_memory_that_threads_share_is_synchronised() -> None:
    program = tile_program(STAGED, scratch="scratch s: f32[32],")
    compare(program)
    thread = distribute(program)
    without = replace(thread, body=tuple(s for s in thread.body if not isinstance(s, tile.Sync)))
    want = memory(program, {})
    tile_interp.run(program, want)
    results = []
    for backwards in (False, True):
        got = memory(program, {})
        warp_interp.run(without, got, backwards=backwards)
        results.append(got["z"])
    assert not np.array_equal(results[0], results[1], equal_nan=True), "two orders show that a sync is missing"


def test_what_changes_in_place_is_read_before() -> None:
    """Each thread reads what its neighbour writes: a sync before the store."""
    text = "tile k(inout z: f32[64],) task t in 1 {\n x = load f32[x 32] z[1 | 1]\n store z[0 | 1] = x\n}"
    program = parse(text)
    compare(program)
    body = distribute(program).body
    kinds = [type(s).__name__ for s in body]
    assert kinds == ["Thread", "Load", "Sync", "Store", "Sync"]


def test_threads_that_part_are_found() -> None:
    text = "tile k(out z: f32[1],) task t in 1 {\n let me = thread\n if me < 3 {\n sync\n }\n}"
    with pytest.raises(InvalidTile, match="threads part before"):
        warp_interp.run(parse(text), {"z": np.zeros(1, np.float32)})


HELD = {
    "bytes that are viewed as fewer words": (
        "x = load u8[x 32] b[0 | 1]\n y = view<i32>(x)\n w = load i32[x 8] v[0 | 1]\n u = add(y, w)\n store z[0 | 1] = u",
        "i32[8]",
        {"x", "y", "w", "u"},
    ),
    "bytes of half a register": ("x = load u8[x 64] b[0 | 1]\n y = unpack 3 x\n store z[0 | 1] = y", "u8[64]", {"x", "y"}),
    "lanes stored in one place": ("x = load f32[x 32] a[0 | 1]\n store z[0 | 0] = x", "f32[1]", {"x"}),
    "slots that overlap": ("x = load f32[2 x 32] a[0; 32 | 1]\n store z[0; 16 | 1] = x", "f32[64]", {"x"}),
    "through a loop": (
        "m = mask 32 below 20\n o = load i64[x 32] i[0 | 1]\n g = gather a[o] mask m\n"
        " (r) = for j in 0 .. 3 step 1 carry (c = g) {\n d = add(c, c)\n yield (d)\n }\n"
        " p = load f32[x 32] a[0 | 1]\n q = add(p, p)\n store z[1 | 1] = q\n store z[0 | 0] = r",
        "f32[64]",
        {"m", "o", "g", "c", "d", "r"},
    ),
    "through a branch": (
        "x = load f32[2 x 32] a[0; 32 | 1]\n e = load f32[2 x 32] a[9; 32 | 1]\n s = reduce add slot 0 x\n"
        " (r) = if t < 1 {\n y = add(x, x)\n yield (y)\n } else {\n yield (e)\n }\n store z[0; 16 | 1] = r",
        "f32[64]",
        {"x", "e", "s", "y", "r"},
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_layouts_are_inferred(name: str) -> None:
    """What cannot be spread is held by each thread, and so is what is taken together with it; the rest is spread."""
    body, out, held = HELD[name]
    program = tile_program(body, out, scratch="in v: i32[8],")
    assert held_tiles(program) == held
    compare(program)


def test_the_program_of_a_thread(golden: object) -> None:
    (program,) = tiles(SOFTMAX)
    golden(f"{program}\n{distribute(program)}")  # type: ignore[operator]
