"""Pass reduction as a choice: the running form where a kernel can hold what it carries, the plain cascade elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import ClassVar

from dlc.ir.einsum import Einsum, Scan, flat
from dlc.ir.extent import IntExpr
from dlc.ir.facts import Facts
from dlc.ir.products import factors
from dlc.ir.program import Program, Stmt
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.lone_folds import lone_folds
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.reduction_chains import Chain, Kind
from dlc.passes.refusals import Reason, Refusal
from dlc.passes.running_plan import Plan
from dlc.passes.running_reduction import Rewriter, whole_reads
from dlc.passes.stream_kernels import StreamKernels, Streams


@dataclass(frozen=True)
class ReducePasses(Pass):
    """`running-reduction` where it pays: the derived scan runs inside the tasks of one kernel (`stream-kernels`).

    A cascade of several passes over a rank keeps that rank's fibres, and contractions between the passes put them into
    memory; the running form keeps a block. A chain without contractions gains nothing from it here: its fibres are rows that
    lie in a core's cache anyway, and each block costs a correction. So it is derived for those scans alone that stream.
    A cascade of one pass keeps its fibres, too, where a contraction makes what the next one sums: it gets the scan without
    the corrections (`lone_folds`).

    Source: Nayak et al., FuseMax, MICRO 2024 (arXiv 2406.10491).
    """

    name: ClassVar[str] = "reduce-passes"
    block: int = 128

    def __post_init__(self) -> None:
        if self.block < 1:
            raise BadOption(option="block", name=self.name, wanted="at least 1", value=self.block)

    def apply(self, program: Program) -> Program:
        return _Chosen(explicit_domains(program), self.block).run()

    def explain(self, program: Program) -> tuple[Refusal, ...]:
        """The chains that have a running form which no kernel would stream."""
        chosen = _Chosen(explicit_domains(program), self.block)
        chosen.run()
        return tuple(chosen.declined)


@dataclass
class _Chosen(Rewriter):
    """Rewrites the chains whose scans stream; `declined` has those that have a running form and do not.

    Attributes:
        looked_at: folds that were tried alone, by identity.
    """

    declined: list[Refusal] = field(default_factory=list)
    looked_at: dict[int, Einsum] = field(default_factory=dict)

    def block_of(self, extent: IntExpr) -> int:
        """Blocks of a known extent are of nearly equal size, so that the last one is no remainder."""
        if extent.const is None:
            return self.block
        return -(-extent.const // -(-extent.const // self.block))

    def _streams(self, step: Einsum) -> bool:
        """Whether the fold contracts two tensors that are no weights: each moves along a free rank that the other lacks."""
        free, over = {r.name for r in step.ranks}, {r.name for r in step.reduced}
        reads = [a.variables for a in step.accesses() if a.tensor not in self.constants and a.variables & over]
        return any((a - b) & free and (b - a) & free for a, b in combinations(reads, 2))

    @cached_property
    def constants(self) -> frozenset[str]:
        return frozenset(c.name for c in self.program.consts)

    @cached_property
    def streams(self) -> Streams:
        return Streams(self.program, StreamKernels.lane_bytes, self.types)

    @cached_property
    def sure_streams(self) -> Streams:
        """For scans that save no pass: with one point in the lanes they would cost more than the fibre that they save."""
        return Streams(self.program, StreamKernels.lane_bytes, self.types, cautious=True)

    def _plan(self, chain: Chain, body: Sequence[Stmt], outside: frozenset[str]) -> Plan | None:
        if not any(self._streams(m.step) for m in chain.folds):
            return None
        plan = super()._plan(chain, body, outside)
        if plan is None:
            return None
        names = self.names.copy()  # a trial: the names it takes are free again
        tried = self.form(plan, names).rewritten(list(body))
        before = {id(s) for s in body}
        obstacle = self._obstacle(tried, before, outside, self.streams)
        if not obstacle:
            return plan
        fold = next(m.step for m in chain.folds if self._streams(m.step))
        self.declined.append(Refusal(fold.out, chain.rank, Reason.APART, obstacle, fold.loc))
        return None

    def _first(
        self, body: list[Stmt], yields: Sequence[str], done: dict[tuple[int, str], Einsum]
    ) -> list[Stmt] | None:
        """The body with the next chain rewritten, or when there is none the next fold alone that streams."""
        return super()._first(body, yields, done) or self._first_lone(body, yields)

    def _first_lone(self, body: list[Stmt], yields: Sequence[str]) -> list[Stmt] | None:
        outside = frozenset(yields).union(*(whole_reads(s) for s in body))
        before = {id(s) for s in body}
        for step in [s for s in body if isinstance(s, Einsum) and id(s) not in self.looked_at and self._streams(s)]:
            self.looked_at[id(step)] = step
            for outlined, plan in lone_folds(step, body, outside, self.types, self.names):
                self.learn(s for s in outlined if id(s) not in before)
                if Facts({}, self.program.facts).nonneg(self.block - plan.chain.extent):
                    continue
                if not any(self._streams(m.step) for m in plan.chain.of(Kind.LOCAL)):
                    continue
                names = self.names.copy()
                tried = self.form(plan, names).rewritten(outlined)
                if not self._obstacle(tried, before, outside, self.sure_streams):
                    return self.form(plan, self.names).rewritten(outlined)
        return None

    def _obstacle(self, tried: Sequence[Stmt], before: set[int], outside: frozenset[str], streams: Streams) -> str:
        """Why what is new in `tried` is no streaming kernel; empty when it is."""
        made = [s for s in tried if isinstance(s, (Einsum, Scan)) and id(s) not in before]
        if any(factors(s) is None for s in flat(made) if self._streams(s)):
            return "a sum in it is not one of plain products, which register tiles are for"
        for n, s in enumerate(tried):
            if isinstance(s, Scan) and id(s) not in before and streams.kernel_at(tried, n, set(outside)) is None:
                return streams.reason
        return ""


__all__ = ["ReducePasses"]
