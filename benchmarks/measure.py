"""The measurements of one row of the suite."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.artifacts import artifact, onnx_file
from benchmarks.sources import Source, ring, source
from benchmarks.suite import Row
from dlc.contest import Contest, machine, ratio_to_best
from dlc.speed_probe import SpeedProbe

ONNX_PEERS = ("onnxruntime", "openvino", "iree", "tvm")
TORCH_PEERS = ("inductor", "eager")
PEERS = (*ONNX_PEERS, *TORCH_PEERS)


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    Attributes:
        peers: of PEERS.
        threads: numbers of threads, one contest each.
        rounds, block_s: turns of each contender, and seconds of each.
        patience_s: with a peer's own compilation.
        work: folder of exported and compiled models, kept.
    """

    peers: tuple[str, ...]
    threads: tuple[int, ...]
    rounds: int
    block_s: float
    patience_s: float
    work: Path


def measure(row: Row, settings: Settings) -> dict[str, Any]:
    """All measurements of one row."""
    began_load = os.getloadavg()[0]
    path, compiled = artifact(row.entry, settings.work)
    given = source(row.entry)
    inputs = ring(given, row)
    with tempfile.TemporaryDirectory(prefix="dlc-bench-") as temporary:
        folder = Path(temporary)
        runs = []
        for threads in settings.threads:
            say(f"{row.name}, {threads} threads")
            runs.append(run(row, given, inputs, path, threads, folder, settings))
        first = [first_result(path, folder / "ring.npz") for _ in range(3)]
    return {
        "row": row.name,
        "model": row.entry,
        "batch": row.batch,
        "length": row.length,
        "inputs": [f"{a.dtype}{list(a.shape)}" for a in inputs[0]],
        "ring": {"sets": len(inputs), "bytes": len(inputs) * sum(a.nbytes for a in inputs[0])},
        "runs": runs,
        "compile": compiled,
        "first_result_s": first,
        "machine": machine(),
        "revision": revision(),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load": [began_load, os.getloadavg()[0]],
        "command": "python -m benchmarks.run --models " + row.name,
    }


def run(
    row: Row,
    given: Source,
    inputs: Sequence[Sequence[np.ndarray]],
    path: Path,
    threads: int,
    folder: Path,
    settings: Settings,
) -> dict[str, Any]:
    """The contest with one number of threads."""
    with contest(row, given, inputs, threads, folder, settings) as entrants:
        entrants.enter("dlc", model=str(path))
        enter_peers(entrants, row, given, settings)
        entrants.prepare(settings.patience_s)
        judge = entrants.check(tolerance=given.tolerance)
        rows = entrants.run(settings.rounds, block_s=settings.block_s)
        profile = entrants.profile() if threads > 1 else None
        probe = entrants.probe
        peak = probe and peak_of(given.products, probe)
    best = best_peer(rows)
    return {
        "threads": threads,
        "reference": judge,
        "rows": rows,
        "ratio_to_best": best and best["paired"]["ratio"],
        "interval": best and [best["paired"]["low"], best["paired"]["high"]],
        "best_peer": best and best["name"],
        "rounds": settings.rounds,
        "probe": probe and {"best_gflops": probe.best, "slow_looks": probe.slow},
        "peak": peak,
        "profile": profile and kernels_of(profile),
    }


def peak_of(products: str, probe: SpeedProbe) -> dict[str, Any]:
    """The multiply-add rate in that type: the probe's of the contest in f32, else of one made now."""
    found = probe if products == "f32" else SpeedProbe(probe.threads, products=products)
    return {"products": found.products, "gflops": found.best}


def contest(
    row: Row,
    given: Source,
    inputs: Sequence[Sequence[np.ndarray]],
    threads: int,
    folder: Path,
    settings: Settings,
) -> Contest:
    """A contest on these inputs, which keeps what peers compile."""
    cache = settings.work / row.entry
    return Contest(inputs, threads=threads, folder=folder, names=given.names, torch=True, cache=cache, say=say)


def enter_peers(entrants: Contest, row: Row, given: Source, settings: Settings) -> None:
    """Let the peers in, or say why one cannot take part."""
    for peer in settings.peers:
        if peer in ONNX_PEERS:
            path, why = onnx_file(given.onnx_entry(peer), settings.work)
            plain = given.plain if peer != "onnxruntime" else ""
            entrants.enter(peer, model=plain or str(path), absent=why, precision=given.precision)
            continue
        absent = "" if given.python else "it runs Python models, and this is none"
        entrants.enter(peer, model=given.python, absent=absent)
        if peer == "inductor":
            entrants.enter("inductor+freezing", model=given.python, absent=absent)


def best_peer(rows: Sequence[dict[str, Any]], exclude: Sequence[str] = ("eager",)) -> dict[str, Any] | None:
    """The row of the fastest other contender; those to exclude count only where nobody else is."""
    fast = [r for r in rows if r["name"] not in exclude]
    found = ratio_to_best(fast) or ratio_to_best(rows)
    return next((r for r in rows if found and r["name"] == found[1] and "paired" in r), None)


def kernels_of(profile: dict[str, Any]) -> dict[str, Any]:
    """A profile with calls of the same kernel code added up, longest first."""
    kinds: dict[tuple[str, int], dict[str, Any]] = {}
    for row in profile["rows"]:
        kind = kinds.setdefault(
            (row["symbol"], row["flops"]),
            {"name": row["name"], "loc": row["loc"], "calls": 0, "time_ns": 0.0, "flops": 0, "bytes": 0},
        )
        kind["calls"] += 1
        for key in ("time_ns", "flops", "bytes"):
            kind[key] += row[key]
    rows = sorted(kinds.values(), key=lambda k: -k["time_ns"])
    for row in rows:
        span = max(row["time_ns"], 1.0)
        row |= {"share": span / profile["kernels_ns"], "gflops": row["flops"] / span, "gbytes": row["bytes"] / span}
    return {"total_ns": profile["total_ns"], "kernels_ns": profile["kernels_ns"], "rows": rows}


def prepare(row: Row, settings: Settings) -> None:
    """Make what is kept: the artifact, the ONNX file, and what peers compile and cache."""
    artifact(row.entry, settings.work)
    given = source(row.entry)
    for entry in {given.onnx_entry(peer) for peer in settings.peers if peer in ONNX_PEERS}:
        onnx_file(entry, settings.work)
    slow = tuple(p for p in settings.peers if p in ("inductor", "iree"))  # they keep what they compile
    if not slow:
        return
    for threads in settings.threads:
        with tempfile.TemporaryDirectory() as temporary:
            inputs = [given.inputs(row, 1)]
            with contest(row, given, inputs, threads, Path(temporary), settings) as entrants:
                enter_peers(entrants, row, given, replace(settings, peers=slow))
                entrants.prepare(settings.patience_s)
                for entrant in entrants.entrants.values():
                    say(f"{row.name}, {entrant.name}: {entrant.absent or entrant.facts['prepare_s']}")


def first_result(path: Path, inputs: Path) -> float:
    """Seconds from before a process starts to after its first inference."""
    script = str(Path(__file__).with_name("first_result.py"))
    command = [sys.executable, script, str(path), str(inputs), repr(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def revision() -> str:
    """The commit that was measured, with '+' when the tree had changes."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        stages = ("src", "frontend", "ir", "passes", "codegen", "costmodel", "runtime")
        changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", *stages]).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + "+" * bool(changed)


def say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)
