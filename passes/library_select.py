"""Nonzero and unique as Einsums: elements that are found, counted by running sums, and put in their places."""

from __future__ import annotations

from collections.abc import Sequence

from dlc.ir.dtype import BOOL, I64
from dlc.ir.expr import Apply, Expr, Index, Piecewise, access, const, index_value
from dlc.ir.extent import IntExpr, int_expr, sym
from dlc.ir.program import Bind, Library, Symbol
from dlc.ir.view import Val
from dlc.passes.library_tools import KEY_TYPES, Expansion, Point, Running, keys, one_if, running_count


def bind_extent(b: Expansion, symbol: Symbol, total: Val) -> IntExpr:
    """The scalar `total` as the extent that the operation determines."""
    assert total.name is not None
    b.emit(Bind(symbol, total.name, b.loc))
    return sym(symbol.name)


def nonzero(b: Expansion, stmt: Library, args: list[Val]) -> list[Val]:
    """Coordinates i64[rank, n] of the elements that are not zero, row-major."""
    (x,) = args
    flat = x.reshape([x.elements])
    zero = const(False if x.dtype == BOOL else 0, x.dtype)
    empty = x.elements.const == 0  # then no read of it is in bounds
    flags = b.compute(
        "flags", flat.shape, lambda i: const(False, BOOL) if empty else Apply("ne", (flat.at((i,)), zero)), BOOL
    )  # fmt: skip
    run = running_count(b, flags)
    n = bind_extent(b, stmt.binds[0], run.total)
    found = put_flagged(b, "found", flags, run, n, lambda i: Index(i))

    def coordinate(d: IntExpr, k: IntExpr) -> Expr:
        at = index_value(found.at((k,)))
        cases: list[tuple[Expr, Expr]] = []
        stride = int_expr(1)
        for dim in reversed(range(x.rank)):
            value = at // stride
            extent = int_expr(1) if x.shape[dim].const == 0 else x.shape[dim]  # of an empty tensor nothing is found
            value = value if dim == 0 else value % extent
            cases.append((Apply("eq", (Index(d), const(dim, I64))), Index(value)))
            stride = stride * extent
        return cases[0][1] if len(cases) == 1 else Piecewise(tuple(cases[:-1]), cases[-1][1])

    return [b.compute("at", [x.rank, n], coordinate, I64)]


def put_flagged(b: Expansion, hint: str, flags: Val, run: Running, n: IntExpr, element: object) -> Val:
    """i64[n]: `element(i)` of every flagged `i`, in order."""
    assert flags.name is not None and callable(element)
    name = flags.name

    def at(i: Point) -> IntExpr:
        return run.block * i[0] + i[1]

    return b.put(
        hint,
        [n],
        const(0, I64),
        [run.blocks, run.block],
        lambda i: [index_value(run.at_block(i[0], i[1]))],
        lambda i: element(at(i)),
        I64,
        where=lambda i: access(name, at(i), default=const(False, BOOL)),
    )


def unique(b: Expansion, stmt: Library, args: list[Val]) -> list[Val]:
    """(values, first, inverse, counts) of the distinct rows of x[m, w]; a row with a NaN equals no other."""
    (x,), in_order = args, bool(dict(stmt.attrs).get("sorted", True))
    m, width = x.shape
    ranks = _row_ranks(b, x)

    def rank_of(i: IntExpr) -> IntExpr:
        return index_value(ranks.at((i,)))

    # of the rows with a rank, the first; m where no row has it
    nobody = Index(m)
    first_of = b.put(
        "first_of", [m], nobody, [m], lambda i: [rank_of(i[0])], lambda i: Index(i[0]), I64, op="min"
    )  # fmt: skip

    def leader(i: IntExpr) -> Expr:
        if in_order:
            return Apply("lt", (first_of.at((i,)), nobody))
        return Apply("eq", (first_of.at((rank_of(i),)), Index(i)))

    flags = b.compute("flags", [m], leader, BOOL)
    run = running_count(b, flags)
    n = bind_extent(b, stmt.binds[0], run.total)

    def number(i: IntExpr) -> Expr:
        return run.at(rank_of(i) if in_order else index_value(first_of.at((rank_of(i),))))

    inverse = b.compute("inverse", [m], number, I64)

    def row(i: IntExpr) -> Expr:
        if not in_order:
            return Index(i)
        assert first_of.name is not None
        return access(first_of.name, i, default=const(0, I64))

    first = put_flagged(b, "first", flags, run, n, row)
    counts = b.put(
        "counts", [n], const(0, I64), [m], lambda i: [index_value(inverse.at(i))], lambda i: const(1, I64), I64, op="sum"
    )  # fmt: skip
    values = b.compute("values", [n, width], lambda k, c: x.at((index_value(first.at((k,))), c)), x.dtype)
    return [values, first, inverse, counts]


def _row_ranks(b: Expansion, x: Val) -> Val:
    """i64[m]: how many rows come before each, compared column by column; rows are equal where their ranks are."""
    m, width = x.shape
    key = keys(b, x)
    nan = const(KEY_TYPES[x.dtype].highest, KEY_TYPES[x.dtype]) if x.dtype.is_float else None

    def column(c: IntExpr, later: Val | None) -> Val:
        """Ranks by columns c and later, given those by the columns after c."""

        def before(i: Point, r: Point) -> Expr:
            mine, other = key.at((i[0], c)), key.at((r[0], c))
            less = Apply("lt", (other, mine))
            tie: Expr = const(False, BOOL)
            if later is not None:
                tie = Apply("lt", (later.at(r), later.at(i)))
            if nan is not None:  # NaN differs from NaN: in order of occurrence
                tie = Apply("select", (Apply("eq", (mine, nan)), Apply("lt", (Index(r[0]), Index(i[0]))), tie))
            return one_if(Apply("or", (less, Apply("and", (Apply("eq", (other, mine)), tie)))))

        return b.reduce("rank", "sum", [m], [m], before, I64)

    if width.const == 1:
        return column(int_expr(0), None)
    start = b.compute("rank_start", [m], lambda _: const(0, I64), I64)

    def step(t: IntExpr, state: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        return [column(width - 1 - t, state[0])], []

    (final,), _ = b.scan("columns", width, [start], step)
    return final
