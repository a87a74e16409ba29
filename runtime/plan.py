"""What depends on the shapes of a call: symbol values, output shapes, arena offsets, and prepared frames.

Everything here is computed once per combination of input shapes and kept; a call then only fills in addresses.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlc.runtime import arena
from dlc.runtime.errors import (
    BadManifest,
    CannotEvaluate,
    NotEnoughMemory,
    OverBudget,
    SymbolMismatch,
    SymbolOutOfRange,
    WrongRank,
    WrongShape,
)
from dlc.runtime.expr import I64_MAX, compile_expressions, names_in, solve_affine
from dlc.runtime.manifest import MAX_BYTES, Manifest, Symbol, TensorSpec

Shapes = tuple[Sequence[int], ...]


@dataclass(slots=True)
class Context:
    """A frame that one call at a time uses.

    Attributes:
        frame: the native frame, i64 words.
        address: of the frame.
        base: address of the arena that the frame's buffer words point into.
    """

    frame: Any
    address: int
    base: int = 0


@dataclass(slots=True)
class OutputPlan:
    """One output for given shapes; `shape` is None where native code decides."""

    shape: tuple[int, ...] | None
    size_bytes: int


@dataclass(slots=True)
class Plan:
    """All that follows from the shapes of the inputs.

    Attributes:
        symbols: value of each symbol, in frame order; 0 for dynamic ones.
        input_bytes: size of each input.
        outputs: what to allocate.
        offsets: of each arena buffer.
        scratch_at: offset of the scratch memory, `scratch_bytes` per thread.
        arena_bytes: of everything, scratch included.
        idle: contexts that no call uses at the moment.
    """

    symbols: tuple[int, ...]
    input_bytes: tuple[int, ...]
    outputs: tuple[OutputPlan, ...]
    offsets: tuple[int, ...]
    scratch_at: int
    scratch_bytes: int
    arena_bytes: int
    idle: list[Context] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Source:
    """How one symbol is found: `solve` inverts the expression of a dimension, or None where it is the bare name."""

    symbol: int
    input: int
    dim: int
    at: Callable[..., tuple[int, ...]] | None


class Planner:
    """Computes plans; made once per executable, safe to use from several threads."""

    def __init__(self, manifest: Manifest, threads: int) -> None:
        self.manifest = manifest
        self.threads = threads
        self.names = manifest.symbol_names
        self.sources = tuple(self._order_sources())
        self._dims = compile_expressions([d for spec in manifest.inputs for d in spec.shape], self.names)
        self._outputs = [
            None if spec.dynamic else compile_expressions(spec.shape, self.names) for spec in manifest.outputs
        ]
        self._sizes = compile_expressions([manifest.scratch, *(b.bytes for b in manifest.buffers)], self.names)
        self._lifetimes = [(buffer.first, buffer.last) for buffer in manifest.buffers]
        self._hints = [buffer.offset for buffer in manifest.buffers]
        self.value_inputs = tuple(sorted({source.input for source in self.sources if source.dim == -1}))

    def plan(self, shapes: Shapes, values: dict[int, int]) -> Plan:
        """The plan for input `shapes`; `values` has the integers of inputs that carry a symbol as a value.

        Raises:
            WrongRank, WrongShape, SymbolMismatch, SymbolOutOfRange: the inputs do not fit the model.
            CannotEvaluate, NotEnoughMemory: they fit, but something cannot be computed or is too large.
        """
        for spec, shape in zip(self.manifest.inputs, shapes):
            if len(shape) != len(spec.shape):
                raise WrongRank(
                    name=spec.name,
                    found=_show(shape),
                    expected=_expect(spec),
                    expected_rank=len(spec.shape),
                    found_rank=len(shape),
                )
        symbols = self._bind(shapes, values)
        self._check_dims(shapes, symbols)
        outputs = tuple(
            OutputPlan(None, 0) if shape_of is None else self._output(spec, shape_of(*symbols))
            for spec, shape_of in zip(self.manifest.outputs, self._outputs)
        )
        scratch, *sizes = self._sizes(*symbols)
        for size, name in zip((scratch, *sizes), ("scratch", *(buffer.name for buffer in self.manifest.buffers))):
            if size < 0:
                raise CannotEvaluate(reason=f"the size of '{name}' is {size}")
            if size > MAX_BYTES:
                raise NotEnoughMemory(needed=size, what=f"'{name}'")
        offsets, total = arena.plan(sizes, self._lifetimes, self._hints)
        scratch = arena.align(scratch)
        arena_bytes = total + scratch * self.threads
        if arena_bytes > MAX_BYTES:
            raise NotEnoughMemory(needed=arena_bytes, what="intermediate results")
        budget = self.manifest.memory_budget
        if budget is not None and arena_bytes > budget:
            limit = (budget - total) // scratch if scratch else 0
            raise OverBudget(needed=arena_bytes, budget=budget, threads=self.threads, limit=limit)
        input_bytes = tuple(math.prod(s) * spec.element.bytes for spec, s in zip(self.manifest.inputs, shapes))
        self._check_copies(input_bytes, outputs)
        return Plan(symbols, input_bytes, outputs, offsets, total, scratch, arena_bytes)

    def _check_copies(self, input_bytes: Sequence[int], outputs: Sequence[OutputPlan]) -> None:
        """An output that is the copy of something has as many bytes as its source."""
        for spec, planned in zip(self.manifest.outputs, outputs):
            match spec.alias:
                case ("input", number):
                    size = input_bytes[number]
                case ("output", number):
                    size = outputs[number].size_bytes
                case _:
                    continue
            if size != planned.size_bytes:
                reason = f"output '{spec.name}' has {planned.size_bytes} bytes, its source {size}"
                raise CannotEvaluate(reason=reason)

    def output_shape(self, index: int, symbols: Sequence[int]) -> tuple[int, ...]:
        """Shape of a dynamic output, from the symbols that native code wrote."""
        return compile_expressions(self.manifest.outputs[index].shape, self.names)(*symbols)

    def _output(self, spec: TensorSpec, shape: tuple[int, ...]) -> OutputPlan:
        if any(dim < 0 for dim in shape):
            raise CannotEvaluate(reason=f"output '{spec.name}' would have shape {_show(shape)}")
        size = math.prod(shape) * spec.element.bytes
        if size > MAX_BYTES:
            raise NotEnoughMemory(needed=size, what=f"output '{spec.name}'")
        return OutputPlan(shape, size)

    def _order_sources(self) -> list[_Source]:
        """One source per static symbol, each needing only symbols found before it."""
        manifest = self.manifest
        names = frozenset(self.names)
        found: set[str] = set()
        sources: list[_Source] = []
        waiting = [index for index, symbol in enumerate(manifest.symbols) if not symbol.dynamic]
        while waiting:
            left = []
            for index in waiting:
                source = self._source(index, manifest.symbols[index], found, names)
                if source is None:
                    left.append(index)
                else:
                    sources.append(source)
                    found.add(manifest.symbols[index].name)
            if len(left) == len(waiting):
                name = manifest.symbols[left[0]].name
                raise BadManifest(field=f"symbols[{left[0]}]", reason=f"'{name}' follows from no input's shape")
            waiting = left
        return sources

    def _source(self, index: int, symbol: Symbol, found: set[str], names: frozenset[str]) -> _Source | None:
        inputs = self.manifest.inputs
        places = symbol.inputs or tuple((i, d) for i, spec in enumerate(inputs) for d in range(len(spec.shape)))
        fallback = None
        for number, dim in places:
            if dim == -1:
                return _Source(index, number, dim, None)
            text = inputs[number].shape[dim]
            used = names_in(text, names)
            if symbol.name not in used:
                continue
            if text.strip() == symbol.name:
                return _Source(index, number, dim, None)
            if fallback is None and used <= found | {symbol.name} and "%" not in text and "/" not in text:
                fallback = _Source(index, number, dim, compile_expressions([text], self.names))
        return fallback

    def _bind(self, shapes: Shapes, values: dict[int, int]) -> tuple[int, ...]:
        bound = [0] * len(self.names)
        for source in self.sources:
            spec = self.manifest.inputs[source.input]
            symbol = self.manifest.symbols[source.symbol]
            size = values[source.input] if source.dim == -1 else shapes[source.input][source.dim]
            if source.at is None:
                value: int | None = size
            else:
                value = _solve(source.at, bound, source.symbol, size)
                if value is None:
                    raise WrongShape(
                        name=spec.name,
                        found=_show(shapes[source.input]),
                        expected=_expect(spec),
                        dim=source.dim,
                        size=size,
                        reason=f"which is {spec.shape[source.dim]} for no {symbol.name}",
                    )
            assert value is not None
            self._check_bounds(spec, symbol, value, shapes[source.input])
            bound[source.symbol] = value
        return tuple(bound)

    def _check_bounds(self, spec: TensorSpec, symbol: Symbol, value: int, shape: Sequence[int]) -> None:
        if not symbol.lo <= value <= symbol.hi:
            limit = f"at least {symbol.lo}" if symbol.hi == I64_MAX else f"from {symbol.lo} to {symbol.hi}"
            reason = f"the model was compiled for {limit}"
        elif value % symbol.divisor:
            reason = f"the model was compiled for multiples of {symbol.divisor}"
        else:
            return
        raise SymbolOutOfRange(name=spec.name, found=_show(shape), symbol=symbol.name, value=value, reason=reason)

    def _check_dims(self, shapes: Shapes, symbols: tuple[int, ...]) -> None:
        expected = self._dims(*symbols)
        found = tuple(size for shape in shapes for size in shape)
        if found == expected:
            return
        at = next(i for i, (a, b) in enumerate(zip(found, expected)) if a != b)
        want, size = expected[at], found[at]
        number = 0
        while at >= len(shapes[number]):
            at -= len(shapes[number])
            number += 1
        spec = self.manifest.inputs[number]
        shown: dict[str, Any] = {"name": spec.name, "found": _show(shapes[number]), "expected": _expect(spec)}
        shown |= {"dim": at, "size": size}
        used = names_in(spec.shape[at], self.names)
        if not used:
            raise WrongShape(**shown, reason=f"compiled for {want}")
        parts = []
        for source in self.sources:
            name = self.names[source.symbol]
            if name in used:
                where = "" if source.dim == -1 else f" by dimension {source.dim} of"
                carrier = self.manifest.inputs[source.input].name
                parts.append(f"{name} is {symbols[source.symbol]}{where} input '{carrier}'")
        raise SymbolMismatch(**shown, reason=f"{' and '.join(parts)}, so {want} is expected")


def _solve(at: Callable[..., tuple[int, ...]], bound: list[int], index: int, size: int) -> int | None:
    def value(x: int) -> int:
        return at(*bound[:index], x, *bound[index + 1 :])[0]

    try:
        return solve_affine(value, size)
    except CannotEvaluate:
        return None


def new_context(size: int) -> Context:
    """A zeroed frame of `size` words."""
    frame = (ctypes.c_int64 * size)()
    return Context(frame, ctypes.addressof(frame))


def _show(shape: Sequence[int]) -> str:
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def _expect(spec: TensorSpec) -> str:
    return "(" + ", ".join(spec.shape) + ("," if len(spec.shape) == 1 else "") + ")"
