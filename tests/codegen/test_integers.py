"""The subset of Python over integers means the same in Python and as native code."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from dlc.codegen.integers import integers_mlir
from dlc.codegen.native import compile_mlir
from dlc.codegen.target import host_target
from dlc.errors import Internal
from dlc.runtime.elf import load_objects

STEP = 3


def unlucky(a: int) -> int:
    total = 0
    for i in range(a):
        total += sum([i])
    return total


def mixture(a: int, b: int, out: Any) -> int:
    total = 0
    for i in range(1, a):
        if i == 2 or (i > 5 and not b <= 0):
            continue
        j = i
        while 1:
            j -= STEP
            if j < 0:
                break
            out[j] += max(i, j)
        total += min(i, b) * -1
        i = 100
    out[0] = (a - 7) // 2
    out[1] = (7 - a) // -2
    return total


@pytest.mark.parametrize("b", (-2, 0, 3))
@pytest.mark.parametrize("a", (0, 1, 4, 9))
def test_native_is_what_python_does(a: int, b: int) -> None:
    image = load_objects({"it": compile_mlir(integers_mlir(mixture), host_target()).object})
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(image["mixture"])
    here, there = np.zeros(16, np.int64), np.zeros(16, np.int64)
    assert call(a, b, there.ctypes.data) == mixture(a, b, here)
    assert there.tolist() == here.tolist()


def test_refuses_what_is_not_in_the_subset() -> None:
    with pytest.raises(Internal, match=r"unlucky, line 4: 'sum\(\[i\]\)' is not in the subset"):
        integers_mlir(unlucky)
