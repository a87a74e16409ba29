"""Scales and zero points leave contractions of bytes: what it looks like, that the meaning stays, where it is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dlc.ir.builder import Builder
from dlc.ir.dtype import F32, I8, I32, U8, DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.ir.verify import verify
from dlc.ir.view import Val
from dlc.passes.fold_constants import FoldConstants
from dlc.passes.integer_products import IntegerProducts

LINEAR = """
program f(x: f32[m, 6], b: f32[3]) -> (y) symbols (m in 0..) {
  const w: i8[3, 6]
  const s: f32[3]
  xq[m:m, k:6]: u8 = cast<u8>(min(max(round(x[m, k] / 0.5) + 120.0, 0.0), 255.0))
  xd[m:m, k:6]: f32 = cast<f32>(cast<i32, wrap>(xq[m, k]) - i32(120)) * 0.5
  wd[n:3, k:6]: f32 = cast<f32>(cast<i32, wrap>(w[n, k])) * s[n]
  p[m:m, n:3]: f32 = sum(k:6) xd[m, k] * wd[n, k]
  y[m:m, n:3]: f32 = max(p[m, n] + b[n], 0.0)
}
"""


def linear() -> Program:
    program = parse_program(LINEAR)
    rng = np.random.default_rng(0)
    program.data["w"] = rng.integers(-128, 128, (3, 6)).astype(np.int8)
    program.data["s"] = np.array([0.25, 0.5, 2.0], np.float32)
    return program


def test_a_quantised_linear_layer(golden: Callable[[str], None]) -> None:
    before = linear()
    after = IntegerProducts().apply(before)
    verify(after)
    golden(str(after))
    inputs = [np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32) * 40, np.zeros(3, np.float32)]
    np.testing.assert_array_equal(
        run_program(before, inputs)[0], run_program(after, inputs)[0]
    )  # scales are powers of two
    folded = FoldConstants().apply(after)
    assert {c.name for c in folded.consts} == {"w", "p_zero", "p_scale"}


ZEROS = ("none", "one", "computed", "each")


def operand(
    b: Builder, name: str, dtype: DType, zero: str, constant: bool, shape: tuple[int, int], scaled: bool
) -> Val:
    """A matrix of bytes less its zero point, scaled; `each` has a zero point and a scale for every row of it."""
    rng = np.random.default_rng(sum(map(ord, name + zero + str(dtype))))
    data = rng.integers(dtype.lowest, dtype.highest, shape, dtype=dtype.numpy, endpoint=True)
    byte = b.constant(data, name) if constant else b.input(name, dtype, shape)
    rows = (shape[0],)
    zeros = {"computed": (), "each": rows}.get(zero)
    own = b.input(f"{name}_zero", dtype, zeros) if zeros is not None else None
    factor = b.constant(np.exp2(rng.integers(-3, 3, rows)).astype(np.float32), f"{name}_scale") if scaled else None

    def element(i: IntExpr, k: IntExpr) -> Expr:
        e: Expr = Cast(I32, byte.at((i, k)), "wrap")
        if zero == "one":
            e = apply("sub", e, const(3, I32))
        elif own is not None:
            e = apply("sub", e, Cast(I32, own.at((i,) if own.rank else ()), "wrap"))
        return apply("mul", Cast(F32, e), factor.at((i,))) if factor is not None else e

    return b.compute(f"{name}_wide", shape, element, F32 if scaled else I32)


def inputs_of(program: Program, seed: int = 0) -> list[Any]:
    rng = np.random.default_rng(seed)
    shapes = [(p.type.dtype, tuple(e.const or 0 for e in p.type.shape)) for p in program.params]
    return [rng.integers(t.lowest, t.highest, s, dtype=t.numpy, endpoint=True) for t, s in shapes]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("types", list(itertools.product((I8, U8), repeat=2)), ids=lambda t: f"{t[0]}x{t[1]}")
def test_every_small_pair_keeps_its_meaning(types: tuple[DType, DType], constant: bool, scaled: bool) -> None:
    """All zero points on both sides. The sums are exact; with scales that are powers of two so are the floats."""
    for left, right in itertools.product(ZEROS, repeat=2):
        b = Builder("f")
        x = operand(b, "x", types[0], left, False, (4, 7), scaled)
        w = operand(b, "w", types[1], right, constant, (5, 7), scaled)
        before = b.finish([b.contract("y", "mk,nk->mn", x, w)])
        after = IntegerProducts().apply(before)
        verify(after)
        (sums,) = (s for s in after.body.body if "sums" in s.outs[0])
        read = {after_types(after)[a.tensor] for a in sums.accesses()}  # type: ignore[union-attr]
        assert read == {I8, U8}, "one operand unsigned, one signed"
        inputs = inputs_of(before)
        np.testing.assert_array_equal(run_program(before, inputs)[0], run_program(after, inputs)[0], f"{left} {right}")


def after_types(program: Program) -> dict[str, DType]:
    from dlc.ir.program import tensor_types

    return {n: t.dtype for n, t in tensor_types(program).items()}


def convolution(zero: int, fill: float, dtype: DType = U8) -> Program:
    b = Builder("f")
    x = b.input("x", dtype, (1, 3, 6))
    wide = b.map(
        "xd",
        lambda e: apply("mul", Cast(F32, apply("sub", Cast(I32, e, "wrap"), const(zero, I32))), const(0.5)),
        x,
        dtype=F32,
    )
    padded = wide.pad([0, 0, 1], [0, 0, 1], const(fill, F32))
    w = b.constant(np.random.default_rng(0).integers(-128, 128, (4, 3, 3)).astype(np.int8), "w")

    def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
        return apply("mul", padded.at((i[0], r[0], i[2] + r[1])), Cast(F32, w.at((i[1], r[0], r[1]))))

    return b.finish([b.reduce("y", "sum", [1, 4, 6], [3, 3], element, F32)])


@pytest.mark.parametrize("dtype", [U8, I8])
@pytest.mark.parametrize("zero", [0, 3, 127])
def test_edges_are_padded_with_the_zero_point(zero: int, dtype: DType) -> None:
    before = convolution(zero, 0.0, dtype)
    after = IntegerProducts().apply(before)
    assert "_sums" in str(after)
    inputs = inputs_of(before)
    np.testing.assert_array_equal(run_program(before, inputs)[0], run_program(after, inputs)[0])


@pytest.mark.parametrize(("zero", "fill"), [(3, 1.0), (300, 0.0), (-1, 0.0)])
def test_other_edges_are_left_alone(zero: int, fill: float) -> None:
    """A pad of another number, or a zero point that is no byte."""
    before = convolution(zero, fill)
    assert IntegerProducts().apply(before) is before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("* s[n]", "* s[k]"),  # a scale that varies along the sum
        ("- i32(120)", "- cast<i32>(z[k])"),  # a zero point that does
        ("sum(k:6)", "max(k:6)"),
        ("xd[m, k] * wd[n, k]", "xd[m, k] * wd[n, k] where k <= m"),
        ("xd[m, k] * wd[n, k]", "xd[m, 0] * wd[n, k]"),
    ],
)
def test_what_is_no_sum_of_scaled_bytes_stays(old: str, new: str) -> None:
    text = LINEAR.replace(old, new).replace("const s: f32[3]", "const s: f32[6]\n  const z: u8[6]")
    before = parse_program(text)
    before.data.update(linear().data, s=np.ones(6, np.float32), z=np.arange(6, dtype=np.uint8))
    assert "_sums" not in str(IntegerProducts().apply(before))


@pytest.mark.parametrize(("terms", "done"), [(124275, True), (124276, False)])
def test_float_sums_that_could_leave_i32_stay(terms: int, done: bool) -> None:
    """|x - 120| <= 135 and |w| <= 128, so 2^31 is reached by 124,276 terms; and by unknown ones."""
    assert (135 * 128 * 124275 < 1 << 31) and (135 * 128 * 124276 >= 1 << 31)
    before = parse_program(LINEAR.replace("6", str(terms)))
    before.data.update(linear().data, w=np.zeros((3, terms), np.int8))
    assert ("_sums" in str(IntegerProducts().apply(before))) == done


def test_integer_sums_wrap_alike() -> None:
    """Modulo 2^32 there is nothing to overflow."""
    terms = 140000
    b = Builder("f")
    x, w = b.input("x", U8, (1, terms)), b.input("w", U8, (2, terms))
    y = b.contract(
        "y",
        "mk,nk->mn",
        *(b.map("d", lambda e: apply("sub", Cast(I32, e), const(1, I32)), t, dtype=I32) for t in (x, w)),
    )
    before = b.finish([y])
    after = IntegerProducts().apply(before)
    assert "_sums" in str(after)
    inputs = [np.full((1, terms), 255, np.uint8), np.full((2, terms), 254, np.uint8)]
    np.testing.assert_array_equal(run_program(before, inputs)[0], run_program(after, inputs)[0])


def test_an_integer_factor_is_no_scale() -> None:
    """It changes the sum itself, not what the sum is multiplied by afterwards."""
    import dlc
    from dlc.ir.interpret import run_program
    from dlc.ir.parser import parse_program

    text = """program p(A: i8[8, 40], W: i8[24, 40], T: i32[24]) -> (Y) {
      Y[m:8, n:24]: i32 = sum(k:40) (cast<i32>(A[m, k]) * T[n]) * cast<i32>(W[n, k])
    }"""
    r = np.random.default_rng(0)
    a, w = (r.integers(-128, 128, s).astype(np.int8) for s in ((8, 40), (24, 40)))
    t = r.integers(1, 9, 24).astype(np.int32)
    np.testing.assert_array_equal(dlc.compile(text)(a, w, t), run_program(parse_program(text), [a, w, t])[0])
