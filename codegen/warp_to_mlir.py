"""The program of a warp's thread -> a kernel in MLIR's GPU and NVVM dialects.

    .entry <name>(words of `tile.arg_words`, one parameter each)

Buffers begin at multiples of 16 bytes. A block of 32 threads does the task of its number;
scratch memory is `scratch_base + block * scratch_stride`.
"""

from __future__ import annotations

import itertools

from dlc.codegen import tile
from dlc.codegen.gpu_targets import WARP
from dlc.codegen.matrix_unit import A_REGISTERS, B_REGISTERS, C_REGISTERS, COLUMNS, ROWS, UNITS, WORDS, A, B
from dlc.codegen.mlir_text import vector_type
from dlc.codegen.scalar_to_mlir import Scalars, storage_element
from dlc.codegen.target import Target
from dlc.codegen.tile import PIECE, TileProgram
from dlc.codegen.tile_to_mlir import TileLowering
from dlc.codegen.tile_values import slots
from dlc.codegen.tile_verify import verify
from dlc.errors import Unsupported
from dlc.ir.dtype import BOOL, DType
from dlc.ir.extent import int_expr


class NotForWarps(Unsupported):
    """A kernel does what has no GPU code (yet)."""

    code = "DLC0470"
    template = "there is no GPU code for '{op}' of kernel '{kernel}': {reason}"


def lower(program: TileProgram, target: Target, entry: str = "") -> str:
    """MLIR text of a module with one kernel, called `entry` (or as the program is), of what `warp.distribute` made.

    Raises:
        NotForWarps: it calls a function of the C library.
    """
    verify(program)
    return _WarpLowering(program, target).module(entry or program.name)


