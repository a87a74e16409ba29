"""Contractions that feed each other through reductions become one kernel that holds a block of points and streams the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.einsum import Einsum, Rank, Scan, Step
from dlc.ir.extent import IntExpr, Var
from dlc.ir.program import Launch, Program, Region, Stmt, tensor_types
from dlc.ir.rename import rename_einsum
from dlc.ir.streamed import dimensions, factors, flat, lane_rank, moves_one_operand
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.kernels import Kernels
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.rewrite import drop_dead, map_regions
from dlc.passes.shared_scale import share_scales


@dataclass(frozen=True)
class StreamKernels(Pass):
    """Run contractions that read each other through other steps as one kernel.

        QK[h, p, m] = sum(e) Q[h, p, e] * K[h, m, e]        kernel over (h, p): what is made for a block
        ...                                           ->    of p stays in the core's cache
        AV[h, p, f] = sum(m) A[h, p, m] * V[h, m, f]

    A scale that all readers of a contraction share becomes a step that runs on its tile (`shared_scale`).

    Where it applies: a scan (a running reduction), or a straight run with two contractions of tensors that are no constants;
    each step has the task ranks, and reads what the kernel makes at its own task; one task rank moves only one
    operand of every contraction. What a block of that rank needs has to fit in `block_bytes`. Other scans become
    loops of launches later.

    Source: Nayak et al., FuseMax, MICRO 2024 (arXiv 2406.10491): inside a pass Einsums may be fused without limit.
    """

    name: ClassVar[str] = "stream-kernels"
    lanes: int = 64
    block_bytes: int = 786432
    least: int = 8

    def __post_init__(self) -> None:
        for option, value in (("lanes", self.lanes), ("block_bytes", self.block_bytes), ("least", self.least)):
            if value < 1:
                raise BadOption(option=option, name=self.name, wanted="at least 1", value=value)

    def apply(self, program: Program) -> Program:
        program = explicit_domains(program)
        streams = Streams(program, self)
        body = map_regions(program, streams.region)
        return drop_dead(replace(body, kernels=tuple(streams.kernels.table.values())))


class Streams:
    """Finds streaming kernels in the regions of a program."""

    def __init__(self, program: Program, options: StreamKernels) -> None:
        self.options = options
        self.types = tensor_types(program)
        self.constants = {c.name for c in program.consts}
        self.kernels = Kernels(self.types, dict(program.facts), program.kernel_table)

    def region(self, region: Region) -> Region:
        body = list(region.body)
        position = 0
        while position < len(body):
            found = self.kernel_at(body, position, set(region.yields))
            if found is not None:
                members, launch = found
                body[position] = launch
                body = [s for n, s in enumerate(body) if n == position or n not in members]
            position += 1
        same = len(body) == len(region.body) and all(a is b for a, b in zip(body, region.body, strict=True))
        return region if same else Region(tuple(body), region.yields)

    def kernel_at(self, body: Sequence[Stmt], start: int, needed: set[str]) -> tuple[set[int], Launch] | None:
        """(the statements that run as one kernel, its launch) when one begins at `start`."""
        stmt = body[start]
        if isinstance(stmt, Scan):
            firsts = self._first_values(body, start, stmt)
            seeds: list[Step] = [*firsts, stmt] if firsts is not None else []
        else:
            seeds = [stmt] if isinstance(stmt, Einsum) and self._contracts_activations(stmt) else []
        if not seeds:
            return None
        members, steps = self._grow(body, start, seeds)
        kernel = self._kernel(steps)
        if kernel is None:
            return None
        outside = needed | {r for n, s in enumerate(body) if n not in members for r in s.reads}
        made = [o for s in steps for o in s.outs]
        started = {c.init for s in steps if isinstance(s, Scan) for c in s.carries}
        results = [o for o in made if o in outside and o not in started]
        renamed_steps, outer = kernel
        ranks = {r.name: r.name for s in flat(renamed_steps) for r in s.all_ranks}
        ranks |= {s.rank.name: s.rank.name for s in renamed_steps if isinstance(s, Scan)}
        return members, self.kernels.launch(renamed_steps, ranks, outer, results)

    def _contracts_activations(self, step: Einsum) -> bool:
        operands = factors(step)
        return operands is not None and self.constants.isdisjoint(a.tensor for a in operands)

    def _first_values(self, body: Sequence[Stmt], position: int, scan: Scan) -> list[Einsum] | None:
        """The Einsums of constants that the scan starts from; None when it starts from anything else."""
        makers = {o: s for s in body[:position] if isinstance(s, Einsum) for o in s.outs}
        found = [makers.get(c.init) for c in scan.carries]
        inits = [c.init for c in scan.carries]
        if len(set(inits)) != len(inits) or scan.stacked:
            return None
        if any(m is None or m.reads or len(m.outs) != 1 for m in found):
            return None
        return [m for m in found if m is not None]

    def _grow(self, body: Sequence[Stmt], start: int, seeds: list[Step]) -> tuple[set[int], list[Step]]:
        """The statements from `start` on that can run in the tasks of `seeds`, one after the other."""
        members, steps = {start}, seeds
        made = {o for s in steps for o in s.outs}
        # not to be read: what statements after the launch make that are not part of it, and what states lie in
        late = {c.init for s in steps if isinstance(s, Scan) for c in s.carries}
        for n in range(start + 1, len(body)):
            stmt = body[n]
            reads = set(stmt.reads)
            fits = isinstance(stmt, Einsum) and stmt.write is None and reads & made and not reads & late
            if fits and isinstance(stmt, Einsum) and self._may_follow(steps, stmt):
                members.add(n)
                steps = [*steps, stmt]
                made |= set(stmt.outs)
            else:
                late |= set(stmt.outs)
        return members, steps

    def _may_follow(self, steps: Sequence[Step], step: Einsum) -> bool:
        """Whether the tasks stay what they are with `step`, but for ranks that it reduces."""
        if factors(step) is not None and not self._contracts_activations(step):
            return False
        before, after = Alignment([*steps]), Alignment([*steps, step])
        if step.reduce is not None and _sums(before.steps) > 1 and len(after.tasks) < len(before.tasks):
            return False  # a sum over what the tasks are apart in, such as the heads, is a kernel of its own
        if after.broken - before.broken or not _no_new_inner_task(steps, step, before):
            return False
        named, outer = after.renamed()
        sums = [f for s in flat(named) if (f := factors(s)) is not None]
        return any(moves_one_operand(name, sums) for name in outer)

    # --- the kernel ---

    def _kernel(self, steps: Sequence[Step]) -> tuple[list[Step], tuple[str, ...]] | None:
        """The steps with canonical ranks and the task ranks; None when they do not make a streaming kernel."""
        alignment = Alignment(steps)
        if not alignment.tasks:
            return None
        renamed_steps, outer = alignment.renamed()
        lane = lane_rank(renamed_steps, outer)
        if lane is None or not self._fits(renamed_steps, outer, lane):
            return None
        sums = [f for s in flat(renamed_steps) if (f := factors(s)) is not None]
        if any(a.tensor in self.constants for pair in sums for a in pair):
            return None  # weights are packed, and their rows are worth more in the lanes
        scans = [s for s in renamed_steps if isinstance(s, Scan)]
        if not scans and len(sums) < 2:
            return None
        return share_scales(renamed_steps), outer

    def _fits(self, steps: Sequence[Step], outer: Sequence[str], lane: str) -> bool:
        extents = {r.name: r.extent for s in flat(steps) for r in s.ranks}
        if (extents[lane].const or self.options.least) < self.options.least:
            return False
        total = 0
        running = any(isinstance(s, Scan) for s in steps)
        for step in flat(steps):
            if not all(t.is_float for t in step.dtypes) and factors(step) is not None:
                return False
            for dtype in step.dtypes:
                size = dtype.bytes * self.options.lanes
                for r in step.ranks:
                    if r.extent.const is None and r.name not in outer and not running:
                        return False  # a fibre of any length; a running form keeps a block of it, and widths
                    size *= 1 if r.name in outer else r.extent.const or self.options.lanes
                total += size
        return total <= self.options.block_bytes


def _sums(steps: Sequence[Step]) -> int:
    return sum(factors(s) is not None for s in flat(steps))


def _no_new_inner_task(steps: Sequence[Step], step: Einsum, before: Alignment) -> bool:
    """Whether `step` reads what the steps make at ranks of its own, not at pieces of them."""
    dims = dimensions(steps)
    ranks = {r.name for r in step.all_ranks}
    for a in step.accesses():
        if a.tensor not in dims:
            continue
        if a.default is not None:
            return False
        for i in a.index:
            if i.const is None and not (isinstance(i.atom, Var) and i.atom.name in ranks):
                return False
    return True


class Alignment:
    """Which ranks of the steps of a kernel are the same, by the dimensions through which they read each other.

    Attributes:
        broken: dimensions (tensor, position) that are read at something else than one rank.
        tasks: classes of ranks that every step has as one of its free ranks.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = tuple(steps)
        self.einsums = list(flat(steps))
        self.parent: dict[object, object] = {}
        self.broken: set[tuple[str, int]] = set()
        self._dims(steps)
        for n, step in enumerate(self.einsums):
            self._reads(n, step)
        self.extents: dict[object, IntExpr] = {}
        for n, step in enumerate(self.einsums):
            for r in step.all_ranks:
                self.extents.setdefault(self.find((n, r.name)), r.extent)
        self.tasks = self._tasks()

    def find(self, node: object) -> object:
        root = node
        while self.parent.setdefault(root, root) != root:
            root = self.parent[root]
        while self.parent[node] != root:
            self.parent[node], node = root, self.parent[node]
        return root

    def _union(self, a: object, b: object) -> None:
        self.parent[self.find(a)] = self.find(b)

    def _dims(self, steps: Sequence[Step]) -> None:
        """Dimensions of what is made, tied to the ranks of the step that makes it, and of states to each other."""
        numbers = {id(s): n for n, s in enumerate(self.einsums)}
        self.made: set[str] = set()

        def visit(step: Step) -> None:
            if isinstance(step, Einsum):
                for out in step.outs:
                    self.made.add(out)
                    for k, r in enumerate(step.ranks):
                        self._union(("dim", out, k), (numbers[id(step)], r.name))
                return
            for inner in step.body:
                visit(inner)
            rank_of = {o: len(s.ranks) for s in flat(step.body) for o in s.outs}
            for carry, after, final in zip(step.carries, step.yields, step.finals, strict=True):
                self.made |= {carry.name, final}
                for k in range(rank_of.get(after, 0)):
                    for name in (carry.name, carry.init, final):
                        self._union(("dim", name, k), ("dim", after, k))

        for step in steps:
            visit(step)

    def _reads(self, number: int, step: Einsum) -> None:
        ranks = {r.name: r.extent for r in step.all_ranks}
        for a in step.accesses():
            if a.tensor not in self.made:
                continue
            for k, i in enumerate(a.index):
                if isinstance(i.atom, Var) and i.atom.name in ranks:
                    self._union(("dim", a.tensor, k), (number, i.atom.name))
                elif i.const is None or i.const != 0:
                    self.broken.add((a.tensor, k))

    def _tasks(self) -> dict[object, IntExpr]:
        reduced = {self.find((n, r.name)) for n, s in enumerate(self.einsums) for r in s.reduced}
        broken = {self.find(("dim", t, k)) for t, k in self.broken}
        found: dict[object, IntExpr] = {}
        for r in self.einsums[-1].ranks:
            root = self.find((len(self.einsums) - 1, r.name))
            if root in reduced or root in broken or r.extent.const == 1:
                continue
            counts = [sum(self.find((n, x.name)) == root for x in s.ranks) for n, s in enumerate(self.einsums)]
            same = all(
                x.extent == r.extent
                for n, s in enumerate(self.einsums)
                for x in s.ranks
                if self.find((n, x.name)) == root
            )
            if same and all(c == 1 for c in counts):
                found[root] = r.extent
        return found

    def renamed(self) -> tuple[list[Step], tuple[str, ...]]:
        """The steps with one name per class of ranks, and the names of the task ranks."""
        names: dict[object, str] = {root: f"o{n}" for n, root in enumerate(self.tasks)}
        outer = tuple(names.values())
        count = 0
        numbers = {id(s): n for n, s in enumerate(self.einsums)}

        def einsum(step: Einsum, outside: Mapping[str, str]) -> Einsum:
            nonlocal count
            n = numbers[id(step)]
            own: dict[str, str] = {}
            for r in step.all_ranks:
                root = self.find((n, r.name))
                name = names.get(root)
                if name is None or name in own.values() or (name in used and used[name] != r.extent):
                    name = f"r{count}"
                    count += 1
                    names.setdefault(root, name)
                own[r.name] = name
                used[name] = r.extent
            return rename_einsum(step, {**outside, **own}, {})

        def visit(step: Step, outside: Mapping[str, str]) -> Step:
            if isinstance(step, Einsum):
                return einsum(step, outside)
            inner = {**outside, step.rank.name: f"s{len(outside)}"}
            body = tuple(visit(s, inner) for s in step.body)
            return replace(step, rank=Rank(inner[step.rank.name], step.rank.extent), body=body)

        used: dict[str, IntExpr] = dict(zip(outer, self.tasks.values(), strict=True))
        return [visit(s, {}) for s in self.steps], outer


__all__ = ["Alignment", "StreamKernels", "Streams"]
