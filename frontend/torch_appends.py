"""Lists that a loop's body only appends to, while it is recorded: how long they are, what came last, and what they hold in the end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from dlc.frontend.torch_collect import Growing, Progress
from dlc.frontend.torch_errors import CannotRecordLoop
from dlc.frontend.torch_flow import place_of_site
from dlc.frontend.torch_heap import Cell, Frame
from dlc.frontend.torch_numbers import Number, is_number, kind_of, tensor_of
from dlc.frontend.torch_truth import follows
from dlc.frontend.torch_values import Elided, Sometimes, described, same

if TYPE_CHECKING:
    from dlc.frontend.torch_body import Body

Key = tuple[int, str | None]


class Newest:
    """The last element of such a list as an attribute, which a loop carries as it does others."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Appends:
    """The growing lists of a loop.

    Attributes:
        growing: by the keys of their cells: what stands for the elements that there are at the start of a step.
        appended: what a step adds.
        last: of lists that the last step may not append to: whether it does.
    """

    def __init__(self, body: Body) -> None:
        self.body = body
        self.growing: dict[Key, Growing] = {}
        self.appended: dict[Key, list[Any]] = {}
        self.last: dict[Key, Any] = {}

    def begin(self, cell: Cell, value: Any, index: Number) -> None:
        """Let a place hold what it holds at the start of step `index`."""
        grown = self.growing.get(cell.key)
        if grown is not None:
            grown.now.index = index
        cell.write(value if grown is None else [grown])

    def end(self) -> None:
        """Note what the step has appended last, where that is carried."""
        for cell in self._lists():
            newest, items = self.growing[cell.key].now.newest, cell.owner
            if newest is None or not items or items[-1] is self.growing[cell.key]:
                continue
            value = items[-1].value if isinstance(items[-1], Sometimes) else items[-1]
            if not is_number(value):
                self.growing[cell.key].refuse()
            newest.value = value

    def wanted(self, outside: Frame) -> bool:
        """Carry the last elements that the body has asked for; whether there are new ones."""
        body, found = self.body, False
        for cell in list(self._lists()):
            start, now = body.start[body.slot_of(cell)], self.growing[cell.key].now
            if now.wanted and now.newest is None and start and is_number(start[-1]):
                newest = now.newest = Newest(start[-1])
                outside.born[id(newest)] = newest  # nobody else's
                body.cells.append(Cell(newest, "value"))
                body.start.append(start[-1])
                body.end.append(start[-1])
                found = True
        return found

    def found(self, values: list[Any]) -> bool:
        """Find lists that a step only appends to, `values` being what places held at its start; whether one is new, or grows otherwise."""
        body, found = self.body, False
        for n, cell in enumerate(body.cells):
            slot = body.slot_of(cell)
            before, after = body.start[slot], body.end[slot]
            grown = self.growing.get(cell.key)
            if grown is not None:
                self.appended[cell.key] = added = self._surely(cell, after[1:])
                if after[:1] != [] and after[0] is grown:
                    body.end[slot] = before
                found |= grown.now.asked and grown.now.by != len(added)
                grown.now.by = len(added)
                continue
            if not isinstance(before, list) or not isinstance(after, list) or len(after) <= len(before):
                continue
            now = values[n] if n < len(values) else before
            added = self._surely(cell, after[len(before) :])
            if all(a is b for a, b in zip(now, before + added, strict=False)):
                self.growing[cell.key] = Growing(body.flow, str(cell), place_of_site(body.site), Progress(before, len(added)))
                found = True
        return found

    def _lists(self) -> Iterator[Cell]:
        return (cell for cell in self.body.cells if cell.key in self.growing)

    def _surely(self, cell: Cell, appended: list[Any]) -> list[Any]:
        """What a step appends; where it does so unless the loop ends there, as if it always did."""
        flags = [v.flag for v in appended if isinstance(v, Sometimes)]
        if not flags or len(flags) < len(appended) or not all(same(f, flags[0]) for f in flags):
            return appended
        again = self.body.again
        if again is not False and not (isinstance(again, Number) and follows(again, [(flags[0], False)], False)):
            return appended
        self.last[cell.key] = flags[0]
        return [v.value for v in appended]

    def lasts(self) -> list[Key]:
        """The lists that the last step may not append to."""
        return [cell.key for cell in self._lists() if cell.key in self.last]

    def collected(self, region: Any) -> list[tuple[Key, list[torch.Tensor], list[type | None]]]:
        """Of each list what a step appends, as results of the body; with their Python types."""
        body, found = self.body, []
        for cell in self._lists():
            values, kinds = [], []
            for v in self.appended[cell.key]:
                if not isinstance(v, torch.Tensor) and not is_number(v):
                    what = f"it appends {described(v)} to a list" + ", which is no tensor" * (not isinstance(v, Elided))
                    if isinstance(v, Sometimes):
                        what = "it appends to a list in some steps only"
                    raise body.flow.refused_at(body.site, CannotRecordLoop, reason=what)
                kind = None if isinstance(v, torch.Tensor) else kind_of(v)
                with body.flow.recorder.opened(region):
                    value = v if kind is None else tensor_of(v, kind)
                    region.outputs.append(body.flow.recorder.node_of(value))
                values.append(value)
                kinds.append(kind)
            found.append((cell.key, values, kinds))
        return found


__all__ = ["Appends"]
