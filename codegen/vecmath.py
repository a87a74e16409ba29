"""Elementary functions of f32 and f64 vectors, as MLIR text built from a few arithmetic operations.

f32 functions work on all lanes at once. Their errors are bounded by `ULP` (units in the last place of the result, found
by comparing millions of arguments of every exponent with 40-digit references), with three rules for all: NaN in gives
NaN out, odd functions are odd to the bit, and results that underflow are right to the same absolute error. `sin`, `cos`
and `tan` leave arguments beyond 8192 to the C library, lane by lane.

f64: exp, exp2, log, log2, sigmoid and rsqrt are computed here; the others call the C library lane by lane.

The polynomials are Chebyshev fits (mpmath's `chebyfit` on the named function and interval), rounded to the element
type; the reductions are the textbook ones: Muller, Elementary Functions, 3rd ed., chapters 5, 10 and 11.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from dlc.codegen.mlir_text import Emitter, float_text, vector_type

# (exp(r) - 1 - r) / r^2 on |r| <= ln2/2
_EXP_Q = (0.5, 0.16666576266288757, 0.04166655242443085, 0.008363292552530766, 0.0013926326064392924)
_EXP64_Q = (
    0.5, 0.1666666666666667, 0.04166666666666667, 0.008333333333326025, 0.0013888888888883798, 0.00019841269875205077,
    2.4801587325579e-05, 2.75572549134867e-06, 2.755727349727564e-07, 2.5105419192016337e-08, 2.0914770520493013e-09,
)  # fmt: skip
# (2^r - 1) / r on |r| <= 1/2
_EXP2_Q = (
    0.6931471824645996, 0.24022650718688965, 0.05550410971045494, 0.009618056006729603, 0.0013333501992747188,
    0.00015461677685379982, 1.5297502613975666e-05,
)  # fmt: skip
_EXP2_64_Q = (
    0.6931471805599453, 0.24022650695910072, 0.05550410866482158, 0.009618129107628484, 0.0013333558146428532,
    0.0001540353039336245, 1.525273380393432e-05, 1.3215486816311955e-06, 1.0178086098798808e-07, 7.054894247966286e-09,
    4.445505553892871e-10, 2.573378928044613e-11, 1.3747332554966079e-12,
)  # fmt: skip
# (log(1 + f) - f + f^2/2) / f^3 on sqrt(1/2) <= 1 + f <= sqrt(2)
_LOG_P = (
    0.3333333134651184, -0.2499999701976776, 0.20000730454921722, -0.1666785031557083, 0.14248551428318024,
    -0.12424037605524063, 0.11689071357250214, -0.11494546383619308, 0.0698070228099823,
)  # fmt: skip
# (log((1 + s) / (1 - s)) - 2s) / s^3 in z = s^2
_LOG64_R = (
    0.6666666666666666, 0.4000000000000094, 0.2857142857076435, 0.222222224005703, 0.18181794698512946,
    0.1538629066309059, 0.13267415191034776, 0.1310075664445116,
)  # fmt: skip
# (sin(x)/x - 1) / z and (cos(x) - 1 + z/2) / z^2 in z = x^2, |x| <= pi/4
_SIN_P = (-0.1666666716337204, 0.008333331905305386, -0.00019840076856780797, 2.72487022812129e-06)
_COS_P = (0.0416666679084301, -0.00138888880610466, 2.4800592655083165e-05, -2.729993866523728e-07)
# erf(x)/x - 1 in z = x^2, |x| < 0.93, and log(erfc(x)) on 0.92 .. 4
_ERF_SMALL = (
    0.12837916612625122, -0.37612634897232056, 0.11283691227436066, -0.02685915119946003, 0.005200368817895651,
    -0.000813470920547843, 8.334718586411327e-05,
)  # fmt: skip
_ERF_LARGE = (
    0.00032044152612797916, -1.1302375793457031, -0.6318145394325256, -0.11009448021650314, 0.026431018486618996,
    -0.00476357527077198, 0.0005977434921078384, -4.6177912736311555e-05, 1.6435697034467012e-06,
)  # fmt: skip
# erf(k/4 + t) as a polynomial in t, |t| <= 1/8, for k = 0 .. 15: the coefficients of each power, by k
_ERF_TABLE = (
    (
        0.0, 0.27632638812065125, 0.5204998850822449, 0.7111556529998779, 0.8427007794380188, 0.9229001402854919,
        0.9661051630973816, 0.9866716861724854, 0.9953222870826721, 0.9985373020172119, 0.9995930194854736,
        0.9998993873596191, 0.9999778866767883, 0.9999957084655762, 0.9999992847442627, 0.9999998807907104,
    ),
    (
        1.128379225730896, 1.060014247894287, 0.8787826895713806, 0.6429311037063599, 0.41510748863220215,
        0.23652112483978271, 0.11893028765916824, 0.05277499556541443, 0.02066698484122753, 0.00714231887832284,
        0.002178284339606762, 0.0005862775142304599, 0.00013925321400165558, 2.918909740401432e-05,
        5.3994517656974494e-06, 8.814390639599878e-07,
    ),
    (
        2.0980307624540728e-07, -0.26499879360198975, -0.43938785791397095, -0.48220038414001465,
        -0.41510453820228577, -0.2956567406654358, -0.17840175330638885, -0.09236103296279907, -0.04133967310190201,
        -0.01607467234134674, -0.0054381173104047775, -0.0016144613036885858, -0.0004118364886380732,
        -9.771470649866387e-05, -2.6017318305093795e-05, -1.8998837276740232e-06,
    ),
    (
        -0.37613898515701294, -0.3091968894004822, -0.1464892327785492, 0.02677069418132305, 0.1383698284626007,
        0.16753458976745605, 0.13875246047973633, 0.09015826135873795, 0.048223450779914856, 0.021724624559283257,
        0.008350006304681301, 0.002760248025879264, 0.000789018755313009, 0.00019577307102736086,
        4.228291072649881e-05, 7.966106750245672e-06,
    ),
    (
        0.0002509452751837671, 0.12607741355895996, 0.18208521604537964, 0.1503531038761139, 0.06910689920186996,
        -0.005538014229387045, -0.04395923390984535, -0.047709934413433075, -0.03414518013596535,
        -0.01890270784497261, -0.009056999348104, -0.003172744996845722, -0.0013597813667729497,
        -0.00014497451775241643, 0.00029550728504545987, -8.612122474005446e-05,
    ),
    (
        0.11111534386873245, 0.0811241865158081, 0.008714073337614536, -0.05201493203639984, -0.06897009909152985,
        -0.04705994203686714, -0.014967218041419983, 0.00647506071254611, 0.013008780777454376, 0.010642947629094124,
        0.006130434572696686, 0.0027735934127122164, 0.0010271486826241016, 0.0003184687811881304,
        8.372010779567063e-05, 1.8819231627276167e-05,
    ),
)  # fmt: skip
_ERF_END = 3.874
# (atan(x)/x - 1) / z on 0 .. 1 and (asin(x)/x - 1) / z on 0 .. 1/2, z = x^2
_ATAN_P = (
    -0.3333333432674408, 0.19999989867210388, -0.14285318553447723, 0.11104706674814224, -0.09036742150783539,
    0.07417497038841248, -0.05760715901851654, 0.03832744434475899, -0.019261080771684647, 0.0062072547152638435,
    -0.0009362994460389018,
)  # fmt: skip
_ASIN_P = (
    0.1666666567325592, 0.07500096410512924, 0.044598571956157684, 0.031111370772123337, 0.017093829810619354,
    0.03378980979323387,
)  # fmt: skip
# pi/2 and ln 2 in parts with so few bits that products with the reduced quotients are exact
_PIO2 = (1.5703125, 0.0004837512969970703, 7.549533620476723e-08, 2.5633440682570896e-12)
_LN2 = (0.693115234375, 3.194618329871446e-05)
_LN2_64 = (0.6931471803691238, 1.9082149292705877e-10)
_LOG2E = 1.4426950408889634
_TRIG_LIMIT = 8192.0

ULP: dict[str, float] = {
    "exp": 1.5, "exp2": 1.5, "expm1": 2.5, "log": 1.5, "log2": 2.5, "log1p": 2.5, "sin": 2.0, "cos": 2.0, "tan": 4.0,
    "tanh": 3.5, "erf": 2.5, "sigmoid": 3.0, "asin": 3.5, "acos": 3.5, "atan": 2.5, "sinh": 4.0, "cosh": 4.0,
    "asinh": 5.0, "acosh": 5.0, "atanh": 5.0, "pow": 1.0, "rsqrt": 1.5, "atan2": 4.0, "lgamma": 4.0,
}  # fmt: skip
"""Largest error of the f32 functions on processors with FMA; without it half as much again is allowed."""

_LIBM = {
    "expm1": "expm1", "log1p": "log1p", "sin": "sin", "cos": "cos", "tan": "tan", "tanh": "tanh", "erf": "erf",
    "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh", "cosh": "cosh", "asinh": "asinh",
    "acosh": "acosh", "atanh": "atanh", "pow": "pow", "atan2": "atan2", "lgamma": "lgamma",
}  # fmt: skip


def emit(e: Emitter, name: str, args: tuple[str, ...], element: str, lanes: int) -> str:
    """Emit function `name` of values of type `element` x `lanes`; returns the result's SSA name."""
    vec = Vec(e, element, lanes)
    if element == "f64":
        here = _F64.get(name)
        return here(vec, *args) if here else vec.libm(_LIBM[name], *args)
    return _F32[name](vec, *args)


