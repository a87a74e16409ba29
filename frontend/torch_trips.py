"""How many steps a loop takes at most, and how large a state gets that grows with them: from the count, or the loop's condition.

A step is followed by another one only where the condition holds, and with it whatever it is made of: `n < 20 and not found`
says that n is below 20. With n = n0 + k * step after k steps that is a bound of their number.

Source: Cousot and Halbwachs, Automatic Discovery of Linear Restraints Among Variables of a Program (POPL 1978), for one
variable at a time.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dlc.frontend.torch_numbers import Number
from dlc.frontend.torch_recorder import truth
from dlc.frontend.torch_truth import Fact


@dataclass(frozen=True, eq=False)
class Counter:
    """A whole number among the states of a loop: its value before the loop, and its nodes at the start and end of a step."""

    start: int
    inside: fx.Node
    end: fx.Node


def implied(flag: Any, value: bool) -> Iterator[Fact]:
    """Conditions that hold, or do not, where `flag` is `value`."""
    if not isinstance(flag, Number):
        return
    yield flag, value
    match flag.origin:
        case ("not", a):
            yield from implied(a, not value)
        case ("and", a, b) if value:
            yield from implied(a, True)
            yield from implied(b, True)
        case ("if", c, a, b):
            for taken, other, side in ((a, b, True), (b, a, False)):
                if isinstance(other, bool) and other is not value:  # the other arm would have been wrong
                    yield from implied(c, side)
                    yield from implied(taken, value)


@dataclass(frozen=True, eq=False)
class Size:
    """An extent that steps make larger by up to `by`: at least `least` before the loop, `seen` at the end of a step, or the start."""

    least: int
    by: int
    seen: Sequence[Any]


def most_steps(again: Any, counters: Sequence[Counter], sizes: Sequence[Size], recorder: Any) -> int | None:
    """How many steps there are at most where `again` must hold for another one."""
    facts = {recorder.node_of(flag.tensor): value for flag, value in implied(again, True)}
    found = []
    for node, value in facts.items():
        node_, limit = _bounded(node, value) or (None, 0)
        for c in counters:
            step = _step(c, facts)
            if step is not None and node_ in (c.inside, c.end):
                # At the end of step k the counter is start + k * step, at its start a step less.
                found.append(_count(limit - c.start, step) + (node_ is c.inside))
        for s in sizes:
            limits = [b for e in s.seen if (b := _below(node, value, e)) is not None]
            found += [_count(below - s.least, s.by) + 1 for below in limits]
    return min(found, default=None)


def _count(distance: int, step: int) -> int:
    """How many steps it takes to get that far, one at least."""
    return max(1, -(-distance // step))


def _below(node: fx.Node, value: bool, size: Any) -> int | None:
    """A whole number that `size` is below where a condition on extents is `value`."""
    import sympy

    source = node.args[0] if node.target is operator.getitem else None
    if not isinstance(source, fx.Node) or source.target is not truth or not isinstance(size, torch.SymInt):
        return None
    condition = source.meta["condition"].node.expr
    if not value:
        condition = sympy.Not(condition)
    if not isinstance(condition, (sympy.StrictLessThan, sympy.LessThan, sympy.StrictGreaterThan, sympy.GreaterThan)):
        return None
    rest = (condition.gts - condition.lts + size.node.expr).expand()  # `size` is below this, or at most this
    if not rest.is_Integer:
        return None
    return int(rest) + (condition.rel_op in ("<=", ">="))


def _step(c: Counter, facts: dict[fx.Node, bool]) -> int | None:
    """What each step adds to a counter that goes on to another one; None unless it is a positive constant."""
    end = c.end
    while end.target is operator.getitem and "regions" in end.args[0].meta:
        branch, at = end.args
        taken = facts.get(branch.args[0])
        if taken is None:
            return None
        end = branch.meta["regions"][not taken].outputs[at]
    if str(end.target) != "aten.add.Tensor" or c.inside not in end.args:
        return None
    by = _literal(end.args[1] if end.args[0] is c.inside else end.args[0])
    return by if by is not None and by > 0 else None


def _bounded(node: fx.Node, value: bool) -> tuple[Any, int] | None:
    """What a comparison with a constant says of its other side, and the whole number that this is below."""
    name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
    if name not in ("lt", "le", "gt", "ge") or len(node.args) != 2:
        return None
    a, b = node.args
    if not value:
        name = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}[name]
    if name in ("gt", "ge"):
        a, b, name = b, a, {"gt": "lt", "ge": "le"}[name]
    limit = _literal(b)
    return None if limit is None else (a, limit + (name == "le"))


def _literal(a: Any) -> int | None:
    """A constant whole number."""
    if isinstance(a, fx.Node) and str(a.target) == "aten.scalar_tensor.default":
        a = a.args[0]
    return a if isinstance(a, int) and not isinstance(a, bool) else None
