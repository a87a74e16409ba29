"""Equal layers are equal kernels: what the digest sees, and what it does not."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from dlc.ir.equality import canonical, digest, same
from dlc.ir.parser import parse_cascade
from dlc.ir.program import Kernel

LAYER = """cascade layer(X: f32[b, 8], W: f32[8, 4], M: bool[b, 4]) -> Z symbols (b in 1..) {
  Y[b, n:4] = sum(k:8) X[b, k] * W[k, n]
  S[b, n:4] = (Y[b, n - 1] else 0.5) + Y[b, n] where M[b, n]
  R[n:4] = max(b) S[b, n]
  T[n:4] = T[n - 1] + R[n]
  scatter(b, n:4) Z[b, n] sum= T[n] onto Y
}"""


def kernel(text: str, outer: tuple[str, ...] = ()) -> Kernel:
    return Kernel(parse_cascade(text), outer)


def test_names_do_not_count() -> None:
    renamed = re.sub(r"\bn\b", "zz", LAYER)
    for old, new in {"Y": "hidden", "X": "A", "k": "q", "layer": "other", "M": "mask"}.items():
        renamed = re.sub(rf"\b{old}\b", new, renamed)
    assert renamed != LAYER
    assert digest(kernel(LAYER)) == digest(kernel(renamed))
    assert canonical(parse_cascade(LAYER)) == canonical(parse_cascade(renamed))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.5", "0.25"), ("max(b)", "min(b)"), ("8]", "9]"), ("where M[b, n]", "where not(M[b, n])"), ("sum= T", "max= T"),
        ("X[b, k] * W[k, n]", "W[k, n] * X[b, k]"), ("b in 1..", "b in 2.."), ("f32[8, 4]", "f32[8, 4]{1, 0}"),
        ("f32[8, 4]", "f32[8, 4]{+ 16}"), ("Y[b, n:4] =", "Y[b, n:4]: f32{+ 16} ="),
    ],
)  # fmt: skip
def test_meaning_counts(old: str, new: str) -> None:
    changed = LAYER.replace(old, new) if old != "8]" else LAYER.replace("[b, 8]", "[b, 9]")
    assert changed != LAYER
    assert not same(kernel(LAYER), kernel(changed))


def test_symbols_are_the_programs() -> None:
    other = "cascade f(X: f32[n]) -> Z {\n  Z[i:n] = X[i]\n}"
    assert not same(parse_cascade(other), parse_cascade(other.replace("n", "m")))


def test_outer_ranks_count() -> None:
    text = "cascade f(X: f32[n, 4]) -> Z {\n  Z[i:n, j:4] = X[i, j]\n}"
    assert not same(kernel(text, ("i",)), kernel(text, ("i", "j")))
    assert same(kernel(text, ("i",)), kernel(text.replace("i", "p"), ("p",)))


def test_the_same_in_every_process() -> None:
    code = f"from dlc.ir.parser import parse_cascade\nfrom dlc.ir.equality import digest\nprint(digest(parse_cascade({LAYER!r})))"
    made = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": s}
        ).stdout
        for s in ("1", "2")
    }
    assert made == {digest(parse_cascade(LAYER)) + "\n"}
