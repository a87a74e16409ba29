"""Operands of contractions of bytes and of bf16 numbers, packed so that the terms which share a 32-bit word lie together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from dlc.costmodel.tiles import panel_columns, word_group
from dlc.ir.dtype import BF16, F32, I8, I32, U8, DType
from dlc.ir.einsum import Einsum, Rank, Reduce, Step, TensorType, einsum
from dlc.ir.expr import Access, Apply, Cast, Expr, Index, Piecewise, apply, const
from dlc.ir.extent import IntExpr, has_value, int_expr, split_linear, substitute, var

if TYPE_CHECKING:
    from dlc.passes.prepare_contractions import _Preparation as Preparation

_LEAST_ROWS = 4  # with fewer, packing a tensor at run time costs as much as the contraction


def sums_bytes(step: Einsum, types: Mapping[str, TensorType]) -> bool:
    """Whether the step sums products of an unsigned and a signed byte in i32."""
    if step.dtype != I32 or not isinstance(step.expr, Apply) or step.reduce is None:
        return False
    stored = [_stored(a.arg, types) for a in step.expr.args if isinstance(a, Cast) and a.dtype == I32]
    return set(stored) == {U8, I8} and len(stored) == 2 and step.reduce.accumulator in (None, I32)


def _stored(e: Expr, types: Mapping[str, TensorType]) -> DType | None:
    """Type in memory of what a factor reads, or would read if it were rounded first."""
    if _rounding(e) is not None:
        return BF16
    inner = e.arg if isinstance(e, Cast) else e
    return types[inner.tensor].dtype if isinstance(inner, Access) and inner.tensor in types else None


def _rounding(e: Expr) -> Cast | None:
    """The cast to bf16 that a factor is, or of which it takes the number as f32."""
    inner = e.arg if isinstance(e, Cast) and e.dtype == F32 and isinstance(e.arg, Cast) else e
    return inner if isinstance(inner, Cast) and inner.dtype == BF16 else None


def words_of(step: Einsum, factors: tuple[Expr, Expr], types: Mapping[str, TensorType]) -> int:
    """How many terms of the step's sum share a word; 1 where none do."""
    left, right = (_stored(f, types) for f in factors)
    if left is None or right is None or step.reduce is None:
        return 1
    size = word_group(left, right)
    if size == 2 and any(isinstance(f, Cast) and f.dtype not in (F32, BF16) for f in factors):
        return 1
    if size == 2 and step.reduce.accumulator not in (None, F32):
        return 1
    return size if size != 4 or sums_bytes(step, types) else 1


def packed_in_words(step: Einsum, types: Mapping[str, TensorType]) -> bool:
    """Whether `in_words` has been here: a factor has the terms of a word as its last dimension."""
    if step.reduce is None or step.reduce.op != "sum" or not isinstance(step.expr, Apply) or step.expr.op != "mul":
        return False
    left, right = step.expr.args
    size = words_of(step, (left, right), types)
    shapes = [types[a.tensor].shape for a in map(_plain, (left, right)) if a is not None]
    return size > 1 and any(len(s) >= 3 and s[-1].const == size for s in shapes)


def in_words(prep: Preparation, step: Einsum, side: int, column: str) -> list[Step] | None:
    """The contraction with its operands in words: rows contiguous, columns packed. None where they do not come so.

    Args:
        side: which factor is the columns' operand.
        column: the rank whose lanes hold outputs.
    """
    assert isinstance(step.expr, Apply) and step.reduce is not None
    factors = step.expr.args
    rows, cols = factors[1 - side], factors[side]
    size = words_of(step, (rows, cols), prep.types)
    if size == 1 or (size == 2 and not prep.options.bf16_words):
        return None
    if not _to_be_packed(prep, step, rows, cols, column, size):
        return None
    rows, rounding = _rounded(prep, step, rows)
    filled, rows = _filled(prep, step, rows, size)
    rows, made = prep.rows(filled, rows)
    made = [*rounding, *made]
    order = prep.loop_order(filled, rows) if _plain(rows) is not None else ()
    if not order or not _contiguous(prep, filled, rows, order[-1]) or order[-1].name not in cols.variables:
        return None
    if order[-1].extent.const is not None and order[-1].extent.const < size:
        return None
    old = {r.name: r.extent for r in step.reduced}
    cols, packing = _packed(prep, filled, cols, column, order, size, old[order[-1].name])
    reduce = Reduce("sum", order, step.reduce.accumulator)
    step = replace(filled, exprs=(Apply("mul", (rows, cols)),), reduce=reduce)
    last = next(n for n, r in enumerate(step.ranks) if r.name == column)
    return [*made, *packing, *prep.with_order(step, prep.result_order(step, last))]


def _plain(e: Expr) -> Access | None:
    inner = e.arg if isinstance(e, Cast) else e
    plain = isinstance(inner, Access) and inner.default is None and not any(has_value(i) for i in inner.index)
    return inner if plain and isinstance(inner, Access) else None


def _contiguous(prep: Preparation, step: Einsum, e: Expr, rank: Rank) -> bool:
    plain = _plain(e)
    return plain is not None and prep.slope(step, plain, rank.name) == 1


