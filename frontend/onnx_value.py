"""What an ONNX name stands for during import: a tensor that may be known, a sequence, or an optional.

A tensor carries how to read its elements (`Val`), and where it is known at import its `static` elements: a NumPy array, of
numbers, or of objects that are integers and `IntExpr` over the symbols (a shape). Shape arithmetic is done on `static`
alone, so that it never becomes code; the `Val` of a static tensor is made when something reads it at run time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dlc.ir.builder import Builder
from dlc.ir.dtype import BOOL, I64, DType, from_numpy
from dlc.ir.expr import Cast, Expr, Index, Piecewise, apply, const
from dlc.ir.extent import IntExpr, evaluate, has_value, int_expr, variables
from dlc.ir.view import Shape, Val, as_shape

Array: TypeAlias = "np.ndarray[Any, Any]"
NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class ExtentTest:
    """A question about extents: `difference` compared with 0 (`name` is ONNX's comparison), turned if `negated`."""

    name: str
    difference: IntExpr
    negated: bool = False

    @property
    def symbols(self) -> tuple[str, ...]:
        return tuple(sorted(n[1:] for n in variables(self.difference)))

    def holds(self, extents: Mapping[str, int]) -> bool:
        d = evaluate(self.difference, {"#" + n: v for n, v in extents.items()})
        answer = {"Equal": d == 0, "Less": d < 0, "Greater": d > 0, "LessOrEqual": d <= 0, "GreaterOrEqual": d >= 0}[self.name]
        return answer != self.negated


class Tensor:
    """A tensor of the graph.

    Attributes:
        dtype, shape: element type and extents.
        static: its elements when known at import (object dtype: IntExpr), else None.
        deps: names of the graph inputs its elements depend on (shapes do not count).
        test: for a boolean that only extents decide, the test they are put to.
    """

    __slots__ = ("_val", "deps", "dtype", "hint", "shape", "static", "test")

    def __init__(
        self,
        val: Val | None = None,
        static: Array | None = None,
        deps: frozenset[str] = NOTHING,
        dtype: DType | None = None,
        hint: str = "c",
    ) -> None:
        self._val = val
        self.test: ExtentTest | None = None
        self.static = static
        self.deps = deps
        self.hint = hint
        if val is not None:
            self.dtype: DType = val.dtype
            self.shape: Shape = val.shape
        else:
            assert static is not None
            self.dtype = dtype if dtype is not None else (I64 if static.dtype == object else from_numpy(static.dtype))
            self.shape = as_shape(static.shape)

    def val(self, b: Builder) -> Val:
        """How to read it at run time."""
        if self._val is None:
            assert self.static is not None
            if self.static.dtype == object:
                self._val = symbolic_val(self.static, self.dtype)
            else:
                self._val = b.constant(self.static, self.hint)
        return self._val

    @property
    def numbers(self) -> Array | None:
        """The elements as plain numbers, None when they are unknown or symbolic."""
        if self.static is None:
            return None
        if self.static.dtype != object:
            return self.static
        plain = plain_numbers(self.static)
        return None if plain is None else plain.astype(self.dtype.numpy)

    def __repr__(self) -> str:
        return f"Tensor({self.dtype}{list(self.shape)}, static={self.static!r})"


@dataclass(frozen=True, slots=True)
class Sequence:
    """A sequence whose length is known: a Python tuple of what it holds."""

    items: tuple[Value, ...]
    dtype: DType | None = None


@dataclass(frozen=True, slots=True)
class Optional:
    """An optional of which it is known whether it holds something."""

    item: Value | None


Value: TypeAlias = Tensor | Sequence | Optional


def extent_test(name: str, x: Tensor, y: Tensor) -> ExtentTest | None:
    """The test that comparing two known one-element tensors amounts to, where only extents decide it."""
    if x.static is None or y.static is None or x.static.size != 1 or y.static.size != 1:
        return None
    if not all(t.static is not None and (t.static.dtype == object or t.static.dtype.kind in "iu") for t in (x, y)):
        return None
    a, b = (int_expr(e if isinstance(e, IntExpr) else int(e)) for e in (x.static.ravel()[0], y.static.ravel()[0]))
    return None if has_value(a - b) else ExtentTest(name, a - b)


def plain_numbers(a: Array) -> Array | None:
    """An object array as int64, None when an element is symbolic."""
    flat = [e.const if isinstance(e, IntExpr) else int(e) for e in a.ravel()]
    if any(e is None for e in flat):
        return None
    try:
        return np.array(flat, np.int64).reshape(a.shape)
    except OverflowError:
        return None


def symbolic_val(a: Array, dtype: DType) -> Val:
    """A readable tensor of integer expressions: the element is chosen by its position."""
    shape = as_shape(a.shape)
    elements = [int_expr(e) for e in a.ravel()]

    def at(i: tuple[IntExpr, ...]) -> Expr:
        flat = int_expr(0)
        for x, extent in zip(i, shape, strict=True):
            flat = flat * extent + x
        chosen = _choose(flat, elements)
        return chosen if dtype == I64 else Cast(dtype, chosen)

    return Val(dtype, shape, at)


def _choose(flat: IntExpr, elements: list[IntExpr]) -> Expr:
    if not elements:
        return const(0, I64)
    if flat.const is not None:
        return Index(elements[min(max(flat.const, 0), len(elements) - 1)])
    if all(e == elements[0] for e in elements):
        return Index(elements[0])
    cases = tuple((apply("eq", Index(flat), const(n, I64)), Index(e)) for n, e in enumerate(elements[:-1]))
    return Piecewise(cases, Index(elements[-1]))


def static_tensor(array: Array, dtype: DType | None = None, hint: str = "c") -> Tensor:
    """A tensor whose elements are known; object arrays of plain integers become numbers."""
    if array.dtype == object:
        plain = plain_numbers(array)
        target = dtype or I64
        if plain is not None and (target == BOOL or target.is_int):
            return Tensor(static=plain.astype(target.numpy), dtype=target, hint=hint)
    return Tensor(static=array, dtype=dtype, hint=hint)


def shape_array(shape: Shape) -> Array:
    """Extents as a one-dimensional array: numbers when all are, else objects."""
    result = np.empty(len(shape), object)
    for n, e in enumerate(shape):
        result[n] = e if e.const is None else e.const
    plain = plain_numbers(result)
    return result if plain is None else plain
