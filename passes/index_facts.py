"""What ranks' extents and symbols' facts decide: shorter index expressions, and comparisons that are always true or never."""

from __future__ import annotations

from math import gcd

from dlc.ir.dtype import BOOL, I64
from dlc.ir.expr import Access, Apply, Const, Expr, Index, Piecewise, const, index_value, map_indices
from dlc.ir.extent import (
    Atom,
    FloorDiv,
    IntExpr,
    Max,
    Min,
    Mod,
    Monomial,
    Value,
    Var,
    int_expr,
    maximum,
    minimum,
    value,
    var,
)
from dlc.ir.facts import Facts
from dlc.ir.node import remembered

TRUE, FALSE = const(True, BOOL), const(False, BOOL)


def simplify_index(e: IntExpr, facts: Facts) -> IntExpr:
    """`e` without the divisions, modulos, minima and maxima that the facts decide; inside gather values too.

    Beyond `Facts.simplify`, a part that stays below a common factor leaves a division:
    `(64*h + f) // 128` with `f < 64` is `h // 2`, and `(64*h + f) % 128` is `64*(h % 2) + f`.
    """
    if all(isinstance(a, Var) for m, _ in e.terms for a in m):
        return e
    total = int_expr(0)
    for monomial, coefficient in e.terms:
        product = int_expr(coefficient)
        for atom in monomial:
            product = product * _simplify_atom(atom, facts)
        total = total + product
    return total


def _simplify_atom(atom: Atom, facts: Facts) -> IntExpr:
    match atom:
        case Var(name):
            return var(name)
        case Value(expr):
            inner = simplify_indices_in(expr, facts)
            return value(expr) if inner is expr else index_value(inner)
        case FloorDiv(num, den):
            return _divide(simplify_index(num, facts), simplify_index(den, facts), facts)
        case Mod(num, den):
            return _remainder(simplify_index(num, facts), simplify_index(den, facts), facts)
        case Min(args):
            return facts.simplify(minimum(*(simplify_index(a, facts) for a in args)))
        case Max(args):
            return facts.simplify(maximum(*(simplify_index(a, facts) for a in args)))


