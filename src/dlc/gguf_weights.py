"""GGUF files: their quantised tensors as codes, scales and zero points, bit for bit what llama.cpp stores."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dlc.errors import BadInput, MissingPackage, Unsupported
from dlc.ir.dtype import DTYPES, F32
from dlc.passes.quantisers import Array, Grid, Quantised

_K = 256  # weights of a block of the K types


class UnreadableGguf(BadInput):
    """The file is no GGUF file, or a damaged one."""

    code = "DLC0624"
    template = "cannot read '{path}' as GGUF: {reason}"


def load_gguf(path: str | os.PathLike[str]) -> dict[str, Quantised | Array]:
    """The tensors of a GGUF file by name: matrices in few bits as `Quantised`, the others as arrays.

    Q4_0, Q4_1, Q8_0, Q4_K and Q6_K are read. `dense()` is what gguf itself makes of them, but for one rounding where a block has a
    least value (Q4_1, Q4_K): that is kept as a real zero point. `dlc.Quantize(given={parameter: matrix})` puts them into a model.

    Raises:
        MissingPackage, UnreadableGguf, Unsupported: gguf is not installed; what is wrong; a type that is not read.
    """
    try:
        import gguf
    except ImportError as error:
        raise MissingPackage(what="reading a GGUF file", package="gguf", install="dlc[gguf]") from error
    if not Path(path).is_file():
        raise UnreadableGguf(path=str(path), reason="there is no such file")
    try:
        tensors = gguf.GGUFReader(path).tensors
    except (ValueError, KeyError, IndexError, OSError, AssertionError) as error:
        raise UnreadableGguf(path=str(path), reason=str(error)) from None
    return {t.name: _tensor(gguf, t) for t in tensors}


def _tensor(gguf: Any, t: Any) -> Quantised | Array:
    kind = gguf.GGMLQuantizationType(t.tensor_type).name
    shape = tuple(int(n) for n in reversed(t.shape))
    raw = np.asarray(t.data)
    if kind in _READ:
        _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        columns = shape[-1]
        blocks = np.ascontiguousarray(raw).view(np.uint8).reshape(-1, size)
        return _READ[kind](blocks, columns)
    if kind in ("F32", "F16", "F64", "I8", "I16", "I32", "I64"):
        return raw.reshape(shape)
    if kind == "BF16":
        return np.ascontiguousarray(raw).view(np.uint8).view(DTYPES["bf16"].numpy).reshape(shape)
    raise Unsupported(op=f"tensor '{t.name}'", reason=f"blocks of {kind} are not read; known are {', '.join(_READ)}")


def _matrix(dtype: str, group: int, codes: Array, scales: Array, columns: int, least: Array | None = None) -> Quantised:
    """Codes [blocks, size], scales and least values [blocks, groups]; f32."""
    groups = columns // group
    codes = codes.reshape(-1, columns).astype(np.uint8)
    scales = scales.astype(np.float32).reshape(-1, groups)
    if least is None:
        return Quantised(Grid(DTYPES[dtype], group, F32), codes, scales, None)
    low = least.astype(np.float32).reshape(-1, groups)
    flat = scales == 0  # all of the group is the least value: 0 less -1 or 1, times its size
    codes = np.where(np.repeat(flat, group, 1), 0, codes).astype(np.uint8)
    with np.errstate(all="ignore"):
        zeros = np.where(flat, -np.sign(low), -low / scales)
    return Quantised(Grid(DTYPES[dtype], group, F32, "real"), codes, np.where(flat, np.abs(low), scales), zeros.astype(np.float32))


def _f16(a: Array) -> Array:
    return np.ascontiguousarray(a).view(np.float16).astype(np.float32)


def _nibbles(a: Array, half: int) -> Array:
    """The low halves of `half` bytes, then their high halves, for each run of bytes."""
    runs = a.reshape(len(a), -1, 1, half) >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)
    return (runs & 15).reshape(len(a), -1)


def _q4_0(b: Array, columns: int) -> Quantised:
    return _matrix("i4", 32, _nibbles(b[:, 2:], 16) ^ 8, _f16(b[:, :2]), columns)  # q - 8, in two's complement


def _q4_1(b: Array, columns: int) -> Quantised:
    return _matrix("u4", 32, _nibbles(b[:, 4:], 16), _f16(b[:, :2]), columns, _f16(b[:, 2:4]))


def _q8_0(b: Array, columns: int) -> Quantised:
    return _matrix("i8", 32, b[:, 2:], _f16(b[:, :2]), columns)


def _q4_k(b: Array, columns: int) -> Quantised:
    scales, least = _six_bits(b[:, 4:16])
    codes = _nibbles(b[:, 16:], 32)
    return _matrix("u4", 32, codes, _f16(b[:, :2]) * scales, columns, -(_f16(b[:, 2:4]) * least))


def _six_bits(b: Array) -> tuple[Array, Array]:
    """The 8 scales and 8 least values of 6 bits in 12 bytes."""
    low, high, both = b[:, :4], b[:, 4:8], b[:, 8:]
    scales = np.concatenate([low & 63, (both & 15) | ((low >> 2) & 48)], axis=1)
    least = np.concatenate([high & 63, (both >> 4) | ((high >> 2) & 48)], axis=1)
    return scales.astype(np.float32), least.astype(np.float32)


def _q6_k(b: Array, columns: int) -> Quantised:
    low = _nibbles(b[:, : _K // 2], 64).reshape(len(b), -1, 32)
    high = b[:, _K // 2 : 3 * _K // 4].reshape(len(b), -1, 1, 32) >> np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    codes = (low | ((high & 3).reshape(len(b), -1, 32) << 4)).reshape(len(b), -1)
    scales = np.ascontiguousarray(b[:, 3 * _K // 4 : -2]).view(np.int8).astype(np.float32)
    return _matrix("i6", 16, codes ^ 32, _f16(b[:, -2:]) * scales, columns)  # q - 32, in two's complement


_READ: dict[str, Callable[[Array, int], Quantised]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
