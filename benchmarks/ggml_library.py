"""ggml, the library under llama.cpp, through its C interface: products with its quantised types.

There is no binary wheel of it; `docs/low-bit.md` says how the library is built from the source that PyPI has.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

TYPES = {8: ("Q8_0", 8, (32, 34)), 6: ("Q6_K", 14, (256, 210)), 5: ("Q5_0", 6, (32, 22)), 4: ("Q4_0", 2, (32, 18)),
         3: ("Q3_K", 11, (256, 110)), 2: ("Q2_K", 10, (256, 84))}  # fmt: skip
"""By bits: name, number in `ggml.h`, and (weights, bytes) of a block."""
_F32 = 0


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "init": (c_void_p, (_InitParams,)),
    "tensor_overhead": (c_size_t, ()),
    "graph_overhead_custom": (c_size_t, (c_size_t, c_bool)),
    "new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "new_graph_custom": (c_void_p, (c_void_p, c_size_t, c_bool)),
    "build_forward_expand": (None, (c_void_p, c_void_p)),
    "nbytes": (c_size_t, (c_void_p,)),
    "quantize_chunk": (c_size_t, (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "backend_alloc_ctx_tensors_from_buft": (c_void_p, (c_void_p, c_void_p)),
    "backend_cpu_buffer_type": (c_void_p, ()),
    "backend_tensor_set": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "backend_tensor_get": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "backend_graph_compute": (c_int, (c_void_p, c_void_p)),
    "backend_reg_get_proc_address": (c_void_p, (c_void_p, c_char_p)),
    "backend_reg_dev_get": (c_void_p, (c_void_p, c_size_t)),
}
_CPU_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "backend_cpu_init": (c_void_p, ()),
    "backend_cpu_reg": (c_void_p, ()),
    "backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
}


class Ggml:
    """The library in a folder that has `libggml-base.so` and `libggml-cpu.so`."""

    def __init__(self, folder: Path) -> None:
        base = ctypes.CDLL(str(folder / "libggml-base.so"), ctypes.RTLD_GLOBAL)
        cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), ctypes.RTLD_GLOBAL)
        self.c: Any = SimpleNamespace()
        for library, signatures in ((base, _SIGNATURES), (cpu, _CPU_SIGNATURES)):
            for name, (result, arguments) in signatures.items():
                function = getattr(library, f"ggml_{name}")
                function.restype, function.argtypes = result, arguments
                setattr(self.c, name, function)

    def products(
        self, bits: int, x: np.ndarray[Any, Any], columns: int, count: int, repack: bool, threads: int
    ) -> Callable[[], np.ndarray[Any, Any]]:
        """A call that multiplies `x` with each of `count` matrices, `self.weights` all of them, and gives the last product."""
        name, number, (weights, size) = TYPES[bits]
        rows, terms = x.shape
        rng = np.random.default_rng(0)
        self.weights = (rng.standard_normal((columns, terms)) / terms**0.5).astype(np.float32)
        packed = np.zeros(columns * terms // weights * size, np.uint8)
        self.c.quantize_chunk(number, self.weights.ctypes.data, packed.ctypes.data, 0, columns, terms, None)
        held = self._context(count)
        matrices = [self.c.new_tensor_2d(held, number, terms, columns) for _ in range(count)]
        kind = self._interleaved() if repack else self.c.backend_cpu_buffer_type()
        if self.c.backend_alloc_ctx_tensors_from_buft(held, kind) is None:
            raise RuntimeError(f"ggml has no memory for {name}")
        for matrix in matrices:
            self.c.backend_tensor_set(matrix, packed.ctypes.data, 0, packed.nbytes)
        context = self._context(2 * count + 2)
        given = self.c.new_tensor_2d(context, _F32, terms, rows)
        graph = self.c.new_graph_custom(context, 2 * count + 2, False)
        products = [self.c.mul_mat(context, matrix, given) for matrix in matrices]
        for product in products:
            self.c.build_forward_expand(graph, product)
        self.c.backend_alloc_ctx_tensors_from_buft(context, self.c.backend_cpu_buffer_type())
        self.c.backend_tensor_set(given, np.ascontiguousarray(x).ctypes.data, 0, x.nbytes)
        backend = self.c.backend_cpu_init()
        self.c.backend_cpu_set_n_threads(backend, threads)
        y = np.empty((rows, columns), np.float32)

        def call() -> np.ndarray[Any, Any]:
            if self.c.backend_graph_compute(backend, graph):
                raise RuntimeError(f"ggml does not multiply with {name}")
            self.c.backend_tensor_get(products[-1], y.ctypes.data, 0, y.nbytes)
            return y

        return call

    def _context(self, tensors: int) -> Any:
        size = (tensors + 1) * self.c.tensor_overhead() + self.c.graph_overhead_custom(tensors + 1, False)
        return self.c.init(_InitParams(size, None, True))

    def _interleaved(self) -> Any:
        """Memory whose matrices are put in the order of the interleaved kernels as they are set."""
        registry = self.c.backend_cpu_reg()
        address = self.c.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        kinds = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)(self.c.backend_reg_dev_get(registry, 0))
        return kinds[0]
