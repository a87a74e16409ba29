"""Which traced values share memory."""

from __future__ import annotations

import torch
from torch import fx


def storage_of(node: fx.Node) -> int | None:
    """Identity of the memory of a traced value (of the first of several); None for what has none."""
    v = node.meta.get("val", node.meta.get("example_value"))
    if isinstance(v, (tuple, list)):
        v = next((x for x in v if isinstance(x, torch.Tensor)), None)
    if not isinstance(v, torch.Tensor) or v.layout != torch.strided:
        return None
    return int(v.untyped_storage()._cdata)
