"""A brute-force count of accesses: the mapped loops are walked point by point, with the contents of every register and tile.

It takes from the plan what a mapping says (loops, arrays, where a tensor lives, tile sizes) and none of the analytic counts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from dlc.costmodel.spatial.binding import Bound, Plan
from dlc.costmodel.spatial.count import Counts

Point = dict[str, int]
Element = tuple[int, ...]


def time_steps(plan: Plan, b: Bound, names: tuple[str, ...]) -> Iterator[dict[str, int]]:
    """Indices of the loops in time, in order; `@2`, `@1` and `@step` are the parts outside the array."""
    roles, ranks = plan.roles, b.op.all_ranks
    axes: list[tuple[str, int]] = []
    for name in names:
        if name == "batch":
            axes += [(r, plan.extent(r)) for r in roles.batch if r in ranks]
        elif name == "parallel2" and roles.parallel in ranks:
            axes.append(("@2", plan.pieces(b.array) // plan.held(b)))
        elif name == "parallel1" and roles.parallel in ranks:
            axes.append(("@1", plan.held(b)))
        elif name == "stream1" and not b.outside:
            axes.append(("@step", plan.steps(b.array)))
    for at in itertools.product(*(range(n) for _, n in axes)):
        yield dict(zip((a for a, _ in axes), at, strict=True))


def inner_steps(plan: Plan, b: Bound) -> Iterator[dict[str, int]]:
    """Indices of what one element of the array walks by itself; `@block` inside a block of the stream."""
    axes: list[tuple[str, int]] = []
    if plan.roles.stream in b.op.all_ranks and "stream" not in plan.nest(b.array).space:
        axes.append(("@block", plan.block(b.array)))
    axes += [(r, plan.extent(r)) for r in plan.roles.inner(b.op.all_ranks)]
    for at in itertools.product(*(range(n) for _, n in axes)):
        yield dict(zip((a for a, _ in axes), at, strict=True))


def places(plan: Plan, b: Bound) -> list[dict[str, int]]:
    """Elements of the array that the operation uses."""
    axes: list[tuple[str, int]] = []
    for role in plan.nest(b.array).space:
        rank = plan.roles.stream if role == "stream" else plan.roles.parallel
        if rank in b.op.all_ranks:
            axes.append(("@block" if role == "stream" else "@lane", plan.lanes(b.array, role)))
    return [dict(zip((a for a, _ in axes), at)) for at in itertools.product(*(range(n) for _, n in axes))]


def point(plan: Plan, b: Bound, at: dict[str, int]) -> Point | None:
    """The point of the iteration space, None past its edge."""
    roles, ranks = plan.roles, b.op.all_ranks
    found = {r: at[r] for r in ranks if r not in (roles.stream, roles.parallel)}
    found["@step"] = at.get("@step", 0)
    if roles.parallel in ranks:
        lanes = plan.lanes(b.array, "parallel")
        found[roles.parallel] = (at.get("@2", 0) * plan.held(b) + at.get("@1", 0)) * lanes + at.get("@lane", 0)
        if found[roles.parallel] >= plan.extent(roles.parallel):
            return None
    if roles.stream in ranks:
        found[roles.stream] = at.get("@step", 0) * plan.block(b.array) + at["@block"]
        if found[roles.stream] >= plan.extent(roles.stream):
            return None
    return found


def element(plan: Plan, name: str, at: Point, stepped: bool) -> Element:
    ranks = plan.normal.tensors[name].ranks
    own = tuple(at[r] for r in ranks)
    return (*own, at["@step"]) if stepped and plan.roles.stream not in ranks else own


def is_stepped(plan: Plan, name: str, b: Bound) -> bool:
    tensor = plan.normal.tensors[name]
    return (tensor.stepped or tensor.kind == "state") and not b.outside


class Registers:
    """One register per element of the array for one tensor; values that move at the same time to many count once outside."""

    def __init__(self) -> None:
        self.held: dict[int, Element] = {}
        self.into, self.sent = 0, 0

    def want(self, wanted: dict[int, Element]) -> tuple[dict[int, Element], dict[int, Element]]:
        """(what leaves, what comes) per place."""
        comes = {p: e for p, e in wanted.items() if self.held.get(p) != e}
        leaves = {p: e for p, e in self.held.items() if comes and wanted.get(p) != e}  # a tile is replaced whole
        self.held = {p: e for p, e in self.held.items() if p not in leaves} | comes
        self.into += len(comes)
        self.sent += len(set(comes.values()))
        return leaves, comes


def walk_operation(plan: Plan, b: Bound) -> tuple[Counts, dict[str, Registers]]:
    """Accesses of one operation's arithmetic and result, and the traffic of each operand's registers."""
    counts = Counts()
    file, nest, where = f"file_{b.array}", plan.nest(b.array), places(plan, b)
    stepped = is_stepped(plan, b.op.out, b) and not plan.accumulates(b)
    operands = {name: Registers() for name in b.op.reads}
    result = Registers()
    touched: set[tuple[int, Element]] = set()
    left: Counter[Element] = Counter()
    back = 0
    for outer in time_steps(plan, b, nest.above + nest.below):
        for inner in inner_steps(plan, b):
            now = {
                n: at
                for n, place in enumerate(where)
                if (at := point(plan, b, {**outer, **inner, **place})) is not None
            }
            for name, registers in operands.items():
                registers.want({n: element(plan, name, at, is_stepped(plan, name, b)) for n, at in now.items()})
            leaves, comes = result.want({n: element(plan, b.op.out, at, stepped) for n, at in now.items()})
            left.update(set(leaves.values()))
            again = {(n, e) for n, e in comes.items() if (n, e) in touched}
            counts.writes[file] += len(again)
            back += len({e for _, e in again})
            for n, e in result.held.items():
                if n in now:
                    counts.reads[file] += len(b.op.reads) + ((n, e) in touched)
                    counts.writes[file] += 1
                    touched.add((n, e))
    left.update(set(result.held.values()))
    home = plan.home(b)
    drained = sum(left.values())
    if drained > len(left):
        home = min(home, "buffer", key=("file", "stage", "buffer", "dram").index)
    if home not in ("file", "dram") and not (home == "stage" and b.array == "1d"):
        counts.writes[home] += drained
        counts.reads[home] += drained - len(left)
    return counts, operands


def walk_phase(plan: Plan, phase: int) -> Counts:
    """All accesses of a phase."""
    counts = Counts()
    fetched: dict[Any, tuple[Registers, Bound]] = {}
    for b in plan.of_phase(phase):
        own, operands = walk_operation(plan, b)
        counts += own
        for name, registers in operands.items():
            source = plan.source(name, b)
            if source == "file" or (source == "stage" and b.array == "1d"):
                continue
            key = (name, b.array, b.pass_index, b.outside)
            if key not in fetched or fetched[key][0].into < registers.into:
                fetched[key] = (registers, b)
    for (name, array, _, _), (registers, b) in fetched.items():
        counts.writes[f"file_{array}"] += registers.into
        if plan.source(name, b) != "dram":
            counts.reads[plan.source(name, b)] += registers.sent
    counts += walk_memory(plan, phase)
    return counts


def walk_memory(plan: Plan, phase: int) -> Counts:
    """Tiles that come to the buffer, each compared with the one that is there, and what is stored."""
    counts = Counts()
    loaded: dict[str, dict[int, int]] = {}
    for b in plan.of_phase(phase):
        for name in b.op.reads:
            outer = name not in plan.producer or plan.producer[name].phase != phase
            if outer or plan.source(name, b) == "dram":
                by_pass = loaded.setdefault(name, {})
                by_pass[b.pass_index] = max(by_pass.get(b.pass_index, 0), tiles_loaded(plan, b, name))
        finals = {s for s, after in plan.normal.next_of.items() if after == b.op.out}
        if plan.home(b) == "dram" or finals & set(plan.normal.results):
            size = 1
            for rank in plan.normal.tensors[b.op.out].ranks:
                size *= plan.extent(rank)
            counts.writes["dram"] += size
    for name, by_pass in loaded.items():
        total = sum(by_pass.values()) if name in plan.spilled else max(by_pass.values())
        counts.reads["dram"] += total
        if all(plan.source(name, b) == "buffer" for b in plan.readers(name, phase)):
            counts.writes["buffer"] += total
    return counts


def tiles_loaded(plan: Plan, b: Bound, name: str) -> int:
    nest, total = plan.nest(b.array), 0
    held: set[Element] = set()
    below = Bound(b.op, b.array, b.pass_index, b.phase, 0, frozenset(), b.outside)
    for outer in time_steps(plan, b, nest.above):
        wanted = set()
        for middle in time_steps(plan, below, tuple(n for n in nest.below)):
            for inner in inner_steps(plan, b):
                for place in places(plan, b):
                    at = point(plan, b, {**outer, **middle, **inner, **place})
                    if at is not None:
                        wanted.add(element(plan, name, at, stepped=False))
        if wanted and wanted != held:
            total += len(wanted)
            held = wanted
    return total
