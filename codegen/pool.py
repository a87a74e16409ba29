"""The thread pool's native half: `parallel_for` and `worker_loop`, as MLIR, and the layout of the state they share.

The state is one zeroed, 64-byte aligned block of `state_bytes(threads)` bytes that the runtime allocates and never
frees while a worker may run. The runtime mirrors the offsets below (it cannot import this module), sets THREADS and
SPIN, and starts `threads - 1` threads that each call `worker_loop(state, id)` for id = 1 .. threads - 1.

    byte    0  i32  GENERATION  number of the newest job; the futex word
    byte    4  i32  STOP        1 when the workers have to return
    byte    8  i32  SLEEPERS    workers that are, or are about to be, in futex wait
    byte   64  ptr  KERNEL      the job: void kernel(ptr args, i64 lo, i64 hi, i64 thread)
    byte   72  ptr  ARGS
    byte   80  i64  TASKS
    byte   88  i64  GRAIN       tasks per chunk
    byte   96  i64  CHUNKS
    byte  128  i64  DONE        chunks finished of this job
    byte  192  i32  BUSY        1 while a caller owns the pool
    byte  196  i32  CALLERS     calls of executables under way
    byte  256  i64  THREADS     size of the team, the caller included; set once by the runtime
    byte  264  i64  SPIN        polls (a `pause` each) before a worker sleeps; set once by the runtime
    byte  320  i64  NEXT[t]     one cache line (64 bytes) per thread: generation << 32 | next chunk of its range

Functions in the object:

    void parallel_for(ptr state, ptr kernel, ptr args, i64 tasks, i64 grain)
    void worker_loop(ptr state, i64 thread)
    void pool_stop(ptr state)          makes every worker_loop return

How it works: the chunks of a job are split evenly into one contiguous range per thread, so that a thread sees the
same data in every call; a thread that has finished its own range takes chunks from the others'. A chunk is taken by a
compare-and-swap on a word that holds the generation too. A worker that comes late can therefore never take a chunk of
a job whose description it has not read: the caller first closes every range under the new generation, then writes the
description, then opens the ranges. Nobody waits for sleeping workers; the caller waits only for chunks that somebody
has taken. A caller that finds the pool busy, or as many calls under way as there are threads, runs its job alone, as thread 0
of its own scratch memory: callers that have a core each would only wait for workers that have none.
"""

from __future__ import annotations

GENERATION = 0
STOP = 4
SLEEPERS = 8
KERNEL = 64
ARGS = 72
TASKS = 80
GRAIN = 88
CHUNKS = 96
DONE = 128
BUSY = 192
CALLERS = 196
THREADS = 256
SPIN = 264
NEXT = 320
LINE = 64

DEFAULT_SPIN = 2000
"""Polls before sleep: 30 to 60 us on the processors at hand, far above a fork/join and below a scheduler tick."""

# A caller gives up its time slice after this many polls for chunks that others have taken.
_POLLS_BEFORE_YIELD = 20000
_SYS_FUTEX, _FUTEX_WAIT_PRIVATE, _FUTEX_WAKE_PRIVATE, _SYS_SCHED_YIELD = 202, 128, 129, 24
_KERNEL_TYPE = "!llvm.ptr, (!llvm.ptr, i64, i64, i64) -> ()"
_SYSCALL_TYPE = "(i64, !llvm.ptr, i64, i64, i64, i64, i64) -> i64"


def state_bytes(threads: int) -> int:
    """Bytes of the state block of a pool of `threads` threads."""
    return NEXT + LINE * threads


def _at(name: str, offset: int) -> str:
    return f"{name} = llvm.getelementptr %s[{offset}] : (!llvm.ptr) -> !llvm.ptr, i8"


