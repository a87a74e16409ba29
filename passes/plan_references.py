"""Finding the running maximum or minimum that bounds the exponent of a power."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dlc.ir.dtype import F64
from dlc.ir.expr import Apply, Const, const
from dlc.passes.finite_references import guarded_read
from dlc.passes.plan_operand import Operand, keys
from dlc.passes.refusals import Reason, Refused
from dlc.passes.running_plan import Reference
from dlc.passes.separate import Addend, Factor, Power, size_of

BOUNDS = {"max": -1, "argmax": -1, "argmax_last": -1, "min": 1, "argmin": 1, "argmin_last": 1}
"""Folds whose value bounds all they have seen; the sign that it needs in an exponent to keep that from growing."""


def find_reference(power: Power, operand: Operand) -> tuple[Reference, Addend, tuple[Addend, ...]]:
    """The fold that bounds the exponent, its addend, and the other addends.

    Raises:
        Refused: where none does.
    """
    rest = operand.outer_addends(power.rest)
    for k, a in enumerate(rest):
        found = _bounding(a, power, operand)
        if found is not None:
            return found, a, rest[:k] + rest[k + 1 :]
    raise Refused(Reason.UNSTABLE, str(power.factor.expr))


def _bounding(a: Addend, power: Power, operand: Operand) -> Reference | None:
    """The addend as a reference that bounds the data of the exponent; None when it is none."""
    read, guarded = guarded_read(a.body)
    seen = operand.fold_at(read) if read is not None else None
    if read is None or seen is None:
        return None
    sign = BOUNDS.get(seen.op)
    if sign != a.sign or seen.fold.step.outs[0] != read.tensor or not _positive(a.scales) or not _grows(power):
        return None
    wanted = (
        replace(x, sign=-sign * x.sign, scales=(*x.scales, *a.scales))
        for x in operand.seen_addends(seen.fold.step.expr, seen)
    )
    same = keys(wanted) == keys(operand.data_addends(power.data))
    return Reference(read, a.scales, sign, guarded) if same else None


def _grows(power: Power) -> bool:
    """Whether the power grows with its exponent: its base is a constant above 1."""
    match power.base(const(1, F64)):
        case Apply("pow", (Const(number), _)):
            return float(number) > 1
        case Apply("pow", _):
            return False
        case _:
            return True


def _positive(scales: Sequence[Factor]) -> bool:
    return all(isinstance(s.expr, Const) for s in scales) and size_of(tuple(scales)) > 0
