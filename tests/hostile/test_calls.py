"""Calls that do not fit, values that are no numbers, tensors without elements, through a small network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import dlc
from dlc.ir.builder import Builder
from dlc.ir.dtype import F32, I64
from dlc.ir.expr import Cast, Index, apply, const
from dlc.ir.extent import int_expr
from dlc.ir.interpret import run_program
from dlc.ir.program import Program
from dlc.runtime.errors import SymbolMismatch, SymbolOutOfRange, WrongArgumentCount, WrongDtype, WrongRank, WrongShape

RNG = np.random.default_rng(0)


def network() -> Program:
    """x f32[n, t, 8], mask i64[n, t]: product, relu, masked softmax, layer norm, maximum; n and t may be 0."""
    b = Builder("net")
    n, t = b.symbol("n", 0, 64), b.symbol("t", 0)
    x, mask = b.input("x", F32, (n, t, 8)), b.input("mask", I64, (n, t))
    w = b.constant(RNG.standard_normal((8, 8)).astype(np.float32), "w")
    h = b.map("h", lambda u: apply("max", u, const(0.0)), b.contract("p", "btk,jk->btj", x, w))
    kept = b.map("kept", lambda u, m: apply("select", apply("ne", m, const(0, I64)), u, const(-1e9)), h, mask.unsqueeze(2))
    g = b.reduce_axes("g", "max", kept, [1], True)
    e = b.map("e", lambda u, v: apply("exp", apply("sub", u, v)), kept, g)
    s = b.map("s", lambda u, v: apply("div", u, v), e, b.reduce_axes("z", "sum", e, [1], True))
    mean = b.map("mean", lambda u: apply("mul", u, const(1 / 8)), b.reduce_axes("m", "sum", s, [2], True))
    d = b.map("d", lambda u, v: apply("sub", u, v), s, mean)
    var = b.reduce("var", "sum", (n, t), (8,), lambda i, r: apply("mul", d(*i, *r), d(*i, *r)), F32)
    scale = b.map("scale", lambda u: apply("rsqrt", apply("add", apply("mul", u, const(1 / 8)), const(1e-5))), var)
    y = b.map("y", lambda u, v: apply("mul", u, v), d, scale.unsqueeze(2))
    count = b.compute("count", (n,), lambda i: apply("add", Cast(I64, Index(i)), Index(int_expr(t))), I64)
    return b.finish([y, b.reduce_axes("top", "max", y, [1, 2], False), h, count])


PROGRAM = network()


@pytest.fixture(scope="module", params=["avx512", "avx2", "baseline"])
def exe(request: pytest.FixtureRequest) -> Any:
    from dlc.codegen.target import host_flags, parse_target

    if not host_flags().issuperset(parse_target(request.param).features):
        pytest.skip("the host lacks this level")
    return dlc.compile(PROGRAM, target=request.param, threads=2)


def good(n: int = 2, t: int = 5) -> tuple[np.ndarray, np.ndarray]:
    return RNG.standard_normal((n, t, 8)).astype(np.float32), (RNG.random((n, t)) < 0.7).astype(np.int64)


def compare(exe: Callable[..., Any], x: np.ndarray, mask: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        want = run_program(PROGRAM, [x, mask])
    for name, g, w in zip(PROGRAM.results, exe(x, mask), want, strict=True):
        assert g.shape == w.shape and g.dtype == w.dtype
        np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-4, err_msg=name)  # NaN equals NaN, infinity itself


def test_right_calls(exe: Any) -> None:
    for n, t in ((1, 1), (2, 5), (3, 40), (64, 2)):
        compare(exe, *good(n, t))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (lambda x, m: (x,), WrongArgumentCount, "mask"),
        (lambda x, m: (x, m, m), WrongArgumentCount, "2"),
        (lambda x, m: (), WrongArgumentCount, "2"),
        (lambda x, m: (x.astype(np.float64), m), WrongDtype, "x"),
        (lambda x, m: (x, m.astype(np.int32)), WrongDtype, "mask"),
        (lambda x, m: (m, x), (WrongDtype, WrongRank), "x"),
        (lambda x, m: (x[0], m), WrongRank, "x"),
        (lambda x, m: (x[:, :, :7], m), WrongShape, "x"),
        (lambda x, m: (np.concatenate([x, x], 2), m), WrongShape, "x"),
        (lambda x, m: (x, m[:1]), SymbolMismatch, "n"),
        (lambda x, m: (x, m[:, :4]), SymbolMismatch, "t"),
        (lambda x, m: (np.zeros((65, 1, 8), np.float32), np.zeros((65, 1), np.int64)), SymbolOutOfRange, "64"),
    ],
)
def test_wrong_calls_name_what_is_wrong(exe: Any, arguments: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        exe(*arguments(*good()))
    assert caught.value.code and "Traceback" not in str(caught.value)
    compare(exe, *good())  # and the next call is right


@pytest.mark.parametrize("bad", [object(), "text", None, [[["a"]]], {"x": 1}])
def test_things_that_are_no_arrays(exe: Any, bad: object) -> None:
    with pytest.raises(dlc.errors.DlcError):
        exe(bad, good()[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30, 1e-42, -0.0])
def test_values_that_are_no_ordinary_numbers(exe: Any, value: float) -> None:
    """One in a row, a row, all: through the product, relu, softmax, the norm and the maximum as in the reference."""
    x, mask = good(3, 21)
    x[0, 3, 2] = value
    x[1, 4] = value
    compare(exe, x, mask)
    compare(exe, np.full_like(x, value), mask)
    compare(exe, x, np.zeros_like(mask))


def test_tensors_without_elements(exe: Any) -> None:
    for n, t in ((0, 3), (2, 0), (0, 0)):
        compare(exe, *good(n, t))
    compare(exe, *good())


def test_an_all_masked_row_is_uniform(exe: Any) -> None:
    x, mask = good(1, 4)
    compare(exe, x, np.zeros_like(mask))
