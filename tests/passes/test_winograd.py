"""Winograd: the same convolution, where the conditions hold; the stated growth of rounding errors; strict leaves it out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.ir.dtype import F32
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.extent import int_expr
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Param, Program
from dlc.ir.verify import verify
from dlc.passes.cook_toom import cook_toom
from dlc.passes.default import default_pipeline
from dlc.passes.winograd import Winograd

ALWAYS = Winograd(gain=1e9)


def program(body: str, weights: tuple[int, ...], inputs: str = "X: f32[b, K, H, W]", **sizes: int) -> Program:
    """A program with constant weights `G`; upper-case names in the text are the sizes."""
    for name, value in sizes.items():
        inputs, body = inputs.replace(name, str(value)), body.replace(f":{name}", f":{value}")
    shape = ", ".join(map(str, weights))
    text = f"program p({inputs}) -> (Y) {{\n  const G: f32[{shape}]\n  {body}\n}}"
    parsed = parse_program(text)
    data = np.random.default_rng(1).standard_normal(weights).astype(np.float32)
    return Program(**{**{f: getattr(parsed, f) for f in parsed.__dataclass_fields__}, "data": {"G": data}})


def convolution(
    h: int, w: int, k: int = 3, c: int = 5, *, pad: int = 1, b: int = 1, stride: int = 1, dilation: int = 1, taps: int = 3
) -> Program:
    out = [(n + 2 * pad - dilation * (taps - 1) - 1) // stride + 1 for n in (h, w)]
    a, d = f"{stride}*y + {dilation}*i - {pad}", f"{stride}*x + {dilation}*j - {pad}"
    return program(
        f"Y[n:{b}, c:{c}, y:{out[0]}, x:{out[1]}]: f32 = sum(k:{k}, i:{taps}, j:{taps}) (X[n, k, {a}, {d}] else 0.0) * G[c, k, i, j]",
        (c, k, taps, taps),
        f"X: f32[{b}, {k}, {h}, {w}]",
    )


def names(p: Program) -> list[str]:
    return [s.out for s in p.body.body if isinstance(s, Einsum)]


def growth(before: Program, after: Program, seed: int = 0) -> tuple[float, float]:
    """(largest error, largest sum of |terms|) of the results of both over the same inputs."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal([e.const for e in p.type.shape]).astype(np.float32) for p in before.params]
    (want,), (got,) = run_program(before, arrays, before.data), run_program(after, arrays, after.data)
    positive = {n: np.abs(a) for n, a in before.data.items()}
    (terms,) = run_program(before, [np.abs(a) for a in arrays], positive)
    assert got.shape == want.shape and got.dtype == want.dtype
    return float(np.abs(got.astype(np.float64) - want).max(initial=0)), float(terms.max(initial=0))


# Four roundings to f32 on the way (two transforms on each side) and the weights': each is carried through the matrices.
STEPS = 6


def assert_within(before: Program, after: Program, m: int, dims: int) -> None:
    verify(after)
    error, terms = growth(before, after)
    bound = STEPS * 2.0**-24 * cook_toom(m, 3).amplification ** dims * terms
    assert error <= bound, (error, bound)


@pytest.mark.parametrize("m", [2, 4, 6])
@pytest.mark.parametrize("r", [2, 3])
def test_the_matrices_convolve(m: int, r: int) -> None:
    t = cook_toom(m, r)
    at, g, bt = (np.array(x, dtype=object) for x in (t.at, t.g, t.bt))
    rng = np.random.default_rng(0)
    d, f = rng.integers(-9, 9, t.n).astype(object), rng.integers(-9, 9, r).astype(object)
    assert list(at @ ((g @ f) * (bt @ d))) == [sum(d[i + k] * f[k] for k in range(r)) for i in range(m)]


