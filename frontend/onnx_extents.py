"""What a model demands of its inputs' extents: ranges of symbols for which the imported program holds.

A call is checked against them. They come from branches that an extent decides (taken as the example inputs decide them) and
from reads of a place that exists only in inputs of a certain size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import gcd

from dlc.frontend.onnx_builder import ModelBuilder, SymbolsMeet
from dlc.frontend.onnx_errors import NeedsStructure
from dlc.frontend.onnx_value import ExtentTest
from dlc.ir.extent import FloorDiv, IntExpr, Max, Min, Var, evaluate, sym, variables
from dlc.ir.facts import Facts
from dlc.ir.loc import Loc

MAX_RANGE = 8192


class Demands:
    """Narrows the symbols of `b` as the model demands.

    Attributes:
        extents: extents of the example inputs, by symbol.
    """

    def __init__(self, b: ModelBuilder) -> None:
        self.b = b
        self.extents: dict[str, int] = {}

    def narrow(self, name: str, low: int, high: int | None) -> None:
        old = self.b.symbols[name]
        tops = [h for h in (old.hi, high) if h is not None]
        self.b.symbols[name] = replace(old, lo=max(old.lo, low), hi=min(tops, default=None))

    def decide(self, test: ExtentTest, what: str, loc: Loc) -> bool:
        """The answer to `test` for the example inputs; the program then holds for extents with the same answer."""
        missing = [n for n in test.symbols if n not in self.extents]
        if missing:
            raise NeedsStructure(loc, name=missing[0], what=f"extent '{missing[0]}' (it decides {what})", kind="tensor")
        here = {n: self.extents[n] for n in test.symbols}
        answer = test.holds(here)
        if len(here) > 1:
            for name, value in here.items():
                self.narrow(name, value, value)
            return answer
        ((name, value),) = here.items()
        known = self.b.symbols[name]
        top = value + MAX_RANGE if known.hi is None else known.hi
        low = _walk(value, max(known.lo, value - MAX_RANGE), lambda v: test.holds({name: v}) == answer)
        high = _walk(value, min(top, value + MAX_RANGE), lambda v: test.holds({name: v}) == answer)
        self.narrow(name, low, high)
        return answer

    def at_least(self, extent: IntExpr, least: int) -> None:
        """The model reads a place that exists only when `extent` is at least `least`: a fact of the symbol it grows with."""
        names = [v[1:] for v in variables(extent)]
        if len(names) != 1 or names[0] not in self.b.symbols or not grows(extent):
            return
        (name,) = names
        known = self.b.symbols[name]
        for value in range(known.lo, known.lo + MAX_RANGE):
            if evaluate(extent, {"#" + name: value}) >= least:
                self.narrow(name, value, None)
                return


    @property
    def facts(self) -> Facts:
        return Facts({}, {"#" + n: s.fact for n, s in self.b.symbols.items()})

    def sign(self, e: IntExpr) -> int:
        """1 when `e` is never negative, -1 when it always is, else 0.

        An expression that grows with one symbol and is negative only for small ones (`s - 5`) is taken to be a position from the
        front: that becomes a demand.
        """
        facts = self.facts
        if facts.nonneg(e):
            return 1
        if facts.nonneg(-e - 1):
            return -1
        names = [v[1:] for v in variables(e)]
        if all(c <= 0 for _, c in e.terms):
            for name in names if len(names) == 1 else ():
                if name in self.b.symbols and facts.nonneg(-e):
                    self.narrow(name, 1, None)
                    return -1
        if len(names) == 1 and grows(e):
            self.at_least(e, 0)
            return 1 if self.facts.nonneg(e) else 0
        return 0

    def whole(self, extent: IntExpr, part: IntExpr) -> None:
        """The model divides `extent` into `part`s without rest: its symbol is then written as a multiple of another one."""
        if part.const is None or len(extent.terms) != 1 or part.const < 2:
            return
        ((monomial, coefficient),) = extent.terms
        needed = part.const // gcd(part.const, coefficient)
        if needed == 1 or len(monomial) != 1 or not isinstance(monomial[0], Var):
            return
        name = monomial[0].name[1:]
        if name in self.b.symbols:
            raise SymbolsMeet(name, sym(f"{name}_by_{needed}") * needed)


def _walk(start: int, end: int, holds: Callable[[int], bool]) -> int:
    """The last value from `start` towards `end` for which all up to it hold."""
    step = 1 if end >= start else -1
    at = start
    while at != end and holds(at + step):
        at += step
    return at


def grows(e: IntExpr) -> bool:
    """Whether `e` never decreases when its symbols grow (they are not negative)."""
    for monomial, coefficient in e.terms:
        for atom in monomial:
            match atom:
                case Var():
                    pass
                case FloorDiv(num, den):
                    if den.const is None or den.const <= 0 or not grows(num):
                        return False
                case Min(args) | Max(args):
                    if not all(grows(a) for a in args):
                        return False
                case _:
                    return False
        if monomial and (coefficient < 0 or len(monomial) > 1):
            return False
    return True