def pool_mlir() -> str:
    """MLIR text of the pool's functions; the same for every model and processor level."""
    return f"""
llvm.func @syscall(i64, !llvm.ptr, i64, i64, i64, i64, i64) -> i64

// Runs chunks of job `generation` until none is left to take; returns how many this thread ran.
llvm.func internal @take_chunks(%s: !llvm.ptr, %thread: i64, %generation: i32) -> i64 {{
  %c0 = llvm.mlir.constant(0 : i64) : i64
  %c1 = llvm.mlir.constant(1 : i64) : i64
  %c32 = llvm.mlir.constant(32 : i64) : i64
  %line = llvm.mlir.constant({LINE} : i64) : i64
  %low = llvm.mlir.constant(4294967295 : i64) : i64
  {_at("%kernel_at", KERNEL)}
  {_at("%args_at", ARGS)}
  {_at("%tasks_at", TASKS)}
  {_at("%grain_at", GRAIN)}
  {_at("%chunks_at", CHUNKS)}
  {_at("%threads_at", THREADS)}
  {_at("%next_at", NEXT)}
  %kernel = llvm.load %kernel_at : !llvm.ptr -> !llvm.ptr
  %args = llvm.load %args_at : !llvm.ptr -> !llvm.ptr
  %tasks = llvm.load %tasks_at : !llvm.ptr -> i64
  %grain = llvm.load %grain_at : !llvm.ptr -> i64
  %chunks = llvm.load %chunks_at : !llvm.ptr -> i64
  %threads = llvm.load %threads_at : !llvm.ptr -> i64
  %wide = llvm.zext %generation : i32 to i64
  llvm.br ^victims(%c0, %c0 : i64, i64)
^victims(%v: i64, %ran: i64):
  %more = llvm.icmp "slt" %v, %threads : i64
  llvm.cond_br %more, ^range, ^out(%ran : i64)
^range:
  %sum = llvm.add %thread, %v : i64
  %wraps = llvm.icmp "sge" %sum, %threads : i64
  %less = llvm.sub %sum, %threads : i64
  %victim = llvm.select %wraps, %less, %sum : i1, i64
  %victim1 = llvm.add %victim, %c1 : i64
  %scaled = llvm.mul %victim1, %chunks : i64
  %end = llvm.udiv %scaled, %threads : i64
  %byte = llvm.mul %victim, %line : i64
  %word_at = llvm.getelementptr %next_at[%byte] : (!llvm.ptr, i64) -> !llvm.ptr, i8
  %v1 = llvm.add %v, %c1 : i64
  llvm.br ^take(%ran : i64)
^take(%count: i64):
  %word = llvm.load %word_at atomic acquire {{alignment = 8 : i64}} : !llvm.ptr -> i64
  %job = llvm.lshr %word, %c32 : i64
  %current = llvm.icmp "eq" %job, %wide : i64
  llvm.cond_br %current, ^check, ^out(%count : i64)
^check:
  %chunk = llvm.and %word, %low : i64
  %left = llvm.icmp "slt" %chunk, %end : i64
  llvm.cond_br %left, ^swap, ^victims(%v1, %count : i64, i64)
^swap:
  %word1 = llvm.add %word, %c1 : i64
  %pair = llvm.cmpxchg %word_at, %word, %word1 acq_rel monotonic : !llvm.ptr, i64
  %won = llvm.extractvalue %pair[1] : !llvm.struct<(i64, i1)>
  llvm.cond_br %won, ^run, ^take(%count : i64)
^run:
  %lo = llvm.mul %chunk, %grain : i64
  %past = llvm.add %lo, %grain : i64
  %hi = llvm.intr.smin(%past, %tasks) : (i64, i64) -> i64
  llvm.call %kernel(%args, %lo, %hi, %thread) : {_KERNEL_TYPE}
  %count1 = llvm.add %count, %c1 : i64
  llvm.br ^take(%count1 : i64)
^out(%total: i64):
  llvm.return %total : i64
}}

llvm.func @parallel_for(%s: !llvm.ptr, %kernel: !llvm.ptr, %args: !llvm.ptr, %tasks: i64, %grain0: i64) {{
  %c0 = llvm.mlir.constant(0 : i64) : i64
  %c1 = llvm.mlir.constant(1 : i64) : i64
  %c32 = llvm.mlir.constant(32 : i64) : i64
  %line = llvm.mlir.constant({LINE} : i64) : i64
  %low = llvm.mlir.constant(4294967295 : i64) : i64
  %limit = llvm.mlir.constant({1 << 30} : i64) : i64
  %patience = llvm.mlir.constant({_POLLS_BEFORE_YIELD} : i64) : i64
  %free = llvm.mlir.constant(0 : i32) : i32
  %one = llvm.mlir.constant(1 : i32) : i32
  %null = llvm.mlir.zero : !llvm.ptr
  %some = llvm.icmp "sgt" %tasks, %c0 : i64
  llvm.cond_br %some, ^size, ^return
^size:
  %grain1 = llvm.intr.smax(%grain0, %c1) : (i64, i64) -> i64
  // a chunk's number has to fit in 32 bits
  %coarse = llvm.udiv %tasks, %limit : i64
  %coarse1 = llvm.add %coarse, %c1 : i64
  %grain = llvm.intr.smax(%grain1, %coarse1) : (i64, i64) -> i64
  %small = llvm.icmp "sle" %tasks, %grain : i64
  llvm.cond_br %small, ^alone, ^team
^team:
  %nopool = llvm.icmp "eq" %s, %null : !llvm.ptr
  llvm.cond_br %nopool, ^alone, ^size2
^size2:
  {_at("%threads_at", THREADS)}
  %threads = llvm.load %threads_at : !llvm.ptr -> i64
  %single = llvm.icmp "sle" %threads, %c1 : i64
  {_at("%callers_at", CALLERS)}
  %callers = llvm.load %callers_at atomic monotonic {{alignment = 4 : i64}} : !llvm.ptr -> i32
  %calls = llvm.zext %callers : i32 to i64
  %others = llvm.icmp "sge" %calls, %threads : i64
  %crowded = llvm.or %single, %others : i1
  llvm.cond_br %crowded, ^alone, ^acquire
^acquire:
  {_at("%busy_at", BUSY)}
  %pair = llvm.cmpxchg %busy_at, %free, %one acquire monotonic : !llvm.ptr, i32
  %owned = llvm.extractvalue %pair[1] : !llvm.struct<(i32, i1)>
  llvm.cond_br %owned, ^publish, ^alone
^alone:
  llvm.call %kernel(%args, %c0, %tasks, %c0) : {_KERNEL_TYPE}
  llvm.br ^return
^publish:
  {_at("%kernel_at", KERNEL)}
  {_at("%args_at", ARGS)}
  {_at("%tasks_at", TASKS)}
  {_at("%grain_at", GRAIN)}
  {_at("%chunks_at", CHUNKS)}
  {_at("%done_at", DONE)}
  {_at("%generation_at", GENERATION)}
  {_at("%sleepers_at", SLEEPERS)}
  {_at("%next_at", NEXT)}
  %old = llvm.load %generation_at atomic monotonic {{alignment = 4 : i64}} : !llvm.ptr -> i32
  %generation = llvm.add %old, %one : i32
  %wide = llvm.zext %generation : i32 to i64
  %tag = llvm.shl %wide, %c32 : i64
  %closed = llvm.or %tag, %low : i64
  llvm.br ^close(%c0 : i64)
^close(%i: i64):
  %byte = llvm.mul %i, %line : i64
  %word_at = llvm.getelementptr %next_at[%byte] : (!llvm.ptr, i64) -> !llvm.ptr, i8
  llvm.store %closed, %word_at atomic release {{alignment = 8 : i64}} : i64, !llvm.ptr
  %i1 = llvm.add %i, %c1 : i64
  %again = llvm.icmp "slt" %i1, %threads : i64
  llvm.cond_br %again, ^close(%i1 : i64), ^describe
^describe:
  llvm.fence release
  %round = llvm.add %tasks, %grain : i64
  %round1 = llvm.sub %round, %c1 : i64
  %chunks = llvm.udiv %round1, %grain : i64
  llvm.store %kernel, %kernel_at : !llvm.ptr, !llvm.ptr
  llvm.store %args, %args_at : !llvm.ptr, !llvm.ptr
  llvm.store %tasks, %tasks_at : i64, !llvm.ptr
  llvm.store %grain, %grain_at : i64, !llvm.ptr
  llvm.store %chunks, %chunks_at : i64, !llvm.ptr
  llvm.store %c0, %done_at atomic release {{alignment = 8 : i64}} : i64, !llvm.ptr
  llvm.br ^open(%c0 : i64)
^open(%j: i64):
  %part = llvm.mul %j, %chunks : i64
  %first = llvm.udiv %part, %threads : i64
  %word = llvm.or %tag, %first : i64
  %byte2 = llvm.mul %j, %line : i64
  %word2_at = llvm.getelementptr %next_at[%byte2] : (!llvm.ptr, i64) -> !llvm.ptr, i8
  llvm.store %word, %word2_at atomic release {{alignment = 8 : i64}} : i64, !llvm.ptr
  %j1 = llvm.add %j, %c1 : i64
  %again2 = llvm.icmp "slt" %j1, %threads : i64
  llvm.cond_br %again2, ^open(%j1 : i64), ^start
^start:
  // Sequentially consistent: a worker counts itself as sleeper before it looks at the generation for the last time.
  %before = llvm.atomicrmw add %generation_at, %one seq_cst : !llvm.ptr, i32
  %asleep = llvm.load %sleepers_at atomic seq_cst {{alignment = 4 : i64}} : !llvm.ptr -> i32
  %none = llvm.icmp "eq" %asleep, %free : i32
  llvm.cond_br %none, ^work, ^wake
^wake:
  %futex = llvm.mlir.constant({_SYS_FUTEX} : i64) : i64
  %wake = llvm.mlir.constant({_FUTEX_WAKE_PRIVATE} : i64) : i64
  %all = llvm.mlir.constant(2147483647 : i64) : i64
  %w = llvm.call @syscall(%futex, %generation_at, %wake, %all, %c0, %c0, %c0) : {_SYSCALL_TYPE}
  llvm.br ^work
^work:
  %mine = llvm.call @take_chunks(%s, %c0, %generation) : (!llvm.ptr, i64, i32) -> i64
  %past = llvm.atomicrmw add %done_at, %mine acq_rel : !llvm.ptr, i64
  llvm.br ^wait(%c0 : i64)
^wait(%polls: i64):
  %done = llvm.load %done_at atomic acquire {{alignment = 8 : i64}} : !llvm.ptr -> i64
  %finished = llvm.icmp "eq" %done, %chunks : i64
  llvm.cond_br %finished, ^release, ^poll
^poll:
  llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()
  %polls1 = llvm.add %polls, %c1 : i64
  %tired = llvm.icmp "sgt" %polls1, %patience : i64
  llvm.cond_br %tired, ^yield, ^wait(%polls1 : i64)
^yield:
  %sched = llvm.mlir.constant({_SYS_SCHED_YIELD} : i64) : i64
  %y = llvm.call @syscall(%sched, %null, %c0, %c0, %c0, %c0, %c0) : {_SYSCALL_TYPE}
  llvm.br ^wait(%polls1 : i64)
^release:
  llvm.store %free, %busy_at atomic release {{alignment = 4 : i64}} : i32, !llvm.ptr
  llvm.br ^return
^return:
  llvm.return
}}

llvm.func @worker_loop(%s: !llvm.ptr, %thread: i64) {{
  %c0 = llvm.mlir.constant(0 : i64) : i64
  %c1 = llvm.mlir.constant(1 : i64) : i64
  %zero = llvm.mlir.constant(0 : i32) : i32
  %one = llvm.mlir.constant(1 : i32) : i32
  %minus = llvm.mlir.constant(-1 : i32) : i32
  {_at("%generation_at", GENERATION)}
  {_at("%stop_at", STOP)}
  {_at("%sleepers_at", SLEEPERS)}
  {_at("%done_at", DONE)}
  {_at("%spin_at", SPIN)}
  %spin = llvm.load %spin_at : !llvm.ptr -> i64
  llvm.br ^idle(%zero : i32)
^idle(%last: i32):
  llvm.br ^poll(%c0 : i64)
^poll(%polls: i64):
  %generation = llvm.load %generation_at atomic acquire {{alignment = 4 : i64}} : !llvm.ptr -> i32
  %new = llvm.icmp "ne" %generation, %last : i32
  llvm.cond_br %new, ^job(%generation : i32), ^pause
^pause:
  llvm.call_intrinsic "llvm.x86.sse2.pause"() : () -> ()
  %polls1 = llvm.add %polls, %c1 : i64
  %tired = llvm.icmp "sgt" %polls1, %spin : i64
  llvm.cond_br %tired, ^sleep, ^poll(%polls1 : i64)
^sleep:
  %futex = llvm.mlir.constant({_SYS_FUTEX} : i64) : i64
  %wait = llvm.mlir.constant({_FUTEX_WAIT_PRIVATE} : i64) : i64
  %a = llvm.atomicrmw add %sleepers_at, %one seq_cst : !llvm.ptr, i32
  %value = llvm.sext %last : i32 to i64
  %r = llvm.call @syscall(%futex, %generation_at, %wait, %value, %c0, %c0, %c0) : {_SYSCALL_TYPE}
  %b = llvm.atomicrmw add %sleepers_at, %minus seq_cst : !llvm.ptr, i32
  llvm.br ^poll(%c0 : i64)
^job(%number: i32):
  %stop = llvm.load %stop_at atomic acquire {{alignment = 4 : i64}} : !llvm.ptr -> i32
  %stopped = llvm.icmp "ne" %stop, %zero : i32
  llvm.cond_br %stopped, ^return, ^work
^work:
  %ran = llvm.call @take_chunks(%s, %thread, %number) : (!llvm.ptr, i64, i32) -> i64
  %nothing = llvm.icmp "eq" %ran, %c0 : i64
  llvm.cond_br %nothing, ^idle(%number : i32), ^report
^report:
  %d = llvm.atomicrmw add %done_at, %ran acq_rel : !llvm.ptr, i64
  llvm.br ^idle(%number : i32)
^return:
  llvm.return
}}

llvm.func @pool_stop(%s: !llvm.ptr) {{
  %c0 = llvm.mlir.constant(0 : i64) : i64
  %one = llvm.mlir.constant(1 : i32) : i32
  {_at("%generation_at", GENERATION)}
  {_at("%stop_at", STOP)}
  %futex = llvm.mlir.constant({_SYS_FUTEX} : i64) : i64
  %wake = llvm.mlir.constant({_FUTEX_WAKE_PRIVATE} : i64) : i64
  %all = llvm.mlir.constant(2147483647 : i64) : i64
  llvm.store %one, %stop_at atomic seq_cst {{alignment = 4 : i64}} : i32, !llvm.ptr
  %g = llvm.atomicrmw add %generation_at, %one seq_cst : !llvm.ptr, i32
  %w = llvm.call @syscall(%futex, %generation_at, %wake, %all, %c0, %c0, %c0) : {_SYSCALL_TYPE}
  llvm.return
}}
"""
