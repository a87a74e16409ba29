"""Compile cascades kernel by kernel and compare each with its meaning, three times over.

The program goes through the target's default pipeline. Every kernel it launches is lowered; its tile program is printed and
read back, interpreted, and run natively with canaries around every buffer. Both must agree with the kernel's cascade within
the error model's bound, and what the launches compute together with the program before the passes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc.codegen import tile_interp
from dlc.codegen.bit_sum import find_bits
from dlc.codegen.coded_sum import find_coded
from dlc.codegen.contraction_roles import find_contraction
from dlc.codegen.inner_product import find_inner_product
from dlc.codegen.lower import KernelLowering, Lowered, lower_kernel
from dlc.codegen.target import AVX2, AVX512, BASELINE, Target
from dlc.codegen.tile_parse import parse as parse_tile
from dlc.compiler import run_passes
from dlc.ir.blocked import unrolls
from dlc.ir.coded_sums import READ_PAST
from dlc.ir.codes import codes_of
from dlc.ir.dtype import DType
from dlc.ir.einsum import TensorType
from dlc.ir.error_model import agrees, bounded_cascade
from dlc.ir.extent import evaluate
from dlc.ir.interpret import bind_symbols, run_program
from dlc.ir.packing import pack
from dlc.ir.parser import parse_program
from dlc.ir.program import Kernel, Launch, Program, cascade_types
from dlc.ir.streamed import lane_rank
from dlc.passes.default import default_pipeline

sys.path.insert(0, str(Path(__file__).parent))
import tile_harness

TARGETS = [AVX512, AVX2, BASELINE]
Array = Any


@dataclass
class Ran:
    """What `check` saw: the program after the passes, the lowered kernels, the results by tensor."""

    program: Program
    lowered: dict[str, Lowered] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)

    @property
    def tiles(self) -> list[str]:
        return [str(k.tile) for k in self.lowered.values()]

    @property
    def strategies(self) -> list[str]:
        """For each kernel, which of the lowerings it takes."""
        return list(self.kinds.values())


def strategy(kernel: Kernel, program: Program, target: Target) -> str:
    """The lowering that `KernelLowering.run` takes, by the tests it makes: 'scatter', 'streamed', 'contraction' and so on."""
    low = KernelLowering(kernel, program.facts, target)
    if any(s.write is not None for s in low.steps):
        return "scatter"
    if find_coded(low) is not None:
        return "coded"
    if find_bits(low) is not None:
        return "bits"
    if lane_rank(low.structure, kernel.outer) is not None:
        return "streamed"
    if any(low.moving(s) != low.outer for s in low.steps):
        return "blocks" if unrolls(low.steps, low.outer) else "rows"
    if find_contraction(low) is not None:
        return "contraction"
    if find_inner_product(low) is not None:
        return "inner product"
    return "window" if low.sliding() is not None else "points"


def random_arrays(program: Program, sizes: Mapping[str, int], seed: int = 0) -> list[Array]:
    """Inputs of the program's types; integers are small and never negative, so that they may be indices."""
    rng = np.random.default_rng(seed)
    env = {"#" + n: v for n, v in sizes.items()}
    return [sample(rng, p.type.dtype, tuple(int(evaluate(e, env)) for e in p.type.shape)) for p in program.params]


def sample(rng: np.random.Generator, dtype: DType, shape: tuple[int, ...]) -> Array:
    kind = dtype.numpy
    if dtype.is_float:
        return rng.standard_normal(shape).astype(kind)
    if kind == np.bool_:
        return rng.random(shape) < 0.5
    return rng.integers(0, 4, shape).astype(kind)


def check(
    source: str | Program,
    sizes: Mapping[str, int] | None = None,
    *,
    inputs: Sequence[Array] | None = None,
    target: Target = AVX512,
    passes: str | None = None,
    interpret: bool = True,
    seed: int = 0,
    only: str | None = None,
) -> Ran:
    """Run the kernels of `source` on `target` and compare; see above. Programs without control flow only.

    With `only`, kernels of another strategy are no concern of the test: they are what their cascades mean.
    """
    before = _parsed(source) if isinstance(source, str) else source
    arrays = list(inputs) if inputs is not None else random_arrays(before, sizes or {}, seed)
    after, lowering = _compiled(_Once(before), target, passes, only)
    symbols = bind_symbols(after.params, {p.name: a for p, a in zip(after.params, arrays, strict=True)}, after.symbols)
    ran = Ran(after)
    values: dict[str, Array] = {p.name: a for p, a in zip(after.params, arrays, strict=True)}
    values |= {c.name: np.asarray(after.data[c.name]) for c in after.consts}
    table = after.kernel_table
    for stmt in after.body.body:
        assert isinstance(stmt, Launch), stmt
        kernel = table[stmt.kernel]
        args = [values[a] for a in stmt.args]
        if stmt.kernel in lowering:
            ran.lowered[stmt.kernel], ran.kinds[stmt.kernel] = lowering[stmt.kernel]
            outs = _run(kernel, ran.lowered[stmt.kernel], args, symbols, target, interpret)
        else:
            outs = list(bounded_cascade(kernel.cascade, args, symbols).values)
        values.update(zip(stmt.outs, outs, strict=True))
    ran.values = values
    want = run_program(before, arrays)
    for name, w in zip(before.results, want, strict=True):
        assert values[name].shape == w.shape and values[name].dtype == w.dtype
        _near(values[name], w, name)
    return ran


