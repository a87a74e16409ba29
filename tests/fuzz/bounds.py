"""The reference of a random program and how far compiled code may be from it, element by element.

The values are the interpreter's own. Beside each tensor runs an array of bounds, found as running error analysis does:

    an operator      the greatest change of its result while its operands stay within their bounds, plus what its own
                     rounding in the computing type can add (`vecmath.ULP` for elementary functions)
    a sum            the sum of its terms' bounds, plus n * eps * sum |terms|
    a comparison, a conversion to an integer, argmax ...: 0 when no value within the bounds decides otherwise, else infinity
    a stored result  the rounded results of both ends; readers may also see the value before it was rounded (fusion)

So integers and booleans are exact, copies of floats too, and no bound is tuned. Infinity means that the element is not
determined (`x < y` of nearly equal floats); how many are is counted, so that a test says how much it saw.

Source: running error analysis, Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from dlc.codegen.vecmath import ULP
from dlc.ir.domain import Domain, add_domains, conjuncts, effective_where, result_domain
from dlc.ir.dtype import BF16, F16, F32, F64, I64, DType
from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.evaluate import (
    _DISCONTINUOUS,
    Block,
    Fold,
    Reader,
    _settled,
    accumulator_types,
    apply_op,
    convert,
    domain_mask,
    evaluate_step,
    extents_of,
    round_to,
    rounded,
)
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise
from dlc.ir.extent import IntExpr, Value, atoms, evaluate
from dlc.ir.interpret import bind_symbols, check_symbol
from dlc.ir.program import Bind, If, Library, Loop, Program, Region, Stmt, tensor_types
from dlc.ir.scalar import SCALAR_OPS

Array: TypeAlias = np.ndarray[Any, Any]
Held: TypeAlias = tuple[Array, Array, DType]

_EXACT = frozenset(
    "neg abs sign floor ceil trunc round min max minnum maxnum copysign nextafter rem_trunc rem_floor select"
    " isnan isinf signbit eq ne lt le gt ge".split()
)
_EPS = {"f64": 2.0**-52, "f32": 2.0**-23}
_TINY = {"f64": 2.0**-1074, "f32": 2.0**-149}
_LARGEST = {"f64": float(np.finfo(np.float64).max), "f32": float(np.finfo(np.float32).max)}
_OWN_ULP_F64 = 4.0  # the C library's functions and NumPy's, both at hand here


class Undetermined(Exception):
    """What the program does (an extent, a branch) hangs on a value that rounding decides."""


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
        error = ulps * (_EPS[kind] * size + _TINY[kind])
    error = np.where(np.isfinite(size), error, 0.0)
    # beyond the computing type's range the reference is still finite, compiled code is not (or the other way)
    return np.where(np.isfinite(size) & (size > _LARGEST[kind] * (1 - 1e-6)), np.inf, error)


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
            error = np.where(np.isnan(parts[-1][0]), np.inf if op == "signbit" else 2 * np.abs(value), error)
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


# --- one step --------------------------------------------------------------------------------------------------------


def step_bounds(
    step: Einsum,
    env: Mapping[str, Array],
    errors: Mapping[str, Array],
    fixed: Mapping[str, int],
    domains: Mapping[str, Domain],
) -> tuple[list[Array], list[Array], list[Array]]:
    """(results, bounds of what is stored, bounds for readers) of an Einsum."""
    results = [np.asarray(r) for r in evaluate_step(step, env, fixed, domains)]
    reader = Reader(env, fixed, domains, step.loc)
    bounds = Bounds(reader, errors)
    where = effective_where(step, domains)
    free, reduced = extents_of(step.ranks, fixed), extents_of(step.reduced, fixed)
    if step.write is not None:
        error = _scatter_bound(step, bounds, where, free, reduced, results[0])
        return results, [error], [error]
    if 0 in free:
        zeros = [np.zeros(r.shape) for r in results]
        return results, zeros, zeros
    values, found = _folded(step, bounds, where, free, reduced)
    kept: Array | None = None
    partial = result_domain(step, where)
    block = Block(tuple(r.name for r in step.ranks), (0,) * len(free), free, fixed)
    if partial is not None:
        kept = domain_mask(reader, partial.conjuncts, block)
    tight, wide = [], []
    for value, error, dtype, result in zip(values, found, step.dtypes, results, strict=True):
        t, w = stored_error(np.broadcast_to(value, free), np.broadcast_to(error, free), dtype)
        near = round_to(np.broadcast_to(value, free), dtype)
        drift = gap(hold64(near), hold64(result))
        if kept is not None:  # outside the domain nothing is defined
            t, w, drift = (np.where(kept, x, np.inf) for x in (t, w, drift))
        tight.append(t + drift)
        wide.append(w + drift)
    return results, tight, wide


def hold64(a: Array) -> Array:
    return np.asarray(a).astype(np.float64)


def _terms(step: Einsum, bounds: Bounds, where: Expr | None, block: Block) -> tuple[list[Held], Array | None, Array]:
    """Each component's values over the space, where they exist, and where that is not sure."""
    reader, unsure = bounds.reader, np.zeros((), bool)
    active: Array | None = None
    for p in conjuncts(where):
        holds, error, _ = bounds.of(p, block, active)
        unsure = unsure | (error > 0)
        active = holds if active is None else active & holds
    del reader
    return [bounds.of(e, block, active) for e in step.exprs], active, unsure


