"""Text of one native function in MLIR's LLVM dialect: fresh names, blocks, constants at the entry, integer expressions.

The host entry is written as basic blocks rather than as structured control flow: an error leaves from the middle of a
loop, and a value may be used wherever the block that made it dominates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from dlc.errors import Internal
from dlc.ir.extent import Atom, FloorDiv, IntExpr, Max, Min, Mod, Var, int_expr

PTR = "!llvm.ptr"


class Code:
    """The body of one function under construction.

    Values of integer expressions are remembered per region (`scope`), for a region's values are not visible after it.
    """

    def __init__(self) -> None:
        self.entry: list[str] = []
        self.lines: list[str] = []
        self._count = 0
        self._constants: dict[tuple[int | float, str], str] = {}
        self._scopes: list[dict[IntExpr, str]] = [{}]
        self.symbol: Callable[[str], str] = _unknown_symbol

    # -- lines and blocks

    def emit(self, text: str) -> None:
        self.lines.append("  " + text)

    def value(self, text: str) -> str:
        """The name of the value that `text` computes."""
        name = self.fresh("%v")
        self.emit(f"{name} = {text}")
        return name

    def fresh(self, base: str) -> str:
        self._count += 1
        return f"{base}{self._count}"

    def label(self, base: str) -> str:
        return self.fresh("^" + base)

    def begin(self, label: str, args: Sequence[tuple[str, str]] = ()) -> None:
        """Start block `label` with (name, type) arguments."""
        listed = ", ".join(f"{name}: {kind}" for name, kind in args)
        self.lines.append(f"{label}({listed}):" if args else f"{label}:")

    def jump(self, label: str, args: Sequence[tuple[str, str]] = ()) -> None:
        """Go to block `label` with (value, type) arguments."""
        self.emit(f"llvm.br {_target(label, args)}")

    def branch(
        self,
        cond: str,
        then: str,
        orelse: str,
        then_args: Sequence[tuple[str, str]] = (),
        else_args: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.emit(f"llvm.cond_br {cond}, {_target(then, then_args)}, {_target(orelse, else_args)}")

    @contextmanager
    def scope(self) -> Iterator[None]:
        """A region: expression values made in it are forgotten after it."""
        self._scopes.append({})
        try:
            yield
        finally:
            self._scopes.pop()

    # -- operations

    def constant(self, value: int, kind: str = "i64") -> str:
        """A constant, defined once in the entry block."""
        key = (value, kind)
        if key not in self._constants:
            name = f"%c{len(self._constants)}"
            self._constants[key] = name
            number = f"{value:.1f}" if kind.startswith("f") else str(value)
            self.entry.append(f"  {name} = llvm.mlir.constant({number} : {kind}) : {kind}")
        return self._constants[key]

    def at(self, base: str, word: int) -> str:
        """Address of 8-byte word `word` from `base`."""
        return self.value(f"llvm.getelementptr {base}[{word}] : ({PTR}) -> {PTR}, i64") if word else base

    def load_word(self, base: str, word: int, kind: str = "i64") -> str:
        return self.value(f"llvm.load {self.at(base, word)} : {PTR} -> {kind}")

    def store_word(self, value: str, base: str, word: int, kind: str = "i64") -> None:
        self.emit(f"llvm.store {value}, {self.at(base, word)} : {kind}, {PTR}")

    def offset(self, base: str, byte: str) -> str:
        """`base` plus `byte` bytes."""
        return self.value(f"llvm.getelementptr {base}[{byte}] : ({PTR}, i64) -> {PTR}, i8")

    def compare(self, op: str, a: str, b: str, kind: str = "i64") -> str:
        return self.value(f'llvm.icmp "{op}" {a}, {b} : {kind}')

    def select(self, cond: str, a: str, b: str, kind: str = "i64") -> str:
        return self.value(f"llvm.select {cond}, {a}, {b} : i1, {kind}")

    def binary(self, op: str, a: str, b: str, kind: str = "i64") -> str:
        return self.value(f"llvm.{op} {a}, {b} : {kind}")

    def extreme(self, op: str, a: str, b: str) -> str:
        """Signed `smax` or `smin`."""
        return self.value(f"llvm.intr.{op}({a}, {b}) : (i64, i64) -> i64")

    def copy(self, target: str, source: str, size: str) -> None:
        """Copy `size` bytes between blocks that do not overlap."""
        self.emit(
            f'"llvm.intr.memcpy"({target}, {source}, {size}) <{{isVolatile = false}}> : ({PTR}, {PTR}, i64) -> ()'
        )

    # -- integer expressions

    def expr(self, e: IntExpr | int) -> str:
        """The value of an expression over symbols."""
        e = int_expr(e)
        if e.const is not None:
            return self.constant(e.const)
        for scope in reversed(self._scopes):
            if e in scope:
                return scope[e]
        total = ""
        for monomial, coefficient in e.terms:
            product = ""
            for atom in monomial:
                factor = self._atom(atom)
                product = self.binary("mul", product, factor) if product else factor
            if not product:
                product = self.constant(coefficient)
            elif coefficient != 1:
                product = self.binary("mul", product, self.constant(coefficient))
            total = self.binary("add", total, product) if total else product
        self._scopes[-1][e] = total
        return total

    def _atom(self, atom: Atom) -> str:
        match atom:
            case Var(name):
                return self.symbol(name)
            case FloorDiv(num, den):
                a, b = self.expr(num), self.expr(den)
                adjust = self.value(f"llvm.zext {self._rounds_down(a, b)} : i1 to i64")
                return self.binary("sub", self.binary("sdiv", a, b), adjust)
            case Mod(num, den):
                a, b = self.expr(num), self.expr(den)
                adjust = self.select(self._rounds_down(a, b), b, self.constant(0))
                return self.binary("add", self.binary("srem", a, b), adjust)
            case Min(args) | Max(args):
                op = "smin" if isinstance(atom, Min) else "smax"
                result = self.expr(args[0])
                for arg in args[1:]:
                    result = self.extreme(op, result, self.expr(arg))
                return result
            case _:
                raise Internal(message=f"an extent depends on the value of a tensor: {atom}")

    def _rounds_down(self, a: str, b: str) -> str:
        """Whether the quotient of `a` and `b` is not whole and negative, so that flooring differs from truncation."""
        rest = self.binary("srem", a, b)
        zero = self.constant(0)
        broken = self.compare("ne", rest, zero)
        negative = self.compare("slt", self.binary("xor", rest, b), zero)
        return self.binary("and", broken, negative, "i1")

    def as_float(self, e: IntExpr) -> str:
        """The value of an expression in f64, every sum and product rounded: tells when the integers overflow."""
        total = self.constant(0, "f64")
        for monomial, coefficient in e.terms:
            product = self.constant(coefficient, "f64")
            for atom in monomial:
                factor = self.value(f"llvm.sitofp {self._atom(atom)} : i64 to f64")
                product = self.binary("fmul", product, factor, "f64")
            total = self.binary("fadd", total, product, "f64")
        return total


def _target(label: str, args: Sequence[tuple[str, str]]) -> str:
    if not args:
        return label
    return f"{label}({', '.join(v for v, _ in args)} : {', '.join(t for _, t in args)})"


def _unknown_symbol(name: str) -> str:
    raise Internal(message=f"symbol '{name}' is not bound here")
