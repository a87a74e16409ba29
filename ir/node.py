"""The base of IR nodes: frozen, structurally equal, with a hash computed once (so that comparing programs is not quadratic)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache, wraps
from operator import attrgetter
from typing import Any, TypeVar

N = TypeVar("N", bound="Node")
T = TypeVar("T")


@cache
def _compared_fields(cls: Any) -> Callable[[Any], Any]:
    """The compared fields' values of a node of this class: a tuple, or the value of the only one."""
    return attrgetter(*(f.name for f in fields(cls) if f.compare))


class Node:
    """Equality by kind and compared fields; the hash is cached on the node, and so is what `remembered` functions find."""

    __slots__ = ("_found", "_hash")
    _found: dict[Any, Any]
    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            kind: Any = type(self)
            value = hash((kind.__name__, _compared_fields(kind)(self)))
            object.__setattr__(self, "_hash", value)
            return value

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        kind: Any = type(self)
        if kind is not type(other) or hash(self) != hash(other):
            return False
        values = _compared_fields(kind)
        return bool(values(self) == values(other))


def remembered(compute: Callable[[N], T]) -> Callable[[N], T]:
    """`compute`, a function of a node alone, done once per node: the answer is kept on the node, and goes when the node goes."""

    @wraps(compute)
    def recall(node: N) -> T:
        try:
            found = node._found
        except AttributeError:
            found = {}
            object.__setattr__(node, "_found", found)
        try:
            return found[compute]
        except KeyError:
            answer = found[compute] = compute(node)  # two threads may both compute it; they find the same
            return answer

    return recall


def remember(recall: Callable[[N], T], node: N, answer: T) -> None:
    """Let a `remembered` function know its answer for `node`, where that was found on the way."""
    if not hasattr(node, "_found"):
        object.__setattr__(node, "_found", {})
    node._found[recall.__wrapped__] = answer  # type: ignore[attr-defined]
