"""Random cascades: text round trip, the interpreter against plain loops, and what the generator covers."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from tests.ir.naive import naive_einsum
from tests.ir.strategies import CONSTRUCTS, Generated, cascades, random_cascade

from dlc.ir.domain import add_domains
from dlc.ir.einsum import Einsum
from dlc.ir.equality import canonical, digest
from dlc.ir.error_model import agrees, bound, bounded_cascade
from dlc.ir.evaluate import evaluate_step
from dlc.ir.interpret import bind_symbols, run_cascade
from dlc.ir.parser import parse
from dlc.ir.program import show_cascade
from dlc.ir.verify import verify

FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@FEW
@given(cascades())
def test_text_round_trip(made: Generated) -> None:
    assert parse(str(made.cascade)) == made.cascade
    assert parse(show_cascade(made.cascade, locs=True)) == made.cascade
    same = canonical(made.cascade)
    verify(same)
    assert parse(str(same)) == same
    assert digest(same) == digest(made.cascade)


def points(made: Generated) -> float:
    total = 0.0
    bound_ = bind_symbols(
        made.cascade.params, dict(zip((p.name for p in made.cascade.params), made.inputs, strict=True))
    )
    from dlc.ir.evaluate import extents_of

    for step in made.cascade.steps:
        if isinstance(step, Einsum):
            total += float(np.prod(extents_of(step.all_ranks, bound_), dtype=np.float64))
    return total


@pytest.mark.parametrize("small_blocks", [False, True])
def test_interpreter_agrees_with_plain_loops(
    small_blocks: bool, everything: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small_blocks:  # so that these small cases go through contractions, and through several blocks
        monkeypatch.setattr("dlc.ir.contract._TINY", 0)
        monkeypatch.setattr("dlc.ir.contract._FACTOR_POINTS", 16)
        monkeypatch.setattr("dlc.ir.evaluate.BLOCK_POINTS", 7)
    compared = 0
    for seed in range(800 if everything else 150):
        made = random_cascade(random.Random(seed))
        if points(made) > 4000:
            continue
        env = dict(zip((p.name for p in made.cascade.params), made.inputs, strict=True))
        fixed = bind_symbols(made.cascade.params, env)
        domains: dict[str, object] = {}
        for step in made.cascade.steps:
            if not isinstance(step, Einsum):
                break
            fast = evaluate_step(step, env, fixed, domains)  # type: ignore[arg-type]
            slow = naive_einsum(step, env, fixed, domains)  # type: ignore[arg-type]
            limits = bound(step, env, fixed, domains)  # type: ignore[arg-type]
            for a, b, limit in zip(fast, slow, limits, strict=True):
                assert a.dtype == b.dtype and a.shape == b.shape
                # both are f64 inside: they may differ by a rounding where sums are ordered differently
                assert agrees(a, b, limit).all(), f"seed {seed}\n{step}\n{a}\n{b}\n{limit}"
            env.update(zip(step.outs, fast, strict=True))
            add_domains(step, domains)  # type: ignore[arg-type]
            compared += 1
    assert compared > 50


def test_every_construct_has_its_share() -> None:
    seen: Counter[str] = Counter()
    refused = drawn = 0
    for seed in range(150):
        made = random_cascade(random.Random(seed))
        seen.update(made.constructs)
        refused += made.refused
        drawn += len(made.constructs) + made.refused
    assert set(seen) == set(CONSTRUCTS)
    assert min(seen.values()) >= 0.04 * sum(seen.values())
    assert refused <= 0.02 * drawn


def test_bounds_cover_single_precision() -> None:
    """A product of matrices by NumPy in f32 is within the bound; one with a wrong element is not."""
    text = "cascade f(A: f32[m, k], B: f32[k, n]) -> C {\n  C[m, n] = sum(k) A[m, k] * B[k, n]\n}"
    numbers = np.random.default_rng(3)
    a, b = (numbers.standard_normal(s).astype(np.float32) for s in ((20, 300), (300, 10)))
    found = bounded_cascade(parse(text), (a, b))  # type: ignore[arg-type]
    product = a @ b
    assert agrees(product, found.values[0], found.bounds[0]).all()
    product[3, 4] += np.float32(0.01)
    assert not agrees(product, found.values[0], found.bounds[0]).all()
    assert (run_cascade(parse(text), (a, b))[0] == found.values[0]).all()  # type: ignore[arg-type]
