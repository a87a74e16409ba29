"""What a schedule is: an order, and where each tensor lies from which step to which."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stay:
    """A tensor lies at one address from step `first` to step `last`, both included.

    A tensor that leaves has several of them; the second begins with a transfer back.  Two may follow without a step in
    between: the tensor goes to another address by way of slow memory.
    """

    tensor: int
    first: int
    last: int
    offset: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Operators in the order they run, one a step, and the stays of all tensors."""

    order: tuple[int, ...]
    stays: tuple[Stay, ...]


Span = tuple[int, int, int]
"""(tensor, first step, last step): a stay whose address is still to be chosen."""
