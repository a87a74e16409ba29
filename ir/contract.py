"""The interpreter's quick way through sums of products: factors over their own ranks, then pairwise matrix products in f64.

Whole networks are interpreted; a contraction evaluated point by point would take hours where this takes seconds. It applies to
a float sum whose expression is a product of factors none of which spans the whole iteration space, and to integer sums small
enough to be exact in f64.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from dlc.ir.einsum import Einsum
from dlc.ir.expr import Apply, Expr

if TYPE_CHECKING:
    from dlc.ir.evaluate import Array, Reader

_FACTOR_POINTS = 1 << 24
_TINY = 1 << 13


def factors(e: Expr) -> tuple[Expr, ...]:
    """The factors of a product."""
    if isinstance(e, Apply) and e.op == "mul":
        return factors(e.args[0]) + factors(e.args[1])
    return (e,)


def contraction(
    step: Einsum, reader: Reader, where: Expr | None, free: tuple[int, ...], reduced: tuple[int, ...]
) -> Array | None:
    """f64 values of the result when `step` is a sum of products of small factors, else None."""
    from dlc.ir.domain import conjuncts
    from dlc.ir.errors import IndexOutOfRange
    from dlc.ir.evaluate import Block, accumulator_types, blocks, domain_mask

    if step.reduce is None or step.reduce.op != "sum" or 0 in reduced or len(step.exprs) != 1:
        return None
    extents, names = free + reduced, tuple(r.name for r in step.all_ranks)
    if np.prod(extents, dtype=np.float64) <= _TINY:
        return None
    parts, predicates = factors(step.expr), conjuncts(where)
    accumulator = accumulator_types(step)[0]
    used = [_ranks_of(p, names) for p in parts]
    if len(parts) < 2 or any(len(u) == len(names) for u in used):
        return None
    host = _host(used, [_ranks_of(p, names) for p in predicates]) if predicates else None
    if predicates and (host is None or _masks_free_ranks(predicates, step)):
        return None  # a partial result: the general way fills what does not exist
    chunks = _chunks(extents, names, used)
    out = np.zeros(free, np.float64)
    for lo, hi in blocks(extents, chunks=chunks):
        block = Block(names, lo, hi, reader.fixed)
        active = domain_mask(reader, predicates, block)
        arrays: list[Array] = []
        for k, p in enumerate(parts):
            try:
                a, dtype = reader.values(p, block, active if k == host else None)
            except IndexOutOfRange:
                if active is None:
                    raise
                return None  # perhaps only where nothing exists: the general way knows
            if not dtype.is_float and not dtype == accumulator == step.dtype:
                return None
            if active is not None:
                if k == host:
                    a = np.where(active, a, np.zeros((), a.dtype))
                elif not np.isfinite(a).all():
                    return None
            arrays.append(a)
        if len(arrays) > 2 and not all(np.isfinite(a).all() for a in arrays):
            return None  # distributing a factor over a sum is wrong for infinities
        if not accumulator.is_float:
            bound = float(np.prod(reduced, dtype=np.float64))
            for a in arrays:
                bound *= float(np.max(np.abs(a.astype(np.float64)))) if a.size else 0.0
            if bound >= 2.0**53:
                return None
            arrays = [a.astype(np.float64) for a in arrays]
        place = tuple(slice(l, h) for l, h in zip(lo[: len(free)], hi[: len(free)], strict=True))
        out[place] += multiply_all(arrays, block.shape, len(free))
    if accumulator.is_float:
        return out
    whole = out.astype(np.int64)
    return whole if step.dtype == accumulator else None


def _ranks_of(e: Expr, names: tuple[str, ...]) -> frozenset[str]:
    return e.variables & frozenset(names)


def _host(used: list[frozenset[str]], masks: list[frozenset[str]]) -> int | None:
    """The factor that can take the domain: one whose ranks include the predicates'."""
    needed: frozenset[str] = frozenset().union(*masks)
    return next((k for k, u in enumerate(used) if needed <= u), None)


def _masks_free_ranks(predicates: tuple[Expr, ...], step: Einsum) -> bool:
    reduced = {r.name for r in step.reduced}
    return any(reduced.isdisjoint(p.variables) for p in predicates)


