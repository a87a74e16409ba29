"""The parts of the solver, each alone: peak, search, residency (encode, solve, decode), the joint model, baselines."""

from __future__ import annotations

from itertools import accumulate
from random import Random

from ortools.sat.python import cp_model

from dlc.passes.cosma import joint
from dlc.passes.cosma.baselines import baselines, replace_and_allocate
from dlc.passes.cosma.graph import Graph, Tables, Tensor, least_budget
from dlc.passes.cosma.peak import beam, least_peak
from dlc.passes.cosma.plan import Plan, Span, Stay
from dlc.passes.cosma.residency import decode, encode, partial_order, parts, solve, total_order
from dlc.passes.cosma.search import Rest, search
from dlc.passes.cosma.search import beam as traffic_beam
from dlc.passes.cosma.simulate import simulate
from tests.passes.cosma import brute
from tests.passes.cosma.dags import sparse, varied


def cases(count: int, seed: int) -> list[tuple[Graph, int]]:
    """Graphs, and capacities at which something has to leave."""
    random, found = Random(seed), []
    while len(found) < count:
        small = random.random() < 0.5
        graph = varied(random.choice((4, 5, 5, 6)), random) if small else sparse(random.choice((6, 7, 7, 8)), random)
        least, peak = least_budget(graph), brute.least_peak(graph)
        if least < peak:
            found.append((graph, random.randint(least, peak - 1)))
    return found


def traffic(graph: Graph, order: tuple[int, ...], spans: tuple[Span, ...], capacity: int) -> int:
    """By the simulator, with every tensor at a place of its own; the sizes have to fit into `capacity`."""
    places = [0, *accumulate(t.bytes for t in graph.tensors)]
    replay = simulate(graph, Plan(order, tuple(Stay(a, first, last, places[a]) for a, first, last in spans)))
    assert replay.live_bytes <= capacity
    return replay.traffic_bytes


def test_least_peak_and_search_equal_brute_force() -> None:
    """With and without the bound on the rest; operators that run late occur."""
    late = 0
    for graph, capacity in cases(300, seed=1):
        tables = Tables(graph)
        late += bool(tables.late)
        assert least_peak(tables).peak_bytes == brute.least_peak(graph) <= beam(tables, 2)[1]
        want = search(tables, capacity).cost
        assert want == brute.least_traffic(graph, capacity, addresses=False, below=want + 1), (graph.to_json(), capacity)
        for rest in (None, Rest(tables, parts(tables, capacity, 5))):
            found = search(tables, capacity, rest=rest)
            assert found.cost == found.bound == want, (graph.to_json(), capacity)
            assert found.spans is not None and traffic(graph, found.order, found.spans, capacity) == want
        assert search(tables, capacity, limit=want).spans is None
    assert late > 50


def test_a_state_may_be_met_again_at_less_cost() -> None:
    """The bound on the rest is no metric: the first way to a state need not be the cheapest. Found by random search."""
    t = Tensor
    tensors = (
        t("t0", 1, (0,), (1, 3, 5)),
        t("t1", 3, (1,), (2,)),
        t("t2", 1, (2,), (3,)),
        t("t3", 1, (3,), (4, 5)),
        t("t4", 2, (4,), (5,)),
        t("t5", 3, (5,), output=True),
        t("i0", 3, (), (0, 3)),
        t("i1", 4, (), (0, 2, 4)),
    )
    tables = Tables(Graph("again", tuple("abcdef"), tensors))
    assert search(tables, 8, rest=Rest(tables, parts(tables, 8, 5))).cost == 9


def test_a_bound_for_all_orders() -> None:
    met = 0
    for graph, capacity in cases(700, seed=2):
        tables = Tables(graph)
        answer = solve(encode(tables, partial_order(tables), capacity), 5)
        want = search(tables, capacity).cost
        assert answer is not None and answer.bound <= want, (graph.to_json(), capacity)
        met += answer.bound == want
    assert met > 300