def _folded(
    step: Einsum, bounds: Bounds, where: Expr | None, free: tuple[int, ...], reduced: tuple[int, ...]
) -> tuple[list[Array], list[Array]]:
    """Values before the last rounding, and their bounds, per component."""
    accumulators = accumulator_types(step)
    if 0 in reduced:
        assert step.reduce is not None
        identity = Fold(step.reduce.op, accumulators).identity()
        return list(identity), [np.zeros(()) for _ in identity]
    names = tuple(r.name for r in step.all_ranks)
    block = Block(names, (0,) * len(names), free + reduced, bounds.reader.fixed)
    parts, active, unsure = _terms(step, bounds, where, block)
    if step.reduce is None:
        return [a for a, _, _ in parts], [np.where(unsure, np.inf, e) for _, e, _ in parts]
    fold = Fold(step.reduce.op, accumulators)
    values, errors = [], []
    for (a, e, source), dtype, identity in zip(parts, accumulators, fold.identity(), strict=True):
        same = source == dtype or source.is_float and dtype.is_float
        wide = a if same else convert(a, source, dtype, "sat")
        full, error = np.broadcast_to(wide, block.shape), np.broadcast_to(e, block.shape)
        if active is not None:
            full, error = np.where(active, full, identity), np.where(active, error, 0.0)
        values.append(full)
        errors.append(np.where(unsure, np.inf, error))
    axes = tuple(range(len(free), len(free) + len(reduced)))
    folded = list(fold.over(values, len(free)))
    return folded, _fold_errors(step.reduce.op, accumulators, values, errors, folded, axes)


def _fold_errors(
    op: str,
    types: Sequence[DType],
    values: list[Array],
    errors: list[Array],
    folded: list[Array],
    axes: tuple[int, ...],
) -> list[Array]:
    x, e, dtype = values[0], errors[0], types[0]
    count = float(np.prod([x.shape[k] for k in axes]))
    unsure = np.isinf(e).any(axis=axes)
    with np.errstate(all="ignore"):
        if op.startswith("arg"):
            return _arg_errors(op, x, e, folded, axes, unsure, np.isinf(errors[1]).any(axis=axes))
        if not dtype.is_float:
            return [np.where(np.isinf(f).any(axis=axes), np.inf, 0.0) for f in errors]
        kind = computing(dtype)
        eps, tiny, most = _EPS[kind], _TINY[kind], _LARGEST[kind]
        finite = np.where(np.isfinite(x), x, 0.0)
        size = np.abs(finite)
        match op:
            case "sum":
                total = size.sum(axis=axes)
                error = e.sum(axis=axes) + count * (eps * total + tiny)
                error = np.where(total + e.sum(axis=axes) > most * (1 - 1e-6), np.inf, error)
            case "prod":
                high = np.prod(np.where(np.isfinite(x), size + e, 1.0), axis=axes)
                error = (
                    high * (1 + count * eps) - np.prod(np.where(np.isfinite(x), size, 1.0), axis=axes) + count * tiny
                )
                grown = np.prod(np.maximum(size + e, 1.0), axis=axes) * np.maximum(1.0, high)
                shrunk = np.prod(np.where(size > 0, np.minimum(size, 1.0), 1.0), axis=axes)
                lost = (shrunk < tiny / eps) & (np.prod(np.maximum(size, 1.0), axis=axes) > 1.0)
                error = np.where((grown > most) | lost | np.isnan(error), np.inf, error)
                # among the infinite ones a small factor may have become zero on the way
                error = np.where(~np.isfinite(x).all(axis=axes) & (shrunk < tiny / eps), np.inf, error)
            case "max" | "min":
                turn = np.maximum if op == "max" else np.minimum
                ends = [turn.reduce(x + d * np.where(np.isinf(e), 0, e), axis=axes) for d in (-1, 1)]
                error = np.maximum(gap(ends[0], folded[0]), gap(ends[1], folded[0]))
            case "welford":
                return _welford_errors(values, errors, folded, axes, eps, unsure)
            case _:
                raise NotImplementedError(op)
        if op in ("sum", "prod"):  # an infinity or NaN among the terms decides, whatever the order
            special = ~np.isfinite(x).all(axis=axes)
            grow = (size * (size < np.inf)).sum(axis=axes) > most * (1 - 1e-6)
            error = np.where(
                special & ~grow & (e.sum(axis=axes) < np.inf), np.where(np.isinf(error), error, 0.0), error
            )
    return [np.where(unsure, np.inf, error)]


