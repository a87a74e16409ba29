"""Writes in place that another tensor may show, where which memory a tensor is depends on the path taken.

A branch's result is the memory of what one of its arms yields, a loop's state that of what its start or a step left: each
recorded value has the set of memories that it may be. The importer gives a value of its own to every branch result and
loop state; that is right after a write unless some other value, of a memory in common, is still to be used.

Source: Andersen, Program Analysis and Specialization for the C Programming Language (1994), chapter 4 (points-to sets as
inclusions); Aho, Lam, Sethi, Ullman, Compilers, section 9.2.5 (live variables).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import fx

from dlc.frontend.torch_recorder import LoopRecord, Region
from dlc.frontend.torch_storage import storage_of, writes

Storages = frozenset[int]


def shared_writes(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The nodes that write to a memory which another value shows, on some path, that is used afterwards."""
    if not any("regions" in n.meta or "loop" in n.meta or "shows" in n.meta for n in nodes):
        return set()
    memories = _Memories(nodes)
    liveness = _Liveness()
    liveness.block(nodes, frozenset())
    return {
        n
        for n, live in liveness.after.items()
        if any(memories.written_through(own, s) for own in _written(n) for s in live - {own} - n.meta.get("coherent", frozenset()))
    }


def _written(n: fx.Node) -> list[int]:
    found = storage_of(n.args[0] if n.args else n.kwargs["self"])
    return [] if found is None else [found]


def results(n: fx.Node) -> list[int | None]:
    """The memory of each result of a node."""
    v = n.meta.get("val", n.meta.get("example_value"))
    values = v if isinstance(v, (tuple, list)) else (v,)
    return [
        int(x.untyped_storage()._cdata) if isinstance(x, torch.Tensor) and x.layout == torch.strided else None for x in values
    ]


class _Memories:
    """By storage of a traced value: the storages whose memory it may be at run time; itself unless listed."""

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self.flows: list[tuple[int, int]] = []  # the first may be the second
        self.shown: list[tuple[int, int]] = []  # the first is a row of the second (`torch_rows`)
        self.made: dict[int, int] = {}  # when, in the order of the program
        self._collect(nodes)
        self.sets: dict[int, Storages] = dict.fromkeys((to for to, _ in self.flows), frozenset())
        for to, source in self.shown:
            self.sets[to] = self.sets.get(to, frozenset()) | {to, source}
        changed = True
        while changed:
            changed = False
            for to, source in self.flows:
                more = self.of(source) - self.sets[to]
                if more:
                    self.sets[to] |= more
                    changed = True

    def of(self, storage: int) -> Storages:
        return self.sets.get(storage, frozenset((storage,)))

    def written_through(self, a: int, b: int) -> bool:
        """Whether `b` may show what is written to `a`."""
        if a not in self.sets:  # nothing but what came after it is it: the states of a loop are that of a step before
            return a in self.of(b) and self.made.get(b, len(self.made)) > self.made.get(a, -1)
        return not self.of(a).isdisjoint(self.of(b))

    def _flow(self, to: Iterable[int | None], sources: Iterable[fx.Node]) -> None:
        for t, n in zip(to, sources, strict=False):
            s = storage_of(n)
            if t is not None and s is not None:
                self.flows.append((t, s))

    def _collect(self, nodes: Sequence[fx.Node]) -> None:
        for n in nodes:
            for region in n.meta.get("regions", ()):
                self._collect(region.nodes)
                self._flow(results(n), region.outputs)
            self.shown += [(own, s) for own in results(n) if own is not None for s in n.meta.get("shows", ())]
            record: LoopRecord | None = n.meta.get("loop")
            if record is not None:
                self._collect(record.body.nodes)
                states = [storage_of(s) for s in record.body.inputs[1:]]
                nexts = next_values(record)
                for to in (states, results(n)):
                    self._flow(to, record.starts)
                self._flow(states, nexts)
                self._flow(results(n), nexts)
            for s in results(n):
                if s is not None:
                    self.made.setdefault(s, len(self.made))


def next_values(record: LoopRecord) -> list[fx.Node]:
    """What a step leaves: the states, then what is collected."""
    return record.body.outputs[1 if record.first is not None else 0 :]


class _Liveness:
    """The storages still to be used after each write."""

    def __init__(self) -> None:
        self.after: dict[fx.Node, Storages] = {}

    def block(self, nodes: Sequence[fx.Node], live: Storages) -> Storages:
        """What is live before `nodes` where `live` is after them."""
        for n in reversed(nodes):
            if writes(n):
                self.after[n] = self.after.get(n, frozenset()) | live
            used = frozenset(_used(n))
            made = frozenset(s for s in results(n) if s is not None) - used
            if n.op == "get_attr" or n.target is operator.getitem:
                made = frozenset()  # the same memory wherever it occurs
            if "regions" in n.meta:
                live = frozenset().union(*(self.region(r, live - made) for r in n.meta["regions"])) | used
            elif "loop" in n.meta:
                live = self.loop(n.meta["loop"], results(n), live) | used
            else:
                live = (live - made) | used
        return live

    def region(self, region: Region, live: Storages) -> Storages:
        return self.block(region.nodes, live | _of(region.outputs))

    def loop(self, record: LoopRecord, made: Sequence[int | None], after: Storages) -> Storages:
        """Collected elements are there from the step on that made them."""
        finals = frozenset(s for s in made[: len(record.starts)] if s is not None)
        collected = frozenset(s for s in made[len(record.starts) :] if s is not None)
        own = _of(record.body.inputs)
        live = after - finals
        while True:
            before = self.region(record.body, live) - own
            if before <= live:
                return (live - collected) | _of(record.starts)
            live |= before


def _of(nodes: Iterable[fx.Node]) -> Storages:
    return frozenset(s for s in map(storage_of, nodes) if s is not None)


def _used(n: fx.Node) -> Iterator[int]:
    """The memories that a node reads or writes; taking out one of several results reads that one."""
    if n.target is operator.getitem:
        yield from (s for s in results(n) if s is not None)
        return
    for a in n.all_input_nodes:
        s = storage_of(a)
        if s is not None:
            yield s
