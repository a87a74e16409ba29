"""The per-kernel profile of a model: time, arithmetic rate, memory rate and share; as table, JSON and trace."""

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import os
import statistics
import threading
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dlc.runtime.control import Region, Visits
from dlc.runtime.elf import PAGE, libc
from dlc.runtime.errors import NativeMemory
from dlc.runtime.expr import compile_expressions

if TYPE_CHECKING:
    from dlc.runtime.executable import Executable


@dataclass(frozen=True, slots=True)
class Row:
    """One kernel call.

    Attributes:
        start_ns: median begin, from the begin of the run.
        time_ns: median duration.
        share: of the sum over all calls, 0 to 1.
        gflops: arithmetic rate, 0 if the kernel does none.
        gbytes: memory rate in GB/s by the least traffic the kernel needs.
    """

    index: int
    name: str
    loc: str
    start_ns: float
    time_ns: float
    share: float
    flops: int
    bytes: int
    gflops: float
    gbytes: float


@dataclass(frozen=True, slots=True)
class Profile:
    """What one model spends its time on.

    Attributes:
        rows: one per kernel call that ran, in the order of the manifest.
        total_ns: median time of the whole call, Python included.
        kernels_ns: sum over rows.
        regions, visits: the control graph, and how often and how long each of its regions ran, per run; empty where there
            is no control.
    """

    rows: tuple[Row, ...]
    total_ns: float
    threads: int
    repeat: int
    regions: tuple[Region, ...] = ()
    visits: tuple[Visits, ...] = ()

    @property
    def kernels_ns(self) -> float:
        return sum(row.time_ns for row in self.rows)

    def __str__(self) -> str:
        lines = [f"{'share':>6} {'us':>10} {'GFLOP/s':>9} {'GB/s':>7}  kernel"]
        for row in sorted(self.rows, key=lambda row: -row.time_ns):
            where = f"  {row.loc}" if row.loc else ""
            lines.append(
                f"{row.share:6.1%} {row.time_ns / 1e3:10.1f} {row.gflops:9.1f} {row.gbytes:7.1f}  {row.name}{where}"
            )
        rest = self.total_ns - self.kernels_ns
        lines.append(
            f"total {self.total_ns / 1e3:.1f} us, kernels {self.kernels_ns / 1e3:.1f} us, "
            f"rest {rest / 1e3:.1f} us; {self.threads} threads, median of {self.repeat} runs"
        )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The profile as plain data."""
        return {
            "total_ns": self.total_ns,
            "kernels_ns": self.kernels_ns,
            "threads": self.threads,
            "repeat": self.repeat,
            "rows": [asdict(row) for row in self.rows],
            "regions": [{**r.to_json(), **asdict(v)} for r, v in zip(self.regions, self.visits)],
        }

    def to_trace(self) -> dict[str, Any]:
        """The profile in Chrome's trace format, for chrome://tracing and ui.perfetto.dev."""
        process, thread = os.getpid(), threading.get_native_id()
        events: list[dict[str, Any]] = [
            {"name": "process_name", "ph": "M", "pid": process, "args": {"name": "dlc"}},
            {"name": "call", "ph": "X", "pid": process, "tid": thread, "ts": 0, "dur": self.total_ns / 1e3},
        ]
        for row in self.rows:
            events.append(
                {
                    "name": row.name,
                    "cat": "kernel",
                    "ph": "X",
                    "pid": process,
                    "tid": thread,
                    "ts": row.start_ns / 1e3,
                    "dur": row.time_ns / 1e3,
                    "args": {"loc": row.loc, "GFLOP/s": row.gflops, "GB/s": row.gbytes, "share": row.share},
                }
            )
        return {"traceEvents": events, "displayTimeUnit": "ns"}

    def write_trace(self, path: str | os.PathLike[str]) -> None:
        """Write `to_trace()` to a file."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.to_trace(), file)


def measure(executable: Executable, args: tuple[Any, ...], kwargs: dict[str, Any], repeat: int, warmup: int) -> Profile:
    """Run with the profile words on; see `Executable.profile`."""
    kernels = executable._spec.kernels
    regions = executable.regions if len(executable.regions) > 1 else ()
    words = (ctypes.c_int64 * max(2 * len(kernels) + len(regions), 1))()
    scale = 1.0 if executable._spec.clock == "ns" else ns_per_tick()
    symbols: list[int] = []
    totals: list[float] = []
    starts: list[list[float]] = [[] for _ in kernels]
    spans: list[list[float]] = [[] for _ in kernels]
    ticks = [0] * len(regions)
    before = executable.visits
    for run in range(warmup + max(repeat, 1)):
        ctypes.memset(words, 0, ctypes.sizeof(words))
        begin = time.perf_counter_ns()
        origin = begin if executable._spec.clock == "ns" else read_ticks()
        executable._run(args, kwargs, None, ctypes.addressof(words), symbols)
        total = time.perf_counter_ns() - begin
        if run < warmup:
            before = executable.visits
            continue
        ticks = [all_ + words[2 * len(kernels) + n] for n, all_ in enumerate(ticks)]
        totals.append(float(total))
        for index in range(len(kernels)):
            start, end = words[2 * index], words[2 * index + 1]
            if start and end >= start:
                starts[index].append(max((start - origin) * scale, 0.0))
                spans[index].append((end - start) * scale)
    cost = compile_expressions([e for k in kernels for e in (k.flops, k.bytes)], executable._spec.symbol_names)(
        *symbols
    )
    medians = [statistics.median(s) if s else 0.0 for s in spans]
    whole = sum(medians) or 1.0
    rows = []
    for index, kernel in enumerate(kernels):
        if not spans[index]:
            continue  # on a branch that was not taken
        flops, moved = cost[2 * index], cost[2 * index + 1]
        span = max(medians[index], 1e-9)
        rows.append(
            Row(
                index=index,
                name=kernel.name,
                loc=kernel.loc,
                start_ns=statistics.median(starts[index]),
                time_ns=medians[index],
                share=medians[index] / whole,
                flops=flops,
                bytes=moved,
                gflops=flops / span,
                gbytes=moved / span,
            )
        )
    runs = len(totals)
    visits = tuple(
        Visits((after - first) / runs, time * scale / runs)
        for after, first, time in zip(executable.visits, before, ticks)
    )
    return Profile(tuple(rows), statistics.median(totals), executable.threads, max(repeat, 1), regions, visits)


@functools.cache
def _tick_function() -> tuple[Any, mmap.mmap]:
    """`rdtsc` as a function: the clock that compiled code reads, at 10 machine instructions' distance."""
    memory = mmap.mmap(-1, PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:10] = bytes.fromhex("0f31 48c1e220 4809d0 c3".replace(" ", ""))
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if libc().mprotect(address, PAGE, mmap.PROT_READ | mmap.PROT_EXEC):
        raise NativeMemory(what="executable memory", reason="mprotect failed")
    return ctypes.CFUNCTYPE(ctypes.c_uint64)(address), memory


def read_ticks() -> int:
    """The time stamp counter."""
    return int(_tick_function()[0]())


@functools.cache
def ns_per_tick() -> float:
    """Nanoseconds per tick of the time stamp counter, against the monotonic clock over 20 ms."""
    read_ticks()
    before_ns, before = time.perf_counter_ns(), read_ticks()
    time.sleep(0.02)
    after_ns, after = time.perf_counter_ns(), read_ticks()
    return (after_ns - before_ns) / max(after - before, 1)
