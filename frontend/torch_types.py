"""PyTorch's types in the IR's terms: element types, promotion, storage as NumPy views, and SymPy extents."""

from __future__ import annotations

from typing import Any

import numpy as np
import sympy
import torch
from torch.utils._sympy import functions as sf

from dlc.frontend.torch_errors import UnsupportedExtent, UnsupportedType
from dlc.ir.dtype import BF16, BOOL, F8E4M3, F8E5M2, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, DType
from dlc.ir.expr import Cast, Expr, Index, apply, const
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum

_PAIRS: tuple[tuple[torch.dtype, DType], ...] = (
    (torch.float64, F64),
    (torch.float32, F32),
    (torch.float16, F16),
    (torch.bfloat16, BF16),
    (torch.int64, I64),
    (torch.int32, I32),
    (torch.int16, I16),
    (torch.int8, I8),
    (torch.uint64, U64),
    (torch.uint32, U32),
    (torch.uint16, U16),
    (torch.uint8, U8),
    (torch.bool, BOOL),
    (torch.float8_e4m3fn, F8E4M3),
    (torch.float8_e5m2, F8E5M2),
)
TO_IR: dict[torch.dtype, DType] = dict(_PAIRS)
TO_TORCH: dict[DType, torch.dtype] = {ir: t for t, ir in _PAIRS}


def ir_dtype(dtype: torch.dtype, op: str, loc: object = None) -> DType:
    """The IR's element type for `dtype`."""
    found = TO_IR.get(dtype)
    if found is None:
        raise UnsupportedType(loc, op=op, dtype=str(dtype).removeprefix("torch."))
    return found


