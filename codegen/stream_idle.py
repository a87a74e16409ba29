"""Whether a step of a scan in which every reduction finds nothing leaves the states as they are: then it can be left out.

The proof is symbolic: reductions that have a `where` become their identity, point-wise steps are simplified, and each next
value has to come out as its state. `max(s, -inf)` is `s`, `s > s` is false (for NaN as well), `s * 1 + 0` is `s`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dlc.ir.dtype import BOOL
from dlc.ir.einsum import Einsum, Scan
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, const
from dlc.ir.monoid import MONOIDS


def is_idle(scan: Scan) -> bool:
    """Whether a step whose `where` holds nowhere changes no state of `scan`."""
    known: dict[str, Expr] = {c.name: Access(c.name, ()) for c in scan.carries}
    for step in scan.body:
        if not isinstance(step, Einsum):
            return False
        for n, out in enumerate(step.outs):
            known[out] = _value(step, n, known)
    return all(known.get(y) == Access(c.name, ()) for y, c in zip(scan.yields, scan.carries, strict=True))


def _value(step: Einsum, component: int, known: Mapping[str, Expr]) -> Expr:
    opaque = Access(step.outs[component], ())
    if step.reduce is not None:
        return MONOIDS[step.reduce.op].identity(step.dtypes)[component] if step.where is not None else opaque
    return _simplified(step.exprs[component], known)


def _simplified(e: Expr, known: Mapping[str, Expr]) -> Expr:
    match e:
        case Access(tensor, _, None):
            return known.get(tensor, e)
        case Apply(op, args):
            return _apply(op, tuple(_simplified(a, known) for a in args))
        case Cast(dtype, Const(value)):
            return const(value, dtype)
        case _:
            return e


def _apply(op: str, args: tuple[Expr, ...]) -> Expr:
    match op, args:
        case "max", (x, Const(v)) | (Const(v), x) if v == -math.inf:
            return x
        case "min", (x, Const(v)) | (Const(v), x) if v == math.inf:
            return x
        case "add", (x, Const(v)) | (Const(v), x) if v == 0:
            return x
        case "sub", (x, Const(v)) if v == 0:
            return x
        case "mul", (x, Const(v)) | (Const(v), x) if v == 1:
            return x
        case "div", (x, Const(v)) if v == 1:
            return x
        case "gt" | "lt", (x, y) if x == y:
            return const(False, BOOL)
        case "select", (Const(v), x, y):
            return x if v else y
        case "select", (_, x, y) if x == y:
            return x
        case _:
            return Apply(op, args)


__all__ = ["is_idle"]
