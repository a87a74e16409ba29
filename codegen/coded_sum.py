"""Contractions with packed codes: a panel of columns is one stream of bytes, taken apart and decoded in registers.

    P[m, n, g] = sum(j) Q[m, 32*g + j] * W[n // 32, g, j // 8, n % 32, j % 4, j // 4 % 2]
    R[m, n]    = sum(g) cast<f32>(P[m, n, g] - Z[n, g] * T[m, g]) * S[n, g]

The lanes hold columns, a 32-bit word of a lane four neighbouring terms. Codes become bytes by a mask and shifts where whole
ones fit a byte, else by `unpack`; bytes become the numbers that they stand for by a lookup. The sum over a group stays in
registers, and so does the sum over groups with what they have in common; what follows runs on the same tile.

Few rows take up the codes in the tile. With more, a task unpacks its panel block by block into the core's own cache, where
every tile of rows reads it; floats have the group's factors multiplied in there.

Source: Tilus (arXiv 2504.12984), section 7: weights in the order of the registers, viewed and cast there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dlc.codegen.contraction import ROW_BLOCK
from dlc.codegen.merge import merge_ranks
from dlc.codegen.nest import PointStep, in_tiles
from dlc.codegen.point import Emitter, Slot, Space
from dlc.codegen.sweep import accumulate, identities, keep
from dlc.codegen.tile import TileType
from dlc.ir.coded_sums import TERMS, CodedSum, coded_sum
from dlc.ir.codes import coded
from dlc.ir.dtype import BF16, F32, F64, I8, I32, U8, DType
from dlc.ir.einsum import Einsum, Rank, einsum
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, accesses, map_indices, transform
from dlc.ir.extent import IntExpr, int_expr, minimum, product, split_linear, substitute, var
from dlc.ir.facts import Facts
from dlc.ir.interpret import eval_einsum
from dlc.ir.monoid import MONOIDS

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered

BLOCK_BYTES = 256 << 10
"""Of a panel unpacked at a time: a quarter of a core's second cache."""
_WORDS = 8  # words of a lane that one round of the innermost loop takes, at most


def find_coded(low: KernelLowering) -> CodedSum | None:
    """The kernel's first step as a sum of products with codes, where those that follow run on its tile; else None."""
    first, *after = low.steps
    found = coded_sum(first, low.types)
    if found is None or any(s.reduce is not None for s in after[1:]):
        return None
    folded = {r.name for r in after[0].reduced} if after and after[0].reduce is not None else set()
    return found if low.moving(first) - folded == low.outer else None


@dataclass(frozen=True)
class Bytes:
    """How a register of codes becomes bytes, and what these stand for.

    Attributes:
        bits: of a code.
        together: codes in the bits of one byte, each `TERMS` terms after the last.
        lanes: words of a register.
    """

    bits: int
    together: int
    lanes: int

    @property
    def stride(self) -> int:
        """Bytes from one register's codes to the next's."""
        return self.lanes * TERMS * self.together * self.bits // 8


def number_table(codes: Access, number: Expr, dtype: DType) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """What `number` is for each code."""
    count = 1 << dtype.bits
    numbers = (np.arange(count) % (dtype.codes if dtype.is_coded else 256)).astype(np.uint8)
    at = Access("@codes", (var("c"),))
    body = Cast(F64, transform(number, lambda e: at if e == codes else None))
    step = einsum("@numbers", (Rank("c", int_expr(count)),), body, F64)
    (values,) = eval_einsum(step, {"@codes": coded(numbers, dtype) if dtype.is_coded else numbers}, {})
    return values


