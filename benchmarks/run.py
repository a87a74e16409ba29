"""Whole models beside their peers: `python -m benchmarks.run`, results to benchmarks/results/latency.{json,md}.

    python -m benchmarks.run --models bert_base,minilm --against onnxruntime,openvino --rounds 5
    python -m benchmarks.run --prepare          export the ONNX files for the peers and fill Inductor's cache, no timing

For each model of tests/models, f32, batch 1: the latency of dlc (a saved .dlc with symbolic batch and, where the model
has one, length) beside onnxruntime, OpenVINO, Inductor and eager PyTorch, all from torch tensors to torch tensors, in
turns (`dlc.contest`); each contender's error against eager, before it is timed; dlc's own time to compile, cold and from
the cache, beside torch's export; the time from the start of a new process to its first result; and which kernels of dlc
the time goes to. A model's results replace its earlier ones, the others stay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.markdown import page
from dlc.contest import Contest, machine, ratio_to_best

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
SUITE = ("bert_base", "minilm", "resnet50", "mobilenet_v2", "gpt2", "lstm_tagger")
PEERS = ("onnxruntime", "openvino", "inductor", "eager")
RING = 3
"""Sets of inputs, used in turn."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(SUITE), metavar="A,B", help="names of tests/models/zoo.py")
    parser.add_argument("--against", default=",".join(PEERS), metavar="A,B", help="peers")
    parser.add_argument("--length", type=int, default=128, help="tokens, where the model has a symbolic length")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--threads", type=counts, default=(2, 1), metavar="N,N", help="of all; Inductor takes part with the first only"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    parser.add_argument("--block", type=float, default=0.4, metavar="S", help="seconds of each turn")
    parser.add_argument("--patience", type=float, default=240.0, metavar="S", help="for a peer's own compilation")
    parser.add_argument("--work", type=Path, default=default_work(), help="folder of exported ONNX files, kept")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--prepare", action="store_true", help="only prepare what the peers need")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)  # contenders import the zoo from here
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(options.work / "inductor"))
    path = options.out / "latency.json"
    failed = 0
    for name in options.models.split(","):
        began = time.perf_counter()
        if options.prepare:
            prepare(name, options)
        else:
            try:
                result = benchmark(name, options)
            except subprocess.CalledProcessError as error:  # the others still have their turn
                print(f"{name} failed: {(error.stderr or '')[-2000:]}", file=sys.stderr, flush=True)
                failed += 1
                continue
            keep(path, result)
            print(page([result]), flush=True)
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    return 1 if failed else 0


