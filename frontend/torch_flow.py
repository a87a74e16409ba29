"""What rewritten Python runs on: decides what is known, records what is data.

`Runtime` keeps the open frames and turns values into decisions; `Branch` is one `if` being executed. A condition that is
known runs one arm, as Python does. A condition that is data runs both, each recorded into a region of its own from the same
starting point, and unites what they leave.
"""

from __future__ import annotations

import linecache
import math
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from dlc.errors import DlcError
from dlc.frontend.python_exits import RETURN
from dlc.frontend.python_rewrite import Site
from dlc.frontend.torch_collect import Counted
from dlc.frontend.torch_constant import constant_item
from dlc.frontend.torch_errors import EffectOnData, SharedObject, UncapturedDecision
from dlc.frontend.torch_heap import MISSING, Cell, Frame, Globals
from dlc.frontend.torch_loose import Loose, as_tensor, tensor_like
from dlc.frontend.torch_numbers import DTYPES, Number, is_number, negated, tensor_of
from dlc.frontend.torch_objects import AtTheEnd, Kinship, cells_of, changeable, same_keys
from dlc.frontend.torch_recorder import Recorder, Region, branch, fresh_like, truth
from dlc.frontend.torch_truth import follows
from dlc.frontend.torch_values import (
    DEAD,
    Absent,
    Dead,
    Either,
    Elided,
    Lengths,
    Maybe,
    Partial,
    Sometimes,
    Unbound,
    Unset,
    alike,
    apart,
    described,
    differing,
    differing_dim,
    joined_kind,
    lasting,
    parts,
    same,
    selectable,
    undefined,
    unite,
)
from dlc.ir.loc import Loc

_SYMBOLS = (torch.SymInt, torch.SymBool, torch.SymFloat)


def place_of_site(site: Site) -> str:
    return f"{Path(site.file).name}:{site.line}"


