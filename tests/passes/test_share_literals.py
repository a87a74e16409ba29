"""Kernels that differ in literals alone: what becomes one, what stays two, and that every launch gets its own numbers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
from tests.passes.control_programs import control_program
from tests.passes.samples import assert_same_result, outputs, random_inputs

import dlc
from dlc.ir.parser import parse_program
from dlc.ir.program import Launch, Program, walk_statements
from dlc.ir.verify import verify
from dlc.passes.cascades import Cascades
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.share_literals import ShareLiterals

NUMBERS = ("0.0", "-0.0", "1.0", "0.1", "nan", "inf", "-inf")


def pieces(*bodies: str, params: str = "X: f32[4], N: i64[], S: f32[]", cut: Pass | None = None) -> Program:
    """A program that computes each of the bodies, which write `R`, as a kernel of its own, between branches."""
    lines, results = [], []
    for n, text in enumerate(bodies):
        lines += text.replace("R[", f"R{n}[").replace("T[", f"T{n}[").split("\n")
        lines += [f"G{n}[] = S[] > S[]", f"if G{n} {{", "  yield (X)", "} else {", "  yield (X)", f"}} -> (Y{n})"]
        results.append(f"R{n}")
    text = f"program f({params}) -> ({', '.join(results)}) {{\n" + "\n".join(lines) + "\n}"
    return (cut or Cascades()).apply(parse_program(text))


def shared(*bodies: str, rule: ShareLiterals = ShareLiterals()) -> tuple[int, int]:  # noqa: B008 (a frozen value)
    """How many kernels there are for the bodies, and how many arguments these have that the bodies had not."""
    before = pieces(*bodies)
    after = rule.apply(before)
    assert_same_result(before, after, {}, special="bf16" not in bodies[0])  # NumPy takes NaN of bf16 for a number
    given = {c.name for c in after.consts}
    used = {s.kernel: s for s in walk_statements(after.body) if isinstance(s, Launch)}
    return len(after.kernels), sum(a in given for s in used.values() for a in s.args)


def test_gates_as_text(golden: Callable[[str], None]) -> None:
    gate = "T[i:4] = X[i] * {} + 1.0\nR[] = cast<f64>(T[0]) + f64({}) > f64({})"
    before = pieces(gate.format("0.5", "0.5", "0.3"), gate.format("0.25", "0.25", "0.3"), gate.format("2.0", "0.125", "0.3"))
    after = ShareLiterals().apply(before)
    assert_same_result(before, after, {})
    assert len(after.kernels) == 1 < len(before.kernels)
    values = "\n".join(f"{c.name} = {after.data[c.name]!r}" for c in after.consts)
    golden(f"{after}\n{values}\n")


@pytest.mark.parametrize("first", NUMBERS)
@pytest.mark.parametrize("second", NUMBERS)
def test_literals_are_compared_by_their_bits(first: str, second: str) -> None:
    """Each launch has its own bits, and what differs in no bit is no argument."""
    found = shared(f"R[i:4] = X[i] * {first}", f"R[i:4] = X[i] * {second}")
    assert found == (1, 0 if first == second else 1)


def test_literals_that_round_to_one_number_are_one() -> None:
    assert shared("R[i:4] = X[i] * 0.1", "R[i:4] = X[i] * 0.10000000149011612") == (1, 0)
    assert shared("R[] = cast<f64>(S[]) > f64(0.1)", "R[] = cast<f64>(S[]) > f64(0.10000000149011612)") == (1, 1)


BODIES = {
    "arithmetic": ("R[i:4] = X[i] {op} {n}", "+-*/>", ("0.5", "1.5")),
    "chosen": ("R[i:4] = select(X[i] > 1.0, X[i], {n})", "", ("0.5", "1.5")),
    "under a function": ("R[i:4] = sigmoid(X[i] + {n})", "", ("0.5", "1.5")),
    "in a piece": ("R[i:4] = {{ X[i] + {n} when i < 2 | X[i] }}", "", ("0.5", "1.5")),
    "a bound of one element": ("R[] = max(X[1], {n})", "", ("0.5", "1.5")),
    "a threshold": ("R[] = N[] > {n}", "", ("2", "3")),
    "f64": ("R[i:4] = cast<f64>(X[i]) * f64({n})", "", ("0.3", "0.30000000000000004")),
    "bf16": ("R[i:4]: bf16 = cast<bf16>(X[i]) * bf16({n})", "", ("0.5", "1.5")),
}


@pytest.mark.parametrize("name", BODIES)
def test_what_becomes_an_argument(name: str) -> None:
    text, operators, numbers = BODIES[name]
    for op in operators or " ":
        assert shared(*(text.format(op=op, n=n) for n in numbers)) == (1, 1), op


KEPT = {
    "a padding": ("R[i:4] = X[i - 1] else {n}", ("0.0", "-1.0")),
    "an index": ("R[i:2] = X[i + {n}]", ("1", "2")),
    "a domain": ("R[] = sum(i:4) X[i] where i < {n}", ("2", "3")),
    "a guard": ("R[i:4] = {{ X[i] when i < {n} | 1.0 }}", ("2", "3")),
    "a gathered position": ("R[i:4] = X[val(min(max(N[], 0), {n}))]", ("2", "3")),
    "in a reduction": ("R[] = sum(i:4) X[i] * {n}", ("0.5", "1.5")),
    "before an integer": ("R[i:4] = cast<i8>(min(max(round(X[i] / {n}), 0.0), 9.0))", ("0.3", "0.7")),
    "of an integer": ("R[i:4] = cast<i64>(X[i]) * {n}", ("5", "7")),
    "an integer of one element": ("R[] = N[] + {n}", ("5", "7")),
    "a vector's bound": ("R[i:4] = max(X[i], {n})", ("0.0", "0.5")),
    "an exponent": ("R[i:4] = pow(X[i], {n})", ("1.7", "2.3")),
    "all there is": ("R[i:4] = {n}", ("0.0", "1.0")),
    "a piece": ("R[i:4] = {{ X[i] when i < 2 | {n} }}", ("0.0", "1.0")),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_stays_a_literal(name: str) -> None:
    text, numbers = KEPT[name]
    before = pieces(*(text.format(n=n) for n in numbers))
    assert ShareLiterals().apply(before) is before


def test_other_structures_stay_apart() -> None:
    for other in ("R[i:4] = X[i] - 0.5", "R[i:4] = 0.5 * X[i]", "R[i:4] = X[i] * S[]", "R[i:3] = X[i] * 0.5"):
        assert shared("R[i:4] = X[i] * 0.25", other)[0] == 2


def test_literals_equal_in_each_are_one_argument() -> None:
    text = "R[i:4] = (X[i] + {}) * {}"
    assert shared(text.format("0.5", "0.5"), text.format("0.7", "0.7")) == (1, 1)
    assert shared(text.format("0.5", "0.5"), text.format("0.7", "0.7"), text.format("0.5", "0.7")) == (1, 2)


def test_so_many_arguments_at_most() -> None:
    texts = ["R[i:4] = " + " + ".join(["X[i]", *(f"{n + k}.5" for k in range(3))]) for n in (1, 5)]
    assert shared(*texts, rule=ShareLiterals(most=2)) == (2, 0)
    assert shared(*texts, rule=ShareLiterals(most=3)) == (1, 3)
    with pytest.raises(BadOption, match="option 'most' of pass 'share-literals' takes at least 1, not '0'"):
        ShareLiterals(most=0)


def test_every_small_group() -> None:
    """All triples of kernels with two literals of two numbers each: one kernel, as many arguments as columns differ."""
    text = "R[i:4] = (X[i] + {}) * {}"
    for group in itertools.product(itertools.product(("0.5", "2.0"), repeat=2), repeat=3):
        columns = {c for c in zip(*group, strict=True) if len(set(c)) > 1}
        assert shared(*(text.format(*pair) for pair in group)) == (1, len(columns)), group


@pytest.mark.parametrize("seed", range(30))
def test_random_expressions_keep_their_bits(seed: int) -> None:
    """Expressions of up to four operators, three times with other numbers at random places."""
    rng = random.Random(seed)

    def expression(depth: int) -> str:
        if depth == 0:
            return rng.choice(["X[i]", "S[]", "#"])
        form = rng.choice(["({} + {})", "({} * {})", "({} / {})", "max({}, {})", "select({} > {}, X[i], #)", "exp({} - {})"])
        return form.format(expression(depth - 1), expression(depth - 1))

    shape = expression(2)
    fixed = [rng.choice(NUMBERS) for _ in range(shape.count("#"))]
    bodies = []
    for _ in range(3):
        text = shape
        for number in fixed:
            text = text.replace("#", number if rng.random() < 0.6 else rng.choice(NUMBERS), 1)
        bodies.append(f"R[i:4] = {text}")
    before = pieces(*bodies)
    after = ShareLiterals().apply(before)
    assert len(after.kernels) <= len(before.kernels)
    assert_same_result(before, after, {}, special=True)


@pytest.mark.parametrize("seed", range(25))
def test_programs_of_control_keep_their_results(seed: int) -> None:
    before = Cascades().apply(control_program(seed))
    after = ShareLiterals().apply(before)
    verify(after)
    arrays = random_inputs(before, {}, seed)
    for a, b in zip(outputs(before, arrays), outputs(after, arrays), strict=True):
        np.testing.assert_array_equal(b, a)


def test_compiled() -> None:
    """One kernel of the executable for all, in a branch, in a loop and outside, with an infinity and -0.0 among its numbers."""
    text = """
    program f(X: f32[40], K: i64[]) -> (A, B, C, D) {
      A[i:40] = sigmoid(X[i] * 0.5 + 0.1) * 3.0
      G[] = X[0] > 0.25
      if G {
        P[i:40] = sigmoid(X[i] * 0.7 + 0.1) * -0.0
        yield (P)
      } else {
        Q[i:40] = sigmoid(X[i] * 0.1 + 0.1) * inf
        yield (Q)
      } -> (B)
      N[] = min(max(K[], 0), 3)
      loop s < N carry (H = X) {
        J[i:40] = sigmoid(H[i] * 2.0 + 0.1) * 1.5
        yield (J)
      } -> (C) collect ()
      F[] = C[0] > 0.75
      if F {
        yield (A)
      } else {
        yield (X)
      } -> (D)
    }"""
    program = parse_program(text)
    exe = dlc.compile(program, cache=False)
    literal = dlc.compile(program, cache=False, disable_passes=["share-literals"])
    assert exe.compile_report.kernels == literal.compile_report.kernels - 4  # of four kernels, and of two conditions
    assert exe.compile_report.distinct == literal.compile_report.distinct  # what differs in numbers alone shares its code in any case
    for seed, steps in itertools.product(range(4), range(3)):
        x = np.random.default_rng(seed).standard_normal(40).astype(np.float32)
        for got, known, exact in zip(
            exe(x, np.int64(steps)), literal(x, np.int64(steps)), outputs(program, [x, np.int64(steps)]), strict=True
        ):
            np.testing.assert_array_equal(np.signbit(got), np.signbit(known))
            np.testing.assert_allclose(got, known, rtol=1e-6)
            np.testing.assert_allclose(got, exact, rtol=1e-5)