class _WarpLowering(TileLowering):
    def module(self, entry: str) -> str:
        program, e = self.program, self.e
        parameters = self._parameters()
        self._bind(program.task_var, self._special("ctaid"), nonneg=True)
        self._scratch()
        shared = "".join(map(self._shared, (b for b in program.buffers if b.role == "shared")))
        self._body(program.body)
        if e.externals:
            name = min(e.externals)
            reason = "there is no C library on the device"
            raise NotForWarps(program.loc or None, op=f"call of {name}", kernel=program.name, reason=reason)
        attributes = f"attributes {{gpu.kernel, nvvm.kernel, nvvm.reqntid = array<i32: {WARP}>}}"
        function = e.function(f"llvm.func @{entry}({parameters}) {attributes}")
        chip = f'#nvvm.target<chip = "{self.target.cpu}", features = "{self.target.llvm_features}">'
        return f"module attributes {{gpu.container_module}} {{\ngpu.module @kernels [{chip}] {{\n{shared}{function}}}\n}}\n"

    def _parameters(self) -> str:
        texts = []
        for number, word in enumerate(tile.arg_words(self.program)):
            name = f"%arg{number}"
            texts.append(f"{name}: {'!llvm.ptr' if word.kind in ('buffer', 'scratch_base', 'error') else 'i64'}")
            match word.kind:
                case "buffer":
                    self.pointers[word.name] = name
                case "symbol":
                    self._bind(word.name, name, nonneg=True)
                case "error":
                    self.error = name
                case "check":
                    self.checks[word.name] = name
                case "scratch_base":
                    self.scratch_base = name
                case _:
                    self.scratch_stride = name
        return ", ".join(texts)

    def _scratch(self) -> None:
        offsets = tile.scratch_offsets(self.program)[0]
        if offsets:
            own = self._int("muli", self.indices[self.program.task_var], self.scratch_stride)
            base = self._offset_pointer(self.scratch_base, own, "i8")
            for name, offset in offsets.items():
                self.pointers[name] = self._offset_pointer(base, self.index(offset), "i8")

    def _shared(self, b: tile.Buffer) -> str:
        """The memory of a shared buffer, as a global of the module."""
        there = self.e.v(f"llvm.mlir.addressof @{b.name} : !llvm.ptr<3>")
        self.pointers[b.name] = self.e.v(f"llvm.addrspacecast {there} : !llvm.ptr<3> to !llvm.ptr")
        attributes = f"{{addr_space = 3 : i32, alignment = {PIECE} : i64}}"
        return f"llvm.mlir.global internal @{b.name}() {attributes} : !llvm.array<{(b.size.const or 0) * b.dtype.bytes} x i8>\n"

    def _load(self, s: tile.Load) -> None:
        """Elements that lie side by side are read together, if at multiples of their bytes, since buffers begin at such."""
        dtype, lanes = s.type.dtype, s.type.lanes
        aligned = s.lane_stride.const == 1 and all((x % lanes).const == 0 for x in (s.offset, *s.slot_strides))
        size = dtype.bytes * lanes
        if lanes == 1 or size > PIECE or s.mask is not None or not aligned or self.buffers[s.buffer].role == "scratch":
            super()._load(s)
            return
        text = vector_type(storage_element(dtype), lanes)
        places = [self._address(s.buffer, self._slot_offset(s, slot)) for slot in slots(s.type)]
        self._define(s.dst, s.type, [self._from_storage(self._read(text, p, size), dtype, lanes) for p in places])

    def _copy(self, s: tile.Copy) -> None:
        for slot in slots(s.type):
            to, of = (
                self._address(buffer, offset + sum((x * i for x, i in zip(strides, slot, strict=True)), int_expr(0)))
                for buffer, offset, strides in ((s.buffer, s.offset, s.slot_strides), (s.source, s.source_offset, s.source_strides))
            )
            near = self.e.v(f"llvm.addrspacecast {to} : !llvm.ptr to !llvm.ptr<3>")
            far = self.e.v(f"llvm.addrspacecast {of} : !llvm.ptr to !llvm.ptr<1>")
            self.e.do(f"nvvm.cp.async.shared.global {near}, {far}, {PIECE}, cache = cg : !llvm.ptr<3>, !llvm.ptr<1>")

    def _commit(self, s: tile.Commit) -> None:
        self.e.do("nvvm.cp.async.commit.group")

    def _wait(self, s: tile.Wait) -> None:
        self.e.do(f"nvvm.cp.async.wait.group {s.but}")

    def _special(self, register: str) -> str:
        """A special register as i64."""
        number = self.e.v(f"nvvm.read.ptx.sreg.{register}.x : i32")
        return self.e.v(f"arith.extui {number} : i32 to i64")

    def _thread(self, s: tile.Thread) -> None:
        self._bind(s.var, self._special("tid"), nonneg=True)

    def _sync(self, s: tile.Sync) -> None:
        self.e.do(f"nvvm.bar.warp.sync {self.e.const(-1, 'i32')} : i32")

    def _shuffle(self, s: tile.Shuffle) -> None:
        value = self.tiles[s.src]
        source = self.e.v(f"arith.trunci {self.index(s.thread)} : i64 to i32")
        registers = [self._exchanged_register(r, value.type.dtype, value.type.lanes, source) for r in value.registers]
        self._define(s.dst, value.type, registers)

    def _mma(self, s: tile.Mma) -> None:
        """One instruction for each block of 16 rows by 8 columns."""
        a, b, acc = (self.tiles[x] for x in (s.a, s.b, s.acc))
        element = Scalars(self.e, 1).type(acc.type.dtype)
        blocks = len(b.registers) // B.slots
        made = list(acc.registers)
        for m, n in itertools.product(range(len(a.registers) // A.slots), range(blocks)):
            rows = [a.registers[A.slots * m + at] for at in A_REGISTERS]
            columns = [b.registers[blocks * at + n] for at in B_REGISTERS]
            places = [(blocks * (2 * m + at // 2) + n, at % 2) for at in C_REGISTERS]  # register and lane
            sums = [self._lane(made[at], acc.type.dtype, 2, lane) for at, lane in places]
            for (at, lane), value in zip(places, self._multiplied(s, rows, columns, sums, element), strict=True):
                made[at] = self.e.v(f"vector.insert {value}, {made[at]} [{lane}] : {element} into vector<2x{element}>")
        self._define(s.dst, acc.type, made)

    def _multiplied(self, s: tile.Mma, a: list[str], b: list[str], sums: list[str], element: str) -> list[str]:
        """The four sums after one instruction."""
        left, right = UNITS[s.left, s.right]
        wrapped = "" if s.left.is_float else "intOverflowBehavior = #nvvm.mma_int_overflow<wrapped>, "
        attributes = (
            f"{wrapped}layoutA = #nvvm.mma_layout<row>, layoutB = #nvvm.mma_layout<col>, "
            f"multiplicandAPtxType = #nvvm.mma_type<{left}>, multiplicandBPtxType = #nvvm.mma_type<{right}>, "
            f"shape = #nvvm.shape<m = {ROWS}, n = {COLUMNS}, k = {WORDS * 32 // s.left.bits}>"
        )
        struct = f"!llvm.struct<({', '.join([element] * 4)})>"
        operands = " ".join(f"{name}[{', '.join(values)}]" for name, values in (("A", a), ("B", b), ("C", sums)))
        whole = self.e.result(f"nvvm.mma.sync {operands} {{{attributes}}} : (i32, i32, {element}) -> {struct}")
        return [self.e.v(f"llvm.extractvalue {whole}[{number}] : {struct}") for number in range(4)]

    def _exchanged_register(self, register: str, dtype: DType, lanes: int, source: str) -> str:
        """The register as thread `source` has it, lane by lane as integers."""
        e, element = self.e, Scalars(self.e, 1).type(dtype)
        bits = 1 if dtype == BOOL else dtype.bits
        text = vector_type(element, lanes)
        result = register
        for lane in range(lanes):
            one = self._lane(register, dtype, lanes, lane)
            if element != f"i{bits}":
                one = e.v(f"arith.bitcast {one} : {element} to i{bits}")
            one = self._exchanged_bits(one, bits, source)
            if element != f"i{bits}":
                one = e.v(f"arith.bitcast {one} : i{bits} to {element}")
            result = one if lanes == 1 else e.v(f"vector.insert {one}, {result} [{lane}] : {element} into {text}")
        return result

    def _exchanged_bits(self, value: str, bits: int, source: str) -> str:
        e = self.e
        if bits == 64:
            low = e.v(f"arith.trunci {value} : i64 to i32")
            high = e.v(f"arith.trunci {self._int('shrui', value, self._ci(32))} : i64 to i32")
            low, high = (e.v(f"arith.extui {self._exchange(x, source)} : i32 to i64") for x in (low, high))
            return self._int("ori", low, self._int("shli", high, self._ci(32)))
        if bits == 32:
            return self._exchange(value, source)
        wide = e.v(f"arith.extui {value} : i{bits} to i32")
        return e.v(f"arith.trunci {self._exchange(wide, source)} : i32 to i{bits}")

    def _exchange(self, value: str, source: str) -> str:
        every, clamp = self.e.const(-1, "i32"), self.e.const(WARP - 1, "i32")
        return self.e.result(f"nvvm.shfl.sync idx {every}, {value}, {source}, {clamp} : i32 -> i32")
