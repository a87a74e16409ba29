"""Integer expressions and facts against enumeration: canonical forms keep their value, nothing false is proven."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlc.ir.einsum import TensorType, einsum, rank
from dlc.ir.expr import Access, Apply, Index, const
from dlc.ir.dtype import I64
from dlc.ir.extent import IntExpr, evaluate, int_expr, maximum, minimum, show, substitute, sym, var
from dlc.ir.facts import Facts, SymbolFact
from dlc.ir.parser import parse_expr
from dlc.ir.prove import Assumptions

RANKS, SYMBOLS = ("i", "j"), ("#n", "#m")


@dataclass(frozen=True)
class Twin:
    """An expression built twice: canonically, and as plain Python."""

    expr: IntExpr
    plain: Callable[[Mapping[str, int]], int]


def twin(rng: random.Random, depth: int) -> Twin:
    if depth == 0 or rng.random() < 0.15:
        if rng.random() < 0.3:
            number = rng.randint(-5, 8)
            return Twin(int_expr(number), lambda env: number)
        name = rng.choice(RANKS + SYMBOLS)
        return Twin(var(name), lambda env: env[name])
    a, b = twin(rng, depth - 1), twin(rng, depth - 1)
    op = rng.choice(("+", "+", "-", "*", "*", "//", "%", "min", "max"))
    if op in ("//", "%") and rng.random() < 0.85:
        d = rng.choice((1, 2, 3, 4, 6, 8, 12, -2, -3))
        b = Twin(int_expr(d), lambda env: d)
        if rng.random() < 0.3:
            s = rng.choice(SYMBOLS)
            b = Twin(var(s), lambda env: env[s])
    if op in ("//", "%") and b.expr.const == 0:
        return a
    match op:
        case "+":
            return Twin(a.expr + b.expr, lambda env: a.plain(env) + b.plain(env))
        case "-":
            return Twin(a.expr - b.expr, lambda env: a.plain(env) - b.plain(env))
        case "*":
            return Twin(a.expr * b.expr, lambda env: a.plain(env) * b.plain(env))
        case "//":
            return Twin(a.expr // b.expr, lambda env: a.plain(env) // b.plain(env))
        case "%":
            return Twin(a.expr % b.expr, lambda env: a.plain(env) % b.plain(env))
        case "min":
            return Twin(minimum(a.expr, b.expr), lambda env: min(a.plain(env), b.plain(env)))
        case _:
            return Twin(maximum(a.expr, b.expr), lambda env: max(a.plain(env), b.plain(env)))


def facts_of(rng: random.Random) -> Facts:
    n, m = var("#n"), var("#m")
    symbols = {
        "#n": SymbolFact(rng.choice((0, 0, 1, 2)), rng.choice((None, 4, 6)), rng.choice((1, 1, 2))),
        "#m": SymbolFact(rng.choice((0, 1)), rng.choice((None, 5))),
    }
    extents = (n, m, n * m, n + 1, int_expr(rng.randint(1, 5)), n * 2, n - 1, (n + 1) // 2)
    return Facts({r: rng.choice(extents) for r in RANKS}, symbols)


def points(facts: Facts) -> Iterator[dict[str, int]]:
    """Every point of the ranks' space for every value of the symbols (unbounded ones up to five above their least)."""
    spans = [range(s.lo, (s.lo + 5 if s.hi is None else s.hi) + 1) for s in facts.symbols.values()]
    for values in itertools.product(*spans):
        env = dict(zip(facts.symbols, values, strict=True))
        if any(env[n] % s.divisor for n, s in facts.symbols.items()):
            continue
        for at in itertools.product(*(range(evaluate(e, env)) for e in facts.ranks.values())):
            yield {**env, **dict(zip(facts.ranks, at, strict=True))}


def value(f: Callable[[], int]) -> int | None:
    try:
        return f()
    except ZeroDivisionError:
        return None


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**40))
def test_canonical_forms_keep_their_value(seed: int) -> None:
    rng = random.Random(seed)
    made = twin(rng, rng.randint(1, 4))
    for _ in range(30):
        env = {n: rng.randint(-6, 9) for n in RANKS + SYMBOLS}
        wanted = value(lambda env=env: made.plain(env))  # type: ignore[misc]
        if wanted is not None:
            assert evaluate(made.expr, env) == wanted
            by_hand = value(lambda env=env: substitute(made.expr, env).const)  # type: ignore[misc,return-value,arg-type]
            assert by_hand in (wanted, None)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, 2**40))
