"""How far compiled results may be from interpreted ones: running error analysis, per Einsum and through a cascade.

Write u for the unit roundoff of a type (2^-24 for f32), gamma_n = n*u / (1 - n*u) (Higham, Accuracy and Stability of Numerical
Algorithms, 2nd ed., section 3.1). A tracked value is (v, e, p): v as the interpreter holds it, e a bound on the difference that
came in with the operands, p a bound on the difference that the last operation itself adds. The rules, for operands with total
errors a = e + p:

    x + y, x - y        e = a_x + a_y
    x * y               e = |x| a_y + |y| a_x + a_x a_y
    x / y               e = (a_x + |x/y| a_y) / (|y| - a_y), infinite when y may be zero; u|x/y| more where a_y > 0, for the
                        compiled code may then multiply by the reciprocal of y
    monotone f          e = max(|f(x + a) - f(x)|, |f(x - a) - f(x)|): exact, no linearisation
    sin, cos            e = a (Lipschitz with constant 1)
    x < y ...           uncertain where |x - y| <= a_x + a_y; what is selected by an uncertain condition may be either operand
    floor ... to int    the largest step between f(x - a) and f(x + a)

and p = u*|v| + eta, with eta the least subnormal, for correctly rounded operations; the others have `ULPS` ulps, 2u|v| each.
Types narrower than f32 are computed in f32 and rounded at the end. A value beyond the type's range has infinite error: f64
holds it, the compiled code may not.

A sum of n terms in any order, with accumulators of type A: sum(e_i) + gamma_n * sum(|t_i| + e_i). With fused multiply-add a
product's rounding is left out, which only makes the difference smaller. For a sum of products of k exactly known factors this
is gamma_(n + k) times sum(|a||b|), which is computed as a contraction of absolute values. A product over n terms:
prod(|t_i| + e_i) * (1 + gamma_n) - prod(|t_i|). Maxima: max(e_i).

Processors that sum products of bf16 pairs take numbers below 2^-126 for 0, operands and results alike. A product loses at most
2^-126 times its other factor, so n 2^-126 (max|a| + max|b| + 1) is added where both factors have bf16 values.

At the end both sides round to the declared type. When the last operation is correctly rounded in that type and its operands are
exact, both sides round the same real number: the bound is 0, so that a wrong rounding does not hide. Otherwise it is e + 2u|v|.
In f64 the interpreter's own rounding is as large as the compiled code's: e is doubled.

Between the Einsums of a cascade `bounded_cascade` carries the bounds along; for types narrower than f32 they grow by one rounding,
because a fused kernel may keep an intermediate unrounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from dlc.ir.contract import contraction, factors
from dlc.ir.domain import Domain, add_domains, conjuncts, effective_where
from dlc.ir.dtype import BF16, F32, F64, DType
from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.evaluate import (
    Block,
    Reader,
    accumulator_types,
    apply_op,
    blocks,
    convert,
    domain_mask,
    evaluate_step,
    extents_of,
    rounded,
    widens,
)
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise
from dlc.ir.extent import evaluate
from dlc.ir.fineness import greatest, least_step, unit_roundoff
from dlc.ir.interpret import Inputs, bind_symbols, run_cascade, with_hash
from dlc.ir.program import Cascade
from dlc.ir.scalar import SCALAR_OPS

Array: TypeAlias = np.ndarray[Any, Any]

_SMALLEST_NORMAL = 2.0**-126

ULPS: dict[str, float] = {
    **dict.fromkeys(
        ("exp", "exp2", "expm1", "log", "log2", "log1p", "erf", "sigmoid", "sin", "cos", "rsqrt", "pow"), 5.0
    ),
    **dict.fromkeys(
        ("tan", "tanh", "asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh", "atan2", "lgamma"), 8.0
    ),
}
"""Units in the last place by which a function may be wrong; all other operations are correctly rounded."""

_MONOTONE = frozenset(
    "sqrt rsqrt exp exp2 expm1 log log2 log1p tanh erf sigmoid asin acos atan sinh asinh acosh atanh neg".split()
)
_LIPSCHITZ = frozenset("abs sin cos min max minnum maxnum copysign".split())
_STEPS = frozenset("floor ceil trunc round sign".split())
_COMPARE = frozenset("eq ne lt le gt ge".split())


def gamma(n: float, u: float) -> float:
    """n*u / (1 - n*u), infinite when the model says nothing."""
    return n * u / (1 - n * u) if n * u < 1 else float("inf")


def computing_type(dtype: DType) -> DType:
    """The type in which expressions over `dtype` are compiled."""
    return F32 if dtype.is_float and dtype.bits < 32 else dtype


@dataclass(frozen=True, slots=True)
class Tracked:
    """A held value with bounds: `carried` from operands, `own` from the last operation (`Tracked` rules above)."""

    value: Array
    dtype: DType
    carried: Array
    own: Array

    @property
    def error(self) -> Array:
        """Bound when the value is used further."""
        return self.carried + self.own


_NONE = np.zeros(())


def _tracked(value: Array, dtype: DType, carried: Array, ulps: float = 1.0, exact: bool = False) -> Tracked:
    kind = computing_type(dtype)
    if not dtype.is_float:
        return Tracked(value, dtype, np.asarray(carried, np.float64), _NONE)
    own = _NONE if exact else ulps * unit_roundoff(kind) * np.abs(value) + least_step(kind)
    out_of_range = np.isfinite(value) & (np.abs(value) >= greatest(kind))
    carried = np.where(np.isnan(carried), np.inf, carried)
    own = np.where(np.isfinite(own), own, 0.0)
    return Tracked(value, dtype, np.where(out_of_range, np.inf, carried), own)


@dataclass(slots=True)
class _Tracker:
    """Evaluates expressions with their bounds over a block."""

    reader: Reader
    errors: Reader
    known: Mapping[str, Array]

    def run(self, e: Expr, block: Block, active: Array | None) -> Tracked:
        with np.errstate(all="ignore"):
            return self._run(e, block, active)

    def _run(self, e: Expr, block: Block, active: Array | None) -> Tracked:
        match e:
            case Const() | Index():
                value, dtype = self.reader.values(e, block, active)
                return Tracked(value, dtype, _NONE, _NONE)
            case Access(tensor, _, default):
                value, dtype = self.reader.values(e, block, active)
                if tensor not in self.known and default is None:
                    return Tracked(value, dtype, _NONE, _NONE)
                carried = self._access_error(e, block, active)
                return Tracked(value, dtype, carried, _NONE)
            case Apply(op, args):
                return self._apply(op, [self._run(a, block, active) for a in args])
            case Cast(dtype, arg, mode):
                return self._cast(self._run(arg, block, active), dtype, mode)
            case Bitcast(dtype):
                inner = self._run(e.arg, block, active)
                value, _ = self.reader.values(e, block, active)
                return Tracked(value, dtype, np.where(inner.error > 0, np.inf, 0.0), _NONE)
            case Piecewise(cases, otherwise):
                return self._piecewise(cases, otherwise, block, active)

    def _access_error(self, e: Access, block: Block, active: Array | None) -> Array:
        if e.tensor not in self.known:
            base: Array = _NONE
        else:
            base = self.errors.values(
                replace(e, default=None if e.default is None else Const(0.0, F64)), block, active
            )[0]
        if e.default is None:
            return base
        return base + self._run(e.default, block, active).error

    def _piecewise(
        self, cases: tuple[tuple[Expr, Expr], ...], otherwise: Expr, block: Block, active: Array | None
    ) -> Tracked:
        left, doubt = active, np.asarray(0.0)
        pieces: list[tuple[Array | None, Tracked]] = []
        for guard, value in cases:
            condition = self._run(guard, block, left)
            doubt = doubt + condition.error
            here = condition.value if left is None else left & condition.value
            left = ~condition.value if left is None else left & ~condition.value
            pieces.append((here, self._run(value, block, here)))
        last = self._run(otherwise, block, left)
        value_, carried, own = last.value, last.carried, last.own
        for chosen, piece in reversed(pieces):
            value_ = np.where(np.asarray(chosen), piece.value, value_)
            carried, own = (
                np.where(np.asarray(chosen), piece.carried, carried),
                np.where(np.asarray(chosen), piece.own, own),
            )
        return Tracked(value_, last.dtype, np.where(doubt > 0, np.inf, carried), own)

    def _cast(self, a: Tracked, dtype: DType, mode: str) -> Tracked:
        value = convert(rounded(a.value, a.dtype) if not dtype.is_float else a.value, a.dtype, dtype, mode)
        if dtype.is_float:
            if widens(a.dtype, dtype):
                return Tracked(value, dtype, a.error, _NONE)
            u = unit_roundoff(dtype)
            own = np.where(a.carried > 0, 2.0, 1.0) * u * np.abs(value) + least_step(dtype)
            # both sides round: of exact operands the same number results
            exact = a.error == 0
            return Tracked(value, dtype, np.where(exact, 0.0, a.error + own), np.where(exact, 0.0, _NONE))
        if a.dtype.is_float:
            low, high = (convert(a.value + s * a.error, a.dtype, dtype, mode).astype(np.float64) for s in (-1, 1))
            return Tracked(value, dtype, np.where(a.error > 0, np.abs(high - low), 0.0), _NONE)
        return Tracked(value, dtype, np.where(a.error > 0, np.inf, 0.0), _NONE)

    def _apply(self, op: str, args: list[Tracked]) -> Tracked:
        entry = SCALAR_OPS[op]
        operands = [(rounded(a.value, a.dtype) if op in _STEPS | _COMPARE else a.value, a.dtype) for a in args]
        value, dtype = apply_op(op, operands)
        errors = [a.error for a in args]
        if entry.typing == "test":
            return Tracked(value, dtype, np.where(np.isinf(errors[0]), 1.0, 0.0), _NONE)
        if op in _COMPARE:
            x, y = (a.value.astype(np.float64) for a in args)
            doubt = (errors[0] + errors[1] > 0) & (np.abs(x - y) <= errors[0] + errors[1])
            return Tracked(value, dtype, np.where(doubt, 1.0, 0.0), _NONE)
        if entry.typing == "select":
            return self._select(value, dtype, args)
        if not dtype.is_float:
            return self._integer(op, value, dtype, args, errors)
        carried = self._carried(op, args, errors, value)
        exact = op in ("neg", "abs", "min", "max", "minnum", "maxnum", "copysign") or op in _STEPS
        if exact and all(not np.any(a.own) or np.ndim(a.own) == 0 for a in args):
            exact = True
        return (
            _tracked(value, dtype, carried, ULPS.get(op, 1.0), exact)
            if op not in ULPS
            else self._special(op, value, dtype, carried)
        )

    def _special(self, op: str, value: Array, dtype: DType, carried: Array) -> Tracked:
        """A function that is not correctly rounded: its own error is a difference even of exact operands."""
        made = _tracked(value, dtype, carried, 2 * ULPS[op])
        own = made.own + (
            2 * ULPS[op] * unit_roundoff(computing_type(dtype)) if op in ("sin", "cos", "lgamma") else 0.0
        )
        return Tracked(made.value, dtype, made.carried + own, _NONE)

    def _select(self, value: Array, dtype: DType, args: list[Tracked]) -> Tracked:
        condition, x, y = args
        chosen = condition.value
        carried, own = np.where(chosen, x.carried, y.carried), np.where(chosen, x.own, y.own)
        apart = np.abs(x.value.astype(np.float64) - y.value.astype(np.float64))
        other = np.where(np.isnan(apart), np.inf, apart) + np.maximum(x.error, y.error)
        return Tracked(value, dtype, np.where(condition.error > 0, other, carried), own)

    def _integer(self, op: str, value: Array, dtype: DType, args: list[Tracked], errors: list[Array]) -> Tracked:
        total = sum(errors, np.zeros(()))
        if not np.any(total > 0):
            return Tracked(value, dtype, _NONE, _NONE)
        if op in ("add", "sub", "min", "max", "neg", "abs"):
            return Tracked(value, dtype, total, _NONE)
        if dtype.kind == "b":
            return Tracked(value, dtype, np.minimum(total, 1.0), _NONE)
        return Tracked(value, dtype, np.where(total > 0, np.inf, 0.0), _NONE)

    def _carried(self, op: str, args: list[Tracked], errors: list[Array], result: Array) -> Array:
        values = [a.value for a in args]
        match op:
            case "add" | "sub":
                return errors[0] + errors[1]
            case "mul":
                cross = _times(np.abs(values[0]), errors[1]) + _times(np.abs(values[1]), errors[0])
                return cross + _times(errors[0], errors[1])
            case "div":
                room = np.abs(values[1]) - errors[1]
                wide = (errors[0] + _times(np.abs(result), errors[1])) / room
                wide = wide + np.where(errors[1] > 0, unit_roundoff(computing_type(args[0].dtype)) * np.abs(result), 0.0)
                return np.where(errors[0] + errors[1] == 0, 0.0, np.where(room > 0, wide, np.inf))
            case _ if op in _LIPSCHITZ:
                return errors[0] + (errors[1] if len(errors) > 1 else 0.0)
            case _ if op in _MONOTONE or op in _STEPS:
                return _spread(op, args[0], result)
            case "cosh":
                return _spread("sinh", args[0], np.sinh(values[0]))
            case "tan":
                slope = 1 + np.square(np.abs(result) + errors[0])
                return slope * errors[0]
            case "pow":
                return self._power(values, errors, result)
            case _:
                total = sum(errors, np.zeros(()))
                return np.where(total > 0, np.inf, 0.0)

    def _power(self, values: list[Array], errors: list[Array], result: Array) -> Array:
        base, exponent = values
        corners = []
        for s in (-1, 1):
            for t in (-1, 1):
                corners.append(np.abs(np.power(np.maximum(base + s * errors[0], 0), exponent + t * errors[1]) - result))
        wide = np.max(np.stack(np.broadcast_arrays(*corners)), axis=0)
        total = errors[0] + errors[1]
        sure = base - errors[0] > 0
        return np.where(total == 0, 0.0, np.where(sure & np.isfinite(wide), wide, np.inf))


def _times(a: Array, b: Array) -> Array:
    """a*b where 0 * inf is 0."""
    return np.where((a == 0) | (b == 0), 0.0, a * b)


def _spread(op: str, a: Tracked, result: Array) -> Array:
    """The largest change of a monotone function within the operand's bound."""
    if not np.any(a.error > 0):
        return np.zeros(())
    ends = []
    for s in (-1, 1):
        x = a.value + s * a.error
        if op in ("sqrt", "rsqrt", "log", "log2"):
            x = np.maximum(x, 0)
        if op in ("asin", "acos", "atanh"):
            x = np.clip(x, -1, 1)
        if op == "log1p":
            x = np.maximum(x, -1)
        if op == "acosh":
            x = np.maximum(x, 1)
        ends.append(np.abs(apply_op(op, [(np.asarray(x), a.dtype)])[0] - result))
    wide = np.maximum(*ends)
    both = np.isnan(a.value) | (np.isinf(a.value))
    wide = np.where(np.isnan(wide) & ~both, np.inf, np.where(both, 0.0, wide))
    return np.where(a.error > 0, wide, 0.0)


