"""Whether a step of a scan in which every reduction finds nothing leaves the states as they are: then it can be left out.

The proof is symbolic: reductions that have a `where` become their identity, point-wise steps are simplified, and each next
value has to come out as its state. `max(s, -inf)` is `s`, `s > s` is false (for NaN as well), `s * 1 + 0` is `s`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dlc.ir.dtype import BOOL
from dlc.ir.einsum import Einsum, Rank, Scan
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, const
from dlc.ir.extent import IntExpr, var
from dlc.ir.monoid import MONOIDS


def is_idle(scan: Scan) -> bool:
    """Whether a step whose `where` holds nowhere changes no state of `scan`."""
    known: dict[str, _Made] = {}
    for step in scan.body:
        if not isinstance(step, Einsum):
            return False
        known |= {out: _Made(step.ranks, _value(step, n, known)) for n, out in enumerate(step.outs)}
    return all(y in known and known[y].is_own(c.name) for y, c in zip(scan.yields, scan.carries, strict=True))


@dataclass(frozen=True)
class _Made:
    """What a step makes at the point `ranks`, in terms of the states."""

    ranks: tuple[Rank, ...]
    value: Expr

    def at(self, index: Sequence[IntExpr]) -> Expr:
        return self.value.substitute({r.name: i for r, i in zip(self.ranks, index, strict=True)})

    def is_own(self, state: str) -> bool:
        """Whether it is the element of `state` at the same point."""
        match self.value:
            case Access(tensor, index, None) if tensor == state:
                return all(r.extent.const == 1 or i == var(r.name) for i, r in zip(index, self.ranks, strict=True))
            case _:
                return False


def _value(step: Einsum, component: int, known: Mapping[str, _Made]) -> Expr:
    if step.reduce is not None and step.where is not None:
        return MONOIDS[step.reduce.op].identity(step.dtypes)[component]
    if step.reduce is not None:
        return Access(step.outs[component], tuple(var(r.name) for r in step.ranks))
    return _simplified(step.exprs[component], known)


def _simplified(e: Expr, known: Mapping[str, _Made]) -> Expr:
    match e:
        case Access(tensor, index, None):
            return known[tensor].at(index) if tensor in known else e
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
