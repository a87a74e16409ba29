"""The frame that the runtime fills in, and the native function that hands one kernel to the thread pool."""

from __future__ import annotations

from dlc.codegen.host_code import PTR

FRAME = {
    "abi": 0,
    "parallel_for": 1,
    "pool": 2,
    "threads": 3,
    "constants": 4,
    "scratch": 6,
    "scratch_stride": 7,
    "error": 8,
    "profile": 9,
    "malloc": 10,
    "free": 11,
    "counts": 12,
    "times": 13,
    "spill": 14,
}
FIRST_WORD = 16
"""First word after the frame's header."""

GRAIN_WORK = 32768
"""Element operations that are worth handing to another thread: some microseconds, against one for the hand-over."""
CHUNKS_PER_THREAD = 8
"""More would balance no better and take longer to hand out."""

# Runs one kernel on the pool, timed when there is a profile buffer: a word for the start of the first call and one for
# the start plus the time of all calls, so that a kernel in a loop shows its whole time.
LAUNCH = f"""\
llvm.func internal @launch(
  %frame: {PTR}, %kernel: {PTR}, %args: {PTR}, %tasks: i64, %work: i64, %index: i64
) attributes {{no_inline}} {{
  %c0 = llvm.mlir.constant(0 : i64) : i64
  %c1 = llvm.mlir.constant(1 : i64) : i64
  %enough = llvm.mlir.constant({GRAIN_WORK} : i64) : i64
  %per_thread = llvm.mlir.constant({CHUNKS_PER_THREAD} : i64) : i64
  %two = llvm.mlir.constant(2 : i64) : i64
  %run_at = llvm.getelementptr %frame[{FRAME["parallel_for"]}] : ({PTR}) -> {PTR}, i64
  %run = llvm.load %run_at : {PTR} -> {PTR}
  %pool_at = llvm.getelementptr %frame[{FRAME["pool"]}] : ({PTR}) -> {PTR}, i64
  %pool = llvm.load %pool_at : {PTR} -> {PTR}
  %threads_at = llvm.getelementptr %frame[{FRAME["threads"]}] : ({PTR}) -> {PTR}, i64
  %threads = llvm.load %threads_at : {PTR} -> i64
  %profile_at = llvm.getelementptr %frame[{FRAME["profile"]}] : ({PTR}) -> {PTR}, i64
  %profile = llvm.load %profile_at : {PTR} -> {PTR}
  %null = llvm.mlir.zero : {PTR}
  %work1 = llvm.intr.smax(%work, %c1) : (i64, i64) -> i64
  %most = llvm.sub %work1, %c1 : i64
  %rounded = llvm.add %enough, %most : i64
  %least = llvm.udiv %rounded, %work1 : i64
  %chunks0 = llvm.mul %threads, %per_thread : i64
  %chunks = llvm.intr.smax(%chunks0, %c1) : (i64, i64) -> i64
  %even = llvm.udiv %tasks, %chunks : i64
  %grain0 = llvm.intr.smax(%least, %even) : (i64, i64) -> i64
  %grain = llvm.intr.smax(%grain0, %c1) : (i64, i64) -> i64
  %timed = llvm.icmp "ne" %profile, %null : {PTR}
  llvm.cond_br %timed, ^before, ^start(%c0 : i64)
^before:
  %t0 = llvm.call_intrinsic "llvm.readcyclecounter"() : () -> i64
  llvm.br ^start(%t0 : i64)
^start(%began: i64):
  %bare = llvm.icmp "eq" %run, %null : {PTR}
  llvm.cond_br %bare, ^alone, ^team
^alone:
  %some = llvm.icmp "sgt" %tasks, %c0 : i64
  llvm.cond_br %some, ^call, ^done
^call:
  llvm.call %kernel(%args, %c0, %tasks, %c0) : {PTR}, ({PTR}, i64, i64, i64) -> ()
  llvm.br ^done
^team:
  llvm.call %run(%pool, %kernel, %args, %tasks, %grain) : {PTR}, ({PTR}, {PTR}, {PTR}, i64, i64) -> ()
  llvm.br ^done
^done:
  llvm.cond_br %timed, ^record, ^return
^record:
  %t1 = llvm.call_intrinsic "llvm.readcyclecounter"() : () -> i64
  %took = llvm.sub %t1, %began : i64
  %word = llvm.mul %index, %two : i64
  %start_at = llvm.getelementptr %profile[%word] : ({PTR}, i64) -> {PTR}, i64
  %end_at = llvm.getelementptr %start_at[1] : ({PTR}) -> {PTR}, i64
  %start = llvm.load %start_at : {PTR} -> i64
  %end = llvm.load %end_at : {PTR} -> i64
  %first = llvm.icmp "eq" %start, %c0 : i64
  %start1 = llvm.select %first, %began, %start : i1, i64
  %end1 = llvm.select %first, %began, %end : i1, i64
  %end2 = llvm.add %end1, %took : i64
  llvm.store %start1, %start_at : i64, {PTR}
  llvm.store %end2, %end_at : i64, {PTR}
  llvm.br ^return
^return:
  llvm.return
}}
"""
