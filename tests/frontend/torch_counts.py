"""A source file with variables that its functions change, for models in another file."""

from __future__ import annotations

COUNT = 0


def counted(x):
    global COUNT
    COUNT += 1  # here
    return x * COUNT
