"""Blocks: steps with a few inner points each become that many steps over the task ranks alone.

    S[ty, e:4, c] = X[ty, c] * e                      S_0[ty, c] = X[ty, c] * 0, ... S_3[ty, c] = X[ty, c] * 3
    O[y:13, c] = max(S[y // 4, y % 4, c], 0)    ->    O[4*ty + 0, c] = max(S_0[ty, c], 0) where 4*ty + 0 < 13, ...

What is passed on has a name per point and lives in registers; pieces that only depend on the point are chosen here.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence

from dlc.codegen.nest import PointStep
from dlc.codegen.pieces import settle
from dlc.ir.blocked import blocked_ranks
from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Expr, Index, apply, transform
from dlc.ir.extent import IntExpr, int_expr, substitute, var
from dlc.ir.facts import Facts

Point = dict[str, IntExpr]


def unroll_block(
    steps: Sequence[Einsum], outer: Collection[str], results: Collection[str], facts: Facts
) -> list[PointStep]:
    """The steps of a kernel for which `ir.blocked.unrolls` holds, one for each point of a block."""
    return _Unrolling(steps, outer, results, facts).run()


class _Unrolling:
    def __init__(
        self, steps: Sequence[Einsum], outer: Collection[str], results: Collection[str], facts: Facts
    ) -> None:
        self.steps, self.outer, self.results, self.facts = steps, outer, results, facts
        self.blocks = blocked_ranks(steps, outer)
        self.made: dict[str, Einsum] = {}

    def run(self) -> list[PointStep]:
        done: list[PointStep] = []
        read_later = {a.tensor for s in self.steps for a in s.accesses()}
        for step in self.steps:
            for number, point in enumerate(self.points(step)):
                done += self.at(step, point, number, step.out in read_later)
            self.made[step.out] = step
        return done

    def points(self, step: Einsum) -> Iterator[Point]:
        """The index of every inner rank at each point of the block, row-major."""
        inner = [r for r in step.ranks if r.name not in self.outer]
        spans = [range(self.size(r.name, r.extent)) for r in inner]
        for offsets in itertools.product(*spans):
            yield {r.name: self.place(r.name, k) for r, k in zip(inner, offsets, strict=True)}

    def size(self, name: str, extent: IntExpr) -> int:
        return self.blocks[name].size if name in self.blocks else extent.const or 0

    def place(self, name: str, offset: int) -> IntExpr:
        block = self.blocks.get(name)
        return int_expr(offset) if block is None else block.size * var(block.outer) + offset

    def at(self, step: Einsum, point: Point, number: int, passed_on: bool) -> list[PointStep]:
        """The step at one point: computed, and stored where it is a result."""
        index = tuple(self.facts.simplify(substitute(var(r.name), point)) for r in step.ranks)
        expr = self.settled(transform(step.expr.substitute(point), self.local))
        where = self.exists(step, point)
        stored = step.out in self.results
        if not (stored and passed_on):
            name = step.out if stored else f"{step.out}.{number}"
            return [PointStep((name,), (expr,), step.dtypes, None, where, index, (stored,), where is not None)]
        name = f"{step.out}.{number}"
        kept = PointStep((name,), (expr,), step.dtypes, None, where, index, (False,))
        out = Access(name, index)
        return [kept, PointStep((step.out,), (out,), step.dtypes, None, where, index, (True,), where is not None)]

    def exists(self, step: Einsum, point: Point) -> Expr | None:
        """The condition under which a blocked point is within its extent; None when it always is."""
        guard: Expr | None = None
        for r in step.ranks:
            if r.name in self.blocks and not self.facts.less(point[r.name], r.extent):
                here = apply("lt", Index(point[r.name]), Index(r.extent))
                guard = here if guard is None else apply("and", guard, here)
        return guard

    def local(self, e: Expr) -> Expr | None:
        """An access to an earlier step's tensor by the name of its point."""
        if not isinstance(e, Access) or e.tensor not in self.made:
            return None
        producer = self.made[e.tensor]
        number = 0
        for r, i in zip(producer.ranks, e.index, strict=True):
            if r.name in self.outer:
                continue
            block = self.blocks.get(r.name)
            offset = self.facts.simplify(i if block is None else i - block.size * var(block.outer))
            assert offset.const is not None, (str(e), str(offset))
            number = number * self.size(r.name, r.extent) + offset.const
        return Access(f"{e.tensor}.{number}", e.index)

    def settled(self, e: Expr) -> Expr:
        """`e` with its indices simplified and the pieces chosen that hold at this point."""
        return transform(e, lambda n: _settle(n, self.facts))


def _settle(e: Expr, facts: Facts) -> Expr | None:
    if isinstance(e, Index):
        simple = facts.simplify(e.expr)
        return Index(simple) if simple != e.expr else None
    return settle(e)


__all__ = ["unroll_block"]
