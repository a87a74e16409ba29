"""One fiber followed through a cascade: which tensors still hold it element by element, which only a fold of it.

The fiber is given by a coordinate of a tensor, such as the `m` of `K[h, m, e]`. Every tensor made from it has a `Trace`. A
tensor that keeps the coordinate in its index *carries* the fiber (to read it is to visit the fiber, whether it was stored or is
computed again). One that kept a part of it (`LM[m1]` after a maximum over the `m0` of `128*m1 + m0`) is a *summary* of blocks.
One that lost it is either complete, and known only after the pass that folded it, or never saw it.

Coordinates are integer expressions over the tensor's dimensions (`$0`, `$1` ...) and the scan ranks around it, so that views,
reshapes and splits compose and cancel as all index expressions do.

Source: the definition of a pass in Nayak et al., FuseMax, MICRO 2024 (arXiv 2406.10491), section on passes; the rules are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.extent import (
    FloorDiv,
    IntExpr,
    Mod,
    Value,
    Var,
    int_expr,
    rebuild,
    split_linear,
    substitute,
    var,
    variables,
)
from dlc.ir.facts import Facts


@dataclass(frozen=True, slots=True)
class Trace:
    """What a tensor has of the fiber.

    Attributes:
        at: coordinate of the element (or block) that an element of the tensor is made from; None when it has lost it.
        whole: whether the tensor carries elements, not summaries of blocks.
        level: the last pass over the fiber that it takes part in; 0 for none.
        done: passes that must be over before its elements are known.
        by: the tensor whose last fold ended pass `done`.
        direction: +1 or -1 when it was made in a scan along (or against) the coordinate, so that later elements need earlier ones.
    """

    at: IntExpr | None = None
    whole: bool = True
    level: int = 0
    done: int = 0
    by: str = ""
    direction: int = 0

    @property
    def carries(self) -> bool:
        return self.at is not None and self.whole

    def complete(self, name: str) -> Trace:
        """This tensor (of that name), when only the end of its pass gives it."""
        return replace(self, at=None, whole=True, done=max(self.done, self.level), by=name, direction=0)


@dataclass(frozen=True, slots=True)
class Revisit:
    """A barrier: `reader` visits the fiber again, through `tensor`, and needs `reduction`, which a whole pass has to end.

    With `against`, it needs nothing of it, but steps the fiber in the other direction.
    """

    level: int
    reduction: str
    reader: str
    tensor: str
    against: bool = False


@dataclass(frozen=True, slots=True)
class Covering:
    """Ranks that enumerate a coordinate: outer ones first, windows left out (the `j` of `i + j`).

    Attributes:
        exact: False when the expression is no sum of ranks whose steps nest; then any fold counts as one of all.
    """

    ranks: tuple[str, ...]
    windows: tuple[str, ...] = ()
    exact: bool = True


def dimension(n: int) -> str:
    """The variable that stands for a tensor's dimension `n` in coordinates."""
    return f"${n}"


def covering(at: IntExpr, extents: Mapping[str, IntExpr], facts: Facts) -> Covering:
    """Which ranks of `extents` enumerate `at`."""
    names = sorted(variables(at) & extents.keys())
    if len(names) < 2:
        return Covering(tuple(names))
    at = _without_divisions(at)
    atom = at.atom
    if isinstance(atom, Mod) and variables(atom.den).isdisjoint(extents):
        return covering(atom.num, extents, facts)
    steps: dict[str, IntExpr] = {}
    for name in names:
        parts = split_linear(at, name)
        if parts is None or not variables(parts[0]).isdisjoint(extents):
            return Covering(tuple(names), exact=False)
        step = parts[0]
        steps[name] = -step if step.const is not None and step.const < 0 else step
    chain, windows = [names[0]], []
    for name in names[1:]:
        place = next((n for n, other in enumerate(chain) if _encloses(name, other, steps, extents, facts)), len(chain))
        above = chain[:place]
        chain.insert(place, name)
        for other in above:
            if _encloses(other, name, steps, extents, facts):
                continue
            window = _narrower(name, other, steps, extents, facts)
            if window is None:
                return Covering(tuple(names), exact=False)
            windows.append(window)
            chain.remove(window)
            if window == name:
                break
    return Covering(tuple(chain), tuple(windows))


def _encloses(
    outer: str, inner: str, steps: Mapping[str, IntExpr], extents: Mapping[str, IntExpr], facts: Facts
) -> bool:
    return facts.nonneg(steps[outer] - steps[inner] * extents[inner])


