"""Library operations that build sets: unique rows, and non-maximum suppression of boxes."""

from __future__ import annotations

from dlc.codegen.library import SORT_WORK, Frame, LibraryKernel, comparable, divisor, less, merge_sort
from dlc.codegen.tile import TileType
from dlc.codegen.tile_build import Builder
from dlc.ir.dtype import F32, F64, I64
from dlc.ir.extent import IntExpr

_INDEX = TileType(I64)


# -- unique ----------------------------------------------------------------------------------------------------------


def unique_measure(f: Frame, ordered: bool) -> LibraryKernel:
    """tmp0[row] = the first row equal to it; tmp1[that row] = the number of its value; count = how many there are."""
    b, (m, width) = f.b, f.args[0].shape
    zero, one = b.const(I64, 0), b.const(I64, 1)

    def element(row: str | IntExpr, column: IntExpr) -> str:
        at = b.index_of(row) if isinstance(row, str) else row
        return comparable(b, f.load("arg0", at * width + column))

    def after(left: str, right: str) -> str:
        """Whether the right row is less: the first column where they differ decides."""
        with b.loop("c", 0, width, carries=(zero,)) as each:
            x, y = element(left, each.index), element(right, each.index)
            order = b.op("sub", b.cast(less(b, y, x), I64), b.cast(less(b, x, y), I64))
            decided = b.op("ne", each.carries[0], zero)
            each.yields(b.op("select", decided, each.carries[0], order))
        return b.op("gt", each.results[0], zero)

    def same(left: str, right: str) -> str:
        """Whether all columns are equal; NaN equals nothing."""
        with b.loop("c", 0, width, carries=(one,)) as each:
            equal = b.op("eq", element(left, each.index), element(right, each.index))
            each.yields(b.op("select", equal, each.carries[0], zero))
        return b.op("ne", each.results[0], zero)

    merge_sort(f, m, after)
    # equal rows are neighbours now, the first of them in front
    with b.loop("s", 0, m, carries=(zero, zero)) as each:
        leader, number = each.carries
        row = b.load(_INDEX, "order", each.index)
        fresh = b.op("or", b.op("eq", b.from_index(each.index), zero), b.op("not", same(row, leader)))
        leader = b.op("select", fresh, row, leader)
        b.store("tmp0", b.index_of(row), leader)
        if ordered:
            b.store("tmp1", b.index_of(leader), number_of(f, fresh, number))
        each.yields(leader, b.op("add", number, b.cast(fresh, I64)))
    b.store("count", 0, each.results[1])
    if not ordered:
        with b.loop("r", 0, m, carries=(zero,)) as rows:
            first = b.op("eq", b.load(_INDEX, "tmp0", rows.index), b.from_index(rows.index))
            b.store("tmp1", rows.index, rows.carries[0])
            rows.yields(b.op("add", rows.carries[0], b.cast(first, I64)))
    return f.finish(1, m * width * SORT_WORK)


def number_of(f: Frame, fresh: str, number: str) -> str:
    """The number of the value at hand: `number` values came before it, itself included unless it is fresh."""
    b = f.b
    return b.op("select", fresh, number, b.op("sub", number, b.const(I64, 1)))


def unique_write(f: Frame) -> LibraryKernel:
    """values, first, inverse, counts from what was measured."""
    b, (m, width) = f.b, f.args[0].shape
    one = b.const(I64, 1)
    with b.loop("r", 0, m) as rows:
        leader = b.load(_INDEX, "tmp0", rows.index)
        number = b.load(_INDEX, "tmp1", b.index_of(leader))
        at = b.index_of(number)
        b.store("out2", rows.index, number)
        with b.branch(b.op("eq", leader, b.from_index(rows.index))) as branch:
            with branch.then():
                b.store("out1", at, leader)
                b.store("out3", at, one)
                with b.loop("c", 0, width) as columns:
                    b.store("out0", at * width + columns.index, f.load("arg0", rows.index * width + columns.index))
            with branch.orelse():
                b.store("out3", at, b.op("add", b.load(_INDEX, "out3", at), one))
    return f.finish(1, m * (width + 8))


# -- non-maximum suppression -----------------------------------------------------------------------------------------


