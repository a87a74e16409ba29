"""What a tile program must satisfy beyond its types' own checks: names, scopes, shapes, types, roles."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NoReturn

from dlc.codegen import tile
from dlc.codegen.matrix_unit import matdot_type, mma_type
from dlc.codegen.tile import Buffer, Stmt, TileProgram, TileType
from dlc.codegen.tile_print import program_lines
from dlc.errors import DlcError, Internal
from dlc.ir.dtype import BOOL, F32, I64, DType
from dlc.ir.extent import IntExpr, has_value, variables
from dlc.ir.loc import Loc
from dlc.ir.scalar import CAST_MODES

MAX_LANES = 128
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.$]*")
# words of the text form that can follow a statement or begin one: as a name there they could not be read back
_RESERVED = frozenset(
    "let lead store scatter for if when while prefetch check yield test and step carry unroll mask pad op nontemporal else do"
    " loc min max from lanes slot below unpack lookup zip thread shuffle sync copy commit wait true false inf nan".split()
)


class InvalidTile(Internal):
    """A tile program breaks a rule: a fault of the strategy that made it, or of a hand-written file."""

    code = "DLC0480"
    template = "in tile program '{name}': {reason}"
    hint = "this is a fault of dlc unless the tile program was written by hand"


def verify(program: TileProgram) -> TileProgram:
    """`program` itself, or InvalidTile with the line of `str(program)` that is at fault."""
    _Verifier(program).run()
    return program


def tile_types(program: TileProgram) -> dict[str, TileType]:
    """Types of a program's tiles of several lanes, after its verification; a name that several regions define has one type in all."""
    return {name: type_ for name, type_ in grid_types(program).items() if type_.lanes > 1}


def grid_types(program: TileProgram) -> dict[str, TileType]:
    """Types of a program's tiles that are more than a scalar, in the way of `tile_types`."""
    verifier = _Verifier(program, one_type=True)
    verifier.run()
    return {name: type_ for name, type_ in verifier.defined.items() if type_.lanes > 1 or type_.count > 1}


def stored_types(program: TileProgram) -> list[TileType]:
    """What each `Store` stores, in the order of the text, after the program's verification."""
    verifier = _Verifier(program)
    verifier.run()
    return verifier.stored


