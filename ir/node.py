"""The base of IR nodes: frozen, structurally equal, with a hash computed once (so that comparing programs is not quadratic)."""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any


@cache
def _compared_fields(cls: Any) -> tuple[str, ...]:
    return tuple(f.name for f in fields(cls) if f.compare)


class Node:
    """Equality by kind and compared fields; the hash is cached on the node."""

    __slots__ = ("_hash",)
    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            value = hash((type(self).__name__, *(getattr(self, name) for name in _compared_fields(type(self)))))  # type: ignore[arg-type]
            object.__setattr__(self, "_hash", value)
            return value

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if type(self) is not type(other) or hash(self) != hash(other):
            return False
        return all(getattr(self, name) == getattr(other, name) for name in _compared_fields(type(self)))  # type: ignore[arg-type]
