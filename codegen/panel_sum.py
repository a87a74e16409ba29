"""Sums with a constant whose columns lie in panels: what kernels that stream such a constant have in common.

    P[m, n, g] = sum(j) A[m, g, j] * W[n // 32, g, j, n % 32]
    R[m, n]    = sum(g) P[m, n, g] * S[n, g]

The lanes hold columns. A task has a panel of them and a block of rows; the sum over a group stays in registers, and so does the sum
over groups with what they have in common; what follows runs on the same tile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from dlc.codegen.merge import merge_ranks
from dlc.codegen.nest import PointStep, in_tiles
from dlc.codegen.point import Emitter, Slot, Space
from dlc.codegen.sweep import accumulate, identities, keep
from dlc.ir.einsum import Einsum, Rank, TensorType
from dlc.ir.expr import Access, Expr, accesses, map_indices
from dlc.ir.extent import IntExpr, int_expr, minimum, product, split_linear, substitute, var
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered


class PanelSum(Protocol):
    """What a kernel's first step multiplies: rows, and a constant in panels of columns."""

    @property
    def column(self) -> str: ...
    @property
    def codes(self) -> Access: ...
    @property
    def row_access(self) -> Access: ...


SumT = TypeVar("SumT", bound=PanelSum)
Recognise = Callable[[Einsum, Mapping[str, TensorType]], SumT | None]


def find_panels(low: KernelLowering, recognise: Recognise[SumT]) -> SumT | None:
    """The kernel's first step as such a sum, where those that follow run on its tile; else None."""
    first, *after = low.steps
    found = recognise(first, low.types)
    if found is None or any(s.reduce is not None for s in after[1:]):
        return None
    folded = {r.name for r in after[0].reduced} if after and after[0].reduce is not None else set()
    return found if low.moving(first) - folded == low.outer else None


@dataclass(frozen=True)
class Rows:
    """The rows of a task.

    Attributes:
        base: index of every other rank.
        first, last: of the rows, and how many there are in all where that is known.
        mask: of the panel's columns.
    """

    base: dict[str, IntExpr]
    first: IntExpr
    last: IntExpr
    extent: int | None
    mask: str | None


GroupSum = Callable[[Emitter, Space, str | None], str]
"""What was summed so far (None for nothing) plus the sum over a group, at the points of a tile."""