def test_a_use_that_may_have_been_earlier_is_not_the_next_one() -> None:
    """`d` reads i1 and may run before c or after it, so that i1 comes back for f, or for d. Found by random search."""
    t = Tensor
    tensors = (
        t("t0", 1, (0,), (1, 4), output=True),
        t("t1", 1, (1,), (2, 5)),
        t("t2", 3, (2,), (4, 5)),
        t("t3", 1, (3,), (4,)),
        t("t4", 1, (4,), (5,)),
        t("t5", 1, (5,), output=True),
        t("i", 3, (), (2, 3)),
        t("i0", 1, (), (1, 4, 5)),
        t("i1", 3, (), (0, 3, 5)),
    )
    tables = Tables(Graph("unordered", tuple("abcdef"), tensors))
    assert search(tables, 10).cost == 3
    answer = solve(encode(tables, partial_order(tables), 10), 5)
    assert answer is not None and answer.bound <= 3


def test_residency_of_an_order() -> None:
    """Exact for a total order, and what is decoded costs what was solved for."""
    for graph, capacity in cases(150, seed=3):
        tables = Tables(graph)
        given = tuple(range(tables.count))
        programme = encode(tables, total_order(given), capacity)
        answer = solve(programme, 5)
        assert answer is not None and answer.cost == answer.bound
        assert traffic(graph, given, decode(tables, given, programme, answer), capacity) == answer.cost
        chain = tuple(Tensor(f"c{o}", 0, (o,), (o + 1,)) for o in range(tables.count - 1))
        ordered = Graph("chain", graph.operators, graph.tensors + chain)
        assert answer.cost == brute.least_traffic(ordered, capacity, addresses=False, below=answer.cost + 1)


def test_the_joint_model_alone() -> None:
    for graph, capacity in cases(25, seed=4):
        model = joint.encode(graph, capacity)
        answer = joint.decode(graph, model, *joint.solve(model, 60))
        assert answer.plan is not None
        cost = simulate(graph, answer.plan, capacity).traffic_bytes
        assert cost == answer.cost == answer.bound
        if cost != search(Tables(graph), capacity).cost:
            assert brute.least_traffic(graph, capacity, below=cost) is None


def test_the_joint_model_of_an_order_and_of_a_peak() -> None:
    graph, _ = cases(1, seed=5)[0]
    peak = brute.least_peak(graph)
    model = joint.encode(graph, None, most=2 * peak)
    answer = joint.decode(graph, model, *joint.solve(model, 60))
    assert answer.plan is not None and simulate(graph, answer.plan).peak_bytes == answer.cost >= peak
    order = tuple(range(len(graph.operators)))
    model = joint.encode(graph, least_budget(graph), order=order)
    solver, status = joint.solve(model, 60)
    assert status == cp_model.OPTIMAL
    found = joint.decode(graph, model, solver, status)
    assert found.plan is not None and found.plan.order == order


def test_what_is_known_to_be_impossible_has_no_plan() -> None:
    graph, _ = cases(1, seed=6)[0]
    model = joint.encode(graph, least_budget(graph) - 1)
    assert joint.decode(graph, model, *joint.solve(model, 60)).plan is None


def test_baselines_never_beat_the_optimum() -> None:
    placed = 0
    for graph, capacity in cases(100, seed=7):
        want = search(Tables(graph), capacity).cost
        for baseline in baselines(graph, capacity):
            assert baseline.traffic_bytes is None or baseline.traffic_bytes >= want
            placed += baseline.traffic_bytes is not None
        assert traffic_beam(Tables(graph), capacity, width=4, deadline=float("inf")).cost >= want
    assert placed > 400


def test_belady_is_not_best_where_sizes_differ() -> None:
    """A small tensor is wanted sooner than a large one; either makes room."""
    graph = Graph(
        "sizes",
        ("a", "b", "c", "d", "e"),
        (
            Tensor("large", 6, (0,), (4,)),
            Tensor("small", 2, (1,), (3,)),
            Tensor("x", 3, (2,), output=True),
            Tensor("y", 1, (3,), (4,)),
            Tensor("out", 1, (4,), output=True),
        ),
    )
    order = range(5)
    costs = {}
    for rule in ("belady", "greedy"):
        plan = replace_and_allocate(graph, order, 9, rule, "first fit")
        assert plan is not None
        costs[rule] = simulate(graph, plan, 9).traffic_bytes
    assert costs == {"belady": 12, "greedy": 4}
