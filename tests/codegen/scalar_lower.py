"""A lowering for tests: every element of a kernel is a task of scalar code; independent of the real one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dlc.codegen.target import Target
from dlc.codegen.tile import Buffer, TileProgram, TileType
from dlc.codegen.tile_build import Builder
from dlc.ir.dtype import I64
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, Index
from dlc.ir.extent import IntExpr, int_expr, substitute, var, variables
from dlc.ir.facts import SymbolFact
from dlc.ir.program import Kernel, cascade_types


@dataclass(frozen=True)
class Lowered:
    tile: TileProgram
    work_per_task: IntExpr


def lower(kernel: Kernel, facts: Mapping[str, SymbolFact], target: Target) -> Lowered:
    """One Einsum per result, all over the same ranks; sums over reduced ranks; `check` guards gathers."""
    cascade = kernel.cascade
    types = cascade_types(cascade)
    steps = [s for s in cascade.steps if isinstance(s, Einsum)]
    buffers = tuple(Buffer(p.name, p.type.dtype, "in", p.type.elements) for p in cascade.params)
    buffers += tuple(Buffer(r, types[r].dtype, "out", types[r].elements) for r in cascade.results)
    b = Builder({x.name: x.dtype for x in buffers})
    task = var("task")
    first = steps[0]
    for step in steps:
        index = dict(zip((r.name for r in step.ranks), _indices(task, [r.extent for r in step.ranks]), strict=True))
        if step.reduce is None:
            value = _value(b, step.expr, index, types)
        else:
            assert step.reduce.op == "sum"
            (rank,) = step.reduce.ranks
            zero = b.const(step.dtype, 0.0)
            with b.loop(f"k_{rank.name}", 0, rank.extent, 1, carries=(zero,)) as loop:
                term = _value(b, step.expr, {**index, rank.name: loop.index}, types)
                loop.yields(b.op("add", loop.carries[0], term))
            value = loop.results[0]
        if step.out in cascade.results:
            b.store(step.out, task, value)
    body = b.body()
    elements = types[first.out].elements
    symbols = sorted({n for s in steps for n in s.symbols} | {n for x in buffers for n in variables(x.size)})
    return Lowered(TileProgram(kernel.name, buffers, tuple(symbols), elements, "task", body), int_expr(100))


def _indices(flat: IntExpr, shape: list[IntExpr]) -> list[IntExpr]:
    result: list[IntExpr] = []
    for extent in reversed(shape):
        result.append(flat % extent)
        flat = flat // extent
    return result[::-1]


def _value(b: Builder, e: Expr, index: Mapping[str, IntExpr], types: Mapping[str, TensorType]) -> str:
    match e:
        case Const(value, dtype):
            return b.const(dtype, value)
        case Index(expr):
            return b.from_index(substitute(expr, index), I64)
        case Access(tensor, where):
            of = types[tensor]
            at = int_expr(0)
            for i, extent in zip(where, of.shape, strict=True):
                at = at * extent + substitute(i, index)
            return b.load(TileType(of.dtype), tensor, at)
        case Apply("checked", args):
            raise AssertionError(args)
        case Apply(op, args):
            return b.op(op, *(_value(b, a, index, types) for a in args))
        case Cast(dtype, arg, mode):
            return b.cast(_value(b, arg, index, types), dtype, mode)
    raise AssertionError(f"no scalar code for {e}")
