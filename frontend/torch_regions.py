"""Recorded branches and loops as those of the program.

An arm's nodes are imported where they stand and read the tensors around them. A tensor of outside that an arm or a body writes
in place is one more result: the arm yields its new value, a loop carries it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import fx

from dlc.frontend.torch_alias import next_values, results
from dlc.frontend.torch_context import Ctx
from dlc.frontend.torch_recorder import LoopRecord, Region, branch, repeat, truth
from dlc.frontend.torch_storage import storage_of, writes
from dlc.ir.dtype import BOOL
from dlc.ir.expr import Const
from dlc.ir.view import Val


def nested_nodes(nodes: Sequence[fx.Node]) -> Iterator[fx.Node]:
    """`nodes`, and those of the regions in them."""
    for n in nodes:
        yield n
        for region in regions_of(n):
            yield from nested_nodes(region.nodes)


def regions_of(node: fx.Node) -> tuple[Region, ...]:
    found: tuple[Region, ...] = node.meta.get("regions", ())
    loop: LoopRecord | None = node.meta.get("loop")
    return (*found, loop.body) if loop is not None else found


def _written(c: Ctx, regions: Sequence[Region]) -> list[fx.Node]:
    """The tensors of outside that the regions write to: the node at the root of each one's memory."""
    roots: dict[fx.Node, None] = {}
    for region in regions:
        for n in nested_nodes(region.nodes):
            if writes(n):
                shown = (c.graph.root_of_storage(s) for s in c.graph.aliases.reached.get(n, ()))
                for root in (c.graph.root_of(n.args[0] if n.args else n.kwargs["self"]), *shown):
                    if root is not None:
                        roots[root] = None
    return list(roots)


@contextmanager
def _inside(c: Ctx) -> Iterator[None]:
    """What a region defines, and what it binds, is not visible after it."""
    graph = c.graph
    env, sharing = dict(graph.env), {k: list(v) for k, v in graph.sharing.items()}
    symbols, cache = dict(graph.extents.symbols), dict(graph.extents.cache)
    identities = graph.identities
    memories, clock = dict(identities.known), identities.clock
    saved = c.node, c.meta, c.target, c.loc
    loc = c.b.loc
    try:
        yield
    finally:
        graph.env, graph.sharing = env, sharing
        graph.extents.symbols, graph.extents.cache = symbols, cache
        identities.known, identities.clock = memories, clock
        c.node, c.meta, c.target, c.loc = saved
        c.b.loc = loc


def _yielded(c: Ctx, node: fx.Node) -> Val:
    """The value of a region's result, as a tensor of its traced type."""
    meta = node.meta["val"]
    v = c.cast(c.val(c.graph.value(node)), c.ir(meta.dtype))
    return c.b.materialize(v, str(node.name))


def import_branch(c: Ctx, node: fx.Node) -> list[Val]:
    """A recorded `if`."""
    then, orelse = node.meta["regions"]
    written = _written(c, (then, orelse))
    identities = c.graph.identities
    memories, ticks = identities.yielded(node), identities.ticks((then, orelse))
    condition = c.cast(c.val(c.graph.value(node.args[0])), BOOL)

    def arm(region: Region) -> Callable[[], list[Val]]:
        def build() -> list[Val]:
            with _inside(c):
                c.graph.nodes(region.nodes)
                found = [_yielded(c, n) for n in region.outputs]
                found += [c.b.materialize(c.graph.env[w]) for w in written]
                found += [identities.of(storage_of(region.outputs[n])) for n in memories]
                return [*found, identities.clock] if ticks else found

        return build

    outs = list(c.b.if_(condition, arm(then), arm(orelse), c.hint))
    if ticks:
        identities.clock = outs.pop()
    count = len(then.outputs)
    found, changed, known = outs[:count], outs[count : count + len(written)], outs[count + len(written) :]
    for root, new in zip(written, changed, strict=True):
        c.graph.replace(root, new)
    for n, number in zip(memories, known, strict=True):
        identities.known[results(node)[n]] = number
    return found


def import_loop(c: Ctx, node: fx.Node) -> list[Val]:
    """A recorded loop."""
    record: LoopRecord = node.meta["loop"]
    graph, body = c.graph, record.body
    written = _written(c, (body,))
    starts = [graph.value(n) for n in record.starts]
    starts = [c.cast(c.val(v), c.ir(n.meta["val"].dtype)) for v, n in zip(starts, record.starts, strict=True)]
    identities = graph.identities
    memories, ticks = identities.states(node, record), identities.ticks((body,), True)
    inits = [*starts, *(graph.env[w] for w in written), *(identities.of(storage_of(record.starts[n])) for n in memories)]
    if ticks:
        inits.append(identities.clock)
    known = slice(len(starts) + len(written), len(inits) - ticks)
    first = c.cast(c.val(graph.value(record.first)), BOOL) if record.first is not None else None
    limit = c.val(graph.value(record.limit)) if record.limit is not None else None

    def build(index: Val, states: tuple[Val, ...]) -> tuple[Val | None, Sequence[Val], Sequence[Val]]:
        with _inside(c):
            graph.bind(body.inputs[0], index)
            for n, v in zip(body.inputs[1:], states, strict=False):
                graph.bind(n, v)
            for root, v in zip(written, states[len(starts) : known.start], strict=True):
                graph.replace(root, v)
            for n, number in zip(memories, states[known], strict=True):
                identities.known[storage_of(body.inputs[1 + n])] = number
            if ticks:
                identities.tick(states[-1])
            graph.nodes(body.nodes)
            found = [_yielded(c, n) for n in body.outputs]
            changed = [c.b.materialize(graph.env[w]) for w in written]
            changed += [identities.of(storage_of(next_values(record)[n])) for n in memories]
            changed += [identities.clock] if ticks else []
        again = found.pop(0) if first is not None else None
        nexts, collected = found[: len(starts)], found[len(starts) :]
        return again, [*nexts, *changed], collected

    finals, gathered = c.b.loop(c.hint, inits, build, limit=limit, cond=first, bound=_bound(limit))
    if gathered:
        graph.extents.symbols[record.count.node.expr] = gathered[0].shape[0]
    for root, new in zip(written, finals[len(starts) : known.start], strict=True):
        graph.replace(root, new)
    for n, number in zip(memories, finals[known], strict=True):
        identities.known[results(node)[n]] = number
    if ticks:
        identities.clock = finals[-1]
    return [*finals[: len(starts)], *gathered]


def _bound(limit: Val | None) -> int | None:
    """The number of steps at most, where it is known."""
    literal = limit.at(()) if limit is not None else None
    return int(literal.value) if isinstance(literal, Const) else None


def import_truth(c: Ctx, node: fx.Node) -> list[Val]:
    """A condition on extents."""
    expr = c.extents.truth(node.meta["condition"].node.expr)
    return [Val(BOOL, (), lambda _: expr)]


RECORDED: dict[Any, Callable[[Ctx, fx.Node], list[Val]]] = {
    branch: import_branch, repeat: import_loop, truth: import_truth,
}  # fmt: skip
"""Definitions of the recorder's own targets."""

