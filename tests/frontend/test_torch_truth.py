"""What conditions say of one another: against all assignments of their atoms."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch

from dlc.frontend.torch_numbers import Number
from dlc.frontend.torch_truth import follows

ATOMS = [Number(bool, torch.tensor(False), None) for _ in range(4)]


def condition(source: random.Random, depth: int) -> Any:
    if depth == 0 or source.random() < 0.2:
        return source.choice([*ATOMS, True, False])
    kind = source.choice(("not", "and", "if"))
    parts = [condition(source, depth - 1) for _ in range({"not": 1, "and": 2, "if": 3}[kind])]
    return Number(bool, torch.tensor(False), None, (kind, *parts))


def truth(e: Any, atoms: dict[int, bool]) -> bool:
    if not isinstance(e, Number):
        return bool(e)
    if e.origin is None:
        return atoms[id(e)]
    kind, *parts = e.origin
    values = [truth(p, atoms) for p in parts]
    return {"not": lambda: not values[0], "and": lambda: all(values), "if": lambda: values[1 if values[0] else 2]}[kind]()


@pytest.mark.parametrize("seed", range(40))
def test_what_follows_does_so_under_every_assignment(seed):
    source = random.Random(seed)
    for _ in range(25):
        goal, value = condition(source, 3), source.random() < 0.5
        facts = [(f, source.random() < 0.5) for f in (condition(source, 2) for _ in range(source.randrange(3)))]
        facts = [(f, v) for f, v in facts if isinstance(f, Number)]
        cases = [dict(zip(map(id, ATOMS), bits, strict=True)) for bits in itertools.product((False, True), repeat=4)]
        want = all(truth(goal, c) is value for c in cases if all(truth(f, c) is v for f, v in facts))
        assert follows(goal, facts, value) is want


def test_a_question_of_too_many_cases_is_not_answered():
    def of(*origin: Any) -> Number:
        return Number(bool, torch.tensor(False), None, origin)

    parity: Any = True
    for n in range(12):
        atom = Number(bool, torch.tensor(False), None)
        parity = of("if", atom, of("not", parity), parity)
        assert follows(of("if", parity, parity, of("not", parity)), []) is (n < 7)
