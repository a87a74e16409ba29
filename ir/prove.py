"""Proofs of `e >= 0` under assumptions: facts of ranks and symbols, and affine guards that hold at the point in question.

A guard `g >= 0` helps when subtracting a multiple of it leaves something that the facts prove: `k*e = (k*e - c*g) + c*g`. A minimum
or maximum is proven case by case, each with the guard that says which argument it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

from dlc.ir.domain import conjuncts
from dlc.ir.dtype import BOOL, I64
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, Index
from dlc.ir.extent import (
    FloorDiv,
    IntExpr,
    Max,
    Min,
    Mod,
    Monomial,
    Var,
    atoms,
    int_expr,
    maximum,
    minimum,
    split_linear,
    substitute,
    value,
    var,
    variables,
)
from dlc.ir.facts import Facts

_DEPTH = 5
_COMPARES = {"lt", "le", "gt", "ge", "eq", "ne"}
_NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What holds at a point: `guards`, each an expression that is >= 0, and `known`, predicates that are true."""

    facts: Facts
    guards: tuple[IntExpr, ...] = ()
    known: frozenset[Expr] = frozenset()

    def given(self, predicate: Expr | None) -> Assumptions:
        """These and `predicate`."""
        if predicate is None:
            return self
        parts = conjuncts(predicate)
        guards = [g for p in parts for g in constraints(p, self)]
        return Assumptions(self.facts, self.guards + tuple(guards), self.known | set(parts))

    def given_not(self, predicate: Expr) -> Assumptions:
        """These and the opposite of `predicate`."""
        return self.given(negation(predicate))

    def nonneg(self, e: IntExpr) -> bool:
        """Whether `e >= 0` is proven."""
        if self.facts.nonneg(e):
            return True
        key = (self.guards, e)
        known = self.facts.guarded.get(key)
        if known is None:
            known = self.facts.guarded[key] = self._proves(e)
        return known

    def _proves(self, e: IntExpr) -> bool:
        # As a guard says it, before extremes in `e` are opened: `max(0, i - 1) - 1 >= 0` says nothing of `0 - 1` and `i - 2`.
        if any(self.facts.nonneg(e - g) for g in self.guards):
            return True
        if _prove(e, self.guards, self.facts, _DEPTH):
            return True
        if not self.guards:
            return False
        if _prove_narrowed(e, self.guards, self.facts) or _prove_split(e, self.guards, self.facts):
            return True
        return _prove_windowed(e, self.guards, self.facts)

    def within(self, e: IntExpr, extent: IntExpr) -> bool:
        """Whether `0 <= e < extent` is proven."""
        if self.facts.spans(e, extent):
            return True
        return self.nonneg(e) and self.nonneg(extent - e - 1)

    def holds(self, predicate: Expr) -> bool:
        """Whether `predicate` is proven to be true."""
        if predicate in self.known or predicate == Const(True, BOOL) or self._known_at_zero(predicate):
            return True
        match predicate:
            case Apply("and", args):
                return all(self.holds(a) for a in args)
            case Apply("or", args):
                return any(self.holds(a) for a in args)
        wanted = constraints(predicate, None)
        return bool(wanted) and all(self.nonneg(g) for g in wanted)


    def _known_at_zero(self, predicate: Expr) -> bool:
        """Whether the predicate is a known one where the ranks of extent 1, whose index is 0, stand in either."""
        env = {n: int_expr(0) for n, extent in self.facts.ranks.items() if extent.const == 1}
        if not env or not self.known:
            return False
        wanted = predicate.substitute(env)
        return any(k.substitute(env) == wanted for k in self.known)


def negation(predicate: Expr) -> Expr:
    """The opposite predicate, comparisons turned round."""
    match predicate:
        case Apply(op, args) if op in _COMPARES and as_index(args[0]) is not None and as_index(args[1]) is not None:
            return Apply(_NEGATED[op], args)
        case Apply("or", (a, b)):
            return Apply("and", (negation(a), negation(b)))
        case Apply("not", (a,)):
            return a
        case _:
            return Apply("not", (predicate,))