def _narrower(a: str, b: str, steps: Mapping[str, IntExpr], extents: Mapping[str, IntExpr], facts: Facts) -> str | None:
    """Which of two overlapping ranks is the window over the other; an integer extent is less than an unknown one."""
    span_a, span_b = steps[a] * extents[a], steps[b] * extents[b]
    if facts.nonneg(span_a - span_b):
        return b
    if facts.nonneg(span_b - span_a):
        return a
    if (span_a.const is None) == (span_b.const is None):
        return None
    return a if span_a.const is not None else b


@dataclass
class FiberWalk:
    """The walk over a cascade's steps.

    Attributes:
        facts: of the cascade's symbols.
        start: where the fiber is: its tensor and the coordinate over its dimensions.
        own: symbols of the parameters' extents; another one in a coordinate is the step of a loop around the cascade. None: all are.
        traces: what is known of each tensor seen so far; tensors that have nothing of the fiber are not in it.
        index: the pass each Einsum is in, by the name of its first result; 0 before the first and off the fiber.
        visits: Einsums (by first result) that visit the fiber.
        revisits: the barriers, in order.
        blocks: ranks that were folded to make summaries, with their extents.
        repeats: ranks of scans each step of which traverses the same fiber anew, waiting for the step before.
        window: ranks that enumerate what a step of a loop around the cascade sees of the fiber; empty when it sees all.
        along: for each pass that scans step, in which direction, and the first Einsum that does.
        moved: scan ranks that choose among the tensor's fibers, so that each step has its own.
    """

    facts: Facts
    start: tuple[str, IntExpr]
    own: frozenset[str] | None = None
    traces: dict[str, Trace] = field(default_factory=dict)
    index: dict[str, int] = field(default_factory=dict)
    visits: set[str] = field(default_factory=set)
    revisits: dict[Revisit, None] = field(default_factory=dict)
    blocks: dict[str, IntExpr] = field(default_factory=dict)
    repeats: dict[str, IntExpr] = field(default_factory=dict)
    moved: set[str] = field(default_factory=set)
    window: dict[str, IntExpr] = field(default_factory=dict)
    along: dict[int, tuple[int, str]] = field(default_factory=dict)

    def run(self, steps: Iterable[Step], around: Mapping[str, IntExpr] | None = None) -> None:
        """Follow the fiber through `steps`, inside scans over the ranks `around`."""
        outer = dict(around or {})
        for step in steps:
            if isinstance(step, Einsum):
                self._einsum(step, outer)
            else:
                self._scan(step, outer)

    def seed(self, names: Iterable[str]) -> None:
        """Start where the tensor is written."""
        if self.start[0] in names:
            self.traces[self.start[0]] = Trace(self.start[1], level=1)

    def steps_outside(self, at: IntExpr) -> frozenset[str]:
        """Loop steps around the cascade that a coordinate moves with."""
        return frozenset() if self.own is None else frozenset(n for n in variables(at) if n[0] == "#") - self.own

    # one Einsum

    def _einsum(self, step: Einsum, around: Mapping[str, IntExpr]) -> None:
        extents = {**around, **step.extents}
        reads = self._reads(step, extents)
        if reads:
            result = self._result(step, reads, extents, around)
            self.index[step.out] = max(self.index.get(step.out, 0), result.level, result.done)
            self.traces.update(dict.fromkeys(step.outs, result))
        self.seed(step.outs)

    def _reads(self, step: Einsum, extents: Mapping[str, IntExpr]) -> list[tuple[str, Trace]]:
        """What the step reads of the fiber, with coordinates over its own ranks."""
        found: dict[tuple[str, Trace], None] = {}
        own = {r.name for r in step.all_ranks}
        for a in step.accesses():
            trace = self.traces.get(a.tensor)
            if trace is None:
                continue
            if a.tensor == self.start[0]:
                self.moved.update(v for i in a.index for v in variables(i) if v not in own)
            if trace.at is not None:
                at = _without_values(substitute(trace.at, {dimension(n): i for n, i in enumerate(a.index)}))
                alone = not variables(at) & extents.keys()
                if alone:  # one element or block, kept aside; the last of a running value is the end of its pass
                    needs_all = not trace.whole or trace.direction != 0
                    trace = trace.complete(a.tensor) if needs_all else replace(trace, at=None, whole=True)
                else:
                    trace = replace(trace, at=at)
                    if self.steps_outside(at):
                        self.window.update({r: extents[r] for r in covering(at, extents, self.facts).ranks})
            found[a.tensor, trace] = None
        if step.write is not None and step.write.onto in self.traces:
            trace = self.traces[step.write.onto]
            found[step.write.onto, trace if trace.at is None else replace(trace, whole=True)] = None
        return list(found)

    def _result(
        self,
        step: Einsum,
        reads: list[tuple[str, Trace]],
        extents: Mapping[str, IntExpr],
        around: Mapping[str, IntExpr],
    ) -> Trace:
        carriers = [t for _, t in reads if t.carries]
        held = carriers or [t for _, t in reads if t.at is not None]
        if not held:
            return _latest(t for _, t in reads)
        place = held[0].at
        assert place is not None
        cover = covering(place, extents, self.facts)
        moving = _direction(place, cover, around)
        needed = [
            (n, t.complete(n) if carriers and not t.whole and not self._meets(t, place, extents) else t)
            for n, t in reads
        ]
        base = _latest(t for _, t in needed)
        if carriers and moving:
            base = self._in_one_direction(step, base, moving, reads)
        level = base.done + 1 if carriers else max(t.level for t in held)
        if carriers:
            self.visits.add(step.out)
            self._note_revisits(step, level, reads, needed)
        direction = moving or next((t.direction for t in held if t.direction and t.level == level), 0)
        result = Trace(place, bool(carriers), level, base.done, base.by, direction)
        if step.write is not None:
            onto = self.traces.get(step.write.onto)
            if onto is not None and onto.carries and len(carriers) == 1:
                return replace(result, at=onto.at)
            return result.complete(step.out)
        if any(not self._meets(t, place, extents) for t in held):
            return result.complete(step.out)
        return self._folded(step, result, cover, extents)

    def _in_one_direction(self, step: Einsum, base: Trace, moving: int, reads: list[tuple[str, Trace]]) -> Trace:
        """`base`, or a later pass: one pass steps the fiber in one direction, that of the first scan in it."""
        while (earlier := self.along.setdefault(base.done + 1, (moving, step.out)))[0] != moving:
            again = next(n for n, t in reads if t.carries)
            self.revisits[Revisit(base.done + 2, earlier[1], step.out, again, against=True)] = None
            base = replace(base, done=base.done + 1, by=earlier[1])
        return base

    def _meets(self, t: Trace, place: IntExpr, extents: Mapping[str, IntExpr]) -> bool:
        """Whether the element or block of `t` moves with `place`, at a fixed distance."""
        assert t.at is not None
        ranks = covering(t.at, extents, self.facts).ranks
        inside = covering(place, extents, self.facts).ranks
        return set(ranks) <= set(inside) and variables(rounded(place) - rounded(t.at)).isdisjoint(ranks)

    def _note_revisits(
        self, step: Einsum, level: int, reads: list[tuple[str, Trace]], needed: list[tuple[str, Trace]]
    ) -> None:
        carriers = [(n, t) for n, t in reads if t.carries]
        if level <= max(t.level for _, t in carriers):
            return
        for name, t in needed:
            if t.done == level - 1:
                self.revisits[Revisit(level, t.by or name, step.out, carriers[0][0])] = None

    def _folded(self, step: Einsum, result: Trace, cover: Covering, extents: Mapping[str, IntExpr]) -> Trace:
        reduced = {r.name for r in step.reduced}
        gone = [n for n in cover.ranks if n in reduced]
        left = [n for n in cover.ranks if n not in reduced]
        if gone and (not left or not cover.exact):
            return result.complete(step.out)
        if gone:
            self.blocks.update({n: extents[n] for n in gone})
        env = {r.name: var(dimension(n)) for n, r in enumerate(step.ranks)}
        env.update({n: int_expr(0) for n in reduced})
        assert result.at is not None
        return replace(result, at=substitute(result.at, env), whole=result.whole and not gone)

    # scans

    def _scan(self, scan: Scan, around: Mapping[str, IntExpr]) -> None:
        inner = {**around, scan.rank.name: scan.rank.extent}
        first = {c.name: self.traces[c.init] for c in scan.carries if c.init in self.traces}
        entering, after = first, first
        for _ in range(2 + len(scan.carries)):
            self.traces.update(entering)
            self.seed(c.name for c in scan.carries)
            self.run(scan.body, inner)
            after = {c.name: self.traces[y] for c, y in zip(scan.carries, scan.yields, strict=True) if y in self.traces}
            following = {n: _next_step(t, first.get(n, Trace())) for n, t in after.items()}
            if following == entering:
                break
            entering = following
        self._note_repeats(scan, after, inner)
        self._leave(scan)

    def _note_repeats(self, scan: Scan, after: Mapping[str, Trace], inner: Mapping[str, IntExpr]) -> None:
        """Look one step ahead: whether it visits the same fiber anew because a carry waits for the end of this one."""
        rank = scan.rank.name
        if rank in self.moved or any(t.at is not None and rank in variables(t.at) for t in after.values()):
            return
        fresh = FiberWalk(self.facts, self.start, self.own)
        ahead = replace(fresh, traces={**self.traces, **after}, along=dict(self.along))
        ahead.run(scan.body, inner)
        if any(ahead.index[v] > self.index[v] for v in ahead.visits):
            self.repeats[rank] = scan.rank.extent

    def _leave(self, scan: Scan) -> None:
        rank = scan.rank.name
        for final, y in zip(scan.finals, scan.yields, strict=True):
            t = self.traces.get(y)
            if t is None:
                continue
            if t.at is not None and rank in variables(t.at):  # a fold over all steps, in lanes if other ranks are left
                t = replace(t, at=substitute(t.at, {rank: int_expr(0)}), whole=False)
            self.traces[final] = t
        for outer, name in scan.stacked:
            if name in self.traces:
                self.traces[outer] = _stacked(self.traces[name], rank)
        self.seed(scan.outs)


