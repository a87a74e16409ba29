"""Point nests: the choice of the lanes' rank, loads of every slope, long ranks in chunks, masks, types."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import dlc
from dlc.codegen.target import AVX2, AVX512, Target, host_flags
from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I8, I16, I32, I64, U8, DType
from dlc.ir.expr import Cast, apply
from dlc.ir.parser import parse_program

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import TARGETS, check, sample, targets

LOADS = {
    "contiguous": ("O[i, j] = X[i, j] + 1.0", "x 16]"),
    "broadcast along the lanes": ("O[i, j] = X[i, j] * V[i]", "| 0]"),
    "transposed": ("O[i, j] = Y[j, i] * 2.0", "x 16]"),
    "reversed": ("O[i, j] = X[i, #j - 1 - j]", "| -1]"),
    "every third": ("O[i, j] = Z[i, 3*j + 1]", "| 3]"),
    "symbolic stride": ("O[i, j] = Y[j, i] + Y[j, 0]", "| #j] = "),
    "gathered": ("O[i, j] = X[i, I[j]]", "gather"),
    "gathered rows": ("O[i, j] = X[J[i], j]", "| 1]"),
    "gathered twice": ("O[i, j] = X[J[i], I[j]]", "gather"),
    "divided": ("O[i, j] = X[i, j // 2] + X[i, j % 3 % #j]", "gather"),
    "shifted in": ("O[i, j] = X[i, j - 1] else 7.0", "mask"),
    "clamped": ("O[i, j] = X[i, min(max(j - 2, 0), #j - 1)]", "gather"),
    "piecewise": ("O[i, j] = X[i, j] when j < 3 | { V[i] when i > j | 0.5 }", "mask"),
    "first of two guards": ("O[i, j] = { X[i, j] when j < 5 | V[i] when j < 20 | 0.5 }", "mask"),
    "own index": ("O[i, j] = X[i, j] * cast<f32>(3*j - i)", "iota"),
    "one value": ("O[i, j] = C[0]", "x 16]"),
}


@targets
@pytest.mark.parametrize("name", LOADS)
def test_loads_of_every_slope(name: str, target: Target) -> None:
    body, shows = LOADS[name]
    text = f"""
    cascade f(X: f32[i, j], Y: f32[j, i], Z: f32[i, 3*j], V: f32[i], I: i64[j], J: i64[i], C: f32[1])
      -> (O) symbols (i in 1.., j in 1..) {{
      {body}
    }}""".replace("C: f32[1])\n      ->", "C: f32[1]) ->")
    for i, j in ((1, 1), (3, 15), (2, 16), (5, 33), (4, 150)):
        rng = np.random.default_rng(j)
        arrays = [sample(rng, F32, s) for s in ((i, j), (j, i), (i, 3 * j), (i,))]
        arrays += [rng.integers(0, j, j), rng.integers(0, i, i), sample(rng, F32, (1,))]
        ran = check(text, inputs=arrays, target=target, interpret=j in (15, 33))
    if target is AVX512:
        assert shows in ran.tiles[0], ran.tiles[0]


@targets
@pytest.mark.parametrize("guard", ["i < 2", "#j * i + j < 2 * #j"])
def test_an_index_of_a_piece_not_taken_is_not_read(guard: str, target: Target) -> None:
    """Also where all lanes share the index: the second and later rows of J lead outside of I."""
    text = f"""
    cascade f(X: f32[m, j], I: i64[k], J: i64[i]) -> (O) symbols (i in 1.., j in 1.., k in 1.., m in 1..) {{
      O[i, j] = {{ X[I[J[i]], j] when {guard} | 0.5 }}
    }}"""
    rng = np.random.default_rng(0)
    for j in (1, 15, 16, 37):
        arrays = [sample(rng, F32, (5, j)), np.array([4, 3, 0]), np.array([2, 1, 99, -77])]
        check(text, inputs=arrays, target=target, interpret=j in (15, 37))


@targets
def test_a_long_rank_is_shared_out_in_chunks(target: Target) -> None:
    text = "cascade f(X: f32[n], Y: f32[n]) -> (O) { O[n] = X[n] * Y[n] + 1.0 }"
    for n in (0, 1, 4095, 4096, 4097, 9000):
        ran = check(text, {"n": n}, target=target, interpret=n == 4097)
    (lowered,) = ran.lowered.values()
    assert str(lowered.tile.tasks) == "((#n + 4095) // 4096)"


def test_results_larger_than_the_caches_are_written_past_them() -> None:
    """Known sizes are decided when compiled, others in the call; either way the first stores lead up to a whole line."""
    small = replace(AVX512, l3_bytes=40_000)
    text = "cascade f(X: f32[n], Y: f32[n]) -> (O) { O[n] = X[n] * Y[n] + 1.0 }"
    for n in (0, 1, 9999, 10_000, 10_001, 12_287, 12_288, 12_300):
        (tile,) = check(text, {"n": n}, target=small, interpret=n > 12_000).tiles
        assert "if 4*#n >= 40000" in tile and " nontemporal" in tile
    for n, streams in ((9_000, False), (12_289, True)):
        (tile,) = check(text.replace("[n]", f"[n:{n}]", 3).replace(f"f32[n:{n}]", f"f32[{n}]"), target=small).tiles
        assert (" nontemporal" in tile, "if 4*" in tile) == (streams, False)


def test_rows_of_whole_lines_are_written_past_the_caches() -> None:
    """Where the results exceed the last cache: several rows of a task too, from the first whole line of each on."""
    small = replace(AVX512, l3_bytes=40_000)
    text = "cascade f(X: f32[n, m], S: f32[m]) -> (O) { O[n, m] = max(X[n, m] * S[m], 0.0) }"
    for width, rows, streams in ((64, 157, True), (1024, 10, True), (128, 78, False), (48, 300, False), (769, 20, False)):
        known = text.replace("X: f32[n, m]", f"X: f32[n, {width}]").replace("S: f32[m]", f"S: f32[{width}]")
        (tile,) = check(known.replace("O[n, m]", f"O[n, m:{width}]"), {"n": rows}, target=small, interpret=rows < 20).tiles
        assert (f"if {4 * width}*#n >= 40000" in tile) == (" nontemporal" in tile) == (width % 16 == 0 and width > 48), tile
        fixed = known.replace("O[n, m]", f"O[n:{rows}, m:{width}]").replace("[n, ", f"[{rows}, ", 1)
        (tile,) = check(fixed, target=small, interpret=rows < 20).tiles
        assert (" nontemporal" in tile, "if 4*" in tile) == (streams, False)


@pytest.mark.skipif(not host_flags().issuperset(AVX512.features), reason="the host lacks this level")
def test_rows_past_the_caches_begin_anywhere() -> None:
    """The result given by the caller may begin within a line: what lies before the first whole one is stored as usual."""
    small = replace(AVX512, l3_bytes=4_000)
    text = "cascade f(X: f32[20, 64], S: f32[64]) -> (O) { O[n:20, m:64] = X[n, m] * S[m] }"
    exe = dlc.compile(parse_program(text), target=small, cache=False)
    rng = np.random.default_rng(0)
    x, s = rng.standard_normal((20, 64), dtype=np.float32), rng.standard_normal(64, dtype=np.float32)
    for start in range(17):
        memory = np.zeros(20 * 64 + 32, np.float32)
        exe(x, s, out=memory[start : start + 20 * 64].reshape(20, 64))
        np.testing.assert_array_equal(memory[start : start + 20 * 64].reshape(20, 64), x * s)
        assert not memory[:start].any() and not memory[start + 20 * 64 :].any()


def test_many_small_ranks_become_one() -> None:
    """Merged ranks: one pair of loops over 3*4*5*n elements, whatever the shape was."""
    text = "cascade f(X: f32[3, n, 4, 5]) -> (O) { O[a:3, n, c:4, d:5] = max(X[a, n, c, d], 0.0) }"
    for target in TARGETS:
        for n in (0, 1, 7, 200):
            ran = check(text, {"n": n}, target=target, interpret=n == 7)
    assert "60*#n" in ran.tiles[0]


@targets
def test_fused_steps_with_inner_results(target: Target) -> None:
    text = """
    cascade f(X: f32[n, m], B: f32[m]) -> (S, O, K) {
      S[n, m] = X[n, m] + B[m]
      T[n, m] = sigmoid(S[n, m])
      O[n, m] = S[n, m] * T[n, m]
      K[n, m] = O[n, m] > S[n, m]
    }"""
    for n, m in ((1, 1), (3, 19), (2, 64)):
        ran = check(text, {"n": n, "m": m}, target=target)
    assert ran.strategies == ["points"]


TYPES = (F64, F32, F16, BF16, I8, U8, I16, I32, I64, BOOL)


@targets
@pytest.mark.parametrize("source", TYPES, ids=str)
def test_conversions(source: DType, target: Target) -> None:
    """From each type to all, with sums in the source's own arithmetic, over whole registers and a rest."""
    b = Builder("f")
    x = b.input("x", source, (37,))
    outs = [b.compute("c", (37,), lambda i, t=t: Cast(t, x(i)), t) for t in TYPES]
    if source is not BOOL:
        outs.append(b.map("twice", lambda u: apply("add", u, u), x))
        outs.append(b.map("least", lambda u, v: apply("min", u, v), x, x.flip(0)))
    values = sample(np.random.default_rng(3), F64, (37,)) * 50
    if source.is_int and source.kind == "u":
        values = np.abs(values)
    check(b.finish(outs), inputs=[values.astype(source.numpy)], target=target)


