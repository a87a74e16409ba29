"""The body of a loop that is recorded: again and again, until the states that it changes are found; then once into the program.

Source: Cousot and Cousot, POPL 1977 (the fixpoint of loop states).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dlc.frontend.torch_appends import Appends
from dlc.frontend.torch_collect import Collected
from dlc.frontend.torch_errors import ArmsDiffer, CannotRecordLoop
from dlc.frontend.torch_flow import Flow, most_of, place_of_site
from dlc.frontend.torch_grown import Uneven, each, filled, growing, opened, packed, shown, sized
from dlc.frontend.torch_heap import MISSING, Cell, Frame
from dlc.frontend.torch_loose import as_tensor, tensor_like
from dlc.frontend.torch_numbers import Number, is_number, tensor_of
from dlc.frontend.torch_objects import changeable
from dlc.frontend.torch_recorder import LoopRecord, fresh_like, repeat
from dlc.frontend.torch_steps import Steps
from dlc.frontend.torch_trips import Counter, Size, most_steps
from dlc.frontend.torch_truth import follows
from dlc.frontend.torch_values import (
    Absent,
    Dead,
    Either,
    Grown,
    Growth,
    Maybe,
    Partial,
    Unbound,
    alike,
    apart,
    described,
    difference,
    joined_kind,
    lasting,
    leaves,
    mapped,
    parts,
    same,
    same_shape,
    undefined,
)

if TYPE_CHECKING:
    from dlc.frontend.torch_loop import Loop

State = tuple[Any, ...]


@dataclass(eq=False)
class Round:
    """What the rewritten code is to do next: evaluate the condition, run the body, from which state."""

    state: State
    test: bool = False
    body: bool = False
    item: Any = None


@dataclass(eq=False)
class _Carry:
    """A leaf of the state that changes from step to step: its type, and its value at the start of the body."""

    kind: type | None
    mixed: bool = False
    like: torch.Tensor | None = None
    inside: Any = None


class Body:
    """The body of a loop being recorded, again and again until its states settle."""

    def __init__(self, loop: Loop, state: State, steps: Steps | None, entered: bool) -> None:
        self.loop = loop
        self.entered = entered  # whether there is a first step, whatever the data
        self.flow = loop.flow
        self.site = loop.site
        self.steps = steps
        self.cells: list[Cell] = []
        self.start: list[Any] = [self._entering(n, v) for n, v in enumerate(state)]
        self.carried: dict[int, _Carry] = {}
        self.seen: list[Any] = []  # the values at the start of the body as the model has them
        self.end: list[Any] = []
        self.left: dict[int, Any] = {}  # the same as the model has left it
        self.frame: Frame | None = None
        self.again: Any = None
        self.lists = Appends(self)
        self.final: set[int] = set()  # leaves: flags of variables that are set only where the loop ends
        self.hopeless: set[int] = set()  # variables that are not set before the loop, and of no single type in it

    def slot_of(self, cell: Cell) -> int:
        """Where in the state the place is."""
        return len(self.site.names) + self.cells.index(cell)

    def _name(self, slot: int) -> str:
        names = self.site.names
        return names[slot] if slot < len(names) else str(self.cells[slot - len(names)])

    def _entering(self, slot: int, value: Any) -> Any:
        """A variable at the head of the loop: without a value if it is not read before it is set, or may be unset."""
        name = self.site.names[slot]
        return value if name in self.site.live else undefined(self.flow, name, place_of_site(self.site))

    @property
    def once(self) -> bool:
        """Whether the step recorded last leads to no other: this is no loop."""
        return self.steps is None and self.again is False

    # --- one pass ---

    def settled(self) -> Generator[Round, None, bool]:
        """Record the body once; whether nothing new had to be carried."""
        flow = self.flow
        frame = self.frame = flow.enter()
        index = fresh_like_scalar()
        flow.recorder.placeholder(index, "step")
        at = Number(int, index, flow)
        values = self._inside()
        self.seen = [shown(flow, v, 1) for v in values]
        count = len(self.site.names)
        for cell, v in zip(self.cells, self.seen[count:], strict=True):
            frame.touch(cell)
            self.lists.begin(cell, v, at)
        item = self.steps.item(at) if self.steps is not None else None
        since = len(flow.lengths)
        catching, self.loop.catching = self.loop.catching, True
        try:
            state = yield from self.loop.do(Round(tuple(self.seen[:count]), body=True, item=item))
            self.again, state = yield from self.loop.again(state, self.steps)
        except ArmsDiffer:
            if not self._opened(since) and not self.lists.wanted(flow.frames[flow.frames.index(frame) - 1]):
                raise
            flow.abandon(frame)
            return False
        finally:
            self.loop.catching = catching
        self.lists.end()
        left = [*state, *(cell.read() for cell in self.cells)]
        if self._grows_otherwise(left):
            flow.abandon(frame)
            return False
        self.end = [self._filled(n, v) for n, v in enumerate(left)]
        changed = frame.restore()
        flow.leave(frame)
        if self.once:
            del flow.refusals[frame.errors :]  # it is done anew, as no loop
            return True
        new = [cell for key, (cell, _, _) in changed.items() if key not in {c.key for c in self.cells}]
        if new:
            self.cells += new
            self.start += [cell.read() for cell in new]
            self.end += [changed[cell.key][2] for cell in new]
        if self.lists.found(values[count:]):
            return False
        fresh = self._carry_more(values + [self.start[len(values) + n] for n in range(len(new))])
        if fresh or new:
            del flow.refusals[frame.errors :]
            return False
        if self._sized():
            return False
        self._refuse_exchanged()
        flow.frame.born |= frame.born
        return True

    def _refuse_exchanged(self) -> None:
        """Refuse an object in the place of another one after a step, if steps change one of them in place: which one is not followed."""
        changed = {cell.key[0] for cell in self.cells}
        for slot, before in enumerate(self.seen):
            for one, other in _exchanged(before, self.left[slot]):
                if not changed.isdisjoint((id(one), id(other))):
                    reason = f"'{self._name(slot)}' is another {type(other).__name__} after a step, and one of the two is changed in place"
                    raise self.flow.refused_at(self.site, CannotRecordLoop, reason=reason)

    def _cleared(self) -> set[int]:
        """The leaves that are flags which no step starts with."""
        return self.final | {sum(len(list(leaves(v))) for v in self.start[:n]) for n in self.site.flags}

    def _inside(self) -> list[Any]:
        """The state at the start of the body: carried leaves stand for what the step before left."""
        at = -1
        cleared = self._cleared()

        def leaf(v: Any) -> Any:
            nonlocal at
            at += 1
            if at in cleared:
                return False  # there would be no such step if it were set
            carry = self.carried.get(at)
            if carry is None:
                return v
            assert carry.like is not None
            fake = fresh_like(carry.like)
            self.flow.loose.note(fake, self.flow.loose.of(carry.like))
            recorder = self.flow.recorder
            recorder.merges((recorder.placeholder(fake, "state"),))
            carry.inside = fake if carry.kind is None else Number(carry.kind, fake, self.flow, mixed=carry.mixed)
            return carry.inside

        inside = [mapped(v, leaf) for v in self.start]
        self._merges()
        for n, (start, v) in enumerate(zip(self.start, inside, strict=True)):
            self.flow.kinship.relate(v, start)
            for m in range(n):
                end = self.end[m] if m < len(self.end) else None
                if start is self.start[m] or end is not None and end is self.end[n]:
                    self.flow.kinship.relate(v, inside[m])
        return inside

    def _merges(self) -> None:
        """What a step begins with is what was there before the loop, or what a step has left."""
        recorder = self.flow.recorder
        for v in (*_all_leaves(self.start), *_all_leaves(self.end)):
            v = v.origin if isinstance(v, Grown) else v
            if isinstance(v, torch.Tensor) and recorder.known(v):
                recorder.merges((recorder.node_of(v),))

    def _carry_more(self, values: list[Any]) -> bool:
        """Find leaves that the body changed and that are not carried yet (or not in this type)."""
        changed = False
        at = 0
        for slot, (start, now, end) in enumerate(zip(self.start, values, self.end, strict=True)):
            size = sum(1 for _ in leaves(start))
            if self._first_set(slot, start, end) or self._sometimes_none(slot, start, now, self.end[slot]):
                return True
            end = self.end[slot]
            if self._dead_slot(slot, start, end):
                at += size
                continue
            if isinstance(start, Dead) and not isinstance(end, Dead):
                return self._restarted(slot, mapped(end, self._blank))
            for now_ in (self._as_tensors(start, end), self._as_grown(start, end)):
                if now_ is not start:
                    return self._restarted(slot, now_)
            try:
                if not same_shape(start, end):
                    raise self._refused(slot, start, end)
                if slot in self.site.flags and self.site.names[slot] not in self.site.after:
                    at += size
                    continue
                for s, n, e in zip(leaves(start), leaves(now), leaves(end), strict=True):
                    changed |= self._leaf(slot, at, s, n, e)
                    at += 1
                if isinstance(end, Partial):
                    changed |= self._set_at_the_end(at - 1, now, end)
            except CannotRecordLoop:
                if not isinstance(start, Partial) or isinstance(start, Maybe):
                    raise
                self.flow.refusals.pop()
                self.hopeless.add(slot)
                return self._restarted(slot, undefined(self.flow, self._name(slot), place_of_site(self.site)))
        return changed

    def _as_tensors(self, start: Any, end: Any) -> Any:
        """`start` with tensors of rank 0 where a step leaves them in the place of numbers."""
        if not same_shape(start, end):
            return start
        after = leaves(end)

        def leaf(v: Any) -> Any:
            e = next(after)
            if not isinstance(e, torch.Tensor) or not as_tensor(v, e):
                return v
            made = tensor_like(v, e)
            self.flow.loose.joined(made, (v,), "a state of the loop", place_of_site(self.site))
            return made

        return mapped(start, leaf)

    # --- states that grow ---

    def _as_grown(self, start: Any, end: Any) -> Any:
        """`start` with room to grow for the tensors that a step makes longer."""
        if not same_shape(start, end):
            return start
        after = leaves(end)
        return mapped(start, lambda v: self._room_for(next(after), v))

    def _opened(self, since: int) -> bool:
        """Give room to grow to what a step makes longer on some paths, and uses then; whether there is such."""
        found = False
        for slot, start in enumerate(self.start):
            for v in [v for v in self.flow.lengths[since:] if v.name == self._name(slot)]:
                made = mapped(start, partial(self._room_for, v))
                if made is not start:
                    found = self._restarted(slot, made)
                    break
        return found

    def _room_for(self, end: Any, start: Any) -> Any:
        grows = growing(self.flow, start, end)
        found = opened(start, *grows) if grows is not None else None
        return start if found is None else found

    def _grows_otherwise(self, left: list[Any]) -> bool:
        """Note that a tensor grows by more than had been found, or not always by as much; whether one does."""
        found = False
        for slot, end in enumerate(left):
            try:
                filled(self.flow, self.start[slot], self.seen[slot], end)
            except Uneven as error:
                (grows,) = error.args
                if grows is None:
                    reason = f"'{self._name(slot)}' does not grow by as much in every step"
                    raise self.flow.refused_at(self.site, CannotRecordLoop, reason=reason) from None
                found = self._restarted(slot, each(self.start[slot], partial(_widened, grows)))
        return found

    def _filled(self, slot: int, end: Any) -> Any:
        """What a step leaves in a variable, growing tensors with room for those of the last one."""
        self.left[slot] = end
        return filled(self.flow, self.start[slot], self.seen[slot], end)

    def _sized(self) -> bool:
        """Give growing states their greatest size, once it can be known; whether there were any without."""
        pending = [slot for slot, v in enumerate(self.start) if any(_unsized(g) for g in _tensors(v))]
        sizes = self._sizes() if pending else {}
        for slot in pending:
            self._restarted(slot, each(self.start[slot], partial(self._roomy, slot, sizes)))
        return bool(pending)

    def _sizes(self) -> dict[int, tuple[Growth, Size]]:
        """The extents of growing states, by the addresses of these."""
        found = {}
        for slot, (start, now) in enumerate(zip(self.start, self.seen, strict=True)):
            for g, seen, left in zip(_tensors(start), _tensors(now), _tensors(self.left[slot]), strict=True):
                if isinstance(g, Grown):
                    extents = [v.shape[g.growth.dim] for v in (left, seen)]
                    found[id(g)] = g.growth, Size(g.growth.least, g.growth.by, extents if g.growth.even else extents[:1])
        return found

    def _roomy(self, slot: int, sizes: dict[int, tuple[Growth, Size]], g: Grown) -> Grown:
        # What does not grow in every step says nothing of the number of steps, but of its own growth.
        steps = self._most_steps([size for growth, size in sizes.values() if growth.even or growth is g.growth])
        found = sized(g, steps) if steps is not None else None
        if found is not None:
            return found
        by, dim = g.growth.by, g.growth.dim
        reason = f"'{self._name(slot)}' grows by {by} along dimension {dim} in {'every step' if g.growth.even else 'some steps'}, and "
        reason += "no bound on their number was found" if steps is None else f"up to {steps} times, which is too large to be set aside"
        raise self.flow.refused_at(self.site, CannotRecordLoop, reason=reason)

    def _most_steps(self, sizes: list[Size]) -> int | None:
        """How many steps there are at most, if that is known."""
        recorder = self.flow.recorder
        flat = _aligned(self.start, [list(leaves(v)) for v in self.end])
        counters = [
            Counter(start, recorder.node_of(carry.inside.tensor), recorder.node_of(flat[at].tensor))
            for at, start in enumerate(_all_leaves(self.start))
            if (carry := self.carried.get(at)) is not None and type(start) is int
            and isinstance(carry.inside, Number) and isinstance(flat[at], Number)
        ]  # fmt: skip
        count = self.steps.count if self.steps is not None else None
        known = [most_of(count)] if isinstance(count, (int, torch.SymInt)) else []
        return min((n for n in (*known, most_steps(self.again, counters, sizes, recorder)) if n is not None), default=None)

    def _restarted(self, slot: int, start: Any) -> bool:
        """Another value at the start of the loop: what is carried is found anew, as leaves are counted through."""
        self.start[slot] = start
        self.carried.clear()
        self.final.clear()
        return True

    def _set_at_the_end(self, at: int, now: Any, end: Partial) -> bool:
        """A variable set only where the loop ends is not set at the start of a step; whether that is news."""
        if isinstance(now, Partial) and now.flag is False and at in self.carried:
            ends = self.again is False or isinstance(self.again, Number) and follows(self.again, [(end.flag, True)], False)
            known = at in self.final
            (self.final.add if ends else self.final.discard)(at)
            return known is not ends
        return False

    def _always_set(self, end: Any) -> bool:
        """Whether a variable that was not set before the loop is set after it."""
        if not self.entered or not isinstance(end, Partial):
            return False
        stops = self.steps is None and isinstance(self.again, Number)
        return follows(end.flag, [(self.again, False)] if stops else [])

    def _first_set(self, slot: int, start: Any, end: Any) -> bool:
        """A variable that the loop sets first: in steps before that it has a value that is not used, and a flag says so."""
        if isinstance(start, Partial) and not isinstance(end, Absent):
            self.end[slot] = start.again(end, True)
        if not isinstance(start, Unbound) or isinstance(end, Unbound) or slot in self.hopeless:
            return False
        if self._name(slot) not in self.site.live or isinstance(end, Absent) and not isinstance(end, Partial):
            return False
        value = end.value if isinstance(end, Partial) else end
        if not lasting(value):
            return False
        place = f"the loop at {place_of_site(self.site)}"
        return self._restarted(slot, Partial(self.flow, self._name(slot), place, mapped(value, self._blank), False))

    def _sometimes_none(self, slot: int, start: Any, now: Any, end: Any) -> bool:
        """A variable that is None at the head of some steps; whether it starts as one from now on."""
        if isinstance(start, Maybe):
            if end is None:
                self.end[slot] = start.again(now.value, False)
            elif not isinstance(end, Absent) or isinstance(end, Either):
                self.end[slot] = start.again(end, True)
            return False
        if (start is None) is (end is None) and not isinstance(end, Maybe) or isinstance(start, (Absent, Dead)):
            return False
        value = start if end is None else end.value if isinstance(end, Maybe) else end
        if isinstance(value, (Absent, Dead)) or not lasting(value):
            return False
        # Where the first step sets it up, that step is better done ahead of the loop (`Loop._rest`).
        if not isinstance(end, Maybe) and self.loop.catching and (self.steps is not None or self.site.flags):
            return False
        start = mapped(value, self._blank) if start is None else start
        flag = self.start[slot] is not None
        return self._restarted(slot, Maybe(self.flow, self._name(slot), place_of_site(self.site), start, flag))

    def _dead_slot(self, slot: int, start: Any, end: Any) -> bool:
        """Whether the slot has no value at the head of the loop; then it has none after it."""
        if isinstance(start, Partial) and isinstance(end, Partial) or isinstance(start, Either):
            return False
        if isinstance(start, Absent):
            return True
        if isinstance(end, Absent) and not isinstance(end, Either) and growing(self.flow, start, end) is None:
            name = self._name(slot)
            if name in self.site.live or slot >= len(self.site.names):
                self.start[slot] = end
            return True
        return False

    def _blank(self, v: Any) -> Any:
        """A value of the type of `v` for a path on which nobody reads it."""
        if isinstance(v, torch.Tensor):
            if self.flow.recorder.visible(v):
                return v
            return torch.zeros(tuple(v.shape), dtype=v.dtype)
        if isinstance(v, Number):
            return v.kind(0)
        return v

    def _leaf(self, slot: int, at: int, start: Any, now: Any, end: Any) -> bool:
        carry = self.carried.get(at)
        if same(now, end):
            return False
        if isinstance(end, Absent):
            raise self._refused(slot, start, end)
        if isinstance(start, torch.SymInt):
            start = Number(int, torch.scalar_tensor(start, dtype=torch.int64), self.flow)
        if isinstance(start, torch.Tensor) and isinstance(end, torch.Tensor):
            reason = alike(start, end)
            if reason is not None:
                raise self._refused(slot, start, end)
            loose = self.flow.loose
            also = loose.of(start) or loose.of(end)
            if carry is None or also is not None and loose.of(carry.like) is None:
                like = fresh_like(start)
                loose.note(like, also)
                self.carried[at] = _Carry(None, like=like)
                return True
            return False
        if not is_number(start) or not (is_number(end) or isinstance(end, torch.SymInt)):
            raise self._refused(slot, start, end)
        other = 0 if isinstance(end, torch.SymInt) else end
        if apart(start, other):
            raise self._refused(slot, start, end)
        kind, mixed = joined_kind(start, other)
        if carry is not None and (carry.kind, carry.mixed) != (kind, mixed):
            wide, wider = joined_kind(_typed(carry), other)
            kind, mixed = wide, wider or mixed or carry.mixed
        if carry is not None and (carry.kind, carry.mixed) == (kind, mixed):
            return False
        self.carried[at] = _Carry(kind, mixed, like=torch.empty((), dtype=tensor_of(kind(0), kind).dtype))
        return True

    def _input(self, carry: _Carry) -> Any:
        """The node of a carried value at the start of the body."""
        if carry.inside is None:  # a flag: the body knows that it is not set
            assert self.frame is not None and carry.like is not None
            with self.flow.recorder.opened(self.frame.region):
                return self.flow.recorder.placeholder(fresh_like(carry.like), "state")
        return self.flow.recorder.node_of(_tensor_inside(carry))

    def _refused(self, slot: int, start: Any, end: Any) -> Exception:
        was, is_ = ("not set" if v is MISSING else described(v) for v in difference(start, end))
        reason = f"'{self._name(slot)}' is {was} before it and {is_} after a step"
        return self.flow.refused_at(self.site, CannotRecordLoop, reason=reason)

    # --- the end ---

    def emit(self, first: torch.Tensor | None, steps: Steps | None) -> State:
        """Record the loop; the state after it."""
        flow, recorder = self.flow, self.flow.recorder
        assert self.frame is not None
        region = self.frame.region
        self.start = [each(v, lambda g: packed(flow, g.origin, g.growth)) for v in self.start]
        limit = tensor_of(steps.count, int) if steps is not None else None
        starts, nexts = [], []
        old = list(_all_leaves(self.start))
        new = [list(leaves(v)) for v in self.end]
        flat = _aligned(self.start, new)
        with recorder.opened(region):
            if first is not None:
                again = tensor_of(self.again if self.again is not None else True, bool)
                region.outputs.append(recorder.node_of(again))
            for at, carry in self.carried.items():
                value = flat[at] if carry.kind is None else tensor_of(flat[at], carry.kind)
                nexts.append(recorder.node_of(value))
        for at, carry in self.carried.items():
            start = old[at] if carry.kind is None else tensor_of(old[at], carry.kind)
            starts.append(recorder.node_of(start))
        order = sorted(self.carried, key=list(self.carried).index)
        inputs = [self._input(self.carried[at]) for at in order]
        lasts = self.lists.lasts()
        flags = [torch.empty((), dtype=torch.bool) for _ in lasts]
        for key, flag in zip(lasts, flags, strict=True):
            starts.append(recorder.node_of(tensor_of(True, bool)))
            with recorder.opened(region):
                nexts.append(recorder.node_of(tensor_of(self.lists.last[key], bool)))
                inputs.append(recorder.placeholder(fresh_like(flag), "state"))
        region.inputs = [region.inputs[0], *inputs]
        region.outputs += nexts
        fakes = [fresh_like(self.carried[at].like) for at in order]
        for at, fake in zip(order, fakes, strict=True):
            flow.loose.note(fake, flow.loose.of(self.carried[at].like))
        ended = dict(zip(lasts, map(fresh_like, flags), strict=True))
        lists = self.lists.collected(region)
        steps_done = _fresh_extent(flow) if lists else None
        gathered = [_grown(steps_done, v) for _, values, _ in lists for v in values]
        args = [recorder.node_of(t) for t in (first, limit) if t is not None]
        node = recorder.emit(repeat, [*args, *starts], [*fakes, *ended.values(), *gathered], "loop")
        recorder.merges([*starts, *nexts, *map(recorder.node_of, fakes)])
        node.meta["loop"] = LoopRecord(
            region,
            recorder.node_of(first) if first is not None else None,
            recorder.node_of(limit) if limit is not None else None,
            tuple(starts),
            len(gathered),
            steps_done,
        )
        finals = {
            at: f if self.carried[at].kind is None else Number(self.carried[at].kind, f, flow, mixed=self.carried[at].mixed)  # type: ignore[arg-type]
            for at, f in zip(order, fakes, strict=True)
        }
        ends: dict[int, Any] = {}  # a flag that is another one is so after the loop, too
        for at in [at for at in order if at in self._cleared() and isinstance(flat[at], Number)]:
            finals[at] = ends.setdefault(id(flat[at].tensor), finals[at])
        count = -1

        def leaf(v: Any) -> Any:
            nonlocal count
            count += 1
            return finals.get(count, v)

        after = [shown(flow, mapped(v, leaf), 0) for v in self.start]
        for before, v, end in zip(self.start, after, self.end, strict=True):
            for other in (before, end):
                flow.kinship.relate(v, other)
        names = len(self.site.names)
        for n, (before, end) in enumerate(zip(self.start[:names], self.end, strict=False)):
            if isinstance(before, Partial) and before.flag is False and self._always_set(end):
                after[n] = after[n].value
            if isinstance(before, Unbound) and not isinstance(end, Unbound):
                after[n] = undefined(flow, self.site.names[n], f"the loop at {place_of_site(self.site)}")
        filled = {}
        for key, values, kinds in lists:
            parts, gathered = gathered[: len(values)], gathered[len(values) :]
            if key in ended:
                done = Number(int, torch.scalar_tensor(steps_done, dtype=torch.int64) + ended[key] - 1, flow)
                parts = [_first(p, done) for p in parts]
            filled[key] = Collected(flow, place_of_site(self.site), parts, kinds)
        for cell, v in zip(self.cells, after[names:], strict=True):
            flow.frame.touch(cell)
            cell.write([*v, filled[cell.key]] if cell.key in filled else v)
        return tuple(after[:names])


def _widened(grows: tuple[int, int, bool], g: Grown) -> Grown:
    """A growing tensor that grows by more in some steps than was known."""
    dim, by, _ = grows
    return opened(g.origin, dim, max(by, g.growth.by), even=False) or g


def _first(rows: torch.Tensor, count: Number) -> torch.Tensor:
    """As many rows as a number says."""
    return rows[: torch.ops.aten._local_scalar_dense.default(count.tensor)]


def positive(count: Any) -> bool:
    return isinstance(count, int) and count > 0


def _fresh_extent(flow: Flow) -> Any:
    """An extent that is known at run time only."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import _constrain_range_for_size
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    mode = next(m for m in _get_current_dispatch_mode_stack() if isinstance(m, FakeTensorMode))
    assert mode.shape_env is not None
    extent = mode.shape_env.create_unbacked_symint()
    _constrain_range_for_size(extent)
    # It is the loop that makes it, not whatever PyTorch is called for next.
    mode.shape_env.pending_fresh_unbacked_symbols.remove(extent.node.expr)
    return extent


