"""Reads and writes per level of one operation, counted from its loops.

A tile is loaded again whenever a loop outside it that it depends on moves on; loops inside the innermost such loop leave it
where it is. A value that many elements of an array want is read once and sent to all (multicast); partial sums of many
elements are added on the way out.

Source: Parashar et al., Timeloop, ISPASS 2019; FuseMax's artifact for what each level holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

from dlc.costmodel.spatial.binding import Bound, Plan
from dlc.costmodel.spatial.cascade import Tensor

Loop = tuple[str, int]  # rank, and which part of it: 2 and 1 outside the array, 0 over the array or inside an element


@dataclass(slots=True)
class Counts:
    """Values read and written per level: `dram`, `buffer`, `stage`, `file_2d`, `file_1d`."""

    reads: Counter[str] = field(default_factory=Counter)
    writes: Counter[str] = field(default_factory=Counter)

    def __iadd__(self, other: Counts) -> Counts:
        self.reads.update(other.reads)
        self.writes.update(other.writes)
        return self


def loops_of(plan: Plan, b: Bound, part: Literal["above", "all"]) -> list[Loop]:
    """Loops in time around an operation, outermost first, down to the buffer's tile or to one element's register."""
    nest, roles, ranks = plan.nest(b.array), plan.roles, b.op.all_ranks
    result: list[Loop] = []
    for name in nest.above + (nest.below if part == "all" else ()):
        if name == "batch":
            result += [(r, 1) for r in roles.batch if r in ranks]
        elif name.startswith("parallel"):
            result += [(roles.parallel, int(name[-1]))] if roles.parallel in ranks else []
        elif not b.outside:
            result.append((roles.stream, 1))
    if part == "all":
        if roles.stream in ranks and "stream" not in nest.space:
            result.append((roles.stream, 0))
        result += [(r, 0) for r in roles.inner(ranks)]
    return [loop for loop in result if size_of(plan, b, loop[0], (loop[1],)) > 1]  # one iteration moves nothing


def laid(plan: Plan, b: Bound) -> list[str]:
    """Ranks of an operation that lie over the array."""
    nest, roles = plan.nest(b.array), plan.roles
    names = [roles.stream if role == "stream" else roles.parallel for role in nest.space]
    return [r for r in names if r in b.op.all_ranks]


def depends(tensor: Tensor, loop: Loop, plan: Plan, stepped: bool) -> bool:
    """Whether another element of a tensor is meant when a loop moves on."""
    return loop[0] in tensor.ranks or (stepped and loop == (plan.roles.stream, 1))


def size_of(plan: Plan, b: Bound, rank: str, parts: Collection[int]) -> int:
    """How many combinations the given parts of a rank's loops have."""
    roles = plan.roles
    if rank == roles.stream:
        block = plan.block(b.array)
        whole, steps = plan.extent(rank), plan.steps(b.array)
        return {(): 1, (0,): block, (1,): steps, (0, 1): whole}[tuple(sorted(parts))]
    if rank == roles.parallel:
        held, pieces = plan.held(b), plan.pieces(b.array)
        lanes, whole = plan.lanes(b.array, "parallel"), plan.extent(rank)
        if 0 in parts and (held == 1 or 1 in parts) and (2 in parts or pieces == held):
            return whole
        outer = pieces // held if 2 in parts else 1
        return outer * (held if 1 in parts else 1) * (lanes if 0 in parts else 1)
    return plan.extent(rank) if parts else 1


def visits(plan: Plan, b: Bound, tensor: Tensor, *, stepped: bool, everywhere: bool) -> int:
    """How often values of a tensor come to (or leave) the elements' registers.

    Args:
        stepped: whether each step of the stream has a new tensor.
        everywhere: counted at every element, not once for all that get the same value.
    """
    kept = _kept(loops_of(plan, b, "all"), plan, tensor, stepped)
    spread = [(r, 0) for r in laid(plan, b) if everywhere or r in tensor.ranks]
    return _product(plan, b, [*kept, *spread])


def loads(plan: Plan, b: Bound, tensor: Tensor) -> int:
    """Values that come from memory to the buffer for an operation: whole tiles, as often as its outer loops ask."""
    kept = _kept(loops_of(plan, b, "above"), plan, tensor, tensor.stepped)
    total = 1
    parts: dict[str, set[int]] = {}
    for rank, part in kept:
        parts.setdefault(rank, set()).add(part)
    for rank in dict.fromkeys((*tensor.ranks, *parts)):
        total *= plan.extent(rank) if rank in tensor.ranks else size_of(plan, b, rank, parts[rank])
    return total


def _kept(loops: list[Loop], plan: Plan, tensor: Tensor, stepped: bool) -> list[Loop]:
    last = max((n for n, loop in enumerate(loops) if depends(tensor, loop, plan, stepped)), default=-1)
    return loops[: last + 1]


def _product(plan: Plan, b: Bound, loops: Iterable[Loop]) -> int:
    parts: dict[str, set[int]] = {}
    for rank, part in loops:
        parts.setdefault(rank, set()).add(part)
    total = 1
    for rank, found in parts.items():
        total *= size_of(plan, b, rank, found)
    return total


def points(plan: Plan, b: Bound) -> int:
    """Points of an operation's iteration space, of all steps."""
    total = 1
    for rank in b.op.all_ranks:
        total *= plan.extent(rank)
    if plan.roles.stream not in b.op.all_ranks and not b.outside:
        total *= plan.steps(b.array)
    return total


