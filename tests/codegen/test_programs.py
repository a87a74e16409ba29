"""Small programs of every kind, compiled whole for each level, against the interpreter; and the worked cases of the IR."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pytest
from tests.ir.cases import CASES as WORKED

import dlc
from dlc.codegen.target import host_flags, parse_target
from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I8, I32, I64
from dlc.ir.expr import Bitcast, Cast, Expr, Index, Piecewise, access, apply, const
from dlc.ir.extent import IntExpr, value
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.ir.view import Val

Array: TypeAlias = Any
Build: TypeAlias = Callable[[Builder], tuple[Sequence[Val], Sequence[Array]]]
RNG = np.random.default_rng(1)
CASES: dict[str, Build] = {}


def case(build: Build) -> Build:
    CASES[build.__name__] = build
    return build


def floats(*shape: int, dtype: Any = np.float32) -> Array:
    return RNG.standard_normal(shape).astype(dtype)


def integers(*shape: int, dtype: Any = np.int32) -> Array:
    return RNG.integers(-5, 9, shape).astype(dtype)


def mul(x: Expr, y: Expr) -> Expr:
    return apply("mul", x, y)


@case
def convolutions(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    """Stride, padding, bias and relu, 1x1, max pooling, depthwise, a global average."""
    n = b.symbol("n", 1)
    b.input("x", F32, (n, 3, 17, 19))
    w, bias = b.constant(floats(20, 3, 3, 3), "w"), b.constant(floats(20), "bias")
    pad = const(0.0)
    y = b.reduce(
        "y", "sum", (n, 20, 9, 10), (3, 3, 3),
        lambda i, r: mul(access("x", i[0], r[0], 2 * i[2] + r[1] - 1, 2 * i[3] + r[2] - 1, default=pad), w(i[1], *r)), F32,
    )  # fmt: skip
    y = b.compute("z", y.shape, lambda a, c, d, e: apply("max", apply("add", y(a, c, d, e), bias(c)), pad), F32)
    w2 = b.constant(floats(32, 20, 1, 1), "w2")
    y2 = b.reduce(
        "y2", "sum", (n, 32, 9, 10), (20,), lambda i, r: mul(y(i[0], r[0], i[2], i[3]), w2(i[1], r[0], 0, 0)), F32
    )
    low = const(float("-inf"))
    pool = b.reduce(
        "p", "max", (n, 32, 4, 5), (3, 3),
        lambda i, r: access(str(y2.name), i[0], i[1], 2 * i[2] + r[0] - 1, 2 * i[3] + r[1] - 1, default=low), F32,
    )  # fmt: skip
    wd = b.constant(floats(32, 1, 3, 3), "wd")
    depthwise = b.reduce(
        "dw", "sum", (n, 32, 4, 5), (3, 3),
        lambda i, r: mul(access(str(pool.name), i[0], i[1], i[2] + r[0] - 1, i[3] + r[1] - 1, default=pad), wd(i[1], 0, *r)), F32,
    )  # fmt: skip
    total = b.reduce_axes("s", "sum", depthwise, [2, 3], False)
    return [b.map("mean", lambda u: mul(u, const(1 / 20)), total), depthwise], [floats(2, 3, 17, 19)]


@case
def two_convolutions(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    """The second reads what the first wrote, in the layout that suits it."""
    x, w = b.input("x", F32, (1, 20, 9, 9)), b.constant(floats(20, 20, 3, 3), "w")

    def conv(source: Val) -> Val:
        def element(i: tuple[IntExpr, ...], r: tuple[IntExpr, ...]) -> Expr:
            read = access(str(source.name), i[0], r[0], i[2] + r[1] - 1, i[3] + r[2] - 1, default=const(0.0))
            return mul(read, w(i[1], *r))

        return b.reduce("y", "sum", (1, 20, 9, 9), (20, 3, 3), element, F32)

    return [conv(conv(x))], [floats(1, 20, 9, 9)]


@case
def softmax_over_the_first_axis(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    x = b.input("x", F32, (7, b.symbol("n", 0), 5))
    m = b.reduce_axes("m", "max", x, [0], True)
    e = b.map("e", lambda u, v: apply("exp", apply("sub", u, v)), x, m)
    s = b.reduce_axes("s", "sum", e, [0], True)
    return [b.map("o", lambda u, v: apply("div", u, v), e, s)], [floats(7, 33, 5)]


@case
def arguments(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    x = b.input("x", F32, (5, b.symbol("n", 1)))
    v, i = b.tuple_reduce(("v", "i"), "argmax", (5,), (x.shape[1],), lambda i, r: (x(*i, *r), Index(r[0])), (F32, I64))
    w, j = b.tuple_reduce(("v", "i"), "argmin", (x.shape[1],), (5,), lambda i, r: (x(*r, *i), Index(r[0])), (F32, I64))
    return [v, i, w, j], [floats(5, 37)]


@case
def gathered(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    """Negative indices wrap; a gather along the lanes in 16 bits."""
    x, ix = b.input("x", F32, (11, b.symbol("n", 1))), b.input("ix", I64, (3, 4))

    def wrapped(i: IntExpr, j: IntExpr) -> IntExpr:
        raw = ix(i, j)
        return value(apply("select", apply("lt", raw, const(0, I64)), apply("add", raw, const(11, I64)), raw))

    g = b.compute("g", (3, 4, x.shape[1]), lambda i, j, k: x(wrapped(i, j), k), F32)
    h, jx = b.input("h", F16, (11, 40)), b.input("jx", I32, (11, 40))
    g2 = b.compute("g2", (11, 40), lambda i, j: h(i, value(Cast(I64, jx(i, j)))), F16)
    places = RNG.integers(0, 40, (11, 40)).astype(np.int32)
    return [g, g2], [floats(11, 19), RNG.integers(-11, 11, (3, 4)), floats(11, 40, dtype=np.float16), places]


@case
def concatenated(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    n = b.symbol("n", 0)
    x, y = b.input("x", F32, (4, n)), b.input("y", F32, (4, 9))
    c = b.compute(
        "c", (4, n + 9), lambda i, j: Piecewise(((apply("lt", Index(j), Index(n)), x(i, j)),), y(i, j - n)), F32
    )
    return [c, b.map("d", lambda u: apply("exp", u), c)], [floats(4, 21), floats(4, 9)]


@case
def scattered(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    x, ix, u = b.input("x", F32, (9, 20)), b.input("ix", I64, (5,)), b.input("u", F32, (5, 20))
    at = lambda i, j: (value(ix(i)), j)  # noqa: E731
    s = b.scatter("s", x, (5, 20), at, lambda i, j: u(i, j), "sum")
    t = b.scatter("t", x, (5, 20), at, lambda i, j: u(i, j))
    return [s, t], [floats(9, 20), np.array([1, 3, 1, 8, 0]), floats(5, 20)]


@case
def whole_numbers(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    x, y = b.input("x", I32, (6, 35)), b.input("y", I32, (6, 35))
    ops = "add mul div_trunc div_floor rem_floor rem_trunc min max shl shr and xor pow".split()
    outs = [b.map("o", lambda u, v, op=op: apply(op, u, v), x, y) for op in ops]
    less = b.map("l", lambda u, v: apply("lt", u, v), x, y, dtype=BOOL)
    outs += [b.reduce_axes("s", "sum", x, [1], False), b.reduce_axes("p", "prod", x, [0], False), less]
    outs += [b.reduce_axes("a", "and", less, [1], False), b.reduce_axes("or", "or", less, [0], False)]
    outs.append(b.map("i8", lambda u: Cast(I8, mul(u, const(77, I32))), x, dtype=I8))
    outs.append(b.map("f", lambda u: apply("sqrt", Cast(F64, apply("abs", u))), x, dtype=F64))
    outs.append(b.map("bits", lambda u: Bitcast(F32, u), x, dtype=F32))
    return outs, [integers(6, 35), integers(6, 35)]


@case
def chains_of_remainders(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    """Remainders of remainders, which LLVM would not come to an end with."""
    x = b.input("x", I64, (9,))
    total = []
    for name in ("rem_floor", "rem_euclid", "div_floor", "div_euclid"):
        y = x
        for n in range(24):
            y = b.map(name, lambda v, name=name, n=n: apply(name, apply("add", v, const(2, I64)), const((5, -7)[n % 2], I64)), y)
        total.append(y)
    return total, [integers(9, dtype=np.int64) * 1000]


@case
def functions(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    x = b.input("x", F32, (3, b.symbol("n", 0)))
    names = "exp log sqrt rsqrt tanh erf sigmoid sin cos floor ceil round trunc sign abs neg expm1 log1p atan exp2"
    total = [b.map(op, lambda u, op=op: apply(op, u), x) for op in names.split()]
    return total, [floats(3, 37) * 3]


@case
def contractions(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    """Batched, transposed, double, without rows, without columns."""
    x, y = b.input("x", F32, (2, b.symbol("n", 1), 33)), b.input("y", F32, (2, 33, 50))
    w, w2 = b.input("w", F64, (7, 9)), b.input("w2", F64, (9, 5))
    outs = [b.contract("o", "bmk,bkn->bmn", x, y), b.contract("p", "bmk,bkn->bnm", x, y)]
    outs += [b.contract("q", "mk,kn->mn", w, w2), b.contract("r", "bmk,bmk->bm", x, x)]
    outs.append(b.contract("d", "bmk,cmk->bc", x, x))
    return outs, [floats(2, 21, 33), floats(2, 33, 50), floats(7, 9, dtype=np.float64), floats(9, 5, dtype=np.float64)]


@case
def bfloat(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    y = b.contract("y", "mk,nk->mn", b.input("x", BF16, (3, 64)), b.input("w", BF16, (48, 64)))
    z = b.map("z", lambda u: apply("tanh", u), y)
    return [y, z], [floats(3, 64, dtype=BF16.numpy), floats(48, 64, dtype=BF16.numpy)]


@case
def lstm(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    steps, batch, h = b.symbol("t", 0), b.symbol("b", 1), 24
    x, wi, wh = b.input("x", F32, (steps, batch, 10)), floats(4 * h, 10) / 3, floats(4 * h, h) / 5
    h0, c0 = b.input("h0", F32, (batch, h)), b.input("c0", F32, (batch, h))
    gates = b.contract("gx", "tbk,nk->tbn", x, b.constant(wi, "wi"))
    recurrent = b.constant(wh, "wh")

    def body(t: IntExpr, carries: tuple[Val, ...]) -> tuple[tuple[Val, ...], tuple[Val, ...]]:
        state, cell = carries
        gh = b.contract("gh", "bk,nk->bn", state, recurrent)
        g = b.compute("g", (batch, 4 * h), lambda i, j: apply("add", gates(t, i, j), gh(i, j)), F32)

        def next_cell(i: IntExpr, j: IntExpr) -> Expr:
            kept = mul(apply("sigmoid", g(i, j + h)), cell(i, j))
            return apply("add", kept, mul(apply("sigmoid", g(i, j)), apply("tanh", g(i, j + 2 * h))))

        after = b.compute("cn", (batch, h), next_cell, F32)
        shown = b.compute(
            "hn", (batch, h), lambda i, j: mul(apply("sigmoid", g(i, j + 3 * h)), apply("tanh", after(i, j))), F32
        )
        return (shown, after), (shown,)

    (last, cell), (ys,) = b.scan("lstm", steps, (h0, c0), body)
    return [ys, last, cell], [floats(13, 3, 10), floats(3, h), floats(3, h)]


@case
def cumulative_sum(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    n = b.symbol("n", 0)
    x, zero = b.input("x", F32, (4, n)), b.compute("z", (4,), lambda i: const(0.0), F32)

    def body(t: IntExpr, carries: tuple[Val, ...]) -> tuple[tuple[Val, ...], tuple[Val, ...]]:
        s = b.compute("s", (4,), lambda i: apply("add", carries[0](i), x(i, t)), F32)
        return (s,), (s,)

    _, (y,) = b.scan("cs", n, (zero,), body)
    return [y.permute((1, 0))], [floats(4, 9)]


@case
def branches(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    x, f = b.input("x", F32, (4, 5)), b.input("f", BOOL, ())
    (y,) = b.if_(
        f, lambda: [b.map("a", lambda u: apply("exp", u), x)], lambda: [b.map("n", lambda u: apply("neg", u), x)]
    )
    return [b.map("o", lambda u: apply("add", u, const(1.0)), y)], [floats(4, 5), np.array(True)]


@case
def a_loop_with_a_condition(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    x, n = b.input("x", F32, (4,)), b.input("n", I64, ())

    def body(i: Val, carries: tuple[Val, ...]) -> tuple[Val, Sequence[Val], Sequence[Val]]:
        y = b.compute("y", (4,), lambda k: apply("add", carries[0](k), Cast(F32, i())), F32)
        return b.compute("go", (), lambda: apply("lt", y(0), const(10.0)), BOOL), (y,), (y,)

    (f,), (ys,) = b.loop("lp", (x,), body, limit=n, cond=b.scalar(True, BOOL), bound=20)
    return [f, ys], [floats(4), np.array(6)]


@case
def causal_attention(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    s = b.symbol("s", 1)
    q, k, v = b.input("q", F32, (3, s, 16)), b.input("k", F32, (3, s, 16)), b.input("v", F32, (3, s, 24))
    a = b.contract("a", "hpe,hme->hpm", q, k)
    seen = lambda p, m: apply("le", Index(m), Index(p))  # noqa: E731
    g = b.reduce("g", "max", (3, s), (s,), lambda i, r: a(*i, *r), F32, where=lambda i, r: seen(i[1], r[0]))
    e = b.compute(
        "e", (3, s, s),
        lambda h, p, m: apply("select", seen(p, m), apply("exp", apply("sub", a(h, p, m), g(h, p))), const(0.0)), F32,
    )  # fmt: skip
    d, av = b.reduce_axes("d", "sum", e, [2], False), b.contract("av", "hpm,hmf->hpf", e, v)
    o = b.compute("o", (3, s, 24), lambda h, p, f: apply("div", av(h, p, f), d(h, p)), F32)
    return [o], [floats(3, 29, 16), floats(3, 29, 16), floats(3, 29, 24)]


@case
def reshapes(b: Builder) -> tuple[Sequence[Val], Sequence[Array]]:
    n = b.symbol("n", 1)
    x = b.input("x", F32, (n, 6, 8))
    z = b.map("z", lambda u: apply("exp", u), x.reshape((n * 2, 3, 8)).permute((2, 0, 1)).reshape((8, n * 6)))
    return [z, z.flip(0, 1), z.slice(1, 1, 3, 2)], [floats(5, 6, 8)]


def check(program: Program, inputs: Sequence[Array], target: str) -> None:
    if not host_flags().issuperset(parse_target(target).features):
        pytest.skip("the host lacks this level")
    want = run_program(program, inputs)
    got = dlc.compile(program, target=target, threads=2)(*inputs)
    got = got if isinstance(got, tuple) else (got,)
    for name, g, w in zip(program.results, got, want, strict=True):
        g = np.asarray(g)
        assert (g.shape, g.dtype) == (w.shape, w.dtype), name
        if w.dtype.kind in "iub":
            np.testing.assert_array_equal(g, w, name)
            continue
        a, e = g.astype(np.float64), w.astype(np.float64)
        finite = np.isfinite(e)
        scale = np.abs(e[finite]).max() if finite.any() else 1.0
        with np.errstate(invalid="ignore"):
            near = np.abs(a - e) <= {2: 1e-2, 4: 2e-5, 8: 1e-12}[w.dtype.itemsize] * scale
        ok = near | (a == e) | np.isnan(a) & np.isnan(e)
        assert ok.all(), (name, np.argwhere(~ok)[:3], a[~ok][:3], e[~ok][:3])


LEVELS = ("avx512", "avx2", "baseline")


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("name", CASES)
def test_program(name: str, target: str) -> None:
    b = Builder(name)
    outs, inputs = CASES[name](b)
    check(b.finish(outs), inputs, target)


@pytest.mark.parametrize("worked", WORKED, ids=lambda c: c.name)
def test_worked_case(worked: Any) -> None:
    """Every construct of the IR as native code (each level in turn, so that a run of the tests sees them all)."""
    target = LEVELS[WORKED.index(worked) % 3]
    check(parse_program(worked.text), worked.inputs, target)


@pytest.mark.parametrize("name", ["convolutions", "contractions", "softmax_over_the_first_axis", "lstm"])
def test_threads_do_not_change_a_bit(name: str) -> None:
    """Each task computes its results whole, so who runs it does not matter."""
    b = Builder(name)
    outs, inputs = CASES[name](b)
    program = b.finish(outs)
    results = [dlc.compile(program, threads=n)(*inputs) for n in (1, 2, 3)]
    for other in results[1:]:
        for a, c in zip(results[0], other, strict=True) if isinstance(other, tuple) else [(results[0], other)]:
            assert np.asarray(a).tobytes() == np.asarray(c).tobytes()
