"""Rewrites of single steps, done once for equal ones: a network of twenty equal blocks is as much work as its one block."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from dlc.ir.einsum import Einsum
from dlc.ir.forms import form, named


class OncePerForm:
    """What became of the steps of a program, by their forms; a pass has one while it goes through the program."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[Einsum, tuple[int, ...]] | None] = {}  # None: such a step stays as it is

    def __call__(
        self, step: Einsum, given: Hashable, change: Callable[[Einsum], Einsum], more: Iterable[str] = ()
    ) -> Einsum:
        """`change(step)`, or what it made of an earlier step of the same form, with this one's tensors.

        Args:
            given: whatever else the change depends on.
            change: makes no tensor.
            more: tensors that the changed step may read beside those that the step has.
        """
        here = form(step)
        tensors = tuple(dict.fromkeys((*here.tensors, *more)))
        key = (here.step, given)
        if key in self.known:
            known = self.known[key]
            if known is None:
                return step
            made, places = known
            return named(made, [tensors[n] for n in places], step.loc)
        changed = change(step)
        if changed is step:
            self.known[key] = None
        else:
            there = form(changed)
            self.known[key] = there.step, tuple(tensors.index(t) for t in there.tensors)
        return changed


__all__ = ["OncePerForm"]
