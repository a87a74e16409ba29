"""COSMA's optimum and its baselines on the networks of `benchmarks/networks`, as the tables of docs/schedule.md.

    python -m benchmarks.schedule [NAME ...]        all networks, or those named; `name@4` has elements of 4 bytes

For each network and budget (M_R: the greediest operator; M_P: the least peak; M_H: half-way) the bytes that are not
compulsory, the time to solve and prove, and the same bytes for {default, least-peak} order x {Belady, greedy} x
{first fit, best fit}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.networks.__main__ import CLASSIC, FOLDER, SEARCHED
from dlc.passes.cosma.baselines import baselines
from dlc.passes.cosma.graph import Graph, Tables, least_budget, parse_graph
from dlc.passes.cosma.optimise import optimise
from dlc.passes.cosma.peak import least_peak

RESULTS = Path(__file__).parent / "results" / "schedule.json"


@dataclass(frozen=True)
class Row:
    """One network in one budget."""

    network: str
    operators: int
    budget: str
    capacity: int
    traffic: int
    bound: int
    seconds: float
    baselines: dict[str, int | None]

    def best_baseline(self, order: str = "") -> int | None:
        """Least traffic of the baselines whose order's name begins with `order`; None if none places all tensors."""
        return min((v for k, v in self.baselines.items() if v is not None and k.startswith(order)), default=None)

    def less_than(self, order: str = "") -> float | None:
        """How much less than the best baseline; None where that moves nothing."""
        best = self.best_baseline(order)
        return 1 - self.traffic / best if best else None


def rows(graph: Graph, name: str) -> Iterator[Row]:
    least = least_budget(graph)
    peak = least_peak(Tables(graph))
    budgets = {"M_R": least, "M_H": (least + peak.peak_bytes) // 2, "M_P": peak.peak_bytes}
    for budget, capacity in budgets.items():
        began = time.perf_counter()
        found = optimise(graph, capacity, 110)
        seconds = time.perf_counter() - began
        others = {
            f"{b.order}, {b.rule}, {b.allocator}": b.traffic_bytes for b in baselines(graph, capacity, peak.order)
        }
        operators = len(graph.operators)
        yield Row(name, operators, budget, capacity, found.value, found.bound, round(seconds, 3), others)


def table(found: list[Row]) -> str:
    """Markdown."""
    lines = ["| network | operators | budget | KiB | bytes moved | proven | best baseline | less | seconds |"]
    lines.append("|---|--:|---|--:|--:|---|--:|--:|--:|")
    for r in found:
        proof = "yes" if r.traffic == r.bound else f"gap {1 - r.bound / r.traffic:.1%}"
        best, less = r.best_baseline(), r.less_than()
        shown = "none places" if best is None else f"{best:,}"
        share = "" if less is None else f"{less:.1%}"
        head = f"| {r.network} | {r.operators} | {r.budget} | {r.capacity / 1024:,.1f} "
        lines.append(f"{head}| {r.traffic:,} | {proof} | {shown} | {share} | {r.seconds:.2f} |")
    lines.append("")
    for title, order in (("all eight", ""), ("the four in the default order", "default")):
        for budget in ("M_R", "M_H", "M_P"):
            less = [r.less_than(order) for r in found if r.budget == budget and "bytes" not in r.network]
            having = [v for v in less if v is not None]
            if having:
                mean = sum(having) / len(having)
                lines.append(f"- {budget}, best of {title}: {mean:.1%} less on average over {len(having)} networks with traffic")
    return "\n".join(lines)


def main() -> None:
    names = sys.argv[1:] or [make.__name__ for make in CLASSIC + SEARCHED]
    files = {make.__name__: make for make in CLASSIC + SEARCHED}
    found: list[Row] = []
    for name in names:
        base, _, width = name.partition("@")
        graph = parse_graph((FOLDER / f"{files[base]().name}.json").read_text())
        shown = graph.name + (f", {width} bytes" if width else "")
        for row in rows(graph.scaled(int(width or 1)), shown):
            found.append(row)
            print(table([row]).splitlines()[2], flush=True)
    print("\n" + table(found))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(r) for r in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