def _arg_errors(
    op: str, x: Array, e: Array, folded: list[Array], axes: tuple[int, ...], unsure: Array, index_unsure: Array
) -> list[Array]:
    best = np.expand_dims(folded[0], axes)
    value = np.zeros(folded[0].shape)
    open_ = unsure | index_unsure
    if x.dtype.kind == "f":
        signs = 1.0 if op.startswith("argmax") else -1.0
        y, top = signs * x, signs * best
        least = np.max(np.where(y == top, y - e, -np.inf), axis=axes, keepdims=True)
        near = (y + e >= least) & ~np.isnan(x)
        contested = (near & (e > 0)).any(axis=axes) & (near.sum(axis=axes) > 1) & ~np.isnan(folded[0])
        open_ = open_ | contested
        value = np.max(np.where(near, e, 0.0), axis=axes)
    return [np.where(unsure, np.inf, value), np.where(open_, np.inf, 0.0)]


def _welford_errors(
    values: list[Array], errors: list[Array], folded: list[Array], axes: tuple[int, ...], eps: float, unsure: Array
) -> list[Array]:
    (n, mean, m2), count = values, float(np.prod([values[0].shape[k] for k in axes]))
    big = np.max(np.abs(mean), axis=axes)
    weight = np.maximum(n.sum(axis=axes), 1.0)
    e = np.max(errors[1], axis=axes)
    mean_error = e + 4 * (count + 4) * eps * (big + 1e-30)
    spread_ = 2 * big
    m2_error = (
        np.sum(errors[2], axis=axes)
        + weight * (4 * spread_ * mean_error + 4 * mean_error**2)
        + 8 * (count + 4) * eps * (np.abs(folded[2]) + weight * big * big * eps * 16)
        + count * eps * np.sum(np.abs(m2), axis=axes)
    )
    strange = unsure | ~np.isfinite(np.stack(folded)).all(axis=0) | np.isinf(errors[2]).any(axis=axes)
    strange = strange | np.isinf(errors[0]).any(axis=axes)
    return [np.where(strange, np.inf, v) for v in (np.sum(errors[0], axis=axes), mean_error, m2_error)]


