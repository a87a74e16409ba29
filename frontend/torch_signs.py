"""Which recorded integers are never negative, by the way they are made: what a slice needs to know of its bounds.

Source: Cousot and Cousot, POPL 1977 (signs as an abstract domain; a loop's states by a fixpoint that starts with "never").
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING

import torch
from torch import fx

if TYPE_CHECKING:
    from dlc.frontend.torch_recorder import Recorder

_COUNTS = frozenset("argmax argmin argsort nonzero count_nonzero searchsorted bucketize abs".split())
"""Positions and counts, whatever they are taken of."""
_WITH_POSITIONS = frozenset("max min topk sort median mode kthvalue cummax cummin".split())
"""What gives values and positions, in this order."""
_ALL = frozenset(
    "add mul sum cumsum prod amax amin max min minimum to _to_copy clone alias detach reshape view squeeze unsqueeze flatten select"
    " index index_select gather expand stack cat __rshift__ bitwise_right_shift floor_divide div scalar_tensor where remainder".split()
)
"""Not negative where no operand is."""


def never_negative(recorder: Recorder, node: fx.Node) -> bool:
    """Whether an integer cannot be negative. What a step of a loop that is not recorded to its end begins with may be."""
    states: dict[fx.Node, list[fx.Node]] = {}
    pending, seen = [node], set()
    while pending:
        n = pending.pop()
        if n in seen:
            continue
        seen.add(n)
        needed = states.get(n) or _needed(recorder, n, states)
        if needed is None:
            return False
        pending += needed
    return True


def _needed(recorder: Recorder, n: fx.Node, states: dict[fx.Node, list[fx.Node]]) -> list[fx.Node] | None:
    """The values that must not be negative so that this one is not; None where nothing is known of it."""
    value, known = n.meta.get("val"), recorder.constants.get(n)
    if isinstance(known, torch.Tensor):
        return [] if not bool((known < 0).any()) else None
    if isinstance(value, torch.SymInt):
        return [] if value.node.shape_env.bound_sympy(value.node.expr).lower >= 0 else None
    if isinstance(value, torch.Tensor) and value.dtype in (torch.bool, torch.uint8):
        return []
    if n.op == "placeholder":
        return [] if n.target == "step" else None
    if n.target is operator.getitem and isinstance(n.args[0], fx.Node):
        return _of_several(recorder, n, n.args[0], states)
    name = str(n.target).split(".")[1] if str(n.target).startswith("aten.") else ""
    if name in _COUNTS:
        return []
    numbers = [a for a in n.args if isinstance(a, (int, float))]
    if name == "clamp":
        least = n.args[1]
        return [] if isinstance(least, (int, float)) and min(numbers) >= 0 else None
    if name not in _ALL or "alpha" in n.kwargs or any(a < 0 for a in numbers):
        return None
    operands = n.all_input_nodes
    return [m for m in operands if m is not n.args[0]] if name in ("where", "remainder") else operands


def _of_several(
    recorder: Recorder, n: fx.Node, of: fx.Node, states: dict[fx.Node, list[fx.Node]]
) -> list[fx.Node] | None:
    """The same for one of several results."""
    record = of.meta.get("loop")
    if record is not None:
        steps = record.body.outputs[record.first is not None :]
        states.update(zip(record.body.inputs[1:], map(list, zip(record.starts, steps, strict=False)), strict=False))
    left = recorder.left(n)
    if left is None and n.args[1] == 1 and str(of.target).split(".")[1:2] and str(of.target).split(".")[1] in _WITH_POSITIONS:
        return []
    return left