def test_nothing_false_is_proven(seed: int) -> None:
    rng = random.Random(seed)
    made, facts = twin(rng, rng.randint(1, 4)), facts_of(rng)
    proven = facts.nonneg(made.expr)
    simpler = value(lambda: facts.simplify(made.expr))  # type: ignore[arg-type,return-value]
    if simpler is None:
        return
    for env in points(facts):
        wanted = value(lambda env=env: made.plain(env))  # type: ignore[misc]
        if wanted is None:
            continue
        assert not proven or wanted >= 0, f"{made.expr} >= 0 is false at {env}"
        assert evaluate(simpler, env) == wanted, f"{made.expr} -> {simpler} at {env}"  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**40))
def test_nothing_false_is_proven_under_guards(seed: int) -> None:
    rng = random.Random(seed)
    facts = facts_of(rng)
    sides = [twin(rng, rng.randint(0, 2)) for _ in range(4)]
    goal = twin(rng, rng.randint(1, 3))
    ops = [rng.choice(("lt", "le", "gt", "ge", "eq", "ne")) for _ in range(2)]
    guards = [Apply(op, (Index(a.expr), Index(b.expr))) for op, a, b in zip(ops, sides[::2], sides[1::2], strict=True)]
    under = Assumptions(facts).given(guards[0]).given_not(guards[1])
    if not under.nonneg(goal.expr):
        return
    compare = {
        "lt": lambda x, y: x < y, "le": lambda x, y: x <= y, "gt": lambda x, y: x > y,
        "ge": lambda x, y: x >= y, "eq": lambda x, y: x == y, "ne": lambda x, y: x != y,
    }  # fmt: skip
    for env in points(facts):
        numbers = [value(lambda t=t, env=env: t.plain(env)) for t in (*sides, goal)]  # type: ignore[misc]
        if None in numbers:
            continue
        a, b, c, d, found = numbers
        if compare[ops[0]](a, b) and not compare[ops[1]](c, d):
            assert found is not None and found >= 0, f"{goal.expr} under {guards[0]}, not {guards[1]} at {env}"


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**40))
def test_text_of_indices(seed: int) -> None:
    rng = random.Random(seed)
    made = twin(rng, rng.randint(1, 4))
    names = frozenset(RANKS)
    read = parse_expr(f"X[{show(made.expr, names)}]", names)
    assert isinstance(read, Access)
    assert read.index[0] == made.expr


N, M, I, J = sym("n"), sym("m"), var("i"), var("j")


@pytest.mark.parametrize(
    ("e", "ranks"),
    [
        (N - 1 - I, {"i": N}),
        (N * M - 1 - (I * M + J), {"i": N, "j": M}),
        (N - 1 - (I // M), {"i": N * M}),
        (M - 1 - I % M, {"i": N * M}),
        (N - (2 * I + J + 1), {"i": (N - 3) // 2 + 1, "j": int_expr(3)}),
        (N - 1 - minimum(maximum(I - 2, 0), N - 1), {"i": N + 4}),
    ],
)
def test_what_must_be_proven(e: IntExpr, ranks: dict[str, IntExpr]) -> None:
    assert Facts(ranks).nonneg(e)


def test_canonical_forms() -> None:
    assert (I * 4 + J * 6) // 2 == I * 2 + J * 3
    assert (I * 64 + J) % 64 == J % 64
    assert N * (I // N) + I % N == I
    assert (I // 2) // 3 == I // 6
    assert minimum(I + 1, I + 3) == I + 1
    assert Facts({"i": int_expr(64)}).simplify((J * 64 + I) // 64) == J
    kind = TensorType(I64, (N, M))
    assert str(kind) == "i64[n, m]"
    assert str(einsum("Z", (rank("i", N),), const(1, I64), I64)) == "Z[i:n]: i64 = 1"


def test_a_guard_on_a_remainder_bounds_the_whole_rank():
    r = var("r")
    near = Assumptions(Facts({"r": int_expr(32)}), (3 - r % 8,))
    assert near.within(r + 4, int_expr(32))
    assert not near.within(r + 5, int_expr(32))
    assert not Assumptions(Facts({"r": int_expr(30)}), (3 - r % 8,)).within(r + 4, int_expr(30))


def test_guard_that_is_the_bound_itself_with_an_extreme_in_it():
    i = var("i")
    clamped = maximum(int_expr(0), minimum(int_expr(23), i - 1)) - 1
    facts = Facts({"i": int_expr(26)})
    assert Assumptions(facts, (clamped,)).within(clamped, int_expr(23))
    assert Assumptions(facts, (clamped,)).nonneg(clamped + 2)
    assert not Assumptions(facts, (clamped + 1,)).nonneg(clamped)


def test_a_common_factor_of_a_bound_is_divided_out():
    heads = Facts({"h": int_expr(9), "e": int_expr(8)})
    assert heads.nonneg(23 - var("e") - 8 * (var("h") // 3))
    assert not heads.nonneg(22 - var("e") - 8 * (var("h") // 3))
