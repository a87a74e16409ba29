"""Writing MLIR text: SSA names, constants at the head of the function, equal pure operations shared by scope."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from dlc.codegen.target import Target


def vector_type(element: str, lanes: int) -> str:
    """`f32` for one lane, `vector<16xf32>` for more."""
    return element if lanes == 1 else f"vector<{lanes}x{element}>"


def float_text(value: float, element: str) -> str:
    """A float literal that MLIR reads back bit for bit."""
    if math.isnan(value) or math.isinf(value):
        kind, width = ("<d", "<Q") if element == "f64" else ("<f", "<I")
        (bits,) = struct.unpack(width, struct.pack(kind, value))
        return f"0x{bits:0{16 if element == 'f64' else 8}X}"
    if element == "f32":
        try:
            value = struct.unpack("<f", struct.pack("<f", value))[0]
        except OverflowError:
            return float_text(math.copysign(math.inf, value), element)
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return text


class Emitter:
    """Collects the lines of one function body.

    `v` is for pure operations: in the same or an enclosing region an equal text gives the same value. Operations with
    effects, or that read memory, go through `do` and `result`.

    Attributes:
        literals: values that are constants, and what they are.
        ordered: further values of which no lane is NaN.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self.head: list[str] = []
        self.lines: list[str] = []
        self.externals: dict[str, str] = {}
        self.literals: dict[str, float | int] = {}
        self.ordered: set[str] = set()
        self._count = 0
        self._known: list[dict[str, str]] = [{}]
        self._constants: dict[str, str] = {}
        self._indent = "  "

    def name(self) -> str:
        self._count += 1
        return f"%{self._count}"

    def do(self, line: str) -> None:
        self.lines.append(self._indent + line)

    def result(self, text: str) -> str:
        """The value of an operation that must not be shared."""
        name = self.name()
        self.do(f"{name} = {text}")
        return name

    def v(self, text: str) -> str:
        """The value of a pure operation."""
        for scope in reversed(self._known):
            if text in scope:
                return scope[text]
        name = self.result(text)
        self._known[-1][text] = name
        return name

    def const(self, value: float | int, element: str, lanes: int = 1) -> str:
        """A constant of an integer or float type, splat over the lanes."""
        if element in ("f32", "f64"):
            literal = float_text(float(value), element)
        elif element == "i1":
            literal = "true" if value else "false"
        else:
            bits = int(element[1:])
            value = int(value) & ((1 << bits) - 1)
            literal = str(value - (1 << bits) if value >> (bits - 1) else value)
        type_ = vector_type(element, lanes)
        splat = literal if lanes == 1 else f"dense<{literal}>"
        # `true` is an i1 by itself, and MLIR rejects a type after it
        name = self.head_value(f"arith.constant {splat}" + ("" if type_ == "i1" else f" : {type_}"))
        self.literals[name] = value
        return name

    def x86(self, name: str, result: str, *args: tuple[str, str]) -> str:
        """The result, of that type, of a pure intrinsic of the processor on (value, type) each."""
        values, types = ", ".join(v for v, _ in args), ", ".join(t for _, t in args)
        return self.v(f'llvm.call_intrinsic "llvm.x86.{name}"({values}) : ({types}) -> {result}')

    def head_value(self, text: str) -> str:
        """A value computed once at the head of the function."""
        if text not in self._constants:
            name = self.name()
            self.head.append(f"  {name} = {text}")
            self._constants[text] = name
        return self._constants[text]

    @contextmanager
    def region(self) -> Iterator[None]:
        """Values made inside are forgotten at the end."""
        self._known.append({})
        self._indent += "  "
        try:
            yield
        finally:
            self._known.pop()
            self._indent = self._indent[:-2]

    def external(self, name: str, signature: str) -> str:
        """Declare a function of the C library, `signature` as in `(f32) -> f32`."""
        self.externals[name] = signature
        return name

    def declarations(self) -> str:
        return "".join(f"llvm.func @{name}{signature}\n" for name, signature in sorted(self.externals.items()))

    def function(self, header: str, terminator: str = "llvm.return") -> str:
        """The whole function, `header` as in `llvm.func @f(%x: f32)`."""
        return "\n".join([header + " {", *self.head, *self.lines, f"  {terminator}", "}"]) + "\n"
