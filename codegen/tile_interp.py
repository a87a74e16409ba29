"""The meaning of tile programs: a NumPy interpreter. Accesses are bounds checked; scratch starts as garbage (NaN)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn, TypeAlias

import numpy as np

from dlc.codegen import tile
from dlc.codegen.tile import TileProgram, TileType
from dlc.codegen.tile_verify import InvalidTile, verify
from dlc.ir.dtype import BOOL, I32, U1, U8, DType
from dlc.ir.extent import IntExpr, evaluate, int_expr
from dlc.ir.scalar import SCALAR_OPS, cast_array

Array = np.ndarray[Any, Any]
_Copied: TypeAlias = tuple[str, Array, Array]
"""What has been copied, or will be: to which shared buffer, where, the values."""


def run(
    program: TileProgram,
    buffers: Mapping[str, Array],
    symbols: Mapping[str, int] | None = None,
    tasks: range | None = None,
) -> list[str]:
    """Execute the tasks of `program` (all, unless `tasks` says which) in order, writing into `buffers` in place.

    Args:
        buffers: C-contiguous array of each buffer that is given, of any shape.
        symbols: value of each symbol, with or without its `#`.

    Returns:
        The ids of failed checks, in order, without repetition.
    """
    verify(program)
    env = {("#" + name.lstrip("#")): int(value) for name, value in (symbols or {}).items()}
    machine = Machine(program, buffers, env)
    count = evaluate(program.tasks, env)
    for task in tasks if tasks is not None else range(count):
        machine.task(task)
    return list(machine.failed)


class Machine:
    """One thread's state; alone it is a warp of one."""

    def __init__(self, program: TileProgram, buffers: Mapping[str, Array], env: dict[str, int]) -> None:
        self.program, self.env = program, env
        self.memory: dict[str, Array] = {}
        self.tiles: dict[str, Array] = {}  # shape: slots + (lanes,)
        self.dtypes: dict[str, DType] = {}
        self.failed: dict[str, None] = {}
        self.arrived: dict[str, Array] = {}
        for b in program.buffers:
            size = evaluate(b.size, env)
            if not b.given:
                self.memory[b.name] = np.zeros(size, b.dtype.numpy)
                self.arrived |= {b.name: np.zeros(size, bool)} if b.role == "shared" else {}
                continue
            array = buffers[b.name]
            assert array.flags.c_contiguous, f"buffer '{b.name}' must be contiguous"
            assert array.dtype == b.dtype.numpy, f"buffer '{b.name}' is {array.dtype}, not {b.dtype.numpy}"
            assert array.size >= size, f"buffer '{b.name}' has {array.size} elements, fewer than {size}"
            self.memory[b.name] = array.reshape(-1)[:size]

    def task(self, number: int) -> None:
        self.forget_scratch()
        self.start(number)

    def forget_scratch(self) -> None:
        """Scratch memory is undefined at the start of a task, shared memory has nothing that could be read."""
        for there in self.arrived.values():
            there.fill(False)
        for b in self.program.buffers:
            if b.role == "scratch":
                self.memory[b.name].view(np.uint8).fill(0xFF if b.dtype.is_float else 0xA5 if b.dtype != BOOL else 1)

    def start(self, number: int) -> None:
        self.tiles, self.dtypes = {}, {}
        self.groups: list[list[_Copied]] = [[]]
        self.env[self.program.task_var] = number
        with np.errstate(all="ignore"):
            self.body(self.program.body)

    def index(self, expr: IntExpr) -> int:
        return int(evaluate(expr, self.env))

    def set(self, name: str, type_: TileType, value: Any) -> None:
        shape = (*type_.slots, type_.lanes)
        array = np.asarray(value)
        if array.dtype != type_.dtype.numpy:
            array = array.astype(type_.dtype.numpy)
        self.tiles[name] = np.broadcast_to(array, shape).copy()
        self.dtypes[name] = type_.dtype

    def type_of(self, name: str) -> TileType:
        shape = self.tiles[name].shape
        return TileType(self.dtypes[name], shape[:-1], shape[-1])

    def keep(self, name: str, dtype: DType, value: Array) -> None:
        self.tiles[name], self.dtypes[name] = np.asarray(value, dtype.numpy), dtype

    def body(self, body: tuple[tile.Stmt, ...]) -> None:
        for s in body:
            getattr(self, "_" + type(s).__name__.lower())(s)

    # -- values ------------------------------------------------------------------------------------------------------

    def _const(self, s: tile.Const) -> None:
        self.set(s.dst, s.type, s.value)

    def _iota(self, s: tile.Iota) -> None:
        values = np.arange(s.lanes, dtype=np.int64) + self.index(s.start)
        self.keep(s.dst, s.dtype, values.astype(s.dtype.numpy))

    def _fromindex(self, s: tile.FromIndex) -> None:
        value = np.array([self.index(s.expr)], np.int64)
        self.keep(s.dst, s.dtype, cast_array(value, s.dtype.numpy, "wrap"))

    def _indexof(self, s: tile.IndexOf) -> None:
        self.env[s.var] = int(self.tiles[s.src].reshape(()).item())

    def _lead(self, s: tile.Lead) -> None:
        self.env[s.var] = 0

    def _op(self, s: tile.Op) -> None:
        args = [self.tiles[a] for a in s.args]
        result = tile.op_type(s.op, tuple(map(self.type_of, s.args)))
        assert isinstance(result, TileType)
        if s.op == "fma":
            wide = np.float64 if args[0].dtype == np.float32 else np.longdouble
            value = (args[0].astype(wide) * args[1] + args[2]).astype(args[0].dtype)
        else:
            value = SCALAR_OPS[s.op].meaning(*np.broadcast_arrays(*args))
        self.keep(s.dst, result.dtype, np.asarray(value))

    def _cast(self, s: tile.Cast) -> None:
        value = self.tiles[s.src]
        made = cast_array(value, s.dtype.numpy, "sat" if s.mode == "fits" else s.mode)
        assert s.mode != "fits" or (made == value).all(), f"{s.src} does not fit {s.dtype}"
        self.keep(s.dst, s.dtype, made)

    def _bitcast(self, s: tile.Bitcast) -> None:
        self.keep(s.dst, s.dtype, self.tiles[s.src].view(s.dtype.numpy))

    def _view(self, s: tile.View) -> None:
        self.keep(s.dst, s.dtype, np.ascontiguousarray(self.tiles[s.src]).view(s.dtype.numpy))

    def _unpack(self, s: tile.Unpack) -> None:
        source = np.ascontiguousarray(self.tiles[s.src])
        bits = np.unpackbits(source, axis=-1, bitorder="little")[..., : source.shape[-1] * s.bits]
        codes = np.packbits(bits.reshape(*source.shape, s.bits), axis=-1, bitorder="little")
        self.keep(s.dst, U8, codes[..., 0])

    def _lookup(self, s: tile.Lookup) -> None:
        table = np.asarray(s.table, s.dtype.numpy)
        self.keep(s.dst, s.dtype, table[self.tiles[s.src].astype(np.int64) % len(table)])

    def _zip(self, s: tile.Zip) -> None:
        low, high = (x.reshape(*x.shape[:-1], -1, 4)[..., s.half :: 2] for x in (self.tiles[s.low], self.tiles[s.high]))
        mixed = np.ascontiguousarray(np.stack([low, high], axis=-1).reshape(*low.shape[:-1], 4))
        self.keep(s.dst, I32, mixed.view(np.int32)[..., 0])

    def _dot(self, s: tile.Dot) -> None:
        acc = self.tiles[s.acc]
        total = (elements(self.tiles[s.a], s.left) * elements(self.tiles[s.b], s.right)).sum(-1) + acc
        self.keep(s.dst, self.dtypes[s.acc], total.astype(acc.dtype))

    def _matdot(self, s: tile.MatDot) -> None:
        acc = self.tiles[s.acc]
        columns = self.tiles[s.b]
        product = matrix_product(self.tiles[s.a], columns.reshape(len(columns), -1), acc.reshape(len(acc), -1), s.left, s.right)
        self.keep(s.dst, self.dtypes[s.acc], product.reshape(acc.shape))

    def _broadcast(self, s: tile.Broadcast) -> None:
        self.set(s.dst, s.type, self.tiles[s.src])

    def _slice(self, s: tile.Slice) -> None:
        self.keep(s.dst, self.dtypes[s.src], self.tiles[s.src][s.index])

    def _stack(self, s: tile.Stack) -> None:
        self.keep(s.dst, self.dtypes[s.srcs[0]], np.stack([self.tiles[x] for x in s.srcs]))

    def _reduce(self, s: tile.Reduce) -> None:
        """As a balanced tree, neighbouring halves for lanes, pairs for slots, in the order the native code has."""
        source = self.tiles[s.src]
        combine = SCALAR_OPS[s.op].meaning
        if s.axis is None:
            self.keep(s.dst, self.dtypes[s.src], _across_lanes(s.op, source))
            return
        parts = [np.take(source, [i], s.axis) for i in range(source.shape[s.axis])]
        while len(parts) > 1:
            paired = [combine(parts[i], parts[i + 1]) for i in range(0, len(parts) - 1, 2)]
            parts = paired + parts[len(parts) - len(parts) % 2 :]
        self.keep(s.dst, self.dtypes[s.src], parts[0])

    def _fold(self, s: tile.Fold) -> None:
        self.keep(s.dst, self.dtypes[s.src], _across_lanes(s.op, self.tiles[s.src])[..., 0])

    def _mask(self, s: tile.Mask) -> None:
        self.keep(s.dst, BOOL, np.arange(s.lanes) < self.index(s.count))

    # -- memory ------------------------------------------------------------------------------------------------------

    def places(self, offset: IntExpr, strides: tuple[IntExpr, ...], shape: tuple[int, ...]) -> Array:
        """Element offsets, shaped slots + (lanes,)."""
        places = np.full(shape, self.index(offset), np.int64)
        for axis, stride in enumerate(strides):
            steps = np.arange(shape[axis], dtype=np.int64) * self.index(stride)
            places += steps.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return places

    def on(self, mask: str | None, shape: tuple[int, ...]) -> Array:
        return np.ones(shape, bool) if mask is None else np.broadcast_to(self.tiles[mask], shape)

    def bounds(self, buffer: str, places: Array, on: Array) -> None:
        active = places[on]
        size = self.memory[buffer].size
        if active.size and (active.min() < 0 or active.max() >= size):
            self.fail(f"access to '{buffer}' at {active.min()}..{active.max()}, which has {size} elements")

    def fail(self, reason: str) -> NoReturn:
        raise InvalidTile(f"{self.program.name}.tile", name=self.program.name, reason=reason)

    def read(self, buffer: str, places: Array, mask: str | None, pad: float | int | bool) -> Array:
        on = self.on(mask, places.shape)
        self.bounds(buffer, places, on)
        memory = self.memory[buffer]
        if buffer in self.arrived and not self.arrived[buffer][places[on]].all():
            self.fail(f"'{buffer}' is read at {places[on].min()}..{places[on].max()} before all of it has arrived")
        if memory.size == 0:
            return np.full(places.shape, pad, memory.dtype)
        return np.where(on, memory[np.where(on, places, 0)], np.asarray(pad).astype(memory.dtype))

    def _load(self, s: tile.Load) -> None:
        places = self.places(s.offset, (*s.slot_strides, s.lane_stride), (*s.type.slots, s.type.lanes))
        self.keep(s.dst, s.type.dtype, self.read(s.buffer, places, s.mask, s.pad))

    def _gather(self, s: tile.Gather) -> None:
        dtype = self.program.buffer(s.buffer).dtype
        self.keep(s.dst, dtype, self.read(s.buffer, self.tiles[s.offsets], s.mask, s.pad))

    def _store(self, s: tile.Store) -> None:
        value = self.tiles[s.src]
        places = self.places(s.offset, (*s.slot_strides, s.lane_stride), value.shape)
        on = self.on(s.mask, value.shape)
        self.bounds(s.buffer, places, on)
        self.memory[s.buffer][places[on]] = value[on]  # the last of equal places wins

    def _scatter(self, s: tile.Scatter) -> None:
        places, value = np.broadcast_arrays(self.tiles[s.offsets], self.tiles[s.src])
        on = self.on(s.mask, places.shape)
        self.bounds(s.buffer, places, on)
        memory = self.memory[s.buffer]
        dtype = self.program.buffer(s.buffer).dtype
        wide = np.float32 if dtype.is_float and dtype.bits < 32 else dtype.numpy
        for place, element in zip(places[on], value[on], strict=True):
            if s.op is not None:
                old, new = np.asarray(memory[place]).astype(wide), np.asarray(element).astype(wide)
                element = SCALAR_OPS[s.op].meaning(old, new)
            memory[place] = element

    def _prefetch(self, s: tile.Prefetch) -> None:
        return

    def _copy(self, s: tile.Copy) -> None:
        shape = (*s.type.slots, s.type.lanes)
        found = []
        for buffer, offset, strides in ((s.buffer, s.offset, s.slot_strides), (s.source, s.source_offset, s.source_strides)):
            places = self.places(offset, (*strides, int_expr(1)), shape)
            self.bounds(buffer, places, np.ones(shape, bool))
            if (places[..., 0] * s.type.dtype.bytes % tile.PIECE).any():
                self.fail(f"a copy at '{buffer}'[{self.index(offset)}], which is no multiple of {tile.PIECE} bytes")
            found.append(places)
        to, of = found
        self.arrived[s.buffer][to] = False
        self.groups[-1].append((s.buffer, to, self.memory[s.source][of]))

    def _commit(self, s: tile.Commit) -> None:
        self.groups.append([])

    def _wait(self, s: tile.Wait) -> None:
        done = max(0, len(self.groups) - 1 - s.but)
        for buffer, places, value in (copied for group in self.groups[:done] for copied in group):
            self.memory[buffer][places] = value
            self.arrived[buffer][places] = True
        self.groups = self.groups[done:]

    def _check(self, s: tile.Check) -> None:
        if not self.tiles[s.cond].all():
            self.failed.setdefault(s.check_id)

    # -- threads -----------------------------------------------------------------------------------------------------

    def _thread(self, s: tile.Thread) -> None:
        self.env[s.var] = 0

    def _shuffle(self, s: tile.Shuffle) -> None:
        self.keep(s.dst, self.dtypes[s.src], self.tiles[s.src])

    def _sync(self, s: tile.Sync) -> None:
        return

    # -- control -----------------------------------------------------------------------------------------------------

    def carry(self, names: tuple[str, ...], sources: tuple[str, ...]) -> None:
        values = [(self.tiles[x], self.dtypes[x]) for x in sources]
        for name, (value, dtype) in zip(names, values, strict=True):
            self.tiles[name], self.dtypes[name] = value, dtype

    def _for(self, s: tile.For) -> None:
        names = tuple(name for name, _ in s.carries)
        self.carry(names, tuple(init for _, init in s.carries))
        for i in range(self.index(s.lo), self.index(s.hi), self.index(s.step)):
            self.env[s.var] = i
            self.body(s.body)
            self.carry(names, s.yields)
        self.carry(s.results, names)

    def _if(self, s: tile.If) -> None:
        if isinstance(s.cond, str):
            holds = bool(self.tiles[s.cond].item())
        else:
            holds = all(
                bool(SCALAR_OPS[c.op].meaning(self.index(c.lhs), self.index(c.rhs))) for c in s.cond
            )
        self.body(s.then if holds else s.orelse)
        self.carry(s.results, s.then_yields if holds else s.else_yields)

    def _while(self, s: tile.While) -> None:
        names = tuple(name for name, _ in s.carries)
        self.carry(names, tuple(init for _, init in s.carries))
        while True:
            self.body(s.test_body)
            if not self.tiles[s.test].item():
                break
            self.body(s.body)
            self.carry(names, s.yields)
        self.carry(s.results, names)


def elements(words: Array, dtype: DType) -> Array:
    """The elements of words, in one more dimension and a type that holds sums of their products."""
    words = np.ascontiguousarray(words)
    parts = words.view(np.uint8 if dtype.is_coded else dtype.numpy).reshape(*words.shape, -1)
    return (np.unpackbits(parts, axis=-1, bitorder="little") if dtype == U1 else parts).astype(np.float64 if dtype.is_float else np.int64)


def matrix_product(a: Array, b: Array, acc: Array, left: DType, right: DType) -> Array:
    """`acc` [M, N] plus the product of words a [M, W] of `left` and b [W, N] of `right`, rounded once."""
    rows = elements(a, left).reshape(len(a), 1, -1)
    columns = elements(b.T, right).reshape(1, b.shape[1], -1)
    return ((rows * columns).sum(-1) + acc).astype(acc.dtype)


def _across_lanes(op: str, source: Array) -> Array:
    """The lanes folded into one, half by half."""
    while source.shape[-1] > 1:
        half = source.shape[-1] // 2
        source = SCALAR_OPS[op].meaning(source[..., :half], source[..., half:])
    return source
