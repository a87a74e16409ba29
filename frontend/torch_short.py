"""`any` and `all`, which look at their items no further than they must.

    any(f(v) for v in x)        all items are computed, and their truths joined, where that changes nothing; else
                                    for v in x:
                                        if f(v): return True
                                    return False
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from dlc.frontend import torch_steps
from dlc.frontend.torch_collect import Collected
from dlc.frontend.torch_effects import ends_early
from dlc.frontend.torch_errors import UncapturedDecision
from dlc.frontend.torch_heap import Frame
from dlc.frontend.torch_numbers import Number, negated
from dlc.frontend.torch_storage import writes
from dlc.frontend.torch_values import Sometimes

if TYPE_CHECKING:
    from dlc.frontend.torch_calls import Calls

_DONE = object()


def any_of_items(rt: Calls, over: Iterable[Any]) -> Any:
    return _until(rt, over, True)


def all_items(rt: Calls, over: Iterable[Any]) -> Any:
    return _until(rt, over, False)


def short(
    rt: Calls, function: Any, over: Any, names: bool, plain: Callable[[Any], Any], loop: Callable[[Any], Any] | None
) -> Any:
    """`any(... for v in over)`, or `all`.

    Args:
        function: what goes by that name.
        over: the iterable.
        names: whether computing an item gives a value to a name (`:=`).
        plain: the generator of the items.
        loop: the loop that this stands for, if it can be written as one.
    """
    if function not in (any, all):
        return rt.call(function, plain(over))
    if loop is not None and _of_unknown_length(rt, over):
        return loop(over)
    attempt = rt.enter(own_region=False)
    try:
        found = rt.call(function, plain(over))
        if names and isinstance(found, Number):
            raise _refused(rt, function.__name__, "`:=` gives a name the value of the last one")
    except UncapturedDecision:
        rt.abandon(attempt)
        if loop is None:
            raise
        return loop(over)
    except Exception:
        rt.leave(attempt)
        raise
    rt.commit(attempt)
    if isinstance(found, Number):
        ends_early(rt, over)
    return found


def _of_unknown_length(rt: Calls, over: Any) -> bool:
    if isinstance(over, Iterator):
        return False
    some = isinstance(over, (list, tuple)) and any(isinstance(v, Sometimes) for v in over)
    return some or isinstance(torch_steps.steps_of(rt, over), torch_steps.Steps)


def _refused(rt: Calls, name: str, reason: str) -> Exception:
    return rt.refused(UncapturedDecision, what=f"how many items '{name}' looks at", why=f"{reason}; write it as a for loop")


def _until(rt: Calls, over: Iterable[Any], end: bool) -> Any:
    """What the truth of the items makes together; `end` as soon as one is known to be that."""
    start = not end
    found: Any = start
    items = iter(over)
    while found is start:
        v = next(items, _DONE)
        if v is _DONE:
            return start
        found = _truth(rt, v, end)
        if found is end:
            return end
    ends_early(rt, items)
    while True:
        frame = rt.enter(own_region=False)
        try:
            v = next(items, _DONE)
            truth = start if v is _DONE else _truth(rt, v, end)
            if _changes(frame):
                raise _refused(rt, "any" if end else "all", "computing an item changes something")
        except BaseException:
            rt.leave(frame)
            raise
        rt.commit(frame)
        if v is _DONE:
            return found
        if truth is end:
            return end
        found = found if truth is start else _joined(rt, found, truth, end)


def _truth(rt: Calls, v: Any, end: bool) -> Any:
    if isinstance(v, Collected):
        return rt.decide(v.whole.bool().any() if end else v.whole.bool().all())
    if isinstance(v, Sometimes):
        return rt.both_hold(v.flag, v.value) if end else rt.either_holds(negated(v.flag), v.value)
    return rt.decide(v)


def _joined(rt: Calls, a: Any, b: Any, end: bool) -> Any:
    return rt.either_holds(a, b) if end else rt.both_hold(a, b)


def _changes(frame: Frame) -> bool:
    """Whether something was changed since the frame was opened."""
    return bool(frame.cells) or frame.lasting is not None or _write(frame.region.nodes[frame.start :])


def _write(nodes: Iterable[Any]) -> bool:
    inner = (r for n in nodes for r in _regions_of(n))
    return any(map(writes, nodes)) or any(_write(r.nodes) for r in inner)


def _regions_of(node: Any) -> tuple[Any, ...]:
    loop = node.meta.get("loop")
    return node.meta.get("regions", ()) if loop is None else (loop.body,)


__all__ = ["all_items", "any_of_items", "short"]
