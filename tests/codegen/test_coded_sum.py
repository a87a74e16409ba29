"""Linear layers with weights in codes of 1 to 8 bits, at every level of instructions, against the interpreter."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen.lower import lower_kernel
from dlc.codegen.native import compile_mlir
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target, parse_target
from dlc.codegen.tile_to_mlir import lower
from dlc.compiler import run_passes
from dlc.errors import Internal
from dlc.ir.dtype import U4
from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.passes.default import default_pipeline

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from coded_layers import ACTIVATIONS, TYPES, Case, case, random_codes
from kernel_harness import Ran, check
from ledger import Ledger, digest_of

FULL = parse_target("avx512+avx512_vnni+avx512_bf16+avx512vbmi")
LEVELS = (FULL, AVX512, AVX2, BASELINE)
levels = pytest.mark.parametrize("target", LEVELS, ids=str)
WHOLE = 2000


def run(layer: Case, target: Target, *, interpret: bool = False, only: str | None = None) -> Ran:
    only = only if layer.streamed else None
    ran = check(layer.program(), {"m": layer.count}, inputs=[layer.inputs()], target=target, interpret=interpret, only=only)
    assert ("coded" in ran.strategies) == layer.streamed, ran.strategies
    return ran


@levels
@pytest.mark.parametrize("number", range(0, WHOLE, 125))
def test_random_layers(number: int, target: Target) -> None:
    """A sample of the two thousand; which of them depends on the level, so that more are seen."""
    layer = case(number + LEVELS.index(target))
    run(layer, target, interpret=layer.terms < 200 and layer.count < 8)


@pytest.mark.slow
@levels
def test_two_thousand_layers(target: Target) -> None:
    """All of them; the ledger knows those whose code is as it was. Only the products are compiled: what rounds activations is a few
    kernels over and over, which the sample above runs.
    """
    ledger = Ledger("coded_layers")
    for number in range(WHOLE):
        layer = case(number)
        key = ledger.key(f"{target} {number}", digest=digest_of(*tiles(layer.program(), target)))
        if ledger.get(key) is None:
            run(layer, target, only="coded")
            ledger.put(key, {"status": "pass", "layer": str(layer)})


def tiles(program: Program, target: Target) -> list[str]:
    """The tile programs of its kernels."""
    after = run_passes(program, default_pipeline(target.lanes, target.vector_registers))
    return [str(lower_kernel(k, after.facts, target).tile) for k in after.kernels]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weights", TYPES)
def test_every_type(weights: str, activation: str) -> None:
    """Each with each kind of activations, groups that come out even, on the widest level."""
    run(Case(weights, activation, 2, 2, 64, 40, 32), FULL)


@levels
def test_a_panel_in_parts(target: Target) -> None:
    """More rows than a tile, and more terms than are unpacked at a time; the last part is shorter."""
    run(Case("i3", "f32", None, 21, 2100, 70, 100, "f32", "u4"), target)
    run(Case("f6e3m2", "bf16", 19, 19, 4200, 33, 128), target)
    run(Case("u5", "i8", 40, 40, 4200, 33, 32), target)


@pytest.mark.parametrize("rows", [4, 9, 16, 20, 21])
@pytest.mark.parametrize("weights", ["i3", "u5", "i7", "f6e2m3", "f6e3m2", "f7e3m3", "f8e4m3", "f8e5m2", "f4e2m1"])
def test_codes_taken_apart_a_step_ahead(weights: str, rows: int) -> None:
    """One tile of all rows up to 20, the last step of each group reading past it; every column of the last panel exists."""
    ran = run(Case(weights, "i8", rows, rows, 192, 64, 64), FULL, interpret=rows in (4, 16))
    carried = [m.count("=") for t in ran.tiles for m in re.findall(r"for word_\d+ .* carry \((.*?)\)", t)]
    assert rows > 20 or (len(carried) == 1 and carried[0] > 1), "what is multiplied was made before"


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_few_terms(activation: str, terms: int) -> None:
    """A word that is not full, and one whose terms need no remainder to say where they are."""
    run(Case("f7e3m3", activation, 3, 3, terms, 40, terms), FULL)


def test_several_ranks_of_rows() -> None:
    """Batch and length become one rank of rows."""
    text = """
    program f(x: f32[2, 3, 64]) -> (y) {
      const c: u4[40, 64]
      const s: f16[40, 2]
      w[n:40, k:64]: f32 = (cast<f32>(c[n, k]) - 8.0) * cast<f32>(s[n, k // 32])
      y[b:2, t:3, n:40]: f32 = sum(k:64) x[b, t, k] * w[n, k]
    }"""
    program, rng = parse_program(text), np.random.default_rng(0)
    program.data["c"] = random_codes(rng, U4, (40, 64))
    program.data["s"] = rng.random((40, 2)).astype(np.float16)
    ran = check(program, {}, inputs=[rng.standard_normal((2, 3, 64)).astype(np.float32)], target=FULL)
    assert ran.strategies == ["coded"]


def test_one_tile_program(golden: Callable[..., None]) -> None:
    """Four bits, one row: a mask and a shift for two words of each lane, the zero point once for a group."""
    layer = Case("i4", "i8", 1, 1, 64, 64, 32)
    golden(next(t for t in tiles(layer.program(), FULL) if "u8[1, 4 x 64]" in t), "i4-i8")
    layer = Case("f3e1m1", "f32", 3, 3, 64, 32, 32)
    golden(next(t for t in tiles(layer.program(), FULL) if "unpack" in t), "f3-f32")


WORDS = {
    "i4": {FULL: ("vpdpbusd",), AVX512: ("vpmaddwd",), AVX2: ("vpmaddwd",), BASELINE: ("pmaddwd",)},
    "i3": {FULL: ("vpmultishiftqb", "vpermb", "vpdpbusd"), AVX512: ("vpmaddwd",), AVX2: ("vpmaddwd",), BASELINE: ("pshufb", "pmaddwd")},
    "f6e2m3": {FULL: ("vpmultishiftqb", "vpermb", "vpdpbusd"), AVX512: ("vpshufb",), AVX2: ("vpshufb",), BASELINE: ("pshufb",)},
}


@levels
@pytest.mark.parametrize("weights", WORDS)
def test_instructions(weights: str, target: Target) -> None:
    """Each level has the instructions it is meant to have, and none of the others' registers."""
    program = Case(weights, "i8", 1, 1, 64, 64, 32).program()
    after = run_passes(program, default_pipeline(target.lanes, target.vector_registers))
    lowered = [lower_kernel(k, after.facts, target).tile for k in after.kernels]
    tile = next(t for t in lowered if "dot<" in str(t))
    asm = compile_mlir(lower(tile, target), target, want_asm=True).asm or ""
    for word in WORDS[weights][target]:
        assert word in asm, word
    wider = {AVX2: "%zmm", BASELINE: "%ymm"}.get(target)
    assert wider is None or wider not in asm


@pytest.mark.parametrize("weights", ["i1", "b2", "i4"])
def test_zero_points_of_either_sign(weights: str) -> None:
    """What the algebra makes of `code - (zero - start)` is still a number less a zero point."""
    run(Case(weights, "f32", 3, 3, 100, 40, 32, "f32", "u4"), FULL)


def test_packed_codes_are_read_by_their_kernel_alone() -> None:
    """Anything else would take the bytes for codes."""
    text = "program f(x: f32[8]) -> (y) {\n const c: u4[8]\n y[i:8]: f32 = x[i] * cast<f32>(c[i])\n}"
    program = parse_program(text)
    program.data["c"] = random_codes(np.random.default_rng(0), U4, (8,))
    after = run_passes(program, "fuse")
    with pytest.raises(Internal, match="reads packed codes, but not as a sum with them"):
        lower_kernel(after.kernels[0], after.facts, FULL)
