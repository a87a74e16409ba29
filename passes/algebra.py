"""Shorter scalar expressions, by rules that hold for every value."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.dtype import DType
from dlc.ir.einsum import Einsum
from dlc.ir.expr import index_value, transform
from dlc.ir.extent import IntExpr, Value, Var, has_value, rebuild, var
from dlc.ir.facts import Facts
from dlc.ir.program import Program, tensor_types
from dlc.passes.pipeline import Pass
from dlc.passes.scalar_rules import Rules
from dlc.passes.scopes import map_einsums


@dataclass(frozen=True)
class Algebra(Pass):
    """Apply the identities of `scalar_rules` everywhere.

        x * 1.0  ->  x                        pow(x, 2.0)        ->  x * x
        x / 8.0  ->  x * 0.125                pow(x, 0.5)        ->  sqrt(x)      where x is not negative
        x - 0.0  ->  x                        1/(1 + exp(-x))    ->  sigmoid(x)
        max(max(x, a), b) -> max(x, max(a, b))        cast<f32>(cast<f64>(x)) -> x
        select(c, x, x)  ->  x                        i + 3 - 2 of indices -> one index

    What is true of numbers but not of NaN, infinities or -0.0 (`x + 0.0`, `x * 0.0`, `x - x`) is left alone.
    """

    name: ClassVar[str] = "algebra"

    def apply(self, program: Program) -> Program:
        types = {n: t.dtype for n, t in tensor_types(program).items()}
        nonnegative: set[str] = set()
        return map_einsums(program, lambda step, facts: _shorten(step, facts, types, nonnegative))


def _shorten(step: Einsum, facts: Facts, types: dict[str, DType], nonnegative: set[str]) -> Einsum:
    rules = Rules(types.__getitem__, facts, nonnegative)
    exprs = tuple(transform(e, rules.shorten) for e in step.exprs)
    where = None if step.where is None else transform(step.where, rules.shorten)
    write = step.write
    if write is not None and any(map(has_value, write.index)):
        write = replace(write, index=tuple(_shorten_index(i, rules) for i in write.index))
    same = where is step.where and all(a is b for a, b in zip(exprs, step.exprs, strict=True))
    if not (same and write == step.write):
        step = replace(step, exprs=exprs, where=where, write=write)
    if step.write is None and len(exprs) == 1 and step.dtype.is_float and rules.is_nonnegative(step.expr):
        if step.reduce is None or step.reduce.op in ("sum", "prod", "min"):
            nonnegative.add(step.out)
    return step


def _shorten_index(e: IntExpr, rules: Rules) -> IntExpr:
    def leaf(atom: Var | Value) -> IntExpr:
        return var(atom.name) if isinstance(atom, Var) else index_value(transform(atom.expr, rules.shorten))

    return rebuild(e, leaf) if has_value(e) else e