class CodedLowering:
    """One kernel: the sum with codes, perhaps one over groups, and what follows point by point."""

    def __init__(self, low: KernelLowering, found: CodedSum) -> None:
        self.low, self.em, self.b, self.target = low, low.em, low.builder, low.target
        steps = [low.point_step(s, low.stored(s)) for s in low.steps]
        ranks = low.outer_ranks()
        rest = {n: e for n, e in ranks.items() if n != found.column}
        steps, rest = merge_ranks(self.em, steps, rest)
        self.columns, self.rest = ranks[found.column], rest
        self.width = low.types[found.codes.tensor].shape[3].const or 0
        self.lanes = low.target.lanes
        self.vectors = self.width // self.lanes
        self.panels = (self.columns + (self.width - 1)) // self.width
        steps = self._in_panels(steps, found.column)
        self.first, self.after = steps[0], steps[1:]
        self.fold = self.after.pop(0) if self.after and self.after[0].reduce is not None else None
        self.sum = self._again()
        self.row = self._row()
        of = low.types[self.sum.codes.tensor].dtype
        self.bytes = Bytes(of.bits, self.sum.together, self.lanes)
        self.kind = low.types[self.sum.row_access.tensor].dtype
        self.terms = self.first.reduced[self.sum.inner]
        self._numbers(of)
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

    def _again(self) -> CodedSum:
        """The sum as it is over the merged ranks and panels."""
        step = self.first
        ranks = tuple(Rank(n, e) for n, e in {**self.rest, **self._fold_ranks(), "panel": self.panels, "column": int_expr(self.width)}.items())
        whole = Einsum(step.outs, ranks, step.exprs, step.dtypes, step.reduce)
        found = coded_sum(whole, self.low.types)
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

    def _numbers(self, of: DType) -> None:
        """What the codes stand for: themselves, or what a table says; a zero point that is a literal is in the table."""
        number = self.sum.value
        self.zero = self.sum.zero
        if isinstance(self.zero, Const):
            number, self.zero = Apply("sub", (number, self.zero)), None
        table = number_table(self.sum.codes, number, of)
        plain = (table == np.arange(len(table))).all()
        self.table = None if plain else table

    # --- tasks ---

    def run(self) -> Lowered:
        rows = self.rest[self.row] if self.row is not None else int_expr(1)
        batch = {n: e for n, e in self.rest.items() if n != self.row}
        few = self._few()
        height = _even(rows.const, few) if self.row is not None else 1
        block = max(height, ROW_BLOCK // height * height)
        moves = self.sum.codes.variables
        tasks = {n: e for n, e in batch.items() if n in moves} | {"panel": self.panels}
        tasks |= {n: e for n, e in batch.items() if n not in moves} | {"block": (rows + (block - 1)) // block}
        base = self.low.task_base(tasks)
        first = base.pop("block") * block
        last = minimum(first + block, rows)
        mask = self._column_mask(base["panel"])
        if self.row is None:
            self._tile(self.em.scoped(), base, 1, mask, self._taken)
        else:
            row = self.row
            in_tiles(
                self.b, row, first, last, rows.const, height,
                lambda n, at: self._tile(self.em.scoped(), {**base, row: at}, n, mask, self._taken),
            )  # fmt: skip
        work = int_expr(2 * self.width) * (minimum(rows, block) if rows.const is None else min(rows.const, block))
        return self.low.finish(product(tasks.values()), work * self.terms * product(self.groups.values()))

    def _few(self) -> int:
        """Rows of a tile: sums of a group and of all of them, and what is being decoded, fit the registers."""
        sums = self.vectors * (2 if self.fold is not None else 1)
        spare = 2 * self.vectors + 3 if self.kind == I8 else self.vectors + 4
        return max(1, min(8, (self.target.vector_registers - spare) // sums))

    def _column_mask(self, panel: IntExpr) -> str | None:
        """Mask of the columns that exist; None when every panel is full."""
        left = self.columns.const
        if left is not None and left % self.width == 0:
            return None
        count = self.columns - panel * self.width
        return self.b.stack(*(self.b.mask(self.lanes, count - q * self.lanes) for q in range(self.vectors)))

    # --- one tile ---

    def _tile(self, em: Emitter, base: dict[str, IntExpr], rows: int, mask: str | None, words: Words) -> None:
        slots = (Slot(self.row or "@none", rows, 1), Slot("column", self.vectors, self.lanes))
        space = Space({**base, "column": int_expr(0)}, "column", self.lanes, slots, mask)
        if self.fold is None:
            total = self._sum(em, replace(space, mask=self._needed(self.first, mask)), words)
            keep(em, self.first, [total], space)
        else:
            keep(em, self.fold, self._folded(em, space, words), space)
        for later in self.after:
            where = em.value(later.where, space) if later.where is not None else None
            keep(em, later, [em.value(e, space, where) for e in later.exprs], space)

    def _folded(self, em: Emitter, space: Space, words: Words) -> tuple[str, ...]:
        """The sum over groups."""
        fold = self.fold
        assert fold is not None and fold.reduce is not None
        start = tuple(identities(em, fold, tuple(s.count for s in space.slots), self.lanes))
        here = replace(space, mask=self._needed(fold, self._needed(self.first, space.mask)))

        def nested(em: Emitter, here: Space, loops: dict[str, IntExpr], accs: tuple[str, ...]) -> tuple[str, ...]:
            if not loops:
                em.tiles[self.first.outs[0]] = (self.first.index, self._sum(em, here, words))
                em.dtypes[self.first.outs[0]] = self.first.dtypes[0]
                return accumulate(em, fold, MONOIDS["sum"], fold.fold_types, here, accs)
            name, rest = next(iter(loops)), dict(list(loops.items())[1:])
            with self.b.loop(name, 0, loops[name], carries=accs) as loop:
                loop.yields(*nested(em.scoped(), here.at(name, loop.index), rest, loop.carries))
            return loop.results

        return nested(em, here, dict(self.groups), start)

    def _needed(self, step: PointStep, mask: str | None) -> str | None:
        """No mask where what moves with the columns lies in panels, which are padded."""
        read = [a for e in step.scalars for a in accesses(e) if "column" in a.variables and a.tensor in self.em.storage]
        types = self.low.types
        padded = all(
            a.index[-1] == var("column") and types[a.tensor].shape[-1].const == self.width for a in read if a != self.sum.codes
        )
        return None if padded else mask

    def _sum(self, em: Emitter, space: Space, words: Words) -> str:
        """The sum over the terms of a group, at the points of a tile."""
        acc = self.b.const(space.tile(I32 if self.kind == I8 else F32), 0 if self.kind == I8 else 0.0)
        zero = None if self.zero is None else em.value(self.zero, space)
        step = TERMS * self.bytes.together
        steps = self.terms // step
        unroll = max(1, _WORDS // self.bytes.together)
        if steps.const is not None and steps.const % unroll:
            unroll = next(u for u in range(unroll, 0, -1) if steps.const % u == 0)
        with self.b.loop("word", 0, steps, carries=(acc,), unroll=unroll) as loop:
            inner, total = em.scoped(), loop.carries[0]
            for turn, word in enumerate(words(space, loop.index)):
                total = self._multiplied(inner, space, loop.index * step + turn * TERMS, word, zero, total)
            loop.yields(total)
        return loop.results[0]

    def _multiplied(self, em: Emitter, space: Space, at: IntExpr, word: str, zero: str | None, total: str) -> str:
        """`total` plus the products of four terms from `at` on with the bytes of `word`."""
        b = self.b
        if self.kind == I8:
            number = word if self.table is None else b.lookup(word, U8, self._byte_table())
            return b.dot(U8, I8, b.view(number, I32), b.view(self._rows(em, space, at, TERMS), I32), total)
        parts = [self._real(word, p, zero) for p in range(TERMS)]
        if self.kind == BF16:
            for n in (0, 2):
                pair = self._pair(parts[n], parts[n + 1])
                total = b.dot(BF16, BF16, b.view(self._rows(em, space, at + n, 2), I32), pair, total)
            return total
        for n, part in enumerate(parts):
            total = b.op("fma", self._rows(em, space, at + n, 1), part, total)
        return total

    def _rows(self, em: Emitter, space: Space, at: IntExpr, count: int) -> str:
        """Neighbouring terms of the tile's rows."""
        slots = (space.slots[0], replace(space.slots[1], count=1))
        here = replace(space.at(self.sum.inner, at), vector=self.sum.inner if count > 1 else None, lanes=count, slots=slots, mask=None)
        a = self.sum.row_access
        return em.raw(em.storage[a.tensor], a.index, here)

    # --- codes ---

    def _taken(self, space: Space, step: IntExpr) -> list[str]:
        """The bytes of a step's codes, in registers for each vector of columns; one tile for each turn."""
        b, how = self.b, self.bytes
        w = b.load(TileType(U8, (1, self.vectors), TERMS * self.lanes), self.sum.codes.tensor, self._place(space, step), (0, how.stride))
        if how.together == 1:
            return [w] if how.bits == 8 else [b.unpack(w, how.bits)]
        low = b.const(U8, (1 << how.bits) - 1)
        found = []
        for turn in range(how.together):
            moved = w if turn == 0 else b.op("shr", w, b.const(U8, turn * how.bits))
            found.append(moved if turn == how.together - 1 else b.op("and", moved, low))
        return found

    def _place(self, space: Space, step: IntExpr) -> IntExpr:
        """Where the bytes of a step lie in the stream."""
        codes, store = self.sum.codes, self.em.storage[self.sum.codes.tensor]
        width = TERMS * self.bytes.together
        facts = self.em.facts.with_ranks({"step": self.terms // width})
        index = list(codes.index)
        index[2] = var("step") if self.terms.const != width else int_expr(0)
        index[3:] = [int_expr(0)] * 3
        flat = facts.simplify(store.offset(tuple(index)))
        return substitute(flat, {**space.base, "step": step}) * self.bytes.bits // 8

    def _byte_table(self) -> tuple[int, ...]:
        assert self.table is not None
        return tuple(int(x) & 255 for x in np.nan_to_num(self.table, posinf=0.0, neginf=0.0))

    def _real(self, word: str, part: int, zero: str | None) -> str:
        """The f32 numbers of one byte of each lane."""
        b = self.b
        bits = b.view(word, I32)
        if self.table is not None and len(self.table) <= _most_words(self.target.vector_bits):
            index = bits if part == 0 else b.op("shr", bits, b.const(I32, 8 * part))
            number = b.lookup(index, F32, tuple(float(x) for x in self.table))
        elif self.table is not None and not self._counts():
            number = self._from_halves(word, part)
        else:
            index = bits if part == 0 else b.op("shr", bits, b.const(I32, 8 * part))
            index = b.op("and", index, b.const(I32, 255))
            number = b.cast(index, F32)
            if self.table is not None:
                number = b.op("add", number, b.const(F32, float(self.table[0])))
        return number if zero is None else b.op("sub", number, zero)

    def _counts(self) -> bool:
        """Whether the table is the code plus a number that f32 holds."""
        return self.table is not None and bool((self.table - self.table[0] == np.arange(len(self.table))).all())

    def _from_halves(self, word: str, part: int) -> str:
        """Numbers of at most 8 significant bits: the two bytes of a bf16 number, each looked up."""
        b = self.b
        halves = np.asarray(self.table, np.float32).view(np.uint32) >> 16
        high, low = (b.view(b.lookup(word, U8, tuple(int(h) >> s & 255 for h in halves)), I32) for s in (8, 0))
        placed = []
        for half, place in ((high, 24), (low, 16)):
            by = place - 8 * part
            moved = half if by == 0 else b.op("shl" if by > 0 else "shr", half, b.const(I32, abs(by)))
            mask = 255 << place
            placed.append(b.op("and", moved, b.const(I32, mask - (1 << 32) if mask >> 31 else mask)))
        return b.bitcast(b.op("or", *placed), F32)

    def _pair(self, first: str, second: str) -> str:
        """Words of two bf16 numbers, from two f32 that have no more bits than those."""
        b = self.b
        low = b.op("and", b.op("shr", b.bitcast(first, I32), b.const(I32, 16)), b.const(I32, 0xFFFF))
        return b.op("or", low, b.op("and", b.bitcast(second, I32), b.const(I32, -0x10000)))


Words = Callable[[Space, IntExpr], list[str]]
"""The bytes of a step's codes: for each turn a tile of registers, one for each vector of columns."""


def lower_coded(low: KernelLowering, found: CodedSum) -> Lowered:
    """Lower the kernel: a stream of codes for each panel of columns."""
    return CodedLowering(low, found).run()


def _simplified(e: Expr, facts: Facts) -> Expr:
    return map_indices(e, facts.simplify)


def _most_words(vector_bits: int) -> int:
    """Entries of a table of f32 that few permutes look up."""
    return {512: 32, 256: 16}.get(vector_bits, 8)


def _even(size: int | None, most: int) -> int:
    """Tiles of nearly equal height, as few as there can be."""
    return most if size is None else -(-size // -(-size // most)) if size else 1


__all__ = ["find_coded", "lower_coded"]
