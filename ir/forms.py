"""What a step computes, whatever its tensors are called: equal layers of a network have equal forms.

Passes that look at a step alone do it once per form (`dlc.passes.once`). Ranks keep their names: importers and passes name those
of equal layers alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dlc.ir.einsum import Einsum
from dlc.ir.loc import Loc
from dlc.ir.node import remembered
from dlc.ir.rename import rename_einsum


@dataclass(frozen=True, slots=True)
class Form:
    """A step with numbers for its tensors' names.

    Attributes:
        step: reads and writes the tensors `0`, `1`, ...
        tensors: their names: the results, then what is read, in order of first occurrence.
    """

    step: Einsum
    tensors: tuple[str, ...]


@remembered
def form(step: Einsum) -> Form:
    """The step's form; two steps of one form and equal operands compute the same."""
    tensors = tuple(dict.fromkeys((*step.outs, *step.reads)))
    return Form(numbered(step, tensors), tensors)


def numbered(step: Einsum, tensors: Sequence[str]) -> Einsum:
    """The step with each of `tensors`, which are all that it has, called by its place among them."""
    names = {name: str(n) for n, name in enumerate(tensors)}
    return rename_einsum(step, {}, names)


def named(step: Einsum, tensors: Sequence[str], loc: Loc) -> Einsum:
    """The step of which `step` is the form, over these tensors; the opposite of `numbered`."""
    names = {str(n): name for n, name in enumerate(tensors)}
    return replace(rename_einsum(step, {}, names), loc=loc)


__all__ = ["Form", "form", "named", "numbered"]
