"""Element-wise kernels: what the condition lets a result lie on is what each of its elements depends on there, and no other does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from dlc.ir.einsum import Einsum
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program
from dlc.ir.program import Program
from dlc.passes.cosma import in_place as condition
from dlc.passes.cosma.from_program import graph_of
from dlc.passes.cosma.in_place import in_place

READS = (
    "X[i, j]",
    "X[j, i]",
    "X[i, 0]",
    "X[0, j]",
    "X[i, i]",
    "X[i, 2 - j]",
    "(X[i, j - 1] else 0.0)",
    "(X[i, j] else 0.0)",
)
HEAD = "kernel over (i, j) k(X: f32[3, 3], W: f32[3]) -> "
TAIL = "program p(X: f32[3, 3], W: f32[3]) -> "


def one(step: str) -> Program:
    return parse_program(f"{HEAD}(O) {{\n{step}\n}}\n{TAIL}(O) {{\n  (O) = launch k(X, W)\n}}")


def small_programs() -> Iterator[Program]:
    """Every read alone, with another one, in a sum, before another step, and beside another result."""
    for a in READS:
        yield one(f"O[i:3, j:3]: f32 = 2.0 * {a}")
        yield one(f"O[i:3, j:3]: f32 = sum(k:3) {a} * W[k]")
        yield one(f"O[i:3, j:3]: f32 = {{ {a} when i < 2 | W[j] }}")
        yield one(f"O[j:3, i:3]: f32{{1, 0}} = {a} + W[0]")
        yield one(f"S[i:3]: f32 = sum(k:3) X[i, k]\nO[i:3, j:3]: f32 = {a} * S[i]")
        yield one(f"O[i:3, j:3]: i32 = cast<i32>({a})")
        yield one(f"O[i:3, j:3]: f64 = cast<f64>({a})")
    for a, b in itertools.product(READS, READS):
        yield one(f"O[i:3, j:3]: f32 = {a} - 0.5 * {b}")
        yield one(f"T[i:3, j:3]: f32 = {a} + 1.0\nO[i:3, j:3]: f32 = T[i, j] * {b}")
        text = f"O[i:3, j:3]: f32 = {a}\nZ[i:3, j:3]: f32 = {b}"
        yield parse_program(f"{HEAD}(O, Z) {{\n{text}\n}}\n{TAIL}(O, Z) {{\n  (O, Z) = launch k(X, W)\n}}")


def depends_on_its_own(program: Program, result: int) -> bool:
    """Whether changing an element of X changes nothing but the result's element at the same place in memory."""
    rng = np.random.default_rng(0)
    x, w = rng.uniform(10, 20, (3, 3)).astype(np.float32), rng.uniform(1, 2, 3).astype(np.float32)
    last = program.kernels[0].cascade.steps[-1]
    assert isinstance(last, Einsum)
    turned = last.order is not None
    before = run_program(program, [x, w])
    if before[result].dtype.itemsize != x.dtype.itemsize:
        return False
    for at in np.ndindex(3, 3):
        changed = x.copy()
        changed[at] += 5
        for number, (old, new) in enumerate(zip(before, run_program(program, [changed, w]), strict=True)):
            places = {tuple(p[::-1] if turned else p) for p in np.argwhere(old != new).tolist()}
            if not places <= ({at} if number == result else set()):
                return False
    return True


def judged() -> tuple[int, int, list[Program]]:
    """How many results could lie on X, how many are said to, and which wrongly."""
    possible = allowed = 0
    wrong = []
    for program in small_programs():
        pairs = in_place(program.kernels[0])
        for result in range(len(program.results)):
            may, says = depends_on_its_own(program, result), (0, result) in pairs
            possible, allowed = possible + may, allowed + says
            if says and not may:
                wrong.append(program)
    return possible, allowed, wrong


def test_all_small_kernels() -> None:
    possible, allowed, wrong = judged()
    assert not wrong, str(wrong[0])
    assert (possible, allowed) == (18, 14)  # not what two steps read


@pytest.mark.parametrize("guard", ["another step", "another point", "another size"])
def test_each_part_of_the_condition_matters(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    at_its_point = condition._at_its_point
    if guard == "another point":
        monkeypatch.setattr(condition, "_places", lambda index, of: set())
    elif guard == "another size":
        monkeypatch.setattr(condition, "_same_size", lambda a, b: True)
    else:
        monkeypatch.setattr(condition, "_at_its_point", lambda step, name, a, of: name not in step.outs or at_its_point(step, name, a, of))
    assert judged()[2]


def test_which_operand_of_a_graph() -> None:
    """The one that is read for the last time; each storage goes to one result."""
    text = """
kernel over (i) add(a: f32[8], b: f32[8]) -> (y) {
  y[i:8]: f32 = a[i] + b[i]
}
program p(x: f32[8], w: f32[8]) -> (s) {
  (q) = launch add(x, w)
  (r) = launch add(x, q)
  (t) = launch add(r, r)
  (s) = launch add(t, q)
}"""
    graph = graph_of(parse_program(text))
    names = [t.name for t in graph.tensors]
    taken = {t.name: names[t.takes] for t in graph.tensors if t.takes is not None}
    assert taken == {"q": "w", "r": "x", "s": "t"}
