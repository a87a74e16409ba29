"""Integer expressions over ranks and extent symbols, in one canonical form.

An `IntExpr` is a polynomial with integer coefficients over *atoms*: a variable, a floor division, a modulo, a minimum, a
maximum, or the value of an integer scalar expression (a gather). A variable whose name starts with `#` is an extent symbol
(`#b`, `#s`); any other is a rank or a loop variable. Division and modulo floor, as in Python. Two expressions that are
equal as polynomials are the same value, whatever the order they were built in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from dlc.ir.names import show_name
from dlc.ir.node import Node, remembered


@dataclass(frozen=True, slots=True, eq=False)
class Var(Node):
    """A rank or loop variable (`i`), or an extent symbol (`#s`)."""

    name: str


@dataclass(frozen=True, slots=True, eq=False)
class FloorDiv(Node):
    """`num // den`, rounding towards minus infinity."""

    num: IntExpr
    den: IntExpr


@dataclass(frozen=True, slots=True, eq=False)
class Mod(Node):
    """`num % den`, with the sign of `den`."""

    num: IntExpr
    den: IntExpr


@dataclass(frozen=True, slots=True, eq=False)
class Min(Node):
    """The least of two or more expressions (sorted, no duplicates)."""

    args: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Max(Node):
    """The greatest of two or more expressions (sorted, no duplicates)."""

    args: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Value(Node):
    """The value of an integer scalar expression (`dlc.ir.expr.Expr`), as in `X[idx[i], j]`."""

    expr: Any


Atom: TypeAlias = Var | FloorDiv | Mod | Min | Max | Value
Monomial: TypeAlias = tuple[Atom, ...]
IntLike: TypeAlias = "IntExpr | int"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class IntExpr(Node):
    """A canonical integer expression: sum of `coefficient * atoms`. Build with `int_expr`, `var`, `sym` and operators."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: IntLike) -> IntExpr:
        return _add(self, int_expr(other))

    __radd__ = __add__

    def __neg__(self) -> IntExpr:
        return _mul(self, int_expr(-1))

    def __sub__(self, other: IntLike) -> IntExpr:
        return _add(self, -int_expr(other))

    def __rsub__(self, other: IntLike) -> IntExpr:
        return _add(int_expr(other), -self)

    def __mul__(self, other: IntLike) -> IntExpr:
        return _mul(self, int_expr(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: IntLike) -> IntExpr:
        return _floordiv(self, int_expr(other))

    def __rfloordiv__(self, other: IntLike) -> IntExpr:
        return _floordiv(int_expr(other), self)

    def __mod__(self, other: IntLike) -> IntExpr:
        return _mod(self, int_expr(other))

    def __rmod__(self, other: IntLike) -> IntExpr:
        return _mod(int_expr(other), self)

    def __str__(self) -> str:
        return show(self)

    __repr__ = __str__

    @property
    def const(self) -> int | None:
        """The value when it is a plain integer, else None."""
        if not self.terms:
            return 0
        if len(self.terms) == 1 and not self.terms[0][0]:
            return self.terms[0][1]
        return None

    @property
    def atom(self) -> Atom | None:
        """The single atom this expression is, else None."""
        if len(self.terms) == 1 and self.terms[0][1] == 1 and len(self.terms[0][0]) == 1:
            return self.terms[0][0][0]
        return None

    @property
    def is_var(self) -> bool:
        return isinstance(self.atom, Var)


_ZERO = IntExpr(())


@lru_cache(maxsize=4096)
def _constant(value: int) -> IntExpr:
    return IntExpr((((), value),)) if value else _ZERO


def int_expr(value: IntLike) -> IntExpr:
    """`value` as an expression."""
    return value if isinstance(value, IntExpr) else _constant(int(value))


@lru_cache(maxsize=65536)
def var(name: str) -> IntExpr:
    """The rank or loop variable `name` (or the symbol, when the name starts with `#`)."""
    return IntExpr((((Var(name),), 1),))


def sym(name: str) -> IntExpr:
    """The extent symbol `name`, given without its `#`."""
    return var("#" + name)


def value(expr: Any) -> IntExpr:
    """The value of an integer scalar expression, used as an index."""
    return IntExpr((((Value(expr),), 1),))


@lru_cache(maxsize=65536)
def _atom_key(atom: Atom) -> tuple[int, str]:
    match atom:
        case Var(name):
            return (0, name)
        case _:
            return (1, _show_atom(atom, None))


def _monomial_key(monomial: Monomial) -> tuple[int, tuple[tuple[int, str], ...]]:
    return (len(monomial) == 0, tuple(_atom_key(a) for a in monomial))


def _from_terms(terms: Mapping[Monomial, int]) -> IntExpr:
    kept = {m: c for m, c in terms.items() if c}
    if any(isinstance(a, Mod) for m in kept for a in m):
        kept = _join_div_mod(kept)
    return IntExpr(tuple(sorted(kept.items(), key=lambda t: _monomial_key(t[0]))))


def _join_div_mod(terms: dict[Monomial, int]) -> dict[Monomial, int]:
    """`d*(e // d) + e % d` is `e`, also under a common factor."""
    for monomial, coefficient in list(terms.items()):
        for position, atom in enumerate(monomial):
            if not isinstance(atom, Mod) or len(atom.den.terms) != 1:
                continue
            rest = monomial[:position] + monomial[position + 1 :]
            (den_atoms, den_coefficient) = atom.den.terms[0]
            quotient = _floordiv(atom.num, atom.den)
            if quotient.atom is None:
                continue
            partner = _sorted_monomial((*rest, *den_atoms, quotient.atom))
            if terms.get(partner, 0) == coefficient * den_coefficient:
                rebuilt = {m: c for m, c in terms.items() if m not in (monomial, partner)}
                joined = _mul(IntExpr(((rest, coefficient),)), atom.num)
                for m, c in joined.terms:
                    rebuilt[m] = rebuilt.get(m, 0) + c
                return dict(_from_terms(rebuilt).terms)
    return terms


def _sorted_monomial(atoms: Iterable[Atom]) -> Monomial:
    return tuple(sorted(atoms, key=_atom_key))


@lru_cache(maxsize=1 << 16)
def _add(a: IntExpr, b: IntExpr) -> IntExpr:
    if not a.terms:
        return b
    if not b.terms:
        return a
    terms = dict(a.terms)
    for monomial, coefficient in b.terms:
        terms[monomial] = terms.get(monomial, 0) + coefficient
    return _from_terms(terms)


@lru_cache(maxsize=1 << 16)
def _mul(a: IntExpr, b: IntExpr) -> IntExpr:
    terms: dict[Monomial, int] = {}
    for ma, ca in a.terms:
        for mb, cb in b.terms:
            monomial = _sorted_monomial((*ma, *mb)) if ma and mb else ma or mb
            terms[monomial] = terms.get(monomial, 0) + ca * cb
    return _from_terms(terms)


def _split_multiples(a: IntExpr, den: IntExpr) -> tuple[IntExpr, IntExpr]:
    """`(q, r)` with `a == q*den + r`, where `q` takes the terms that `den` (one term) divides."""
    if len(den.terms) != 1:
        return (int_expr(1), _ZERO) if a == den else (_ZERO, a)
    den_atoms, den_coefficient = den.terms[0]
    quotient: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, coefficient in a.terms:
        left = list(monomial)
        for atom in den_atoms:
            if atom not in left:
                break
            left.remove(atom)
        else:
            whole, part = divmod(coefficient, den_coefficient)
            if part and den_atoms:  # 3*s // (2*s): keep whole, the part stays in the rest
                whole, part = (whole, part) if den_coefficient > 0 else (0, coefficient)
            if whole:
                quotient[tuple(left)] = quotient.get(tuple(left), 0) + whole
            if part:
                rest[monomial] = rest.get(monomial, 0) + part
            continue
        rest[monomial] = rest.get(monomial, 0) + coefficient
    return _from_terms(quotient), _from_terms(rest)


@lru_cache(maxsize=1 << 16)
def _floordiv(a: IntExpr, b: IntExpr) -> IntExpr:
    if b.const == 1:
        return a
    if b.const == 0:
        raise ZeroDivisionError(f"({a}) // 0")
    if a.const is not None and b.const is not None:
        return int_expr(a.const // b.const)
    quotient, rest = _split_multiples(a, b)
    if not rest.terms:
        return quotient
    if b.const is not None and rest.const is not None:  # what is left of a constant, whatever the divisor's sign
        return quotient + rest.const // b.const
    if b.const is not None and b.const > 0:
        inner = rest.atom
        if isinstance(inner, FloorDiv) and inner.den.const is not None and inner.den.const > 0:
            return quotient + _floordiv(inner.num, inner.den * b)
        if isinstance(inner, Mod) and inner.den.const is not None and 0 < inner.den.const <= b.const:
            return quotient
        smaller, divisor = _cancel_common(rest, b.const)
        if divisor != b:
            return quotient + _floordiv(smaller, divisor)
    return quotient + IntExpr((((FloorDiv(rest, b),), 1),))


def _cancel_common(rest: IntExpr, den: int) -> tuple[IntExpr, IntExpr]:
    """`(6*a + 9) // 12` is `(2*a + 3) // 4`; a constant remainder below the common factor is dropped: `(4*a + 1)//8` is `a//2`."""
    from math import gcd

    common = den
    offset = 0
    for monomial, coefficient in rest.terms:
        if monomial:
            common = gcd(common, coefficient)
        else:
            offset = coefficient
    if common <= 1:
        return rest, int_expr(den)
    terms = {m: c // common for m, c in rest.terms if m}
    terms[()] = offset // common
    return _from_terms(terms), int_expr(den // common)


@lru_cache(maxsize=1 << 16)
def _mod(a: IntExpr, b: IntExpr) -> IntExpr:
    if b.const == 1:
        return _ZERO
    if b.const == 0:
        raise ZeroDivisionError(f"({a}) % 0")
    _, rest = _split_multiples(a, b)
    if not rest.terms:
        return _ZERO
    if rest.const is not None and b.const is not None:
        return int_expr(rest.const % b.const)
    inner = rest.atom
    if isinstance(inner, Mod):
        if inner.den == b:
            return rest
        if inner.den.const is not None and b.const is not None and inner.den.const > 0 and b.const > 0:
            if inner.den.const <= b.const:
                return rest
            if inner.den.const % b.const == 0:
                return _mod(inner.num, b)
    return IntExpr((((Mod(rest, b),), 1),))


def product(extents: Iterable[IntLike]) -> IntExpr:
    """All of `extents` multiplied; 1 for none."""
    total = int_expr(1)
    for e in extents:
        total = total * e
    return total


def minimum(*args: IntLike) -> IntExpr:
    """The least of `args`."""
    return _extreme(tuple(int_expr(a) for a in args), Min, min)


def maximum(*args: IntLike) -> IntExpr:
    """The greatest of `args`."""
    return _extreme(tuple(int_expr(a) for a in args), Max, max)


def _extreme(args: tuple[IntExpr, ...], kind: type[Min] | type[Max], fold: Callable[..., int]) -> IntExpr:
    flat: list[IntExpr] = []
    for arg in args:
        inner = arg.atom
        flat += list(inner.args) if isinstance(inner, kind) else [arg]
    # Arguments that differ by a constant are comparable: keep one per symbolic part.
    by_part: dict[IntExpr, int] = {}
    for arg in flat:
        constant = next((c for m, c in arg.terms if not m), 0)
        part = arg - constant
        by_part[part] = fold(by_part[part], constant) if part in by_part else constant
    kept = sorted((part + c for part, c in by_part.items()), key=str)
    return kept[0] if len(kept) == 1 else IntExpr((((kind(tuple(kept)),), 1),))


# --- walking ---------------------------------------------------------------------------------------------------------


@remembered
def atoms(e: IntExpr) -> tuple[Atom, ...]:
    """Every atom of `e`, nested ones included."""
    found: list[Atom] = []
    for monomial, _ in e.terms:
        for atom in monomial:
            found.append(atom)
            for inner in _children(atom):
                found += atoms(inner)
    return tuple(found)


def _children(atom: Atom) -> tuple[IntExpr, ...]:
    match atom:
        case FloorDiv(num, den) | Mod(num, den):
            return (num, den)
        case Min(args) | Max(args):
            return args
        case _:
            return ()


@remembered
def variables(e: IntExpr) -> frozenset[str]:
    """Names of all variables in `e` (symbols with their `#`), those inside gather values included."""
    names: set[str] = set()
    for atom in atoms(e):
        if isinstance(atom, Var):
            names.add(atom.name)
        elif isinstance(atom, Value):
            names |= atom.expr.variables
    return frozenset(names)


@remembered
def gathers(e: IntExpr) -> tuple[Value, ...]:
    """The values of tensors that `e` reads, those inside of them not included."""
    return tuple(a for a in atoms(e) if isinstance(a, Value))


def has_value(e: IntExpr) -> bool:
    """Whether `e` reads a tensor."""
    return bool(gathers(e))


def rebuild(e: IntExpr, leaf: Callable[[Var | Value], IntExpr]) -> IntExpr:
    """`e` with every variable and gather value replaced by `leaf(atom)`, renormalised."""
    total = _ZERO
    for monomial, coefficient in e.terms:
        product = int_expr(coefficient)
        for atom in monomial:
            product = product * _rebuild_atom(atom, leaf)
        total = total + product
    return total


def _rebuild_atom(atom: Atom, leaf: Callable[[Var | Value], IntExpr]) -> IntExpr:
    match atom:
        case Var() | Value():
            return leaf(atom)
        case FloorDiv(num, den):
            return rebuild(num, leaf) // rebuild(den, leaf)
        case Mod(num, den):
            return rebuild(num, leaf) % rebuild(den, leaf)
        case Min(args):
            return minimum(*(rebuild(a, leaf) for a in args))
        case Max(args):
            return maximum(*(rebuild(a, leaf) for a in args))


def substitute(e: IntExpr, env: Mapping[str, IntLike]) -> IntExpr:
    """`e` with variables replaced by name; gather values are rewritten inside too."""
    if not env or variables(e).isdisjoint(env):
        return e

    def leaf(atom: Var | Value) -> IntExpr:
        if isinstance(atom, Var):
            return int_expr(env[atom.name]) if atom.name in env else var(atom.name)
        return value(atom.expr.substitute(env))

    return rebuild(e, leaf)


def evaluate(e: IntExpr, env: Mapping[str, Any], read: Callable[[Any], Any] | None = None) -> Any:
    """The number `e` denotes under `env` (ints or NumPy arrays by variable name); `read` gives gather values."""
    import numpy as np

    def atom_value(atom: Atom) -> Any:
        match atom:
            case Var(name):
                return env[name]
            case FloorDiv(num, den):
                return evaluate(num, env, read) // evaluate(den, env, read)
            case Mod(num, den):
                return evaluate(num, env, read) % evaluate(den, env, read)
            case Min(args) | Max(args):
                values = [evaluate(a, env, read) for a in args]
                arrays = any(isinstance(v, np.ndarray) for v in values)
                if isinstance(atom, Min):
                    return np.minimum.reduce(np.broadcast_arrays(*values)) if arrays else min(values)
                return np.maximum.reduce(np.broadcast_arrays(*values)) if arrays else max(values)
            case Value(expr):
                assert read is not None, "a gather value needs a reader"
                return read(expr)

    total: Any = 0
    for monomial, coefficient in e.terms:
        product: Any = coefficient
        for atom in monomial:
            product = product * atom_value(atom)
        total = total + product
    return total


def split_linear(e: IntExpr, name: str) -> tuple[IntExpr, IntExpr] | None:
    """`(c, r)` with `e == c*name + r` and neither mentioning `name`; None when `e` is not linear in it."""
    known = _splits(e)
    if name not in known:
        known[name] = _split_linear(e, name)
    return known[name]


@remembered
def _splits(e: IntExpr) -> dict[str, tuple[IntExpr, IntExpr] | None]:
    """What `split_linear` has found so far: proofs ask for the same again and again."""
    return {}


def _split_linear(e: IntExpr, name: str) -> tuple[IntExpr, IntExpr] | None:
    target = Var(name)
    slope: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, coefficient in e.terms:
        count = sum(1 for a in monomial if a == target)
        left = tuple(a for a in monomial if a != target)
        if any(name in _atom_variables(a) for a in left) or count > 1:
            return None
        (slope if count else rest)[left] = coefficient
    return _from_terms(slope), _from_terms(rest)


@lru_cache(maxsize=1 << 16)
def _atom_variables(atom: Atom) -> frozenset[str]:
    return variables(IntExpr((((atom,), 1),)))


# --- text ------------------------------------------------------------------------------------------------------------


def show(e: IntExpr, ranks: frozenset[str] | None = None) -> str:
    """Text of `e`. Symbols lose their `#` when `ranks` (the rank names in scope) is given and has no such name."""
    if not e.terms:
        return "0"
    out = ""
    for monomial, coefficient in e.terms:
        factors = [_show_atom(a, ranks) for a in monomial]
        magnitude = abs(coefficient)
        if magnitude != 1 or not factors:
            factors.insert(0, str(magnitude))
        text = "*".join(factors)
        if not out:
            out = f"-{text}" if coefficient < 0 else text
        else:
            out += f" - {text}" if coefficient < 0 else f" + {text}"
    return out


def show_extent(e: IntExpr) -> str:
    """Text of an extent: only symbols occur, and they are printed bare."""
    return show(e, frozenset())


def _factor(e: IntExpr, ranks: frozenset[str] | None) -> str:
    text = show(e, ranks)
    simple = e.const is not None and e.const >= 0 or isinstance(e.atom, (Var, Min, Max, Value))
    return text if simple else f"({text})"


def _show_atom(atom: Atom, ranks: frozenset[str] | None) -> str:
    match atom:
        case Var(name):
            if name[0] != "#":
                return show_name(name)
            return show_name(name[1:]) if ranks is not None and name[1:] not in ranks else "#" + show_name(name[1:])
        case FloorDiv(num, den):
            return f"({_factor(num, ranks)} // {_factor(den, ranks)})"
        case Mod(num, den):
            return f"({_factor(num, ranks)} % {_factor(den, ranks)})"
        case Min(args):
            return f"min({', '.join(show(a, ranks) for a in args)})"
        case Max(args):
            return f"max({', '.join(show(a, ranks) for a in args)})"
        case Value(expr):
            return f"val({expr.show(ranks)})" if not expr.is_access else str(expr.show(ranks))
