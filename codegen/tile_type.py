"""The type of a tile, and the types that operations on tiles give."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dlc.ir.dtype import BF16, BOOL, F32, I8, I32, U1, U8, DType
from dlc.ir.scalar import SCALAR_OPS


@dataclass(frozen=True, slots=True)
class TileType:
    """Type of a tile: `dtype[slots x lanes]`; lanes 1 means one scalar per slot."""

    dtype: DType
    slots: tuple[int, ...] = ()
    lanes: int = 1

    def __str__(self) -> str:
        if not self.slots and self.lanes == 1:
            return str(self.dtype)
        slots = ", ".join(map(str, self.slots))
        return f"{self.dtype}[{slots}{' ' if slots else ''}x {self.lanes}]"

    @property
    def count(self) -> int:
        """How many registers (slots) the tile has."""
        return math.prod(self.slots)

    @property
    def is_scalar(self) -> bool:
        return not self.slots and self.lanes == 1

    def with_dtype(self, dtype: DType) -> TileType:
        return TileType(dtype, self.slots, self.lanes)


DOTS: dict[tuple[DType, DType], DType] = {(U8, I8): I32, (BF16, BF16): F32, (U1, U1): I32}
"""Element types that `Dot` multiplies, with the type it sums in."""

LOOKUPS = ((U8, U8), (U8, I8), (I32, F32))
"""Types of the index and of the elements of a `Lookup`."""



def join_shapes(types: tuple[TileType, ...]) -> tuple[tuple[int, ...], int] | None:
    """(slots, lanes) that `types` broadcast to, or None when they do not."""
    rank = max(len(t.slots) for t in types)
    slots = [1] * rank
    lanes = 1
    for t in types:
        for i, n in enumerate(t.slots, rank - len(t.slots)):
            if n != 1:
                if slots[i] not in (1, n):
                    return None
                slots[i] = n
        if t.lanes != 1:
            if lanes not in (1, t.lanes):
                return None
            lanes = t.lanes
    return tuple(slots), lanes


def view_type(type_: TileType, dtype: DType) -> TileType | None:
    """The type of a view as `dtype`; None where the lanes do not come out even."""
    bits = type_.lanes * type_.dtype.bits
    if BOOL in (type_.dtype, dtype) or bits % dtype.bits:
        return None
    return TileType(dtype, type_.slots, bits // dtype.bits)


def unpack_type(type_: TileType, bits: int) -> TileType | str:
    """Type of an `Unpack`, or a sentence saying why it has none."""
    if type_.dtype != U8 or type_.lanes < 8:
        return f"'unpack' needs registers of 8 bytes and more, not {type_}"
    return type_ if 1 <= bits <= 7 else f"codes of {bits} bits are not packed"


def lookup_type(type_: TileType, dtype: DType, size: int) -> TileType | str:
    """Type of a `Lookup` in a table of `size` elements, or a sentence saying why it has none."""
    if (type_.dtype, dtype) not in LOOKUPS:
        return f"there is no lookup of {dtype} by {type_.dtype}"
    if size < 2 or size > 256 or size & (size - 1):
        return f"a table of {size} elements is none: a power of two up to 256 is needed"
    return type_.with_dtype(dtype)


def zip_type(low: TileType, high: TileType, half: int) -> TileType | str:
    """Type of a `Zip`, or a sentence saying why it has none."""
    if low != high or low.dtype != U8 or low.lanes < 4:
        return f"'zip' needs two tiles of bytes of one shape, not {low} and {high}"
    return TileType(I32, low.slots, low.lanes // 4) if half in (0, 1) else f"a word has no half {half}"


def dot_type(left: DType, right: DType, types: tuple[TileType, ...]) -> TileType | str:
    """Type of a `Dot` of tiles (a, b, acc), or a sentence saying why it has none."""
    total = DOTS.get((left, right))
    if total is None:
        return f"there is no dot product of {left} and {right}"
    if [t.dtype for t in types] != [I32, I32, total]:
        return f"'dot' of {left} and {right} needs words in i32 twice and a sum in {total}"
    shape = join_shapes(types)
    return TileType(total, *shape) if shape is not None else f"the shapes {', '.join(map(str, types))} do not broadcast"


def fold_type(type_: TileType) -> TileType | None:
    """The type of a `Fold` of `type_`; None where its last slots do not become lanes."""
    count = type_.slots[-1] if type_.slots else 0
    if count < 1 or count & (count - 1) or count > type_.lanes:
        return None
    return TileType(type_.dtype, type_.slots[:-1], count)


def op_type(op: str, types: tuple[TileType, ...]) -> TileType | str:
    """Type of `op` applied to tiles of `types`, or a sentence saying why it has none."""
    if op == "fma":
        arity, typing, kinds = 3, "same", "f"
    elif op in SCALAR_OPS:
        arity, typing, kinds = SCALAR_OPS[op].arity, SCALAR_OPS[op].typing, SCALAR_OPS[op].kinds
    else:
        return f"there is no scalar operator '{op}'"
    if len(types) != arity:
        return f"'{op}' takes {arity} operands, not {len(types)}"
    shape = join_shapes(types)
    if shape is None:
        return f"the shapes {', '.join(map(str, types))} do not broadcast"
    values = types[1:] if typing == "select" else types
    if typing == "select" and types[0].dtype != BOOL:
        return "the first operand of 'select' must be bool"
    dtype = values[0].dtype
    if any(t.dtype != dtype for t in values):
        return f"'{op}' needs operands of one type, not {', '.join(str(t.dtype) for t in values)}"
    if dtype.kind not in kinds:
        return f"'{op}' is not defined on {dtype}"
    if dtype.is_float and dtype.bits < 32 and op != "select":
        return f"'{op}' on {dtype}: cast to f32 first, registers compute in f32 and f64 only"
    return TileType(BOOL if typing in ("compare", "test") else dtype, *shape)


__all__ = [
    "DOTS", "LOOKUPS", "TileType", "dot_type", "fold_type", "join_shapes", "lookup_type", "op_type", "unpack_type", "view_type", "zip_type",
]  # fmt: skip
