"""Tile program -> one MLIR function following the native kernel convention.

    void <name>(ptr args, i64 lo, i64 hi, i64 thread)

runs the tasks lo .. hi-1; `args` holds the words of `tile.arg_words`. A tile becomes one SSA value per slot: a vector,
or a scalar when it has one lane. Addresses are i64 sums whose terms are ordered from outer to inner variables, so that
what does not change in a loop is computed before it, and constants become displacements.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlc.codegen import bf16_to_mlir, tile
from dlc.codegen.codes_to_mlir import emit_lookup, emit_unpack, emit_zip
from dlc.codegen.dot_to_mlir import emit_dot
from dlc.codegen.mlir_text import vector_type
from dlc.codegen.native import LOOP_ANNOTATION
from dlc.codegen.normal_sums import normal_sums
from dlc.codegen.scalar_to_mlir import Scalars
from dlc.codegen.target import Target
from dlc.codegen.tile import TileProgram, TileType
from dlc.codegen.tile_memory import Memory
from dlc.codegen.tile_values import slots, tree
from dlc.codegen.tile_verify import verify
from dlc.ir.dtype import BF16, BOOL, F32, I64, DType
from dlc.ir.extent import IntExpr, int_expr, var

_ROLLED = f"{{{LOOP_ANNOTATION} = #llvm.loop_annotation<unroll = <disable = true>>}}"
"""On a loop whose carries fill the registers: copies of its body gain nothing, for there are enough independent operations, and what
they share (an element that neighbouring steps of a window read) is kept in registers that are not there."""


def lower(program: TileProgram, target: Target) -> str:
    """MLIR text of the kernel; `program` is verified first."""
    verify(program)
    return TileLowering(program, target).run()


class TileLowering(Memory):
    """The function, its values and its control flow."""

    # -- the function ------------------------------------------------------------------------------------------------

    def run(self) -> str:
        program, e = self.program, self.e
        self.normal = normal_sums(program)
        self._arguments()
        one = e.const(1, "i64")
        e.do(f"scf.for %task = %lo to %hi step {one} : i64 {{")
        with self._region():
            self._bind(program.task_var, "%task", nonneg=True)
            self._body(program.body)
        e.do("}")
        if any(isinstance(s, tile.Store) and s.nontemporal for s in tile.walk(program.body)):
            e.do('llvm.call_intrinsic "llvm.x86.sse.sfence"() : () -> ()')  # other threads read the result next
        header = f"llvm.func @{program.name}(%args: !llvm.ptr, %lo: i64, %hi: i64, %thread: i64)"
        return e.declarations() + e.function(header)

    def _arguments(self) -> None:
        e = self.e
        scratch: dict[str, str] = {}
        for position, word in enumerate(tile.arg_words(self.program)):
            at = e.v(f"llvm.getelementptr %args[{position}] : (!llvm.ptr) -> !llvm.ptr, i64")
            pointer = word.kind in ("buffer", "scratch_base", "error")
            value = e.result(f"llvm.load {at} : !llvm.ptr -> {'!llvm.ptr' if pointer else 'i64'}")
            match word.kind:
                case "buffer":
                    self.pointers[word.name] = value
                case "symbol":
                    self._bind(word.name, value, nonneg=True)
                case "error":
                    self.error = value
                case "check":
                    self.checks[word.name] = value
                case kind:
                    scratch[kind] = value
        if scratch:
            own = self._int("muli", "%thread", scratch["scratch_stride"])
            base = self._offset_pointer(scratch["scratch_base"], own, "i8")
            for name, offset in tile.scratch_offsets(self.program)[0].items():
                self.pointers[name] = self._offset_pointer(base, self.index(offset), "i8")

    # -- statements --------------------------------------------------------------------------------------------------

    def _body(self, body: tuple[tile.Stmt, ...]) -> None:
        for stmt in body:
            getattr(self, "_" + type(stmt).__name__.lower())(stmt)

    def _const(self, s: tile.Const) -> None:
        value = Scalars(self.e, s.type.lanes).constant(s.type.dtype, s.value)
        self._define(s.dst, s.type, [value] * s.type.count)

    def _iota(self, s: tile.Iota) -> None:
        type_ = TileType(s.dtype, (), s.lanes)
        scalars = Scalars(self.e, s.lanes)
        start = self._splat(self._convert_index(s.start, s.dtype), s.dtype, s.lanes)
        numbers = self._lane_numbers(f"i{s.dtype.bits}", s.lanes)
        self._define(s.dst, type_, [scalars.op("add", s.dtype, (start, numbers))])

    def _convert_index(self, expr: IntExpr, dtype: DType) -> str:
        constant = self._resolve(expr).const
        if constant is not None and dtype.is_int:
            return self.e.const(constant, f"i{dtype.bits}")
        return Scalars(self.e, 1).cast(self.index(expr), I64, dtype, "wrap")

    def _fromindex(self, s: tile.FromIndex) -> None:
        self._define(s.dst, TileType(s.dtype), [self._convert_index(s.expr, s.dtype)])

    def _indexof(self, s: tile.IndexOf) -> None:
        value = self.tiles[s.src]
        self._bind(s.var, Scalars(self.e, 1).cast(value.registers[0], value.type.dtype, I64, "wrap"), nonneg=False)

    def _lead(self, s: tile.Lead) -> None:
        address = self.e.v(f"llvm.ptrtoint {self.pointers[s.buffer]} : !llvm.ptr to i64")
        left = self._int("andi", self._int("subi", self._ci(0), address), self._ci(s.bytes - 1))
        size = self.buffers[s.buffer].dtype.bytes
        self._bind(s.var, self._int("shrui", left, self._ci(size.bit_length() - 1)), nonneg=True)

    def _op(self, s: tile.Op) -> None:
        types = tuple(self.tiles[a].type for a in s.args)
        result = tile.op_type(s.op, types)
        assert isinstance(result, TileType)
        scalars = Scalars(self.e, result.lanes)
        dtype = types[-1].dtype
        registers = []
        for slot in slots(result):
            args = tuple(self._register(a, slot, result.lanes) for a in s.args)
            registers.append(self._known(s.op, result, args) or scalars.op(s.op, dtype, args))
        self._define(s.dst, result, registers)

    def _known(self, op: str, result: TileType, args: tuple[str, ...]) -> str | None:
        """The register that is the result because a condition among `args` is known; None when none is."""
        truth = [self.e.literals.get(a) for a in args]
        if op == "select" and truth[0] is not None:
            return args[1] if truth[0] else args[2]
        if result.dtype != BOOL:
            return None
        if op == "not" and truth[0] is not None:
            return self.e.const(not truth[0], "i1", result.lanes)
        if op == "and":
            for own, other in ((0, 1), (1, 0)):
                if truth[own] is not None:
                    return args[other] if truth[own] else args[own]
        return None

    def _cast(self, s: tile.Cast) -> None:
        value = self.tiles[s.src]
        scalars = Scalars(self.e, value.type.lanes)
        if (value.type.dtype, s.dtype) == (F32, BF16) and bf16_to_mlir.native(self.e, value.type.lanes):
            normal = s.src in self.normal
            registers, halves = bf16_to_mlir.emit_rounded(self.e, value.type.lanes, value.registers, normal=normal)
            self.halves |= halves
        elif (value.type.dtype, s.dtype) == (BF16, F32):
            registers = [self._widened(scalars, r) for r in value.registers]
        else:
            registers = [scalars.cast(r, value.type.dtype, s.dtype, s.mode) for r in value.registers]
        self._define(s.dst, value.type.with_dtype(s.dtype), registers)

    def _widened(self, scalars: Scalars, register: str) -> str:
        place = self.halves.get(register)
        return bf16_to_mlir.emit_widened(self.e, place) if place is not None else scalars.cast(register, BF16, F32, "sat")

    def _bitcast(self, s: tile.Bitcast) -> None:
        value = self.tiles[s.src]
        scalars = Scalars(self.e, value.type.lanes)
        old, new = scalars.type(value.type.dtype), scalars.type(s.dtype)
        registers = [r if old == new else self.e.v(f"arith.bitcast {r} : {old} to {new}") for r in value.registers]
        self._define(s.dst, value.type.with_dtype(s.dtype), registers)

    def _view(self, s: tile.View) -> None:
        source = self.tiles[s.src]
        result = tile.view_type(source.type, s.dtype)
        assert result is not None
        old, new = (Scalars(self.e, t.lanes).type(t.dtype) for t in (source.type, result))
        registers = [r if old == new else self.e.v(f"llvm.bitcast {r} : {old} to {new}") for r in source.registers]
        self._define(s.dst, result, registers)

    def _unpack(self, s: tile.Unpack) -> None:
        value = self.tiles[s.src]
        self._define(s.dst, value.type, [emit_unpack(self.e, s.bits, value.type.lanes, r) for r in value.registers])

    def _lookup(self, s: tile.Lookup) -> None:
        value = self.tiles[s.src]
        registers = [emit_lookup(self.e, s.dtype, s.table, value.type.lanes, r) for r in value.registers]
        self._define(s.dst, value.type.with_dtype(s.dtype), registers)

    def _zip(self, s: tile.Zip) -> None:
        low, high = self.tiles[s.low], self.tiles[s.high]
        result = tile.zip_type(low.type, high.type, s.half)
        assert isinstance(result, TileType)
        pairs = zip(low.registers, high.registers, strict=True)
        self._define(s.dst, result, [emit_zip(self.e, result.lanes, s.half, a, b) for a, b in pairs])

    def _dot(self, s: tile.Dot) -> None:
        result = tile.dot_type(s.left, s.right, tuple(self.tiles[x].type for x in (s.a, s.b, s.acc)))
        assert isinstance(result, TileType)
        registers = []
        for slot in slots(result):
            a, b, acc = (self._register(x, slot, result.lanes) for x in (s.a, s.b, s.acc))
            registers.append(emit_dot(self.e, s.left, result.lanes, a, b, acc))
        self._define(s.dst, result, registers)

    def _broadcast(self, s: tile.Broadcast) -> None:
        self._define(s.dst, s.type, [self._register(s.src, slot, s.type.lanes) for slot in slots(s.type)])

    def _slice(self, s: tile.Slice) -> None:
        type_ = self.tiles[s.src].type
        self._define(s.dst, TileType(type_.dtype, (), type_.lanes), [self._register(s.src, s.index, type_.lanes)])

    def _stack(self, s: tile.Stack) -> None:
        type_ = self.tiles[s.srcs[0]].type
        registers = [r for src in s.srcs for r in self.tiles[src].registers]
        self._define(s.dst, TileType(type_.dtype, (len(s.srcs), *type_.slots), type_.lanes), registers)

    def _mask(self, s: tile.Mask) -> None:
        # i8 lanes give one comparison for any register width; i32 is the cheaper one up to 16 lanes
        element = "i32" if s.lanes <= 16 else "i8"
        count = self._resolve(s.count)
        if count.const is not None and (count.const >= s.lanes or count.const <= 0):
            self._define(s.dst, TileType(BOOL, (), s.lanes), [self.e.const(count.const > 0, "i1", s.lanes)])
            return
        limited = self._int("maxsi", self._int("minsi", self.index(count), self._ci(s.lanes)), self._ci(0))
        narrow = self.e.v(f"arith.trunci {limited} : i64 to {element}")
        type_ = vector_type(element, s.lanes)
        wide = narrow if s.lanes == 1 else self.e.v(f"vector.broadcast {narrow} : {element} to {type_}")
        mask = self.e.v(f"arith.cmpi slt, {self._lane_numbers(element, s.lanes)}, {wide} : {type_}")
        self._define(s.dst, TileType(BOOL, (), s.lanes), [mask])

    def _reduce(self, s: tile.Reduce) -> None:
        value = self.tiles[s.src]
        type_ = value.type
        if s.axis is None:
            self._define(
                s.dst, TileType(type_.dtype, type_.slots, 1), [self._fold_lanes(s.op, type_, r) for r in value.registers]
            )
            return
        result = TileType(type_.dtype, (*type_.slots[: s.axis], 1, *type_.slots[s.axis + 1 :]), type_.lanes)
        scalars = Scalars(self.e, type_.lanes)
        registers = []
        for slot in slots(result):
            line = [
                self._register(s.src, (*slot[: s.axis], i, *slot[s.axis + 1 :]), type_.lanes)
                for i in range(type_.slots[s.axis])
            ]
            registers.append(tree(line, lambda a, b: scalars.op(s.op, type_.dtype, (a, b))))
        self._define(s.dst, result, registers)

    def _fold(self, s: tile.Fold) -> None:
        value = self.tiles[s.src]
        result = tile.fold_type(value.type)
        assert result is not None
        registers = [
            self._fold_together(s.op, value.type, value.registers[first : first + result.lanes])
            for first in range(0, len(value.registers), result.lanes)
        ]
        self._define(s.dst, result, registers)

    def _check(self, s: tile.Check) -> None:
        e, value = self.e, self.tiles[s.cond]
        fine = tree(list(value.registers), lambda a, b: Scalars(e, value.type.lanes).op("and", BOOL, (a, b)))
        fine = self._fold_lanes("and", value.type, fine)
        failed = e.v(f"arith.xori {fine}, {e.const(1, 'i1')} : i1")
        e.do(f"scf.if {failed} {{")
        with e.region():
            code = self.checks[s.check_id]
            e.result(f"llvm.cmpxchg {self.error}, {self._ci(0)}, {code} seq_cst seq_cst : !llvm.ptr, i64")
        e.do("}")

    # -- control -----------------------------------------------------------------------------------------------------

    def _types(self, names: Sequence[str]) -> list[str]:
        """MLIR types of the registers of tiles, flattened."""
        types = [self.tiles[n].type for n in names]
        return [Scalars(self.e, t.lanes).type(t.dtype) for t in types for _ in range(t.count)]

    def _flat(self, names: Sequence[str]) -> list[str]:
        return [r for n in names for r in self.tiles[n].registers]

    def _define_flat(self, names: Sequence[str], types: Sequence[TileType], values: Sequence[str]) -> None:
        position = 0
        for name, type_ in zip(names, types, strict=True):
            self._define(name, type_, values[position : position + type_.count])
            position += type_.count

    def _for(self, s: tile.For) -> None:
        types = [self.tiles[init].type for _, init in s.carries]
        values = self._flat([init for _, init in s.carries])
        lo, hi, step = (self._resolve(x) for x in (s.lo, s.hi, s.step))
        unroll = max(1, s.unroll)
        trips = (hi - lo).const
        if trips is not None and step.const is not None:
            count = max(0, -(-trips // step.const))
            if count <= unroll:
                values = self._copies(s, types, values, lo, step, count)
                self._define_flat(s.results, types, values)
                return
        if unroll > 1:
            whole = self._whole(lo, hi, step, unroll)
            values = self._loop(s, types, values, lo, whole, step, unroll)
            if (whole - hi).const != 0:
                values = self._loop(s, types, values, whole, hi, step, 1)
        else:
            values = self._loop(s, types, values, lo, hi, step, 1)
        self._define_flat(s.results, types, values)

    def _whole(self, lo: IntExpr, hi: IntExpr, step: IntExpr, unroll: int) -> IntExpr:
        """Where the unrolled loop ends: the last multiple of `unroll` steps that needs no test inside."""
        full = (hi - lo) // (step * unroll)
        end = lo + full * step * unroll
        if end.const is None:
            name = f"@whole{len(self.indices)}"
            self._bind(name, self._int("maxsi", self.index(end), self.index(lo)), nonneg=self._is_nonneg(lo))
            return var(name)
        return int_expr(max(end.const, lo.const)) if lo.const is not None else end

    def _copies(
        self, s: tile.For, types: list[TileType], values: list[str], base: IntExpr, step: IntExpr, count: int
    ) -> list[str]:
        """`count` copies of the body, one after the other, with the variable at base, base + step, ..."""
        names = [name for name, _ in s.carries]
        for i in range(count):
            with self._scope():
                self.aliases[s.var] = base + step * i
                self._define_flat(names, types, values)
                self._body(s.body)
                values = self._flat(s.yields)
        return values

    def _loop(
        self,
        s: tile.For,
        types: list[TileType],
        values: list[str],
        lo: IntExpr,
        hi: IntExpr,
        step: IntExpr,
        unroll: int,
    ) -> list[str]:
        e = self.e
        first, last, stride = self.index(lo), self.index(hi), self.index(step * unroll)
        texts = [Scalars(e, t.lanes).type(t.dtype) for t in types for _ in range(t.count)]
        index, result = e.name(), e.name()
        inner = [e.name() for _ in values]
        head = f"scf.for {index} = {first} to {last} step {stride}"
        if values:
            pairs = ", ".join(f"{a} = {b}" for a, b in zip(inner, values, strict=True))
            head = f"{result}:{len(values)} = {head} iter_args({pairs}) -> ({', '.join(texts)})"
        e.do(f"{head} : i64 {{")
        with self._region():
            base = f"@{s.var}{index[1:]}"  # no text form has such a name
            self._bind(base, index, nonneg=self._is_nonneg(lo))
            yields = self._copies(s, types, inner, var(base), step, unroll)
            if values:
                e.do(f"scf.yield {', '.join(yields)} : {', '.join(texts)}")
        e.do("}" + (f" {_ROLLED}" if len(values) >= self.target.vector_registers // 2 else ""))
        return [f"{result}#{i}" for i in range(len(values))]

    def _if(self, s: tile.If) -> None:
        e = self.e
        cond: str | bool = True
        if isinstance(s.cond, str):
            cond = self.tiles[s.cond].registers[0]
            if cond in e.literals:
                cond = bool(e.literals[cond])
        else:
            for part in s.cond:
                value = self._condition(part)
                if value is False or cond is True:
                    cond = value
                elif value is not True and cond is not False:
                    cond = e.v(f"arith.andi {cond}, {value} : i1")
                if cond is False:
                    break
        if isinstance(cond, bool):
            self._inline(s, cond)
            return
        lines_before = len(e.lines)
        result = e.name()
        e.do("")  # the head is written when the types of the yields are known
        with self._region():
            self._body(s.then)
            types = [self.tiles[y].type for y in s.then_yields]
            texts = self._types(s.then_yields)
            if texts:
                e.do(f"scf.yield {', '.join(self._flat(s.then_yields))} : {', '.join(texts)}")
        head = f"scf.if {cond}"
        if texts:
            head = f"{result}:{len(texts)} = {head} -> ({', '.join(texts)})"
        e.lines[lines_before] += f"{head} {{"
        if s.orelse or texts:
            e.do("} else {")
            with self._region():
                self._body(s.orelse)
                if texts:
                    e.do(f"scf.yield {', '.join(self._flat(s.else_yields))} : {', '.join(texts)}")
        e.do("}")
        self._define_flat(s.results, types, [f"{result}#{i}" for i in range(len(texts))])

    def _inline(self, s: tile.If, cond: bool) -> None:
        with self._scope():
            self._body(s.then if cond else s.orelse)
            yields = s.then_yields if cond else s.else_yields
            types, values = [self.tiles[y].type for y in yields], self._flat(yields)
        self._define_flat(s.results, types, values)

    def _while(self, s: tile.While) -> None:
        e = self.e
        names = [name for name, _ in s.carries]
        types = [self.tiles[init].type for _, init in s.carries]
        values = self._flat([init for _, init in s.carries])
        texts = [Scalars(e, t.lanes).type(t.dtype) for t in types for _ in range(t.count)]
        listed = ", ".join(texts)
        before, after = [e.name() for _ in values], [e.name() for _ in values]
        result = e.name()
        pairs = ", ".join(f"{a} = {b}" for a, b in zip(before, values, strict=True))
        e.do(f"{result}:{len(values)} = scf.while ({pairs}) : ({listed}) -> ({listed}) {{")
        with self._region():
            self._define_flat(names, types, before)
            self._body(s.test_body)
            e.do(f"scf.condition({self.tiles[s.test].registers[0]}) {', '.join(before)} : {listed}")
        e.do("} do {")
        with self._region():
            e.do(f"^bb0({', '.join(f'{a}: {t}' for a, t in zip(after, texts, strict=True))}):")
            self._define_flat(names, types, after)
            self._body(s.body)
            e.do(f"scf.yield {', '.join(self._flat(s.yields))} : {listed}")
        e.do("}")
        self._define_flat(s.results, types, [f"{result}#{i}" for i in range(len(values))])
