"""Pieces of random programs: scans, branches, loops, extents bound at run time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlc.ir.dtype import BF16, BOOL, F16, F32, F64, I32, I64
from dlc.ir.expr import Cast, Expr, Index, apply, const
from dlc.ir.extent import IntExpr, value
from dlc.ir.view import Val
from tests.fuzz.generate import Extent, Gen, Piece, Unfit
from tests.fuzz.pieces import expression


def cumulative(g: Gen) -> None:
    """A running sum, product or maximum along a dimension, written as a scan."""
    t = g.some((F32, F32, F64, F16, I32, I64), (1, 3))
    d = g.rng.randrange(t.rank)
    op = g.pick(("add", "max", "mul"))
    b, dtype = g.builder, t.dtype
    rest = [*t.val.shape[:d], *t.val.shape[d + 1 :]]
    start = const(1 if op == "mul" else 0, dtype)
    init = b.compute("init", rest, lambda *i: start, dtype)

    def body(s: IntExpr, c: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        step = b.compute("acc", rest, lambda *i: apply(op, c[0].at(i), t.val.at((*i[:d], s, *i[d:]))), dtype)
        return (step,), (step,)

    (last,), (rows,) = b.scan("cum", t.val.shape[d], (init,), body)
    g.tag("scan", "scan:stacked", "scan:zero" if t.shape[d] == 0 else "scan:cumulative")
    dims = list(range(1, d + 1)) + [0] + list(range(d + 1, t.rank))
    view = rows.permute(dims)
    out = b.compute("cumout", view.shape, lambda *i: view.at(i), dtype)
    g.add(out, t.shape, False)
    if g.chance(0.4):
        g.add(last, [n for k, n in enumerate(t.shape) if k != d], False)


def recurrent(g: Gen) -> None:
    """An RNN, GRU or LSTM cell: contractions inside a scan, several carries, stacked outputs."""
    b = g.builder
    dtype = g.pick((F32, F32, F32, F64, F16))
    steps, batch = g.extent(0, 0 if g.chance(0.08) else 9), g.extent(1, 5)
    hidden, width = g.pick((1, 3, 8, 16, 24)), g.pick((1, 4, 9))
    x = g.input(dtype, [steps, batch, Extent(_i(width), width)])
    wi, wh = (g.constant(dtype, s, -0.5, 0.5, hint="w") for s in ([hidden, width], [hidden, hidden]))
    h0, c0 = (g.input(dtype, [batch, Extent(_i(hidden), hidden)]) for _ in range(2))
    reverse = g.chance(0.3)
    outside = g.chance(0.5)  # the input's contraction before the scan, or inside
    gx = b.contract("gx", "tbk,nk->tbn", x.val, wi.val) if outside else None

    def body(t: IntExpr, c: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        at = steps.expr - 1 - t if reverse else t
        gh = b.contract("gh", "bk,nk->bn", c[0], wh.val)
        gi = gx.select(0, at) if gx is not None else b.contract("gi", "bk,nk->bn", x.val.select(0, at), wi.val)
        s = b.map("s", lambda u, v: apply("tanh", apply("add", u, v)), gh, gi)
        cell = b.map("cell", lambda u, v: apply("add", apply("mul", apply("sigmoid", v), u), v), c[1], s)
        nxt = b.map("h", lambda u, v: apply("mul", u, apply("tanh", v)), s, cell)
        return (nxt, cell), ((nxt,) if g.chance(0.7) else (nxt, cell))

    finals, stacked = b.scan("rnn", steps.expr, (h0.val, c0.val), body)
    g.tag("scan", "scan:stacked", "scan:contraction", "contraction", *(["scan:zero"] if steps.value == 0 else []))
    for f in finals:
        if g.chance(0.7):
            g.add(f, (batch.value, hidden), False)
    for s in stacked:
        g.add(s, (steps.value, batch.value, hidden), False)


def nested(g: Gen) -> None:
    """A scan in a scan; the inner one's carry starts from the outer one's, and a reduction inside the body."""
    b = g.builder
    dtype = g.pick((F32, F64, I32))
    n, m, w = g.extent(0, 0 if g.chance(0.1) else 5), g.extent(0, 4), g.extent(1, 17)
    x = g.input(dtype, [n, m, w])
    z = g.input(dtype, [w])

    def outer(t: IntExpr, c: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        def inner(s: IntExpr, d: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
            y = b.compute(
                "y", [w.expr], lambda i: apply("max", apply("sub", d[0](i), x.val(t, s, i)), const(0, dtype)), dtype
            )
            return (y,), (y,)

        (y,), (ys,) = b.scan("in", m.expr, (c[0],), inner)
        total = b.reduce_axes("tot", "sum", ys, [0], False)
        return (y,), (total,)

    (last,), (rows,) = b.scan("out", n.expr, (z.val,), outer)
    g.tag("scan", "scan:nested", *(["scan:zero"] if 0 in (n.value, m.value) else []))
    g.add(last, (w.value,), False)
    g.add(rows, (n.value, w.value), False)


def swap(g: Gen) -> None:
    """A scan whose carries change places: storage of states may not be overwritten too early."""
    b = g.builder
    dtype = g.pick((F32, I32, F64))
    n, w = g.extent(0, 7), g.extent(1, 33)
    a0, b0 = g.input(dtype, [w]), g.input(dtype, [w])

    def body(t: IntExpr, c: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        x = b.compute("x", [w.expr], lambda i: c[1](w.expr - 1 - i), dtype)
        y = b.compute("y", [w.expr], lambda i: apply("add", c[0](i), c[1](i)), dtype)
        return (x, y), ()

    finals, _ = b.scan("swap", n.expr, (a0.val, b0.val), body)
    g.tag("scan", "scan:swap")
    for f in finals:
        g.add(f, (w.value,), False)


def cache(g: Gen) -> None:
    """A scan that looks rows up by index and writes into a carried table: a memory read and appended to step by step."""
    b = g.builder
    dtype = g.pick((F32, F32, F64, F16, I32))
    steps, rows, w = g.extent(0, 6), g.extent(1, 9), g.extent(1, 19)
    table, x = g.input(dtype, [rows, w]), g.input(dtype, [steps, w])
    at = g.input(I64, [steps], 0, rows.value - 1, hint="ix", below=rows.expr)
    op = g.pick(("set", "set", "sum", "max"))

    def body(t: IntExpr, c: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        i = value(at.val(t))
        found = b.compute("found", [w.expr], lambda j: apply("max", c[0](i, j), x.val(t, j)), dtype)
        following = b.scatter("put", c[0], [w.expr], lambda j: (i, j), lambda j: x.val(t, j), op)
        return (following,), (found,)

    finals, stacked = b.scan("kv", steps.expr, (table.val,), body)
    g.tag("scan", "scan:cache", "scatter", f"scatter:{op}", "gather", *(["scan:zero"] if steps.value == 0 else []))
    g.add(finals[0], (rows.value, w.value), False)
    g.add(stacked[0], (steps.value, w.value), False)


def inner_branch(g: Gen) -> None:
    """A branch inside a loop, and a contraction in one arm."""
    b, dtype = g.builder, g.pick((F32, F32, F64))
    n = g.pick((1, 4, 16, 17))
    x = g.input(dtype, [Extent(_i(3), 3), Extent(_i(n), n)], -1, 1)
    w = g.constant(dtype, [n, n], -0.5, 0.5, hint="w")
    limit = g.input(I64, [], 0, 5)

    def body(i: Val, c: tuple[Val, ...]) -> tuple[Val | None, Sequence[Val], Sequence[Val]]:
        odd = b.compute("odd", (), lambda: apply("eq", apply("rem_floor", i(), const(2, I64)), const(1, I64)), BOOL)
        (y,) = b.if_(
            odd,
            lambda: [b.contract("step", "mk,kn->mn", c[0], w.val)],
            lambda: [b.map("other", lambda u: apply("neg", u), c[0])] if g.chance(0.5) else [c[0]],
        )
        return None, (y,), ((y,) if g.chance(0.4) else ())

    finals, rows = b.loop("lp", (x.val,), body, limit=limit.val, bound=8)
    g.tag("loop", "if", "loop:if", "loop:for")
    g.add(finals[0], (3, n), False)
    g.leaving.extend(rows)


def branch(g: Gen) -> None:
    t = g.some((F32, F32, F64, I32, BF16), (0, 3))
    b, dtype = g.builder, t.dtype
    kind = g.pick(("input", "data", "shape"))
    if kind == "input":
        cond = g.input(BOOL, []).val
    elif kind == "data":
        k = g.input(I64, [], -3, 3)
        cond = b.compute("cond", (), lambda: apply("gt", k.val(), const(0, I64)), BOOL)
    else:
        if not g.symbols:
            raise Unfit
        n = g.pick(list(g.symbols.values()))
        cond = b.compute("cond", (), lambda: apply("gt", Index(n.expr), const(5, I64)), BOOL)

    def then() -> list[Val]:
        return [b.map("then", lambda u: expression(g, dtype, [(u, dtype)], 2), t.val)]

    def orelse() -> list[Val]:
        if g.chance(0.3):
            return [t.val]
        y = b.map("else", lambda u: expression(g, dtype, [(u, dtype)], 1), t.val)
        return [b.map("else2", lambda u, v: apply("add", u, v), y, t.val)]

    (out,) = b.if_(cond, then, orelse)
    g.tag("if")
    g.add(out, t.shape, False)


def loop(g: Gen) -> None:
    """A counted or conditional loop with carries; collected rows bind an extent."""
    b = g.builder
    dtype = g.pick((F32, F64, I32))
    w = g.extent(1, 17)
    x = g.input(dtype, [w], -2, 2)
    limit = g.input(I64, [], 0, 6) if g.chance(0.8) else None
    conditional = limit is None or g.chance(0.5)
    collect = g.chance(0.5)

    def body(i: Val, c: tuple[Val, ...]) -> tuple[Val | None, Sequence[Val], Sequence[Val]]:
        y = b.compute("y", [w.expr], lambda k: apply("add", c[0](k), Cast(dtype, i())), dtype)
        again = None
        if conditional:
            again = b.compute("go", (), lambda: apply("lt", i(), const(3, I64)), BOOL)
        return again, (y,), ((y,) if collect else ())

    start = b.scalar(True, BOOL) if conditional and g.chance(0.7) else (g.input(BOOL, []).val if conditional else None)
    finals, rows = b.loop(
        "lp",
        (x.val,),
        body,
        limit=limit.val if limit is not None else None,
        cond=start,
        bound=20 if g.chance(0.6) else None,
    )
    g.tag("loop", "loop:while" if conditional else "loop:for", *(["loop:collect"] if collect else []))
    g.add(finals[0], (w.value,), False)
    for r in rows:
        g.leaving.append(r)


def bind(g: Gen) -> None:
    """An extent from a tensor: a range, a slice of that length, a reduction over it."""
    b = g.builder
    n = g.input(I64, [], 0, 9)
    e = b.bind(n.val, "bound", 0, g.pick((9, 64, None)))
    dtype = g.pick((F32, I64, I32))
    out = b.compute("range", (e,), lambda i: Cast(dtype, Index(i * 3 + 1)), dtype)
    g.tag("bind")
    if g.chance(0.5):
        w = g.extent(1, 9)
        y = g.input(dtype, [w])
        out2 = b.compute("outer", (e, w.expr), lambda i, j: apply("mul", out(i), y.val(j)), dtype)
        total = b.reduce_axes("sum", "sum", out2, [0], False)
        g.add(total, (w.value,), False)
        if g.chance(0.4):
            return
    g.leaving.append(out)


def _i(n: int) -> IntExpr:
    from dlc.ir.extent import int_expr

    return int_expr(n)


CONTROL: list[tuple[str, float, Piece]] = [
    ("cumulative", 0.9, cumulative),
    ("recurrent", 0.9, recurrent),
    ("nested", 0.4, nested),
    ("swap", 0.4, swap),
    ("cache", 0.4, cache),
    ("inner-branch", 0.4, inner_branch),
    ("branch", 0.7, branch),
    ("loop", 0.7, loop),
    ("bind", 0.6, bind),
]

__all__ = ["CONTROL", "Expr", "np"]
