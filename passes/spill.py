"""Transfers that keep a program's arena below a budget: what leaves it when, and when it comes back.

A statement of the program's body is a step: what it reads and writes has to be in the arena during it; everything else
that is alive may wait outside. Only a tensor with a buffer of its own can leave; what control flow knows by its address
(carries, results of branches) stays. A tensor that has left once has its copy outside for good, for tensors do not
change: it costs one copy out, and one back per return.

A step that alone needs more than the budget cannot have all its tensors in the arena. Some of them then never enter it:
kernels read and write them where they lie outside, which a mapped file allows.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from dlc.ir.memory import AtBuffer, MemoryPlan
from dlc.ir.program import Program, Region, Stmt, Transfer


@dataclass(frozen=True, slots=True)
class Steps:
    """What a program's statements need in the arena; the last step is the program's end.

    Attributes:
        uses: steps that need each tensor that can leave, rising; it is made in the first.
        sizes: bytes of each of them.
        fixed: bytes that each step needs for what cannot leave.
    """

    uses: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    fixed: tuple[int, ...]

    @property
    def needed(self) -> list[list[str]]:
        """Tensors that each step needs."""
        needed: list[list[str]] = [[] for _ in self.fixed]
        for name, uses in self.uses.items():
            for step in uses:
                needed[step].append(name)
        return needed

    @property
    def least(self) -> int:
        """The most that a step needs: no budget below this one lets every step have all its tensors in the arena."""
        steps = zip(self.fixed, self.needed, strict=True)
        return max((fixed + sum(self.sizes[t] for t in needed) for fixed, needed in steps), default=0)

    def without(self, outside: Collection[str]) -> Steps:
        """The steps when some tensors never enter the arena."""
        return Steps(
            {name: uses for name, uses in self.uses.items() if name not in outside},
            {name: size for name, size in self.sizes.items() if name not in outside},
            self.fixed,
        )


@dataclass(frozen=True, slots=True)
class Moves:
    """What happens before a step: first the tensors that leave, then those that come back."""

    leave: tuple[str, ...] = ()
    return_: tuple[str, ...] = ()


def steps_of(program: Program, memory: MemoryPlan, sizes: Sequence[int]) -> Steps:
    """The steps of a program without transfers, whose buffers have `sizes` bytes."""
    owner = {p.index: name for name, p in memory.places.items() if isinstance(p, AtBuffer) and p.index not in memory.pinned}
    index_of = {name: index for index, name in owner.items()}
    uses: dict[str, dict[int, None]] = {}
    for step, stmt in enumerate(program.body.body):
        for name in (*stmt.outs, *stmt.reads):
            if name in index_of:
                uses.setdefault(name, {})[step] = None
    end = len(program.body.body)
    for name in program.results:
        if name in uses:
            uses[name][end] = None
    fixed = [0] * (end + 1)
    for index, (buffer, size) in enumerate(zip(memory.buffers, sizes, strict=True)):
        if owner.get(index) in uses:
            continue
        for step, begin in enumerate(memory.starts):
            after = memory.starts[step + 1] if step < end else begin + 1
            if buffer.first < after and buffer.last >= begin:
                fixed[step] += size
    return Steps(
        {name: tuple(steps) for name, steps in uses.items()},
        {name: sizes[index_of[name]] for name in uses},
        tuple(fixed),
    )


def kept_outside(steps: Steps, capacity: int) -> frozenset[str]:
    """Tensors without which every step fits in `capacity` bytes, few and small.

    Where a step needs too much, the smallest tensor whose absence is enough stays outside, or the largest of all.
    Tensors that take part in many such steps count for all of them at once, for the steps are looked at in turn.
    """
    outside: set[str] = set()
    for fixed, needed in zip(steps.fixed, steps.needed, strict=True):
        inside = sorted((name for name in needed if name not in outside), key=lambda n: (steps.sizes[n], n))
        excess = fixed + sum(steps.sizes[n] for n in inside) - capacity
        while excess > 0 and inside:
            name = next((n for n in inside if steps.sizes[n] >= excess), inside[-1])
            inside.remove(name)
            outside.add(name)
            excess -= steps.sizes[name]
    return frozenset(outside)


def furthest_first(steps: Steps, capacity: int) -> list[Moves] | None:
    """Moves that never have more than `capacity` bytes in the arena; None where a step needs more.

    What is needed last leaves first, the larger one of two.

    Source: Belady, A study of replacement algorithms for a virtual-storage computer, 1966.
    """
    inside: set[str] = set()
    outside: set[str] = set()
    leave: list[list[str]] = [[] for _ in steps.fixed]
    back: list[tuple[str, ...]] = []
    for step, (fixed, needed) in enumerate(zip(steps.fixed, steps.needed, strict=True)):
        inside = {name for name in inside if steps.uses[name][-1] >= step}
        wanted = inside | set(needed)
        room = capacity - fixed - sum(steps.sizes[name] for name in wanted)
        by_use = sorted(inside - set(needed), key=lambda n: (_next(steps.uses[n], step), steps.sizes[n], n))
        while room < 0 and by_use:
            name = by_use.pop()
            leave[1 + max(use for use in steps.uses[name] if use < step)].append(name)  # as early as it can
            room += steps.sizes[name]
            wanted.remove(name)
            outside.add(name)
        if room < 0:
            return None
        back.append(tuple(name for name in needed if name in outside))
        inside = wanted
        outside -= set(needed)
    return [Moves(tuple(names), returning) for names, returning in zip(leave, back, strict=True)]


def least_traffic(steps: Steps, capacity: int, seconds: float) -> list[Moves] | None:
    """Moves that copy as little as any that never have more than `capacity` bytes in the arena, in this order of steps.

    Those of `furthest_first` where the time was not enough to find any; None where a step needs more.

    Source: Li et al., COSMA (arXiv 2311.18246), for a given order (`passes/cosma/residency.py`).
    """
    from dlc.passes.cosma import residency  # takes the solver along, which a program without a budget does not need
    from dlc.passes.cosma.graph import Graph, Tables, Tensor

    if steps.least > capacity:
        return None
    names = list(steps.uses)
    movable = [Tensor(n, steps.sizes[n], (steps.uses[n][0],), steps.uses[n][1:]) for n in names]
    fixed = [Tensor(f"step {step}", size, (step,)) for step, size in enumerate(steps.fixed) if size]
    order = range(len(steps.fixed))
    tables = Tables(Graph("steps", tuple(map(str, order)), (*movable, *fixed)))
    programme = residency.encode(tables, residency.total_order(order), capacity)
    answer = residency.solve(programme, seconds)
    if answer is None:
        return furthest_first(steps, capacity)
    leave: list[list[str]] = [[] for _ in order]
    back: list[list[str]] = [[] for _ in order]
    stays = [s for s in residency.decode(tables, order, programme, answer) if s[0] < len(names)]
    for (tensor, _, last), (following, first, _) in itertools.pairwise(stays):
        if following == tensor:
            leave[last + 1].append(names[tensor])
            back[first].append(names[tensor])
    return [Moves(tuple(a), tuple(b)) for a, b in zip(leave, back, strict=True)]


def restless(steps: Steps) -> list[Moves]:
    """Moves that have nothing in the arena but what the step needs, and that at an address of this step's choice."""
    alive: set[str] = set()
    inside: list[str] = []
    moves = []
    for step, needed in enumerate(steps.needed):
        alive = {name for name in alive if steps.uses[name][-1] >= step}
        leave = [name for name in inside if name in alive]
        moves.append(Moves(tuple(leave), tuple(name for name in needed if name in alive)))
        alive |= set(needed)
        inside = list(needed)
    return moves


def _next(uses: Sequence[int], step: int) -> int:
    return next(use for use in uses if use >= step)


def with_transfers(program: Program, moves: Sequence[Moves]) -> Program:
    """The program with the moves as statements."""
    body: list[Stmt] = []
    for before, stmt in zip(moves, (*program.body.body, None), strict=True):
        loc = program.loc if stmt is None else stmt.loc
        body += [Transfer(name, False, loc) for name in before.leave]
        body += [Transfer(name, True, loc) for name in before.return_]
        if stmt is not None:
            body.append(stmt)
    return replace(program, body=Region(tuple(body), program.body.yields))


def traffic_bytes(steps: Steps, moves: Sequence[Moves]) -> int:
    """Bytes that are copied: the first time a tensor leaves, and whenever one comes back."""
    out = {name for m in moves for name in m.leave}
    return sum(steps.sizes[n] for n in out) + sum(steps.sizes[n] for m in moves for n in m.return_)
