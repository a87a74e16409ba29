"""Operands of contractions relaid: what is packed, copied or left; results' layouts; the meaning is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from tests.passes.samples import assert_same_result, body, rewrite

from dlc.costmodel.tiles import PANEL_RATES, panel_columns
from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, F16, F32, F64, DType
from dlc.ir.einsum import Einsum
from dlc.ir.expr import access, apply, const
from dlc.ir.extent import int_expr, sym
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.ir.verify import verify
from dlc.ir.view import Val
from dlc.passes.prepare_contractions import PrepareContractions

RNG = np.random.default_rng(0)
AVX2 = PrepareContractions(lanes=8, registers=16)


def floats(*shape: int, dtype: DType = F32) -> np.ndarray:
    return RNG.standard_normal(shape).astype(dtype.numpy)


def prepared(program: Program, inputs: Sequence[np.ndarray], step: PrepareContractions | None = None, rtol: float = 1e-5) -> Program:
    """The program after the pass, verified and compared."""
    after = (step or PrepareContractions()).apply(program)
    verify(after)
    for a, b in zip(run_program(program, inputs), run_program(after, inputs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(b.astype(np.float64), a.astype(np.float64), rtol=rtol, atol=rtol * 10)
    return after


def steps(program: Program) -> list[Einsum]:
    return [s for s in program.body.body if isinstance(s, Einsum)]


def packed(program: Program) -> dict[str, np.ndarray]:
    return {n: a for n, a in program.data.items() if "_packed" in n}


# --- convolutions ----------------------------------------------------------------------------------------------------


def convolution(
    cin: int = 5, cout: int = 20, size: int = 7, kernel: int = 3, stride: int = 1, pad: int = 1, dilation: int = 1, groups: int = 1
) -> tuple[Program, list[np.ndarray]]:
    """NCHW, with a symbolic batch; relu after it."""
    b = Builder("conv")
    n = b.symbol("n", 1)
    b.input("x", F32, (n, cin, size, size + 1))
    w = b.constant(floats(cout, cin // groups, kernel, kernel), "w")
    reach = dilation * (kernel - 1) + 1
    h, v = ((s + 2 * pad - reach) // stride + 1 for s in (size, size + 1))
    each, per = cin // groups, cout // groups

    def element(i, r):  # type: ignore[no-untyped-def]
        at = [stride * i[2] + dilation * r[1] - pad, stride * i[3] + dilation * r[2] - pad]
        channel = r[0] if groups == 1 else (i[1] // per) * each + r[0]
        return apply("mul", access("x", i[0], channel, *at, default=const(0.0)), w(i[1], *r))

    y = b.reduce("y", "sum", (n, cout, h, v), (each, kernel, kernel), element, F32)
    z = b.map("z", lambda u: apply("max", u, const(0.0)), y)
    return b.finish([z]), [floats(2, cin, size, size + 1)]


CONVOLUTIONS = {
    "3x3": {},
    "1x1": {"kernel": 1, "pad": 0},
    "1x1 strided": {"kernel": 1, "pad": 0, "stride": 2},
    "strided": {"stride": 2},
    "no padding": {"pad": 0},
    "wide padding": {"pad": 3},
    "dilated": {"dilation": 2, "pad": 2},
    "all of it": {"stride": 3, "dilation": 2, "pad": 1, "kernel": 2},
    "two groups": {"cin": 6, "cout": 20, "groups": 2},
    "depthwise": {"cin": 20, "cout": 20, "groups": 20},
    "depthwise, two each": {"cin": 10, "cout": 20, "groups": 10},
    "one channel": {"cin": 1},
    "few outputs": {"cout": 3},
    "7x7 of three": {"cin": 3, "kernel": 7, "pad": 3, "stride": 2, "size": 14},
}


@pytest.mark.parametrize("options", [PrepareContractions(), AVX2], ids=["avx512", "avx2"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, options: PrepareContractions) -> None:
    program, inputs = convolution(**CONVOLUTIONS[name])
    after = prepared(program, inputs, options)
    if name in ("3x3", "strided", "dilated", "1x1", "no padding", "wide padding", "7x7 of three"):
        ((key, panels),) = packed(after).items()
        width = panel_columns(int_expr(20), options.lanes, options.registers)
        assert panels.shape[0] == -(-20 // width) and panels.shape[-1] == width
        flat = np.moveaxis(panels, 0, -2).reshape(-1, panels.shape[0] * width)
        assert not flat[:, 20:].any(), "what pads the last panel is zero"
        assert np.count_nonzero(flat) == np.count_nonzero(program.data["w"])
        layouts = [s.order for s in steps(after)]
        assert (0, 2, 3, 1) in layouts, "the result has its channels innermost"
        assert steps(after)[-1].order is None, "and leaves the program row-major"
    if "padding" in name and name != "no padding":
        assert steps(after)[0].out.startswith("x_rows") and steps(after)[0].expr.default is not None, "padded once, by a copy"


def test_a_convolution_as_text(golden) -> None:  # type: ignore[no-untyped-def]
    """Padding and channels-last in one copy, packed weights, the result's layout followed by relu and pooling."""
    b = Builder("conv")
    n = b.symbol("n", 1)
    b.input("x", F32, (n, 8, 9, 9))
    w = b.constant(floats(40, 8, 3, 3), "w")

    def element(i, r):  # type: ignore[no-untyped-def]
        return apply("mul", access("x", i[0], r[0], i[2] + r[1] - 1, i[3] + r[2] - 1, default=const(0.0)), w(i[1], *r))

    y = b.reduce("y", "sum", (n, 40, 9, 9), (8, 3, 3), element, F32)
    z = b.map("relu", lambda u: apply("max", u, const(0.0)), y)
    p = b.reduce("pool", "max", (n, 40, 4, 4), (2, 2), lambda i, r: z(i[0], i[1], 2 * i[2] + r[0], 2 * i[3] + r[1]), F32)
    program = b.finish([b.reduce_axes("total", "sum", p, [2, 3], False)])
    after = prepared(program, [floats(2, 8, 9, 9)])
    golden(str(after))
    assert all(s.order == (0, 2, 3, 1) for s in steps(after)[1:-1])


