"""Timing contenders against each other in one run: turn by turn, with pauses, each block probed for a slow machine.

A virtual machine may drop to half speed for tenths of a second, and every library's idle threads spin for a while and
steal the others' cores. So contenders take turns, with a pause before each block; before and after a block a short
matrix product tells the speed of the machine at that time, and blocks between slow probes are measured again.
"""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PAUSE_S = 0.08
PACKAGES = ("dlc", "numpy", "torch", "onnx", "onnxruntime", "openvino", "transformers")


@dataclass
class Times:
    """Seconds per call of one contender, those of slow blocks apart."""

    seconds: list[float] = field(default_factory=list)
    slow: list[float] = field(default_factory=list)

    @property
    def kept(self) -> list[float]:
        return self.seconds or self.slow

    def to_json(self) -> dict[str, float | int]:
        return {
            "median_ms": statistics.median(self.kept) * 1e3,
            "least_ms": min(self.kept) * 1e3,
            "calls": len(self.seconds),
            "calls_while_slow": len(self.slow),
        }


class Probe:
    """How fast the machine is just now: GFLOP/s of a small f32 product of NumPy."""

    def __init__(self, size: int = 384) -> None:
        generator = np.random.default_rng(0)
        self.a = generator.standard_normal((size, size), dtype=np.float32)
        self.flops = 2 * size**3
        self.best = max(self() for _ in range(20))

    def __call__(self) -> float:
        began = time.perf_counter()
        self.a @ self.a
        return self.flops / (time.perf_counter() - began) / 1e9

    def fast(self) -> bool:
        now = max(self() for _ in range(3))
        self.best = max(self.best, now)
        return now > 0.7 * self.best


def compete(
    contenders: Mapping[str, Callable[[], Any]], *, rounds: int = 8, block_s: float = 0.5, most: int = 200
) -> dict[str, Times]:
    """Seconds of each contender, in `rounds` blocks of at least `block_s` (at most `most` calls) each."""
    probe = Probe()
    times = {name: Times() for name in contenders}
    for call in contenders.values():
        call()
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            time.sleep(PAUSE_S)
            fast = probe.fast()
            call()  # brings its threads and caches back
            block, end = [], time.perf_counter() + block_s
            while time.perf_counter() < end and len(block) < most or not block:
                began = time.perf_counter()
                call()
                block.append(time.perf_counter() - began)
            fast = fast and probe.fast()
            (times[name].seconds if fast else times[name].slow).extend(block)
    return times


def machine() -> dict[str, Any]:
    """What the numbers hold for."""
    model = "unknown"
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    load = os.getloadavg()[0]
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "python": platform.python_version(), "load": load} | {
        "versions": versions
    }
