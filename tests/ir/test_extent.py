"""Quotients of extents have one form, and their value, for every small coefficient."""

from __future__ import annotations

import itertools

from dlc.ir.extent import FloorDiv, atoms, evaluate, var

I = var("i")


def test_quotients_of_quotients_have_one_form() -> None:
    """`2*(i // 2) // 4` is `i // 4`: what is equal must print, parse and compare as equal."""
    for a, b, c in itertools.product(range(1, 7), repeat=3):
        assert a * (I // b) // (a * c) == I // (b * c), (a, b, c)


def test_quotients_keep_their_value() -> None:
    for a, b, c, d in itertools.product(range(1, 7), range(1, 7), range(-3, 4), range(1, 7)):
        e = (a * (I // b) + c) // d
        for i in range(-13, 14):
            assert evaluate(e, {"i": i}) == (a * (i // b) + c) // d, (a, b, c, d, i)
        inner = [atom.num.atom for atom in atoms(e) if isinstance(atom, FloorDiv)]
        assert not any(isinstance(atom, FloorDiv) for atom in inner), str(e)
