"""What conditions say of one another: whether a condition holds wherever some others do.

A boolean `Number` may know what it was made of: `not a`, `a and b`, or `a if c else b` where two arms left different values. The
rest are atoms. `follows` expands on the atoms that the question depends on, one after the other.

Source: Bryant, Graph-Based Algorithms for Boolean Function Manipulation (IEEE ToC 1986), section 2 (Shannon's expansion).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dlc.frontend.torch_numbers import Number

Truth = bool | Number
Fact = tuple[Number, bool]
_MOST_CASES = 256


def follows(goal: Truth, facts: Sequence[Fact], value: bool = True) -> bool:
    """Whether `goal` is `value` wherever the facts hold; False also where that takes too many cases to see."""
    return _Cases(value).hold(goal, facts, {})


class _Cases:
    def __init__(self, value: bool) -> None:
        self.value = value
        self.left = _MOST_CASES

    def hold(self, goal: Truth, facts: Sequence[Fact], given: dict[int, bool]) -> bool:
        self.left -= 1
        if self.left < 0:
            return False
        split: Number | None = None
        truth = Reduction(given)
        for fact, value in facts:
            found = truth.of(fact)
            if isinstance(found, bool):
                if found is not value:
                    return True  # there is no such case
            else:
                split = found
        found = truth.of(goal)
        if found is self.value:
            return True
        if isinstance(found, Number):
            split = found
        if split is None:
            return False
        return all(self.hold(goal, facts, {**given, id(split.tensor): value}) for value in (True, False))


class Reduction:
    """Conditions where some atoms are known. Those that many others are made of are looked at once."""

    def __init__(self, given: Mapping[int, bool]) -> None:
        self._found: dict[int, Truth] = dict(given)

    def of(self, e: Truth) -> Truth:
        """The truth of `e`: a bool, or an atom that it depends on."""
        if not isinstance(e, Number):
            return bool(e)
        found = self._found.get(id(e.tensor))
        if found is None:
            found = self._found[id(e.tensor)] = self._made(e)
        return found

    def _made(self, e: Number) -> Truth:
        match e.origin:
            case ("not", a):
                found = self.of(a)
                return not found if isinstance(found, bool) else found
            case ("and", a, b):
                return self._chosen(a, b, False)
            case ("if", c, a, b):
                return self._chosen(c, a, b)
        return e

    def _chosen(self, test: Truth, then: Truth, orelse: Truth) -> Truth:
        """`then if test else orelse`."""
        found = self.of(test)
        if isinstance(found, bool):
            return self.of(then if found else orelse)
        a, b = self.of(then), self.of(orelse)
        return a if isinstance(a, bool) and a is b else found
