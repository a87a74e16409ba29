"""A builder for tile programs: fresh names, inferred types, regions as `with` blocks.

    b = Builder(("X", "Y"), target_lanes=16)
    acc = b.const(TileType(F32, (), 16), 0.0)
    with b.loop("i", 0, n, 16, carries=(acc,)) as loop:
        x = b.load(TileType(F32, (), 16), "X", loop.index)
        loop.yields(b.op("add", loop.carries[0], x))
    total = b.reduce("add", loop.results[0])
    b.store("Y", 0, total)
    body = b.body()
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from dlc.codegen import tile
from dlc.codegen.matrix_unit import matdot_type
from dlc.codegen.tile import TileType
from dlc.ir.dtype import BF16, BOOL, F16, F32, I64, DType
from dlc.ir.extent import IntExpr, IntLike, int_expr, var


@dataclass(slots=True)
class Loop:
    """An open loop: its index, the carried tiles inside, and (after the block) the results."""

    index: IntExpr
    carries: tuple[str, ...]
    results: tuple[str, ...]
    yielded: tuple[str, ...] = ()

    def yields(self, *tiles: str) -> None:
        """Say what the carries of the next round are."""
        self.yielded = tiles


@dataclass(slots=True)
class Branch:
    """An open `if`: use `then()` and `orelse()` blocks, then the results."""

    builder: Builder
    then_body: tuple[tile.Stmt, ...] = ()
    else_body: tuple[tile.Stmt, ...] = ()
    then_yields: tuple[str, ...] = ()
    else_yields: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    yielded: tuple[str, ...] = ()

    def yields(self, *tiles: str) -> None:
        """The values of the block that is open."""
        self.yielded = tiles

    @contextmanager
    def then(self) -> Iterator[None]:
        with self.builder.region() as body:
            yield
        self.then_body, self.then_yields, self.yielded = tuple(body), self.yielded, ()

    @contextmanager
    def orelse(self) -> Iterator[None]:
        with self.builder.region() as body:
            yield
        self.else_body, self.else_yields, self.yielded = tuple(body), self.yielded, ()


@dataclass
class Builder:
    """Collects statements; every method that makes a tile returns its name."""

    buffers: Mapping[str, DType] = field(default_factory=dict)
    types: dict[str, TileType] = field(default_factory=dict)
    widened: dict[str, str] = field(default_factory=dict)
    """Of an f32 tile that was cast from one of 16-bit floats, that one: casting back gives it."""
    _stack: list[list[tile.Stmt]] = field(default_factory=lambda: [[]])
    _count: dict[str, int] = field(default_factory=dict)

    def fresh(self, hint: str = "t") -> str:
        """A name no tile or variable of this program has."""
        n = self._count.get(hint, 0)
        self._count[hint] = n + 1
        return f"{hint}{n}"

    def body(self) -> tuple[tile.Stmt, ...]:
        """The statements so far."""
        assert len(self._stack) == 1, "a region is still open"
        return tuple(self._stack[0])

    def emit(self, stmt: tile.Stmt) -> None:
        self._stack[-1].append(stmt)

    @contextmanager
    def region(self) -> Iterator[list[tile.Stmt]]:
        body: list[tile.Stmt] = []
        self._stack.append(body)
        try:
            yield body
        finally:
            self._stack.pop()

    def _new(self, hint: str, type_: TileType) -> str:
        name = self.fresh(hint)
        self.types[name] = type_
        return name

    # -- values ------------------------------------------------------------------------------------------------------

    def const(self, type_: TileType | DType, value: float | int | bool) -> str:
        type_ = type_ if isinstance(type_, TileType) else TileType(type_)
        kind = type_.dtype.kind
        value = float(value) if kind == "f" else bool(value) if kind == "b" else int(value)
        name = self._new("c", type_)
        self.emit(tile.Const(name, type_, value))
        return name

    def iota(self, dtype: DType, lanes: int, start: IntLike = 0) -> str:
        name = self._new("i", TileType(dtype, (), lanes))
        self.emit(tile.Iota(name, dtype, lanes, int_expr(start)))
        return name

    def from_index(self, expr: IntLike, dtype: DType = I64) -> str:
        name = self._new("n", TileType(dtype))
        self.emit(tile.FromIndex(name, dtype, int_expr(expr)))
        return name

    def index_of(self, src: str) -> IntExpr:
        """The scalar integer tile `src` as an index expression."""
        name = self.fresh("v")
        self.emit(tile.IndexOf(name, src))
        return var(name)

    def named(self, e: IntExpr) -> IntExpr:
        """`e` computed once, under a name of its own."""
        return e if e.const is not None or e.is_var else self.index_of(self.from_index(e))

    def lead(self, buffer: str, size_bytes: int) -> IntExpr:
        """Elements of `buffer` before the first at a multiple of `size_bytes` in memory."""
        name = self.fresh("v")
        self.emit(tile.Lead(name, buffer, size_bytes))
        return var(name)

    def load(
        self,
        type_: TileType,
        buffer: str,
        offset: IntLike,
        slot_strides: tuple[IntLike, ...] = (),
        lane_stride: IntLike = 1,
        mask: str | None = None,
        pad: float | int | bool = 0,
    ) -> str:
        name = self._new("x", type_)
        strides = tuple(map(int_expr, slot_strides))
        self.emit(tile.Load(name, type_, buffer, int_expr(offset), strides, int_expr(lane_stride), mask, pad))
        return name

    def gather(self, buffer: str, offsets: str, mask: str | None = None, pad: float | int | bool = 0) -> str:
        name = self._new("g", self.types[offsets].with_dtype(self.buffers[buffer]))
        self.emit(tile.Gather(name, buffer, offsets, mask, pad))
        return name

    def op(self, op: str, *args: str) -> str:
        type_ = tile.op_type(op, tuple(self.types[a] for a in args))
        assert isinstance(type_, TileType), type_
        name = self._new("t", type_)
        self.emit(tile.Op(name, op, args))
        return name

    def cast(self, src: str, dtype: DType, mode: str = "sat") -> str:
        if self.types[src].dtype == dtype:
            return src
        if (narrow := self.widened.get(src)) is not None and self.types[narrow].dtype == dtype:
            return narrow
        name = self._new("t", self.types[src].with_dtype(dtype))
        self.emit(tile.Cast(name, src, dtype, mode))
        if dtype == F32 and self.types[src].dtype in (F16, BF16):
            self.widened[name] = src
        return name

    def bitcast(self, src: str, dtype: DType) -> str:
        name = self._new("t", self.types[src].with_dtype(dtype))
        self.emit(tile.Bitcast(name, src, dtype))
        return name

    def view(self, src: str, dtype: DType) -> str:
        type_ = tile.view_type(self.types[src], dtype)
        assert type_ is not None, (self.types[src], dtype)
        name = self._new("w", type_)
        self.emit(tile.View(name, src, dtype))
        return name

    def unpack(self, src: str, bits: int) -> str:
        type_ = tile.unpack_type(self.types[src], bits)
        assert isinstance(type_, TileType), type_
        name = self._new("u", type_)
        self.emit(tile.Unpack(name, src, bits))
        return name

    def lookup(self, src: str, dtype: DType, table: tuple[float | int, ...]) -> str:
        type_ = tile.lookup_type(self.types[src], dtype, len(table))
        assert isinstance(type_, TileType), type_
        name = self._new("u", type_)
        self.emit(tile.Lookup(name, src, dtype, table))
        return name

    def zip(self, low: str, high: str, half: int) -> str:
        type_ = tile.zip_type(self.types[low], self.types[high], half)
        assert isinstance(type_, TileType), type_
        name = self._new("w", type_)
        self.emit(tile.Zip(name, low, high, half))
        return name

    def dot(self, left: DType, right: DType, a: str, b: str, acc: str) -> str:
        type_ = tile.dot_type(left, right, (self.types[a], self.types[b], self.types[acc]))
        assert isinstance(type_, TileType), type_
        name = self._new("t", type_)
        self.emit(tile.Dot(name, left, right, a, b, acc))
        return name

    def matdot(self, left: DType, right: DType, a: str, b: str, acc: str) -> str:
        type_ = matdot_type(left, right, self.types[a], self.types[b], self.types[acc])
        assert isinstance(type_, TileType), type_
        name = self._new("t", type_)
        self.emit(tile.MatDot(name, left, right, a, b, acc))
        return name

    def broadcast(self, src: str, type_: TileType) -> str:
        if self.types[src] == type_:
            return src
        name = self._new("t", type_)
        self.emit(tile.Broadcast(name, type_, src))
        return name

    def slice(self, src: str, *index: int) -> str:
        type_ = self.types[src]
        name = self._new("t", TileType(type_.dtype, (), type_.lanes))
        self.emit(tile.Slice(name, src, index))
        return name

    def stack(self, *srcs: str) -> str:
        type_ = self.types[srcs[0]]
        name = self._new("t", TileType(type_.dtype, (len(srcs), *type_.slots), type_.lanes))
        self.emit(tile.Stack(name, srcs))
        return name

    def reduce(self, op: str, src: str, axis: int | None = None) -> str:
        type_ = self.types[src]
        slots = type_.slots if axis is None else (*type_.slots[:axis], 1, *type_.slots[axis + 1 :])
        name = self._new("r", TileType(type_.dtype, slots, 1 if axis is None else type_.lanes))
        self.emit(tile.Reduce(name, op, src, axis))
        return name

    def fold(self, op: str, src: str) -> str:
        type_ = tile.fold_type(self.types[src])
        assert type_ is not None, self.types[src]
        name = self._new("r", type_)
        self.emit(tile.Fold(name, op, src))
        return name

    def mask(self, lanes: int, count: IntLike) -> str:
        name = self._new("m", TileType(BOOL, (), lanes))
        self.emit(tile.Mask(name, lanes, int_expr(count)))
        return name

    # -- effects -----------------------------------------------------------------------------------------------------

    def store(
        self,
        buffer: str,
        offset: IntLike,
        src: str,
        slot_strides: tuple[IntLike, ...] = (),
        lane_stride: IntLike = 1,
        mask: str | None = None,
        nontemporal: bool = False,
    ) -> None:
        strides = tuple(map(int_expr, slot_strides))
        self.emit(tile.Store(buffer, int_expr(offset), src, strides, int_expr(lane_stride), mask, nontemporal))

    def scatter(self, buffer: str, offsets: str, src: str, mask: str | None = None, op: str | None = None) -> None:
        self.emit(tile.Scatter(buffer, offsets, src, mask, op))

    def prefetch(self, buffer: str, offset: IntLike, locality: int = 3) -> None:
        self.emit(tile.Prefetch(buffer, int_expr(offset), locality))

    def check(self, cond: str, check_id: str) -> None:
        self.emit(tile.Check(cond, check_id))

    # -- control -----------------------------------------------------------------------------------------------------

    @contextmanager
    def loop(
        self, hint: str, lo: IntLike, hi: IntLike, step: IntLike = 1, *, carries: tuple[str, ...] = (), unroll: int = 1
    ) -> Iterator[Loop]:
        """`for hint in lo .. hi step step`; `carries` are the initial tiles."""
        index = self.fresh(hint + "_")
        inner = tuple(self._new("a", self.types[c]) for c in carries)
        results = tuple(self._new("r", self.types[c]) for c in carries)
        loop = Loop(var(index), inner, results)
        with self.region() as body:
            yield loop
        assert len(loop.yielded) == len(carries), "a loop must yield as many tiles as it carries"
        self.emit(
            tile.For(
                index,
                int_expr(lo),
                int_expr(hi),
                int_expr(step),
                tuple(body),
                tuple(zip(inner, carries, strict=True)),
                loop.yielded,
                results,
                unroll,
            )
        )

    @contextmanager
    def branch(self, cond: tuple[tile.IndexCond, ...] | tile.IndexCond | str) -> Iterator[Branch]:
        """`with b.branch(cond) as br: with br.then(): ...; br.yields(x)  with br.orelse(): ...`; then `br.results`."""
        branch = Branch(self)
        yield branch
        branch.results = tuple(self._new("r", self.types[y]) for y in branch.then_yields)
        self.emit(
            tile.If(
                (cond,) if isinstance(cond, tile.IndexCond) else cond,
                branch.then_body,
                branch.else_body,
                branch.then_yields,
                branch.else_yields,
                branch.results,
            )
        )

    def while_(
        self,
        carries: tuple[str, ...],
        test: Callable[[tuple[str, ...]], str],
        body: Callable[[tuple[str, ...]], tuple[str, ...]],
    ) -> tuple[str, ...]:
        """A while loop: `test(carries) -> scalar bool tile`, `body(carries) -> next carries`; returns the results."""
        inner = tuple(self._new("a", self.types[c]) for c in carries)
        results = tuple(self._new("r", self.types[c]) for c in carries)
        with self.region() as test_body:
            test_tile = test(inner)
        with self.region() as loop_body:
            yields = body(inner)
        pairs = tuple(zip(inner, carries, strict=True))
        self.emit(tile.While(pairs, tuple(test_body), test_tile, tuple(loop_body), yields, results))
        return results
