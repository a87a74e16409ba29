"""Weights of 1 to 8 bits beside plain ones, those of others and a plain read: `python -m benchmarks.low_bit`.

    python -m benchmarks.low_bit --prepare                  compile the layers, into the work folder
    python -m benchmarks.low_bit --shapes 4096x4096 --rows 1 --groups 128

Each contender goes through a ring of layers of different weights, 256 MB and more, so that these come from memory; one turn is
the whole ring, and contenders take turns. The rate of a plain read is measured in the same run, before and after. Results go to
benchmarks/results/low_bit.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import dlc
from benchmarks.artifacts import compiler_digest, default_work
from benchmarks.low_bit_layers import Layer, Turn, program
from benchmarks.low_bit_peers import peers
from benchmarks.measure import revision
from dlc.contest import machine
from dlc.memory_probe import MemoryProbe
from dlc.runtime.executable import Executable

RESULTS = Path(__file__).resolve().parent / "results"
RING_BYTES = 256 << 20
INTEGERS = ("u8", "i7", "i6", "i5", "i4", "i3", "i2", "u1")
FLOATS = ("f8e4m3", "f7e3m3", "f6e3m2", "f6e2m3", "f5e2m2", "f4e2m1", "f3e1m1")
GAP_S = 0.1


def layers(options: argparse.Namespace) -> list[list[Layer]]:
    """The layers to measure, those of one shape, group and number of rows together."""
    found = []
    for shape in options.shapes.split(","):
        terms, columns = map(int, shape.split("x"))
        for rows in map(int, options.rows.split(",")):
            for group in map(int, options.groups.split(",")):
                names = options.weights.split(",")
                made = [Layer(n, rows, terms, columns, group, a) for a in options.activations.split(",") for n in names]
                found.append([Layer(n, rows, terms, columns, group, "f32") for n in options.plain.split(",") if n] + made)
    return found


def artifact(layer: Layer, work: Path) -> Path:
    """The compiled layer, once for each revision of the compiler."""
    path = work / "low-bit" / compiler_digest() / f"{layer.name}.dlc"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        executable = dlc.compile(program(layer), threads=2)
        executable.save(path)
    return path


def ring(path: Path, layer: Layer, least: int) -> Turn:
    """One turn through copies of the layer, each with weights of its own in memory."""
    first = dlc.load(path, threads=2)
    assert isinstance(first, Executable)
    count = max(2, -(-least // layer.weight_bytes))
    first_constants = np.array(first._constants)
    copies = [Executable(first.manifest, first._spec, first._objects, np.array(first_constants), 2) for _ in range(count)]
    rng = np.random.default_rng(1)
    x = rng.standard_normal((layer.rows, layer.terms)).astype(np.float32)
    y = np.empty((layer.rows, layer.columns), np.float32)

    def turn() -> None:
        for one in copies:
            one(x, out=y)

    return Turn(turn, count, layer.weight_bytes)


def measure(group: Sequence[Layer], options: argparse.Namespace) -> dict[str, Any]:
    """The layers of one shape, in turns; each round begins and ends with a look at the memory."""
    memory = MemoryProbe(2)
    contenders: dict[str, Turn] = {}
    for layer in group:
        contenders[layer.name] = ring(artifact(layer, options.work), layer, options.ring)
        for name, make in peers(layer, options.ggml).items() if options.peers else ():
            if options.only is None or name.startswith(tuple(options.only.split(","))):
                contenders[name] = make(layer, options.ring)
    for turn in contenders.values():
        turn.run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    shares: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, turn in contenders.items():
            time.sleep(GAP_S)
            before = memory.look(1)[0]
            spent = timed(turn, options.least_s)
            rate = (before + memory.look(1)[0]) / 2
            times[name].append(spent)
            shares[name].append(turn.bytes / spent / 1e9 / rate)
    rows = {
        name: {
            "us": round(1e6 * statistics.median(times[name]), 1),
            "least_us": round(1e6 * min(times[name]), 1),
            "bytes": contenders[name].bytes,
            "of_read": round(statistics.median(shares[name]), 3),
        }
        for name in contenders
    }
    return {"read_gbytes": round(statistics.median(memory.reads), 1), "rows": rows}


def timed(turn: Turn, least_s: float) -> float:
    """Seconds of a layer: the mean over whole turns of at least `least_s`."""
    count, began = 0, time.perf_counter()
    while True:
        turn.run()
        count += turn.count
        spent = time.perf_counter() - began
        if spent >= least_s:
            return spent / count


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for group in layers(options):
        if options.prepare:
            for layer in group:
                print(artifact(layer, options.work), flush=True)
            continue
        found = measure(group, options)
        head = group[0]
        found |= {"shape": [head.rows, head.terms, head.columns], "group": head.group, "revision": revision()}
        found |= {"machine": machine(), "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime())}
        print(f"rows {head.rows}, {head.terms} x {head.columns}, group {head.group}: plain read {found['read_gbytes']} GB/s")
        for name, row in found["rows"].items():
            print(f"  {name:48s} {row['us']:9.1f} us  {row['of_read']:.2f} of a plain read", flush=True)
        if options.keep:
            keep(options.out / "low_bit.json", found)
    return 0


def keep(path: Path, found: dict[str, Any]) -> None:
    """The result among the others; rows of the same layer are replaced."""
    results = json.loads(path.read_text()) if path.exists() else []
    stamp = {"date": found.pop("date"), "read_gbytes": found.pop("read_gbytes")}
    found["rows"] = {name: row | stamp for name, row in found["rows"].items()}
    same = [r for r in results if (r["shape"], r["group"]) == (found["shape"], found["group"])]
    rest = [r for r in results if r not in same]
    for old in same:
        found["rows"] = old["rows"] | found["rows"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(sorted([*rest, found], key=lambda r: (r["shape"], r["group"])), indent=1) + "\n")
    path.with_suffix(".md").write_text(page(json.loads(path.read_text())))


def page(results: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# Weights of 1 to 8 bits", "",
        "Microseconds a layer, 2 threads, weights from memory (`python -m benchmarks.low_bit`). A name is the type of the weights, the",
        "activations, the group, and rows x terms x columns; the last column is the rate of codes and scales as a share of that of a plain",
        "read just before and after. Rows of 128 and more repeat one pair of layers: their weights lie in the caches. Rows of one time",
        "are of one run.", "",
    ]  # fmt: skip
    for r in results:
        rows, terms, columns = r["shape"]
        lines += [f"## {rows} rows, {terms} x {columns}, groups of {r['group']}", ""]
        lines += ["| | us | best us | of a plain read | plain read, GB/s | when |", "| --- | --: | --: | --: | --: | --- |"]
        for name, row in r["rows"].items():
            lines.append(f"| {name} | {row['us']} | {row['least_us']} | {row['of_read']} | {row['read_gbytes']} | {row['date']} |")
        lines.append("")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--shapes", default="4096x4096,4096x14336,14336x4096", help="terms x columns")
    made.add_argument("--rows", default="1,16")
    made.add_argument("--groups", default="128,32")
    made.add_argument("--weights", default=",".join((*INTEGERS, *FLOATS)), help="types of the codes")
    made.add_argument("--plain", default="f32,bf16", help="types of plain weights beside them")
    made.add_argument("--activations", default="i8", help="f32, bf16, i8")
    made.add_argument("--ring", type=int, default=RING_BYTES, help="bytes of weights in a ring")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--least-s", type=float, default=0.05, help="seconds of a turn, at least")
    made.add_argument("--no-peers", dest="peers", action="store_false")
    made.add_argument("--only", metavar="A,B", help="of the peers those whose names begin so: onnxruntime, openvino, torch, llama.cpp")
    made.add_argument("--ggml", type=Path, metavar="FOLDER", help="where libggml-base.so and libggml-cpu.so are, for llama.cpp")
    made.add_argument("--prepare", action="store_true", help="compile only")
    made.add_argument("--keep", action="store_true", help="put the results among those of the repository")
    made.add_argument("--work", type=Path, default=default_work(), help="folder of compiled layers, kept")
    made.add_argument("--out", type=Path, default=RESULTS)
    return made


if __name__ == "__main__":
    raise SystemExit(main())
