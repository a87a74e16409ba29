"""Random small PyTorch modules with Python control flow: their source, and inputs that take both ways of their branches.

    c = case(17)          # the same source and inputs every time
    print(c.source)       # class Net(nn.Module): ... def forward(self, x, y, k): ...
    model = load(c)

Variables have a kind (vector f32[4], scalar tensor, Python float, int or bool, list, dict), statements are drawn by weight
down to a depth, and every value stays of the order of one. Constants in conditions are holes at first; the program is run on its
inputs and each hole filled with the median of what it was compared with, so that about half of the inputs go either way.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tests.fuzz.dynamic_pieces import HEADER, recursive_helper, write_piece
from tests.models.dynamic.decisions import recorded
from torch import nn

WIDTH, SETS, ROUNDS, TRIES = 4, 24, 3, 5
VECTOR, SCALAR, FLOAT, INT, BOOL, LIST, DICT = "vector", "scalar", "float", "int", "bool", "list", "dict"
_HOLE = re.compile(r"<<(\d+)\|(.*?)>>")
"""`<<3|x.sum()>>`: the third constant, which something of this value is compared with."""


@dataclass(frozen=True)
class Case:
    """A program and its inputs.

    Attributes:
        source: of a Python file that defines `Net`.
        inputs: sets of (x f32[4], y f32[3, 4], k i64[]); y has any number of rows where it is `sized`.
        tags: the constructs in it.
    """

    seed: int
    source: str
    inputs: tuple[tuple[torch.Tensor, ...], ...]
    tags: tuple[str, ...] = ()
    sized: bool = False

    @property
    def dynamic_shapes(self) -> tuple[Any, ...] | None:
        """The sizes that differ from call to call."""
        return (None, {0: torch.export.Dim("rows", min=1, max=16)}, None) if self.sized else None


@dataclass
class _Scope:
    """Names of each kind that may be read here."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def copy(self) -> _Scope:
        return _Scope({k: list(v) for k, v in self.names.items()})

    def of(self, kind: str) -> list[str]:
        return self.names.setdefault(kind, [])


