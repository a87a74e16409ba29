"""Shape arithmetic at import: operators on values that are known, as numbers or as integer expressions over symbols.

A rule returns arrays, or None when it does not apply (then the operator becomes code like any other). Numbers follow the
element type; object arrays hold integers and `IntExpr` and stand for i64 (or i32) values.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from dlc.frontend.onnx_load import element_type
from dlc.frontend.onnx_ops.registry import Ctx
from dlc.frontend.onnx_value import Array, Tensor, shape_array, static_tensor
from dlc.ir.dtype import BOOL, I32, I64, DType, from_numpy
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum
from dlc.ir.scalar import cast_array

MAX_FOLDED = 1 << 16
Rule = Callable[[Ctx, "list[Array | None]"], "Array | list[Array] | Tensor | None"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(f: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, f))
        return f

    return register


def fold(c: Ctx) -> tuple[Tensor, ...] | None:
    """The outputs of `c`'s node when they are known at import and small, else None."""
    found = RULES.get(c.op)
    if found is None:
        return None
    arrays: list[Array | None] = []
    for v in c.ins:
        if v is None:
            arrays.append(None)
            continue
        if not isinstance(v, Tensor):
            return None
        if v.static is None and c.op not in ("Shape", "Size"):
            return None
        if v.static is not None and v.static.size > MAX_FOLDED and c.op not in ("Shape", "Size"):
            return None
        arrays.append(v.static)
    if not arrays:
        return None
    with np.errstate(all="ignore"):
        result = found(c, arrays)
    if result is None:
        return None
    if isinstance(result, Tensor):
        return (result,)
    many = [_boxed(a) for a in (result if isinstance(result, list) else [result])]
    if any(a.size > MAX_FOLDED for a in many):
        return None
    dtype = result_type(c)
    return tuple(static_tensor(np.asarray(a), dtype if a.dtype == object else None, c.hint) for a in many)


def _boxed(a: Any) -> Array:
    """`a` as an array: NumPy hands out the element itself where a rank-0 object array is meant."""
    if not isinstance(a, IntExpr):
        return np.asarray(a)
    box = np.empty((), object)
    box[()] = a
    return box


def result_type(c: Ctx) -> DType | None:
    if c.op in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And", "Or", "Not"):
        return BOOL
    first = c.ins[1] if c.op == "Where" else c.ins[0]
    return first.dtype if isinstance(first, Tensor) and first.dtype in (I64, I32) else I64


def numeric(*arrays: Array | None) -> bool:
    return all(a is None or a.dtype != object for a in arrays)


def integral(*arrays: Array | None) -> bool:
    """Whether every array is of integers or integer expressions (or booleans)."""
    return all(a is None or a.dtype == object or a.dtype.kind in "iub" for a in arrays)


# --- shapes ----------------------------------------------------------------------------------------------------------


@rule("Shape")
def _shape(c: Ctx, _: list[Array | None]) -> Array | None:
    shape = c.tensor(0).shape
    rank = len(shape)
    start, end = c.int_("start", 0), c.int_("end", rank)
    start = min(max(start + rank if start < 0 else start, 0), rank)
    end = min(max(end + rank if end < 0 else end, 0), rank)
    return shape_array(shape[start:end] if end > start else ())


@rule("Size")
def _size(c: Ctx, _: list[Array | None]) -> Array | None:
    total = int_expr(1)
    for e in c.tensor(0).shape:
        total = total * e
    result = np.empty((), object)
    result[()] = total if total.const is None else total.const
    return np.array(total.const, np.int64) if total.const is not None else result


# --- arithmetic ------------------------------------------------------------------------------------------------------


def _elementwise(symbolic: Callable[[Any, Any], Any], plain: Callable[[Any, Any], Any]) -> Rule:
    def apply(c: Ctx, a: list[Array | None]) -> Array | None:
        if len(a) != 2 or a[0] is None or a[1] is None:
            return None
        if numeric(*a):
            if a[0].dtype != a[1].dtype:
                return None
            return np.asarray(plain(a[0], a[1])).astype(a[0].dtype, copy=False)
        if not integral(*a):
            return None
        return _object_map(symbolic, a[0], a[1])

    return apply


