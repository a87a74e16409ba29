"""Quantisation as `torch.export` writes it after PT2E: `quantized_decomposed.quantize_per_tensor`, `dequantize_per_channel` ...

The meaning is that of the reference implementations in torch.ao.quantization.fx._decomposed: a product with the reciprocal
scale, rounded half to even, and a difference from the zero point in f32, which is exact for bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dlc.frontend.torch_context import Ctx, Operand, add, op
from dlc.frontend.torch_contract import product
from dlc.ir.codes import coded
from dlc.ir.dtype import F32, U4, DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.view import Val

_OWN = "quantized_decomposed."
_GROUP, _ROWS = 32, 256  # of a product that reads packed weights: any group that torch has, and rows of it at a time


def _overloads(name: str) -> tuple[str, ...]:
    return tuple(f"{_OWN}{name}.{overload}" for overload in ("default", "tensor", "tensor2"))


def _spread(c: Ctx, v: Operand | None, x: Val, axis: int | None, dtype: DType) -> Val | None:
    """A scale or zero point at the places of `x`, in `dtype`: one number, or one per place of `axis`."""
    if v is None or (isinstance(v, int) and v == 0):
        return None
    own = c.val(v)
    if axis is None:
        own = own.view((), lambda: [0] * own.rank)
    else:
        own = own.view(x.shape, lambda *i: [i[axis]])
    wide = own.broadcast_to(x.shape)
    return wide if wide.dtype == dtype else Val(dtype, x.shape, lambda i: Cast(dtype, wide.at(i), "wrap"))


def _reciprocal(c: Ctx, scale: Operand) -> Operand:
    """1 / scale, of a number in double precision as Python computes it."""
    if isinstance(scale, float | int):
        return 1.0 / scale
    return c.b.map(f"{c.hint}_reciprocal", lambda s: apply("div", const(1.0, c.val(scale).dtype), s), c.val(scale))


def _quantise(c: Ctx, x: Val, scale: Operand, zero: Operand, low: Any, high: Any, axis: int | None) -> Val:
    factor = _spread(c, _reciprocal(c, scale), x, axis, F32)
    offset = _spread(c, zero, x, axis, F32)
    least, most = (const(float(c.number(v, "a bound of the quantised range")), F32) for v in (low, high))
    assert factor is not None

    def element(*i: IntExpr) -> Expr:
        wide = x.at(i) if x.dtype == F32 else Cast(F32, x.at(i))
        e = apply("round", apply("mul", wide, factor.at(i)))
        if offset is not None:
            e = apply("add", e, offset.at(i))
        return Cast(c.dtype, apply("min", apply("max", e, least), most))

    return c.b.compute(c.hint, x.shape, element, c.dtype)


def _dequantise(c: Ctx, x: Val, scale: Operand, zero: Operand | None, axis: int | None) -> Val:
    factor, offset = _spread(c, scale, x, axis, F32), _spread(c, zero, x, axis, F32)
    assert factor is not None

    def element(*i: IntExpr) -> Expr:
        e: Expr = Cast(F32, x.at(i))
        if offset is not None:
            e = apply("sub", e, offset.at(i))
        e = apply("mul", e, factor.at(i))
        return e if c.dtype == F32 else Cast(c.dtype, e)

    return c.b.compute(c.hint, x.shape, element, c.dtype)


@op(*_overloads("quantize_per_tensor"))
def quantize_per_tensor(c: Ctx, x: Val, scale: Operand, zero: Operand, low: Any, high: Any, dtype: Any) -> Val:
    del dtype  # that of the traced result
    return _quantise(c, x, scale, zero, low, high, None)


@op(*_overloads("dequantize_per_tensor"))
def dequantize_per_tensor(
    c: Ctx, x: Val, scale: Operand, zero: Operand, low: Any, high: Any, dtype: Any, *, out_dtype: Any = None
) -> Val:
    del low, high, dtype, out_dtype
    return _dequantise(c, x, scale, zero, None)


@op(f"{_OWN}quantize_per_channel.default")
def quantize_per_channel(
    c: Ctx, x: Val, scales: Operand, zeros: Operand, axis: int, low: Any, high: Any, dtype: Any
) -> Val:
    del dtype
    return _quantise(c, x, scales, zeros, low, high, c.dim(axis, x.rank))


@op(f"{_OWN}dequantize_per_channel.default")
def dequantize_per_channel(
    c: Ctx,
    x: Val,
    scales: Operand,
    zeros: Operand | None,
    axis: int,
    low: Any,
    high: Any,
    dtype: Any,
    *,
    out_dtype: Any = None,
) -> Val:
    del low, high, dtype, out_dtype
    return _dequantise(c, x, scales, zeros, c.dim(axis, x.rank))


@op("_weight_int8pack_mm")
def weight_int8pack_mm(c: Ctx, x: Val, weight: Val, scales: Val) -> Val:
    """x times the transpose of weight, i8[n, k], with a scale for each of its rows: what torchao's int8 weights become."""

    def element(*i: IntExpr) -> Expr:
        row = scales.at(i[:1])
        return apply("mul", Cast(F32, weight.at(i)), row if scales.dtype == F32 else Cast(F32, row))

    dense = c.b.compute(f"{c.hint}_dequantised", weight.shape, element, F32)
    return _rounded(c, product(c, _as_f32(x), dense.transpose(0, 1), F32))


