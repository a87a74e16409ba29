"""Tile program -> one MLIR function following the native kernel convention.

    void <name>(ptr args, i64 lo, i64 hi, i64 thread)

runs the tasks lo .. hi-1; `args` holds the words of `tile.arg_words`. A tile becomes one SSA value per slot: a vector,
or a scalar when it has one lane. Addresses are i64 sums whose terms are ordered from outer to inner variables, so that
what does not change in a loop is computed before it, and constants become displacements.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dlc.codegen import tile
from dlc.codegen.mlir_text import Emitter, vector_type
from dlc.codegen.scalar_to_mlir import Scalars, storage_element
from dlc.codegen.target import Target
from dlc.codegen.tile import TileProgram, TileType
from dlc.codegen.tile_verify import verify
from dlc.ir.dtype import BOOL, F32, I64, DType
from dlc.ir.extent import FloorDiv, IntExpr, Max, Min, Mod, Var, int_expr, substitute, var, variables

_INDEX_CMP = {"lt": "slt", "le": "sle", "eq": "eq", "ne": "ne", "gt": "sgt", "ge": "sge"}
_INT_REDUCE = {"add": "add", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}


def lower(program: TileProgram, target: Target) -> str:
    """MLIR text of the kernel; `program` is verified first."""
    verify(program)
    return _Lowering(program, target).run()


@dataclass(frozen=True, slots=True)
class _Tile:
    type: TileType
    registers: tuple[str, ...]  # row-major over the slots


class _Lowering:
    def __init__(self, program: TileProgram, target: Target) -> None:
        self.program, self.target = program, target
        self.e = Emitter(target)
        self.buffers = {b.name: b for b in program.buffers}
        self.pointers: dict[str, str] = {}
        self.tiles: dict[str, _Tile] = {}
        self.indices: dict[str, str] = {}  # variable -> i64
        self.aliases: dict[str, IntExpr] = {}  # variable -> expression of others (unrolled copies)
        self.depths: dict[str, int] = {}  # variable -> loop depth at which it changes
        self.nonneg: set[str] = set()
        self.depth = 0
        self.checks: dict[str, str] = {}
        self.error = ""

    # -- the function ------------------------------------------------------------------------------------------------

    def run(self) -> str:
        program, e = self.program, self.e
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

    @contextmanager
    def _region(self) -> Iterator[None]:
        """A nested region: what is bound inside is forgotten."""
        saved = self.tiles, self.indices, self.aliases, self.depths
        self.tiles, self.indices, self.aliases, self.depths = (dict(d) for d in saved)
        self.depth += 1
        with self.e.region():
            yield
        self.depth -= 1
        self.tiles, self.indices, self.aliases, self.depths = saved

    def _bind(self, name: str, value: str, *, nonneg: bool) -> None:
        self.indices[name] = value
        self.aliases.pop(name, None)
        self.depths[name] = self.depth
        (self.nonneg.add if nonneg else self.nonneg.discard)(name)

    # -- index expressions -------------------------------------------------------------------------------------------

    def _int(self, op: str, a: str, b: str) -> str:
        return self.e.v(f"arith.{op} {a}, {b} : i64")

    def _ci(self, value: int) -> str:
        return self.e.const(value, "i64")

    def index(self, expr: IntExpr) -> str:
        """The i64 value of an index expression."""
        total, constant = self._sum(expr)
        if total is None:
            return self._ci(constant)
        return self._int("addi", total, self._ci(constant)) if constant else total

    def _sum(self, expr: IntExpr) -> tuple[str | None, int]:
        """(value of the terms that vary, constant term)."""
        groups, constant = self._groups(expr)
        total: str | None = None
        for group in groups:
            for value in group:
                total = value if total is None else self._int("addi", total, value)
        return total, constant

    def _groups(self, expr: IntExpr) -> tuple[list[list[str]], int]:
        """Values of the terms, grouped by loop depth from the outermost, and the constant term."""
        expr = self._resolve(expr)
        constant = 0
        by_depth: dict[int, list[str]] = {}
        for monomial, coefficient in expr.terms:
            if not monomial:
                constant = coefficient
                continue
            product: str | None = None
            for atom in sorted(monomial, key=self._atom_depth):
                value = self._atom(atom)
                product = value if product is None else self._int("muli", product, value)
            assert product is not None
            if coefficient != 1:
                product = self._int("muli", product, self._ci(coefficient))
            by_depth.setdefault(max(map(self._atom_depth, monomial)), []).append(product)
        return [by_depth[d] for d in sorted(by_depth)], constant

    def _resolve(self, expr: IntExpr) -> IntExpr:
        return substitute(expr, self.aliases) if self.aliases else expr

    def _atom_depth(self, atom: object) -> int:
        names = variables(IntExpr((((atom,), 1),)))  # type: ignore[arg-type]
        return max((self.depths.get(n, 0) for n in names), default=0)

    def _atom(self, atom: object) -> str:
        match atom:
            case Var(name):
                return self.indices[name]
            case FloorDiv(num, den) | Mod(num, den):
                return self._divide(num, den, isinstance(atom, FloorDiv))
            case Min(args) | Max(args):
                op = "minsi" if isinstance(atom, Min) else "maxsi"
                result = self.index(args[0])
                for arg in args[1:]:
                    result = self._int(op, result, self.index(arg))
                return result
        raise AssertionError(atom)

    def _divide(self, num: IntExpr, den: IntExpr, quotient: bool) -> str:
        a = self.index(num)
        divisor = den.const
        positive = divisor is not None and divisor > 0
        if positive and divisor is not None and divisor & (divisor - 1) == 0:
            if quotient:
                return self._int("shrsi", a, self._ci(divisor.bit_length() - 1))
            return self._int("andi", a, self._ci(divisor - 1))
        b = self.index(den)
        if divisor is None:  # an empty extent must not trap here; what is computed with it is not used
            zero = self.e.v(f"arith.cmpi eq, {b}, {self._ci(0)} : i64")
            b = self.e.v(f"arith.select {zero}, {self._ci(1)}, {b} : i64")
        if self._is_nonneg(num) and (positive or self._is_nonneg(den)):
            return self._int("divui" if quotient else "remui", a, b)
        floor = Scalars(self.e, 1).op("div_floor", I64, (a, b))
        return floor if quotient else self._int("subi", a, self._int("muli", floor, b))

    def _is_nonneg(self, expr: IntExpr) -> bool:
        return all(
            coefficient >= 0 and all(self._atom_nonneg(a) for a in monomial) for monomial, coefficient in expr.terms
        )

    def _atom_nonneg(self, atom: object) -> bool:
        match atom:
            case Var(name):
                return name in self.nonneg
            case FloorDiv(num, den):
                return self._is_nonneg(num) and self._is_nonneg(den)
            case Mod(_, den):
                return self._is_nonneg(den)
            case Min(args):
                return all(map(self._is_nonneg, args))
            case Max(args):
                return any(map(self._is_nonneg, args))
        return False

    def _condition(self, cond: tile.IndexCond) -> str | bool:
        """An i1 value, or its truth when it is known."""
        lhs, rhs = self._resolve(cond.lhs), self._resolve(cond.rhs)
        difference = (lhs - rhs).const
        if difference is not None:
            return {
                "lt": difference < 0,
                "le": difference <= 0,
                "eq": difference == 0,
                "ne": difference != 0,
                "gt": difference > 0,
                "ge": difference >= 0,
            }[cond.op]
        return self.e.v(f"arith.cmpi {_INDEX_CMP[cond.op]}, {self.index(lhs)}, {self.index(rhs)} : i64")

    # -- registers ---------------------------------------------------------------------------------------------------

    def _register(self, name: str, slot: tuple[int, ...], lanes: int) -> str:
        """The register of tile `name` that broadcasts to `slot` of a larger shape, widened to `lanes`."""
        value = self.tiles[name]
        own = value.type.slots
        position = 0
        aligned = slot[len(slot) - len(own) :]
        for size, i in zip(own, aligned, strict=True):
            position = position * size + (i if size != 1 else 0)
        register = value.registers[position]
        if value.type.lanes == lanes:
            return register
        return self._splat(register, value.type.dtype, lanes)

    def _splat(self, scalar: str, dtype: DType, lanes: int) -> str:
        if lanes == 1:
            return scalar
        one, many = Scalars(self.e, 1).type(dtype), Scalars(self.e, lanes).type(dtype)
        literal = self.e.literals.get(scalar)
        if literal is not None:
            return self.e.const(literal, one, lanes)
        return self.e.v(f"vector.broadcast {scalar} : {one} to {many}")

    def _define(self, name: str, type_: TileType, registers: Sequence[str]) -> None:
        assert len(registers) == type_.count, (name, type_, len(registers))
        self.tiles[name] = _Tile(type_, tuple(registers))

    # -- statements --------------------------------------------------------------------------------------------------

    def _body(self, body: tuple[tile.Stmt, ...]) -> None:
        for stmt in body:
            getattr(self, "_" + type(stmt).__name__.lower())(stmt)

    def _const(self, s: tile.Const) -> None:
        value = Scalars(self.e, s.type.lanes).constant(s.type.dtype, s.value)
        self._define(s.dst, s.type, [value] * s.type.count)

    def _lane_numbers(self, element: str, lanes: int) -> str:
        if lanes == 1:
            return self.e.const(0, element)
        return self.e.head_value(f"arith.constant dense<{list(range(lanes))}> : {vector_type(element, lanes)}")

    def _iota(self, s: tile.Iota) -> None:
        type_ = TileType(s.dtype, (), s.lanes)
        scalars = Scalars(self.e, s.lanes)
        start = self._splat(self._convert_index(s.start, s.dtype), s.dtype, s.lanes)
        self._define(s.dst, type_, [scalars.op("add", s.dtype, (start, self._lane_numbers(f"i{s.dtype.bits}", s.lanes)))])

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

    def _op(self, s: tile.Op) -> None:
        types = tuple(self.tiles[a].type for a in s.args)
        result = tile.op_type(s.op, types)
        assert isinstance(result, TileType)
        scalars = Scalars(self.e, result.lanes)
        dtype = types[-1].dtype
        registers = [
            scalars.op(s.op, dtype, tuple(self._register(a, slot, result.lanes) for a in s.args))
            for slot in _slots(result)
        ]
        self._define(s.dst, result, registers)

    def _cast(self, s: tile.Cast) -> None:
        value = self.tiles[s.src]
        scalars = Scalars(self.e, value.type.lanes)
        registers = [scalars.cast(r, value.type.dtype, s.dtype, s.mode) for r in value.registers]
        self._define(s.dst, value.type.with_dtype(s.dtype), registers)

    def _bitcast(self, s: tile.Bitcast) -> None:
        value = self.tiles[s.src]
        scalars = Scalars(self.e, value.type.lanes)
        old, new = scalars.type(value.type.dtype), scalars.type(s.dtype)
        registers = [r if old == new else self.e.v(f"arith.bitcast {r} : {old} to {new}") for r in value.registers]
        self._define(s.dst, value.type.with_dtype(s.dtype), registers)

    def _broadcast(self, s: tile.Broadcast) -> None:
        self._define(s.dst, s.type, [self._register(s.src, slot, s.type.lanes) for slot in _slots(s.type)])

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
                s.dst, TileType(type_.dtype, type_.slots, 1), [self._fold(s.op, type_, r) for r in value.registers]
            )
            return
        slots = (*type_.slots[: s.axis], 1, *type_.slots[s.axis + 1 :])
        result = TileType(type_.dtype, slots, type_.lanes)
        scalars = Scalars(self.e, type_.lanes)
        registers = []
        for slot in _slots(result):
            line = [
                self._register(s.src, (*slot[: s.axis], i, *slot[s.axis + 1 :]), type_.lanes)
                for i in range(type_.slots[s.axis])
            ]
            registers.append(_tree(line, lambda a, b: scalars.op(s.op, type_.dtype, (a, b))))
        self._define(s.dst, result, registers)

    def _fold(self, op: str, type_: TileType, register: str) -> str:
        """Fold the lanes as a balanced tree of half registers."""
        e, lanes, dtype = self.e, type_.lanes, type_.dtype
        if lanes == 1:
            return register
        element = Scalars(e, 1).type(dtype)
        if op in _INT_REDUCE and not dtype.is_float and (dtype != BOOL or op in ("and", "or", "xor")):
            full = vector_type(element, lanes)
            return e.v(f"vector.reduction <{_INT_REDUCE[op]}>, {register} : {full} into {element}")
        while lanes > 1:
            half = lanes // 2
            full, part = vector_type(element, lanes), f"vector<{half}x{element}>"
            low, high = (
                e.v(f"vector.shuffle {register}, {register} {list(range(start, start + half))} : {full}, {full}")
                for start in (0, half)
            )
            if half == 1:
                low, high = (e.v(f"vector.extract {x}[0] : {element} from {part}") for x in (low, high))
            register = Scalars(e, half).op(op, dtype, (low, high))
            lanes = half
        return register

    def _check(self, s: tile.Check) -> None:
        e, value = self.e, self.tiles[s.cond]
        fine = _tree(list(value.registers), lambda a, b: Scalars(e, value.type.lanes).op("and", BOOL, (a, b)))
        fine = self._fold("and", value.type, fine)
        failed = e.v(f"arith.xori {fine}, {e.const(1, 'i1')} : i1")
        e.do(f"scf.if {failed} {{")
        with e.region():
            e.result(f"llvm.cmpxchg {self.error}, {self._ci(0)}, {self.checks[s.check_id]} seq_cst seq_cst : !llvm.ptr, i64")
        e.do("}")

    # -- memory ------------------------------------------------------------------------------------------------------

    def _offset_pointer(self, pointer: str, offset: str, element: str) -> str:
        return self.e.v(f"llvm.getelementptr {pointer}[{offset}] : (!llvm.ptr, i64) -> !llvm.ptr, {element}")

    def _address(self, buffer: str, offset: IntExpr) -> str:
        """Pointer to buffer[offset]: what is outer first, then the innermost variable, then the constant."""
        element = storage_element(self.buffers[buffer].dtype)
        groups, constant = self._groups(offset)
        pointer = self.pointers[buffer]
        outer = [v for group in groups[:-1] for v in group]
        for values in (outer, groups[-1] if groups else []):
            if values:
                total = values[0]
                for v in values[1:]:
                    total = self._int("addi", total, v)
                pointer = self._offset_pointer(pointer, total, element)
        if constant and -(2**31) <= constant < 2**31:
            return self.e.v(f"llvm.getelementptr {pointer}[{constant}] : (!llvm.ptr) -> !llvm.ptr, {element}")
        return self._offset_pointer(pointer, self._ci(constant), element) if constant else pointer

    def _pointers(self, buffer: str, base: str, offsets: str, lanes: int) -> str:
        """A vector of addresses: base + offsets, an i64 vector, in elements."""
        element = storage_element(self.buffers[buffer].dtype)
        return self.e.v(
            f"llvm.getelementptr {base}[{offsets}] : (!llvm.ptr, vector<{lanes}xi64>) -> vector<{lanes}x!llvm.ptr>, {element}"
        )

    def _strided(self, buffer: str, base: str, stride: IntExpr, lanes: int) -> str:
        numbers = self._lane_numbers("i64", lanes)
        constant = self._resolve(stride).const
        if constant is not None:
            literal = [constant * i for i in range(lanes)]
            offsets = self.e.head_value(f"arith.constant dense<{literal}> : vector<{lanes}xi64>")
        else:
            wide = self.e.v(f"vector.broadcast {self.index(stride)} : i64 to vector<{lanes}xi64>")
            offsets = self.e.v(f"arith.muli {wide}, {numbers} : vector<{lanes}xi64>")
        return self._pointers(buffer, base, offsets, lanes)

    def _slot_offset(self, s: tile.Load | tile.Store, slot: tuple[int, ...]) -> IntExpr:
        offset = s.offset
        for i, stride in zip(slot, s.slot_strides, strict=True):
            offset = offset + stride * i
        return offset

    def _all_true(self, lanes: int) -> str:
        return self.e.const(1, "i1", lanes)

    def _is_true(self, mask: str | None) -> bool:
        return mask is None or self.e.literals.get(mask) == 1

    def _read(self, type_text: str, pointer: str, size: int) -> str:
        return self.e.result(f"llvm.load {pointer} {{alignment = {size} : i64}} : !llvm.ptr -> {type_text}")

    def _from_storage(self, value: str, dtype: DType, lanes: int) -> str:
        if dtype != BOOL:
            return value
        zero = self.e.const(0, "i8", lanes)
        return self.e.v(f"arith.cmpi ne, {value}, {zero} : {vector_type('i8', lanes)}")

    def _to_storage(self, value: str, dtype: DType, lanes: int) -> str:
        if dtype != BOOL:
            return value
        return self.e.v(f"arith.extui {value} : {vector_type('i1', lanes)} to {vector_type('i8', lanes)}")

    def _storage_constant(self, dtype: DType, value: float | int | bool, lanes: int) -> str:
        return self.e.const(int(value), "i8", lanes) if dtype == BOOL else Scalars(self.e, lanes).constant(dtype, value)

    def _guarded(self, mask: str, type_text: str, pointer: str, size: int, pad: str) -> str:
        """A scalar load under a scalar condition."""
        e, name = self.e, self.e.name()
        e.do(f"{name} = scf.if {mask} -> ({type_text}) {{")
        with e.region():
            e.do(f"scf.yield {self._read(type_text, pointer, size)} : {type_text}")
        e.do("} else {")
        with e.region():
            e.do(f"scf.yield {pad} : {type_text}")
        e.do("}")
        return name

    def _load(self, s: tile.Load) -> None:
        dtype, lanes = s.type.dtype, s.type.lanes
        registers = []
        for slot in _slots(s.type):
            mask = self._register(s.mask, slot, lanes) if s.mask else None
            pointer = self._address(s.buffer, self._slot_offset(s, slot))
            registers.append(self._load_register(s, dtype, lanes, pointer, mask))
        self._define(s.dst, s.type, registers)

    def _load_register(self, s: tile.Load, dtype: DType, lanes: int, pointer: str, mask: str | None) -> str:
        e, size, element = self.e, dtype.bytes, storage_element(dtype)
        stride = self._resolve(s.lane_stride).const
        if self._is_true(mask):
            mask = None
        if lanes == 1 or stride == 0:
            if mask is None:
                value = self._read(element, pointer, size)
            else:
                some = self._fold("or", TileType(BOOL, (), lanes), mask)
                value = self._guarded(some, element, pointer, size, self._storage_constant(dtype, s.pad, 1))
            value = self._from_storage(value, dtype, 1)
            if lanes == 1:
                return value
            wide = self._splat(value, dtype, lanes)
            if mask is None:
                return wide
            return Scalars(e, lanes).op("select", dtype, (mask, wide, Scalars(e, lanes).constant(dtype, s.pad)))
        text = vector_type(element, lanes)
        if stride == 1 and mask is None:
            return self._from_storage(self._read(text, pointer, size), dtype, lanes)
        pad = self._storage_constant(dtype, s.pad, lanes)
        if stride == 1:
            value = e.result(
                f"llvm.intr.masked.load {pointer}, {mask}, {pad} {{alignment = {size} : i32}} : "
                f"(!llvm.ptr, {vector_type('i1', lanes)}, {text}) -> {text}"
            )
        else:
            pointers = self._strided(s.buffer, pointer, s.lane_stride, lanes)
            value = self._gathered(pointers, mask or self._all_true(lanes), pad, text, lanes, size)
        return self._from_storage(value, dtype, lanes)

    def _gathered(self, pointers: str, mask: str, pad: str, text: str, lanes: int, size: int) -> str:
        return self.e.result(
            f"llvm.intr.masked.gather {pointers}, {mask}, {pad} {{alignment = {size} : i32}} : "
            f"(vector<{lanes}x!llvm.ptr>, {vector_type('i1', lanes)}, {text}) -> {text}"
        )

    def _gather(self, s: tile.Gather) -> None:
        dtype = self.buffers[s.buffer].dtype
        type_ = self.tiles[s.offsets].type.with_dtype(dtype)
        lanes, element, size = type_.lanes, storage_element(dtype), dtype.bytes
        base = self.pointers[s.buffer]
        registers = []
        for slot in _slots(type_):
            offsets = self._register(s.offsets, slot, lanes)
            mask = self._register(s.mask, slot, lanes) if s.mask else None
            if self._is_true(mask):
                mask = None
            pad = self._storage_constant(dtype, s.pad, lanes)
            if lanes == 1:
                pointer = self._offset_pointer(base, offsets, element)
                value = (
                    self._read(element, pointer, size)
                    if mask is None
                    else self._guarded(mask, element, pointer, size, pad)
                )
            else:
                pointers = self._pointers(s.buffer, base, offsets, lanes)
                text = vector_type(element, lanes)
                value = self._gathered(pointers, mask or self._all_true(lanes), pad, text, lanes, size)
            registers.append(self._from_storage(value, dtype, lanes))
        self._define(s.dst, type_, registers)

    def _store(self, s: tile.Store) -> None:
        type_ = self.tiles[s.src].type
        for slot, register in zip(_slots(type_), self.tiles[s.src].registers, strict=True):
            mask = self._register(s.mask, slot, type_.lanes) if s.mask else None
            pointer = self._address(s.buffer, self._slot_offset(s, slot))
            value = self._to_storage(register, type_.dtype, type_.lanes)
            self._store_register(s, type_, pointer, value, None if self._is_true(mask) else mask)

    def _write(self, value: str, text: str, pointer: str, size: int, extra: str = "") -> None:
        self.e.do(f"llvm.store {value}, {pointer} {{alignment = {size} : i64{extra}}} : {text}, !llvm.ptr")

    def _store_register(self, s: tile.Store, type_: TileType, pointer: str, value: str, mask: str | None) -> None:
        e, lanes = self.e, type_.lanes
        size, element = type_.dtype.bytes, storage_element(type_.dtype)
        text = vector_type(element, lanes)
        stride = self._resolve(s.lane_stride).const
        if lanes == 1:
            if mask is None:
                self._write(value, text, pointer, size)
                return
            e.do(f"scf.if {mask} {{")
            with e.region():
                self._write(value, text, pointer, size)
            e.do("}")
        elif stride == 1 and mask is None:
            if s.nontemporal:
                self._write_nontemporal(value, text, pointer, size, size * lanes)
            else:
                self._write(value, text, pointer, size)
        elif stride == 1:
            e.do(
                f"llvm.intr.masked.store {value}, {pointer}, {mask} {{alignment = {size} : i32}} : "
                f"{text}, {vector_type('i1', lanes)} into !llvm.ptr"
            )
        elif stride == 0 and mask is None:
            last = e.v(f"vector.extract {value}[{lanes - 1}] : {element} from {text}")
            self._write(last, element, pointer, size)
        else:
            pointers = self._strided(s.buffer, pointer, s.lane_stride, lanes)
            self._scatter_vector(value, pointers, mask or self._all_true(lanes), text, lanes, size)

    def _write_nontemporal(self, value: str, text: str, pointer: str, size: int, bytes_: int) -> None:
        """Stores that bypass the caches need an aligned address; elsewhere an ordinary store does."""
        e = self.e
        address = e.v(f"llvm.ptrtoint {pointer} : !llvm.ptr to i64")
        rest = self._int("andi", address, self._ci(bytes_ - 1))
        aligned = e.v(f"arith.cmpi eq, {rest}, {self._ci(0)} : i64")
        e.do(f"scf.if {aligned} {{")
        with e.region():
            self._write(value, text, pointer, bytes_, ", nontemporal")
        e.do("} else {")
        with e.region():
            self._write(value, text, pointer, size)
        e.do("}")

    def _scatter_vector(self, value: str, pointers: str, mask: str, text: str, lanes: int, size: int) -> None:
        self.e.do(
            f"llvm.intr.masked.scatter {value}, {pointers}, {mask} {{alignment = {size} : i32}} : "
            f"{text}, {vector_type('i1', lanes)} into vector<{lanes}x!llvm.ptr>"
        )

    def _scatter(self, s: tile.Scatter) -> None:
        buffer = self.buffers[s.buffer]
        types = (self.tiles[s.offsets].type, self.tiles[s.src].type.with_dtype(I64))
        shape = tile.join_shapes(types)
        assert shape is not None
        slots, lanes = shape
        base, element, size = self.pointers[s.buffer], storage_element(buffer.dtype), buffer.dtype.bytes
        for slot in itertools.product(*map(range, slots)):
            offsets, value = self._register(s.offsets, slot, lanes), self._register(s.src, slot, lanes)
            mask = self._register(s.mask, slot, lanes) if s.mask else None
            if self._is_true(mask):
                mask = None
            if lanes > 1 and s.op is None:
                stored = self._to_storage(value, buffer.dtype, lanes)
                pointers = self._pointers(s.buffer, base, offsets, lanes)
                text = vector_type(element, lanes)
                self._scatter_vector(stored, pointers, mask or self._all_true(lanes), text, lanes, size)
                continue
            for lane in range(lanes):
                one = self._lane(offsets, I64, lanes, lane), self._lane(value, buffer.dtype, lanes, lane)
                flag = None if mask is None else self._lane(mask, BOOL, lanes, lane)
                self._scatter_one(s, buffer.dtype, base, *one, flag)

    def _lane(self, register: str, dtype: DType, lanes: int, lane: int) -> str:
        if lanes == 1:
            return register
        one, many = Scalars(self.e, 1).type(dtype), Scalars(self.e, lanes).type(dtype)
        return self.e.v(f"vector.extract {register}[{lane}] : {one} from {many}")

    def _scatter_one(
        self, s: tile.Scatter, dtype: DType, base: str, offset: str, value: str, mask: str | None
    ) -> None:
        e, element, size = self.e, storage_element(dtype), dtype.bytes
        if mask is not None:
            e.do(f"scf.if {mask} {{")
        with e.region():
            pointer = self._offset_pointer(base, offset, element)
            if s.op is not None:
                scalars = Scalars(e, 1)
                old = self._from_storage(self._read(element, pointer, size), dtype, 1)
                wide = F32 if dtype.is_float and dtype.bits < 32 else dtype  # computes in f32, rounds at each step
                args = (scalars.cast(old, dtype, wide, "sat"), scalars.cast(value, dtype, wide, "sat"))
                value = scalars.cast(scalars.op(s.op, wide, args), wide, dtype, "sat")
            self._write(self._to_storage(value, dtype, 1), element, pointer, size)
        if mask is not None:
            e.do("}")

    def _prefetch(self, s: tile.Prefetch) -> None:
        pointer = self._address(s.buffer, s.offset)
        immediates = f"rw = {int(s.write)} : i32, hint = {s.locality} : i32, cache = 1 : i32"
        self.e.do(f'"llvm.intr.prefetch"({pointer}) <{{{immediates}}}> : (!llvm.ptr) -> ()')

    # -- control -----------------------------------------------------------------------------------------------------

    def _types(self, names: Sequence[str]) -> list[str]:
        """MLIR types of the registers of tiles, flattened."""
        return [
            Scalars(self.e, t.type.lanes).type(t.type.dtype) for t in (self.tiles[n] for n in names) for _ in t.registers
        ]

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
            saved = self.tiles, self.aliases, self.indices, self.depths
            self.tiles, self.aliases, self.indices, self.depths = (dict(d) for d in saved)
            self.aliases[s.var] = base + step * i
            self._define_flat(names, types, values)
            self._body(s.body)
            values = self._flat(s.yields)
            self.tiles, self.aliases, self.indices, self.depths = saved
        return values

    def _loop(
        self, s: tile.For, types: list[TileType], values: list[str], lo: IntExpr, hi: IntExpr, step: IntExpr, unroll: int
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
        e.do("}")
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
        saved = self.tiles, self.aliases, self.indices, self.depths
        self.tiles, self.aliases, self.indices, self.depths = (dict(d) for d in saved)
        self._body(s.then if cond else s.orelse)
        yields = s.then_yields if cond else s.else_yields
        types, values = [self.tiles[y].type for y in yields], self._flat(yields)
        self.tiles, self.aliases, self.indices, self.depths = saved
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


def _slots(type_: TileType) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, type_.slots))


def _tree(values: list[str], combine: Callable[[str, str], str]) -> str:
    """Fold a list as a balanced tree."""
    while len(values) > 1:
        paired = [combine(values[i], values[i + 1]) for i in range(0, len(values) - 1, 2)]
        values = paired + values[len(values) - len(values) % 2 :]
    return values[0]