def rounded(e: IntExpr) -> IntExpr:
    """`e` with `b*(i // b)` as `i`: an element instead of the first of its block."""
    total = int_expr(0)
    for monomial, coefficient in e.terms:
        atom = monomial[0] if len(monomial) == 1 else None
        size = atom.den.const if isinstance(atom, FloorDiv) else None
        if isinstance(atom, FloorDiv) and size and coefficient % size == 0:
            total = total + atom.num * (coefficient // size)
        else:
            total = total + IntExpr(((monomial, coefficient),))
    return total


def _without_divisions(e: IntExpr) -> IntExpr:
    """A multiple of `e`, divisions by integers taken as exact: the same ranks with the same ratios of steps."""
    divisors = [a.den.const for m, _ in e.terms for a in m if isinstance(a, FloorDiv) and len(m) == 1 and a.den.const]
    scale = math.lcm(*divisors)
    total = int_expr(0)
    for monomial, coefficient in e.terms:
        atom = monomial[0] if len(monomial) == 1 else None
        if isinstance(atom, FloorDiv) and atom.den.const:
            total = total + atom.num * (coefficient * scale // atom.den.const)
        else:
            total = total + IntExpr(((monomial, coefficient * scale),))
    return total


def _direction(at: IntExpr, cover: Covering, around: Mapping[str, IntExpr]) -> int:
    """Whether the scan around a step moves up or down the fiber; 0 without one."""
    for name in cover.ranks:
        if name in around:
            parts = split_linear(at, name)
            slope = parts[0].const if parts is not None else None
            return -1 if slope is not None and slope < 0 else 1
    return 0


def _next_step(t: Trace, first: Trace) -> Trace:
    """A carry's new value at the next step, where it is at hand: what a step has to wait for is counted once."""
    return first if t.at is None else replace(t, done=first.done, by=first.by)


def _stacked(t: Trace, rank: str) -> Trace:
    if t.at is None:
        return t
    moved = {n: var(dimension(int(n[1:]) + 1)) for n in variables(t.at) if n.startswith("$")}
    return replace(t, at=substitute(t.at, {**moved, rank: var(dimension(0))}))


def _latest(traces: Iterable[Trace]) -> Trace:
    """A value made of several, without a place of its own: known after the last of them."""
    level, best = 0, Trace()
    for t in traces:
        level = max(level, t.level)
        best = t if t.done > best.done else best
    return Trace(None, True, max(level, best.done), best.done, best.by)


def _without_values(at: IntExpr) -> IntExpr:
    """`at` with each gather value replaced by the ranks it depends on: some element is visited for each of their points."""

    def leaf(atom: Var | Value) -> IntExpr:
        if isinstance(atom, Var):
            return var(atom.name)
        total = int_expr(0)
        for name in sorted(n for n in atom.expr.variables if not n.startswith("#")):
            total = total + var(name)
        return total

    return rebuild(at, leaf)