def counts(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def default_work() -> Path:
    """A folder outside the tree that stays."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlc-benchmarks"


def keep(path: Path, result: dict[str, Any]) -> None:
    """Put a model's result among the others, and write the page anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    results = {r["model"]: r for r in json.loads(path.read_text())} if path.exists() else {}
    results[result["model"]] = result
    order = {name: k for k, name in enumerate(SUITE)}
    rows = sorted(results.values(), key=lambda r: (order.get(r["model"], len(order)), r["model"]))
    path.write_text(json.dumps(rows, indent=1) + "\n")
    path.with_suffix(".md").write_text(page(rows))


def benchmark(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """All measurements of one model."""
    began_load = os.getloadavg()[0]
    ring = inputs_of(name, options)
    with tempfile.TemporaryDirectory(prefix="dlc-bench-") as temporary:
        folder = Path(temporary)
        artifact = folder / "model.dlc"
        cold = compile_once(name, folder, artifact)
        cached = compile_once(name, folder, None)
        runs = []
        for threads in options.threads:
            print(f"{name}, {threads} threads", file=sys.stderr, flush=True)
            runs.append(time_all(name, ring, artifact, threads, folder, options))
        first = [first_result(artifact, folder / "ring.npz") for _ in range(3)]
    return {
        "model": name,
        "inputs": [f"{a.dtype}{list(a.shape)}" for a in ring[0]],
        "runs": runs,
        "compile": {"cold": cold, "cached": cached},
        "first_result_s": first,
        "machine": machine(),
        "revision": revision(),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "load": [began_load, os.getloadavg()[0]],
        "command": "python -m benchmarks.run --models " + name,
    }


def time_all(
    name: str, ring: list[list[np.ndarray]], artifact: Path, threads: int, folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """The contest with one number of threads."""
    model = f"benchmarks.zoo:{name}"
    peers = [p for p in options.against.split(",") if p]
    with Contest(ring, threads=threads, folder=folder, torch=True, say=say) as contest:
        contest.enter("dlc", model=str(artifact))
        for peer in peers:
            if peer in ("onnxruntime", "openvino"):
                path, why = onnx_file(name, options.work)
                contest.enter(peer, model=str(path), absent=why)
            else:
                if peer == "inductor" and threads != options.threads[0]:
                    continue  # its code is for one number of threads, and generating it takes minutes
                contest.enter(peer, model=model)
                if peer == "inductor":
                    contest.enter("inductor+freezing", model=model)
        contest.prepare(options.patience)
        judge = contest.check()
        rows = contest.run(options.rounds, block_s=options.block)
        profile = contest.profile() if threads > 1 else None
        probe = contest.probe
    best = ratio_to_best([r for r in rows if r["name"] != "eager"] if len(peers) > 1 else rows)
    return {
        "threads": threads,
        "reference": judge,
        "rows": rows,
        "ratio_to_best": best and best[0],
        "best_peer": best and best[1],
        "rounds": options.rounds,
        "probe": probe and {"best_gflops": probe.best, "slow_looks": probe.slow},
        "profile": profile and kernels_of(profile),
    }


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


def inputs_of(name: str, options: argparse.Namespace) -> list[list[np.ndarray]]:
    from tests.models.zoo import ZOO

    entry = ZOO[name]
    length = options.length if entry.symbolic_length else entry.lengths[0]
    return [[t.numpy() for t in entry.inputs(options.batch, length, seed)] for seed in range(1, RING + 1)]


def onnx_file(name: str, work: Path) -> tuple[Path, str]:
    """The model as ONNX with symbolic batch and length, exported once; with why not, if torch cannot export it."""
    path = work / name / "model.onnx"
    failed = path.with_suffix(".failed")
    if not path.exists() and not failed.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        code = (
            "import sys; from pathlib import Path; from tests.models.zoo import ZOO, export_onnx\n"
            f"export_onnx(ZOO[{name!r}], Path({str(path)!r}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        if done.returncode:
            path.unlink(missing_ok=True)
            failed.write_text(f"torch.onnx.export: {done.stderr.strip().splitlines()[-1][:300]}")
    return path, failed.read_text() if failed.exists() else ""


def prepare(name: str, options: argparse.Namespace) -> None:
    """What the peers need and what does not depend on dlc."""
    ring = inputs_of(name, options)
    for peer in ("onnxruntime", "openvino"):
        if peer in options.against:
            onnx_file(name, options.work)
    if "inductor" not in options.against:
        return
    with tempfile.TemporaryDirectory() as temporary:
        with Contest(ring, threads=options.threads[0], folder=Path(temporary), torch=True, say=say) as contest:
            for peer in ("inductor", "inductor+freezing"):
                contest.enter(peer, model=f"benchmarks.zoo:{name}")
            contest.prepare(2 * options.patience)
            for entrant in contest.entrants.values():
                print(f"{name}, {entrant.name}: {entrant.absent or entrant.facts['prepare_s']}", flush=True)


def compile_once(name: str, folder: Path, save: Path | None) -> dict[str, Any]:
    """A compilation in a process of its own; cold the first time, from the cache the second."""
    command = [sys.executable, "-m", "benchmarks.compile_once", name, *(["--save", str(save)] if save else [])]
    environment = {**os.environ, "DLC_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def first_result(artifact: Path, inputs: Path) -> float:
    """Seconds from before a process starts to after its first inference."""
    script = str(Path(__file__).with_name("first_result.py"))
    command = [sys.executable, script, str(artifact), str(inputs), repr(time.time())]
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


if __name__ == "__main__":
    sys.exit(main())
