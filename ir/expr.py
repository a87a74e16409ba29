"""Scalar expressions: the right side of an Einsum. A closed union of seven node kinds.

Const      a typed constant
Index      an integer expression over ranks and symbols, as an i64 value
Access     an element of a tensor, `X[i, 2*j + 1]`, `X[i - 1] else 0.0`
Apply      a scalar operator of `dlc.ir.scalar` on operands of its types
Cast       conversion to another element type
Bitcast    the same bits as another type of that width
Piecewise  `a when p | b`: only the chosen piece is read
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from operator import is_not
from types import MappingProxyType
from typing import TypeAlias

from dlc.ir.dtype import BOOL, F32, I64, DType
from dlc.ir.extent import (
    IntExpr,
    IntLike,
    Value,
    Var,
    gathers,
    has_value,
    int_expr,
    rebuild,
    show,
    substitute,
    value,
    var,
    variables,
)
from dlc.ir.names import show_name
from dlc.ir.node import Node, remembered
from dlc.ir.scalar import INFIX, SCALAR_OPS

Env: TypeAlias = Mapping[str, IntLike]
RankNames: TypeAlias = frozenset[str] | None

_PRECEDENCE = {
    "|": 1,
    "^": 2,
    "&": 3,
    "==": 4,
    "!=": 4,
    "<": 4,
    "<=": 4,
    ">": 4,
    ">=": 4,
    "+": 5,
    "-": 5,
    "*": 6,
    "/": 6,
}
_INFIX_OF = {name: symbol for symbol, name in INFIX.items()}


class ExprBase(Node):
    """What all expression nodes can do."""

    __slots__ = ()

    @property
    def children(self) -> tuple[Expr, ...]:
        return ()

    @property
    def is_access(self) -> bool:
        return isinstance(self, Access)

    @property
    def variables(self) -> frozenset[str]:
        """Rank and symbol names that occur (symbols with `#`)."""
        return _variables(self)  # type: ignore[arg-type]  # each subclass is one of Expr

    def show(self, ranks: RankNames = None) -> str:
        return _show(self, ranks)[0]  # type: ignore[arg-type]

    def __str__(self) -> str:
        return self.show()

    def substitute(self, env: Env) -> Expr:
        """This expression with ranks and symbols replaced, everywhere they occur."""
        if self.variables.isdisjoint(env):
            return self  # type: ignore[return-value]
        found: dict[IntExpr, IntExpr] = {}  # an expression written out reads many elements through few indices

        def change(i: IntExpr) -> IntExpr:
            new = found.get(i)
            if new is None:
                new = found[i] = substitute(i, env)
            return new

        return map_indices(self, change)  # type: ignore[arg-type]  # as above


@dataclass(frozen=True, slots=True, eq=False)
class Const(ExprBase):
    """A constant of a type; NaN equals NaN here, and -0.0 is not 0.0."""

    value: float | int | bool
    dtype: DType

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            value = hash((type(self.value).__name__, repr(self.value), self.dtype))
            object.__setattr__(self, "_hash", value)
            return value

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Const) and repr(self.value) == repr(other.value) and self.dtype == other.dtype


@dataclass(frozen=True, slots=True, eq=False)
class Index(ExprBase):
    """The value of an integer expression, of type i64."""

    expr: IntExpr

    @property
    def children(self) -> tuple[Expr, ...]:
        return tuple(a.expr for a in gathers(self.expr))


@dataclass(frozen=True, slots=True, eq=False)
class Access(ExprBase):
    """An element of `tensor`. With `default`, a read outside the tensor gives the default instead."""

    tensor: str
    index: tuple[IntExpr, ...]
    default: Expr | None = None

    @property
    def children(self) -> tuple[Expr, ...]:
        inner = tuple(a.expr for i in self.index for a in gathers(i))
        return inner + ((self.default,) if self.default is not None else ())


@dataclass(frozen=True, slots=True, eq=False)
class Apply(ExprBase):
    """`op(args)`, with `op` of `dlc.ir.scalar.SCALAR_OPS`."""

    op: str
    args: tuple[Expr, ...]

    @property
    def children(self) -> tuple[Expr, ...]:
        return self.args


@dataclass(frozen=True, slots=True, eq=False)
class Cast(ExprBase):
    """`arg` as `dtype`; `mode` of `dlc.ir.scalar.CAST_MODES` says what floats outside an integer type give."""

    dtype: DType
    arg: Expr
    mode: str = "sat"

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.arg,)


@dataclass(frozen=True, slots=True, eq=False)
class Bitcast(ExprBase):
    """The bits of `arg` read as `dtype` of the same width."""

    dtype: DType
    arg: Expr

    @property
    def children(self) -> tuple[Expr, ...]:
        return (self.arg,)


@dataclass(frozen=True, slots=True, eq=False)
class Piecewise(ExprBase):
    """The value of the first case whose guard holds, else `otherwise`. Reads in other pieces do not happen."""

    cases: tuple[tuple[Expr, Expr], ...]
    otherwise: Expr

    @property
    def children(self) -> tuple[Expr, ...]:
        return tuple(e for case in self.cases for e in case) + (self.otherwise,)


Expr: TypeAlias = Const | Index | Access | Apply | Cast | Bitcast | Piecewise


# --- construction ----------------------------------------------------------------------------------------------------


def const(value_: float | int | bool, dtype: DType = F32) -> Const:
    """A constant, its Python value normalised to the type's kind."""
    if dtype.is_float:
        return Const(float(value_), dtype)
    return Const(bool(value_) if dtype == BOOL else int(value_), dtype)


