"""Operator graphs: their text, what is refused, the least budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.networks.__main__ import CLASSIC, FOLDER, SEARCHED
from dlc.passes.cosma.graph import BadGraph, Graph, Tables, Tensor, least_budget, parse_graph
from dlc.passes.cosma.peak import least_peak
from tests.passes.cosma import brute

UNITS = Path(__file__).parent / "units.json"
PUBLISHED = {  # M_R and M_P in KiB of 8-bit activations, padding folded
    "resnet50": (2352, 2352),
    "densenet121": (1568, 2058),
    "r2plus1d-18": (225792 / 4, 275968 / 4),
    "fcn-resnet50": (18816 / 4, 18816 / 4),
}


def graph_file(name: str) -> Graph:
    return parse_graph((FOLDER / f"{name}.json").read_text())


def units() -> dict[str, tuple[Graph, dict[str, int]]]:
    """MODeL's unit graphs (MIT): operators, tensors with several producers, control dependences of no bytes."""
    found = {}
    for name, facts in json.loads(UNITS.read_text()).items():
        place = {o: i for i, o in enumerate(facts["operators"])}
        tensors = tuple(
            Tensor(f"t{i}", t["size"], tuple(place[o] for o in t["src"]), tuple(place[o] for o in t["dst"]))
            for i, t in enumerate(facts["tensors"])
        )
        found[name] = Graph(name, tuple(facts["operators"]), tensors), facts
    return found


def test_text_round_trip() -> None:
    graph = Graph(
        "g",
        ("a", "b"),
        (
            Tensor("x", 4, (), (0,)),
            Tensor("w", 8, (), (0, 1), weight=True),
            Tensor("y", 4, (0,), (1,)),
            Tensor("z", 4, (1,), output=True, takes=2),
        ),
    )
    assert parse_graph(graph.to_json()) == graph
    kept = graph.without_weights()
    assert [t.name for t in kept.tensors] == ["x", "y", "z"] and kept.tensors[2].takes == 1


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ((Tensor("x", 1, (1,), (0,)),), "'x' is read before it is whole"),
        ((Tensor("x", 1, (0,), (2,)),), "'x' names an operator that is not there"),
        ((Tensor("x", -1, (0,), (1,)),), "'x' has a negative size"),
        ((Tensor("x", 1, (0,), (1,)), Tensor("y", 2, (1,), takes=0)), "'y' cannot take the storage"),
    ],
)
def test_no_graph(tensors: tuple[Tensor, ...], what: str) -> None:
    with pytest.raises(BadGraph, match=what):
        Graph("g", ("a", "b"), tensors)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "'\\?': the text is no JSON"),
        ("[]", "the text is \\[\\], not an object"),
        ('{"name": "x", "operators": []}', "'x': 'tensors' is None, not a list"),
        ('{"name": "x", "operators": "ab", "tensors": []}', "'operators' is 'ab', not a list"),
        ('{"name": "x", "operators": ["a"], "tensors": [{"name": "t", "bytes": 4.7}]}', "'bytes' of 't' is 4.7, not a whole number"),
        ('{"name": "x", "operators": ["a"], "tensors": [{"name": "t", "bytes": Infinity}]}', "'bytes' of 't' is inf"),
        ('{"name": "x", "operators": ["a"], "tensors": [{"name": "t", "bytes": 4, "from": [0.0]}]}', "an element of 'from' of 't' is 0.0"),
        ('{"name": "x", "operators": ["a"], "tensors": [{"name": "t", "bytes": 4, "to": ["0"]}]}', "an element of 'to' of 't' is '0'"),
        ('{"name": "x", "operators": ["a"], "tensors": [], "cheap": [9]}', "'cheap' names an operator that is not there"),
    ],
)
def test_no_text(text: str, what: str) -> None:
    with pytest.raises(BadGraph, match=what):
        parse_graph(text)


def test_two_results_cannot_take_one_tensor() -> None:
    results = [Tensor(name, 4, (1,), output=True, takes=0) for name in "uv"]
    with pytest.raises(BadGraph, match="two results of 'b' take the storage of 'x'"):
        Graph("g", ("a", "b"), (Tensor("x", 4, (0,), (1,)), *results))


@pytest.mark.parametrize("make", CLASSIC + SEARCHED, ids=lambda make: make.__name__)
def test_network_files_are_up_to_date(make) -> None:  # type: ignore[no-untyped-def]
    graph = make()
    assert (FOLDER / f"{graph.name}.json").read_text() == graph.to_json(), "run `python -m benchmarks.networks`"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_probes(name: str) -> None:
    """As the reproduction of COSMA measured them on TFLite exports, less the padding operators."""
    graph = graph_file(name)
    least, peak = PUBLISHED[name]
    assert least_budget(graph) == least * 1024
    assert least_peak(Tables(graph)).peak_bytes == peak * 1024
    assert least_budget(graph.scaled(4)) == 4 * least * 1024


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=make.__name__, marks=pytest.mark.slow if make.__name__ == "transformer" else ())
        for make in CLASSIC + SEARCHED
    ],
)
def test_two_programs_agree_on_the_networks(make) -> None:  # type: ignore[no-untyped-def]
    """M_R and M_P by another algorithm: sums over operators; sets of operators, depth first, below a given peak."""
    graph = make()
    needs = [sum(t.bytes for t in graph.tensors if o in t.uses) for o in range(len(graph.operators))]
    assert least_budget(graph) == max(needs)
    peak = least_peak(Tables(graph), 60)
    assert peak.proven
    assert brute.feasible_order(graph, peak.peak_bytes) and not brute.feasible_order(graph, peak.peak_bytes - 1)


@pytest.mark.parametrize("name", list(units()))
def test_unit_graphs(name: str) -> None:
    graph, facts = units()[name]
    found = least_peak(Tables(graph))
    assert found.proven and found.peak_bytes == facts["least_peak_bytes"] == brute.least_peak(graph)