def _scatter_bound(
    step: Einsum, bounds: Bounds, where: Expr | None, free: tuple[int, ...], reduced: tuple[int, ...], result: Array
) -> Array:
    """Write by write, in iteration order."""
    write = step.write
    assert write is not None
    error = np.array(bounds.errors[write.onto], np.float64).copy()
    if 0 in free:
        return error
    values, found = _folded(step, bounds, where, free, reduced)
    names = tuple(r.name for r in step.ranks)
    block = Block(names, (0,) * len(free), free, bounds.reader.fixed)
    bound = {r.name for r in step.reduced}
    active: Array | None = None
    for p in conjuncts(where):
        if not bound.isdisjoint(p.variables):
            continue
        holds, unsure, _ = bounds.of(p, block, active)
        if np.any(unsure):
            return np.full(error.shape, np.inf)
        active = holds if active is None else active & holds
    indices = []
    for i in write.index:
        if np.any(bounds._index_error(i, block, active)):
            return np.full(error.shape, np.inf)
        indices.append(np.broadcast_to(bounds.reader.index(i, block, active), free))
    value, extra = (np.broadcast_to(x[0], free) for x in (values, found))
    exists = np.broadcast_to(np.asarray(True) if active is None else active, free)
    dtype = step.dtype
    if dtype.is_float:
        tight, extra = stored_error(value, extra, dtype)
        del tight
    eps = {"f16": 2.0**-10, "bf16": 2.0**-7}.get(dtype.name, _EPS[computing(dtype)]) if dtype.is_float else 0.0
    total = np.abs(hold64(bounds.reader.env[write.onto]))
    with np.errstate(all="ignore"):
        for at in np.ndindex(*free):
            if not exists[at]:
                continue
            place = tuple(int(i[at]) for i in indices)
            if any(not 0 <= p < n for p, n in zip(place, error.shape, strict=True)):
                continue
            if write.op == "set":
                error[place] = extra[at]
            elif not dtype.is_float:
                error[place] = max(error[place], extra[at])
            elif write.op == "sum":
                total[place] += abs(float(value[at]))
                error[place] += extra[at] + 2 * eps * total[place] + 1e-45
            elif write.op == "prod":
                v = abs(float(value[at]))
                error[place] = error[place] * (v + extra[at]) + total[place] * extra[at]
                total[place] = max(total[place] * v, 0.0)
                error[place] += 2 * eps * total[place] + 2.0**-24 * (dtype == F16) + 1e-38
            else:
                error[place] = max(error[place], extra[at])
    special = ~np.isfinite(hold64(result))
    error = np.where(np.isnan(error), np.inf, error)
    if dtype.is_float:
        limit = {"f16": 65504.0, "f64": _LARGEST["f64"]}.get(dtype.name, 3.38e38)
        error = np.where(~special & (total + error > limit * 0.999), np.inf, error)
        if write.op in ("sum", "prod"):
            error = np.where(special, np.where(np.isfinite(total), np.inf, 0.0), error)
    return error


# --- programs --------------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """What a program computes: results, and a bound for each element (f64, infinity where not determined)."""

    results: tuple[Array, ...]
    bounds: tuple[Array, ...]


