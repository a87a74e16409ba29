"""The meaning of an Einsum point by point, in plain loops: what the interpreter's fast ways are checked against."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from dlc.ir.domain import Domain, conjuncts, effective_where, result_domain
from dlc.ir.dtype import I64, DType, from_numpy
from dlc.ir.einsum import Einsum
from dlc.ir.evaluate import Fold, accumulator_types, apply_op, convert, convert_result, held, round_to, rounded
from dlc.ir.expr import Access, Apply, Bitcast, Cast, Const, Expr, Index, Piecewise
from dlc.ir.extent import IntExpr, evaluate

DISCONTINUOUS = frozenset(
    "eq ne lt le gt ge floor ceil trunc round sign isnan isinf signbit nextafter div_trunc div_floor rem_trunc rem_floor".split()
)
Array = Any


def naive_einsum(
    step: Einsum, env: Mapping[str, Array], fixed: Mapping[str, int], domains: Mapping[str, Domain]
) -> tuple[Array, ...]:
    where = effective_where(step, domains)
    free = [range(max(0, int(evaluate(r.extent, fixed)))) for r in step.ranks]
    reduced = [range(max(0, int(evaluate(r.extent, fixed)))) for r in step.reduced]
    kinds = accumulator_types(step)
    point = _Point(env, domains)
    domain = result_domain(step, where)
    if step.write is not None:
        outs = [env[step.write.onto].astype(held(step.dtype))]
    else:
        outs = [np.zeros([len(r) for r in free], held(t)) for t in step.dtypes]
    bound = {r.name for r in step.reduced}
    for at in itertools.product(*free):
        names = {**fixed, **dict(zip((r.name for r in step.ranks), at, strict=True))}
        if step.reduce is None:
            if not all(point.value(p, names)[0] for p in conjuncts(where)):
                continue
            value, dtype = point.value(step.expr, names)
            results = [(value, dtype)]
        else:
            own = [p for p in conjuncts(where) if bound.isdisjoint(p.variables)]
            if (domain is not None or step.write is not None) and not all(point.value(p, names)[0] for p in own):
                continue
            fold = Fold(step.reduce.op, kinds)
            total: tuple[Array, ...] = fold.identity()
            for inner in itertools.product(*reduced):
                here = {**names, **dict(zip((r.name for r in step.reduced), inner, strict=True))}
                if not all(point.value(p, here)[0] for p in conjuncts(where)):
                    continue
                parts = [point.value(e, here) for e in step.exprs]
                lifted = [
                    np.asarray(a if t == k or t.is_float and k.is_float else convert(a, t, k, "sat"))
                    for (a, t), k in zip(parts, kinds, strict=True)
                ]
                total = fold.combine(total, lifted)
            results = list(zip(total, kinds, strict=True))
        values = [
            a if t == d else convert_result(np.asarray(a), t, d) for (a, t), d in zip(results, step.dtypes, strict=True)
        ]
        if step.write is None:
            for out, a in zip(outs, values, strict=True):
                out[at] = a
        else:
            _write(step, outs[0], values[0], tuple(int(point.index(i, names)) for i in step.write.index))
    return tuple(round_to(o, t) for o, t in zip(outs, step.dtypes, strict=True))


def _write(step: Einsum, out: Array, value: Array, place: tuple[int, ...]) -> None:
    assert step.write is not None
    if any(i < 0 or i >= n for i, n in zip(place, out.shape, strict=True)):
        assert step.write.drop
        return
    fold = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}.get(step.write.op)
    with np.errstate(all="ignore"):
        out[place] = value if fold is None else fold(out[place], value)


class _Point:
    def __init__(self, env: Mapping[str, Array], domains: Mapping[str, Domain]) -> None:
        self.env, self.domains = env, domains

    def index(self, e: IntExpr, names: Mapping[str, int]) -> int:
        return int(evaluate(e, names, lambda inner: int(self.value(inner, names)[0])))

    def value(self, e: Expr, names: Mapping[str, int]) -> tuple[Array, DType]:
        match e:
            case Const(number, dtype):
                return rounded(np.asarray(number, held(dtype)), dtype), dtype
            case Index(expr):
                return np.asarray(self.index(expr, names), np.int64), I64
            case Access(tensor, index, default):
                source = self.env[tensor]
                at = tuple(self.index(i, names) for i in index)
                inside = all(0 <= i < n for i, n in zip(at, source.shape, strict=True))
                if inside and default is not None and tensor in self.domains:
                    inside = all(self.value(p, names)[0] for p in self.domains[tensor].at(e))
                if not inside:
                    assert default is not None, f"{e} at {at}"
                    return self.value(default, names)
                dtype = from_numpy(source.dtype)
                return source[at].astype(held(dtype)), dtype
            case Apply(op, args):
                pairs = [self.value(a, names) for a in args]
                if op in DISCONTINUOUS:
                    pairs = [(rounded(np.asarray(a), t), t) for a, t in pairs]
                return apply_op(op, [(np.asarray(a), t) for a, t in pairs])
            case Cast(dtype, arg, mode):
                a, source_type = self.value(arg, names)
                a = np.asarray(a)
                return convert(a if dtype.is_float else rounded(a, source_type), source_type, dtype, mode), dtype
            case Bitcast(dtype, arg):
                a, source_type = self.value(arg, names)
                stored = np.asarray(round_to(np.asarray(a), source_type))
                return stored.reshape(1).view(dtype.numpy).astype(held(dtype)).reshape(()), dtype
            case Piecewise(cases, otherwise):
                for guard, value in cases:
                    if self.value(guard, names)[0]:
                        return self.value(value, names)
                return self.value(otherwise, names)
