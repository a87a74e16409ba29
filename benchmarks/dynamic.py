"""Dynamic networks beside eager and Inductor: `python -m benchmarks.dynamic`, results to benchmarks/results/dynamic.{json,md}.

    python -m benchmarks.dynamic --models skipnet_rnn,blockdrop --rounds 3 --threads 2

One sample per call, f32, from torch tensors to torch tensors; the inputs are drawn at random, so that all paths take part, and
contenders take turns on the same ones (`dlc.contest`). Inductor compiles what lies between its graph breaks. onnxruntime runs an
export of the path of one input, and is timed only if its results are right on the others, which they are for a network that
decides nothing. Beside the times: how long dlc's analysis, splitting and graph optimisation took, and its kernels and cascades. What
PyTorch and dlc load when they first compile anything (about a second) is loaded before.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.models.dynamic.entry import Dynamic
from tests.models.dynamic.judge import Flat
from tests.models.dynamic.zoo import DYNAMIC

import dlc
from benchmarks.markdown import table
from benchmarks.measure import revision, say
from dlc.contest import Contest, machine
from dlc.importing import import_any
from dlc.ir.einsum import Einsum, Scan
from dlc.ir.program import If, Launch, Library, Loop, Program, regions, walk_statements

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = ("dlc", "eager", "inductor", "onnxruntime")
RING = 24
"""Inputs, which take different paths."""


def measure(entry: Dynamic, threads: int, rounds: int, block_s: float, patience_s: float) -> dict[str, Any] | None:
    """All measurements of one network; None when eager was not ready in time, with which the others are compared."""
    sample = entry.large or entry.sample
    inputs = [[t.numpy() for t in sample(seed)] for seed in range(RING)]
    with tempfile.TemporaryDirectory(prefix="dlc-bench-") as temporary:
        folder = Path(temporary)
        facts, refused = compiled(entry, folder / "model.dlc", sample(-1))
        python = f"benchmarks.dynamic_models:{entry.name}"
        with Contest(inputs, threads=threads, folder=folder, torch=True, say=say) as contest:
            contest.enter("dlc", model=str(folder / "model.dlc"), absent=refused)
            contest.enter("eager", model=python)
            contest.enter("inductor", model=python)
            contest.enter("onnxruntime", model=str(folder / "path.onnx"), absent=one_path(entry, folder / "path.onnx"))
            contest.prepare(patience_s)
            if not contest.check(("eager",), sets=RING):
                return None  # nothing is timed that was not compared
            rows = contest.run(rounds, block_s=block_s)
    return {
        "model": entry.name,
        "source": entry.source,
        "inputs": [f"{a.dtype}{list(a.shape)}" for a in inputs[0]],
        "threads": threads,
        "rounds": rounds,
        "rows": rows,
        "compile": facts,
        "machine": machine(),
        "revision": revision(),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


class Smallest(torch.nn.Module):
    """A decision and nothing else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x


def load() -> None:
    """Load what is loaded once in a process, so that it does not count for the network that comes first."""
    dlc.compile(Smallest().eval(), (torch.ones(2),), cache=False)


def compiled(entry: Dynamic, path: Path, example: tuple[torch.Tensor, ...]) -> tuple[dict[str, Any], str]:
    """Compile and save; what that took and made, or why it cannot be done."""
    model = entry.build()
    began = time.perf_counter()
    try:
        with torch.no_grad():
            imported = import_any(model, example, None, None, None)
        analysed = time.perf_counter() - began
        exe = dlc.compile(imported, cache=False)
    except dlc.DlcError as error:
        return {}, str(error).splitlines()[0]
    exe.save(path)
    report = exe.compile_report
    return {
        "analysis_s": round(analysed + report.seconds.get("passes", 0.0), 3),
        "total_s": round(time.perf_counter() - began, 3),
        "kernels": report.distinct,
        "launches": report.launches,
        **shape(imported.program),
    }, ""