# --- products --------------------------------------------------------------------------------------------------------

PRODUCTS = {
    "plain": ("mk,kn->mn", (9, 20), (20, 50)),
    "transposed weight": ("mk,nk->mn", (9, 20), (50, 20)),
    "transposed rows": ("km,kn->mn", (20, 9), (20, 50)),
    "both transposed": ("km,nk->mn", (20, 9), (50, 20)),
    "result transposed": ("mk,kn->nm", (9, 20), (20, 50)),
    "batched": ("bmk,bkn->bmn", (2, 9, 20), (2, 20, 50)),
    "batched, transposed": ("bmk,bnk->bmn", (2, 9, 20), (2, 50, 20)),
    "batch inside": ("mbk,nbk->bmn", (9, 2, 20), (50, 2, 20)),
    "one shared": ("bmk,nk->bmn", (2, 9, 20), (50, 20)),
    "vector": ("k,nk->n", (20,), (150, 20)),
    "outer product": ("m,n->mn", (70,), (50,)),
    "two reduced": ("mkj,nkj->mn", (9, 5, 4), (50, 5, 4)),
    "odd columns": ("mk,nk->mn", (9, 33), (37, 33)),
}


@pytest.mark.parametrize("options", [PrepareContractions(), AVX2], ids=["avx512", "avx2"])
@pytest.mark.parametrize("kind", ["constant", "input"])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str, kind: str, options: PrepareContractions) -> None:
    spec, left, right = PRODUCTS[name]
    for dtype in (F32, F64, F16, BF16) if name == "transposed weight" else (F32,):
        b = Builder("f")
        x = b.input("x", dtype, left)
        inputs = [floats(*left, dtype=dtype)]
        if kind == "constant":
            w: Val = b.constant(floats(*right, dtype=dtype), "w")
        else:
            w = b.input("w", dtype, right)
            inputs.append(floats(*right, dtype=dtype))
        program = b.finish([b.contract("y", spec, x, w)])
        after = prepared(program, inputs, options, rtol=3e-2 if dtype.bits == 16 else 1e-5)
        if kind == "constant" and name not in ("outer product",):
            assert packed(after), str(after)
        if kind == "input" and name in ("plain", "batched"):
            assert body(after) == body(program), "columns that stream as they are stay"
        if kind == "input" and name == "transposed weight":
            assert (body(after) == body(program)) == (dtype != BF16), "few rows are multiplied as they lie, pairs are packed"
            many = prepared(program, inputs, replace(options, few_rows=9), rtol=3e-2 if dtype.bits == 16 else 1e-5)
            assert any("_panels" in s.out for s in steps(many)), "packed when the program runs"


