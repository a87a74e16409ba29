"""A long reduction of few points is done in parts: by several cores, or, a pair at a time, in vector lanes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.dtype import BF16, F16
from dlc.ir.einsum import Einsum, Rank, Reduce, TensorType
from dlc.ir.expr import Access, Expr, Index, Piecewise, accesses, apply
from dlc.ir.extent import IntExpr, int_expr, var
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import Program, Region, Stmt, fresh_name, tensor_types
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.fuse import is_contraction
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.rewrite import Names, map_regions
from dlc.passes.scopes import map_einsums
from dlc.passes.split_ranks import split_ranks

_SHORT = (F16, BF16)


@dataclass(frozen=True)
class SplitReductions(Pass):
    """Fold `parts` partial results, each of an equal share of the longest reduced rank, and then those.

        S[] = sum(n:4096) X[n]                   P[p:64] = sum(k:64) X[64*p + k]       one core's share is contiguous
                                             ->  S[] = sum(p:64) P[p]

        (V[b], I[b]) = argmax(n:5000) (X[b, n], n)
        ->  (Q[b, p:64], J[b, p:64]) = argmax(k:79) ({ X[b, 64*k + p] when 64*k + p < 5000 | -inf }, { 64*k + p | .. })
            (V[b], I[b]) = argmax(p:64) (Q[b, p], J[b, p])                             neighbours lie in lanes

    The first where a step has at most `most_points` points of at least `least` terms, or reduces leading dimensions of twice
    that many elements to at most `most_lanes` points that lie in lanes (a mean over pixels); the second for monoids of tuples
    over ranks of at least `least_row`. An unknown extent counts as 1, since it may be. The parts depend on the sizes alone, so
    results do not depend on the number of threads; floating-point sums are reassociated. 16-bit sums are left alone: a part
    would be rounded. A rank that runs over several dimensions (`flatten().sum()`) becomes one per dimension first, since a share of
    the whole would be taken apart by divisions at each of its elements.
    """

    name: ClassVar[str] = "split-reductions"
    parts: int = 64
    least: int = 65536
    most_points: int = 8
    most_lanes: int = 4096
    least_row: int = 512

    def __post_init__(self) -> None:
        if self.parts < 2:
            raise BadOption(option="parts", name=self.name, wanted="at least 2", value=self.parts)

    def apply(self, program: Program) -> Program:
        program = explicit_domains(program)
        names, types = Names(program), tensor_types(program)

        def by_dimension(step: Einsum, facts: Facts) -> Einsum:
            return step if self.candidate(step, types) is None else split_ranks(step, facts)

        def region(r: Region) -> Region:
            body: list[Stmt] = []
            for stmt in r.body:
                body += self.split(stmt, names, types) if isinstance(stmt, Einsum) else [stmt]
            return r if len(body) == len(r.body) else Region(tuple(body), r.yields)

        return map_regions(map_einsums(program, by_dimension), region)

    def split(self, step: Einsum, names: Names, types: Mapping[str, TensorType]) -> list[Einsum]:
        """The step, or its parts and what folds them."""
        rank = self.candidate(step, types)
        if rank is None or step.reduce is None or rank.extent.const is None:
            return [step]
        used = {r.name for r in step.all_ranks}
        parts = self.share_out(rank.extent.const, lanes=len(step.outs) > 1)
        share = -(-rank.extent.const // parts)
        part = Rank(fresh_name("part", used), int_expr(parts))
        inner = Rank(fresh_name("share", used | {part.name}), int_expr(share))
        whole = share * var(part.name) + var(inner.name)
        if len(step.outs) > 1:
            whole = parts * var(inner.name) + var(part.name)
        exprs = [e.substitute({rank.name: whole}) for e in step.exprs]
        if share * parts != rank.extent.const:
            exprs = _guarded(step, exprs, whole, rank.extent)
        outs = tuple(names.fresh(f"{o}_parts") for o in step.outs)
        reduced = tuple(inner if r == rank else r for r in step.reduce.ranks)
        ranks = (*step.ranks, part) if len(outs) > 1 else (part, *step.ranks)
        partial = replace(
            step, outs=outs, ranks=ranks, exprs=tuple(exprs), order=None, pitch=0,
            reduce=Reduce(step.reduce.op, reduced, step.reduce.accumulator),
        )  # fmt: skip
        index = tuple(var(r.name) for r in partial.ranks)
        fold = Reduce(step.reduce.op, (part,), step.reduce.accumulator)
        return [partial, replace(step, exprs=tuple(Access(o, index) for o in outs), reduce=fold)]

    def share_out(self, extent: int, *, lanes: bool) -> int:
        """How many parts: not much fewer than asked for, if that divides the extent and no end needs a guard."""
        step = 16 if lanes else 1
        most = min(self.parts, extent)
        even = (n for n in range(most, most // 4, -1) if extent % n == 0 and n % step == 0)
        return next(even, most)

    def candidate(self, step: Einsum, types: Mapping[str, TensorType]) -> Rank | None:
        """The reduced rank to share out; None when the step is better left whole."""
        if step.reduce is None or step.where is not None or step.write is not None or is_contraction(step, types):
            return None
        if any(d in _SHORT for d in step.dtypes) or any(r.extent.const is None for r in step.reduced):
            return None
        longest = max(step.reduced, key=lambda r: r.extent.const or 0)
        extent = longest.extent.const or 0
        if MONOIDS[step.reduce.op].arity > 1:
            lanes = all(_moves_by_one(e, longest.name) for e in step.exprs)
            return longest if lanes and len(step.reduced) == 1 and extent >= self.least_row else None
        points, terms = 1, 1
        for r in step.ranks:
            points *= r.extent.const if r.extent.const is not None else 1
        for r in step.reduced:
            terms *= r.extent.const or 0
        few = points <= self.most_points and terms >= self.least
        wide = points <= self.most_lanes and points * terms >= 2 * self.least
        return longest if extent >= self.parts // 4 and (few or wide and _leading(step, types)) else None


def _guarded(step: Einsum, exprs: list[Expr], whole: IntExpr, extent: IntExpr) -> list[Expr]:
    """Beyond the rank's end there is the identity."""
    assert step.reduce is not None
    identity = MONOIDS[step.reduce.op].identity(step.dtypes)
    inside = apply("lt", Index(whole), Index(extent))
    return [Piecewise(((inside, e),), c) for e, c in zip(exprs, identity, strict=True)]


def _leading(step: Einsum, types: Mapping[str, TensorType]) -> bool:
    """Whether a free rank is innermost in memory, by itself, in every tensor that the reduction walks."""
    free = {r.name for r in step.ranks if r.extent.const != 1}
    walked = [a for e in step.exprs for a in accesses(e) if a.variables & {r.name for r in step.reduced}]
    inner = [a.index[(types[a.tensor].order or range(len(a.index)))[-1]] for a in walked]
    return bool(inner) and all(i.is_var and str(i) in free for i in inner)


def _moves_by_one(e: Expr, rank: str) -> bool:
    """Whether the rank is the last index of every access that it moves, by itself."""
    return all(a.index[-1] == var(rank) for a in accesses(e) if rank in a.variables)
