"""All dynamic networks by name: the nine of DyCL's evaluation, then the further ones."""

from __future__ import annotations

from tests.models.dynamic import (
    blockdrop,
    captioner,
    decoding,
    detection,
    early_transformer,
    halting,
    mixture,
    shallow_deep,
    skipnet,
)
from tests.models.dynamic.entry import Dynamic

_MODULES = (shallow_deep, skipnet, captioner, blockdrop, early_transformer, mixture, halting, decoding, detection)
DYNAMIC: dict[str, Dynamic] = {entry.name: entry for module in _MODULES for entry in module.ENTRIES}
