"""The control graph of a compiled program: its regions, how often each ran, and for how long.

The manifest lists the regions; region 0 is the program. What a region does is a list of items, in order:

    ["calls", first, last]    kernel calls `first` to `last`, both included
    ["if", then, else]        a decision between two later regions
    ["loop", body]            a loop over a later region
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from dlc.runtime.errors import BadManifest

KINDS: Final = ("program", "then", "else", "while", "for")
ARGUMENTS: Final = {"calls": 2, "if": 2, "loop": 1}


@dataclass(frozen=True, slots=True)
class Region:
    """Straight-line calls, decisions and loops.

    Attributes:
        kind: what it is: one of `KINDS`.
        loc: the source line of the decision or loop that it belongs to.
        items: (what, number, ...) as listed above.
    """

    kind: str
    loc: str
    items: tuple[tuple[Any, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "loc": self.loc, "items": [list(item) for item in self.items]}


@dataclass(frozen=True, slots=True)
class Visits:
    """How a region ran.

    Attributes:
        count: how often it was entered (a mean where it is per run).
        time_ns: how long all of these took together; None where nobody took the time.
    """

    count: float
    time_ns: float | None = None


def check_regions(regions: Sequence[Region], calls: int) -> None:
    """Refuse regions that are no tree, or that name calls that are not there.

    Raises:
        BadManifest: with the field.
    """
    owners = [0] * len(regions)
    for number, region in enumerate(regions):
        where = f"regions[{number}]"
        if region.kind not in KINDS or (region.kind == "program") != (number == 0):
            raise BadManifest(field=f"{where}.kind", reason=f"a region here cannot be '{region.kind[:40]}'")
        for item in region.items:
            if not item or ARGUMENTS.get(item[0]) != len(item) - 1:
                raise BadManifest(field=f"{where}.items", reason="expected calls, if or loop with their numbers")
            what, *numbers = item
            if what == "calls":
                first, last = numbers
                if not 0 <= first <= last < calls:
                    raise BadManifest(field=f"{where}.items", reason=f"there are no calls {first} to {last}")
                continue
            for inner in numbers:
                if not number < inner < len(regions):
                    raise BadManifest(field=f"{where}.items", reason=f"region {inner} does not come after it")
                owners[inner] += 1
    for number, owned in enumerate(owners[1:], 1):
        if owned != 1:
            raise BadManifest(field=f"regions[{number}]", reason=f"{owned} regions hold it, where one is expected")
