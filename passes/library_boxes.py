"""Non-maximum suppression as a loop of Einsums."""

from __future__ import annotations

from collections.abc import Sequence

from dlc.ir.dtype import BOOL, F32, I64
from dlc.ir.expr import Apply, Expr, Index, Piecewise, const, index_value
from dlc.ir.extent import IntExpr, IntLike, int_expr, minimum
from dlc.ir.program import Library
from dlc.ir.view import Val
from dlc.passes.library_select import bind_extent
from dlc.passes.library_tools import Expansion, Point, at_scalar, keys, one_if


def nms(b: Expansion, stmt: Library, args: list[Val]) -> list[Val]:
    """i64[n, 3]: (batch, class, box) of the boxes that are kept, by batch, class and score.

    Every class of every batch takes its best box left, and drops those that overlap it too much, until `limit` are taken
    or none is left.
    """
    boxes, scores, limit, iou, score = args
    attrs = dict(stmt.attrs)
    batches, classes, count = scores.shape
    corners = _corners(b, boxes, bool(attrs.get("center_point_box", False)))
    area = b.compute("area", boxes.shape[:2], lambda *i: _mul(_side(corners, i, 0), _side(corners, i, 1)), F32)
    key = keys(b, scores)

    def candidate(*i: IntExpr) -> Expr:
        return Apply("gt", (scores.at(i), at_scalar(score))) if attrs.get("has_score", True) else const(True, BOOL)

    alive = b.compute("alive", scores.shape, candidate, BOOL)
    taken = b.compute("taken", scores.shape, lambda *_: const(-1, I64), I64)
    steps = b.compute("steps", [], lambda: Apply("min", (at_scalar(limit), Index(count))), I64)

    def step(number: Val, state: tuple[Val, ...]) -> tuple[Val, Sequence[Val], Sequence[Val]]:
        left, when = state
        _, best = b.fold(
            ("best", "best_at"), "argmax", [batches, classes], [count],
            lambda i, r: (key.at((*i, r[0])), Index(r[0])), (key.dtype, I64), where=lambda i, r: left.at((*i, r[0])),
        )  # fmt: skip

        def chosen(i: Point) -> Expr:
            return Apply("eq", (Index(i[2]), best.at(i[:2])))

        def stays(*i: IntExpr) -> Expr:
            pick = minimum(index_value(best.at(i[:2])), count - 1)  # past the end when none is left
            overlap = _overlap(corners, area, (i[0], i[2]), (i[0], pick))
            apart = Apply("le", (overlap, at_scalar(iou)))
            return Apply("and", (left.at(i), Apply("and", (Apply("not", (chosen(i),)), apart))))

        following = b.compute("left", scores.shape, stays, BOOL)
        marks = b.compute(
            "when",
            scores.shape,
            lambda *i: Apply("select", (chosen(i), number.at(()), when.at(i))),
            I64,
        )
        again = b.reduce("again", "or", [], scores.shape, lambda i, r: following.at(r), BOOL)
        return again, [following, marks], []

    some = b.reduce("some", "or", [], scores.shape, lambda i, r: alive.at(r), BOOL)
    (_, when), _ = b.loop("take", [alive, taken], step, limit=steps, cond=some)

    def kept(i: Point) -> Expr:
        return Apply("ge", (when.at(i), const(0, I64)))

    counts = b.reduce(
        "counts", "sum", [batches, classes], [count], lambda i, r: one_if(kept((*i, r[0]))), I64
    )  # fmt: skip
    (offset,) = b.fold(
        ("offset",), "sum", [batches, classes], [batches, classes], lambda i, r: (counts.at(r),), (I64,),
        where=lambda i, r: Apply("lt", (Index(r[0] * classes + r[1]), Index(i[0] * classes + i[1]))),
    )  # fmt: skip
    total = b.reduce("total", "sum", [], [batches, classes], lambda i, r: counts.at(r), I64)
    n = bind_extent(b, stmt.binds[0], total)

    def row(i: Point) -> Sequence[IntLike]:
        return [index_value(Apply("add", (offset.at(i[:2]), when.at(i[:3])))), i[3]]

    def field(i: Point) -> Expr:
        first, second = (Apply("eq", (Index(i[3]), const(d, I64))) for d in (0, 1))
        return Piecewise(((first, Index(i[0])), (second, Index(i[1]))), Index(i[2]))

    shape: list[IntLike] = [batches, classes, count, 3]
    return [b.put("chosen", [n, 3], const(0, I64), shape, row, field, I64, where=lambda i: kept(i[:3]))]


def _mul(a: Expr, b: Expr) -> Expr:
    return Apply("mul", (a, b))


def _side(corners: Sequence[Val], i: Sequence[IntExpr], axis: int) -> Expr:
    at = tuple(i)
    return Apply("sub", (corners[axis + 2].at(at), corners[axis].at(at)))


def _corners(b: Expansion, boxes: Val, center: bool) -> list[Val]:
    """Least y, least x, greatest y, greatest x of every box, f32[batch, box] each."""

    def part(d: int) -> Val:
        def element(*i: IntExpr) -> Expr:
            def given(k: int) -> Expr:
                return boxes.at((*i, int_expr(k)))

            if center:  # (x, y, width, height)
                half = Apply("div", (given(3 - d % 2), const(2.0, F32)))
                return Apply("sub" if d < 2 else "add", (given(1 - d % 2), half))
            return Apply("min" if d < 2 else "max", (given(d % 2), given(2 + d % 2)))

        return b.compute(f"corner{d}", boxes.shape[:2], element, F32)

    return [part(d) for d in range(4)]


def _overlap(corners: Sequence[Val], area: Val, i: Point, j: Point) -> Expr:
    """Intersection over union; 0 when either box is empty."""

    def shared(axis: int) -> Expr:
        low = Apply("max", (corners[axis].at(i), corners[axis].at(j)))
        high = Apply("min", (corners[axis + 2].at(i), corners[axis + 2].at(j)))
        return Apply("max", (Apply("sub", (high, low)), const(0.0, F32)))

    both = _mul(shared(0), shared(1))
    union = Apply("sub", (Apply("add", (area.at(i), area.at(j))), both))
    zero = const(0.0, F32)
    empty = Apply("or", (Apply("le", (area.at(i), zero)), Apply("le", (area.at(j), zero))))
    return Apply("select", (empty, zero, Apply("div", (both, union))))
