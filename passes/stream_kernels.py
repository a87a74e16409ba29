"""Contractions that feed each other through reductions become one kernel that holds a block of points and streams the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.bit_sums import packed_sum
from dlc.ir.einsum import Einsum, Scan, Step, TensorType, flat
from dlc.ir.expr import Access
from dlc.ir.extent import Var
from dlc.ir.facts import Facts
from dlc.ir.products import factors
from dlc.ir.program import Launch, Program, Region, Stmt, tensor_types
from dlc.ir.streamed import FEWEST, dimensions, lane_rank, moves_one_operand
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.kernels import Kernels
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.rank_alignment import Alignment
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
    operand of every contraction, and has a few points at least. What a point of that rank needs in the core's cache
    is at most `lane_bytes`. Other scans become loops of launches later.

    Source: Nayak et al., FuseMax, MICRO 2024 (arXiv 2406.10491): inside a pass Einsums may be fused without limit.
    """

    name: ClassVar[str] = "stream-kernels"
    lane_bytes: int = 12288

    def __post_init__(self) -> None:
        if self.lane_bytes < 1:
            raise BadOption(option="lane_bytes", name=self.name, wanted="at least 1", value=self.lane_bytes)

    def apply(self, program: Program) -> Program:
        program = explicit_domains(program)
        streams = Streams(program, self.lane_bytes)
        body = map_regions(program, streams.region)
        return drop_dead(replace(body, kernels=tuple(streams.kernels.table.values())))


class Streams:
    """Finds streaming kernels in the regions of a program.

    Attributes:
        reason: why the last statement that was looked at begins no kernel.
        types: of the program's tensors, or those given, which may become more.
        cautious: whether a scan, too, needs to know that there are points enough for the lanes.
    """

    def __init__(
        self, program: Program, lane_bytes: int, types: dict[str, TensorType] | None = None, cautious: bool = False
    ) -> None:
        self.lane_bytes, self.reason, self.cautious = lane_bytes, "", cautious
        self.facts = Facts({}, program.facts)
        self.types = tensor_types(program) if types is None else types
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
            self.reason = "it begins from something else than constants, or contracts a weight"
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
        if packed_sum(step, self.types) is not None:
            return False  # a stream of packed weights has a kernel of its own
        if factors(step) is not None and not self._contracts_activations(step):
            return False
        before, after = Alignment([*steps]), Alignment([*steps, step])
        if step.reduce is not None and len(_products(before.steps)) > 1 and len(after.tasks) < len(before.tasks):
            return False  # a sum over what the tasks are apart in, such as the heads, is a kernel of its own
        if after.broken - before.broken or not _reads_whole_ranks(steps, step):
            return False
        named, outer = after.renamed()
        return any(moves_one_operand(name, _products(named)) for name in outer)

    # --- the kernel ---

    def _kernel(self, steps: Sequence[Step]) -> tuple[list[Step], tuple[str, ...]] | None:
        """The steps with canonical ranks and the task ranks; None, and a reason, when they do not make a streaming kernel."""
        renamed_steps, outer = Alignment(steps).renamed()
        self.reason = self._obstacle(renamed_steps, outer)
        return None if self.reason else (share_scales(renamed_steps), outer)

    def _obstacle(self, steps: Sequence[Step], outer: Sequence[str]) -> str:
        """Why the steps make no streaming kernel of tasks along `outer`; empty when they do."""
        lane = lane_rank(steps, outer)
        if lane is None:
            return "no rank that all steps have moves one operand of each contraction"
        points = next(r.extent for s in flat(steps) for r in s.ranks if r.name == lane)
        if points.const is not None and points.const < FEWEST:
            return f"the rank that moves one operand of each contraction has {points} points, fewer than {FEWEST}"
        sums, made = _products(steps), dimensions(steps)
        if any(r in self.types and not self.types[r].row_major for s in flat(steps) for r in s.reads if r not in made):
            return "it is given a tensor in a layout of its own, where what a launch reads is row-major"
        if any(a.tensor in self.constants for pair in sums for a in pair):
            return "an operand is a weight, which is packed: its rows are worth more in the lanes"
        running = any(isinstance(s, Scan) for s in steps)
        if not running and len(sums) < 2:
            return "there is one contraction"
        if (self.cautious or not running) and not self.facts.nonneg(points - FEWEST):
            return f"'{lane}' may have a point or two, with which contractions by themselves are faster"
        if any(factors(s) is not None and not s.dtype.is_float for s in flat(steps)):
            return "it contracts integers"
        size = _lane_bytes(steps, outer, running)
        if size is None:
            return "it keeps a fibre whose length is not known"
        if size > self.lane_bytes:
            return f"a point along the lanes needs {size} bytes in the cache, more than {self.lane_bytes}"
        return ""


def _products(steps: Sequence[Step]) -> list[tuple[Access, Access]]:
    """The operands of each contraction."""
    return [f for s in flat(steps) if (f := factors(s)) is not None]


def _lane_bytes(steps: Sequence[Step], outer: Sequence[str], running: bool) -> int | None:
    """Bytes that `steps` make for one point along the lanes; a width that is not known counts as 64.

    None for a fibre of unknown length: a `running` form has none, it keeps a block of it.
    """
    total = 0
    for step in flat(steps):
        size = sum(t.bytes for t in step.dtypes)
        for r in step.ranks:
            if r.name in outer:
                continue
            if r.extent.const is None and not running:
                return None
            size *= 64 if r.extent.const is None else r.extent.const
        total += size
    return total


def _reads_whole_ranks(steps: Sequence[Step], step: Einsum) -> bool:
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


__all__ = ["StreamKernels", "Streams"]
