"""The scalar operators and casts of the IR as MLIR, on one register (a vector, or a scalar for one lane).

Registers hold f32, f64 and integers as they are; f16 and bf16 as their bits in i16 (there is no arithmetic on them);
bool as i1. Meanings are those of `dlc.ir.scalar`: integers wrap, nothing traps, min and max propagate NaN.
"""

from __future__ import annotations

import math

from dlc.codegen import vecmath
from dlc.codegen.mlir_text import Emitter, vector_type
from dlc.codegen.vecmath import Vec
from dlc.errors import Unsupported
from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, DType

_FLOAT_COMPARE = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_INT_COMPARE = {"eq": "eq", "ne": "ne", "lt": "slt", "le": "sle", "gt": "sgt", "ge": "sge"}
_FLOAT_UNARY = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "roundeven", "sqrt": "sqrt"}
_FLOAT_BINARY = {"add": "addf", "sub": "subf", "mul": "mulf", "div": "divf"}
_CONVERSIONS = {  # truncating f32 to i32, by lanes: the feature and the intrinsic
    4: ("sse2", "sse2.cvttps2dq"),
    8: ("avx", "avx.cvtt.ps2dq.256"),
    16: ("avx512f", "avx512.mask.cvttps2dq.512"),
}
_BITWISE = {"and": "andi", "or": "ori", "xor": "xori"}


def register_element(dtype: DType) -> str:
    """Element type of a register of `dtype`."""
    if dtype in (F32, F64):
        return dtype.name
    return f"i{dtype.bits}" if dtype != BOOL else "i1"


def storage_element(dtype: DType) -> str:
    """Element type of `dtype` in memory."""
    return "i8" if dtype == BOOL else register_element(dtype)


