"""Random programs, compiled and interpreted: a sample in `make test`, 2,000 in `make test-all`."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from ledger import Ledger
from tests.fuzz.bounds import _order_bounds, reference
from tests.fuzz.bounds_scalars import gap
from tests.fuzz.generate import ALL, Case, case
from tests.fuzz.pieces import PIECES
from tests.fuzz.run import Family, Result, run, summary
from tests.fuzz.shrink import shrink

from dlc.ir.library import LIBRARY, order_along
from dlc.ir.monoid import MONOIDS
from dlc.ir.scalar import SCALAR_OPS

SAMPLE, WHOLE = 60, 2000
MOST_REFUSED = 0.05

LEAST: dict[str, int] = {
    **{f"op:{o}": 10 for o in SCALAR_OPS},
    **{f"monoid:{m}": 10 for m in MONOIDS},
    **{f"dtype:{t}": 60 for t in ALL},
    **{f"cast:{a}{b}": 4 for a in "fiub" for b in "fiub" if a + b != "bb"},
    **{name: 30 for name, _, _ in PIECES},
    "cast:sat": 30, "cast:wrap": 30, "bitcast": 15, "constant": 300, "accumulator": 15,
    "extent:0": 60, "extent:long": 20, "contraction:blocks": 25, "extent:1": 200, "extent:odd": 500, "extent:symbol": 500, "extents:again": 300,
    "where:free": 50, "where:reduced": 50, "domain:inherited": 50, "read:else": 100, "index-value": 30, "layout": 40,
    "piecewise:concat": 40, "piecewise:stack": 30, "empty-reduction": 8, "gather:negative": 10, "gather:outside": 10,
    "gather:clamp": 10, "gather:two-level": 10, "gather:elementwise": 10, "scatter:drop": 20, "scatter:where": 15,
    **{f"scatter:{op}": 10 for op in ("set", "sum", "prod", "max", "min")},
    **{f"view:{v}": 20 for v in ("permute", "reshape", "flip", "slice", "select", "unsqueeze", "pad", "clamp", "reflect", "roll", "split")},
    "contraction": 300, "contraction:constant": 60, "contraction:reshaped": 50, "contraction:permuted": 40, "contraction:cast": 40,
    "contraction:tiled": 150, "conv": 100, "conv:groups": 30, "conv:depthwise": 20, "conv:stride": 50, "conv:dilation": 25, "window": 120,
    "scan": 120, "scan:nested": 15, "scan:zero": 8, "scan:contraction": 50, "scan:swap": 15, "scan:stacked": 100,
    **{f"library:{op}": 40 for op in LIBRARY}, "library:extent-read": 40, "library:region": 20, "topk:static": 10,
    "topk:expression": 10, "topk:bound": 10, "sort:ascending": 20, "sort:descending": 20, "input:ties": 60,
    "if": 30, "loop": 40, "loop:while": 20, "loop:collect": 20, "bind": 30, "outputs:several": 400,
    "input:special-float": 100, "input:extreme-int": 50, "input:any-int": 100,
}  # fmt: skip
"""Least number of programs with each construct among 2,000."""


def test_every_construct_has_its_share() -> None:
    counts = Counter(t for seed in range(WHOLE) for t in case(seed).tags)
    few = {tag: (counts[tag], least) for tag, least in LEAST.items() if counts[tag] < least}
    assert not few, f"too few programs (have, want): {few}"


def test_cases_are_reproducible() -> None:
    for seed in range(40):
        a, b = case(seed), case(seed)
        assert a.program == b.program and a.tags == b.tags
        for x, y in zip(a.inputs, b.inputs, strict=True):
            assert x.tobytes() == y.tobytes()


def test_compiled_and_interpreted_agree(everything: bool) -> None:
    if everything:
        results = run(range(WHOLE), workers=2, ledger=Ledger("fuzz"))
    else:
        results = run(range(SAMPLE), workers=1)
    print(summary(results))
    faults = [r for r in results if r.status in ("wrong", "error", "crash")]
    assert not faults, "\n".join(_told(r) for r in faults[:5])
    refused = [r for r in results if r.status == "refused"]
    assert len(refused) <= MOST_REFUSED * len(results), [r.detail for r in refused]
    open_ = sum(r.open_elements for r in results)
    assert open_ <= 0.02 * sum(r.elements for r in results), "too much is left undetermined by rounding"


def _told(r: Result) -> str:
    return f"seed {r.seed}: {r.status} {r.detail}\n  see it: python -m tests.fuzz.run --seed {r.seed} --shrink"


def test_shrinking_keeps_the_fault() -> None:
    """Down to one step that holds what is looked for."""

    def has_exp(c: Case) -> bool:
        reference(c.program, c.inputs)
        return "exp(" in str(c.program)

    seed = next(s for s in range(500) if "op:exp" in case(s).tags and has_exp(case(s)))
    small = shrink(case(seed), "host", "wrong", 20.0, has_exp)
    assert has_exp(small)
    assert len(small.program.body.body) <= 2
    assert len(str(small.program)) <= len(str(case(seed).program))


@pytest.mark.parametrize("op", LIBRARY)
def test_shrinking_goes_past_library_operations(op: str) -> None:
    """Down to the one looked for; results of others become inputs, with the extents that they found."""

    def has_op(c: Case) -> bool:
        reference(c.program, c.inputs)
        return f"library {op}" in str(c.program)

    seeds = (s for s in range(2000) if f"library:{op}" in case(s).tags and len(case(s).program.body.body) > 2)
    for seed in (next(seeds), next(seeds)):
        small = shrink(case(seed), "host", "wrong", 10.0, has_op)
        assert has_op(small)
        assert len(small.program.body.body) <= 2, str(small.program)


@pytest.mark.parametrize("descending", [False, True])
def test_the_order_of_inexact_values_stays_within_its_bounds(descending: bool) -> None:
    rng = np.random.default_rng(5)
    told = 0
    for n in (0, 1, 2, 7, 16):
        x = np.round(rng.standard_normal((20, n)) * 3) / 2
        x[rng.random(x.shape) < 0.1] = np.nan
        x[rng.random(x.shape) < 0.1] = np.inf
        e = rng.random((20, n)) * rng.choice([0.0, 0.0, 0.3, 1.0], (20, 1)) * (rng.random((20, n)) < 0.5)
        kept = max(0, n - 1)
        value, place = _order_bounds(x, e, 1, descending, kept)
        order = order_along(x, 1, descending)
        told += int((place == 0).sum())
        for _ in range(20):
            moved = x + rng.uniform(-1, 1, x.shape) * e
            found = order_along(moved, 1, descending)
            apart = gap(np.take_along_axis(moved, found, 1), np.take_along_axis(x, order, 1))[:, :kept]
            assert (apart <= value * (1 + 1e-9)).all()
            assert ((found == order)[:, :kept] | (place > 0)).all()
    assert told > 100


@pytest.mark.parametrize("seed", [0, 3, 7])
def test_bounds_are_those_of_the_interpreter(seed: int) -> None:
    from dlc.ir.interpret import run_program

    c = case(seed)
    want = run_program(c.program, c.inputs)
    got = reference(c.program, c.inputs)
    for a, b, bound in zip(want, got.results, got.bounds, strict=True):
        assert a.tobytes() == b.tobytes()
        assert bound.shape == a.shape and not np.isnan(bound).any() and (bound >= 0).all()


def endless(seed: int) -> Result:
    while seed == 1:
        pass
    return Result(seed, "ok")


def no_tags(seed: int) -> tuple[str, ...]:
    return ()


def test_a_program_that_does_not_end_is_a_finding() -> None:
    """And the seeds after it are run."""
    found = {r.seed: r for r in run(range(4), 1, family=Family(endless, no_tags, (), (), longest=0.5))}
    assert found[1].status == "crash" and found[1].detail == "not done after 0.5 s"
    assert [found[n].status for n in (0, 2, 3)] == ["ok"] * 3