@pytest.mark.parametrize("options", [PrepareContractions(), AVX2], ids=["avx512", "avx2"])
def test_symbolic_extents(options: PrepareContractions) -> None:
    text = """
    cascade f(Q: f32[b, p, 3*e], K: f32[b, m, 3*e], V: f32[b, m, f]) -> (S, O) symbols (e in 1.., f in 1..) {
      S[b, p, m] = sum(r:3*e) Q[b, p, r] * K[b, m, r]
      O[b, p, f] = sum(m) S[b, p, m] * V[b, m, f]
    }"""
    before, after = rewrite(text, options)
    assert any("_panels" in s.out for s in steps(after))
    for sizes in ({"b": 2, "p": 5, "m": 7, "e": 2, "f": 3}, {"b": 1, "p": 1, "m": 65, "e": 1, "f": 17}, {"b": 0, "p": 2, "m": 1, "e": 1, "f": 1}):
        assert_same_result(before, after, sizes, rtol=1e-4)


def test_panels_made_at_run_time_end_in_zeros() -> None:
    text = """
    cascade f(Q: f32[p, e], K: f32[m, e]) -> (S) {
      S[p, m] = sum(e) Q[p, e] * K[m, e]
    }"""
    before, after = rewrite(text, PrepareContractions())
    panels = next(s for s in steps(after) if "_panels" in s.out)
    seen: dict[str, np.ndarray] = {}
    run_program(after, [floats(3, 4), floats(50, 4)], observe=seen.__setitem__)
    made = seen[panels.out]
    assert made.shape == (2, 4, 48) and made[0].all() and made[1, :, :2].all() and not made[1, :, 2:].any()
    assert_same_result(before, after, {"p": 3, "e": 4, "m": 50}, rtol=1e-5)


RESHAPED = {
    "heads of the queries": "O[b:2, h:3, p, m] = sum(e:4) D[b, p, 4*h + e] * D[b, m, 4*h + e]",
    "heads merged": "O[b:2, p, n:24] = sum(r:12) H[b, r // 4, p, r % 4] * W[n, r]",
    "heads made": "O[b:2, p, n:24] = sum(r:12) D[b, p, r] * W[8*(n // 8) + n % 8, r]",
    "flattened": "O[i:2*p, n:24] = sum(r:12) D[i // p, i % p, r] * W[n, r]",
    "gathered": "O[b:2, p, n:24] = sum(r:12) D[b, I[p] % p, r] * W[n, r]",
    "window": "O[b:2, y:p, n:24] = sum(r:12, k:3) (D[b, y + k - 1, r] else 0.0) * W[8*k + n % 8, r]",
    "reversed": "O[b:2, y:p, n:24] = sum(r:12) D[b, p - 1 - y, r] * W[23 - n, 11 - r]",
}


@pytest.mark.parametrize("name", RESHAPED)
def test_reshaped_operands(name: str) -> None:
    text = f"""
    cascade f(D: f32[2, p, 12], H: f32[2, 3, p, 4], W: f32[24, 12], I: i64[p]) -> (O) symbols (p in 1..) {{
      {RESHAPED[name].replace("y:p", "y:p").replace("p - 1 - y", "#p - 1 - y").replace("// p", "// #p").replace("% p", "% #p")}
    }}""".replace("m] =", "m:p] =")
    if "m:p" in text and "D[b, m" not in text:
        text = text.replace("m:p", "m")
    for options in (PrepareContractions(least_work=1), PrepareContractions(lanes=8, registers=16, least_work=1)):
        before, after = rewrite(text, options)
        verify(after)
        for p in (1, 5, 20):
            assert_same_result(before, after, {"p": p}, rtol=1e-5)


