"""Positions that a mask picks: found once for equal masks, so that what they pick is as long wherever it is picked.

`x[m]` and `y[m]` have an extent that is known at run time only. PyTorch names a new one for each; here a mask becomes the
positions where it is true, as PyTorch's indexing does, and the same mask, or one computed alike of the same tensors, gets the
same positions.

Source: Alpern, Wegman, Zadeck, Detecting Equality of Variables in Programs (POPL 1988): values computed alike are equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dlc.frontend.torch_storage import storage_of

_ALIKE = frozenset(
    "eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not bitwise_xor isnan isinf"
    " isfinite abs neg add sub mul sum argmax argmin amax amin select slice unsqueeze squeeze view reshape scalar_tensor _to_copy to"
    " remainder".split()
)
"""Operators of which masks are made."""
_MOST_DEEP = 8


class Positions:
    """What masks pick, of one recording."""

    def __init__(self, recorder: Any) -> None:
        self.recorder = recorder
        self.found: dict[Any, tuple[torch.Tensor, torch.Tensor]] = {}  # the mask (kept alive) and its positions, one a row

    def of(self, mask: torch.Tensor) -> torch.Tensor:
        """`mask.nonzero()`; nobody may write to it."""
        key = self._key(self.recorder.node_of(mask), _MOST_DEEP), mask._version
        held = self.found.get(key)
        if held is None or not self.recorder.visible(held[1]):
            held = self.found[key] = mask, torch.nonzero(mask)
        return held[1]

    def keys(self, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What stands for a mask among the keys of a subscript: a list of positions for each of its dimensions."""
        return self.of(mask).unbind(1)

    def _key(self, node: fx.Node, depth: int) -> str:
        """Equal for values that are computed alike; a value that may have been written to is equal to itself only."""
        name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
        read = (storage_of(n) for n in (node, *node.all_input_nodes))
        if name not in _ALIKE or depth == 0 or any(s in self.recorder.written for s in read):
            return f"%{id(node)}"
        return f"{node.target}({self._text((*node.args, *node.kwargs.items()), depth - 1)})"

    def _text(self, a: Any, depth: int) -> str:
        if isinstance(a, fx.Node):
            return self._key(a, depth)
        return f"({', '.join(self._text(v, depth) for v in a)})" if isinstance(a, (tuple, list)) else repr(a)

    def asked(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call of PyTorch gives that asks for positions, in memory of its own; None for any other call."""
        if name not in ("nonzero", "argwhere", "where") or len(args) != 1 or not isinstance(args[0], torch.Tensor):
            return None
        if kwargs.keys() - {"as_tuple"} or args[0].dim() == 0:
            return None
        if name == "where" or kwargs.get("as_tuple"):
            return tuple(p.clone() for p in self.keys(args[0]))
        return self.of(args[0]).clone()


def is_mask(key: Any) -> bool:
    return isinstance(key, torch.Tensor) and key.dtype == torch.bool and key.dim() > 0
