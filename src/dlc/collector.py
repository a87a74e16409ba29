"""Python's collector of cyclic garbage, put off while programs are made and rewritten."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_put_off() -> Iterator[None]:
    """No search for cyclic garbage inside.

    A program is a tree of frozen nodes: what a pass drops is freed at once, and no search finds more. But as nodes are made by the
    hundred thousand, Python would start one again and again, each through all objects of PyTorch.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
