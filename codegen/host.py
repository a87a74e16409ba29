"""A scheduled program to its native entry, `i64 dlc_main(ptr frame)`, as MLIR text.

The entry runs the statements: it fills the argument words of each kernel and hands it to the thread pool, decides
branches and loops, binds extents found at run time, and allocates what depends on them. Tensors are addresses; nothing
is copied but carries that are merely passed on, and outputs that control flow chooses.

The frame is an array of 8-byte words; its header is fixed (`FRAME` below), the manifest lists the groups after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlc.codegen.host_code import PTR
from dlc.codegen.host_launch import FIRST_WORD, FRAME, LAUNCH
from dlc.codegen.host_memory import Check, Memory
from dlc.codegen.host_regions import VISITS, HostRegion, Regions
from dlc.codegen.pool import CALLERS
from dlc.codegen.tile import TileProgram, arg_words
from dlc.errors import Internal
from dlc.ir.einsum import Einsum
from dlc.ir.extent import IntExpr, int_expr, show_extent, var
from dlc.ir.loc import Loc
from dlc.ir.memory import (
    AtConstant,
    AtEither,
    AtHeap,
    AtInput,
    AtSlice,
    MemoryPlan,
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
    Transfer,
    bound_symbols,
    walk_statements,
)

MAX_EXTENT = 1 << 40
"""An extent found at run time is refused above this also where the model has no bound: sizes stay far from overflow."""
FIRST_COLLECTED = 16
"""Steps for which a loop of unknown length has room before it first grows."""

EXTENT_CHECK, VALUE_CHECK = "DLC0541", "DLC0542"


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
class Host:
    """The entry.

    Attributes:
        mlir: text of the module.
        calls: the launches in profile order.
        checks: what error word 1 + i means.
        symbols: names (with `#`) in the order of the frame; those after `static_symbols` are found at run time.
        frame: first word of each group, and the size.
        regions: the control graph; the first is the program, alone where there is no control.
    """

    mlir: str
    calls: tuple[Call, ...]
    checks: tuple[Check, ...]
    symbols: tuple[str, ...]
    static_symbols: int
    frame: dict[str, int]
    regions: tuple[HostRegion, ...] = ()


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


class _Entry(Memory):
    def __init__(
        self,
        program: Program,
        plan: MemoryPlan,
        kernels: Mapping[str, HostKernel],
        constants: Mapping[str, int],
        expected: Mapping[int, str],
    ) -> None:
        super().__init__(program, plan, constants)
        self.kernels = kernels
        self.expected = expected
        self.cascades: dict[str, Kernel] = program.kernel_table
        self.calls: list[Call] = []
        self.trips = int_expr(1)
        self.max_words = 1
        counted = any(isinstance(s, (If, For, Loop)) for s in walk_statements(program.body))
        self.regions = Regions(self.code, counted)
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
        entry.extend(_COUNT_IN)
        entry.append(f"  %error = llvm.getelementptr %frame[{FRAME['error']}] : ({PTR}) -> {PTR}, i64")
        for position, name in enumerate(self.frame_symbols[: self.static_symbols]):
            word = self.frame["symbols"] + position
            entry.append(f"  %s{position}_at = llvm.getelementptr %frame[{word}] : ({PTR}) -> {PTR}, i64")
            entry.append(f"  %s{position} = llvm.load %s{position}_at : {PTR} -> i64")
            self.symbols[name] = f"%s{position}"
        for index, constant in self.expected.items():
            self.expect(index, constant)
        with self.regions.visit(0):
            self.region(self.program.body)
            self.outputs()
        code.jump("^exit")
        code.begin("^fail", [("%check", "i64")])
        code.store_word("%check", "%frame", FRAME["error"])
        code.jump("^exit")
        code.begin("^exit")
        code.lines.append(_COUNT_OUT)
        code.emit(f"llvm.return {code.constant(0)} : i64")
        words = code.constant(self.max_words)
        entry.append(f"  %args = llvm.alloca {words} x i64 {{alignment = 64 : i64}} : (i64) -> {PTR}")
        used = sorted({k.symbol for k in self.kernels.values()})
        declared = [f"llvm.func @{symbol}({PTR}, i64, i64, i64)" for symbol in used]
        if self.expected:
            declared.append(f"llvm.func @memcmp({PTR}, {PTR}, i64) -> i32")
        body = "\n".join([*entry, *code.lines])
        helpers = LAUNCH + (VISITS if self.regions.counted else "")
        text = "\n".join([*declared, helpers, f"llvm.func @dlc_main(%frame: {PTR}) -> i64 {{", body, "}", ""])
        checks = tuple(self.checks)
        listed = tuple(self.regions.listed)
        return Host(text, tuple(self.calls), checks, self.frame_symbols, self.static_symbols, self.frame, listed)

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
            case Transfer():
                self.transfer(stmt)
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
        self.regions.current.add_call(len(self.calls))
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
        if symbol.below is not None:  # buffers are made for no more
            bad = code.binary("or", bad, code.compare("sge", value, code.expr(symbol.below)), "i1")
        by = f", a multiple of {symbol.divisor}" if symbol.divisor > 1 else ""
        by += f" and below {show_extent(symbol.below)}" if symbol.below is not None else ""
        limits = f"at least {symbol.lo}" if symbol.hi is None else f"in {symbol.lo}..{symbol.hi}"
        message = f"{EXTENT_CHECK}: the extent '{symbol.name}' found at run time is not {limits}{by}"
        self.fail_if(bad, message, loc)
        self.symbols["#" + symbol.name] = value
        position = self.frame_symbols.index("#" + symbol.name)
        code.store_word(value, "%frame", self.frame["symbols"] + position)

    def branch(self, stmt: If) -> None:
        code = self.code
        then, orelse, after = code.label("then"), code.label("else"), code.label("after")
        code.branch(self.load_bool(stmt.cond), then, orelse)
        numbers = [self.regions.new(kind, stmt.loc) for kind in ("then", "else")]
        self.regions.current.items.append(["if", *numbers])
        for label, arm, number in zip((then, orelse), (stmt.then, stmt.orelse), numbers, strict=True):
            code.begin(label)
            with code.scope():
                with self.regions.visit(number):
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
        number = self.regions.new("for", stmt.loc)
        self.regions.current.items.append(["loop", number])
        with code.scope(), self.regions.visit(number):
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
            after_step = code.binary("add", step, code.constant(1))
        code.jump(head, [(after_step, "i64"), *following])
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
        number = self.regions.new("while", stmt.loc)
        self.regions.current.items.append(["loop", number])
        with code.scope(), self.regions.visit(number):
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

    # -- outputs

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


# A call counts itself among those of its pool; without a pool, in a word of its own.
_COUNT_IN = (
    f"  %pool_at = llvm.getelementptr %frame[{FRAME['pool']}] : ({PTR}) -> {PTR}, i64",
    f"  %pool = llvm.load %pool_at : {PTR} -> {PTR}",
    f"  %no_pool = llvm.mlir.zero : {PTR}",
    f'  %is_alone = llvm.icmp "eq" %pool, %no_pool : {PTR}',
    "  %call_one = llvm.mlir.constant(1 : i32) : i32",
    f"  %own_count = llvm.alloca %call_one x i32 : (i32) -> {PTR}",
    f"  %pool_count = llvm.getelementptr %pool[{CALLERS}] : ({PTR}) -> {PTR}, i8",
    f"  %callers = llvm.select %is_alone, %own_count, %pool_count : i1, {PTR}",
    f"  %call_in = llvm.atomicrmw add %callers, %call_one seq_cst : {PTR}, i32",
)
_COUNT_OUT = (
    "  %call_minus = llvm.mlir.constant(-1 : i32) : i32\n"
    f"  %call_out = llvm.atomicrmw add %callers, %call_minus seq_cst : {PTR}, i32"
)


def library_name(stmt: Library, number: int) -> str:
    """Name of the first or second kernel of a library operation."""
    return f"{stmt.op}.{stmt.outs[0]}" if number == 0 else f"{stmt.op}.{stmt.outs[0]}.{number}"


def _first_carry(stmt: For | Loop) -> int:
    """Where the carries' next values begin among the body's yields."""
    return 1 if isinstance(stmt, Loop) and stmt.cond is not None else 0
