"""Bounds of scalar expressions: how far each operator's result may move, and what its own rounding adds (see `bounds.py`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dlc.codegen.vecmath import ULP
from dlc.ir.dtype import BF16, F16, F32, I64, DType
from dlc.ir.evaluate import _DISCONTINUOUS, Block, Reader, _settled, apply_op, convert, rounded
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise
from dlc.ir.extent import IntExpr, Value, atoms
from dlc.ir.scalar import SCALAR_OPS

Array: TypeAlias = np.ndarray[Any, Any]
Held: TypeAlias = tuple[Array, Array, DType]

_EXACT = frozenset(
    "neg abs sign floor ceil trunc round min max minnum maxnum copysign nextafter rem_trunc rem_floor select"
    " isnan isinf signbit eq ne lt le gt ge".split()
)
EPS = {"f64": 2.0**-52, "f32": 2.0**-23}
TINY = {"f64": 2.0**-1074, "f32": 2.0**-149}
LARGEST = {"f64": float(np.finfo(np.float64).max), "f32": float(np.finfo(np.float32).max)}
_OWN_ULP_F64 = 4.0  # the C library's functions and NumPy's, both at hand here


def computing(dtype: DType) -> str:
    """Name of the type that arithmetic on a float type is done in."""
    return "f32" if dtype in (F16, BF16, F32) else "f64"


def gap(a: Array, b: Array) -> Array:
    """|a - b|; 0 between equal infinities or two NaNs, infinity between a number and a NaN."""
    with np.errstate(all="ignore"):
        d = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64))
        same = (a == b) | (np.isnan(a) & np.isnan(b))
    return np.where(same, 0.0, np.where(np.isnan(d), np.inf, d))


def own_error(op: str, value: Array, dtype: DType) -> Array:
    """What computing `op` once in the computing type may add."""
    if op in _EXACT or not dtype.is_float:
        return np.zeros(())
    kind = computing(dtype)
    ulps = 1.0 if op in ("add", "sub", "mul", "div", "sqrt") else 1.5 * ULP.get(op, 2.0) + 0.5
    if kind == "f64" and ulps != 1.0:
        ulps = max(ulps, _OWN_ULP_F64)
    size = np.abs(value) + (1.0 if op == "lgamma" else 0.0)  # the C library's is not relative near its zeros
    with np.errstate(all="ignore"):
        error = ulps * (EPS[kind] * size + TINY[kind])
    error = np.where(np.isfinite(size), error, 0.0)
    # beyond the computing type's range the reference is still finite, compiled code is not (or the other way)
    return np.where(np.isfinite(size) & (size > LARGEST[kind] * (1 - 1e-6)), np.inf, error)


def corners(op: str, parts: Sequence[Held]) -> list[Array]:
    """The operator's results at the ends of its operands' intervals."""
    ends: list[list[tuple[Array, DType]]] = [[]]
    for a, e, t in parts:
        options = [a] if not t.is_float or not np.any(e) else [a - e, a + e]
        ends = [[*head, (x, t)] for head in ends for x in options]
    with np.errstate(all="ignore"):
        return [apply_op(op, end)[0] for end in ends]


def spread(op: str, parts: Sequence[Held], value: Array) -> Array:
    """The greatest change of the result while operands move within their bounds."""
    a, ea, t = parts[0]
    if not any(np.any(e) for _, e, _ in parts):
        return np.zeros(())
    with np.errstate(all="ignore"):
        if op == "select":
            (c, ec, _), (x, ex, _), (y, ey, _) = parts
            return np.where(ec > 0, gap(x, y) + np.maximum(ex, ey), np.where(c, ex, ey)) if t else ex
        if op in ("and", "or") and a.dtype == np.bool_:
            b, eb = parts[1][0], parts[1][1]
            decides = (lambda v, e: (e == 0) & ~v) if op == "and" else (lambda v, e: (e == 0) & v)
            return np.where(decides(a, ea) | decides(b, eb), 0.0, np.maximum(ea, eb))
        bad = np.zeros((), bool)
        for _, e, _ in parts:
            bad = bad | np.isinf(e)
        if not t.is_float:
            return np.where(bad, np.inf, 0.0)
        moved = np.zeros(np.broadcast_shapes(*(p[0].shape for p in parts), *(p[1].shape for p in parts)))
        if SCALAR_OPS[op].typing == "compare":
            b, eb = parts[1][0], parts[1][1]
            moved = np.where((ea + eb > 0) & (np.abs(a - b) <= ea + eb), np.inf, moved)
        elif op in ("sin", "cos"):
            moved = np.minimum(ea, 2.0)
        elif op == "abs":
            moved = ea
        elif op in ("rem_trunc", "rem_floor"):
            b, eb = parts[1][0], parts[1][1]
            quotients = corners("div_floor" if op == "rem_floor" else "div_trunc", parts)
            same = np.logical_and.reduce([quotients[0] == q for q in quotients])
            moved = np.where(same, ea + np.abs(quotients[0]) * eb, np.inf)
        else:
            for c in corners(op, parts):
                moved = np.maximum(moved, gap(c, value))
            if op in ("div", "div_trunc", "div_floor", "atan2"):
                b, eb = parts[1][0], parts[1][1]
                moved = np.where((eb > 0) & (np.abs(b) <= eb), np.inf, moved)
            if op == "pow":
                b, eb = parts[1][0], parts[1][1]
                moved = np.where(((ea > 0) & (a <= ea)) | ((eb > 0) & (a <= 0)), np.inf, moved)
            if op == "cosh":
                moved = np.where(np.abs(a) <= ea, np.maximum(moved, value - 1.0), moved)
            if op == "tan":
                moved = np.where(ea > 0.1, np.inf, moved)
            if op == "lgamma":
                moved = np.where((ea > 0) & (a <= ea), np.inf, 4 * moved)
            if op == "copysign":
                b, eb = parts[1][0], parts[1][1]
                moved = np.where((eb > 0) & (np.abs(b) <= eb), 2 * np.abs(a) + ea, moved)
        if SCALAR_OPS[op].typing in ("compare", "test"):
            moved = np.where(moved > 0, np.inf, 0.0)
        return np.where(bad, np.inf, moved)


def stored_error(value: Array, error: Array, dtype: DType) -> tuple[Array, Array]:
    """Bounds of the stored element and of what a fused reader may see instead, for a value before rounding."""
    if not dtype.is_float:
        return error, error
    with np.errstate(all="ignore"):
        near = rounded(np.asarray(value, np.float64), dtype)
        low, high = rounded(value - error, dtype), rounded(value + error, dtype)
        tight = np.maximum(gap(low, near), gap(high, near))
        tight = np.where(np.isinf(error), np.inf, np.where(error == 0, 0.0, tight))
        wide = np.maximum(tight, np.where(np.isfinite(value) & np.isfinite(near), error + np.abs(value - near), tight))
    return tight, wide


@dataclass
class Bounds:
    """Values with bounds of the scalar expressions of one step, over its whole iteration space."""

    reader: Reader
    errors: Mapping[str, Array]

    def of(self, e: Expr, block: Block, active: Array | None) -> Held:
        match e:
            case Const():
                a, t = self.reader.values(e, block, active)
                return a, np.zeros(()), t
            case Index(expr):
                return self.reader.index(expr, block, active), self._index_error(expr, block, active), I64
            case Access():
                return self._access(e, block, active)
            case Apply(op, args):
                return self._apply(op, args, block, active)
            case Cast(dtype, arg, mode):
                return self._cast(dtype, arg, mode, block, active)
            case Bitcast(_, arg):
                a, t = self.reader.values(e, block, active)
                source, error, _ = self.of(arg, block, active)
                unsure = error > 0
                if source.dtype.kind == "f":
                    unsure = unsure | np.isnan(source)
                return a, np.where(unsure, np.inf, 0.0), t
            case Piecewise(cases, otherwise):
                return self._piecewise(cases, otherwise, block, active)

    def _settle(self, x: Expr, part: Held) -> Held:
        """An operand of a discontinuous operator: the reference rounds it to its type, compiled code need not have."""
        a, e, t = part
        if isinstance(x, (Access, Const, Index)) or not t.is_float:
            return part
        near = _settled(x, a, t)
        return near, np.where(np.isfinite(a) & np.isfinite(near), e + np.abs(near - a), e + gap(near, a)), t

    def _apply(self, op: str, args: tuple[Expr, ...], block: Block, active: Array | None) -> Held:
        parts = [self.of(x, block, active) for x in args]
        if op in _DISCONTINUOUS:
            parts = [self._settle(x, p) for x, p in zip(args, parts, strict=True)]
        value, dtype = apply_op(op, [(a, t) for a, _, t in parts])
        error = spread(op, parts, value)
        if op in ("div_trunc", "div_floor") and dtype.is_float:
            with np.errstate(all="ignore"):
                q = parts[0][0] / parts[1][0]
                turn = np.trunc if op == "div_trunc" else np.floor
                around = np.maximum(gap(turn(q * (1 + 1e-6)), value), gap(turn(q * (1 - 1e-6)), value))
            error = np.maximum(error, around)
        if dtype.is_float:
            error = error + own_error(op, value, parts[-1][2])
        if op in ("signbit", "copysign"):  # a NaN's sign means nothing
            error = np.where(np.isnan(parts[-1][0]), np.inf if op == "signbit" else error + 2 * np.abs(value), error)
        return value, error, dtype

    def _cast(self, dtype: DType, arg: Expr, mode: str, block: Block, active: Array | None) -> Held:
        a, e, source = self.of(arg, block, active)
        if not dtype.is_float:
            a, e, source = self._settle(arg, (a, e, source))
        value = convert(a, source, dtype, mode)
        if not source.is_float:
            error = np.where(e > 0, np.inf, 0.0)
            if dtype.is_float and source.bits == 64:  # the reference went through f64
                error = error + np.abs(value.astype(np.float64)) * 2.0**-24
            return value, error, dtype
        if dtype.is_float:
            if dtype.bits > source.bits or dtype == source:
                return value, e, dtype
            return value, stored_error(a, e, dtype)[0], dtype
        with np.errstate(all="ignore"):
            low, high = convert(a - e, source, dtype, mode), convert(a + e, source, dtype, mode)
        return value, np.where((low != value) | (high != value) | np.isinf(e), np.inf, 0.0) * 1.0, dtype

    def _piecewise(
        self, cases: tuple[tuple[Expr, Expr], ...], otherwise: Expr, block: Block, active: Array | None
    ) -> Held:
        left = active
        pieces: list[tuple[Array | None, Held]] = []
        unsure = np.zeros((), bool)
        for guard, value in (*cases, (None, otherwise)):
            here = left
            if guard is not None:
                holds, error, _ = self.of(guard, block, left)
                unsure = unsure | (error > 0)
                here = holds if left is None else left & holds
                left = ~holds if left is None else left & ~holds
            pieces.append((here, self.of(value, block, here)))
        result, error, dtype = pieces[-1][1]
        for here, (a, e, _) in reversed(pieces[:-1]):
            assert here is not None
            result, error = np.where(here, a, result), np.where(here, e, error)
        return result, np.where(unsure, np.inf, error), dtype

    def _index_error(self, e: IntExpr, block: Block, active: Array | None) -> Array:
        unsure = np.zeros(())
        for atom in atoms(e):
            if isinstance(atom, Value):
                unsure = np.maximum(unsure, self.of(atom.expr, block, active)[1])
        return np.where(unsure > 0, np.inf, 0.0)

    def _access(self, e: Access, block: Block, active: Array | None) -> Held:
        value, dtype = self.reader.access(e, block, active)
        default: Array | None = None
        if e.default is not None:
            default = self.of(e.default, block, active)[1]
        source = self.errors[e.tensor]
        unsure = np.zeros(())
        if 0 in source.shape or not np.any(source):
            error = np.zeros(()) if default is None else np.zeros(np.broadcast_shapes(value.shape, default.shape))
        outside: Array = np.zeros((), bool)
        indices = []
        for i, extent in zip(e.index, source.shape, strict=True):
            at = self.reader.index(i, block, active)
            unsure = np.maximum(unsure, self._index_error(i, block, active))
            outside = outside | (at < 0) | (at >= extent)
            indices.append(np.clip(at, 0, max(extent - 1, 0)))
        error = np.zeros(()) if 0 in source.shape else source[tuple(indices)]
        if default is not None:
            error = np.where(outside, default, error)
            error = self.reader._outside_domain(e, error, default, block)
        return value, np.where(unsure > 0, np.inf, error), dtype
