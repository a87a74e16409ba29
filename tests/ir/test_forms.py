"""What is remembered of nodes, forms of steps, and facts that remember: never more than what would be found anew."""

from __future__ import annotations

import gc
import pickle
import weakref

import pytest
from tests.ir.cases import CASES, Case

from dlc.ir.einsum import Einsum, Scan, flat
from dlc.ir.errors import NotInBounds
from dlc.ir.extent import IntExpr, int_expr, split_linear, var
from dlc.ir.facts import Facts, FactsPool, SymbolFact
from dlc.ir.forms import form, named
from dlc.ir.node import remember, remembered
from dlc.ir.parser import parse_cascade, parse_program
from dlc.ir.program import Program, program_of, walk_statements
from dlc.ir.prove import Assumptions
from dlc.ir.verify import verify


def steps(text: str) -> list[Einsum]:
    return [s for s in parse_program(text).body.body if isinstance(s, Einsum)]


def in_program(body: str, params: str = "X: f32[4], Y: f32[4], I: i64[4]", results: str = "R") -> str:
    return f"program p({params}) -> ({results}) {{\n  {body}\n}}"


# --- remembered ---


def test_a_remembered_function_is_done_once_per_node_and_not_for_its_equals() -> None:
    asked: list[IntExpr] = []

    @remembered
    def terms(e: IntExpr) -> int:
        asked.append(e)
        return len(e.terms)

    one, other = IntExpr(var("i").terms), IntExpr(var("i").terms)
    assert one == other and one is not other
    assert [terms(one), terms(one), terms(other)] == [1, 1, 1]
    assert [id(e) for e in asked] == [id(one), id(other)]
    remember(terms, other, 7)
    assert terms(other) == 7 and terms(one) == 1
    fresh = IntExpr(var("i").terms)
    remember(terms, fresh, 9)
    assert terms(fresh) == 9 and len(asked) == 2


def test_what_is_remembered_is_no_part_of_a_node() -> None:
    (step,) = steps(in_program("R[i:4] = X[i] + Y[i]"))
    assert step.reads == ("X", "Y") and form(step)
    again = pickle.loads(pickle.dumps(step))
    assert again == step and hash(again) == hash(step) and not hasattr(again, "_found")


def test_a_linear_split_is_the_same_every_time_and_for_every_name() -> None:
    e = var("i") * 3 + var("j") * var("i") + var("k") // 2
    for _ in range(2):
        assert split_linear(e, "i") == (var("j") + 3, var("k") // 2)
        assert split_linear(e, "j") == (var("i"), var("i") * 3 + var("k") // 2)
        assert split_linear(e, "k") is None


# --- forms ---

SAME = [
    ("R[i:4] = X[i] + Y[i]", "R[i:4] = Y[i] + X[i]"),
    ("R[i:4] = X[i] * X[i]", "R[i:4] = Y[i] * Y[i]"),
    ("R[i:4] = X[val(min(max(I[i], 0), 3))]", "R[i:4] = Y[val(min(max(I[i], 0), 3))]"),
]
DIFFERENT = [
    ("R[i:4] = X[i] * X[i]", "R[i:4] = X[i] * Y[i]"),
    ("R[i:4] = X[i] + Y[i]", "R[j:4] = X[j] + Y[j]"),
    ("R[i:4] = X[i]", "R[i:3] = X[i]"),
    ("R[i:4] = X[i]", "R[i:4] = X[3 - i]"),
    ("R[i:4] = X[i] * 2.0", "R[i:4] = X[i] * 3.0"),
    ("R[i:4] = (X[i - 1] else 0.0)", "R[i:4] = (X[i - 1] else -0.0)"),
    ("R[i:4]: f32 = X[i]", "R[i:4]: f32{+ 2} = X[i]"),
]


@pytest.mark.parametrize(("a", "b"), SAME)
def test_equal_steps_have_one_form(a: str, b: str) -> None:
    one, other = form(*steps(in_program(a))), form(*steps(in_program(b.replace("R", "Q"), results="Q")))
    assert one.step is other.step
    assert one.tensors[0] == "R" and other.tensors[0] == "Q"


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_steps_that_compute_different_things_have_different_forms(a: str, b: str) -> None:
    assert form(*steps(in_program(a))).step != form(*steps(in_program(b))).step


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_form_over_its_tensors_is_the_step(case: Case) -> None:
    text = case.text.strip()
    program = program_of(parse_cascade(text)) if text.startswith("cascade") else parse_program(text)
    for stmt in walk_statements(program.body):
        for step in flat((stmt,)) if isinstance(stmt, (Einsum, Scan)) else ():
            there = form(step)
            back = named(there.step, there.tensors, step.loc)
            assert back == step and back.loc == step.loc
            assert form(back) == there and form(back).step is there.step


def test_a_form_goes_with_its_steps() -> None:
    (step,) = steps(in_program("R[i:4] = X[i] + 0.123"))
    gone = weakref.ref(form(step).step)
    assert gone() is not None
    del step
    gc.collect()
    assert gone() is None


# --- facts ---


def test_facts_are_shared_for_the_same_ranks_and_symbols_alone() -> None:
    pool = FactsPool()
    ranks, symbols = {"i": int_expr(4)}, {"#n": SymbolFact(hi=4)}
    first = pool.facts(ranks, symbols)
    assert pool.facts(dict(ranks), dict(symbols)) is first
    assert pool.facts({"i": int_expr(5)}, symbols) is not first
    symbols["#n"] = SymbolFact(hi=9)  # the caller's tables may change
    second = pool.facts(ranks, symbols)
    assert second is not first
    assert first.within(var("#n"), 5) and not second.within(var("#n"), 5)


def test_facts_that_were_asked_before_answer_as_fresh_ones_do() -> None:
    ranks, symbols = {"i": int_expr(6), "j": var("#n")}, {"#n": SymbolFact(1, 8, 2)}
    asked = Facts(ranks, symbols)
    names = [var("i"), var("j"), var("#n"), int_expr(3)]
    exprs = [a * p + b // q - c % 4 for a in names for b in names for c in names for p in (1, 2) for q in (2, 3)]
    for _ in range(2):
        for e in exprs:
            fresh = Facts(ranks, symbols)
            assert asked.nonneg(e) == fresh.nonneg(e) and asked.simplify(e) == fresh.simplify(e)


@pytest.mark.parametrize("turned", [False, True])
def test_what_one_guard_proves_is_not_believed_under_another(turned: bool) -> None:
    facts = Facts({"i": int_expr(8)})
    small, large = (Assumptions(facts, (int_expr(n) - 1 - var("i"),)) for n in (3, 6))
    for _ in range(2):
        for under in (large, small) if turned else (small, large):
            assert under.nonneg(int_expr(2) - var("i")) == (under is small)


def test_an_extent_bound_twice_is_judged_by_its_own_facts() -> None:
    """Two arms bind an extent of the same name: what is proven in one must not be believed in the other."""

    def program(first: int, second: int) -> Program:
        arm = "    bind n in 0..{} = {}\n    {}[i:#n] = X[i]\n    {}[] = sum(i:#n) {}[i]\n    yield ({})\n"
        return parse_program(
            "program p(X: f32[4], C: bool[], K: i64[]) -> (R) {\n  if C {\n"
            + arm.format(first, "K", "a", "s", "a", "s")
            + "  } else {\n"
            + arm.format(second, "K", "b", "t", "b", "t")
            + "  } -> (R)\n}"
        )

    verify(program(4, 3))
    for bad in ((4, 5), (5, 4)):
        with pytest.raises(NotInBounds):
            verify(program(*bad))