class _Writer:
    """Draws one program."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.lines: list[str] = []
        self.tags: set[str] = set()
        self.holes = self.counters = self.made = 0
        self.helpers: list[str] = []
        self.returned: Callable[[_Scope], str] = self._return_of()
        self.budget = self.rng.randint(6, 22)
        self.in_helper = False

    # --- expressions

    def pick(self, *options: Any) -> Any:
        return self.rng.choice(options)

    def number(self) -> str:
        return str(self.rng.choice([-0.75, -0.5, 0.25, 0.5, 0.75, 1.25]))

    def hole(self, probe: str) -> str:
        self.holes += 1
        return f"<<{self.holes}|{probe}>>"

    def vector(self, s: _Scope, depth: int = 2) -> str:
        if depth == 0 or self.rng.random() < 0.2:
            return self.rng.choice(s.of(VECTOR))
        a, b = self.vector(s, depth - 1), self.vector(s, depth - 1)
        options = [
            f"torch.tanh({a} + {b})",
            f"(0.5 * ({a} - {b}))",
            f"(torch.relu({a}) * {self.number()} - 0.1 * {a})",
            f"self.layers[{self.rng.randrange(3)}]({a})",
            f"torch.maximum({a}, {b})",
            f"torch.sin({a})",
            f"torch.where({a} > 0.1, {a}, 0.5 * {b})",
            f"(({a} + {self.scalar(s, 1)}) * 0.5)",
            f"{a}.flip(0)",
        ]
        if s.of(FLOAT):
            options.append(f"torch.tanh({a} * {self.rng.choice(s.of(FLOAT))})")
        if s.of(INT):
            options.append(f"torch.tanh({a} + 0.1 * {self.rng.choice(s.of(INT))})")
        if s.of(LIST):
            self.tags.add("list:read")
            options.append(f"{self.rng.choice(s.of(LIST))}[{self.pick(0, 1, -1)}]")
        if s.of(DICT):
            self.tags.add("dict:read")
            options.append(f"{self.rng.choice(s.of(DICT))}['{self.pick('p', 'q')}']")
        if self.helpers and not self.in_helper and self.rng.random() < 0.3:
            self.tags.add("helper")
            options.append(f"self.{self.rng.choice(self.helpers)}({a}, {self.number()})")
        return str(self.rng.choice(options))

    def mixed(self, s: _Scope) -> str:
        """A vector that depends on all the others, so that nothing decided is lost."""
        parts = [f"{round(1 / (k + 1), 2)} * {v}" for k, v in enumerate(self.rng.sample(s.of(VECTOR), len(s.of(VECTOR))))]
        parts += [f"0.3 * {v}" for v in s.of(SCALAR) + s.of(FLOAT)] + [f"0.1 * {v}" for v in s.of(INT)]
        parts += [f"0.2 * {name}[0]" for name in s.of(LIST)] + [f"0.2 * {name}['p']" for name in s.of(DICT)]
        return " + ".join(parts)

    def scalar(self, s: _Scope, depth: int = 1) -> str:
        a = self.vector(s, depth - 1)
        options = [f"{a}.sum() * 0.25", f"{a}.max()", f"{a}.mean()", f"{a}[{self.rng.randrange(WIDTH)}]", f"{a}.abs().sum() * 0.2"]
        if s.of(SCALAR):
            name = self.rng.choice(s.of(SCALAR))
            options += [name, f"0.5 * ({name} + {a}.min())"]
        if s.of(INT) and self.rng.random() < 0.3:
            self.tags.add("index:dynamic")
            options.append(f"{a}[{self.rng.choice(s.of(INT))} % {WIDTH}]")
        return str(self.rng.choice(options))

    def float_(self, s: _Scope) -> str:
        options = [f"({self.scalar(s)}).item()", f"float({self.scalar(s)})"]
        if s.of(FLOAT):
            f = self.rng.choice(s.of(FLOAT))
            options += [f"{f} * 0.5 + 0.25", f"abs({f}) - 0.3", f"min({f}, 0.8)", f"max(-{f}, {self.number()})", f"{f} - 0.125"]
        if s.of(INT):
            options.append(f"{self.rng.choice(s.of(INT))} * 0.25")
        return str(self.rng.choice(options))

    def int_(self, s: _Scope) -> str:
        a = self.vector(s, 1)
        c = self.number()
        options = [f"int({a}.argmax())", f"{a}.argmax().item()", f"int(({a} > {c}).sum())", "int(k)"]
        if s.of(INT):
            i = self.rng.choice(s.of(INT))
            options += [f"{i} + 1", f"({i} + 2) % 5", f"{i} * 2 % 7", f"({i} * 33554433 + 1) % 5", f"max({i} - 1, 0)"]
        if s.of(LIST):
            options.append(f"len({self.rng.choice(s.of(LIST))})")
        return str(self.rng.choice(options))

    def condition(self, s: _Scope, depth: int = 1) -> str:
        a, b = self.vector(s, 1), self.vector(s, 1)
        op = self.pick(">", "<", ">=", "<=")
        options: list[Callable[[], str]] = [
            lambda: self._against(self.scalar(s), op),
            lambda: self._against(self.scalar(s), op),
            lambda: self._against(f"({self.scalar(s)}).item()", op),
            lambda: f"({a} > {self.hole(a + '.max()')}).any()",
            lambda: f"({a} > {self.hole(a + '.min()')}).all()",
            self.pick(lambda: f"{a}.max() > {b}.max() + 0.01", lambda: f"{a}.argmax() == {b}.argmax()"),
            lambda: f"k {self.pick('>', '==', '<')} {self.rng.randint(1, 3)}",
        ]
        if s.of(FLOAT):
            f = self.rng.choice(s.of(FLOAT))
            options += [lambda: self._against(f, op)] * 2 + [lambda: f"{self.hole(f)} - 0.4 < {f} < {self.hole(f)}"]
        if s.of(INT):
            options += [lambda: f"{self.rng.choice(s.of(INT))} {self.pick('==', '>', '<=', '!=')} {self.rng.randint(1, 3)}"] * 2
        if s.of(BOOL):
            options.append(lambda: str(self.rng.choice(s.of(BOOL))))
        if depth:
            inner = lambda: self.condition(s, depth - 1)  # noqa: E731
            if self.rng.random() < 0.25:
                self.tags.add("boolean")
                form = self.pick("{} and {}", "{} or {}", "not ({})", "({} or {}) and {}")
                return str(form.format(*(inner() for _ in range(form.count("{}")))))
        return self.rng.choice(options)()

    def _against(self, value: str, op: str) -> str:
        return f"{value} {op} {self.hole(value)}"

    # --- statements

    def emit(self, indent: int, text: str) -> None:
        self.lines.append("    " * indent + text)

    def name(self, kind: str) -> str:
        self.made += 1
        return f"{kind[0]}{self.made}"

    def block(self, s: _Scope, indent: int, depth: int, loop: bool, count: int) -> bool:
        """Statements; whether the end of the block can be reached."""
        before = len(self.lines)
        for _ in range(count):
            self.budget -= 1
            if not self.statement(s, indent, depth, loop):
                return False
        if len(self.lines) == before:
            self.assign(s, indent)
        return True

    def statement(self, s: _Scope, indent: int, depth: int, loop: bool) -> bool:
        kinds: list[tuple[float, Callable[[], bool]]] = [
            (5, lambda: self.assign(s, indent)),
            (1.5, lambda: self.in_place(s, indent)),
            (1, lambda: self.collection(s, indent)),
            (1, lambda: self.conditional_expression(s, indent)),
            (0.8, lambda: write_piece(self, s, indent)),
        ]
        if depth and self.budget > 0:
            kinds += [
                (5, lambda: self.if_(s, indent, depth, loop)),
                (1.7, lambda: self.while_(s, indent, depth)),
                (2.5, lambda: self.for_(s, indent, depth)),
            ]
        return self.rng.choices([k for _, k in kinds], [w for w, _ in kinds])[0]()

    def assign(self, s: _Scope, indent: int) -> bool:
        kind = self.rng.choices([VECTOR, SCALAR, FLOAT, INT, BOOL], [6, 2, 2, 2, 0.7])[0]
        value = {
            VECTOR: lambda: self.vector(s),
            SCALAR: lambda: self.scalar(s, 2),
            FLOAT: lambda: self.float_(s),
            INT: lambda: self.int_(s),
            BOOL: lambda: f"bool({self.condition(s, 0)})",
        }[kind]()
        self.tags.add(f"assign:{kind}")
        if kind == VECTOR and len(s.of(VECTOR)) > 1 and self.rng.random() < 0.1:
            self.tags.add("swap")
            a, b = self.rng.sample(s.of(VECTOR), 2)
            self.emit(indent, f"{a}, {b} = {b}, {value}")
            return True
        if s.of(kind) and self.rng.random() < 0.7:
            self.emit(indent, f"{self.rng.choice(s.of(kind))} = {value}")
            return True
        name = self.name(kind)
        self.emit(indent, f"{name} = {value}")
        s.of(kind).append(name)
        return True

    def in_place(self, s: _Scope, indent: int) -> bool:
        self.tags.add("in-place")
        own = [v for v in s.of(VECTOR) if v.startswith("w")]
        if not own:
            name = f"w{self.made + 1}"
            self.made += 1
            self.emit(indent, f"{name} = {self.vector(s)} * 1.0")
            s.of(VECTOR).append(name)
            own = [name]
        a = self.rng.choice(own)
        self.emit(
            indent,
            self.pick(
                f"{a} += 0.5 * {self.vector(s, 1)}",
                f"{a} *= {self.number()}",
                f"{a}.mul_(0.5).add_({self.number()})",
                f"{a}[{self.rng.randrange(WIDTH)}] = {self.scalar(s)}",
                f"{a}[1:3] = 0.5 * {self.vector(s, 1)}[:2]",
                f"{a}[({self.int_(s)}) % {WIDTH}] = {self.scalar(s)}",
            ),
        )
        return True

    def collection(self, s: _Scope, indent: int) -> bool:
        if indent > 2 and (s.of(LIST) or s.of(DICT)):
            if s.of(DICT) and self.rng.random() < 0.5:
                self.emit(indent, f"{self.rng.choice(s.of(DICT))}['{self.pick('p', 'q')}'] = {self.vector(s, 1)}")
            elif s.of(LIST):
                self.emit(indent, f"{self.rng.choice(s.of(LIST))}[{self.pick(0, 1)}] = {self.vector(s, 1)}")
            else:
                return self.assign(s, indent)
            self.tags.add("collection:write")
            return True
        if self.rng.random() < 0.5:
            name, text = self.name(LIST), f"[{self.vector(s, 1)}, {self.vector(s, 1)}]"
            s.of(LIST).append(name)
        else:
            name, text = self.name(DICT), f"{{'p': {self.vector(s, 1)}, 'q': {self.vector(s, 1)}}}"
            s.of(DICT).append(name)
        self.tags.add("collection")
        self.emit(indent, f"{name} = {text}")
        return True

    def conditional_expression(self, s: _Scope, indent: int) -> bool:
        self.tags.add("conditional-expression")
        a = self.rng.choice(s.of(VECTOR)) if self.rng.random() < 0.6 else ""
        if not a:
            a = self.name(VECTOR)
        self.emit(indent, f"{a} = {self.vector(s)} if {self.condition(s, 0)} else {self.vector(s, 1)}")
        if a not in s.of(VECTOR):
            s.of(VECTOR).append(a)
        return True

    def leave(self, s: _Scope, indent: int, loop: bool) -> bool:
        """Sometimes a jump at the end of an arm; whether one was written."""
        roll = self.rng.random()
        if loop and roll < 0.3:
            jump = self.pick("break", "continue")
            self.tags.add(jump)
            self.emit(indent, jump)
            return True
        if roll > 0.86:
            self.tags.add("early-return" + (":loop" if loop else ""))
            self.emit(indent, f"return {self.returned(s)}")
            return True
        return False

    def if_(self, s: _Scope, indent: int, depth: int, loop: bool) -> bool:
        arms = self.pick(1, 2, 2, 3)
        self.tags.add(f"if:{arms}")
        if indent > 2:
            self.tags.add("nested")
        reached = arms == 1
        for n in range(arms):
            head = f"if {self.condition(s)}:" if n == 0 else "else:" if n == arms - 1 else f"elif {self.condition(s)}:"
            self.emit(indent, head)
            inner = s.copy()
            goes_on = self.block(inner, indent + 1, depth - 1, loop, self.pick(1, 1, 2))
            if goes_on and not (n == arms - 1 and not reached) and self.leave(inner, indent + 1, loop):
                goes_on = False
            reached = reached or goes_on
        return reached

    def while_(self, s: _Scope, indent: int, depth: int) -> bool:
        self.counters += 1
        n = f"n{self.counters}"
        self.tags.add("while")
        self.emit(indent, f"{n} = 0")
        limit = self.rng.randint(2, 5)
        form = self.pick(f"{n} < {limit} and {{}}", f"{{}} and {n} < {limit}", "True", f"{n} < {limit}")
        self.emit(indent, f"while {form.format(self.condition(s, 0)) if '{}' in form else form}:")
        inner = s.copy()
        self.emit(indent + 1, f"{n} += 1")
        if self.rng.random() < 0.5:  # a counter is read, never assigned: it goes by another name
            self.made += 1
            self.emit(indent + 1, f"i{self.made} = {n}")
            inner.of(INT).append(f"i{self.made}")
        if form == "True":
            self.emit(indent + 1, f"if {n} > {limit} or {self.condition(s, 0)}:")
            self.emit(indent + 2, "break")
            self.tags.add("break")
        self.block(inner, indent + 1, depth - 1, True, self.pick(1, 2, 2))
        return True

    def for_(self, s: _Scope, indent: int, depth: int) -> bool:
        self.counters += 1
        j, inner = f"j{self.counters}", s.copy()
        bodies: list[tuple[str, str, list[tuple[str, str]]]] = [
            ("for:static", f"for {j} in range({self.rng.randint(2, 4)}):", [(INT, j)]),
            ("for:dynamic", f"for {j} in range(({self.int_(s)}) % 5):", [(INT, j)]),
            ("for:dynamic", f"for {j} in range(min({self.int_(s)}, 4)):", [(INT, j)]),
            ("for:tensor", f"for r{self.counters} in y:", [(VECTOR, f"r{self.counters}")]),
            ("for:layers", f"for layer in self.layers[: {self.pick(2, 3)}]:", []),
        ]
        if s.of(LIST):
            names = [(INT, j), (VECTOR, f"r{self.counters}")]
            bodies += [("for:list", f"for {j}, r{self.counters} in enumerate({self.rng.choice(s.of(LIST))}):", names)] * 2
        tag, head, names = self.rng.choice(bodies)
        self.tags.add(tag)
        self.emit(indent, head)
        for kind, name in names:
            copy = f"{kind[0]}{self.made + 1}"
            self.made += 1
            self.emit(indent + 1, f"{copy} = {name}" if kind == INT else f"{copy} = {name} * 1.0")
            inner.of(kind).append(copy)
        if tag == "for:layers":
            target = self.rng.choice(s.of(VECTOR))
            self.emit(indent + 1, f"{target} = torch.tanh(layer({target}))")
        self.block(inner, indent + 1, depth - 1, True, self.pick(1, 2, 2))
        return True

    # --- whole functions

    def _return_of(self) -> Callable[[_Scope], str]:
        forms: list[Callable[[_Scope], str]] = [
            lambda s: self.mixed(s),
            lambda s: f"{self.mixed(s)}, {self.scalar(s)}",
            lambda s: f"{{'a': {self.mixed(s)}, 'b': {self.vector(s, 1)}}}",
            lambda s: f"[{self.mixed(s)}, {self.vector(s, 1)}]",
            lambda s: f"{self.mixed(s)}, {self.int_(s)}",
            lambda s: f"{self.mixed(s)}, {self.float_(s)}",
        ]
        return self.rng.choices(forms, [4, 3, 1, 1, 1, 1])[0]

    def helper(self, number: int) -> None:
        name = f"helper{number}"
        saved, self.in_helper, self.returned = self.returned, True, lambda s: self.vector(s, 1)
        s = _Scope({VECTOR: ["a"]})
        if self.rng.random() < 0.25:
            self.tags.add("helper:recursive")
            recursive_helper(self, s, name)
            self.in_helper, self.returned = False, saved
            self.helpers.append(name)
            return
        self.emit(1, f"def {name}(self, a, c):")
        self.emit(2, f"if {self.condition(s, 0).replace('k ', 'a.argmax() ')}:")
        self.emit(3, f"return torch.tanh(a * c) + {self.vector(s, 1)} * 0.25")
        self.emit(2, f"return {self.vector(s, 2)}")
        self.emit(0, "")
        self.in_helper, self.returned = False, saved
        self.helpers.append(name)

    def program(self, seed: int) -> str:
        self.emit(0, HEADER)
        self.emit(0, "class Net(nn.Module):")
        self.emit(1, "calls = 0")
        self.emit(0, "")
        self.emit(1, "def __init__(self):")
        self.emit(2, "super().__init__()")
        self.emit(2, f"generator = torch.Generator().manual_seed({seed})")
        self.emit(2, f"self.layers = nn.ModuleList(nn.Linear({WIDTH}, {WIDTH}) for _ in range(3))")
        self.emit(2, "self.seen, self.log = 0, []")
        self.emit(2, "for p in self.parameters():")
        self.emit(3, "p.data = 0.6 * torch.randn(p.shape, generator=generator)")
        self.emit(0, "")
        for n in range(self.pick(0, 0, 1, 2)):
            self.helper(n)
        self.emit(1, "def forward(self, x, y, k):")
        s = _Scope({VECTOR: ["x", "v0"]})
        self.emit(2, "v0 = y.mean(0)")
        self.emit(2, "i0 = int(k)" if self.rng.random() < 0.5 else "i0 = 1")
        s.of(INT).append("i0")
        if self.rng.random() < 0.3:
            self.emit(2, "l0 = [x, v0 * 0.5]")
            s.of(LIST).append("l0")
        if self.rng.random() < 0.3:
            self.emit(2, "d0 = {'p': v0, 'q': x + 0.25}")
            s.of(DICT).append("d0")
        goes_on = self.block(s, 2, 3, False, self.rng.randint(2, 3))
        if goes_on and not any(t.startswith(("if:", "while", "for:")) for t in self.tags):
            goes_on = self.if_(s, 2, 2, False)
        if goes_on:
            self.block(s, 2, 2, False, self.pick(1, 2))
            self.emit(2, f"return {self.returned(s)}")
        return "\n".join(self.lines) + "\n"


ROWS = (3, 1, 2, 5, 4, 8)


def inputs_of(seed: int, sized: bool = False) -> tuple[tuple[torch.Tensor, ...], ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (
            torch.randn(WIDTH, generator=generator),
            torch.randn(ROWS[n % len(ROWS)] if sized else 3, WIDTH, generator=generator),
            torch.randint(0, 5, (), generator=generator),
        )
        for n in range(SETS)
    )


@cache
def case(seed: int) -> Case:
    """The program of a seed: of a few drawn, the first whose decisions all go both ways; every fifth as it comes."""
    first: Case | None = None
    for attempt in range(TRIES if seed % 5 else 1):
        writer = _Writer(seed * TRIES + attempt)
        template = writer.program(seed)
        sized = "size" in writer.tags and seed % 2 == 1
        inputs = inputs_of(seed, sized)
        drawn = Case(seed, _filled(template, inputs), inputs, tuple(sorted(writer.tags)), sized)
        first = first or drawn
        if seed % 5 and both_ways(drawn) == 1.0:
            return drawn
    assert first is not None
    return first


def both_ways(c: Case) -> float:
    """The share of decisions, by place, that go both ways over the inputs; 0 if nothing is decided."""
    model, seen = wide(c), {}
    for inputs in c.inputs:
        with recorded() as decisions:
            model(*widened(inputs))
        for d in decisions:
            if isinstance(d.value, bool):
                seen.setdefault(d.place, set()).add(d.value)
    return sum(len(v) == 2 for v in seen.values()) / len(seen) if seen else 0.0


def wide(c: Case) -> nn.Module:
    return load(c).double()


def widened(inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copies in f64 of what is f32."""
    return [t.double() if t.is_floating_point() else t.clone() for t in inputs]


