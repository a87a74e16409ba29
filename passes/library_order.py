"""Sort and top-k as Einsums."""

from __future__ import annotations

from collections.abc import Sequence

from dlc.ir.dtype import I32, I64
from dlc.ir.expr import Apply, Cast, Expr, Index, const, index_value
from dlc.ir.extent import IntExpr
from dlc.ir.program import Library
from dlc.ir.view import Val
from dlc.passes.library_tools import Expansion, Point, keys, one_if

_SCANNED = 64
_COUNTED = 128


def sort(b: Expansion, stmt: Library, args: list[Val]) -> list[Val]:
    """(values, indices) of `x` in order along an axis; equal values keep their order."""
    (x,), attrs = args, dict(stmt.attrs)
    axis = int(attrs.get("axis", -1)) % x.rank
    key = keys(b, x, reverse=not attrs.get("descending", False))
    order = _order_by_counting(b, key, axis, x.shape[axis])
    return [_gathered(b, x, order, axis), order]


def topk(b: Expansion, stmt: Library, args: list[Val]) -> list[Val]:
    """(values, indices) of the k first along an axis, in order; the lower index first among equals."""
    x, attrs = args[0], dict(stmt.attrs)
    axis = int(attrs.get("axis", -1)) % x.rank
    k, n = stmt.types[0].shape[axis], x.shape[axis]
    key = keys(b, x, reverse=not attrs.get("largest", True))
    if _few(k, n):
        order = _order_by_taking(b, key, axis, k)
    else:
        order = _order_by_counting(b, key, axis, k)
    return [_gathered(b, x, order, axis), order]


def _few(k: IntExpr, n: IntExpr) -> bool:
    """Whether taking the best k times is less work than comparing all pairs."""
    if k.const is None:
        return False
    if n.const is None:
        return k.const <= _SCANNED
    return n.const > _COUNTED and 16 * k.const <= n.const


def _with(i: Sequence[IntExpr], axis: int, at: IntExpr) -> Point:
    return (*i[:axis], at, *i[axis + 1 :])


def _gathered(b: Expansion, x: Val, order: Val, axis: int) -> Val:
    def element(*i: IntExpr) -> Expr:
        return x.at(_with(i, axis, index_value(order.at(i))))

    return b.compute("values", order.shape, element, x.dtype)


def _order_by_counting(b: Expansion, key: Val, axis: int, size: IntExpr) -> Val:
    """Indices of the first `size` keys, greatest first: element i goes to the place that is the number before it."""

    def before(i: Point, r: Point) -> Expr:
        mine, other = key.at(i), key.at(_with(i, axis, r[0]))
        tie = Apply("and", (Apply("eq", (other, mine)), Apply("lt", (Index(r[0]), Index(i[axis])))))
        return one_if(Apply("or", (Apply("gt", (other, mine)), tie)), I32)

    place = b.reduce("place", "sum", key.shape, [key.shape[axis]], before, I32)
    shape = _with(key.shape, axis, size)
    whole = size == key.shape[axis]

    def inside(i: Point) -> Expr:
        return Apply("lt", (Cast(I64, place.at(i)), Index(size)))

    return b.put(
        "order",
        shape,
        const(0, I64),
        key.shape,
        lambda i: _with(i, axis, index_value(Cast(I64, place.at(i)))),
        lambda i: Index(i[axis]),
        I64,
        where=None if whole else inside,
    )


def _order_by_taking(b: Expansion, key: Val, axis: int, k: IntExpr) -> Val:
    """Indices of the first k keys, greatest first: each step takes the best of what comes after the last one taken."""
    rest = [e for d, e in enumerate(key.shape) if d != axis]
    highest = b.compute("from_key", rest, lambda *_: const(key.dtype.highest, key.dtype), key.dtype)
    nowhere = b.compute("from_index", rest, lambda *_: const(-1, I64), I64)

    def step(_: IntExpr, state: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        last_key, last = state

        def at(i: Point, r: Point) -> Expr:
            return key.at((*i[:axis], r[0], *i[axis:]))

        def after(i: Point, r: Point) -> Expr:
            later = Apply("gt", (Index(r[0]), last.at(i)))
            tie = Apply("and", (Apply("eq", (at(i, r), last_key.at(i))), later))
            return Apply("or", (Apply("lt", (at(i, r), last_key.at(i))), tie))

        best = b.fold(
            ("best", "best_at"), "argmax", rest, [key.shape[axis]], lambda i, r: (at(i, r), Index(r[0])),
            (key.dtype, I64), where=after,
        )  # fmt: skip
        return best, best[1:]

    _, (taken,) = b.scan("take", k, [highest, nowhere], step)
    shape = _with(key.shape, axis, k)
    return b.compute("order", shape, lambda *i: taken.at((i[axis], *i[:axis], *i[axis + 1 :])), I64)
