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
        for fact, value in facts:
            found = reduced(fact, given)
            if isinstance(found, bool):
                if found is not value:
                    return True  # there is no such case
            else:
                split = found
        found = reduced(goal, given)
        if found is self.value:
            return True
        if isinstance(found, Number):
            split = found
        if split is None:
            return False
        return all(self.hold(goal, facts, {**given, id(split.tensor): value}) for value in (True, False))


def reduced(e: Truth, given: Mapping[int, bool]) -> Truth:
    """The truth of `e` where the atoms of `given` are known: a bool, or an atom that it depends on."""
    if not isinstance(e, Number):
        return bool(e)
    known = given.get(id(e.tensor))
    if known is not None:
        return known
    match e.origin:
        case ("not", a):
            found = reduced(a, given)
            return not found if isinstance(found, bool) else found
        case ("and", a, b):
            return _chosen(a, b, False, given)
        case ("if", c, a, b):
            return _chosen(c, a, b, given)
    return e


def _chosen(test: Truth, then: Truth, orelse: Truth, given: Mapping[int, bool]) -> Truth:
    """`then if test else orelse`."""
    found = reduced(test, given)
    if isinstance(found, bool):
        return reduced(then if found else orelse, given)
    a, b = reduced(then, given), reduced(orelse, given)
    return a if isinstance(a, bool) and a is b else found