def _object_map(f: Callable[..., Any], *arrays: Array) -> Array | None:
    wide = np.broadcast_arrays(*(a.astype(object) for a in arrays))
    result = np.empty(wide[0].shape, object)
    for i in np.ndindex(*wide[0].shape):
        value = f(*(_unwrap(w[i]) for w in wide))
        if value is None:
            return None
        result[i] = value
    return result


def _unwrap(x: Any) -> Any:
    if isinstance(x, IntExpr):
        return x.const if x.const is not None else x
    return bool(x) if isinstance(x, (bool, np.bool_)) else int(x)


def _int_div(a: Any, b: Any) -> Any:
    """Truncating division; of an extent by a positive number it is floor division."""
    if isinstance(b, int) and b == 0:
        return None
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    if (isinstance(b, int) and b < 0) or not _nonnegative(a):
        return None
    return int_expr(a) // b


def _int_mod(a: Any, b: Any) -> Any:
    if isinstance(b, int) and b <= 0:
        return None
    return int_expr(a) % b


def _nonnegative(e: Any) -> bool:
    """Whether an expression is certainly not negative: extents and sums and products of them are."""
    if isinstance(e, int):
        return e >= 0
    return all(c >= 0 for _, c in e.terms)


def _trunc_div(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    safe = np.where(b == 0, 1, b)
    q = np.abs(a) // np.abs(safe) * np.where((a < 0) == (safe < 0), 1, -1).astype(a.dtype) if a.dtype.kind == "i" else a // safe
    return np.where(b == 0, 0, q).astype(a.dtype)


RULES["Add"] = _elementwise(operator.add, np.add)
RULES["Sub"] = _elementwise(operator.sub, np.subtract)
RULES["Mul"] = _elementwise(operator.mul, np.multiply)
_divide = _elementwise(_int_div, _trunc_div)


@rule("Div")
def _div(c: Ctx, a: list[Array | None]) -> Array | None:
    divisors_are_positive(c, a)
    found = _divide(c, a)
    assert found is None or isinstance(found, np.ndarray)
    return found


def divisors_are_positive(c: Ctx, a: list[Array | None]) -> None:
    """A model that divides by an extent needs it to be at least 1."""
    if len(a) == 2 and a[1] is not None and a[1].dtype == object:
        for e in a[1].ravel():
            if isinstance(e, IntExpr):
                c.graph.demands.at_least(e, 1)


@rule("Mod")
def _mod(c: Ctx, a: list[Array | None]) -> Array | None:
    x, y = a
    if x is None or y is None or c.flag("fmod", 0) or not integral(x, y) or (numeric(y) and np.any(y == 0)):
        return None
    if numeric(x, y):
        return np.mod(x, y) if x.dtype == y.dtype else None
    divisors_are_positive(c, a)
    return _object_map(_int_mod, x, y)


@rule("Min", "Max")
def _extreme(c: Ctx, a: list[Array | None]) -> Array | None:
    arrays = [x for x in a if x is not None]
    if numeric(*arrays):
        if len({x.dtype for x in arrays}) != 1:
            return None
        pick = np.minimum if c.op == "Min" else np.maximum
        result = arrays[0]
        for x in arrays[1:]:
            result = pick(result, x)
        return np.asarray(result)
    return _object_map(minimum if c.op == "Min" else maximum, *arrays) if integral(*arrays) else None


@rule("Neg", "Abs", "Floor", "Ceil", "Sqrt", "Identity", "Exp", "Log", "Round", "Reciprocal")
def _unary(c: Ctx, a: list[Array | None]) -> Array | Tensor | None:
    x = a[0]
    assert x is not None
    if c.op == "Identity":
        return c.tensor(0)
    if x.dtype == object:
        return _object_map(operator.neg, x) if c.op == "Neg" else None
    if x.dtype.kind != "f" and c.op not in ("Neg", "Abs"):
        return None
    f: dict[str, Callable[[Array], Any]] = {
        "Neg": np.negative, "Abs": np.abs, "Floor": np.floor, "Ceil": np.ceil, "Sqrt": np.sqrt,
        "Exp": np.exp, "Log": np.log, "Round": np.rint, "Reciprocal": lambda v: 1 / v,
    }  # fmt: skip
    return np.asarray(f[c.op](x)).astype(x.dtype)


@rule("Pow")
def _pow(c: Ctx, a: list[Array | None]) -> Array | None:
    x, y = a
    if x is None or y is None or not numeric(x, y) or x.dtype != y.dtype or x.dtype.kind != "f":
        return None
    return np.asarray(np.power(x, y)).astype(x.dtype)


def _decide(name: str) -> Callable[[Any, Any], bool | None]:
    def decide(a: Any, b: Any) -> bool | None:
        difference = int_expr(a) - b
        d = difference.const
        if d is None:
            # An extent is never negative, so shape code's comparisons with -1 (and below) are decided.
            if name == "Equal" and (
                (_nonnegative(difference - 1)) or (_nonnegative(-difference - 1))
            ):
                return False
            if name in ("Less", "Greater", "LessOrEqual", "GreaterOrEqual"):
                return _ordered(name, difference)
            return None
        return bool(
            {"Equal": d == 0, "Less": d < 0, "Greater": d > 0, "LessOrEqual": d <= 0, "GreaterOrEqual": d >= 0}[name]
        )

    return decide


def _ordered(name: str, difference: IntExpr) -> bool | None:
    if _nonnegative(difference):
        return {"Less": False, "GreaterOrEqual": True}.get(name) if not _nonnegative(difference - 1) else name.startswith("Greater")
    if _nonnegative(-difference):
        return {"Greater": False, "LessOrEqual": True}.get(name) if not _nonnegative(-difference - 1) else name.startswith("Less")
    return None


@rule("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")
def _compare(c: Ctx, a: list[Array | None]) -> Array | None:
    x, y = a
    if x is None or y is None:
        return None
    if numeric(x, y):
        f = {"Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal,
             "GreaterOrEqual": np.greater_equal}[c.op]  # fmt: skip
        return np.asarray(f(x, y)) if x.dtype == y.dtype else None
    if not integral(x, y):
        return None
    found = _object_map(_decide(c.op), x, y)
    return None if found is None else found.astype(bool)


@rule("And", "Or", "Not", "Xor")
def _logic(c: Ctx, a: list[Array | None]) -> Array | None:
    if not all(x is not None and x.dtype == bool for x in a):
        return None
    if c.op == "Not":
        return np.logical_not(np.asarray(a[0]))
    operation = {"And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor}[c.op]
    return np.asarray(operation(np.asarray(a[0]), np.asarray(a[1])))


@rule("Where")
def _where(c: Ctx, a: list[Array | None]) -> Array | None:
    if any(x is None for x in a) or not numeric(a[0]):
        return None
    cond, x, y = a
    if numeric(x, y) and x.dtype != y.dtype:  # type: ignore[union-attr]
        return None
    if numeric(x, y):
        return np.asarray(np.where(cond, x, y))  # type: ignore[arg-type]
    if not integral(x, y):
        return None
    return np.asarray(np.where(np.asarray(cond), np.asarray(x, object), np.asarray(y, object)))


@rule("Cast")
def _cast(c: Ctx, a: list[Array | None]) -> Array | Tensor | None:
    x = a[0]
    assert x is not None
    to = element_type(c.int_("to"), c.loc, "Cast")
    if x.dtype == object:
        return Tensor(static=x, dtype=to, hint=c.hint) if to in (I64, I32) else None
    if to.is_coded or from_numpy(x.dtype).is_coded:
        return None
    return Tensor(static=cast_array(x, to.numpy, "sat"), dtype=to, hint=c.hint)


@rule("CastLike")
def _cast_like(c: Ctx, a: list[Array | None]) -> Array | Tensor | None:
    x, to = a[0], c.tensor(1).dtype
    if x is None or x.dtype == object or to.is_coded or from_numpy(x.dtype).is_coded:
        return None
    return Tensor(static=cast_array(x, to.numpy, "sat"), dtype=to, hint=c.hint)


# --- structure -------------------------------------------------------------------------------------------------------


def _uniform(arrays: list[Array]) -> list[Array] | None:
    """Arrays of one kind: all numbers of one type, or all objects."""
    if numeric(*arrays):
        return arrays if len({x.dtype for x in arrays}) == 1 else None
    return [x.astype(object) for x in arrays] if integral(*arrays) else None


@rule("Concat")
def _concat(c: Ctx, a: list[Array | None]) -> Array | None:
    arrays = _uniform([x for x in a if x is not None])
    if not arrays or arrays[0].ndim == 0:
        return None
    return np.concatenate(arrays, c.axis(c.int_("axis"), arrays[0].ndim))


def _axes_of(c: Ctx, a: list[Array | None]) -> list[int] | None:
    if len(a) > 1 and a[1] is not None:
        return [int(x) for x in a[1].ravel()] if numeric(a[1]) else None
    found = c.ints("axes", None)
    return None if found is None else list(found)


@rule("Squeeze")
def _squeeze(c: Ctx, a: list[Array | None]) -> Array | None:
    x = a[0]
    assert x is not None
    axes = _axes_of(c, a)
    dims = c.axis_list(axes, x.ndim) if axes is not None else [d for d, n in enumerate(x.shape) if n == 1]
    if any(x.shape[d] != 1 for d in dims):
        c.bad(f"only axes of extent 1 can be removed, not {axes} of {list(x.shape)}")
    return x.reshape([n for d, n in enumerate(x.shape) if d not in dims])


@rule("Unsqueeze")
def _unsqueeze(c: Ctx, a: list[Array | None]) -> Array | None:
    x, axes = a[0], _axes_of(c, a)
    assert x is not None
    if axes is None:
        return None
    dims = c.axis_list(axes, x.ndim + len(axes))
    rest = iter(x.shape)
    return x.reshape([1 if d in dims else next(rest) for d in range(x.ndim + len(axes))])


@rule("Reshape", "Flatten")
def _reshape(c: Ctx, a: list[Array | None]) -> Array | None:
    x = a[0]
    assert x is not None
    if c.op == "Flatten" or len(a) < 2 or a[1] is None or not numeric(a[1]):
        return None
    target = [int(n) for n in a[1].ravel()]
    if not c.flag("allowzero", 0):
        target = [x.shape[d] if n == 0 and d < x.ndim else n for d, n in enumerate(target)]
    if x.size == 0 or 0 in target:
        return None
    return x.reshape(target)


@rule("Transpose")
def _transpose(c: Ctx, a: list[Array | None]) -> Array | None:
    x = a[0]
    assert x is not None
    perm = c.ints("perm", None)
    return np.transpose(x, perm if perm is None else c.axis_list(perm, x.ndim))


@rule("Gather")
def _gather(c: Ctx, a: list[Array | None]) -> Array | None:
    x, index = a
    if x is None or index is None or not numeric(index) or x.ndim == 0:
        return None
    axis = c.axis(c.int_("axis", 0), x.ndim)
    n = x.shape[axis]
    if index.size and (index.min() < -n or index.max() >= n):
        c.bad(f"an index is out of range for extent {n}")
    return np.take(x, index, axis)


@rule("Slice")
def _slice(c: Ctx, a: list[Array | None]) -> Array | None:
    x = a[0]
    assert x is not None
    if c.version < 10 or not numeric(*a[1:]) or len(a) < 3:
        return None
    starts, ends = (np.asarray(v).ravel() for v in a[1:3])
    axes = np.arange(len(starts)) if len(a) < 4 or a[3] is None else a[3].ravel()
    steps = np.ones(len(starts), np.int64) if len(a) < 5 or a[4] is None else a[4].ravel()
    cut = [slice(None)] * x.ndim
    for s, e, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = int(e)
        d = c.axis(int(axis), x.ndim)
        if step < 0 and stop < -x.shape[d]:
            cut[d] = slice(int(s), None, int(step))
        else:
            cut[d] = slice(int(s), stop, int(step))
    return x[tuple(cut)]


@rule("Split")
def _split(c: Ctx, a: list[Array | None]) -> list[Array] | None:
    x = a[0]
    assert x is not None
    axis = c.axis(c.int_("axis", 0), x.ndim)
    sizes = a[1] if len(a) > 1 else None
    given = [int(n) for n in sizes.ravel()] if sizes is not None and numeric(sizes) else c.ints("split", None)
    if given is None:
        each = math.ceil(x.shape[axis] / max(c.outputs, 1))
        given = [min(each, x.shape[axis] - n * each) for n in range(c.outputs)]
    if sum(given) != x.shape[axis] or any(g < 0 for g in given):
        return None
    return np.split(x, np.cumsum(given)[:-1], axis)


@rule("ConstantOfShape")
def _constant_of_shape(c: Ctx, a: list[Array | None]) -> Array | None:
    shape = a[0]
    if shape is None or not numeric(shape) or np.prod(shape.astype(float)) > MAX_FOLDED or np.any(shape < 0):
        return None
    fill = c.array("value")
    return np.full(tuple(int(n) for n in shape), np.float32(0) if fill is None else fill.ravel()[0])


@rule("Expand")
def _expand(c: Ctx, a: list[Array | None]) -> Array | None:
    x, shape = a
    if x is None or shape is None or not numeric(shape) or np.prod(shape.astype(float)) > MAX_FOLDED:
        return None
    wide = np.broadcast_shapes(x.shape, tuple(int(n) for n in shape))
    return np.ascontiguousarray(np.broadcast_to(x, wide))


@rule("Tile")
def _tile(c: Ctx, a: list[Array | None]) -> Array | None:
    x, repeats = a
    if x is None or repeats is None or not numeric(repeats) or x.size * np.prod(repeats.astype(float)) > MAX_FOLDED:
        return None
    return np.tile(x, tuple(int(n) for n in repeats))


@rule("Range")
def _range(c: Ctx, a: list[Array | None]) -> Array | None:
    if any(x is None for x in a) or not numeric(*a):
        return None
    start, limit, delta = (x.ravel()[0] for x in a if x is not None)
    if delta == 0:
        c.bad("its step is 0")
    count = max(math.ceil((float(limit) - float(start)) / float(delta)), 0)
    if count > MAX_FOLDED:
        return None
    return (start + np.arange(count) * delta).astype(a[0].dtype)  # type: ignore[union-attr]


@rule("ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin")
def _reduce(c: Ctx, a: list[Array | None]) -> Array | None:
    x = a[0]
    assert x is not None
    axes = _axes_of(c, a)
    if not integral(x) or x.dtype == bool or x.size == 0 or (axes is not None and not axes) or x.ndim > 1:
        return None
    if x.ndim == 1 and axes is not None:
        c.axis_list(axes, 1)
    f: dict[str, Callable[[Any, Any], Any]] = {
        "ReduceProd": operator.mul, "ReduceSum": operator.add, "ReduceMax": maximum, "ReduceMin": minimum,
    }  # fmt: skip
    total: Any = None
    for e in x.ravel():
        e = _unwrap(e)
        total = e if total is None else f[c.op](total, e)
    plain = total.const if isinstance(total, IntExpr) else total
    result = np.empty([1] * x.ndim if c.flag("keepdims", 1) else [], object)
    result[...] = total if plain is None else plain
    return result if plain is None else result.astype(c.tensor(0).dtype.numpy)