def elements(plan: Plan, b: Bound, tensor: Tensor, stepped: bool) -> int:
    """Elements of a tensor, of all steps."""
    total = plan.steps(b.array) if stepped and plan.roles.stream not in tensor.ranks else 1
    for rank in tensor.ranks:
        total *= plan.extent(rank)
    return total


def compute_counts(plan: Plan, b: Bound, *, wrapping: bool) -> Counts:
    """Accesses of the arithmetic itself and of its result; operands that must be fetched are `operand_counts`.

    Args:
        wrapping: leave out reads of absent partial sums by Timeloop's count, which wraps at 2^64.
    """
    counts = Counts()
    file = f"file_{b.array}"
    out = plan.normal.tensors[b.op.out]
    stepped = out.stepped and not plan.accumulates(b)
    at, home = points(plan, b), plan.home(b)
    folded = [r for r in laid(plan, b) if r in b.op.reduced]
    alone = elements(plan, b, out, stepped)
    first = alone
    for rank in folded:
        first *= plan.lanes(b.array, "stream" if rank == plan.roles.stream else "parallel")
    if stepped and plan.roles.stream in folded:  # one element of the result per step, at every element of the array
        first = alone // plan.steps(b.array) * plan.extent(plan.roles.stream)
    counts.reads[file] += at * len(b.op.reads) + at - first
    counts.writes[file] += at
    inside = visits(plan, b, out, stepped=stepped, everywhere=True)
    leaving = visits(plan, b, out, stepped=stepped, everywhere=False)
    counts.writes[file] += inside - first  # partial sums that come back
    partial_home = home if leaving == alone else min(home, "buffer", key=("file", "stage", "buffer", "dram").index)
    if home != "file" and partial_home != "dram" and not (b.array == "1d" and partial_home == "stage"):
        counts.writes[partial_home] += leaving
        counts.reads[partial_home] += leaving - alone
    if wrapping:
        _add_wrapped(plan, b, out, alone, home, counts)
    return counts


def _add_wrapped(plan: Plan, b: Bound, out: Tensor, alone: int, home: str, counts: Counts) -> None:
    """First reads that Timeloop's wrapping count fails to leave out."""
    tile = 1
    for rank in out.ranks:
        if rank == plan.roles.parallel:
            tile *= min(plan.lanes(b.array, "parallel") * plan.held(b), plan.extent(rank))
        elif rank == plan.roles.stream:
            tile *= plan.block(b.array) if "stream1" in plan.nest(b.array).above else plan.extent(rank)
        elif rank not in plan.roles.batch:
            tile *= plan.extent(rank)
    lost = alone - (alone * tile) % 2**64 // tile
    file = f"file_{b.array}"
    counts.reads[file] += lost
    if home != "file":
        counts.writes[file] += lost
    if home in ("buffer", "stage"):
        counts.reads[home] += lost


def operand_counts(plan: Plan, phase: int) -> Counts:
    """Fetching of operands in a phase: once per tensor, array and pass, for all operations that then have it."""
    counts = Counts()
    seen: dict[tuple[str, str, int, bool], tuple[Bound, int]] = {}
    for b in plan.of_phase(phase):
        for name in b.op.reads:
            source = plan.source(name, b)
            if source == "file" or (source == "stage" and b.array == "1d"):
                continue
            tensor = plan.normal.tensors[name]
            stepped = (tensor.stepped or tensor.kind == "state") and not b.outside
            often = visits(plan, b, tensor, stepped=stepped, everywhere=True)
            key = (name, b.array, b.pass_index, b.outside)
            if key not in seen or seen[key][1] < often:
                seen[key] = (b, often)
    for (name, array, _, _), (b, often) in seen.items():
        tensor = plan.normal.tensors[name]
        stepped = (tensor.stepped or tensor.kind == "state") and not b.outside
        counts.writes[f"file_{array}"] += often
        source = plan.source(name, b)
        if source != "dram":
            counts.reads[source] += visits(plan, b, tensor, stepped=stepped, everywhere=False)
    return counts


def memory_counts(plan: Plan, phase: int) -> Counts:
    """What a phase moves between memory and the chip."""
    counts = Counts()
    per_pass: dict[str, dict[int, tuple[int, Bound]]] = {}
    for b in plan.of_phase(phase):
        for name in b.op.reads:
            outer = not plan.made_in(name, phase) and plan.normal.tensors[name].kind != "state"
            if outer or plan.source(name, b) == "dram":
                found = loads(plan, b, plan.normal.tensors[name])
                old = per_pass.setdefault(name, {}).get(b.pass_index, (0, b))
                per_pass[name][b.pass_index] = max(old, (found, b), key=lambda pair: pair[0])
        ends = [s for s, after in plan.normal.next_of.items() if after == b.op.out and s in plan.normal.results]
        if plan.home(b) == "dram" or ends:
            counts.writes["dram"] += elements(plan, b, plan.normal.tensors[b.op.out], False)
    for name, found_in in per_pass.items():
        amounts = [n for n, _ in found_in.values()]
        total = sum(amounts) if name in plan.spilled else max(amounts)
        counts.reads["dram"] += total
        if all(plan.source(name, b) == "buffer" for _, b in found_in.values()):
            counts.writes["buffer"] += total
    return counts
