"""Union-find: things that are tied together, with the first of each group for its root."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")


class Ties(Generic[K]):
    """Groups of keys; a key that was never tied is a group of its own."""

    def __init__(self) -> None:
        self._parent: dict[K, K] = {}

    def root(self, key: K) -> K:
        """The key that stands for the group of `key`."""
        root = key
        while self._parent.setdefault(root, root) != root:
            root = self._parent[root]
        while self._parent[key] != root:
            self._parent[key], key = root, self._parent[key]
        return root

    def tie(self, a: K, b: K) -> None:
        """Make one group of those of `a` and `b`; the root is that of `a`."""
        self._parent[self.root(b)] = self.root(a)

    def __iter__(self) -> Iterator[K]:
        """The keys, in order of arrival."""
        return iter(self._parent)


__all__ = ["Ties"]
