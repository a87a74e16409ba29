"""The reference of a random program and how far compiled code may be from it, element by element.

The values are the interpreter's own. Beside each tensor runs an array of bounds, found as running error analysis does:

    an operator      the greatest change of its result while its operands stay within their bounds, plus what its own
                     rounding in the computing type can add (`vecmath.ULP` for elementary functions)
    a sum            the sum of its terms' bounds, plus n * eps * sum |terms|
                     and, where both factors of the terms have bf16 values, what is lost when processors flush subnormals
    a comparison, a conversion to an integer, argmax ...: 0 when no value within the bounds decides otherwise, else infinity
    a stored result  the rounded results of both ends; readers may also see the value before it was rounded (fusion)

So integers and booleans are exact, copies of floats too, and no bound is tuned. Infinity means that the element is not
determined (`x < y` of nearly equal floats); how many are is counted, so that a test says how much it saw.

Source: running error analysis, Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dlc.ir.domain import Domain, add_domains, conjuncts, effective_where, result_domain
from dlc.ir.dtype import BF16, F16, F32, DType
from dlc.ir.einsum import Einsum, Scan, Step
from dlc.ir.evaluate import (
    Block,
    Fold,
    Reader,
    accumulator_types,
    convert,
    domain_mask,
    evaluate_step,
    extents_of,
    round_to,
)
from dlc.ir.expr import Access, Apply, Cast, Expr
from dlc.ir.extent import evaluate, variables
from dlc.ir.interpret import _bound_value, bind_symbols, check_symbol
from dlc.ir.library import LIBRARY, order_along
from dlc.ir.program import Bind, If, Library, Loop, Program, Region, Stmt, tensor_types
from tests.fuzz.bounds_scalars import EPS, LARGEST, TINY, Array, Bounds, Held, computing, gap, stored_error


class Undetermined(Exception):
    """What the program does (an extent, a branch) hangs on a value that rounding decides."""


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
    found = _fold_errors(step.reduce.op, accumulators, values, errors, folded, axes)
    return folded, [e + _flushed(step, bounds.reader.env) for e in found]


def _flushed(step: Einsum, env: Mapping[str, Array]) -> float:
    """The terms of a sum of bf16 products vanish where a factor is subnormal: each is below 2^-126 times the other factor."""
    assert step.reduce is not None
    e = step.exprs[0]
    if step.reduce.op != "sum" or not (isinstance(e, Apply) and e.op == "mul" and step.dtypes[0] in (F32, BF16)):
        return 0.0
    inner = [a.arg if isinstance(a, Cast) else a for a in e.args]
    operands = [np.asarray(env[a.tensor], np.float64) for a in inner if isinstance(a, Access) and a.tensor in env]
    if len(operands) != 2 or any((a.astype(BF16.numpy).astype(np.float64) != a)[~np.isnan(a)].any() for a in operands):
        return 0.0
    normal, terms = 2.0**-126, 1.0
    for r in step.reduced:
        terms *= max(float(r.extent.const or 4096), 1.0)
    total = normal
    for a, b in (operands, operands[::-1]):
        subnormal = ((a != 0) & (np.abs(a) < normal)).any()
        if subnormal and np.isinf(b).any():
            return np.inf
        total += normal * float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    return terms * total


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
        eps, tiny, most = EPS[kind], TINY[kind], LARGEST[kind]
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
    eps = {"f16": 2.0**-10, "bf16": 2.0**-7}.get(dtype.name, EPS[computing(dtype)]) if dtype.is_float else 0.0
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
        limit = {"f16": 65504.0, "f64": LARGEST["f64"]}.get(dtype.name, 3.38e38)
        error = np.where(~special & (total + error > limit * 0.999), np.inf, error)
        if write.op in ("sum", "prod"):
            error = np.where(special, np.where(np.isfinite(total), np.inf, 0.0), error)
    return error


# --- library operations ----------------------------------------------------------------------------------------------


def library_bounds(
    stmt: Library, args: Sequence[Array], errors: Sequence[Array], results: Sequence[Array]
) -> list[Array]:
    """Bounds of a library operation's results from those of its operands, which are read as they were stored.

    `sort`, `topk`: the k-th value in order never falls when an element grows, so it lies between the k-th of the elements'
    lower ends and the k-th of their upper ends. Which element is the k-th is sure where all before it end below it and all
    after it begin above it, or where the whole line is exact (the index decides ties).
    `nonzero`, `unique`, `nms`: the extent found hangs on what is counted, which must be sure.
    """
    attrs = dict(stmt.attrs)
    match stmt.op:
        case "sort" | "topk":
            axis, down = int(attrs["axis"]), bool(attrs["descending" if stmt.op == "sort" else "largest"])
            return _order_bounds(args[0], errors[0], axis, down, results[0].shape[axis])
        case "nonzero":
            x, e = hold64(args[0]), errors[0]
            unsure = ~((e == 0) | (e < np.inf) & (np.isnan(x) | (np.abs(x) > e)))
        case _:  # rows that are equal, boxes that overlap
            unsure = np.concatenate([np.ravel(e > 0) for e in errors])
    if np.any(unsure):
        raise Undetermined(stmt.outs[0])
    return [np.zeros(r.shape) for r in results]


def _order_bounds(x: Array, e: Array, axis: int, descending: bool, kept: int) -> list[Array]:
    """Bounds of the values and of the places, of the first `kept` in order."""
    x, e = (np.moveaxis(a, axis, -1) for a in (x, e))
    lost, exact = np.isinf(e).any(-1, keepdims=True), (e == 0).all(-1, keepdims=True)
    near, order = np.where(lost, 0.0, e), order_along(x, -1, descending)
    low, high = hold64(x) - near, hold64(x) + near
    ends = [np.take_along_axis(a, order_along(a, -1, descending), -1) for a in (low, high)]
    middle = np.take_along_axis(hold64(x), order, -1)
    value = np.maximum(*(gap(end, middle) for end in ends))
    until, since = (np.take_along_axis(a, order, -1) for a in ((-low, -high) if descending else (high, low)))
    until, since = (np.where(np.isnan(a), -np.inf if descending else np.inf, a) for a in (until, since))
    parted = (
        np.maximum.accumulate(until, -1)[..., :-1] < np.minimum.accumulate(since[..., ::-1], -1)[..., ::-1][..., 1:]
    )
    edge = np.ones((*x.shape[:-1], min(1, x.shape[-1])), bool)
    sure = exact | np.concatenate([edge, parted], -1) & np.concatenate([parted, edge], -1)
    bounds = np.where(lost, np.inf, value), np.where(sure & ~lost, 0.0, np.inf)
    return [np.moveaxis(b[..., :kept], -1, axis) for b in bounds]


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
                self.library(stmt)
            case _:
                raise NotImplementedError(type(stmt).__name__)

    def library(self, stmt: Library) -> None:
        args = [self.env[a] for a in stmt.args]
        known = self.symbols.keys()
        shapes = [
            tuple(int(evaluate(e, self.symbols)) if variables(e) <= known else None for e in t.shape)
            for t in stmt.types
        ]
        made = LIBRARY[stmt.op].meaning(args, dict(stmt.attrs), shapes)
        results = [np.asarray(v).astype(t.dtype.numpy, copy=False) for v, t in zip(made, stmt.types, strict=True)]
        bounds = library_bounds(stmt, args, [self.stored[a] for a in stmt.args], results)
        for symbol in stmt.binds:
            count = _bound_value(symbol, stmt.types, results)
            check_symbol(symbol, count, stmt.loc)
            self.symbols["#" + symbol.name] = count
        for name, value, bound in zip(stmt.outs, results, bounds, strict=True):
            self.write(name, value, bound)

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
