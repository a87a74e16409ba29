"""What a contraction is: a sum of products of two factors."""

from __future__ import annotations

from collections.abc import Mapping

from dlc.ir.dtype import BF16, F16, F32, F64
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Apply, Expr
from dlc.passes.words import sums_bytes

FLOATS = (F64, F32, F16, BF16)


def contraction_factors(step: Einsum, types: Mapping[str, TensorType] | None = None) -> tuple[Expr, Expr] | None:
    """The two factors of a sum of products of floating-point numbers, or, with the tensors' types, of bytes."""
    if step.reduce is None or step.reduce.op != "sum" or step.where is not None or len(step.exprs) != 1:
        return None
    if not isinstance(step.expr, Apply) or step.expr.op != "mul":
        return None
    if step.dtype not in FLOATS and (types is None or not sums_bytes(step, types)):
        return None
    return step.expr.args[0], step.expr.args[1]
