"""What one Einsum means, computed with NumPy: scalar expressions over blocks of the iteration space.

Floats are held in f64 and integers in their own type. Before an operation that is not continuous (a comparison, a rounding, a
conversion to an integer, a look at the bits) a float operand is rounded to its type, because there a difference in the last bit
would not stay small. Narrowing casts round; so does the end of the Einsum, to the declared type, once.

A block's values are arrays with one axis per rank, of length 1 along ranks that the expression does not mention.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from dlc.ir.codes import as_stored, coded, computing_type, decode, encode, next_after
from dlc.ir.domain import Domain, conjuncts, effective_where, result_domain
from dlc.ir.dtype import BOOL, F16, I64, DType, from_numpy
from dlc.ir.einsum import Einsum, Rank
from dlc.ir.errors import IndexOutOfRange, ScatterOutOfRange
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise
from dlc.ir.extent import IntExpr, Var, evaluate, substitute
from dlc.ir.loc import UNKNOWN, Loc
from dlc.ir.monoid import MONOIDS
from dlc.ir.scalar import SCALAR_OPS, cast_array

Array: TypeAlias = np.ndarray[Any, Any]
BLOCK_POINTS = 1 << 18
"""Points of the iteration space evaluated at a time: a few MB per temporary, so that they stay in cache."""

_DISCONTINUOUS = frozenset(
    "eq ne lt le gt ge floor ceil trunc round sign isnan isinf signbit nextafter div_trunc div_floor rem_trunc rem_floor".split()
)


# --- number types ----------------------------------------------------------------------------------------------------


def held(dtype: DType) -> np.dtype[Any]:
    """NumPy type in which values of `dtype` are computed."""
    if dtype.is_float:
        return np.dtype(np.float64)
    return computing_type(dtype) if dtype.is_coded else dtype.numpy


def hold(a: Array, dtype: DType) -> Array:
    """A stored array in its computing type."""
    if dtype.is_coded:
        return decode(as_stored(a), dtype)
    return a if a.dtype == held(dtype) else a.astype(held(dtype))


def round_to(a: Array, dtype: DType) -> Array:
    """Held values as a stored array of `dtype`: floats rounded once to nearest even, integers modulo 2^bits."""
    a = np.asarray(a)
    if dtype.is_coded:
        return coded(encode(_wrap_small(a, dtype), dtype, saturate=False), dtype)
    with np.errstate(all="ignore"):
        if dtype.is_float:
            if dtype.numpy.kind != "f" and a.dtype == np.float64:  # ml_dtypes goes through f32: make that step harmless
                return _round_to_odd(a).astype(dtype.numpy)
            return a.astype(dtype.numpy)
        return a.astype(dtype.numpy)


def _round_to_odd(a: Array) -> Array:
    """f64 to f32, truncated with the last bit set when inexact: rounding that to fewer bits rounds `a` itself correctly."""
    near = a.astype(np.float32)
    away = np.abs(near.astype(np.float64)) > np.abs(a)
    near = np.where(away, np.nextafter(near, np.float32(0)), near)
    inexact = near.astype(np.float64) != a
    bits = np.ascontiguousarray(near).view(np.uint32)
    odd = np.where(inexact & ~np.isnan(a), bits | np.uint32(1), bits)
    return odd.view(np.float32).reshape(a.shape)


def _wrap_small(a: Array, dtype: DType) -> Array:
    if not (dtype.is_int and dtype.is_coded):
        return a
    low = a & ((1 << dtype.bits) - 1)
    return low if dtype.kind == "u" else (low ^ (1 << (dtype.bits - 1))) - (1 << (dtype.bits - 1))


def rounded(a: Array, dtype: DType) -> Array:
    """Held values after rounding to `dtype`, held again."""
    if dtype.name == "f64" or not dtype.is_float:
        return a
    return hold(round_to(a, dtype), dtype)


# --- blocks ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Block:
    """Part of an iteration space: the interval of each rank, and values of symbols and loop variables."""

    names: tuple[str, ...]
    lo: tuple[int, ...]
    hi: tuple[int, ...]
    fixed: Mapping[str, int]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(h - l for l, h in zip(self.lo, self.hi, strict=True))

    def iota(self, axis: int) -> Array:
        """The values of a rank, along its axis."""
        shape = [1] * len(self.names)
        shape[axis] = self.hi[axis] - self.lo[axis]
        return np.arange(self.lo[axis], self.hi[axis], dtype=np.int64).reshape(shape)


def blocks(
    extents: Sequence[int], limit: int | None = None, chunks: Sequence[int] | None = None
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Intervals (lo, hi) that tile the space in row-major order, each of at most `limit` points; `chunks` fixes their sizes."""
    if chunks is None:
        left, sizes = limit or BLOCK_POINTS, []
        for extent in reversed(extents):
            size = max(1, min(extent, left))
            sizes.append(size)
            left = max(1, left // size)
        chunks = sizes[::-1]
    starts = [range(0, extent, chunk) for extent, chunk in zip(extents, chunks, strict=True)]
    for lo in itertools.product(*starts):
        yield lo, tuple(min(l + c, e) for l, c, e in zip(lo, chunks, extents, strict=True))


Affine: TypeAlias = tuple[int, dict[str, int]]


@dataclass(slots=True)
class Reader:
    """Evaluates the scalar expressions of one step, over blocks.

    Attributes:
        env: stored tensors by name.
        domains: domains of the partial tensors among them.
        fixed: values of symbols (with `#`) and loop variables.
    """

    env: Mapping[str, Array]
    fixed: Mapping[str, int]
    domains: Mapping[str, Domain] = field(default_factory=dict)
    loc: Loc = UNKNOWN
    _affine: dict[Access, tuple[Affine, ...] | None] = field(default_factory=dict)

    def values(self, e: Expr, block: Block, active: Array | None = None) -> tuple[Array, DType]:
        """Held values of `e`; reads happen only where `active` (None: everywhere)."""
        match e:
            case Const(number, dtype):
                return rounded(np.asarray(number, held(dtype)), dtype), dtype
            case Index(expr):
                return self.index(expr, block, active), I64
            case Access():
                return self.access(e, block, active)
            case Apply(op, args):
                return self.apply(op, args, block, active)
            case Cast(dtype, arg, mode):
                a, source = self.values(arg, block, active)
                return convert(_settled(arg, a, source) if not dtype.is_float else a, source, dtype, mode), dtype
            case Bitcast(dtype, arg):
                a, source = self.values(arg, block, active)
                return hold(np.asarray(round_to(a, source), order="C").view(dtype.numpy).reshape(a.shape), dtype), dtype
            case Piecewise(cases, otherwise):
                return self.piecewise(cases, otherwise, block, active)

    def apply(self, op: str, args: tuple[Expr, ...], block: Block, active: Array | None) -> tuple[Array, DType]:
        pairs = [self.values(a, block, active) for a in args]
        return apply_op(
            op, [(_settled(x, a, t) if op in _DISCONTINUOUS else a, t) for x, (a, t) in zip(args, pairs, strict=True)]
        )

    def piecewise(
        self, cases: tuple[tuple[Expr, Expr], ...], otherwise: Expr, block: Block, active: Array | None
    ) -> tuple[Array, DType]:
        left: Array | None = active  # points no earlier guard took; None is all
        pieces: list[tuple[Array | None, Array, DType]] = []
        for guard, value in (*cases, (None, otherwise)):
            here = left
            if guard is not None:
                holds = self.values(guard, block, left)[0]
                here = holds if left is None else left & holds
                left = ~holds if left is None else left & ~holds
            a, dtype = self.values(value, block, here)
            pieces.append((here, a, dtype))
        result, dtype = pieces[-1][1], pieces[-1][2]
        for here, a, _ in reversed(pieces[:-1]):
            result = np.where(here, a, result) if here is not None else a
        return result, dtype

    def index(self, e: IntExpr, block: Block, active: Array | None = None) -> Array:
        """Values of an integer expression, int64."""
        names: dict[str, Any] = dict(self.fixed)
        for axis, name in enumerate(block.names):
            names[name] = block.iota(axis)
        if not block.names:
            names = {n: np.asarray(v, np.int64) for n, v in names.items()}

        def read(inner: Expr) -> Array:
            return self.values(inner, block, active)[0].astype(np.int64)

        return np.asarray(evaluate(e, names, read), np.int64)

    # --- reads ---

    def access(self, e: Access, block: Block, active: Array | None) -> tuple[Array, DType]:
        source = self.env[e.tensor]
        dtype = from_numpy(source.dtype)
        default = None if e.default is None else self.values(e.default, block, active)[0]
        fast = self._view(e, source, block, default)
        if fast is not None:
            result = hold(fast, dtype)
            return (result, dtype) if default is None else (self._outside_domain(e, result, default, block), dtype)
        indices, outside = [], None
        for dimension, (i, extent) in enumerate(zip(e.index, source.shape, strict=True)):
            at = self.index(i, block, active)
            wrong = (at < 0) | (at >= extent)
            if wrong.any():
                if default is None:
                    self._check(e, at, wrong, dimension, extent, active)
                outside = wrong if outside is None else outside | wrong
                at = np.clip(at, 0, max(extent - 1, 0))
            indices.append(at)
        if 0 in source.shape:
            shape = np.broadcast_shapes(*(i.shape for i in indices))
            result = np.zeros(shape, held(dtype))
        else:
            result = hold(source[tuple(indices)], dtype)
        if default is not None:
            if outside is not None:
                result = np.where(outside, default, result)
            result = self._outside_domain(e, result, default, block)
        return result, dtype

    def _outside_domain(self, e: Access, result: Array, default: Array, block: Block) -> Array:
        if e.tensor not in self.domains:
            return result
        for predicate in self.domains[e.tensor].at(e):
            # where the index is outside the tensor the predicate may read outside too: it is not looked at there
            inside = np.asarray(True)
            for i, extent in zip(e.index, self.env[e.tensor].shape, strict=True):
                at = self.index(i, block)
                inside = inside & (at >= 0) & (at < extent)
            result = np.where(inside & self.values(predicate, block, inside)[0], result, default)
        return result

    def _check(self, e: Access, at: Array, wrong: Array, dimension: int, extent: int, active: Array | None) -> None:
        bad = wrong if active is None else wrong & active
        if bad.any():
            where = np.broadcast_to(at, bad.shape)[bad]
            raise IndexOutOfRange(self.loc, access=str(e), index=int(where[0]), dimension=dimension, extent=extent)

    def _affine_of(self, e: Access) -> tuple[Affine, ...] | None:
        if e not in self._affine:
            parts = tuple(affine(i, self.fixed) for i in e.index)
            self._affine[e] = None if any(p is None for p in parts) else parts  # type: ignore[assignment]
        return self._affine[e]

    def _view(self, e: Access, source: Array, block: Block, default: Array | None) -> Array | None:
        """The read as a strided view, when indices are affine and in bounds (or padded by a constant default)."""
        parts = self._affine_of(e)
        if parts is None or (default is not None and default.ndim and default.size != 1) or source.size == 0:
            return None
        position = {name: axis for axis, name in enumerate(block.names)}
        lows, highs = [], []
        for offset, slopes in parts:
            low = high = offset
            for name, slope in slopes.items():
                axis = position[name]
                first, last = block.lo[axis] * slope, (block.hi[axis] - 1) * slope
                low, high = low + min(first, last), high + max(first, last)
            lows.append(low)
            highs.append(high)
        if any(l < 0 or h >= n for l, h, n in zip(lows, highs, source.shape, strict=True)):
            if default is None or e.tensor in self.domains:
                return None
            padded = _padded(source, lows, highs, default)
            if padded is None:
                return None
            source = padded
            parts = tuple((offset - low, slopes) for (offset, slopes), low in zip(parts, lows, strict=True))
        strides, shape, start = [0] * len(block.names), [1] * len(block.names), [0] * source.ndim
        for dimension, (offset, slopes) in enumerate(parts):
            start[dimension] = offset
            for name, slope in slopes.items():
                axis = position[name]
                start[dimension] += block.lo[axis] * slope
                strides[axis] += slope * source.strides[dimension]
                shape[axis] = block.hi[axis] - block.lo[axis]
        corner = source[tuple(slice(s, s + 1) for s in start)] if start else source
        return np.lib.stride_tricks.as_strided(corner, shape, strides, writeable=False)


def _padded(source: Array, lows: list[int], highs: list[int], default: Array) -> Array | None:
    """The box [low, high] of `source`, with `default` outside of it; None when the box is unreasonably large."""
    shape = [h - l + 1 for l, h in zip(lows, highs, strict=True)]
    if np.prod(shape, dtype=np.float64) > 8 * source.size + 65536:
        return None
    value = round_to(default, from_numpy(source.dtype)).reshape(())
    box = np.full(shape, value, source.dtype)
    inner, outer = [], []
    for l, h, n in zip(lows, highs, source.shape, strict=True):
        first, last = max(l, 0), min(h + 1, n)
        if first >= last:
            return box
        inner.append(slice(first, last))
        outer.append(slice(first - l, last - l))
    box[tuple(outer)] = source[tuple(inner)]
    return box


def affine(e: IntExpr, fixed: Mapping[str, int]) -> Affine | None:
    """`e` as offset and slope per rank, symbols and loop variables taken from `fixed`; None when it is not affine."""
    e = substitute(e, fixed) if fixed else e
    offset, slopes = 0, {}
    for monomial, coefficient in e.terms:
        if not monomial:
            offset = coefficient
        elif len(monomial) == 1 and isinstance(monomial[0], Var):
            slopes[monomial[0].name] = coefficient
        else:
            return None
    return offset, slopes


def _settled(e: Expr, a: Array, dtype: DType) -> Array:
    """Rounded to its type, unless it is exact in it already."""
    return a if isinstance(e, (Access, Const, Index)) else rounded(a, dtype)


def widens(source: DType, dtype: DType) -> bool:
    """Whether every number of the float type `source` is one of the float type `dtype`."""
    if not source.is_float or dtype.is_coded:
        return source == dtype
    return source == dtype or (dtype.bits > source.bits and not (source.is_coded and dtype == F16))


def convert(a: Array, source: DType, dtype: DType, mode: str) -> Array:
    """Held values converted between types; to a wider float nothing is rounded."""
    if dtype.is_float:
        as_float = a.astype(np.float64)
        if source == dtype:
            return as_float
        if dtype.is_coded:
            return decode(coded(encode(as_float, dtype, saturate=mode == "sat"), dtype), dtype)
        return as_float if widens(source, dtype) else rounded(as_float, dtype)
    if dtype.kind == "c":
        return decode(coded(encode(a, dtype), dtype), dtype)
    if dtype.is_coded:
        whole = cast_array(a, np.dtype(np.int64), mode)
        if source.is_float and mode == "sat":
            whole = np.clip(whole, dtype.lowest, dtype.highest)
        return _wrap_small(whole, dtype).astype(held(dtype))
    with np.errstate(all="ignore"):
        return cast_array(a, dtype.numpy, mode)


def apply_op(op: str, args: Sequence[tuple[Array, DType]]) -> tuple[Array, DType]:
    """A scalar operator on held values."""
    entry = SCALAR_OPS[op]
    arrays, dtype = [a for a, _ in args], args[1][1] if entry.typing == "select" else args[0][1]
    with np.errstate(all="ignore"):
        if op == "nextafter":  # the neighbour in the declared type, not in f64
            stored = [round_to(a, dtype) for a in arrays]
            if dtype.is_coded:
                return next_after(stored[0], stored[1], dtype), dtype
            return hold(round_to(np.asarray(entry.meaning(*stored)), dtype), dtype), dtype
        result = np.asarray(entry.meaning(*arrays))
    if entry.typing in ("compare", "test"):
        return result, BOOL
    if not dtype.is_float:
        result = _wrap_small(result, dtype).astype(held(dtype), copy=False)
    return result, dtype


def apply_scalars(e: Expr, leaves: Mapping[str, tuple[Array, DType]]) -> tuple[Array, DType]:
    """A combine expression (`dlc.ir.monoid`) over arrays for its rank-0 accesses."""
    match e:
        case Access(tensor):
            return leaves[tensor]
        case Const(number, dtype):
            return np.asarray(number, held(dtype)), dtype
        case Apply(op, args):
            return apply_op(op, [apply_scalars(a, leaves) for a in args])
        case _:
            raise TypeError(f"{e} in a monoid")


# --- reductions ------------------------------------------------------------------------------------------------------

_UFUNCS: dict[str, Any] = {
    "sum": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@dataclass(frozen=True, slots=True)
class Fold:
    """A monoid at given accumulator types, over held arrays."""

    name: str
    dtypes: tuple[DType, ...]

    def identity(self) -> tuple[Array, ...]:
        return tuple(
            np.asarray(c.value, held(t))
            for c, t in zip(MONOIDS[self.name].identity(self.dtypes), self.dtypes, strict=True)
        )

    def combine(self, a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, ...]:
        if self.name in _UFUNCS:
            with np.errstate(all="ignore"):
                return (_wrap_small(_UFUNCS[self.name](a[0], b[0]), self.dtypes[0]),)
        leaves = {f"a{i}": (x, t) for i, (x, t) in enumerate(zip(a, self.dtypes, strict=True))}
        leaves |= {f"b{i}": (x, t) for i, (x, t) in enumerate(zip(b, self.dtypes, strict=True))}
        return tuple(apply_scalars(e, leaves)[0] for e in MONOIDS[self.name].combine())

    def over(self, parts: Sequence[Array], free: int) -> tuple[Array, ...]:
        """Fold all axes after the first `free`."""
        axes = tuple(range(free, parts[0].ndim))
        if not axes:
            return tuple(parts)
        if self.name in _UFUNCS:
            kept = held(self.dtypes[0])
            with np.errstate(all="ignore"):
                return (_wrap_small(_UFUNCS[self.name].reduce(parts[0], axis=axes, dtype=kept), self.dtypes[0]),)
        if self.name.startswith("arg"):
            return self._arg(parts, axes)
        flat = [p.reshape(*p.shape[:free], -1) for p in parts]
        return tuple(p[..., 0] for p in self._tree(flat))

    def _arg(self, parts: Sequence[Array], axes: tuple[int, ...]) -> tuple[Array, ...]:
        """Best value, NaN before all, and the first (or last) index that has it."""
        value, at = parts
        best = (np.maximum if self.name.startswith("argmax") else np.minimum).reduce(value, axis=axes, keepdims=True)
        equal = value == best
        if value.dtype.kind == "f":
            equal |= np.isnan(value) & np.isnan(best)
        pick = np.maximum if self.name.endswith("_last") else np.minimum
        index = pick.reduce(np.where(equal, at, self.identity()[1]), axis=axes)
        return np.squeeze(best, axis=axes), index

    def _tree(self, parts: list[Array]) -> list[Array]:
        while parts[0].shape[-1] > 1:
            n = parts[0].shape[-1]
            half = n // 2
            folded = self.combine([p[..., :half] for p in parts], [p[..., half : 2 * half] for p in parts])
            parts = [np.concatenate([f, p[..., 2 * half :]], axis=-1) for f, p in zip(folded, parts, strict=True)]
        return parts


# --- the step --------------------------------------------------------------------------------------------------------


def extents_of(ranks: Sequence[Rank], fixed: Mapping[str, int]) -> tuple[int, ...]:
    """Extents of ranks as numbers (a negative one is empty)."""
    return tuple(max(0, int(evaluate(r.extent, fixed))) for r in ranks)


def evaluate_step(
    step: Einsum, env: Mapping[str, Array], fixed: Mapping[str, int], domains: Mapping[str, Domain]
) -> tuple[Array, ...]:
    """The stored results of an Einsum."""
    from dlc.ir.contract import contraction

    reader = Reader(env, fixed, domains, step.loc)
    where = effective_where(step, domains)
    free, reduced = extents_of(step.ranks, fixed), extents_of(step.reduced, fixed)
    if step.write is not None:
        return scatter(step, reader, where, free, reduced)
    outs = [np.zeros(free, t.numpy) for t in step.dtypes]
    if 0 in free:
        return tuple(outs)
    fast = contraction(step, reader, where, free, reduced)
    if fast is not None:
        return (round_to(fast, step.dtype),)
    partial = result_domain(step, where)
    for lo, hi, values, dtypes in reduced_blocks(step, reader, where, free, reduced):
        place = tuple(slice(l, h) for l, h in zip(lo, hi, strict=True))
        shape = tuple(h - l for l, h in zip(lo, hi, strict=True))
        exists = None
        if partial is not None:
            block = Block(tuple(r.name for r in step.ranks), lo, hi, fixed)
            exists = domain_mask(reader, partial.conjuncts, block)
        for out, a, source, dtype in zip(outs, values, dtypes, step.dtypes, strict=True):
            stored = round_to(a if source == dtype else convert_result(a, source, dtype), dtype)
            stored = np.broadcast_to(stored, shape)
            out[place] = stored if exists is None else np.where(exists, stored, np.zeros((), stored.dtype))
    return tuple(outs)


def convert_result(a: Array, source: DType, dtype: DType) -> Array:
    """An accumulator as the declared type: a float is rounded later, once."""
    return a if source.is_float and dtype.is_float else convert(a, source, dtype, "sat")


def domain_mask(reader: Reader, predicates: Sequence[Expr], block: Block) -> Array | None:
    """Where all predicates hold, in order: a later one is only looked at where the earlier ones hold."""
    active: Array | None = None
    for p in predicates:
        holds = reader.values(p, block, active)[0]
        active = holds if active is None else active & holds
    return active


def reduced_blocks(
    step: Einsum, reader: Reader, where: Expr | None, free: tuple[int, ...], reduced: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[Array, ...], tuple[DType, ...]]]:
    """Blocks of the free space with the folded held values of each component and their types."""
    names = tuple(r.name for r in step.all_ranks)
    count, total = len(free), int(np.prod(free + reduced, dtype=np.float64))
    accumulators = accumulator_types(step)
    if total == 0 and 0 in reduced:
        fold = Fold(step.reduce.op, accumulators)  # type: ignore[union-attr]
        yield (0,) * count, free, fold.identity(), accumulators
        return
    predicates = conjuncts(where)
    current: tuple[tuple[int, ...], tuple[int, ...], tuple[Array, ...]] | None = None
    for lo, hi in blocks(free + reduced):
        block = Block(names, lo, hi, reader.fixed)
        active = domain_mask(reader, predicates, block)
        pairs = [reader.values(e, block, active) for e in step.exprs]
        if step.reduce is None:
            yield lo, hi, tuple(a for a, _ in pairs), tuple(t for _, t in pairs)
            continue
        fold = Fold(step.reduce.op, accumulators)
        parts = []
        for (a, source), dtype, identity in zip(pairs, accumulators, fold.identity(), strict=True):
            widened = a if source == dtype or source.is_float and dtype.is_float else convert(a, source, dtype, "sat")
            full = np.broadcast_to(widened, block.shape)
            parts.append(full if active is None else np.where(active, full, identity))
        folded = fold.over(parts, count)
        if current is not None and current[0] == lo[:count]:
            current = (*current[:2], fold.combine(current[2], folded))
        else:
            if current is not None:
                yield *current, accumulators
            current = (lo[:count], hi[:count], folded)
    if current is not None:
        yield *current, accumulators


def accumulator_types(step: Einsum) -> tuple[DType, ...]:
    """Types the components are folded in; floats are folded in f64 whatever the type says."""
    given = step.reduce.accumulator if step.reduce is not None else None
    return tuple(given if given is not None and k == 0 else t for k, t in enumerate(step.dtypes))


def scatter(
    step: Einsum, reader: Reader, where: Expr | None, free: tuple[int, ...], reduced: tuple[int, ...]
) -> tuple[Array, ...]:
    """The Einsum's values written into a copy of `onto`, in row-major order of the free ranks."""
    write = step.write
    assert write is not None
    names, dtype = tuple(r.name for r in step.ranks), step.dtype
    out = hold(reader.env[write.onto], dtype).copy()
    bound = {r.name for r in step.reduced}
    point_wise = tuple(p for p in conjuncts(where) if bound.isdisjoint(p.variables))
    update: Callable[..., Any] | None = None if write.op == "set" else _UFUNCS[write.op].at
    if 0 in free:
        return (round_to(out, dtype),)
    for lo, hi, values, dtypes in reduced_blocks(step, reader, where, free, reduced):
        block = Block(names, lo, hi, reader.fixed)
        keep = domain_mask(reader, point_wise, block)
        mask = np.broadcast_to(np.asarray(True) if keep is None else keep, block.shape)
        indices = []
        for dimension, i in enumerate(write.index):
            at = np.broadcast_to(reader.index(i, block, keep), block.shape)
            wrong = ((at < 0) | (at >= out.shape[dimension])) & mask
            if wrong.any():
                if not write.drop:
                    raise ScatterOutOfRange(
                        step.loc,
                        tensor=step.out,
                        index=int(at[wrong][0]),
                        dimension=dimension,
                        extent=out.shape[dimension],
                    )
                mask = mask & ~wrong
            indices.append(at)
        a = values[0] if dtypes[0] == dtype else convert_result(values[0], dtypes[0], dtype)
        full = np.broadcast_to(a, block.shape)[mask]
        at_points = tuple(i[mask] for i in indices)
        with np.errstate(all="ignore"):
            if update is None:
                _assign_in_order(out, at_points, full)
            else:
                update(out, at_points, full)
    return (round_to(out, dtype),)


def _assign_in_order(out: Array, indices: tuple[Array, ...], values: Array) -> None:
    """`out[indices] = values` where of equal indices the last wins, by construction and not by NumPy's habit."""
    if values.size == 0:
        return
    if not indices:
        out[()] = values[-1]
        return
    flat = np.ravel_multi_index(indices, out.shape)
    _, last = np.unique(flat[::-1], return_index=True)
    chosen = flat.size - 1 - last
    out.reshape(-1)[flat[chosen]] = values[chosen]