def apply(op: str, *args: Expr) -> Expr:
    """`op(args)`; arithmetic on indices alone stays an index."""
    if op in _INDEX_FOLD and any(isinstance(a, Index) for a in args) and all(_index_of(a) is not None for a in args):
        return Index(_INDEX_FOLD[op](*(_index_of(a) for a in args)))
    assert len(args) == SCALAR_OPS[op].arity, (op, len(args))
    return Apply(op, tuple(args))


def _index_of(e: Expr) -> IntExpr | None:
    if isinstance(e, Index):
        return e.expr
    if isinstance(e, Const) and e.dtype == I64:
        return int_expr(int(e.value))
    return None


_INDEX_FOLD: dict[str, Callable[..., IntExpr]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": lambda a: -a,
}


def access(tensor: str, *index: IntLike | str, default: Expr | None = None) -> Access:
    """`tensor[index]`; a string index is a rank name."""
    return Access(tensor, tuple(var(i) if isinstance(i, str) else int_expr(i) for i in index), default)


def index_value(e: Expr) -> IntExpr:
    """An integer scalar expression as an index: plain where it is one, a gather value otherwise."""
    plain = _index_of(e)
    return plain if plain is not None else value(e)


# --- walking ---------------------------------------------------------------------------------------------------------


def walk(e: Expr) -> Iterator[Expr]:
    """`e` and everything in it, index values and defaults included, what stands first coming first."""
    left = [e]
    while left:
        here = left.pop()
        yield here
        left += reversed(here.children)


@remembered
def _variables(e: Expr) -> frozenset[str]:
    match e:
        case Index(expr):
            return variables(expr)
        case Access(_, index, default):
            names: frozenset[str] = frozenset().union(*map(variables, index))
            return names if default is None else names | default.variables
        case _:
            return frozenset().union(*(c.variables for c in e.children))


def accesses(e: Expr) -> Iterator[Access]:
    """Every access in `e`."""
    return (x for x in walk(e) if isinstance(x, Access))


def transform(e: Expr, visit: Callable[[Expr], Expr | None]) -> Expr:
    """Rewrite bottom-up: `visit` sees each node with rewritten children and returns a replacement, or None to keep it.

    Returns `e` itself when nothing changed.
    """
    rebuilt: Expr = e
    match e:
        case Const():
            pass
        case Index(expr):
            new = _transform_index(expr, visit)
            if new is not expr and new != expr:
                rebuilt = Index(new)
        case Access(tensor, index, default):
            new_index = tuple([_transform_index(i, visit) for i in index]) if any(map(has_value, index)) else index
            new_default = None if default is None else transform(default, visit)
            if new_default is not default or new_index != index:
                rebuilt = Access(tensor, new_index, new_default)
        case Apply(op, args):
            new_args = [transform(a, visit) for a in args]
            if any(map(is_not, args, new_args)):
                rebuilt = Apply(op, tuple(new_args))
        case Cast(dtype, arg, mode):
            new_arg = transform(arg, visit)
            rebuilt = e if new_arg is arg else Cast(dtype, new_arg, mode)
        case Bitcast(dtype, arg):
            new_arg = transform(arg, visit)
            rebuilt = e if new_arg is arg else Bitcast(dtype, new_arg)
        case Piecewise(cases, otherwise):
            new_cases = tuple([(transform(g, visit), transform(v, visit)) for g, v in cases])
            new_otherwise = transform(otherwise, visit)
            rebuilt = e if (new_cases, new_otherwise) == (cases, otherwise) else Piecewise(new_cases, new_otherwise)
    replaced = visit(rebuilt)
    return rebuilt if replaced is None else replaced


def _transform_index(e: IntExpr, visit: Callable[[Expr], Expr | None]) -> IntExpr:
    if not has_value(e):
        return e

    def leaf(atom: Var | Value) -> IntExpr:
        return var(atom.name) if isinstance(atom, Var) else index_value(transform(atom.expr, visit))

    return rebuild(e, leaf)


