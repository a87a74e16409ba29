"""References that are infinite where nothing was seen: how a program guards them, and how a running form does."""

from __future__ import annotations

from math import frexp

from dlc.ir.dtype import DType
from dlc.ir.expr import Access, Apply, Const, Expr, Piecewise, const, transform
from dlc.passes.running_plan import Reference
from dlc.passes.separate import size_of

LARGEST = {"f64": 1.7976931348623157e308, "f32": 3.4028234663852886e38, "f16": 65504.0, "bf16": 3.3895313892515355e38}
_REFERENCE = "@reference"  # a name no tensor can have


def guarded_read(e: Expr) -> tuple[Access | None, tuple[bool, bool]]:
    """The fold read, through a choice of a finite value where it is infinite: (read, (identity, other infinity))."""
    match e:
        case Access(_, _, None):
            return e, (False, False)
        case Apply(
            "select", (Apply("eq", (Access(_, _, None) as read, Const() as c)), Const() as instead, again)
        ) | Piecewise(((Apply("eq", (Access(_, _, None) as read, Const() as c)), Const() as instead),), again) if (
            again == read and abs(float(c.value)) == float("inf") and abs(float(instead.value)) < float("inf")
        ):
            return read, (True, False)
        case Apply("select", (Apply("isinf", (Access(_, _, None) as read,)), Const() as instead, again)) | Piecewise(
            ((Apply("isinf", (Access(_, _, None) as read,)), Const() as instead),), again
        ) if again == read and abs(float(instead.value)) < float("inf"):
            return read, (True, True)
        case _:
            return None, (False, False)


def with_running(e: Expr, reference: Reference, now: str, dtype: DType) -> Expr:
    """`e` with its reference as it is `now`, and finite, so that all -inf so far makes 0 and not NaN.

    Args:
        now: the tensor that has the reference's value after the block, of type `dtype`.
    """

    def finite(node: Expr) -> Expr | None:
        if isinstance(node, Access) and node.tensor in (_REFERENCE, reference.read.tensor):
            return clamped(Access(now, node.index), reference, dtype)
        return None

    return transform(transform(e, lambda node: _unguarded(node, reference)), finite)


def _unguarded(e: Expr, reference: Reference) -> Expr | None:
    """The program's own guard of an infinite reference becomes the running one."""
    if isinstance(e, Access) or not any(reference.guarded):
        return None
    read, _ = guarded_read(e)
    return None if read is None or read.tensor != reference.read.tensor else Access(_REFERENCE, read.index)


def clamped(e: Expr, reference: Reference, dtype: DType) -> Expr:
    """The reference as a finite number at the monoid's identity, and at the other infinity where the program says so."""
    if not dtype.is_float:
        return e  # differences wrap, and so do the corrections that undo them
    largest = LARGEST[dtype.name]
    size = size_of(reference.scales)
    bound = largest if size <= 1 else largest / 2.0 ** frexp(size)[1]  # scaled, it is to be finite, too

    def finite(x: Expr, sign: int) -> Expr:
        limit = const(sign * bound, dtype)
        if bound == largest:
            return Apply("max" if sign < 0 else "min", (x, limit))
        return Apply("select", (Apply("eq", (x, const(sign * float("inf"), dtype))), limit, x))

    e = finite(e, reference.sign)
    return finite(e, -reference.sign) if reference.guarded[1] else e
