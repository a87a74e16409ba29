"""The scalar operators: one table of arity, typing rule and meaning.

Each operator's NumPy meaning is what the interpreter computes and what compiled code is compared with. Integer arithmetic
wraps modulo 2^bits. Nothing traps: division by zero gives 0 for integers. min/max propagate NaN; `minnum`/`maxnum` ignore it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = Any


@dataclass(frozen=True, slots=True)
class ScalarOp:
    """An operator on scalars.

    Attributes:
        arity: number of operands.
        typing: `same` (operands and result share a type), `compare` (same type in, bool out), `test` (one in, bool out),
            `select` (bool, T, T), `logic` (bool in and out), `shift`.
        kinds: operand kinds allowed, of `fiub`.
        meaning: NumPy implementation over arrays of the operand type.
        infix: symbol in the text form, if any.
        rule: a sentence for the table in docs, where there is something to say.
    """

    name: str
    arity: int
    typing: str
    kinds: str
    meaning: Callable[..., Array]
    infix: str = ""
    rule: str = ""


def _int_division(rounding: str) -> Callable[[Array, Array], Array]:
    def divide(a: Array, b: Array) -> Array:
        a, b = np.asarray(a), np.asarray(b)
        zero = b == 0
        safe = np.where(zero, np.ones_like(b), b)
        quotient = np.floor_divide(a, safe)  # min / -1 wraps to min
        remainder = a - quotient * safe
        if rounding == "trunc":
            quotient = quotient + ((remainder != 0) & ((a < 0) != (safe < 0))).astype(a.dtype)
        elif rounding == "euclid":
            quotient = quotient + ((remainder != 0) & (safe < 0)).astype(a.dtype)
        return np.where(zero, np.zeros_like(quotient), quotient).astype(a.dtype)

    return divide


def _float_division(rounding: str) -> Callable[[Array, Array], Array]:
    return lambda a, b: np.trunc(a / b) if rounding == "trunc" else np.floor(a / b)


def _division(rounding: str) -> Callable[[Array, Array], Array]:
    ints, floats = _int_division(rounding), _float_division(rounding)
    return lambda a, b: floats(a, b) if np.asarray(a).dtype.kind == "f" else ints(a, b)


def _remainder(rounding: str) -> Callable[[Array, Array], Array]:
    quotient = _int_division(rounding)

    def remainder(a: Array, b: Array) -> Array:
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype.kind == "f":
            return np.fmod(a, b) if rounding == "trunc" else np.mod(a, b)
        return np.where(b == 0, np.zeros_like(a), a - quotient(a, b) * b).astype(a.dtype)

    return remainder


def _shift(left: bool) -> Callable[[Array, Array], Array]:
    def shift(a: Array, b: Array) -> Array:
        a, b = np.asarray(a), np.asarray(b)
        bits = a.dtype.itemsize * 8
        wide = (b < 0) | (b.astype(np.uint64) >= bits)
        amount = np.where(wide, np.zeros_like(b), b)
        if left:
            return np.where(wide, np.zeros_like(a), np.left_shift(a, amount)).astype(a.dtype)
        beyond = np.where(a < 0, -np.ones_like(a), np.zeros_like(a)) if a.dtype.kind == "i" else np.zeros_like(a)
        return np.where(wide, beyond, np.right_shift(a, amount)).astype(a.dtype)

    return shift


def _via(function: Callable[[float], float]) -> Callable[[Array], Array]:
    """Lift a `math` function, with its domain errors as NaN or infinity."""

    def one(x: float) -> float:
        try:
            return function(x)
        except (ValueError, OverflowError):
            return float("nan") if x != x or x == float("-inf") else float("inf")

    lifted = np.vectorize(one, otypes=[np.float64])
    return lambda a: lifted(np.asarray(a, np.float64)).astype(np.asarray(a).dtype)


def _erf(a: Array) -> Array:
    import math

    return _via(math.erf)(a)


def _lgamma(a: Array) -> Array:
    import math

    return _via(lambda x: float("inf") if math.isinf(x) or (x <= 0 and x == math.floor(x)) else math.lgamma(x))(a)


def _sigmoid(a: Array) -> Array:
    a = np.asarray(a)
    e = np.exp(-np.abs(a))
    return np.where(a >= 0, 1 / (1 + e), e / (1 + e)).astype(a.dtype)


def _float_pow(a: Array, b: Array) -> Array:
    return np.power(a, b)


def _int_pow(a: Array, b: Array) -> Array:
    a, b = np.asarray(a), np.asarray(b)
    result, base, e = np.ones_like(a * b), a + np.zeros_like(a * b), np.maximum(b, 0) + np.zeros_like(a * b)
    while np.any(e > 0):
        result = np.where(e & 1, result * base, result)
        base, e = base * base, e >> 1
    inverse = np.where(a == 1, 1, np.where(a == -1, np.where(b & 1, -1, 1), 0)) if a.dtype.kind == "i" else (a == 1)
    return np.where(b < 0, inverse, result).astype(a.dtype)


def _pow(a: Array, b: Array) -> Array:
    return _float_pow(a, b) if np.asarray(a).dtype.kind == "f" else _int_pow(a, b)


def _popcount(a: Array) -> Array:
    a = np.asarray(a)
    return np.bitwise_count(a.view(f"u{a.dtype.itemsize}")).astype(a.dtype)  # NumPy alone would count those of |a|


def _neg(a: Array) -> Array:
    a = np.asarray(a)
    return np.negative(a) if a.dtype.kind in "fi" else (np.zeros_like(a) - a)


def _op(
    name: str, arity: int, typing: str, kinds: str, meaning: Callable[..., Array], infix: str = "", rule: str = ""
) -> ScalarOp:
    return ScalarOp(name, arity, typing, kinds, meaning, infix, rule)


_TABLE = (
    _op("add", 2, "same", "fiu", np.add, "+"),
    _op("sub", 2, "same", "fiu", np.subtract, "-"),
    _op("mul", 2, "same", "fiu", np.multiply, "*"),
    _op("div", 2, "same", "f", np.divide, "/", "float division; x/0 is an infinity or NaN"),
    _op("div_trunc", 2, "same", "fiu", _division("trunc"), rule="rounds towards 0; integer x/0 = 0, min/-1 wraps"),
    _op("div_floor", 2, "same", "fiu", _division("floor"), rule="rounds down; integer x/0 = 0, min/-1 wraps"),
    _op("div_euclid", 2, "same", "iu", _int_division("euclid"), rule="remainder never negative; x/0 = 0"),
    _op("rem_trunc", 2, "same", "fiu", _remainder("trunc"), rule="sign of the dividend; integer x%0 = 0"),
    _op("rem_floor", 2, "same", "fiu", _remainder("floor"), rule="sign of the divisor; integer x%0 = 0"),
    _op("rem_euclid", 2, "same", "iu", _remainder("euclid"), rule="never negative; x%0 = 0"),
    _op("pow", 2, "same", "fiu", _pow, rule="integers: wraps; negative exponent truncates the reciprocal"),
    _op("min", 2, "same", "fiub", np.minimum, rule="NaN propagates"),
    _op("max", 2, "same", "fiub", np.maximum, rule="NaN propagates"),
    _op("minnum", 2, "same", "f", np.fmin, rule="a NaN operand is ignored"),
    _op("maxnum", 2, "same", "f", np.fmax, rule="a NaN operand is ignored"),
    _op("atan2", 2, "same", "f", np.arctan2),
    _op("copysign", 2, "same", "f", np.copysign),
    _op("nextafter", 2, "same", "f", np.nextafter),
    _op("and", 2, "same", "iub", np.bitwise_and, "&"),
    _op("or", 2, "same", "iub", np.bitwise_or, "|"),
    _op("xor", 2, "same", "iub", np.bitwise_xor, "^"),
    _op("shl", 2, "same", "iu", _shift(True), rule="a shift by the width or more gives 0"),
    _op("shr", 2, "same", "iu", _shift(False), rule="arithmetic for signed types; beyond the width gives the sign"),
    _op("eq", 2, "compare", "fiub", np.equal, "=="),
    _op("ne", 2, "compare", "fiub", np.not_equal, "!="),
    _op("lt", 2, "compare", "fiub", np.less, "<"),
    _op("le", 2, "compare", "fiub", np.less_equal, "<="),
    _op("gt", 2, "compare", "fiub", np.greater, ">"),
    _op("ge", 2, "compare", "fiub", np.greater_equal, ">="),
    _op("not", 1, "same", "iub", lambda a: np.logical_not(a) if np.asarray(a).dtype == bool else np.invert(a)),
    _op("neg", 1, "same", "fiu", _neg),
    _op("abs", 1, "same", "fiu", np.abs, rule="|min| wraps to min"),
    _op("sign", 1, "same", "fiu", np.sign, rule="NaN stays NaN, -0.0 gives 0"),
    _op("floor", 1, "same", "f", np.floor),
    _op("ceil", 1, "same", "f", np.ceil),
    _op("trunc", 1, "same", "f", np.trunc),
    _op("round", 1, "same", "f", np.rint, rule="half to even"),
    _op("sqrt", 1, "same", "f", np.sqrt),
    _op("rsqrt", 1, "same", "f", lambda a: 1 / np.sqrt(a)),
    _op("exp", 1, "same", "f", np.exp),
    _op("exp2", 1, "same", "f", np.exp2),
    _op("expm1", 1, "same", "f", np.expm1),
    _op("log", 1, "same", "f", np.log),
    _op("log2", 1, "same", "f", np.log2),
    _op("log1p", 1, "same", "f", np.log1p),
    _op("sin", 1, "same", "f", np.sin),
    _op("cos", 1, "same", "f", np.cos),
    _op("tan", 1, "same", "f", np.tan),
    _op("asin", 1, "same", "f", np.arcsin),
    _op("acos", 1, "same", "f", np.arccos),
    _op("atan", 1, "same", "f", np.arctan),
    _op("sinh", 1, "same", "f", np.sinh),
    _op("cosh", 1, "same", "f", np.cosh),
    _op("tanh", 1, "same", "f", np.tanh),
    _op("asinh", 1, "same", "f", np.arcsinh),
    _op("acosh", 1, "same", "f", np.arccosh),
    _op("atanh", 1, "same", "f", np.arctanh),
    _op("erf", 1, "same", "f", _erf),
    _op("sigmoid", 1, "same", "f", _sigmoid),
    _op("lgamma", 1, "same", "f", _lgamma),
    _op("isnan", 1, "test", "f", np.isnan),
    _op("isinf", 1, "test", "f", np.isinf),
    _op("signbit", 1, "test", "f", np.signbit),
    _op("popcount", 1, "same", "iu", _popcount),
    _op("select", 3, "select", "fiub", np.where),
)

SCALAR_OPS: dict[str, ScalarOp] = {op.name: op for op in _TABLE}
INFIX: dict[str, str] = {op.infix: op.name for op in _TABLE if op.infix}

CAST_MODES: dict[str, str] = {
    "sat": "float to int: NaN gives 0, out of range saturates; int to int wraps; to a coded float: the greatest finite number",
    "wrap": "float to int through i64, then modulo 2^bits (ATen on x86); int to int wraps; to a coded float: infinity, else NaN",
}


def cast_array(a: Array, to: np.dtype[Any], mode: str) -> Array:
    """`a` converted to `to` as the IR defines it (`CAST_MODES`); floats round to nearest even; anything to bool is `!= 0`."""
    a = np.asarray(a)
    if to == np.bool_:
        return a != 0
    from_float = a.dtype.kind == "f" or a.dtype.name == "bfloat16"
    if from_float and to.kind in "iu":
        wide = a.astype(np.float64)
        if mode == "wrap":
            outside = ~((wide >= -(2.0**63)) & (wide < 2.0**63))
            whole = np.where(outside, -(2.0**63), wide).astype(np.int64)
            if to == np.uint64:
                upper = (wide >= 2.0**63) & (wide < 2.0**64)
                shifted = np.where(upper, wide - 2.0**63, 0).astype(np.int64).astype(np.uint64) + np.uint64(1 << 63)
                return np.where(upper, shifted, whole.astype(np.uint64))
            return whole.astype(to)
        info = np.iinfo(to)
        hi = np.nextafter(float(info.max) + 1, 0) if to.itemsize == 8 else float(info.max)
        clipped = np.clip(np.nan_to_num(np.trunc(wide), nan=0.0, posinf=np.inf, neginf=-np.inf), float(info.min), hi)
        result = clipped.astype(to)
        return np.where(wide >= float(info.max), np.asarray(info.max, to), result)
    with np.errstate(over="ignore", invalid="ignore"):
        return a.astype(to)
