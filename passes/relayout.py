"""Constants in another layout, evaluated while compiling: a strided view where the index map is affine, else a gather.

A view costs nothing here; its elements are copied once, when the constants are packed into the artifact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlc.ir.extent import IntExpr, Var, evaluate

Array = np.ndarray[Any, Any]


def relayout(
    array: Array,
    index: Sequence[IntExpr],
    ranks: Sequence[tuple[str, int]],
    guards: Sequence[tuple[IntExpr, int]] = (),
) -> Array:
    """`out[ranks] = array[index(ranks)]`, 0 where one of `guards` (an expression and its bound, `e < n`) does not hold.

    Args:
        array: the constant.
        index: one expression over the ranks for each dimension of `array`, in bounds where the guard holds.
        ranks: name and extent of each dimension of the result.
        guards: these expressions may run over their dimensions, to fill up the last panel or word.

    Returns:
        A read-only array of the ranks' extents; a view of `array`, or of a padded copy, where the index map is affine.
    """
    extents = dict(ranks)
    if all(extents.values()) and array.size:
        view = _strided(array, index, extents, guards)
        if view is not None:
            return view
    return _gathered(array, index, ranks, guards)


def _strided(
    array: Array, index: Sequence[IntExpr], extents: Mapping[str, int], guards: Sequence[tuple[IntExpr, int]]
) -> Array | None:
    maps = [_affine(e) for e in index]
    if any(m is None for m in maps):
        return None
    pads = []
    for e, m, n in zip(index, maps, array.shape, strict=True):
        assert m is not None
        start, slopes = m
        last = start + sum(c * (extents[name] - 1) for name, c in slopes.items() if c > 0)
        first = start + sum(c * (extents[name] - 1) for name, c in slopes.items() if c < 0)
        if first < 0 or (last >= n and (e, n) not in guards):
            return None
        pads.append((0, max(last + 1 - n, 0)))
    if not set(guards) <= set(zip(index, array.shape, strict=True)):
        return None
    if any(after for _, after in pads):
        array = np.pad(array, pads)
    offset = 0
    strides = dict.fromkeys(extents, 0)
    for m, stride in zip(maps, array.strides, strict=True):
        assert m is not None
        offset += m[0] * stride
        for name, c in m[1].items():
            strides[name] += c * stride
    # the first element by indexing, for a view cannot start at a byte offset of its base
    start_at = array[tuple(slice(m[0], None) for m in maps if m is not None)] if offset else array
    return np.lib.stride_tricks.as_strided(start_at, tuple(extents.values()), tuple(strides.values()), writeable=False)


def _affine(e: IntExpr) -> tuple[int, dict[str, int]] | None:
    """(constant, slope by rank) of an affine expression."""
    start, slopes = 0, {}
    for monomial, coefficient in e.terms:
        match monomial:
            case ():
                start = coefficient
            case (Var(name),):
                slopes[name] = coefficient
            case _:
                return None
    return start, slopes


def _gathered(
    array: Array, index: Sequence[IntExpr], ranks: Sequence[tuple[str, int]], guards: Sequence[tuple[IntExpr, int]]
) -> Array:
    shape = tuple(extent for _, extent in ranks)
    grid = np.ogrid[tuple(slice(e) for e in shape)] if shape else []
    env = {name: g for (name, _), g in zip(ranks, grid, strict=True)}
    places = [np.asarray(evaluate(i, env)) for i in index]
    if not guards:
        values = array[tuple(places)]
    else:
        exists = np.asarray(True)
        for e, n in guards:
            exists = exists & (np.asarray(evaluate(e, env)) < n)
        clipped = [np.minimum(i, n - 1) for i, n in zip(places, array.shape, strict=True)]
        values = np.where(exists, array[tuple(clipped)], np.zeros((), array.dtype))
    return np.ascontiguousarray(np.broadcast_to(values, shape))
