"""The pass analysis as data and as text: what `dlc explain` prints and what the dump directory keeps and draws.

    {"cascades": [{"cascade", "level", "passes", "einsums", "rows", "traffic"}, ...],
     "kept": [{"tensor", "rank", "reason", "detail", "loc"}, ...]}

One entry for each straight-line part of the program as it was given (level `input`) and for each kernel (level `kernel`);
`kept` has the reductions of the given program that algebra cannot traverse fewer times, and the side condition that fails.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dlc.console import Console, bytes_text
from dlc.costmodel.io_bound import Traffic, traffic
from dlc.ir.einsum import flat
from dlc.ir.extent import show_extent, variables
from dlc.ir.pass_count import PassCount, cascades_of
from dlc.ir.program import Cascade, Program
from dlc.passes.defer_factors import DeferFactors
from dlc.passes.reduce_passes import ReducePasses
from dlc.passes.refusals import Reason
from dlc.passes.running_reduction import RunningReduction

LARGEST_INPUT = 100
"""Einsums of the given program beyond which only the kernels are analysed."""


def analyse(given: Program, compiled: Program, cache_bytes: int) -> dict[str, Any]:
    """The analysis of a program before the passes and of its kernels after them."""
    inputs = cascades_of(given)
    if sum(1 for c in inputs for _ in flat(c.steps)) > LARGEST_INPUT:
        inputs = ()
    found = [analyse_cascade(c, "input", cache_bytes) for c in inputs]
    found += [analyse_cascade(k.cascade, "kernel", cache_bytes) for k in compiled.kernels]
    return {"cascades": found, "kept": _kept(given) if inputs else []}


def _kept(given: Program) -> list[dict[str, str]]:
    """Why dependent reductions of a program keep their passes."""
    deferred = DeferFactors().apply(given)
    refusals = (*RunningReduction(block=1).explain(deferred), *ReducePasses().explain(given))
    return [
        {"tensor": r.tensor, "rank": r.rank, "reason": str(r.reason), "detail": r.detail, "loc": str(r.loc)}
        for r in refusals
        if r.reason is not Reason.SHORT
    ]


def analyse_cascade(
    cascade: Cascade, level: str, cache_bytes: int, symbols: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """One cascade's passes and traffic; bytes are numbers where `symbols` has a value for every symbol, else None."""
    report = traffic(cascade)
    counted = [row for row in report.rows if not row.partition]
    inputs = {p.name for p in cascade.params}
    shown = [row for row in report.rows if row.passes > 1 or row.tensor in inputs]
    return {
        "cascade": cascade.name,
        "level": level,
        "passes": max((row.passes for row in counted), default=0),
        "einsums": [{"name": s.out, "reads": list(s.reads)} for s in flat(cascade.steps)],
        "rows": [_row(row) for row in shown],
        "traffic": _traffic(report, cache_bytes, symbols or {}),
    }


def _row(row: PassCount) -> dict[str, Any]:
    return {
        "tensor": row.tensor,
        "rank": row.rank,
        "passes": row.passes,
        "index": dict(row.index),
        "barriers": [
            {"pass": b.level, "reduction": b.reduction, "reader": b.reader, "through": b.through, "why": b.why}
            for b in row.barriers
        ],
        "footprint": {
            "elements": show_extent(row.footprint.elements),
            "bytes": show_extent(row.footprint.bytes),
            "whole": row.footprint.whole,
        },
        "partition": row.partition,
        "repeats": {rank: show_extent(extent) for rank, extent in row.repeats},
    }


def _traffic(report: Traffic, cache_bytes: int, symbols: Mapping[str, int]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "cache_bytes": cache_bytes,
        "compulsory": show_extent(report.compulsory),
        "bound": report.formula(),
        "moved_bytes": None,
        "bound_bytes": None,
        "ratio": None,
    }
    if _symbols(report) <= {n if n.startswith("#") else "#" + n for n in symbols}:
        facts["moved_bytes"] = round(report.moved_bytes(cache_bytes, symbols))
        facts["bound_bytes"] = round(report.bound_bytes(cache_bytes, symbols))
        facts["ratio"] = round(report.ratio(cache_bytes, symbols), 3)
    return facts


def _symbols(report: Traffic) -> frozenset[str]:
    steps = frozenset().union(*(s.symbols for s in report.cascade.steps))
    return steps | variables(report.compulsory)


# --- for people and scripts ------------------------------------------------------------------------------------------


def facts_of(analysis: Mapping[str, Any], given_as_text: bool) -> dict[str, Any]:
    """What `dlc explain --format json` says: the greatest count, and a row for each tensor and rank.

    Args:
        given_as_text: count the cascades of the text, as written; else the kernels that were made.
    """
    level = "input" if given_as_text else "kernel"
    of_level = [c for c in analysis["cascades"] if c["level"] == level]
    rows = [
        {"cascade": c["cascade"], "level": c["level"], **row, **c["traffic"]}
        for c in analysis["cascades"]
        for row in c["rows"]
    ]
    most = max((c["passes"] for c in of_level), default=0)
    return {"passes": most, "pass_analysis": rows, "not_reduced": analysis["kept"]}


def say_passes(analysis: Mapping[str, Any], console: Console) -> None:
    """The section `passes` of `dlc explain`."""
    cascades = analysis["cascades"]
    if not cascades:
        return
    console.say(f"\npasses (cache of {bytes_text(cascades[0]['traffic']['cache_bytes'])}):")
    for c in cascades:
        console.say(f"  {c['level']} {c['cascade']}: {_times(c['passes'])}")
        for row in _telling(c["rows"]):
            _say_row(row, console)
        _say_traffic(c["traffic"], console)
    for kept in analysis["kept"]:
        place = f"{kept['loc']}: " if kept["loc"] else ""
        console.say(f"  {place}'{kept['tensor']}' keeps its pass over '{kept['rank']}': {kept['reason']} ({kept['detail']})")


def _telling(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Rows with barriers that no earlier row has."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for row in rows:
        barriers = {(b["reduction"], b["reader"]) for b in row["barriers"]}
        if not row["partition"] and not barriers <= seen:
            kept.append(row)
            seen |= barriers
    return kept


def _say_row(row: Mapping[str, Any], console: Console) -> None:
    live = row["footprint"]
    console.say(
        f"    {row['tensor']} along {row['rank']}: {_times(row['passes'])}; "
        f"live: {live['elements']} elements, {live['bytes']} bytes"
    )
    for number in range(1, row["passes"] + 1):
        names = ", ".join(n for n, p in row["index"].items() if p == number)
        console.say(f"      pass {number}: {names}")
        for barrier in row["barriers"]:
            if barrier["pass"] == number + 1:
                console.say(f"      barrier: {barrier['why']}")


def _say_traffic(facts: Mapping[str, Any], console: Console) -> None:
    if facts["ratio"] is None:
        console.say(f"    traffic: at least {facts['bound']} bytes, S words of cache")
        return
    moved, bound = bytes_text(facts["moved_bytes"]), bytes_text(facts["bound_bytes"])
    console.say(f"    traffic: {moved}, at least {bound}: {facts['ratio']:.2f} times the bound")


def _times(passes: int) -> str:
    return f"{passes} pass" if passes == 1 else f"{passes} passes"
