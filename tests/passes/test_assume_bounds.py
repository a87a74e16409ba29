"""What indexing demands of extents becomes facts: enough for the proof, and no more."""

from __future__ import annotations

import numpy as np
import pytest

import dlc
import dlc.errors
from dlc.ir.parser import parse_program
from dlc.ir.program import Symbol
from dlc.ir.verify import verify
from dlc.passes.assume_bounds import assume_bounds
from dlc.runtime.errors import SymbolOutOfRange


def narrowed(step: str, symbols: str = "n in 0..", params: str = "X: f32[n, d], T: f32[512, d], S: i64[n]") -> dict[str, Symbol]:
    program = parse_program(f"cascade f({params}) -> (O) symbols ({symbols}) {{ {step} }}")
    after = assume_bounds(program)
    return {s.name: s for s in after.symbols}


@pytest.mark.parametrize(
    ("step", "lo", "hi"),
    [
        ("O[d] = X[0, d]", 1, None),
        ("O[d] = X[#n - 1, d]", 1, None),
        ("O[n, d] = X[n, d] + T[n, d]", 0, 512),
        ("O[n, d] = X[n, d] + T[2*n, d]", 0, 256),
        ("O[n, d] = X[n, d] + T[n + 10, d]", 0, 502),
        ("O[n, d] = X[n, d] + T[#n - 1 - n, d]", 0, 512),
        ("O[i:2*n, d] = T[i, d]", 0, 256),
        ("O[n, d] = X[n, d] * 2.0", 0, None),
        ("O[n, d] = (X[n - 1, d] else 0.0)", 0, None),
        ("O[n, d] = T[S[n], d]", 0, None),  # data is checked when it is read
    ],
)
def test_ranges(step: str, lo: int, hi: int | None) -> None:
    n = narrowed(step)["n"]
    assert (n.lo, n.hi) == (lo, hi)


def test_what_is_known_already_is_not_widened() -> None:
    assert narrowed("O[n, d] = X[n, d] + T[n, d]", "n in 3..40")["n"] == Symbol("n", 3, 40)
    assert narrowed("O[n, d] = X[n, d] + T[n, d]", "n in 3..4000 by 2")["n"].divisor == 2


def test_a_proven_program_is_itself() -> None:
    program = parse_program("cascade f(X: f32[n]) -> (O) { O[n] = X[n] }")
    assert assume_bounds(program) is program


def test_what_no_range_helps_is_left_to_the_verifier() -> None:
    program = parse_program("cascade f(X: f32[n], Y: f32[m]) -> (O) symbols (n in 0.., m in 0..) { O[n] = X[n] + Y[n] }")
    with pytest.raises(dlc.errors.DlcError) as caught:
        verify(assume_bounds(program))
    assert caught.value.code == "DLC0130"


def test_position_tables_through_an_index_tensor() -> None:
    """`positions = arange(n)` gathered from a table: proven once the index is looked through."""
    text = """
    cascade f(X: f32[n, d], T: f32[64, d]) -> (O) symbols (n in 0..) {
      P[i:n]: i64 = i
      O[n, d] = X[n, d] + T[P[n], d]
    }"""
    (n,) = assume_bounds(parse_program(text)).symbols
    assert n.hi == 64
    exe = dlc.compile(text)
    table = np.ones((64, 2), np.float32)
    np.testing.assert_array_equal(exe(np.ones((64, 2), np.float32), table), np.full((64, 2), 2, np.float32))
    with pytest.raises(SymbolOutOfRange, match="64"):
        exe(np.ones((65, 2), np.float32), table)
