"""A relayout is a strided view where it can be, and always the same values as the gather."""

from __future__ import annotations

import numpy as np
import pytest

from dlc.ir.extent import var
from dlc.passes.relayout import _gathered, relayout

i, j, k, p, l = (var(n) for n in "ijkpl")


@pytest.mark.parametrize(
    ("shape", "index", "ranks", "guards", "view"),
    [
        ((6, 4), (3 * p + l, k), (("p", 2), ("k", 4), ("l", 3)), (), True),
        ((7, 4), (3 * p + l, k), (("p", 3), ("k", 4), ("l", 3)), ((3 * p + l, 7),), True),
        ((6, 4), (3 * p + l, k), (("p", 2), ("k", 4), ("l", 3)), ((3 * p + l, 6),), True),
        ((8, 2, 3, 3), (4 * p + l, k, i, j), (("p", 2), ("i", 3), ("j", 3), ("k", 2), ("l", 4)), (), True),
        ((5, 9), (k + 1, 2 * i + j), (("i", 4), ("j", 2), ("k", 4)), (), True),
        ((5,), (4 - i,), (("i", 5),), (), True),
        ((12,), (i // 2,), (("i", 6), ("j", 2)), (), False),
        ((7, 4), (l, k), (("k", 4), ("l", 7)), ((l + k, 5),), False),
        ((7, 9), (4 * p + l, 4 * i + j), (("p", 2), ("i", 3), ("l", 4), ("j", 4)), ((4 * p + l, 7), (4 * i + j, 9)), True),
        ((0, 4), (p, k), (("p", 0), ("k", 4)), (), False),
        ((4,), (), (), (), False),
    ],
)
def test_relayout(shape, index, ranks, guards, view) -> None:  # type: ignore[no-untyped-def]
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + 1
    if not ranks:
        array = array[0].reshape(())
    got = relayout(array, index, ranks, guards)
    np.testing.assert_array_equal(got, _gathered(array, index, ranks, guards))
    assert (got.base is not None and not got.flags.owndata) >= view
