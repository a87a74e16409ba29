"""Codes of the low-precision types and the numbers they stand for: exact tables one way, rounding the other.

Encoding rounds to the nearest value, ties to the even code, and says what becomes of the rest:

| type | beyond the range | NaN |
|---|---|---|
| floats, `saturate` | the greatest finite number; infinities too | NaN where there is one, else 0 |
| floats otherwise | infinity, NaN where there is none, the greatest number where there is neither | as above |
| integers | the nearest end | 0 |
| bipolar, ternary | the nearest end | as 0, which is no bipolar number: -1 or 1, whose code is even |

Source: OCP 8-bit Floating Point Specification (OFP8) 1.0, section 5; OCP Microscaling Formats (MX) 1.0, section 5.3; the table
of types in Tilus (arXiv 2504.12984).
"""

from __future__ import annotations

from functools import cache
from typing import Any, TypeAlias

import numpy as np

from dlc.ir.dtype import ML_DTYPES, DType, FloatFormat

Array: TypeAlias = np.ndarray[Any, Any]


# --- arrays of codes -------------------------------------------------------------------------------------------------


def coded(codes: Any, dtype: DType) -> Array:
    """An array of `dtype` with these codes (u8, each below `dtype.codes`), on the same memory."""
    return np.asarray(codes, np.uint8).view(dtype.numpy)


def codes_of(a: Array) -> Array:
    """The codes of an array of a coded type, u8 on the same memory."""
    return a.view(np.uint8)


def as_stored(a: Any) -> Array:
    """`a` as the IR stores it: the small types of `ml_dtypes` become codes."""
    array = np.asarray(a)
    dtype = ML_DTYPES.get(array.dtype.name)
    if dtype is None:
        return array
    return coded(
        np.ascontiguousarray(array).view(np.uint8).reshape(array.shape) & np.uint8((1 << dtype.bits) - 1), dtype
    )


# --- codes to numbers ------------------------------------------------------------------------------------------------


def computing_type(dtype: DType) -> np.dtype[Any]:
    """The least NumPy type of its kind that holds every value of a coded type (f64 for floats)."""
    if dtype.is_float:
        return np.dtype(np.float64)
    if dtype.kind == "u":
        return np.dtype(np.uint8)
    return np.dtype(np.int8 if dtype.highest < 128 else np.int16)


@cache
def values(dtype: DType) -> Array:
    """The number of every code, in `computing_type`; read-only."""
    codes = np.arange(dtype.codes)
    if dtype.format is not None:
        table = _float_values(dtype.format)
    elif dtype.kind == "u":
        table = codes
    elif dtype.kind == "i":
        sign = 1 << (dtype.bits - 1)
        table = (codes ^ sign) - sign
    else:
        step = 1 if dtype.codes == 3 else 2
        table = step * codes - dtype.highest
    table = table.astype(computing_type(dtype))
    table.setflags(write=False)
    return table


def decode(a: Array, dtype: DType) -> Array:
    """The numbers of an array of a coded type, exact."""
    return values(dtype)[codes_of(a)]


def _float_values(f: FloatFormat) -> Array:
    finite = magnitudes(f)
    if f.rule == "scale":
        return np.append(finite, np.nan)
    beyond = 1 << (f.exponent + f.mantissa)
    full = np.full(beyond, np.nan)
    full[: len(finite)] = finite
    if f.rule == "ieee":
        full[len(finite)] = np.inf
    both = np.concatenate([full, -full])
    if f.rule == "fnuz":
        both[beyond] = np.nan
    return both


@cache
def magnitudes(f: FloatFormat) -> Array:
    """The finite numbers that are not negative, by code, which is in rising order."""
    count = 1 << (f.exponent + f.mantissa)
    count -= {"nan": 1, "scale": 1, "ieee": 1 << f.mantissa}.get(f.rule, 0)
    codes = np.arange(count)
    field, fraction = codes >> f.mantissa, codes & ((1 << f.mantissa) - 1)
    if f.rule == "scale":
        return np.ldexp(1.0, codes - f.bias)
    normal = np.ldexp((1 << f.mantissa) + fraction.astype(np.float64), field - f.bias - f.mantissa)
    return np.where(field == 0, np.ldexp(fraction.astype(np.float64), 1 - f.bias - f.mantissa), normal)


