"""How fast memory is just now: a plain read and a plain copy of more than the caches hold, by all threads.

The copy stores past the caches, as a kernel with a large result does; ordinary stores would first read what they
overwrite. Bytes of a copy are those read and those written.
"""

from __future__ import annotations

import ctypes
import mmap
import statistics
import time

from dlc.codegen.build import build_pool
from dlc.codegen.native import compile_mlir
from dlc.codegen.target import Target, host_target
from dlc.runtime.elf import load_objects
from dlc.runtime.pool import get_pool
from dlc.speed_probe import KERNEL, PARALLEL_FOR

BYTES = 128 << 20
"""Of each of the two buffers."""

PIECES = 64
"""Tasks of one sweep."""

UNROLL = 8


class MemoryProbe:
    """Measures the read and the copy rate of `threads` threads, GB/s.

    Attributes:
        threads: threads that work at the same time.
        reads, copies: every rate that was measured.
    """

    def __init__(self, threads: int, target: Target | None = None) -> None:
        target = target or host_target()
        self.threads = threads
        self._image = load_objects({"memory": compile_mlir(memory_mlir(target.lanes), target).object})
        self._pool = get_pool(build_pool(target, None), threads)
        self._pool.start()
        self._memory = mmap.mmap(-1, 2 * BYTES + mmap.PAGESIZE)  # page-aligned, and touched before it is timed
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self.reads: list[float] = []
        self.copies: list[float] = []
        ctypes.memset(self._address, 1, 2 * BYTES + mmap.PAGESIZE)

    def look(self, sweeps: int = 5) -> tuple[float, float]:
        """The read and the copy rate now, GB/s: the median of some sweeps each, after one that is not measured."""
        read = BYTES / self._median("read", sweeps) / 1e9
        copy = 2 * BYTES / self._median("copy", sweeps) / 1e9
        self.reads.append(read)
        self.copies.append(copy)
        return read, copy

    def _median(self, kernel: str, sweeps: int) -> float:
        times = []
        for _ in range(1 + sweeps):
            began = time.perf_counter()
            self._sweep(kernel)
            times.append(time.perf_counter() - began)
        return statistics.median(times[1:])

    def _sweep(self, kernel: str) -> None:
        if self.threads == 1:
            KERNEL(self._image[kernel])(self._address, 0, PIECES, 0)
        else:
            run = PARALLEL_FOR(self._pool.parallel_for)
            run(self._pool.state, self._image[kernel], self._address, PIECES, 1)


def memory_mlir(lanes: int) -> str:
    """Two kernels of ABI v1 over a buffer of 2 BYTES and a page: `read` sums its first half, `copy` moves it to the second."""
    return _kernel("read", lanes) + _kernel("copy", lanes)


def _kernel(name: str, lanes: int) -> str:
    vector, step = f"vector<{lanes}xf32>", 4 * lanes
    sums = [f"%a{i}" for i in range(UNROLL)] if name == "read" else []
    carried = "".join(f", {s}: {vector}" for s in sums)
    kinds = "".join(f", {vector}" for _ in sums)
    zeros = "".join(", %zero" for _ in sums)
    after = "".join(f", %n{i}" for i in range(len(sums)))
    body = "\n".join(_body(name, i, vector, step) for i in range(UNROLL))
    # the sum is stored behind both halves, so that the reads are not dead
    total = "\n".join(
        f"  %s{i} = llvm.fadd {'%n0' if i == 1 else f'%s{i - 1}'}, %n{i} : {vector}" for i in range(1, len(sums))
    )
    store = f"  llvm.store %s{UNROLL - 1}, %end {{alignment = 4 : i64}} : {vector}, !llvm.ptr" if sums else ""
    piece = BYTES // PIECES
    return f"""
llvm.func @{name}(%data: !llvm.ptr, %lo: i64, %hi: i64, %thread: i64) {{
  %piece = llvm.mlir.constant({piece} : i64) : i64
  %half = llvm.mlir.constant({BYTES} : i64) : i64
  %past = llvm.mlir.constant({2 * BYTES} : i64) : i64
  %line = llvm.mlir.constant(64 : i64) : i64
  %step = llvm.mlir.constant({step * UNROLL} : i64) : i64
  %zero = llvm.mlir.constant(dense<0.0> : {vector}) : {vector}
  %first = llvm.mul %lo, %piece : i64
  %last = llvm.mul %hi, %piece : i64
  %spot = llvm.mul %thread, %line : i64
  %behind = llvm.add %past, %spot : i64
  %end = llvm.getelementptr %data[%behind] : (!llvm.ptr, i64) -> !llvm.ptr, i8
  llvm.br ^step(%first{zeros} : i64{kinds})
^step(%at: i64{carried}):
{body}
  %next = llvm.add %at, %step : i64
  %more = llvm.icmp "slt" %next, %last : i64
  llvm.cond_br %more, ^step(%next{after} : i64{kinds}), ^out
^out:
{total}
{store}
  llvm.return
}}
"""


def _body(name: str, i: int, vector: str, step: int) -> str:
    lines = [
        f"  %k{i} = llvm.mlir.constant({i * step} : i64) : i64",
        f"  %at{i} = llvm.add %at, %k{i} : i64",
        f"  %p{i} = llvm.getelementptr %data[%at{i}] : (!llvm.ptr, i64) -> !llvm.ptr, i8",
        f"  %v{i} = llvm.load %p{i} {{alignment = {step} : i64}} : !llvm.ptr -> {vector}",
    ]
    if name == "read":
        return "\n".join([*lines, f"  %n{i} = llvm.fadd %a{i}, %v{i} : {vector}"])
    return "\n".join(
        [
            *lines,
            f"  %to{i} = llvm.add %at{i}, %half : i64",
            f"  %q{i} = llvm.getelementptr %data[%to{i}] : (!llvm.ptr, i64) -> !llvm.ptr, i8",
            f"  llvm.store %v{i}, %q{i} {{alignment = {step} : i64, nontemporal}} : {vector}, !llvm.ptr",
        ]
    )


__all__ = ["MemoryProbe", "memory_mlir"]
