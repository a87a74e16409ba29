"""What an operator's definition works with: the builder, the node, its result's type, and operands made ready.

A definition is registered by `@op("add.Tensor")` and gets this context and the ATen arguments: tensors as `Val`, integers
and SymInts as int or IntExpr, the rest as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch

from dlc.frontend.errors import UnsupportedOperator
from dlc.frontend.torch_errors import MalformedGraph
from dlc.frontend.torch_types import Extents, ir_dtype, promote
from dlc.ir.builder import Builder
from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I64, DType
from dlc.ir.expr import Access, Apply, Cast, Expr, Index, Piecewise, apply, const, walk
from dlc.ir.extent import IntExpr, IntLike, Var, int_expr, var
from dlc.ir.facts import Facts
from dlc.ir.loc import Loc
from dlc.ir.view import Shape, Val, as_shape

Number: TypeAlias = float | int | bool
Operand: TypeAlias = "Val | IntExpr | Number"
Handler: TypeAlias = Callable[..., Any]

TABLE: dict[str, Handler] = {}
"""Definitions by target, as `aten.add.Tensor`."""


def op(*names: str) -> Callable[[Handler], Handler]:
    """Register a definition for ATen overloads; a bare name is its default overload, a full one is kept."""

    def register(handler: Handler) -> Handler:
        for name in names:
            full = name if name.count(".") == 2 else f"aten.{name}" if "." in name else f"aten.{name}.default"
            assert full not in TABLE, full
            TABLE[full] = handler
        return handler

    return register


class Ctx:
    """The node being imported."""

    def __init__(self, b: Builder, extents: Extents) -> None:
        self.b = b
        self.extents = extents
        self.target = ""
        self.loc: Loc = Loc()
        self.meta: Any = None
        self.node: Any = None
        self.graph: Any = None
        self.fakes: tuple[Any, ...] = ()

    # --- the result ---

    def fake(self, n: int | None = None) -> Any:
        """The traced result, or its n-th element."""
        v = self.meta
        if n is not None:
            return v[n]
        return v[0] if isinstance(v, (tuple, list)) else v

    @property
    def dtype(self) -> DType:
        """Element type of the (first) result."""
        return self.ir(self.fake().dtype)

    @property
    def shape(self) -> Shape:
        """Shape of the (first) result."""
        return self.shape_of(self.fake())

    def shape_of(self, fake: Any) -> Shape:
        return tuple(self.extents.of(e, self.target, self.loc) for e in fake.shape)

    def ir(self, dtype: torch.dtype) -> DType:
        return ir_dtype(dtype, self.target, self.loc)

    def unsupported(self, reason: str) -> UnsupportedOperator:
        return UnsupportedOperator(self.loc, op=self.target, reason=reason)

    def malformed(self, message: str) -> MalformedGraph:
        return MalformedGraph(self.loc, op=self.target, message=message)

    # --- extents ---

    def not_one(self, extent: IntExpr) -> None:
        """An extent that was traced as if it were never 1: a fact of an input's symbol, else checked where it is computed."""
        atom = extent.atom
        if isinstance(atom, Var) and atom.name[1:] in self.b.symbols:
            known = self.b.symbols[atom.name[1:]]
            self.b.symbols[known.name] = replace(known, lo=max(known.lo, 2))
        elif extent.const is None and not self.proven(extent - 2):
            self.b.bind(self.b.extent_value((extent - 1) * (extent - 1)), f"{self.hint}_of_an_extent_of_1", lo=1)

    # --- operands ---

    def val(self, v: Operand, dtype: DType | None = None) -> Val:
        """An operand as a tensor, cast to `dtype`."""
        if isinstance(v, Val):
            return v if dtype is None else self.cast(v, dtype)
        if isinstance(v, IntExpr):
            plain = v.const
            if plain is None:
                x = self.b.extent_value(v)
                return x if dtype is None else self.cast(x, dtype)
            v = plain
        if dtype is None:
            dtype = BOOL if isinstance(v, bool) else I64 if isinstance(v, int) else F32
        return self.b.scalar(_fit(v, dtype), dtype)

    def cast(self, x: Val, dtype: DType) -> Val:
        """`x` converted as ATen converts (floats beyond an integer's range wrap, as on x86)."""
        return self.b.cast(x, dtype, "wrap")

    def common(self, *args: Operand) -> DType:
        """The type that ATen promotes `args` to."""
        tensors = [(_torch(a.dtype), a.rank > 0) for a in args if isinstance(a, Val)]
        numbers = [0 if isinstance(a, IntExpr) else a for a in args if not isinstance(a, Val)]
        return self.ir(promote(tensors, numbers))

    def ints(self, values: Any, count: int) -> list[Any]:
        """A list of `count` from an int, a list of one, or a list."""
        if isinstance(values, (int, float, IntExpr)):
            return [values] * count
        values = list(values)
        return values * count if len(values) == 1 else values

    def proven(self, e: IntExpr) -> bool:
        """Whether `e >= 0` follows from what is known of the symbols."""
        if e.const is not None:
            return e.const >= 0
        facts = Facts({}, {f"#{name}": s.fact for name, s in self.b.symbols.items()})
        return facts.nonneg(e)

    def negative(self, e: IntExpr) -> bool:
        """Whether a position counts from the end; its sign must be known."""
        if self.proven(e):
            return False
        if self.proven(-e - 1) or (e.const is None and self.proven(-e)):
            return True
        raise self.unsupported(f"the sign of the position '{e}' depends on the input's extents")

    def number(self, v: Any, what: str) -> Number:
        """`v`, which must be known at import."""
        if isinstance(v, IntExpr) and v.const is not None:
            return v.const
        if isinstance(v, (int, float, bool)):
            return v
        raise self.unsupported(f"{what} must be a constant")

    def dim(self, d: int, rank: int) -> int:
        """A dimension number, counted from the front."""
        if rank == 0:
            return 0
        if not -rank <= d < rank:
            raise self.malformed(f"dimension {d} of a tensor of rank {rank}")
        return d % rank

    def dims(self, d: Any, rank: int) -> list[int]:
        """Dimension numbers from None or an empty list (all), an int, or a list."""
        if d is None or (isinstance(d, (list, tuple)) and not d):
            return list(range(rank))
        return [self.dim(int(n), rank) for n in ([d] if isinstance(d, int) else d)] if rank else []

    # --- statements ---

    def map(self, hint: str, element: Callable[..., Expr], *args: Val, dtype: DType | None = None) -> Val:
        """A pointwise Einsum over `args` broadcast together; integer arithmetic on ranks alone stays a view."""
        shape = self.broadcast(*args)
        wide = [a.broadcast_to(shape) for a in args]
        dtype = dtype or args[0].dtype

        def at(i: tuple[IntExpr, ...]) -> Expr:
            return element(*(a.at(i) for a in wide))

        if not any(a.name for a in args) and is_cheap(at(tuple(var(f"i{n}") for n in range(len(shape))))):
            return Val(dtype, shape, at)
        return self.b.compute(hint, shape, lambda *i: at(i), dtype)

    def broadcast(self, *args: Val) -> Shape:
        try:
            return self.b.broadcast(*(a.shape for a in args))
        except ValueError as e:
            raise self.malformed(str(e)) from None

    def pointwise(self, element: Callable[..., Expr], *args: Operand, compute: DType | None = None) -> Val:
        """`element` in the result's type (or `compute`) over operands cast to it."""
        dtype = compute or self.dtype
        hint = self.hint
        out = self.map(hint, element, *(self.val(a, dtype) for a in args), dtype=dtype)
        return out

    @property
    def hint(self) -> str:
        """A tensor name: the node's, which is the operator's in an exported graph."""
        return str(self.node.name) if self.node is not None else self.target.split(".")[1]

    def wide(self, x: Val) -> Val:
        """`x` in f32 if it is a small float: what ATen computes norms, softmax and means in."""
        return self.cast(x, F32) if x.dtype in (F16, BF16) else x

    def floating(self, x: Val) -> Val:
        """`x`, integers as the default float type."""
        return x if x.dtype.is_float else self.cast(x, self.ir(torch.get_default_dtype()))

    def count(self, extents: Sequence[IntLike], dtype: DType) -> Expr:
        """A product of extents as a scalar of `dtype`."""
        total = int_expr(1)
        for e in extents:
            total = total * e
        return extent_scalar(total, dtype)


