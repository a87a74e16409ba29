"""Reductions are monoids: an identity and an associative combine over a tuple of values.

A reduction lifts each element to a tuple (for argmax: value and index) and folds the tuples in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlc.ir.dtype import BOOL, DType
from dlc.ir.expr import Access, Apply, Const, Expr, const


def _left(i: int) -> Expr:
    return Access(f"a{i}", ())


def _right(i: int) -> Expr:
    return Access(f"b{i}", ())


@dataclass(frozen=True, slots=True)
class Monoid:
    """A reduction operator.

    Attributes:
        name: its name in the text form.
        arity: values per element.
        op: the scalar operator when the monoid is one (`sum` is `add`), else None.
    """

    name: str
    arity: int
    op: str | None = None

    def identity(self, dtypes: tuple[DType, ...]) -> tuple[Const, ...]:
        """The value of an empty reduction, per component."""
        return tuple(_identity(self.name, i, t) for i, t in enumerate(dtypes))

    def combine(self) -> tuple[Expr, ...]:
        """The fold of `a0, a1, ...` with `b0, b1, ...`, where elements are written as rank-0 accesses of those names."""
        if self.op is not None:
            return (Apply(self.op, (_left(0), _right(0))),)
        return _COMBINE[self.name]


def _lowest(dtype: DType) -> Const:
    return const(float("-inf") if dtype.is_float else dtype.lowest if dtype.is_int else False, dtype)


def _highest(dtype: DType) -> Const:
    return const(float("inf") if dtype.is_float else dtype.highest if dtype.is_int else True, dtype)


def _identity(name: str, component: int, dtype: DType) -> Const:
    match name:
        case "sum" | "or" | "xor":
            return const(0, dtype)
        case "prod":
            return const(1, dtype)
        case "and":
            return const(True, dtype) if dtype == BOOL else const(-1 if dtype.kind == "i" else dtype.highest, dtype)
        case "max":
            return _lowest(dtype)
        case "min":
            return _highest(dtype)
        case "argmax" | "argmin" | "argmax_last" | "argmin_last":
            if component == 0:
                return _lowest(dtype) if name.startswith("argmax") else _highest(dtype)
            return const(dtype.lowest if name.endswith("_last") else dtype.highest, dtype)
        case _:
            return const(0, dtype)


def _arg(compare: str, last: bool) -> tuple[Expr, ...]:
    """NaN wins over numbers; ties go to the first index (or the last)."""
    a, b, i, j = _left(0), _right(0), _left(1), _right(1)
    better = Apply(compare, (b, a))
    equal = Apply("eq", (a, b))
    # x != x is NaN; for integers it is always false, so one rule serves both.
    a_nan, b_nan = Apply("ne", (a, a)), Apply("ne", (b, b))
    tie = Apply("or", (equal, Apply("and", (a_nan, b_nan))))
    wins = Apply("or", (better, Apply("and", (b_nan, Apply("not", (a_nan,))))))
    loses = Apply("and", (a_nan, Apply("not", (b_nan,))))
    first = Apply("lt", (j, i)) if not last else Apply("gt", (j, i))
    take_b = Apply("or", (Apply("and", (wins, Apply("not", (loses,)))), Apply("and", (tie, first))))
    return (Apply("select", (take_b, b, a)), Apply("select", (take_b, j, i)))


def _welford() -> tuple[Expr, ...]:
    """(n, mean, M2) of two parts, f32: Chan et al.'s pairwise update; an empty part changes nothing."""
    na, ma, sa, nb, mb, sb = _left(0), _left(1), _left(2), _right(0), _right(1), _right(2)
    n = Apply("add", (na, nb))
    delta = Apply("sub", (mb, ma))
    share = Apply("div", (nb, Apply("max", (n, const(1.0)))))
    mean = Apply("add", (ma, Apply("mul", (delta, share))))
    m2 = Apply("add", (Apply("add", (sa, sb)), Apply("mul", (Apply("mul", (delta, delta)), Apply("mul", (na, share))))))
    return (n, mean, m2)


_COMBINE: dict[str, tuple[Expr, ...]] = {
    "argmax": _arg("gt", last=False),
    "argmin": _arg("lt", last=False),
    "argmax_last": _arg("gt", last=True),
    "argmin_last": _arg("lt", last=True),
    "welford": _welford(),
}

MONOIDS: dict[str, Monoid] = {
    m.name: m
    for m in (
        Monoid("sum", 1, "add"),
        Monoid("prod", 1, "mul"),
        Monoid("max", 1, "max"),
        Monoid("min", 1, "min"),
        Monoid("and", 1, "and"),
        Monoid("or", 1, "or"),
        Monoid("xor", 1, "xor"),
        Monoid("argmax", 2),
        Monoid("argmin", 2),
        Monoid("argmax_last", 2),
        Monoid("argmin_last", 2),
        Monoid("welford", 3),
    )
}
