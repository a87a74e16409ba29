"""Where the time of one inference goes: each kernel call with its time, arithmetic or memory rate, and share.

dlc profile model.dlc
dlc profile model.dlc --symbol s=128 --trace trace.json    for chrome://tracing or ui.perfetto.dev
dlc profile model.onnx --top 10 --format json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dlc.commands import options as shared
from dlc.commands.explain import say_control
from dlc.console import Console
from dlc.control_graph import control_graph
from dlc.report import write_report


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FILE", help="a .dlc file or a model")
    parser.add_argument("--repeat", type=int, default=10, metavar="N", help="calls to take medians over (default 10)")
    parser.add_argument("--top", type=int, metavar="N", help="only the N longest, longest first")
    parser.add_argument("--graph", metavar="FILE", help="draw the control graph there, with counts and times (SVG)")
    parser.add_argument("--trace", metavar="FILE", help="also write a Chrome/Perfetto trace")
    shared.add_inputs(parser)
    shared.add_threads(parser)
    shared.add_compile(parser)
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    _, executable = shared.executable_of(options, console)
    args, kwargs = shared.call_for(executable, options)
    console.progress("profiling")
    profile = executable.profile(*args, repeat=options.repeat, **kwargs)
    if options.trace:
        profile.write_trace(options.trace)
    rows = sorted(profile.rows, key=lambda r: -r.time_ns)[: options.top] if options.top else list(profile.rows)
    console.emit(profile.to_json())
    console.table(
        ("kernel", "us", "share", "GFLOP/s", "GB/s", "from"),
        [
            (r.name, f"{r.time_ns / 1e3:.1f}", f"{r.share:.1%}", f"{r.gflops:.1f}", f"{r.gbytes:.1f}", r.loc)
            for r in rows
        ],
        " rrrr",
    )
    rest = profile.total_ns - profile.kernels_ns
    console.say(
        f"kernels {profile.kernels_ns / 1e6:.3f} ms, call {profile.total_ns / 1e6:.3f} ms ({rest / 1e3:.0f} us outside)"
    )
    if options.trace:
        console.say(f"trace: {options.trace}")
    graph = control_graph(executable.manifest, profile.visits)
    dumped = shared.dump_dir(options)
    if dumped is not None and Path(dumped, "control.json").exists():
        Path(dumped, "control.json").write_text(json.dumps(graph, indent=2) + "\n")
        write_report(dumped)
    return say_control(graph, console, options.graph)
