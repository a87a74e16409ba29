"""Pass reduction as a choice: the running form where a kernel can hold what it carries, the plain cascade elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import ClassVar

from dlc.ir.einsum import Einsum, Scan
from dlc.ir.extent import IntExpr
from dlc.ir.program import Program, Stmt
from dlc.ir.streamed import factors, flat
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.reduction_chains import Chain
from dlc.passes.refusals import Reason, Refusal
from dlc.passes.running_plan import Plan
from dlc.passes.running_reduction import Rewriter
from dlc.passes.stream_kernels import StreamKernels, Streams


@dataclass(frozen=True)
class ReducePasses(Pass):
    """`running-reduction` where it pays: the derived scan runs inside the tasks of one kernel (`stream-kernels`).

    A cascade of several passes over a rank keeps that rank's fibres, and contractions between the passes put them into
    memory; the running form keeps a block. A chain without contractions gains nothing from it here: its fibres are rows that
    lie in a core's cache anyway, and each block costs a correction. So it is derived for those scans alone that stream.

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


class _Chosen(Rewriter):
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
    def declined(self) -> list[Refusal]:
        return []

    @cached_property
    def streams(self) -> Streams:
        return Streams(self.program, StreamKernels())

    def _plan(self, chain: Chain, body: Sequence[Stmt], outside: frozenset[str]) -> Plan | None:
        if not any(self._streams(m.step) for m in chain.folds):
            return None
        plan = super()._plan(chain, body, outside)
        if plan is None:
            return None
        names = copy.deepcopy(self.names)  # a trial: the names it takes are free again
        tried = self.form(plan, names).rewritten(list(body))
        before = {id(s) for s in body}
        fits = (
            self.streams.kernel_at(tried, n, set(outside)) is not None
            for n, s in enumerate(tried)
            if isinstance(s, Scan) and id(s) not in before
        )
        made = [s for s in tried if isinstance(s, (Einsum, Scan)) and id(s) not in before]
        tiles = all(factors(s) is not None for s in flat(made) if self._streams(s))
        if tiles and all(fits):
            return plan
        fold = next(m.step for m in chain.folds if self._streams(m.step))
        least, size = StreamKernels.least, StreamKernels.block_bytes
        detail = f"fewer than {least} points along a rank that moves one operand, more than {size} bytes a block, or weights"
        self.declined.append(Refusal(fold.out, chain.rank, Reason.APART, detail, fold.loc))
        return None


__all__ = ["ReducePasses"]
