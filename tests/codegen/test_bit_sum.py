"""Linear layers of activations and weights of a few bits each, as counts of common bits, at every level of instructions."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.lower import lower_kernel
from dlc.codegen.native import compile_mlir
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target, parse_target
from dlc.codegen.tile_to_mlir import lower
from dlc.compiler import run_passes
from dlc.costmodel.words import WordCosts, word_costs
from dlc.ir.bit_sums import bit_sum
from dlc.ir.codes import coded, decode, values
from dlc.ir.dtype import DTYPES, I32
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.extent import int_expr
from dlc.ir.parser import parse_program
from dlc.passes.default import default_pipeline

sys.path.insert(0, str(Path(__file__).parent))
from bit_layers import Layer
from coded_layers import random_codes
from kernel_harness import Ran, check

FULL = parse_target("avx512+avx512_vnni+avx512_bf16+avx512vbmi+avx512_vpopcntdq")
LEVELS = (FULL, AVX512, AVX2, BASELINE)
levels = pytest.mark.parametrize("target", LEVELS, ids=str)
FREE = WordCosts(dot=1000, bits=1)  # as if bytes were dear, so that pairs which do not pay are seen, too
ROWS = ("u1", "b1", "i1", "u2", "i2", "b2", "u3", "i3", "b3", "u4", "i4", "b4")
WEIGHTS = ("u1", "b1", "i1", "i2", "b2", "t2", "u3", "i4", "b4")


def pipeline(target: Target, costs: WordCosts = FREE) -> str:
    return default_pipeline(target.lanes, target.vector_registers, costs=costs)


def run(layer: Layer, target: Target, count: int = 3, costs: WordCosts = FREE) -> Ran:
    return check(layer.program(), {"m": count}, inputs=[layer.inputs(layer.count or count)], target=target, passes=pipeline(target, costs))


def pair(number: int) -> None:
    """Groups that are no whole number of words, the last one shorter; columns that do not fill their panel."""
    rows, weights = ROWS[number % len(ROWS)], WEIGHTS[number // len(ROWS)]
    zeros = (None, "u2", "f16")[(number + number // len(ROWS)) % 3]
    assert "bits" in run(Layer(rows, weights, 3, 150, 40, 70, zeros), LEVELS[(number + number // 4) % 4]).strategies


PAIRS = range(len(ROWS) * len(WEIGHTS))


@pytest.mark.parametrize("number", PAIRS[::5])
def test_pairs_of_types(number: int) -> None:
    pair(number)


@pytest.mark.slow
@pytest.mark.parametrize("number", PAIRS)
def test_every_pair_of_types(number: int) -> None:
    pair(number)


@levels
@pytest.mark.parametrize("layer", [
    Layer("b1", "b1", 1, 512, 64, 512), Layer("b1", "b1", None, 256, 33, 64), Layer("u1", "b1", 17, 100, 70, 50, "u4"),
    Layer("i4", "b4", 9, 64, 16, 32), Layer("b2", "i2", 33, 33, 5, 33), Layer("b1", "i7", 2, 90, 20, 45, "u4"),
    Layer("b1", "b1", 3, 96, 40, 32), Layer("u1", "u8", 2, 5000, 20, 5000), Layer("u2", "t2", None, 1000, 40, 1000),
])  # fmt: skip
def test_shapes(layer: Layer, target: Target) -> None:
    """One row and many, known and not; one group and several, of one word and more."""
    assert "bits" in run(layer, target, 19).strategies


@pytest.mark.parametrize("weights", ["u1", "b2", "i3", "u4"])
@pytest.mark.parametrize("rows", ROWS)
def test_every_code_beside_every_other(rows: str, weights: str) -> None:
    """The sums are exact; the first column has each pair of codes once."""
    left, right = DTYPES[rows], DTYPES[weights]
    target = LEVELS[(ROWS.index(rows) + len(weights) + int(weights[1])) % 4]
    pairs = np.array(list(itertools.product(range(left.codes), range(right.codes))), np.uint8)
    while len(pairs) <= 32:
        pairs = np.concatenate([pairs, pairs[1:]])
    program = parse_program(f"""
    program f(x: f32[1, {len(pairs)}]) -> (y) {{
      const c: {weights}[16, {len(pairs)}]
      q[m:1, k:{len(pairs)}]: {rows} = cast<{rows}>(x[m, k])
      y[m:1, n:16]: f32 = sum(k:{len(pairs)}) cast<f32>(q[m, k]) * cast<f32>(c[n, k])
    }}""")
    codes = np.stack([np.roll(pairs[:, 1], n) for n in range(16)])
    program.data["c"] = coded(codes, right)
    x = decode(coded(pairs[:, 0], left), left).astype(np.float32)[None]
    ran = check(program, {}, inputs=[x], target=target, passes=pipeline(target))
    assert "bits" in ran.strategies
    np.testing.assert_array_equal(ran.values["y"], x @ values(right)[codes].T)


@pytest.mark.parametrize("zero", ["30000.0", "-40000.0", "1e12", "u16", "u8"])
@pytest.mark.parametrize(("rows", "weights", "terms"), [("u4", "u1", 4096), ("b4", "b1", 4096), ("i8", "u4", 512)])
def test_zero_points_times_sums_that_do_not_fit(rows: str, weights: str, terms: int, zero: str) -> None:
    """Whole numbers as long as i32 holds the sum of a group, whatever the activations; floats beyond."""
    stored = f"const z: {zero}[16]" if zero in ("u8", "u16") else ""
    subtracted = "cast<f32>(z[n])" if stored else zero
    program = parse_program(f"""
    program f(x: f32[1, {terms}]) -> (y) {{
      const c: {weights}[16, {terms}]
      {stored}
      q[m:1, k:{terms}]: {rows} = cast<{rows}>(x[m, k])
      y[m:1, n:16]: f32 = sum(k:{terms}) cast<f32>(q[m, k]) * (cast<f32>(c[n, k]) - {subtracted})
    }}""")
    rng = np.random.default_rng(0)
    program.data["c"] = random_codes(rng, DTYPES[weights], (16, terms))
    if stored:
        program.data["z"] = np.full(16, 60000 if zero == "u16" else 200, DTYPES[zero].numpy)
    x = (rng.random((1, terms)) * 200).astype(np.float32)
    ran = check(program, {}, inputs=[x], passes=pipeline(AVX512), interpret=False)
    assert {"coded", "bits"} & {*ran.strategies}


def test_one_tile_program(golden: Callable[..., None]) -> None:
    """One plane of each: what differs is counted, twice that taken from the number of terms."""
    layer = Layer("b1", "b1", 2, 128, 32, 64)
    after = run_passes(layer.program(), pipeline(FULL))
    golden(next(t for k in after.kernels if "dot<" in (t := str(lower_kernel(k, after.facts, FULL).tile))), "b1-b1")


@pytest.mark.parametrize(
    ("target", "wanted", "unwanted"),
    [(FULL, ("vpopcntd",), ("pshufb", "pdpbusd")), (AVX2, ("vpshufb", "vpmaddubsw"), ("%zmm",)), (BASELINE, ("pshufb", "pmaddubsw"), ("%ymm",))],
    ids=str,
)
def test_instructions(target: Target, wanted: tuple[str, ...], unwanted: tuple[str, ...]) -> None:
    after = run_passes(Layer("b1", "b1", 1, 256, 64, 256).program(), pipeline(target, word_costs(target.has)))
    tile = next(t for k in after.kernels if "dot<u1, u1>" in str(t := lower_kernel(k, after.facts, target).tile))
    asm = compile_mlir(lower(tile, target), target, want_asm=True).asm or ""
    assert all(w in asm for w in wanted) and not any(w in asm for w in unwanted)


@pytest.mark.parametrize(
    ("target", "rows", "weights", "count", "chosen"),
    [
        (FULL, "b1", "b1", 1, "bits"),
        (FULL, "b1", "b1", 16, "bits"),
        (FULL, "i2", "b1", 1, "bits"),
        (FULL, "i2", "i2", 16, "bits"),
        (FULL, "b2", "i3", 16, "coded"),
        (AVX512, "i2", "i2", 16, "bits"),
        (AVX2, "i2", "i4", 16, "coded"),
        (BASELINE, "u4", "b1", 16, "bits"),
        (FULL, "b5", "b1", 1, "coded"),
        (FULL, "b1", "u5", 1, "bits"),
        (FULL, "b1", "u5", 16, "coded"),
        (FULL, "b1", "f4e2m1", 1, "coded"),
        (FULL, "t2", "b1", 1, "coded"),
    ],
    ids=str,
)
def test_chosen_by_cost(target: Target, rows: str, weights: str, count: int, chosen: str) -> None:
    """As bits where that takes fewer instructions than as bytes; what has no planes as bytes."""
    ran = run(Layer(rows, weights, count, 256, 32, 128), target, costs=word_costs(target.has))
    assert chosen in ran.strategies, ran.strategies


def test_costs() -> None:
    """Figures by hand: 128 terms are 4 words of bits or 32 of bytes."""
    best = word_costs(FULL.has)
    assert best == WordCosts() == WordCosts(dot=1, bits=2)
    assert [word_costs(t.has) for t in (parse_target("avx512+avx512_vnni"), AVX2)] == [WordCosts(1, 8), WordCosts(9, 14)]
    assert best.planes_pay(4, 1, 128, 16)  # 32 against 32 * (1 + 2/16)
    assert not best.planes_pay(5, 1, 128, 16) and not best.planes_pay(5, 1, 128, None)  # 40
    assert not best.planes_pay(5, 1, 128, 8) and best.planes_pay(5, 1, 128, 7)  # ... against 40, and more
    assert best.planes_pay(2, 2, 33, 1)  # two words, the second for one term: 16 against 9 * 3
    assert not best.planes_pay(1, 5, 8, 16)  # one word whatever there is in it: 10 against 2 * (1 + 3/16)


WORDS = "sum(p:2, w:4) popcount(and(A[p, m, w], W[n // 32, 0, 0, w, n % 32])) * F[p]"


def found(body: str, **types: TensorType) -> bool:
    text = f"""
    program f(A: i32[2, 3, 4], W: i32[2, 1, 1, 4, 32], F: i32[2], G: i32[3], V: i32[2, 1, 4, 32]) -> (y) {{
      y[m:3, n:64]: i32 = {body}
    }}"""
    program = parse_program(text)
    (step,) = program.body.body
    assert isinstance(step, Einsum)
    return bit_sum(step, {p.name: p.type for p in program.params} | types) is not None


@pytest.mark.parametrize(
    ("body", "is_one"),
    [
        (WORDS, True),
        (WORDS.replace("and(", "xor("), True),
        ("sum(p:2, w:4) F[p] * popcount(and(W[n // 32, 0, 0, w, n % 32], A[p, m, w]))", True),
        (WORDS.replace(" * F[p]", ""), True),
        (WORDS.replace("sum(", "max("), False),
        (WORDS.replace("and(", "or("), False),
        (WORDS.replace("popcount(", "neg("), False),
        (WORDS.replace("F[p]", "G[m]"), False),
        (WORDS.replace("F[p]", "F[w % 2]"), False),
        (WORDS.replace("A[p, m, w]", "A[p, n % 3, w]"), False),
        (WORDS.replace("A[p, m, w]", "A[p, m, p]"), False),
        (WORDS.replace("W[n // 32, 0, 0, w, n % 32]", "V[n // 32, 0, w, n % 32]"), False),
        (WORDS.replace("W[n // 32, 0, 0, w, n % 32]", "W[n // 32, 0, 0, w, 3]"), False),
    ],
)
def test_recognised(body: str, is_one: bool) -> None:
    assert found(body) is is_one


def test_recognised_by_type() -> None:
    assert not found(WORDS, W=replace(TensorType(I32, tuple(map(int_expr, (2, 1, 1, 4, 32)))), order=(1, 0, 2, 3, 4)))