def _chunks(extents: tuple[int, ...], names: tuple[str, ...], used: list[frozenset[str]]) -> list[int]:
    """Block sizes under which every factor stays small."""
    sizes = list(extents)

    def points(u: frozenset[str]) -> float:
        return float(np.prod([s for s, n in zip(sizes, names, strict=True) if n in u], dtype=np.float64))

    for u in used:
        while points(u) > _FACTOR_POINTS:
            axis = max((k for k, n in enumerate(names) if n in u), key=lambda k: sizes[k])
            sizes[axis] = (sizes[axis] + 1) // 2
    return sizes


def multiply_all(arrays: list[Array], shape: tuple[int, ...], free: int) -> Array:
    """Sum of the product of broadcastable arrays over the axes after the first `free`."""
    labelled = [_squeeze(a, len(shape)) for a in arrays]
    present = frozenset().union(*(labels for _, labels in labelled))
    scale = float(np.prod([n for k, n in enumerate(shape) if k >= free and k not in present], dtype=np.float64))
    while len(labelled) > 1:
        i, j = _cheapest(labelled, shape, free)
        (a, la), (b, lb) = labelled[i], labelled[j]
        others = [x for k, x in enumerate(labelled) if k not in (i, j)]
        keep = frozenset(range(free)).union(*(labels for _, labels in others))
        labelled = [*others, contract_pair(a, la, b, lb, keep)]
    (a, labels) = labelled[0]
    summed = tuple(n for n, k in enumerate(labels) if k >= free)
    if summed:
        a, labels = a.sum(axis=summed), tuple(k for k in labels if k < free)
    a = a.transpose(np.argsort(labels)) if labels else a
    target = [shape[k] if k in labels else 1 for k in range(free)]
    return np.broadcast_to(a.reshape(target) * scale, shape[:free])


def _squeeze(a: Array, ndim: int) -> tuple[Array, tuple[int, ...]]:
    a = a.reshape((1,) * (ndim - a.ndim) + a.shape)
    labels = tuple(k for k, n in enumerate(a.shape) if n != 1)
    return a.reshape([a.shape[k] for k in labels]), labels


def _cheapest(labelled: list[tuple[Array, tuple[int, ...]]], shape: tuple[int, ...], free: int) -> tuple[int, int]:
    if len(labelled) == 2:
        return 0, 1

    def cost(pair: tuple[int, int]) -> float:
        both = {*labelled[pair[0]][1], *labelled[pair[1]][1]}
        return float(np.prod([shape[k] for k in both], dtype=np.float64))

    return min(itertools.combinations(range(len(labelled)), 2), key=cost)


def contract_pair(
    a: Array, la: tuple[int, ...], b: Array, lb: tuple[int, ...], keep: frozenset[int]
) -> tuple[Array, tuple[int, ...]]:
    """Multiply two labelled arrays and sum the labels that are not kept, by batched matrix product."""
    a, la = _sum_private(a, la, frozenset(lb) | keep)
    b, lb = _sum_private(b, lb, frozenset(la) | keep)
    batch = tuple(k for k in la if k in lb and k in keep)
    inner = tuple(k for k in la if k in lb and k not in keep)
    left = tuple(k for k in la if k not in lb)
    right = tuple(k for k in lb if k not in la)
    size = {**dict(zip(la, a.shape, strict=True)), **dict(zip(lb, b.shape, strict=True))}

    def arranged(x: Array, labels: tuple[int, ...], *groups: tuple[int, ...]) -> Array:
        order = [labels.index(k) for group in groups for k in group]
        return x.transpose(order).reshape([int(np.prod([size[k] for k in g], dtype=np.int64)) for g in groups])

    with np.errstate(all="ignore"):
        product = np.matmul(arranged(a, la, batch, left, inner), arranged(b, lb, batch, inner, right))
    labels = batch + left + right
    return product.reshape([size[k] for k in labels]), labels


def _sum_private(x: Array, labels: tuple[int, ...], needed: frozenset[int]) -> tuple[Array, tuple[int, ...]]:
    axes = tuple(n for n, k in enumerate(labels) if k not in needed)
    return (x.sum(axis=axes), tuple(k for k in labels if k in needed)) if axes else (x, labels)
