"""Time a .dlc file, or compile a model and time it: warm up, then call again and again for a while.

  dlc bench model.dlc
  dlc bench model.dlc --symbol b=1 --symbol s=128 --threads 2 --duration 5
  dlc bench model.onnx --peers onnxruntime           the same inputs, in the same run, beside a peer
  dlc bench model.dlc --format json

Calls of dlc and of its peers alternate, so that a busy machine is busy for all of them. What counts is the median and
the ratio; the least time is what the machine can do when nothing else runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from dlc.commands import options as shared
from dlc.console import Console
from dlc.errors import BadInput, MissingPackage
from dlc.feeds import call_arguments


class NoPeer(BadInput):
    """A peer that cannot run this kind of model."""

    code = "DLC0630"
    template = "peer '{peer}' cannot run '{model}': {reason}"
    hint = "onnxruntime runs .onnx files; eager runs Python models"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FILE", help="a .dlc file or a model")
    parser.add_argument("--warmup", type=float, default=0.5, metavar="S", help="seconds before counting (default 0.5)")
    parser.add_argument("--duration", type=float, default=3.0, metavar="S", help="seconds of counting (default 3)")
    parser.add_argument("--least", type=int, default=5, metavar="N", help="at least so many calls (default 5)")
    parser.add_argument("--peers", default="", metavar="A,B", help="onnxruntime and/or eager, timed in the same run")
    shared.add_inputs(parser)
    shared.add_threads(parser)
    shared.add_compile(parser)
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    model, executable = shared.executable_of(options, console)
    arrays = shared.arrays_for(executable, options)
    args, kwargs = call_arguments(executable.manifest, arrays)
    calls: dict[str, Callable[[], Any]] = {"dlc": lambda: executable(*args, **kwargs)}
    names = [i["name"] for i in executable.manifest["inputs"]]
    for peer in filter(None, options.peers.split(",")):
        calls[peer] = _peer(peer, model, dict(zip(names, arrays)), (args, kwargs), executable.threads)
    console.progress("timing")
    times = measure(calls, options.warmup, options.duration, options.least)
    rows: list[dict[str, Any]] = [{"name": name, **_facts(times[name], times["dlc"])} for name in calls]
    flops, moved = _work(executable, arrays)
    median = statistics.median(times["dlc"])
    extra = {"threads": executable.threads, "gflops": flops / median / 1e9, "gbytes_per_s": moved / median / 1e9}
    console.emit(extra, rows)
    console.table(
        ("", "median ms", "least", "p90", "calls", "/ dlc"),
        [
            (
                r["name"],
                *(f"{r[k] * 1e3:.3f}" for k in ("median", "least", "p90")),
                r["calls"],
                f"{r['ratio']:.2f}",
            )
            for r in rows
        ],
        " rrrrr",
    )
    rate = f", {extra['gflops']:.1f} GFLOP/s, {extra['gbytes_per_s']:.1f} GB/s" if flops or moved else ""
    console.say(f"{executable.threads} threads{rate}")
    return 0


def measure(calls: dict[str, Callable[[], Any]], warmup: float, duration: float, least: int) -> dict[str, list[float]]:
    """Seconds of each call of each candidate, called in turn; `duration` is for each candidate."""
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


def _facts(times: list[float], reference: list[float]) -> dict[str, float | int]:
    ordered = sorted(times)
    return {
        "median": statistics.median(ordered),
        "least": ordered[0],
        "p90": ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))],
        "calls": len(ordered),
        "ratio": statistics.median(ordered) / statistics.median(reference),
    }


def _work(executable: Any, arrays: list[np.ndarray]) -> tuple[int, int]:
    """Arithmetic operations and least traffic in bytes of one call; 0 where extents are not known from the inputs."""
    from dlc.errors import DlcError
    from dlc.runtime.expr import compile_expressions

    manifest = executable.manifest
    values: dict[str, int] = {}
    names = {s["name"] for s in manifest.get("symbols", ())}
    for entry, array in zip(manifest["inputs"], arrays):
        values |= {name: size for name, size in zip(entry["shape"], array.shape) if name in names}
    totals = [0, 0]
    for kernel in manifest.get("kernels", ()):
        try:
            work = compile_expressions([kernel.get("flops", 0), kernel.get("bytes", 0)], list(values))(*values.values())
        except DlcError:
            continue  # a symbol bound at run time
        totals = [a + b for a, b in zip(totals, work)]
    return totals[0], totals[1]


def _peer(
    peer: str, model: Any, feeds: dict[str, np.ndarray], call: tuple[tuple[Any, ...], dict[str, Any]], threads: int
) -> Callable[[], Any]:
    if peer == "onnxruntime":
        if model.kind != "onnx":
            raise NoPeer(peer=peer, model=model.spec, reason="it is no .onnx file")
        from dlc.verification import ort_session

        session = ort_session(str(model.source), threads)
        return lambda: session.run(None, feeds)
    if peer == "eager":
        if model.kind not in ("torch", "exported"):
            raise NoPeer(peer=peer, model=model.spec, reason="it is no Python model")
        from dlc.verification import eager_call

        return eager_call(model, call, threads)
    raise MissingPackage(what=f"the peer '{peer}'", package=peer, install="dlc[bench]")
