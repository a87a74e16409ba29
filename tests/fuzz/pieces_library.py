"""Pieces of random programs: library operations, and Einsums over the extents that they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I32, I64, DType
from dlc.ir.expr import Cast, Index, apply, const
from dlc.ir.extent import IntExpr, int_expr, maximum, minimum, sym, value
from dlc.ir.view import Val
from tests.fuzz.generate import ALL, INTS, Extent, Gen, Piece, Tensor
from tests.fuzz.pieces import monoids

FULL = 400
"""Most elements of a tensor made for an operation here: its meaning in NumPy is a loop for some."""


def material(g: Gen, ranks: tuple[int, int], pool: Sequence[DType] = ALL, fresh: float = 0.6) -> Tensor:
    """Something to put in order: often with ties, NaN, infinities and zeros of both signs."""

    def make() -> Tensor:
        dtype = g.pick((F32, F32, F64, F16, BF16, I64, I32, *INTS, BOOL))
        t = g.input(dtype, g.shape(g.rng.randint(*ranks), FULL))
        a = g.inputs[-1]
        if g.chance(0.5) and dtype != BOOL:
            a[...] = (np.rint(a.astype(np.float64)) if dtype.is_float else a % 3).astype(a.dtype)
            g.tag("input:ties")
        if dtype.is_float and g.chance(0.3):
            g._sprinkle(a, [np.nan, np.nan, np.inf, -np.inf, -0.0, 0.0])
            g.tag("input:special-float")
            t = replace(t, clean=False)
        return t

    return g.take(lambda t: ranks[0] <= t.rank <= ranks[1] and t.dtype in pool and size(t) <= 3000, make, fresh)


def size(t: Tensor) -> int:
    return int(np.prod(t.shape))


def turned(g: Gen, t: Tensor, axis: int) -> Val:
    """The operand itself, or a view of it, which then is a tensor of its own."""
    return t.val.flip(axis) if g.chance(0.2) else t.val


def ordered(g: Gen, x: Val, axis: int, descending: bool) -> tuple[Val, Val]:
    attrs: dict[str, int | float | bool | str] = {"axis": axis, "descending": descending, "stable": True}
    values, at = g.builder.library("sort", [x], [("sorted", x.dtype, x.shape), ("place", I64, x.shape)], attrs)
    return values, at


def best(g: Gen, x: Val, axis: int, k: IntExpr) -> tuple[Val, Val]:
    shape = [*x.shape[:axis], k, *x.shape[axis + 1 :]]
    attrs: dict[str, int | float | bool | str] = {"axis": axis, "largest": g.chance(0.6), "sorted": True}
    if k.const is not None and g.chance(0.7):
        attrs["k"] = k.const
    values, at = g.builder.library("topk", [x], [("best", x.dtype, shape), ("which", I64, shape)], attrs)
    return values, at


def keep_some(g: Gen, values: Val, at: Val, shape: Sequence[int], clean: bool) -> None:
    """Both results go into the pool, or one of them."""
    kept = g.pick(("both", "both", "values", "indices"))
    if kept != "indices":
        g.add(values, shape, clean)
    if kept != "values":
        g.add(at, shape, True)


def sort(g: Gen) -> None:
    t = material(g, (1, 4))
    axis = g.rng.randrange(t.rank)
    descending = g.chance(0.5)
    values, at = ordered(g, turned(g, t, axis), axis - (t.rank if g.chance(0.2) else 0), descending)
    g.tag("library:sort", f"sort:{'descending' if descending else 'ascending'}")
    if g.chance(0.1):  # once more, as a model does that wants the indices elsewhere
        _, again = ordered(g, t.val, axis, descending)
        g.add(again, t.shape, True)
    if g.chance(0.2):  # the other elements by the order of these
        other = g.leaf(F32, g.extents(t))
        by = g.builder.compute(
            "by", at.shape, lambda *i: other.val.at((*i[:axis], value(at.at(i)), *i[axis + 1 :])), F32
        )
        g.add(by, t.shape, other.clean)
    keep_some(g, values, at, t.shape, t.clean)


def topk(g: Gen) -> None:
    """The first k of an order; k is a number, an expression of symbols, or what a tensor holds."""
    t = material(g, (1, 3))
    axis = g.rng.randrange(t.rank)
    extent, n = t.val.shape[axis], t.shape[axis]
    kind = g.pick(("static", "expression", "bound"))
    if kind == "bound":
        k = g.input(I64, [], 0, n, hint="k", below=extent + 1)
        bound = g.builder.bind(k.val, "k_bound", 0, extent.const)
        values, at = best(g, turned(g, t, axis), axis, bound)
        g.tag("library:topk", "topk:bound")
        g.leaving.extend((values, at))
        if g.chance(0.6):
            total = g.builder.reduce_axes("total", g.pick(monoids(t.dtype)), values, [axis], False)
            g.add(total, [m for d, m in enumerate(t.shape) if d != axis], False)
        return
    if kind == "static" and extent.const is not None:
        count = int_expr(g.rng.randint(0 if g.chance(0.1) else min(1, n), n))
    else:
        count = g.pick((extent, minimum(extent, 3), extent // 2, maximum(extent - 1, 0)))
        kind = "expression"
    values, at = best(g, turned(g, t, axis), axis, count)
    g.tag("library:topk", f"topk:{kind}")
    keep_some(g, values, at, g.sized(values), t.clean)


def found_extent(g: Gen, hint: str, limit: IntExpr, bounded: bool = False) -> tuple[str, int, int | None]:
    """A symbol for an extent that an operation finds: its name, and the range that is declared.

    `bounded` where memory is needed by it: to sort, or to find what is unique.
    """
    if limit.const is not None and (bounded or g.chance(0.7)):
        return g.builder.fresh(hint), 0, limit.const
    return g.builder.fresh(hint), 0, 1 << 16 if bounded else None


def nonzero_of(g: Gen, x: Val, bounded: bool = False) -> Val:
    found = found_extent(g, "found", x.elements, bounded)
    (at,) = g.builder.library("nonzero", [x], [("at", I64, [x.rank, sym(found[0])])], {}, [found])
    return at


def nonzero(g: Gen) -> None:
    t = material(g, (1, 3))
    b = g.builder
    if g.chance(0.3):
        limit = g.literal(t.dtype)
        t = Tensor(b.map("mask", lambda u: apply(g.pick(("ge", "ne", "lt")), u, limit), t.val, dtype=BOOL), t.shape)
    kind = g.pick(("leave", "gather", "count", "scatter", "sort"))
    at = nonzero_of(g, t.val, kind == "sort")
    n = at.shape[1]
    g.tag("library:nonzero")
    if kind in ("leave", "gather") or g.chance(0.3):
        g.leaving.append(at)
    if kind == "leave":
        return
    g.tag("library:extent-read")

    def place(j: IntExpr) -> tuple[IntExpr, ...]:
        return tuple(value(at(d, j)) for d in range(t.rank))

    match kind:
        case "gather":
            taken = b.compute("taken", [n], lambda j: t.val.at(place(j)), t.dtype)
            g.leaving.append(taken)
            g.add(b.reduce_axes("over", g.pick(monoids(t.dtype)), taken, [0], False), (), False)
        case "count":
            g.add(b.compute("many", [], lambda: Index(n), I64), ())
        case "scatter":
            base = b.compute("base", t.val.shape, lambda *i: const(0, I32), I32)
            marked = b.scatter("marked", base, [n], place, lambda j: Cast(I32, Index(j + 1), "wrap"))
            g.add(marked, t.shape)
        case "sort":
            g.leaving.extend(ordered(g, at, g.pick((0, 1)), g.chance(0.5)))


def unique_of(g: Gen, rows: Val, bounded: bool = False) -> tuple[Val, Val, Val, Val]:
    m, width = rows.shape
    found = found_extent(g, "distinct", m, bounded)
    n = sym(found[0])
    results = [("values", rows.dtype, [n, width]), ("first", I64, [n]), ("inverse", I64, [m]), ("counts", I64, [n])]
    values, first, inverse, counts = g.builder.library("unique", [rows], results, {"sorted": g.chance(0.6)}, [found])
    return values, first, inverse, counts


def unique(g: Gen) -> None:
    """Distinct rows; of floats only those that no rounding has moved, for which rows are equal must be sure."""
    b = g.builder
    t = material(g, (1, 2), (*INTS, BOOL), 0.8)
    rows = t.val if t.rank == 2 else t.val.unsqueeze(1)
    if t.rank == 2 and g.chance(0.3):
        rows = rows.transpose(0, 1)
    m, width = g.sized(rows)
    kind = g.pick(("none", "back", "histogram", "most", "again"))
    values, first, inverse, counts = unique_of(g, rows, kind == "again")
    n = values.shape[0]
    g.tag("library:unique")
    kept = [v for v in (values, first, counts) if g.chance(0.5)]
    g.leaving.extend(kept or [values])
    if g.chance(0.5):
        g.add(inverse, (m,))
    if kind != "none":
        g.tag("library:extent-read")
    match kind:
        case "back":  # what the inverse is for
            g.add(
                b.compute("back", rows.shape, lambda i, c: values(value(inverse(i)), c), t.dtype), (m, width), t.clean
            )
        case "histogram":
            share = b.compute(
                "share", [n], lambda j: apply("div", Cast(F32, counts(j)), Cast(F32, Index(rows.shape[0]))), F32
            )
            g.leaving.append(share)
            g.add(b.reduce_axes("whole", "sum", share, [0], False), (), False)
        case "most":
            op = g.pick(("max", "min", "sum"))
            g.add(b.reduce_axes("most", op, g.pick((counts, first)), [0], False), (), False)
        case "again":
            g.leaving.extend(unique_of(g, values)[1:])


def nms(g: Gen) -> None:
    """Non-maximum suppression of few boxes; scores tie, boxes touch, lie in one another or are empty."""
    b = g.builder
    batches, classes, count = g.extent(0, 3), g.extent(0, 3), g.extent(0, 17)
    four = Extent(int_expr(4), 4)
    boxes = g.input(g.pick((F32, F32, F32, F16)), [batches, count, four], 0, 1, hint="boxes")
    if g.chance(0.5):
        g.inputs[-1][...] = (np.rint(g.inputs[-1].astype(np.float64) * 4) / 4).astype(boxes.dtype.numpy)
    if g.chance(0.15):
        g._sprinkle(g.inputs[-1], [np.nan, np.inf, -np.inf, -0.0])
    scores = g.input(g.pick((F32, F32, F32, F16, F64)), [batches, classes, count], 0, 1, hint="scores")
    if g.chance(0.5):
        g.inputs[-1][...] = (np.rint(g.inputs[-1].astype(np.float64) * 10) / 10).astype(scores.dtype.numpy)
        g.tag("input:ties")
    if g.chance(0.15):
        g._sprinkle(g.inputs[-1], [np.nan, np.inf, -np.inf, -0.0])
    limit = b.scalar(g.rng.randint(0, 6), I64) if g.chance(0.4) else g.input(g.pick((I64, I32)), [], -1, 6).val
    iou, score = (
        b.scalar(g.pick((0.0, 0.3, 0.5, 0.7, 1.0)), F32) if g.chance(0.6) else g.input(F32, [], 0, 1).val for _ in "ab"
    )
    found = found_extent(g, "chosen", batches.expr * classes.expr * count.expr)
    n = sym(found[0])
    attrs: dict[str, int | float | bool | str] = {"center_point_box": g.chance(0.4), "has_score": g.chance(0.6)}
    (at,) = b.library("nms", [boxes.val, scores.val, limit, iou, score], [("chosen", I64, [n, 3])], attrs, [found])
    g.tag("library:nms")
    kind = g.pick(("leave", "gather", "rows"))
    if kind == "leave":
        g.leaving.append(at)
        return
    g.tag("library:extent-read")
    if kind == "gather":
        taken = b.compute("kept", [n, 4], lambda j, c: boxes.val(value(at(j, 0)), value(at(j, 2)), c), boxes.dtype)
        g.leaving.append(taken)
        g.add(b.reduce_axes("hull", g.pick(("max", "min")), taken, [0], False), (4,), False)
    else:
        g.leaving.append(at)
        g.add(b.reduce_axes("rows", "sum", at, [0], False), (3,), False)


def in_region(g: Gen) -> None:
    """A library operation in a branch or in the body of a loop; an extent found there is read there."""
    b = g.builder
    dtype = g.pick((F32, F32, F64, I32))
    w = g.extent(1, 17)
    x = g.input(dtype, [w], -3, 3)

    def work(v: Val) -> Val:
        kind = g.pick(("sort", "topk", "nonzero", "unique"))
        g.tag(f"library:{kind}")
        match kind:
            case "sort":
                return ordered(g, v, 0, g.chance(0.5))[0]
            case "topk":
                found, _ = best(g, v, 0, int_expr(1))
                return b.compute("less", v.shape, lambda i: apply("sub", v(i), found(0)), dtype)
            case "nonzero":
                at = nonzero_of(g, b.map("above", lambda u: apply("gt", u, const(0, dtype)), v, dtype=BOOL))
                total = b.reduce("total", "sum", (), [at.shape[1]], lambda i, r: v(value(at(0, r[0]))), dtype)
            case _:
                counts = unique_of(g, v.unsqueeze(1))[3]
                many = b.reduce_axes("many", "max", counts, [0], False)
                total = b.cast(many, dtype)
        return b.compute("less", v.shape, lambda i: apply("sub", v(i), total()), dtype)

    g.tag("library:region")
    if g.chance(0.5):
        cond = g.input(BOOL, []).val
        (out,) = b.if_(cond, lambda: [work(x.val)], lambda: [work(x.val) if g.chance(0.5) else x.val])
        g.tag("if")
        g.add(out, (w.value,), False)
        return

    def body(i: Val, c: tuple[Val, ...]) -> tuple[Val | None, Sequence[Val], Sequence[Val]]:
        return None, (work(c[0]),), ()

    finals, _ = b.loop("lp", (x.val,), body, limit=g.input(I64, [], 0, 3).val, bound=8)
    g.tag("loop", "loop:for")
    g.add(finals[0], (w.value,), False)


LIBRARY: list[tuple[str, float, Piece]] = [
    ("sort", 0.6, sort),
    ("topk", 0.7, topk),
    ("nonzero", 0.5, nonzero),
    ("unique", 0.5, unique),
    ("nms", 0.5, nms),
    ("library-region", 0.4, in_region),
]
