"""What this machine can do: CPU features, and how many threads are ours to use."""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from dlc.runtime.cpuid import known_features, reported_features
from dlc.runtime.errors import BadThreadCount, MissingCpuFeatures, UnsupportedPlatform

MAX_THREADS = 1024

# LLVM's name of a feature -> the kernel's, where taking out `_`, `-` and `.` does not already make them equal
_ALIASES = {"sse3": "pni", "lzcnt": "abm", "sahf": "lahflm", "cmpxchg16b": "cx16", "prfchw": "3dnowprefetch"}
_ALWAYS = frozenset({"64bit", "x87", "fxsr", "crc32", "baseline", "x8664"})
"""Features of every x86-64 CPU, or that follow from others (crc32 from sse4.2), under LLVM's names."""


@functools.cache
def cpu_features() -> frozenset[str]:
    """Feature names of this CPU, normalised (see `normalise`): what the kernel lists and CPUID does not deny."""
    reported = reported_features() if platform.machine() in ("x86_64", "AMD64") else None
    listed = _listed_features()
    if reported is None:
        return listed
    return (listed - known_features()) | (reported & listed if listed else reported)


def _listed_features() -> frozenset[str]:
    """The kernel's list; none where it cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(normalise(flag) for flag in value.split())
    return frozenset()


def normalise(feature: str) -> str:
    """One spelling for LLVM's (`avx512vnni`, `sse4.1`) and the kernel's (`avx512_vnni`, `sse4_1`) names."""
    plain = feature.lstrip("+").replace("_", "").replace("-", "").replace(".", "").lower()
    return _ALIASES.get(plain, plain)


def missing_features(features: Iterable[str]) -> tuple[str, ...]:
    """Those of `features` that this CPU lacks, as they were given."""
    have = cpu_features()
    return tuple(f for f in features if normalise(f) not in have and normalise(f) not in _ALWAYS)


def require(isa: str, features: Iterable[str]) -> None:
    """Raise unless this machine can run code for `isa` with `features`."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in ("x86_64", "AMD64"):
        raise UnsupportedPlatform(found=f"{sys.platform} on {machine}")
    missing = missing_features(features)
    if missing:
        suggestion = "avx2" if normalise("avx2") in cpu_features() else "baseline"
        raise MissingCpuFeatures(missing=", ".join(missing), suggestion=suggestion)


def default_threads() -> int:
    """DLC_NUM_THREADS, else OMP_NUM_THREADS, else the CPUs this process may use (affinity and cgroup quota)."""
    for variable in ("DLC_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").strip()
        if text:
            # OpenMP allows a list, one number per nesting level: the first is the outermost
            return check_threads(text.split(",")[0].strip(), f"the environment variable {variable}")
    return available_cpus()


def check_threads(value: object, setting: str = "threads") -> int:
    """`value` as a number of threads, or `BadThreadCount`."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 6:
        value = int(value)
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 1 <= value.__index__() <= MAX_THREADS:
        raise BadThreadCount(setting=setting, found=value)
    count: int = value.__index__()
    return count


def available_cpus() -> int:
    """CPUs by affinity, less where a cgroup gives a smaller share."""
    try:
        count = len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        count = os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(count if quota is None else min(count, quota), MAX_THREADS))


def _cgroup_quota() -> int | None:
    """CPU shares granted by cgroup v2 or v1, rounded up; None if unlimited or unknown."""
    limits = [*_quota_v2(), *_quota_v1()]
    return min(limits) if limits else None


def _quota_v2() -> Iterable[int]:
    root = Path("/sys/fs/cgroup")
    try:
        entry = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    folder = root / entry[3:].lstrip("/")
    for place in (folder, *folder.parents):
        if root not in (place, *place.parents):
            break
        try:
            quota, period = (place / "cpu.max").read_text().split()[:2]
            if quota != "max" and int(period) > 0 and int(quota) > 0:
                yield -(-int(quota) // int(period))
        except (OSError, ValueError):
            continue


def _quota_v1() -> Iterable[int]:
    folder = Path("/sys/fs/cgroup/cpu")
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return
    if quota > 0 and period > 0:
        yield -(-quota // period)
