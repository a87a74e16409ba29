"""All passes by name: every `Pass` with a name that a module of this folder defines."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cache
from types import MappingProxyType

import dlc.passes
from dlc.passes.pipeline import Pass


@cache
def passes() -> Mapping[str, type[Pass]]:
    """Name -> class.  The folder is the list: a pass is added by adding its file."""
    found: dict[str, type[Pass]] = {}
    for kind in _all_subclasses():
        other = found.setdefault(kind.name, kind)
        if other is not kind:
            raise TypeError(f"two passes are named '{kind.name}': {other.__module__} and {kind.__module__}")
    return MappingProxyType(dict(sorted(found.items())))


def _all_subclasses() -> Iterator[type[Pass]]:
    for module in pkgutil.iter_modules(dlc.passes.__path__):
        for value in vars(importlib.import_module(f"dlc.passes.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Pass) and value.name:
                yield value