class Vec:
    """Arithmetic on values of one vector (or scalar) float type."""

    def __init__(self, e: Emitter, element: str, lanes: int) -> None:
        self.e, self.element, self.lanes = e, element, lanes
        self.integer = "i" + element[1:]
        self.type = vector_type(element, lanes)
        self.int_type = vector_type(self.integer, lanes)
        self.bool_type = vector_type("i1", lanes)
        self.mantissa, self.bias = (52, 1023) if element == "f64" else (23, 127)

    def c(self, value: float) -> str:
        return self.e.const(value, self.element, self.lanes)

    def ci(self, value: int) -> str:
        return self.e.const(value, self.integer, self.lanes)

    def op(self, name: str, a: str, b: str) -> str:
        return self.e.v(f"arith.{name} {a}, {b} : {self.type}")

    def iop(self, name: str, a: str, b: str) -> str:
        return self.e.v(f"arith.{name} {a}, {b} : {self.int_type}")

    def add(self, a: str, b: str) -> str:
        return self.op("addf", a, b)

    def sub(self, a: str, b: str) -> str:
        return self.op("subf", a, b)

    def mul(self, a: str, b: str) -> str:
        return self.op("mulf", a, b)

    def div(self, a: str, b: str) -> str:
        return self.op("divf", a, b)

    def fma(self, a: str, b: str, c: str) -> str:
        t = self.type
        return self.e.v(f"llvm.intr.fmuladd({a}, {b}, {c}) : ({t}, {t}, {t}) -> {t}")

    def neg(self, a: str) -> str:
        return self.e.v(f"arith.negf {a} : {self.type}")

    def abs(self, a: str) -> str:
        return self.e.v(f"math.absf {a} : {self.type}")

    def sqrt(self, a: str) -> str:
        return self.e.v(f"math.sqrt {a} : {self.type}")

    def floor(self, a: str) -> str:
        return self.e.v(f"math.floor {a} : {self.type}")

    def copysign(self, a: str, sign: str) -> str:
        return self.e.v(f"math.copysign {a}, {sign} : {self.type}")

    def cmp(self, predicate: str, a: str, b: str) -> str:
        return self.e.v(f"arith.cmpf {predicate}, {a}, {b} : {self.type}")

    def icmp(self, predicate: str, a: str, b: str) -> str:
        return self.e.v(f"arith.cmpi {predicate}, {a}, {b} : {self.int_type}")

    def both(self, a: str, b: str) -> str:
        return self.e.v(f"arith.andi {a}, {b} : {self.bool_type}")

    def select(self, mask: str, a: str, b: str) -> str:
        return self.e.v(f"arith.select {mask}, {a}, {b} : {self.bool_type}, {self.type}")

    def iselect(self, mask: str, a: str, b: str) -> str:
        return self.e.v(f"arith.select {mask}, {a}, {b} : {self.bool_type}, {self.int_type}")

    def bits(self, a: str) -> str:
        return self.e.v(f"arith.bitcast {a} : {self.type} to {self.int_type}")

    def from_bits(self, a: str) -> str:
        return self.e.v(f"arith.bitcast {a} : {self.int_type} to {self.type}")

    def clamp(self, a: str, lo: float | None, hi: float | None) -> str:
        """`a` within bounds; NaN stays (each is one instruction: the operand order is that of minps and maxps)."""
        if lo is not None:
            a = self.select(self.cmp("ogt", self.c(lo), a), self.c(lo), a)
        if hi is not None:
            a = self.select(self.cmp("olt", self.c(hi), a), self.c(hi), a)
        return a

    def horner(self, coefficients: tuple[float, ...], x: str) -> str:
        """sum(coefficients[i] * x^i)."""
        p = self.c(coefficients[-1])
        for c in coefficients[-2::-1]:
            p = self.fma(p, x, self.c(c))
        return p

    def any(self, mask: str) -> str:
        if self.lanes == 1:
            return mask
        return self.e.v(f"vector.reduction <or>, {mask} : {self.bool_type} into i1")

    def libm(self, name: str, *args: str) -> str:
        """Call the C library for every lane."""
        name = name if self.element == "f64" else name + "f"
        signature = f"({', '.join([self.element] * len(args))}) -> {self.element}"
        self.e.external(name, signature)
        if self.lanes == 1:
            return self.e.v(f"llvm.call @{name}({', '.join(args)}) : {signature}")
        out = self.c(0.0)
        for lane in range(self.lanes):
            parts = [self.e.v(f"vector.extract {a}[{lane}] : {self.element} from {self.type}") for a in args]
            y = self.e.v(f"llvm.call @{name}({', '.join(parts)}) : {signature}")
            out = self.e.v(f"vector.insert {y}, {out} [{lane}] : {self.element} into {self.type}")
        return out

    # Adding 1.5 * 2^mantissa rounds to an integer, to even, and leaves that integer in the low bits. Unlike a
    # conversion to integer it is defined for NaN, and it needs no rounding instruction.
    def round_magic(self, product_of: tuple[str, str]) -> tuple[str, str]:
        """(n, integer n) for n = a * b rounded to an integer, |n| < 2^(mantissa - 1)."""
        magic = 1.5 * 2.0**self.mantissa
        t = self.fma(*product_of, self.c(magic))
        bits = (self.bias + self.mantissa << self.mantissa) | 1 << (self.mantissa - 1)
        return self.sub(t, self.c(magic)), self.iop("subi", self.bits(t), self.ci(bits))

    def power_of_two(self, n: str) -> str:
        """2^n for an integer n of the normal range."""
        biased = self.iop("addi", n, self.ci(self.bias))
        return self.from_bits(self.iop("shli", biased, self.ci(self.mantissa)))

    def scale(self, p: str, n: str, n_float: str) -> str:
        """P * 2^n, with overflow and gradual underflow."""
        if self.element == "f32" and self.lanes == 16 and self.e.target.name == "avx512":
            t = self.type
            mask, current = self.e.const(-1, "i16"), self.e.const(4, "i32")
            return self.e.v(
                f'llvm.call_intrinsic "llvm.x86.avx512.mask.scalef.ps.512"({p}, {n_float}, {p}, {mask}, {current})'
                f" : ({t}, {t}, {t}, i16, i32) -> {t}"
            )
        half = self.iop("shrsi", n, self.ci(1))
        first = self.mul(p, self.power_of_two(half))
        return self.mul(first, self.power_of_two(self.iop("subi", n, half)))

    @property
    def has_lookup(self) -> bool:
        return self.element == "f32" and self.lanes == 16 and self.e.target.name == "avx512"

    def lookup(self, table: tuple[float, ...], index: str) -> str:
        """table[index mod 16], one instruction."""
        entries = ", ".join(float_text(x, "f32") for x in table)
        whole = self.e.head_value(f"arith.constant dense<[{entries}]> : {self.type}")
        t = f"({self.type}, {self.int_type}) -> {self.type}"
        return self.e.v(f'llvm.call_intrinsic "llvm.x86.avx512.permvar.sf.512"({whole}, {index}) : {t}')

    def log_parts(self, x: str) -> tuple[str, str]:
        """(f, e) with x = (1 + f) * 2^e and sqrt(1/2) <= 1 + f < sqrt(2), for positive finite x."""
        tiny = 2.0 ** (1 - self.bias)
        small = self.cmp("olt", x, self.c(tiny))
        x = self.select(small, self.mul(x, self.c(2.0**self.mantissa)), x)
        middle = 0x3FE6A09E667F3BCD if self.element == "f64" else 0x3F3504F3  # sqrt(1/2)
        i = self.bits(x)
        e = self.iop("shrsi", self.iop("subi", i, self.ci(middle)), self.ci(self.mantissa))
        f = self.from_bits(self.iop("subi", i, self.iop("shli", e, self.ci(self.mantissa))))
        e_float = self.e.v(f"arith.sitofp {e} : {self.int_type} to {self.type}")
        e_float = self.select(small, self.sub(e_float, self.c(float(self.mantissa))), e_float)
        return self.sub(f, self.c(1.0)), e_float

    def log_domain(self, x: str, r: str) -> str:
        """`r` where 0 < x < inf; else log's special values."""
        fine = self.both(self.cmp("ogt", x, self.c(0.0)), self.cmp("olt", x, self.c(math.inf)))
        negative = self.select(self.cmp("olt", x, self.c(0.0)), self.c(math.nan), x)
        special = self.select(self.cmp("oeq", x, self.c(0.0)), self.c(-math.inf), negative)
        return self.select(fine, r, special)


