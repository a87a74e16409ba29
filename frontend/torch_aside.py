"""Code of the model's that cannot be rewritten, as its source is not at hand: what it changes is found out, and journalled.

Everything that such code can reach is noted before it runs, as what outlives a call is (`torch_state`), and looked at afterwards.
What has changed without being journalled meanwhile is entered into the journal with its value from before.
"""

from __future__ import annotations

import inspect
import types
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dlc.frontend.torch_callers import left_alone
from dlc.frontend.torch_effects import change, followed, late
from dlc.frontend.torch_errors import HiddenEffect, UncapturedDecision
from dlc.frontend.torch_state import Kept

_ASYNCHRONOUS = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def native(rt: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], torchs: bool) -> Any:
    """Call a function that is not rewritten.

    Raises:
        UncapturedDecision: it is a generator or a coroutine of the model's: it goes on when others run.
    """
    inner = getattr(function, "__func__", function)
    if not isinstance(inner, types.FunctionType) or left_alone(inner) or inner.__code__ in rt.own:
        return followed(rt, function, args, kwargs, torchs)
    flags = inner.__code__.co_flags
    if flags & inspect.CO_GENERATOR or flags & _ASYNCHRONOUS and len(rt.frames) > 1:
        why = rt.why.get(inner.__code__, "it is not rewritten")
        raise rt.refused(UncapturedDecision, what=f"what '{inner.__name__}' does, and when,", why=why)
    with aside(rt, f"'{inner.__name__}'", function, *args, *kwargs.values()):
        return followed(rt, function, args, kwargs, torchs)


@contextmanager
def aside(rt: Any, name: str, *reached: Any) -> Iterator[None]:
    """Code runs that is not rewritten.

    Args:
        rt: the recording.
        name: what runs, to the user.
        reached: all that it can reach, with what that holds.
    """
    kept = Kept()
    kept.follow(reached, name)
    for v in kept.seen.values():
        if isinstance(v, (list, dict, set, deque)):
            rt.whole(v)
    known = set(rt.frame.cells)
    try:
        yield
    finally:
        for place in kept.changes() if len(rt.frames) > 1 else ():
            late(rt, place.cell, place.before, known)
        used = [c for c, computed in kept.caches if c.cache_info().misses != computed]
        for what in (*(t for t in kept.ticking if t.changed), *used):
            change(rt, what, HiddenEffect, owner=f"'{getattr(what, 'name', name)}'", by=name)


def reached_from(frame: types.FrameType) -> Iterator[Any]:
    """What the code of a frame has: its variables, and those of its file that it names."""
    yield from frame.f_locals.values()
    pending = [frame.f_code]
    while pending:
        code = pending.pop()
        yield from (frame.f_globals[n] for n in code.co_names if n in frame.f_globals)
        pending += (c for c in code.co_consts if isinstance(c, types.CodeType))


__all__ = ["aside", "native", "reached_from"]
