"""What is scheduled: operators that read and write tensors of known sizes.

The text of a graph is JSON, `{"name", "operators": [name, ...], "tensors": [{"name", "bytes", "from": [operator, ...],
"to": [operator, ...], "output": true, "weight": true, "takes": tensor}, ...], "cheap": [operator, ...]}`, where operators and
tensors are numbers of the lists and what is empty or false is left out.  The operators stand in a legal order, the default one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from dlc.errors import DlcError


class BadGraph(DlcError):
    """An operator graph that cannot be one: a cycle, an operator that does not exist, a consumer before a producer."""

    code = "DLC0320"
    template = "operator graph '{graph}': {what}"


@dataclass(frozen=True, slots=True)
class Tensor:
    """A piece of storage that operators share; views of one storage are one tensor.

    Attributes:
        producers: operators that write it, all before any consumer; none for a graph's input. Several of them fill or
            accumulate into one buffer, which is there from the first of them on.
        output: a result of the graph; that it is written to slow memory once is compulsory, and makes it clean.
        weight: an input that is a parameter (`Graph.without_weights`).
        takes: a tensor of the same size that the producer reads and whose storage it takes over if no other operator
            needs the old value any more.
    """

    name: str
    bytes: int
    producers: tuple[int, ...] = ()
    consumers: tuple[int, ...] = ()
    output: bool = False
    weight: bool = False
    takes: int | None = None

    @property
    def uses(self) -> tuple[int, ...]:
        """Operators that need it to be in fast memory."""
        return tuple(dict.fromkeys(self.producers + self.consumers))


@dataclass(frozen=True, slots=True)
class Graph:
    """Operators in a legal order, and the tensors between them.

    Attributes:
        cheap: operators that may run more than once (`rematerialise`).
    """

    name: str
    operators: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    cheap: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for t in self.tensors:
            if any(not 0 <= o < len(self.operators) for o in t.uses):
                raise BadGraph(graph=self.name, what=f"'{t.name}' names an operator that is not there")
            if t.bytes < 0:
                raise BadGraph(graph=self.name, what=f"'{t.name}' has a negative size")
            if t.producers and t.consumers and max(t.producers) >= min(t.consumers):
                raise BadGraph(graph=self.name, what=f"'{t.name}' is read before it is whole")
            if t.takes is not None and not self._may_take(t):
                raise BadGraph(graph=self.name, what=f"'{t.name}' cannot take the storage of its operator's input")
        taken = [(t.takes, t.producers) for t in self.tensors if t.takes is not None]
        for takes, producers in taken:
            if taken.count((takes, producers)) > 1:
                what = f"two results of '{self.operators[producers[0]]}' take the storage of '{self.tensors[takes].name}'"
                raise BadGraph(graph=self.name, what=what)
        if any(not 0 <= o < len(self.operators) for o in self.cheap):
            raise BadGraph(graph=self.name, what="'cheap' names an operator that is not there")

    def _may_take(self, t: Tensor) -> bool:
        if t.takes is None or not 0 <= t.takes < len(self.tensors) or len(t.producers) != 1:
            return False
        old = self.tensors[t.takes]
        return old.bytes == t.bytes and t.producers[0] in old.consumers

    @property
    def unit(self) -> int:
        """Greatest number of bytes that divides every size."""
        return gcd(*(t.bytes for t in self.tensors)) or 1

    def without_weights(self) -> Graph:
        """The same operators, with parameters elsewhere than in fast memory."""
        kept = [i for i, t in enumerate(self.tensors) if not t.weight]
        place = {old: new for new, old in enumerate(kept)}
        return replace(
            self,
            tensors=tuple(
                replace(self.tensors[i], takes=place.get(self.tensors[i].takes))  # type: ignore[arg-type]
                for i in kept
            ),
        )

    def scaled(self, factor: int) -> Graph:
        """The same graph with elements that are `factor` times as wide."""
        return replace(self, tensors=tuple(replace(t, bytes=t.bytes * factor) for t in self.tensors))

    def to_json(self) -> str:
        """One tensor a line, so that a change is a small difference."""
        cheap = f'"cheap": {json.dumps(self.cheap)},\n' if self.cheap else ""
        head = f'{{"name": {json.dumps(self.name)},\n"operators": {json.dumps(self.operators)},\n{cheap}"tensors": [\n'
        return head + ",\n".join(json.dumps(_tensor_facts(t)) for t in self.tensors) + "\n]}\n"


def _tensor_facts(t: Tensor) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": t.name, "bytes": t.bytes}
    facts |= {"from": t.producers} if t.producers else {}
    facts |= {"to": t.consumers} if t.consumers else {}
    facts |= {"output": True} if t.output else {}
    facts |= {"weight": True} if t.weight else {}
    return facts | ({"takes": t.takes} if t.takes is not None else {})


def parse_graph(text: str) -> Graph:
    """The graph that a JSON text describes.

    Raises:
        BadGraph: what is not as the text has to be, or why it is no graph.
    """
    try:
        facts = json.loads(text)
    except ValueError as fault:
        raise BadGraph(graph="?", what=f"the text is no JSON: {fault}") from None
    name = facts.get("name") if isinstance(facts, dict) else None

    def want(value: Any, kind: type, what: str) -> Any:
        if type(value) is not kind:
            names = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", dict: "an object"}
            raise BadGraph(graph=name if isinstance(name, str) else "?", what=f"{what} is {value!r:.40}, not {names[kind]}")
        return value

    def several(value: Any, kind: type, what: str) -> tuple[Any, ...]:
        return tuple(want(v, kind, f"an element of {what}") for v in want(value, list, what))

    def tensor(t: Any) -> Tensor:
        of = want(want(t, dict, "a tensor").get("name"), str, "a tensor's name")
        takes = t.get("takes")
        return Tensor(
            of,
            want(t.get("bytes"), int, f"'bytes' of '{of}'"),
            several(t.get("from", []), int, f"'from' of '{of}'"),
            several(t.get("to", []), int, f"'to' of '{of}'"),
            want(t.get("output", False), bool, f"'output' of '{of}'"),
            want(t.get("weight", False), bool, f"'weight' of '{of}'"),
            None if takes is None else want(takes, int, f"'takes' of '{of}'"),
        )

    want(facts, dict, "the text")
    return Graph(
        want(name, str, "'name'"),
        several(facts.get("operators"), str, "'operators'"),
        tuple(map(tensor, want(facts.get("tensors"), list, "'tensors'"))),
        several(facts.get("cheap", []), int, "'cheap'"),
    )


def bits(mask: int) -> Iterable[int]:
    """Numbers of the set bits, rising."""
    while mask:
        low = mask & -mask
        yield low.bit_length() - 1
        mask ^= low


class Tables:
    """What the searches ask of a graph, as bit masks: bit o of an operator mask is operator o, likewise tensors.

    Attributes:
        before: by operator, the operators that have to come before it, all of them.
        after: by operator, those that have to come after it.
        late: operators that run right before the first one that reads their result (`_makeable_late`).
        direct: by operator that is not late, those of its kind that it waits for; `next` is the other direction.
        touched: by operator, the tensors it reads or writes.
        uses: by tensor, the operators that read or write it.
        written: by tensor, the operators that write it.
        takes: by operator, pairs (new tensor, old tensor) of storage it may take over.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        n = len(graph.operators)
        self.count = n
        self.all = (1 << n) - 1
        self.sizes = [t.bytes for t in graph.tensors]
        self.touched = [0] * n
        depends = [0] * n
        self.takes: list[list[tuple[int, int]]] = [[] for _ in range(n)]
        self.uses = [_mask(t.uses) for t in graph.tensors]
        self.written = [_mask(t.producers) for t in graph.tensors]
        for index, t in enumerate(graph.tensors):
            for o in t.uses:
                self.touched[o] |= 1 << index
            for consumer in t.consumers:
                depends[consumer] |= self.written[index]
            if t.takes is not None:
                self.takes[t.producers[0]].append((index, t.takes))
        self.before = [0] * n
        self.after = [0] * n
        for o in range(n):  # the given order is a legal one
            for p in bits(depends[o]):
                self.before[o] |= self.before[p] | 1 << p
        for o in reversed(range(n)):
            for p in bits(depends[o]):
                self.after[p] |= self.after[o] | 1 << o
        self.touched_list = [tuple(bits(mask)) for mask in self.touched]
        self.late = _mask(_makeable_late(self))
        self.direct = [0] * n
        self.led_by = [0] * n  # late operators that run just before
        for o in range(n):
            for p in bits(depends[o]):
                if self.late >> p & 1:
                    self.direct[o] |= self.direct[p]
                    self.led_by[o] |= self.led_by[p] | 1 << p
                else:
                    self.direct[o] |= 1 << p
        self.next_list: list[list[int]] = [[] for _ in range(n)]
        for o in bits(self.all & ~self.late):
            for p in bits(self.direct[o]):
                self.next_list[p].append(o)
        self.need = [sum(self.sizes[a] for a in bits(self.touched[o])) for o in range(n)]
        self.clean_outputs = _mask(i for i, t in enumerate(graph.tensors) if t.output)
        self.inputs = _mask(i for i, t in enumerate(graph.tensors) if not t.producers)

    def ready(self, done: int) -> int:
        """Operators that may run next, with the late ones they need before them."""
        found = 0
        for o in bits(self.all & ~done & ~self.late):
            if not self.direct[o] & ~done:
                found |= 1 << o
        return found

    def sequence(self, operator: int, done: int) -> tuple[int, ...]:
        """What runs when `operator` does after `done`: late operators that it needs first."""
        led_by = self.led_by[operator] & ~done
        return (*bits(led_by), operator) if led_by else (operator,)

    def ready_after(self, ready: int, done: int, operator: int) -> int:
        """Ready operators when `operator`, one of `ready`, has run and made the set `done`."""
        ready &= ~(1 << operator)
        for s in self.next_list[operator]:
            if not self.direct[s] & ~done:
                ready |= 1 << s
        return ready

    def taken(self, operator: int, done: int) -> int:
        """Tensors whose storage `operator` takes over when it runs after `done`: it is the last that needs them."""
        found = 0
        for _, old in self.takes[operator]:
            if not self.uses[old] & ~done & ~(1 << operator):
                found |= 1 << old
        return found

    def total(self, tensors: int) -> int:
        """Bytes of a set of tensors."""
        sizes, found = self.sizes, 0
        while tensors:
            low = tensors & -tensors
            found += sizes[low.bit_length() - 1]
            tensors ^= low
        return found

    def footprint(self, operator: int, done: int) -> int:
        """Bytes that `operator` cannot do without when it runs after `done`."""
        if not self.takes[operator]:
            return self.need[operator]
        return self.need[operator] - self.total(self.taken(operator, done))