def test_what_is_left_alone() -> None:
    for step in (
        "O[m] = sum(k) A[m, k] * A[m, k]",  # no columns
        "O[m] = max(k) A[m, k] * B[k, m]",  # no sum
        "O[m, n] = sum(k) I[m, k] * I[n, k]",  # integers
        "O[m, n] = sum(k) A[m, k] * B[k, n] where n <= m",  # a domain
        "O[m, n] = sum(k) (A[m, k] + 1.0)",  # no product
    ):
        text = f"cascade f(A: f32[m, k], B: f32[k, n], I: i32[m, k]) -> (O) {{ {step.replace('sum(k) (A[m, k] + 1.0)', 'A[m, 0] + B[0, n]')} }}"
        if "I[n, k]" in text:
            text = text.replace("O[m, n]", "O[m, n:m]")
        if "B[k, m]" in text:
            text = text.replace("B: f32[k, n]", "B: f32[k, m]")
        if "A[m, 0]" in text:
            text = text.replace("(O) {", "(O) symbols (k in 1..) {")
        before, after = rewrite(text, PrepareContractions())
        assert body(after) == body(before), text
    small = "cascade f(A: f32[4, 4], B: f32[4, 4]) -> (O) { O[m:4, n:4] = sum(k:4) A[m, k] * B[n, k] }"
    before, after = rewrite(small, PrepareContractions())
    assert after is before or body(after) == body(before), "64 products are not worth a copy"


def test_the_same_weight_twice_is_packed_once() -> None:
    b = Builder("f")
    x, w = b.input("x", F32, (8, 40)), b.constant(floats(40, 40), "w")
    y = b.contract("y", "mk,nk->mn", x, w)
    program = b.finish([b.contract("z", "mk,nk->mn", y, w)])
    after = prepared(program, [floats(8, 40)])
    assert len(packed(after)) == 1 and len(after.consts) == 1, "and the unpacked one is gone"


def test_a_layout_stays_inside() -> None:
    """What leaves a region, feeds a scan or a library operation is row-major."""
    text = """
    program f(X: f32[2, 8, 6, 6], go: bool[]) -> (R) {
      const W: f32[16, 8]
      S[b:2, c:16, y:6, x:6] = sum(k:8) X[b, k, y, x] * W[c, k]
      if go {
        A[b:2, c:16, y:6, x:6] = S[b, c, y, x] * 2.0
        yield (A)
      } else {
        yield (S)
      } -> (R)
    }"""
    before = parse_program(text)
    before.data["W"] = floats(16, 8)  # type: ignore[index]
    after = PrepareContractions().apply(before)
    verify(after)
    for flag in (True, False):
        arrays = [floats(2, 8, 6, 6), np.array(flag)]
        for a, b in zip(run_program(before, arrays), run_program(after, arrays), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def test_panels_waste_little() -> None:
    for registers, lanes in ((32, 16), (16, 8), (16, 4)):
        for columns in range(1, 400):
            width = panel_columns(int_expr(columns), lanes, registers)
            waste = -(-columns // width) * width - columns
            rounded = -(-columns // lanes) * lanes
            assert columns + waste <= rounded / PANEL_RATES[1] and width % lanes == 0
            assert width // lanes <= (4 if registers == 32 else 2)
        assert panel_columns(sym("n"), lanes, registers) == (3 if registers == 32 else 2) * lanes
    assert panel_columns(int_expr(768), 16, 32) == 48 and panel_columns(int_expr(64), 16, 32) == 64
    assert panel_columns(int_expr(80), 16, 32) == 16, "a fifth more is too much"
    assert panel_columns(int_expr(769), 16, 32) == 32, "2 % more is worth a second vector, which a row by itself needs"


def test_lanes_are_the_long_rank_of_constant_weights() -> None:
    """A transposed convolution of stride 2: the 2 x 2 taps are tasks, and the result lies as its reader walks it."""
    text = """
    program p(X: f32[1, 8, 5, 5]) -> (Z) {
      const W: f32[8, 32, 2, 2]
      P[c:32, y:5, x:5, e:2, f:2]: f32 = sum(k:8) X[0, k, y, x] * W[k, c, e, f]
      Y[c:32, y:10, x:10]: f32 = P[c, y // 2, x // 2, y % 2, x % 2] + 1.0
      Z[c:32]: f32 = max(y:10, x:10) Y[c, y, x]
    }"""
    parsed = parse_program(text)
    data = {"W": np.random.default_rng(0).standard_normal((8, 32, 2, 2)).astype(np.float32)}
    before = replace(parsed, data=data)
    after = PrepareContractions(least_work=1).apply(before)
    assert_same_result(before, after, {})
    product = next(s for s in after.body.body if isinstance(s, Einsum) and s.out == "P")
    assert [product.ranks[d].name for d in product.order or ()] == ["y", "e", "x", "f", "c"]
    assert next(c for c in after.consts if c.name == "W_packed").type.shape[-1].const == 32
