"""Assertions about one size: what torch.export decided by the example and left for the program to check.

With extents that vary, `if x.shape[0] % 2 == 0` is decided for all sizes as it is for the example, and the program asserts the condition.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from dlc.ir.program import Symbol

_TRIED = 256
"""Sizes for which an assertion is tried."""


def settled(node: fx.Node, symbols: dict[Any, Symbol]) -> Symbol | None:
    """The symbol of which `node`, an assertion, says that it is a multiple, with that as a fact which calls are checked against.

    None where it holds for all sizes, or for all but one run of them (torch takes an extent of 1 for a case of its own, where nothing
    else is computed), and where it is about several symbols, or data.

    Raises:
        ValueError: it holds for some sizes again and again, no multiples; the condition, in torch's words.
    """
    condition = node.args[0].meta.get("val") if node.args and isinstance(node.args[0], fx.Node) else None
    if not isinstance(condition, torch.SymBool):
        return None
    expr = condition.node.expr
    free = list(expr.free_symbols)
    if len(free) != 1 or free[0] not in symbols:
        return None
    known = symbols[free[0]]
    last = known.lo + _TRIED if known.hi is None else min(known.hi, known.lo + _TRIED)
    tried = range(known.lo, last + 1)
    failing = [n for n in tried if expr.subs(free[0], n) != True]  # noqa: E712 (SymPy's truth)
    if not failing or failing == [*range(failing[0], failing[-1] + 1)]:
        return None
    holding = [n for n in tried if n not in failing]
    step = holding[1] - holding[0] if len(holding) > 1 else 0
    if step > 1 and holding == [n for n in tried if n % step == 0]:
        return Symbol(known.name, known.lo, known.hi, math.lcm(known.divisor, step), known.below)
    raise ValueError(str(expr))


__all__ = ["settled"]
