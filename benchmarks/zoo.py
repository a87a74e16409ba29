"""The zoo's models by name, as contenders open them: `benchmarks.zoo:bert_base`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.models.zoo import ZOO


def __getattr__(name: str) -> Callable[[], Any]:
    if name.endswith("_bf16") and name.removesuffix("_bf16") in ZOO:
        from benchmarks.narrow import Bf16Source

        return Bf16Source(name.removesuffix("_bf16")).model
    if name not in ZOO:
        raise AttributeError(name)
    return ZOO[name].make
