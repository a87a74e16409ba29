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
def _getter(cls: Any) -> Callable[[Any], Any]:
    return attrgetter(*(f.name for f in fields(cls) if f.compare))


def _compared(node: Any) -> Any:
    """The values of a node's compared fields: a tuple, or the value of the only one."""
    return _getter(type(node))(node)  # type: ignore[arg-type]  # mypy takes the hash of nodes for that of their type


class Node:
    """Equality by kind and compared fields; the hash is cached on the node, and so is what `remembered` functions find."""

    __slots__ = ("_found", "_hash")
    _found: dict[Any, Any]
    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            value = hash((type(self).__name__, _compared(self)))
            object.__setattr__(self, "_hash", value)
            return value

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or hash(self) != hash(other):
            return False
        return bool(_compared(self) == _compared(other))


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
    node._found[recall.__wrapped__] = answer  # type: ignore[attr-defined]  # `remembered` wraps a function
