"""Sums of products with packed codes: the form that the passes before fusion and code generation agree on.

    P[m, n, g]: i32 = sum(j) cast<i32>(Q[m, 32*g + j]) * cast<i32>(W[n // 32, g, j // 8, n % 32, j % 4, j // 4 % 2])

W is a constant of a type of a few bits whose dimensions are panels of columns, groups of terms, steps, columns of a panel, the four
terms of a 32-bit word, and the words that share their bytes. Its codes lie in that order without gaps (`dlc.ir.packing`), which
is the order in which a register tile takes them up. Beside bf16 rows the second and third term of a word change places
(`part_of`): every other byte makes a pair of bf16 numbers, and these are then of neighbouring terms. The relayout that makes W is
`dlc.passes.coded_products`.

Source: the weight layout of Tilus (arXiv 2504.12984), section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlc.ir.dtype import BF16, F32, I8, I32, U8, DType
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Access, Apply, Expr, accesses
from dlc.ir.extent import IntExpr, int_expr, substitute, variables
from dlc.ir.products import plain_access

TERMS = 4
"""Terms of a sum whose bytes share a 32-bit word."""
TALL = 20
"""Rows whose sums fit 32 registers beside what one register of columns is decoded into."""
READ_PAST = 128
"""Bytes that follow packed codes in memory: as many as the widest register, that of a warp's 32 threads."""
_RANK = 6


@dataclass(frozen=True)
class CodedSum:
    """What is multiplied in `sum(j) rows * (value(codes) - zero)`.

    Attributes:
        rows: the factor without codes, a plain access up to a cast.
        codes: the element of the packed constant.
        value: the number that a code stands for, an expression of `codes` alone.
        zero: what is subtracted from it, without the reduced rank; None for nothing.
        column: the rank whose neighbours have neighbouring words.
        inner: the reduced rank.
        together: codes of 8 bits or less that lie side by side, each `TERMS` terms after the last.
    """

    rows: Expr
    codes: Access
    value: Expr
    zero: Expr | None
    column: str
    inner: str
    together: int

    @property
    def row_access(self) -> Access:
        found = plain_access(self.rows)
        assert found is not None
        return found


def coded_sum(step: Einsum, types: Mapping[str, TensorType]) -> CodedSum | None:
    """The step as a sum of products with packed codes; None when it is none."""
    if step.reduce is None or step.reduce.op != "sum" or step.where is not None or step.write is not None:
        return None
    if len(step.exprs) != 1 or step.dtype not in (I32, F32) or step.reduce.accumulator not in (None, step.dtype):
        return None
    if not isinstance(step.expr, Apply) or step.expr.op != "mul":
        return None
    left, right = step.expr.args
    for rows, weights in ((left, right), (right, left)):
        found = _coded(step, rows, weights, types)
        if found is not None:
            return found
    return None


def _coded(step: Einsum, rows: Expr, weights: Expr, types: Mapping[str, TensorType]) -> CodedSum | None:
    codes = next((a for a in accesses(weights) if is_packed(types.get(a.tensor))), None)
    row = plain_access(rows)
    if codes is None or row is None or row.tensor not in types or len(codes.index) != _RANK:
        return None
    value, zero = _number_and_zero(weights, codes)
    free, reduced = {r.name for r in step.ranks}, {r.name for r in step.reduced}
    columns, inner = variables(codes.index[3]) & free, variables(codes.index[4]) & reduced
    if set(accesses(value)) != {codes} or len(columns) != 1 or inner != reduced or len(reduced) != 1:
        return None
    (column,), (name,) = columns, inner
    together = types[codes.tensor].shape[-1].const
    if (zero is not None and name in zero.variables) or column in row.variables or together is None:
        return None
    dtype, (extent,) = types[row.tensor].dtype, (r.extent.const for r in step.reduced)
    numbers = map(int_expr, range(min(2 * TERMS, extent or 2 * TERMS)))
    if any(substitute(codes.index[4], {name: t}) != part_of(t, dtype) for t in numbers):
        return None
    return CodedSum(rows, codes, value, zero, column, name, together) if _pair(step.dtype, dtype) else None


def part_of(term: IntExpr, rows: DType) -> IntExpr:
    """Where a term's code lies in its word of `TERMS` codes beside rows of a type; the same says which term a part is."""
    inside = term % TERMS
    return inside % 2 * 2 + inside // 2 if rows == BF16 else inside


def _number_and_zero(e: Expr, codes: Access) -> tuple[Expr, Expr | None]:
    """`e` as a number made of the code and constants alone, and what is subtracted from that."""
    if not isinstance(e, Apply) or e.op not in ("add", "sub") or set(accesses(e)) == {codes}:
        return e, None
    left, right = e.args
    if codes in accesses(left):
        value, zero = _number_and_zero(left, codes)
        rest = right if e.op == "sub" else Apply("neg", (right,))
    elif e.op == "add":
        value, zero = _number_and_zero(right, codes)
        rest = Apply("neg", (left,))
    else:
        return e, None
    if not any(True for _ in accesses(rest)):
        return Apply("sub", (value, rest)), zero
    return value, rest if zero is None else Apply("add", (zero, rest))


def is_packed(of: TensorType | None) -> bool:
    """Whether a tensor of this type is one of packed codes, by its dimensions."""
    if of is None or of.rank != _RANK or not of.row_major or not (of.dtype.is_coded or of.dtype == U8):
        return False
    together = of.shape[5].const or 0
    return of.shape[4].const == TERMS and (together == 1 or together * of.dtype.bits == 8) and of.shape[3].const is not None


def _pair(total: DType, rows: DType) -> bool:
    """Whether products with rows of this type are summed so: bytes in i32, bf16 and f32 in f32."""
    return rows == I8 if total == I32 else rows in (F32, BF16)


def memory_of(of: TensorType) -> tuple[DType, IntExpr]:
    """Type and number of the elements of a tensor's memory.

    Codes lie there without gaps, and so that a whole register can be read from where the last of them begin.
    """
    if not of.dtype.is_coded:
        return of.dtype, of.stored
    return U8, (of.stored * of.dtype.bits + 7) // 8 + READ_PAST


__all__ = ["READ_PAST", "TALL", "TERMS", "CodedSum", "coded_sum", "is_packed", "memory_of", "part_of"]