# --- per step --------------------------------------------------------------------------------------------------------


def bound(
    step: Einsum,
    env: Mapping[str, Array],
    symbols: Mapping[str, int],
    domains: Mapping[str, Domain] | None = None,
    errors: Mapping[str, Array] | None = None,
) -> tuple[Array, ...]:
    """Bounds on |compiled - interpreted| for each element of each result, f64, of the results' shapes.

    Args:
        env, symbols, domains: as for `eval_einsum`.
        errors: bounds on the tensors read, by name; those missing are exact.
    """
    fixed = with_hash(symbols)
    with np.errstate(all="ignore"):
        return _bound(step, env, fixed, domains or {}, errors or {})


def _bound(
    step: Einsum,
    env: Mapping[str, Array],
    fixed: Mapping[str, int],
    domains: Mapping[str, Domain],
    errors: Mapping[str, Array],
) -> tuple[Array, ...]:
    fast = _contraction_bound(step, env, fixed, domains, errors)
    if fast is not None:
        return (fast,)
    known = {n: e for n, e in errors.items() if np.any(e > 0)}
    reader = Reader(env, fixed, domains, step.loc)
    zero = {n: known[n] if n in known else np.zeros(np.shape(a)) for n, a in env.items() if n in step.reads}
    for_predicates = {n: a for n, a in env.items() if n not in zero}
    tracker = _Tracker(reader, Reader({**for_predicates, **zero}, fixed, {}, step.loc), known)
    where = effective_where(step, domains)
    free, reduced = extents_of(step.ranks, fixed), extents_of(step.reduced, fixed)
    if step.write is not None:
        return (_scatter_bound(step, tracker, where, free, reduced, errors),)
    outs = [np.zeros(free) for _ in step.dtypes]
    if 0 in free or 0 in reduced:
        return tuple(outs)
    for place, tracked in _folded(step, tracker, where, free, reduced):
        for out, t, dtype in zip(outs, tracked, step.dtypes, strict=True):
            out[place] = np.broadcast_to(_final(t, dtype), out[place].shape)
    return tuple(outs)


