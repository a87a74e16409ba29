"""Whether the calls of a model after the first compute what the first one does, though each leaves something behind.

A compiled call leaves nothing behind. Where recording the first call has changed an attribute (a counter, a list, a cached mask),
the second call is recorded from what the first has left, and so on, until no call leaves anything new: a number that another
call leaves otherwise stands for any number, a tensor that is computed of no input for that very tensor, what has no common
form cannot be used. Then one recording stands for all later calls. If its results are computed as those of the first call are,
what is left behind has no part in them, and is dropped; else the model is refused.

Source: Cousot and Cousot, POPL 1977 (a fixpoint, with numbers that change widened to all numbers).
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from dlc.errors import DlcError
from dlc.frontend.torch_errors import MutatedState
from dlc.frontend.torch_graph import place_of
from dlc.frontend.torch_heap import MISSING, Cell
from dlc.frontend.torch_numbering import Numbering, Numbers, Value, cone
from dlc.frontend.torch_numbers import DTYPES, Number
from dlc.frontend.torch_regions import nested_nodes, regions_of
from dlc.frontend.torch_state import LISTS_OF_MODULES, Change, foreign
from dlc.frontend.torch_storage import storage_of, writes
from dlc.frontend.torch_values import Absent, Choice, Elided, Grown, leaves, parts, same, structure

_MOST_ROUNDS = 8


@dataclass(frozen=True)
class AnyNumber:
    """A number that calls leave otherwise."""

    kind: type


@dataclass(frozen=True)
class SomeTensor:
    """A tensor that a call leaves.

    Attributes:
        dtype, shape, stride: its layout.
        value: what it is computed of, where that is the same in all calls.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    value: tuple[Value, Value | None] | None = None


class _Lost:
    """What calls leave in no common form."""


LOST = _Lost()


@dataclass(frozen=True, eq=False)
class Start:
    """What later calls find at a changed place: containers of known values and of what stands for others."""

    change: Change
    value: Any


class Starts:
    """What a call begins with, for `capture`; its recording fills `nodes`.

    Attributes:
        found: by the keys of their places.
        nodes: the inputs of the recording that stand for numbers and tensors, with what they stand for.
        unknown: containers of which nothing is known, by their addresses: what they are to the user.
    """

    def __init__(self, found: Mapping[tuple[int, str | None], Start]) -> None:
        self.found = found
        self.nodes: dict[fx.Node, AnyNumber | SomeTensor] = {}
        self.fakes: dict[int, tuple[torch.Tensor, SomeTensor]] = {}
        self.unknown: dict[int, str] = {}

    def write(self, rt: Any) -> None:
        """Have the model begin with it."""
        for start in self.found.values():
            made = _copied(start.value, partial(self._made, rt, start))
            if start.change.cell.name is None and isinstance(made, Elided):
                if start.change.name.rpartition(".")[2] in LISTS_OF_MODULES:
                    made.refuse()
                self.unknown[id(start.change.cell.owner)] = start.change.name
            start.change.cell.write(_contents(start.change.cell, made))

    def _made(self, rt: Any, start: Start, v: Any) -> Any:
        if v is LOST:
            name = start.change.name
            return Elided(rt, name, "", "", error=(MutatedState, {"op": "this", "what": f"'{name}'"}))
        if not isinstance(v, (AnyNumber, SomeTensor)):
            return v
        with disable_proxy_modes_tracing():
            if isinstance(v, AnyNumber):
                fake = torch.empty((), dtype=DTYPES[v.kind])
            else:
                fake = torch.empty_strided(v.shape, v.stride, dtype=v.dtype)
        self.nodes[rt.recorder.placeholder(fake, "kept")] = v
        if isinstance(v, AnyNumber):
            return Number(v.kind, fake, rt)
        self.fakes[id(fake)] = fake, v
        return fake


def _contents(cell: Cell, value: Any) -> Any:
    """What a cell takes; a container with an element that cannot be used, where the whole cannot be."""
    if cell.name is not None or not isinstance(value, Elided):
        return value
    return {value: value} if isinstance(cell.owner, dict) else {value} if isinstance(cell.owner, set) else [value]


def _copied(v: Any, leaf: Callable[[Any], Any], known: Container[int] = ()) -> Any:
    """New containers with `leaf` of each leaf; what is at a known address counts as one."""
    found = None if id(v) in known or isinstance(v, (Absent, Grown, Choice, AnyNumber, SomeTensor)) else parts(v)
    return leaf(v) if found is None else found[1]([_copied(item, leaf, known) for item in found[0]])


def objects_in(v: Any) -> Iterator[Any]:
    """What a value holds but numbers, tensors and containers: its objects, which may hold more."""
    values = (Absent, Grown, Choice, AnyNumber, SomeTensor, Number, torch.Tensor)
    return (x for x in leaves(v, values) if x is not LOST and not isinstance(x, values))