@dataclass
class _Run:
    program: Program
    env: dict[str, Array]
    errors: dict[str, Array]
    stored: dict[str, Array]
    symbols: dict[str, int]
    domains: dict[str, Domain] = field(default_factory=dict)

    def write(self, name: str, value: Array, error: Array, stored: Array | None = None) -> None:
        self.env[name], self.errors[name] = value, np.broadcast_to(error, value.shape)
        self.stored[name] = np.broadcast_to(error if stored is None else stored, value.shape)

    def copy(self, to: str, source: str) -> None:
        self.env[to], self.errors[to], self.stored[to] = self.env[source], self.errors[source], self.stored[source]

    def region(self, region: Region) -> None:
        for stmt in region.body:
            self.statement(stmt)

    def statement(self, stmt: Stmt) -> None:
        match stmt:
            case Einsum() | Scan():
                self.step(stmt)
            case Bind(symbol, tensor):
                value = int(self.sure(tensor).reshape(-1)[0])
                check_symbol(symbol, value, stmt.loc)
                self.symbols["#" + symbol.name] = value
            case If():
                region = stmt.then if bool(self.sure(stmt.cond).reshape(-1)[0]) else stmt.orelse
                self.region(region)
                for out, inner in zip(stmt.outs, region.yields, strict=True):
                    self.copy(out, inner)
            case Loop():
                self.loop(stmt)
            case Library():
                raise NotImplementedError(stmt.op)
            case _:
                raise NotImplementedError(type(stmt).__name__)

    def sure(self, name: str) -> Array:
        if np.any(self.errors[name]):
            raise Undetermined(name)
        return self.env[name]

    def step(self, step: Step) -> None:
        if isinstance(step, Scan):
            self.scan(step)
            return
        done = step_bounds(step, self.env, self.errors, self.symbols, self.domains)
        for name, value, tight, wide in zip(step.outs, *done, strict=True):
            self.write(name, value, wide, tight)
        add_domains(step, self.domains)

    def scan(self, scan: Scan) -> None:
        for carry in scan.carries:
            self.copy(carry.name, carry.init)
        rows: dict[str, list[tuple[Array, ...]]] = {outer: [] for outer, _ in scan.stacked}
        count = max(0, int(evaluate(scan.rank.extent, self.symbols)))
        for t in range(count):
            self.symbols[scan.rank.name] = t
            for inner in scan.body:
                self.step(inner)
            for outer, name in scan.stacked:
                rows[outer].append((self.env[name], self.errors[name], self.stored[name]))
            following = [(self.env[y], self.errors[y], self.stored[y]) for y in scan.yields]
            for carry, (v, e, s) in zip(scan.carries, following, strict=True):
                self.write(carry.name, v, e, s)
        self.symbols.pop(scan.rank.name, None)
        for final, carry in zip(scan.finals, scan.carries, strict=True):
            self.copy(final, carry.name)
        for outer, _ in scan.stacked:
            self.stack(outer, rows[outer])
        add_domains(scan, self.domains)

    def stack(self, name: str, rows: list[tuple[Array, ...]]) -> None:
        if rows:
            value, error, stored = (np.stack([r[k] for r in rows]) for k in range(3))
            self.write(name, value, error, stored)
            return
        of = tensor_types(self.program)[name]
        shape = (0, *(max(0, int(evaluate(e, self.symbols))) for e in of.shape[1:]))
        self.write(name, np.zeros(shape, of.dtype.numpy), np.zeros(shape))

    def loop(self, loop: Loop) -> None:
        limit = None if loop.limit is None else int(self.sure(loop.limit).reshape(-1)[0])
        going = loop.cond is None or bool(self.sure(loop.cond).reshape(-1)[0])
        carried = [(self.env[i], self.errors[i], self.stored[i]) for _, i in loop.carries]
        rows: list[list[tuple[Array, ...]]] = [[] for _ in loop.collected]
        done = 0
        while going and (limit is None or done < limit):
            self.write(loop.index, np.asarray(done, np.int64), np.zeros(()))
            for (name, _), (v, e, s) in zip(loop.carries, carried, strict=True):
                self.write(name, v, e, s)
            self.region(loop.body)
            yields = list(loop.body.yields)
            if loop.cond is not None:
                going = bool(self.sure(yields.pop(0)).reshape(-1)[0])
            made = [(self.env[y], self.errors[y], self.stored[y]) for y in yields]
            carried = made[: len(carried)]
            for row, m in zip(rows, made[len(carried) :], strict=True):
                row.append(m)
            done += 1
        if loop.count is not None:
            check_symbol(loop.count, done, loop.loc)
            self.symbols["#" + loop.count.name] = done
        for name, (v, e, s) in zip(loop.finals, carried, strict=True):
            self.write(name, v, e, s)
        for name, row in zip(loop.collected, rows, strict=True):
            self.stack(name, row)


def reference(program: Program, inputs: Sequence[Array]) -> Reference:
    """Interpret `program` with bounds.

    Raises:
        Undetermined: the program's course hangs on rounding; such a case shows nothing.
    """
    arrays = {p.name: np.asarray(a) for p, a in zip(program.params, inputs, strict=True)}
    symbols = bind_symbols(program.params, arrays, program.symbols)
    env = dict(arrays) | {c.name: np.asarray(program.data[c.name]) for c in program.consts}
    errors = {n: np.zeros(a.shape) for n, a in env.items()}
    run = _Run(program, env, errors, dict(errors), symbols)
    run.region(program.body)
    return Reference(tuple(run.env[r] for r in program.results), tuple(run.stored[r] for r in program.results))


def difference(got: Array, want: Array, bound: Array) -> tuple[Array, Array]:
    """(where `got` is outside of its bound, |got - want|)."""
    if want.dtype.kind in "iub":
        wrong = got != want
        return wrong & (bound < np.inf), np.where(wrong, 1.0, 0.0)
    apart = gap(hold64(got), hold64(want))
    return ~(apart <= bound), apart


__all__ = ["F64", "Reference", "Undetermined", "difference", "reference", "replace"]