# --- numbers to codes ------------------------------------------------------------------------------------------------


def encode(a: Any, dtype: DType, *, saturate: bool = True) -> Array:
    """The codes (u8) of the numbers nearest to `a`, by the rules at the head of this file."""
    x = np.asarray(a, np.float64)
    if dtype.format is not None:
        return _encode_float(x, dtype, dtype.format, saturate)
    x = np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=-np.inf)
    whole = _odd(x, dtype) if dtype.is_bipolar else np.rint(x - dtype.lowest)
    code = np.clip(whole, 0, dtype.codes - 1).astype(np.uint8)
    return code ^ np.uint8(1 << (dtype.bits - 1)) if dtype.kind == "i" else code


def _odd(x: Array, dtype: DType) -> Array:
    """The codes of the nearest odd numbers, ties to the even code, before they are cut off: no difference rounds a small `x` away."""
    half = np.floor(x / 2)
    code = half + (1 << (dtype.bits - 1))
    with np.errstate(invalid="ignore"):  # infinities
        return code - ((half * 2 > x) | ((half * 2 == x) & (code % 2 == 1)))  # the half of the least number below 0 was rounded up


def _encode_float(x: Array, dtype: DType, f: FloatFormat, saturate: bool) -> Array:
    borders = _borders(f)
    size = np.abs(x)
    low = np.asarray(np.searchsorted(borders, size, "left"))  # the first border that is not below
    tie = (low < len(borders)) & (borders[np.minimum(low, len(borders) - 1)] == size)
    code = low + (tie & (low % 2 == 1))
    greatest = len(magnitudes(f)) - 1
    above = code > greatest
    code = np.minimum(code, greatest)
    nan = {"nan": greatest + 1, "ieee": greatest + 2, "fnuz": 1 << (dtype.bits - 1)}.get(f.rule)
    negative = np.signbit(x)
    if f.rule == "scale":
        bad = np.isnan(x) | (negative & (size > 0)) | (above & (not saturate))
        return np.where(bad, 255, code).astype(np.uint8)
    if not saturate and f.rule == "ieee":
        code = np.where(above, greatest + 1, code)
    signed = np.where(negative & ((code > 0) | (f.rule != "fnuz")), code | (1 << (dtype.bits - 1)), code)
    if nan is None:
        return np.where(np.isnan(x), 0, signed).astype(np.uint8)
    no_number = np.isnan(x) | (above & (not saturate and f.rule in ("nan", "fnuz")))
    return np.where(no_number, nan, signed).astype(np.uint8)


@cache
def _borders(f: FloatFormat) -> Array:
    """Half way from each number to the next; the last one's next is what would follow it."""
    m = magnitudes(f)
    field = (len(m) - 1) >> f.mantissa
    step = 2.0 ** (max(field, 1) - f.bias - f.mantissa) if f.rule != "scale" else m[-1]
    following = np.append(m, m[-1] + step)
    return (following[:-1] + following[1:]) / 2


def next_after(a: Array, b: Array, dtype: DType) -> Array:
    """The number of `dtype` next to `a` in the direction of `b`, both stored; held as f64."""
    x, towards = decode(a, dtype), decode(b, dtype)
    numbers = np.unique(values(dtype)[~np.isnan(values(dtype))])
    at = np.searchsorted(numbers, x) + np.sign(towards - x).astype(np.int64)
    moved = numbers[np.clip(at, 0, len(numbers) - 1)]
    return np.where(np.isnan(x) | np.isnan(towards), np.nan, np.where(x == towards, towards, moved))
