"""Windows: reductions that slide over an operand, an index of which moves with a free rank and with a reduced one."""

from __future__ import annotations

from dlc.costmodel.tiles import MOST_TAPS
from dlc.ir.einsum import Einsum
from dlc.ir.expr import Apply
from dlc.ir.extent import has_value, variables


def is_window(step: Einsum) -> bool:
    """Whether the step slides a window: an index moves with a free rank and with a reduced one."""
    if step.reduce is None or len(step.outs) != 1:
        return False
    free = moving_ranks(step)
    taps = {r.name for r in step.reduced if r.extent.const is not None and 1 < r.extent.const <= MOST_TAPS}
    return any(
        variables(i) & free and variables(i) & taps and not has_value(i) for a in step.accesses() for i in a.index
    )


def slides_point_by_point(step: Einsum) -> bool:
    """Whether the step is a window with no operand for a register tile: one factor has every free rank, as a depthwise image has.

    Then nothing is read for several columns at once, and a border costs its guards, not a copy.
    """
    if not is_window(step):
        return False
    match step.exprs:
        case (Apply("mul", (left, right)),):
            free = moving_ranks(step)
            return free <= left.variables or free <= right.variables
        case _:
            return True


def moving_ranks(step: Einsum) -> set[str]:
    """Free ranks of more than one index."""
    return {r.name for r in step.ranks if r.extent.const != 1}


__all__ = ["is_window", "moving_ranks", "slides_point_by_point"]
