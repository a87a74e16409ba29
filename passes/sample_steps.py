"""Einsums, scans and library operations for one sample, for many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dlc.errors import Unsupported
from dlc.ir.einsum import Carry, Einsum, Rank, Scan, Step, TensorType
from dlc.ir.expr import Access
from dlc.ir.extent import var
from dlc.ir.loc import Loc
from dlc.ir.program import Library, Program, fresh_name
from dlc.passes.rewrite import map_accesses
from dlc.passes.sample_levels import SAMPLE, Samples


class NotPerSample(Unsupported):
    """What one sample computes has no counterpart for a batch: its size, for one, differs from sample to sample."""

    code = "DLC0310"
    template = "not supported: {op} for a batch of samples (per_sample=True) because {reason}"
    hint = "give the batch sample by sample, or compute this for all samples outside of the model"


class SampleSteps(Samples):
    """Adds straight-line statements: one more rank, that of the samples."""

    def __init__(self, program: Program, samples: Sequence[str], symbol: str) -> None:
        super().__init__(program, samples, symbol)
        self.loops: list[str] = []  # ranks of the scans around

    def library(self, stmt: Library) -> Library:
        if self.dependent.isdisjoint(stmt.args):
            return stmt
        if stmt.binds:
            raise NotPerSample(stmt.loc, op=f"'{stmt.op}'", reason="its result has another size for each sample")
        args = tuple(map(self.everywhere, stmt.args))
        attrs = tuple((k, v + 1 if k == "axis" and isinstance(v, int) and v >= 0 else v) for k, v in stmt.attrs)
        types = tuple(TensorType(t.dtype, (self.level.extent, *t.shape)) for t in stmt.types)
        return replace(stmt, args=args, attrs=attrs, types=types, outs=tuple(map(self.define, stmt.outs)))

    def steps(self, step: Step) -> list[Step]:
        """The step for all samples of the level; a scan may need another one after it."""
        if self.dependent.isdisjoint(step.outs):
            return [step]
        return [self.einsum(step)] if isinstance(step, Einsum) else self.scan(step)

    def einsum(self, step: Einsum) -> Einsum:
        taken = frozenset(step.extents).union(*(e.variables for e in step.scalars), self.loops)
        sample = fresh_name(SAMPLE, taken)

        def read(a: Access) -> Access:
            if a.tensor not in self.dependent:
                return a
            return Access(self.read(a.tensor), (var(sample), *a.index), a.default)

        step = map_accesses(step, read)
        write = step.write
        if write is not None:
            write = replace(write, index=(var(sample), *write.index), onto=self.everywhere(write.onto))
        return replace(
            step,
            outs=tuple(map(self.define, step.outs)),
            ranks=(Rank(sample, self.level.extent), *step.ranks),
            write=write,
            order=None if step.order is None else (0, *(d + 1 for d in step.order)),
        )

    def scan(self, scan: Scan) -> list[Step]:
        """The same step loop; what it stacks has the steps first, and is turned after it."""
        carries = []
        for c in scan.carries:
            if c.name in self.dependent:
                init = self.everywhere(c.init)
                carries.append(Carry(self.define(c.name), init))
            else:
                carries.append(c)
        self.loops.append(scan.rank.name)
        body = [s for step in scan.body for s in self.steps(step)]
        self.loops.pop()
        yields = [self.carried(c.name, y, body) for c, y in zip(scan.carries, scan.yields, strict=True)]
        stacked, after = [], []
        for outer, inner in scan.stacked:
            if inner in self.dependent:
                rows = self.names.fresh(f"{outer}_rows")
                stacked.append((rows, self.read(inner)))
                after.append((rows, outer))
            else:
                stacked.append((outer, inner))
        finals = tuple(self.define(f) if f in self.dependent else f for f in scan.finals)
        left = replace(
            scan, carries=tuple(carries), body=tuple(body), yields=tuple(yields), finals=finals, stacked=tuple(stacked)
        )
        return [left, *(self.turned(rows, outer, scan.loc) for rows, outer in after)]

    def carried(self, name: str, next_: str, body: list[Step]) -> str:
        """The next value of a scan's state, spread over the samples inside the scan where it does not depend on them."""
        if name not in self.dependent or next_ in self.dependent:
            return self.read(next_) if next_ in self.dependent else next_
        wide = self.names.fresh(f"{next_}_each")
        body.append(self.spread(wide, next_, lambda i: Access(next_, i), self.level.extent))
        return wide

    def turned(self, rows: str, name: str, loc: Loc) -> Einsum:
        """`name` with the samples first, of rows that lie step by step."""
        return self.spread(
            self.define(name), name, lambda i: Access(rows, (i[0], var(SAMPLE), *i[1:])), self.level.extent, loc
        )