def extent_scalar(e: IntExpr, dtype: DType) -> Expr:
    """An integer expression as a scalar of `dtype`."""
    if e.const is not None:
        return const(e.const, dtype)
    return Index(e) if dtype == I64 else Cast(dtype, Index(e))


def _fit(v: Number, dtype: DType) -> Number:
    """A Python number in `dtype`: integers wrap, as ATen's casts do."""
    if dtype == BOOL:
        return bool(v)
    if dtype.is_int:
        if isinstance(v, float):
            if not math.isfinite(v):
                return 0
            v = int(v)
        span = 1 << dtype.bits
        wrapped = int(v) % span
        return wrapped - span if dtype.kind == "i" and wrapped >= span >> 1 else wrapped
    return float(v)


def _torch(dtype: DType) -> torch.dtype:
    from dlc.frontend.torch_types import TO_TORCH

    return TO_TORCH[dtype]


_CHEAP = frozenset("add sub mul neg abs eq ne lt le gt ge and or not select min max".split())


def is_cheap(e: Expr) -> bool:
    """Whether `e` reads no tensor and costs so little that every reader may compute it again."""
    size = 0
    for node in walk(e):
        size += 1
        if size > 24 or isinstance(node, Access) or (isinstance(node, Apply) and node.op not in _CHEAP):
            return False
    return True


