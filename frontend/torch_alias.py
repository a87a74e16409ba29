"""Writes in place that another tensor may show, where which memory a tensor is depends on the path taken.

A branch's result is the memory of what one of its arms yields, a loop's state that of what its start or a step left: each
recorded value has the set of memories that it may be. The importer gives a value of its own to every branch result and
loop state; after a write, each other value that is still to be used and has a memory in common takes the new elements, too,
where it is that memory: `torch_identity` has which it is as a number of the run.

Source: Andersen, Program Analysis and Specialization for the C Programming Language (1994), chapter 4 (points-to sets as
inclusions); Aho, Lam, Sethi, Ullman, Compilers, section 9.2.5 (live variables).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from dlc.frontend.torch_recorder import LoopRecord, Region
from dlc.frontend.torch_storage import contiguous, storage_of, writes

Storages = frozenset[int]


@dataclass(frozen=True)
class Aliases:
    """What a write has to reach.

    Attributes:
        reached: by write the memories that may show what it writes, and are used afterwards.
        undecided: by write why it cannot be said whether one of these shows it.
        tagged: the memories that must be told apart while the program runs.
    """

    reached: Mapping[fx.Node, Storages] = field(default_factory=dict)
    undecided: Mapping[fx.Node, str] = field(default_factory=dict)
    tagged: Storages = frozenset()


def aliases(nodes: Sequence[fx.Node], lasting: Storages = frozenset()) -> Aliases:
    """The writes to a memory which another value shows, on some path, that is used afterwards.

    Args:
        nodes: the program.
        lasting: the memories that outlive it.
    """
    if not any({"regions", "loop", "shows", "chosen"} & n.meta.keys() for n in nodes):
        return Aliases()
    memories = _Memories(nodes)
    liveness = _Liveness()
    liveness.block(nodes, lasting & memories.sources)
    reached: dict[fx.Node, Storages] = {}
    undecided: dict[fx.Node, str] = {}
    tagged: set[int] = set()
    for n, live in liveness.after.items():
        for own in _written(n):
            others = live - {own} - n.meta.get("coherent", frozenset())
            found = frozenset(s for s in others if memories.written_through(own, s))
            if not found:
                continue
            reached[n] = found
            for s in found:
                why = memories.apart(own, s) or memories.apart(s, own)
                if why is not None:
                    undecided[n] = why
                tagged |= memories.behind(own) | memories.behind(s)
    return Aliases(reached, undecided, frozenset(tagged))


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
    """By storage of a traced value: the storages whose memory it may be at run time; itself unless listed.

    A value is all of the memory that it is, in its order, but for those in `partial`: these are known to be part of it, and why
    they are no more.
    """

    def __init__(self, nodes: Sequence[fx.Node]) -> None:
        self.flows: dict[int, list[int]] = {}  # the key may be one of these
        self.partial: dict[int, list[tuple[int, str]]] = {}
        self.made: dict[int, int] = {}  # when, in the order of the program
        self.first: dict[int, fx.Node] = {}  # the node at the root of each memory
        self._collect(nodes)
        self.sets: dict[int, Storages] = dict.fromkeys(self.flows, frozenset())
        for to, parts in self.partial.items():
            self.sets[to] = self.sets.get(to, frozenset()) | {to, *(s for s, _ in parts)}
        changed = True
        while changed:
            changed = False
            for to, sources in self.flows.items():
                more = frozenset().union(*map(self.of, sources)) - self.sets[to]
                if more:
                    self.sets[to] |= more
                    changed = True

    @property
    def sources(self) -> Storages:
        """The memories that some value may be, besides the one that is made for it."""
        return frozenset(s for sources in self.flows.values() for s in sources) | frozenset(
            s for parts in self.partial.values() for s, _ in parts
        )

    def of(self, storage: int) -> Storages:
        return self.sets.get(storage, frozenset((storage,)))

    def behind(self, storage: int) -> set[int]:
        """The values that tell which memory this one is, itself among them."""
        found, pending = set(), [storage]
        while pending:
            s = pending.pop()
            if s not in found:
                found.add(s)
                pending += self.flows.get(s, ())
        return found

    def apart(self, storage: int, other: int) -> str | None:
        """Why `storage` may be a part of the memory of `other`, which one number for each memory does not tell; None if it is not."""
        for s in self.behind(storage):
            for source, why in self.partial.get(s, ()):
                if not self.of(source).isdisjoint(self.of(other)):
                    return why
        return None

    def written_through(self, a: int, b: int) -> bool:
        """Whether `b` may show what is written to `a`."""
        if a not in self.sets:  # nothing but what came after it is it: the states of a loop are that of a step before
            return a in self.of(b) and self.made.get(b, len(self.made)) > self.made.get(a, -1)
        return not self.of(a).isdisjoint(self.of(b))

    def _flow(self, to: Iterable[int | None], sources: Iterable[fx.Node]) -> None:
        for t, n in zip(to, sources, strict=False):
            s = storage_of(n)
            if t is None or s is None:
                continue
            self.flows.setdefault(t, []).append(s)
            if not self._whole(n):
                self.partial.setdefault(t, []).append((s, "it is a part of that memory, or has it in another order"))

    def _whole(self, n: fx.Node) -> bool:
        """Whether a value shows all of its memory in order."""
        root = self.first.get(storage_of(n) or -1, n)
        a, b = n.meta["val"], root.meta["val"]
        return n is root or contiguous(n) and contiguous(root) and a.dtype == b.dtype and a.numel() == b.numel()

    def _show(self, n: fx.Node) -> None:
        for own in results(n):
            if own is not None and "shows" in n.meta:
                parts = self.partial.setdefault(own, [])
                parts += [(s, "it is a row at a position from data") for s in n.meta["shows"]]

    def _collect(self, nodes: Sequence[fx.Node]) -> None:
        for n in nodes:
            own = storage_of(n)
            if own is not None and isinstance(n.meta["val"], torch.Tensor):
                self.first.setdefault(own, n)
            for region in n.meta.get("regions", ()):
                self._collect(region.nodes)
                self._flow(results(n), region.outputs)
            self._show(n)
            for item in n.meta.get("chosen", (None, ()))[1]:
                self._flow(results(n), (item,))
            record: LoopRecord | None = n.meta.get("loop")
            if record is not None:
                self._collect(record.body.nodes)
                states = [storage_of(s) for s in record.body.inputs[1:]]
                count, nexts, made = len(record.starts), next_values(record), results(n)
                for to in (states, made[:count]):
                    self._flow(to, record.starts)
                    self._flow(to, nexts)
                for to_, value in zip(made[count:], nexts[count:], strict=True):
                    s = storage_of(value)
                    if to_ is not None and s is not None:
                        self.partial.setdefault(to_, []).append((s, "a loop has collected it"))
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
