"""Transfers that keep a program's arena below a budget: what leaves it when, when it comes back, and in which order kernels run.

A statement of the program's body is a step: what it reads and writes has to be in the arena during it; everything else
that is alive may wait outside. Only a tensor with a buffer of its own can leave; what control flow knows by its address
(carries, results of branches) stays. A tensor that has left once has its copy outside for good, for tensors do not
change: it costs one copy out, and one back per return. Launches alone may run in another order.

A step that alone needs more than the budget cannot have all its tensors in the arena. Some of them then never enter it:
kernels read and write them where they lie outside, which a mapped file allows.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from dlc.ir.memory import AtBuffer, MemoryPlan
from dlc.ir.program import Launch, Program, Region, Stmt, Transfer
from dlc.passes.schedule import Heirs

if TYPE_CHECKING:
    from dlc.passes.cosma.graph import Graph
    from dlc.passes.cosma.plan import Stay


@dataclass(frozen=True, slots=True)
class Steps:
    """What a program's statements need in the arena; the last step is the program's end.

    Attributes:
        uses: steps that need each tensor that can leave, rising; it is made in the first.
        sizes: bytes of each of them; none of what never enters the arena.
        fixed: bytes that each step needs for what cannot leave.
        takes: by tensor an operand of the step that makes it, in whose storage it may lie if nothing else needs that.
        waits: pairs of steps of which the first has to come first, besides those that `uses` says.
    """

    uses: Mapping[str, tuple[int, ...]]
    sizes: Mapping[str, int]
    fixed: tuple[int, ...]
    takes: Mapping[str, str] = field(default_factory=dict)
    waits: frozenset[tuple[int, int]] = frozenset()

    @property
    def needed(self) -> list[list[str]]:
        """Tensors that each step needs."""
        needed: list[list[str]] = [[] for _ in self.fixed]
        for name, uses in self.uses.items():
            for step in uses:
                needed[step].append(name)
        return needed

    def need(self, step: int, needed: Collection[str]) -> int:
        """Bytes that a step needs for these of its tensors, in the given order of steps."""
        found = self.fixed[step] + sum(self.sizes[name] for name in needed)
        for name in needed:
            old = self.takes.get(name)
            if old is not None and old in needed and self.uses[name][0] == step and self.uses[old][-1] == step:
                found -= self.sizes[old]
        return found

    @property
    def least(self) -> int:
        """The most that a step needs: no lower budget lets every step have all its tensors in the arena, in this order."""
        return max((self.need(step, needed) for step, needed in enumerate(self.needed)), default=0)

    def without(self, outside: Collection[str]) -> Steps:
        """The steps when some tensors never enter the arena."""
        return replace(
            self,
            sizes={name: 0 if name in outside else size for name, size in self.sizes.items()},
            takes={new: old for new, old in self.takes.items() if new not in outside and old not in outside},
        )


@dataclass(frozen=True, slots=True)
class Moves:
    """What happens before a step: first the tensors that leave, then those that come back."""

    leave: tuple[str, ...] = ()
    return_: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Transfers:
    """A plan.

    Attributes:
        order: of the steps.
        moves: those before each step, in that order.
        offsets: by tensor, addresses of its stays in the arena, where they were planned.
        settled: whether addresses cost nothing, so that less room would not be better.
    """

    order: tuple[int, ...]
    moves: tuple[Moves, ...]
    offsets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    settled: bool = False


def steps_of(program: Program, memory: MemoryPlan, sizes: Sequence[int], heirs: Heirs | None = None) -> Steps:
    """The steps of a program without transfers.

    Args:
        memory: every tensor in a buffer of its own.
        sizes: bytes of the buffers.
        heirs: operands whose storage results of launches may take over.
    """
    body = program.body.body
    owner = {p.index: name for name, p in memory.places.items() if isinstance(p, AtBuffer) and p.index not in memory.pinned}
    index_of = {name: index for index, name in owner.items()}
    uses: dict[str, dict[int, None]] = {}
    for step, stmt in enumerate(body):
        for name in (*stmt.outs, *stmt.reads):
            if name in index_of:
                uses.setdefault(name, {})[step] = None
    end = len(body)
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
    steps = Steps(
        {name: tuple(steps) for name, steps in uses.items()},
        {name: sizes[index_of[name]] for name in uses},
        tuple(fixed),
        waits=_waits(program, uses, any(fixed)),
    )
    return replace(steps, takes=_taken(program, steps, heirs or {}))


def _waits(program: Program, uses: Collection[str], fixed: bool) -> frozenset[tuple[int, int]]:
    """What has to wait for what, where no tensor that can leave says so."""
    body = program.body.body
    end = len(body)
    if fixed or not all(isinstance(stmt, Launch) for stmt in body):
        return frozenset(itertools.pairwise(range(end + 1)))
    made = {name: step for step, stmt in enumerate(body) for name in stmt.outs if name not in uses}
    waits = {(made[name], step) for step, stmt in enumerate(body) for name in stmt.reads if name in made}
    read = {name for stmt in body for name in stmt.reads}
    return frozenset(waits | {(step, end) for step, stmt in enumerate(body) if read.isdisjoint(stmt.outs)})


def _taken(program: Program, steps: Steps, heirs: Heirs) -> dict[str, str]:
    """For each result one of its heirs' operands, rather one that is not needed later; no operand for two results of a launch."""
    found: dict[str, str] = {}
    for step, stmt in enumerate(program.body.body):
        for name in stmt.outs:
            taken = {found.get(other) for other in stmt.outs}
            fit = [o for o in heirs.get(name, ()) if o in steps.uses and o not in taken]
            fit = [o for o in fit if steps.sizes[o] == steps.sizes.get(name) and stmt.reads.count(o) == 1]
            if fit:
                found[name] = min(fit, key=lambda o: steps.uses[o][-1] != step)
    return found


