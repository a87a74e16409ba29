"""The analytic counts against a walk of the mapped loops, on tiny arrays: every level, many cascades and mappings."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.costmodel.spatial.binding import Plan, lay_out
from dlc.costmodel.spatial.cascade import normalise
from dlc.costmodel.spatial.count import Counts, compute_counts, memory_counts, operand_counts
from dlc.costmodel.spatial.errors import BufferTooSmall, UnmappableCascade
from dlc.costmodel.spatial.target import Target, known_targets, load_target
from dlc.ir.parser import parse_cascade
from tests.costmodel.spatial_cascades import CASCADES
from tests.costmodel.spatial_walk import walk_phase


def small(name: str, rows: int, columns: int, buffer_words: int) -> Target:
    """A target with a tiny array and buffer that can also take roots and divide anywhere."""
    target = load_target(name)
    more = dict.fromkeys(("div", "rsqrt", "sqrt", "log"), target.arrays["1d"].operations["div"])
    arrays = {
        n: replace(a, shape=(rows, columns) if n == "2d" else (columns,), operations={**a.operations, **more})
        for n, a in target.arrays.items()
    }
    return replace(target, arrays=arrays, buffer=replace(target.buffer, bytes=buffer_words * target.value_bytes))


def analytic(plan: Plan, phase: int) -> Counts:
    counts = Counts()
    for b in plan.of_phase(phase):
        counts += compute_counts(plan, b, wrapping=False)
    counts += operand_counts(plan, phase)
    counts += memory_counts(plan, phase)
    return counts


@settings(max_examples=300, deadline=None)
@given(
    cascade=st.sampled_from(sorted(CASCADES)),
    target=st.sampled_from(known_targets()),
    sizes=st.tuples(*[st.integers(1, 2), *[st.integers(1, 7)] * 2, *[st.integers(1, 3)] * 2]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    buffer_words=st.integers(8, 120),
)
def test_counts_are_those_of_the_walked_loops(
    cascade: str, target: str, sizes: tuple[int, ...], rows: int, columns: int, buffer_words: int
) -> None:
    parsed = parse_cascade(CASCADES[cascade])
    names = {str(n).lstrip("#") for p in parsed.params for n in p.type.shape}
    extents = {n: s for n, s in zip("hpmef", sizes, strict=True) if n in names}
    machine = small(target, rows, columns, buffer_words)
    try:
        plan = lay_out(normalise(parsed, extents, target), machine)
    except (UnmappableCascade, BufferTooSmall):
        return
    single = {plan.extent(plan.roles.stream) % plan.block(a) == 1 for a in ("2d", "1d") if plan.steps(a) > 1}
    for phase in plan.phases:
        found, walked = analytic(plan, phase), walk_phase(plan, phase)
        if (
            True in single
        ):  # the count takes every block for a full one; in a last block of one element a register keeps its value
            assert walked.reads <= found.reads and walked.writes <= found.writes, plan.tiles
        else:
            assert (+found.reads, +found.writes) == (+walked.reads, +walked.writes), plan.tiles


@pytest.mark.parametrize(
    ("cascade", "target"), [("one-pass", "fusemax"), ("three-pass", "unfused"), ("mlp", "fusemax")]
)
def test_the_walk_is_not_empty(cascade: str, target: str) -> None:
    """The property above does not hold for want of plans."""
    parsed = parse_cascade(CASCADES[cascade])
    names = {str(n).lstrip("#") for p in parsed.params for n in p.type.shape}
    extents = {n: s for n, s in zip("hpmef", (2, 8, 6, 2, 3), strict=True) if n in names}
    plan = lay_out(normalise(parsed, extents, target), small(target, 2, 2, 70))
    assert sum(walk_phase(plan, 0).reads.values()) > 100
