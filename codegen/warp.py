"""A tile program for vectors as one for the 32 threads of a warp: each holds its share of every register.

A register of `32 k` lanes is spread: thread t holds lanes `k t .. k t + k - 1`, the layout `spatial(32).local(k)` of Tilus (arXiv
2504.12984), so that a view as wider or narrower elements moves nothing. Others (`warp_layout.py` says which), and so scalars, are held by
every thread. Hence conditions and loop bounds are the same in all threads, and only masks tell them apart.

    element-wise     as they are, on k lanes
    load, store      at the thread's lanes; what all threads hold is stored by one of them
    reduce, fold     halves of the warp exchange by `Shuffle` in the order of `Reduce`, so that the bits are the same
    copy             16 bytes a thread, and `Sync` before it and after its `Wait` (`warp_staging.py`)
    unpack           the codes of a thread lie in two words at most, which are fetched from the threads that hold them
    scatter          one thread after the other
    matdot           what belongs to it lies as the matrix instruction has it (`warp_matrix.py`), which is `mma`

Each store is followed by a `Sync`, and where its buffer is read as well one comes before.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from dlc.codegen import tile
from dlc.codegen.gpu_targets import WARP
from dlc.codegen.tile import IndexCond, Stmt, TileProgram, TileType
from dlc.codegen.tile_verify import verify
from dlc.codegen.warp_shares import Shares
from dlc.codegen.warp_staging import divided
from dlc.ir.dtype import BOOL, I32, U8, U32, U64
from dlc.ir.extent import IntExpr, int_expr, var

_ME = "warp_thread"
_ZERO = int_expr(0)
Access = TypeVar("Access", tile.Load, tile.Store)


def distribute(program: TileProgram) -> TileProgram:
    """The program of one thread of a warp, whose 32 threads together do what a task of `program` does.

    Raises:
        LayoutConflict, SplitElement, LayoutMismatch: what belongs to products of matrices cannot lie as their instruction has it.
    """
    read = {s.buffer for s in tile.walk(program.body) if isinstance(s, (tile.Load, tile.Gather))}
    read |= {s.buffer for s in tile.walk(program.body) if isinstance(s, tile.Scatter) and s.op is not None}
    body = _Distribution(program, read).region(program.body)
    return verify(replace(program, body=(tile.Thread(_ME), *body)))


class _Distribution:
    def __init__(self, program: TileProgram, read: set[str]) -> None:
        self.program, self.read = program, read
        self.shares = Shares.of(program)
        self.matrices = self.shares.matrices
        self.types: dict[str, TileType] = {}  # of the program that is given
        self.out: list[Stmt] = []
        self.made = 0

    # -- pieces ------------------------------------------------------------------------------------------------------

    def region(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        outer, self.out = self.out, []
        for s in body:
            getattr(self, "_" + type(s).__name__.lower())(s)
        made, self.out = tuple(self.out), outer
        return made

    def spread(self, name: str, type_: TileType | None = None) -> bool:
        """Whether each thread has a part of the tile's registers, and not all of them; `type_` of one that is being defined."""
        return self.shares.spread(name, type_ or self.types[name])

    def share(self, name: str, type_: TileType | None = None) -> TileType:
        """What one thread has of the tile."""
        return self.shares.part(name, type_ or self.types[name])

    def name(self) -> str:
        self.made += 1
        return f"warp_{self.made}"

    def keep(self, s: Stmt, dst: str, type_: TileType) -> None:
        """A statement that does for the thread's share what it does for the whole."""
        self.types[dst] = type_
        self.out.append(s)

    def first_lane(self, name: str, type_: TileType | None = None) -> IntExpr:
        """The lane with which the thread's share begins."""
        return self.shares.first_lane(name, type_ or self.types[name], var(_ME))

    def const(self, type_: TileType, value: int) -> str:
        name = self.name()
        self.out.append(tile.Const(name, type_, value))
        return name

    def op(self, op: str, *args: str, dst: str | None = None) -> str:
        name = dst or self.name()
        self.out.append(tile.Op(name, op, args))
        return name

    def alone(self, thread: int | IntExpr, body: tuple[Stmt, ...]) -> tile.If:
        """What one thread does while the others wait."""
        return tile.If((IndexCond(var(_ME), "eq", thread if isinstance(thread, IntExpr) else int_expr(thread)),), body)

    # -- values ------------------------------------------------------------------------------------------------------

    def _const(self, s: tile.Const) -> None:
        self.keep(replace(s, type=self.share(s.dst, s.type)), s.dst, s.type)

    def _iota(self, s: tile.Iota) -> None:
        type_ = TileType(s.dtype, (), s.lanes)
        if s.dst in self.matrices:
            self.pieces(s.dst, type_, lambda name, lanes, first: tile.Iota(name, s.dtype, lanes, s.start + first))
            return
        self.keep(replace(s, lanes=self.share(s.dst, type_).lanes, start=s.start + self.first_lane(s.dst, type_)), s.dst, type_)

    def pieces(self, dst: str, whole: TileType, make: Callable[[str, int, IntExpr], Stmt]) -> None:
        """A register of a matrix: from its lanes that lie side by side, and the first of them, to all that a thread has."""
        part = self.matrices.part(dst, whole)
        (first,) = self.matrices.begin(dst, whole, var(_ME))
        *steps, _ = self.matrices.strides(dst, whole, [int_expr(1)])
        names = []
        for slot in itertools.product(*map(range, part.slots)):
            names.append(self.name())
            self.out.append(make(names[-1], part.lanes, first + sum((i * n for i, n in zip(slot, steps, strict=True)), _ZERO)))
        self.keep(tile.Broadcast(dst, part, self.stacked(names, part.slots)), dst, whole)

    def _mask(self, s: tile.Mask) -> None:
        type_ = TileType(BOOL, (), s.lanes)
        if s.dst in self.matrices:
            self.pieces(s.dst, type_, lambda name, lanes, first: tile.Mask(name, lanes, s.count - first))
            return
        self.keep(replace(s, lanes=self.share(s.dst, type_).lanes, count=s.count - self.first_lane(s.dst, type_)), s.dst, type_)

    def _fromindex(self, s: tile.FromIndex) -> None:
        self.keep(s, s.dst, TileType(s.dtype))

    def _indexof(self, s: tile.IndexOf) -> None:
        self.out.append(s)

    def _lead(self, s: tile.Lead) -> None:
        self.out.append(s)

    def _op(self, s: tile.Op) -> None:
        result = tile.op_type(s.op, tuple(self.types[a] for a in s.args))
        assert isinstance(result, TileType)
        self.keep(s, s.dst, result)

    def _cast(self, s: tile.Cast) -> None:
        self.keep(s, s.dst, self.types[s.src].with_dtype(s.dtype))

    def _bitcast(self, s: tile.Bitcast) -> None:
        self.keep(s, s.dst, self.types[s.src].with_dtype(s.dtype))

    def _view(self, s: tile.View) -> None:
        source = self.types[s.src]
        result = tile.view_type(source, s.dtype)
        assert result is not None
        self.keep(s, s.dst, result)

    def _zip(self, s: tile.Zip) -> None:
        source = self.types[s.low]
        result = tile.zip_type(source, self.types[s.high], s.half)
        assert isinstance(result, TileType)
        self.keep(s, s.dst, result)

    def _lookup(self, s: tile.Lookup) -> None:
        self.keep(s, s.dst, self.types[s.src].with_dtype(s.dtype))

    def _dot(self, s: tile.Dot) -> None:
        result = tile.dot_type(s.left, s.right, tuple(self.types[x] for x in (s.a, s.b, s.acc)))
        assert isinstance(result, TileType)
        self.keep(s, s.dst, result)

    def _matdot(self, s: tile.MatDot) -> None:
        self.keep(tile.Mma(s.dst, s.left, s.right, s.a, s.b, s.acc), s.dst, self.types[s.acc])

    def _broadcast(self, s: tile.Broadcast) -> None:
        self.keep(replace(s, type=self.share(s.dst, s.type)), s.dst, s.type)

    def _slice(self, s: tile.Slice) -> None:
        source = self.types[s.src]
        self.keep(s, s.dst, TileType(source.dtype, (), source.lanes))

    def _stack(self, s: tile.Stack) -> None:
        source = self.types[s.srcs[0]]
        whole = replace(source, slots=(len(s.srcs), *source.slots))
        if s.dst in self.matrices:  # a dimension may be several of a thread, of scalars as well
            part = self.share(s.dst, whole)
            rows = [self.name() for _ in s.srcs]
            self.out += [tile.Broadcast(row, replace(part, slots=part.slots[1:]), x) for row, x in zip(rows, s.srcs, strict=True)]
            s = replace(s, srcs=tuple(rows))
        self.keep(s, s.dst, whole)

    def _check(self, s: tile.Check) -> None:
        self.out.append(s)

    # -- between threads ---------------------------------------------------------------------------------------------

    def _unpack(self, s: tile.Unpack) -> None:
        source = self.types[s.src]
        if not self.spread(s.src):
            self.keep(s, s.dst, source)
            return
        words = self.name()
        self.out.append(tile.View(words, s.src, I32))
        at = var(_ME) * s.bits // 8  # the word in which bit 4 * bits * thread lies
        low, high = (self.fetched(words, source, w) for w in (at, at + 1))
        word = TileType(U64, source.slots)
        pair = self.op("or", low, self.op("shl", high, self.const(TileType(U64), 32)))
        begin = self.name()
        self.out.append(tile.FromIndex(begin, U64, (var(_ME) * (4 * s.bits)) % 32))
        codes = self.op("shr", pair, begin)
        mask = self.const(TileType(U64), (1 << s.bits) - 1)
        total = self.const(word, 0)
        for n in range(4):
            code = self.op("and", self.op("shr", codes, self.const(TileType(U64), n * s.bits)), mask)
            total = self.op("or", total, self.op("shl", code, self.const(TileType(U64), 8 * n)))
        narrow = self.name()
        self.out.append(tile.Cast(narrow, total, I32, "wrap"))
        self.keep(tile.View(s.dst, narrow, U8), s.dst, source)

    def fetched(self, words: str, source: TileType, thread: IntExpr) -> str:
        """The word that `thread` holds, in the low half of 64 bits."""
        moved, bits, wide = self.name(), self.name(), self.name()
        self.out += [
            tile.Shuffle(moved, words, thread % WARP),
            tile.Bitcast(bits, moved, U32),
            tile.Cast(wide, bits, U64, "wrap"),
        ]
        return wide

    def _reduce(self, s: tile.Reduce) -> None:
        source = self.types[s.src]
        if s.axis is None:
            self.keep(tile.Reduce(s.dst, s.op, self.folded(s.op, s.src)), s.dst, replace(source, lanes=1))
        else:
            slots = (*source.slots[: s.axis], 1, *source.slots[s.axis + 1 :])
            self.keep(s, s.dst, replace(source, slots=slots))

    def folded(self, op: str, src: str) -> str:
        """The shares of all threads folded into one, which each has; halves of the warp first, as `Reduce` does."""
        if not self.spread(src):
            return src
        me, step = var(_ME), WARP // 2
        while step:
            other = me // step % 2 * step  # one order of operands in both threads of a pair: equal bits
            low, high = self.name(), self.name()
            self.out += [tile.Shuffle(low, src, me - other), tile.Shuffle(high, src, me - other + step)]
            src = self.op(op, low, high)
            step //= 2
        return src

    def _fold(self, s: tile.Fold) -> None:
        source = self.types[s.src]
        result = tile.fold_type(source)
        assert result is not None
        if not self.spread(s.src) and not self.spread(s.dst, result):
            self.keep(s, s.dst, result)
            return
        scalars = self.name()
        self.out.append(tile.Reduce(scalars, s.op, self.folded(s.op, s.src)))
        own = self.share(s.dst, result)
        numbers = self.name()
        self.out.append(tile.Iota(numbers, I32, own.lanes, self.first_lane(s.dst, result)))
        at = [self.op("eq", numbers, self.const(TileType(I32), c)) for c in range(1, result.lanes)]
        registers: list[str] = []
        for slot in itertools.product(*map(range, result.slots)):
            parts = []
            for c in range(result.lanes):
                parts.append(self.name())
                self.out.append(tile.Slice(parts[-1], scalars, (*slot, c)))
            register = self.name()
            self.out.append(tile.Broadcast(register, replace(own, slots=()), parts[0]))
            for here, part in zip(at, parts[1:], strict=True):
                register = self.op("select", here, part, register)
            registers.append(register)
        self.keep(tile.Broadcast(s.dst, own, self.stacked(registers, result.slots)), s.dst, result)

    def stacked(self, registers: list[str], slots: tuple[int, ...]) -> str:
        """One tile of registers in row-major order."""
        for size in reversed(slots):
            rows = []
            for first in range(0, len(registers), size):
                rows.append(self.name())
                self.out.append(tile.Stack(rows[-1], tuple(registers[first : first + size])))
            registers = rows
        (whole,) = registers
        return whole

    # -- memory ------------------------------------------------------------------------------------------------------

    def placed(self, s: Access, name: str, type_: TileType) -> Access:
        """The same access at the thread's part of the tile."""
        of = (*s.slot_strides, s.lane_stride)
        offset = s.offset + self.shares.begin(name, type_, of, var(_ME))
        if name not in self.matrices:
            return replace(s, offset=offset)
        *slots, lane = self.matrices.strides(name, type_, of)
        return replace(s, offset=offset, slot_strides=tuple(slots), lane_stride=lane)

    def _load(self, s: tile.Load) -> None:
        self.keep(replace(self.placed(s, s.dst, s.type), type=self.share(s.dst, s.type)), s.dst, s.type)

    def _copy(self, s: tile.Copy) -> None:
        before = self.out[-1:]
        while before and isinstance(before[0], tile.If) and not before[0].orelse:
            before = list(before[0].then[-1:])
        if not (before and isinstance(before[0], tile.Copy)):
            self.out.append(tile.Sync())  # others may still read what was there
        threads, own = divided(s, var(_ME))
        self.out.append(own if threads == WARP else tile.If((IndexCond(var(_ME), "lt", int_expr(threads)),), (own,)))

    def _commit(self, s: tile.Commit) -> None:
        self.out.append(s)

    def _wait(self, s: tile.Wait) -> None:
        self.out += [s, tile.Sync()]

    def _gather(self, s: tile.Gather) -> None:
        self.keep(s, s.dst, self.types[s.offsets].with_dtype(self.program.buffer(s.buffer).dtype))

    def _store(self, s: tile.Store) -> None:
        own = replace(self.placed(s, s.src, self.types[s.src]), nontemporal=False)
        self.written(s.buffer, own if self.spread(s.src) else self.alone(0, (own,)))

    def written(self, buffer: str, *stmts: Stmt) -> None:
        if buffer in self.read:
            self.out.append(tile.Sync())
        self.out += [*stmts, tile.Sync()]

    def _scatter(self, s: tile.Scatter) -> None:
        shape = tile.join_shapes((self.types[s.offsets], self.types[s.src]))
        assert shape is not None
        whole = TileType(self.types[s.src].dtype, *shape)
        if not any(self.spread(n) for n in (s.offsets, s.src)):
            self.written(s.buffer, self.alone(0, (s,)))
            return
        for slot in itertools.product(*map(range, whole.slots)):
            offsets, src = self.register(s.offsets, whole, slot), self.register(s.src, whole, slot)
            mask = None if s.mask is None else self.register(s.mask, whole, slot)
            turn = self.name()
            one = tile.Scatter(s.buffer, offsets, src, mask, s.op)
            body = (self.alone(var(turn), (one,)), tile.Sync())
            self.written(s.buffer, tile.For(turn, _ZERO, int_expr(WARP), int_expr(1), body))

    def register(self, name: str, whole: TileType, slot: tuple[int, ...]) -> str:
        """The thread's share of one register of a tile that broadcasts to `whole`."""
        type_ = replace(whole, dtype=self.types[name].dtype, lanes=whole.lanes // WARP)
        wide, one = self.name(), self.name()
        self.out += [tile.Broadcast(wide, type_, name), tile.Slice(one, wide, slot)]
        return one

    def _prefetch(self, s: tile.Prefetch) -> None:
        """Warps hide the time of a load behind each other."""

    # -- control -----------------------------------------------------------------------------------------------------

    def _for(self, s: tile.For) -> None:
        self.carried(s.carries)
        body = self.region(s.body)
        self.result(s.results, tuple(name for name, _ in s.carries))
        self.out.append(replace(s, body=body))

    def _if(self, s: tile.If) -> None:
        then, orelse = self.region(s.then), self.region(s.orelse)
        self.result(s.results, s.then_yields)
        self.out.append(replace(s, then=then, orelse=orelse))

    def _while(self, s: tile.While) -> None:
        self.carried(s.carries)
        test, body = self.region(s.test_body), self.region(s.body)
        self.result(s.results, tuple(name for name, _ in s.carries))
        self.out.append(replace(s, test_body=test, body=body))

    def carried(self, carries: tuple[tuple[str, str], ...]) -> None:
        for name, init in carries:
            self.types[name] = self.types[init]

    def result(self, names: tuple[str, ...], like: tuple[str, ...]) -> None:
        for name, other in zip(names, like, strict=True):
            self.types[name] = self.types[other]