def numpy_view(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """The tensor's own memory as an array, also for the types NumPy lacks; no copy."""
    t = tensor.detach()
    if t.is_conj() or t.is_neg():
        t = t.resolve_conj().resolve_neg()
    if t.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        raw = t.view(torch.int16 if t.dtype == torch.bfloat16 else torch.uint8).numpy()
        return raw.view(TO_IR[t.dtype].numpy)
    if t.layout != torch.strided or t.is_quantized:
        raise UnsupportedType(None, op="a constant", dtype=f"a tensor of layout {t.layout}")
    array: np.ndarray[Any, Any] = t.numpy()
    return array


def promote(dtypes: list[tuple[torch.dtype, bool]], numbers: list[float | int | bool]) -> torch.dtype:
    """ATen's type promotion: `dtypes` of tensors (with whether it has dimensions) and Python numbers."""
    wide = [d for d, dimensioned in dtypes if dimensioned]
    flat = [d for d, dimensioned in dtypes if not dimensioned]
    result = _join(wide)
    result = _prefer(result, _join(flat))
    kinds = [_number_dtype(v) for v in numbers]
    return _prefer(result, _join(kinds)) or torch.float32


def _number_dtype(v: float | int | bool) -> torch.dtype:
    if isinstance(v, bool):
        return torch.bool
    return torch.int64 if isinstance(v, int) else torch.get_default_dtype()


def _join(dtypes: list[torch.dtype]) -> torch.dtype | None:
    joined: torch.dtype | None = None
    for d in dtypes:
        joined = d if joined is None else torch.promote_types(joined, d)
    return joined


def _category(d: torch.dtype) -> int:
    return 3 if d.is_complex else 2 if d.is_floating_point else 1 if d != torch.bool else 0


def _prefer(strong: torch.dtype | None, weak: torch.dtype | None) -> torch.dtype | None:
    """The weak operand only matters when its category is higher."""
    if strong is None or weak is None:
        return strong if weak is None else weak
    return weak if _category(weak) > _category(strong) else strong


class Extents:
    """SymPy expressions of a graph's shapes as integer expressions; symbols are declared by the caller."""

    def __init__(self) -> None:
        self.symbols: dict[Any, IntExpr] = {}
        self.cache: dict[Any, IntExpr] = {}

    def of(self, value: Any, op: str = "a shape", loc: object = None) -> IntExpr:
        """An int or a SymInt as an expression over the program's symbols."""
        if isinstance(value, int):
            return int_expr(value)
        if isinstance(value, IntExpr):
            return value
        expr = value.node.expr if isinstance(value, torch.SymInt) else value
        found = self.cache.get(expr)
        if found is None:
            try:
                found = self._convert(expr)
            except (NotImplementedError, ZeroDivisionError):
                raise UnsupportedExtent(loc, op=op, extent=str(expr)) from None
            self.cache[expr] = found
        return found

    def _convert(self, e: Any) -> IntExpr:
        if isinstance(e, (int, sympy.Integer)):
            return int_expr(int(e))
        if isinstance(e, sympy.Symbol):
            if e not in self.symbols:
                raise NotImplementedError
            return self.symbols[e]
        args = e.args
        if isinstance(e, sympy.Add):
            total = int_expr(0)
            for a in args:
                total = total + self._convert(a)
            return total
        if isinstance(e, sympy.Mul):
            product = int_expr(1)
            for a in args:
                product = product * self._convert(a)
            return product
        if isinstance(e, (sympy.Pow, sf.PowByNatural)) and isinstance(args[1], sympy.Integer) and args[1] >= 0:
            product, base = int_expr(1), self._convert(args[0])
            for _ in range(int(args[1])):
                product = product * base
            return product
        if isinstance(e, (sf.FloorDiv, sf.CleanDiv)):
            return self._convert(args[0]) // self._convert(args[1])
        if isinstance(e, (sf.Mod, sf.PythonMod, sympy.Mod)):
            return self._convert(args[0]) % self._convert(args[1])
        if isinstance(e, sf.ModularIndexing):
            return (self._convert(args[0]) // self._convert(args[1])) % self._convert(args[2])
        if isinstance(e, (sf.Max, sympy.Max)):
            return maximum(*(self._convert(a) for a in args))
        if isinstance(e, (sf.Min, sympy.Min)):
            return minimum(*(self._convert(a) for a in args))
        if isinstance(e, (sf.CeilToInt, sf.FloorToInt, sf.TruncToInt)):
            return self._rounded(e)
        if isinstance(e, sf.ToFloat):
            return self._convert(args[0])
        raise NotImplementedError

    def _rounded(self, e: Any) -> IntExpr:
        inner = e.args[0]
        if isinstance(inner, sf.IntTrueDiv):
            a, b = (self._convert(x) for x in inner.args)
            # Shape quotients are of extents, hence not negative: truncation is the floor.
            return -((-a) // b) if isinstance(e, sf.CeilToInt) else a // b
        if isinstance(inner, (sympy.Mul, sf.FloatTrueDiv)):
            rational = _rational(inner)
            if rational is not None:
                a, b = self._convert(rational[0]), int_expr(rational[1])
                return -((-a) // b) if isinstance(e, sf.CeilToInt) else a // b
        raise NotImplementedError

    def float_value(self, e: Any) -> Expr:
        """A SymFloat's expression as an f64 scalar."""
        if isinstance(e, (int, float, sympy.Number)):
            return const(float(e), F64)
        args = e.args
        if isinstance(e, sympy.Add) or isinstance(e, sympy.Mul):
            name = "add" if isinstance(e, sympy.Add) else "mul"
            total = self.float_value(args[0])
            for a in args[1:]:
                total = apply(name, total, self.float_value(a))
            return total
        if isinstance(e, (sf.IntTrueDiv, sf.FloatTrueDiv)):
            return apply("div", self.float_value(args[0]), self.float_value(args[1]))
        if isinstance(e, sf.ToFloat):
            return self.float_value(args[0])
        if isinstance(e, (sympy.Pow, sf.FloatPow)):
            return apply("pow", self.float_value(args[0]), self.float_value(args[1]))
        name = type(e).__name__
        if name.startswith("OpaqueUnaryFn_") and name.removeprefix("OpaqueUnaryFn_") in ("sqrt", "exp", "log"):
            return apply(name.removeprefix("OpaqueUnaryFn_"), self.float_value(args[0]))
        try:
            return Cast(F64, Index(self._convert(e)))
        except NotImplementedError:
            raise UnsupportedExtent(None, op="a float of the shapes", extent=str(e)) from None

    def truth(self, e: Any) -> Expr:
        """A SymBool's expression as a bool scalar."""
        if e in (True, sympy.true, False, sympy.false):
            return const(bool(e), BOOL)
        names = {sympy.Eq: "eq", sympy.Ne: "ne", sympy.Lt: "lt", sympy.Le: "le", sympy.Gt: "gt", sympy.Ge: "ge"}
        for kind, name in names.items():
            if isinstance(e, kind):
                if all(a.is_integer and not isinstance(a, sympy.Float) for a in e.args):
                    return apply(name, Index(self.of(e.args[0])), Index(self.of(e.args[1])))
                return apply(name, self.float_value(e.args[0]), self.float_value(e.args[1]))
        if isinstance(e, (sympy.And, sympy.Or)):
            name = "and" if isinstance(e, sympy.And) else "or"
            total = self.truth(e.args[0])
            for a in e.args[1:]:
                total = apply(name, total, self.truth(a))
            return total
        if isinstance(e, sympy.Not):
            return apply("not", self.truth(e.args[0]))
        raise UnsupportedExtent(None, op="a condition on the shapes", extent=str(e))


def _rational(e: Any) -> tuple[Any, int] | None:
    """`e` as integer expression over a constant, for factors like 0.5*ToFloat(s)."""
    from fractions import Fraction

    scale, rest = Fraction(1), []
    for a in e.args:
        if isinstance(a, sympy.Float):
            f = Fraction(float(a))
            if f.denominator > 1 << 16:
                return None
            scale *= f
        elif isinstance(a, (sympy.Integer, sympy.Rational)):
            scale *= Fraction(int(a.p), int(a.q))
        else:
            rest.append(a.args[0] if isinstance(a, sf.ToFloat) else a)
    if isinstance(e, sf.FloatTrueDiv):
        return None
    return sympy.Mul(*rest) * scale.numerator, scale.denominator