def as_index(e: Expr) -> IntExpr | None:
    """An i64 scalar expression as an integer expression, as far as it is one."""
    match e:
        case Index(expr):
            return expr
        case Const(number, dtype) if dtype.is_int:
            return int_expr(int(number))
        case Apply("add" | "sub" | "mul" | "min" | "max" as op, (a, b)):
            x, y = as_index(a), as_index(b)
            if x is None or y is None:
                return None
            match op:
                case "add":
                    return x + y
                case "sub":
                    return x - y
                case "mul":
                    return x * y
                case "min":
                    return minimum(x, y)
                case _:
                    return maximum(x, y)
        case Apply("neg", (a,)):
            x = as_index(a)
            return None if x is None else -x
        case Cast(dtype, arg) if dtype == I64 and isinstance(arg, Access):
            return value(e)
        case Access():
            return value(e)
        case _:
            return None


def constraints(predicate: Expr, within: Assumptions | None) -> list[IntExpr]:
    """Expressions that are >= 0 exactly when `predicate` holds; empty when it is no comparison of integers.

    `within` turns `a != b` into an inequality where one side is known not to be the greater.
    """
    match predicate:
        case Apply("not", (inner,)):
            flipped = negation(inner)
            return [] if isinstance(flipped, Apply) and flipped.op == "not" else constraints(flipped, within)
        case Apply(op, (a, b)) if op in _COMPARES:
            x, y = as_index(a), as_index(b)
            if x is None or y is None:
                return []
            match op:
                case "lt":
                    return [y - x - 1]
                case "le":
                    return [y - x]
                case "gt":
                    return [x - y - 1]
                case "ge":
                    return [x - y]
                case "eq":
                    return [x - y, y - x]
                case _:
                    if within is not None and within.nonneg(x - y):
                        return [x - y - 1]
                    return [y - x - 1] if within is not None and within.nonneg(y - x) else []
        case _:
            return []


def _prove(e: IntExpr, guards: Iterable[IntExpr], facts: Facts, depth: int) -> bool:
    """Whether `e` is a sum of multiples of guards and something the facts prove."""
    guards = tuple(guards)
    if depth == 0:
        return False
    opened = _open_extreme(e)
    if opened is not None:
        return all(facts.nonneg(c) or _prove(c, (*conditions, *guards), facts, depth - 1) for c, conditions in opened)
    for position, g in enumerate(guards):
        rest_guards = guards[:position] + guards[position + 1 :]
        for scale, factor in _factors(e, g):
            rest = e * scale - g * factor
            if facts.nonneg(rest) or _prove(rest, rest_guards, facts, depth - 1):
                return True
    return False


def _prove_narrowed(e: IntExpr, guards: tuple[IntExpr, ...], facts: Facts) -> bool:
    """Whether the facts prove `e >= 0` with ranks narrowed to what guards on a single rank leave, `lo <= r <= hi`.

    This reaches into divisions, where multiples of a guard do not: `(i + 13) // 14 >= 1` for `i >= 1`.
    """
    lower: dict[str, IntExpr] = {}
    upper: dict[str, IntExpr] = {}
    for g in guards:
        for name in facts.ranks:
            parts = split_linear(g, name)
            if parts is None or parts[0].const not in (1, -1) or not variables(parts[1]).isdisjoint(facts.ranks):
                continue
            if parts[0].const == 1:
                lower.setdefault(name, -parts[1])
            else:
                upper.setdefault(name, parts[1])
    if not lower and not upper:
        return False
    narrowed = {
        name: upper.get(name, extent - 1) - lower.get(name, int_expr(0)) + 1 for name, extent in facts.ranks.items()
    }
    moved = substitute(e, {name: var(name) + lo for name, lo in lower.items()})
    return Facts(narrowed, facts.symbols).nonneg(moved)