def kept_outside(steps: Steps, capacity: int) -> frozenset[str]:
    """Tensors without which every step fits in `capacity` bytes, few and small.

    Where a step needs too much, the smallest tensor whose absence is enough stays outside, or the largest of all.
    Tensors that take part in many such steps count for all of them at once, for the steps are looked at in turn.
    """
    outside: set[str] = set()
    for step, needed in enumerate(steps.needed):
        inside = sorted((name for name in needed if name not in outside), key=lambda n: (steps.sizes[n], n))
        while inside and steps.need(step, inside) > capacity:
            enough = (n for n in inside if steps.need(step, [other for other in inside if other != n]) <= capacity)
            name = next(enough, inside[-1])
            inside.remove(name)
            outside.add(name)
    return frozenset(outside)


def least_traffic(steps: Steps, capacity: int, seconds: float) -> Transfers:
    """Order, transfers and addresses that copy as little as any that never have more than `capacity` bytes in the arena.

    In `seconds`; the given order with its best transfers is among the plans that are looked at first.

    Source: Li et al., COSMA (arXiv 2311.18246).
    """
    from dlc.passes.cosma.optimise import (
        optimise,  # takes the solver along, which a program without a budget does not need
    )

    names = list(steps.uses)
    found = optimise(_graph(steps), capacity, seconds)
    order = found.plan.order
    leave: list[list[str]] = [[] for _ in order]
    back: list[list[str]] = [[] for _ in order]
    stays: dict[str, list[Stay]] = {}
    for stay in sorted(found.plan.stays, key=lambda s: (s.tensor, s.first)):
        if stay.tensor < len(names) and steps.sizes[names[stay.tensor]]:
            stays.setdefault(names[stay.tensor], []).append(stay)
    for name, of in stays.items():
        for before, after in itertools.pairwise(of):
            leave[before.last + 1].append(name)
            back[after.first].append(name)
    offsets = {name: tuple(s.offset for s in of) for name, of in stays.items()}
    moves = tuple(Moves(tuple(a), tuple(b)) for a, b in zip(leave, back, strict=True))
    return Transfers(order, moves, offsets, found.method == "search")


def _graph(steps: Steps) -> Graph:
    from dlc.passes.cosma.graph import Graph, Tensor

    place = {name: at for at, name in enumerate(steps.uses)}
    tensors = [
        Tensor(name, steps.sizes[name], uses[:1], uses[1:], takes=place.get(steps.takes.get(name, "")))
        for name, uses in steps.uses.items()
    ]
    tensors += [Tensor(f"step {step}", size, (step,)) for step, size in enumerate(steps.fixed) if size]
    tensors += [Tensor(f"{first} before {then}", 0, (first,), (then,)) for first, then in sorted(steps.waits)]
    return Graph("steps", tuple(map(str, range(len(steps.fixed)))), tuple(tensors))


def restless(steps: Steps) -> Transfers:
    """Moves that have nothing in the arena but what the step needs, and that at an address of this step's choice."""
    alive: set[str] = set()
    inside: list[str] = []
    moves = []
    for step, needed in enumerate(steps.needed):
        needed = [name for name in needed if steps.sizes[name]]
        alive = {name for name in alive if steps.uses[name][-1] >= step}
        leave = [name for name in inside if name in alive]
        moves.append(Moves(tuple(leave), tuple(name for name in needed if name in alive)))
        alive |= set(needed)
        inside = list(needed)
    return Transfers(tuple(range(len(steps.fixed))), tuple(moves))


def with_transfers(program: Program, plan: Transfers) -> Program:
    """The program in the plan's order, with its moves as statements."""
    body: list[Stmt] = []
    for step, before in zip(plan.order, plan.moves, strict=True):
        stmt = program.body.body[step] if step < len(program.body.body) else None
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
