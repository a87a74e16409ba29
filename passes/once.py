"""Rewrites of single steps, done once for equal ones: a network of twenty equal blocks is as much work as its one block."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from dlc.ir.einsum import Einsum
from dlc.ir.forms import form, named, numbered


class OncePerForm:
    """What became of the steps of a program, by their forms; a pass has one while it goes through the program."""

    def __init__(self) -> None:
        self.known: dict[Any, Einsum | None] = {}  # None: such a step stays as it is

    def __call__(self, step: Einsum, given: Hashable, change: Callable[[Einsum], Einsum]) -> Einsum:
        """`change(step)`, or what it made of an earlier step of the same form, with this one's tensors.

        Args:
            given: whatever else the change depends on.
            change: names no tensor that the step has not, and makes none.
        """
        here = form(step)
        key = (here.step, given)
        if key in self.known:
            known = self.known[key]
            return step if known is None else named(known, here.tensors, step.loc)
        changed = change(step)
        self.known[key] = None if changed is step else numbered(changed, here.tensors)
        return changed


__all__ = ["OncePerForm"]