@lru_cache(maxsize=64)
def _parsed(text: str) -> Program:
    return parse_program(text)


@dataclass(frozen=True, eq=False)
class _Once:
    """A program as a key of the cache below: itself, with its constants, not whatever equals it."""

    program: Program

    def __hash__(self) -> int:
        return id(self.program)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Once) and other.program is self.program


@lru_cache(maxsize=64)
def _compiled(
    source: _Once, target: Target, passes: str | None, only: str | None
) -> tuple[Program, dict[str, tuple[Lowered, str]]]:
    """The program after the passes, and each kernel (`only` those of a strategy) lowered; the tile text is read back."""
    after = run_passes(source.program, passes or default_pipeline(target.lanes, target.vector_registers))
    lowering = {}
    for kernel in after.kernels:
        kind = strategy(kernel, after, target)
        if only is None or kind == only:
            lowered = lower_kernel(kernel, after.facts, target)
            assert parse_tile(str(lowered.tile)) == lowered.tile, "the text form reads back"
            lowering[kernel.name] = lowered, kind
    return after, lowering


def _run(
    kernel: Kernel, lowered: Lowered, args: Sequence[Array], symbols: Mapping[str, int], target: Target, interpret: bool
) -> list[Array]:
    cascade, tile = kernel.cascade, lowered.tile
    bounded = bounded_cascade(cascade, args, symbols)
    types = cascade_types(cascade)
    buffers: dict[str, Array] = {}
    for p, a in zip(cascade.params, args, strict=True):
        buffers[p.name] = stored(a, p.type)
    for name, value in zip(cascade.results, bounded.values, strict=True):
        buffers[name] = stored(np.full(value.shape, 77, value.dtype), types[name])
    runs = {"natively": {k: v.copy() for k, v in buffers.items()}}
    failed = tile_harness.native(tile, runs["natively"], dict(symbols), target)
    assert not failed, failed
    if interpret:
        runs["interpreted as tiles"] = {k: v.copy() for k, v in buffers.items()}
        assert not tile_interp.run(tile, runs["interpreted as tiles"], symbols)
    outs: list[Array] = []
    for how, memory in runs.items():
        outs = []
        for name, value, limit in zip(cascade.results, bounded.values, bounded.bounds, strict=True):
            got = logical(memory[name], types[name], value.shape)
            wrong = ~agrees(got, value, limit)
            assert not wrong.any(), (
                f"{name} of {cascade.name} {how} on {target}: {wrong.sum()} of {wrong.size} elements differ, first at "
                f"{np.argwhere(wrong)[0]}: {got[wrong][0]} for {value[wrong][0]} within {limit[wrong][0]}\n{kernel}"
            )
            outs.append(got)
    shapes = {n: v.shape for n, v in zip(cascade.results, bounded.values, strict=True)}
    return [logical(runs["natively"][n], types[n], shapes[n]) for n in cascade.results]


def stored(a: Array, of: TensorType) -> Array:
    """The array as its memory lies, 77 between its rows; codes without gaps, and what is read past them."""
    if of.dtype.is_coded:
        return np.concatenate([pack(codes_of(a), of.dtype), np.full(READ_PAST, 0xA5, np.uint8)])
    a = a if of.order is None else a.transpose(of.order)
    if not of.pitch:
        return np.array(a, order="C")  # ascontiguousarray gives rank 0 a dimension
    return np.concatenate([a, np.full((*a.shape[:-1], of.pitch), 77, a.dtype)], -1)


def logical(a: Array, of: TensorType, shape: tuple[int, ...]) -> Array:
    """The elements of memory that `stored` describes; nothing may be written between the rows."""
    if of.pitch:
        rows = a.shape[-1] - of.pitch
        assert (a[..., rows:] == np.asarray(77, a.dtype)).all(), f"written between the rows of {of}"
        a = a[..., :rows]
    a = a if of.order is None else a.transpose(np.argsort(of.order))
    assert a.shape == shape
    return a


def _near(got: Array, want: Array, name: str) -> None:
    if want.dtype.kind in "iub":
        np.testing.assert_array_equal(got, want, name)
        return
    g, w = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(w)
    scale = float(np.abs(w[finite]).max()) if finite.any() else 1.0
    loose = {2: 3e-2, 4: 1e-5, 8: 1e-12}[want.dtype.itemsize]
    with np.errstate(invalid="ignore"):
        ok = (g == w) | (np.isnan(g) & np.isnan(w)) | (np.abs(g - w) <= loose * scale)
    assert ok.all(), (name, np.argwhere(~ok)[:3], g[~ok][:3], w[~ok][:3])


targets = pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