# -- exponentials ----------------------------------------------------------------------------------------------------


def _exp(v: Vec, x: str) -> str:
    wide = v.element == "f64"
    x = v.clamp(x, -746.0 if wide else -104.0, 710.0 if wide else 89.0)
    n, i = v.round_magic((x, v.c(_LOG2E)))
    hi, lo = _LN2_64 if wide else _LN2
    minus = v.neg(n)
    r = v.fma(minus, v.c(lo), v.fma(minus, v.c(hi), x))
    q = v.horner(_EXP64_Q if wide else _EXP_Q, r)
    p = v.add(v.fma(v.mul(r, r), q, r), v.c(1.0))
    return v.scale(p, i, n)


def _exp2(v: Vec, x: str) -> str:
    wide = v.element == "f64"
    x = v.clamp(x, -1080.0 if wide else -151.0, 1025.0 if wide else 129.0)
    n, i = v.round_magic((x, v.c(1.0)))
    r = v.sub(x, n)
    p = v.fma(v.horner(_EXP2_64_Q if wide else _EXP2_Q, r), r, v.c(1.0))
    return v.scale(p, i, n)


def _expm1(v: Vec, x: str) -> str:
    y = v.clamp(x, -18.0, 89.0)
    n, i = v.round_magic((y, v.c(_LOG2E)))
    minus = v.neg(n)
    r = v.fma(minus, v.c(_LN2[1]), v.fma(minus, v.c(_LN2[0]), y))
    p = v.fma(v.mul(r, r), v.horner(_EXP_Q, r), r)
    s = v.power_of_two(v.iop("subi", i, v.ci(1)))  # half of 2^n: 2^128 would overflow
    half = v.fma(s, p, v.sub(s, v.c(0.5)))
    return v.select(v.cmp("oeq", x, v.c(0.0)), x, v.add(half, half))


