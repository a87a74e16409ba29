"""Why a reduction did not get its cheaper form: a closed set of reasons, each with the side condition that failed."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dlc.ir.loc import Loc


class Reason(Enum):
    """Side conditions of `defer-factors`, `running-reduction` and `block-recurrence`, and of the choice by `reduce-passes`."""

    SHORT = "the rank fits into one block, so that a running form would have a single step"
    KEPT = "a tensor along the rank that depends on the reduction is needed as a whole, which takes another pass"
    INSEPARABLE = "the operand cannot be split into data and a factor of the earlier reduction"
    UNSTABLE = "the earlier reduction does not bound the operand, so that partial results could overflow or cancel"
    OPAQUE = "the dependence goes through a step that is not point-wise"
    PARTIAL = "the result exists on a part of its free ranks only"
    TUPLE = "a tuple reduction has no factor that an update could replace"
    NARROW = "partial results would be rounded to a narrower type than the one they are added up in"
    SIGN = "a factor moves past max or min only where it is known to be positive"
    BOUNDS = "what would be read after the reduction is in bounds only where something is reduced"
    MONOID = "factors do not move past this reduction"
    APART = "there is a running form, but its scan would not run inside the tasks of one kernel"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Refusal:
    """A reduction that a pass looked at and left as it was.

    Attributes:
        tensor: what the reduction writes.
        rank: the reduced rank.
        reason: the side condition that failed.
        detail: the part of the program on which it failed.
        loc: where the Einsum comes from.
    """

    tensor: str
    rank: str
    reason: Reason
    detail: str
    loc: Loc

    def __str__(self) -> str:
        place = f"{self.loc}: " if self.loc else ""
        return f"{place}'{self.tensor}' over '{self.rank}': {self.reason} ({self.detail})"


class Refused(Exception):
    """Raised inside the passes where a side condition fails; never leaves them."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail
