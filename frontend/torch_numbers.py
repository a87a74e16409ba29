"""A Python number that is data: what `.item()` gives, and everything computed from it.

A `Number` holds a tensor of rank 0, i64 for an int, f64 for a float (Python's own precision), bool for a bool; arithmetic
and comparisons on it are recorded as ATen calls on these. With a tensor it meets ATen's promotion as the Python number would.
Where Python needs the value itself (`if`, `range`, a list index), only code that records can go on: anything else is an
error, so that no decision is made that is not in the program.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from dlc.frontend.torch_errors import UncapturedDecision

DTYPES: dict[type, torch.dtype] = {bool: torch.bool, int: torch.int64, float: torch.float64}
"""The type in which a Python number's values are kept."""

SAMPLES: dict[type, Any] = {bool: True, int: 1, float: 1.0}
_SMALL = (torch.float16, torch.bfloat16)
WIDE = frozenset(("mul", "truediv", "floordiv"))
"""Operators in which ATen rounds a number beside smaller floats to f32 and no further."""
EXACT = 1 << 53
"""Beyond it a float has no place for every int."""


class Number:
    """A number of Python type `kind` (bool, int or float) that is known at run time only.

    Attributes:
        tensor: its value, of rank 0.
        origin: for a bool, what it was made of: ("not", a), ("and", a, b), or ("if", c, a, b) for `a if c else b`.
        mixed: another type that the number may have in eager Python, where that depends on data.
        extent: the same number as an extent (a SymInt), once it was needed, and the region that holds it.
    """

    __slots__ = ("extent", "kind", "mixed", "origin", "owner", "tensor")

    def __init__(self, kind: type, tensor: torch.Tensor, owner: Any, origin: Any = None, mixed: bool = False) -> None:
        self.kind = kind
        self.tensor = tensor
        self.owner = owner
        self.origin = origin
        self.mixed = mixed
        self.extent: Any = None

    # --- as an operand ---

    def operand(self, other: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The number as ATen sees a Python number beside `other`; in `dtype` where it is kept in another type."""
        if not other.dtype.is_floating_point:
            self.settled("a tensor of integers")
        made = self.tensor.to(dtype or torch.result_type(other, SAMPLES[self.kind]))
        if (also := self.owner.loose.of(other)) is not None:  # a number beside what may be a number
            self.owner.loose.note(made, dataclasses.replace(also, kind=self.kind))
        return made

    def kept(self, other: torch.Tensor) -> torch.Tensor:
        """The same in a product or quotient, which ATen takes in f32 where `other` is smaller."""
        return self.operand(other) if other.dtype not in _SMALL else self.operand(other, torch.float32)

    def settled(self, what: str) -> None:
        """Refuse a number whose Python type depends on data where the type matters."""
        if self.mixed:
            raise self.owner.refused(
                UncapturedDecision, what="a number that is an int on one path and a float on another", why=f"its type matters to {what}"
            )

    def as_(self, kind: type) -> torch.Tensor:
        """The value in the type that `kind` is kept in."""
        return self.tensor if kind is self.kind else self.tensor.to(DTYPES[kind])

    # --- where Python needs the value ---

    def _needed(self, what: str) -> Any:
        raise self.owner.refused(UncapturedDecision, what=f"a number computed from data ({self.kind.__name__})", why=what)

    def __hash__(self) -> int:
        return int(self._needed("it is a key of a dict or an element of a set"))

    def __bool__(self) -> bool:
        return bool(self._needed("its truth is needed in code that is not rewritten"))

    def __index__(self) -> int:
        return int(self._needed("it is used where Python needs an integer"))

    def __int__(self) -> int:
        return int(self._needed("it is used where Python needs an integer"))

    def __float__(self) -> float:
        return float(self._needed("it is used where Python needs a float"))

    def __str__(self) -> str:
        return str(self._needed("it is turned into text"))

    def __format__(self, spec: str) -> str:
        return str(self._needed("it is turned into text"))

    def __repr__(self) -> str:
        if self.owner.asked_by_model():
            self._needed("it is turned into text")
        return f"<{self.kind.__name__} from data>"

    # --- arithmetic ---

    def __add__(self, other: Any) -> Any:
        return arithmetic("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return arithmetic("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return arithmetic("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return arithmetic("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return arithmetic("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return arithmetic("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return arithmetic("truediv", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return arithmetic("truediv", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return arithmetic("floordiv", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return arithmetic("floordiv", other, self)

    def __mod__(self, other: Any) -> Any:
        return arithmetic("mod", self, other)

    def __rmod__(self, other: Any) -> Any:
        return arithmetic("mod", other, self)

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def __pow__(self, other: Any) -> Any:
        return arithmetic("pow", self, other)

    def __rpow__(self, other: Any) -> Any:
        return arithmetic("pow", other, self)

    def __and__(self, other: Any) -> Any:
        return arithmetic("and", self, other)

    def __rand__(self, other: Any) -> Any:
        return arithmetic("and", other, self)

    def __or__(self, other: Any) -> Any:
        return arithmetic("or", self, other)

    def __ror__(self, other: Any) -> Any:
        return arithmetic("or", other, self)

    def __xor__(self, other: Any) -> Any:
        return arithmetic("xor", self, other)

    def __rxor__(self, other: Any) -> Any:
        return arithmetic("xor", other, self)

    def __lshift__(self, other: Any) -> Any:
        return arithmetic("lshift", self, other)

    def __rshift__(self, other: Any) -> Any:
        return arithmetic("rshift", self, other)

    def __lt__(self, other: Any) -> Any:
        return compared("lt", self, other)

    def __le__(self, other: Any) -> Any:
        return compared("le", self, other)

    def __gt__(self, other: Any) -> Any:
        return compared("gt", self, other)

    def __ge__(self, other: Any) -> Any:
        return compared("ge", self, other)

    def __eq__(self, other: Any) -> Any:
        return compared("eq", self, other)

    def __ne__(self, other: Any) -> Any:
        return compared("ne", self, other)

    def __neg__(self) -> Any:
        kind = float if self.kind is float else int
        return Number(kind, -self.as_(kind), self.owner, mixed=self.mixed)

    def __pos__(self) -> Any:
        return self if self.kind is not bool else self.to(int)

    def __abs__(self) -> Any:
        kind = float if self.kind is float else int
        return Number(kind, self.as_(kind).abs(), self.owner, mixed=self.mixed)

    def __invert__(self) -> Any:
        return -self.to(int) - 1

    def __trunc__(self) -> Any:
        return self.to(int)

    def __round__(self, digits: Any = None) -> Any:
        if self.kind is not float:
            return +self
        if digits is not None:
            return self._needed("it is rounded to decimal digits, which is no arithmetic on floats")
        return Number(int, torch.round(self.tensor).to(torch.int64), self.owner)

    def __floor__(self) -> Any:
        return self.whole(torch.floor)

    def __ceil__(self) -> Any:
        return self.whole(torch.ceil)

    def whole(self, rounding: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        """An int by `rounding` a float."""
        return +self if self.kind is not float else Number(int, rounding(self.tensor).to(torch.int64), self.owner)

    def to(self, kind: type) -> Number:
        """`int(self)`, `float(self)` or `bool(self)`."""
        if kind is self.kind and not self.mixed:
            return self
        if kind is bool:
            return Number(bool, self.tensor != 0, self.owner)
        return Number(kind, self.as_(kind), self.owner)

    def bit_length(self) -> Any:
        return self._needed("its bits are counted")

    def is_integer(self) -> Any:
        return True if self.kind is not float else Number(bool, torch.floor(self.tensor) == self.tensor, self.owner)

    def item(self) -> Any:
        return self

    @property
    def real(self) -> Any:
        return self


def is_number(v: Any) -> bool:
    """Whether `v` is a Python number, known or from data."""
    return isinstance(v, (Number, bool, int, float))


def kind_of(v: Any) -> type:
    if isinstance(v, Number):
        return v.kind
    return bool if isinstance(v, bool) else int if isinstance(v, int) else float


def tensor_of(v: Any, kind: type) -> torch.Tensor:
    """A number (or an extent) as a tensor of rank 0 in the type that `kind` is kept in."""
    if isinstance(v, Number):
        return v.as_(kind)
    return torch.scalar_tensor(v, dtype=DTYPES[kind])


_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)


def _pair(a: Any, b: Any) -> tuple[Any, Any] | None:
    """Both as numbers, extents taken as ints; None where one is none."""
    sides = []
    owner = a.owner if isinstance(a, Number) else b.owner
    for v in (a, b):
        if isinstance(v, torch.SymInt):
            v = Number(int, torch.scalar_tensor(v, dtype=torch.int64), owner)
        if isinstance(v, _SYMBOLS) or not is_number(v):
            return None
        sides.append(v)
    return sides[0], sides[1]


_INTEGER = frozenset("and or xor lshift rshift".split())
_TENSOR: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "truediv": operator.truediv,
    "floordiv": operator.floordiv, "mod": operator.mod, "pow": operator.pow, "and": operator.and_, "or": operator.or_,
    "xor": operator.xor, "lshift": operator.lshift, "rshift": operator.rshift, "lt": operator.lt, "le": operator.le,
    "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne, "matmul": operator.matmul,
}  # fmt: skip


def _with_tensor(name: str, a: Any, b: Any) -> Any:
    """One side is a tensor, the other a number."""
    if name == "truediv" and isinstance(b, torch.Tensor):
        return _with_tensor("mul", b.reciprocal(), a)  # as PyTorch's own `number / tensor` is
    for t, number in ((a, b), (b, a)):
        if name in WIDE and isinstance(t, torch.Tensor) and t.dtype in _SMALL:
            return _TENSOR[name](t, number.kept(t)).to(t.dtype)
    if isinstance(a, torch.Tensor):
        return _TENSOR[name](a, b.operand(a))
    return _TENSOR[name](a.operand(b), b)


def arithmetic(name: str, a: Any, b: Any) -> Any:
    """`a op b` where at least one is a `Number`, as Python defines it on numbers."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return _with_tensor(name, a, b)
    pair = _pair(a, b)
    if pair is None:
        return NotImplemented
    a, b = pair
    owner = a.owner if isinstance(a, Number) else b.owner
    kinds = (kind_of(a), kind_of(b))
    if name in _INTEGER:
        if float in kinds:
            return NotImplemented
        if name in ("lshift", "rshift") and isinstance(b, Number):
            owner.may_raise(ValueError)
        kind: type = bool if kinds == (bool, bool) and name in ("and", "or", "xor") else int
        made = Number(kind, _TENSOR[name](tensor_of(a, kind), tensor_of(b, kind)), owner)
        if kind is bool and name == "and":
            made.origin = ("and", a, b)
        return made
    if name == "pow":
        return _power(a, b, kinds, owner)
    kind = float if float in kinds or name == "truediv" else int
    settled = name == "truediv" or any(kind_of(v) is float and not (isinstance(v, Number) and v.mixed) for v in pair)
    mixed = not settled and any(isinstance(v, Number) and v.mixed for v in pair)
    x, y = tensor_of(a, kind), tensor_of(b, kind)
    if name in ("truediv", "floordiv", "mod") and isinstance(b, Number):
        owner.may_raise(ZeroDivisionError)
    if name == "floordiv":
        return Number(kind, torch.div(x, y, rounding_mode="floor"), owner, mixed=mixed)
    if name == "mod":
        return Number(kind, torch.remainder(x, y), owner, mixed=mixed)
    return Number(kind, _TENSOR[name](x, y), owner, mixed=mixed)


def _power(a: Any, b: Any, kinds: tuple[type, type], owner: Any) -> Any:
    if float in kinds:
        for kind in (OverflowError, ZeroDivisionError):
            owner.may_raise(kind)
        return Number(float, torch.pow(tensor_of(a, float), tensor_of(b, float)), owner)
    if isinstance(b, Number):
        return b._needed("it is an integer exponent, whose sign decides the type of the power")
    if b < 0:
        owner.may_raise(ZeroDivisionError)
        return Number(float, torch.pow(tensor_of(a, float), float(b)), owner)
    return Number(int, torch.pow(tensor_of(a, int), int(b)), owner)


def compared(name: str, a: Any, b: Any) -> Any:
    """A comparison where at least one side is a `Number`."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return _with_tensor(name, a, b)
    pair = _pair(a, b)
    if pair is None:
        return NotImplemented  # the other one may know; else Python compares what they are
    a, b = pair
    owner = a.owner if isinstance(a, Number) else b.owner
    if a is b and name in ("eq", "le", "ge", "ne", "lt", "gt") and kind_of(a) is not float:
        return name in ("eq", "le", "ge")
    kinds = (kind_of(a), kind_of(b))
    kind = float if float in kinds else int if int in kinds else bool
    if kind is bool and name not in ("eq", "ne"):
        kind = int
    if kind is float and int in kinds:
        exact = _compared_exactly(name, a, b, owner)
        if exact is not None:
            return exact
    return Number(bool, _TENSOR[name](tensor_of(a, kind), tensor_of(b, kind)), owner)


_SWAPPED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "eq": "eq", "ne": "ne"}


def _compared_exactly(name: str, a: Any, b: Any, owner: Any) -> Any:
    """A comparison of a float and a known int that no float is, or of an int and a known float; None where floats decide it right."""
    if not isinstance(a, Number):
        return _compared_exactly(_SWAPPED[name], b, a, owner)
    if isinstance(b, Number):
        return None
    if a.kind is float:
        if type(b) is not int or abs(b) <= EXACT or b == (below := _float_below(b)):
            return None
        if name in ("eq", "ne"):
            return name == "ne"
        return Number(bool, a.tensor <= below if name in ("lt", "le") else a.tensor > below, owner)
    if a.kind is not int or type(b) is not float or not abs(b) < 1 << 62:
        return None
    if not b.is_integer() and name in ("eq", "ne"):
        return name == "ne"
    bound = math.ceil(b) if name in ("lt", "ge") else math.floor(b)
    return Number(bool, _TENSOR[name](a.tensor, tensor_of(bound, int)), owner)


def _float_below(v: int) -> float:
    """The greatest float that is no more than an int."""
    try:
        near = float(v)
    except OverflowError:
        return math.nextafter(math.inf, 0) if v > 0 else -math.inf
    return near if near <= v else math.nextafter(near, -math.inf)


def negated(a: Number) -> Number:
    """`not a`."""
    if isinstance(a.origin, tuple) and a.origin[0] == "not":
        return a.origin[1]
    flag = a.to(bool)
    return Number(bool, torch.logical_not(flag.tensor), a.owner, ("not", flag))


MATH: dict[Any, Callable[[torch.Tensor], torch.Tensor]] = {
    math.sqrt: torch.sqrt, math.exp: torch.exp, math.log: torch.log, math.log2: torch.log2, math.log10: torch.log10,
    math.sin: torch.sin, math.cos: torch.cos, math.tan: torch.tan, math.tanh: torch.tanh, math.fabs: torch.abs,
    math.log1p: torch.log1p, math.expm1: torch.expm1, math.atan: torch.atan, math.sinh: torch.sinh, math.cosh: torch.cosh,
}  # fmt: skip
"""Functions of the module `math` on floats from data."""