def _sigmoid(v: Vec, x: str) -> str:
    e = _exp(v, v.neg(v.abs(x)))
    one = v.c(1.0)
    top = v.select(v.cmp("olt", x, v.c(0.0)), e, one)
    return v.div(top, v.add(one, e))


def _tanh(v: Vec, x: str) -> str:
    a = v.clamp(v.abs(x), None, 10.0)
    t = _expm1(v, v.add(a, a))
    return v.copysign(v.div(t, v.add(t, v.c(2.0))), x)


def _sinh(v: Vec, x: str) -> str:
    a = v.abs(x)
    t = _expm1(v, v.clamp(a, None, 30.0))
    small = v.mul(v.c(0.5), v.add(t, v.div(t, v.add(t, v.c(1.0)))))
    e = _exp(v, v.mul(a, v.c(0.5)))  # e^a itself overflows before sinh does
    large = v.mul(v.mul(v.c(0.5), e), e)
    return v.copysign(v.select(v.cmp("olt", a, v.c(20.0)), small, large), x)


def _cosh(v: Vec, x: str) -> str:
    e = _exp(v, v.mul(v.abs(x), v.c(0.5)))
    h = v.mul(v.mul(v.c(0.5), e), e)
    return v.add(h, v.div(v.c(0.25), h))


