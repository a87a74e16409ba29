"""A scheduled program to its native entry, `i64 dlc_main(ptr frame)`, as MLIR text.

The entry runs the statements: it fills the argument words of each kernel and hands it to the thread pool, decides
branches and loops, binds extents found at run time, and allocates what depends on them. Tensors are addresses; nothing
is copied but carries that are merely passed on, and outputs that control flow chooses.

The frame is an array of 8-byte words; its header is fixed (`FRAME` below), the manifest lists the groups after it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dlc.codegen.host_code import PTR, Code
from dlc.codegen.tile import TileProgram, arg_words
from dlc.errors import Internal
from dlc.ir.dtype import BOOL, DType
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.extent import IntExpr, int_expr, var
from dlc.ir.loc import Loc
from dlc.ir.memory import (
    AtBuffer,
    AtConstant,
    AtEither,
    AtHeap,
    AtInput,
    AtOutput,
    AtSlice,
    MemoryPlan,
    Place,
    library_temporaries,
)
from dlc.ir.program import (
    Bind,
    For,
    If,
    Kernel,
    Launch,
    Library,
    Loop,
    Program,
    Region,
    Stmt,
    Symbol,
    bound_symbols,
    tensor_types,
    walk_statements,
)

FRAME = {
    "abi": 0,
    "parallel_for": 1,
    "pool": 2,
    "threads": 3,
    "constants": 4,
    "scratch": 6,
    "scratch_stride": 7,
    "error": 8,
    "profile": 9,
    "malloc": 10,
    "free": 11,
}
FIRST_WORD = 16
"""First word after the frame's header."""

GRAIN_WORK = 32768
"""Element operations that are worth handing to another thread: some microseconds, against one for the hand-over."""
CHUNKS_PER_THREAD = 8
"""More would balance no better and take longer to hand out."""

MAX_EXTENT = 1 << 40
"""An extent found at run time is refused above this also where the model has no bound: sizes stay far from overflow."""
MAX_BLOCK_BYTES = float(1 << 46)
FIRST_COLLECTED = 16
"""Steps for which a loop of unknown length has room before it first grows."""

EXTENT_CHECK, VALUE_CHECK, MEMORY_CHECK = "DLC0541", "DLC0542", "DLC0543"


@dataclass(frozen=True, slots=True)
class HostKernel:
    """What the entry needs to know of a native kernel.

    Attributes:
        symbol: global name of the native function.
        tile: its tile program; buffers are named after the parameters and results of the kernel's cascade.
        work: element operations of one task.
        object: name of the object that has it.
    """

    symbol: str
    tile: TileProgram
    work: IntExpr
    object: str = ""


@dataclass(frozen=True, slots=True)
class Call:
    """One launch in the text, in profile order.

    Attributes:
        kernel: its name among the host's kernels.
        loc: what of the user's model it computes.
        trips: how often the loops around it run it (1 when unknown).
    """

    kernel: str
    loc: Loc
    trips: IntExpr


@dataclass(frozen=True, slots=True)
class Check:
    """What an error word means to the user."""

    code: str
    message: str
    loc: str


@dataclass(frozen=True, slots=True)
class Host:
    """The entry.

    Attributes:
        mlir: text of the module.
        calls: the launches in profile order.
        checks: what error word 1 + i means.
        symbols: names (with `#`) in the order of the frame; those after `static_symbols` are found at run time.
        frame: first word of each group, and the size.
    """

    mlir: str
    calls: tuple[Call, ...]
    checks: tuple[Check, ...]
    symbols: tuple[str, ...]
    static_symbols: int
    frame: dict[str, int]


def host_entry(
    program: Program,
    plan: MemoryPlan,
    kernels: Mapping[str, HostKernel],
    constants: Mapping[str, int],
    expected: Mapping[int, str] | None = None,
) -> Host:
    """The entry of `program`.

    Args:
        program: its statements are Launch, Bind, If, Loop and For.
        plan: where its tensors lie (`dlc.passes.schedule.plan_memory`).
        kernels: native kernel of each of the program's kernels, by name.
        constants: byte offset of each constant in the block of constants.
        expected: inputs that must equal a constant, whose value is compiled in.
    """
    return _Entry(program, plan, kernels, constants, expected or {}).build()


