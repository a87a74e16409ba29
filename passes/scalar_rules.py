"""Rules on scalar expressions: each gives the shorter expression, or None where it does not apply.

Every rule holds for all values of its operands: NaN, infinities, -0.0 and wrapped integers included. A rule that is true of
numbers only (`x + 0.0`, `x * 0`, `x - x` of floats) is not here. Operands come with literals on the right.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import copysign, frexp, isfinite

import numpy as np

from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I64, DType
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, apply, const, dtype_of, walk
from dlc.ir.extent import IntExpr, Value, maximum, minimum
from dlc.ir.facts import Facts
from dlc.passes.fold_constants import fold_scalar
from dlc.passes.index_facts import as_index

COMMUTATIVE = frozenset("add mul min max and or xor eq ne".split())
_POWER_NODES = 12
_MANTISSA = {F64: 53, F32: 24, F16: 11, BF16: 8}


@dataclass(slots=True)
class Rules:
    """The rules, with what they need to know.

    Attributes:
        dtypes: element type of each tensor.
        facts: extents and symbols at the expression.
        nonnegative: tensors without negative elements or -0.0 (NaN allowed).
    """

    dtypes: Callable[[str], DType]
    facts: Facts
    nonnegative: set[str] = field(default_factory=set)

    def shorten(self, e: Expr) -> Expr | None:
        """`e` (its operands are short already) after all rules that apply at its root; None if there is none."""
        found: Expr | None = None
        for _ in range(8):
            new = self._step(found if found is not None else e)
            if new is None:
                break
            found = new
        return found

    def _step(self, e: Expr) -> Expr | None:
        match e:
            case Apply(op, args):
                folded = fold_scalar(e)
                if folded is not None:
                    return folded
                if op in COMMUTATIVE and isinstance(args[0], Const) and not isinstance(args[1], Const):
                    return Apply(op, (args[1], args[0]))
                return self._index(e) or self._identities(e) or self._apply(e)
            case Cast(dtype, arg, mode):
                return fold_scalar(e) or self._cast(dtype, arg, mode)
            case Bitcast(dtype, Bitcast(_, inner)):
                return inner if self.type_of(inner) == dtype else Bitcast(dtype, inner)
            case Bitcast(dtype, arg):
                return arg if self.type_of(arg) == dtype else fold_scalar(e)
            case Index(expr) if isinstance(expr.atom, Value):
                return expr.atom.expr if self.type_of(expr.atom.expr) == I64 else None
            case _:
                return None

    def type_of(self, e: Expr) -> DType:
        return dtype_of(e, self.dtypes)

    # --- integer expressions ---

    def _index(self, e: Apply) -> Expr | None:
        """Arithmetic on indices is an index."""
        if not any(isinstance(a, Index) for a in e.args):
            return None
        parts = [as_index(a) for a in e.args]
        known = [p for p in parts if p is not None]
        if len(known) < len(parts):
            return None
        match e.op, known:
            case (("add" | "sub" | "mul" | "neg"), _):
                return apply(e.op, *e.args)
            case (("min" | "max"), [a, b]):
                return Index(minimum(a, b) if e.op == "min" else maximum(a, b))
            case (("div_floor" | "rem_floor"), [a, b]) if self._positive(b):
                return Index(a // b if e.op == "div_floor" else a % b)
            case (("div_trunc" | "rem_trunc" | "div_euclid" | "rem_euclid"), [a, b]) if self._positive(b):
                if not self.facts.nonneg(a) and not e.op.endswith("euclid"):
                    return None
                return Index(a // b if e.op.startswith("div") else a % b)
            case _:
                return None

    def _positive(self, e: IntExpr) -> bool:
        return self.facts.nonneg(e - 1)

    # --- operators with a neutral, absorbing or repeated operand ---

    def _identities(self, e: Apply) -> Expr | None:
        if len(e.args) != 2:
            return None
        x, y = e.args
        if isinstance(y, Const):
            return y if is_absorbing(e.op, y) else x if is_neutral(e.op, y) else self._with_literal(e.op, x, y)
        if isinstance(x, Const) and e.op == "sub" and x.dtype.is_float and _is(x, -0.0):
            return Apply("neg", (y,))
        return self._repeated(e.op, x) if x == y else None

    def _repeated(self, op: str, x: Expr) -> Expr | None:
        dtype = self.type_of(x)
        match op:
            case "min" | "max" | "and" | "or" | "minnum" | "maxnum":
                return x
            case "eq" | "le" | "ge" if not dtype.is_float:
                return const(True, BOOL)
            case "ne" | "lt" | "gt":
                # x < x is false for NaN too, but x != x tells a NaN
                return None if op == "ne" and dtype.is_float else const(False, BOOL)
            case "sub" | "xor" if not dtype.is_float:
                return const(0, dtype)
            case _:
                return None

    def _with_literal(self, op: str, x: Expr, c: Const) -> Expr | None:
        match op:
            case "mul" | "div" if _is(c, -1):
                return Apply("neg", (x,))
            case "div" if _is_power_of_two(c):
                return Apply("mul", (x, const(1 / float(c.value), c.dtype)))
            case "eq" | "xor" if c.dtype == BOOL:
                same = bool(c.value) == (op == "eq")
                return x if same else Apply("not", (x,))
            case "ne" if c.dtype == BOOL:
                return x if not c.value else Apply("not", (x,))
            case "add" | "mul" | "max" | "min" | "and" | "or" | "xor":
                return self._two_literals(op, x, c)
            case "pow":
                return self._power(x, c)
            case _:
                return None

    def _two_literals(self, op: str, x: Expr, c: Const) -> Expr | None:
        """`(y op d) op c` is `y op (d op c)`: integers wrap; of floats only where no rounding is left out."""
        match x:
            case Apply(inner, (y, Const() as d)) if inner == op:
                if not c.dtype.is_float or op in ("max", "min"):
                    joined = fold_scalar(Apply(op, (d, c)))
                    return None if joined is None else Apply(op, (y, joined))
                if op == "mul":
                    product = float(d.value) * float(c.value)
                    exact = c.dtype in (F32, F16, BF16) and _is_normal(product, c.dtype)
                    return Apply(op, (y, const(product, c.dtype))) if exact else None
        return None

    def _power(self, x: Expr, c: Const) -> Expr | None:
        exponent = float(c.value)
        if exponent == 1:
            return x
        if exponent == 0:
            return const(1, c.dtype)
        if exponent in (2, 3, 4) and sum(1 for _ in walk(x)) <= _POWER_NODES:
            square = Apply("mul", (x, x))
            return square if exponent == 2 else Apply("mul", (square, x if exponent == 3 else square))
        if not c.dtype.is_float:
            return None
        if exponent == -1:
            return Apply("div", (const(1, c.dtype), x))
        # pow(-0.0, 0.5) is 0.0 and pow(-inf, 0.5) is inf, where a root has -0.0 and NaN
        if abs(exponent) == 0.5 and self.is_nonnegative(x):
            return Apply("sqrt" if exponent > 0 else "rsqrt", (x,))
        return None

    def is_nonnegative(self, e: Expr) -> bool:
        """Whether `e` is never below 0 nor -0.0; it may be NaN."""
        match e:
            case Const(number, dtype):
                return dtype.is_float and (number != number or copysign(1, float(number)) > 0)
            case Access(tensor, _, default):
                return tensor in self.nonnegative and (default is None or self.is_nonnegative(default))
            case Apply("abs" | "exp" | "exp2" | "sigmoid", _):
                return True
            case Apply("mul", (a, b)) if a == b:
                return True
            case Apply("add" | "mul" | "div" | "min", (a, b)):
                return self.is_nonnegative(a) and self.is_nonnegative(b)
            case Apply("select", (_, a, b)):
                return self.is_nonnegative(a) and self.is_nonnegative(b)
            case Apply("max", (a, Const(number, dtype))):
                return dtype.is_float and number > 0
            case Cast(dtype, arg):
                return dtype.is_float and self.type_of(arg).is_float and self.is_nonnegative(arg)
            case _:
                return False

    # --- operators by name ---

    def _apply(self, e: Apply) -> Expr | None:
        match e:
            case Apply("neg", (Apply("neg", (x,)),)) | Apply("not", (Apply("not", (x,)),)):
                return x
            case Apply("neg", (Apply("sub", (x, y)),)) if not self.type_of(x).is_float:
                return Apply("sub", (y, x))
            case Apply("add", (x, Apply("neg", (y,)))):
                return Apply("sub", (x, y))
            case Apply("add", (Apply("neg", (x,)), y)):
                return Apply("sub", (y, x))
            case Apply("sub", (x, Apply("neg", (y,)))):
                return Apply("add", (x, y))
            case Apply("mul" | "div" as op, (Apply("neg", (x,)), Apply("neg", (y,)))):
                return Apply(op, (x, y))
            case Apply("abs", (Apply("neg" | "abs", (x,)),)) if self.type_of(x).kind != "u":
                return Apply("abs", (x,))
            case Apply("not", (Apply("eq" | "ne" as op, args),)):
                return Apply("ne" if op == "eq" else "eq", args)
            case Apply("not", (Apply("lt" | "le" | "gt" | "ge" as op, args),)) if not self.type_of(args[0]).is_float:
                return Apply({"lt": "ge", "le": "gt", "gt": "le", "ge": "lt"}[op], args)
            case Apply("select", (c, x, y)):
                return self._select(c, x, y)
            case Apply("div", (Const() as one, Apply("sqrt", (x,)))) if _is(one, 1):
                return Apply("rsqrt", (x,))
            case Apply("div", (Const() as one, Apply("add", (Apply("exp", (Apply("neg", (x,)),)), Const() as c)))):
                return Apply("sigmoid", (x,)) if _is(one, 1) and _is(c, 1) else None
            case _:
                return None

    def _select(self, condition: Expr, x: Expr, y: Expr) -> Expr | None:
        if x == y:
            return x
        match condition, x, y:
            case Const(value), _, _:
                return x if value else y
            case Apply("not", (inner,)), _, _:
                return Apply("select", (inner, y, x))
            case _, Apply("select", (again, z, _)), _ if again == condition:
                return Apply("select", (condition, z, y))
            case _, _, Apply("select", (again, _, z)) if again == condition:
                return Apply("select", (condition, x, z))
            case _, Const(yes, dtype), Const(no) if dtype == BOOL:
                return condition if yes and not no else Apply("not", (condition,))
            case _:
                return None

    # --- conversions ---

    def _cast(self, dtype: DType, arg: Expr, mode: str) -> Expr | None:
        source = self.type_of(arg)
        if source == dtype:
            return arg
        if not isinstance(arg, Cast):
            return None
        first = self.type_of(arg.arg)
        if embeds(first, source):
            through_float = first.is_int and source.is_float and dtype.is_int
            if not through_float or embeds(first, dtype):
                return arg.arg if first == dtype else Cast(dtype, arg.arg, mode)
        if first.is_int and source.is_int and dtype.is_int and dtype.bits <= source.bits:
            return arg.arg if first == dtype else Cast(dtype, arg.arg, mode)
        return None


def embeds(a: DType, b: DType) -> bool:
    """Whether every value of `a` is one of `b`, so that converting there loses nothing."""
    if a == b or a == BOOL:
        return True
    if b == BOOL or a.is_float and not b.is_float:
        return False
    if a.is_float:
        return (a, b) in ((F16, F32), (BF16, F32), (F16, F64), (BF16, F64), (F32, F64))
    if b.is_float:
        return b in _MANTISSA and a.bits - (a.kind == "i") <= _MANTISSA[b] - (a.kind == "i") and a.bits < 64
    return b.lowest <= a.lowest and a.highest <= b.highest


def is_neutral(op: str, c: Const) -> bool:
    """Whether `x op c` is `x` for every x."""
    number, dtype = c.value, c.dtype
    if dtype.is_float:
        match op:
            case "mul" | "div":
                return _is(c, 1)
            case "add":
                return _is(c, -0.0)
            case "sub":
                return _is(c, 0.0)
            case "max":
                return number == float("-inf")
            case "min":
                return number == float("inf")
            case _:
                return False
    match op:
        case "add" | "sub" | "or" | "xor" | "shl" | "shr":
            return number == 0
        case "mul" | "div_trunc" | "div_floor" | "div_euclid":
            return number == 1
        case "and":
            return bool(number) if dtype == BOOL else number == (-1 if dtype.kind == "i" else dtype.highest)
        case "max":
            return number == (False if dtype == BOOL else dtype.lowest)
        case "min":
            return number == (True if dtype == BOOL else dtype.highest)
        case _:
            return False


def is_absorbing(op: str, c: Const) -> bool:
    """Whether `x op c` is `c` for every x."""
    if c.dtype.is_float:
        return op in ("add", "sub", "mul", "div", "max", "min") and c.value != c.value
    match op:
        case "mul" | "and":
            return c.value == 0
        case "or":
            return bool(c.value) if c.dtype == BOOL else c.value == (-1 if c.dtype.kind == "i" else c.dtype.highest)
        case _:
            return False


def _is(c: Const, number: float) -> bool:
    return c.value == number and copysign(1, float(c.value)) == copysign(1, number)


def _is_power_of_two(c: Const) -> bool:
    """Whether both `c` and `1/c` are normal powers of two of the type."""
    value = float(c.value)
    if not c.dtype.is_float or not isfinite(value) or value == 0 or abs(frexp(value)[0]) != 0.5:
        return False
    return _is_normal(value, c.dtype) and _is_normal(1 / value, c.dtype)


def _is_normal(value: float, dtype: DType) -> bool:
    """Whether `value` is a normal number of the type, exactly."""
    if dtype not in _MANTISSA or not isfinite(value):
        return False
    least = {F64: 2.0**-1022, F32: 2.0**-126, BF16: 2.0**-126, F16: 2.0**-14}[dtype]
    with np.errstate(over="ignore"):
        return abs(value) >= least and float(np.asarray(value).astype(dtype.numpy)) == value