def _prove_split(e: IntExpr, guards: tuple[IntExpr, ...], facts: Facts) -> bool:
    """Whether `e >= 0` follows with a rank written as `d*q + m` where guards speak of its `m`: `r + 4 < 32` for `r % 8 < 4`."""
    for atom in dict.fromkeys(a for g in guards for a in atoms(g) if isinstance(a, (Mod, FloorDiv))):
        rank, d = atom.num.atom, atom.den.const
        if not isinstance(rank, Var) or rank.name not in facts.ranks or d is None or d < 2:
            continue
        extent = facts.ranks[rank.name]
        if extent % d != int_expr(0):
            continue
        q, m = f"{rank.name}@q", f"{rank.name}@m"  # names no rank can have
        ranks = {n: x for n, x in facts.ranks.items() if n != rank.name} | {q: extent // d, m: int_expr(d)}
        split = Facts(ranks, facts.symbols)
        env = {rank.name: var(q) * d + var(m)}
        goal = split.simplify(substitute(e, env))
        known = tuple(split.simplify(substitute(g, env)) for g in guards)
        if split.nonneg(goal) or _prove(goal, known, split, _DEPTH):
            return True
    return False


def _prove_windowed(e: IntExpr, guards: tuple[IntExpr, ...], facts: Facts) -> bool:
    """Whether `e >= 0` follows with a sum of ranks that two guards bound, `0 <= y + r - 1 < 8`, taken as one rank.

    This reaches into divisions of such a sum, `(y + r + 1) // 2`, as a window over a reshaped image reads it.
    """
    ranks = dict(facts.ranks)
    env: dict[str, IntExpr] = {}
    for n, low in enumerate(guards):
        for high in guards:
            width = (low + high).const
            if width is None or width < 0:
                continue
            name = next((r for r in sorted(variables(low)) if r in ranks and r in facts.ranks and r not in env), None)
            parts = split_linear(low, name) if name is not None else None
            if (
                name is None
                or parts is None
                or parts[0].const not in (1, -1)
                or not variables(parts[1]).isdisjoint(env)
            ):
                continue
            # low = slope*name + rest runs over 0..width: name = slope*(sum - rest)
            total = f"{name}@w{n}"  # a name no rank can have
            env[name] = (var(total) - parts[1]) * (parts[0].const or 1)
            del ranks[name]
            ranks[total] = int_expr(width + 1)
            break
    return bool(env) and Facts(ranks, facts.symbols).nonneg(substitute(e, env))


def _factors(e: IntExpr, g: IntExpr) -> list[tuple[int, IntExpr]]:
    """Positive (k, c) for which a term of `k*e - c*g` cancels; `c` may have extent symbols, which are never negative."""
    found: dict[tuple[int, IntExpr], None] = {}
    for monomial, coefficient in e.terms:
        for base, slope in g.terms:
            extra = _beyond(monomial, base)
            if base and extra is not None and slope * coefficient > 0:
                common = gcd(slope, coefficient)
                found[abs(slope) // common, IntExpr(((extra, abs(coefficient) // common),))] = None
    return list(found)


def _beyond(monomial: Monomial, base: Monomial) -> Monomial | None:
    """The symbols by which `monomial` is a multiple of `base`; None when it is none, or by something else."""
    left = list(monomial)
    for atom in base:
        if atom not in left:
            return None
        left.remove(atom)
    return tuple(left) if all(isinstance(a, Var) and a.name.startswith("#") for a in left) else None


def _open_extreme(e: IntExpr) -> list[tuple[IntExpr, tuple[IntExpr, ...]]] | None:
    """The cases of a minimum or maximum in `e`: `e` with one argument in its place, and what holds when it is that one."""
    for monomial, coefficient in e.terms:
        if len(monomial) == 1 and isinstance(monomial[0], (Min, Max)):
            atom = monomial[0]
            rest = e - IntExpr(((monomial, coefficient),))
            sign = -1 if isinstance(atom, Min) else 1
            return [(rest + a * coefficient, tuple((a - b) * sign for b in atom.args if b != a)) for a in atom.args]
    return None
