"""Which exceptions the context of a `with` keeps from the code around it."""

from __future__ import annotations

import contextlib
import dis
import functools
import types
from itertools import pairwise
from typing import Any

from dlc.frontend.torch_callers import left_alone


def caught_by(context: Any) -> tuple[type[BaseException], ...]:
    """The kinds of exceptions that end at this context, or may."""
    if isinstance(context, contextlib.suppress):
        return tuple(vars(context)["_exceptions"])  # what it was made with, which has no public name
    if isinstance(context, contextlib._GeneratorContextManager):
        gen: Any = context.gen
        return (BaseException,) if _handles(gen.gi_code) else ()
    leave = getattr(type(context), "__exit__", None)
    if not isinstance(leave, types.FunctionType) or left_alone(leave):
        return ()
    return (BaseException,) if _answers(leave.__code__) else ()


@functools.cache
def _handles(code: types.CodeType) -> bool:
    """Whether a generator has an `except`, with kinds or without; a `finally` raises again what it meets."""
    names = [i.opname for i in dis.get_instructions(code)]
    return not {"CHECK_EXC_MATCH", "CHECK_EG_MATCH"}.isdisjoint(names) or ("PUSH_EXC_INFO", "POP_TOP") in pairwise(names)


@functools.cache
def _answers(code: types.CodeType) -> bool:
    """Whether an `__exit__` may return anything but None and False."""
    before = None
    for i in dis.get_instructions(code):
        returned = i if i.opname == "RETURN_CONST" else before if i.opname == "RETURN_VALUE" else None
        if returned is not None and not (returned.opname in ("LOAD_CONST", "RETURN_CONST") and not returned.argval):
            return True
        before = i
    return False


__all__ = ["caught_by"]
