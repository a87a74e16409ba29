"""What stands for a number of a coded type in native types: its storage, rounding to it, and reading it from packed bytes."""

from __future__ import annotations

from dlc.errors import Unsupported
from dlc.ir.codes import magnitudes
from dlc.ir.dtype import BF16, F32, F64, I8, I16, U8, U16, U32, DType, FloatFormat
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Expr, Index, apply, const, index_value
from dlc.ir.extent import IntExpr

MASK = 0x7F800000  # the exponent of an f32


def native(dtype: DType) -> DType:
    """The least native type that holds every number of `dtype` (itself when it is native)."""
    if not dtype.is_coded:
        return dtype
    if dtype.is_float:
        return BF16
    if dtype.kind == "u":
        return U8
    return I8 if dtype.highest < 128 else I16


def rounded(e: Expr, source: DType, to: DType, mode: str) -> Expr:
    """`cast<to>(e)` as an expression of type `native(to)`; `source` is the type of `e`."""
    held = native(to)
    if to.format is not None:
        return Cast(held, _float(_as(e, source, F32), to, to.format, mode))
    if to.is_bipolar:
        kind = F32 if source.is_float and source != F64 else F64
        return _odd(_as(e, source, kind), kind, to)
    if to.kind == "c":
        return Cast(held, _ternary(_as(e, source, F64)))
    if source.is_float and mode == "sat":
        clamped = apply("max", apply("min", Cast(held, e), const(to.highest, held)), const(to.lowest, held))
        return clamped
    return wrapped(Cast(held, e, mode), to)


def _as(e: Expr, source: DType, wanted: DType) -> Expr:
    return e if source == wanted else Cast(wanted, e)


def wrapped(e: Expr, to: DType) -> Expr:
    """A number of type `native(to)` modulo 2^bits."""
    held = native(to)
    if to.kind == "u":
        return apply("and", e, const(to.highest, held))
    unused = const(held.bits - to.bits, held)
    return apply("shr", apply("shl", e, unused), unused)


def _ternary(e: Expr) -> Expr:
    """The nearest of -1, 0 and 1, ties to the even code, which is that of -1 or 1; `e` and the result are f64."""
    whole = apply("select", apply("isnan", e), const(0.0, F64), e)
    clamped = apply("max", apply("min", whole, const(1.0, F64)), const(-1.0, F64))
    return apply("sub", apply("round", apply("add", clamped, const(1.0, F64))), const(1.0, F64))


def _odd(e: Expr, kind: DType, to: DType) -> Expr:
    """The nearest odd number in `native(to)`, ties to the even code; `kind`, f32 or f64, is the type of `e`.

    It is 2f + 1 of the half rounded down, f, or the one before where that half was rounded up before, or for a tie.
    """

    def number(value: float) -> Expr:
        return const(value, kind)

    if to.bits == 1:
        return apply("select", apply("gt", e, number(0.0)), const(1, native(to)), const(-1, native(to)))
    whole = apply("select", apply("isnan", e), number(0.0), e)
    inside = apply("max", apply("min", whole, number(float(to.highest))), number(float(to.lowest)))
    half = apply("floor", apply("mul", inside, number(0.5)))
    twice = apply("mul", half, number(2.0))
    odd = apply("ne", half, apply("mul", apply("floor", apply("mul", half, number(0.5))), number(2.0)))
    before = apply("or", apply("gt", twice, inside), apply("and", apply("eq", twice, inside), odd))
    return Cast(native(to), apply("add", twice, apply("select", before, number(-1.0), number(1.0))))


def _float(e: Expr, to: DType, f: FloatFormat, mode: str) -> Expr:
    """The nearest number of the format, ties to the even code; `e` and the result are f32.

    A unit in the last place of a number is its exponent alone, as a float, times 2^-mantissa: the bits say it.
    """
    if f.rule in ("scale", "fnuz") or f.mantissa == 0:  # without a mantissa the even code is not the even quotient
        raise Unsupported(op=f"cast<{to}>", reason="rounding to it has no native form")
    most = float(magnitudes(f)[-1])
    inside = apply("max", apply("min", e, const(most)), const(-most))
    exponent = Bitcast(F32, apply("and", Bitcast(U32, inside), const(MASK, U32)))
    normal = apply("max", exponent, const(2.0 ** (1 - f.bias)))
    unit = apply("mul", normal, const(2.0**-f.mantissa))
    value = apply("mul", apply("round", apply("div", inside, unit)), unit)
    if f.rule == "finite":
        return apply("select", apply("isnan", e), const(0.0), value)
    if mode == "sat":
        return value  # NaN stays
    unit_of_most = 2.0 ** (((len(magnitudes(f)) - 1) >> f.mantissa) - f.bias - f.mantissa)
    border = most + unit_of_most / 2
    even = (len(magnitudes(f)) - 1) % 2 == 0
    beyond = apply("gt" if even else "ge", apply("abs", e), const(border))
    past = apply("copysign", const(float("inf")), e) if f.rule == "ieee" else const(float("nan"))
    return apply("select", beyond, past, value)


# --- packed rows -----------------------------------------------------------------------------------------------------


def packed_row_bytes(columns: int, bits: int) -> int:
    """Bytes of a row of packed codes that is read two bytes at a time where a code may straddle two."""
    return (columns * bits + 7) // 8 + (8 % bits != 0)


def read_packed(tensor: str, outer: tuple[IntExpr, ...], column: IntExpr, bits: int) -> Expr:
    """The code (u8) at `column` of a row of packed codes (u8), as `dlc.ir.packing` has them."""
    first, shift = column * bits // 8, Cast(U8, Index(column * bits % 8), "wrap")
    low = Access(tensor, (*outer, first))
    if 8 % bits == 0:
        return apply("and", apply("shr", low, shift), const((1 << bits) - 1, U8))
    high = apply("shl", Cast(U16, Access(tensor, (*outer, first + 1))), const(8, U16))
    both = apply("shr", apply("or", Cast(U16, low), high), Cast(U16, shift))
    return Cast(U8, apply("and", both, const((1 << bits) - 1, U16)), "wrap")


def value_of(code: Expr, dtype: DType, table: str | None) -> Expr:
    """The number that a code (u8) stands for, in `native(dtype)`; `table` names the values of a float type (bf16)."""
    held = native(dtype)
    if dtype.is_float:
        assert table is not None
        return Access(table, (index_value(Cast(U32, code)),))
    if dtype.kind == "u":
        return code
    if dtype.kind == "i":
        return wrapped(Bitcast(I8, code), dtype)
    step = const(1 if dtype.codes == 3 else 2, held)
    return Apply("sub", (apply("mul", Cast(held, code), step), const(dtype.highest, held)))


__all__ = ["native", "packed_row_bytes", "read_packed", "rounded", "value_of", "wrapped"]
