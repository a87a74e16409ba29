"""A chain of dependent reductions over one rank becomes one traversal that corrects its partial results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from dlc.ir.einsum import Einsum, Scan
from dlc.ir.extent import IntExpr
from dlc.ir.facts import Facts
from dlc.ir.program import Program, Region, Stmt, collect_step_types, tensor_types, walk_statements
from dlc.passes.emptiness import known_symbols
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.plan_chain import plan_chain
from dlc.passes.reduction_chains import Chain, add_locals, find_chains, inline_picks
from dlc.passes.refusals import Reason, Refusal, Refused
from dlc.passes.rewrite import Names, drop_dead, map_regions
from dlc.passes.running_form import RunningForm
from dlc.passes.running_plan import Plan


@dataclass(frozen=True)
class RunningReduction(Pass):
    """Traverse a rank once, block by block, where a reduction over it needs the result of another one.

        GM[p]    = max(m) QK[p, m]                      scan m1: (m + 127)//128 carry (GM_run = -inf, SD_run = 0) {
        SN[p, m] = exp(QK[p, m] - GM[p])                  GM_block[p]     = max(m0) QK[p, 128*m1 + m0]
        SD[p]    = sum(m) SN[p, m]                        GM_next[p]      = max(GM_run[p], GM_block[p])
                                                    ->    SN_block[p, m0] = exp(QK[p, 128*m1 + m0] - GM_next[p])
                                                          SD_block[p]     = sum(m0) SN_block[p, m0]
                                                          GM_fix[p]       = exp(GM_run[p] - GM_next[p])
                                                          SD_next[p]      = SD_run[p] * GM_fix[p] + SD_block[p]
                                                        } -> (GM, SD)

    Holds when the operand of each later reduction is a sum of products of data, of factors free of the rank (they move
    past the scan), of powers `b^(s*x - s*GM)` of the operand `x` of a running maximum (or minimum), and of `(x - mean)^k`
    with the running mean of `x`. The reference bounds what has been seen, so that no partial result overflows that the
    whole would not: a power is corrected by `b^(old - new) <= 1`. `dlc.passes.refusals` lists what is refused.

    With `parts`, that many shares of the rank are traversed side by side, and joined by the same corrections: for one query
    and many keys, where there is nothing else to do in parallel.

    Source: Nayak et al., FuseMax, MICRO 2024 (arXiv 2406.10491), cascade 5; Milakov and Gimelshein, Online normalizer
    calculation for softmax (arXiv 1805.02867); Chan, Golub and LeVeque, Updating formulae for sample variances (1979).
    """

    name: ClassVar[str] = "running-reduction"
    block: int = 128
    parts: int = 1

    def __post_init__(self) -> None:
        for option, value in (("block", self.block), ("parts", self.parts)):
            if value < 1:
                raise BadOption(option=option, name=self.name, wanted="at least 1", value=value)

    def apply(self, program: Program) -> Program:
        return Rewriter(explicit_domains(program), self.block, self.parts).run()

    def explain(self, program: Program) -> tuple[Refusal, ...]:
        """The reductions of dependent chains that stay as they are, and why."""
        rewriter = Rewriter(explicit_domains(program), self.block, self.parts)
        rewriter.run()
        return tuple(rewriter.refusals)

    def statistics(self, before: Program, after: Program) -> dict[str, int | float]:
        return {} if after is before else {"scans": count_scans(after) - count_scans(before)}


def count_scans(program: Program) -> int:
    return sum(isinstance(s, Scan) for s in walk_statements(program.body))


@dataclass
class Rewriter:
    program: Program
    block: int
    parts: int = 1
    refusals: list[Refusal] = field(default_factory=list)

    def run(self) -> Program:
        self.names, self.types = Names(self.program), tensor_types(self.program)
        program = map_regions(self.program, self._region)
        return program if program is self.program else drop_dead(program)

    def _region(self, region: Region) -> Region:
        body, changed = list(region.body), False
        done: dict[tuple[int, str], Einsum] = {}
        while True:
            found = self._first(body, region.yields, done)
            if found is None:
                break
            # what joins parts is a chain, too, and short
            known = {id(s) for s in body}
            made = [s for s in found if id(s) not in known]
            self.learn(made)
            done |= {(id(s), r.name): s for s in made if isinstance(s, Einsum) for r in s.reduced}
            body, changed = found, True
        return region if not changed else Region(tuple(body), region.yields)

    def learn(self, made: Iterable[Stmt]) -> None:
        """Know the types of what new statements make."""
        for s in made:
            if isinstance(s, (Einsum, Scan)):
                collect_step_types(s, self.types)

    def _first(
        self, body: list[Stmt], yields: Sequence[str], done: dict[tuple[int, str], Einsum]
    ) -> list[Stmt] | None:
        """The body with the first chain that can be rewritten replaced; `done` are first folds looked at before."""
        outside = frozenset(yields).union(*(whole_reads(s) for s in body))
        for chain in find_chains(body, done):
            folds = chain.folds
            read_once = self._picks(chain, body)
            plan = self._plan(chain, read_once, outside)
            if plan is not None:
                try:
                    return self.form(plan, self.names).rewritten(read_once)
                except Refused as error:
                    self._refuse(chain, error)
            done |= {(id(m.step), m.rank): m.step for m in folds}
        return None

    def form(self, plan: Plan, names: Names) -> RunningForm:
        """The scan of `plan`, with new tensors named by `names`."""
        facts = Facts({}, known_symbols(self.program))
        return RunningForm(plan, names, self.types, self.block_of(plan.chain.extent), facts, self.parts)

    def block_of(self, extent: IntExpr) -> int:
        """Points of a rank that one step of its scan takes."""
        return self.block

    @staticmethod
    def _picks(chain: Chain, body: list[Stmt]) -> list[Stmt]:
        try:
            return inline_picks(chain, body)
        except Refused:
            return body

    def _plan(self, chain: Chain, body: Sequence[Stmt], outside: frozenset[str]) -> Plan | None:
        facts = Facts({}, self.program.facts)
        if facts.nonneg(self.block - chain.extent):
            self._refuse(chain, Refused(Reason.SHORT, f"{chain.extent} in blocks of {self.block}"))
            return None
        try:
            plan, refused = plan_chain(chain, body, outside, self.types, facts)
        except Refused as error:
            self._refuse(chain, error)
            return None
        self.refusals += refused
        if plan is not None:
            add_locals(plan.chain, body, outside)
        return plan

    def _refuse(self, chain: Chain, error: Refused) -> None:
        dependent = [m.step for m in chain.folds if chain.depends(m.step)]
        step = dependent[0] if dependent else chain.folds[0].step
        detail = error.detail.replace("#", "")
        self.refusals.append(Refusal(step.out, chain.rank, error.reason, detail, step.loc))


def whole_reads(stmt: Stmt) -> set[str]:
    """Tensors that a statement reads in another way than element by element in an Einsum of this list."""
    if isinstance(stmt, Einsum):
        return {stmt.write.onto} if stmt.write is not None else set()
    return set(stmt.reads)

