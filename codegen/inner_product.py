"""Contractions of operands that both have the reduced rank contiguous: inner products, the lanes along that rank.

    O[m, n] = sum(k) A[m, k] * B[n, k]

Nothing is packed: a tile of R rows by C columns holds a register of partial sums for each of its points, to which every
vector of A and of B is brought once. After the last vector the registers of a row are folded together (`tile.Fold`), C of
them into one of C lanes along the columns, and what follows the sum point by point runs on those. This suits few rows, as
the queries of one decoding step that go through a cache of keys, and small products; where rows are many, packed panels
(`contraction.py`) need no folds.

A large operand that passes through only once is read at the memory's pace: its columns one after the other, as they lie, and
under several rows, whose arithmetic fills the window in which the processor looks ahead, asked for beforehand (`stream.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dlc.codegen.contraction_tiles import ROW_BLOCK
from dlc.codegen.merge import merge_ranks
from dlc.codegen.nest import in_tiles
from dlc.codegen.point import Emitter, Slot, Space, compute_type
from dlc.codegen.prefetch import MOST_ROWS, Stream, find_stream
from dlc.codegen.sweep import keep
from dlc.codegen.target import Target
from dlc.codegen.tile import TileType
from dlc.ir.dtype import DType
from dlc.ir.expr import Access, Cast, Expr
from dlc.ir.extent import IntExpr, int_expr, minimum, product, split_linear
from dlc.ir.products import product_operands

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered

COLUMN_BLOCK = 64  # columns of one task: enough to be worth starting, and few enough for every core to have some
_MOST_COLUMNS = 8  # streams of memory that are read side by side
_ONE_BY_ONE = 4  # rows that leave the processor time to fold each column's sums by themselves, while it waits for memory
_UNROLL = 2  # vectors per jump


@dataclass(frozen=True)
class InnerProduct:
    """What each rank is: `col` moves one operand, `row` (which may be None) the other; both are contiguous along `along`."""

    row: str | None
    col: str
    along: str


def find_inner_product(low: KernelLowering) -> InnerProduct | None:
    """The ranks' roles when the kernel's first step is a sum of products of contiguous rows, else None."""
    first = low.steps[0]
    if first.reduce is None or first.reduce.op != "sum" or first.where is not None or len(first.exprs) != 1:
        return None
    if any(s.reduce is not None for s in low.steps[1:]) or not compute_type(first.dtype).is_float:
        return None
    operands = product_operands(first.exprs[0])
    if operands is None:
        return None
    reduced = {r.name: r.extent for r in first.reduced}
    return _roles(low.em, operands, reduced, low.outer_ranks(), _lanes(low.target, first.reduce.accumulator or first.dtype))


def _lanes(target: Target, dtype: DType) -> int:
    return target.lanes if compute_type(dtype).bits <= 32 else target.lanes // 2


def _roles(
    em: Emitter, operands: tuple[Expr, Expr], reduced: Mapping[str, IntExpr], free: dict[str, IntExpr], lanes: int
) -> InnerProduct | None:
    """The longest rank along which both are contiguous, with ranks that move one of them; results are best stored as vectors."""
    accesses = [_access(e) for e in operands]
    if any(a.tensor not in em.storage for a in accesses):
        return None
    along = [n for n, e in reduced.items() if (e.const is None or e.const >= lanes) and all(_slope(em, a, n) == 1 for a in accesses)]
    best: tuple[int, InnerProduct] | None = None
    for cols, rows in (accesses, accesses[::-1]):
        names = [n for n in free if n in cols.variables and n not in rows.variables and _linear(em, cols, n)]
        others = [n for n in free if n in rows.variables and n not in cols.variables and _linear(em, rows, n)]
        for name in names if along else []:
            score = min(free[name].const or 64, 64) + (32 if name == next(reversed(free)) else 0)
            if best is None or score > best[0]:
                row = max(others, key=lambda n: free[n].const or 64, default=None)
                best = score, InnerProduct(row, name, max(along, key=lambda n: reduced[n].const or 1 << 20))
    return best[1] if best is not None else None


def _access(e: Expr) -> Access:
    inner = e.arg if isinstance(e, Cast) else e
    assert isinstance(inner, Access)
    return inner


def _linear(em: Emitter, a: Access, name: str) -> bool:
    return split_linear(em.flat(em.storage[a.tensor], a.index), name) is not None


def _slope(em: Emitter, a: Access, name: str) -> int | None:
    parts = split_linear(em.flat(em.storage[a.tensor], a.index), name)
    return parts[0].const if parts is not None else None


def tile_of(rows: IntExpr | None, columns: IntExpr, lanes: int, registers: int) -> tuple[int, int]:
    """Rows and columns of a tile: sums, a vector of every row and one of the columns' fit the registers, rows come out even.

    The columns are a power of two, so that their sums fill the lanes of one register (`tile.Fold`).
    """
    most = 6 if registers >= 32 else 2
    height = 1 if rows is None else 4 if rows.const is None else -(-rows.const // -(-rows.const // most))
    height = min(height, most)
    width = min(_MOST_COLUMNS, lanes)
    while width > 1 and (height * (width + 1) + 2 > registers or (columns.const is not None and width > columns.const)):
        width //= 2
    return height, width


def lower_inner_product(low: KernelLowering, roles: InnerProduct) -> Lowered:
    """Lower the kernel with tiles of partial sums."""
    return _InnerProductLowering(low, roles).run()


class _InnerProductLowering:
    def __init__(self, low: KernelLowering, roles: InnerProduct) -> None:
        self.low, self.em, self.b = low, low.em, low.builder
        steps = [low.point_step(s, low.stored(s)) for s in low.steps]
        ranks = low.outer_ranks()
        rest = {n: e for n, e in ranks.items() if n != roles.col}
        self.steps, rest = merge_ranks(self.em, steps, rest)
        self.ranks = {**rest, roles.col: ranks[roles.col]}
        operands = product_operands(self.steps[0].exprs[0])
        reduce = self.steps[0].reduce
        assert operands is not None and reduce is not None
        self.operands, self.kind = operands, compute_type(reduce.accumulator or self.steps[0].dtypes[0])
        self.lanes = _lanes(low.target, self.kind)
        again = _roles(self.em, operands, self.steps[0].reduced, self.ranks, self.lanes)
        assert again is not None
        self.roles = again
        self.ahead: Stream | None = None

    def run(self) -> Lowered:
        row, col = self.roles.row, self.roles.col
        columns, rows = self.ranks[col], self.ranks[row] if row is not None else int_expr(1)
        height, width = tile_of(rows if row is not None else None, columns, self.lanes, self.low.target.vector_registers)
        deep, wide = ROW_BLOCK // height * height, COLUMN_BLOCK
        columns_operand = _access(next(e for e in self.operands if col in _access(e).variables))
        stream = find_stream(self.em, columns_operand, col, self.low.target)
        if stream is not None and rows.const is not None and rows.const <= MOST_ROWS:
            self.ahead = stream if rows.const > 1 else None
            width = width if rows.const > _ONE_BY_ONE else 1
        # Tasks that follow each other share a block of columns as long as their operand does not move.
        moves = columns_operand.variables
        batch = {n: e for n, e in self.ranks.items() if n not in (row, col)}
        tasks = {n: e for n, e in batch.items() if n in moves} | {"columns": (columns + (wide - 1)) // wide}
        tasks |= {n: e for n, e in batch.items() if n not in moves} | {"rows": (rows + (deep - 1)) // deep}
        base = self.low.task_base(tasks)
        left, top = base.pop("columns") * wide, base.pop("rows") * deep
        right, bottom = minimum(left + wide, columns), minimum(top + deep, rows)

        def column_tile(c: int, at: IntExpr) -> None:
            here = {**base, col: at}
            if row is None:
                self._tile(here, 1, c)
            else:
                in_tiles(self.b, row, top, bottom, rows.const, height, lambda r, i: self._tile({**here, row: i}, r, c))

        in_tiles(self.b, col, left, right, columns.const, width, column_tile)
        work = minimum(rows, deep) * minimum(columns, wide) * 2
        return self.low.finish(product(tasks.values()), work * product(self.steps[0].reduced.values()))

    def _tile(self, base: dict[str, IntExpr], rows: int, columns: int) -> None:
        em, first = self.em.scoped(), self.steps[0]
        row = Slot(self.roles.row or "@none", rows, 1)
        space = Space(base, slots=(row, Slot(self.roles.col, columns, 1)))
        total = self.b.fold("add", self._sums(em, space))
        lanes = Space(base, self.roles.col if columns > 1 else None, columns, (row,))
        keep(em, first, [total], lanes)
        for later in self.steps[1:]:
            where = em.value(later.where, lanes) if later.where is not None else None
            keep(em, later, [em.value(e, lanes, where) for e in later.exprs], lanes)

    def _sums(self, em: Emitter, space: Space) -> str:
        """A register of partial sums for each point of a tile."""
        sums = self.b.const(TileType(self.kind, tuple(s.count for s in space.slots), self.lanes), 0.0)
        outer = {n: e for n, e in self.steps[0].reduced.items() if n != self.roles.along}
        return self._sum(em, space, outer, sums)

    def _sum(self, em: Emitter, space: Space, loops: Mapping[str, IntExpr], sums: str) -> str:
        """`sums` with the products over `loops` and the contiguous rank added, lane by lane."""
        if not loops:
            return self._vectors(em, space, sums)
        name = next(iter(loops))
        rest = {n: e for n, e in loops.items() if n != name}
        if loops[name].const == 1:
            return self._sum(em, space.at(name, int_expr(0)), rest, sums)
        with self.b.loop(name, 0, loops[name], carries=(sums,)) as loop:
            loop.yields(self._sum(em.scoped(), space.at(name, loop.index), rest, loop.carries[0]))
        return loop.results[0]

    def _vectors(self, em: Emitter, space: Space, sums: str) -> str:
        """Whole vectors along the contiguous rank, then what is left under a mask."""
        along, lanes = self.roles.along, self.lanes
        extent = self.steps[0].reduced[along]
        whole = extent // lanes * lanes
        with self.b.loop(along, 0, whole, lanes, carries=(sums,), unroll=_UNROLL) as loop:
            if self.ahead is not None:
                self.ahead.ask(em, space.at(along, loop.index))
            loop.yields(self._add(em.scoped(), space, loop.index, None, loop.carries[0]))
        if extent.const is not None and extent.const % lanes == 0:
            return loop.results[0]
        with self.b.loop(along, whole, extent, lanes, carries=(loop.results[0],)) as rest:
            mask = self.b.mask(lanes, extent - rest.index)
            rest.yields(self._add(em.scoped(), space, rest.index, mask, rest.carries[0]))
        return rest.results[0]

    def _add(self, em: Emitter, space: Space, at: IntExpr, mask: str | None, sums: str) -> str:
        here = Space({**space.base, self.roles.along: at}, self.roles.along, self.lanes, space.slots, mask)
        x, y = (self.b.cast(em.value(e, here), self.kind) for e in self.operands)
        return self.b.op("fma", x, y, sums)


__all__ = ["InnerProduct", "find_inner_product", "lower_inner_product", "tile_of"]
