"""Each planted fault is found, and by how many programs."""

from __future__ import annotations

import pytest
from tests.fuzz.planted import PLANTS, Plant, apart, planted

MOST = 150
"""Programs with the plant's constructs after which it counts as not found."""
QUICK = ("tail mask one short", "default dropped", "cast mode ignored")


@pytest.mark.parametrize(
    "plant", [pytest.param(p, id=p.name, marks=() if p.name in QUICK else pytest.mark.slow) for p in PLANTS]
)
def test_found(plant: Plant, record_property) -> None:  # type: ignore[no-untyped-def]
    told = apart(plant, 6000, MOST)
    record_property("programs", told["tried"])
    assert told["found"], f"'{plant.name}' was not found by {told['tried']} programs"
    print(f"{plant.name}: {told['tried']} programs, seed {told['seed']}: {told['detail'][:160]}")
    assert told["sound"], f"seed {told['seed']} fails without the fault, too"


def test_there_are_twenty() -> None:
    assert len(PLANTS) >= 20


def test_a_plant_is_taken_out_again() -> None:
    from dlc.codegen import nest

    before = nest.for_vectors
    with planted(PLANTS[0]):
        assert nest.for_vectors is not before
    assert nest.for_vectors is before