class Flow:
    """State of one recording: the recorder, the open frames, and the refusals there were."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.frames: list[Frame] = [Frame(recorder.region)]
        self.refusals: list[DlcError] = []
        self.decided = 0
        self.caught: list[Callable[[], Any]] = []  # of the open `try`s, what their handlers catch
        self.kinship = Kinship()
        self.touched: dict[tuple[int, str | None], tuple[Loc, str | None]] = {}  # changed places: where first, and that line
        self.fronts: dict[tuple[int, str], tuple[torch.Tensor, Number]] = {}  # bounds of slices, from the front
        self.loose = Loose(self)
        self.lengths: list[Lengths] = []  # values of known sizes that depend on the path
        self.unsure: list[Any] = []  # iterators over which a loop has ended early, by data
        self.sizes: dict[Any, tuple[Any, Any]] = {}  # extents that are one of two, by data
        self.truths: dict[int, tuple[torch.Tensor, int, Number]] = {}  # of tensors that were asked for it, as they were then

    # --- frames ---

    @property
    def frame(self) -> Frame:
        return self.frames[-1]

    def enter(self, *, own_region: bool = True) -> Frame:
        """Open a frame; its nodes go to a region of its own, or on to the current one."""
        region = Region() if own_region else self.recorder.region
        frame = Frame(region, len(region.nodes), errors=len(self.refusals))
        if own_region:
            self.recorder.stack.append(region)
        self.frames.append(frame)
        return frame

    def leave(self, frame: Frame) -> None:
        """Close `frame`, and those inside it that an exception left open."""
        while self.frames[-1] is not frame:
            self.leave(self.frames[-1])
        self.frames.pop()
        if frame.region is self.recorder.region and frame.region is not self.frame.region:
            self.recorder.stack.pop()

    def commit(self, frame: Frame) -> None:
        """Keep what an attempt without a region of its own did."""
        self.leave(frame)
        self.frame.absorb(frame)

    def abandon(self, frame: Frame) -> None:
        """Undo all that was done since `frame` was opened."""
        while self.frames[-1] is not frame:
            self._undo(self.frames[-1])
        self._undo(frame)
        self.truths.clear()
        self.refusals[frame.errors :] = [frame.lasting] if frame.lasting is not None else []
        if frame.lasting is not None:
            raise frame.lasting

    def _undo(self, frame: Frame) -> None:
        frame.restore()
        self.leave(frame)
        for node in frame.region.nodes[frame.start :]:
            node.meta.pop("region", None)  # its value is no longer there
        del frame.region.nodes[frame.start :]

    def touch(self, owner: Any, name: str | None = None) -> None:
        """A place is about to change; what may be the same object on some path cannot be looked at any more."""
        place = Cell(owner, name)
        self.frame.touch(place)
        if place.key not in self.touched:
            file, line, _ = self.recorder.line()
            self.touched[place.key] = Loc(f"{Path(file).name}:{line}"), linecache.getline(file, line).rstrip() or None
        for other in self.kinship.of(owner):
            for cell in cells_of(other):
                self.frame.touch(cell)
                cell.write(self._lost(cell))

    def _lost(self, cell: Cell) -> Any:
        """The contents of a place that was changed through another object, perhaps."""
        what, by = f"{cell}", f"{Path(self.recorder.line()[0]).name}:{self.recorder.line()[1]}"
        lost = Elided(self, what, by, "", error=(SharedObject, {"what": what, "place": by}))
        if cell.name is not None:
            return lost
        return {lost: lost} if isinstance(cell.owner, Mapping) else [lost]

    def touch_cell(self, cell: Any) -> None:
        """A variable of a function around is about to change."""
        self.touch(cell, "cell_contents")

    def touch_global(self, name: str) -> None:
        """A variable of the source file that calls this is about to change."""
        self.touch(Globals(sys._getframe(1).f_globals), name)

    def born(self, value: Any) -> Any:
        """`value` is a new object."""
        self.frame.born[id(value)] = value
        return value

    # --- refusals ---

    def refused(self, kind: type[DlcError], **fields: Any) -> DlcError:
        """An error at the user's line. It counts even if the model's code catches it."""
        self.refusals.append(self.error_here(kind, **fields))
        return self.refusals[-1]

    def error_here(self, kind: type[DlcError], **fields: Any) -> DlcError:
        file, line, _ = self.recorder.line()
        text = linecache.getline(file, line).rstrip() or None
        return kind(Loc(f"{Path(file).name}:{line}"), source=text, **fields)

    def refused_at(self, site: Site, kind: type[DlcError], **fields: Any) -> DlcError:
        """The same at a given place."""
        text = linecache.getline(site.file, site.line).rstrip() or None
        error = kind(Loc(place_of_site(site)), source=text, **fields)
        self.refusals.append(error)
        return error

    # --- decisions ---

    def number(self, value: torch.Tensor, kind: type) -> Any:
        """The element of a tensor as a Python number; known if no input has a part in it."""
        if value.numel() != 1:
            raise RuntimeError(f"a Tensor with {value.numel()} elements cannot be converted to Scalar")
        known = constant_item(self, value)
        if known is not None:
            return kind(known)
        return Number(kind, value.reshape(()).to(DTYPES[kind], copy=True), self)

    def item(self, value: torch.Tensor) -> Any:
        """`value.item()`."""
        if value.dtype.is_complex:
            raise self.refused(UncapturedDecision, what="a complex number", why="complex numbers have no place in the IR")
        kind = float if value.dtype.is_floating_point else bool if value.dtype == torch.bool else int
        return self.number(value, kind)

    def decide(self, value: Any) -> Any:
        """The truth of `value`: True or False where it is known, else a `Number`."""
        value = self.narrowed(value)
        if isinstance(value, Maybe):
            truth = self.decide(value.value)
            return both(self, value.flag, truth) if truth is not True else value.flag
        if isinstance(value, Either):
            return self.decide(value.each(bool))
        if isinstance(value, Absent):
            value.refuse()
        if isinstance(value, torch.Tensor):
            if value.numel() != 1:
                return bool(value)  # Python's own error
            value = self.truth_of(value)
        if isinstance(value, _SYMBOLS):
            value = self.extent_truth(value)
        if isinstance(value, (list, tuple, dict, set, deque)):
            return self.nonempty(value)
        if not isinstance(value, Number):
            return bool(value)
        flag = value.to(bool)
        known = self.known(flag)
        if known is None:
            known = constant_item(self, flag.tensor)
        if known is not None:
            return bool(known)
        return flag

    def nonempty(self, container: Any) -> Any:
        """The truth of a container, some of whose elements may be there on some paths only."""
        empty: Any = True
        for v in container:
            if isinstance(v, Counted):
                there = self.decide(v.count > 0)
            elif isinstance(v, Sometimes):
                there = self.decide(v.flag)
            elif isinstance(v, Elided):
                v.refuse()
            else:
                return True
            if there is True:
                return True
            if there is not False:
                empty = negated(there) if empty is True else both(self, empty, negated(there))
        return negated(empty) if isinstance(empty, Number) else not empty

    def narrowed(self, value: Any) -> Any:
        """A value that depends on the path, as it is here where the conditions around say so."""
        while isinstance(value, (Maybe, Either)):
            known = self.decide(value.flag)
            if isinstance(known, Number):
                break
            if isinstance(value, Maybe):
                value = value.value if known else None
            else:
                value = value.then if known else value.orelse
        return value

    def truth_of(self, value: torch.Tensor) -> Any:
        """The element of a condition: the same number as long as nothing writes to it."""
        held = self.truths.get(id(value))
        if held is not None and held[1] == value._version and self.recorder.visible(held[2].tensor):
            return held[2]
        found = self.item(value)
        if isinstance(found, Number) and found.kind is bool:
            self.truths[id(value)] = value, value._version, found
        return found

    def extent_truth(self, value: Any) -> Any:
        """A condition on extents: known if it holds for every size, else data."""
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        condition = value if isinstance(value, torch.SymBool) else value != 0
        if isinstance(condition, bool):
            return condition
        if statically_known_true(condition):
            return True
        if statically_known_true(torch.sym_not(condition)):
            return False
        fake = fresh_like(torch.empty((), dtype=torch.bool))
        node = self.recorder.emit(truth, (), (fake,), "truth")
        node.meta["condition"] = condition
        return Number(bool, fake, self)

    def known(self, flag: Number) -> bool | None:
        """What the arms around say of a condition."""
        for frame in reversed(self.frames):
            fact = frame.facts.get(id(flag.tensor))
            if fact is not None:
                return fact[1]
        if flag.origin is None:
            return None
        facts = [fact for frame in self.frames for fact in frame.facts.values()]
        return next((value for value in (True, False) if follows(flag, facts, value)), None)

    def assume(self, frame: Frame, flag: Number, value: bool) -> None:
        """`flag` is `value` inside `frame`."""
        frame.facts[id(flag.tensor)] = flag, value
        match flag.origin:
            case ("not", Number() as a):
                self.assume(frame, a, not value)
            case ("and", a, b) if value:
                for s in (a, b):
                    if isinstance(s, Number):
                        self.assume(frame, s, True)

    def is_known(self, site: Site, value: Any, why: str) -> bool:
        """A decision that must be known, as nothing can be recorded in its place."""
        found = self.decide(value)
        if isinstance(found, Number):
            raise self.refused_at(site, UncapturedDecision, what="a condition computed from data", why=why)
        return bool(found)

    @property
    def on_one_path(self) -> bool:
        """Whether what is executed now is recorded inside an arm or the body of a loop."""
        return self.recorder.region is not self.frames[0].region

    def raising(self, site: Site) -> None:
        """An exception is about to be raised."""
        if self.on_one_path:
            raise self.refused_at(site, EffectOnData, what="whether an exception is raised here")

    def may_raise(self, kind: type[Exception]) -> None:
        """What is done now raises `kind` in eager Python for some data: the program does not, so nobody may be there to catch it."""
        if any(issubclass(kind, kinds()) for kinds in self.caught):
            raise self.refused(EffectOnData, what=f"whether {kind.__name__} is raised here and caught")


class Branch:
    """One `if` being executed: `then`, `orelse`, each ended by `close`; `result` is the state after it."""

    def __init__(self, flow: Flow, site: Site, condition: Any, state: tuple[Any, ...]) -> None:
        self.flow = flow
        self.site = site
        self.condition = flow.decide(condition)
        self.state = state
        self.arms: list[tuple[Region, tuple[Any, ...], dict[Any, Any]]] = []
        self.frame: Frame | None = None
        self.ended = False

    @property
    def data(self) -> bool:
        return isinstance(self.condition, Number)

    def then(self) -> bool:
        return self._open(True) if self.data else bool(self.condition)

    def orelse(self) -> bool:
        return self._open(False) if self.data else not self.condition

    def _open(self, value: bool) -> bool:
        self.flow.decided += value
        self.frame = self.flow.enter()
        self.flow.assume(self.frame, self.condition, value)
        return True

    def close(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        if not self.data:
            assert not self.ended, "a known condition has one arm"
            self.ended, self.state = True, state
            return state
        assert self.frame is not None
        frame, self.frame = self.frame, None
        changed = frame.restore()
        self.flow.leave(frame)
        self.flow.frame.born |= frame.born
        self.arms.append((frame.region, state, changed))
        return self.state

    def result(self) -> tuple[Any, ...]:
        if not self.data:
            return self.state
        flow, site = self.flow, self.site
        (then, a, changed_then), (orelse, b, changed_else) = self.arms
        union = Union(flow, self.condition, (then, orelse), place_of_site(site), (AtTheEnd(changed_then), AtTheEnd(changed_else)))
        made: list[Any] = []
        for n, name in enumerate(site.names):
            if name not in site.live:
                made.append(undefined(flow, name, union.place))
                continue
            sides = [
                DEAD if gone and not name.startswith("dlc__") else v
                for v, gone in zip((a[n], b[n]), site.returns, strict=True)
            ]
            made.append(union.of("the result" if name == RETURN else name, *sides))
        cells = {key: entry[0] for key, entry in (*changed_then.items(), *changed_else.items())}
        writes: list[tuple[Cell, Any]] = []
        for key, cell in cells.items():
            sides = [c[key][2] if key in c else cell.read() for c in (changed_then, changed_else)]
            writes.append((cell, union.contents(cell, *sides)))
        filled = union.emit()
        for cell, value in writes:
            flow.frame.touch(cell)
            cell.write(filled(value))
        return tuple(map(filled, made))


class _Pending:
    """A result of the branch that is being made: its number, and the kind if it is a Python number."""

    def __init__(self, at: int, kind: type | None, mixed: bool, origin: Any, cut: Cut | None = None) -> None:
        self.at = at
        self.cut = cut
        self.kind = kind
        self.mixed = mixed
        self.origin = origin


class Union:
    """Collects what two arms yield, and emits the branch."""

    def __init__(
        self, flow: Flow, condition: Number, arms: tuple[Region, Region], place: str, shown: tuple[AtTheEnd, AtTheEnd]
    ) -> None:
        self.flow = flow
        self.condition = condition
        self.arms = arms
        self.place = place
        self.shown = shown
        self.fakes: list[torch.Tensor] = []
        self.objects: dict[tuple[int, int], tuple[Any, Any, Any]] = {}  # what two changeable objects became
        self.placed: dict[int, tuple[Any, Any]] = {}  # by address, objects without results in them and with

    def of(self, name: str, a: Any, b: Any) -> Any:
        """`name`'s values as one, with `_Pending` where a result is needed."""
        return unite(a, b, lambda p, q: self.leaf(name, p, q), self.shown, self._object)

    def _object(self, a: Any, b: Any, united: Any) -> Any:
        """The same object for the same two."""
        if united is a or not changeable(united):
            return united
        return self.objects.setdefault((id(a), id(b)), (a, b, united))[2]

    def contents(self, cell: Cell, a: Any, b: Any) -> Any:
        """A changed place's two values as one."""
        if cell.name is None and type(a) is type(b) and (len(a) != len(b) or not same_keys(a, b)):
            reason = f"{described(a)} on one path and {described(b)} on the other"
            if type(a) is list and (longer := self._longer(str(cell), reason, a, b)) is not None:
                return longer
            poison = Elided(self.flow, str(cell), self.place, reason)
            return [poison] if isinstance(a, list) else {poison: poison} if isinstance(a, dict) else {poison}
        if a is MISSING or b is MISSING:
            return Unset(self.flow, str(cell), self.place)
        return self.of(str(cell), a, b)

    def _longer(self, name: str, reason: str, a: list[Any], b: list[Any]) -> list[Any] | None:
        """The longer of two lists, where it begins as the other one: what it has more is there on one path."""
        if not all(p is q for p, q in zip(a, b, strict=False)):
            return None
        common, found = min(len(a), len(b)), []
        for v in max(a, b, key=len)[common:]:
            value, flag = (v.value, v.flag) if isinstance(v, Sometimes) else (v, True)
            if isinstance(value, Absent) or not lasting(value):
                return None
            sides = ((value, DEAD), (flag, False)) if len(a) > len(b) else ((DEAD, value), (False, flag))
            found.append(Sometimes(self.flow, name, self.place, reason, self._one(*sides[0]), self._number(*sides[1])))
        return [*a[:common], *found]

    def leaf(self, name: str, a: Any, b: Any) -> Any:
        if same(a, b):
            return a
        if isinstance(a, Dead) or isinstance(b, Dead):
            return self._one_sided(a, b)
        if any(v is None or isinstance(v, Maybe) for v in (a, b)):
            return self._maybe(name, a, b)
        if any(isinstance(v, (Partial, Unbound)) for v in (a, b)):
            return self._partial(name, a, b)
        for v, other in ((a, b), (b, a)):
            if isinstance(v, Absent) and not isinstance(v, Either):
                return self._noted(v.joined(other) or v) if isinstance(v, Lengths) else v
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return self._tensors(name, a, b)
        if self._numeric(a) and self._numeric(b):
            if apart(a, b):
                reason = f"{described(a)} on one path and {described(b)} on the other"
                return differing(self.flow, name, self.place, reason)
            return self._number(a, b)
        for t, v in ((a, b), (b, a)):
            if isinstance(t, torch.Tensor) and as_tensor(v, t):
                made = self._add(a, b, None, False, t)
                self.flow.loose.joined(self.fakes[made.at], (a, b), name, self.place)
                return made
        if selectable(a) and selectable(b):
            return Either(self.flow, name, self.place, self.condition, self._one(a, DEAD), self._one(DEAD, b))
        reason = f"{described(a)} on one path and {described(b)} on the other"
        return differing(self.flow, name, self.place, reason)

    def _tensors(self, name: str, a: torch.Tensor, b: torch.Tensor) -> Any:
        reason = alike(a, b)
        if reason is None:
            made = self._tensor(a, b)
            self.flow.loose.joined(self.fakes[made.at], (a, b), name, self.place)
            return made
        with disable_proxy_modes_tracing():
            cut = common_cut(a, b)
        if cut is not None:
            return self._cut(a, b, cut)
        dim = differing_dim(a, b)
        if dim is None:
            return differing(self.flow, name, self.place, reason)
        return self._noted(Lengths(self.flow, name, self.place, a, dim, (int(a.shape[dim]), int(b.shape[dim]))))

    def _noted(self, v: Lengths) -> Lengths:
        self.flow.lengths.append(v)
        return v

    def _one(self, a: Any, b: Any) -> Any:
        """What is on one path only, the other one being `DEAD`, as it is after the branch."""
        return unite(a, b, lambda v, w: self._one_sided(v, w) if not same(v, w) else v)

    def _maybe(self, name: str, a: Any, b: Any) -> Any:
        """A value that is None on at least one of the paths, or was before."""
        for v in (a, b):
            if isinstance(v, Absent) and not isinstance(v, (Maybe, Either)):
                return v if not isinstance(v, (Partial, Unbound)) else undefined(self.flow, name, self.place)
        (x, p), (y, q) = ((DEAD, False) if v is None else self._parted(v) for v in (a, b))
        if not (lasting(x) and lasting(y)):
            reason = f"{described(a)} on one path and {described(b)} on the other"
            return differing(self.flow, name, self.place, reason)
        flag = p if same(p, q) else self._number(p, q)
        return Maybe(self.flow, name, self.place, unite(x, y, lambda v, w: self.leaf(name, v, w)), flag)

    def _partial(self, name: str, a: Any, b: Any) -> Any:
        """A variable that at least one of the paths may not have set."""
        for v in (a, b):
            if isinstance(v, Absent) and not isinstance(v, (Partial, Unbound)):
                return v
        if isinstance(a, Unbound) and isinstance(b, Unbound):
            return a
        sides = [self._parted(v) for v in (a, b)]
        if not all(lasting(value) for value, _ in sides):
            return undefined(self.flow, name, self.place)
        (x, p), (y, q) = sides
        flag = p if same(p, q) else self._number(p, q)
        return Partial(self.flow, name, self.place, unite(x, y, lambda v, w: self.leaf(name, v, w)), flag)

    def _parted(self, v: Any) -> tuple[Any, Any]:
        """A variable's value on one path, and whether it is set there."""
        if isinstance(v, Partial):
            return v.value, v.flag
        return (DEAD, False) if isinstance(v, Unbound) else (v, True)

    def _numeric(self, v: Any) -> bool:
        return is_number(v) or isinstance(v, (torch.SymInt, torch.SymBool))

    def _one_sided(self, a: Any, b: Any) -> Any:
        live = b if isinstance(a, Dead) else a
        value = live.tensor if isinstance(live, Number) else live
        if not isinstance(value, torch.Tensor) or self.flow.recorder.visible(value):
            return live
        if isinstance(live, Number):
            return self._add(a, b, live.kind, live.mixed, value)
        made = self._tensor(a, b)
        self.flow.loose.note(self.fakes[made.at], self.flow.loose.of(value))
        return made

    def _tensor(self, a: Any, b: Any) -> _Pending:
        return self._add(a, b, None, False, a if isinstance(a, torch.Tensor) else b)

    def _cut(self, a: torch.Tensor, b: torch.Tensor, cut: Cut) -> _Pending:
        """Tensors of two sizes: rows up to the greatest one in both arms, and how many there are."""
        recorder = self.flow.recorder
        for v, region in zip((a, b), self.arms, strict=True):
            with recorder.opened(region):
                whole = torch.zeros([cut.most if d == cut.dim else e for d, e in enumerate(v.shape)], dtype=v.dtype)
                whole.narrow(cut.dim, 0, v.shape[cut.dim]).copy_(v)
                size = torch.scalar_tensor(v.shape[cut.dim], dtype=torch.int64)
                region.outputs += [recorder.node_of(whole), recorder.node_of(size)]
        self.fakes += [fresh_like(whole), fresh_like(size)]
        return _Pending(len(self.fakes) - 2, None, False, None, replace(cut, sizes=(a.shape[cut.dim], b.shape[cut.dim])))

    def _number(self, a: Any, b: Any) -> Any:
        a, b = (self._of_extents(v) for v in (a, b))
        if isinstance(a, bool) and isinstance(b, bool):
            return self.condition if a else negated(self.condition)
        kind, mixed = joined_kind(a, b)
        return self._add(a, b, kind, mixed, None)

    def _of_extents(self, v: Any) -> Any:
        if isinstance(v, torch.SymInt):
            return Number(int, torch.scalar_tensor(v, dtype=torch.int64), self.flow)
        return self.flow.extent_truth(v) if isinstance(v, torch.SymBool) else v

    def _add(self, a: Any, b: Any, kind: type | None, mixed: bool, like: torch.Tensor | None) -> _Pending:
        recorder = self.flow.recorder
        values = []
        for v, region in zip((a, b), self.arms, strict=True):
            with recorder.opened(region):
                if isinstance(v, Dead):
                    assert like is not None
                    value = torch.zeros(tuple(like.shape), dtype=like.dtype)
                elif kind is None and not isinstance(v, torch.Tensor):
                    assert like is not None
                    value = tensor_like(v, like)
                else:
                    value = v if kind is None else tensor_of(v, kind)
                region.outputs.append(recorder.node_of(value))
                values.append(value)
        self.fakes.append(fresh_like(values[0]))
        origin = ("if", self.condition, a, b) if kind is bool and not any(isinstance(v, Dead) for v in (a, b)) else None
        return _Pending(len(self.fakes) - 1, kind, mixed, origin)

    def emit(self) -> Callable[[Any], Any]:
        """Record the branch; the function puts results in the place of `_Pending`s."""
        recorder = self.flow.recorder
        if self.fakes or any(region.nodes for region in self.arms):
            node = recorder.emit(branch, (recorder.node_of(self.condition.tensor),), self.fakes, "if_")
            node.meta["regions"] = self.arms
            recorder.merges([*map(recorder.node_of, self.fakes), *(n for region in self.arms for n in region.outputs)])

        def filled(v: Any) -> Any:
            if not isinstance(v, _Pending):
                return v
            made = self.fakes[v.at]
            if v.cut is not None:
                size = size_at_run_time(self.fakes[v.at + 1], v.cut.most)
                self.flow.sizes[size.node.expr] = v.cut.sizes
                return made.narrow(v.cut.dim, 0, size)
            return made if v.kind is None else Number(v.kind, made, self.flow, v.origin, v.mixed)

        def whole(v: Any) -> Any:
            found = parts(v)
            if found is None:
                return filled(v)
            if id(v) in self.placed:
                return self.placed[id(v)][1]
            items = [whole(item) for item in found[0]]
            made = v if all(p is q for p, q in zip(items, found[0], strict=True)) else found[1](items)
            if changeable(v):
                self.placed[id(v)] = v, made
            return made

        for a, b, united in self.objects.values():
            made = whole(united)
            self.flow.kinship.relate(made, a)
            self.flow.kinship.relate(made, b)
        return whole


