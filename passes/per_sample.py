"""A program whose control decides for one sample, for a batch: samples that part ways are computed by branch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.costmodel.work import step_operations
from dlc.errors import BadInput
from dlc.ir.dtype import BOOL, I64
from dlc.ir.einsum import Einsum, Rank, Scan, TensorType, einsum
from dlc.ir.expr import Access, Cast, Expr, Piecewise, apply, const
from dlc.ir.extent import IntExpr, int_expr, sym, var
from dlc.ir.program import Bind, If, Library, Loop, Param, Program, Region, Stmt, Symbol
from dlc.passes.explicit_domains import explicit_domains
from dlc.passes.pipeline import Pass
from dlc.passes.sample_dependence import diverges, may_fail
from dlc.passes.sample_levels import SAMPLE, Given, free_ranks
from dlc.passes.sample_steps import NotPerSample, SampleSteps


class NoSamples(BadInput):
    """No input is that of one sample."""

    code = "DLC0311"
    template = "no input of '{name}' has a leading dimension of 1, as per_sample=True needs: {inputs}"
    hint = "write the model for a batch of one: its inputs' first dimension is 1"


@dataclass(frozen=True)
class PerSample(Pass):
    """Compute for a batch of any size what the program computes for one sample, each sample on its own path.

        A[i:1, d] = ...                           A[n:batch, i:1, d] = ...
        if C { B[i, d] = .. yield (B) }           at = nonzero(C) binds some;  place[at[n]] = n
        else { yield (A) } -> (R)           ->    B[n:some, i, d] = .. A[at[n], i, d] ..
                                                  R[n:batch, i, d] = { B[place[n], i, d] when C[n] | A[n, i, d] }

    Inputs whose first dimension is 1 are the samples'; their first dimension, and that of every result, becomes the batch.
    Other inputs are shared. What does not depend on a sample is computed once.

    An arm runs on the samples that take it, gathered; a loop runs while any sample goes on, each step on those that do. Arms
    and loop bodies that cannot fail and cost less than gathering (at most `cheap` operations per element that they give)
    are computed for all samples, and the values chosen. What binds an extent per sample is refused.

    Source: Radul et al., Automatically batching control-intensive programs for modern accelerators (MLSys 2020, arXiv
    1910.11141), with gathering for masks; early exit as in Teerapittayanon et al., BranchyNet (ICPR 2016).
    """

    name: ClassVar[str] = "per-sample"
    symbol: str = "batch"
    cheap: int = 16

    def apply(self, program: Program) -> Program:
        samples = [p.name for p in program.params if _is_one(p.type)]
        if not samples:
            raise NoSamples(program.loc, name=program.name, inputs=", ".join(map(str, program.params)) or "none")
        return batched(program, samples, self.symbol, self.cheap)


def batched(
    program: Program, samples: Sequence[str], symbol: str = "batch", cheap: int = 16, *, keep: bool = False
) -> Program:
    """The program for a batch, of a program for one sample.

    Args:
        samples: parameters that are of one sample.
        cheap: operations per element up to which an arm is computed for all samples.
        keep: whether the batch is one more dimension also where there is a first dimension of 1 that it could take.

    Raises:
        NotPerSample: something has no counterpart.
    """
    return _Batching(explicit_domains(program), samples, symbol, cheap, keep).run()


class _Batching(SampleSteps):
    def __init__(self, program: Program, samples: Sequence[str], symbol: str, cheap: int, keep: bool) -> None:
        super().__init__(program, samples, symbol)
        self.samples, self.cheap, self.keep = samples, cheap, keep
        results = [r for r in program.results if r in self.dependent and r not in samples]
        self.renamed = {r: self.names.fresh(f"{r}_each") for r in dict.fromkeys(results)}

    def run(self) -> Program:
        program = self.program
        params = tuple(self.parameter(p) if p.name in self.samples else p for p in program.params)
        self.statements(program.body)
        results = {r: self.result(r) for r in dict.fromkeys(program.results)}
        body = Region(tuple(self.body), tuple(results[r] for r in program.results))
        return replace(program, params=params, body=body, symbols=(*program.symbols, Symbol(self.batch)))

    # --- the border ---

    def parameter(self, p: Param) -> Param:
        """The parameter with the batch as its first dimension; inside that is one more dimension."""
        extent, shape = sym(self.batch), p.type.shape
        if self.keep or not _is_one(p.type):
            self.define(p.name)
            return replace(p, type=TensorType(p.type.dtype, (extent, *shape)))
        each = self.names.fresh(f"{p.name}_each")
        self.level.names[p.name] = each
        self.emit(self.spread(each, p.name, lambda i: Access(p.name, (var(SAMPLE), *i[1:])), extent))
        return replace(p, type=TensorType(p.type.dtype, (extent, *shape[1:])))

    def result(self, name: str) -> str:
        """The result with the batch in front, or in the place of a first dimension of 1."""
        of = self.types[name]
        takes = not self.keep and _is_one(of)
        out = name if name in self.renamed else self.names.fresh(f"{name}_all")
        ranks = free_ranks(of.shape[1:] if takes else of.shape)
        index = ((int_expr(0),) if takes else ()) + tuple(var(r.name) for r in ranks)
        batch = Rank(SAMPLE, sym(self.batch))
        self.emit(einsum(out, (batch, *ranks), self.element(name, var(SAMPLE), index), of.dtype))
        return out

    # --- statements ---

    def statements(self, region: Region) -> None:
        for stmt in region.body:
            self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case Einsum() | Scan():
                for step in self.steps(stmt):
                    self.emit(step)
            case If():
                self.own_ways(stmt) if stmt.cond in self.dependent else self.one_way(stmt)
            case Loop():
                apart = self.level.parent is not None or diverges(stmt, self.dependent)
                self.own_loops(stmt) if apart else self.one_loop(stmt)
            case Library():
                self.emit(self.library(stmt))
            case Bind(symbol, tensor):
                if tensor in self.dependent:
                    raise NotPerSample(stmt.loc, op=f"the extent '{symbol.name}'", reason="each sample has its own")
                self.emit(stmt)
            case _:
                raise NotPerSample(stmt.loc, op=f"'{type(stmt).__name__}'", reason="the program is fused already")

    def spread_over(self, names: Sequence[str], like: Sequence[str]) -> list[str]:
        """Those of `names` whose counterpart in `like` depends on the sample, for all samples; the others as they are."""
        pairs = zip(names, like, strict=True)
        return [self.everywhere(n) if out in self.dependent else n for n, out in pairs]

    def defined(self, names: Sequence[str]) -> tuple[str, ...]:
        return tuple(self.define(n) if n in self.dependent else n for n in names)

    # --- branches ---

    def one_way(self, stmt: If) -> None:
        """All samples take the same arm."""
        arms = []
        for arm in (stmt.then, stmt.orelse):
            with self.region() as body:
                self.statements(arm)
                yields = self.spread_over(arm.yields, stmt.outs)
                arms.append(Region(tuple(body), tuple(yields)))
        self.emit(replace(stmt, then=arms[0], orelse=arms[1], outs=self.defined(stmt.outs)))

    def own_ways(self, stmt: If) -> None:
        """Each sample takes its own arm: both run, each on its samples, and then these are put together again."""
        takes = self.names.fresh(f"{stmt.cond}_takes")
        self.per_sample(takes, BOOL, lambda n: self.scalar(stmt.cond, n), stmt.loc)
        cheap = self.is_cheap(stmt.then) and self.is_cheap(stmt.orelse)
        then = self.on_samples(stmt.then, None if cheap else takes, stmt)
        others = None
        if not cheap and stmt.orelse.body:
            others = self.names.fresh(f"{stmt.cond}_other")
            self.per_sample(others, BOOL, lambda n: apply("not", Access(takes, (n,))), stmt.loc)
        orelse = self.on_samples(stmt.orelse, others, stmt)
        for out, a, b in zip(stmt.outs, then, orelse, strict=True):
            self.choose(self.define(out), out, takes, a, b, stmt.loc)

    def on_samples(self, region: Region, mask: str | None, stmt: If | Loop) -> list[Given]:
        """Compute a region for the samples of `mask`, or for all of the level; what it yields, and for whom."""
        if mask is None or not region.body:
            self.statements(region)
            return [Given(y) for y in region.yields]
        made = {o for s in region.body for o in s.outs if o in self.dependent}
        with self.some(mask, stmt.loc) as place:
            self.statements(region)
            found = {y: self.read(y) for y in region.yields if y in made}
        self.level.names.update(found)  # known by the same name around, where `place` leads to its elements
        return [Given(y, place if y in found else None) for y in region.yields]

    def is_cheap(self, region: Region) -> bool:
        """Whether to compute a region for every sample: it cannot fail, and gathering would cost more."""
        steps = [s for s in region.body if isinstance(s, Einsum)]
        if len(steps) < len(region.body) or any(map(may_fail, steps)):
            return False
        operations, _ = step_operations(steps)
        given = sum(self.types[y].elements.const or 0 for y in region.yields)
        return operations.const is not None and operations.const <= self.cheap * given

    # --- loops ---

    def one_loop(self, stmt: Loop) -> None:
        """All samples do the same steps."""
        first = 0 if stmt.cond is None else 1
        carried = [name for name, _ in stmt.carries]
        inits = self.spread_over([init for _, init in stmt.carries], carried)
        with self.region() as body:
            names = self.defined(carried)
            self.statements(stmt.body)
            nexts = self.spread_over(stmt.body.yields[first:], [*carried, *stmt.collected])
            region = Region(tuple(body), (*stmt.body.yields[:first], *nexts))
        rows = {c: self.names.fresh(f"{c}_rows") for c in stmt.collected if c in self.dependent}
        loop = replace(
            stmt,
            carries=tuple(zip(names, inits, strict=True)),
            body=region,
            finals=self.defined(stmt.finals),
            collected=tuple(rows.get(c, c) for c in stmt.collected),
        )
        self.emit(loop)
        for name, row in rows.items():
            self.emit(self.turned(row, name, stmt.loc))

    def own_loops(self, stmt: Loop) -> None:
        """Each sample does its own number of steps: the loop goes on while any does, each step for those that do."""
        if stmt.count is not None:
            raise NotPerSample(stmt.loc, op="a loop that collects", reason="each sample does its own number of steps")
        shared = stmt.limit is None or stmt.limit not in self.dependent
        going, alive, again = map(self.names.fresh, ("going", "alive", "again"))
        self.per_sample(going, BOOL, lambda n: self.goes_on(stmt, stmt.cond, n, const(0, I64)), stmt.loc)
        inits = [self.everywhere(init) for _, init in stmt.carries]
        begins = self.any_of(going, BOOL, stmt.loc)
        with self.region() as body:
            names = self.defined([name for name, _ in stmt.carries])
            given = self.on_samples(stmt.body, None if self.is_cheap(stmt.body) else alive, stmt)
            decides = given.pop(0) if stmt.cond is not None else None
            done = apply("add", Access(stmt.index, ()), const(1, I64))

            def goes(n: IntExpr) -> Expr:
                return Piecewise(((Access(alive, (n,)), self.goes_on(stmt, decides, n, done)),), const(False, BOOL))

            self.per_sample(again, BOOL, goes, stmt.loc)
            nexts = [self.names.fresh(f"{name}_next") for name, _ in stmt.carries]
            for (name, _), out, value in zip(stmt.carries, nexts, given, strict=True):
                self.choose(out, name, alive, value, Given(name), stmt.loc)
            yields = (self.any_of(again, BOOL, stmt.loc), again, *nexts)
            region = Region(tuple(body), yields)
        loop = replace(
            stmt,
            limit=stmt.limit if shared else None,
            cond=begins,
            carries=((alive, going), *zip(names, inits, strict=True)),
            body=region,
            finals=(self.names.fresh("left"), *self.defined(stmt.finals)),
        )
        self.emit(loop)

    def goes_on(self, stmt: Loop, decides: str | Given | None, sample: IntExpr, done: Expr) -> Expr:
        """Whether a sample does one more step after `done`; a limit that all samples share is left to the loop."""
        found: Expr = const(True, BOOL) if decides is None else self.scalar(decides, sample)
        if stmt.limit is None or stmt.limit not in self.dependent:
            return found
        limit = self.scalar(stmt.limit, sample)
        if self.types[stmt.limit].dtype != I64:
            limit = Cast(I64, limit)
        return apply("and", found, apply("lt", done, limit))


def _is_one(of: TensorType) -> bool:
    return of.rank > 0 and of.shape[0].const == 1


__all__ = ["NoSamples", "NotPerSample", "PerSample", "batched"]
