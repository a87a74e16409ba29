"""The packing search as native code: `advance` of `passes/packing/search.py`, compiled once and kept in the cache."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from dlc.codegen.build import build_text
from dlc.codegen.integers import integers_mlir
from dlc.codegen.target import host_target
from dlc.passes.packing.search import Advance, advance
from dlc.runtime.cache import KernelCache
from dlc.runtime.elf import load_objects

SCALARS, ARRAYS = 4, 17


@cache
def native_advance() -> Advance:
    """`advance`, as native code."""
    code, _ = build_text(integers_mlir(advance), host_target(), KernelCache())
    image = load_objects({"packing": code})
    kind = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * SCALARS, *[ctypes.c_void_p] * ARRAYS)
    call = kind(image["advance"])

    def native(*args: Any, code: Any = image) -> int:
        del code  # a default, so that the code lives as long as the function
        return int(call(*args[:SCALARS], *(a.ctypes.data for a in args[SCALARS:])))

    return native
