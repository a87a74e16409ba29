"""Results larger than the last cache, written past it: else each of their lines would be read before it is written.

Such a store (`store ... nontemporal`) takes whole lines. `lead` is the number of elements before the first line of the
result in memory; the loop over the lanes moves up by it, and what lies before is stored as usual. Sizes that are known
decide when compiled, others in the call, between two versions of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from dlc.codegen.nest import PointStep, VectorRank, emit_nest
from dlc.codegen.tile import IndexCond
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, split_linear

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering

LEAST_LINES = 4
"""Of a row. One that is no whole number of lines is stored as usual: 769 columns over 64 MB took 4.1 ms this way, 2.7 to 4.2 as usual."""


def in_either_way(
    low: KernelLowering, possible: bool, past: Callable[[], None], plain: Callable[[], None]
) -> None:
    """Emit `past` where the results exceed the last cache, else `plain`; both where only the call can tell."""
    large = _exceeds_caches(low) if possible else False
    if isinstance(large, bool):
        (past if large else plain)()
        return
    with low.builder.branch(large) as branch:
        with branch.then():
            past()
        with branch.orelse():
            plain()


def _exceeds_caches(low: KernelLowering) -> bool | IndexCond:
    """Whether the results are larger than the last cache."""
    total = int_expr(0)
    for name in low.cascade.results:
        total = total + low.types[name].elements * low.types[name].dtype.bytes
    if total.const is not None:
        return total.const >= low.target.l3_bytes
    return IndexCond(total, "ge", int_expr(low.target.l3_bytes))


def chunk_past_caches(
    low: KernelLowering,
    steps: Sequence[PointStep],
    name: str,
    extent: IntExpr,
    chunk: tuple[IntExpr, int],
    base: dict[str, IntExpr],
) -> None:
    """A part of one long rank, `chunk` its first index and size: moved up to whole lines; the first also does what lies before."""
    first, size = chunk
    lead = low.builder.lead(low.cascade.results[0], low.target.line_bytes)
    lo = first + lead
    _part(low, steps, {name: extent}, base, (lo, maximum(minimum(lo + size, extent), lo)), streaming=True)
    with low.builder.branch(IndexCond(first, "eq", int_expr(0))) as branch, branch.then():
        _part(low, steps, {name: extent}, base, (int_expr(0), minimum(lead, extent)))


def worth_in_rows(low: KernelLowering, steps: Sequence[PointStep], ranks: Mapping[str, IntExpr], lanes: str) -> bool:
    """Whether rows along `lanes` are whole lines, at the same place in each, and several."""
    width = ranks[lanes].const
    if width is None or any(s.reduce is not None for s in steps):
        return False
    result = low.cascade.results[0]
    line = low.target.line_bytes // low.types[result].dtype.bytes
    step = next(s for s in steps if result in s.outs)
    start = split_linear(low.em.flat(low.storage[result], step.index), lanes)
    return width >= LEAST_LINES * line and start is not None and all(c % line == 0 for _, c in start[1].terms)


def rows_past_caches(
    low: KernelLowering, steps: Sequence[PointStep], loops: Mapping[str, IntExpr], base: dict[str, IntExpr]
) -> None:
    """Rows along the last of `loops`, each from its first whole line on, then what lies before that."""
    *outer, name = loops
    extent, b = loops[name], low.builder
    lead = b.named(minimum(b.lead(low.cascade.results[0], low.target.line_bytes), extent))
    with ExitStack() as stack:
        at = dict(base)
        for rank in outer:
            at[rank] = stack.enter_context(b.loop(rank, int_expr(0), loops[rank])).index
        _part(low, steps, {name: extent}, at, (lead, extent), streaming=True)
        _part(low, steps, {name: extent}, at, (int_expr(0), lead))


def _part(
    low: KernelLowering,
    steps: Sequence[PointStep],
    loop: dict[str, IntExpr],
    base: dict[str, IntExpr],
    bounds: tuple[IntExpr, IntExpr],
    *,
    streaming: bool = False,
) -> None:
    (name,) = loop
    em = low.em.scoped()
    em.streaming = streaming
    emit_nest(em, steps, loop, VectorRank(name), base, low.target, {name: bounds})
