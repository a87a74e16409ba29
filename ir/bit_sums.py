"""Sums of products of numbers that lie in words as bits: the form that the passes before fusion and code generation agree on.

    P[m, n, g]: i32 = sum(p:2, q:1, w:4) popcount(and(A[p, m, g, w], W[n // 32, g, q, w, n % 32])) * F[p, q]

A has a word of 32 neighbouring terms' bits for each plane of the activations: bit b of word w is bit p of the number of term 32*w + b.
W, a constant, has the same of the weights, its dimensions panels of columns, groups of terms, planes, words, and the columns of a panel;
so that a panel is one stream of as many bits as the weights have. F says what the bits of two planes stand for together. With `xor` for
`and` it counts the terms in which the two differ. What makes W is `dlc.passes.bit_products`.

Source: Rastegari et al., XNOR-Net (arXiv 1603.05279), section 3.2; Zhou et al., DoReFa-Net (1606.06160), equation 3, for several planes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlc.ir.coded_sums import CodedSum, coded_sum
from dlc.ir.dtype import I32
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Access, Apply, Expr
from dlc.ir.extent import variables
from dlc.ir.products import plain_access

WORD_BITS = 32
"""Terms whose bits share a word."""
_RANK = 5


@dataclass(frozen=True)
class BitSum:
    """What is counted in `sum(p, q, w) popcount(rows <op> codes) * factor`.

    Attributes:
        row_access: the words without columns.
        codes: the words of the packed constant.
        differ: whether bits count where the two differ (xor), not where both are 1 (and).
        factor: of a pair of planes; None for 1.
        column: the rank whose neighbours have neighbouring words.
        word: the reduced rank along the words of a group.
    """

    row_access: Access
    codes: Access
    differ: bool
    factor: Expr | None
    column: str
    word: str


def bit_sum(step: Einsum, types: Mapping[str, TensorType]) -> BitSum | None:
    """The step as a sum over packed bits; None when it is none."""
    if step.reduce is None or step.reduce.op != "sum" or step.where is not None or step.write is not None:
        return None
    if len(step.exprs) != 1 or step.dtype != I32 or step.reduce.accumulator not in (None, I32):
        return None
    count, factor = step.expr, None
    if isinstance(count, Apply) and count.op == "mul":
        left, right = count.args
        count, factor = (right, left) if _is_count(right) else (left, right)
    match count:
        case Apply("popcount", (Apply("and" | "xor" as op, (a, b)),)):
            for rows, codes in ((a, b), (b, a)):
                found = _packed(step, rows, codes, op == "xor", factor, types)
                if found is not None:
                    return found
    return None


def _is_count(e: Expr) -> bool:
    return isinstance(e, Apply) and e.op == "popcount"


def _packed(
    step: Einsum, rows: Expr, codes: Expr, differ: bool, factor: Expr | None, types: Mapping[str, TensorType]
) -> BitSum | None:
    if not isinstance(rows, Access) or not isinstance(codes, Access) or plain_access(rows) is None or plain_access(codes) is None:
        return None
    of = types.get(codes.tensor)
    if of is None or of.rank != _RANK or not of.row_major or of.dtype != I32 or of.shape[_RANK - 1].const is None:
        return None
    free, reduced = {r.name for r in step.ranks}, {r.name: r.extent for r in step.reduced}
    columns, words = variables(codes.index[4]) & free, variables(codes.index[3]) & reduced.keys()
    if len(columns) != 1 or len(words) > 1 or (not words and of.shape[3].const != 1):
        return None
    (column,), word = columns, next(iter(words), "")
    if column in rows.variables or (word and not rows.index[-1].const == 0 and word not in variables(rows.index[-1])):
        return None
    planes = reduced.keys() - words
    if factor is not None and not factor.variables <= planes:
        return None
    return BitSum(rows, codes, differ, factor, column, word)


def packed_sum(step: Einsum, types: Mapping[str, TensorType]) -> CodedSum | BitSum | None:
    """The step as a sum whose operands are laid out for the kernel that streams one of them; None for any other."""
    return coded_sum(step, types) or bit_sum(step, types)


__all__ = ["WORD_BITS", "BitSum", "bit_sum", "packed_sum"]
