"""Scales after contractions move into constant weights, within the stated error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.passes.fold_scale import FoldScale
from tests.passes.samples import body, outputs, random_inputs

CONV = """
program f(X: f32[b, 3, 6, 6]) -> (Z{more}) {{
  const W: f32[5, 3, 3, 3]
  const S: f32[5]
  const B: f32[5]
  Y[b, o:5, h:4, w:4]: f32 = {reduce}(c:3, i:3, j:3) X[b, c, h + i, w + j] * W[{at}, c, i, j]
  Z[b, o:5, h:4, w:4]: f32 = max(Y[b, o, h, w] * S[{scale}] + B[o], 0.0){extra}
}}
"""


def conv(more: str = "", reduce: str = "sum", at: str = "o", scale: str = "o", extra: str = "") -> Program:
    text = CONV.format(more=more, reduce=reduce, at=at, scale=scale, extra=extra)
    rng = np.random.default_rng(0)
    data = {n: rng.standard_normal(s).astype(np.float32) for n, s in (("W", (5, 3, 3, 3)), ("S", (5,)), ("B", (5,)))}
    return replace(parse_program(text), data=data)


def test_batch_normalisation_disappears() -> None:
    before = conv()
    after = FoldScale().apply(before)
    assert body(after) == [
        "const B: f32[5]",
        "const W_scaled: f32[5, 3, 3, 3]",
        "Y[b, o:5, h:4, w:4]: f32 = sum(c:3, i:3, j:3) X[b, c, h + i, j + w] * W_scaled[o, c, i, j]",
        "Z[b, o:5, h:4, w:4]: f32 = max(Y[b, o, h, w] + B[o], 0.0)",
    ]
    (x,) = random_inputs(before, {"b": 2})
    (want,), (got,) = outputs(before, [x]), outputs(after, [x])
    absolute = replace(before, data={n: np.abs(a) for n, a in before.data.items()})
    (terms,) = outputs(replace(absolute, data={**absolute.data, "B": 0 * absolute.data["B"]}), [np.abs(x)])
    assert (np.abs(got - want) <= 2.0**-24 * terms + 2.0**-23 * np.abs(want)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"more": ", Y"},
        {"reduce": "max"},
        {"at": "0"},
        {"scale": "h"},
        {"extra": " + Y[b, o, h, w]"},
    ],
    ids=lambda o: next(iter(o)),
)
def test_each_condition_is_needed(options: dict[str, str]) -> None:
    before = conv(**options)
    assert FoldScale().apply(before) is before
