"""Codes packed into bytes without gaps, and back.

Bit j of code i is bit `i * bits + j` of the stream, bit 0 of a byte being its lowest: a code may straddle two bytes. What is left
of the last byte is 0. A type with `per_byte` codes in a byte (`t5`) has its codes as digits there, the first one lowest:
`sum c[i] * codes^i`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from dlc.ir.dtype import DType
from dlc.ir.errors import InvalidCode

Array: TypeAlias = np.ndarray[Any, Any]

_GROUP = 8  # codes whose bits fill whole bytes, whatever the width


def packed_bytes(count: int, dtype: DType) -> int:
    """Bytes that `count` packed codes take."""
    if dtype.per_byte is not None:
        return -(-count // dtype.per_byte)
    return (count * dtype.bits + 7) // 8


def pack(codes: Array, dtype: DType) -> Array:
    """The codes (u8, any shape, read in row-major order) as a stream of bytes, u8[packed_bytes].

    Raises:
        InvalidCode: a code that the type does not have.
    """
    flat = np.ascontiguousarray(codes, np.uint8).reshape(-1)
    if flat.size and int(flat.max()) >= dtype.codes:
        raise InvalidCode(code=int(flat.max()), dtype=dtype, codes=dtype.codes)
    if dtype.per_byte is not None:
        weights = dtype.codes ** np.arange(dtype.per_byte)
        return (_grouped(flat, dtype.per_byte).astype(np.int64) @ weights).astype(np.uint8)
    if dtype.bits == 8:
        return flat.copy()
    groups = _grouped(flat, _GROUP).astype(np.uint64)
    word = np.zeros(len(groups), np.uint64)
    for k in range(_GROUP):
        word |= groups[:, k] << np.uint64(k * dtype.bits)
    return (
        word.astype("<u8").view(np.uint8).reshape(-1, 8)[:, : dtype.bits].reshape(-1)[: packed_bytes(flat.size, dtype)]
    )


def unpack(stream: Array, dtype: DType, count: int) -> Array:
    """The first `count` codes of the stream, u8[count]."""
    raw = np.ascontiguousarray(stream, np.uint8).reshape(-1)
    if dtype.per_byte is not None:
        digits = raw[:, None].astype(np.int64) // dtype.codes ** np.arange(dtype.per_byte) % dtype.codes
        return digits.astype(np.uint8).reshape(-1)[:count]
    if dtype.bits == 8:
        return raw[:count].copy()
    padded = np.zeros((len(_grouped(raw, dtype.bits)), 8), np.uint8)
    padded[:, : dtype.bits] = _grouped(raw, dtype.bits)
    word = padded.reshape(-1).view("<u8")
    shifts = np.arange(_GROUP, dtype=np.uint64) * np.uint64(dtype.bits)
    return ((word[:, None] >> shifts) & np.uint64((1 << dtype.bits) - 1)).astype(np.uint8).reshape(-1)[:count]


def _grouped(flat: Array, size: int) -> Array:
    """`flat` in rows of `size`, the last one filled with zeros."""
    rows = -(-flat.size // size)
    if rows * size == flat.size:
        return flat.reshape(rows, size)
    full = np.zeros(rows * size, flat.dtype)
    full[: flat.size] = flat
    return full.reshape(rows, size)
