"""Values that are computed alike, in one recording or in two, have one number.

Memory counts: what a call reads has the number of the last write to it, so that equal numbers mean equal values at run time,
given the same inputs.

Source: Alpern, Wegman, Zadeck, Detecting Equality of Variables in Programs (POPL 1988); Cocke and Schwartz (1970), value numbers.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from dlc.frontend.torch_recorder import LoopRecord, Recorder, Region
from dlc.frontend.torch_regions import nested_nodes, regions_of
from dlc.frontend.torch_storage import storage_of, writes

_HASHED_ELEMENTS = 1 << 16


class Value(int):
    """The number of a value."""


class Numbers:
    """The numbers given so far.

    Attributes:
        found: by what a value is computed of.
        varying: numbers of values that inputs have a part in.
    """

    def __init__(self) -> None:
        self.found: dict[Any, Value] = {}
        self.varying: set[Value] = set()

    def of(self, key: Any, varying: bool = False) -> Value:
        if key not in self.found:
            made = self.found[key] = Value(len(self.found))
            if varying or any(v in self.varying for v in _values(key)):
                self.varying.add(made)
        return self.found[key]


def _values(key: Any) -> Iterator[Value]:
    if isinstance(key, Value):
        yield key
    elif isinstance(key, tuple):
        for item in key:
            yield from _values(item)


class Numbering:
    """The numbers of one recording's values.

    Args:
        numbers: those of other recordings, too.
        recorder: the recording.
        given: the numbers of the inputs, with those of the last writes to them.
    """

    def __init__(self, numbers: Numbers, recorder: Recorder, given: dict[fx.Node, tuple[Value, Value | None]]) -> None:
        self.numbers = numbers
        self.recorder = recorder
        self.values = {node: value for node, (value, _) in given.items()}
        # The last write to each memory; under None to any.
        self.memory: dict[int | None, Value] = {storage_of(n): w for n, (_, w) in given.items() if w is not None}
        self.arms: dict[fx.Node, list[Any]] = {}  # of a branch: what each of its results is
        self._region(recorder.stack[0], 0)

    def of(self, node: fx.Node) -> tuple[Any, ...]:
        """What the node's value is, at the end or where the walk has got to."""
        extent = node.meta.get("val")
        if node not in self.values and isinstance(extent, (torch.SymInt, torch.SymFloat, torch.SymBool)):  # of an arm that asked first
            return self.numbers.of(("extent", str(extent.node.expr))), None, None
        return self.values[node], self.memory.get(storage_of(node)), self.memory.get(None)

    def _region(self, region: Region, depth: int) -> None:
        for node in region.nodes:
            if node.op != "placeholder":
                self.values[node] = self.numbers.of(self._key(node, depth))
                if writes(node):
                    self._written(node, self.values[node])

    def _key(self, node: fx.Node, depth: int) -> Any:
        if node.op == "get_attr":
            return "constant", _contents(getattr(self.recorder.root, str(node.target)))
        of, *at = node.args or (None,)
        if node.target is operator.getitem and of in self.arms:
            return self.arms[of][at[0]]
        key: tuple[Any, ...] = (str(node.target), self._operand(node.args), self._operand(node.kwargs))
        if "condition" in node.meta:
            key = *key, str(node.meta["condition"])
        if "chosen" in node.meta:
            at, items = node.meta["chosen"]
            key = *key, self._operand((at, *items))
        if "regions" in node.meta:
            arms = [self._arm(region, depth) for region in node.meta["regions"]]
            self.arms[node] = [("if", key, results) for results in zip(*(results for results, _ in arms), strict=True)]
            key = *key, *(written for _, written in arms)
        if "loop" in node.meta:
            key = *key, self._loop(node.meta["loop"], depth)
        for inner in nested_nodes([node]):
            if inner is not node and writes(inner):
                self._written(inner, self.numbers.of(("inside", key)))
        return key

    def _arm(self, region: Region, depth: int) -> Any:
        before = dict(self.memory)
        self._region(region, depth)
        found = self._ends(region)
        self.memory = before
        return found

    def _ends(self, region: Region) -> Any:
        return tuple(map(self.of, region.outputs)), tuple(self.values[n] for n in region.nodes if writes(n))

    def _loop(self, record: LoopRecord, depth: int) -> Any:
        before = dict(self.memory)
        starts = self._operand((record.first, record.limit, *record.starts))
        for n, node in enumerate(record.body.inputs):
            self.values[node] = self.numbers.of(("state", depth, n, starts))
        for node in nested_nodes(record.body.nodes):
            if writes(node):
                self._written(node, self.numbers.of(("step", depth, starts)))
        self._region(record.body, depth + 1)
        found = starts, record.collected, str(record.count), self._ends(record.body)
        self.memory = before
        return found

    def _written(self, node: fx.Node, value: Value) -> None:
        target = node.args[0] if node.args else node.kwargs.get("self")
        storage = storage_of(target) if isinstance(target, fx.Node) else None
        # A write may reach other memory, by a name that only the importer follows.
        entangled = storage in self.recorder.merged or self.recorder.rows.rows
        self.memory[None if entangled else storage] = value

    def _operand(self, a: Any) -> Any:
        if isinstance(a, fx.Node):
            return self.of(a)
        if isinstance(a, (tuple, list)):
            return tuple(map(self._operand, a))
        if isinstance(a, dict):
            return tuple((k, self._operand(v)) for k, v in a.items())
        if isinstance(a, slice):
            return "slice", self._operand((a.start, a.stop, a.step))
        return type(a).__name__, str(a) if isinstance(a, torch.SymInt) else repr(a)


def _contents(v: Any) -> Any:
    """Equal for constants that are equal."""
    if not isinstance(v, torch.Tensor) or v.numel() > _HASHED_ELEMENTS or isinstance(v, torch._subclasses.fake_tensor.FakeTensor):
        return id(v)
    with torch._C._DisableTorchDispatch():
        data = v.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if v.numel() else b""
    return str(v.dtype), tuple(v.shape), hashlib.sha256(data).hexdigest()


def cone(outputs: Iterator[fx.Node]) -> set[fx.Node]:
    """All that these values are computed of, inside branches and loops as well."""
    found: set[fx.Node] = set()
    pending = list(outputs)
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        pending += node.all_input_nodes
        for region in regions_of(node):
            pending += [*region.outputs, *(n for n in region.nodes if writes(n))]
    return found


__all__ = ["Numbering", "Numbers", "Value", "cone"]