def unchanging(v: Any, known: Container[int], made: dict[int, Any]) -> Any:
    """A value whose containers stay as they are now; `made` has those met so far, what is at a known address counts as one."""
    if id(v) in made:
        return made[id(v)][1]
    found = None if id(v) in known or isinstance(v, (Absent, Grown, Choice)) else parts(v)
    if found is None:
        return v
    made[id(v)] = v, found[1]([unchanging(item, known, made) for item in found[0]])
    return made[id(v)][1]


def forgotten(first: Any, recorded: Callable[[Starts], Any], op: str) -> tuple[str, ...]:
    """The names of the changed places, where no later call computes anything else for what is left in them.

    Args:
        first: the recording of the first call.
        recorded: records a call that begins otherwise.
        op: the model.

    Raises:
        MutatedState: results depend on what a call leaves, or that cannot be excluded.
    """
    numbers = Numbers()
    before = _numbered(numbers, first, Starts({}))
    found = {c.cell.key: Start(c, _left(first, before, Starts({}), c)) for c in _unshared(first.changes, first.known)}
    for _ in range(_MOST_ROUNDS):
        starts = Starts(found)
        try:
            later = recorded(starts)
        except DlcError as error:
            raise _unknown(first, found, error, op) from error
        after = _numbered(numbers, later, starts)
        if any(writes(n) and storage_of(n.args[0]) in set(map(storage_of, starts.nodes)) for n in nested_nodes(later.region.nodes)):
            raise _refused(first, later, starts, op)
        try:
            merged = _merged(found, later, after, starts)
        except _NothingInCommon:
            raise _refused(first, later, starts, op) from None
        if all(_equal(merged[key].value, found[key].value) for key in found) and len(merged) == len(found):
            if _results(first, before) != _results(later, after):
                raise _refused(first, later, starts, op)
            return tuple(dict.fromkeys(start.change.name for start in found.values() if _varies(start.value)))
        found = merged
    raise _refused(first, later, starts, op)


def _varies(v: Any) -> bool:
    """Whether calls leave one thing or another, not the same for ever."""
    if isinstance(v, (AnyNumber, SomeTensor, _Lost)):
        return not isinstance(v, SomeTensor) or v.value is None
    found = parts(v)
    return found is not None and any(map(_varies, found[0]))


def _unshared(changes: Iterable[Change], known: Container[int]) -> list[Change]:
    """The changes, without what two of them hold and no place of its own has: a write to it by one name is one by the other."""
    count: Counter[int] = Counter()

    def counted(v: Any) -> None:
        found = None if id(v) in known else parts(v)
        count[id(v)] += found is not None and not isinstance(v, (tuple, torch.Size))
        for item in found[0] if found is not None else ():
            counted(item)

    kept = list(changes)
    for c in kept:
        counted(c.after)
    return [dataclasses.replace(c, after=LOST) if any(count[id(v)] > 1 for v in _containers(c.after, known)) else c for c in kept]


def _containers(v: Any, known: Container[int]) -> Iterable[Any]:
    found = None if id(v) in known else parts(v)
    if found is not None:
        yield v
        for item in found[0]:
            yield from _containers(item, known)


def _numbered(numbers: Numbers, captured: Any, starts: Starts) -> Numbering:
    inputs = captured.region.inputs
    count = len(captured.weights)
    given: dict[fx.Node, tuple[Value, Value | None]] = {}
    for node, name in zip(inputs, captured.weights, strict=False):
        given[node] = numbers.of(("weight", name)), None
    for n, node in enumerate(n for n in inputs[count:] if n not in starts.nodes):
        given[node] = numbers.of(("input", n), varying=True), None
    for n, (node, v) in enumerate(starts.nodes.items()):
        value = v.value if isinstance(v, SomeTensor) else None
        given[node] = value or (numbers.of(("kept", n, v), varying=True), None)
    return Numbering(numbers, captured.recorder, given)


def _left(captured: Any, numbering: Numbering, starts: Starts, change: Change) -> Any:
    """What a recording has left at a place."""

    def leaf(v: Any) -> Any:
        if v is LOST or isinstance(v, (Absent, Grown, Choice, torch.SymInt, torch.SymFloat, torch.SymBool)):
            return AnyNumber(int) if isinstance(v, torch.SymInt) else LOST
        if isinstance(v, Number):
            return LOST if v.mixed else AnyNumber(v.kind)
        if isinstance(v, torch.Tensor):
            return starts.fakes[id(v)][1] if id(v) in starts.fakes else _tensor(captured, numbering, v)
        return v

    return _copied(change.after, leaf, captured.known)


