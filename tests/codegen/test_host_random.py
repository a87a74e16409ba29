"""Random nests of launches, branches and loops, native against interpreted: finds memory that is reused too early."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from dlc import compiler
from dlc.arena_plan import OverMemoryBudget
from dlc.codegen.target import BASELINE
from dlc.compiler import compile_program
from dlc.ir.interpret import run_program
from dlc.ir.parser import parse_program

sys.path.insert(0, str(Path(__file__).parent))
from scalar_lower import lower

KERNELS = """
kernel over (i) mix(a: f32[n], b: f32[n]) -> (y) symbols (n in 0..) {
  y[i:n]: f32 = a[i] * 0.5 - b[i] + 1.0
}
kernel over (i) both(a: f32[n], b: f32[n]) -> (y, z) symbols (n in 0..) {
  y[i:n]: f32 = a[i] - b[i] * 0.25
  z[i:n]: f32 = b[i] * 0.5
}
kernel over () sign(a: f32[n]) -> (c) symbols (n in 0..) {
  c[]: bool = a[n // 2] > a[0]
}
kernel over () small(k: i64[]) -> (c) {
  c[]: bool = k[] < 3
}
"""


class Writer:
    """Writes a random program; tensors are all f32[n], counters i64[]."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0
        self.lines: list[str] = []

    def name(self, base: str) -> str:
        self.count += 1
        return f"{base}{self.count}"

    def pick(self, names: list[str], count: int = 1) -> list[str]:
        recent = names[-6:] if self.random.random() < 0.7 else names
        return [self.random.choice(recent) for _ in range(count)]

    def body(self, names: list[str], depth: int, size: int, indent: str) -> list[str]:
        """Statements that read `names`; returns the names visible at the end."""
        names = list(names)
        for _ in range(self.random.randint(1, size)):
            kind = self.random.choice(["mix", "mix", "both", "if", "for", "loop"] if depth else ["mix", "both"])
            getattr(self, "write_" + kind)(names, depth - 1, indent)
        return names

    def write_mix(self, names: list[str], depth: int, indent: str) -> None:
        y = self.name("y")
        self.lines.append(f"{indent}({y}) = launch mix({', '.join(self.pick(names, 2))})")
        names.append(y)

    def write_both(self, names: list[str], depth: int, indent: str) -> None:
        y, z = self.name("y"), self.name("z")
        self.lines.append(f"{indent}({y}, {z}) = launch both({', '.join(self.pick(names, 2))})")
        names += [y, z]

    def write_if(self, names: list[str], depth: int, indent: str) -> None:
        c, count = self.name("c"), self.random.randint(1, 2)
        self.lines.append(f"{indent}({c}) = launch sign({self.pick(names)[0]})")
        self.lines.append(f"{indent}if {c} {{")
        for last in (False, True):
            inner = self.body(names, depth, 3, indent + "  ")
            self.lines.append(f"{indent}  yield ({', '.join(self.pick(inner, count))})")
            self.lines.append(f"{indent}}} else {{" if not last else "")
        outs = [self.name("r") for _ in range(count)]
        self.lines[-1] = f"{indent}}} -> ({', '.join(outs)})"
        names += outs

    def write_for(self, names: list[str], depth: int, indent: str) -> None:
        carries = [self.name("h") for _ in range(self.random.randint(1, 3))]
        pairs = ", ".join(f"{c} = {i}" for c, i in zip(carries, self.pick(names, len(carries)), strict=True))
        step = self.name("t")
        self.lines.append(
            f"{indent}for {step} in 0.. < {self.random.choice(['0', '1', '2', '5', 'n'])} carry ({pairs}) {{"
        )
        inner = self.body([*names, *carries], depth, 4, indent + "  ")
        self.lines.append(f"{indent}  yield ({', '.join(self.pick(inner, len(carries)))})")
        finals = [self.name("e") for _ in carries]
        self.lines.append(f"{indent}}} -> ({', '.join(finals)})")
        names += finals

    def write_loop(self, names: list[str], depth: int, indent: str) -> None:
        carries = [self.name("h") for _ in range(self.random.randint(1, 3))]
        pairs = ", ".join(f"{c} = {i}" for c, i in zip(carries, self.pick(names, len(carries)), strict=True))
        index, c, again = self.name("i"), self.name("c"), self.name("c")
        self.lines.append(f"{indent}({c}) = launch sign({self.pick(names)[0]})")
        self.lines.append(f"{indent}loop {index} < k while {c} carry ({pairs}) {{")
        inner = self.body([*names, *carries], depth, 4, indent + "  ")
        self.lines.append(f"{indent}  ({again}) = launch small({index})")
        self.lines.append(f"{indent}  yield ({', '.join([again, *self.pick(inner, len(carries))])})")
        finals = [self.name("e") for _ in carries]
        self.lines.append(f"{indent}}} -> ({', '.join(finals)}) collect ()")
        names += finals

    def program(self) -> str:
        names = self.body(["x", "w"], 3, 6, "  ")
        results = dict.fromkeys(self.pick(names, self.random.randint(1, 4)))
        head = f"program p(x: f32[n], w: f32[n], k: i64[]) -> ({', '.join(results)}) symbols (n in 1..) {{"
        return "\n".join([KERNELS, head, *self.lines, "}"])


@pytest.mark.parametrize("seed", range(30))
def test_random_control(seed: int, everything: bool) -> None:
    for number in range(seed, 300, 30) if everything else [seed]:
        text = Writer(number).program()
        program = parse_program(text)
        exe = compile_program(program, BASELINE, lower=lower)
        rng = np.random.default_rng(number)
        for n, k in ((9, 7), (1, 0), (40, 2)):
            inputs = [rng.standard_normal(n).astype("f4"), rng.standard_normal(n).astype("f4"), np.int64(k)]
            got = exe(*inputs)
            got = got if isinstance(got, tuple) else (got,)
            for a, b in zip(got, run_program(program, inputs), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=text)


def fixed(text: str, n: int) -> str:
    """The program for one extent, which a kernel that writes in place needs."""
    text = re.sub(r" symbols \(n in [01]\.\.\)", "", text)
    return re.sub(r"\bn\b", str(n), text)


class LongWriter(Writer):
    """Mostly launches in the program's own body, where kernels may write in place, with control between them."""

    kinds = ("mix", "mix", "mix", "both", "if", "for")

    def body(self, names: list[str], depth: int, size: int, indent: str) -> list[str]:
        if indent != "  ":
            return super().body(names, min(depth, 1), 2, indent)
        names = list(names)
        for _ in range(12):
            kind = self.random.choice(self.kinds)
            getattr(self, "write_" + kind)(names, 1, indent)
        return names


class WideWriter(LongWriter):
    """Hardly any control, so that tensors can leave, and operands from far back."""

    kinds = ("mix", "mix", "mix", "both", "both", "if") * 2 + ("mix", "both") * 3

    def pick(self, names: list[str], count: int = 1) -> list[str]:
        return [self.random.choice(names[-9:]) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_random_control_in_place(seed: int, everything: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that write over their operands where nothing else needs these: the results are the same to the bit."""
    fewer = 0
    for number in range(seed, 400 if everything else 16, 4):
        program = parse_program(fixed(LongWriter(number).program(), 9))
        shared = compile_program(program, BASELINE)
        with monkeypatch.context() as patch:
            patch.setattr(compiler, "heirs_of", lambda program, kernels: {})
            apart = compile_program(program, BASELINE)
        fewer += len(apart.manifest["buffers"]) - len(shared.manifest["buffers"])
        rng = np.random.default_rng(number)
        for k in (7, 0):
            inputs = [rng.standard_normal(9).astype("f4"), rng.standard_normal(9).astype("f4"), np.int64(k)]
            got, want = (g if isinstance(g, tuple) else (g,) for g in (shared(*inputs), apart(*inputs)))
            for a, b in zip(got, want, strict=True):
                np.testing.assert_array_equal(a, b, str(program))
    assert fewer >= 3


@pytest.mark.parametrize("seed", range(2))
def test_random_control_within_a_budget(seed: int, everything: bool) -> None:
    """With half the arena, or the least that can be kept, tensors leave, come back or stay outside, kernels write in place; results are equal."""
    moved = 0
    for number in range(seed, 100 if everything else 6, 2):
        program = parse_program(fixed(WideWriter(number).program(), 9))
        free = compile_program(program, BASELINE)
        rng = np.random.default_rng(number)
        inputs = [rng.standard_normal(9).astype("f4"), rng.standard_normal(9).astype("f4"), np.int64(3)]
        want = free(*inputs)
        budget = max(plan.arena_bytes for plan in free._plans.values()) // 2
        try:
            tight = compile_program(program, BASELINE, memory_budget=budget)
        except OverMemoryBudget as refused:
            budget = refused.fields["least"]
            tight = compile_program(program, BASELINE, memory_budget=budget)
        got = tight(*inputs)
        pairs = zip(got, want, strict=True) if isinstance(got, tuple) else [(got, want)]
        for a, b in pairs:
            np.testing.assert_array_equal(a, b, str(program))
        assert max(plan.arena_bytes for plan in tight._plans.values()) <= budget
        moved += tight.manifest["spill_bytes"]
    assert moved
