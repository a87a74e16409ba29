"""f32 registers of a tile rounded to bf16 by the processor: vcvtneps2bf16 (AVX512-BF16), and by hand where it would not be right.

The instruction rounds to nearest even and keeps NaN, but takes numbers below 2^-126 for 0, whatever the control register says. So the
registers of a tile are looked at first (vfpclassps, one branch for all of them): where none holds such a number, the instruction's
results are the rounded numbers; else they come from integer operations, which take some eight instructions each. Sums that vdpbf16ps
made need no look, for it has no such results.

vcvtne2ps2bf16 rounds two registers in the time of one. The pair it makes is widened again by a permutation that leaves the low halves
of all words 0, one instruction for each register where a widening and a shift are two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dlc.codegen.mlir_text import Emitter, vector_type
from dlc.codegen.scalar_to_mlir import Scalars
from dlc.ir.dtype import BF16, F32

LEAST_NORMAL = 2.0**-126
_SUBNORMAL = 0x20  # a bit of vfpclassps's immediate
_PAIR = 16
"""Lanes of f32 in the registers that are rounded in pairs."""


@dataclass(frozen=True)
class Half:
    """Where a register of bf16 numbers lies: the low (0) or high (1) half of `pair`, a register in i16."""

    pair: str
    half: int


def native(e: Emitter, lanes: int) -> bool:
    """Whether the processor rounds registers of so many lanes."""
    return e.target.has("avx512_bf16") and e.target.has("avx512dq") and lanes in (8, 16)


def emit_rounded(e: Emitter, lanes: int, registers: Sequence[str], *, normal: bool) -> tuple[list[str], dict[str, Half]]:
    """The registers (f32) as bits of bf16 in i16, equal to `Scalars.cast` of each; with the pairs that they are halves of.

    Args:
        normal: whether no element is a subnormal number.
    """
    paired = len(registers) // 2 * 2 if lanes == _PAIR else 0
    parts = [*(list(registers[i : i + 2]) for i in range(0, paired, 2)), *([r] for r in registers[paired:])]
    if normal:
        found = [_by_instruction(e, lanes, part) for part in parts]
    else:
        found = _looked_at(e, lanes, parts)
    rounded: list[str] = []
    halves: dict[str, Half] = {}
    for part, value in zip(parts, found, strict=True):
        if len(part) == 1:
            rounded.append(value)
            continue
        wide = vector_type("i16", 2 * lanes)
        for half in (0, 1):
            own = list(range(half * lanes, (half + 1) * lanes))
            rounded.append(e.v(f"vector.shuffle {value}, {value} {own} : {wide}, {wide}"))
            halves[rounded[-1]] = Half(value, half)
    return rounded, halves


def _looked_at(e: Emitter, lanes: int, parts: Sequence[Sequence[str]]) -> list[str]:
    whole, truth = vector_type("f32", lanes), vector_type("i1", lanes)
    small = ""
    for r in dict.fromkeys(r for part in parts for r in part):
        found = e.x86(f"avx512.fpclass.ps.{32 * lanes}", truth, (r, whole), (e.const(_SUBNORMAL, "i32"), "i32"))
        small = e.v(f"arith.ori {small}, {found} : {truth}") if small else found
    some = e.v(f"vector.reduction <or>, {small} : {truth} into i1")
    result, types = e.name(), ", ".join(vector_type("i16", len(part) * lanes) for part in parts)
    e.do(f"{result}:{len(parts)} = scf.if {some} -> ({types}) {{")
    with e.region():
        e.do(f"scf.yield {', '.join(_exact(e, lanes, part) for part in parts)} : {types}")
    e.do("} else {")
    with e.region():
        e.do(f"scf.yield {', '.join(_by_instruction(e, lanes, part) for part in parts)} : {types}")
    e.do("}")
    return [f"{result}#{i}" for i in range(len(parts))]


def _exact(e: Emitter, lanes: int, part: Sequence[str]) -> str:
    rounded = [Scalars(e, lanes).cast(r, F32, BF16, "sat") for r in part]
    if len(rounded) == 1:
        return rounded[0]
    bits = vector_type("i16", lanes)
    return e.v(f"vector.shuffle {', '.join(rounded)} {list(range(2 * lanes))} : {bits}, {bits}")


def _by_instruction(e: Emitter, lanes: int, part: Sequence[str]) -> str:
    whole, halves = vector_type("f32", lanes), vector_type("bf16", len(part) * lanes)
    if len(part) == 1:
        value = e.x86(f"avx512bf16.cvtneps2bf16.{32 * lanes}", halves, (part[0], whole))
    else:  # the second operand's numbers come first
        value = e.x86(f"avx512bf16.cvtne2ps2bf16.{32 * lanes}", halves, (part[1], whole), (part[0], whole))
    return e.v(f"llvm.bitcast {value} : {halves} to {vector_type('i16', len(part) * lanes)}")


def emit_widened(e: Emitter, place: Half) -> str:
    """A half of a pair as a register of f32 numbers."""
    pair, words = vector_type("i16", 2 * _PAIR), vector_type("f32", _PAIR)
    first = place.half * _PAIR
    order = [n for i in range(_PAIR) for n in (2 * _PAIR, first + i)]  # 2 * _PAIR: a zero
    spread = e.v(f"vector.shuffle {place.pair}, {e.const(0, 'i16', 2 * _PAIR)} {order} : {pair}, {pair}")
    return e.v(f"llvm.bitcast {spread} : {pair} to {words}")
