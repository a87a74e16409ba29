"""The judge of plans counts what moves, and refuses what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dlc.passes.cosma.graph import Graph, Tensor
from dlc.passes.cosma.plan import Plan, Stay
from dlc.passes.cosma.simulate import WrongPlan, simulate

GRAPH = Graph(
    "diamond",
    ("a", "b", "c", "d"),
    (
        Tensor("x", 2, (), (0, 2)),
        Tensor("p", 3, (0,), (1, 3)),
        Tensor("q", 1, (1,), (2,)),
        Tensor("r", 4, (2,), (3,)),
        Tensor("y", 5, (3,), output=True),
    ),
)
ORDER = (0, 1, 2, 3)
WHOLE = Plan(
    ORDER, (Stay(0, 0, 2, 0), Stay(1, 0, 3, 2), Stay(2, 1, 2, 5), Stay(3, 2, 3, 6), Stay(4, 3, 3, 10))
)


def test_nothing_leaves() -> None:
    replay = simulate(GRAPH, WHOLE)
    assert (replay.traffic_bytes, replay.compulsory_bytes, replay.peak_bytes, replay.live_bytes) == (0, 7, 15, 12)


def test_what_leaves_is_written_once_and_read_each_time() -> None:
    stays = (*WHOLE.stays[2:], Stay(0, 0, 0, 0), Stay(0, 2, 2, 0), Stay(1, 0, 1, 2), Stay(1, 3, 3, 2))
    replay = simulate(GRAPH, Plan(ORDER, stays))
    moves = [(t.step, GRAPH.tensors[t.tensor].name, t.kind, t.bytes) for t in replay.transfers if not t.compulsory]
    assert moves == [(2, "p", "spill", 3), (2, "x", "fill", 2), (3, "p", "fill", 3)]  # x is clean
    assert replay.traffic_bytes == 8


def test_a_whole_result_has_a_copy() -> None:
    graph = Graph("g", ("a", "b", "c"), (Tensor("y", 4, (0,), (2,), output=True), Tensor("z", 4, (1,), (2,))))
    stays = (Stay(0, 0, 0, 0), Stay(0, 2, 2, 4), Stay(1, 1, 2, 0))
    assert simulate(graph, Plan((0, 1, 2), stays), 8).traffic_bytes == 4


def test_a_tensor_of_two_producers_is_written_again() -> None:
    graph = Graph("g", ("a", "b", "c", "d"), (Tensor("s", 2, (0, 2), (3,)), Tensor("z", 4, (1,), (3,))))
    away = (Stay(0, 0, 0, 0), Stay(0, 2, 2, 4), Stay(0, 3, 3, 4), Stay(1, 1, 3, 0))
    assert simulate(graph, Plan((0, 1, 2, 3), away), 8).traffic_bytes == 2 + 2 + 2 + 2


def test_storage_that_is_taken_over() -> None:
    graph = Graph("g", ("a", "b"), (Tensor("x", 4, (0,), (1,)), Tensor("y", 4, (1,), output=True, takes=0)))
    plan = Plan((0, 1), (Stay(0, 0, 1, 0), Stay(1, 1, 1, 0)))
    assert simulate(graph, plan, 4).peak_bytes == 4
    plain = replace(graph, tensors=(graph.tensors[0], replace(graph.tensors[1], takes=None)))
    with pytest.raises(WrongPlan, match="step 1: 'x' and 'y' lie in one place"):
        simulate(plain, plan)


@pytest.mark.parametrize(
    ("order", "change", "what"),
    [
        ((0, 1, 2), (), "not every operator runs once"),
        ((1, 0, 2, 3), (), "'p' does not exist yet"),
        (ORDER, (Stay(0, 0, 1, 0),), "'x' is needed and not there"),
        (ORDER, (Stay(3, 2, 3, 4),), "lie in one place"),
        (ORDER, (Stay(3, 1, 3, 6),), "'r' does not exist yet"),
        (ORDER, (Stay(4, 3, 3, 12),), "17 bytes are in use, and there are 16"),
        (ORDER, (Stay(4, 3, 4, 10),), "'y' stays nowhere"),
    ],
)
def test_wrong_plans(order: tuple[int, ...], change: tuple[Stay, ...], what: str) -> None:
    changed = {s.tensor for s in change}
    stays = tuple(s for s in WHOLE.stays if s.tensor not in changed) + change
    with pytest.raises(WrongPlan, match=what):
        simulate(GRAPH, Plan(order, stays), 16)