@dataclass(frozen=True)
class Cut:
    """Two tensors differ in their size along `dim`, which is `most` at most: one of `sizes`."""

    dim: int
    most: int
    sizes: tuple[Any, ...] = ()


MOST_CUT = 1 << 20
"""Elements of a tensor that is kept for the greatest of several sizes."""

UNKNOWN_SIZE = 3 << 30
"""Stands for a greatest size that is not known yet; the recording is repeated when it is."""


def common_cut(a: torch.Tensor, b: torch.Tensor) -> Cut | None:
    """How two tensors of different sizes fit into one; None where they do not, or no bound is known."""
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true

    if a.dtype != b.dtype or a.dim() != b.dim() or a.device != b.device:
        return None
    dims = [d for d, (p, q) in enumerate(zip(a.shape, b.shape, strict=True)) if not statically_known_true(p == q)]
    if len(dims) != 1 or not any(free_unbacked_symbols(v.shape[dims[0]]) for v in (a, b)):
        return None
    tops = [most_of(v.shape[dims[0]]) for v in (a, b)]
    rest = [e for d, e in enumerate(a.shape) if d != dims[0]]
    if None in tops or not all(isinstance(e, int) for e in rest):
        return None
    most = max(t for t in tops if t is not None)
    return Cut(dims[0], most) if most * math.prod(rest) <= MOST_CUT or abs(most - UNKNOWN_SIZE) < MOST_CUT else None


def most_of(e: Any) -> int | None:
    """The greatest value of an extent."""
    if isinstance(e, int):
        return e
    upper = e.node.shape_env.bound_sympy(e.node.expr).upper
    return int(upper) if upper.is_Integer else None


def size_at_run_time(count: torch.Tensor, most: int, least: int = 0) -> Any:
    """A number as an extent, with its bounds."""
    from torch.fx.experimental.symbolic_shapes import _constrain_range_for_size

    extent = torch.ops.aten._local_scalar_dense.default(count)
    _constrain_range_for_size(extent, least, most)
    return extent


def both(flow: Flow, a: Number, b: Any) -> Any:
    """`a and b` of booleans, both computed."""
    if not isinstance(b, Number):
        return a if b else False
    made = Number(bool, torch.logical_and(a.tensor, b.tensor), flow)
    made.origin = ("and", a, b)
    return made


