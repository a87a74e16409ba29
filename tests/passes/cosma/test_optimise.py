"""The optimum equals brute force over all orders, residencies and addresses, on all small graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from ledger import Ledger, digest_of

from dlc.passes.cosma.baselines import baselines
from dlc.passes.cosma.graph import Graph, Tables, Tensor, least_budget, parse_graph
from dlc.passes.cosma.optimise import BudgetTooSmall, lone_operators, optimise
from dlc.passes.cosma.peak import least_peak
from dlc.passes.cosma.placing import as_buffers
from dlc.passes.cosma.rematerialise import rematerialise
from dlc.passes.cosma.search import search
from dlc.passes.cosma.simulate import simulate
from dlc.passes.packing import first_fit
from dlc.passes.packing.buffers import height
from tests.passes.cosma import brute
from tests.passes.cosma.dags import connected_dags, sized, taking
from tests.passes.cosma.test_graph import graph_file, units

SIZES = (1, 1, 4, 24, 267)


def case(n: int, number: int) -> tuple[Graph, int]:
    """Of the shape's draws of sizes and capacities, one in which addresses matter if there is one.

    They matter where the allocator that takes the first gap in order of time finds no place for the cheapest plan.
    """
    random = Random(1000 * n + number)
    for _ in range(6):
        graph = sized(n, connected_dags(n)[number], random)
        capacity = random.randint(least_budget(graph), brute.least_peak(graph))
        if binds(graph, capacity):
            break
    return graph, capacity


def binds(graph: Graph, capacity: int) -> bool:
    found = search(Tables(graph), capacity)
    assert found.spans is not None
    _, buffers = as_buffers(graph, found.order, found.spans)
    rectangles = list(buffers.values())
    offsets = first_fit(rectangles, sorted(range(len(rectangles)), key=lambda i: rectangles[i].lower))
    return offsets is None or height(rectangles, offsets) > capacity


def check(graph: Graph, capacity: int) -> None:
    """The plan costs what it says, by the simulator, and no other one costs less, by brute force.

    What no plan can go below when addresses do not count, none can when they do: then all of them need not be tried.
    """
    found = optimise(graph, capacity, 60)
    assert found.proven, (graph, capacity, found)
    assert simulate(graph, found.plan, capacity).traffic_bytes == found.value
    if found.value != brute.least_traffic(graph, capacity, addresses=False):
        assert brute.least_traffic(graph, capacity, below=found.value) is None, (graph, capacity, found)


def test_numbers_of_graphs() -> None:
    assert tuple(len(connected_dags(n)) for n in range(1, 6)) == SIZES


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_all_graphs_of_up_to_four_operators(n: int) -> None:
    for number in range(SIZES[n - 1]):
        check(*case(n, number))


def test_all_graphs_of_five_operators() -> None:
    tight = 0
    for number in range(SIZES[4]):
        graph, capacity = case(5, number)
        tight += binds(graph, capacity)
        check(graph, capacity)
    assert tight >= SIZES[4] / 5  # in at least a fifth addresses matter


SIX = Random(6).sample(range(5647), 500)


def check_six(numbers: list[int]) -> None:
    tight = 0
    for number in numbers:
        graph, capacity = case(6, number)
        tight += binds(graph, capacity)
        check(graph, capacity)
    assert tight >= len(numbers) / 5


def test_some_graphs_of_six_operators() -> None:
    check_six(SIX[:100])


@pytest.mark.slow
def test_all_graphs_of_six_operators() -> None:
    ledger = Ledger("cosma")
    tests = [Path(__file__).with_name(name).read_bytes() for name in ("brute.py", "dags.py", "test_optimise.py")]
    key = ledger.key("six operators", digest=digest_of(cosma_digest(), *tests), packages=("ortools",))
    if ledger.get(key) is None:
        assert len(connected_dags(6)) == 5647
        check_six(list(range(5647)))
        ledger.put(key, {"status": "pass", "graphs": 5647})


def cosma_digest() -> str:
    folder = Path(__file__).parents[3] / "passes"
    files = sorted([*(folder / "cosma").glob("*.py"), *(folder / "packing").glob("*.py")])
    return digest_of(*(f.read_bytes() for f in files))


def test_what_costs_nothing_by_its_bytes_may_cost_something_by_its_addresses() -> None:
    """13 tensors over 6 steps, 8 bytes alive at most, that do not fit into 8: found by random search."""
    graph = parse_graph((Path(__file__).parent / "binding.json").read_text())
    assert brute.least_peak(graph) == 8 and search(Tables(graph), 8).cost == 0
    found = optimise(graph, 8, 60)
    assert (found.value, found.bound, found.method) == (2, 2, "model with addresses")
    unlimited = optimise(graph)
    assert unlimited.proven and unlimited.value == 9


@pytest.mark.parametrize("name", list(units()))
def test_unit_graphs(name: str) -> None:
    graph, facts = units()[name]
    found = optimise(graph)
    assert found.proven and found.value == facts["least_peak_bytes"] == found.replay.peak_bytes
    if (peak := facts.get("least_peak_with_spill_traffic_up_to_180")) is not None:
        assert optimise(graph, peak).value <= 180
        assert least_budget(graph) == peak


def test_too_small_a_budget() -> None:
    graph, _ = units()["diamond_graph"]
    with pytest.raises(BudgetTooSmall) as caught:
        optimise(graph, 119)
    assert str(caught.value).startswith("error[DLC0322]: 119 bytes cannot hold the inputs and outputs of 'F'")
    assert caught.value.fields["least"] == 120 and caught.value.exit_code == 6


def test_storage_that_is_taken_over() -> None:
    """A chain in one buffer, and a branch that keeps the old value alive."""
    chain = Graph("chain", ("a", "b", "c"), tuple(_taking(4, o) for o in range(3)))
    assert optimise(chain).value == 4 and optimise(chain, 4).value == 0
    kept = Graph(
        "kept",
        ("a", "b", "c"),
        (Tensor("x", 4, (0,), (1, 2)), Tensor("y", 4, (1,), (2,), takes=0), Tensor("z", 4, (2,), output=True, takes=1)),
    )
    assert optimise(kept).value == 8


def test_graphs_with_storage_that_is_taken_over(everything: bool) -> None:
    """Like the graphs above; in some of the cases less is moved than if every tensor had storage of its own."""
    less = 0
    for number in range(600 if everything else 150):
        random = Random(number)
        graph = taking(random.choice((3, 4, 4, 5)), random)
        apart = replace(graph, tensors=tuple(replace(t, takes=None) for t in graph.tensors))
        least = least_budget(graph)
        assert least_peak(Tables(graph)).peak_bytes == brute.least_peak(graph)
        assert brute.least_traffic(graph, least - 1, addresses=False) is None
        capacity = random.randint(least, max(least, brute.least_peak(apart)))
        check(graph, capacity)
        less += capacity < least_budget(apart) or optimise(apart, capacity).value > optimise(graph, capacity).value
    assert less >= 15


def test_baselines_and_copies_where_storage_is_taken_over() -> None:
    copied = 0
    for number in range(80):
        random = Random(number)
        graph = taking(5, random)
        graph = replace(graph, cheap=tuple(o for o in range(5) if random.random() < 0.7))
        peak = least_peak(Tables(graph))
        for capacity in (least_budget(graph), peak.peak_bytes):
            best = optimise(graph, capacity, 10)
            for other in baselines(graph, capacity, peak.order):
                assert other.traffic_bytes is None or other.traffic_bytes >= best.value, (number, other)
            again = rematerialise(graph, capacity, 10)
            assert again.schedule.value + again.saved_bytes == best.value
            copied += len(again.copies)
    assert copied


def _taking(size: int, o: int) -> Tensor:
    return Tensor(f"t{o}", size, (o,), (o + 1,) if o < 2 else (), output=o == 2, takes=o - 1 if o else None)


def test_nothing_stays() -> None:
    """The plan of last resort fits into the least budget of any graph."""
    for number in range(0, SIZES[4], 10):
        graph, _ = case(5, number)
        tables = Tables(graph)
        simulate(graph, lone_operators(tables, range(tables.count)), least_budget(graph))


def test_a_cheap_tensor_is_made_again() -> None:
    """`a` makes a large x from a small s; x is wanted again when there was no room for it."""
    graph = Graph(
        "again",
        ("s", "a", "b", "c", "d"),
        (
            Tensor("s", 1, (0,), (1, 4)),
            Tensor("x", 4, (1,), (2, 4)),
            Tensor("y", 4, (2,), (3,)),
            Tensor("z", 3, (3,), (4,)),
            Tensor("out", 1, (4,), output=True),
            Tensor("big", 4, (3,), output=True),
        ),
        cheap=(1,),
    )
    budget = least_budget(graph)
    found = rematerialise(graph, budget)
    assert optimise(graph, budget).value == 10
    assert (found.schedule.value, found.saved_bytes, found.copies) == (2, 8, ("a",))
    assert rematerialise(replace(graph, cheap=()), budget).saved_bytes == 0
    assert parse_graph(graph.to_json()) == graph


def test_weights_are_read_where_they_lie() -> None:
    """A weight that two operators use is dropped and read again, never written."""
    graph = Graph(
        "shared",
        ("a", "b", "c"),
        (
            Tensor("w", 3, (), (0, 2), weight=True),
            Tensor("x", 3, (0,), (1,)),
            Tensor("y", 3, (1,), (2,)),
            Tensor("z", 1, (2,), output=True),
        ),
    )
    found = optimise(graph, 7)
    assert found.value == 3 and {t.kind for t in found.replay.transfers if not t.compulsory} == {"fill"}
    assert optimise(graph.without_weights(), 7).value == 0


def test_out_of_time_there_is_a_plan_and_a_gap() -> None:
    graph = graph_file("amoebanet-d")
    found = optimise(graph, least_budget(graph), 0.3)
    assert not found.proven and 0 < found.gap <= 1 and found.bound < 3261440 < found.value
    simulate(graph, found.plan, least_budget(graph))


@pytest.mark.parametrize("name", ["densenet121", "r2plus1d-18", "vit-b16", "transformer", "nasnet-a", "pnasnet-5"])
def test_networks(name: str) -> None:
    """Proven at M_R, half-way and M_P, where nothing moves; never more than a baseline."""
    graph = graph_file(name)
    least, peak = least_budget(graph), least_peak(Tables(graph))
    for capacity in (least, (least + peak.peak_bytes) // 2, peak.peak_bytes):
        found = optimise(graph, capacity, 60)
        assert found.proven and (capacity < peak.peak_bytes or found.value == 0)
        others = [b.traffic_bytes for b in baselines(graph, capacity, peak.order)]
        assert all(found.value <= other for other in others if other is not None)
        wide = optimise(graph.scaled(4), 4 * capacity, 60)
        assert wide.proven and wide.value == 4 * found.value


def test_published_traffic() -> None:
    """What a reproduction of COSMA measured at M_R: DenseNet-121 in 8 bits, R(2+1)D-18 in 32."""
    for name, scale, traffic in (("densenet121", 1, 2609152), ("r2plus1d-18", 4, 205520896)):
        graph = graph_file(name).scaled(scale)
        assert optimise(graph, least_budget(graph)).value == traffic