class _Entry:
    def __init__(
        self,
        program: Program,
        plan: MemoryPlan,
        kernels: Mapping[str, HostKernel],
        constants: Mapping[str, int],
        expected: Mapping[int, str],
    ) -> None:
        self.program = program
        self.plan = plan
        self.kernels = kernels
        self.constants = constants
        self.expected = expected
        self.types = tensor_types(program)
        self.cascades: dict[str, Kernel] = program.kernel_table
        self.code = Code()
        self.code.symbol = self.symbol
        self.pointers: dict[str, str] = {}  # tensors whose address is a value
        self.symbols: dict[str, str] = {}
        self.calls: list[Call] = []
        self.trips = int_expr(1)
        self.checks: dict[Check, int] = {}
        self.max_words = 1
        self._layout_frame()

    def _layout_frame(self) -> None:
        static = list(dict.fromkeys(["#" + s.name for s in self.program.symbols] + list(self.plan.values)))
        dynamic = [
            "#" + s.name
            for stmt in walk_statements(self.program.body)
            if not isinstance(stmt, For)
            for s in bound_symbols(stmt)
            if "#" + s.name not in static
        ]
        self.frame_symbols = tuple(dict.fromkeys(static + dynamic))
        self.static_symbols = len(static)
        groups = {
            "inputs": len(self.program.params),
            "outputs": len(self.program.results),
            "symbols": len(self.frame_symbols),
            "buffers": len(self.plan.buffers),
            "dynamic": len(self.plan.heap),
        }
        word = FIRST_WORD
        self.frame: dict[str, int] = {}
        for name, count in groups.items():
            self.frame[name] = word
            word += count
        self.frame["size"] = word

    def build(self) -> Host:
        code = self.code
        entry = code.entry
        for name, word, kind in (
            ("%constants", FRAME["constants"], PTR),
            ("%scratch", FRAME["scratch"], "i64"),
            ("%scratch_stride", FRAME["scratch_stride"], "i64"),
        ):
            entry.append(f"  {name}_at = llvm.getelementptr %frame[{word}] : ({PTR}) -> {PTR}, i64")
            entry.append(f"  {name} = llvm.load {name}_at : {PTR} -> {kind}")
        entry.append(f"  %error = llvm.getelementptr %frame[{FRAME['error']}] : ({PTR}) -> {PTR}, i64")
        for position, name in enumerate(self.frame_symbols[: self.static_symbols]):
            word = self.frame["symbols"] + position
            entry.append(f"  %s{position}_at = llvm.getelementptr %frame[{word}] : ({PTR}) -> {PTR}, i64")
            entry.append(f"  %s{position} = llvm.load %s{position}_at : {PTR} -> i64")
            self.symbols[name] = f"%s{position}"
        for index, constant in self.expected.items():
            self.expect(index, constant)
        self.region(self.program.body)
        self.outputs()
        code.jump("^exit")
        code.begin("^fail", [("%check", "i64")])
        code.store_word("%check", "%frame", FRAME["error"])
        code.jump("^exit")
        code.begin("^exit")
        code.emit(f"llvm.return {code.constant(0)} : i64")
        words = code.constant(self.max_words)
        entry.append(f"  %args = llvm.alloca {words} x i64 {{alignment = 64 : i64}} : (i64) -> {PTR}")
        used = sorted({k.symbol for k in self.kernels.values()})
        declared = [f"llvm.func @{symbol}({PTR}, i64, i64, i64)" for symbol in used]
        if self.expected:
            declared.append(f"llvm.func @memcmp({PTR}, {PTR}, i64) -> i32")
        body = "\n".join([*entry, *code.lines])
        text = "\n".join([*declared, _LAUNCH, f"llvm.func @dlc_main(%frame: {PTR}) -> i64 {{", body, "}", ""])
        checks = tuple(self.checks)
        return Host(text, tuple(self.calls), checks, self.frame_symbols, self.static_symbols, self.frame)

    def expect(self, index: int, constant: str) -> None:
        """The program holds for one value of this input alone: leave with an error for any other."""
        code = self.code
        param = self.program.params[index]
        of = self.types[constant]
        message = f"{VALUE_CHECK}: input '{param.name}' has another value than the one the model was compiled for"
        for extent, size in zip(param.type.shape, of.shape, strict=True):
            if extent != size:
                self.fail_if(code.compare("ne", code.expr(extent), code.expr(size)), message, self.program.loc)
        given, wanted = self.address_of(AtInput(index)), self.address_of(AtConstant(constant))
        size_bytes = self.bytes_of(of)
        order = code.value(f"llvm.call @memcmp({given}, {wanted}, {size_bytes}) : ({PTR}, {PTR}, i64) -> i32")
        self.fail_if(code.compare("ne", order, code.constant(0, "i32"), "i32"), message, self.program.loc)

    # -- statements

    def region(self, region: Region) -> None:
        for stmt in region.body:
            self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case Launch():
                self.launch(stmt)
            case Library():
                self.library(stmt)
            case Bind():
                self.bind(stmt)
            case If():
                self.branch(stmt)
            case For():
                self.counted_loop(stmt)
            case Loop():
                self.loop(stmt)
            case _:
                raise Internal(stmt.loc, message=f"{type(stmt).__name__} is left over: the program is not fused")

    def launch(self, stmt: Launch) -> None:
        kernel = self.kernels[stmt.kernel]
        cascade = self.cascades[stmt.kernel].cascade
        tensors = dict(zip((p.name for p in cascade.params), stmt.args, strict=True))
        tensors.update(zip(cascade.results, stmt.outs, strict=True))
        for name in stmt.outs:
            self.allocate(name)
        self.fill_in_out(kernel, stmt, tensors)
        self.call(stmt.kernel, tensors, stmt.loc)

    def library(self, stmt: Library) -> None:
        """One kernel, or one that measures, the extent it found, and one that writes."""
        temporaries = library_temporaries(stmt, self.types)
        self.types.update(temporaries)
        tensors = {f"arg{i}": name for i, name in enumerate(stmt.args)}
        tensors |= {f"out{i}": name for i, name in enumerate(stmt.outs)}
        tensors |= {name.rpartition(".")[2]: name for name in temporaries}
        number = 0
        if temporaries:
            for name in temporaries:
                self.allocate(name)
            self.call(library_name(stmt, number), tensors, stmt.loc)
            (symbol,) = stmt.binds
            self.bind_symbol(symbol, self.load_integer(tensors["count"]), stmt.loc)
            number = 1
        for name in stmt.outs:
            self.allocate(name)
        self.call(library_name(stmt, number), tensors, stmt.loc)

    def call(self, name: str, tensors: Mapping[str, str], loc: Loc) -> None:
        """Run a native kernel; `tensors` maps its buffers to tensors of the program."""
        code, kernel = self.code, self.kernels[name]
        words = arg_words(kernel.tile)
        self.max_words = max(self.max_words, len(words))
        for position, word in enumerate(words):
            match word.kind:
                case "buffer":
                    if word.name not in tensors:
                        raise Internal(loc, message=f"kernel '{name}' has a buffer '{word.name}' of no tensor")
                    code.store_word(self.address(tensors[word.name]), "%args", position, PTR)
                case "symbol":
                    code.store_word(code.expr(var(word.name)), "%args", position)
                case "scratch_base":
                    code.store_word("%scratch", "%args", position)
                case "scratch_stride":
                    code.store_word("%scratch_stride", "%args", position)
                case "error":
                    code.store_word("%error", "%args", position, PTR)
                case "check":
                    code.store_word(code.constant(1 + self.check(word.name, loc)), "%args", position)
        function = code.value(f"llvm.mlir.addressof @{kernel.symbol} : {PTR}")
        tasks, work = code.expr(kernel.tile.tasks), code.expr(kernel.work)
        index = code.constant(len(self.calls))
        self.calls.append(Call(name, loc, self.trips))
        code.emit(
            f"llvm.call @launch(%frame, {function}, %args, {tasks}, {work}, {index})"
            f" : ({PTR}, {PTR}, {PTR}, i64, i64, i64) -> ()"
        )
        if any(word.kind == "error" for word in words):
            failed = code.compare("ne", code.load_word("%error", 0), code.constant(0))
            go_on = code.label("ok")
            code.branch(failed, "^exit", go_on)
            code.begin(go_on)

    def fill_in_out(self, kernel: HostKernel, stmt: Launch, tensors: Mapping[str, str]) -> None:
        """A result that a kernel updates in place (a scatter's) starts as a copy of what it is written onto."""
        roles = {b.name: b.role for b in kernel.tile.buffers}
        cascade = self.cascades[stmt.kernel].cascade
        for result in cascade.results:
            if roles.get(result) != "inout":
                continue
            made = next((s for s in cascade.steps if isinstance(s, Einsum) and result in s.outs), None)
            onto = made.write.onto if made is not None and made.write is not None else None
            if onto is None or onto not in tensors:
                raise Internal(stmt.loc, message=f"kernel '{stmt.kernel}' updates '{result}', which has no first value")
            size = self.bytes_of(self.types[tensors[result]])
            self.code.copy(self.address(tensors[result]), self.address(tensors[onto]), size)

    def bind(self, stmt: Bind) -> None:
        name = "#" + stmt.symbol.name
        if name in self.plan.values:
            return  # a parameter's value: the runtime has bound and checked it
        value = self.load_integer(stmt.tensor)
        self.bind_symbol(stmt.symbol, value, stmt.loc)

    def bind_symbol(self, symbol: Symbol, value: str, loc: Loc) -> None:
        code = self.code
        hi = min(symbol.hi if symbol.hi is not None else MAX_EXTENT, MAX_EXTENT)
        low = code.compare("slt", value, code.constant(max(symbol.lo, 0)))
        high = code.compare("sgt", value, code.constant(hi))
        bad = code.binary("or", low, high, "i1")
        if symbol.divisor > 1:
            rest = code.binary("srem", value, code.constant(symbol.divisor))
            bad = code.binary("or", bad, code.compare("ne", rest, code.constant(0)), "i1")
        by = f", a multiple of {symbol.divisor}" if symbol.divisor > 1 else ""
        limits = f"{symbol.lo}..{'' if symbol.hi is None else symbol.hi}{by}"
        message = f"{EXTENT_CHECK}: the extent '{symbol.name}' found at run time is not in {limits}"
        self.fail_if(bad, message, loc)
        self.symbols["#" + symbol.name] = value
        position = self.frame_symbols.index("#" + symbol.name)
        code.store_word(value, "%frame", self.frame["symbols"] + position)

    def branch(self, stmt: If) -> None:
        code = self.code
        then, orelse, after = code.label("then"), code.label("else"), code.label("after")
        code.branch(self.load_bool(stmt.cond), then, orelse)
        for label, arm in ((then, stmt.then), (orelse, stmt.orelse)):
            code.begin(label)
            with code.scope():
                self.region(arm)
                code.jump(after, [(self.address(name), PTR) for name in arm.yields])
        results = [(code.fresh("%r"), PTR) for _ in stmt.outs]
        code.begin(after, results)
        self.pointers.update(zip(stmt.outs, (name for name, _ in results), strict=True))

    def counted_loop(self, stmt: For) -> None:
        code = self.code
        for outer, _ in stmt.stacked:
            self.allocate(outer)
        self.allocate_carried(stmt)
        extent = code.expr(stmt.extent)
        head, body, after = code.label("head"), code.label("body"), code.label("after")
        step = code.fresh("%t")
        carries = [(code.fresh("%h"), PTR) for _ in stmt.carries]
        inits = [(self.address(init), PTR) for _, init in stmt.carries]
        code.jump(head, [(code.constant(0), "i64"), *inits])
        code.begin(head, [(step, "i64"), *carries])
        self.pointers.update(zip((c for c, _ in stmt.carries), (name for name, _ in carries), strict=True))
        code.branch(code.compare("slt", step, extent), body, after)
        code.begin(body)
        trips, self.trips = self.trips, self.trips * stmt.extent
        with code.scope():
            self.symbols["#" + stmt.symbol.name] = step
            self.place_in_step(stmt.body, stmt.body.yields, step)
            in_place = {s for s in stmt.stacked if self.plan.places[s[1]] == AtSlice(s[0], stmt.symbol.name)}
            for outer, inner in sorted(in_place):
                self.pointers[inner] = self.element(outer, inner, step)
            self.region(stmt.body)
            for outer, inner in stmt.stacked:
                if (outer, inner) not in in_place:
                    target = self.element(outer, inner, step)
                    code.copy(target, self.address(inner), self.bytes_of(self.types[inner]))
            following = self.next_values(stmt, stmt.body.yields, step)
            code.jump(head, [(code.binary("add", step, code.constant(1)), "i64"), *following])
        self.trips = trips
        code.begin(after)
        self.pointers.update(zip(stmt.finals, (name for name, _ in carries), strict=True))

    def loop(self, stmt: Loop) -> None:
        code = self.code
        self.allocate_carried(stmt)
        limit = self.load_integer(stmt.limit) if stmt.limit is not None else None
        go = self.load_bool(stmt.cond) if stmt.cond is not None else code.constant(1, "i1")
        room = self.allocate_collected(stmt, limit)
        head, body, after = code.label("head"), code.label("body"), code.label("after")
        step, going, space = code.fresh("%i"), code.fresh("%go"), code.fresh("%room")
        carries = [(code.fresh("%h"), PTR) for _ in stmt.carries]
        inits = [(self.address(init), PTR) for _, init in stmt.carries]
        code.jump(head, [(code.constant(0), "i64"), (go, "i1"), (room, "i64"), *inits])
        code.begin(head, [(step, "i64"), (going, "i1"), (space, "i64"), *carries])
        self.pointers.update(zip((c for c, _ in stmt.carries), (name for name, _ in carries), strict=True))
        more = going
        if limit is not None:
            more = code.binary("and", going, code.compare("slt", step, limit), "i1")
        code.branch(more, body, after)
        code.begin(body)
        first = 1 if stmt.cond is not None else 0
        last = len(stmt.body.yields) - len(stmt.collected)
        with code.scope():
            self.pointers[stmt.index] = self.index_memory(stmt.index)
            code.emit(f"llvm.store {step}, {self.pointers[stmt.index]} : i64, {PTR}")
            self.place_in_step(stmt.body, stmt.body.yields[first:last], step)
            self.region(stmt.body)
            room = self.collect(stmt, stmt.body.yields[last:], step, space)
            following = self.next_values(stmt, stmt.body.yields[first:last], step)
            again = self.load_bool(stmt.body.yields[0]) if first else code.constant(1, "i1")
            after_step = code.binary("add", step, code.constant(1))
            code.jump(head, [(after_step, "i64"), (again, "i1"), (room, "i64"), *following])
        code.begin(after)
        self.pointers.update(zip(stmt.finals, (name for name, _ in carries), strict=True))
        if stmt.count is not None:
            self.bind_symbol(stmt.count, step, stmt.loc)

    # -- loops: carries and collected tensors

    def allocate_carried(self, stmt: For | Loop) -> None:
        """Blocks for carries whose size is known at run time only."""
        inside = {name for inner in stmt.body.body for name in inner.outs}
        for (carry, _), value in zip(stmt.carries, stmt.body.yields[_first_carry(stmt) :], strict=False):
            own = self.plan.places[value] if value in inside else None
            for place in (self.plan.copied.get(carry), own):
                if isinstance(place, AtEither):
                    for either in (place.even, place.odd):
                        if isinstance(either, AtHeap):
                            self.allocate_block(either, self.types[carry], stmt.loc)

    def place_in_step(self, body: Region, values: tuple[str, ...], step: str) -> None:
        """Addresses of this step for what is written in turn to one of two places."""
        inside = {name for stmt in body.body for name in stmt.outs}
        for name in dict.fromkeys(values):
            place = self.plan.places[name]
            if name in inside and isinstance(place, AtEither):
                self.pointers[name] = self.either(place, step)

    def either(self, place: AtEither, step: str) -> str:
        code = self.code
        odd = code.compare("ne", code.binary("and", step, code.constant(1)), code.constant(0))
        return code.select(odd, self.address_of(place.odd), self.address_of(place.even), PTR)

    def next_values(self, stmt: For | Loop, values: tuple[str, ...], step: str) -> list[tuple[str, str]]:
        """Addresses of the carries in the next step; those that are merely passed on are copied first."""
        following = []
        for (carry, _), value in zip(stmt.carries, values, strict=False):
            source = self.address(value)
            copied = self.plan.copied.get(carry)
            if copied is not None:
                target = self.either(copied, step)
                self.code.copy(target, source, self.bytes_of(self.types[carry]))
                source = target
            following.append((source, PTR))
        return following

    def element(self, outer: str, inner: str, step: str) -> str:
        """Address of element `step` of the stacked tensor `outer`."""
        code = self.code
        size = self.bytes_of(self.types[inner])
        return code.offset(self.address(outer), code.binary("mul", step, size))

    def index_memory(self, name: str) -> str:
        pointer = self.code.fresh("%index")
        one = self.code.constant(1)
        self.code.entry.append(f"  {pointer} = llvm.alloca {one} x i64 : (i64) -> {PTR}")
        return pointer

    def allocate_collected(self, stmt: Loop, limit: str | None) -> str:
        """Room for what a loop collects; returns for how many steps: exactly enough when the length is known before."""
        code = self.code
        room = code.constant(FIRST_COLLECTED)
        if not stmt.collected:
            return room
        if limit is not None:
            known = code.extreme("smax", limit, code.constant(1))
            room = known if stmt.cond is None else code.extreme("smin", known, room)
        for name, inner in self.collected(stmt):
            slot = self.heap_slot(name)
            self.release(slot)
            self.store_block(slot, self.malloc(self.types[inner], room, stmt.loc))
        return room

    def collect(self, stmt: Loop, inners: tuple[str, ...], step: str, room: str) -> str:
        """Append this step's tensors, growing the blocks when they are full; returns the room after that."""
        if not stmt.collected:
            return room
        code = self.code
        grow, copy = code.label("grow"), code.label("copy")
        space = code.fresh("%room")
        code.branch(code.compare("sge", step, room), grow, copy, [], [(room, "i64")])
        code.begin(grow)
        with code.scope():
            doubled = code.binary("shl", room, code.constant(1))
            for name, inner in self.collected(stmt):
                slot = self.heap_slot(name)
                block = self.malloc(self.types[inner], doubled, stmt.loc)
                old = code.load_word("%frame", slot, PTR)
                code.copy(block, old, code.binary("mul", step, self.bytes_of(self.types[inner])))
                self.release(slot)
                self.store_block(slot, block)
        code.jump(copy, [(doubled, "i64")])
        code.begin(copy, [(space, "i64")])
        for (name, _), inner in zip(self.collected(stmt), inners, strict=True):
            target = self.element(name, inner, step)
            code.copy(target, self.address(inner), self.bytes_of(self.types[inner]))
        return space

    def collected(self, stmt: Loop) -> list[tuple[str, str]]:
        first = len(stmt.body.yields) - len(stmt.collected)
        return list(zip(stmt.collected, stmt.body.yields[first:], strict=True))

    # -- memory

    def address(self, name: str) -> str:
        """The address of a tensor, as a value."""
        if name in self.pointers:
            return self.pointers[name]
        return self.address_of(self.plan.places[name])

    def address_of(self, place: Place) -> str:
        code = self.code
        match place:
            case AtInput(index):
                return code.load_word("%frame", self.frame["inputs"] + index, PTR)
            case AtConstant(name):
                offset = self.constants[name]
                return code.offset("%constants", code.constant(offset)) if offset else "%constants"
            case AtOutput(index):
                return code.load_word("%frame", self.frame["outputs"] + index, PTR)
            case AtBuffer(index):
                return code.load_word("%frame", self.frame["buffers"] + index, PTR)
            case AtHeap(index):
                return code.load_word("%frame", self.frame["dynamic"] + index, PTR)
            case _:
                raise Internal(message=f"no address for {place}")

    def bytes_of(self, of: TensorType) -> str:
        return self.code.expr(of.elements * of.dtype.bytes)

    def heap_slot(self, name: str) -> int:
        place = self.plan.places[name]
        assert isinstance(place, AtHeap), name
        return self.frame["dynamic"] + place.index

    def allocate(self, name: str) -> None:
        """Memory for a tensor whose size is known only now."""
        place = self.plan.places[name]
        if isinstance(place, AtHeap):
            self.allocate_block(place, self.types[name], self.program.loc)

    def allocate_block(self, place: AtHeap, of: TensorType, loc: Loc) -> None:
        slot = self.frame["dynamic"] + place.index
        self.release(slot)
        self.store_block(slot, self.malloc(of, self.code.constant(1), loc))

    def malloc(self, of: TensorType, count: str, loc: Loc) -> str:
        """`count` tensors' worth of memory, never null; leaves with an error when there is none."""
        code = self.code
        size = of.elements * of.dtype.bytes
        real = code.binary("fmul", code.as_float(size), code.value(f"llvm.sitofp {count} : i64 to f64"), "f64")
        large = code.value(f'llvm.fcmp "ogt" {real}, {code.constant(int(MAX_BLOCK_BYTES), "f64")} : f64')
        message = f"{MEMORY_CHECK}: not enough memory for a result of {of}"
        self.fail_if(large, message, loc)
        total = code.binary("mul", code.expr(size), count)
        function = code.load_word("%frame", FRAME["malloc"], PTR)
        wanted = code.extreme("smax", total, code.constant(1))
        block = code.value(f"llvm.call {function}({wanted}) : {PTR}, (i64) -> {PTR}")
        null = code.value(f"llvm.mlir.zero : {PTR}")
        self.fail_if(code.compare("eq", block, null, PTR), message, loc)
        return block

    def release(self, slot: int) -> None:
        """Free the block of an earlier step; free(null) does nothing."""
        block = self.code.load_word("%frame", slot, PTR)
        function = self.code.load_word("%frame", FRAME["free"], PTR)
        self.code.emit(f"llvm.call {function}({block}) : {PTR}, ({PTR}) -> ()")
        null = self.code.value(f"llvm.mlir.zero : {PTR}")
        self.store_block(slot, null)  # so that nobody frees it again if the next allocation fails

    def store_block(self, slot: int, block: str) -> None:
        self.code.store_word(block, "%frame", slot, PTR)

    def outputs(self) -> None:
        """What the caller gets that no kernel wrote there."""
        code = self.code
        for index, output in enumerate(self.plan.outputs):
            word = self.frame["outputs"] + index
            of = self.types[output.tensor]
            match output.how:
                case "copy":
                    code.copy(code.load_word("%frame", word, PTR), self.address(output.tensor), self.bytes_of(of))
                case "hand over":
                    code.store_word(self.address(output.tensor), "%frame", word, PTR)
                case "clone":
                    block = self.malloc(of, code.constant(1), self.program.loc)
                    code.store_word(block, "%frame", word, PTR)
                    code.copy(block, self.address(output.tensor), self.bytes_of(of))

    # -- scalars, symbols and checks

    def symbol(self, name: str) -> str:
        try:
            return self.symbols[name]
        except KeyError:
            raise Internal(message=f"symbol '{name}' is used before it is bound") from None

    def load_integer(self, name: str) -> str:
        """The one element of an integer (or boolean) tensor as i64."""
        code = self.code
        dtype: DType = self.types[name].dtype
        if not dtype.is_int and dtype != BOOL:
            raise Internal(message=f"'{name}' is {dtype} where an integer is needed")
        bits = dtype.bytes * 8
        value = code.value(f"llvm.load {self.address(name)} : {PTR} -> i{bits}")
        if bits == 64:
            return value
        extend = "sext" if dtype.kind == "i" else "zext"
        return code.value(f"llvm.{extend} {value} : i{bits} to i64")

    def load_bool(self, name: str) -> str:
        code = self.code
        bits = self.types[name].dtype.bytes * 8
        value = code.value(f"llvm.load {self.address(name)} : {PTR} -> i{bits}")
        return code.compare("ne", value, code.constant(0, f"i{bits}"), f"i{bits}")

    def check(self, text: str, loc: Loc) -> int:
        """Number of the check; its text may begin with a code, `DLC0541: message`."""
        match = re.match(r"(DLC05[45]\d)\W+(.*)", text, re.DOTALL)
        code, message = match.groups() if match else ("DLC0540", text)
        return self.checks.setdefault(Check(code, message, str(loc)), len(self.checks))

    def fail_if(self, bad: str, text: str, loc: Loc) -> None:
        """Leave with an error when the i1 `bad` holds."""
        code = self.code
        go_on = code.label("ok")
        code.branch(bad, "^fail", go_on, [(code.constant(1 + self.check(text, loc)), "i64")])
        code.begin(go_on)


