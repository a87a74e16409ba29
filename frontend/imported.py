"""What every frontend returns: the program and how the model's own inputs and outputs are nested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dlc.ir.program import Program


@dataclass(frozen=True, slots=True)
class Imported:
    """A model as a program of the IR.

    Attributes:
        program: the program; its parameters are the tensor leaves of `in_tree`, its results those of `out_tree`.
        in_tree: nesting of the inputs: `{"t": "tuple|list|dict|leaf|none|const", "c": [...], "k": [...], "i": leaf index}`.
        out_tree: nesting of the outputs, likewise.
        input_names: the model's own name of each tensor input, in order.
        output_names: the model's own name of each output, where it has one.
        specialised: inputs whose values were needed at import: the program holds only for these values.
        mutated: (name of a buffer or input that the model changes in place, index of the output that is its new value).
        decomposed: operators without a definition of their own, which were decomposed first.
        forgotten: attributes and variables that the model's calls change, without a part in any result; a program leaves them alone.
        arg_names: names of the positional arguments, so that they can be passed by keyword.
        seconds: how long the parts took (`export`, `import`).
    """

    program: Program
    in_tree: dict[str, Any]
    out_tree: dict[str, Any]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] = ()
    specialised: Mapping[str, Any] = field(default_factory=dict)
    mutated: tuple[tuple[str, int], ...] = ()
    decomposed: tuple[str, ...] = ()
    forgotten: tuple[str, ...] = ()
    arg_names: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


def leaf(index: int) -> dict[str, Any]:
    """A tree that is one tensor."""
    return {"t": "leaf", "i": index}


def flat_tree(count: int) -> dict[str, Any]:
    """A tuple of `count` tensors."""
    return {"t": "tuple", "c": [leaf(i) for i in range(count)]}
