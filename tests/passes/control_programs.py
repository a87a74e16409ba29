"""Random programs of control: branches in branches and loops, with equal work, copies, constants and decided conditions."""

from __future__ import annotations

import random

from dlc.ir.parser import parse_program
from dlc.ir.program import Program

N = 4
_POINTWISE = (
    "{o}[i:{n}] = {a}[i] * 0.5 - {b}[i]",
    "{o}[j:{n}] = {a}[j] * 0.5 - {b}[j]",
    "{o}[i:{n}] = max({a}[i], {b}[{m} - i])",
    "{o}[i:{n}] = {a}[i] + 1.0",
    "{o}[i:{n}] = {a}[i]",
    "{o}[k:{n}] = {a}[k]",
    "{o}[i:{n}] = 2.0",
    "{o}[i:{n}] = sum(k:{n}) {a}[k] * W[i, k]",
    "{o}[p:{n}] = sum(q:{n}) {a}[q] * W[p, q]",
    "{o}[i:{n}] = sum(k:{n}) {a}[k] * {b}[i] where k <= i",
    "{o}[i:{n}] = V[i]",
    "{o}[i:{n}] = {{ {a}[i] when i < 2 | {b}[i - 1] }}",
    "{o}[i:{n}] = {a}[val(min(max({k}[], 0), {m}))] + {b}[i]",
)
_CONDITIONS = (
    "{o}[] = {a}[0] > {b}[1]",
    "{o}[] = {a}[2] > 0.0",
    "{o}[] = not({c}[])",
    "{o}[] = {c}[] & {d}[]",
    "{o}[] = {c}[] | {d}[]",
    "{o}[] = {c}[]",
    "{o}[] = true",
)
_INTEGERS = ("{o}[] = {k}[] + 1", "{o}[] = {k}[] * 2 - {l}[]", "{o}[] = 2", "{o}[] = {k}[]")


class Writer:
    """Writes one program; tensors are f32[N], integers i64[], conditions bool[].

    Attributes:
        values, integers, truths: names visible where the writer is.
    """

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count = 0
        self.values = ["X", "Y", "V"]
        self.integers = ["K"]
        self.truths = ["C"]

    def fresh(self, base: str) -> str:
        self.count += 1
        return f"{base}{self.count}"

    def one(self, names: list[str]) -> str:
        return self.random.choice(names[-5:] if self.random.random() < 0.7 else names)

    def statement(self, templates: tuple[str, ...], base: str, names: list[str]) -> str:
        out = self.fresh(base)
        text = self.random.choice(templates).format(
            o=out, n=N, m=N - 1, a=self.one(self.values), b=self.one(self.values),
            k=self.one(self.integers), l=self.one(self.integers), c=self.one(self.truths), d=self.one(self.truths),
        )  # fmt: skip
        names.append(out)
        return text

    def lines(self, size: int, depth: int) -> list[str]:
        """Statements; what they define stays visible for the caller."""
        found: list[str] = []
        for _ in range(self.random.randint(1, size)):
            kind = self.random.choice("vvvvcik" + "bbbbll" * (depth > 0))
            if kind in "vi":
                found.append(self.statement(_POINTWISE, "t", self.values))
            elif kind == "k":
                found.append(self.statement(_INTEGERS, "k", self.integers))
            elif kind == "c":
                found.append(self.statement(_CONDITIONS, "c", self.truths))
            elif kind == "b":
                found += self.branch(depth)
            else:
                found += self.loop(depth)
        return found

    def nested(self, depth: int, yields: int, first: list[str]) -> list[str]:
        """The lines of a region that yields `first` and that many values; what it defines is forgotten."""
        marks = len(self.values), len(self.integers), len(self.truths)
        body = self.lines(3, depth - 1)
        chosen = [self.one(self.truths) if f == "?" else f for f in first] + [self.one(self.values) for _ in range(yields)]
        del self.values[marks[0] :], self.integers[marks[1] :], self.truths[marks[2] :]
        return [*("  " + line for line in body), f"  yield ({', '.join(chosen)})"]

    def branch(self, depth: int) -> list[str]:
        cond, count = self.one(self.truths), self.random.randint(1, 2)
        then, orelse = self.nested(depth, count, []), self.nested(depth, count, [])
        if self.random.random() < 0.3:  # both arms compute the same, and one goes on with it
            twin = self.statement(_POINTWISE, "t", self.values)
            first, second, third = self.values.pop(), self.fresh("t"), self.fresh("t")
            more = f"  {third}[i:{N}] = {second}[i] + 3.0"
            then = ["  " + twin, *then[:-1], _with_last(then[-1], first)]
            orelse = ["  " + twin.replace(first, second, 1), more, *orelse[:-1], _with_last(orelse[-1], third)]
        outs = [self.fresh("r") for _ in range(count)]
        self.values += outs
        return [f"if {cond} {{", *then, "} else {", *orelse, f"}} -> ({', '.join(outs)})"]

    def loop(self, depth: int) -> list[str]:
        count = self.random.randint(1, 3)
        carries = [self.fresh("h") for _ in range(count)]
        inits = [self.one(self.values) for _ in range(count)]
        index, limit = self.fresh("s"), self.fresh("n")
        cond = self.one(self.truths) if self.random.random() < 0.4 else None
        head = [f"{limit}[] = min(max({self.one(self.integers)}[], 0), 3)"] if self.random.random() < 0.7 else [f"{limit}[] = 2"]
        marks = len(self.values), len(self.integers)
        self.values += carries
        self.integers.append(index)
        body = self.nested(depth, count, ["?"] if cond else [])
        del self.values[marks[0] :], self.integers[marks[1] :]
        if self.random.random() < 0.3:  # a state that nothing changes
            body[-1] = _with_last(body[-1], carries[-1])
        outs = [self.fresh("r") for _ in range(count)]
        self.values += outs
        pairs = ", ".join(f"{c} = {i}" for c, i in zip(carries, inits, strict=True))
        condition = f" while {cond}" if cond else ""
        return [*head, f"loop {index} < {limit}{condition} carry ({pairs}) {{", *body, f"}} -> ({', '.join(outs)}) collect ()"]


def _with_last(line: str, name: str) -> str:
    """The `yield` line with another tensor as its last one."""
    first, mark, _ = line.rpartition(", ")
    return f"{first}{mark}{name})" if mark else f"{line[: line.index('(') + 1]}{name})"


def control_program(seed: int, depth: int = 3) -> Program:
    """The program of a seed; its constants hold data."""
    import numpy as np

    writer = Writer(seed)
    body = writer.lines(6, depth)
    results = list(dict.fromkeys([writer.values[-1], writer.one(writer.values)]))
    results = [r for r in results if r not in ("X", "Y", "V")] or ["X0"]
    head = f"program f(X: f32[{N}], Y: f32[{N}], K: i64[], C: bool[]) -> ({', '.join(results)}) {{"
    tail = [f"  X0[i:{N}] = X[i]"] if results == ["X0"] else []
    lines = [head, f"  const V: f32[{N}]", f"  const W: f32[{N}, {N}]", *("  " + line for line in body), *tail, "}"]
    program = parse_program("\n".join(lines))
    rng = np.random.default_rng(seed)
    program.data["V"] = rng.standard_normal(N).astype(np.float32)  # type: ignore[index]
    program.data["W"] = rng.standard_normal((N, N)).astype(np.float32)  # type: ignore[index]
    return program
