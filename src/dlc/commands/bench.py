"""Time a .dlc file, or compile a model and time it, alone or against others that run the same model.

  dlc bench model.dlc
  dlc bench model.dlc --symbol b=1 --symbol s=128 --threads 2 --duration 5
  dlc bench model.onnx --against onnxruntime,openvino,iree,tvm
  dlc bench package.module:make --against inductor,eager
  dlc bench model.dlc --against onnxruntime --onnx model.onnx
  dlc bench model.dlc --format json

Contenders take turns, each in a process of its own, on the same inputs and with the same number of threads; a turn
during which the machine was slower than usual is repeated. Everybody's results are compared first, and who differs is not
timed. What counts is the median, and its ratio to dlc's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlc.commands import options as shared
from dlc.console import Console
from dlc.contest import Contest, ratio_to_best
from dlc.errors import EXIT_MISMATCH, BadInput, Internal
from dlc.feeds import random_inputs, symbol_values
from dlc.models import Model

ONNX_PEERS = ("onnxruntime", "openvino", "iree", "tvm")
PEERS = (*ONNX_PEERS, "inductor", "eager")
RING = 3
"""Sets of random inputs, used in turn."""


class NoPeer(BadInput):
    """`--against` names something that dlc does not know to run."""

    code = "DLC0630"
    template = "there is no contender '{peer}'"
    hint = "known are {known}"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FILE", help="a .dlc file or a model")
    parser.add_argument(
        "--against", "--peers", dest="against", default="", metavar="A,B", help=f"any of {', '.join(PEERS)}"
    )
    parser.add_argument("--onnx", metavar="FILE", help="the ONNX model that a .dlc file was made from, for the others")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each contender (default 5)")
    parser.add_argument("--duration", type=float, default=2.0, metavar="S", help="seconds each, in all (default 2)")
    parser.add_argument("--warmup", type=float, default=0.05, metavar="S", help="before each turn (default 0.05)")
    parser.add_argument("--least", type=int, default=10, metavar="N", help="at least so many calls each (default 10)")
    parser.add_argument(
        "--patience", type=float, default=300.0, metavar="S", help="for a contender to get ready (default 300)"
    )
    shared.add_inputs(parser)
    shared.add_threads(parser)
    shared.add_compile(parser)
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    peers = [p for p in options.against.split(",") if p]
    for peer in peers:
        if peer not in PEERS:
            raise NoPeer(peer=peer, known=", ".join(PEERS))
    model, executable = shared.executable_of(options, console)
    manifest = executable.manifest
    ring = ring_of(executable, options)
    with tempfile.TemporaryDirectory(prefix="dlc-bench-") as temporary:
        folder = Path(temporary)
        artifact = Path(model.source).resolve() if model.kind == "dlc" else folder / "model.dlc"
        if model.kind != "dlc":
            executable.save(artifact)
        threads = executable.threads
        del executable
        names = [i["name"] for i in manifest["inputs"]]
        python = model.kind in ("torch", "exported")
        with Contest(
            ring,
            threads=threads,
            folder=folder,
            names=names,
            manifest=manifest,
            torch=python,
            say=console.progress,
        ) as contest:
            contest.enter("dlc", model=str(artifact))
            for peer in peers:
                enter(contest, peer, model, options, folder)
            contest.prepare(options.patience)
            judge = contest.check()
            rounds = max(options.rounds, 1)
            rows = contest.run(
                rounds,
                block_s=options.duration / rounds,
                least=-(-options.least // rounds),
                most=10_000,
                warm_s=options.warmup,
            )
            probe = contest.probe
    return show(console, rows, judge, manifest, ring[0], threads, probe.best if probe else None)


def enter(contest: Contest, peer: str, model: Model, options: argparse.Namespace, folder: Path) -> None:
    """Let a peer in, or say why it cannot take part."""
    if peer in ONNX_PEERS:
        path, why = onnx_path(model, options.onnx, folder)
        contest.enter(peer, model=path, absent=why)
        return
    ready = model.kind in ("torch", "exported")
    absent = "" if ready else "it runs Python models, and this is none"
    contest.enter(peer, model=model.spec, absent=absent)
    if peer == "inductor":
        contest.enter("inductor+freezing", model=model.spec, absent=absent)


def onnx_path(model: Model, given: str | None, folder: Path) -> tuple[str, str]:
    """The model as an ONNX file, or why there is none."""
    if given:
        return str(Path(given).resolve()), "" if Path(given).is_file() else f"there is no file {given}"
    if model.kind != "onnx":
        return "", "it runs ONNX models, and this is none (--onnx names one)"
    if isinstance(model.source, str | Path):
        return str(Path(model.source).resolve()), ""
    path = folder / "model.onnx"  # its shapes were changed on the command line
    import onnx

    onnx.save(model.source, str(path), save_as_external_data=model.source.ByteSize() > 1 << 30)
    return str(path), ""


def ring_of(executable: Any, options: argparse.Namespace) -> list[list[np.ndarray]]:
    """The given inputs, or a few sets of random ones."""
    if options.input:
        return [shared.arrays_for(executable, options)]
    manifest = executable.manifest
    symbols = symbol_values(manifest, options.symbol)
    return [
        random_inputs(manifest, symbols=symbols, seed=options.seed + k, int_range=options.int_range)
        for k in range(RING)
    ]


def show(
    console: Console,
    rows: list[dict[str, Any]],
    judge: str,
    manifest: Mapping[str, Any],
    arrays: Sequence[np.ndarray],
    threads: int,
    peak: float | None,
) -> int:
    """Print the result; the exit code says whether dlc was timed."""
    own = rows[0]
    median = own.get("median")
    for row in rows:
        if median and "median" in row:
            row["ratio"] = row["median"] / median
    flops, moved = work(manifest, arrays)
    best = ratio_to_best(rows)
    facts = {
        "threads": threads,
        "gflops": flops / median / 1e9 if median else 0.0,
        "gbytes_per_s": moved / median / 1e9 if median else 0.0,
        "peak_gflops": peak,
        "reference": judge or None,
        "ratio_to_best": best and best[0],
        "best_peer": best and best[1],
    }
    console.emit(facts, rows)
    console.table(
        ("", "median ms", "least", "p90", "calls", "/ dlc", "error", ""), [line(row) for row in rows], " rrrrrr"
    )
    rate = f", {facts['gflops']:.1f} GFLOP/s, {facts['gbytes_per_s']:.1f} GB/s" if flops or moved else ""
    console.say(f"{threads} threads{rate}" + (f"; errors are against {judge}" if judge else ""))
    if best is not None:
        console.say(f"dlc takes {best[0]:.2f} times as long as {best[1]}, the fastest of the others")
    if own.get("absent"):
        if "wrong" not in own["absent"]:
            raise Internal(message=f"the compiled model could not be timed: {own['absent']}")
        return EXIT_MISMATCH
    return 0


def measure(calls: dict[str, Callable[[], Any]], warmup: float, duration: float, least: int) -> dict[str, list[float]]:
    """Seconds of each call of each candidate, called in turn in this process; `duration` is for each candidate."""
    for call in calls.values():
        end = time.perf_counter() + warmup
        call()
        while time.perf_counter() < end:
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + duration * len(calls)
    while time.perf_counter() < end or min(map(len, times.values())) < least:
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return times


def line(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row.get("absent"):
        return (row["name"], "-", "-", "-", "-", "-", "-", row["absent"])
    error = row.get("error")
    return (
        row["name"],
        *(f"{row[k] * 1e3:.3f}" for k in ("median", "least", "p90")),
        str(row["calls"]),
        f"{row['ratio']:.2f}" if "ratio" in row else "-",
        "-" if error is None else f"{error:.0e}",
        "the machine was slow" if not row["blocks"] else "",
    )


def work(manifest: Mapping[str, Any], arrays: Sequence[np.ndarray]) -> tuple[int, int]:
    """Arithmetic operations and least traffic in bytes of one call; 0 where extents are not known from the inputs."""
    from dlc.errors import DlcError
    from dlc.runtime.expr import compile_expressions

    values: dict[str, int] = {}
    names = {s["name"] for s in manifest.get("symbols", ())}
    for entry, array in zip(manifest["inputs"], arrays):
        values |= {name: size for name, size in zip(entry["shape"], array.shape) if name in names}
    totals = [0, 0]
    for kernel in manifest.get("kernels", ()):
        try:
            done = compile_expressions([kernel.get("flops", 0), kernel.get("bytes", 0)], list(values))(*values.values())
        except DlcError:
            continue  # a symbol bound at run time
        totals = [a + b for a, b in zip(totals, done)]
    return totals[0], totals[1]