@op("_weight_int4pack_mm_for_cpu")
def weight_int4pack_mm(c: Ctx, x: Val, weight: Val, group: int, both: Val) -> Val:
    """x times the transpose of weights of 4 bits, (code - 8) * scale + zero point: what torchao's int4 weights become on a CPU.

    `both[k // group, n]` are scale and zero point. How the codes lie in `weight` is torch's own affair, which it is asked to undo.
    """
    n, k = (e.const or 0 for e in (weight.shape[0], x.shape[1]))
    codes = c.b.constant(coded(_int4_codes(c, weight, n, k), U4), f"{c.hint}_codes")

    def part(which: int, place: IntExpr, row: IntExpr) -> Expr:
        e = both(place, row, which)
        return e if both.dtype == F32 else Cast(F32, e)

    def element(row: IntExpr, term: IntExpr) -> Expr:
        number = apply("sub", Cast(F32, codes.at((row, term))), const(8.0))
        return apply("mul", number, part(0, term // group, row))

    rows = _as_f32(x)
    dense = c.b.compute(f"{c.hint}_dequantised", [n, k], element, F32)
    total = product(c, rows, dense.transpose(0, 1), F32)
    sums = c.b.reduce(
        f"{c.hint}_sums", "sum", [x.shape[0], k // group], [group], lambda i, r: rows.at((i[0], i[1] * group + r[0])), F32
    )
    zeros = c.b.compute(f"{c.hint}_zeros", [k // group, n], lambda g, row: part(1, g, row), F32)
    return _rounded(c, c.map(c.hint, add, total, product(c, sums, zeros, F32), dtype=F32))


def _int4_codes(c: Ctx, weight: Val, n: int, k: int) -> np.ndarray[Any, Any]:
    """The codes u8[n, k] of weights that torch has packed for this machine: what it multiplies a unit matrix by."""
    packed = c.b.data.get(weight.name or "")
    if packed is None:
        raise c.unsupported("its weights are no constant")
    given = torch.from_numpy(np.array(packed))
    plain = torch.stack([torch.ones(k // _GROUP, n), torch.zeros(k // _GROUP, n)], dim=-1)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    parts = [multiply(torch.eye(k)[start : start + _ROWS], given, _GROUP, plain) for start in range(0, k, _ROWS)]
    return (torch.cat(parts).T + 8).to(torch.uint8).numpy()


def _as_f32(x: Val) -> Val:
    return x if x.dtype == F32 else Val(F32, x.shape, lambda i: Cast(F32, x.at(i)))


def _rounded(c: Ctx, total: Val) -> Val:
    return total if c.dtype == F32 else c.b.compute(c.hint, total.shape, lambda *i: Cast(c.dtype, total.at(i)), c.dtype)
