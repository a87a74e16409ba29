"""Where the tensors of a scheduled program lie: the vocabulary between the memory plan and the host's code.

A tensor is written either to memory of its own (an arena buffer, a heap block), straight to where it is wanted (an
output, a slice of a stacked tensor), or not at all: parameters, constants, results of `If` and carries are addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from dlc.ir.dtype import I64
from dlc.ir.einsum import TensorType
from dlc.ir.extent import IntExpr
from dlc.ir.program import Library


@dataclass(frozen=True, slots=True)
class AtInput:
    """The caller's input `index`."""

    index: int


@dataclass(frozen=True, slots=True)
class AtConstant:
    """The constant `name`."""

    name: str


@dataclass(frozen=True, slots=True)
class AtOutput:
    """The caller's output `index`."""

    index: int


@dataclass(frozen=True, slots=True)
class AtBuffer:
    """Arena buffer `index` of the plan."""

    index: int


@dataclass(frozen=True, slots=True)
class AtHeap:
    """A block that is allocated when its size is known; its address is kept in dynamic slot `index`."""

    index: int


@dataclass(frozen=True, slots=True)
class AtEither:
    """`even` in the even steps of the loop around it, `odd` in the others: what is carried is not overwritten."""

    even: AtBuffer | AtHeap
    odd: AtBuffer | AtHeap


@dataclass(frozen=True, slots=True)
class AtSlice:
    """Element `step` of the stacked tensor `outer`, where `step` is the symbol of the `For` around it."""

    outer: str
    step: str


@dataclass(frozen=True, slots=True)
class AtSpilled:
    """Outside the arena for all its life, where `MemoryPlan.spilled` has `tensor`: kernels read and write it there."""

    tensor: str


@dataclass(frozen=True, slots=True)
class AtPointer:
    """An address that control flow decides: the result of an `If`, a carry, a final."""


Place: TypeAlias = AtInput | AtConstant | AtOutput | AtBuffer | AtHeap | AtEither | AtSlice | AtSpilled | AtPointer


@dataclass(frozen=True, slots=True)
class ArenaBuffer:
    """Memory that is needed from statement `first` to `last`, both included.

    Attributes:
        bytes: its size over the symbols that the inputs bind (an upper bound where other symbols decide).
        offset: where it lies for the extents that were planned for.
    """

    name: str
    bytes: IntExpr
    first: int
    last: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """How output `tensor` gets its bytes.

    Attributes:
        how: 'direct' a kernel writes it there, 'copy' the entry copies it at the end, 'input', 'constant' and 'output'
            the runtime copies input `index`, constant `tensor`, output `index`; 'hand over' and 'clone' are for extents
            found at run time: the heap block itself, or a fresh copy of the tensor.
        index: which input or output.
    """

    tensor: str
    how: str
    index: int = 0


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Places of all tensors, and the memory there has to be.

    Attributes:
        places: by tensor name.
        buffers: the arena; final offsets are found per call, when the symbols are known.
        heap: tensor that each dynamic slot is for.
        copied: carries whose next value has to be copied, to one of two places in turn.
        outputs: one for each result of the program.
        values: symbols (with `#`) that are the value of a parameter of rank 0: (symbol, input index).
        stays: the buffers of a tensor that leaves the arena, from one `fill` to the next `spill`.
        spilled: where each such tensor lies outside the arena, from its first `spill` to its last `fill`, and where those
            lie that are never in it.
        starts: number of each statement of the program's body, and, last, of its end.
        pinned: buffers that something else than one tensor's name leads to: they cannot leave the arena.
    """

    places: Mapping[str, Place]
    buffers: tuple[ArenaBuffer, ...]
    heap: tuple[str, ...]
    copied: Mapping[str, AtEither]
    outputs: tuple[OutputPlan, ...]
    values: Mapping[str, int]
    stays: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    spilled: Mapping[str, ArenaBuffer] = field(default_factory=dict)
    starts: tuple[int, ...] = ()
    pinned: frozenset[int] = frozenset()


def library_temporaries(stmt: Library, types: Mapping[str, TensorType]) -> dict[str, TensorType]:
    """Tensors that a library operation needs between measuring its result and writing it, all i64, by name.

    The last one is the value of the extent that it binds.
    """
    needs: list[IntExpr] = []
    match stmt.op:
        case "nonzero":
            pass
        case "unique":
            needs = [types[stmt.args[0]].shape[0]] * 2  # the first equal row of each row; the number of that value
        case "nms":
            batches, classes, boxes = types[stmt.args[1]].shape
            needs = [batches * classes * boxes * 3]  # the rows chosen
        case _:
            return {}
    names = [f"tmp{i}" for i in range(len(needs))] + ["count"]
    shapes: list[tuple[IntExpr, ...]] = [*((e,) for e in needs), ()]
    return {f"{stmt.outs[0]}.{name}": TensorType(I64, shape) for name, shape in zip(names, shapes, strict=True)}
