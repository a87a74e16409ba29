"""Which memory a tensor is, as a number of the run, where the path taken says so.

Every memory that takes part in an undecided write gets a number where it is made: one for the place in the program, and,
inside loops, for the step, as each step makes another one. Branches yield the numbers of what they yield, loops carry those
of their states. Two tensors are one memory where their numbers are equal.

Source: Steensgaard, Points-to Analysis in Almost Linear Time (POPL 1996) names memories by where they are made; the number
of the step makes the name exact.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from dlc.frontend.torch_alias import results
from dlc.frontend.torch_context import add
from dlc.frontend.torch_recorder import LoopRecord, Region
from dlc.frontend.torch_storage import storage_of
from dlc.ir.builder import Builder
from dlc.ir.dtype import BOOL, I64
from dlc.ir.expr import apply, const
from dlc.ir.view import Val

_STEP = 1 << 20
"""What a step of a loop adds to the numbers of the memories made in it: more than there are places."""


class Identities:
    """The numbers of the memories at hand."""

    def __init__(self, b: Builder) -> None:
        self.b = b
        self.tagged: frozenset[int] = frozenset()
        self.known: dict[int, Val] = {}
        self.clock = b.scalar(0, I64)  # how many steps of loops there have been, in units of `_STEP`
        self._places: dict[int, int] = {}

    def made(self, storage: int, everywhere: bool = False) -> None:
        """A memory is made here, or is the same one `everywhere`."""
        if storage not in self.tagged or storage in self.known:
            return
        place = const(self._places.setdefault(storage, len(self._places)), I64)
        clock = self.clock
        self.known[storage] = Val(I64, (), (lambda _: place) if everywhere else (lambda _: add(clock.at(()), place)))

    def chosen(self, storage: int | None, at: Val, items: Sequence[int | None]) -> None:
        """A tensor is the one of `items` at a position from data, which may count from the end."""
        if storage not in self.tagged or storage is None:
            return
        found = self.of(items[-1]).at(())
        for n, item in enumerate(items[:-1]):
            meant = apply("or", *(apply("eq", at.at(()), const(k, I64)) for k in (n, n - len(items))))
            found = apply("select", meant, self.of(item).at(()), found)
        number = found
        self.known[storage] = self.b.materialize(Val(I64, (), lambda _: number))

    def same(self, a: int | None, b: int) -> Val:
        """Whether two tensors are one memory."""
        x, y = self.of(a), self.of(b)
        return Val(BOOL, (), lambda _: apply("eq", x.at(()), y.at(())))

    def of(self, storage: int | None) -> Val:
        return self.known[storage or -1]

    # --- control ---

    def yielded(self, node: fx.Node) -> list[int]:
        """The results of a branch whose memory must be known."""
        return [n for n, s in enumerate(results(node)) if s in self.tagged]

    def states(self, node: fx.Node, record: LoopRecord) -> list[int]:
        """The states of a loop whose memory must be known."""
        inside = [storage_of(n) for n in record.body.inputs[1:]]
        after = results(node)
        return [n for n in range(len(record.starts)) if inside[n] in self.tagged or after[n] in self.tagged]

    def ticks(self, regions: Sequence[Region], looping: bool = False) -> bool:
        """Whether memories that must be told apart are made in steps of loops here."""
        for region in regions:
            for n in region.nodes:
                record: LoopRecord | None = n.meta.get("loop")
                if looping and any(s in self.tagged for s in results(n)):
                    return True
                if self.ticks(n.meta.get("regions", ()), looping) or record is not None and self.ticks((record.body,), True):
                    return True
        return False

    def tick(self, clock: Val) -> None:
        """A step of a loop begins."""
        self.clock = Val(I64, (), lambda _: add(clock.at(()), const(_STEP, I64)))
