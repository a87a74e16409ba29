"""Single kernels beside their peers: `python -m benchmarks.kernels`, results to benchmarks/results/kernels.{json,md}.

    python -m benchmarks.kernels --families linear,conv1x1 --rounds 7
    python -m benchmarks.kernels --list         the families and their kernels

The shapes are those of `benchmarks.kernel_shapes`. One process per contender holds the kernels of a family one after the
other; contenders take turns (`dlc.contest`). The multiply-add peak, a plain read and a plain copy are measured in the same
run. Results are kept kernel by kernel: a run that was cut off goes on where it ended, and `--again` measures anew what
this revision has been measured for.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.artifacts import compiler_digest, default_work
from benchmarks.kernel_page import page
from benchmarks.kernel_shapes import Family, Kernel, families
from benchmarks.measure import best_peer, revision, say
from benchmarks.plots import draw
from benchmarks.run import ROOT, counts
from dlc.contest import Contest, Crew, machine
from dlc.memory_probe import MemoryProbe
from dlc.speed_probe import SpeedProbe

RESULTS = Path(__file__).resolve().parent / "results"
PEERS = ("onnxruntime", "openvino", "eager")
SETS = 3
"""Sets of inputs, used in turn."""


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    known = {family.name: family for family in families()}
    if options.list:
        print("\n".join(f"{f.name}: {', '.join(k.name for k in f.kernels)}" for f in known.values()))
        return 0
    wanted = [known[name] for name in options.families.split(",")] if options.families else list(known.values())
    out = options.out.resolve()
    os.chdir(ROOT)  # contenders import the kernels from here
    for threads in options.threads:
        for family in wanted:
            began = time.perf_counter()
            measure(family, threads, options, out / "kernels.json")
            print(f"{family.name}, {threads} threads: {time.perf_counter() - began:.0f} s", flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--families", default="", metavar="A,B", help="families of kernels (all)")
    made.add_argument("--again", action="store_true", help="also what this revision has been measured for")
    made.add_argument("--list", action="store_true", help="print the families and their kernels")
    made.add_argument("--against", default=",".join(PEERS), metavar="A,B", help="onnxruntime, openvino, eager, inductor")
    made.add_argument("--threads", type=counts, default=(2,), metavar="N,N", help="of all contenders")
    made.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    made.add_argument("--block", type=float, default=0.06, metavar="S", help="seconds of each turn")
    made.add_argument("--patience", type=float, default=120.0, metavar="S", help="for a peer's own compilation")
    made.add_argument("--work", type=Path, default=default_work(), help="folder of compiled kernels, kept")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    return made


def measure(family: Family, threads: int, options: argparse.Namespace, path: Path) -> None:
    """All kernels of a family that have no result yet, each kept at once."""
    have = set() if options.again else known_kernels(path, family, threads)
    todo = [kernel for kernel in family.kernels if kernel.name not in have]
    if not todo:
        return
    artifacts = {kernel.name: artifact(kernel, options.work) for kernel in todo}
    facts = {"family": family.name, "threads": threads, "rounds": options.rounds, "revision": revision()}
    speed, memory = SpeedProbe(threads), MemoryProbe(threads)
    with tempfile.TemporaryDirectory(prefix="dlc-kernels-") as temporary, Crew(threads, Path(temporary)) as crew:
        for kernel in todo:
            say(kernel.name)
            load = os.getloadavg()[0]
            memory.look()
            found = one(kernel, artifacts[kernel.name], crew, speed, Path(temporary), options)
            memory.look()
            limits = {"fma": speed.best, "read": middle(memory.reads), "copy": middle(memory.copies)}
            add_share(found, family.limit, limits)
            now = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
            more = {"limits": limits, "slow_looks": speed.slow, "machine": machine(), "date": now}
            keep(path, {**facts, **more, "load": [load, os.getloadavg()[0]], "kernels": [found]})


def known_kernels(path: Path, family: Family, threads: int) -> set[str]:
    """Those of the family that this revision has a result for."""
    results = json.loads(path.read_text()) if path.exists() else []
    mine = [r for r in results if (r["family"], r["threads"], r["revision"]) == (family.name, threads, revision())]
    return {kernel["name"] for r in mine for kernel in r["kernels"]}


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def artifact(kernel: Kernel, work: Path) -> Path:
    """The kernel compiled by this revision of dlc, once."""
    from benchmarks.kernel_models import compiled

    path = work / "artifacts" / compiler_digest() / "kernels" / f"{kernel.name.removesuffix('_given')}.dlc"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        compiled(kernel).save(path)
    return path


def one(
    kernel: Kernel, path: Path, crew: Crew, speed: SpeedProbe, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """The contest for one kernel."""
    import onnx

    from benchmarks.kernel_models import inputs, onnx_model

    model = folder / "kernel.onnx"
    onnx.save(onnx_model(kernel), str(model))
    ring = [[t.numpy() for t in inputs(kernel, seed)] for seed in range(1, SETS + 1)]
    with Contest(ring, threads=crew.threads, folder=folder, torch=True, crew=crew, slot=kernel.name) as contest:
        contest.probe = speed
        contest.enter("dlc", model=str(path), given_outputs=kernel.given)
        for peer in filter(None, options.against.split(",")):
            spec = str(model) if peer in ("onnxruntime", "openvino") else f"benchmarks.kernel_models:{kernel.name}"
            contest.enter(peer, model=spec, given_outputs=kernel.given)
        contest.prepare(options.patience)
        judge = contest.check(sets=1)
        rows = contest.run(options.rounds, block_s=options.block, most=2000, warm_s=0.01, tries=2)
    best = best_peer(rows, exclude=())
    paired: dict[str, Any] = best["paired"] if best else {}
    return {
        "name": kernel.name,
        "flops": kernel.flops,
        "bytes": kernel.bytes,
        "reference": judge,
        "rows": rows,
        "best_peer": best and best["name"],
        "ratio": paired.get("ratio"),
        "interval": [paired.get("low"), paired.get("high")],
        "noisy": paired.get("noisy"),
    }


def add_share(found: dict[str, Any], limit: str, limits: dict[str, float]) -> None:
    """Give a kernel's result its rates and its share of the limit."""
    median = found["rows"][0].get("median")
    if not median:
        return
    found["gbytes"] = found["bytes"] / median / 1e9
    if found["flops"]:
        found["gflops"] = found["flops"] / median / 1e9
    rate = found.get("gflops") if limit == "fma" else found["gbytes"]
    if limit in limits and rate:
        found["share"] = rate / limits[limit]


def keep(path: Path, result: dict[str, Any]) -> None:
    """Put kernels' results among the others of their family and revision, and write the page anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    order = {family.name: k for k, family in enumerate(families())}
    results = {(r["threads"], r["family"]): r for r in json.loads(path.read_text())} if path.exists() else {}
    key = result["threads"], result["family"]
    before = results.get(key, {})
    if before.get("revision") == result["revision"]:
        new = {kernel["name"]: kernel for kernel in result["kernels"]}
        kept = [new.pop(kernel["name"], kernel) for kernel in before["kernels"]]
        result = {**result, "kernels": [*kept, *new.values()]}
    results[key] = result
    rows = sorted((r for r in results.values() if r["family"] in order), key=lambda r: (-r["threads"], order[r["family"]]))
    path.write_text(json.dumps(rows, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(rows))
    draw(path.parent)


if __name__ == "__main__":
    sys.exit(main())
