"""One loop being executed: done in Python while every decision is known, else recorded once.

    w = rt.loop(site, over, (x,))             # over: what `for` steps over, None for `while`
    while w.more():
        (x,) = w.state
        if w.testing(): w.tested(x < 3)       # the condition of a `while`
        if w.working(): x = f(x)              # the body
        w.leave((x,))
    (x,) = w.state

`_plan` is a script (a generator) of rounds: each says whether to evaluate the condition, whether to run the body, and from
which state. The first attempt is Python's own. If a decision of the loop turns out to be data, the attempt is undone and the
body is recorded once, over states found by a fixpoint: what the body leaves different from how it found it is carried. A
loop over known items that cannot be recorded so (it calls another layer in each step) is unrolled, each step inside the
`else` of the decision before it.

Source: Moldovan et al., AutoGraph (arXiv 1810.08061), 7.2; Cousot and Cousot, POPL 1977 (the fixpoint of loop states).
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

from dlc.frontend.python_exits import DONE, RETURN
from dlc.frontend.python_rewrite import Site
from dlc.frontend.torch_body import Body, Round, State, positive
from dlc.frontend.torch_effects import ends_early
from dlc.frontend.torch_errors import CannotRecordLoop
from dlc.frontend.torch_flow import Branch, Flow, both, place_of_site
from dlc.frontend.torch_heap import Frame
from dlc.frontend.torch_numbers import Number, negated, tensor_of
from dlc.frontend.torch_steps import Items, Steps, steps_of
from dlc.frontend.torch_values import DEAD, Sometimes

LOG = logging.getLogger("dlc.frontend.loop")
LONG = 16
"""A loop over a known range of at least this length is recorded, if it can be, when it decides on data inside."""
_MOST_PASSES = 24
_MOST_UNROLLED = 4096
_MOST_OPEN = 64
"""So many decisions to go on, each inside the one before, are recorded of a `while` whose steps nothing bounds."""


class Loop:
    """A `while` or `for` statement being executed."""

    def __init__(self, flow: Flow, site: Site, over: Any, state: State) -> None:
        self.flow = flow
        self.site = site
        self.initial = self.state = state
        self.round = Round(state)
        self.error: Exception | None = None
        self.left: State = state
        self.verdict: Any = None
        self.catching = False
        self.done = 0
        self.open: list[Branch] = []
        self.over = over
        self._script = self._plan(over)

    # --- what the rewritten code calls ---

    def more(self) -> bool:
        """Whether there is another round."""
        try:
            self.round = next(self._script)
        except StopIteration:
            return False
        self.state = self.round.state
        return True

    def testing(self) -> bool:
        return self.round.test

    def tested(self, verdict: Any) -> None:
        self.verdict = verdict

    def working(self) -> bool:
        return self.round.body

    def item(self) -> Any:
        return self.round.item

    def leave(self, state: State) -> None:
        self.left = state

    def failed(self, error: Exception) -> None:
        """The round ended in `error`; it goes on to the user unless another way is tried."""
        if not self.catching:
            raise error
        self.error = error

    # --- rounds ---

    def do(self, round_: Round) -> Generator[Round, None, State]:
        yield round_
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self.left

    def _test(self, state: State) -> Generator[Round, None, tuple[Any, State]]:
        """The condition (True for a `for` loop), and the state after it."""
        state = yield from self.do(Round(state, test=True))
        return self.flow.decide(self.verdict), state

    def _stopped(self, state: State) -> Any:
        """Whether a flag ends the loop: True, False, or data."""
        flags = [self.flow.decide(state[n]) for n in self.site.flags]
        if any(f is True for f in flags):
            return True
        data = [f for f in flags if isinstance(f, Number)]
        if not data:
            return False
        going = negated(data[0])
        for f in data[1:]:
            going = both(self.flow, going, negated(f))
        return self.flow.decide(negated(going))  # one of two flags that exclude each other is always set

    # --- the plan ---

    def _plan(self, over: Any) -> Iterator[Round]:
        steps = steps_of(self.flow, over) if over is not None else None
        if isinstance(steps, Steps):
            yield from self._recorded(self.initial, steps)
            return
        first = self.flow.enter(own_region=False)
        self.catching = True
        before = self.flow.decided
        try:
            try:
                done = yield from self._python(self.initial, steps)
            except Exception:
                if not self._may_record(steps) or self.flow.decided == before:
                    raise
                done = None
            long = self.flow.decided > before and (self.done >= LONG if steps is None else steps.long)
            if done is not None and not long:
                self.flow.commit(first)
                self.state = done
                return
        finally:
            self.catching = False
        yield from self._data(first, steps, done)

    def _may_record(self, steps: Items | None) -> bool:
        return steps is None or steps.indexed is not None

    def _python(self, state: State, steps: Items | None) -> Generator[Round, None, State | None]:
        """The loop as Python does it; None as soon as whether it goes on is data."""
        at = 0
        while True:
            stopped = self._stopped(state)
            if stopped is True:
                return state
            if isinstance(stopped, Number):
                return None
            item = None
            if steps is None:
                going, state = yield from self._test(state)
                if isinstance(going, Number):
                    return None
                if not going:
                    return state
            elif not steps.has(at):
                return state
            elif isinstance(going := self.flow.decide(steps.going(at)), Number):
                return None
            elif not going:
                return state
            else:
                item = steps[at]
                if isinstance(item, Sometimes):
                    return None
            state = yield from self.do(Round(state, body=True, item=item))
            self.done = at = at + 1
            if at > _MOST_UNROLLED and steps is None:
                raise self._refused("it does not end within the number of steps that are done in Python")

    def _data(self, attempt: Frame, steps: Items | None, done: State | None) -> Iterator[Round]:
        """The loop once some decision is data: recorded if possible, else unrolled."""
        flow = self.flow
        flow.abandon(attempt)
        start = self.initial
        reason: Exception | None = None
        if self._may_record(steps):
            attempt = flow.enter(own_region=False)
            self.catching = True
            try:
                yield from self._recorded(start, steps.indexed if steps is not None else None)
                flow.commit(attempt)
                return
            except Exception as error:
                flow.abandon(attempt)
                LOG.debug("%s: unrolled, as it cannot be recorded: %s", place_of_site(self.site), error)
                reason = error
            finally:
                self.catching = False
        yield from self._unrolled(start, steps, reason)

    # --- unrolled ---

    def _unrolled(self, state: State, steps: Items | None, reason: Exception | None) -> Iterator[Round]:
        """Each step in the `else` of the decision to stop before it."""
        flow = self.flow
        opened: list[Branch] = []
        at = 0
        while True:
            stopped = False
            for n in self.site.flags:
                stopped = flow.decide(state[n])
                if stopped is True:
                    break
                if isinstance(stopped, Number):
                    ends_early(flow, self.over)
                    opened.append(self._or_stop(n, stopped, state))
                    state = self._going_on(n, state)
            if stopped is True:
                break
            if isinstance(stopped, Number):
                if at == 1 and self._may_record(steps) and (yield from self._rest(state, steps, at)):
                    state = self.state
                    break
            item = None
            if steps is None:
                going, state = yield from self._test(state)
                if isinstance(going, Number):
                    raise reason or self._refused("its condition is data")
                if not going:
                    break
            elif not steps.has(at):
                break
            else:
                going = flow.decide(steps.going(at))
                if going is False:
                    break
                if isinstance(going, Number):
                    opened.append(self._or_stop(None, negated(going), state))
                item = steps[at]
            if isinstance(item, Sometimes):
                state = yield from self._perhaps(state, item)
            else:
                state = yield from self.do(Round(state, body=True, item=item))
            at += 1
            if at > _MOST_UNROLLED or steps is None and len(opened) > _MOST_OPEN:
                raise reason or self._refused("it has too many steps to be unrolled")
        if self.site.followed and all(c.site.returns[0] for c in opened):
            self.open, opened = opened, []
        for choice in reversed(opened):
            choice.close(state)
            state = choice.result()
        self.state = state

    def _perhaps(self, state: State, item: Sometimes) -> Generator[Round, None, State]:
        """The step for an item that is there on some paths only."""
        choice = Branch(self.flow, self.site, item.flag, state)
        if choice.then():
            choice.close((yield from self.do(Round(state, body=True, item=item.value))))
        if choice.orelse():
            choice.close(state)
        return choice.result()

    def _or_stop(self, flag: int | None, stopped: Number, state: State) -> Branch:
        """A branch that ends the loop where `flag` is set, or the items end; open for what happens otherwise."""
        # After a return nothing but the returned value matters.
        returned = flag is not None and self.site.names[flag] == DONE
        site = replace(self.site, live=self.site.after, returns=(returned, False))
        choice = Branch(self.flow, site, stopped, state)
        choice.then()
        choice.close(state)
        choice.orelse()
        return choice

    def _going_on(self, flag: int, state: State) -> State:
        """The state where the flag is not set; nothing is to be returned there yet."""
        gone: dict[int, Any] = {flag: False}
        if self.site.names[flag] == DONE:
            gone[self.site.names.index(RETURN)] = DEAD
        return tuple(gone.get(n, v) for n, v in enumerate(state))

    def _rest(self, state: State, steps: Items | None, at: int) -> Generator[Round, None, bool]:
        """Record what is left after a first step that set the state up; whether that was possible."""
        flow = self.flow
        attempt = flow.enter(own_region=False)
        self.catching = True
        try:
            rest = steps.indexed.after(at) if steps is not None and steps.indexed is not None else None
            yield from self._recorded(state, rest)
            flow.commit(attempt)
            return True
        except Exception:
            flow.abandon(attempt)
            return False
        finally:
            self.catching = False

    # --- recorded ---

    def _recorded(self, state: State, steps: Steps | None) -> Iterator[Round]:
        """The body once, over carried states."""
        flow = self.flow
        first: Any = None
        if steps is None:
            first, state = yield from self._test(state)
            if first is False:
                self.state = state
                return
        body = Body(self, state, steps, first is True or steps is not None and positive(steps.count))
        for _ in range(_MOST_PASSES):
            if (yield from body.settled()):
                break
        else:
            raise self._refused("its state does not settle")
        if body.once:
            self.state = yield from self._once(first, state)
            return
        start = tensor_of(first, bool) if steps is None else None
        if steps is not None and body.again is not None:
            start = tensor_of(True, bool)
        flow.decided += 1
        self.state = body.emit(start, steps)

    def _once(self, first: Any, state: State) -> Generator[Round, None, State]:
        """The loop as a branch, where no first step leads to a second."""
        choice = Branch(self.flow, replace(self.site, live=self.site.after), first, state)
        if choice.then():
            state = yield from self.do(Round(state, body=True))
            done = [self.flow.decide(state[n]) for n in self.site.flags if self.site.names[n] == DONE]
            choice.site = replace(choice.site, returns=(any(d is True for d in done), False))
            choice.close(state)
        if choice.orelse():
            choice.close(choice.state)
        return choice.result()

    def again(self, state: State, steps: Steps | None) -> Generator[Round, None, tuple[Any, State]]:
        """At the end of the body: whether there is another step, None if only the limit says."""
        flow = self.flow
        stopped = self._stopped(state)
        if steps is not None:
            return (None if stopped is False else negated(stopped) if isinstance(stopped, Number) else False), state
        if stopped is True:
            return False, state
        if stopped is False:
            return (yield from self._test(state))
        site = replace(self.site, names=(*self.site.names, "the condition"), live=self.site.live | {"the condition"})
        choice = Branch(flow, site, stopped, (*state, False))
        choice.then()
        choice.close((*state, False))
        choice.orelse()
        going, state = yield from self._test(state)
        choice.close((*state, going))
        *state_, going = choice.result()
        return flow.decide(going), tuple(state_)

    def _refused(self, reason: str) -> Exception:
        return self.flow.refused_at(self.site, CannotRecordLoop, reason=reason)


class Behind:
    """What follows an unrolled loop, done inside the `else` of its last decision: nothing but what it leaves goes through the others."""

    def __init__(self, site: Site, loop: Loop, state: State) -> None:
        self.site = site
        self.loop = loop
        self.before = self.state = state

    def then(self) -> bool:
        return True

    def orelse(self) -> bool:
        return False

    def close(self, state: State) -> State:
        self.state = state
        return state

    def result(self) -> State:
        """The state after it on every path: `names` are those of the loop and more."""
        for choice in reversed(self.loop.open):
            choice.close(self.state)
            (region, returned, changed), orelse = choice.arms
            choice.arms = [(region, (*returned, *self.before[len(returned) :]), changed), orelse]
            choice.site = replace(choice.site, names=self.site.names, live=self.site.live)
            self.state = choice.result()
        return self.state
