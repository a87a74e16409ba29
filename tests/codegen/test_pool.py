"""The native pool: every task runs exactly once, from several callers, with sleeping workers, and stops."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen import pool
from dlc.codegen.native import compile_mlir
from dlc.codegen.target import BASELINE

sys.path.insert(0, str(Path(__file__).parent))
from native_loader import load

# count[i] += 1 and owner[i] = thread for each task, after `work` dependent additions per task
KERNEL = """
llvm.func @count(%args: !llvm.ptr, %lo: i64, %hi: i64, %thread: i64) {
  %c1 = arith.constant 1 : i64
  %p = llvm.load %args : !llvm.ptr -> !llvm.ptr
  scf.for %i = %lo to %hi step %c1 : i64 {
    %a = llvm.getelementptr %p[%i] : (!llvm.ptr, i64) -> !llvm.ptr, i64
    %old = llvm.atomicrmw add %a, %c1 monotonic : !llvm.ptr, i64
  }
  llvm.return
}
llvm.func @nothing(%args: !llvm.ptr, %lo: i64, %hi: i64, %thread: i64) { llvm.return }
llvm.func @delay(%args: !llvm.ptr, %lo: i64, %hi: i64, %thread: i64) {
  %c0 = arith.constant 0 : i64
  %c1 = arith.constant 1 : i64
  %polls = arith.constant 100 : i64
  scf.for %i = %lo to %hi step %c1 : i64 {
    scf.for %j = %c0 to %polls step %c1 : i64 {
      llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()
    }
  }
  llvm.return
}
llvm.func @repeat(%f: !llvm.ptr, %s: !llvm.ptr, %k: !llvm.ptr, %args: !llvm.ptr, %tasks: i64, %grain: i64, %n: i64) {
  %c0 = arith.constant 0 : i64
  %c1 = arith.constant 1 : i64
  scf.for %i = %c0 to %n step %c1 : i64 {
    llvm.call %f(%s, %k, %args, %tasks, %grain) : !llvm.ptr, (!llvm.ptr, !llvm.ptr, !llvm.ptr, i64, i64) -> ()
  }
  llvm.return
}
"""
ptr, i64 = ctypes.c_void_p, ctypes.c_int64


@dataclass
class Team:
    symbols: dict[str, int]
    state: int
    keep: object

    def repeat(self, kernel: str, args: int, tasks: int, grain: int, times: int) -> None:
        run = ctypes.CFUNCTYPE(None, ptr, ptr, ptr, ptr, i64, i64, i64)(self.symbols["repeat"])
        run(self.symbols["parallel_for"], self.state, self.symbols[kernel], args, tasks, grain, times)


def start(threads: int, spin: int = pool.DEFAULT_SPIN) -> tuple[Team, list[threading.Thread]]:
    symbols = load(compile_mlir(pool.pool_mlir() + KERNEL, BASELINE).object)
    block = np.zeros(pool.state_bytes(threads) // 8 + 8, np.int64)
    address = -(-block.ctypes.data // 64) * 64
    words = (i64 * (pool.state_bytes(threads) // 8)).from_address(address)
    words[pool.THREADS // 8], words[pool.SPIN // 8] = threads, spin
    loop = ctypes.CFUNCTYPE(None, ptr, i64)(symbols["worker_loop"])
    workers = [threading.Thread(target=loop, args=(address, t), daemon=True) for t in range(1, threads)]
    for worker in workers:
        worker.start()
    return Team(symbols, address, block), workers


@pytest.fixture(params=[(1, 2000), (2, 2000), (3, 0), (5, 50)], ids=lambda p: f"{p[0]}threads-spin{p[1]}")
def team(request: pytest.FixtureRequest) -> Iterator[Team]:
    made, workers = start(*request.param)
    yield made
    ctypes.CFUNCTYPE(None, ptr)(made.symbols["pool_stop"])(made.state)
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


@pytest.mark.parametrize(("tasks", "grain"), [(0, 1), (1, 1), (7, 1), (7, 7), (8, 7), (100, 3), (1000, 1), (5, 0)])
def test_each_task_runs_once(team: Team, tasks: int, grain: int) -> None:
    counts = np.zeros(tasks + 1, np.int64)
    args = np.array([counts.ctypes.data], np.int64)
    team.repeat("count", args.ctypes.data, tasks, grain, 300)
    assert (counts[:tasks] == 300).all() and counts[tasks] == 0


def test_callers_at_once_and_sleeping_workers(team: Team) -> None:
    counts = np.zeros((3, 64), np.int64)
    args = [np.array([row.ctypes.data], np.int64) for row in counts]

    def call(i: int) -> None:
        for _ in range(5):
            team.repeat("count", args[i].ctypes.data, 64, 1 + i, 40)
            time.sleep(0.002)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert (counts == 200).all()


def test_callers_that_have_a_core_each_work_alone(team: Team) -> None:
    """With as many calls under way as threads, no job is shared: its generation stays what it was."""
    generation, callers = (ctypes.c_int32.from_address(team.state + at) for at in (pool.GENERATION, pool.CALLERS))
    threads = ctypes.c_int64.from_address(team.state + pool.THREADS).value
    counts = np.zeros(64, np.int64)
    args = np.array([counts.ctypes.data], np.int64)
    for under_way, shared in ((threads - 1, threads > 1), (threads, False), (threads + 1, False), (0, threads > 1)):
        before, callers.value = generation.value, under_way
        team.repeat("count", args.ctypes.data, 64, 1, 10)
        assert generation.value - before == 10 * shared, (under_way, threads)
    assert (counts == 40).all()


def test_a_chunk_number_fits_32_bits() -> None:
    team, workers = start(2)
    team.repeat("nothing", 0, 1 << 40, 1, 1)  # would be 2**40 chunks of one task
    ctypes.CFUNCTYPE(None, ptr)(team.symbols["pool_stop"])(team.state)


def fork_join_us(threads: int = 2, times: int = 4000) -> tuple[float, float, float]:
    """Microseconds of an empty job, of one task alone, and of one such task per thread in a team."""
    team, _ = start(threads)

    def best(kernel: str, tasks: int, grain: int) -> float:
        seconds = []
        for _ in range(7):
            begin = time.perf_counter()
            team.repeat(kernel, 0, tasks, grain, times)
            seconds.append((time.perf_counter() - begin) / times * 1e6)
        return min(seconds)

    empty, alone, together = best("nothing", threads, 1), best("delay", 1, 1), best("delay", threads, 1)
    ctypes.CFUNCTYPE(None, ptr)(team.symbols["pool_stop"])(team.state)
    return empty, alone, together


if __name__ == "__main__":
    empty, alone, together = fork_join_us()
    print(f"empty {empty:.3f} us, one task {alone:.3f} us, one per thread {together:.3f} us: +{together - alone:.3f}")