def test_as_text(golden) -> None:  # type: ignore[no-untyped-def]
    """One dimension: three products where the direct form has six."""
    before = program(
        "Y[c:8, x:6]: f32 = sum(k:4, j:3) (X[k, x + j - 1] else 0.0) * G[c, k, j]", (8, 4, 3), "X: f32[4, 6]"
    )
    from unittest import mock

    with mock.patch("dlc.passes.winograd.OUTPUTS", (2,)):
        after = ALWAYS.apply(before)
    golden(str(after))
    assert_within(before, after, 2, 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 11), st.integers(1, 11), st.integers(1, 4), st.integers(1, 5), st.integers(0, 2), st.integers(1, 2))
def test_every_size_and_padding(h: int, w: int, k: int, c: int, pad: int, b: int) -> None:
    if min(h, w) + 2 * pad < 3:
        return
    before = convolution(h, w, k, c, pad=pad, b=b)
    after = ALWAYS.apply(before)
    assert after is not before
    assert_within(before, after, 4, 2)


@pytest.mark.parametrize(
    ("change", "rewritten"),
    [
        ({}, True),
        ({"stride": 2}, False),
        ({"dilation": 2}, False),
        ({"taps": 5}, False),
        ({"taps": 1}, False),
    ],
    ids=str,
)
def test_what_is_rewritten(change: dict[str, int], rewritten: bool) -> None:
    before = convolution(9, 9, **change)
    assert (ALWAYS.apply(before) is not before) == rewritten


REFUSED = {
    "weights that are no constant": "Y[c:4, x:8] = sum(k:4, j:3) (X[k, x + j - 1] else 0.0) * Z[c, k, j]",
    "another padding": "Y[c:4, x:8] = sum(k:4, j:3) (X[k, x + j - 1] else 1.0) * G[c, k, j]",
    "no depth": "Y[c:4, x:8] = sum(j:3) (X[c, x + j - 1] else 0.0) * G[c, 0, j]",
    "no columns": "Y[x:8] = sum(k:4, j:3) (X[k, x + j - 1] else 0.0) * G[0, k, j]",
    "the tap read twice": "Y[c:4, x:8] = sum(k:4, j:3) (X[j, x + j - 1] else 0.0) * G[c, k, j]",
    "the place read twice": "Y[c:4, x:4] = sum(k:4, j:3) (X[x, x + j - 1] else 0.0) * G[c, k, j]",
    "weights from the other end": "Y[c:4, x:8] = sum(k:4, j:3) (X[k, x + j - 1] else 0.0) * G[c, k, 2 - j]",
    "a maximum": "Y[c:4, x:8] = max(k:4, j:3) (X[k, x + j - 1] else 0.0) * G[c, k, j]",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_alone(name: str) -> None:
    before = program(REFUSED[name], (4, 4, 3), "X: f32[4, 8], Z: f32[4, 4, 3]")
    assert ALWAYS.apply(before) is before


def test_groups_and_a_third_dimension() -> None:
    """A group is a rank of both operands; of three windows two are transformed, the third is summed over."""
    before = program(
        "Y[g:2, c:4, z:4, y:5, x:6] = sum(k:3, l:3, i:3, j:3)"
        " (X[g, k, z + l - 1, y + i - 1, x + j - 1] else 0.0) * G[g, c, k, l, i, j]",
        (2, 4, 3, 3, 3, 3),
        "X: f32[2, 3, 4, 5, 6]",
    )
    after = ALWAYS.apply(before)
    assert after is not before
    assert_within(before, after, 4, 2)


def test_images_of_any_size() -> None:
    """Batch and image may be symbols; the last tile reaches over the end."""
    text = """
    program p(X: f32[b, 3, h, w]) -> (Y) symbols (h in 1.., w in 1..) {
      const G: f32[4, 3, 3, 3]
      Y[n:b, c:4, y:h, x:w]: f32 = sum(k:3, i:3, j:3) (X[n, k, y + i - 1, x + j - 1] else 0.0) * G[c, k, i, j]
    }""".replace("\n    program", "program")
    parsed = parse_program(text)
    data = {"G": np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)}
    before = Program(**{**{f: getattr(parsed, f) for f in parsed.__dataclass_fields__}, "data": data})
    after = ALWAYS.apply(before)
    verify(after)
    for b, h, w in itertools.product((0, 1, 2), (1, 4, 7), (2, 5)):
        x = np.random.default_rng(0).standard_normal((b, 3, h, w)).astype(np.float32)
        (want,), (got,) = run_program(before, [x], before.data), run_program(after, [x], after.data)
        np.testing.assert_allclose(got, want, atol=1e-4)


