"""The dynamic networks by name, as contenders open them: `benchmarks.dynamic_models:skipnet_rnn`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.models.dynamic.zoo import DYNAMIC


def __getattr__(name: str) -> Callable[[], Any]:
    if name not in DYNAMIC:
        raise AttributeError(name)
    return DYNAMIC[name].build