def library_name(stmt: Library, number: int) -> str:
    """Name of the first or second kernel of a library operation."""
    return f"{stmt.op}.{stmt.outs[0]}" if number == 0 else f"{stmt.op}.{stmt.outs[0]}.{number}"


def _first_carry(stmt: For | Loop) -> int:
    """Where the carries' next values begin among the body's yields."""
    return 1 if isinstance(stmt, Loop) and stmt.cond is not None else 0


# Runs one kernel on the pool, timed when there is a profile buffer: a word for the start of the first call and one for
# the start plus the time of all calls, so that a kernel in a loop shows its whole time.
_LAUNCH = f"""\
llvm.func internal @launch(
  %frame: {PTR}, %kernel: {PTR}, %args: {PTR}, %tasks: i64, %work: i64, %index: i64
) attributes {{no_inline}} {{
  %c0 = llvm.mlir.constant(0 : i64) : i64
  %c1 = llvm.mlir.constant(1 : i64) : i64
  %enough = llvm.mlir.constant({GRAIN_WORK} : i64) : i64
  %per_thread = llvm.mlir.constant({CHUNKS_PER_THREAD} : i64) : i64
  %two = llvm.mlir.constant(2 : i64) : i64
  %run_at = llvm.getelementptr %frame[{FRAME["parallel_for"]}] : ({PTR}) -> {PTR}, i64
  %run = llvm.load %run_at : {PTR} -> {PTR}
  %pool_at = llvm.getelementptr %frame[{FRAME["pool"]}] : ({PTR}) -> {PTR}, i64
  %pool = llvm.load %pool_at : {PTR} -> {PTR}
  %threads_at = llvm.getelementptr %frame[{FRAME["threads"]}] : ({PTR}) -> {PTR}, i64
  %threads = llvm.load %threads_at : {PTR} -> i64
  %profile_at = llvm.getelementptr %frame[{FRAME["profile"]}] : ({PTR}) -> {PTR}, i64
  %profile = llvm.load %profile_at : {PTR} -> {PTR}
  %null = llvm.mlir.zero : {PTR}
  %work1 = llvm.intr.smax(%work, %c1) : (i64, i64) -> i64
  %most = llvm.sub %work1, %c1 : i64
  %rounded = llvm.add %enough, %most : i64
  %least = llvm.udiv %rounded, %work1 : i64
  %chunks0 = llvm.mul %threads, %per_thread : i64
  %chunks = llvm.intr.smax(%chunks0, %c1) : (i64, i64) -> i64
  %even = llvm.udiv %tasks, %chunks : i64
  %grain0 = llvm.intr.smax(%least, %even) : (i64, i64) -> i64
  %grain = llvm.intr.smax(%grain0, %c1) : (i64, i64) -> i64
  %timed = llvm.icmp "ne" %profile, %null : {PTR}
  llvm.cond_br %timed, ^before, ^start(%c0 : i64)
^before:
  %t0 = llvm.call_intrinsic "llvm.readcyclecounter"() : () -> i64
  llvm.br ^start(%t0 : i64)
^start(%began: i64):
  %bare = llvm.icmp "eq" %run, %null : {PTR}
  llvm.cond_br %bare, ^alone, ^team
^alone:
  %some = llvm.icmp "sgt" %tasks, %c0 : i64
  llvm.cond_br %some, ^call, ^done
^call:
  llvm.call %kernel(%args, %c0, %tasks, %c0) : {PTR}, ({PTR}, i64, i64, i64) -> ()
  llvm.br ^done
^team:
  llvm.call %run(%pool, %kernel, %args, %tasks, %grain) : {PTR}, ({PTR}, {PTR}, {PTR}, i64, i64) -> ()
  llvm.br ^done
^done:
  llvm.cond_br %timed, ^record, ^return
^record:
  %t1 = llvm.call_intrinsic "llvm.readcyclecounter"() : () -> i64
  %took = llvm.sub %t1, %began : i64
  %word = llvm.mul %index, %two : i64
  %start_at = llvm.getelementptr %profile[%word] : ({PTR}, i64) -> {PTR}, i64
  %end_at = llvm.getelementptr %start_at[1] : ({PTR}) -> {PTR}, i64
  %start = llvm.load %start_at : {PTR} -> i64
  %end = llvm.load %end_at : {PTR} -> i64
  %first = llvm.icmp "eq" %start, %c0 : i64
  %start1 = llvm.select %first, %began, %start : i1, i64
  %end1 = llvm.select %first, %began, %end : i1, i64
  %end2 = llvm.add %end1, %took : i64
  llvm.store %start1, %start_at : i64, {PTR}
  llvm.store %end2, %end_at : i64, {PTR}
  llvm.br ^return
^return:
  llvm.return
}}
"""