def _filled(template: str, inputs: tuple[tuple[torch.Tensor, ...], ...]) -> str:
    """The source with a constant for each hole."""
    constants = {int(m.group(1)): 0.0 for m in _HOLE.finditer(template)}
    if not constants:
        return template
    probing = _HOLE.sub(lambda m: f"_probe({m.group(1)}, {m.group(2)})", template)
    for _ in range(ROUNDS):
        seen: dict[int, list[float]] = {}

        def probe(n: int, value: Any, seen: dict[int, list[float]] = seen) -> float:
            seen.setdefault(n, []).append(float(value))
            return constants[n]

        model = load_source(probing, {"_probe": probe})
        with torch.no_grad():
            for x in inputs:
                model(*(t.clone() for t in x))
        for n, values in seen.items():
            constants[n] = _between(sorted(values))
    return _HOLE.sub(lambda m: repr(constants[int(m.group(1))]), template)


def _between(values: list[float]) -> float:
    """A round number between the middle two."""
    middle = len(values) // 2
    low, high = values[max(middle - 1, 0)], values[middle]
    return round(0.5 * (low + high) + (0.01 if low == high else 0.0), 4)


def load(c: Case) -> nn.Module:
    return load_source(c.source)


def load_source(source: str, names: dict[str, Any] | None = None) -> nn.Module:
    """An instance of `Net` from a file of its own, where tools find its source."""
    folder = Path(tempfile.gettempdir()) / "dlc-dynamic-fuzz"
    folder.mkdir(exist_ok=True)
    name = f"net_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    path = folder / f"{name}.py"
    written = folder / f"{name}.{os.getpid()}"
    written.write_text(source)
    written.replace(path)  # whole, for other processes that read it now
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    vars(module).update(names or {})
    spec.loader.exec_module(module)
    vars(module).update(names or {})
    net: nn.Module = module.Net().eval()
    return net
