"""Random cascades with two contractions, and reductions and point-wise steps between and after them, domains and all."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dlc.codegen.target import Target
from dlc.compiler import run_passes
from dlc.ir.domain import Domain, add_domains
from dlc.ir.errors import PartialEscapes
from dlc.ir.parser import parse_program
from dlc.ir.program import Launch
from dlc.ir.verify import verify
from dlc.passes.default import default_pipeline

sys.path.insert(0, str(Path(__file__).parent))
from kernel_harness import TARGETS, check

PLAIN = "explicit-domains,simplify-indices,dead-code,stream-kernels,fuse"
RUNNING = "explicit-domains,simplify-indices,dead-code,running-reduction{block=4},stream-kernels,fuse"
WHERES = ("m <= p", "p - m < 5", "m >= 2", "m < 6", "m + p < 20", "m <= 2*p + 1", "B[p, m]", "B[p, m] | m == 0", "p >= 3")


@dataclass
class Writer:
    """Writes one cascade, step by step, from a seed."""

    rng: random.Random
    lines: list[str] = field(default_factory=list)
    wide: list[str] = field(default_factory=list)  # over h, p, m
    narrow: list[str] = field(default_factory=list)  # over h, p
    deep: list[str] = field(default_factory=list)  # over h, p, f

    def __post_init__(self) -> None:
        self.extents = {
            "h": self.rng.choice((1, 2)),
            "p": self.rng.choice((8, 13, 16, 35, 70)),
            "m": self.rng.choice((1, 3, 11, 16, 18)),
            "e": self.rng.choice((1, 2, 5)),
            "f": self.rng.choice((1, 3, 16, 17)),
        }

    def ranks(self, names: str) -> str:
        return ", ".join(f"{n}:{self.extents[n]}" for n in names)

    def shape(self, names: str) -> str:
        return "f32[" + ", ".join(str(self.extents[n]) for n in names) + "]"

    def add(self, names: str, value: str, kept: list[str]) -> None:
        where = f" where {self.rng.choice(WHERES)}" if "m" in value and self.rng.random() < 0.25 else ""
        if "m" not in names and "sum(" not in value and "max(" not in value and "min(" not in value:
            where = ""
        if where in (" where p >= 3", " where p - m < 5") and "m" not in names:
            where = ""
        name = f"T{len(self.lines)}"
        self.lines.append(f"{name}[{self.ranks(names)}]: f32 = {value}{where}")
        kept.append(name)

    def over_m(self) -> str:
        given = [f"{n}[h, p, m]" for n in self.wide[-3:]] + [f"{n}[h, p]" for n in self.narrow[-2:]]
        given += ["G[p, m]", "H[h, m]", "cast<f32>(m - p) * 0.1", "L[h, p]", "(G[p - 1, m] else 0.5)", "0.5"]
        return self.rng.choice(given)

    def value(self, leaf: str, other: str) -> str:
        return self.rng.choice(
            (f"{leaf} + {other}", f"{leaf} - {other}", f"{leaf} * {other}", f"max({leaf}, {other})", f"tanh({leaf})",
             f"select({leaf} > {other}, {leaf}, 0.25)", f"min(abs({leaf}), {other} + 1.0)")
        )  # fmt: skip

    def step(self) -> None:
        read = f"{self.rng.choice(self.wide)}[h, p, m]"
        match self.rng.randrange(5):
            case 0 | 1:
                self.add("hpm", self.value(read, self.over_m()), self.wide)
            case 2:
                op = self.rng.choice(("sum", "max", "min"))
                self.add("hp", f"{op}(m:{self.extents['m']}) {self.rng.choice((read, self.value(read, self.over_m())))}", self.narrow)
            case 3 if self.narrow:
                self.add("hp", f"tanh({self.rng.choice(self.narrow)}[h, p]) + L[h, p]", self.narrow)
            case _:
                self.add("hp", f"max(m:{self.extents['m']}) {read}", self.narrow)
                self.add("hpm", f"exp({read} - {self.narrow[-1]}[h, p])", self.wide)

    def contraction(self) -> None:
        read = self.rng.choice(self.wide)
        self.add("hpf", f"sum(m:{self.extents['m']}) {read}[h, p, m] * V[h, m, f]", self.deep)

    def text(self) -> str:
        self.add("hpm", f"sum(e:{self.extents['e']}) Q[h, p, e] * K[h, m, e]", self.wide)
        for _ in range(self.rng.randrange(5)):
            self.step()
        self.contraction()
        for _ in range(self.rng.randrange(3)):
            if self.narrow and self.rng.random() < 0.5:
                self.add("hpf", f"{self.deep[-1]}[h, p, f] * {self.rng.choice(self.narrow)}[h, p]", self.deep)
            else:
                self.step()
                self.contraction()
        lines, e = [*self.lines], self.extents
        lines.append(f"O[{self.ranks('hpf')}]: f32 = {' + '.join(f'{d}[h, p, f]' for d in self.deep[-2:])}")
        params = ", ".join(
            f"{n}: {self.shape(s)}" for n, s in (("Q", "hpe"), ("K", "hme"), ("V", "hmf"), ("G", "pm"), ("H", "hm"), ("L", "hp"))
        )
        text = "\n  ".join(lines)
        return f"cascade f({params}, B: bool[{e['p']}, {e['m']}]) -> (O) {{\n  {text}\n}}"


def comparable(text: str, passes: str | None, target: Target) -> bool:
    """Whether `check` can follow the program: it verifies, has no loops of launches, and no kernel leaves a partial result."""
    try:
        verify(parse_program(text))
    except PartialEscapes:
        return False
    after = run_passes(parse_program(text), passes or default_pipeline(target.lanes, target.vector_registers))
    for kernel in after.kernels:
        domains: dict[str, Domain] = {}
        for step in kernel.cascade.steps:
            add_domains(step, domains)
        if not domains.keys().isdisjoint(kernel.cascade.results):
            return False
    return all(isinstance(s, Launch) for s in after.body.body)


def cases(count: int) -> list[object]:
    return [pytest.param(n, marks=[pytest.mark.slow] if n >= count else []) for n in range(10 * count)]


@pytest.mark.parametrize("seed", cases(12))
def test_cascades_keep_their_meaning(seed: int) -> None:
    """Ten cascades each: in three passes, in running form, and as the default pipeline has it."""
    streamed = 0
    for n in range(10 * seed, 10 * seed + 10):
        text, target = Writer(random.Random(n)).text(), TARGETS[n % 3]
        for passes in (PLAIN, RUNNING, None):
            if comparable(text, passes, target):
                streamed += "streamed" in check(text, passes=passes, target=target, interpret=n % 4 == 0).strategies
    assert streamed, "the generator makes what it is there for"
