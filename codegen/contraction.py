"""Contractions: register tiles of rows by vectors, fed by scalar broadcasts of one operand and vectors of the other.

    O[m, n] = sum(k) A[m, k] * B[k, n]

The *column* rank n has unit stride in B and none in A: its lanes hold outputs. The *row* rank m moves A only. An MR x NR
tile of sums stays in registers over the whole reduction; what follows the contraction point by point (bias, activation,
residual) is applied to the tile before it is stored. Every other free rank (batch, groups, image rows) is a task rank.

Source: register blocking as in Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication (TOMS 2008).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dlc.codegen.borders import Pair, condition, outside, safe_range, unproven
from dlc.codegen.grouped_dot import GroupedSum, find_grouping, rows_of_tile
from dlc.codegen.merge import merge_ranks
from dlc.codegen.nest import PointStep, in_tiles
from dlc.codegen.point import Emitter, Slot, Space, compute_type
from dlc.codegen.prefetch import MOST_ROWS, Stream, find_stream, streamed_vectors
from dlc.codegen.sweep import keep
from dlc.codegen.target import Target
from dlc.costmodel.tiles import panel_columns
from dlc.ir.dtype import DType
from dlc.ir.expr import Access, Apply, Cast, Expr, accesses
from dlc.ir.extent import (
    IntExpr,
    Mod,
    atoms,
    int_expr,
    maximum,
    minimum,
    product,
    split_linear,
    substitute,
    var,
    variables,
)
from dlc.ir.facts import Facts
from dlc.ir.products import bordered_operands, plain_access

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered

_LONG = 7  # rows that make a tile worth having; among ranks this long the stride decides
MOST_EDGES = 4  # tiles that are written out one by one because a border cuts them
ROW_BLOCK = 128  # rows of one task: the operand's rows stay in L2 while the columns' panel stays in L1

MANY_BLOCKS = 6  # of rows: the last one, which is smaller, then matters little for the threads' shares


@dataclass(frozen=True)
class Roles:
    """What each rank of a contraction is.

    Attributes:
        rows: the operand read by scalar broadcast; cols: the operand read by vectors.
        row, col: the ranks that move only one of them (`row` may be None).
        words: whether several terms of the sum share a 32-bit word of each operand.
    """

    rows: Expr
    cols: Expr
    row: str | None
    col: str
    words: bool = False


def find_contraction(low: KernelLowering) -> Roles | None:
    """The roles of the kernel's first step when it is a contraction that register tiles suit, else None."""
    first = low.steps[0]
    if first.reduce is None or first.reduce.op != "sum" or first.where is not None or len(first.exprs) != 1:
        return None
    if any(s.reduce is not None for s in low.steps[1:]):
        return None
    operands = bordered_operands(first.exprs[0])
    if operands is None:
        return None
    free = {r.name: r.extent for r in first.ranks}
    roles = choose_roles(low.em, operands, free, low.target.lanes)
    if roles is None or not (roles.words or compute_type(first.dtype).is_float):
        return None
    return roles


def _access(e: Expr) -> Access:
    inner = e.arg if isinstance(e, Cast) else e
    assert isinstance(inner, Access)
    return inner


def choose_roles(em: Emitter, operands: tuple[Expr, Expr], free: dict[str, IntExpr], lanes: int) -> Roles | None:
    """Pick the column rank (unit stride in one operand, absent from the other, long) and the row rank."""
    best: tuple[float, Roles] | None = None
    for cols, rows in (operands, operands[::-1]):
        a, b = _access(rows), _access(cols)
        if plain_access(cols) is None:
            continue
        if a.tensor not in em.storage or b.tensor not in em.storage:
            return None
        for name, extent in free.items():
            if name in a.variables or name not in b.variables or (extent.const or 16) < 2:
                continue
            words = find_grouping(em, a, b, name, lanes) if plain_access(rows) is not None else None
            if _panel_slope(em, b, name, extent) != (1 if words is None else words.size):
                continue
            row = _row_rank(em, a, b, free, name)
            score = float(min(extent.const or 64, 64)) + (32.0 if row is not None else 0.0)
            if best is None or score > best[0]:
                best = (score, Roles(rows, cols, row, name, words is not None))
    return best[1] if best is not None else None