def test_the_cheapest_form() -> None:
    """Large images by F(4, 3), small ones by F(2, 3), where weights are all the traffic directly; strict never."""

    def tile(size: int, channels: int) -> int | None:
        before = convolution(size, size, channels, channels)
        after = Winograd().apply(before)
        return None if after is before else int(after.consts[-1].type.shape[0].const or 0) - 2

    assert [tile(56, 64), tile(28, 128), tile(14, 256), tile(4, 512)] == [4, 4, 2, None]
    assert tile(56, 2) is None
    assert "winograd" in default_pipeline() and "winograd" not in default_pipeline(accuracy="strict")


def test_weights_are_rounded_once() -> None:
    before = convolution(8, 8)
    after = ALWAYS.apply(before)
    made = next(c for c in after.consts if c.name != "G")
    assert made == Param(made.name, TensorType(F32, tuple(map(int_expr, (6, 6, 5, 3)))))
    g = np.array(cook_toom(4, 3).g, dtype=np.float64)
    exact = np.einsum("ui,vj,ckij->uvck", g, g, before.data["G"].astype(np.float64))
    np.testing.assert_array_max_ulp(after.data[made.name], exact.astype(np.float32), 1)  # ties are frequent


CHANNELS = "sum(k:64, i:3, j:3) (X[0, k, y + i - 1, x + j - 1] else 0.0) * "


@pytest.mark.parametrize("turned", [False, True])
def test_each_of_several_convolutions_is_weighed_by_itself(turned: bool) -> None:
    """Twins are both rewritten, with their own filters; a small one, and one whose filters are a part of more, are not."""
    steps = [
        f"A[c:64, y:16, x:16]: f32 = {CHANNELS}G[c, k, i, j]",
        f"B[c:64, y:16, x:16]: f32 = {CHANNELS}H[c, k, i, j]",
        f"P[c:64, y:16, x:16]: f32 = {CHANNELS}M[c, k, i, j]",
        "S[c:2, y:4, x:4]: f32 = sum(k:2, i:3, j:3) X[0, k, y + i, x + j] * T[c, k, i, j]",
    ]
    shapes = {"G": (64, 64, 3, 3), "H": (64, 64, 3, 3), "M": (30000, 64, 3, 3), "T": (2, 2, 3, 3)}
    consts = "".join(f"  const {n}: f32[{', '.join(map(str, shape))}]\n" for n, shape in shapes.items())
    text = "\n  ".join(reversed(steps) if turned else steps)
    parsed = parse_program(f"program p(X: f32[1, 64, 16, 16]) -> (A, B, P, S) {{\n{consts}  {text}\n}}")
    rng = np.random.default_rng(3)
    data = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items() if n != "M"}
    data["M"] = np.zeros(shapes["M"], np.float32)
    before = Program(**{**{f: getattr(parsed, f) for f in parsed.__dataclass_fields__}, "data": data})
    after = Winograd().apply(before)
    made = [s for s in after.body.body if isinstance(s, Einsum)]
    direct = {s.out for s in made if s.reduce is not None and len(s.reduced) == 3}
    assert direct == {"P", "S"}
    filters = {a for s in made if s.out in ("A_m", "B_m") for a in s.reads if a in after.data}
    assert filters == {"G_u", "H_u"}
    assert not np.array_equal(after.data["G_u"], after.data["H_u"])
