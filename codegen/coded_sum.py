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

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dlc.codegen.contraction_tiles import ROW_BLOCK
from dlc.codegen.panel_sum import GroupSum, PanelLowering, Rows, even, find_panels
from dlc.codegen.point import Emitter, Space
from dlc.codegen.tile import IndexCond, TileType
from dlc.ir.coded_sums import READ_PAST, TALL, TERMS, CodedSum, coded_sum
from dlc.ir.codes import coded
from dlc.ir.dtype import BF16, F32, F64, I8, I32, U8, DType
from dlc.ir.einsum import Rank, einsum
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, transform
from dlc.ir.extent import IntExpr, IntLike, int_expr, minimum, substitute, var
from dlc.ir.interpret import eval_einsum

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered

BLOCK_BYTES = 128 << 10
"""Of a panel unpacked at a time: it stays in a core's second cache, together with the rows' part."""
AHEAD_BYTES = 4096
"""How far before several rows' loads the stream is asked for: their arithmetic fills the window in which the processor looks ahead."""
_L2 = 2
_UNPACKED, _SUMS = "unpacked", "sums"
_WORDS = 8  # words of a lane that one round of the innermost loop takes, at most


def find_coded(low: KernelLowering) -> CodedSum | None:
    """The kernel's first step as a sum of products with codes, where those that follow run on its tile; else None."""
    return find_panels(low, coded_sum)


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


def number_table(codes: Access, number: Expr, dtype: DType) -> np.ndarray[Any, Any]:
    """What `number` is for each code."""
    count = 1 << dtype.bits
    numbers = (np.arange(count) % (dtype.codes if dtype.is_coded else 256)).astype(np.uint8)
    at = Access("@codes", (var("c"),))
    body = Cast(F64, transform(number, lambda e: at if e == codes else None))
    step = einsum("@numbers", (Rank("c", int_expr(count)),), body, F64)
    (values,) = eval_einsum(step, {"@codes": coded(numbers, dtype) if dtype.is_coded else numbers}, {})
    return values


