"""What a memory budget of half the natural arena costs: the time of calls with and without, in turn; equal results to the bit.

    python -m benchmarks.budget [NAME ...] [--calls N]

Programs are compiled once per revision of the compiler and kept; `--calls 0` only does that, so that timing can be done alone. One
thread. Rows go to `benchmarks/results/budget.json` and the page beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dlc
from benchmarks.artifacts import compiler_digest, default_work
from dlc.contest import machine

NAMES = ("resnet50", "bert_base", "unet")
RESULTS = Path(__file__).parent / "results" / "budget.json"


def programs(name: str, share: float = 0.5) -> tuple[Path, Path, Path]:
    """Artifacts without and with a budget, which is so much of the arena of the first, and inputs."""
    folder = default_work() / "budget" / compiler_digest()
    free, tight, inputs = folder / f"{name}.dlc", folder / f"{name}-{share}.dlc", folder / f"{name}.npz"
    if not (free.exists() and tight.exists() and inputs.exists()):
        compile_both(name, share, free, tight, inputs)
    return free, tight, inputs


def compile_both(name: str, share: float, free: Path, tight: Path, inputs: Path) -> None:
    """Write them, and beside the second what its plan is."""
    import torch
    from tests.models.zoo import ZOO

    from benchmarks.arena import inputs_of

    free.parent.mkdir(parents=True, exist_ok=True)
    given = inputs_of(name)
    with torch.no_grad():
        model = ZOO[name].make()
        unlimited = dlc.compile(model, given, threads=1)
        unlimited(*given)
        natural = arena_of(unlimited)
        dump = free.with_suffix(".dump")
        limited = dlc.compile(model, given, threads=1, memory_budget=int(natural * share), dump_dir=dump)
    np.savez(inputs, **{str(i): t.numpy() for i, t in enumerate(given)})
    plan = json.loads((dump / "memory.json").read_text())
    facts = {"outside": len(plan["outside"]), "spill_bytes": plan["spill_bytes"], "copied": plan["traffic_bytes"]}
    tight.with_suffix(".json").write_text(json.dumps({"natural": natural, "budget": int(natural * share), **facts}))
    unlimited.save(free)
    limited.save(tight)


def arena_of(executable: dlc.Executable) -> int:
    """Bytes of the last plan's arena, threads' scratch memory included."""
    return max(plan.arena_bytes for plan in executable._plans.values())


def measure(name: str, calls: int) -> dict[str, Any]:
    """Medians of calls in turn, after one of each."""
    free_file, tight_file, inputs = programs(name)
    facts = json.loads(tight_file.with_suffix(".json").read_text())
    if not calls:
        return {"model": name, **facts}
    with np.load(inputs) as arrays:
        given = [arrays[key] for key in arrays.files]
    free, tight = dlc.load(free_file, threads=1), dlc.load(tight_file, threads=1)
    equal = _bytes(free(*given)) == _bytes(tight(*given))
    seconds: dict[str, list[float]] = {"free": [], "tight": []}
    for _ in range(calls):
        for key, executable in (("free", free), ("tight", tight)):
            began = time.perf_counter()
            executable(*given)
            seconds[key].append(time.perf_counter() - began)
    without, with_ = (1000 * statistics.median(seconds[key]) for key in ("free", "tight"))
    return {
        "model": name,
        **facts,
        "arena": arena_of(tight),
        "calls": calls,
        "ms": round(without, 2),
        "ms_budget": round(with_, 2),
        "cost": round(with_ / without - 1, 4),
        "equal": equal,
        "machine": machine(),
    }


def _bytes(results: Any) -> list[bytes]:
    return [np.asarray(r).tobytes() for r in (results if isinstance(results, tuple) else (results,))]


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["# Half the natural arena", "", "`python -m benchmarks.budget`; one thread, calls in turn, medians.", ""]
    heads = ("natural arena", "budget", "arena", "tensors outside", "bytes outside", "copied per call", "ms", "ms with it", "cost", "equal")
    lines += [f"| model | {' | '.join(heads)} |", "|---|" + "--:|" * len(heads)]
    for r in rows:
        counts = (r["natural"], r["budget"], r["arena"], r["outside"], r["spill_bytes"], r["copied"])
        equal = "yes" if r["equal"] else "no"
        cells = " | ".join(f"{c:,}" for c in counts)
        lines.append(f"| {r['model']} | {cells} | {r['ms']:.1f} | {r['ms_budget']:.1f} | {r['cost']:.1%} | {equal} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.budget")
    parser.add_argument("names", nargs="*", default=list(NAMES))
    parser.add_argument("--calls", type=int, default=15)
    options = parser.parse_args(argv)
    for name in options.names:
        row = measure(name, options.calls)
        print(row, flush=True)
        if options.calls:
            known = {r["model"]: r for r in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
            known[name] = row
            rows = [known[n] for n in NAMES if n in known]
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
            RESULTS.with_suffix(".md").write_text(page(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
