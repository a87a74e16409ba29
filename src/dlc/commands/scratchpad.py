"""`dlc explain MODEL --target scratchpad`: the kernels of a model in a fast memory of a given size, by COSMA's optimum."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlc.commands import options as shared
from dlc.console import Console, bytes_text, seconds_text

if TYPE_CHECKING:
    from dlc.passes.cosma.graph import Graph
    from dlc.passes.cosma.optimise import Schedule

TARGET = "scratchpad"
SOLVER_SECONDS = 60.0
"""For the solver, unless --schedule-time says otherwise; the best plan found is shown."""


def configure(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("schedule of a model's kernels (--target scratchpad; also of an operator graph's .json)")
    group.add_argument(
        "--budget", type=shared.byte_size, metavar="N", help="size of the fast memory, 256KiB; without it the least that needs no transfers"
    )
    group.add_argument(
        "--recompute", action="store_true", help="kernels without reductions may run again, where that moves fewer bytes"
    )
    group.add_argument("--weights", action="store_true", help="constants take part, too: they come and go as inputs do")


def explain(options: argparse.Namespace, console: Console) -> int:
    """Print the plan, and write it with its picture where --dump-dir says."""
    from dlc.passes.cosma.optimise import optimise
    from dlc.passes.cosma.rematerialise import rematerialise

    graph = _graph(options)
    seconds = SOLVER_SECONDS if options.schedule_time is None else options.schedule_time
    more: dict[str, Any] = {}
    with console.step(f"scheduling {len(graph.operators)} operators"):
        if options.recompute and options.budget is not None:
            found = rematerialise(graph, options.budget, seconds)
            graph, schedule = found.graph, found.schedule
            more = {"recomputed": found.copies, "saved_bytes": found.saved_bytes}
        else:
            schedule = optimise(graph, options.budget, seconds)
    facts = schedule_facts(graph, schedule) | more
    console.emit(facts)
    _say(facts, console)
    if shared.dump_dir(options):
        _dump(graph, schedule, facts, options, console)
    return 0


def _graph(options: argparse.Namespace) -> Graph:
    from dlc.commands.opt import read_program
    from dlc.passes.cosma.from_program import graph_of
    from dlc.passes.cosma.graph import parse_graph

    if options.model.endswith(".json"):
        graph = parse_graph(Path(options.model).read_text())
        return graph if options.weights else graph.without_weights()
    from dlc.compiler import run_passes

    program = run_passes(read_program(options.model), options.pass_pipeline, options.disable_pass)
    extents = {name: size for given in options.extent for name, size in given.items()}
    return graph_of(program, extents, weights=options.weights)


def schedule_facts(graph: Graph, schedule: Schedule) -> dict[str, Any]:
    """The plan as data: objective, order, addresses and transfers."""
    from dlc.passes.cosma.graph import least_budget

    names = [t.name for t in graph.tensors]
    return {
        "graph": graph.name,
        "objective": "peak bytes" if schedule.budget is None else "traffic bytes",
        "budget_bytes": schedule.budget,
        "least_budget_bytes": least_budget(graph),
        "value": schedule.value,
        "bound": schedule.bound,
        "gap": round(schedule.gap, 4),
        "proven": schedule.proven,
        "method": schedule.method,
        "seconds": round(schedule.seconds, 3),
        "peak_bytes": schedule.replay.peak_bytes,
        "compulsory_bytes": schedule.replay.compulsory_bytes,
        "order": [graph.operators[o] for o in schedule.plan.order],
        "steps": [
            {
                "operator": graph.operators[o],
                "reads": [t.name for t in graph.tensors if o in t.consumers],
                "writes": [t.name for t in graph.tensors if o in t.producers],
            }
            for o in schedule.plan.order
        ],
        "addresses": [
            {"name": names[s.tensor], "bytes": graph.tensors[s.tensor].bytes, "offset": s.offset, "first": s.first, "last": s.last}
            for s in sorted(schedule.plan.stays, key=lambda s: (s.first, s.offset))
        ],
        "transfers": [
            {"step": t.step, "tensor": names[t.tensor], "kind": t.kind, "bytes": t.bytes, "compulsory": t.compulsory}
            for t in schedule.replay.transfers
        ],
    }


def _say(facts: Mapping[str, Any], console: Console) -> None:
    budget = "" if facts["budget_bytes"] is None else f"budget:    {bytes_text(facts['budget_bytes'])}, "
    console.say(f"{budget or 'budget:    none, '}of which one operator needs {bytes_text(facts['least_budget_bytes'])}")
    proof = "proven least" if facts["proven"] else f"at least {bytes_text(facts['bound'])}, a gap of {facts['gap']:.1%}"
    console.say(f"{facts['objective'] + ':':<15}{facts['value']} ({proof}, in {seconds_text(facts['seconds'])})")
    console.say(f"compulsory:    {facts['compulsory_bytes']} bytes in and out; highest address {facts['peak_bytes']}\n")
    if "recomputed" in facts:
        console.say(f"recomputed:    {', '.join(facts['recomputed']) or 'nothing'}, which saves {facts['saved_bytes']} bytes\n")
    arrivals: dict[int, list[str]] = {}
    for stay in facts["addresses"]:
        arrivals.setdefault(stay["first"], []).append(f"{stay['name']} at {stay['offset']} to step {stay['last']}")
    moves: dict[int, list[str]] = {}
    for t in facts["transfers"]:
        if not t["compulsory"]:
            moves.setdefault(t["step"], []).append(f"{t['kind']} {t['tensor']} ({t['bytes']})")
    rows = [
        (step, operator, ", ".join(moves.get(step, ())), ", ".join(arrivals.get(step, ())))
        for step, operator in enumerate(facts["order"])
    ]
    console.table(("step", "operator", "transfers before it", "arrives"), rows, "r   ")


def _dump(
    graph: Graph, schedule: Schedule, facts: dict[str, Any], options: argparse.Namespace, console: Console
) -> None:
    from dlc.dump import Dump

    folder = str(shared.dump_dir(options))
    with Dump(folder, model=options.model, target=TARGET) as dump:
        steps = len(graph.operators)
        dump.json("memory", {"arena_bytes": facts["peak_bytes"], "steps": steps, "buffers": facts["addresses"]})
        dump.json("schedule", {name: value for name, value in facts.items() if name != "addresses"})
    console.say(f"\nreport: {Path(folder) / 'index.html'}")
