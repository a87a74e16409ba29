"""Finding what a shift `(x - c)^k` subtracts: the running mean of its data, or the extreme that bounds it."""

from __future__ import annotations

from collections.abc import Sequence

from dlc.ir.expr import Access, Apply, Cast, Const, Expr, Index
from dlc.ir.extent import IntExpr
from dlc.passes.plan_operand import Operand, SeenFold, keys
from dlc.passes.plan_references import BOUNDS
from dlc.passes.refusals import Reason, Refused
from dlc.passes.running_plan import Centre
from dlc.passes.separate import Addend, Factor, Shift


def find_centre(shift: Shift, operand: Operand) -> tuple[Centre, int, tuple[Addend, ...]]:
    """(centre, sign of the data, addends beside the centre).

    Raises:
        Refused: where what is subtracted has no such addend, or others beside it and a power above 1.
    """
    rest = operand.outer_addends(shift.centre)
    for k, a in enumerate(rest):
        others = rest[:k] + rest[k + 1 :]
        found = _mean(a, shift, operand)
        if found is None and shift.power == 1:  # squares of a move from -inf would be NaN
            found = _extreme(a, shift, operand)
        if found is not None and (shift.power == 1 or not others):
            return found, -a.sign, others
    raise Refused(Reason.UNSTABLE, f"{shift.expr}: what it subtracts is neither a mean nor the extreme of its data")


def _folds_shift(e: Expr, seen: SeenFold, a: Addend, shift: Shift, operand: Operand) -> bool:
    """Whether `e`, of the fold's operand, is the data that the shift has, with the opposite of the addend's sign."""
    return keys(operand.seen_addends(e, seen)) == keys(operand.data_addends(shift.data, -a.sign))


def _extreme(a: Addend, shift: Shift, operand: Operand) -> Centre | None:
    """The maximum or minimum of the shift's data."""
    if not isinstance(a.body, Access) or a.scales:
        return None
    seen = operand.fold_at(a.body)
    if seen is None or seen.op not in BOUNDS or seen.fold.step.outs[0] != a.body.tensor:
        return None
    return Centre(a.body, None, False) if _folds_shift(seen.fold.step.expr, seen, a, shift, operand) else None


# --- means ---


def _mean(a: Addend, shift: Shift, operand: Operand) -> Centre | None:
    """`S / count`, with S the sum of the shift's data, perhaps weighted, and the count that of the weights."""
    match a.body:
        case Access() as read if a.scales:
            return _plain_mean(read, a, shift, operand)
        case Apply("div", (Access() as read, Access() as count)) if not a.scales:
            return _weighted_mean(read, count, a, shift, operand)
        case _:
            return None


def _plain_mean(read: Access, a: Addend, shift: Shift, operand: Operand) -> Centre | None:
    """The sum of all elements of the rank, scaled by their number."""
    sums = operand.fold_at(read)
    if sums is None or sums.op != "sum":
        return None
    step = sums.fold.step
    whole = step.where is None and len(step.reduced) == 1 and _is_share(a.scales, operand.chain.extent)
    return Centre(read, None, True) if whole and _folds_shift(step.expr, sums, a, shift, operand) else None


def _weighted_mean(read: Access, count: Access, a: Addend, shift: Shift, operand: Operand) -> Centre | None:
    """The sum of weighted elements, divided by that of their weights."""
    sums, weights = operand.fold_at(read), operand.fold_at(count)
    if sums is None or weights is None or sums.op != "sum" or weights.op != "sum":
        return None
    value = _without_weights(sums, weights)
    same = value is not None and _folds_shift(value, sums, a, shift, operand)
    return Centre(read, count, True) if same else None


def _without_weights(sums: SeenFold, weights: SeenFold) -> Expr | None:
    """What the sum weighs, as it names its ranks: `X[m]` of `W[m] * X[m]` for the weights `W[m]`."""
    weight = weights.here(weights.fold.step.expr)
    match sums.fold.step.expr:
        case e if isinstance(weight, Const) and weight.value == 1:
            return e
        case Apply("mul", (x, y)):
            for w, value in ((x, y), (y, x)):
                if sums.here(w) == weight:
                    return value
    return None


def _is_share(scales: Sequence[Factor], extent: IntExpr) -> bool:
    """Whether the scales divide by the number of elements of the rank."""
    if len(scales) != 1:
        return False
    match scales[0]:
        case Factor(Const(number), inverse) if extent.const is not None and float(number) != 0:
            return float(number) == extent.const if inverse else _is_reciprocal(float(number), extent.const)
        case Factor(Cast(dtype, Index(e)), True):
            return dtype.is_float and e == extent
        case Factor(Apply("div", (Const(1), Cast(dtype, Index(e)))), False):
            return dtype.is_float and e == extent
        case _:
            return False


def _is_reciprocal(number: float, extent: int) -> bool:
    """Whether the constant is 1/extent, as some float type rounds it: the running mean is then as exact as the mean is."""
    return abs(number * extent - 1) <= 2.0**-23
