"""Whole models beside their peers: `python -m benchmarks.run`, results to benchmarks/results/latency.{json,md}.

    python -m benchmarks.run --models bert_base,resnet50-8 --against onnxruntime,openvino --rounds 5
    python -m benchmarks.run --prepare          compile and export what is kept, fill the peers' caches, no timing

For each row of `benchmarks.suite`, f32: the latency of dlc (one saved .dlc per model, with symbolic batch and, where the
model has one, length) beside its peers, all from torch tensors to torch tensors, on inputs from a ring, in turns
(`dlc.contest`); each contender's error before it is timed; the ratio to the best peer, paired by round, with an interval;
the most memory each process had resident; dlc's own time to compile, cold and from the cache, beside torch's export; the
time from the start of a new process to its first result; and which kernels of dlc the time goes to. A row's results
replace its earlier ones, the others stay.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.artifacts import default_work
from benchmarks.markdown import page
from benchmarks.measure import PEERS, Settings, measure, prepare
from benchmarks.results import keep
from benchmarks.suite import SUITE, Row, chosen

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: list[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    rows = chosen(options.models.split(",")) if options.models else SUITE
    out, work = options.out.resolve(), options.work.resolve()
    os.chdir(ROOT)  # contenders import the zoo from here
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(work / "inductor"))
    peers = tuple(p for p in options.against.split(",") if p)
    settings = Settings(peers, options.threads, options.rounds, options.block, options.patience, work)
    failed = 0
    for row in rows:
        began = time.perf_counter()
        try:
            one(row, settings, out / "latency.json", options.prepare)
        except subprocess.CalledProcessError as error:  # the others still have their turn
            print(f"{row.name} failed: {(error.stderr or '')[-2000:]}", file=sys.stderr, flush=True)
            failed += 1
            continue
        print(f"{row.name}: {time.perf_counter() - began:.0f} s", flush=True)
    return 1 if failed else 0


def one(row: Row, settings: Settings, results: Path, only_prepare: bool) -> None:
    """Prepare a row, or measure it and keep what was found."""
    if only_prepare:
        prepare(row, settings)
        return
    result = measure(row, settings)
    keep(results, result)
    print(page([result]), flush=True)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", default="", metavar="A,B", help="rows of the suite, or models for all their rows (all)")
    made.add_argument("--against", default=",".join(PEERS), metavar="A,B", help="peers")
    made.add_argument("--threads", type=counts, default=(2, 1), metavar="N,N", help="of all contenders")
    made.add_argument("--rounds", type=int, default=5, help="turns of each contender")
    made.add_argument("--block", type=float, default=0.4, metavar="S", help="seconds of each turn")
    made.add_argument("--patience", type=float, default=240.0, metavar="S", help="for a peer's own compilation")
    made.add_argument("--work", type=Path, default=default_work(), help="folder of exported and compiled models, kept")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    made.add_argument("--prepare", action="store_true", help="only prepare what is kept")
    return made


def counts(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
