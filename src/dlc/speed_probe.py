"""How fast the processor is just now: multiply-adds per second of all threads, from a kernel of 0.1 ms.

Two virtual processors may share one physical core for tenths of a second, and then everything runs at half its speed.
A timing between two probes that found the usual speed is worth keeping, others are not. The kernel keeps as many
independent chains of vector multiply-adds as hide their latency, and touches no memory. The peaks in bf16 and in bytes are
measured alike, with the instructions that sum the products of a 32-bit word, where the processor has them.
"""

from __future__ import annotations

import ctypes
import statistics
import time

from dlc.codegen.build import build_pool
from dlc.codegen.native import compile_mlir
from dlc.codegen.target import Target, host_target
from dlc.runtime.elf import load_objects
from dlc.runtime.pool import get_pool

CHAINS = 12
STEPS = 30_000
"""Of each chain: 0.1 ms at 3.6 GHz and one vector multiply-add per cycle."""

WORDS = {
    "bf16": ("avx512_bf16", "f32", "bf16", "avx512bf16.dpbf16ps", 2),
    "i8": ("avx512_vnni", "i32", "i8", "avx512.vpdpbusd", 4),
}
"""Of a small type: the extension, the sums' and the elements' type, the instruction, products in a word."""

USUAL = 0.82
"""Share of the best speed seen from which on the machine counts as undisturbed; half speed is 0.5."""

PARALLEL_FOR = ctypes.CFUNCTYPE(
    None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64
)
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


class SpeedProbe:
    """Measures the multiply-add rate of `threads` threads at once, in f32 or one of `WORDS`.

    Attributes:
        products: the type that is multiplied; f32 where the processor has no instruction for the one that was asked for.
        threads: threads that work at the same time.
        best: the highest rate seen, GFLOP/s.
        slow: how many looks found less than the usual rate.
    """

    def __init__(self, threads: int, target: Target | None = None, products: str = "f32") -> None:
        target = target or host_target()
        self.threads = threads
        self.products = products if products in WORDS and target.has(WORDS[products][0]) else "f32"
        per_lane = WORDS[self.products][-1] if self.products in WORDS else 1
        self._flops = threads * STEPS * CHAINS * 2 * target.lanes * per_lane
        self._image = load_objects({"probe": compile_mlir(probe_mlir(target.lanes, self.products), target).object})
        self._pool = get_pool(build_pool(target, None), threads)
        self._pool.start()
        self._results = ctypes.create_string_buffer(4096 + 64 * threads)
        self.best, self.slow = 0.0, 0
        for _ in range(6):  # the machine may be slow just now, seldom for so long
            self.gflops()
            time.sleep(0.05)

    def gflops(self, calls: int = 9, warm: int = 4) -> float:
        """The rate now: median over `calls` after `warm` unmeasured ones, which wake the threads."""
        times = []
        for _ in range(warm + calls):
            began = time.perf_counter()
            self._once()
            times.append(time.perf_counter() - began)
        rate = self._flops / statistics.median(times[warm:]) / 1e9
        self.best = max(self.best, rate)
        return rate

    def undisturbed(self) -> bool:
        """Whether the machine runs at its usual speed now."""
        fine = self.gflops() >= USUAL * self.best
        self.slow += not fine
        return fine

    def _once(self) -> None:
        results = (ctypes.addressof(self._results) + 63) // 64 * 64
        if self.threads == 1:
            KERNEL(self._image["probe"])(results, 0, 1, 0)
        else:
            run = PARALLEL_FOR(self._pool.parallel_for)
            run(self._pool.state, self._image["probe"], results, self.threads, 1)


def probe_mlir(lanes: int, products: str = "f32") -> str:
    """A kernel of ABI v1; each task runs STEPS multiply-adds in each of CHAINS chains and stores a vector of their sum."""
    element, add, step = "f32", "llvm.fadd", "llvm.intr.fma(%a{i}, %half, %one) : ({vector}, {vector}, {vector}) -> {vector}"
    half, one, factors = "0.5", "1.0", f"vector<{lanes}xf32>"
    if products in WORDS:
        _, element, small, name, number = WORDS[products]
        add, factors = ("llvm.add" if element == "i32" else "llvm.fadd"), f"vector<{lanes * number}x{small}>"
        half, one = ("1", "1") if element == "i32" else (half, one)
        call = f'llvm.call_intrinsic "llvm.x86.{name}.{32 * lanes}"'
        step = call + "(%a{i}, %half, %half) : ({vector}, {factors}, {factors}) -> {vector}"
    vector = f"vector<{lanes}x{element}>"
    chains = [f"%a{i}" for i in range(CHAINS)]
    fma = "\n".join(f"  %n{i} = " + step.format(i=i, vector=vector, factors=factors) for i in range(CHAINS))
    sums = "\n".join(
        f"  %s{i} = {add} {'%n0' if i == 1 else f'%s{i - 1}'}, %n{i} : {vector}" for i in range(1, CHAINS)
    )
    carried = ", ".join(f"{c}: {vector}" for c in chains)
    types = ", ".join([vector] * CHAINS)
    return f"""
llvm.func @probe(%results: !llvm.ptr, %lo: i64, %hi: i64, %thread: i64) {{
  %c0 = llvm.mlir.constant(0 : i64) : i64
  %c1 = llvm.mlir.constant(1 : i64) : i64
  %steps = llvm.mlir.constant({STEPS} : i64) : i64
  %line = llvm.mlir.constant(64 : i64) : i64
  %half = llvm.mlir.constant(dense<{half}> : {factors}) : {factors}
  %one = llvm.mlir.constant(dense<{one}> : {vector}) : {vector}
  llvm.br ^task(%lo : i64)
^task(%t: i64):
  %more = llvm.icmp "slt" %t, %hi : i64
  llvm.cond_br %more, ^begin, ^out
^begin:
  llvm.br ^step(%c0, {", ".join(["%one"] * CHAINS)} : i64, {types})
^step(%i: i64, {carried}):
{fma}
  %i1 = llvm.add %i, %c1 : i64
  %again = llvm.icmp "slt" %i1, %steps : i64
  llvm.cond_br %again, ^step(%i1, {", ".join(f"%n{i}" for i in range(CHAINS))} : i64, {types}), ^store
^store:
{sums}
  %byte = llvm.mul %t, %line : i64
  %at = llvm.getelementptr %results[%byte] : (!llvm.ptr, i64) -> !llvm.ptr, i8
  llvm.store %s{CHAINS - 1}, %at {{alignment = 4 : i64}} : {vector}, !llvm.ptr
  %t1 = llvm.add %t, %c1 : i64
  llvm.br ^task(%t1 : i64)
^out:
  llvm.return
}}
"""