def _panel_width(index: tuple[IntExpr, ...], name: str) -> int | None:
    """NR when `name` is stored in panels (`B[n // NR, ..., n % NR]`)."""
    for i in index:
        for atom in atoms(i):
            if isinstance(atom, Mod) and atom.num == var(name) and atom.den.const is not None:
                return atom.den.const
    return None


def _panel_slope(em: Emitter, b: Access, name: str, extent: IntExpr) -> int | None:
    """Stride of `name` in `b` inside one panel."""
    width = _panel_width(b.index, name)
    facts = em.facts
    index = b.index
    if width is not None:
        facts = em.facts.with_ranks({"panel": (extent + (width - 1)) // width, "column": int_expr(width)})
        index = tuple(facts.simplify(substitute(i, {name: var("panel") * width + var("column")})) for i in index)
        name = "column"
    parts = split_linear(facts.simplify(em.storage[b.tensor].offset(index)), name)
    return parts[0].const if parts is not None else None


def _row_rank(em: Emitter, a: Access, b: Access, free: dict[str, IntExpr], col: str) -> str | None:
    """The free rank that moves `a` linearly and not `b`: long enough for a tile, then the one with the least stride.

    Rows near each other share cache lines and pages: in an image the pixels of a line, not those of a column.
    """
    best: tuple[int, int, str] | None = None
    for name, extent in free.items():
        if name == col or name in b.variables or name not in a.variables or extent.const == 1:
            continue
        parts = split_linear(em.flat(em.storage[a.tensor], a.index), name)
        if parts is None:
            continue
        size = min(extent.const if extent.const is not None else _LONG, _LONG)
        stride = parts[0].const if parts[0].const is not None else 1 << 40
        if best is None or (size, -stride) > best[:2]:
            best = (size, -stride, name)
    return best[2] if best is not None else None


@dataclass(frozen=True)
class TileShape:
    """A register tile: MR rows by NV vectors of `lanes` columns."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


def choose_tile(columns: int, lanes: int, row_extent: IntExpr | None, target: Target) -> TileShape:
    """MR as large as the registers allow (sums, one row of vectors, one broadcast), dividing the rows if it can."""
    vectors = max(1, columns // lanes)
    most = max(1, min(14, (target.vector_registers - vectors - 1) // vectors))
    if vectors >= 3 and target.vector_registers >= 32:
        most = min(most, 8)
    if row_extent is None:
        return TileShape(1, vectors, lanes)
    size = row_extent.const
    if size is None:
        return TileShape(min(most, 8), vectors, lanes)
    embedded = target.vector_registers >= 32  # AVX-512 multiplies by a scalar in memory: no register for the broadcast
    if size <= most or (embedded and size * vectors + vectors <= target.vector_registers):
        return TileShape(size, vectors, lanes)
    # the fewest tiles; among those the smallest tile, so that the last one is nearly full
    tiles = -(-size // most)
    return TileShape(-(-size // tiles), vectors, lanes)


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
        packed = _panel_width(_access(self.roles.cols).index, col)
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
        cols = _access(self.roles.cols)
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
            cols = _access(_factors(self.steps[0].exprs[0])[self.rows_first])
            self.ahead = find_stream(self.em, cols, next(reversed(self.steps[0].reduced)), self.target)
        # Tasks that follow each other share a panel of columns as long as the columns' operand does not move; where all panels
        # are near they share the rows, whose lines are then read and written as wholes. (Of few blocks threads get unequal parts.)
        moves = _access(self.roles.cols).variables
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
            self._rows(row, first, last, lambda em, rows, at: self._tile(em.scoped(), {**base, row: at}, rows, mask))
        work = int_expr(2 * tile.columns)
        work = work * (minimum(row_extent, block) if row_extent.const is None else min(row_extent.const, block))
        return self.low.finish(product(tasks.values()), work * product(self.steps[0].reduced.values()))

    def _rows(self, row: str, first: IntExpr, last: IntExpr, tile: Callable[[Emitter, int, IntExpr], None]) -> None:
        """Tiles of the rows `first <= row < last`: under guards only where a border of the operand cuts them."""
        extent, most = self.rest[row], self.tile.rows
        pairs = [p for p in unproven(self.em, self._guarded(self.steps[0])) if row in variables(p[0])]
        if not pairs:
            rest = (extent % most).const
            in_tiles(self.b, row, first, last, extent.const, most, lambda rows, at: tile(self.em, rows, at), rest=rest)
            return
        inner = self.em.assuming(pairs)
        lo, hi = safe_range(pairs, row, extent, self.steps[0].reduced)
        if (first.const, last.const) == (0, extent.const) and lo.const is not None and hi.const is not None:
            starts = range(0, last.const or 0, most)
            cut = [s for s in starts if not lo.const <= s <= hi.const - min(most, (extent - s).const or most)]
            if len(cut) <= MOST_EDGES:
                self._known_rows(row, starts, cut, inner, tile)
                return
        lo = self.b.named(minimum(maximum(lo, first), last))
        hi = self.b.named(maximum(minimum(hi, last), lo))
        in_tiles(self.b, row, lo, hi, None, most, lambda rows, at: tile(inner, rows, at))
        for start, stop in ((first, lo), (hi, last)):
            with self.b.loop(row, start, stop) as loop:
                tile(self.em, 1, loop.index)

    def _known_rows(
        self, row: str, starts: range, cut: list[int], inner: Emitter, tile: Callable[[Emitter, int, IntExpr], None]
    ) -> None:
        """Tiles of rows at known places: those that a border cuts, where each row's guards are constants, and the rest."""
        extent = self.rest[row].const or 0
        whole = [s for s in starts if s not in cut and s + starts.step <= extent]
        if whole:  # next to each other, as the range is that needs no guard
            with self.b.loop(row, whole[0], whole[-1] + starts.step, starts.step) as loop:
                tile(inner, starts.step, loop.index)
        for s in starts:
            if s not in whole:
                tile(self.em if s in cut else inner, min(starts.step, extent - s), int_expr(s))

    def _guarded(self, step: PointStep) -> list[Access]:
        return [a for a in accesses(step.exprs[0]) if a.default is not None]

    def _columns_are_near(self) -> bool:
        """Whether all that tasks with the same rows read of the columns' operand stays in a quarter of the second cache."""
        cols = _access(self.roles.cols)
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
        space = self._space(base, rows, mask)
        kind = compute_type(step.reduce.accumulator or step.dtypes[0])
        acc = em.b.const(space.tile(kind), 0.0)
        if self.roles.words:
            acc = self._grouped(em, step, space, acc)
        else:
            acc = self._reduce(em, step, space, kind, dict(step.reduced), acc)
        row_by_row = self.roles.words and kind.is_float  # rounded to bf16 many times, each with its look: short chains mix better
        if not row_by_row or rows == 1 or self.roles.row is None:
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

    def _grouped(self, em: Emitter, step: PointStep, space: Space, acc: str) -> str:
        factors = [_access(f) for f in _factors(step.exprs[0])]
        rows, cols = factors if self.rows_first else reversed(factors)
        grouping = find_grouping(em, rows, cols, "column", self.tile.lanes)
        assert grouping is not None
        return GroupedSum(em, rows, cols, grouping).run(space, step.reduced, acc)

    def _reduce(
        self, em: Emitter, step: PointStep, space: Space, kind: DType, loops: dict[str, IntExpr], acc: str
    ) -> str:
        pairs = unproven(em, self._guarded(step))
        settled = [p for p in pairs if variables(p[0]).isdisjoint(loops.keys() | space.moving)]
        if settled:
            return self._inside_or_not(em, step, space, kind, loops, acc, settled)
        if not loops:
            a, b = (em.b.cast(em.value(f, self._operand_space(f, space)), kind) for f in _factors(step.exprs[0]))
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
        a = _access(factor)
        if "panel" not in a.variables:
            return space
        padded = any(self.em.facts.simplify(i) == var("panel") for i in a.index)
        return replace(space, mask=None) if padded else space


def _factors(e: Expr) -> tuple[Expr, Expr]:
    assert isinstance(e, Apply)
    left, right = e.args
    return left, right


__all__ = ["Roles", "choose_roles", "find_contraction", "lower_contraction"]
