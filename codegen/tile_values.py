"""Index expressions and registers of a tile program as SSA values: the ground under its statements' lowering."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from dlc.codegen import tile
from dlc.codegen.bf16_to_mlir import Half
from dlc.codegen.mlir_text import Emitter, vector_type
from dlc.codegen.scalar_to_mlir import Scalars
from dlc.codegen.target import Target
from dlc.codegen.tile import TileProgram, TileType
from dlc.ir.dtype import BOOL, I64, DType
from dlc.ir.extent import FloorDiv, IntExpr, Max, Min, Mod, Var, substitute, variables

_INDEX_CMP = {"lt": "slt", "le": "sle", "eq": "eq", "ne": "ne", "gt": "sgt", "ge": "sge"}
_INT_REDUCE = {"add": "add", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}


@dataclass(frozen=True, slots=True)
class Registers:
    """A tile in registers: one SSA value per slot, row-major."""

    type: TileType
    registers: tuple[str, ...]


class Values:
    """The names in scope and what they are: buffers' pointers, tiles' registers, index variables."""

    def __init__(self, program: TileProgram, target: Target) -> None:
        self.program, self.target = program, target
        self.e = Emitter(target)
        self.buffers = {b.name: b for b in program.buffers}
        self.pointers: dict[str, str] = {}
        self.tiles: dict[str, Registers] = {}
        self.indices: dict[str, str] = {}  # variable -> i64
        self.aliases: dict[str, IntExpr] = {}  # variable -> expression of others (unrolled copies)
        self.depths: dict[str, int] = {}  # variable -> loop depth at which it changes
        self.nonneg: set[str] = set()
        self.normal: frozenset[str] = frozenset()  # tiles of f32 without subnormal numbers
        self.halves: dict[str, Half] = {}  # registers of bf16 that were rounded in pairs
        self.depth = 0
        self.checks: dict[str, str] = {}
        self.error = ""

    @contextmanager
    def _region(self) -> Iterator[None]:
        """A nested region: what is bound inside is forgotten."""
        self.depth += 1
        with self._scope(), self.e.region():
            yield
        self.depth -= 1

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """Names bound inside are forgotten; the code stays in the region that is open."""
        tiles, indices, aliases, depths = self.tiles, self.indices, self.aliases, self.depths
        self.tiles, self.indices, self.aliases, self.depths = dict(tiles), dict(indices), dict(aliases), dict(depths)
        yield
        self.tiles, self.indices, self.aliases, self.depths = tiles, indices, aliases, depths

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
        wide = self.e.v(f"vector.broadcast {scalar} : {one} to {many}")
        if scalar in self.e.ordered:
            self.e.ordered.add(wide)
        return wide

    def _define(self, name: str, type_: TileType, registers: Sequence[str]) -> None:
        assert len(registers) == type_.count, (name, type_, len(registers))
        self.tiles[name] = Registers(type_, tuple(registers))

    def _lane_numbers(self, element: str, lanes: int) -> str:
        if lanes == 1:
            return self.e.const(0, element)
        return self.e.head_value(f"arith.constant dense<{list(range(lanes))}> : {vector_type(element, lanes)}")

    def _fold_lanes(self, op: str, type_: TileType, register: str) -> str:
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


    def _fold_together(self, op: str, type_: TileType, registers: Sequence[str]) -> str:
        """Fold the lanes of several registers, as many as a power of two; the n-th result is lane n of the register returned.

        A pair of registers becomes one that holds the halves' folds of both, so that n of them take n - 1 operators and twice
        as many shuffles.
        """
        several, group = list(registers), type_.lanes  # lanes that are still to be folded into one
        while len(several) > 1:
            several = [
                self._fold_halves(op, type_.dtype, type_.lanes, group, (a, b)) for a, b in zip(several[::2], several[1::2])
            ]
            group //= 2
        register, lanes = several[0], len(registers) * group
        while group > 1:
            register = self._fold_halves(op, type_.dtype, lanes, group, (register,))
            lanes, group = lanes // 2, group // 2
        return register

    def _fold_halves(self, op: str, dtype: DType, lanes: int, group: int, registers: tuple[str, ...]) -> str:
        """The first half of every group of lanes of one or two registers, folded with its second half."""
        e, element = self.e, Scalars(self.e, 1).type(dtype)
        text, half, count = f"vector<{lanes}x{element}>", group // 2, lanes * len(registers) // 2
        pair = f"{registers[0]}, {registers[-1]}"
        starts = range(0, lanes * len(registers), group)
        low, high = (
            e.v(f"vector.shuffle {pair} {[s + at + i for s in starts for i in range(half)]} : {text}, {text}") for at in (0, half)
        )
        if count > 1:
            return Scalars(e, count).op(op, dtype, (low, high))
        low, high = (e.v(f"vector.extract {x}[0] : {element} from vector<1x{element}>") for x in (low, high))
        return Scalars(e, 1).op(op, dtype, (low, high))


def slots(type_: TileType) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, type_.slots))


def tree(values: list[str], combine: Callable[[str, str], str]) -> str:
    """Fold a list as a balanced tree."""
    while len(values) > 1:
        paired = [combine(values[i], values[i + 1]) for i in range(0, len(values) - 1, 2)]
        values = paired + values[len(values) - len(values) % 2 :]
    return values[0]