# -- logarithms ------------------------------------------------------------------------------------------------------


def _log_polynomial(v: Vec, f: str) -> str:
    """log(1 + f) - f."""
    z = v.mul(f, f)
    return v.fma(v.c(-0.5), z, v.mul(v.mul(z, f), v.horner(_LOG_P, f)))


def _log(v: Vec, x: str) -> str:
    f, e = v.log_parts(x)
    if v.element == "f64":
        s = v.div(f, v.add(f, v.c(2.0)))
        z = v.mul(s, s)
        r = v.mul(z, v.horner(_LOG64_R, z))
        half = v.mul(v.mul(f, f), v.c(0.5))
        # log(1+f) = f - (f^2/2 - s*(f^2/2 + r)), the small parts first
        tail = v.fma(e, v.c(_LN2_64[1]), v.mul(s, v.add(half, r)))
        low = v.sub(half, tail)
        return v.log_domain(x, v.fma(e, v.c(_LN2_64[0]), v.sub(f, low)))
    y = v.fma(e, v.c(_LN2[1]), _log_polynomial(v, f))
    return v.log_domain(x, v.fma(e, v.c(_LN2[0]), v.add(f, y)))


def _log2(v: Vec, x: str) -> str:
    f, e = v.log_parts(x)
    if v.element == "f64":
        s = v.div(f, v.add(f, v.c(2.0)))
        z = v.mul(s, s)
        half = v.mul(v.mul(f, f), v.c(0.5))
        y = v.sub(v.mul(s, v.add(half, v.mul(z, v.horner(_LOG64_R, z)))), half)
    else:
        y = _log_polynomial(v, f)
    hi = 1.4426950408889634 if v.element == "f64" else 1.44269502162933349609375
    lo = 2.0355273740931033e-17 if v.element == "f64" else _LOG2E - hi
    r = v.fma(f, v.c(hi), v.fma(y, v.c(hi), v.mul(v.add(f, y), v.c(lo))))
    return v.log_domain(x, v.add(e, r))