def _to_be_packed(prep: Preparation, step: Einsum, rows: Expr, cols: Expr, column: str, size: int) -> bool:
    """Constants are; of the others, bytes (they cannot stream as they are) and what is not contiguous anyway."""
    plain = _plain(cols)
    if plain is None:
        return False
    if plain.tensor in prep.const_names:
        return True
    return (size == 4 or prep.slope(step, plain, column) != 1) and prep.rows_of(step, rows, cols) >= _LEAST_ROWS


def _rounded(prep: Preparation, step: Einsum, rows: Expr) -> tuple[Expr, list[Step]]:
    """Wider numbers that are to be rounded to bf16 first are so in a tensor of their own."""
    rounding = _rounding(rows)
    if rounding is None:
        return rows, []
    wide = rounding.arg
    if not isinstance(wide, Access) or wide.default is not None:
        rounded, made = prep.by_ranks(step, rounding, "rows")
    else:
        ranks = tuple(Rank(f"d{n}", e) for n, e in enumerate(prep.types[wide.tensor].shape))
        whole = Cast(BF16, Access(wide.tensor, tuple(var(r.name) for r in ranks)), rounding.mode)
        copy = einsum("", ranks, whole, BF16, loc=step.loc)
        copy = replace(copy, outs=(prep.fresh(f"{wide.tensor}_bf16", copy),))
        rounded, made = Access(copy.out, wide.index), prep.step(copy)
    return (rounded if rounding is rows else Cast(F32, rounded)), made


def _filled(prep: Preparation, step: Einsum, rows: Expr, size: int) -> tuple[Einsum, Expr]:
    """Where the rows' operand is copied anyway, its contiguous rank runs to the end of the last word: over zeros, or over
    integers that the packed columns have zeros for.
    """
    assert step.reduce is not None
    mine = [r for r in step.reduced if r.name in rows.variables]
    longest = max(mine, key=lambda r: r.extent.const or 1 << 20, default=None)
    inner = rows.arg if isinstance(rows, Cast) else rows
    if longest is None or _contiguous(prep, step, rows, longest) or not isinstance(inner, Access):
        return step, rows
    last = longest if var(longest.name) in inner.index else _innermost(inner, mine)
    if size == 2 and last is not None and var(last.name) not in inner.index:
        return step, rows  # past its end lies a neighbour: an integer times 0, but not an infinity
    if last is None or last.extent.const is None or last.extent.const % size == 0:
        return step, rows
    extent = int_expr(-(-last.extent.const // size) * size)
    ranks = tuple(Rank(r.name, extent) if r.name == last.name else r for r in step.reduced)
    step = replace(step, reduce=Reduce("sum", ranks, step.reduce.accumulator))
    if inner.default is None:
        inner = Access(inner.tensor, inner.index, const(0, prep.types[inner.tensor].dtype))
    return step, Cast(rows.dtype, inner, rows.mode) if isinstance(rows, Cast) else inner


def _innermost(a: Access, ranks: list[Rank]) -> Rank | None:
    """The rank that moves the last index by one."""
    for r in ranks:
        parts = split_linear(a.index[-1], r.name)
        if parts is not None and parts[0].const == 1:
            return r
    return None


def _packed(
    prep: Preparation,
    step: Einsum,
    factor: Expr,
    column: str,
    order: tuple[Rank, ...],
    size: int,
    terms: IntExpr,
) -> tuple[Expr, list[Step]]:
    """The columns' operand as [batch.., panel, reduced.., word, lane, part]; `terms` of the last reduced rank exist."""
    plain = _plain(factor)
    assert plain is not None
    extent, grouped = step.extents[column], order[-1]
    width = panel_columns(extent, prep.options.lanes, prep.options.registers)
    used = [r for r in step.ranks if r.name in factor.variables and r.name != column]
    reduced = [r for r in order[:-1] if r.name in factor.variables]
    panels, words = (extent + (width - 1)) // width, (grouped.extent + (size - 1)) // size
    ranks = (
        *used, Rank("panel", panels), *reduced, Rank("word", words), Rank("lane", int_expr(width)), Rank("part", int_expr(size)),
    )  # fmt: skip
    at = {column: var("panel") * width + var("lane"), grouped.name: var("word") * size + var("part")}
    source = Access(plain.tensor, tuple(substitute(i, at) for i in plain.index))
    index = (
        *(var(r.name) for r in used),
        var(column) // width,
        *(var(r.name) for r in reduced),
        var(grouped.name) // size,
        var(column) % width,
        var(grouped.name) % size,
    )
    limits = ((at[column], extent, width), (at[grouped.name], terms, size))
    guards = tuple((e, n) for e, n, step_ in limits if n.const is None or n.const % step_)
    if plain.tensor in prep.const_names:
        packed = Access(prep.constant(plain.tensor, source, ranks, guards), index)
        return _like(factor, packed), []
    dtype = prep.types[plain.tensor].dtype
    expr: Expr = source
    if guards:
        inside = [apply("lt", Index(e), Index(n)) for e, n in guards]
        condition = inside[0] if len(inside) == 1 else apply("and", *inside)
        expr = Piecewise(((condition, source),), const(0, dtype))
    made = einsum("", ranks, expr, dtype, loc=step.loc)
    made = replace(made, outs=(prep.fresh(f"{plain.tensor}_panels", made),))
    return _like(factor, Access(made.out, index)), [made]


def _like(factor: Expr, access: Access) -> Expr:
    return Cast(factor.dtype, access, factor.mode) if isinstance(factor, Cast) else access
