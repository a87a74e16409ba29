"""What a `for` loop steps over: items that are known one by one, or a count from data and a rule for the item of a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dlc.frontend.torch_collect import Collected
from dlc.frontend.torch_effects import advance
from dlc.frontend.torch_errors import UncapturedDecision
from dlc.frontend.torch_numbers import Number
from dlc.frontend.torch_values import Absent, Elided, Sometimes

LONG = 16
"""A loop over at least so many known steps is recorded, if it can be, when it decides on data inside."""


@dataclass(frozen=True, eq=False)
class Steps:
    """`count` steps (a number or an extent, perhaps from data); `item` gives that of step `i`, a `Number`."""

    count: Any
    item: Callable[[Any], Any]

    def after(self, n: int) -> Steps:
        """Without the first `n`."""
        return Steps(self.count - n, lambda i: self.item(i + n)) if n else self

    def __iter__(self) -> Iterator[Any]:
        raise TypeError("a range whose length is data is stepped over by rewritten code only")


@dataclass(frozen=True, eq=False)
class Span(Steps):
    """A range with bounds from data."""

    start: Any
    stop: Any
    step: int


@dataclass(eq=False)
class Items:
    """Items of a known iterable, taken as they are needed.

    Attributes:
        indexed: the same as a count and a rule, where the items are one.
        stop: how many of the items there are, where that is data.
    """

    source: Iterator[Any]
    indexed: Steps | None = None
    taken: list[Any] | None = None
    stop: Number | None = None

    def going(self, at: int) -> Any:
        """Whether there is an item `at` for what data say; it must be there, too."""
        return True if self.stop is None else self.stop > at

    def has(self, at: int) -> bool:
        self.taken = self.taken if self.taken is not None else []
        while len(self.taken) <= at:
            try:
                self.taken.append(next(self.source))
            except StopIteration:
                return False
        return True

    def __getitem__(self, at: int) -> Any:
        assert self.taken is not None
        return self.taken[at]

    @property
    def long(self) -> bool:
        return self.indexed is not None and isinstance(self.indexed.count, int) and self.indexed.count >= LONG


def steps_of(flow: Any, over: Any) -> Steps | Items:
    """How to step over a value."""
    if isinstance(over, Part):
        return Items(iter(over.items), stop=over.stop)
    if isinstance(over, Absent):
        over.refuse()
    over = collected(over)
    if isinstance(over, (list, tuple, dict)):
        for v in over:
            if isinstance(v, Elided) and not isinstance(v, Sometimes):
                v.refuse()
    if isinstance(over, Steps):
        return over
    if isinstance(over, range):
        return Items(iter(over), Steps(len(over), lambda i: i * over.step + over.start))
    if isinstance(over, torch.Tensor) and over.dim():
        rule = Steps(over.shape[0], lambda i: flow.recorder.rows.take(over, 0, i.tensor))
        if isinstance(over.shape[0], int):
            return Items(iter(over), rule)
        return rule
    if isinstance(over, nn.Module) and not hasattr(over, "__iter__"):
        raise TypeError(f"'{type(over).__name__}' object is not iterable")
    if isinstance(over, Iterator):
        advance(flow, over)
    return Items(_stepped(flow, iter(over), len(flow.frames)))


def _stepped(flow: Any, source: Iterator[Any], depth: int) -> Iterator[Any]:
    """The items of an iterator, each taken once: what taking one changes must not be undone, in frames from `depth` on."""
    while True:
        touches = flow.frame.touches
        item = next(source, _END)
        if flow.frame.touches != touches:
            for frame in flow.frames[depth:]:
                why = "it changes other objects, in a loop that ends early, or grows, where data say"
                frame.lasting = frame.lasting or flow.error_here(UncapturedDecision, what="how far an iterator has come", why=why)
        if item is _END:
            return
        yield item


_END = object()


class Part(Absent):
    """The first `stop` of some items, a number from data: `layers[:k]`. It can be stepped over."""

    __slots__ = ("items", "stop")
    items: list[Any]
    stop: Number

    def __init__(self, owner: Any, items: list[Any], stop: Number) -> None:
        super().__init__(owner, lambda: (UncapturedDecision, {"what": "the length of this slice", "why": "step over it with for"}))
        for field, v in (("items", items), ("stop", stop)):
            object.__setattr__(self, field, v)


def of_parts(function: Any, args: tuple[Any, ...]) -> Part | None:
    """`enumerate` and `zip` where the first argument is such a slice; None for anything else."""
    if not args or not isinstance(args[0], Part) or function not in (enumerate, zip):
        return None
    first, *others = args
    return Part(first._owner, list(function(first.items, *others)), first.stop)


def collected(over: Any) -> Any:
    """The steps over a list that a loop from data has filled; anything else as it is."""
    if isinstance(over, list) and len(over) == 1 and isinstance(over[0], Collected):
        return Steps(over[0].count, over[0].item)
    return over


def span(flow: Any, *bounds: Any) -> Any:
    """`range(...)` with bounds from data."""
    if not any(isinstance(b, (Number, torch.SymInt, torch.Tensor)) for b in bounds):
        return range(*bounds)
    ends = [flow.integer(b) for b in bounds]
    if all(isinstance(e, int) for e in ends):
        return range(*ends)
    start, stop = (0, ends[0]) if len(ends) == 1 else (ends[0], ends[1])
    step = ends[2] if len(ends) == 3 else 1
    if not isinstance(step, int):
        return step.__index__()
    if step == 0:
        raise ValueError("range() arg 3 must not be zero")
    if step > 0:
        count = (stop - start + (step - 1)) // step if step != 1 else stop - start
    else:
        count = (start - stop + (-step - 1)) // -step if step != -1 else start - stop
    return Span(count, lambda i: i * step + start, start, stop, step)


def enumerated(flow: Any, over: Any, start: Any = 0) -> Any:
    """`enumerate`."""
    steps = over if isinstance(over, Steps) else None
    if steps is None and isinstance(over, torch.Tensor):
        found = steps_of(flow, over)
        steps = found if isinstance(found, Steps) else None
    if steps is None:
        return enumerate(over, start)
    return Steps(steps.count, lambda i: (i + start, steps.item(i)))


def zipped(flow: Any, *many: Any, strict: bool = False) -> Any:
    """`zip`, of ranges from data with one another or with tensors as long."""
    if not any(isinstance(m, Steps) for m in many):
        return zip(*many, strict=strict)
    rules: list[Steps] = []
    for m in many:
        found = steps_of(flow, m)
        rule = found if isinstance(found, Steps) else found.indexed
        if rule is None:
            raise TypeError("zip of a range from data with a list")
        rules.append(rule)
    count = rules[0].count
    for r in rules[1:]:
        count = flow.smallest(count, r.count)
    return Steps(count, lambda i: tuple(r.item(i) for r in rules))


def backwards(flow: Any, over: Any) -> Any:
    """`reversed`."""
    if not isinstance(over, Steps):
        return reversed(over)
    return Steps(over.count, lambda i: over.item(over.count - 1 - i))