def _tensor(captured: Any, numbering: Numbering, v: torch.Tensor) -> Any:
    if not captured.recorder.known(v):
        return v if not isinstance(v, torch._subclasses.fake_tensor.FakeTensor) else LOST
    if not all(isinstance(e, int) for e in (*v.shape, *v.stride())):
        return LOST
    node = captured.recorder.node_of(v)
    found = numbering.of(node) if node in numbering.values else None
    varying = numbering.numbers.varying
    fixed = found is not None and found[2] is None and found[0] not in varying and found[1] not in varying
    return SomeTensor(v.dtype, tuple(v.shape), v.stride(), found[:2] if found is not None and fixed else None)


def _merged(found: Mapping[Any, Start], later: Any, after: Numbering, starts: Starts) -> dict[Any, Start]:
    """What a call finds if it comes after the one that found `found`, or before."""
    merged = {}
    changes = {c.cell.key: c for c in _unshared(later.changes, later.known)}
    for key in (*found, *(k for k in changes if k not in found)):
        c = changes[key]
        left = _left(later, after, starts, c)
        was = found[key].value if key in found else _left(later, after, starts, dataclasses.replace(c, after=c.before))
        merged[key] = Start(found[key].change if key in found else c, _joined(was, left))
    return merged


class _NothingInCommon(Exception):
    """Something is there after one call and not after another."""


def _joined(a: Any, b: Any) -> Any:
    """What stands for both."""
    if _equal(a, b):
        return a
    if any(v is None or v is MISSING for v in (a, b)):
        raise _NothingInCommon
    kinds = [v.kind if isinstance(v, AnyNumber) else type(v) for v in (a, b)]
    if kinds[0] is kinds[1] and kinds[0] in DTYPES:
        return AnyNumber(kinds[0])
    if isinstance(a, SomeTensor) and isinstance(b, SomeTensor):
        alike = dataclasses.replace(a, value=None), dataclasses.replace(b, value=None)
        return alike[0] if alike[0] == alike[1] else LOST
    x, y = parts(a), parts(b)
    if any(isinstance(v, (AnyNumber, SomeTensor)) for v in (a, b)) or x is None or y is None or structure(a) != structure(b):
        return LOST
    return x[1]([_joined(p, q) for p, q in zip(x[0], y[0], strict=True)])


def _equal(a: Any, b: Any) -> bool:
    if a is b or (isinstance(a, (AnyNumber, SomeTensor)) and a == b):
        return True
    if any(isinstance(v, (AnyNumber, SomeTensor, _Lost)) for v in (a, b)):
        return False
    x, y = parts(a), parts(b)
    if x is None or y is None:
        return x is None and y is None and not _has_class_of_its_own(a) and same(a, b)
    return structure(a) == structure(b) and all(map(_equal, x[0], y[0]))


def _has_class_of_its_own(v: Any) -> bool:
    """Whether the model's code says what is equal to a value: that may hold something else."""
    return not foreign(type(v)) and not isinstance(v, enum.Enum)


def _results(captured: Any, numbering: Numbering) -> Any:
    """What a call gives, and what it does to its inputs and weights."""
    inputs = captured.region.inputs[: len(captured.weights) + len(captured.leaves)]
    outputs = [numbering.of(v) if isinstance(v, fx.Node) else (type(v), repr(v)) for v in captured.outputs]
    return outputs, str(captured.out_spec), [numbering.of(node)[1:] for node in inputs]


# --- refusals --------------------------------------------------------------------------------------------------------


def _error(first: Any, op: str) -> MutatedState:
    c = first.changes[0]
    what = ", ".join(f"'{c.name}'" for c in first.changes[:4])
    return MutatedState(c.place, source=c.source, op=op, what=what)


def _refused(first: Any, later: Any, starts: Starts, op: str) -> MutatedState:
    error = _error(first, op)
    kept = {node for node, v in starts.nodes.items() if not isinstance(v, SomeTensor) or v.value is None}
    reached = cone(v for v in later.outputs if isinstance(v, fx.Node))
    readers = []
    for node in nested_nodes(later.region.nodes):
        operands = [n for n in later.recorder.taken_from(node) if n.op == "placeholder" or n.all_input_nodes]
        if operands and kept.issuperset(operands) and not regions_of(node):
            kept.add(node)  # a counter counted on
        elif node in reached and not kept.isdisjoint(operands):
            readers.append(node)
    for node in readers[:1]:
        error.add_note(f"the results of later calls depend on it through {place_of(node)}")
    if not readers and kept.isdisjoint(reached):
        error.add_note("the first call computes something else than later ones do")
    return error


def _unknown(first: Any, found: Mapping[Any, Start], error: DlcError, op: str) -> MutatedState:
    made = _error(first, op)
    place = f" at {error.loc}" if error.loc is not None else ""
    why = "it is used" if isinstance(error, MutatedState) else error.message
    made.add_note(f"what a later call computes cannot be known{place}: {why}")
    return made


__all__ = ["Starts", "forgotten", "objects_in", "unchanging"]