def _final(t: Tracked, dtype: DType) -> Array:
    """The bound after both sides round to the declared type."""
    if not dtype.is_float:
        return t.carried
    twice = 2.0 if dtype == F64 else 1.0
    same = t.dtype == dtype and computing_type(dtype) == dtype
    inside = t.carried if same else t.error
    u = unit_roundoff(dtype)
    size = np.where(np.isfinite(t.value), np.abs(t.value), 0.0)
    rounding = 2 * u * size + u * inside + least_step(dtype)
    return np.where(inside > 0, twice * inside + rounding, 0.0)


def _folded(
    step: Einsum, tracker: _Tracker, where: Expr | None, free: tuple[int, ...], reduced: tuple[int, ...]
) -> Any:
    """(place among the free ranks, tracked results); a reduction is folded whole, blocks split the free ranks only."""
    names = tuple(r.name for r in step.all_ranks)
    inner = int(np.prod(reduced, dtype=np.int64)) if reduced else 1
    for lo, hi in blocks(free, max(1, (1 << 18) // max(inner, 1))):
        block = Block(names, (*lo, *([0] * len(reduced))), (*hi, *reduced), tracker.reader.fixed)
        active = domain_mask(tracker.reader, conjuncts(where), block)
        tracked = [tracker.run(e, block, active) for e in step.exprs]
        place = tuple(slice(l, h) for l, h in zip(lo, hi, strict=True))
        if step.reduce is not None:
            tracked = _reduce(step, tracked, block, active, len(free))
            lost = flushed(step, tracker.reader.env, float(inner))
            tracked = [replace(t, carried=t.carried + lost) for t in tracked] if lost else tracked
        yield place, tracked


def _reduce(step: Einsum, parts: list[Tracked], block: Block, active: Array | None, free: int) -> list[Tracked]:
    assert step.reduce is not None
    op, accumulators = step.reduce.op, accumulator_types(step)
    axes = tuple(range(free, len(block.shape)))
    n = float(np.prod(block.shape[free:], dtype=np.float64))

    def spread(a: Array, fill: float) -> Array:
        full = np.broadcast_to(np.asarray(a, np.float64), block.shape)
        return full if active is None else np.where(active, full, fill)

    first = parts[0]
    kind = computing_type(accumulators[0])
    u = unit_roundoff(kind)
    error = spread(first.error, 0.0)
    size = np.abs(spread(np.where(np.isfinite(first.value), first.value, 0.0), 0.0))
    match op:
        case "sum":
            total = error.sum(axis=axes) + gamma(n, u) * (size + error).sum(axis=axes)
            value = spread(first.value, 0.0).sum(axis=axes)
            big = size.sum(axis=axes) >= greatest(kind)
            return [Tracked(value, accumulators[0], np.where(big, np.inf, total), _NONE)]
        case "prod":
            ones = np.abs(spread(first.value, 1.0))
            plain = ones.prod(axis=axes)
            wide = (ones + error).prod(axis=axes) * (1 + gamma(n, u)) - plain
            wide = np.where(np.isnan(wide), np.inf, wide + n * least_step(kind))
            return [Tracked(plain, accumulators[0], wide if kind.is_float else error.sum(axis=axes), _NONE)]
        case "max" | "min" | "and" | "or" | "xor":
            return [Tracked(size.max(axis=axes), accumulators[0], error.max(axis=axes), _NONE)]
        case "welford":
            scale = size if len(parts) < 2 else np.abs(spread(parts[1].value, 0.0))
            top = scale.max(axis=axes)
            inputs = sum((spread(p.error, 0.0) for p in parts), np.zeros(())).sum(axis=axes)
            mean = gamma(4 * n, u) * top + inputs
            squares = gamma(8 * n, u) * n * (np.square(top) + 1e-30) * 4 + 4 * top * inputs
            values = [np.zeros(()), top, n * np.square(top)]
            return [
                Tracked(v, t, e, _NONE)
                for v, t, e in zip(values, accumulators, (np.zeros(()), mean, squares), strict=True)
            ]
        case _:
            doubt = np.where(error.max(axis=axes) > 0, np.inf, 0.0)
            return [
                Tracked(size.max(axis=axes), accumulators[0], error.max(axis=axes), _NONE),
                Tracked(np.zeros(()), accumulators[1], doubt, _NONE),
            ]


def _contraction_bound(
    step: Einsum,
    env: Mapping[str, Array],
    fixed: Mapping[str, int],
    domains: Mapping[str, Domain],
    errors: Mapping[str, Array],
) -> Array | None:
    """gamma_(n + k) * sum(|a||b|...) for a sum of products of exactly known factors, by the interpreter's contraction."""
    if step.reduce is None or step.reduce.op != "sum" or step.write is not None or not step.dtype.is_float:
        return None
    parts = factors(step.expr)
    if len(parts) < 2 or not all(_exactly_known(p, errors) for p in parts):
        return None
    product: Expr = Apply("abs", (parts[0],))
    for p in parts[1:]:
        product = Apply("mul", (product, Apply("abs", (p,))))
    absolute = replace(step, exprs=(product,))
    reader = Reader(env, fixed, domains, step.loc)
    free, reduced = extents_of(step.ranks, fixed), extents_of(step.reduced, fixed)
    size = contraction(absolute, reader, effective_where(step, domains), free, reduced)
    if size is None:
        return None
    kind = computing_type(accumulator_types(step)[0])
    n = float(np.prod(reduced, dtype=np.float64)) + len(parts)
    inside = gamma(n, unit_roundoff(kind)) * size + n * least_step(kind) + flushed(step, env, n)
    inside = np.where(size >= greatest(kind), np.inf, inside)
    return _final(Tracked(size, kind, inside, _NONE), step.dtype)


def flushed(step: Einsum, env: Mapping[str, Array], n: float) -> float:
    """What a sum of `n` products of bf16 numbers may lose because subnormals count as 0; infinite where one meets an infinity."""
    if (
        step.reduce is None
        or step.reduce.op != "sum"
        or accumulator_types(step)[0] not in (F32, BF16)
        or len(step.exprs) != 1
    ):
        return 0.0
    reads = [p.arg if isinstance(p, Cast) else p for p in factors(step.expr)]
    arrays = [np.asarray(env[p.tensor]) for p in reads if isinstance(p, Access) and p.tensor in env]
    if len(arrays) != 2 or len(reads) != 2 or not all(map(_has_bf16_values, arrays)):
        return 0.0
    sizes = [np.abs(a.astype(np.float64)) for a in arrays]
    small = [bool(((s > 0) & (s < _SMALLEST_NORMAL)).any()) for s in sizes]
    if (small[0] and np.isinf(sizes[1]).any()) or (small[1] and np.isinf(sizes[0]).any()):
        return np.inf
    return n * _SMALLEST_NORMAL * (1 + sum(float(s[np.isfinite(s)].max(initial=0.0)) for s in sizes))


def _has_bf16_values(a: Array) -> bool:
    if a.dtype == BF16.numpy:
        return True
    return a.dtype == np.float32 and not (np.ascontiguousarray(a).view(np.uint32) & 0xFFFF).any()


def _exactly_known(e: Expr, errors: Mapping[str, Array]) -> bool:
    match e:
        case Const():
            return True
        case Access(tensor, _, default):
            return (tensor not in errors or not np.any(errors[tensor] > 0)) and (
                default is None or isinstance(default, Const)
            )
        case Cast(_, Access() as inner):
            return _exactly_known(inner, errors)
        case _:
            return False


def _scatter_bound(
    step: Einsum,
    tracker: _Tracker,
    where: Expr | None,
    free: tuple[int, ...],
    reduced: tuple[int, ...],
    errors: Mapping[str, Array],
) -> Array:
    write, names = step.write, tuple(r.name for r in step.ranks)
    assert write is not None
    onto = tracker.reader.env[write.onto]
    base = np.abs(onto.astype(np.float64)) if step.dtype.is_float else np.zeros(onto.shape)
    carried = np.array(np.broadcast_to(errors.get(write.onto, np.zeros(())), onto.shape), np.float64)
    if 0 in free or onto.size == 0:
        return carried
    bound_names = {r.name for r in step.reduced}
    count, size = np.zeros(onto.shape), base.copy()
    u = unit_roundoff(computing_type(step.dtype))
    for place, tracked in _folded(step, tracker, where, free, reduced):
        lo = tuple(s.start for s in place)
        hi = tuple(s.stop for s in place)
        block = Block(names, lo, hi, tracker.reader.fixed)
        keep = domain_mask(tracker.reader, [p for p in conjuncts(where) if bound_names.isdisjoint(p.variables)], block)
        mask = np.broadcast_to(np.asarray(True) if keep is None else keep, block.shape)
        indices = [np.broadcast_to(tracker.reader.index(i, block, keep), block.shape) for i in write.index]
        for at, extent in zip(indices, onto.shape, strict=True):
            mask = mask & (at >= 0) & (at < extent)
        points = tuple(at[mask] for at in indices)
        error = np.broadcast_to(np.asarray(_final(tracked[0], step.dtype), np.float64), block.shape)[mask]
        value = np.abs(np.broadcast_to(tracked[0].value.astype(np.float64), block.shape)[mask])
        np.add.at(count, points, 1.0)
        if write.op in ("sum", "prod"):
            np.add.at(size, points, value)
            np.add.at(carried, points, error)
        else:
            np.maximum.at(carried, points, error)
    if write.op == "sum" and step.dtype.is_float:
        n = count + 1
        carried = carried + np.where(count > 0, n * u / np.maximum(1 - n * u, 0.5) * (size + carried), 0.0)
    if write.op == "prod" and step.dtype.is_float:
        result = np.abs(evaluate_step(step, tracker.reader.env, tracker.reader.fixed, {})[0].astype(np.float64))
        carried = np.where(carried > 0, np.inf, 0.0) + np.where(count > 0, 2 * (count + 1) * u * result, 0.0)
    final = 2 * unit_roundoff(step.dtype) * size if step.dtype.is_float else np.zeros(())
    return np.where(carried > 0, carried + final, 0.0)


# --- through a cascade -----------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Bounded:
    """What `bounded_cascade` found: results with their bounds, in order."""

    values: tuple[Array, ...]
    bounds: tuple[Array, ...]


def bounded_cascade(cascade: Cascade, inputs: Inputs, symbols: Mapping[str, int] | None = None) -> Bounded:
    """Interpret `cascade` and bound how far compiled results may be from the interpreted ones."""
    seen: dict[str, Array] = {}
    results = run_cascade(cascade, inputs, symbols, observe=seen.__setitem__)
    named = inputs if isinstance(inputs, Mapping) else {p.name: a for p, a in zip(cascade.params, inputs, strict=True)}
    arrays = {p.name: np.asarray(named[p.name]) for p in cascade.params}
    state = _State({**arrays}, bind_symbols(cascade.params, arrays, cascade.symbols, symbols))
    for step in cascade.steps:
        state.step(step)
    return Bounded(results, tuple(state.bound_of(r) for r in cascade.results))


@dataclass(slots=True)
class _State:
    env: dict[str, Array]
    fixed: dict[str, int]
    errors: dict[str, Array] = field(default_factory=dict)
    finals: dict[str, Array] = field(default_factory=dict)
    domains: dict[str, Domain] = field(default_factory=dict)

    def bound_of(self, name: str) -> Array:
        return self.finals.get(name, np.zeros(self.env[name].shape))

    def step(self, step: Step) -> None:
        if isinstance(step, Scan):
            self.scan(step)
            return
        bounds = bound(step, self.env, self.fixed, self.domains, self.errors)
        values = evaluate_step(step, self.env, self.fixed, self.domains)
        for name, value, b in zip(step.outs, values, bounds, strict=True):
            self.env[name], self.finals[name] = value, b
            self.errors[name] = self._unrounded(value, b)
        add_domains(step, self.domains)

    @staticmethod
    def _unrounded(value: Array, b: Array) -> Array:
        """A fused kernel may keep more bits than the tensor's type has, unless it is a coded type."""
        if value.dtype.kind in "iub" or value.dtype.names is not None:
            return b
        size = np.abs(value.astype(np.float64))
        narrow = value.dtype.itemsize < 4
        extra = np.where(np.isfinite(size), size, 0.0) * (2.0**-8 if value.dtype.name == "bfloat16" else 2.0**-11)
        return b + extra if narrow else b

    def scan(self, scan: Scan) -> None:
        for carry in scan.carries:
            self.env[carry.name] = self.env[carry.init]
            self.errors[carry.name] = self.errors.get(carry.init, np.zeros(self.env[carry.init].shape))
            self.finals[carry.name] = self.bound_of(carry.init)
        rows: dict[str, list[tuple[Array, Array]]] = {outer: [] for outer, _ in scan.stacked}
        count = max(0, int(evaluate(scan.rank.extent, self.fixed)))
        for t in range(count):
            self.fixed[scan.rank.name] = t
            for step in scan.body:
                self.step(step)
            for outer, inner in scan.stacked:
                rows[outer].append((self.env[inner], self.bound_of(inner)))
            following = [(self.env[y], self.bound_of(y)) for y in scan.yields]
            for carry, (value, b) in zip(scan.carries, following, strict=True):
                self.env[carry.name], self.finals[carry.name] = value, b
                self.errors[carry.name] = self._unrounded(value, b)
        self.fixed.pop(scan.rank.name, None)
        for final, carry in zip(scan.finals, scan.carries, strict=True):
            self.env[final], self.finals[final] = self.env[carry.name], self.bound_of(carry.name)
            self.errors[final] = self.errors[carry.name]
        for outer, _ in scan.stacked:
            if rows[outer]:
                self.env[outer] = np.stack([v for v, _ in rows[outer]])
                self.errors[outer] = self.finals[outer] = np.stack([b for _, b in rows[outer]])
            else:
                self._no_rows(scan, outer)
        add_domains(scan, self.domains)

    def _no_rows(self, scan: Scan, outer: str) -> None:
        from dlc.ir.interpret import _Run

        run = _Run(dict(self.env), dict(self.fixed))
        run.step(scan)
        self.env[outer] = run.env[outer]
        self.errors[outer] = self.finals[outer] = np.zeros(run.env[outer].shape)


def agrees(actual: Array, expected: Array, limit: Array) -> Array:
    """Per element: equal (NaN to NaN, infinity to itself), or apart by no more than `limit`."""
    if actual.dtype.kind in "iub" and expected.dtype.kind in "iub":
        with np.errstate(all="ignore"):
            apart = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        return np.asarray((actual == expected) | (apart <= limit) & (limit > 0))
    a, b = actual.astype(np.float64), expected.astype(np.float64)
    with np.errstate(all="ignore"):
        close = np.abs(a - b) <= limit
    return np.asarray((a == b) | (np.isnan(a) & np.isnan(b)) | close | np.isinf(limit))


def worst(actual: Sequence[Array], bounded: Bounded) -> tuple[int, tuple[int, ...]] | None:
    """(result, index) of the first element that does not agree, None when all do."""
    for k, (a, e, b) in enumerate(zip(actual, bounded.values, bounded.bounds, strict=True)):
        wrong = ~agrees(np.asarray(a), e, b)
        if wrong.any():
            return k, tuple(int(i) for i in np.argwhere(wrong)[0])
    return None
