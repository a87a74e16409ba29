"""Whole models against eager PyTorch: compiled from PyTorch and from ONNX, saved, run in a process with NumPy only.

    python -m tests.models.acceptance [--route torch|onnx] [--out benchmarks/results/models.json] [NAME ...]

One artifact serves batch 1 and 3 and, where the length is symbolic, two lengths. The error is relative to the largest output;
arg max is taken along the last dimension and compared where eager's two best differ by more than the tolerance.
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
import torch

import dlc
from tests.ledger import Ledger, source_digest
from tests.models.entry import BATCHES, Entry
from tests.models.zoo import ZOO, export, export_onnx

TOLERANCE = 1e-4
ROUTES = ("torch", "onnx")


def check(entry: Entry, route: str) -> dict[str, Any]:
    """Compile, save, run apart, compare: one row of the result file."""
    model = entry.make()
    with tempfile.TemporaryDirectory(prefix="dlc-model-") as folder:
        work = Path(folder)
        start = time.perf_counter()
        if route == "torch":
            source: Any = export(entry, model)
        else:
            source = work / "model.onnx"
            export_onnx(entry, source, model)
        exported = time.perf_counter() - start
        executable = dlc.compile(source, cache=False)
        report = executable.compile_report
        executable.save(work / "model.dlc")
        del executable, source
        cases = {f"b{b}l{n}": entry.inputs(b, n, 7 * b + n) for b in BATCHES for n in entry.lengths}
        outputs = run_apart(work, {k: [t.numpy() for t in v] for k, v in cases.items()})
        rows = []
        for case, inputs in cases.items():
            with torch.no_grad():
                eager = model(*inputs)
            expected = [eager] if isinstance(eager, torch.Tensor) else list(eager)
            rows.append(compare(case, [e.numpy() for e in expected], outputs))
    return {
        "model": entry.name,
        "route": route,
        "cases": rows,
        "max_error": max(r["error"] for r in rows),
        "argmax_equal": all(r["argmax_equal"] for r in rows),
        "ok": all(r["error"] < TOLERANCE and r["argmax_equal"] for r in rows),
        "export_s": round(exported, 2),
        "compile_s": round(report.own_seconds, 2),
        "first_result_s": round(float(outputs["first_result_s"]), 3),
        "kernels": report.distinct,
        "launches": report.launches,
    }


def run_apart(work: Path, cases: dict[str, list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Run the saved artifact on all cases in a process of its own."""
    np.savez(work / "in.npz", **{f"{c}.{n}": a for c, arrays in cases.items() for n, a in enumerate(arrays)})
    script = Path(__file__).with_name("artifact_run.py")
    command = [sys.executable, str(script), str(work / "model.dlc"), str(work / "in.npz"), str(work / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ})
    if done.returncode != 0:
        raise AssertionError(f"the artifact failed apart:\n{done.stderr[-2000:]}")
    return dict(np.load(work / "out.npz"))


def compare(case: str, expected: list[np.ndarray], outputs: dict[str, np.ndarray]) -> dict[str, Any]:
    """Largest error relative to the largest output, and whether the arg max agrees where it is decided."""
    error, equal = 0.0, True
    for n, reference in enumerate(expected):
        got = outputs[f"{case}.{n}"]
        assert got.shape == reference.shape, (case, n, got.shape, reference.shape)
        scale = float(np.abs(reference).max()) or 1.0
        error = max(error, float(np.abs(got - reference).max()) / scale)
        best = np.sort(reference, axis=-1)
        decided = best[..., -1] - best[..., -2] > 2 * TOLERANCE * scale if reference.shape[-1] > 1 else np.True_
        equal = equal and bool(np.all((got.argmax(-1) == reference.argmax(-1)) | ~decided))
    return {"case": case, "error": error, "argmax_equal": equal}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="models (all)")
    parser.add_argument("--route", choices=ROUTES, help="only this route")
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--again", action="store_true", help="run what the ledger already has")
    options = parser.parse_args(argv)
    torch.set_num_threads(2)
    ledger = Ledger("models")
    rows = []
    for name in options.names or ZOO:
        for route in [options.route] if options.route else ROUTES:
            key = ledger.key(f"{name}/{route}", digest=source_digest(), packages=("torch", "onnx"))
            row = None if options.again else ledger.get(key)
            if row is None:
                try:
                    row = check(ZOO[name], route)
                except Exception as error:
                    row = {"model": name, "route": route, "ok": False, "failed": f"{type(error).__name__}: {error}"[:600]}
                ledger.put(key, row)
            rows.append(row)
            print(json.dumps({k: v for k, v in row.items() if k != "cases"}), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if all(r["ok"] for r in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