class PanelLowering(Generic[SumT]):
    """One kernel: the sum with the constant, perhaps one over groups, and what follows point by point."""

    def __init__(self, low: KernelLowering, found: SumT, width_at: int, recognise: Recognise[SumT]) -> None:
        self.low, self.em, self.b, self.target = low, low.em, low.builder, low.target
        steps = [low.point_step(s, low.stored(s)) for s in low.steps]
        ranks = low.outer_ranks()
        rest = {n: e for n, e in ranks.items() if n != found.column}
        steps, rest = merge_ranks(self.em, steps, rest)
        self.columns, self.rest = ranks[found.column], rest
        self.width = low.types[found.codes.tensor].shape[width_at].const or 0
        self.lanes = low.target.lanes
        self.vectors = self.width // self.lanes
        self.panels = (self.columns + (self.width - 1)) // self.width
        steps = self._in_panels(steps, found.column)
        self.first, self.after = steps[0], steps[1:]
        self.fold = self.after.pop(0) if self.after and self.after[0].reduce is not None else None
        self.sum = self._again(recognise)
        self.row = self._row()
        self.groups = dict(self.fold.reduced) if self.fold is not None else {}

    def _in_panels(self, steps: list[PointStep], column: str) -> list[PointStep]:
        ranks = {n: e for n, e in self.em.facts.ranks.items() if n != column}
        self.em.facts = Facts({**ranks, "panel": self.panels, "column": int_expr(self.width)}, self.em.facts.symbols)
        env = {column: var("column") if self.panels.const == 1 else var("panel") * self.width + var("column")}
        facts = self.em.facts
        return [
            replace(
                s,
                index=tuple(facts.simplify(substitute(i, env)) for i in s.index),
                exprs=tuple(_simplified(e.substitute(env), facts) for e in s.exprs),
                where=s.where.substitute(env) if s.where is not None else None,
            )
            for s in steps
        ]

    def _again(self, recognise: Recognise[SumT]) -> SumT:
        """The sum as it is over the merged ranks and panels."""
        step = self.first
        extents = {**self.rest, **self._fold_ranks(), "panel": self.panels, "column": int_expr(self.width)}
        ranks = tuple(Rank(n, e) for n, e in extents.items())
        whole = Einsum(step.outs, ranks, step.exprs, step.dtypes, step.reduce)
        found = recognise(whole, self.low.types)
        assert found is not None
        return found

    def _fold_ranks(self) -> dict[str, IntExpr]:
        return self.fold.reduced if self.fold is not None else {}

    def _row(self) -> str | None:
        """The rank of the tile's rows: the longest that moves the activations evenly."""
        best: tuple[int, str] | None = None
        a = self.sum.row_access
        for name, extent in self.rest.items():
            if extent.const == 1 or name not in a.variables or name in self.sum.codes.variables:
                continue
            if split_linear(self.em.flat(self.em.storage[a.tensor], a.index), name) is None:
                continue
            size = extent.const if extent.const is not None else 1 << 20
            if best is None or size > best[0]:
                best = size, name
        return best[1] if best is not None else None

    # --- tasks ---

    def _rows_of(self) -> IntExpr:
        return self.rest[self.row] if self.row is not None else int_expr(1)

    def _begin(self, block: int) -> tuple[dict[str, IntExpr], Rows]:
        """Ranks of the tasks, each of a panel and a block of rows, and the rows of this one."""
        rows = self._rows_of()
        batch = {n: e for n, e in self.rest.items() if n != self.row}
        moves = self.sum.codes.variables
        tasks = {n: e for n, e in batch.items() if n in moves} | {"panel": self.panels}
        tasks |= {n: e for n, e in batch.items() if n not in moves} | {"block": (rows + (block - 1)) // block}
        base = self.low.task_base(tasks)
        first = base.pop("block") * block
        return tasks, Rows(base, first, minimum(first + block, rows), rows.const, self._column_mask(base["panel"]))

    def _end(self, tasks: dict[str, IntExpr], block: int, terms: IntExpr) -> Lowered:
        """The kernel, of whose tasks each multiplies `terms` terms of every group."""
        rows = self._rows_of()
        work = int_expr(2 * self.width) * (minimum(rows, block) if rows.const is None else min(rows.const, block))
        return self.low.finish(product(tasks.values()), work * terms * product(self.groups.values()))

    def _column_mask(self, panel: IntExpr) -> str | None:
        """Mask of the columns that exist; None when every panel is full."""
        left = self.columns.const
        if left is not None and left % self.width == 0:
            return None
        count = self.columns - panel * self.width
        return self.b.stack(*(self.b.mask(self.lanes, count - q * self.lanes) for q in range(self.vectors)))

    def _tiles(self, rows: Rows, height: int, body: Callable[[int, IntExpr], None]) -> None:
        """`body` for every tile of a task's rows."""
        if self.row is None:
            body(1, int_expr(0))
        else:
            in_tiles(self.b, self.row, rows.first, rows.last, rows.extent, height, body)

    def _space(self, rows: Rows, count: int, at: IntExpr) -> Space:
        slots = (Slot(self.row or "@none", count, 1), Slot("column", self.vectors, self.lanes))
        base = {**rows.base, "column": int_expr(0), **({self.row: at} if self.row is not None else {})}
        return Space(base, "column", self.lanes, slots, rows.mask)

    # --- tiles that read the stream ---

    def _as_they_come(self, em: Emitter, rows: Rows, height: int, of_group: GroupSum) -> None:
        """Tiles that take the codes apart."""

        def tile(count: int, at: IntExpr) -> None:
            inner, space = em.scoped(), self._space(rows, count, at)
            if self.fold is None:
                total = of_group(inner, self._unmasked(space), None)
            else:
                start = self._nothing(inner, space)
                total = self._folded(inner, self._unmasked(space), of_group, start, dict(self.groups), scaled=False)
            self._finished(inner, space, total)

        self._tiles(rows, height, tile)

    def _nothing(self, em: Emitter, space: Space) -> str:
        """The sum over groups of none."""
        assert self.fold is not None
        return identities(em, self.fold, tuple(s.count for s in space.slots), self.lanes)[0]

    def _finished(self, em: Emitter, space: Space, total: str) -> None:
        """What follows the sum, point by point."""
        keep(em, self.fold or self.first, [total], space)
        for later in self.after:
            where = em.value(later.where, space) if later.where is not None else None
            keep(em, later, [em.value(e, space, where) for e in later.exprs], space)

    def _folded(
        self, em: Emitter, space: Space, of_group: GroupSum, total: str, groups: dict[str, IntExpr], *, scaled: bool
    ) -> str:
        """`total` plus the sum over `groups`."""
        fold = self.fold
        assert fold is not None
        if not groups:
            if scaled:
                return of_group(em, space, total)
            em.tiles[self.first.outs[0]] = (self.first.index, of_group(em, space, None))
            em.dtypes[self.first.outs[0]] = self.first.dtypes[0]
            return accumulate(em, fold, MONOIDS["sum"], fold.fold_types, space, (total,))[0]
        name, rest = next(iter(groups)), dict(list(groups.items())[1:])
        with self.b.loop(name, 0, groups[name], carries=(total,)) as loop:
            at = space.at(name, loop.index)
            loop.yields(self._folded(em.scoped(), at, of_group, loop.carries[0], rest, scaled=scaled))
        return loop.results[0]

    def _unmasked(self, space: Space) -> Space:
        """No mask where what moves with the columns lies in panels, which are padded."""
        types, steps = self.low.types, [self.first, *([self.fold] if self.fold is not None else [])]
        read = [a for s in steps for e in s.scalars for a in accesses(e) if "column" in a.variables and a.tensor in self.em.storage]
        padded = all(
            a.index[-1] == var("column") and types[a.tensor].shape[-1].const == self.width for a in read if a != self.sum.codes
        )
        return replace(space, mask=None) if padded else space


def _simplified(e: Expr, facts: Facts) -> Expr:
    return map_indices(e, facts.simplify)


def even(size: int | None, most: int) -> int:
    """Tiles of nearly equal height, as few as there can be."""
    return most if size is None else -(-size // -(-size // most)) if size else 1


__all__ = ["GroupSum", "PanelLowering", "Rows", "even", "find_panels"]
