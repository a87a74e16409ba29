"""The grouped dot product of a tile program as MLIR: one instruction where the processor has it, a few where not.

    u8, i8      vpdpbusd (AVX512-VNNI); else even and odd bytes widened to 16 bits and vpmaddwd, whose products of 255 * 128
                cannot saturate (those of vpmaddubsw do); on registers of no such width, byte by byte
    bf16, bf16  vdpbf16ps (AVX512-BF16); else two fused multiply-adds of the halves, which are the f32 numbers' high bits
"""

from __future__ import annotations

from dlc.codegen.mlir_text import Emitter, vector_type
from dlc.codegen.vecmath import Vec
from dlc.ir.dtype import BF16, U8, DType

_MADD = {4: ("sse2", "sse2.pmadd.wd"), 8: ("avx2", "avx2.pmadd.wd"), 16: ("avx512bw", "avx512.pmaddw.d.512")}


def emit_dot(e: Emitter, left: DType, lanes: int, a: str, b: str, acc: str) -> str:
    """`acc` plus the products of the elements of each i32 lane of `a` and `b`; `left` is the element type of `a`."""
    if left == BF16:
        native = e.target.has("avx512_bf16") and lanes in (4, 8, 16)
        return _dpbf16(e, lanes, a, b, acc) if native else _widened_halves(e, lanes, a, b, acc)
    assert left == U8, left
    if e.target.has("avx512_vnni") and lanes in (4, 8, 16):
        return _vpdpbusd(e, lanes, a, b, acc)
    feature, name = _MADD.get(lanes, ("", ""))
    return _multiply_pairs(e, name, lanes, a, b, acc) if e.target.has(feature) else _bytewise(e, lanes, a, b, acc)


def _as(e: Emitter, value: str, old: str, new: str) -> tuple[str, str]:
    return e.v(f"llvm.bitcast {value} : {old} to {new}"), new


def _vpdpbusd(e: Emitter, lanes: int, a: str, b: str, acc: str) -> str:
    words, parts = vector_type("i32", lanes), vector_type("i8", 4 * lanes)
    left, right = _as(e, a, words, parts), _as(e, b, words, parts)
    return e.x86(f"avx512.vpdpbusd.{32 * lanes}", words, (acc, words), left, right)


def _dpbf16(e: Emitter, lanes: int, a: str, b: str, acc: str) -> str:
    words, parts, sums = vector_type("i32", lanes), vector_type("bf16", 2 * lanes), vector_type("f32", lanes)
    left, right = _as(e, a, words, parts), _as(e, b, words, parts)
    return e.x86(f"avx512bf16.dpbf16ps.{32 * lanes}", sums, (acc, sums), left, right)


def _widened_halves(e: Emitter, lanes: int, a: str, b: str, acc: str) -> str:
    v = Vec(e, "f32", lanes)

    def low(x: str) -> str:
        return v.from_bits(v.iop("shli", x, v.ci(16)))

    def high(x: str) -> str:
        return v.from_bits(v.iop("andi", x, v.ci(-65536)))

    return v.fma(high(a), high(b), v.fma(low(a), low(b), acc))


def _multiply_pairs(e: Emitter, name: str, lanes: int, a: str, b: str, acc: str) -> str:
    v = Vec(e, "f32", lanes)
    words, pairs = v.int_type, vector_type("i16", 2 * lanes)
    eight = e.const(8, "i16", 2 * lanes)

    def halves(op: str, x: str) -> str:
        return e.v(f"arith.{op} {x}, {eight} : {pairs}")

    left, right = _as(e, a, words, pairs)[0], _as(e, b, words, pairs)[0]
    even = (e.v(f"arith.andi {left}, {e.const(255, 'i16', 2 * lanes)} : {pairs}"), halves("shrsi", halves("shli", right)))
    odd = halves("shrui", left), halves("shrsi", right)
    for x, y in (even, odd):
        acc = v.iop("addi", acc, e.x86(name, words, (x, pairs), (y, pairs)))
    return acc


def _bytewise(e: Emitter, lanes: int, a: str, b: str, acc: str) -> str:
    v = Vec(e, "f32", lanes)
    for n in range(4):
        x = v.iop("andi", v.iop("shrui", a, v.ci(8 * n)), v.ci(255))
        y = v.iop("shrsi", v.iop("shli", b, v.ci(24 - 8 * n)), v.ci(24))
        acc = v.iop("addi", acc, v.iop("muli", x, y))
    return acc
