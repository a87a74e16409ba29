"""The zoo's models by name, as contenders open them: `benchmarks.zoo:bert_base`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.models.zoo import ZOO


def __getattr__(name: str) -> Callable[[], Any]:
    if name not in ZOO:
        raise AttributeError(name)
    return ZOO[name].make
