"""Weights in few bits as onnxruntime writes them: MatMulNBits and GatherBlockQuantized of com.microsoft."""

from __future__ import annotations

import numpy as np

from dlc.frontend.onnx_ops.indexing import from_back, need_index, never_negative
from dlc.frontend.onnx_ops.products import matmul
from dlc.frontend.onnx_ops.registry import Ctx, Result, op
from dlc.frontend.onnx_value import Array
from dlc.ir.codes import coded
from dlc.ir.dtype import DTYPES, F32, DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.packing import unpack
from dlc.ir.view import Val

DOMAIN = "com.microsoft"


@op("MatMulNBits", domain=DOMAIN)
def matmul_n_bits(c: Ctx) -> Result:
    """A times the transpose of (codes - zero points) * scales, one of each for every block of K.

    `accuracy_level`, which allows an implementation to round A, is not made use of.
    """
    a, n, k = c.x(0), c.int_("N"), c.int_("K")
    bits, block = c.int_("bits", 4), c.int_("block_size")
    if bits not in (2, 4, 8):
        c.bad(f"{bits} bits: 2, 4 and 8 are known")
    if n < 1 or k < 1 or block < 16 or block & (block - 1):
        c.bad(f"N={n}, K={k}, block_size={block}: extents must be positive, a block a power of two from 16 on")
    if c.has(4):
        c.refuse("columns in another order (g_idx) have no form here")
    blocks = -(-k // block)
    of = DTYPES[f"u{bits}"]
    codes = _codes(c, 1, of, n, blocks * block, "B")[:, :k]
    weight = c.b.constant(coded(codes, of) if of.is_coded else codes, f"{c.hint}_codes")
    scales = _reshaped(c, c.x(2), n, blocks, "scales")
    zeros: Val | None = None
    if c.has(3) and not c.x(3).dtype.is_float:
        zero = _codes(c, 3, of, n, blocks, "zero_points", bytes_in_row=(blocks * bits + 7) // 8)
        zeros = c.b.constant(coded(zero, of) if of.is_coded else zero, f"{c.hint}_zeros")
    elif c.has(3):
        zeros = _reshaped(c, c.x(3), n, blocks, "zero_points")

    def element(*i: IntExpr) -> Expr:
        row, column = i
        at = (row, column // block)
        middle: Expr = const(float(1 << (bits - 1))) if zeros is None else _f32(zeros, zeros.at(at))
        return apply("mul", apply("sub", Cast(F32, weight.at(i)), middle), _f32(scales, scales.at(at)))

    dense = c.b.compute(f"{c.hint}_dequantised", (n, k), element, F32)
    rows = a if a.dtype == F32 else Val(F32, a.shape, lambda i: Cast(F32, a.at(i)))
    y = matmul(c, rows, dense.transpose(0, 1), f"{c.hint}_product" if c.has(5) or a.dtype != F32 else c.hint, F32)
    bias = c.opt(5)
    if bias is None and a.dtype == F32:
        return y

    def finish(*i: IntExpr) -> Expr:
        total = y.at(i) if bias is None else apply("add", y.at(i), _f32(bias, bias.at((i[-1],))))
        return total if a.dtype == F32 else Cast(a.dtype, total)

    return c.b.compute(c.hint, y.shape, finish, a.dtype)


def _f32(v: Val, e: Expr) -> Expr:
    return e if v.dtype == F32 else Cast(F32, e)


def _codes(c: Ctx, i: int, of: DType, rows: int, columns: int, what: str, bytes_in_row: int | None = None) -> Array:
    """Packed codes of a constant input, u8[rows, columns]; a row starts with a byte."""
    given = c.numbers(i, what)
    size = bytes_in_row or columns * of.bits // 8
    if given.dtype != np.uint8 or given.size != rows * size:
        c.bad(f"{what} are {given.dtype}{list(given.shape)}, and {rows} rows of {size} bytes are needed")
    raw = given.reshape(rows, size)
    count = size * 8 // of.bits
    return unpack(raw, of, rows * count).reshape(rows, count)[:, :columns]


def _reshaped(c: Ctx, v: Val, rows: int, columns: int, what: str) -> Val:
    if v.elements.const != rows * columns:
        c.bad(f"{what} have {v.elements} elements, and {rows} x {columns} are needed")
    return v.reshape([rows, columns])


@op("GatherBlockQuantized", domain=DOMAIN)
def gather_block_quantized(c: Ctx) -> Result:
    """Rows of (codes - zero points) * scales; codes of 4 bits, or of 8 or packed in bytes as `bits` says."""
    indices, scales, safe = need_index(c, 1), c.x(2), never_negative(c.tensor(1))
    block, bits = c.int_("block_size", 128), c.int_("bits", 4)
    packed = c.x(0).dtype == DTYPES["u8"]
    of = DTYPES[f"u{bits}"] if packed else c.x(0).dtype
    if c.int_("gather_axis", 0) != 0 or c.x(0).rank != 2 or c.int_("quantize_axis", 1) not in (1, -1):
        c.refuse("only rows of a matrix with blocks along its rows are gathered")
    if packed:
        n, columns = (e.const or 0 for e in c.x(0).shape)
        codes = _codes(c, 0, of, n, columns * 8 // bits, "data", bytes_in_row=columns)
        data = c.b.constant(coded(codes, of) if of.is_coded else codes, f"{c.hint}_codes")
    else:
        data = c.x(0)
    zeros = c.opt(3)
    if zeros is not None and packed and bits < 8:
        n, columns = (e.const or 0 for e in zeros.shape)
        zero = _codes(c, 3, of, n, columns * 8 // bits, "zero_points", bytes_in_row=columns)
        zeros = c.b.constant(coded(zero, of), f"{c.hint}_zeros")
    shape = [*indices.shape, data.shape[1]]
    height = data.shape[0]

    def element(*i: IntExpr) -> Expr:
        row = from_back(indices.at(i[:-1]), indices.dtype, height, safe)
        at = (row, i[-1] // block)
        value: Expr = Cast(F32, data.at((row, i[-1])))
        if zeros is not None:
            value = apply("sub", value, Cast(F32, zeros.at(at)))
        elif packed:
            value = apply("sub", value, const(float(1 << (of.bits - 1))))
        value = apply("mul", value, _f32(scales, scales.at(at)))
        return value if scales.dtype == F32 else Cast(scales.dtype, value)

    return c.b.compute(c.hint, shape, element, scales.dtype)