def _log1p(v: Vec, x: str) -> str:
    one = v.c(1.0)
    u = v.add(one, x)
    # what 1 + x lost; |x| > 1 has lost it from the 1
    big = v.cmp("ogt", v.abs(x), one)
    lost = v.select(big, v.sub(one, v.sub(u, x)), v.sub(x, v.sub(u, one)))
    r = v.add(_log(v, u), v.div(lost, u))
    plain = v.both(v.cmp("ogt", u, v.c(0.0)), v.cmp("olt", u, v.c(math.inf)))
    r = v.select(plain, r, _log(v, u))
    return v.select(v.cmp("oeq", x, v.c(0.0)), x, r)


def _asinh(v: Vec, x: str) -> str:
    a = v.abs(x)
    big = v.cmp("ogt", a, v.c(2.0**24))
    b = v.clamp(a, None, 2.0**24)
    z = v.mul(b, b)
    inner = v.add(b, v.div(z, v.add(v.c(1.0), v.sqrt(v.add(z, v.c(1.0))))))
    r = v.select(big, v.add(_log(v, a), v.c(math.log(2.0))), _log1p(v, inner))
    return v.copysign(r, x)


def _acosh(v: Vec, x: str) -> str:
    big = v.cmp("ogt", x, v.c(2.0**24))
    t = v.sub(v.clamp(x, None, 2.0**24), v.c(1.0))
    inner = v.add(t, v.sqrt(v.fma(t, t, v.add(t, t))))
    r = v.select(big, v.add(_log(v, x), v.c(math.log(2.0))), _log1p(v, inner))
    return v.select(v.cmp("olt", x, v.c(1.0)), v.c(math.nan), r)


def _atanh(v: Vec, x: str) -> str:
    a = v.abs(x)
    ratio = v.div(v.add(a, a), v.sub(v.c(1.0), a))
    return v.copysign(v.mul(v.c(0.5), _log1p(v, v.select(v.cmp("ole", a, v.c(1.0)), ratio, v.c(math.nan)))), x)