def map_indices(
    e: Expr,
    change: Callable[[IntExpr], IntExpr],
    tensors: Mapping[str, str] = MappingProxyType({}),
    *,
    fold: bool = True,
) -> Expr:
    """`e` with every integer expression (indices of accesses and index values) replaced by `change` of it.

    `change` must itself rewrite what is inside gather values (as `substitute` does).

    Args:
        tensors: new names of tensors that are renamed on the way.
        fold: whether arithmetic on indices alone becomes an index.
    """

    def mapped(e: Expr) -> Expr:
        match e:
            case Const():
                return e
            case Index(expr):
                new = change(expr)
                return e if new is expr else Index(new)
            case Access(tensor, index, default):
                name = tensors.get(tensor, tensor)
                new_index = [change(i) for i in index]
                new_default = None if default is None else mapped(default)
                if name is tensor and new_default is default and not any(map(is_not, index, new_index)):
                    return e
                return Access(name, tuple(new_index), new_default)
            case Apply(op, args):
                new_args = [mapped(a) for a in args]
                if fold and op in _INDEX_FOLD and any(isinstance(a, Index) for a in new_args):
                    return apply(op, *new_args)
                return Apply(op, tuple(new_args)) if any(map(is_not, args, new_args)) else e
            case Cast(dtype, arg, mode):
                new_arg = mapped(arg)
                return e if new_arg is arg else Cast(dtype, new_arg, mode)
            case Bitcast(dtype, arg):
                new_arg = mapped(arg)
                return e if new_arg is arg else Bitcast(dtype, new_arg)
            case Piecewise(cases, otherwise):
                new_cases = tuple([(mapped(g), mapped(v)) for g, v in cases])
                new_otherwise = mapped(otherwise)
                return e if (new_cases, new_otherwise) == (cases, otherwise) else Piecewise(new_cases, new_otherwise)

    return mapped(e)


def rename_tensors(e: Expr, names: Mapping[str, str]) -> Expr:
    """`e` with tensors renamed."""

    def visit(node: Expr) -> Expr | None:
        if isinstance(node, Access) and node.tensor in names:
            return Access(names[node.tensor], node.index, node.default)
        return None

    return transform(e, visit)


def dtype_of(e: Expr, tensors: Callable[[str], DType]) -> DType:
    """The type of `e`, given the element type of each tensor. Operands are assumed to agree (the verifier checks that)."""
    match e:
        case Const(_, dtype) | Cast(dtype) | Bitcast(dtype):
            return dtype
        case Index():
            return I64
        case Access(tensor):
            return tensors(tensor)
        case Apply(op, args):
            match SCALAR_OPS[op].typing:
                case "compare" | "test":
                    return BOOL
                case "select":
                    return dtype_of(args[1], tensors)
                case _:
                    return dtype_of(args[0], tensors)
        case Piecewise(_, otherwise):
            return dtype_of(otherwise, tensors)


# --- text ------------------------------------------------------------------------------------------------------------


def show_const(c: Const) -> str:
    """Text of a constant: bare for f32 and i64, `f64(2.0)` otherwise."""
    if c.dtype == BOOL:
        return "true" if c.value else "false"
    number = float(c.value)
    if c.dtype.is_float:
        text = (
            "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf") if math.isinf(number) else repr(number)
        )
    else:
        text = str(c.value)
    return text if c.dtype in (F32, I64) else f"{c.dtype}({text})"


def _show(e: Expr, ranks: RankNames) -> tuple[str, int]:
    """Text and how tightly it binds (9 = atom)."""
    match e:
        case Const():
            text = show_const(e)
            return text, 7 if text.startswith("-") else 9
        case Index(expr):
            text = show(expr, ranks)
            # `idx(...)` keeps a constant, a minimum or a gather value apart from the scalar it looks like.
            return (text if expr.is_var else f"idx({text})"), 9
        case Access(tensor, index, default):
            text = f"{show_name(tensor)}[{', '.join(show(i, ranks) for i in index)}]"
            return (text, 9) if default is None else (f"({text} else {_tight(default, ranks, 8)})", 9)
        case Apply(op, args):
            symbol = _INFIX_OF.get(op)
            if symbol is None:
                return f"{op}({', '.join(_show(a, ranks)[0] for a in args)})", 9
            level = _PRECEDENCE[symbol]
            left, right = _show(args[0], ranks), _show(args[1], ranks)
            a = left[0] if left[1] >= level and not (level == 4 and left[1] == 4) else f"({left[0]})"
            b = right[0] if right[1] > level else f"({right[0]})"
            return f"{a} {symbol} {b}", level
        case Cast(dtype, arg, mode):
            head = f"{dtype}" if mode == "sat" else f"{dtype}, {mode}"
            return f"cast<{head}>({_show(arg, ranks)[0]})", 9
        case Bitcast(dtype, arg):
            return f"bitcast<{dtype}>({_show(arg, ranks)[0]})", 9
        case Piecewise(cases, otherwise):
            pieces = "".join(f"{_tight(v, ranks, 1)} when {_tight(g, ranks, 1)} | " for g, v in cases)
            return f"({{ {pieces}{_tight(otherwise, ranks, 1)} }})", 9


def _tight(e: Expr, ranks: RankNames, level: int) -> str:
    """Text of `e`, in parentheses unless it binds more tightly than `level`."""
    text, binds = _show(e, ranks)
    return text if binds > level else f"({text})"
