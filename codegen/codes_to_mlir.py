"""Codes of a few bits as MLIR: taken apart into bytes, and looked up in tables that lie in registers.

    unpack   vpermb spreads the bytes of 8 codes over a quadword, vpmultishiftqb moves each code to its byte (AVX512-VBMI); else
             each code's two bytes are shuffled into a 16-bit lane, where a product moves the code to the top, even and odd
             codes apart
    zip      every other byte of one register between those of another: a shift and masks (vpternlogd)
    lookup   vpermb for 64 bytes, vpermi2b for 128 (VBMI), else pshufb for 16; vpermps for 16 f32 (AVX-512) or 8 (AVX2); a larger
             table is halved by a bit of the index, down to single elements where nothing looks up

Source: the cast instructions of Tilus (arXiv 2504.12984), with x86's permutes in place of a GPU's `lop3` and `prmt`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlc.codegen.mlir_text import Emitter, float_text, vector_type
from dlc.ir.dtype import F32, DType

_SHUFFLE_BYTES = {
    16: ("ssse3", "ssse3.pshuf.b.128"), 32: ("avx2", "avx2.pshuf.b"), 64: ("avx512bw", "avx512.pshuf.b.512"),
}  # fmt: skip
_LANE = 16
"""Bytes within which a shuffle of AVX2 and AVX-512 moves bytes."""
_PERMUTE_WORDS = {8: ("avx2", "avx2.permps"), 16: ("avx512f", "avx512.permvar.sf.512")}


def emit_unpack(e: Emitter, bits: int, lanes: int, packed: str) -> str:
    """The first `lanes` codes of the bytes in `packed`, one in a byte."""
    if e.target.has("avx512vbmi") and lanes == 64:
        return _multishift(e, bits, packed)
    return _shifted_pairs(e, bits, lanes, packed)


def _constant(e: Emitter, values: Sequence[int | str], element: str) -> str:
    return e.head_value(f"arith.constant dense<[{', '.join(map(str, values))}]> : {vector_type(element, len(values))}")


def _multishift(e: Emitter, bits: int, packed: str) -> str:
    t = vector_type("i8", 64)
    spread = _constant(e, [bits * (n // 8) + min(n % 8, bits - 1) for n in range(64)], "i8")
    shifts = _constant(e, [bits * (n % 8) for n in range(64)], "i8")
    quads = e.x86("avx512.permvar.qi.512", t, (packed, t), (spread, t))
    moved = e.x86("avx512.pmultishift.qb.512", t, (shifts, t), (quads, t))
    return e.v(f"arith.andi {moved}, {e.const((1 << bits) - 1, 'i8', 64)} : {t}")


def _shifted_pairs(e: Emitter, bits: int, lanes: int, packed: str) -> str:
    """Even codes end in the low byte of each 16-bit lane, odd ones in the high byte."""
    t, pairs, half = vector_type("i8", lanes), vector_type("i16", lanes // 2), lanes // 2
    feature, shuffle = _SHUFFLE_BYTES.get(lanes, ("", ""))
    starts = _starts(bits, lanes) if e.target.has(feature) else None
    if starts is not None and len(starts) > 1:
        quads = [n for start in starts for n in range(start, start + _LANE)]
        packed = e.v(f"vector.shuffle {packed}, {packed} {quads} : {t}, {t}")

    def pairs_of(places: Sequence[int]) -> str:
        """The two bytes in which the bits at each place begin."""
        if starts is None:
            picks = [min(p // 8 + k, lanes - 1) for p in places for k in (0, 1)]
            return e.v(f"vector.shuffle {packed}, {packed} {picks} : {t}, {t}")
        picks = [min(p // 8 + k - starts[p // bits // _LANE], _LANE - 1) for p in places for k in (0, 1)]
        return e.x86(shuffle, t, (packed, t), (_constant(e, picks, "i8"), t))

    def top(first: int) -> str:
        """The codes `first`, `first + 2`, ... in the highest bits of 16."""
        places = [n * bits for n in range(first, lanes, 2)]
        words = e.v(f"llvm.bitcast {pairs_of(places)} : {t} to {pairs}")
        factors = [1 << (16 - bits - p % 8) for p in places]
        signed = _constant(e, [f - (1 << 16) if f >> 15 else f for f in factors], "i16")
        return e.v(f"arith.muli {words}, {signed} : {pairs}")

    even = e.v(f"arith.shrui {top(0)}, {e.const(16 - bits, 'i16', half)} : {pairs}")
    odd = e.v(f"arith.shrui {top(1)}, {e.const(8 - bits, 'i16', half)} : {pairs}")
    odd = e.v(f"arith.andi {odd}, {e.const(((1 << bits) - 1) << 8, 'i16', half)} : {pairs}")
    both = e.v(f"arith.ori {even}, {odd} : {pairs}")
    return e.v(f"llvm.bitcast {both} : {pairs} to {t}")


def _starts(bits: int, lanes: int) -> list[int] | None:
    """The first byte, a multiple of 8, of the 16 that hold the codes of each lane of 16 bytes; None where 16 do not hold them.

    Left to itself LLVM moves the bytes of three bits one by one, twenty times as slow.
    """
    starts = [min(2 * bits * n // 8 * 8, lanes - _LANE) for n in range(lanes // _LANE)]
    return starts if all(2 * bits * (n + 1) - start <= _LANE for n, start in enumerate(starts)) else None


def emit_zip(e: Emitter, lanes: int, half: int, low: str, high: str) -> str:
    """Words of two bytes each of two registers of `lanes` words: the bytes `half` and `half + 2` of every word."""
    words = vector_type("i32", lanes)
    low, high = (e.v(f"llvm.bitcast {x} : {vector_type('i8', 4 * lanes)} to {words}") for x in (low, high))
    if half == 0:
        high = e.v(f"arith.shli {high}, {e.const(8, 'i32', lanes)} : {words}")
    else:
        low = e.v(f"arith.shrui {low}, {e.const(8, 'i32', lanes)} : {words}")
    low = e.v(f"arith.andi {low}, {e.const(0x00FF00FF, 'i32', lanes)} : {words}")
    high = e.v(f"arith.andi {high}, {e.const(0xFF00FF00 - (1 << 32), 'i32', lanes)} : {words}")
    return e.v(f"arith.ori {low}, {high} : {words}")


def emit_lookup(e: Emitter, dtype: DType, table: Sequence[float | int], lanes: int, index: str) -> str:
    """`table[index % len(table)]` in every lane."""
    return _words(e, table, lanes, index) if dtype == F32 else _bytes(e, table, lanes, index)


def _bytes(e: Emitter, table: Sequence[float | int], lanes: int, index: str) -> str:
    t, wide = vector_type("i8", lanes), e.target.has("avx512vbmi") and lanes == 64
    feature, name = _SHUFFLE_BYTES.get(lanes, ("", ""))
    most = 128 if wide else 16 if e.target.has(feature) else 1
    if len(table) > most:
        return _halved(e, table, lanes, index, "i8", lambda part: _bytes(e, part, lanes, index))
    if most == 1:
        return e.const(table[0], "i8", lanes)
    unit = min(most, max(64, len(table))) if wide else 16
    whole = [int(x) - 256 if int(x) > 127 else int(x) for x in (*table,) * (unit // len(table))]
    if wide and unit == 128:
        low, high = _constant(e, whole[:64], "i8"), _constant(e, whole[64:], "i8")
        return e.x86("avx512.vpermi2var.qi.512", t, (low, t), (index, t), (high, t))
    if wide:
        return e.x86("avx512.permvar.qi.512", t, (_constant(e, whole, "i8"), t), (index, t))
    low = e.v(f"arith.andi {index}, {e.const(15, 'i8', lanes)} : {t}")  # a byte of 128 and more would give 0
    return e.x86(name, t, (_constant(e, whole * (lanes // 16), "i8"), t), (low, t))


def _words(e: Emitter, table: Sequence[float | int], lanes: int, index: str) -> str:
    t, i = vector_type("f32", lanes), vector_type("i32", lanes)
    feature, name = _PERMUTE_WORDS.get(lanes, ("", ""))
    most = lanes if e.target.has(feature) else 1
    if len(table) > most:
        return _halved(e, table, lanes, index, "f32", lambda part: _words(e, part, lanes, index))
    if most == 1:
        return e.const(float(table[0]), "f32", lanes)
    whole = _constant(e, [float_text(float(x), "f32") for x in (*table,) * (most // len(table))], "f32")
    return e.x86(name, t, (whole, t), (index, i))


def _halved(
    e: Emitter, table: Sequence[float | int], lanes: int, index: str, element: str, look: Callable[[Sequence[float | int]], str]
) -> str:
    """A table that is too large: each half looked up, and one of the two taken by the highest bit of the index that counts."""
    half = len(table) // 2
    low, high = look(table[:half]), look(table[half:])
    kind = "i32" if element == "f32" else "i8"
    number = half - 256 if kind == "i8" and half > 127 else half
    bit = e.v(f"arith.andi {index}, {e.const(number, kind, lanes)} : {vector_type(kind, lanes)}")
    zero = e.const(0, kind, lanes)
    upper = e.v(f"arith.cmpi ne, {bit}, {zero} : {vector_type(kind, lanes)}")
    return e.v(f"arith.select {upper}, {high}, {low} : {vector_type('i1', lanes)}, {vector_type(element, lanes)}")
