"""Tensors and scalars as the entry sees them: addresses, blocks whose size is found at run time, symbols, checks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from dlc.codegen.host_code import PTR, Code
from dlc.codegen.host_launch import FRAME
from dlc.errors import Internal
from dlc.ir.dtype import BOOL, DType
from dlc.ir.einsum import TensorType
from dlc.ir.loc import Loc
from dlc.ir.memory import AtBuffer, AtConstant, AtHeap, AtInput, AtOutput, AtSpilled, MemoryPlan, Place
from dlc.ir.program import Program, Transfer, tensor_types

MAX_BLOCK_BYTES = float(1 << 46)
"""No machine has more; sizes below it do not overflow."""
MEMORY_CHECK = "DLC0543"


@dataclass(frozen=True, slots=True)
class Check:
    """What an error word means to the user."""

    code: str
    message: str
    loc: str


class Memory:
    """Base of the entry: emits loads of addresses, allocations and checks.

    Attributes:
        frame: first word of each group of the frame.
        pointers: tensors whose address is a value of the function.
        symbols: values of the symbols bound so far.
        checks: numbers of the checks.
        moved: buffers whose tensor lies in another one at this point of the text, having been spilled and filled.
        returns: how often each tensor has come back so far; a tensor that was spilled once has its copy for good.
    """

    def __init__(self, program: Program, plan: MemoryPlan, constants: Mapping[str, int]) -> None:
        self.program = program
        self.plan = plan
        self.constants = constants
        self.types = tensor_types(program)
        self.code = Code()
        self.code.symbol = self.symbol
        self.frame: dict[str, int] = {}
        self.pointers: dict[str, str] = {}
        self.symbols: dict[str, str] = {}
        self.checks: dict[Check, int] = {}
        self.moved: dict[int, int] = {}
        self.returns: dict[str, int] = {}

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
                return code.load_word("%frame", self.frame["buffers"] + self.moved.get(index, index), PTR)
            case AtSpilled(tensor):
                base = code.load_word("%frame", FRAME["spill"], PTR)
                return code.offset(base, code.constant(self.plan.spilled[tensor].offset))
            case AtHeap(index):
                return code.load_word("%frame", self.frame["dynamic"] + index, PTR)
            case _:
                raise Internal(message=f"no address for {place}")

    def bytes_of(self, of: TensorType) -> str:
        return self.code.expr(of.stored * of.dtype.bytes)

    def heap_slot(self, name: str) -> int:
        place = self.plan.places[name]
        assert isinstance(place, AtHeap), name
        return self.frame["dynamic"] + place.index

    def transfer(self, stmt: Transfer) -> None:
        """Copy a tensor out of the arena, unless an earlier copy is there, or back into its next buffer."""
        name = stmt.tensor
        home, stays = self.plan.spilled[name], self.plan.stays[name]
        if not stmt.fills and name in self.returns:
            return
        outside = self.code.offset(self.code.load_word("%frame", FRAME["spill"], PTR), self.code.constant(home.offset))
        size = self.bytes_of(self.types[name])
        if not stmt.fills:
            self.returns[name] = 0
            self.code.copy(outside, self.address(name), size)
            return
        self.returns[name] += 1
        self.moved[stays[0]] = stays[self.returns[name]]
        self.code.copy(self.address(name), outside, size)

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
        size = of.stored * of.dtype.bytes
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
