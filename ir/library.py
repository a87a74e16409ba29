"""The closed set of library operations: what is no Einsum, with its meaning in NumPy.

A library operation is a statement of a Program, never inside a cascade. It may bind the extents that it determines.

    sort      (X)                              -> (values, indices: i64)   axis, descending, stable
    topk      (X)                              -> (values, indices: i64)   axis, largest, sorted; k is the result's extent
    nonzero   (X)                              -> (at: i64[rank, n]), n bound; row-major order
    unique    (X: [m, w])                      -> (values: [n, w], first: i64[n], inverse: i64[m], counts: i64[n]), n bound; sorted
    nms       (boxes, scores, limit, iou, score) -> (chosen: i64[n, 3]), n bound; center_point_box, has_score

Ties go to the lower index. NaN is greater than every number and equal to NaN in `sort` and `topk`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from dlc.ir.codes import decode
from dlc.ir.dtype import from_numpy

Array: TypeAlias = np.ndarray[Any, Any]
Attrs: TypeAlias = Mapping[str, int | float | bool | str]
Shape: TypeAlias = tuple[int | None, ...]
Meaning: TypeAlias = Callable[[Sequence[Array], Attrs, Sequence[Shape]], Sequence[Array]]


@dataclass(frozen=True, slots=True)
class LibraryOp:
    """A library operation.

    Attributes:
        inputs, outputs: how many tensors it takes and gives.
        binds: how many extents it determines.
        attrs: names of the constants that choose its form.
        meaning: (inputs, attributes, shapes of the results with None for extents not known yet) to results.
    """

    name: str
    inputs: int
    outputs: int
    binds: int
    attrs: tuple[str, ...]
    meaning: Meaning


def order_along(x: Array, axis: int, descending: bool) -> Array:
    """Stable order of `x` along `axis`: ties by lower index, NaN as the greatest."""
    x = _comparable(x)
    if not descending:
        return np.argsort(x, axis=axis, kind="stable")
    count = x.shape[axis]
    order = np.argsort(np.flip(x, axis), axis=axis, kind="stable")
    return count - 1 - np.flip(order, axis)


def _comparable(x: Array) -> Array:
    if x.dtype.names is not None:
        return decode(x, from_numpy(x.dtype))
    return x.astype(np.float64) if x.dtype.kind not in "fiub" else x


def _sort(args: Sequence[Array], attrs: Attrs, _: Sequence[Shape]) -> Sequence[Array]:
    (x,), axis = args, int(attrs.get("axis", -1))
    order = order_along(x, axis, bool(attrs.get("descending", False)))
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


def _topk(args: Sequence[Array], attrs: Attrs, shapes: Sequence[Shape]) -> Sequence[Array]:
    x, axis = args[0], int(attrs.get("axis", -1))
    given = attrs.get("k", shapes[0][axis])
    assert given is not None, "k is an extent bound before"
    order = order_along(x, axis, bool(attrs.get("largest", True)))
    order = np.take(order, np.arange(int(given)), axis=axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


def _nonzero(args: Sequence[Array], attrs: Attrs, _: Sequence[Shape]) -> Sequence[Array]:
    (x,) = args
    return (np.stack(np.nonzero(x)).astype(np.int64).reshape(x.ndim, -1),)


def _unique(args: Sequence[Array], attrs: Attrs, _: Sequence[Shape]) -> Sequence[Array]:
    (x,) = args
    seen: dict[tuple[Any, ...], int] = {}
    rows = [tuple(r) for r in x.tolist()]
    first: list[int] = []
    inverse: list[int] = []
    counts: list[int] = []
    for position, row in enumerate(rows):
        if row not in seen:
            seen[row] = len(first)
            first.append(position)
            counts.append(0)
        inverse.append(seen[row])
        counts[seen[row]] += 1
    order = list(range(len(first)))
    if attrs.get("sorted", True):
        order.sort(key=lambda k: tuple((v != v, 0 if v != v else v) for v in rows[first[k]]))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    starts = np.asarray(first, np.int64)[order]
    return x[starts], starts, place[np.asarray(inverse, np.int64)], np.asarray(counts, np.int64)[order]


def _nms(args: Sequence[Array], attrs: Attrs, _: Sequence[Shape]) -> Sequence[Array]:
    boxes, scores, limit, iou, score = args
    corners = _corners(boxes.astype(np.float32), bool(attrs.get("center_point_box", False)))
    chosen = []
    for b in range(scores.shape[0]):
        for c in range(scores.shape[1]):
            order = order_along(scores[b, c], 0, descending=True)
            if attrs.get("has_score", True):
                order = order[scores[b, c][order] > score.reshape(-1)[0]]
            kept: list[int] = []
            for k in order:
                if len(kept) >= int(limit.reshape(-1)[0]):
                    break
                if all(_overlap(corners[b, k], corners[b, o]) <= iou.reshape(-1)[0] for o in kept):
                    kept.append(int(k))
            chosen += [(b, c, k) for k in kept]
    return (np.asarray(chosen, np.int64).reshape(-1, 3),)


def _corners(boxes: Array, center: bool) -> Array:
    """Boxes as (least y, least x, greatest y, greatest x)."""
    if center:
        x, y, w, h = (boxes[..., k] for k in range(4))
        half = np.float32(2)
        return np.stack([y - h / half, x - w / half, y + h / half, x + w / half], axis=-1)
    low, high = np.minimum(boxes[..., :2], boxes[..., 2:]), np.maximum(boxes[..., :2], boxes[..., 2:])
    return np.concatenate([low, high], axis=-1)


def _overlap(a: Array, b: Array) -> float:
    """Intersection over union, f32; 0 when either is empty."""
    sides = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), np.float32(0))
    shared = sides[0] * sides[1]
    areas = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    if areas[0] <= 0 or areas[1] <= 0:
        return 0.0
    return float(shared / (areas[0] + areas[1] - shared))


LIBRARY: dict[str, LibraryOp] = {
    o.name: o
    for o in (
        LibraryOp("sort", 1, 2, 0, ("axis", "descending", "stable"), _sort),
        LibraryOp("topk", 1, 2, 0, ("axis", "k", "largest", "sorted"), _topk),
        LibraryOp("nonzero", 1, 1, 1, (), _nonzero),
        LibraryOp("unique", 1, 4, 1, ("sorted",), _unique),
        LibraryOp("nms", 5, 1, 1, ("center_point_box", "has_score"), _nms),
    )
}