def _pow(v: Vec, x: str, y: str) -> str:
    """2^(y * log2|x|) in f64, then the signs and special cases of C's pow."""
    w = Vec(v.e, "f64", v.lanes)
    wide = [v.e.v(f"arith.extf {a} : {v.type} to {w.type}") for a in (v.abs(x), y)]
    p = _exp2(w, w.mul(wide[1], _log2(w, wide[0])))
    r = v.e.v(f"arith.truncf {p} : {w.type} to {v.type}")
    one, zero = v.c(1.0), v.c(0.0)
    whole = v.cmp("oeq", y, v.floor(y))
    half = v.mul(y, v.c(0.5))
    odd = v.both(whole, v.cmp("one", half, v.floor(half)))
    negative = v.icmp("slt", v.bits(x), v.ci(0))
    # a negative base: NaN unless the exponent is whole (infinities are), odd exponents keep the sign
    r = v.select(v.both(negative, odd), v.neg(r), r)
    below = v.both(v.cmp("olt", x, zero), v.cmp("one", y, v.floor(y)))
    finite = v.cmp("ogt", x, v.c(-math.inf))
    r = v.select(v.both(below, finite), v.c(math.nan), r)
    unit = v.both(v.cmp("oeq", v.abs(x), one), v.cmp("oeq", v.abs(y), v.c(math.inf)))
    r = v.select(unit, one, r)
    r = v.select(v.cmp("oeq", x, one), one, r)
    return v.select(v.cmp("oeq", y, zero), one, r)


# -- trigonometry ----------------------------------------------------------------------------------------------------


def _trig(v: Vec, x: str, name: str) -> str:
    """sin, cos or tan: Cody and Waite's reduction in four parts, the C library for large arguments."""
    n, i = v.round_magic((x, v.c(2.0 / math.pi)))
    minus, r = v.neg(n), x
    for part in _PIO2:
        r = v.fma(minus, v.c(part), r)
    z = v.mul(r, r)
    sine = v.fma(v.mul(r, z), v.horner(_SIN_P, z), r)
    cosine = v.fma(v.mul(z, z), v.horner(_COS_P, z), v.fma(z, v.c(-0.5), v.c(1.0)))
    odd = v.icmp("ne", v.iop("andi", i, v.ci(1)), v.ci(0))
    if name == "tan":
        y = v.div(v.select(odd, v.neg(cosine), sine), v.select(odd, sine, cosine))
    else:
        y = v.select(odd, cosine, sine) if name == "sin" else v.select(odd, sine, cosine)
        quadrant = i if name == "sin" else v.iop("addi", i, v.ci(1))
        sign = v.iop("shli", v.iop("andi", quadrant, v.ci(2)), v.ci(30))
        y = v.from_bits(v.iop("xori", v.bits(y), sign))
    if name != "cos":
        y = v.select(v.cmp("oeq", x, v.c(0.0)), x, y)
    # Only the far lanes take the library's value: what one element gives must not depend on its neighbours.
    far = v.cmp("uge", v.abs(x), v.c(_TRIG_LIMIT))
    e, result = v.e, v.e.name()
    e.do(f"{result} = scf.if {v.any(far)} -> ({v.type}) {{")
    with e.region():
        e.do(f"scf.yield {v.select(far, v.libm(name, x), y)} : {v.type}")
    e.do("} else {")
    with e.region():
        e.do(f"scf.yield {y} : {v.type}")
    e.do("}")
    return result


def _atan_unit(v: Vec, t: str) -> str:
    """Atan on 0 .. 1."""
    z = v.mul(t, t)
    return v.fma(v.mul(t, z), v.horner(_ATAN_P, z), t)


def _complement(v: Vec, hi: float, lo: float, r: str) -> str:
    """(hi + lo) - r."""
    return v.add(v.sub(v.c(hi), r), v.c(lo))


_HALF_PI = (1.57079637050628662109375, -4.37113900018624283e-8)
_PI = (3.1415927410125732421875, -8.74227800037248566e-8)


def _atan(v: Vec, x: str) -> str:
    a = v.abs(x)
    big = v.cmp("ogt", a, v.c(1.0))
    r = _atan_unit(v, v.select(big, v.div(v.c(1.0), a), a))
    return v.copysign(v.select(big, _complement(v, *_HALF_PI, r), r), x)