class Scalars:
    """Emits operators on registers of `lanes` lanes."""

    def __init__(self, e: Emitter, lanes: int) -> None:
        self.e, self.lanes = e, lanes

    def type(self, dtype: DType) -> str:
        return vector_type(register_element(dtype), self.lanes)

    def constant(self, dtype: DType, value: float | int | bool) -> str:
        """A constant register; f16 and bf16 by their bits, rounded to nearest even."""
        if dtype in (F16, BF16):
            import numpy as np

            with np.errstate(over="ignore"):
                value = int(np.asarray(value).astype(dtype.numpy).view(np.uint16))
        elif dtype.is_int:
            value = int(value)
        return self.e.const(value, register_element(dtype), self.lanes)

    def op(self, name: str, dtype: DType, args: tuple[str, ...]) -> str:
        """`name` on operands of `dtype` (for select: of the two values)."""
        if name == "select":
            return self._select(args[0], args[1], args[2], self.type(dtype))
        if dtype.is_float:
            return self._float(name, dtype, args)
        if dtype == BOOL:
            return self._bool(name, args)
        return self._int(name, dtype, args)

    def _select(self, mask: str, a: str, b: str, type_: str) -> str:
        return self.e.v(f"arith.select {mask}, {a}, {b} : {vector_type('i1', self.lanes)}, {type_}")

    # -- floats ------------------------------------------------------------------------------------------------------

    def _float(self, name: str, dtype: DType, args: tuple[str, ...]) -> str:
        v = Vec(self.e, dtype.name, self.lanes)
        if name in _FLOAT_BINARY:
            return v.op(_FLOAT_BINARY[name], *args)
        if name in _FLOAT_UNARY:
            return self.e.v(f"math.{_FLOAT_UNARY[name]} {args[0]} : {v.type}")
        if name in _FLOAT_COMPARE:
            return v.cmp(_FLOAT_COMPARE[name], *args)
        if name in vecmath.FUNCTIONS:
            return vecmath.emit(self.e, name, args, dtype.name, self.lanes)
        match name:
            case "fma":
                return v.fma(*args)
            case "neg":
                return v.neg(args[0])
            case "abs":
                return v.abs(args[0])
            case "sign":
                x, zero = args[0], v.c(0.0)
                at_zero = v.select(v.cmp("oeq", x, zero), zero, x)  # NaN stays
                negative = v.select(v.cmp("olt", x, zero), v.c(-1.0), at_zero)
                return v.select(v.cmp("ogt", x, zero), v.c(1.0), negative)
            case "min" | "max":
                return self._extreme(v, name, *args)
            case "minnum" | "maxnum":
                a, b = args
                closer = v.select(v.cmp("olt" if name == "minnum" else "ogt", b, a), b, a)
                return v.select(v.cmp("uno", a, a), b, closer)
            case "copysign":
                return v.copysign(*args)
            case "div_trunc" | "div_floor":
                way = "trunc" if name == "div_trunc" else "floor"
                return self.e.v(f"math.{way} {v.div(*args)} : {v.type}")
            case "rem_trunc":
                return self._fmod(v, *args)
            case "rem_floor":
                return self._float_modulo(v, *args)
            case "nextafter":
                return self._nextafter(v, *args)
            case "isnan":
                return v.cmp("uno", args[0], args[0])
            case "isinf":
                return v.cmp("oeq", v.abs(args[0]), v.c(math.inf))
            case "signbit":
                return v.icmp("slt", v.bits(args[0]), v.ci(0))
        raise Unsupported(op=name, reason=f"there is no code for it on {dtype}")

    def _extreme(self, v: Vec, name: str, a: str, b: str) -> str:
        """Min or max; NaN where either operand is. One instruction when one operand is a constant, or else known to be no NaN.

        Where `b` is NaN a constant is taken and not `b`: LLVM makes one choice of two between the same operands, on two joined
        comparisons with both, and a chain of maxima would wait for all of these.
        """
        if a in self.e.literals or a in self.e.ordered:
            a, b = b, a
        closer = v.select(v.cmp("olt" if name == "min" else "ogt", b, a), b, a)  # a where either is NaN
        constant = self.e.literals.get(b)
        if b in self.e.ordered or (constant is not None and constant == constant):
            return closer
        return v.select(v.cmp("uno", b, b), v.c(math.nan), closer)

    def _fmod(self, v: Vec, a: str, b: str) -> str:
        return v.libm("fmod", a, b)

    def _float_modulo(self, v: Vec, a: str, b: str) -> str:
        zero = v.c(0.0)
        r = self._fmod(v, a, b)
        opposite = v.cmp("olt", v.mul(v.copysign(v.c(1.0), r), v.copysign(v.c(1.0), b)), zero)
        moved = v.select(opposite, v.add(r, b), r)
        return v.select(v.cmp("oeq", r, zero), v.copysign(zero, b), moved)

    def _nextafter(self, v: Vec, a: str, b: str) -> str:
        bits = v.bits(a)
        up = v.cmp("ogt", b, a)
        negative = v.icmp("slt", bits, v.ci(0))
        # away from zero is +1 on the bits, whatever the sign
        different = self.e.v(f"arith.xori {up}, {negative} : {v.bool_type}")
        moved = v.iop("addi", bits, v.iselect(different, v.ci(1), v.ci(-1)))
        least = v.copysign(v.from_bits(v.ci(1)), b)
        result = v.select(v.cmp("oeq", a, v.c(0.0)), least, v.from_bits(moved))
        result = v.select(v.cmp("oeq", a, b), b, result)
        return v.select(v.cmp("uno", a, b), v.add(a, b), result)

    # -- bool --------------------------------------------------------------------------------------------------------

    def _bool(self, name: str, args: tuple[str, ...]) -> str:
        t = self.type(BOOL)
        match name:
            case "and" | "or" | "xor":
                return self.e.v(f"arith.{_BITWISE[name]} {args[0]}, {args[1]} : {t}")
            case "min":
                return self.e.v(f"arith.andi {args[0]}, {args[1]} : {t}")
            case "max":
                return self.e.v(f"arith.ori {args[0]}, {args[1]} : {t}")
            case "not":
                return self.e.v(f"arith.xori {args[0]}, {self.constant(BOOL, True)} : {t}")
            case "eq" | "ne" | "lt" | "le" | "gt" | "ge":
                predicate = _INT_COMPARE[name].replace("s", "u")
                return self.e.v(f"arith.cmpi {predicate}, {args[0]}, {args[1]} : {t}")
        raise Unsupported(op=name, reason="there is no code for it on bool")

    # -- integers ----------------------------------------------------------------------------------------------------

    def _int(self, name: str, dtype: DType, args: tuple[str, ...]) -> str:
        e, t = self.e, self.type(dtype)
        signed = dtype.kind == "i"

        def op(mlir: str, a: str, b: str) -> str:
            return e.v(f"arith.{mlir} {a}, {b} : {t}")

        def cmp(predicate: str, a: str, b: str) -> str:
            return e.v(f"arith.cmpi {predicate}, {a}, {b} : {t}")

        def select(mask: str, a: str, b: str) -> str:
            return self._select(mask, a, b, t)

        zero, one = self.constant(dtype, 0), self.constant(dtype, 1)
        match name:
            case "add" | "sub" | "mul":
                return op(name + "i", *args)
            case "and" | "or" | "xor":
                return op(_BITWISE[name], *args)
            case "not":
                return op("xori", args[0], self.constant(dtype, -1))
            case "neg":
                return op("subi", zero, args[0])
            case "abs":
                return args[0] if not signed else select(cmp("slt", args[0], zero), op("subi", zero, args[0]), args[0])
            case "sign":
                positive = select(cmp("ne", args[0], zero), one, zero)
                return positive if not signed else select(cmp("slt", args[0], zero), self.constant(dtype, -1), positive)
            case "min" | "max":
                return op(f"{name}{'s' if signed else 'u'}i", *args)
            case "eq" | "ne" | "lt" | "le" | "gt" | "ge":
                predicate = _INT_COMPARE[name]
                if not signed and predicate not in ("eq", "ne"):
                    predicate = "u" + predicate[1:]
                return cmp(predicate, *args)
            case "shl" | "shr":
                value, amount = args
                wide = cmp("uge", amount, self.constant(dtype, dtype.bits))
                inside = select(wide, zero, amount)
                if name == "shl":
                    return select(wide, zero, op("shli", value, inside))
                if not signed:
                    return select(wide, zero, op("shrui", value, inside))
                return op("shrsi", value, select(wide, self.constant(dtype, dtype.bits - 1), amount))
            case "popcount":
                return e.v(f"math.ctpop {args[0]} : {t}")
            case "pow":
                return self._int_pow(dtype, *args)
        if name.startswith(("div_", "rem_")):
            return self._division(name, dtype, *args)
        raise Unsupported(op=name, reason=f"there is no code for it on {dtype}")

    def _division(self, name: str, dtype: DType, a: str, b: str) -> str:
        """Quotient or remainder rounded as the name says; x/0 = x%0 = 0, min/-1 wraps; the CPU's division never sees
        an operand that would trap.
        """
        e, t = self.e, self.type(dtype)
        kind, rounding = name.split("_")
        zero, one, minus = (self.constant(dtype, c) for c in (0, 1, -1))

        def op(mlir: str, x: str, y: str) -> str:
            return e.v(f"arith.{mlir} {x}, {y} : {t}")

        def cmp(predicate: str, x: str, y: str) -> str:
            return e.v(f"arith.cmpi {predicate}, {x}, {y} : {t}")

        literal = e.literals.get(b)
        nonzero = literal is not None and literal != 0
        signed = dtype.kind == "i"
        by_zero = cmp("eq", b, zero)
        safe = b if nonzero else self._select(by_zero, one, b, t)
        if not signed:
            q = op("divui", a, safe)
        else:
            negate = cmp("eq", b, minus)
            plain = nonzero and literal not in (-1, (1 << dtype.bits) - 1)
            q = op("divsi", a, safe if plain else self._select(negate, one, safe, t))
            if not plain:
                q = self._select(negate, op("subi", zero, a), q, t)
        result = q if kind == "div" else op("subi", a, op("muli", q, safe))
        if signed and rounding != "trunc":
            r = result if kind == "rem" else op("subi", a, op("muli", q, safe))
            # A remainder is mended by itself, not made of the mended quotient: chains of those take LLVM for ever.
            x, y, less, more = (r, safe, "addi", "subi") if kind == "rem" else (q, one, "subi", "addi")
            if rounding == "floor":
                signs = cmp("slt", op("xori", r, safe), zero)
                off = e.v(f"arith.andi {cmp('ne', r, zero)}, {signs} : {self.type(BOOL)}")
                mended = op(less, x, y)
            else:
                off = cmp("slt", r, zero)
                mended = self._select(cmp("sgt", safe, zero), op(less, x, y), op(more, x, y), t)
            result = self._select(off, mended, result, t)
        return result if nonzero else self._select(by_zero, zero, result, t)

    def _int_pow(self, dtype: DType, a: str, b: str) -> str:
        """Square and multiply over the exponent's bits; a negative exponent truncates the reciprocal."""
        e, t = self.e, self.type(dtype)
        zero, one, minus = (self.constant(dtype, c) for c in (0, 1, -1))
        signed = dtype.kind == "i"

        def op(mlir: str, x: str, y: str) -> str:
            return e.v(f"arith.{mlir} {x}, {y} : {t}")

        def cmp(predicate: str, x: str, y: str) -> str:
            return e.v(f"arith.cmpi {predicate}, {x}, {y} : {t}")

        exponent = op("maxsi", b, zero) if signed else b
        low, high, step = (e.const(c, "i64") for c in (0, dtype.bits, 1))
        name, i, r0, b0, e0 = (e.name() for _ in range(5))
        e.do(
            f"{name}:3 = scf.for {i} = {low} to {high} step {step} iter_args({r0} = {one}, {b0} = {a}, "
            f"{e0} = {exponent}) -> ({t}, {t}, {t}) : i64 {{"
        )
        with e.region():
            odd = cmp("ne", op("andi", e0, one), zero)
            r1 = self._select(odd, op("muli", r0, b0), r0, t)
            e.do(f"scf.yield {r1}, {op('muli', b0, b0)}, {op('shrui', e0, one)} : {t}, {t}, {t}")
        e.do("}")
        if not signed:
            return f"{name}#0"
        parity = self._select(cmp("ne", op("andi", b, one), zero), minus, one, t)
        inverse = self._select(cmp("eq", a, minus), parity, zero, t)
        inverse = self._select(cmp("eq", a, one), one, inverse, t)
        return self._select(cmp("slt", b, zero), inverse, f"{name}#0", t)

    # -- casts -------------------------------------------------------------------------------------------------------

    def cast(self, x: str, source: DType, to: DType, mode: str) -> str:
        """`x` of type `source` converted to `to`."""
        if source == to:
            return x
        if to == BOOL:
            return self._to_bool(x, source)
        if source in (F16, BF16):
            return self.cast(self._widen_half(x, source), F32, to, mode)
        if to in (F16, BF16):
            return self._to_half(x, source, to)
        t, u = self.type(source), self.type(to)
        if source.is_float and to.is_float:
            return self.e.v(f"arith.{'extf' if to.bits > source.bits else 'truncf'} {x} : {t} to {u}")
        if source.is_float:
            return self._float_to_int(x, source, to, mode)
        if to.is_float:
            return self.e.v(f"arith.{'sitofp' if source.kind == 'i' else 'uitofp'} {x} : {t} to {u}")
        source_bits = 1 if source == BOOL else source.bits
        if source_bits == to.bits:
            return x
        way = "trunci" if to.bits < source_bits else "extsi" if source.kind == "i" else "extui"
        return self.e.v(f"arith.{way} {x} : {t} to {u}")

    def _to_bool(self, x: str, source: DType) -> str:
        t = self.type(source)
        if source in (F16, BF16):
            magnitude = self.e.v(f"arith.andi {x}, {self.e.const(0x7FFF, 'i16', self.lanes)} : {t}")
            return self.e.v(f"arith.cmpi ne, {magnitude}, {self.e.const(0, 'i16', self.lanes)} : {t}")
        if source.is_float:
            return self.e.v(f"arith.cmpf une, {x}, {self.constant(source, 0.0)} : {t}")
        return self.e.v(f"arith.cmpi ne, {x}, {self.constant(source, 0)} : {t}")

    def _float_to_int(self, x: str, source: DType, to: DType, mode: str) -> str:
        e, t = self.e, self.type(source)
        v = Vec(e, source.name, self.lanes)
        if mode == "wrap":
            return self._float_wrap(v, x, to)
        if mode == "fits":
            whole = e.v(f"arith.fptosi {x} : {t} to {self._i(32)}")
            return e.v(f"arith.trunci {whole} : {self._i(32)} to {self.type(to)}")
        if source == F32 and to.bits < 32 and self.lanes in _CONVERSIONS and e.target.has(_CONVERSIONS[self.lanes][0]):
            return self._clamped(v, x, to)
        # Only values that fit are converted; NaN fails the comparison too. Small types go through i32.
        low, high = float(to.lowest), float(to.highest + 1)
        inside = v.both(v.cmp("oge", x, v.c(low)), v.cmp("olt", x, v.c(high)))
        kept = v.select(inside, x, v.c(0.0))
        middle = max(to.bits, 32)
        signed = to.kind == "i" or to.bits < 32
        result = e.v(f"arith.{'fptosi' if signed else 'fptoui'} {kept} : {t} to {self._i(middle)}")
        if middle != to.bits:
            result = e.v(f"arith.trunci {result} : {self._i(middle)} to {self.type(to)}")
        u = self.type(to)
        result = self._select(v.cmp("oge", x, v.c(high)), self.constant(to, to.highest), result, u)
        return self._select(v.cmp("olt", x, v.c(low)), self.constant(to, to.lowest), result, u)

    def _clamped(self, v: Vec, x: str, to: DType) -> str:
        """Clamped, then converted by the instruction: it gives 2^31 for NaN, whose low bits are the 0 that is wanted."""
        low, high = v.c(float(to.lowest)), v.c(float(to.highest))
        x = v.select(v.cmp("olt", x, low), low, x)
        x = v.select(v.cmp("ogt", x, high), high, x)
        words, args, types = self._i(32), x, v.type
        if self.lanes == 16:
            every, current = self.e.const(-1, "i16"), self.e.const(4, "i32")
            args, types = f"{x}, {self.e.const(0, 'i32', 16)}, {every}, {current}", f"{v.type}, {words}, i16, i32"
        name = _CONVERSIONS[self.lanes][1]
        whole = self.e.v(f'llvm.call_intrinsic "llvm.x86.{name}"({args}) : ({types}) -> {words}')
        return self.e.v(f"arith.trunci {whole} : {words} to {self.type(to)}")

    def _float_wrap(self, v: Vec, x: str, to: DType) -> str:
        e = self.e
        long = vector_type("i64", self.lanes)
        inside = v.both(v.cmp("oge", x, v.c(-(2.0**63))), v.cmp("olt", x, v.c(2.0**63)))
        whole = e.v(f"arith.fptosi {v.select(inside, x, v.c(0.0))} : {v.type} to {long}")
        least = e.const(-(1 << 63), "i64", self.lanes)
        whole = self._select(inside, whole, least, long)
        if to.bits == 64 and to.kind == "u":
            upper = v.both(v.cmp("oge", x, v.c(2.0**63)), v.cmp("olt", x, v.c(2.0**64)))
            rest = v.select(upper, v.sub(x, v.c(2.0**63)), v.c(0.0))
            shifted = e.v(f"arith.fptosi {rest} : {v.type} to {long}")
            whole = self._select(upper, e.v(f"arith.xori {shifted}, {least} : {long}"), whole, long)
        return whole if to.bits == 64 else e.v(f"arith.trunci {whole} : {long} to {self.type(to)}")

    # -- f16 and bf16 ------------------------------------------------------------------------------------------------

    def _i(self, bits: int) -> str:
        return vector_type(f"i{bits}", self.lanes)

    def _widen_half(self, x: str, source: DType) -> str:
        e, v = self.e, Vec(self.e, "f32", self.lanes)
        if source == BF16:
            wide = e.v(f"arith.extui {x} : {self._i(16)} to {self._i(32)}")
            return v.from_bits(v.iop("shli", wide, v.ci(16)))
        if e.target.has("f16c"):
            half = vector_type("f16", self.lanes)
            return e.v(f"arith.extf {e.v(f'arith.bitcast {x} : {self._i(16)} to {half}')} : {half} to {v.type}")
        wide = e.v(f"arith.extui {x} : {self._i(16)} to {self._i(32)}")
        magnitude = v.iop("andi", wide, v.ci(0x7FFF))
        sign = v.iop("shli", v.iop("andi", wide, v.ci(0x8000)), v.ci(16))
        placed = v.iop("shli", magnitude, v.ci(13))
        value = v.bits(v.mul(v.from_bits(placed), v.c(2.0**112)))  # moves the exponent, normalises subnormals
        special = v.iop("ori", placed, v.ci(0x7F800000))
        value = v.iselect(v.icmp("uge", magnitude, v.ci(0x7C00)), special, value)
        return v.from_bits(v.iop("ori", value, sign))

    def _to_half(self, x: str, source: DType, to: DType) -> str:
        e, v = self.e, Vec(self.e, "f32", self.lanes)
        if to == F16 and (source == F64 or (source.is_int and source.bits >= 32)):
            x = self._round_to_odd(self.cast(x, source, F64, "sat"))
        else:
            x = self.cast(x, source, F32, "sat")
        if to == F16 and e.target.has("f16c"):
            half = vector_type("f16", self.lanes)
            return e.v(f"arith.bitcast {e.v(f'arith.truncf {x} : {v.type} to {half}')} : {half} to {self._i(16)}")
        bits = v.bits(x)
        if to == BF16:
            odd = v.iop("andi", v.iop("shrui", bits, v.ci(16)), v.ci(1))
            rounded = v.iop("shrui", v.iop("addi", v.iop("addi", bits, v.ci(0x7FFF)), odd), v.ci(16))
            quiet = v.iop("ori", v.iop("shrui", bits, v.ci(16)), v.ci(0x40))
            result = v.iselect(v.cmp("uno", x, x), quiet, rounded)
            return e.v(f"arith.trunci {result} : {self._i(32)} to {self._i(16)}")
        magnitude = v.iop("andi", bits, v.ci(0x7FFFFFFF))
        sign = v.iop("shrui", v.iop("xori", bits, magnitude), v.ci(16))
        odd = v.iop("andi", v.iop("shrui", magnitude, v.ci(13)), v.ci(1))
        # rebias the exponent and round; below 2^-14 an addition of 1/2 aligns the bits, the FPU rounds them
        normal = v.iop("shrui", v.iop("addi", v.iop("addi", magnitude, v.ci(0xC8000FFF)), odd), v.ci(13))
        tiny = v.iop("subi", v.bits(v.add(v.from_bits(magnitude), v.c(0.5))), v.ci(0x3F000000))
        result = v.iselect(v.icmp("ult", magnitude, v.ci(0x38800000)), tiny, normal)
        result = v.iselect(v.icmp("uge", magnitude, v.ci(0x477FF000)), v.ci(0x7C00), result)
        result = v.iselect(v.icmp("ugt", magnitude, v.ci(0x7F800000)), v.ci(0x7E00), result)
        return e.v(f"arith.trunci {v.iop('ori', result, sign)} : {self._i(32)} to {self._i(16)}")

    def _round_to_odd(self, x: str) -> str:
        """f64 to f32 so that a second rounding to f16 gives what one rounding would."""
        e = self.e
        d, f = Vec(e, "f64", self.lanes), Vec(e, "f32", self.lanes)
        near = e.v(f"arith.truncf {x} : {d.type} to {f.type}")
        back = e.v(f"arith.extf {near} : {f.type} to {d.type}")
        above = e.v(f"arith.extui {d.cmp('ogt', d.abs(back), d.abs(x))} : {d.bool_type} to {f.int_type}")
        inexact = e.v(f"arith.extui {d.cmp('one', back, x)} : {d.bool_type} to {f.int_type}")
        return f.from_bits(f.iop("ori", f.iop("subi", f.bits(near), above), inexact))