class CodedLowering(PanelLowering[CodedSum]):
    """One kernel: the sum with codes, perhaps one over groups, and what follows point by point."""

    def __init__(self, low: KernelLowering, found: CodedSum) -> None:
        super().__init__(low, found, 3, coded_sum)
        of = low.types[self.sum.codes.tensor].dtype
        self.bytes = Bytes(of.bits, self.sum.together, self.lanes)
        self.kind = low.types[self.sum.row_access.tensor].dtype
        self.terms = self.first.reduced[self.sum.inner]
        self._numbers(of)
        self.steps = self.terms // (TERMS * self.sum.together)
        self.scaled, self.scale = self._common()

    def _numbers(self, of: DType) -> None:
        """What the codes stand for: themselves, or what a table says; a zero point that is a literal is in the table."""
        number = self.sum.value
        self.zero = self.sum.zero
        if isinstance(self.zero, Const):
            number, self.zero = Apply("sub", (number, self.zero)), None
        table = number_table(self.sum.codes, number, of)
        self.numbers = table
        plain = (table == np.arange(len(table))).all()
        self.table = None if plain else table

    def _common(self) -> tuple[bool, Expr | None]:
        """Whether a group's factors can be multiplied into decoded numbers, and these factors."""
        if self.fold is None or self.kind != F32:
            return False, None
        match self.fold.exprs[0]:
            case Access():
                return True, None
            case Apply("mul", (Access(name), factor)) if name == self.first.outs[0] and self.row not in factor.variables:
                return True, factor
            case _:
                return False, None

    # --- tasks ---

    def run(self) -> Lowered:
        rows = self._rows_of()
        few = even(rows.const, self._few()) if self.row is not None else 1
        many = even(rows.const, self._many())
        block = max(many, (2 * ROW_BLOCK if self.kind == F32 else ROW_BLOCK) // many * many)
        tiles = self._tiles_before()
        most = None if tiles is None else few * tiles
        tasks, here = self._begin(block)
        if most is None or (rows.const is not None and rows.const <= most):
            self._as_they_come(self.em.scoped(), here, few, self._of(self._taken))
        elif rows.const is not None:
            self._unpacked(self.em.scoped(), here, many, block)
        else:
            with self.b.branch(IndexCond(here.last - here.first, "le", int_expr(most))) as branch:
                with branch.then():
                    self._as_they_come(self.em.scoped(), here, few, self._of(self._taken))
                with branch.orelse():
                    self._unpacked(self.em.scoped(), here, many, block)
        return self._end(tasks, block, self.terms)

    def _tiles_before(self) -> int | None:
        """How many tiles of rows take the codes apart each for itself before it pays to unpack them first; None for any number."""
        if self.kind != I8:
            return 1
        cheap = self.table is None and (self.bytes.together > 1 or self.bytes.bits == 8)
        return None if cheap else 4

    def _few(self) -> int:
        """Rows of a tile that takes codes apart: sums of a group and what is decoded fit the registers, with 16 of them those of all
        groups, too; with 32 these are put aside while a group is summed, which is cheaper than to decode more often.
        """
        sums = self.vectors * (2 if self.fold is not None and self.target.vector_registers < 32 else 1)
        spare = 2 * self.vectors + 3 if self.kind == I8 else self.vectors + 4
        most = TALL if self.vectors == 1 else 8
        return max(1, min(most, (self.target.vector_registers - spare) // sums))

    def _many(self) -> int:
        """Rows of a tile that reads a panel unpacked."""
        sums = self.vectors * (2 if self.fold is not None and not self.scaled else 1)
        fused = self.kind == F32 or self.target.has("avx512_vnni" if self.kind == I8 else "avx512_bf16")
        spare = self.vectors + 2 if fused else 2 * self.vectors + 3
        return max(1, min(8, (self.target.vector_registers - spare) // sums))

    # --- many rows ---

    def _unpacked(self, em: Emitter, rows: Rows, height: int, block: int) -> None:
        """A part of the panel at a time is decoded into the core's cache, where all tiles of rows read it."""
        if len(self.groups) != 1:
            self._part(em, rows, {}, 1)
            self._tiles(rows, height, lambda count, at: self._alone(em.scoped(), self._space(rows, count, at)))
            return
        ((name, extent),) = self.groups.items()
        together = max(1, min(extent.const or 1, BLOCK_BYTES // self._group_bytes()))
        if together == extent.const:
            self._part(em, rows, {name: int_expr(0)}, together)
            self._tiles(rows, height, lambda count, at: self._whole(em.scoped(), self._space(rows, count, at)))
            return
        self.low.local(_SUMS, F32, int_expr(block * self.width))
        self._tiles(rows, height, lambda count, at: self._clear(rows, count, at))
        with self.b.loop("part", 0, extent, together) as loop:
            inner = em.scoped()
            count = minimum(together, extent - loop.index)
            self._part(inner, rows, {name: loop.index}, count)
            self._tiles(rows, height, lambda n, at: self._added(inner.scoped(), rows, n, at, name, loop.index, count))
        self._tiles(rows, height, lambda count, at: self._out(em.scoped(), rows, count, at))

    def _group_bytes(self) -> int:
        dtype, count, elements = self._operand()
        words = (self.terms // TERMS).const or 1
        return words * count * self.vectors * elements * dtype.bytes

    def _operand(self) -> tuple[DType, int, int]:
        """Type of what is multiplied, how many registers of it a word of codes makes, and elements of each."""
        return {I8: (U8, 1, TERMS * self.lanes), BF16: (I32, 2, self.lanes), F32: (F32, 4, self.lanes)}[self.kind]

    def _part(self, em: Emitter, rows: Rows, start: dict[str, IntExpr], count: IntLike) -> None:
        """Decode `count` groups from `start` on into the scratch."""
        dtype, registers, elements = self._operand()
        most = count if isinstance(count, int) else BLOCK_BYTES // self._group_bytes()
        self.low.local(_UNPACKED, dtype, int_expr(most * self._group_bytes() // dtype.bytes))
        name = next(iter(start), "@group")
        space = self._unmasked(self._space(rows, 1, rows.first))
        with self.b.loop("group", 0, count) as loop:
            inner = em.scoped()
            here = space.at(name, start[name] + loop.index) if start else space
            scale = inner.value(self.scale, here) if self.scaled and self.scale is not None else None
            with self.b.loop("word", 0, self.steps) as word:
                for turn, operands in enumerate(self._taken(inner.scoped(), here, word.index)):
                    at = self._scratch_place(loop.index, word.index, turn)
                    for n, operand in enumerate(operands):
                        value = operand if scale is None else self.b.op("mul", operand, scale)
                        value = self.b.broadcast(value, TileType(dtype, (1, self.vectors), elements))
                        self.b.store(_UNPACKED, at + n * self.vectors * elements, value, (0, elements))

    def _scratch_place(self, group: IntExpr, step: IntExpr, turn: int) -> IntExpr:
        _, registers, elements = self._operand()
        words = self.sum.together
        return ((group * self.steps + step) * words + turn) * (registers * self.vectors * elements)

    def _kept(self, group: IntExpr) -> Feed:
        """The operands of a group of the scratch."""
        dtype, registers, elements = self._operand()

        def feed(em: Emitter, space: Space, step: IntExpr) -> list[tuple[str, ...]]:
            type_ = TileType(dtype, (1, self.vectors), elements)
            return [
                tuple(
                    self.b.load(type_, _UNPACKED, self._scratch_place(group, step, turn) + n * self.vectors * elements, (0, elements))
                    for n in range(registers)
                )
                for turn in range(self.sum.together)
            ]

        return feed

    def _alone(self, em: Emitter, space: Space) -> None:
        """A tile of a sum without groups."""
        self._finished(em, space, self._sum(em, space, self._kept(int_expr(0)), None))

    def _whole(self, em: Emitter, space: Space) -> None:
        """A tile with all groups in the scratch."""
        ((name, extent),) = self.groups.items()
        total = self._over(em, self._unmasked(space), self._nothing(em, space), name, int_expr(0), extent)
        self._finished(em, space, total)

    def _over(self, em: Emitter, space: Space, total: str, name: str, start: IntExpr, count: IntExpr) -> str:
        """`total` plus the groups of the scratch, which are those from `start` on."""
        with self.b.loop(name, 0, count, carries=(total,)) as loop:
            at = space.at(name, start + loop.index)
            feed = self._kept(loop.index)
            loop.yields(self._folded(em.scoped(), at, self._of(feed), loop.carries[0], {}, scaled=self.scaled))
        return loop.results[0]

    def _sums_at(self, rows: Rows, at: IntExpr) -> IntExpr:
        return (at - rows.first) * self.width if self.row is not None else int_expr(0)

    def _clear(self, rows: Rows, count: int, at: IntExpr) -> None:
        zero = self.b.const(TileType(F32, (count, self.vectors), self.lanes), 0.0)
        self.b.store(_SUMS, self._sums_at(rows, at), zero, (self.width, self.lanes))

    def _added(
        self, em: Emitter, rows: Rows, count: int, at: IntExpr, name: str, start: IntExpr, groups: IntExpr
    ) -> None:
        place, type_ = self._sums_at(rows, at), TileType(F32, (count, self.vectors), self.lanes)
        total = self.b.load(type_, _SUMS, place, (self.width, self.lanes))
        total = self._over(em, self._unmasked(self._space(rows, count, at)), total, name, start, groups)
        self.b.store(_SUMS, place, total, (self.width, self.lanes))

    def _out(self, em: Emitter, rows: Rows, count: int, at: IntExpr) -> None:
        type_ = TileType(F32, (count, self.vectors), self.lanes)
        total = self.b.load(type_, _SUMS, self._sums_at(rows, at), (self.width, self.lanes))
        self._finished(em, self._space(rows, count, at), total)

    # --- the sum over a group ---

    def _of(self, feed: Feed) -> GroupSum:
        return lambda em, space, total: self._sum(em, space, feed, total)

    def _sum(self, em: Emitter, space: Space, feed: Feed, total: str | None) -> str:
        """`total` plus the sum over the terms of a group, at the points of a tile."""
        kind = I32 if self.kind == I8 else F32
        total = total if total is not None else self.b.const(space.tile(kind), 0 if kind == I32 else 0.0)
        words = self.sum.together
        unroll = max(1, _WORDS // words)
        if self.steps.const is not None and self.steps.const % unroll:
            unroll = next(u for u in range(unroll, 0, -1) if self.steps.const % u == 0)
        first = feed(em.scoped(), space, int_expr(0)) if feed == self._taken and self._ahead(space) else []
        with self.b.loop("word", 0, self.steps, carries=(total, *itertools.chain(*first)), unroll=unroll) as loop:
            inner, (total, *held) = em.scoped(), loop.carries
            taken = feed(inner, space, loop.index + 1 if first else loop.index)
            size = len(taken[0])
            for turn, operands in enumerate([held[n : n + size] for n in range(0, len(held), size)] if first else taken):
                at = (loop.index * words + turn) * TERMS
                for n, operand in enumerate(operands):
                    total = self._product(inner, space, at + n * (TERMS // len(operands)), operand, total)
            loop.yields(total, *(itertools.chain(*taken) if first else ()))
        return loop.results[0]

    def _ahead(self, space: Space) -> bool:
        """Whether codes are taken apart a step before they are multiplied: what takes several instructions one after the other
        is then done while several rows' products of the step before are. The last step takes up what follows its group.
        """
        if space.slots[0].count < 4 or self.kind == F32 or self.steps.const == 1 or self.target.vector_registers < 32:
            return False
        past = (self.vectors - 1) * self.bytes.stride + TERMS * self.lanes
        chained = self.table is not None or (self.bytes.together == 1 and self.bytes.bits < 8)
        return chained and self.low.types[self.sum.codes.tensor].dtype.is_coded and past <= READ_PAST

    def _product(self, em: Emitter, space: Space, at: IntExpr, operand: str, total: str) -> str:
        """`total` plus the products of the terms from `at` on with what was decoded for them."""
        b = self.b
        if self.kind == I8:
            return b.dot(U8, I8, b.view(operand, I32), b.view(self._rows(em, space, at, TERMS), I32), total)
        if self.kind == BF16:
            return b.dot(BF16, BF16, operand, b.view(self._rows(em, space, at, 2), I32), total)  # a broadcast is the second's
        return b.op("fma", self._rows(em, space, at, 1), operand, total)

    def _rows(self, em: Emitter, space: Space, at: IntExpr, count: int) -> str:
        """Neighbouring terms of the tile's rows."""
        slots = (space.slots[0], replace(space.slots[1], count=1))
        here = replace(space.at(self.sum.inner, at), vector=self.sum.inner if count > 1 else None, lanes=count, slots=slots, mask=None)
        a = self.sum.row_access
        return em.raw(em.storage[a.tensor], a.index, here)

    def _taken(self, em: Emitter, space: Space, step: IntExpr) -> list[tuple[str, ...]]:
        """What is multiplied, decoded from the stream: for each turn of a step the registers of its four terms."""
        zero = None if self.zero is None else em.value(self.zero, space)
        return [self._decoded(word, zero) for word in self._bytes(space, step)]

    def _decoded(self, word: str, zero: str | None) -> tuple[str, ...]:
        if self.kind == I8:
            return (word if self.table is None else self.b.lookup(word, U8, self._byte_table()),)
        if self.kind == BF16:
            low, high = self._halves(word)
            return tuple(self.b.zip(low, high, half) for half in (0, 1))
        few = len(self.numbers) <= _most_words(self.target.vector_bits)
        halves = self._halves(word) if not (few or self._counts()) and _in_bf16(self.numbers) else None
        return tuple(self._real(word, halves, p, zero) for p in range(TERMS))

    # --- codes ---

    def _bytes(self, space: Space, step: IntExpr) -> list[str]:
        """The bytes of a step's codes, in registers for each vector of columns; one tile for each turn."""
        b, how = self.b, self.bytes
        if space.slots[0].count > 1 and self._from_memory():
            for line in range(0, self.vectors * how.stride, self.target.line_bytes):
                b.prefetch(self.sum.codes.tensor, self._place(space, step) + AHEAD_BYTES + line, _L2)
        w = b.load(TileType(U8, (1, self.vectors), TERMS * self.lanes), self.sum.codes.tensor, self._place(space, step), (0, how.stride))
        if how.together == 1:
            return [w] if how.bits == 8 else [b.unpack(w, how.bits)]
        low = b.const(U8, (1 << how.bits) - 1)
        found = []
        for turn in range(how.together):
            moved = w if turn == 0 else b.op("shr", w, b.const(U8, turn * how.bits))
            found.append(moved if turn == how.together - 1 else b.op("and", moved, low))
        return found

    def _from_memory(self) -> bool:
        """Whether the codes are more than the second cache holds."""
        size = self.low.types[self.sum.codes.tensor].elements.const
        return size is not None and size * self.bytes.bits >= 16 * self.target.l2_bytes

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

    def _counts(self) -> bool:
        """Whether numbers are the codes, or these plus a constant."""
        return bool((self.numbers - self.numbers[0] == np.arange(len(self.numbers))).all())

    def _real(self, word: str, halves: tuple[str, str] | None, part: int, zero: str | None) -> str:
        """The f32 numbers of one byte of each lane: looked up, put together of their halves, or converted."""
        b = self.b
        if halves is not None:
            number = self._joined(*halves, part)
        else:
            bits = b.view(word, I32)
            index = bits if part == 0 else b.op("shr", bits, b.const(I32, 8 * part))
            few = len(self.numbers) <= _most_words(self.target.vector_bits)
            if self.table is not None and (few or not self._counts()):
                number = b.lookup(index, F32, tuple(map(float, self.numbers)))
            else:
                number = b.cast(b.op("and", index, b.const(I32, 255)), F32)
                if self.numbers[0] != 0:
                    number = b.op("add", number, b.const(F32, float(self.numbers[0])))
        return number if zero is None else b.op("sub", number, zero)

    def _halves(self, word: str) -> tuple[str, str]:
        """The low and the high byte of each number as bf16, which holds it: looked up, without the sign where that is a bit."""
        b = self.b
        bits = [int(x) >> 16 for x in np.asarray(self.numbers, np.float32).view(np.uint32)]
        half = len(bits) // 2
        nan = np.isnan(self.numbers)
        signed = len(bits) > self._most_bytes()
        signed = signed and all(bits[c + half] == bits[c] ^ 0x8000 or (nan[c] and nan[c + half]) for c in range(half))
        table = bits[:half] if signed else bits
        low, high = (b.lookup(word, U8, tuple(x >> s & 255 for x in table)) for s in (0, 8))
        if signed:
            away = 8 - self.bytes.bits
            moved = word if away == 0 else b.op("shl", word, b.const(U8, away))
            high = b.op("or", high, b.op("and", moved, b.const(U8, 128)))
        return low, high

    def _most_bytes(self) -> int:
        """Entries of a table of bytes that one permute looks up, or one choice where there is none."""
        if self.target.has("avx512vbmi") and self.lanes == 16:
            return 64
        return 16 if self.target.has("ssse3") else 2

    def _joined(self, low: str, high: str, part: int) -> str:
        """f32 numbers of one byte of each word of the two halves."""
        b = self.b
        placed = []
        for half, place in ((b.view(high, I32), 24), (b.view(low, I32), 16)):
            by = place - 8 * part
            moved = half if by == 0 else b.op("shl" if by > 0 else "shr", half, b.const(I32, abs(by)))
            mask = 255 << place
            placed.append(b.op("and", moved, b.const(I32, mask - (1 << 32) if mask >> 31 else mask)))
        return b.bitcast(b.op("or", *placed), F32)


Feed = Callable[[Emitter, Space, IntExpr], list[tuple[str, ...]]]
"""What is multiplied at a step of a group: for each turn the registers of its four terms, a tile of one row each."""


def lower_coded(low: KernelLowering, found: CodedSum) -> Lowered:
    """Lower the kernel: a stream of codes for each panel of columns."""
    return CodedLowering(low, found).run()


def _in_bf16(numbers: np.ndarray[Any, Any]) -> bool:
    """Whether the numbers have no more bits than bf16."""
    return not (np.asarray(numbers, np.float32).view(np.uint32) & 0xFFFF).any()


def _most_words(vector_bits: int) -> int:
    """Entries of a table of f32 that one permute looks up; 16 by AVX2 are two and a choice, which take longer than converting integers."""
    return {512: 32}.get(vector_bits, 8)


__all__ = ["find_coded", "lower_coded"]
