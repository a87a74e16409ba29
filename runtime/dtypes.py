"""Element types at the border: dlc's names, NumPy's and torch's types for them.

NumPy has no bfloat16.  Where `ml_dtypes` is imported its type is used, else `uint16` carries the bits.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final

import numpy as np


@dataclass(frozen=True, slots=True)
class ElementType:
    """One element type.

    Attributes:
        name: dlc's name, such as "f32".
        bytes: of one element.
        numpy: the NumPy type that stores it.
        torch: torch's name for it, or None where torch has none.
    """

    name: str
    bytes: int
    numpy: np.dtype[Any]
    torch: str | None


_TABLE: Final = (
    ("f64", "f8", "float64"), ("f32", "f4", "float32"), ("f16", "f2", "float16"), ("bf16", "u2", "bfloat16"),
    ("i8", "i1", "int8"), ("i16", "i2", "int16"), ("i32", "i4", "int32"), ("i64", "i8", "int64"),
    ("u8", "u1", "uint8"), ("u16", "u2", "uint16"), ("u32", "u4", "uint32"), ("u64", "u8", "uint64"),
    ("bool", "?", "bool"), ("c64", "c8", "complex64"), ("c128", "c16", "complex128"),
)  # fmt: skip
ELEMENT_TYPES: Final = {
    name: ElementType(name, np.dtype(code).itemsize, np.dtype(code), torch) for name, code, torch in _TABLE
}
_BY_NUMPY: Final = {np.dtype(code): name for name, code, _ in _TABLE if name != "bf16"}


def name_of(dtype: np.dtype[Any]) -> str:
    """The compiler's name of a NumPy type, or NumPy's own where dlc has none."""
    return _BY_NUMPY.get(dtype) or ("bf16" if dtype.name == "bfloat16" and dtype.itemsize == 2 else str(dtype))


def accepts(element: ElementType, dtype: np.dtype[Any]) -> bool:
    """Whether an array of `dtype` holds `element`s, in native byte order."""
    if dtype == element.numpy:
        return bool(dtype.isnative)
    return element.name == "bf16" and bool(dtype.name == "bfloat16" or dtype == np.int16)


def result_dtype(element: ElementType) -> np.dtype[Any]:
    """The NumPy type of fresh results."""
    if element.name == "bf16":
        module = sys.modules.get("ml_dtypes")
        if module is not None:
            bfloat16: np.dtype[Any] = np.dtype(module.bfloat16)
            return bfloat16
    return element.numpy