def nms_measure(f: Frame, center: bool, scored: bool) -> LibraryKernel:
    """tmp0 = rows (batch, class, box) of the boxes chosen, best first in each class; count = how many."""
    b = f.b
    batches, classes, boxes = f.args[1].shape
    zero, one = b.const(I64, 0), b.const(I64, 1)
    limit = b.cast(f.load("arg2", 0), I64)
    overlap_limit, score_limit = (f.load(name, 0) for name in ("arg3", "arg4"))
    with b.loop("p", 0, batches * classes, carries=(zero,)) as pairs:
        batch, kind = pairs.index // divisor(classes), pairs.index % divisor(classes)
        (begin,) = pairs.carries

        def score(box: str, pair: IntExpr = pairs.index) -> str:
            return comparable(b, f.load("arg1", pair * boxes + b.index_of(box)))

        merge_sort(f, boxes, lambda left, right, score=score: less(b, score(left), score(right)))  # type: ignore[misc]
        with b.loop("k", 0, boxes, carries=(begin,)) as candidates:
            (end,) = candidates.carries
            box = b.load(_INDEX, "order", candidates.index)
            corners = _corners(f, batch * boxes + b.index_of(box), center)
            wanted = b.op("lt", b.op("sub", end, begin), limit)
            if scored:
                wanted = b.op("and", wanted, b.op("gt", *_alike(b, score(box), score_limit)))
            with b.loop("o", b.index_of(begin), b.index_of(end), carries=(b.cast(wanted, I64),)) as kept:
                other = b.load(_INDEX, "tmp0", kept.index * 3 + 2)
                shared = _overlap(f, corners, _corners(f, batch * boxes + b.index_of(other), center))
                apart = b.op("le", *_alike(b, shared, overlap_limit))
                kept.yields(b.op("select", apart, kept.carries[0], zero))
            with b.branch(b.op("ne", kept.results[0], zero)) as branch:
                with branch.then():
                    at = b.index_of(end) * 3
                    b.store("tmp0", at, b.from_index(batch))
                    b.store("tmp0", at + 1, b.from_index(kind))
                    b.store("tmp0", at + 2, box)
                    branch.yields(b.op("add", end, one))
                with branch.orelse():
                    branch.yields(end)
            candidates.yields(branch.results[0])
        pairs.yields(candidates.results[0])
    b.store("count", 0, pairs.results[0])
    return f.finish(1, batches * classes * boxes * SORT_WORK)


def _alike(b: Builder, x: str, limit: str) -> tuple[str, str]:
    """Both in f32, or in f64 if one is: a score of 0.7 in f64 is above 0.7 in f32."""
    wide = F64 if F64 in (b.types[x].dtype, b.types[limit].dtype) else F32
    return b.cast(x, wide), b.cast(limit, wide)


def _corners(f: Frame, box: IntExpr, center: bool) -> tuple[str, str, str, str]:
    """(least y, least x, greatest y, greatest x) of a box, f32."""
    b = f.b
    c = [b.cast(f.load("arg0", box * 4 + d), F32) for d in range(4)]
    if center:
        x, y, w, h = c
        two = b.const(F32, 2.0)
        w, h = b.op("div", w, two), b.op("div", h, two)
        return b.op("sub", y, h), b.op("sub", x, w), b.op("add", y, h), b.op("add", x, w)
    return b.op("min", c[0], c[2]), b.op("min", c[1], c[3]), b.op("max", c[0], c[2]), b.op("max", c[1], c[3])


def _overlap(f: Frame, one: tuple[str, ...], other: tuple[str, ...]) -> str:
    """Intersection over union, 0 when either box is empty."""
    b = f.b
    zero = b.const(F32, 0.0)
    sides = [
        b.op("max", b.op("sub", b.op("min", one[d + 2], other[d + 2]), b.op("max", one[d], other[d])), zero)
        for d in (0, 1)
    ]
    shared = b.op("mul", *sides)
    first, second = (b.op("mul", b.op("sub", c[2], c[0]), b.op("sub", c[3], c[1])) for c in (one, other))
    union = b.op("sub", b.op("add", first, second), shared)
    empty = b.op("or", b.op("le", first, zero), b.op("le", second, zero))
    return b.op("select", empty, zero, b.op("div", shared, union))


def nms_write(f: Frame) -> LibraryKernel:
    """The rows chosen."""
    b, elements = f.b, f.outs[0].elements
    with b.loop("e", 0, elements) as each:
        b.store("out0", each.index, b.load(_INDEX, "tmp0", each.index))
    return f.finish(1, elements)
