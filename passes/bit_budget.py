"""Which matrix gets how many bits: the least error for a size, or the least size for an error."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Choice:
    """One way to store a matrix.

    Attributes:
        bits: of memory, in all.
        error: squared relative error, |W - W'|^2 / |W|^2.
        weights: how many the matrix has.
    """

    bits: float
    error: float
    weights: int


def assign(choices: Mapping[Key, Sequence[Choice]], limit: float, unit: str) -> dict[Key, int]:
    """The place of what is chosen for each matrix.

    From the smallest choice of each, one at a time is made larger: the one that takes away most error per bit. That is the
    optimum for every size at which it stops of itself, since errors fall ever more slowly with size.

    Args:
        limit: bits per weight on average (`unit` is `bits`), or the root of the mean squared relative error (`error`).

    Raises:
        ValueError: with what is within reach.
    """
    at = {key: min(range(len(c)), key=lambda i, c=c: c[i].bits) for key, c in choices.items()}  # type: ignore[misc]
    weights = sum(c[0].weights for c in choices.values())

    def size() -> float:
        return sum(choices[key][i].bits for key, i in at.items())

    def error() -> float:
        return sqrt(sum(choices[key][i].error for key, i in at.items()) / max(len(at), 1))

    if unit == "bits" and choices and size() > limit * weights:
        raise ValueError(f"{limit:g} bits per weight: the smallest types take {size() / weights:.3g} with their scales")
    while unit == "bits" or error() > limit:
        room = limit * weights - size() if unit == "bits" else float("inf")
        step = _best(choices, at, room)
        if step is None:
            break
        at[step[0]] = step[1]
    if unit == "error" and choices and error() > limit:
        raise ValueError(f"an error of {limit:g}: the largest types come to {error():.3g}")
    return at


def _best(choices: Mapping[Key, Sequence[Choice]], at: Mapping[Key, int], room: float) -> tuple[Key, int] | None:
    best: tuple[float, Key, int] | None = None
    for key, i in at.items():
        now = choices[key][i]
        for j, c in enumerate(choices[key]):
            if now.bits < c.bits <= now.bits + room and c.error < now.error:
                gain = (now.error - c.error) / (c.bits - now.bits)
                if best is None or gain > best[0]:
                    best = gain, key, j
    return None if best is None else best[1:]