def _makeable_late(tables: Tables) -> Iterable[int]:
    """Operators v = f(X) that lose nothing by running right before c, the first reader of v.

    Until then X is there instead of v, which takes no more room and is no dearer to send away if |X| <= |v|; and f has room where c's
    results will lie if |X| <= |those|.  Whatever c is, that has to hold.  (Of tensors that are taken over the
    last reader matters, so they are left out, and results of the graph, since these leave for less.)
    """
    graph, sizes = tables.graph, tables.sizes
    made = [0] * tables.count
    for t in graph.tensors:
        if len(t.producers) == 1 and t.takes is None:
            made[t.producers[0]] += t.bytes
    taken = {t.takes for t in graph.tensors}
    for a, t in enumerate(graph.tensors):
        if len(t.producers) != 1 or t.output or not t.consumers or t.takes is not None:
            continue
        operator = t.producers[0]
        sources = [x for x in tables.touched_list[operator] if x != a]
        if any(operator in graph.tensors[x].producers or x in taken for x in sources):
            continue
        size = sum(sizes[x] for x in sources)
        if size <= sizes[a] and all(size <= made[c] for c in t.consumers):
            yield operator


def least_budget(graph: Graph) -> int:
    """M_R: what the greediest operator needs, its inputs and outputs; with less nothing can be done."""
    tables = Tables(graph)
    done, most = 0, 0
    for o in frugal_order(tables):
        most, done = max(most, tables.footprint(o, done)), done | 1 << o
    return most


def frugal_order(tables: Tables) -> tuple[int, ...]:
    """The order in which the greediest operator needs least.

    Orders differ in this only in who is the last reader of a tensor and takes over its storage. Of what is ready the least
    greedy comes first: an operator needs no more when others have run before it.
    """
    if not any(tables.takes):
        return tuple(range(tables.count))
    readers: list[set[int]] = [set() for _ in range(tables.count)]
    for t in tables.graph.tensors:
        for p in t.producers:
            readers[p] |= set(t.consumers)
    order: list[int] = []
    done, ready = 0, {o for o in range(tables.count) if not tables.before[o]}
    while ready:
        chosen = min(ready, key=lambda o: (tables.footprint(o, done), o))
        done |= 1 << chosen
        order.append(chosen)
        ready.remove(chosen)
        ready |= {o for o in readers[chosen] if not tables.before[o] & ~done}
    return tuple(order)


def _mask(numbers: Iterable[int]) -> int:
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask
