"""Element types: one table with bits, NumPy storage and kind. Low-precision types are added here, not beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Attributes:
        name: its name in the text form (`f32`, `u8`, `bool`).
        kind: `f` float, `i` signed, `u` unsigned, `b` boolean.
        bits: width of a value; storage may be wider (bool is stored in a byte).
        storage: NumPy dtype name that holds it (`ml_dtypes` names where NumPy has none).
        native: whether kernels can be generated for it; the others are for the interpreter only.
    """

    name: str
    kind: str
    bits: int
    storage: str
    native: bool = True

    def __str__(self) -> str:
        return self.name

    @property
    def numpy(self) -> np.dtype[Any]:
        """NumPy dtype of a stored array."""
        try:
            return np.dtype(self.storage)
        except TypeError:
            import ml_dtypes

            return np.dtype(getattr(ml_dtypes, self.storage))

    @property
    def bytes(self) -> int:
        """Bytes of one stored element."""
        return max(1, self.bits // 8)

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_int(self) -> bool:
        return self.kind in "iu"

    @property
    def lowest(self) -> int:
        """Least value of an integer type."""
        return -(1 << (self.bits - 1)) if self.kind == "i" else 0

    @property
    def highest(self) -> int:
        """Greatest value of an integer type."""
        return (1 << (self.bits - (self.kind == "i"))) - 1


F64 = DType("f64", "f", 64, "float64")
F32 = DType("f32", "f", 32, "float32")
F16 = DType("f16", "f", 16, "float16")
BF16 = DType("bf16", "f", 16, "bfloat16")
I64 = DType("i64", "i", 64, "int64")
I32 = DType("i32", "i", 32, "int32")
I16 = DType("i16", "i", 16, "int16")
I8 = DType("i8", "i", 8, "int8")
U64 = DType("u64", "u", 64, "uint64")
U32 = DType("u32", "u", 32, "uint32")
U16 = DType("u16", "u", 16, "uint16")
U8 = DType("u8", "u", 8, "uint8")
BOOL = DType("bool", "b", 8, "bool")
F8E4M3 = DType("f8e4m3", "f", 8, "float8_e4m3fn", native=False)
F8E5M2 = DType("f8e5m2", "f", 8, "float8_e5m2", native=False)
I4 = DType("i4", "i", 4, "int4", native=False)
U4 = DType("u4", "u", 4, "uint4", native=False)

DTYPES: dict[str, DType] = {
    t.name: t for t in (F64, F32, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8, BOOL, F8E4M3, F8E5M2, I4, U4)
}
_BY_STORAGE = {t.storage: t for t in DTYPES.values()}


def from_numpy(dtype: Any) -> DType:
    """The element type stored as NumPy `dtype`; KeyError when there is none."""
    return _BY_STORAGE[np.dtype(dtype).name]


def default_accumulator(dtype: DType) -> DType:
    """The type a sum or product over `dtype` is accumulated in: f32 for the small floats, else the type itself."""
    return F32 if dtype in (F16, BF16, F8E4M3, F8E5M2) else dtype