@targets
def test_functions_of_a_point(target: Target) -> None:
    b = Builder("f")
    x = b.input("x", F32, (b.symbol("n", 0),))
    ops = "exp log sqrt rsqrt tanh erf sigmoid sin cos floor ceil round trunc sign abs expm1 log1p atan exp2".split()
    total = [b.map(op, lambda u, op=op: apply(op, u), x) for op in ops]
    check(b.finish(total), {"n": 37}, target=target, interpret=False)


@targets
def test_special_values_pass_through(target: Target) -> None:
    b = Builder("f")
    special = np.array([0.0, -0.0, 1.0, np.inf, -np.inf, np.nan, 1e-40, -1e-40, 3e38, -3e38] * 4, np.float32)
    x = b.input("x", F32, (40,))
    y = b.input("y", F32, (40,))
    ops2 = ("add", "sub", "mul", "div", "max", "min", "maxnum", "minnum", "copysign")
    outs = [b.map(op, lambda u, v, op=op: apply(op, u, v), x, y) for op in ops2]
    outs += [b.map(op, lambda u, op=op: apply(op, u), x) for op in ("sqrt", "exp", "tanh", "sigmoid")]
    check(b.finish(outs), inputs=[special, np.roll(special, 3)], target=target)


def test_a_checked_gather_names_the_tensor() -> None:
    """Outside: the whole call fails with the check's message, in the interpreter and natively."""
    import dlc
    from dlc.ir.errors import IndexOutOfRange
    from dlc.ir.interpret import run_program
    from dlc.ir.parser import parse_program
    from dlc.runtime.errors import RuntimeCheckFailed

    text = "cascade f(X: f32[n], I: i64[m]) -> (O) { O[m] = X[I[m]] }"
    for bad in (-1, 5, 1 << 40, -(1 << 62)):
        arrays = [np.zeros(5, np.float32), np.array([0, 4, bad])]
        with pytest.raises(IndexOutOfRange):
            run_program(parse_program(text), arrays)
        with pytest.raises(RuntimeCheckFailed):
            dlc.compile(text)(*arrays)


def test_points_as_a_tile_program(golden) -> None:  # type: ignore[no-untyped-def]
    """A guarded read becomes a masked load; whole registers first, then a masked one."""
    ran = check("cascade f(X: f32[20], B: f32[20]) -> (O) { O[i:20] = (X[i - 3] else 0.0) * B[i] }", {})
    golden(f"{ran.program.kernels[0]}\n\n{ran.tiles[0]}")


def test_lanes_follow_the_widest_type() -> None:
    for dtype, lanes in ((F32, 16), (F64, 8), (I64, 8), (I8, 16)):
        b = Builder("f")
        x = b.input("x", dtype, (64,))
        ran = check(b.finish([b.map("y", lambda u: apply("add", u, u), x)]), {})
        assert f"x {lanes}]" in ran.tiles[0]
        b = Builder("f")
        x = b.input("x", dtype, (64,))
        ran = check(b.finish([b.map("y", lambda u: apply("add", u, u), x)]), {}, target=AVX2)
        assert f"x {lanes // 2}]" in ran.tiles[0]
