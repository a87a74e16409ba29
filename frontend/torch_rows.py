"""Rows at positions from data, `r = x[k]`, kept what they are in eager PyTorch: views.

A view's place must be known when it is recorded; a row at a position from data is gathered into memory of its own. So that a
write to one shows in the other, each write in place is followed up here: of a row, to what it is a row of; of a tensor, to
the rows taken from it that are still at hand. What is not read afterwards is dead code. Where a row has been united with
another tensor, or carried by a loop, that is no longer possible: the writes that are not followed up are known to
`torch_alias`, which refuses them.

Source: Reed et al., torch.fx (MLSys 2022, arXiv 2112.08429), 5.5, and functionalization in PyTorch (views regenerated from
their base after a write).
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, eq=False)
class _Row:
    """`root` is what stands at the positions `at` of `base` along `dim`, with that dimension kept."""

    root: weakref.ref[torch.Tensor]  # dead with the last view of it
    base: torch.Tensor
    dim: int
    at: torch.Tensor

    def reread(self) -> torch.Tensor:
        return torch.index_select(self.base, self.dim, self.at)


def storage(x: torch.Tensor) -> int:
    return int(x.untyped_storage()._cdata)


class Rows:
    """The rows taken so far, of one recording."""

    def __init__(self, recorder: Any) -> None:
        self.recorder = recorder
        self.rows: list[_Row] = []
        self.written: list[Any] = []  # nodes that write, not followed up yet

    def take(self, x: torch.Tensor, dim: int, at: torch.Tensor) -> torch.Tensor:
        """`x.select(dim, at)` for a position from data."""
        at = at.reshape(1).clone()  # the position as it is now
        root = torch.index_select(x, dim, at)
        self.shows(root, [x])
        self.rows.append(_Row(weakref.ref(root), x, dim, at))
        return root.squeeze(dim)

    def shows(self, root: torch.Tensor, of: Sequence[torch.Tensor]) -> None:
        """In eager PyTorch `root` is the memory of one of these."""
        self.recorder.node_of(root).meta["shows"] = tuple(storage(x) for x in of)

    def chosen(self, root: torch.Tensor, of: Sequence[torch.Tensor], at: torch.Tensor) -> None:
        """In eager PyTorch `root` is the memory of the one of these that is at that position."""
        recorder = self.recorder
        items = tuple(map(recorder.node_of, of))
        recorder.node_of(root).meta["chosen"] = recorder.node_of(at), items
        recorder.merges((recorder.node_of(root), *items))

    def follow(self) -> None:
        """Follow up what has been written since."""
        if not self.written:
            return
        nodes, self.written = self.written, []
        self.rows = [r for r in self.rows if r.root() is not None]
        if not self.rows:
            return
        for node in nodes:
            target = node.args[0] if node.args else node.kwargs["self"]
            value = target.meta.get("val")
            if isinstance(value, torch.Tensor):
                done = {storage(value)}
                self._up(storage(value), done)
                self._down(storage(value), done)
                node.meta["coherent"] = frozenset(done)
                for more in self.written:
                    more.meta["coherent"] = frozenset(done)
                self.written.clear()

    def _open(self) -> Iterator[tuple[_Row, torch.Tensor]]:
        for r in self.rows:
            root = r.root()
            if root is not None and self.recorder.visible(root) and self.recorder.visible(r.base):
                yield r, root

    def _up(self, written: int, done: set[int]) -> None:
        """To what the written tensor is a row of, and to the other rows of that."""
        for r, root in list(self._open()):
            if storage(root) == written and storage(r.base) not in done:
                done.add(storage(r.base))
                at = torch.where(r.at < 0, r.at + r.base.shape[r.dim], r.at)
                r.base.index_copy_(r.dim, at, root)
                self._up(storage(r.base), done)
                self._down(storage(r.base), done)

    def _down(self, written: int, done: set[int]) -> None:
        """To the rows of the written tensor."""
        for r, root in list(self._open()):
            if storage(r.base) == written and storage(root) not in done:
                done.add(storage(root))
                root.copy_(r.reread())
                self._down(storage(root), done)


__all__ = ["Rows"]
