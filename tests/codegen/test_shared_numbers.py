"""Tile programs that differ in numbers alone: what becomes one, what stays two, and that every launch computes with its own."""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tests.passes.samples import outputs
from tests.passes.test_share_literals import pieces

import dlc
from dlc.codegen.build import kernel_symbol, known_names
from dlc.codegen.lower import lower_kernel
from dlc.codegen.shared_numbers import MOST, Shared, share_numbers
from dlc.codegen.target import TARGETS
from dlc.codegen.tile_interp import run as run_tile
from dlc.codegen.tile_parse import parse as parse_tile
from dlc.codegen.tile_verify import verify as verify_tile
from dlc.ir.parser import parse_program
from dlc.ir.program import Launch, Program, walk_statements
from dlc.ir.verify import verify
from dlc.number_tables import with_tables

PARAMS = "X: f32[9], N: i32[9], B: u8[9], S: f32[]"
QUANTISED = "R[i:9]: u8 = cast<u8>(min(max(round(X[i] / {}) + {}, 0.0), 255.0))"
DEQUANTISED = "R[i:9] = cast<f32>(cast<i32>(B[i]) - i32({})) * {}"
INFINITE, NONE = np.float32(np.inf), np.float32(np.nan)
SPECIAL = np.array([0.0, -0.0, 1.5, -2.5, 1e30, -1e-40, INFINITE, -INFINITE, NONE], np.float32)


def program_of(*bodies: str) -> Program:
    return pieces(*bodies, params=PARAMS)


@dataclass(frozen=True)
class Merged(Shared):
    program: Program


def shared(program: Program, target: str = "avx2") -> Merged:
    tiles = {k.name: lower_kernel(k, program.facts, TARGETS[target]).tile for k in program.kernels}
    made = share_numbers(tiles, known_names(program))
    for each in made.tiles.values():
        verify_tile(each)
        assert parse_tile(str(each)) == each
    return Merged(made.tiles, made.tables, with_tables(program, made.tables))


def kernels(made: Merged) -> int:
    """How many native kernels compute the bodies' results."""
    names = {
        s.kernel for s in walk_statements(made.program.body) if isinstance(s, Launch) and s.outs[0].startswith("R")
    }
    return len({kernel_symbol(made.tiles[n], TARGETS["avx2"]) for n in names})


def alone(text: str, arrays: list[np.ndarray]) -> np.ndarray:
    """The result of a body that is compiled by itself: its numbers are in the code."""
    return np.asarray(dlc.compile(program_of(text))(*arrays))


def check(*bodies: str, seed: int = 0) -> int:
    """Each body gives the bits that it gives when it is compiled alone; how many kernels they are."""
    rng = np.random.default_rng(seed)
    program = program_of(*bodies)
    plain = [
        rng.standard_normal(9).astype(np.float32),
        rng.integers(-99, 99, 9).astype(np.int32),
        rng.integers(0, 255, 9).astype(np.uint8),
    ]
    exe = dlc.compile(program, disable_passes=["share-literals"])
    for x in (plain[0], SPECIAL):
        arrays = [x, *plain[1:], np.float32(0.75)]
        for text, got in zip(bodies, exe(*arrays), strict=True):
            want = alone(text, arrays)
            np.testing.assert_array_equal(got, want, text)
            np.testing.assert_array_equal(np.signbit(got)[want == want], np.signbit(want)[want == want], text)
    return kernels(shared(program))


def test_quantisation_as_text(golden: Callable[[str], None]) -> None:
    made = shared(program_of(QUANTISED.format(0.03, 131.0), QUANTISED.format(0.25, 7.0)))
    assert kernels(made) == 1
    tables = "\n".join(f"{c.name} = {made.program.data[c.name]!r}" for c in made.program.consts)
    launches = "\n".join(str(s) for s in walk_statements(made.program.body) if isinstance(s, Launch))
    (name, *_) = (s.kernel for s in walk_statements(made.program.body) if isinstance(s, Launch) and s.outs[0] == "R0")
    golden(f"{made.tiles[name]}\n{launches}\n{tables}\n")