def _grown(steps: Any, value: torch.Tensor) -> torch.Tensor:
    """A fake tensor with the values of all steps along a leading dimension."""
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

    with disable_proxy_modes_tracing():
        return torch.empty((steps, *value.shape), dtype=value.dtype)


def fresh_like_scalar() -> torch.Tensor:
    """A fake integer of rank 0: the number of a step."""
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

    with disable_proxy_modes_tracing():
        return torch.empty((), dtype=torch.int64)


def _typed(carry: _Carry) -> Any:
    assert carry.kind is not None
    return carry.kind(0)


def _tensor_inside(carry: _Carry) -> torch.Tensor:
    found: torch.Tensor = carry.inside.tensor if isinstance(carry.inside, Number) else carry.inside
    return found


def _tensors(v: Any) -> list[Any]:
    """The leaves of nested containers, a growing tensor being one."""
    found = None if isinstance(v, Grown) else parts(v)
    return [v] if found is None else [x for item in found[0] for x in _tensors(item)]


def _exchanged(before: Any, after: Any) -> Iterator[tuple[Any, Any]]:
    """The objects that can be changed and are others after a step than before it."""
    held, left = parts(before), parts(after)
    if before is after or held is None or left is None:
        return
    if changeable(before) and changeable(after):
        yield before, after
    for p, q in zip(held[0], left[0], strict=False):
        yield from _exchanged(p, q)


def _unsized(v: Any) -> bool:
    """Whether this is a growing tensor of which no greatest size is known."""
    return isinstance(v, Grown) and v.growth.most is None


def _all_leaves(values: list[Any]) -> Iterator[Any]:
    for v in values:
        yield from leaves(v)


def _aligned(start: list[Any], end: list[list[Any]]) -> list[Any]:
    """The leaves after a step in the places of those before it; slots of another structure have no value."""
    flat: list[Any] = []
    for s, e in zip(start, end, strict=True):
        own = list(leaves(s))
        flat += e if len(e) == len(own) else own
    return flat
