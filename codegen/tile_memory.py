"""Loads, stores, gathers and scatters of tiles as MLIR: plain where they can be, masked where they must be."""

from __future__ import annotations

import itertools

from dlc.codegen import tile
from dlc.codegen.mlir_text import vector_type
from dlc.codegen.scalar_to_mlir import Scalars, storage_element
from dlc.codegen.tile import TileType
from dlc.codegen.tile_values import Values, slots
from dlc.ir.dtype import BOOL, F32, I64, DType
from dlc.ir.extent import IntExpr


class Memory(Values):
    """The statements that touch memory."""

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
        types = f"(!llvm.ptr, vector<{lanes}xi64>) -> vector<{lanes}x!llvm.ptr>"
        return self.e.v(f"llvm.getelementptr {base}[{offsets}] : {types}, {element}")

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

    def _is_false(self, mask: str | None) -> bool:
        return mask is not None and self.e.literals.get(mask) == 0

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
        """A load under a scalar condition; without it the memory is not touched at all."""
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
        registers: list[str] = []
        if self._is_square(s):
            for row in itertools.product(*map(range, s.type.slots[:-1])):
                registers += self._load_transposed(s, dtype, lanes, row)
            self._define(s.dst, s.type, registers)
            return
        for slot in slots(s.type):
            mask = self._register(s.mask, slot, lanes) if s.mask else None
            if self._is_false(mask):
                pad = self._storage_constant(dtype, s.pad, lanes)
                registers.append(self._from_storage(pad, dtype, lanes))
                continue
            pointer = self._address(s.buffer, self._slot_offset(s, slot))
            if mask is not None and lanes > 1 and self.tiles[s.mask or ""].type.lanes == 1 and not self._is_true(mask):
                registers.append(self._load_all_or_none(s, dtype, lanes, pointer, slot))
                continue
            registers.append(self._load_register(s, dtype, lanes, pointer, mask))
        if self.buffers[s.buffer].role == "number":
            self.e.ordered.update(registers)
        self._define(s.dst, s.type, registers)

    def _is_square(self, s: tile.Load) -> bool:
        """Whether the tile is contiguous along its last slots, of which there are as many as lanes."""
        stride = self._resolve(s.lane_stride).const
        square = s.mask is None and s.type.lanes > 1 and s.type.slots[-1:] == (s.type.lanes,)
        return square and stride not in (0, 1) and self._resolve(s.slot_strides[-1]).const == 1

    def _load_transposed(self, s: tile.Load, dtype: DType, lanes: int, row: tuple[int, ...]) -> list[str]:
        """A square by vectors along its slots, exchanged half by half: n log n shuffles instead of n * n loads."""
        element, size = storage_element(dtype), dtype.bytes
        text = vector_type(element, lanes)
        start = self._slot_offset(s, (*row, 0))
        read = [self._read(text, self._address(s.buffer, start + s.lane_stride * k), size) for k in range(lanes)]
        if size >= 4:
            return self._exchanged(read, text, lanes)
        # shuffles across a register are cheap for 32 bits: narrow elements are moved as such
        bits, wide = vector_type(f"i{8 * size}", lanes), vector_type("i32", lanes)
        if bits != text:
            read = [self.e.v(f"llvm.bitcast {v} : {text} to {bits}") for v in read]
        read = [self.e.v(f"arith.extui {v} : {bits} to {wide}") for v in read]
        read = [self.e.v(f"arith.trunci {v} : {wide} to {bits}") for v in self._exchanged(read, wide, lanes)]
        if bits != text:
            read = [self.e.v(f"llvm.bitcast {v} : {bits} to {text}") for v in read]
        return [self._from_storage(v, dtype, lanes) for v in read]

    def _exchanged(self, read: list[str], text: str, lanes: int) -> list[str]:
        """The square turned: lanes become registers, half by half."""
        step = 1
        while step < lanes:
            low = [k if k & step == 0 else lanes + k - step for k in range(lanes)]
            high = [k + step if k & step == 0 else lanes + k for k in range(lanes)]
            for i in (i for i in range(lanes) if i & step == 0):
                pair = f"{read[i]}, {read[i + step]}"
                read[i], read[i + step] = (
                    self.e.v(f"vector.shuffle {pair} {picks} : {text}, {text}") for picks in (low, high)
                )
            step *= 2
        return read

    def _load_all_or_none(
        self, s: tile.Load, dtype: DType, lanes: int, pointer: str, slot: tuple[int, ...]
    ) -> str:
        """A vector under one condition: a branch. A masked load with no lane on would cost a fault that the processor
        handles itself, over a thousand cycles, wherever its address is not mapped.
        """
        e, name = self.e, self.e.name()
        text = Scalars(e, lanes).type(dtype)
        pad = self._from_storage(self._storage_constant(dtype, s.pad, lanes), dtype, lanes)
        e.do(f"{name} = scf.if {self._register(s.mask or '', slot, 1)} -> ({text}) {{")
        with e.region():
            e.do(f"scf.yield {self._load_register(s, dtype, lanes, pointer, None)} : {text}")
        e.do("} else {")
        with e.region():
            e.do(f"scf.yield {pad} : {text}")
        e.do("}")
        return name

    def _load_register(self, s: tile.Load, dtype: DType, lanes: int, pointer: str, mask: str | None) -> str:
        e, size, element = self.e, dtype.bytes, storage_element(dtype)
        stride = self._resolve(s.lane_stride).const
        if self._is_true(mask):
            mask = None
        if lanes == 1 or stride == 0:
            if mask is None:
                value = self._read(element, pointer, size)
            else:
                some = self._fold_lanes("or", TileType(BOOL, (), lanes), mask)
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
        if mask is None:
            return self._from_storage(self._load_strided(s, dtype, lanes, pointer, stride), dtype, lanes)
        pad = self._storage_constant(dtype, s.pad, lanes)
        if stride == 1:
            value = e.result(
                f"llvm.intr.masked.load {pointer}, {mask}, {pad} {{alignment = {size} : i32}} : "
                f"(!llvm.ptr, {vector_type('i1', lanes)}, {text}) -> {text}"
            )
        else:
            pointers = self._strided(s.buffer, pointer, s.lane_stride, lanes)
            value = self._gathered(pointers, mask, pad, text, lanes, size)
        return self._from_storage(value, dtype, lanes)

    def _load_strided(self, s: tile.Load, dtype: DType, lanes: int, pointer: str, stride: int | None) -> str:
        """All lanes on. Small strides by shuffles of contiguous loads; others one by one, which is faster than the
        gather instruction (5 against 9 ns for 16 lanes on Zen 4).
        """
        element, size = storage_element(dtype), dtype.bytes
        if stride is not None and size >= 4 and stride in (-4, -3, -2, -1, 2, 3, 4):
            return self._deinterleave(element, size, lanes, pointer, stride)
        value = self._storage_constant(dtype, 0, lanes)
        for lane, at in enumerate(self._lane_addresses(s, element, pointer, lanes)):
            one = self._read(element, at, size)
            value = self.e.v(f"vector.insert {one}, {value} [{lane}] : {element} into {vector_type(element, lanes)}")
        return value

    def _lane_addresses(self, s: tile.Load | tile.Store, element: str, pointer: str, lanes: int) -> list[str]:
        """Where each lane of a strided access lies."""
        stride = self._resolve(s.lane_stride)
        if stride.const is not None:
            offsets = [self._ci(stride.const * lane) for lane in range(lanes)]
        else:
            offsets = [self._int("muli", self.index(stride), self._ci(lane)) for lane in range(lanes)]
        return [pointer, *(self._offset_pointer(pointer, offset, element) for offset in offsets[1:])]

    def _deinterleave(self, element: str, size: int, lanes: int, pointer: str, stride: int) -> str:
        """Every |stride|-th element from |stride| contiguous vectors that together stay within the elements read."""
        step, text = abs(stride), vector_type(element, lanes)
        lowest = 0 if stride > 0 else stride * (lanes - 1)
        starts = [i * lanes for i in range(step - 1)] + [(lanes - 1) * (step - 1)]
        wanted = [lane * step for lane in range(lanes)]
        result, filled = "", [-1] * lanes
        for start in starts:
            at = self._offset_pointer(pointer, self._ci(lowest + start), element)
            part = self._read(text, at, size)
            # lanes that this vector holds and no earlier one did; the others keep what they have
            take = [lanes + w - start if f < 0 and 0 <= w - start < lanes else f for w, f in zip(wanted, filled)]
            if result:
                picks = [t if t >= 0 else 0 for t in take]
                result = self.e.v(f"vector.shuffle {result}, {part} {picks} : {text}, {text}")
            else:
                picks = [t - lanes if t >= 0 else 0 for t in take]
                result = self.e.v(f"vector.shuffle {part}, {part} {picks} : {text}, {text}")
            filled = [i if t >= 0 else -1 for i, t in enumerate(take)]
        if stride > 0:
            return result
        return self.e.v(f"vector.shuffle {result}, {result} {list(range(lanes - 1, -1, -1))} : {text}, {text}")

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
        for slot in slots(type_):
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
        for slot, register in zip(slots(type_), self.tiles[s.src].registers, strict=True):
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
            if size < 4 and self.target.has("avx512f"):
                value = self._apart(value, element, lanes, size)
            e.do(
                f"llvm.intr.masked.store {value}, {pointer}, {mask} {{alignment = {size} : i32}} : "
                f"{text}, {vector_type('i1', lanes)} into !llvm.ptr"
            )
        elif stride == 0 and mask is None:
            last = e.v(f"vector.extract {value}[{lanes - 1}] : {element} from {text}")
            self._write(last, element, pointer, size)
        elif mask is None:
            for lane, at in enumerate(self._lane_addresses(s, element, pointer, lanes)):
                one = e.v(f"vector.extract {value}[{lane}] : {element} from {text}")
                self._write(one, element, at, size)
        else:
            pointers = self._strided(s.buffer, pointer, s.lane_stride, lanes)
            self._scatter_vector(value, pointers, mask, text, lanes, size)

    def _apart(self, value: str, element: str, lanes: int, size: int) -> str:
        """The same value in a register: LLVM 22 joins a truncation with a masked store, and where it finds that one lane is on, it
        stores that lane in the width that it had before.
        """
        e, full = self.e, max(lanes, 16 // size)
        text, wide = vector_type(element, lanes), vector_type(element, full)
        if full > lanes:
            value = e.v(f"vector.shuffle {value}, {value} {[i % lanes for i in range(full)]} : {text}, {text}")
        value = e.v(f'llvm.inline_asm asm_dialect = att "", "=x,0" {value} : ({wide}) -> {wide}')
        return value if full == lanes else e.v(f"vector.shuffle {value}, {value} {list(range(lanes))} : {wide}, {wide}")

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
        sizes, lanes = shape
        base, element, size = self.pointers[s.buffer], storage_element(buffer.dtype), buffer.dtype.bytes
        for slot in itertools.product(*map(range, sizes)):
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
