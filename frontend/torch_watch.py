"""Containers of which nothing is known, while code runs that is not rewritten: properties, methods like `__len__`, generators.

A list whose length later calls find otherwise is written with one element that refuses to be used. Rewritten code asks whether
that is there before it takes a length; other code would count one. It may only add to such a list, as hooks do.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from dlc.frontend.torch_callers import LEFT_ALONE
from dlc.frontend.torch_errors import MutatedState

_ADDING = frozenset("add append appendleft clear extend extendleft insert update".split())


@contextmanager
def watched(rt: Any, unknown: Mapping[int, str]) -> Iterator[None]:
    """Refuse what other code than rewritten does with containers, except adding to them.

    Args:
        rt: the recording.
        unknown: by the containers' addresses what they are to the user: `Model.items`.
    """
    names = {id: name.rpartition(".")[2] for id, name in unknown.items()}

    def called(frame: types.FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_code in rt.own:
            return
        root = frame.f_globals.get("__name__", "").partition(".")[0]
        if root in LEFT_ALONE:
            return
        found = {n for n, v in frame.f_locals.items() if id(v) in names}
        foreign = root in sys.stdlib_module_names and root != "__main__"
        held = (id(x) for v in list(frame.f_locals.values()) for x in getattr(v, "__dict__", {}).values()) if foreign else names
        found |= {names[x] for x in held if x in names}
        at = next((name for n, name in unknown.items() if names[n] in found), None)
        if looked_at(frame.f_code, frozenset(found)):
            rt.refused(MutatedState, op=f"'{frame.f_code.co_name}', which is not rewritten,", what=f"'{at or next(iter(found))}'")

    if not unknown:
        yield
        return
    before = sys.getprofile()
    sys.setprofile(called)
    try:
        yield
    finally:
        sys.setprofile(before)


@functools.cache
def looked_at(code: types.CodeType, names: frozenset[str]) -> bool:
    """Whether code does anything with what has one of these names but add to it, or set another."""
    loaded = False
    for i in dis.get_instructions(code):
        if loaded and not (i.opname in ("LOAD_ATTR", "LOAD_METHOD") and i.argval in _ADDING):
            return True
        loaded = i.opname.startswith("LOAD_") and i.opname != "LOAD_METHOD" and i.argval in names
    return False


__all__ = ["looked_at", "watched"]
