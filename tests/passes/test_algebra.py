"""Scalar identities: what they make, and that they hold for every awkward value."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from tests.passes.samples import SPECIAL, assert_same_result, body, rewrite

from dlc.ir.dtype import BF16, BOOL, DTYPES, F16, F32, F64, I8, I32, I64, U8, DType
from dlc.ir.evaluate import Block, Reader, round_to
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, access, const, transform, walk
from dlc.ir.facts import Facts
from dlc.ir.scalar import SCALAR_OPS
from dlc.passes.algebra import Algebra
from dlc.passes.scalar_rules import Rules, embeds


def test_what_it_makes() -> None:
    before, after = rewrite(
        """
        cascade f(X: f32[n], I: i64[n], C: bool[n]) -> (A, B, D, E, F, G, H, K, L, M) {
          A[n] = 1.0 * (X[n] - 0.0) / 8.0 + (-X[n])
          B[n] = max(2.0, max(X[n], 1.0)) * 4.0 * 0.5
          D[n] = cast<f32>(cast<f64>(X[n])) / 1.0
          E[n] = pow(X[n], 2.0) + pow(X[n], 0.5)
          F[n] = pow(E[n], 0.5) + pow(abs(X[n]), 0.5) + pow(X[n] * X[n] + 1e-5, -0.5)
          G[n] = select(C[n], select(C[n], X[n], 1.0), 1.0 / (1.0 + exp(-X[n])))
          H[n] = I[n] * 0 + (I[n] + 3 + 4) * 1
          K[n] = ~(X[n] == 1.0) & (C[n] == true) | (I[n] < I[n])
          L[n] = X[n] + 0.0 + X[n] * 0.0 + (X[n] - X[n])
          M[n] = n + 3 - 2 + div_floor(n + 1, 2) + max(n, 3)
        }
        """.replace("~(X[n] == 1.0)", "not(X[n] == 1.0)"),
        Algebra(),
    )
    assert body(after) == [
        "A[n]: f32 = X[n] * 0.125 - X[n]",
        "B[n]: f32 = max(X[n], 2.0) * 2.0",
        "D[n]: f32 = X[n]",
        "E[n]: f32 = X[n] * X[n] + pow(X[n], 0.5)",
        "F[n]: f32 = pow(E[n], 0.5) + sqrt(abs(X[n])) + rsqrt(X[n] * X[n] + 1e-05)",
        "G[n]: f32 = select(C[n], X[n], sigmoid(X[n]))",
        "H[n]: i64 = I[n] + 7",
        "K[n]: bool = X[n] != 1.0 & C[n]",
        "L[n]: f32 = X[n] + 0.0 + X[n] * 0.0 + (X[n] - X[n])",
        "M[n]: i64 = idx(n + ((n + 1) // 2) + max(3, n) + 1)",
    ]
    assert_same_result(before, after, {"n": 7}, rtol=1e-6)


def test_a_mean_of_squares_has_a_root() -> None:
    before, after = rewrite(
        """
        cascade f(X: f32[m, n]) -> (O) {
          S[m] = sum(n) X[m, n] * X[m, n]
          O[m] = pow(S[m] / 4.0, 0.5)
        }
        """,
        Algebra(),
    )
    assert body(after)[1] == "O[m]: f32 = sqrt(S[m] * 0.25)"
    assert_same_result(before, after, {"m": 3, "n": 4}, special=True, rtol=1e-6)


KINDS = (F32, I8, U8, BOOL)


def values_of(dtype: DType) -> tuple[float, ...]:
    if dtype.is_float:
        return SPECIAL
    if dtype == BOOL:
        return (False, True)
    return tuple({0, 1, 2, 3, 7, dtype.highest, dtype.lowest, max(-1, dtype.lowest)})


def evaluate(e: Expr, env: dict[str, np.ndarray]) -> np.ndarray:
    names = ("i",)
    size = len(next(iter(env.values())))
    value, dtype = Reader(env, {}).values(e, Block(names, (0,), (size,), {}))
    return np.broadcast_to(round_to(value, dtype), (size,))


def assert_equal(e: Expr, short: Expr, env: dict[str, np.ndarray]) -> None:
    a, b = evaluate(e, env), evaluate(short, env)
    assert a.dtype == b.dtype, (e, short)
    x, y = (a.astype(np.float64), b.astype(np.float64)) if a.dtype.kind not in "iub" else (a, b)
    np.testing.assert_array_equal(x, y, err_msg=f"{e} -> {short}")
    # which zero min and max give of a 0.0 and a -0.0 is not defined
    if x.dtype.kind == "f" and not any(isinstance(n, Apply) and n.op.startswith(("min", "max")) for n in walk(e)):
        real = ~np.isnan(x)
        np.testing.assert_array_equal(np.signbit(x)[real], np.signbit(y)[real], err_msg=f"{e} -> {short}")


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_every_small_expression_keeps_its_value(dtype: DType) -> None:
    """Every operator over (x, literal), (literal, x), (x, x), (f(x), x), on every awkward value."""
    env = {
        n: np.array(v)
        for n, v in zip("xy", zip(*itertools.product(values_of(dtype), repeat=2), strict=True), strict=True)
    }
    env = {n: a.astype(dtype.numpy) for n, a in env.items()}
    rules = Rules(lambda _: dtype, Facts())
    x, y = access("x", "i"), access("y", "i")
    ops = [o for o in SCALAR_OPS.values() if dtype.kind in o.kinds and o.typing != "select"]
    unary = [Apply(o.name, (x,)) for o in ops if o.arity == 1 and o.typing != "test"]
    literals: list[Expr] = [const(v, dtype) for v in values_of(dtype)]
    if dtype.is_float:
        literals += [const(v, dtype) for v in (-0.5, 0.5, 4.0, 8.0, -1.0)]
    operands: list[Expr] = [x, y, *unary, *literals]
    if dtype != BOOL:
        operands += [Apply(o, (x, c)) for o in ("add", "mul", "max") for c in literals[:3]]
    exact = {"exp", "pow", "log", "sigmoid", "lgamma", "atan2"}
    count = 0
    for o in ops:
        if o.name in exact and o.name != "pow":
            continue
        for args in itertools.product(operands, repeat=o.arity):
            if not any(isinstance(n, Access) for a in args for n in [a, *a.children]):
                continue
            e = Apply(o.name, tuple(args))
            short = transform(e, rules.shorten)
            if short is e or isinstance(args[0], Const):  # literals move to the right, and are tried there
                continue
            if o.name == "pow" and isinstance(args[1], Const) and dtype.is_float:
                continue  # a power by multiplication: equal as numbers, tested with a tolerance above
            if any(isinstance(n, Apply) and n.op == "mul" for a in args for n in [a]) and dtype.is_float:
                continue  # joined factors are exact over the reals, where the held f64 overflows or rounds
            count += 1
            assert_equal(e, short, env)
    assert count > 20


CAST_KINDS = (F32, F64, F16, BF16, I8, U8, I32, I64, BOOL)


@pytest.mark.parametrize("first", CAST_KINDS, ids=str)
def test_every_chain_of_casts_keeps_its_value(first: DType) -> None:
    env = {"x": np.array(values_of(first)).astype(first.numpy)}
    rules = Rules(lambda _: first, Facts())
    x = access("x", "i")
    for through, last in itertools.product(CAST_KINDS, repeat=2):
        for mode in ("sat", "wrap"):
            e = Cast(last, Cast(through, x, mode), mode)
            short = transform(e, rules.shorten)
            if short is not e:
                assert_equal(e, short, env)
            if embeds(first, through) and first == last:
                assert short == x


def test_embeddings() -> None:
    native = [t for t in DTYPES.values() if t.native]
    pairs = {(a.name, b.name) for a in native for b in native if embeds(a, b)}
    assert ("i32", "f64") in pairs
    assert ("i32", "f32") not in pairs
    assert ("i64", "f64") not in pairs
    assert ("u8", "i16") in pairs
    assert ("i8", "u8") not in pairs
    assert ("f16", "bf16") not in pairs