def test_quantised_layers_are_one_kernel() -> None:
    scales = [(0.03, 131.0), (0.25, 7.0), (0.5, 1.0), (2.0**-30, 255.0), (3e-7, 128.0)]
    assert check(*(QUANTISED.format(*pair) for pair in scales)) == 1
    assert check(*(DEQUANTISED.format(int(z), s) for s, z in scales)) == 1


def test_what_is_lowered_in_another_way_stays_apart() -> None:
    """A divisor all of whose bits are ones takes a division, and a zero point that is no whole number no clamp of floats."""
    ones = float(np.float32(2) - np.float32(2.0**-23))
    assert check(QUANTISED.format(0.03, 131.0), QUANTISED.format(ones, 7.0), QUANTISED.format(0.5, 1.5)) == 3


@pytest.mark.parametrize(
    "op", ["{} + {}", "{} - {}", "{} * {}", "{} / {}", "max({}, {})", "min({}, {})", "select({} > {}, X[i], S[])"]
)
@pytest.mark.parametrize("turned", [False, True])
def test_every_operator_keeps_its_bits(op: str, turned: bool) -> None:
    """With any two numbers, special ones included; NaN is never among what is given."""
    numbers = ("0.5", "-3.0", "0.0", "-0.0", "inf", "-inf", "nan")
    texts = [f"R[i:9] = {op.format(*((c, 'X[i]') if turned else ('X[i]', c)))}" for c in numbers]
    made = shared(program_of(*texts))
    check(*texts)
    assert not any(np.isnan(made.program.data[c.name]).any() for c in made.program.consts)


@pytest.mark.parametrize("op", ["{} + {}", "{} - {}", "{} * {}", "select({} > {}, N[i], i32(3))"])
def test_integers_keep_their_bits(op: str) -> None:
    assert check(*(f"R[i:9]: i32 = {op.format('N[i]', f'i32({c})')}" for c in (2, 7, -9, 2**31 - 1))) == 1


def test_shifts_and_quotients_of_integers_stay() -> None:
    assert check("R[i:9]: i32 = shl(N[i], i32(2))", "R[i:9]: i32 = shl(N[i], i32(5))") == 2
    assert check("R[i:9]: i32 = div_floor(N[i], i32(3))", "R[i:9]: i32 = div_floor(N[i], i32(5))") == 2


def test_every_small_group() -> None:
    """All triples of kernels with two numbers of two: one kernel, with a number for each column that differs."""
    text = "R[i:9] = (X[i] + {}) * {}"
    for group in itertools.product(itertools.product(("0.5", "3.0"), repeat=2), repeat=3):
        made = shared(program_of(*(text.format(*pair) for pair in group)))
        columns = {c for c in zip(*group, strict=True) if len(set(c)) > 1}
        given = {a for s in walk_statements(made.program.body) if isinstance(s, Launch) for a in s.args}
        sizes = {made.program.data[c.name].size for c in made.program.consts if c.name in given}
        assert kernels(made) == 1 and sizes == ({len(columns)} if columns else set()), group


def test_no_kernel_takes_too_many() -> None:
    def body(n: int, first: float) -> str:
        return "R[i:9] = " + " ".join(["("] * n) + "X[i]" + "".join(f" + {first + k})" for k in range(n))

    assert kernels(shared(program_of(body(MOST, 1.5), body(MOST, 0.25)))) == 1
    assert kernels(shared(program_of(body(MOST + 1, 1.5), body(MOST + 1, 0.25)))) == 2


