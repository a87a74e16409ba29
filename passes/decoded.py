"""Recognising weights that are stored as codes: `scale * (value(code) - zero)`, scale and zero one number per group of terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd
from typing import Any

import numpy as np

from dlc.ir.codes import coded
from dlc.ir.dtype import F64, I8, U8, DType
from dlc.ir.einsum import Rank, TensorType, einsum
from dlc.ir.expr import Access, Apply, Cast, Expr, accesses, transform, walk
from dlc.ir.extent import FloorDiv, IntExpr, Var, has_value, int_expr, var, variables
from dlc.ir.interpret import eval_einsum

Array = np.ndarray[Any, Any]
_ADDITIVE = ("add", "sub")


@dataclass(frozen=True)
class Decoded:
    """`(value - zero) * product(scales)`.

    Attributes:
        codes: the element of the constant that holds the codes.
        value: what a code stands for, an expression of `codes` alone.
        zero: what is subtracted; None for nothing.
        scales: factors without codes.
    """

    codes: Access
    value: Expr
    zero: Expr | None
    scales: tuple[Expr, ...]


def factors(e: Expr) -> tuple[Expr, ...]:
    """The factors of a product, however it is bracketed."""
    if isinstance(e, Apply) and e.op == "mul":
        return tuple(f for a in e.args for f in factors(a))
    return (e,)


def decoded(e: Expr, held: Mapping[str, TensorType], term: str) -> Decoded | None:
    """`e` as a decoded weight, together with what else it is multiplied by.

    Args:
        held: the constants, among which codes are sought: coded types, and bytes.
        term: the rank that is summed over; what varies with `term // size` alone is a scale.
    """
    parts = factors(e)
    found = [p for p in parts if _codes(p, held) and group_of((p,), term, 1) is None]
    if len(found) != 1:
        return None
    rest = tuple(p for p in parts if p is not found[0])
    value, zero = _difference(found[0])
    if zero is not None and _codes(value, held) is None:
        return None
    read = set(accesses(value))
    if len(read) != 1:
        return None
    (codes,) = read
    return Decoded(codes, value, zero, rest) if codes.default is None and not any(map(has_value, codes.index)) else None


def _codes(e: Expr, held: Mapping[str, TensorType]) -> Access | None:
    """An element of a matrix of codes that `e` reads, other than as a zero point."""
    value, _ = _difference(e)
    read = [a for a in accesses(value) if a.tensor in held and is_code(held[a.tensor].dtype) and held[a.tensor].rank >= 2]
    return read[0] if read else None


def is_code(dtype: DType) -> bool:
    """Whether a constant of this type may hold codes."""
    return dtype.is_coded or dtype in (U8, I8)


def _difference(e: Expr) -> tuple[Expr, Expr | None]:
    """(minuend, subtrahend) of a difference, casts of the whole moved to its parts."""
    match e:
        case Apply("sub", (value, zero)):
            return value, zero
        case Cast(dtype, Apply("sub", (value, zero)), mode) if dtype.is_float:
            return Cast(dtype, value, mode), Cast(dtype, zero, mode)
        case _:
            return e, None


def table_of(value: Expr, codes: Access, dtype: DType) -> Array:
    """The number that `value` is for each code of the type, f64[codes]."""
    count = dtype.codes if dtype.is_coded else 256
    numbers = np.arange(count, dtype=np.uint8)
    held = coded(numbers, dtype) if dtype.is_coded else numbers.view(dtype.numpy)
    at = Access("@codes", (var("c"),))

    def swap(e: Expr) -> Expr | None:
        return at if e == codes else None

    step = einsum("@values", (Rank("c", int_expr(count)),), Cast(F64, transform(value, swap)), F64)
    (values,) = eval_einsum(step, {"@codes": held}, {})
    return values


@dataclass(frozen=True)
class Affine:
    """`value(code) = slope * (code ^ flip) + start`, the slope positive."""

    slope: Fraction
    start: Fraction
    flip: int


def affine(table: Array) -> Affine | None:
    """The table as an affine function of the code, or of the code with its sign bit the other way."""
    if not np.isfinite(table).all():
        return None
    for flip in (0, len(table) // 2 if len(table) & (len(table) - 1) == 0 else 0):
        ordered = table[np.arange(len(table)) ^ flip]
        slope = ordered[1] - ordered[0]
        if slope > 0 and (ordered == ordered[0] + slope * np.arange(len(table))).all():
            return Affine(Fraction(float(slope)), Fraction(float(ordered[0])), flip)
    return None


def integers(table: Array) -> tuple[int, int] | None:
    """(power, least) such that `table * 2^power - least` are whole numbers of one byte; None when there are none."""
    if not np.isfinite(table).all():
        return None
    power = max((Fraction(float(x)).denominator.bit_length() - 1 for x in table), default=0)
    scaled = table * 2.0**power
    divisor = gcd(*(int(x) for x in scaled))
    while divisor and divisor % 2 == 0:
        power, scaled, divisor = power - 1, scaled / 2, divisor // 2
    least = int(scaled.min())
    return (power, least) if scaled.max() - least <= 255 else None


def group_of(exprs: Sequence[Expr], name: str, extent: int) -> int | None:
    """Terms of rank `name` that share all of `exprs`; None when these move with it otherwise than by `name // size`."""
    size = 0
    for e in exprs:
        for node in walk(e):
            indices: tuple[IntExpr, ...] = node.index if isinstance(node, Access) else ()
            if not isinstance(node, Access) and not node.children and name in node.variables:
                return None
            for i in indices:
                found = _divisors(i, name)
                if found is None:
                    return None
                size = gcd(size, *found)
    return size or extent


def _divisors(i: IntExpr, name: str) -> list[int] | None:
    """The sizes by which `i` divides the rank; None when it has the rank outside of a division."""
    if has_value(i):
        return None if name in variables(i) else []
    sizes: list[int] = []
    for atom in (a for monomial, _ in i.terms for a in monomial):
        match atom:
            case Var(own) if own == name:
                return None
            case FloorDiv(num, den) if name in variables(num):
                if num != var(name) or den.const is None:
                    return None
                sizes.append(den.const)
            case _ if name in variables(IntExpr((((atom,), 1),))):
                return None
    return sizes


__all__ = ["Affine", "Decoded", "affine", "decoded", "factors", "group_of", "integers", "is_code", "table_of"]