def shape(program: Program) -> dict[str, int]:
    """How much control there is: branches, loops, and straight-line pieces between them."""
    statements = list(walk_statements(program.body))
    inside = [program.body, *(r for s in statements for r in regions(s))]
    pieces = 0
    for region in inside:
        straight = [isinstance(s, (Einsum, Scan, Library, Launch)) for s in region.body]
        pieces += sum(now and not before for before, now in zip([False, *straight], straight))
    return {
        "branches": sum(isinstance(s, If) for s in statements),
        "loops": sum(isinstance(s, Loop) for s in statements),
        "cascades": pieces,
    }


def one_path(entry: Dynamic, path: Path) -> str:
    """Export the path of the first input; why not, if torch cannot."""
    sample = entry.large or entry.sample
    try:
        with torch.no_grad():
            torch.onnx.export(Flat(entry.build()), sample(0), path, dynamo=False)
    except Exception as error:  # noqa: BLE001 - whatever its reason, there is no file then
        return f"torch.onnx.export: {str(error).splitlines()[0][:200]}"
    return ""


# --- results ---------------------------------------------------------------------------------------------------------


def keep(path: Path, result: dict[str, Any]) -> None:
    """Put a network's result among the others, and write the page anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {r["model"]: r for r in json.loads(path.read_text())} if path.exists() else {}
    results[result["model"]] = result
    rows = [results[name] for name in DYNAMIC if name in results]
    path.write_text(json.dumps(rows, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(rows))


def page(results: Sequence[dict[str, Any]]) -> str:
    """The whole page as Markdown."""
    intro = (__doc__ or "").split("\n\n")[-1].strip()
    notes = [
        f"- {r['model']}, {row['name']}: {row['absent']}" for r in results for row in r["rows"] if row.get("absent")
    ]
    parts = [
        "# Dynamic networks beside eager and Inductor",
        f"Written by `python -m benchmarks.dynamic`. Median milliseconds per call. {intro}",
        table(("network", *COLUMNS, "eager / dlc"), [times(r) for r in results]),
        "## Compiling",
        "Seconds of analysis, splitting and graph optimisation, and of everything; kernels (distinct, and launches in the program); "
        "branches, loops and straight-line cascades of the imported program.",
        table(
            ("network", "analysis", "in all", "kernels", "launches", "branches", "loops", "cascades"),
            [compile_row(r) for r in results if r["compile"]],
        ),
    ]
    if notes:
        parts += ["Not timed:", "\n".join(notes)]
    return "\n\n".join(parts) + "\n"


def times(result: dict[str, Any]) -> list[str]:
    medians = {row["name"]: row["median"] for row in result["rows"] if "median" in row}
    ratio = f"{medians['eager'] / medians['dlc']:.2f}" if {"dlc", "eager"} <= medians.keys() else "-"
    label = f"{result['model']} ({', '.join(result['inputs'])}, {result['threads']} threads)"
    return [label, *(f"{medians[n] * 1e3:.2f}" if n in medians else "-" for n in COLUMNS), ratio]


def compile_row(result: dict[str, Any]) -> list[str]:
    c = result["compile"]
    counts = [str(c[key]) for key in ("kernels", "launches", "branches", "loops", "cascades")]
    return [result["model"], f"{c['analysis_s']:.2f}", f"{c['total_s']:.1f}", *counts]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", metavar="A,B", help="networks (all)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--block", type=float, default=0.4, metavar="S", help="seconds of each turn")
    parser.add_argument("--patience", type=float, default=300.0, metavar="S", help="for Inductor's compilation")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args(arguments)
    os.chdir(RESULTS.parent.parent)  # contenders import the networks from here
    load()
    for name in options.models.split(",") if options.models else DYNAMIC:
        result = measure(DYNAMIC[name], options.threads, options.rounds, options.block, options.patience)
        if result is None:
            say(f"{name}: eager was not ready in {options.patience:g} s, so there is nothing to compare with; give it more --patience")
            continue
        keep(options.out / "dynamic.json", result)
        print(page([result]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
