"""f32 registers of a tile rounded to bf16 by the processor: vcvtneps2bf16 (AVX512-BF16), and by hand where it would not be right.

The instruction rounds to nearest even and keeps NaN, but takes numbers below 2^-126 for 0, whatever the control register says. So the
registers of a tile are looked at first (vfpclassps, one branch for all of them): where none holds such a number, the instruction's
results are the rounded numbers; else they come from integer operations, which take some eight instructions each.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlc.codegen.mlir_text import Emitter, vector_type
from dlc.codegen.scalar_to_mlir import Scalars
from dlc.ir.dtype import BF16, F32

_SUBNORMAL = 0x20  # a bit of vfpclassps's immediate


def native(e: Emitter, lanes: int) -> bool:
    """Whether the processor rounds registers of so many lanes."""
    return e.target.has("avx512_bf16") and e.target.has("avx512dq") and lanes in (8, 16)


def emit_rounded(e: Emitter, lanes: int, registers: Sequence[str]) -> list[str]:
    """The registers (f32) as bits of bf16 in i16, equal to `Scalars.cast` of each."""
    whole, halves, bits = (vector_type(t, lanes) for t in ("f32", "bf16", "i16"))
    truth = vector_type("i1", lanes)
    small = ""
    for r in dict.fromkeys(registers):
        found = e.x86(f"avx512.fpclass.ps.{32 * lanes}", truth, (r, whole), (e.const(_SUBNORMAL, "i32"), "i32"))
        small = e.v(f"arith.ori {small}, {found} : {truth}") if small else found
    some = e.v(f"vector.reduction <or>, {small} : {truth} into i1")
    result, types = e.name(), ", ".join(bits for _ in registers)
    e.do(f"{result}:{len(registers)} = scf.if {some} -> ({types}) {{")
    with e.region():
        exact = [Scalars(e, lanes).cast(r, F32, BF16, "sat") for r in registers]
        e.do(f"scf.yield {', '.join(exact)} : {types}")
    e.do("} else {")
    with e.region():
        rounded = [e.x86(f"avx512bf16.cvtneps2bf16.{32 * lanes}", halves, (r, whole)) for r in registers]
        e.do(f"scf.yield {', '.join(e.v(f'llvm.bitcast {r} : {halves} to {bits}') for r in rounded)} : {types}")
    e.do("}")
    return [f"{result}#{i}" for i in range(len(registers))]
