"""The builder for ONNX models: extents that the model needs to be equal become one symbol of the inputs.

ONNX exporters name the same extent differently, or not at all. Where two such extents meet (an addition, a contraction, a
concatenation), they must be equal when the program runs. The import then starts again with one written as the other, so that
every call is checked against it, and every read can be proven.
"""

from __future__ import annotations

from collections.abc import Sequence

from dlc.ir.builder import Builder
from dlc.ir.dtype import DType
from dlc.ir.extent import IntExpr, Max, Min, Var, atoms, has_value, variables
from dlc.ir.view import Val


class SymbolsMeet(Exception):
    """The extent `name` must be `equal`: import again with that known."""

    def __init__(self, name: str, equal: IntExpr) -> None:
        super().__init__(f"{name} = {equal}")
        self.name = name
        self.equal = equal


class ModelBuilder(Builder):
    """A `Builder` that raises `SymbolsMeet` where extents of inputs must agree."""

    def equate(self, a: IntExpr, b: IntExpr) -> IntExpr:
        if a == b:
            return a
        for one, other in ((b, a), (a, b)):
            name = self.input_symbol(one)
            if name is None or has_value(other) or "#" + name in variables(other):
                continue
            if any(isinstance(x, (Min, Max)) for x in atoms(other)):
                continue
            if all(v[1:] in self.symbols for v in variables(other)):
                raise SymbolsMeet(name, other)
        return super().equate(a, b)

    def input_symbol(self, e: IntExpr) -> str | None:
        """The name of the input extent that `e` is, if it is one."""
        atom = e.atom
        if isinstance(atom, Var) and atom.name.startswith("#") and atom.name[1:] in self.symbols:
            return atom.name[1:]
        return None

    def contract(
        self, hint: str, spec: str, *args: Val, dtype: DType | None = None, accumulator: DType | None = None
    ) -> Val:
        self.agree(spec.split("->")[0].split(","), args)
        return super().contract(hint, spec, *args, dtype=dtype, accumulator=accumulator)

    def agree(self, labels: Sequence[str], args: Sequence[Val]) -> None:
        """Dimensions with the same label have the same extent, where neither is 1."""
        seen: dict[str, IntExpr] = {}
        for label, arg in zip(labels, args, strict=True):
            for letter, extent in zip(label, arg.shape, strict=True):
                if extent.const != 1:
                    seen[letter] = self.equate(seen.get(letter, extent), extent)