class _Verifier:
    def __init__(self, program: TileProgram, *, one_type: bool = False) -> None:
        self.program, self.one_type = program, one_type
        self.stored: list[TileType] = []
        self.defined: dict[str, TileType] = {}
        self.buffers: dict[str, Buffer] = {}
        self.tiles: dict[str, TileType] = {}
        self.indices: set[str] = set()
        self.current: Stmt | None = None

    def fail(self, reason: str) -> NoReturn:
        line, source = 0, None
        for number, (text, stmt) in enumerate(program_lines(self.program), 1):
            if stmt is not None and stmt is self.current:
                line, source = number, text
                break
        place = Loc(f"{self.program.name}.tile", line, len(source) - len(source.lstrip()) + 1) if source else Loc(
            f"{self.program.name}.tile"
        )
        error: DlcError = InvalidTile(place, source=source, name=self.program.name, reason=reason)
        if self.program.loc:
            error.add_note(f"the kernel computes {self.program.loc}")
        raise error

    def need(self, condition: bool, reason: str) -> None:
        if not condition:
            self.fail(reason)

    def run(self) -> None:
        program = self.program
        self.name(program.name, of_value=False)
        for b in program.buffers:
            self.name(b.name, of_value=False)
            self.need(b.name not in self.buffers, f"buffer '{b.name}' is declared twice")
            self.need(b.role in tile.ROLES, f"'{b.role}' is no role of a buffer")
            self.need(b.dtype.native, f"buffer '{b.name}' has type {b.dtype}, for which there is no native code")
            self.need(b.role != "shared" or b.size.const is not None, f"the size of shared buffer '{b.name}', {b.size}, is not known")
            self.buffers[b.name] = b
        symbols = set(program.symbols)
        self.need(len(symbols) == len(program.symbols), "a symbol is listed twice")
        self.need(all(s.startswith("#") for s in symbols), "names of symbols start with '#'")
        self.indices = symbols
        for b in program.buffers:
            self.index(b.size, f"the size of '{b.name}'")
        self.index(program.tasks, "the number of tasks")
        self.region(program.body, indices=(program.task_var,))

    # -- pieces ------------------------------------------------------------------------------------------------------

    def index(self, expr: IntExpr, what: str) -> None:
        self.need(isinstance(expr, IntExpr), f"{what} is not an integer expression: {expr!r}")
        missing = sorted(variables(expr) - self.indices)
        self.need(not missing, f"{what}, {expr}, uses {', '.join(missing)}, not defined here")
        self.need(not has_value(expr), f"{what}, {expr}, reads a tensor: bind it with IndexOf")

    def type_of(self, name: str) -> TileType:
        if name not in self.tiles:
            self.fail(f"tile '{name}' is not defined here")
        return self.tiles[name]

    def name(self, name: str, *, of_value: bool = True) -> None:
        fine = _NAME.fullmatch(name) and not (of_value and name in _RESERVED)
        self.need(bool(fine), f"'{name}' cannot be a name in the text form")

    def define(self, name: str, type_: TileType) -> None:
        self.name(name)
        self.need(name not in self.tiles and name not in self.indices, f"'{name}' is already defined")
        self.need(all(n > 0 for n in type_.slots), f"'{name}' has an empty slot dimension")
        self.need(
            1 <= type_.lanes <= MAX_LANES and type_.lanes & (type_.lanes - 1) == 0,
            f"'{name}' has {type_.lanes} lanes: a power of two up to {MAX_LANES} is needed",
        )
        self.need(type_.dtype.native, f"'{name}' has type {type_.dtype}, for which there is no native code")
        self.tiles[name] = type_
        other = self.defined.setdefault(name, type_)
        self.need(not self.one_type or other == type_, f"'{name}' is {other} in another region and {type_} here: layouts go by names")

    def buffer(self, name: str, *, write: bool = False) -> Buffer:
        if name not in self.buffers:
            self.fail(f"there is no buffer '{name}'")
        b = self.buffers[name]
        self.need(not write or b.role in ("out", "inout", "scratch"), f"buffer '{name}' is '{b.role}', not writable")
        return b

    def mask(self, name: str | None, shape: TileType) -> None:
        if name is not None:
            mask = self.type_of(name)
            self.need(mask.dtype == BOOL, f"mask '{name}' is {mask}, not bool")
            self.fits(mask, shape, f"mask '{name}'")

    def fits(self, small: TileType, large: TileType, what: str) -> None:
        joined = tile.join_shapes((small, large))
        self.need(joined == (large.slots, large.lanes), f"{what} of type {small} does not broadcast to {large}")

    def value(self, value: float | int | bool, dtype: DType, what: str) -> None:
        kinds: dict[str, type | tuple[type, ...]] = {"f": (float, int), "i": int, "u": int, "b": (bool, int)}
        self.need(isinstance(value, kinds[dtype.kind]), f"{what} {value!r} is no {dtype}")
        if dtype.is_int:
            self.need(dtype.lowest <= value <= dtype.highest, f"{what} {value} does not fit {dtype}")

    def region(
        self, body: Iterable[Stmt], indices: tuple[str, ...] = (), tiles: tuple[tuple[str, TileType], ...] = (),
        yields: tuple[str, ...] = (),
    ) -> tuple[TileType, ...]:  # fmt: skip
        """Check a nested region with these names bound; returns the types of its yields."""
        saved = dict(self.tiles), set(self.indices)
        owner = self.current
        for name in indices:
            self.name(name)
            self.need(name not in self.indices and name not in self.tiles, f"'{name}' is already defined")
            self.indices.add(name)
        for name, type_ in tiles:
            self.define(name, type_)
        for stmt in body:
            self.current = stmt
            self.stmt(stmt)
        self.current = owner
        result = tuple(self.type_of(y) for y in yields)
        self.tiles, self.indices = saved
        return result

    # -- statements --------------------------------------------------------------------------------------------------

    def stmt(self, s: Stmt) -> None:
        match s:
            case tile.Const():
                self.value(s.value, s.type.dtype, "the constant")
                self.define(s.dst, s.type)
            case tile.Iota():
                self.need(s.dtype.is_int, "iota needs an integer type")
                self.index(s.start, "the start")
                self.define(s.dst, TileType(s.dtype, (), s.lanes))
            case tile.FromIndex():
                self.index(s.expr, "the index")
                self.define(s.dst, TileType(s.dtype))
            case tile.IndexOf():
                src = self.type_of(s.src)
                self.name(s.var)
                self.need(src.is_scalar and src.dtype.is_int, f"'{s.src}' is {src}, not a scalar integer")
                self.need(s.var not in self.indices and s.var not in self.tiles, f"'{s.var}' is already defined")
                self.indices.add(s.var)
            case tile.Lead():
                size = self.buffer(s.buffer).dtype.bytes
                self.name(s.var)
                fine = s.bytes >= size and s.bytes & (s.bytes - 1) == 0
                self.need(fine, f"{s.bytes} is no power of two that holds an element of {size} bytes")
                self.need(s.var not in self.indices and s.var not in self.tiles, f"'{s.var}' is already defined")
                self.indices.add(s.var)
            case tile.Load():
                b = self.buffer(s.buffer)
                self.need(b.dtype == s.type.dtype, f"buffer '{b.name}' holds {b.dtype}, not {s.type.dtype}")
                self.access(s, s.type)
                self.value(s.pad, b.dtype, "the pad")
                self.define(s.dst, s.type)
            case tile.Store():
                src = self.type_of(s.src)
                self.stored.append(src)
                b = self.buffer(s.buffer, write=True)
                self.need(b.dtype == src.dtype, f"buffer '{b.name}' holds {b.dtype}, '{s.src}' is {src}")
                self.access(s, src)
            case tile.Gather():
                offsets, b = self.offsets(s.offsets), self.buffer(s.buffer)
                self.mask(s.mask, offsets)
                self.value(s.pad, b.dtype, "the pad")
                self.define(s.dst, offsets.with_dtype(b.dtype))
            case tile.Scatter():
                self.scatter(s)
            case tile.Op():
                result = tile.op_type(s.op, tuple(self.type_of(a) for a in s.args))
                if isinstance(result, str):
                    self.fail(result)
                self.define(s.dst, result)
            case tile.Cast():
                self.need(s.mode in (*CAST_MODES, "fits"), f"there is no cast mode '{s.mode}'")
                whole = self.type_of(s.src).dtype == F32 and s.dtype.is_int and s.dtype.bits <= 16
                self.need(s.mode != "fits" or whole, "'fits' is for f32 that are integers of 16 bits at most")
                self.define(s.dst, self.type_of(s.src).with_dtype(s.dtype))
            case tile.Bitcast():
                src = self.type_of(s.src)
                fits = src.dtype.bits == s.dtype.bits and BOOL not in (src.dtype, s.dtype)
                self.need(fits, f"{src.dtype} and {s.dtype} have not the same bits")
                self.define(s.dst, src.with_dtype(s.dtype))
            case tile.View():
                src = self.type_of(s.src)
                viewed = tile.view_type(src, s.dtype)
                if viewed is None:
                    self.fail(f"the bits of a register of {src} are no whole number of {s.dtype}")
                self.define(s.dst, viewed)
            case tile.Unpack():
                unpacked = tile.unpack_type(self.type_of(s.src), s.bits)
                if isinstance(unpacked, str):
                    self.fail(unpacked)
                self.define(s.dst, unpacked)
            case tile.Lookup():
                found = tile.lookup_type(self.type_of(s.src), s.dtype, len(s.table))
                if isinstance(found, str):
                    self.fail(found)
                for element in s.table:
                    self.value(element, s.dtype, "the table's element")
                self.define(s.dst, found)
            case tile.Zip():
                zipped = tile.zip_type(self.type_of(s.low), self.type_of(s.high), s.half)
                if isinstance(zipped, str):
                    self.fail(zipped)
                self.define(s.dst, zipped)
            case tile.Dot():
                result = tile.dot_type(s.left, s.right, tuple(self.type_of(x) for x in (s.a, s.b, s.acc)))
                if isinstance(result, str):
                    self.fail(result)
                self.define(s.dst, result)
            case tile.MatDot() | tile.Mma():
                of = matdot_type if isinstance(s, tile.MatDot) else mma_type
                product = of(s.left, s.right, *(self.type_of(x) for x in (s.a, s.b, s.acc)))
                if isinstance(product, str):
                    self.fail(product)
                self.define(s.dst, product)
            case tile.Broadcast():
                src = self.type_of(s.src)
                self.need(src.dtype == s.type.dtype, f"'{s.src}' is {src}, not {s.type.dtype}")
                self.fits(src, s.type, f"'{s.src}'")
                self.define(s.dst, s.type)
            case tile.Slice():
                src = self.type_of(s.src)
                inside = len(s.index) == len(src.slots) and all(0 <= i < n for i, n in zip(s.index, src.slots))
                self.need(inside, f"{s.index} is no slot of {src}")
                self.define(s.dst, TileType(src.dtype, (), src.lanes))
            case tile.Stack():
                types = {self.type_of(x) for x in s.srcs}
                self.need(len(types) == 1, "stack needs one or more tiles of one type")
                src = types.pop()
                self.define(s.dst, TileType(src.dtype, (len(s.srcs), *src.slots), src.lanes))
            case tile.Reduce():
                self.reduce(s)
            case tile.Fold():
                self.fold(s)
            case tile.Mask():
                self.index(s.count, "the count")
                self.define(s.dst, TileType(BOOL, (), s.lanes))
            case tile.Prefetch():
                self.buffer(s.buffer)
                self.index(s.offset, "the offset")
                self.need(0 <= s.locality <= 3, f"locality {s.locality} is not in 0..3")
            case tile.Check():
                self.need(self.type_of(s.cond).dtype == BOOL, f"'{s.cond}' is not bool")
            case tile.Thread():
                self.name(s.var)
                self.need(s.var not in self.indices and s.var not in self.tiles, f"'{s.var}' is already defined")
                self.indices.add(s.var)
            case tile.Shuffle():
                self.index(s.thread, "the thread")
                self.define(s.dst, self.type_of(s.src))
            case tile.Sync() | tile.Commit() | tile.Wait():
                pass
            case tile.Copy():
                self.copy(s)
            case tile.For():
                self.loop(s)
            case tile.If():
                self.branch(s)
            case tile.While():
                self.while_(s)

    def access(self, s: tile.Load | tile.Store, type_: TileType) -> None:
        self.index(s.offset, "the offset")
        self.index(s.lane_stride, "the lane stride")
        for stride in s.slot_strides:
            self.index(stride, "a slot stride")
        self.need(
            len(s.slot_strides) == len(type_.slots),
            f"{len(s.slot_strides)} slot strides for the {len(type_.slots)} slot dimensions of {type_}",
        )
        self.mask(s.mask, type_)

    def copy(self, s: tile.Copy) -> None:
        to, of = self.buffer(s.buffer), self.buffer(s.source)
        self.need(to.role == "shared", f"buffer '{to.name}' is '{to.role}', and copies go to shared ones")
        self.need(of.given, f"buffer '{of.name}' is '{of.role}', and copies come from memory that is given")
        self.need(to.dtype == of.dtype == s.type.dtype, f"'{to.name}' holds {to.dtype}, '{of.name}' {of.dtype}, not {s.type.dtype}")
        self.need(s.type.lanes * to.dtype.bytes % tile.PIECE == 0, f"{s.type.lanes} of {to.dtype} are not moved by {tile.PIECE} bytes")
        for offset, strides in ((s.offset, s.slot_strides), (s.source_offset, s.source_strides)):
            self.access(tile.Load("", s.type, s.buffer, offset, strides), s.type)

    def offsets(self, name: str) -> TileType:
        type_ = self.type_of(name)
        self.need(type_.dtype == I64, f"offsets '{name}' are {type_}, not i64")
        return type_

    def scatter(self, s: tile.Scatter) -> None:
        offsets, src = self.offsets(s.offsets), self.type_of(s.src)
        b = self.buffer(s.buffer, write=True)
        self.need(b.dtype == src.dtype, f"buffer '{b.name}' holds {b.dtype}, '{s.src}' is {src}")
        shape = tile.join_shapes((offsets, src))
        if shape is None:
            self.fail(f"offsets {offsets} and source {src} do not broadcast")
        self.mask(s.mask, TileType(b.dtype, *shape))
        if s.op is not None:
            self.need(s.op in tile.SCATTER_OPS, f"scatter cannot combine with '{s.op}'")
            wide = src if not src.dtype.is_float or src.dtype.bits >= 32 else TileType(tile.F32)
            result = tile.op_type(s.op, (wide, wide))
            self.need(isinstance(result, TileType), str(result))

    def combined(self, s: tile.Reduce | tile.Fold) -> TileType:
        """The type of what is folded, which the operator must suit."""
        src = self.type_of(s.src)
        self.need(s.op in tile.REDUCE_OPS, f"there is no reduction '{s.op}'")
        result = tile.op_type(s.op, (src, src))
        self.need(isinstance(result, TileType), str(result))
        return src

    def fold(self, s: tile.Fold) -> None:
        src = self.combined(s)
        result = tile.fold_type(src)
        if result is None:
            self.fail(f"{src} has no last slots that become lanes: a power of two, {src.lanes} at most")
        self.define(s.dst, result)

    def reduce(self, s: tile.Reduce) -> None:
        src = self.combined(s)
        if s.axis is None:
            self.define(s.dst, TileType(src.dtype, src.slots, 1))
        else:
            self.need(0 <= s.axis < len(src.slots), f"{src} has no slot dimension {s.axis}")
            slots = (*src.slots[: s.axis], 1, *src.slots[s.axis + 1 :])
            self.define(s.dst, TileType(src.dtype, slots, src.lanes))

    def loop(self, s: tile.For) -> None:
        for expr, what in ((s.lo, "the lower bound"), (s.hi, "the upper bound"), (s.step, "the step")):
            self.index(expr, what)
        self.need(s.step.const is None or s.step.const > 0, f"step {s.step} is not positive")
        self.need(s.unroll >= 1, f"unroll {s.unroll} is not positive")
        carried = tuple((name, self.type_of(init)) for name, init in s.carries)
        yields = self.region(s.body, (s.var,), carried, s.yields)
        self.results(s.results, tuple(t for _, t in carried), yields)

    def results(self, names: tuple[str, ...], expected: tuple[TileType, ...], yields: tuple[TileType, ...]) -> None:
        shown = f"({', '.join(map(str, yields))})"
        self.need(expected == yields, f"yields {shown} where ({', '.join(map(str, expected))}) is carried")
        self.need(len(names) == len(expected), f"{len(names)} results of {len(expected)} values")
        for name, type_ in zip(names, expected, strict=True):
            self.define(name, type_)

    def branch(self, s: tile.If) -> None:
        if isinstance(s.cond, str):
            type_ = self.type_of(s.cond)
            self.need(type_ == TileType(BOOL), f"condition '{s.cond}' is {type_}, not a scalar bool")
        else:
            self.need(len(s.cond) > 0, "a condition needs a comparison")
            for part in s.cond:
                self.need(part.op in tile.COMPARISONS, f"there is no comparison '{part.op}'")
                self.index(part.lhs, "the left side")
                self.index(part.rhs, "the right side")
        self.results(s.results, self.region(s.then, yields=s.then_yields), self.region(s.orelse, yields=s.else_yields))

    def while_(self, s: tile.While) -> None:
        self.need(len(s.carries) > 0, "a while loop without carries never changes its test")
        carried = tuple((name, self.type_of(init)) for name, init in s.carries)
        (test,) = self.region(s.test_body, (), carried, (s.test,))
        self.need(test == TileType(BOOL), f"test '{s.test}' is {test}, not a scalar bool")
        yields = self.region(s.body, (), carried, s.yields)
        self.results(s.results, tuple(t for _, t in carried), yields)
