"""Winograd: the same convolution, where the conditions hold; the stated growth of rounding errors; strict leaves it out."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.ir.dtype import F32
from dlc.ir.einsum import Einsum, Scan, TensorType
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

    assert [tile(56, 64), tile(28, 128), tile(14, 256), tile(7, 512), tile(4, 512)] == [4, 4, 4, 2, None]
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


BANDED = Winograd(gain=1e9, cache_bytes=0, band_bytes=20_000)
"""Bands of at most 20 kB of what passes between the parts."""

FOLLOWED = """
program p(X: f32[1, 3, H, 12]) -> (Y, Q) {
  const G: f32[5, 3, 3, 3]
  const S: f32[5]
  R[n:1, c:5, y:H, x:12]: f32 = cos(X[0, 0, y, x] * cast<f32>(c))
  C[n:1, c:5, y:H, x:12]: f32 = sum(k:3, i:3, j:3) (X[0, k, y + i - 1, x + j - 1] else 0.0) * G[c, k, i, j]
  Y[n:1, c:5, y:H, x:12]: f32 = max(C[0, c, y, x] * S[c] + R[0, c, y, x], 0.0)
  Q[n:1, c:5, y:H, x:12]: f32 = Y[0, c, y, x] + 1.0
}"""


def followed(height: int, text: str = FOLLOWED) -> Program:
    parsed = parse_program(text.replace("H", str(height)))
    rng = np.random.default_rng(1)
    data = {c.name: rng.standard_normal([e.const or 0 for e in c.type.shape]).astype(np.float32) for c in parsed.consts}
    return replace(parsed, data=data)


def outputs(p: Program, before: Program) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal([e.const or 0 for e in q.type.shape]).astype(np.float32) for q in before.params]
    return list(run_program(p, arrays, p.data))


@pytest.mark.parametrize("height", [16, 24, 32])
def test_bands_with_what_follows(height: int) -> None:
    """The same numbers to the bit, and what follows point by point is done in the band, whatever else it reads."""
    before = followed(height)
    whole, banded = ALWAYS.apply(before), BANDED.apply(before)
    verify(banded)
    (scan,) = (s for s in banded.body.body if isinstance(s, Scan))
    assert (scan.rank.extent.const or 0) > 1 and not scan.carries
    assert isinstance(scan.body[-1], Einsum) and scan.body[-1].out.startswith("Y_band") and "S[" in str(scan.body[-1]) and "R[" in str(scan.body[-1])
    for a, b in zip(outputs(whole, before), outputs(banded, before), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("change", "bands"), [({}, True), ({"pad": 0}, False), ({"b": 2}, False), ({"h": 18, "pad": 1}, False)])
def test_where_there_are_bands(change: dict[str, int], bands: bool) -> None:
    """Where whole tiles make the image's lines, and these lie one after the other."""
    before = convolution(**({"h": 16, "w": 16} | change))
    after = BANDED.apply(before)
    assert any(isinstance(s, Scan) for s in after.body.body) is bands
    np.testing.assert_allclose(outputs(after, before)[0], outputs(before, before)[0], atol=1e-4)
    assert not any(isinstance(s, Scan) for s in ALWAYS.apply(before).body.body), "a cache holds all of it"


@pytest.mark.parametrize(
    ("old", "new"),
    [("(Y, Q)", "(Y, Q, C)"), ("* S[c] +", "* cast<f32>(y) +"), ("Y[0, c, y, x] + 1.0", "Y[0, c, y, x] + C[0, c, y, x]")],
    ids=["a result", "the line's number", "two readers"],
)
def test_what_does_not_follow_into_a_band(old: str, new: str) -> None:
    assert old in FOLLOWED
    before = followed(16, FOLLOWED.replace(old, new))
    whole, banded = ALWAYS.apply(before), BANDED.apply(before)
    (scan,) = (s for s in banded.body.body if isinstance(s, Scan))
    assert isinstance(scan.body[-1], Einsum) and scan.body[-1].out.startswith("C_band")
    for a, b in zip(outputs(whole, before), outputs(banded, before), strict=True):
        np.testing.assert_array_equal(a, b)
