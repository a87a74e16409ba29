"""A kernel may write over an operand: the condition against a trace of every access, on all small programs and on real kernels."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dlc.codegen import in_place, tile, tile_interp
from dlc.codegen.in_place import may_take
from dlc.codegen.lower import lower_kernel
from dlc.codegen.target import Target
from dlc.codegen.tile import TileProgram, TileType
from dlc.codegen.tile_to_mlir import lower as to_mlir
from dlc.codegen.tile_verify import InvalidTile, verify
from dlc.compiler import run_passes
from dlc.ir.dtype import F32, I64, DType
from dlc.ir.extent import IntExpr, evaluate, int_expr, var
from dlc.ir.parser import parse_program
from dlc.ir.program import Kernel, Program, cascade_types
from dlc.passes.default import default_pipeline

sys.path.insert(0, str(Path(__file__).parent))
import tile_harness
from kernel_harness import sample, stored, targets

N = 8


# -- the judge -------------------------------------------------------------------------------------------------------


class Tracer(tile_interp.Machine):
    """Which element of the operand is read when, and of the result written when, by which task."""

    def __init__(self, program: TileProgram, buffers: dict[str, np.ndarray], operand: str, result: str) -> None:
        super().__init__(program, buffers, {})
        self.operand, self.result = operand, result
        self.number = self.clock = 0
        self.reads: list[tuple[int, int, int]] = []  # element, task, time
        self.writes: list[tuple[int, int, int]] = []

    def task(self, number: int) -> None:
        self.number = number
        super().task(number)

    def note(self, s: tile.Load | tile.Store, shape: tuple[int, ...]) -> None:
        self.clock += 1
        into = {self.operand: self.reads, self.result: self.writes}.get(s.buffer)
        if into is not None:
            into += [(int(e), self.number, self.clock) for e in self.places(s.offset, (*s.slot_strides, s.lane_stride), shape)[self.on(s.mask, shape)]]

    def _load(self, s: tile.Load) -> None:
        super()._load(s)
        self.note(s, (*s.type.slots, s.type.lanes))

    def _store(self, s: tile.Store) -> None:
        super()._store(s)
        self.note(s, self.tiles[s.src].shape)

    def _gather(self, s: tile.Gather) -> None:
        super()._gather(s)
        self.clock += 1
        if s.buffer == self.operand:
            places = self.tiles[s.offsets]
            self.reads += [(int(e), self.number, self.clock) for e in places[self.on(s.mask, places.shape)]]

    def _scatter(self, s: tile.Scatter) -> None:
        super()._scatter(s)
        self.clock += 1
        if s.buffer == self.result:
            self.writes += [(int(e), self.number, self.clock) for e in self.tiles[s.offsets].reshape(-1)]

    def safe(self) -> bool:
        """Whether no order of the tasks, not even interleaved, has an element written before its last read."""
        writes: dict[int, list[tuple[int, int]]] = {}
        for element, task, time in self.writes:
            writes.setdefault(element, []).append((task, time))
        return all(
            by == task and at > time for element, task, time in self.reads for by, at in writes.get(element, ())
        )

    def whole(self, elements: int) -> bool:
        return len({element for element, _, _ in self.writes}) == elements


def traced(program: TileProgram, operand: str, result: str) -> Tracer:
    verify(program)
    rng = np.random.default_rng(0)
    arrays = {b.name: sample(rng, b.dtype, (int(evaluate(b.size, {})),)) for b in program.buffers if b.role != "scratch"}
    tracer = Tracer(program, arrays, operand, result)
    for task in range(int(evaluate(program.tasks, {}))):
        tracer.task(task)
    return tracer


# -- all small programs ----------------------------------------------------------------------------------------------

TASK, I = var("task"), var("i")


def load(offset: IntExpr, lanes: int, mask: str | None = None, name: str = "x") -> tile.Load:
    return tile.Load(name, TileType(F32, (), lanes), "a", offset, mask=mask)


def store(offset: IntExpr, lanes: int, mask: str | None = None) -> tuple[tile.Stmt, ...]:
    """A store of zeros: what is stored does not matter here."""
    name = f"z{next(SERIAL)}"
    return tile.Const(name, TileType(F32, (), lanes), 0.0), tile.Store("t", offset, name, mask=mask)


SERIAL = itertools.count()


def rounds(hi: int, step: int, *body: tile.Stmt) -> tile.For:
    return tile.For("i", int_expr(0), int_expr(hi), int_expr(step), tuple(body))


def small_programs() -> Iterator[TileProgram]:
    """One element or several at a time, in one loop or two, by one task or two, shifted, mirrored, masked, twice."""
    for tasks, width, shift, mirrored in itertools.product((1, 2), (1, 2, 4), (-1, 0, 1), (False, True)):
        if tasks == 1 and mirrored:
            continue
        each = N // tasks
        base = TASK * each
        source = (tasks - 1 - TASK if mirrored else TASK) * each + shift
        for lanes in (width, 2 * width):
            read, write = load(source + I, lanes), store(base + I, width)
            whole = load(source, each)
            late = load(source + I, lanes, name="y")
            again = store(base, each)
            tail = (tile.Mask("m", width, int_expr(each) - I), *store(base + I, width, "m"))
            yield wrapped(tasks, rounds(each, width, read, *write))
            yield wrapped(tasks, rounds(each - lanes + width, width, read, *store(base + I, lanes)))
            yield wrapped(tasks, rounds(each, width, *write, read))
            yield wrapped(tasks, rounds(each, width, read, *write, late))
            yield wrapped(tasks, rounds(each, width, read), rounds(each, width, *write))
            yield wrapped(tasks, rounds(each, width, *write), rounds(each, width, read))
            yield wrapped(tasks, whole, rounds(each, width, *write))
            yield wrapped(tasks, rounds(each, width, whole, *write))
            yield wrapped(tasks, rounds(each, width, read, *write), *again)
            yield wrapped(tasks, rounds(each, width, read, *tail))
            yield wrapped(tasks, rounds(each, width, tile.Mask("n", lanes, int_expr(each) - I), load(source + I, lanes, "n"), *write))
            for edge in range(0, each, width):
                first = (tile.IndexCond(I, "le", int_expr(edge)),)
                yield wrapped(tasks, rounds(each, width, tile.If(first, (read, *write), (*write, late))))
                yield wrapped(tasks, rounds(each, width, read, tile.If(first, write, store(base + I, width))))
                yield wrapped(tasks, rounds(each, width, tile.If(first, (read,)), *write))
                yield wrapped(tasks, rounds(each, width, read, tile.If(first, write)), *store(base + edge + width, each - edge - width or 1))
            named = (tile.FromIndex("n", I64, base + I), tile.IndexOf("v", "n"))
            yield wrapped(tasks, rounds(each, width, *named, load(var("v") + shift, lanes), *store(var("v"), width)))
            yield wrapped(tasks, rounds(each, width, *named, load(var("v") + shift, lanes)), rounds(each, width, *write))
            if not mirrored:  # rows of three elements do not fill a register
                yield wrapped(2, tile.Mask("m", 4, int_expr(3)), load(3 * TASK, 4, "m"), *store(3 * TASK + shift, 4, "m"), size=6)
                yield wrapped(2, tile.Mask("m", 4, int_expr(3)), load(3 * TASK, 4), *store(3 * TASK, 4, "m"), size=7)
                yield wrapped(2, load(3 * TASK, 4), tile.Mask("m", 4, 3 + TASK), *store(3 * TASK, 4, "m"), size=7)


def wrapped(tasks: int, *body: tile.Stmt, size: int = N) -> TileProgram:
    buffers = tile.Buffer("a", F32, "in", int_expr(size)), tile.Buffer("t", F32, "out", int_expr(size))
    return TileProgram("p", buffers, (), int_expr(tasks), "task", body)


def judged() -> tuple[int, int, list[TileProgram]]:
    """How many small programs may and do write in place, and those that are said to and must not."""
    possible = allowed = 0
    wrong = []
    for program in small_programs():
        try:
            tracer = traced(program, "a", "t")
        except InvalidTile:  # reads or writes outside
            continue
        size = int(evaluate(program.buffer("t").size, {}))
        if tracer.whole(size):
            says = may_take(program, "a", "t", size)
            possible += tracer.safe()
            allowed += says
            if says and not tracer.safe():
                wrong.append(program)
    return possible, allowed, wrong


def test_all_small_programs() -> None:
    possible, allowed, wrong = judged()
    assert not wrong, str(wrong[0])
    assert (possible, allowed) == (185, 89)


@pytest.mark.parametrize("guard", ["_lanes", "_covered"])
def test_without_either_half_of_the_condition_some_program_is_wrong(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, guard, {"_lanes": lambda body, env: 0, "_covered": lambda body, way: True}[guard])
    assert judged()[2]


# -- kernels as they are made ----------------------------------------------------------------------------------------

KERNELS = {
    "points": ("X: f32[R, C], V: f32[C]", "O[i:R, j:C]: f32 = X[i, j] * V[j] + 1.0", {"X"}),
    "two operands": ("X: f32[R, C], Y: f32[R, C]", "O[i:R, j:C]: f32 = X[i, j] * Y[i, j]", {"X", "Y"}),
    "another type": ("X: f32[R, C]", "O[i:R, j:C]: i32 = cast<i32>(X[i, j])", {"X"}),
    "another width": ("X: f32[R, C]", "O[i:R, j:C]: f64 = cast<f64>(X[i, j])", set()),
    "half": ("X: bf16[R, C]", "O[i:R, j:C]: bf16 = X[i, j] + X[i, j]", {"X"}),
    "turned": ("X: f32[C, R]", "O[i:R, j:C]: f32 = X[j, i]", set()),
    "turned square": ("X: f32[C, C]", "O[i:C, j:C]: f32 = X[j, i] + X[i, j]", set()),
    "reversed": ("X: f32[R, C]", "O[i:R, j:C]: f32 = X[i, C - 1 - j]", None),
    "shifted": ("X: f32[R, C]", "O[i:R, j:C]: f32 = X[i, j] + (X[i, j - 1] else 0.0)", set()),
    "first column": ("X: f32[R, C]", "O[i:R, j:C]: f32 = X[i, j] + X[i, 0]", None),
    "first row": ("X: f32[R, C]", "O[i:R, j:C]: f32 = X[i, j] + X[0, j]", set()),
    "gathered": ("X: f32[R, C], I: i64[R]", "O[i:R, j:C]: f32 = X[I[i], j]", set()),
    "piecewise": ("X: f32[R, C]", "O[i:R, j:C]: f32 = { X[i, j] when j < 5 | 0.5 }", None),
    "softmax": (
        "X: f32[R, C]",
        """M[i:R]: f32 = max(k:C) X[i, k]
           E[i:R, j:C]: f32 = exp(X[i, j] - M[i])
           S[i:R]: f32 = sum(k:C) E[i, k]
           O[i:R, j:C]: f32 = E[i, j] / S[i]""",
        {"X"},
    ),
    "row sums": (
        "X: f32[R, C], Y: f32[R, C]",
        """S[i:R]: f32 = sum(k:C) X[i, k]
           O[i:R, j:C]: f32 = S[i] * Y[i, j]""",
        {"X", "Y"},
    ),
    "residual": (
        "A: f32[R, 24], B: f32[24, C], X: f32[R, C]",
        """P[i:R, j:C]: f32 = sum(k:24) A[i, k] * B[k, j]
           O[i:R, j:C]: f32 = max(P[i, j] + X[i, j], 0.0)""",
        {"X"},
    ),
    "window": (
        "X: f32[C, R]",
        "O[i:C, c:R]: f32 = max(k:3) (X[i + k - 1, c] else (-inf))",
        set(),
    ),
    "window and residual": (
        "W: f32[C, R], X: f32[C, R]",
        """P[i:C, c:R]: f32 = max(k:3) (W[i + k - 1, c] else (-inf))
           O[i:C, c:R]: f32 = P[i, c] + X[i, c]""",
        None,
    ),
}
"""Parameters, steps, and which operands a result may lie on; None where that depends on the sizes."""


def kernels(name: str, rows: int, columns: int, target: Target) -> tuple[Program, set[str] | None]:
    params, body, expected = KERNELS[name]
    text = f"cascade f({params}) -> (O) {{\n{body}\n}}".replace("[R", f"[{rows}").replace("R]", f"{rows}]").replace(":R", f":{rows}")
    text = text.replace("[C", f"[{columns}").replace("C]", f"{columns}]").replace(":C", f":{columns}").replace("C - 1", str(columns - 1))
    return run_passes(parse_program(text), default_pipeline(target.lanes, target.vector_registers)), expected


@targets
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name: str, target: Target) -> None:
    """Where it is allowed no access comes too late, and the results are the same to the bit."""
    for rows, columns in ((4, 16), (3, 15), (5, 33), (2, 150), (64, 96)):
        program, expected = kernels(name, rows, columns, target)
        lowered = [(k, lower_kernel(k, program.facts, target).tile) for k in program.kernels]
        (last, tiles) = lowered[-1]
        given = {p.name: a for p, a in zip(last.cascade.params, program.body.body[-1].reads, strict=True)}
        allowed = {given[p] for p in in_place_operands(last, tiles, target)}
        assert expected is None or len(lowered) > 1 or allowed == expected, (name, rows, columns, str(tiles))


def in_place_operands(kernel: Kernel, program: TileProgram, target: Target) -> set[str]:
    (result,) = kernel.cascade.results
    types = cascade_types(kernel.cascade)
    elements = types[result].elements.const
    assert elements is not None
    found = set()
    for param in kernel.cascade.params:
        if param.type.stored == types[result].stored and may_take(program, param.name, result, elements):
            found.add(param.name)
            tracer = traced(program, param.name, result)
            assert tracer.whole(elements) and tracer.safe(), str(program)
            same_in_place(kernel, program, param.name, result, target)
    return found


def same_in_place(kernel: Kernel, program: TileProgram, operand: str, result: str, target: Target) -> None:
    """Interpreted, the last task first, and natively: the result lies where the operand does, and is as if it did not."""
    rng = np.random.default_rng(1)
    types = cascade_types(kernel.cascade)
    shape = lambda name: tuple(int(evaluate(e, {})) for e in types[name].shape)  # noqa: E731
    arrays = {p.name: stored(sample(rng, p.type.dtype, shape(p.name)), p.type) for p in kernel.cascade.params}
    dtype: DType = types[result].dtype

    def memory(together: bool) -> dict[str, np.ndarray]:
        copies = {k: v.copy() for k, v in arrays.items()}
        place = copies[operand] if together else np.zeros_like(copies[operand])
        return copies | {result: place if dtype == types[operand].dtype else place.view(dtype.numpy)}

    apart, together = memory(False), memory(True)
    tile_interp.run(program, apart)
    machine = tile_interp.Machine(program, together, {})
    for task in reversed(range(int(evaluate(program.tasks, {})))):
        machine.task(task)
    assert together[result].tobytes() == apart[result].tobytes()
    if target is tile_harness.AVX512 and dtype == types[operand].dtype and program.tasks.const != 1:
        apart, together = memory(False), memory(True)
        for buffers in (apart, together):
            tile_harness.native(program, buffers, {}, target)
        assert together[result].tobytes() == apart[result].tobytes()


def test_results_that_are_stored_past_the_caches() -> None:
    """Such a kernel first asks where its result's lines begin; in the arena that is where the result does."""
    small = replace(tile_harness.AVX512, l3_bytes=4096)
    program = run_passes(parse_program("cascade f(X: f32[9000]) -> (O) { O[i:9000]: f32 = X[i] * 2.0 }"))
    (kernel,) = program.kernels
    tiles = lower_kernel(kernel, program.facts, small).tile
    assert any(isinstance(s, tile.Lead) for s in tile.walk(tiles.body))
    assert in_place_operands(kernel, tiles, small) == {"a0"}


def test_nothing_tells_the_compiler_below_that_buffers_are_distinct() -> None:
    """It may then move no load past a store; that the result lies where the operand does is no lie to it."""
    program, _ = kernels("residual", 5, 33, tile_harness.AVX512)
    text = to_mlir(lower_kernel(program.kernels[-1], program.facts, tile_harness.AVX512).tile, tile_harness.AVX512)
    assert "store" in text
    assert not any(word in text for word in ("noalias", "alias_scope", "invariant", "readonly", "tbaa"))
