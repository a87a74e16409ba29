"""The worked cases: parsed, printed, verified and interpreted; the printed text is golden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.ir.cases import CASES, Case

from dlc.ir.dtype import from_numpy
from dlc.ir.error_model import agrees, bounded_cascade, unit_roundoff
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse, parse_program
from dlc.ir.program import Cascade, Program, show_cascade, show_program
from dlc.ir.verify import verify


def by_name(c: Case) -> str:
    return c.name


def test_there_are_enough() -> None:
    assert len(CASES) >= 24
    assert len({c.name for c in CASES}) == len(CASES)


@pytest.mark.parametrize("c", CASES, ids=by_name)
def test_round_trip(c: Case, golden: Callable[..., None]) -> None:
    parsed = parse(c.text)
    assert parse(str(parsed)) == parsed
    assert isinstance(parsed, (Cascade, Program))
    located = show_cascade(parsed, locs=True) if isinstance(parsed, Cascade) else show_program(parsed, locs=True)
    again = parse(located)
    assert again == parsed
    assert isinstance(again, (Cascade, Program))
    assert [s.loc for s in parse_program(located).body.body] == [s.loc for s in parse_program(c.text).body.body]
    golden(str(parsed))


@pytest.mark.parametrize("c", CASES, ids=by_name)
def test_verifies(c: Case) -> None:
    verify(parse(c.text))


@pytest.mark.parametrize("c", CASES, ids=by_name)
def test_interprets(c: Case) -> None:
    results = run_program(parse_program(c.text), c.inputs)
    expected = c.expected(*c.inputs)
    assert len(results) == len(expected)
    parsed = parse(c.text)
    # a reference written by hand does not round each intermediate tensor: the error model says what that may cost
    slack = bounded_cascade(parsed, c.inputs).bounds if isinstance(parsed, Cascade) else (0.0,) * len(results)
    for actual, wanted, bound in zip(results, expected, slack, strict=True):
        wanted = np.asarray(wanted)
        assert actual.dtype == wanted.dtype and actual.shape == wanted.shape
        assert agrees(actual, wanted, bound + tolerance(wanted)).all(), (actual, wanted)
        if wanted.dtype.kind == "f":
            assert (np.signbit(actual) == np.signbit(wanted))[wanted == 0].all()


def tolerance(wanted: Any) -> Any:
    """Two roundings: the references round where they please."""
    dtype = from_numpy(wanted.dtype)
    size = np.abs(wanted.astype(np.float64)) if dtype.is_float else np.zeros(wanted.shape)
    return 4 * unit_roundoff(dtype) * np.where(np.isfinite(size), size, 0)