def _divide(num: IntExpr, den: IntExpr, facts: Facts) -> IntExpr:
    if den.const == 0:
        return IntExpr((((FloorDiv(num, den),), 1),))  # a point that does not exist: nothing is said of it
    quotient = facts.simplify(num // den)
    atom = quotient.atom
    if isinstance(atom, FloorDiv):
        split = _below_factor(atom.num, atom.den, facts)
        if split is not None:
            high, _, rest_den, _ = split
            return _divide(high, rest_den, facts)
    elif any(isinstance(a, FloorDiv) for m, _ in quotient.terms for a in m) and quotient != num // den:
        return simplify_index(quotient, facts)
    return quotient


def _remainder(num: IntExpr, den: IntExpr, facts: Facts) -> IntExpr:
    if den.const == 0:
        return IntExpr((((Mod(num, den),), 1),))
    rest = facts.simplify(num % den)
    atom = rest.atom
    if isinstance(atom, Mod):
        split = _below_factor(atom.num, atom.den, facts)
        if split is not None:
            high, low, rest_den, factor = split
            return factor * _remainder(high, rest_den, facts) + low
    return rest


def _below_factor(num: IntExpr, den: IntExpr, facts: Facts) -> tuple[IntExpr, IntExpr, IntExpr, IntExpr] | None:
    """`(high, low, den // g, g)` with `num == g*high + low`, `0 <= low < g`, `g` a factor of `den`; or None."""
    if len(den.terms) != 1 or den.terms[0][1] <= 0:
        return None
    for monomial, coefficient in num.terms:
        factor = _common(monomial, coefficient, *den.terms[0])
        if factor.const == 1 or factor == den:
            continue
        high, low = _split(num, factor)
        if low.terms and facts.within(low, factor):
            (rest_den, nothing) = _split(den, factor)
            if not nothing.terms:
                return high, low, rest_den, factor
    return None


def _common(a: Monomial, ca: int, b: Monomial, cb: int) -> IntExpr:
    """The greatest monomial that divides both."""
    left, shared = list(a), []
    for atom in b:
        if atom in left:
            left.remove(atom)
            shared.append(atom)
    return IntExpr(((tuple(shared), gcd(ca, cb)),))


def _split(e: IntExpr, factor: IntExpr) -> tuple[IntExpr, IntExpr]:
    """`(high, low)` with `e == factor*high + low`, where `high` takes every term that the monomial `factor` divides."""
    ((atoms, coefficient),) = factor.terms
    high, low = int_expr(0), int_expr(0)
    for monomial, c in e.terms:
        left = list(monomial)
        for atom in atoms:
            if atom not in left:
                break
            left.remove(atom)
        else:
            if c % coefficient == 0:
                high = high + IntExpr(((tuple(left), c // coefficient),))
                continue
        low = low + IntExpr(((monomial, c),))
    return high, low


def simplify_indices_in(e: Expr, facts: Facts) -> Expr:
    """`e` with every integer expression simplified; the same object when nothing changed."""
    if not _has_opaque_index(e):
        return e
    changed = map_indices(e, lambda i: simplify_index(i, facts))
    return e if changed == e else changed


@remembered
def _has_opaque_index(e: Expr) -> bool:
    """Whether some integer expression in `e` has more than sums and products of variables."""
    own: tuple[IntExpr, ...] = ()
    if isinstance(e, Index):
        own = (e.expr,)
    elif isinstance(e, Access):
        own = e.index
    if any(not isinstance(a, Var) for i in own for m, _ in i.terms for a in m):
        return True
    return any(_has_opaque_index(c) for c in e.children)


def decide(e: Expr, facts: Facts) -> bool | None:
    """The value of a predicate where the facts prove it, else None."""
    match e:
        case Const(number, dtype):
            return bool(number) if dtype == BOOL else None
        case Apply("and", (a, b)):
            return _both(decide(a, facts), decide(b, facts))
        case Apply("or", (a, b)):
            found = _both(_negate(decide(a, facts)), _negate(decide(b, facts)))
            return _negate(found)
        case Apply("not", (a,)):
            return _negate(decide(a, facts))
        case Apply("lt" | "le" | "gt" | "ge" | "eq" | "ne" as op, (a, b)):
            left, right = as_index(a), as_index(b)
            return None if left is None or right is None else _compare(op, left, right, facts)
        case _:
            return None


def _both(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return True if a and b else None


def _negate(a: bool | None) -> bool | None:
    return None if a is None else not a


def as_index(e: Expr) -> IntExpr | None:
    """`e` as an integer expression, when it is one."""
    match e:
        case Index(expr):
            return expr
        case Const(number, dtype) if dtype == I64:
            return int_expr(int(number))
        case Apply("add" | "sub" | "mul" as op, (x, y)):
            left, right = as_index(x), as_index(y)
            if left is None or right is None:
                return None
            return left + right if op == "add" else left - right if op == "sub" else left * right
        case Apply("neg", (x,)):
            inner = as_index(x)
            return None if inner is None else -inner
        case _:
            return None


def _compare(op: str, a: IntExpr, b: IntExpr, facts: Facts) -> bool | None:
    match op:
        case "lt":
            return True if facts.less(a, b) else False if facts.nonneg(a - b) else None
        case "ge":
            return _negate(_compare("lt", a, b, facts))
        case "gt":
            return _compare("lt", b, a, facts)
        case "le":
            return _negate(_compare("lt", b, a, facts))
        case "eq":
            if a == b:
                return True
            return False if facts.less(a, b) or facts.less(b, a) else None
        case _:
            return _negate(_compare("eq", a, b, facts))


def prune_predicate(e: Expr, facts: Facts) -> Expr:
    """A predicate without the parts that are decided."""
    known = decide(e, facts)
    if known is not None:
        return TRUE if known else FALSE
    match e:
        case Apply("and" | "or" as op, (a, b)):
            left, right = prune_predicate(a, facts), prune_predicate(b, facts)
            neutral = TRUE if op == "and" else FALSE
            if left == neutral:
                return right
            if right == neutral:
                return left
            return e if left is a and right is b else Apply(op, (left, right))
        case Apply("not", (a,)):
            inner = prune_predicate(a, facts)
            return e if inner is a else Apply("not", (inner,))
        case _:
            return e


def prune_piecewise(e: Piecewise, facts: Facts) -> Expr:
    """`e` without the cases that never apply or that come after one that always does."""
    cases: list[tuple[Expr, Expr]] = []
    otherwise = e.otherwise
    for guard, case in e.cases:
        guard = prune_predicate(guard, facts)
        if guard == FALSE:
            continue
        if guard == TRUE:
            otherwise = case
            break
        cases.append((guard, case))
    while cases and cases[-1][1] == otherwise:
        cases.pop()
    if not cases:
        return otherwise
    kept = tuple(cases)
    return e if kept == e.cases and otherwise == e.otherwise else Piecewise(kept, otherwise)