# --- shorthands for scalar expressions --------------------------------------------------------------------------------


def add(a: Expr, b: Expr) -> Expr:
    return apply("add", a, b)


def sub(a: Expr, b: Expr) -> Expr:
    return apply("sub", a, b)


def mul(a: Expr, b: Expr) -> Expr:
    return apply("mul", a, b)


def div(a: Expr, b: Expr) -> Expr:
    return apply("div", a, b)


def select(c: Expr, a: Expr, b: Expr) -> Expr:
    return apply("select", c, a, b)


def both(*conditions: Expr) -> Expr:
    """All of `conditions` (at least one)."""
    total = conditions[0]
    for c in conditions[1:]:
        total = apply("and", total, c)
    return total


def index_cmp(name: str, a: IntLike, b: IntLike) -> Expr:
    """A comparison of integer expressions."""
    return apply(name, Index(int_expr(a)), Index(int_expr(b)))


def when(guard: Expr, value: Expr, otherwise: Expr) -> Expr:
    """`value` where `guard` holds; the other piece is not read."""
    return Piecewise(((guard, value),), otherwise)


def wide_type(dtype: DType) -> DType:
    """The type in which intermediate results over `dtype` are kept."""
    return dtype if dtype in (F32, F64) or not dtype.is_float else F32


def nonnegative(e: Expr) -> bool:
    """Whether an index expression is plainly not negative: a sum of non-negative multiples of ranks and symbols."""
    from dlc.ir.extent import Var

    if not isinstance(e, Index):
        return False
    return all(c >= 0 and all(isinstance(a, Var) for a in m) for m, c in e.expr.terms)


def wrapped_index(e: Expr, extent: IntExpr) -> IntExpr:
    """An index that may count from the end, as an index from the front."""
    from dlc.ir.expr import Const, index_value

    if e.__class__ is Cast and e.dtype == I64 and isinstance(e.arg, Index):
        e = e.arg
    if nonnegative(e):
        return index_value(e)
    if isinstance(e, Const):
        return int_expr(int(e.value)) + (extent if e.value < 0 else 0)
    negative = apply("lt", e, const(0, I64))
    return index_value(select(negative, add(e, extent_scalar(extent, I64)), e))


__all__ = [
    "Ctx", "Handler", "Number", "Operand", "TABLE", "add", "as_shape", "both", "div", "extent_scalar", "index_cmp", "is_cheap",
    "mul", "nonnegative", "op", "select", "sub", "when", "wide_type", "wrapped_index",
]  # fmt: skip
