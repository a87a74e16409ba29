"""The operators that rewritten Python calls: what a condition, a subscript, a write or a call means when values are data."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from dlc.frontend.python_rewrite import Site
from dlc.frontend.torch_aside import aside, reached_from
from dlc.frontend.torch_calls import Calls
from dlc.frontend.torch_caught import caught_by
from dlc.frontend.torch_effects import advance_all, alter, store
from dlc.frontend.torch_errors import EffectOnData, UncapturedDecision
from dlc.frontend.torch_flow import Branch, both
from dlc.frontend.torch_held import journalled
from dlc.frontend.torch_loop import Behind, Loop
from dlc.frontend.torch_numbers import WIDE, Number, is_number, negated
from dlc.frontend.torch_short import short
from dlc.frontend.torch_steps import Span, Steps, steps_of
from dlc.frontend.torch_subscripts import assign_item, read_item
from dlc.frontend.torch_values import (
    Absent,
    Either,
    Elided,
    Maybe,
    Partial,
    Sometimes,
    absent,
    leaves,
    selectable,
    undefined,
)

_IN_PLACE: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.iadd, "sub": operator.isub, "mul": operator.imul, "truediv": operator.itruediv,
    "floordiv": operator.ifloordiv, "mod": operator.imod, "pow": operator.ipow, "matmul": operator.imatmul,
    "and": operator.iand, "or": operator.ior, "xor": operator.ixor, "lshift": operator.ilshift, "rshift": operator.irshift,
}  # fmt: skip
_COMPARED: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq, "ne": operator.ne, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
}  # fmt: skip


class Runtime(Calls):
    """The object that rewritten functions know as `rt`."""

    # --- statements ---

    def branch(self, site: Site, condition: Any, state: tuple[Any, ...]) -> Branch:
        return Branch(self, site, condition, state)

    def loop(self, site: Site, over: Any, state: tuple[Any, ...]) -> Loop:
        return Loop(self, site, over, state)

    def behind(self, site: Site, loop: Loop, condition: Any, state: tuple[Any, ...]) -> Branch | Behind:
        """What follows a loop, where it has not returned from the function."""
        return Behind(site, loop, state) if loop.open else Branch(self, site, condition, state)

    def undefined(self, name: str) -> Absent:
        return undefined(self, name)

    def read(self, value: Any) -> Any:
        """A variable that may be unset."""
        value = self.narrowed(value)
        if isinstance(value, (Maybe, Either)):
            return value
        if isinstance(value, Partial) and self.decide(value.flag) is True:
            return value.value
        if isinstance(value, Absent) and not isinstance(value, Elided):
            value.refuse()
        return value

    def plain(self, site: Site, value: Any) -> bool:
        """A condition where only a known one will do: a filter in a comprehension, the guard of a pattern."""
        return self.is_known(site, value, "filters and patterns are decided before the program runs")

    def asserted(self, site: Site, value: Any) -> bool:
        """The condition of an assertion."""
        why = "a compiled program raises nothing; leave the assertion out, or return its condition for the caller to check"
        return self.is_known(site, value, f"an assertion is decided before the program runs, and {why}")

    def known_value(self, site: Site, value: Any) -> Any:
        """An operand whose truth must be known, as what follows it binds a name."""
        self.is_known(site, value, "a name is bound (`:=`) in what is computed on one path only; bind it before")
        return value

    def known_here(self, site: Site, value: Any) -> bool:
        """A condition in a generator."""
        return self.is_known(site, value, "a generator decides as it runs, and cannot do so twice; return a list")

    def started(self, site: Site) -> Site:
        """A generator is run that does something when it is left."""
        self.unfinished.append(made := replace(site))
        return made

    def finished(self, site: Site) -> None:
        self.unfinished = [s for s in self.unfinished if s is not site]

    def ended(self) -> None:
        """Nothing is left to do.

        Raises:
            EffectOnData: but what a generator does when it is left: Python does it there, and here nobody does.
        """
        for site in self.unfinished:
            raise self.refused_at(site, EffectOnData, what="what this generator does when it is left early")

    def aside(self) -> Any:
        """A class is made, whose statements are not rewritten."""
        return aside(self, "the body of a class", *reached_from(sys._getframe(1)))

    def new_class(self, kind: type) -> None:
        self.classes.meet(kind)

    def subject(self, site: Site, value: Any, by_class: bool) -> Any:
        """What a `match` that is no chain of conditions looks at."""
        symbols = (torch.SymInt, torch.SymFloat, torch.SymBool)
        if isinstance(value, (Number, torch.Tensor)) or by_class and any(isinstance(v, symbols) for v in leaves(value)):
            raise self.refused_at(site, UncapturedDecision, what="the subject of `match`", why="use if and elif")
        for v in absent(value):
            if isinstance(v, Elided):
                v.refuse()
        return value

    @contextmanager
    def catching(self, kinds: Callable[[], Any]) -> Iterator[None]:
        """The body of a `try` whose handlers catch these."""
        self.caught.append(kinds)
        try:
            yield
        finally:
            self.caught.remove(kinds)  # not the last one, where this is a generator

    def inside(self, context: Any) -> Any:
        """The context of a `with`, which may catch exceptions, too."""
        kinds = caught_by(context)
        if self.writes(getattr(type(context), "__exit__", None)):
            context = _Entered(self, context)
        return self._catching_in(context, kinds) if kinds else context

    @contextmanager
    def _catching_in(self, context: Any, kinds: tuple[Any, ...]) -> Iterator[Any]:
        with context as value, self.catching(lambda: kinds):
            yield value

    def iterate(self, site: Site, over: Any) -> Any:
        """The iterable of a comprehension."""
        self.whole(over)
        steps = steps_of(self, over)
        if isinstance(steps, Steps):
            raise self.refused_at(
                site, UncapturedDecision, what="the length of this iterable", why="write the comprehension as a for loop"
            )
        return over

    def spread(self, over: Any) -> Any:
        """The iterable of `*over`, or of `a, b = over`."""
        advance_all(self, (over,))
        return over

    def taken_apart(self, value: Any, shape: tuple[Any, ...]) -> Any:
        """A value that becomes several targets of this shape: None for a name, "*" for one with a star, a tuple for several again.

        Only those with a star can take elements whose number is data.
        """
        if not _sequence(value):
            return value
        front = shape.index("*") if "*" in shape else len(shape)
        back = len(value) - (len(shape) - front - 1)
        self.whole(value if "*" not in shape or back < front else [*value[:front], *value[back:]])
        for v, inner in (*zip(value, shape[:front], strict=False), *zip(value[back:], shape[front + 1 :], strict=False)):
            if isinstance(inner, tuple):
                self.taken_apart(v, inner)
        return value

    def listed(self, site: Site, over: Any, filtered: bool, plain: Callable[[Any], Any], loop: Callable[[Any], Any]) -> Any:
        """The list of a comprehension over `over`: in Python, or by `loop` where its length or its filter is data."""
        if isinstance(over, Iterator):
            advance_all(self, (over,))
            over = list(over)
        if isinstance(steps_of(self, over), Steps) or isinstance(over, (list, tuple)) and any(isinstance(v, Sometimes) for v in over):
            return loop(over)
        if not filtered:
            return plain(over)
        attempt = self.enter(own_region=False)
        try:
            made = plain(over)
        except UncapturedDecision:
            self.abandon(attempt)
            return loop(over)
        except Exception:
            self.leave(attempt)
            raise
        self.commit(attempt)
        return made

    def short(self, function: Any, over: Any, names: bool, plain: Callable[[Any], Any], loop: Any = None) -> Any:
        """`any(... for v in over)` or `all(...)`."""
        return short(self, function, over, names, plain, loop)

    # --- expressions ---

    def not_(self, value: Any) -> Any:
        found = self.decide(value)
        return negated(found) if isinstance(found, Number) else not found

    def all_of(self, site: Site, first: Any, *later: Callable[[], Any]) -> Any:
        """The truth of `first and ...`; the others are computed only where those before hold."""
        truth = self.decide(first)
        for n, operand in enumerate(later):
            if truth is False:
                return False
            if truth is True:
                truth = self.decide(operand())
                continue
            return self.guarded(site, truth, self._rest(self.all_of, site, later[n:]))
        return truth

    def any_of(self, site: Site, first: Any, *later: Callable[[], Any]) -> Any:
        """The truth of `first or ...`."""
        truth = self.decide(first)
        for n, operand in enumerate(later):
            if truth is True:
                return True
            if truth is False:
                truth = self.decide(operand())
                continue
            return self._unless(site, truth, self._rest(self.any_of, site, later[n:]))
        return truth

    def _unless(self, site: Site, truth: Number, rest: Callable[[], Any]) -> Any:
        """`truth or rest()`."""
        return self.not_(self.guarded(site, negated(truth), lambda: self.not_(rest())))

    def _rest(
        self, fold: Callable[..., Any], site: Site, operands: tuple[Callable[[], Any], ...]
    ) -> Callable[[], Any]:
        """The truth of the operands from here on, when it is asked for."""
        return lambda: fold(site, operands[0](), *operands[1:])

    def guarded(self, site: Site, truth: Number, operand: Callable[[], Any]) -> Any:
        """`truth and operand()`, where the operand is a condition: computed at once if it is cheap and cannot fail."""
        choice = Branch(self, _named(site, "and"), truth, (False,))
        choice.then()
        frame = choice.frame
        found = self.decide(operand())
        assert frame is not None
        if not frame.cells and all(map(_harmless, frame.region.nodes)):
            self.leave(frame)
            self.frame.born |= frame.born
            for node in frame.region.nodes:
                node.meta["region"] = self.recorder.region
            self.recorder.region.nodes += frame.region.nodes
            return both(self, truth, found)
        choice.close((found,))
        choice.orelse()
        choice.close((False,))
        return self.decide(choice.result()[0])

    def either(self, site: Site, test: Any, then: Callable[[], Any], orelse: Callable[[], Any]) -> Any:
        """`then() if test else orelse()`."""
        choice = Branch(self, _named(site, "the conditional expression"), test, (None,))
        if choice.then():
            choice.close((then(),))
        if choice.orelse():
            choice.close((orelse(),))
        return choice.result()[0]

    def and_(self, site: Site, first: Any, *later: Callable[[], Any]) -> Any:
        """`first and ...` as a value: the first operand that is false, or the last."""
        if not later:
            return first
        return self.either(site, first, lambda: self.and_(site, later[0](), *later[1:]), lambda: first)

    def or_(self, site: Site, first: Any, *later: Callable[[], Any]) -> Any:
        if not later:
            return first
        return self.either(site, first, lambda: first, lambda: self.or_(site, later[0](), *later[1:]))

    def chain(self, site: Site, left: Any, *rest: tuple[str, Callable[[], Any]]) -> Any:
        """`a < b < c`."""
        (name, right), *more = rest
        value = right()
        if name in ("in", "not_in"):
            found = self.contains(site, left, value) if name == "in" else self.lacks(site, left, value)
        elif name in ("is_", "is_not"):
            found = self.is_(left, value) if name == "is_" else self.is_not(left, value)
        elif name in ("eq", "ne"):
            found = self.equal(site, left, value) if name == "eq" else self.unequal(site, left, value)
        else:
            found = self.ordered(name, left, value)
        if not more:
            return found
        return self.and_(site, found, lambda: self.chain(site, value, *more))

    def ordered(self, name: str, a: Any, b: Any) -> Any:
        """`a < b` and its like."""
        self.whole(a)
        self.whole(b)
        return _COMPARED[name](a, b)

    def equal(self, site: Site, a: Any, b: Any) -> Any:
        """`a == b`; of lists and tuples element by element, as data may be among them."""
        self.whole(a)
        self.whole(b)
        if not (_sequence(a) and _sequence(b)) or not any(map(_undecided, (*leaves(a), *leaves(b)))):
            return a == b
        if isinstance(a, list) is not isinstance(b, list) or len(a) != len(b):
            return False
        return self.all_of(site, True, *(partial(self.equal, site, p, q) for p, q in zip(a, b, strict=True)))

    def unequal(self, site: Site, a: Any, b: Any) -> Any:
        """`a != b`."""
        return self.not_(self.equal(site, a, b)) if _sequence(a) and _sequence(b) else a != b

    def is_(self, a: Any, b: Any) -> Any:
        """`a is b`."""
        a, b = (self.decide(v) if isinstance(v, torch.SymBool) else v for v in (self.narrowed(a), self.narrowed(b)))
        if a is b:
            return True
        for v, other in ((a, b), (b, a)):
            if isinstance(v, Maybe):
                return self.not_(v.flag) if other is None else self.both_hold(v.flag, self.is_(v.value, other))
            if isinstance(v, Either) and (other is None or selectable(other)):
                return v.each(partial(self.is_, other))
            if isinstance(v, Absent):
                v.refuse()
        if any(isinstance(v, (Number, torch.SymInt, torch.SymFloat)) for v in (a, b)):
            return self._same_number(self.counted(a), self.counted(b))
        if any(b is k for k in self.kinship.of(a)) or (
            isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and self.recorder.may_be_one(a, b)
        ):
            raise self.refused(UncapturedDecision, what="`is`", why="they are one object on some paths only")
        return False

    def _same_number(self, a: Any, b: Any) -> Any:
        """`a is b` of two values, one a number from data at least: there is one True, and there is one False."""
        if not is_number(a) or not is_number(b) or self.kind(a) is not self.kind(b):
            return False
        if self.kind(a) is not bool:
            raise self.refused(UncapturedDecision, what="`is` of two numbers", why="compare them with ==")
        for n, known in ((a, b), (b, a)):
            if isinstance(known, bool):
                return n if known else self.not_(n)
        return a == b

    def is_not(self, a: Any, b: Any) -> Any:
        return self.not_(self.is_(a, b))

    def class_of(self, v: Any) -> Any:
        """`v.__class__`."""
        return self.call(type, v)

    def contains(self, site: Site, item: Any, container: Any) -> Any:
        """`item in container`."""
        item, container = self.narrowed(item), self.narrowed(container)
        if isinstance(container, Either):
            return container.each(lambda c: self.contains(site, item, c))
        if isinstance(container, torch.Tensor):
            return self.decide((container == item).any())
        if isinstance(container, Steps) and not isinstance(container, Span):
            raise self.refused_at(site, UncapturedDecision, what="the length of what is searched here", why="compare in a for loop")
        if (own := self.classes.method(container, "__contains__")) is not None:
            return self.decide(self.call(own, container, item))
        if not isinstance(container, (list, tuple, set, frozenset, dict, range, Span)):
            advance_all(self, (container,))
            return item in container
        if isinstance(container, Span):
            return self._in_range(site, item, container)
        self.whole(container)
        item = self.counted(item)
        data = any(isinstance(v, (Number, torch.Tensor, Either)) for v in (item, *container))
        if not data:
            return item in container
        if isinstance(container, range):
            return self._in_range(site, item, container)
        found: Any = False
        for v in container:
            if found is True or v is item:
                return True
            equal = self.decide(v == item)
            found = equal if found is False else negated(both(self, negated(found), self.not_(equal)))
        return found

    def _in_range(self, site: Site, item: Any, container: range | Span) -> Any:
        start, stop, step = container.start, container.stop, container.step
        return self.all_of(
            site,
            item >= start if step > 0 else item <= start,
            lambda: item < stop if step > 0 else item > stop,
            lambda: (item - start) % step == 0,
        )

    def lacks(self, site: Site, item: Any, container: Any) -> Any:
        return self.not_(self.contains(site, item, container))

    # --- subscripts and attributes ---

    def slice(self, start: Any, stop: Any, step: Any) -> slice:
        return slice(start, stop, step)

    def get_item(self, value: Any, key: Any) -> Any:
        return self.narrowed(read_item(self, value, key))

    def set_item(self, value: Any, key: Any, item: Any) -> None:
        assign_item(self, value, key, item)

    def del_item(self, value: Any, key: Any) -> None:
        self.whole(value)
        if not self.own_method(value, "__delitem__", key):
            alter(self, value, "deleting an item")
            del value[key]

    def set_attr(self, value: Any, name: str, item: Any) -> None:
        store(self, setattr, value, name, item)

    def del_attr(self, value: Any, name: str) -> None:
        store(self, delattr, value, name)

    def augmented(self, op: str, value: Any, other: Any) -> Any:
        """`value op= other`."""
        if isinstance(value, torch.Tensor) and isinstance(other, Number):
            other = other.kept(value) if op in WIDE else other.operand(value)
        if journalled(value):
            advance_all(self, (other,))
            self.touch(value)
        made = _IN_PLACE[op](value, other)
        if made is value and not journalled(value) and not self.classes.keeps(value):
            alter(self, value, "an assignment in place")
        return made

    def augment_attr(self, op: str, value: Any, name: str, other: Any) -> None:
        self.set_attr(value, name, self.augmented(op, getattr(value, name), other))

    def augment_item(self, op: str, value: Any, key: Any, other: Any) -> None:
        self.set_item(value, key, self.augmented(op, read_item(self, value, key, shared=False), other))


class _Entered:
    """A context of the model's own class, whose methods are rewritten."""

    def __init__(self, rt: Runtime, context: Any) -> None:
        self.rt = rt
        self.context = context

    def __enter__(self) -> Any:
        return self.rt.call(type(self.context).__enter__, self.context)

    def __exit__(self, *error: Any) -> Any:
        return self.rt.call(type(self.context).__exit__, self.context, *error)


def _sequence(v: Any) -> bool:
    return isinstance(v, (list, tuple))


def _undecided(v: Any) -> bool:
    """Whether a comparison with this is data."""
    return isinstance(v, (Number, Absent, torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))


def _named(site: Site, name: str) -> Site:
    return replace(site, names=(name,), live=frozenset((name,)), returns=(False, False))


_HARMLESS = frozenset(
    "aten.eq aten.ne aten.lt aten.le aten.gt aten.ge aten.add aten.sub aten.mul aten.neg aten.abs aten.logical_and aten.logical_not"
    " aten.logical_or aten._to_copy aten.clone aten.scalar_tensor aten.to aten.reshape aten.view aten.where".split()
)


def _harmless(node: Any) -> bool:
    """Whether a node may as well be computed where its result is not needed: cheap, and defined for all operands."""
    val = node.meta.get("val")
    name = ".".join(str(node.target).split(".")[:2])
    return name in _HARMLESS and isinstance(val, torch.Tensor) and val.dim() == 0


