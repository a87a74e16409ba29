"""The file of results: one entry per row of the suite, in its order, the page and the plots beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.markdown import page
from benchmarks.plots import draw
from benchmarks.suite import SUITE


def row_name(result: dict[str, Any]) -> str:
    """Its row in the suite."""
    name: str = result.get("row") or result["model"]
    return name


def _with_older(result: dict[str, Any], older: dict[str, Any] | None) -> dict[str, Any]:
    """With the runs of other numbers of threads that were measured before, and when that was."""
    if older is None:
        return result
    measured = {run["threads"] for run in result["runs"]}
    when = {"date": older["date"], "revision": older["revision"]}
    kept = [{**when, **run} for run in older["runs"] if run["threads"] not in measured]
    return {**result, "runs": sorted([*result["runs"], *kept], key=lambda run: -run["threads"])}


def keep(path: Path, result: dict[str, Any]) -> None:
    """Put a row's result among the others, and write the page anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {row_name(r): r for r in json.loads(path.read_text())} if path.exists() else {}
    name = row_name(result)
    results[name] = _with_older(result, results.get(name))
    order = {row.name: k for k, row in enumerate(SUITE)}
    rows = sorted(results.values(), key=lambda r: (order.get(row_name(r), len(order)), row_name(r)))
    path.write_text(json.dumps(rows, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(rows))
    draw(path.parent)
