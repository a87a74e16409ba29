"""What a step computes, whatever its tensors are called: equal layers of a network have equal forms.

Passes that look at a step alone do it once per form (`dlc.passes.once`). Ranks keep their names: importers and passes name those
of equal layers alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary, ref

from dlc.ir.einsum import Einsum
from dlc.ir.loc import Loc
from dlc.ir.node import remember, remembered
from dlc.ir.rename import rename_einsum


@dataclass(frozen=True, slots=True)
class Form:
    """A step with numbers for its tensors' names.

    Attributes:
        step: reads and writes the tensors `0`, `1`, ... All steps of a form that are there have the same object, so that to look
            one up costs nothing.
        tensors: their names: the results, then what is read, in order of first occurrence.
    """

    step: Einsum
    tensors: tuple[str, ...]


_SHARED: WeakKeyDictionary[Einsum, ref[Einsum]] = WeakKeyDictionary()


@remembered
def form(step: Einsum) -> Form:
    """The step's form; two steps of one form and equal operands compute the same."""
    tensors = tuple(dict.fromkeys((*step.outs, *step.reads)))
    made = rename_einsum(step, {}, {name: str(n) for n, name in enumerate(tensors)})
    known = _SHARED.get(made)
    shared = known() if known is not None else None
    if shared is None:
        shared = made
        _SHARED[made] = ref(made)
    return Form(shared, tensors)


def named(step: Einsum, tensors: Sequence[str], loc: Loc) -> Einsum:
    """The step over these tensors, no two the same, whose form `step` is."""
    made = replace(rename_einsum(step, {}, {str(n): name for n, name in enumerate(tensors)}), loc=loc)
    remember(form, made, Form(step, tuple(tensors)))
    return made


__all__ = ["Form", "form", "named"]