def _atan2(v: Vec, y: str, x: str) -> str:
    a, b = v.abs(x), v.abs(y)
    steep = v.cmp("ogt", b, a)
    top, bottom = v.select(steep, a, b), v.select(steep, b, a)
    ratio = v.div(top, bottom)
    ratio = v.select(v.cmp("oeq", top, bottom), v.c(1.0), ratio)  # also inf / inf
    ratio = v.select(v.cmp("oeq", b, v.c(0.0)), v.c(0.0), ratio)  # also 0 / 0
    r = _atan_unit(v, ratio)
    r = v.select(steep, _complement(v, *_HALF_PI, r), r)
    left = v.icmp("slt", v.bits(x), v.ci(0))
    r = v.copysign(v.select(left, _complement(v, *_PI, r), r), y)
    return v.select(v.cmp("uno", x, y), v.c(math.nan), r)


def _asin_half(v: Vec, t: str) -> str:
    """Asin on 0 .. 1/2."""
    z = v.mul(t, t)
    return v.fma(v.mul(t, z), v.horner(_ASIN_P, z), t)


def _asin(v: Vec, x: str) -> str:
    a = v.abs(x)
    big = v.cmp("ogt", a, v.c(0.5))
    t = v.select(big, v.sqrt(v.mul(v.sub(v.c(1.0), a), v.c(0.5))), a)
    r = _asin_half(v, t)
    return v.copysign(v.select(big, _complement(v, *_HALF_PI, v.add(r, r)), r), x)


def _acos(v: Vec, x: str) -> str:
    a = v.abs(x)
    big = v.cmp("ogt", a, v.c(0.5))
    t = v.select(big, v.sqrt(v.mul(v.sub(v.c(1.0), a), v.c(0.5))), a)
    r = _asin_half(v, t)
    twice = v.add(r, r)
    left = v.cmp("olt", x, v.c(0.0))
    outer = v.select(left, _complement(v, *_PI, twice), twice)
    inner = v.add(v.sub(v.c(_HALF_PI[0]), v.copysign(r, x)), v.c(_HALF_PI[1]))
    return v.select(big, outer, inner)


# -- the others ------------------------------------------------------------------------------------------------------


def _erf(v: Vec, x: str) -> str:
    a = v.abs(x)
    if v.has_lookup:
        return v.copysign(_erf_by_table(v, v.clamp(a, None, _ERF_END)), x)
    z = v.mul(x, x)
    small = v.fma(x, v.horner(_ERF_SMALL, v.clamp(z, None, 1.0)), x)
    b = v.clamp(a, None, 4.0)
    large = v.sub(v.c(1.0), _exp(v, v.horner(_ERF_LARGE, b)))
    return v.select(v.cmp("olt", a, v.c(0.925)), small, v.copysign(large, x))


def _erf_by_table(v: Vec, a: str) -> str:
    """For 0 <= a <= _ERF_END: half of what two polynomials and an exponential cost, and it needs no choice between them."""
    magic = 1.5 * 2.0**v.mantissa
    u = v.fma(a, v.c(4.0), v.c(magic))  # the low bits are the number of the nearest quarter
    t = v.fma(v.sub(u, v.c(magic)), v.c(-0.25), a)
    p = v.lookup(_ERF_TABLE[-1], v.bits(u))
    for table in _ERF_TABLE[-2::-1]:
        p = v.fma(p, t, v.lookup(table, v.bits(u)))
    return p


def _rsqrt(v: Vec, x: str) -> str:
    return v.div(v.c(1.0), v.sqrt(x))


_F32: dict[str, Callable[..., str]] = {
    "exp": _exp, "exp2": _exp2, "expm1": _expm1, "log": _log, "log2": _log2, "log1p": _log1p,
    "sin": lambda v, x: _trig(v, x, "sin"), "cos": lambda v, x: _trig(v, x, "cos"),
    "tan": lambda v, x: _trig(v, x, "tan"), "tanh": _tanh, "erf": _erf, "sigmoid": _sigmoid, "asin": _asin,
    "acos": _acos, "atan": _atan, "sinh": _sinh, "cosh": _cosh, "asinh": _asinh, "acosh": _acosh, "atanh": _atanh,
    "pow": _pow, "atan2": _atan2, "rsqrt": _rsqrt, "lgamma": lambda v, x: v.libm("lgamma", x),
}  # fmt: skip
_F64: dict[str, Callable[..., str]] = {
    "exp": _exp, "exp2": _exp2, "log": _log, "log2": _log2, "sigmoid": _sigmoid, "rsqrt": _rsqrt,
}  # fmt: skip

FUNCTIONS: tuple[str, ...] = tuple(_F32)
"""Operators of the scalar table that are emitted here."""
