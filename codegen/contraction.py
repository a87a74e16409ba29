"""Contractions: register tiles of rows by vectors, fed by scalar broadcasts of one operand and vectors of the other.

    O[m, n] = sum(k) A[m, k] * B[k, n]

The *column* rank n has unit stride in B and none in A: its lanes hold outputs. The *row* rank m moves A only. An MR x NR
tile of sums stays in registers over the whole reduction; what follows the contraction point by point (bias, activation,
residual) is applied to the tile before it is stored. Every other free rank (batch, groups, image rows) is a task rank.

Source: register blocking as in Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (TOMS 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dlc.codegen.borders import Pair, condition, outside, unproven
from dlc.codegen.contraction_roles import Roles, access_of, choose_roles, factors_of, panel_width
from dlc.codegen.contraction_tiles import ROW_BLOCK, RowTiles, choose_tile, guarded
from dlc.codegen.gpu_targets import MATRIX_UNIT
from dlc.codegen.grouped_dot import GroupedSum, find_grouping, rows_of_tile
from dlc.codegen.matrix_unit import ROWS
from dlc.codegen.merge import merge_ranks
from dlc.codegen.nest import PointStep
from dlc.codegen.point import Emitter, Slot, Space, compute_type
from dlc.codegen.prefetch import MOST_ROWS, Stream, find_stream, streamed_vectors
from dlc.codegen.sweep import keep
from dlc.costmodel.tiles import panel_columns
from dlc.ir.dtype import DType
from dlc.ir.expr import Expr
from dlc.ir.extent import IntExpr, int_expr, minimum, product, substitute, var, variables
from dlc.ir.facts import Facts
from dlc.ir.products import bordered_operands

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered

MANY_BLOCKS = 6  # of rows: the last one, which is smaller, then matters little for the threads' shares


def lower_contraction(low: KernelLowering, roles: Roles) -> Lowered:
    """Lower the kernel with register tiles."""
    return _ContractionLowering(low, roles).run()


class _ContractionLowering:
    def __init__(self, low: KernelLowering, roles: Roles) -> None:
        self.low, self.em, self.b, self.target = low, low.em, low.builder, low.target
        steps = [low.point_step(s, low.stored(s)) for s in low.steps]
        ranks = low.outer_ranks()
        ranks = {n: e for n, e in ranks.items() if n != roles.col} | {roles.col: ranks[roles.col]}
        rest = {n: e for n, e in ranks.items() if n != roles.col}
        # Merge what can be merged among the rows; the columns stay by themselves (they may lie in panels).
        steps, rest = merge_ranks(self.em, steps, rest)
        operands = bordered_operands(steps[0].exprs[0])
        assert operands is not None
        again = choose_roles(self.em, operands, {**rest, roles.col: ranks[roles.col]}, self.target.lanes)
        assert again is not None
        self.roles, self.rest = again, rest
        self.rows_first = again.rows is operands[0]
        self.columns = {**rest, roles.col: ranks[roles.col]}[again.col]
        self.rest = {n: e for n, e in {**rest, roles.col: ranks[roles.col]}.items() if n != again.col}
        self.steps = self._in_panels(steps)
        self.ahead: Stream | None = None

    def _in_panels(self, steps: list[PointStep]) -> list[PointStep]:
        """Split the column rank into panel `panel` and column `column` of it, everywhere."""
        col = self.roles.col
        lanes = self._lanes(steps)
        packed = panel_width(access_of(self.roles.cols).index, col)
        rows = self.rest.get(self.roles.row) if self.roles.row else None
        streamed = None if packed else self._streamed(steps[0], lanes)
        width = packed or streamed or panel_columns(self.columns, lanes, self.target.vector_registers)
        width = width if width % lanes == 0 else lanes
        self.tile = choose_tile(width, lanes, rows, self.target)
        if streamed:  # every row in the one tile that reads the columns
            self.tile = replace(self.tile, rows=1 if rows is None else rows.const or self.tile.rows)
        if self.roles.words:
            floats = compute_type(steps[0].dtypes[0]).is_float
            extent = self.rest.get(self.roles.row) if self.roles.row else None
            self.tile = replace(self.tile, rows=rows_of_tile(self.tile.vectors, extent, self.target, floats=floats))
        self.panels = (self.columns + (width - 1)) // width
        ranks = {n: e for n, e in self.em.facts.ranks.items() if n != col}
        self.em.facts = Facts({**ranks, "panel": self.panels, "column": int_expr(width)}, self.em.facts.symbols)
        env = {col: var("panel") * width + var("column")}
        facts = self.em.facts
        return [
            replace(
                s,
                index=tuple(facts.simplify(substitute(i, env)) for i in s.index),
                exprs=tuple(e.substitute(env) for e in s.exprs),
                where=s.where.substitute(env) if s.where is not None else None,
            )
            for s in steps
        ]

    def _streamed(self, step: PointStep, lanes: int) -> int | None:
        """Columns of a panel when few rows go through a large operand once, which lies as it came; else None."""
        rows = self.rest[self.roles.row].const if self.roles.row is not None else 1
        if rows is None or rows > MOST_ROWS or self.columns.const is None or not step.reduced:
            return None
        cols = access_of(self.roles.cols)
        if find_stream(self.em, cols, next(reversed(step.reduced)), self.target) is None:
            return None
        groups = 1
        for name, extent in self.rest.items():
            groups *= (extent.const or 1) if name in cols.variables else 1
        return streamed_vectors(self.columns.const, rows, lanes, self.target, groups) * lanes

    def _lanes(self, steps: Sequence[PointStep]) -> int:
        kind = compute_type(steps[0].dtypes[0])
        return self.target.lanes if kind.bits <= 32 else self.target.lanes // 2

    def run(self) -> Lowered:
        row = self.roles.row
        batch = {n: e for n, e in self.rest.items() if n != row}
        tile = self.tile
        row_extent = self.rest[row] if row is not None else int_expr(1)
        block = max(tile.rows, ROW_BLOCK // tile.rows * tile.rows)
        blocks = (row_extent + (block - 1)) // block
        if 1 < tile.rows == row_extent.const and tile.rows <= MOST_ROWS and self.steps[0].reduced:
            cols = access_of(factors_of(self.steps[0].exprs[0])[self.rows_first])
            self.ahead = find_stream(self.em, cols, next(reversed(self.steps[0].reduced)), self.target)
        # Tasks that follow each other share a panel of columns as long as the columns' operand does not move; where all panels
        # are near they share the rows, whose lines are then read and written as wholes. (Of few blocks threads get unequal parts.)
        moves = access_of(self.roles.cols).variables
        tasks = {n: e for n, e in batch.items() if n in moves}
        still = {n: e for n, e in batch.items() if n not in moves} | {"block": blocks}
        panel = {"panel": self.panels}
        many = self.em.facts.nonneg(product(still.values()) - MANY_BLOCKS)
        tasks |= still | panel if many and self._columns_are_near() else panel | still
        base = {"panel": int_expr(0), "block": int_expr(0)}
        base |= self.low.task_base({n: e for n, e in tasks.items() if e.const != 1})
        first = base.pop("block") * block
        last = minimum(first + block, row_extent)
        mask = self._column_mask(base["panel"])
        if row is None:
            self._tile(self.em.scoped(), base, tile.rows, mask)
        else:
            tiles = RowTiles(self.em, row, row_extent, tile.rows, self.steps[0])
            tiles.run(first, last, lambda em, rows, at: self._tile(em.scoped(), {**base, row: at}, rows, mask))
        work = int_expr(2 * tile.columns)
        work = work * (minimum(row_extent, block) if row_extent.const is None else min(row_extent.const, block))
        return self.low.finish(product(tasks.values()), work * product(self.steps[0].reduced.values()))

    def _columns_are_near(self) -> bool:
        """Whether all that tasks with the same rows read of the columns' operand stays in a quarter of the second cache."""
        cols = access_of(self.roles.cols)
        bytes_ = self.em.dtype(cols.tensor).bytes
        for extent in (self.columns, *(e for n, e in self.steps[0].reduced.items() if n in cols.variables)):
            if extent.const is None:
                return False
            bytes_ *= extent.const
        return bytes_ <= self.target.l2_bytes // 4

    def _column_mask(self, panel: IntExpr) -> str | None:
        """Mask of the columns that exist; None when every panel is full."""
        width = self.tile.columns
        left = self.columns.const
        if left is not None and left % width == 0:
            return None
        count = self.columns - panel * width
        masks = [self.b.mask(self.tile.lanes, count - q * self.tile.lanes) for q in range(self.tile.vectors)]
        return self.b.stack(*masks)

    def _space(self, base: dict[str, IntExpr], rows: int, mask: str | None) -> Space:
        tile = self.tile
        slots = (Slot(self.roles.row or "@none", rows, 1), Slot("column", tile.vectors, tile.lanes))
        return Space({**base, "column": int_expr(0)}, "column", tile.lanes, slots, mask)

    def _tile(self, em: Emitter, base: dict[str, IntExpr], rows: int, mask: str | None) -> None:
        step = self.steps[0]
        assert step.reduce is not None
        matrices = self.roles.words and self.target.has(MATRIX_UNIT) and rows % ROWS == 0
        if matrices and mask is not None:  # one of its own, for it lies as the matrix does
            mask = self._column_mask(base["panel"])
        space = self._space(base, rows, mask)
        kind = compute_type(step.reduce.accumulator or step.dtypes[0])
        acc = em.b.const(space.tile(kind), 0.0)
        if self.roles.words:
            acc = self._grouped(em, step, space, acc, matrices=matrices)
        else:
            acc = self._reduce(em, step, space, kind, dict(step.reduced), acc)
        row_by_row = (
            self.roles.words and kind.is_float
        )  # rounded to bf16 many times, each with its look: short chains mix better
        if not row_by_row or matrices or rows == 1 or self.roles.row is None:
            self._finish(em, space, acc)
            return
        for r in range(rows):
            one = self._space({**base, self.roles.row: base[self.roles.row] + r}, 1, mask)
            row = em.b.stack(em.b.stack(*(em.b.slice(acc, r, q) for q in range(self.tile.vectors))))
            self._finish(em.scoped(), one, row)

    def _finish(self, em: Emitter, space: Space, sums: str) -> None:
        """What follows the contraction, for the points of `space`."""
        keep(em, self.steps[0], [sums], space)
        for later in self.steps[1:]:
            where = em.value(later.where, space) if later.where is not None else None
            keep(em, later, [em.value(e, space, where) for e in later.exprs], space)

    def _grouped(self, em: Emitter, step: PointStep, space: Space, acc: str, *, matrices: bool) -> str:
        factors = [access_of(f) for f in factors_of(step.exprs[0])]
        rows, cols = factors if self.rows_first else reversed(factors)
        grouping = find_grouping(em, rows, cols, "column", self.tile.lanes)
        assert grouping is not None
        return GroupedSum(em, rows, cols, grouping, matrices).run(space, step.reduced, acc)

    def _reduce(
        self, em: Emitter, step: PointStep, space: Space, kind: DType, loops: dict[str, IntExpr], acc: str
    ) -> str:
        pairs = unproven(em, guarded(step))
        settled = [p for p in pairs if variables(p[0]).isdisjoint(loops.keys() | space.moving)]
        if settled:
            return self._inside_or_not(em, step, space, kind, loops, acc, settled)
        if not loops:
            a, b = (em.b.cast(em.value(f, self._operand_space(f, space)), kind) for f in factors_of(step.exprs[0]))
            return em.b.op("fma", a, b, acc)
        name = next(iter(loops))
        rest = {n: e for n, e in loops.items() if n != name}
        if loops[name].const == 1:
            return self._reduce(em, step, space.at(name, int_expr(0)), kind, rest, acc)
        if any(name in variables(i) and not variables(i).isdisjoint(space.moving) for i, _ in pairs):
            for k in range(loops[name].const or 0):  # which rows are outside is another constant for each tap
                acc = self._reduce(em.scoped(), step, space.at(name, int_expr(k)), kind, rest, acc)
            return acc
        with em.b.loop(name, 0, loops[name], carries=(acc,), unroll=1) as loop:
            inner = em.scoped()
            if not rest and self.ahead is not None:
                self.ahead.ask(inner, space.at(name, loop.index))
            loop.yields(self._reduce(inner, step, space.at(name, loop.index), kind, rest, loop.carries[0]))
        return loop.results[0]

    def _inside_or_not(
        self,
        em: Emitter,
        step: PointStep,
        space: Space,
        kind: DType,
        loops: dict[str, IntExpr],
        acc: str,
        pairs: list[Pair],
    ) -> str:
        """The rest of the sum where these indices, the same for all of it, are within their extents, and where they are not."""
        beyond = replace(step, exprs=tuple(outside(e, em, pairs) for e in step.exprs))
        with em.b.branch(condition(pairs, space)) as branch:
            with branch.then():
                branch.yields(self._reduce(em.assuming(pairs), step, space, kind, loops, acc))
            with branch.orelse():
                branch.yields(self._reduce(em.scoped(), beyond, space, kind, loops, acc))
        return branch.results[0]

    def _operand_space(self, factor: Expr, space: Space) -> Space:
        """Packed panels are padded, so their loads need no mask; other columns do."""
        if "column" not in factor.variables:
            return replace(space, mask=None)
        a = access_of(factor)
        if "panel" not in a.variables:
            return space
        padded = any(self.em.facts.simplify(i) == var("panel") for i in a.index)
        return replace(space, mask=None) if padded else space


__all__ = ["lower_contraction"]