@pytest.mark.parametrize("seed", range(12))
def test_random_expressions_keep_their_bits(seed: int) -> None:
    rng = random.Random(seed)

    def expression(depth: int) -> str:
        if depth == 0:
            return rng.choice(["X[i]", "S[]", "#", "cast<f32>(B[i])"])
        form = rng.choice(
            ["({} + {})", "({} * {})", "max({}, {})", "select({} > {}, X[i], #)", "tanh({} - {})", "round({} / {})"]
        )
        return form.format(expression(depth - 1), expression(depth - 1))

    shape = expression(3)
    bodies = []
    for _ in range(3):
        text = shape
        while "#" in text:
            text = text.replace("#", rng.choice(("0.5", "-1.25", "0.1", "7.0", "inf")), 1)
        bodies.append(f"R[i:9] = {text}")
    check(*bodies, seed=seed)


@pytest.mark.parametrize("name", ["numbers_f32", "numbers", "number0"])
def test_names_of_the_given_program_are_no_ones_else(name: str) -> None:
    """As a parameter, a step, a rank and a constant of the program, which may be called what tables and their numbers are."""
    kernel = "kernel over (r) {0}(N: f32[9], x: f32[9]) -> (y) {{ s[r:9] = x[r] + N[r]\ny[r:9] = max(s[r], {1}) * {2} }}"
    plain = "\n".join((kernel.format("one", 0.5, 3.0), kernel.format("other", 0.25, 5.0), "program p(X: f32[9]) -> (A, B) {"))
    plain += "const C: f32[9]\n(A) = launch one(C, X)\n(B) = launch other(C, X)\n}"
    x, c = np.linspace(-2, 2, 9, dtype=np.float32), np.arange(9, dtype=np.float32)
    for old in "Nsr":
        text = re.sub(rf"\b{old}\b", name, plain)
        made = replace(parse_program(text.replace("C", name)), data={name: c})
        result = shared(made)
        verify(result.program)
        assert len({kernel_symbol(t, TARGETS["avx2"]) for t in result.tiles.values()}) == 1
        for got, floor, factor in zip(dlc.compile(made)(x), (0.5, 0.25), (3.0, 5.0), strict=True):
            np.testing.assert_array_equal(got, np.maximum(x + c, np.float32(floor)) * np.float32(factor))


def test_a_name_may_be_another_tiles_in_another_region() -> None:
    """There it is no number that moves: each program computes what it did."""
    text = """
tile k(
  in X: f32[1],
  out R: f32[3],
) task task in 1 {{
  x = load f32 X[0 | 0]
  for number0 in 0 .. 1 step 1 {{
    c = const f32 {0}
    t = add(x, c)
    store R[0 | 0] = t
  }}
  for i in 0 .. 1 step 1 {{
    c = mul(x, x)
    u = add(c, x)
    store R[1 | 0] = u
  }}
  for i in 0 .. 1 step 1 {{
    d = const f32 {0}
    w = sub(x, d)
    store R[2 | 0] = w
  }}
}}
"""
    tiles = {f"k{n}": parse_tile(text.format(n)) for n in (0.5, 2.5)}
    made = share_numbers(tiles, ())
    for name, n in (("k0.5", 0.5), ("k2.5", 2.5)):
        verify_tile(made.tiles[name])
        r = np.zeros(3, np.float32)
        tables = {t.name: t.values for t in made.tables.get(name, ())}
        run_tile(made.tiles[name], {"X": np.array([3], np.float32), "R": r, **tables})
        assert list(r) == [3 + n, 12, 3 - n]


def test_results_are_those_of_the_interpreter() -> None:
    texts = [
        QUANTISED.format(0.03, 131.0),
        QUANTISED.format(0.25, 7.0),
        DEQUANTISED.format(3, 0.5),
        DEQUANTISED.format(99, 0.1),
    ]
    program = program_of(*texts)
    exe = dlc.compile(program)
    rng = np.random.default_rng(1)
    arrays = [SPECIAL, np.arange(9, dtype=np.int32), rng.integers(0, 255, 9).astype(np.uint8), np.float32(1)]
    for got, want in zip(exe(*arrays), outputs(program, arrays), strict=True):
        np.testing.assert_array_equal(got, want)
