"""Random small cascades about fibers: point-wise steps, folds, splits, scans, in texts."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass
class FiberMaker:
    """A cascade in the making: the tensors so far with their ranks, all over `i` (4 points) and `k` (2).

    Attributes:
        exact: leave out what the analysis counts conservatively: the fiber meeting itself, scans against each other, gathers.
    """

    rng: random.Random
    exact: bool = True
    tensors: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"X": ("i", "k"), "W": ("i",), "B": ("k",)})
    lines: list[str] = field(default_factory=list)

    def text(self) -> str:
        for _ in range(self.rng.randint(2, 6)):
            self.rng.choice((self._pointwise, self._pointwise, self._fold, self._fold, self._combine, self._scan))()
        body = "\n  ".join(self.lines)
        last = [n for n in self.tensors if n not in "XWB"]
        return f"cascade random(X: f32[4, 2], W: f32[4], B: f32[2]) -> ({', '.join(last)}) {{\n  {body}\n}}"

    def _new(self, ranks: tuple[str, ...]) -> str:
        name = f"T{len(self.tensors)}"
        self.tensors[name] = ranks
        return name

    def _pick(self) -> str:
        # later tensors more often: chains are what counts
        names = list(self.tensors)
        return self.rng.choice(names + names[3:] * 2)

    def _read(self, name: str, i: str = "i") -> str:
        return f"{name}[{', '.join(i if r == 'i' else r for r in self.tensors[name])}]"

    def _operands(self, i: str = "i") -> tuple[str, tuple[str, ...]]:
        names = [self._pick() for _ in range(self.rng.randint(1, 3))]
        ranks = {r for n in names for r in self.tensors[n]}
        return " * ".join(self._read(n, i) for n in names), tuple(r for r in ("i", "k") if r in ranks)

    def _shuffled(self, ranks: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(self.rng.sample(ranks, len(ranks)))

    def _pointwise(self) -> None:
        expr, ranks = self._operands()
        ranks = self._shuffled(ranks)
        self.lines.append(f"{self._new(ranks)}[{', '.join(ranks)}] = exp({expr})")

    def _fold(self) -> None:
        expr, ranks = self._operands()
        gone = tuple(r for r in ranks if self.rng.random() < 0.6)
        kept = self._shuffled(tuple(r for r in ranks if r not in gone))
        if gone:
            op = self.rng.choice(("sum", "max"))
            self.lines.append(f"{self._new(kept)}[{', '.join(kept)}] = {op}({', '.join(gone)}) {expr}")

    def _combine(self) -> None:
        """A softmax-like pair: a fold, and the fiber again with it."""
        name = self._pick()
        ranks = self.tensors[name]
        kept = tuple(r for r in ranks if r != "i")
        fold = self._new(kept)
        self.lines.append(
            f"{fold}[{', '.join(kept)}] = max(i) {self._read(name)}"
            if "i" in ranks
            else f"{fold}[{', '.join(kept)}] = neg({self._read(name)})"
        )
        again = self._new(ranks)
        self.lines.append(f"{again}[{', '.join(ranks)}] = {self._read(name)} - {self._read(fold)}")

    def _scan(self) -> None:
        """A running sum along `i`, whose final value or steps are read later."""
        index = "i" if self.exact or self.rng.random() < 0.5 else "3 - i"
        expr, _ = self._operands(index)
        n = len(self.tensors)
        step = f"S{n}b[] = S{n}a[] + {expr}" if "k" not in expr else f"S{n}b[] = S{n}a[] + S{n}c[]"
        self.lines.append(f"S{n}[] = f32(0.0)")
        inner = [f"S{n}c[] = sum(k) {expr}"] if "k" in expr else []
        body = "\n    ".join([*inner, step, f"yield (S{n}b)"])
        final, steps = self._new(()), self._new(("i",))
        self.lines.append(f"scan i:4 carry (S{n}a = S{n}) {{\n    {body}\n  }} -> ({final}) stack ({steps} = S{n}b)")
