"""A per-channel factor after a contraction with constant weights moves into the weights."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from dlc.ir.dtype import F32, F64
from dlc.ir.einsum import Einsum
from dlc.ir.expr import Access, Apply, Expr, transform, walk
from dlc.ir.extent import Var, variables
from dlc.ir.program import Param, Program
from dlc.passes.pipeline import Pass
from dlc.passes.rename import rename_operands
from dlc.passes.rewrite import Names, all_einsums, drop_dead, map_steps, whole_reads


@dataclass(frozen=True)
class FoldScale(Pass):
    """Fold `Y[.., o, ..] * S[o]`, the only use of a contraction `Y` with constant weights, into the weights.

        Y[n, o] = sum(k) X[n, k] * W[o, k]                    Y[n, o] = sum(k) X[n, k] * W_scaled[o, k]
        Z[n, o] = Y[n, o] * S[o] + B[o]                ->     Z[n, o] = Y[n, o] + B[o]

    This is how batch normalisation disappears. `W_scaled` is rounded to the type of the weights: every term of the sum
    gets a relative error of at most 2^-24 in f32, as much as one more multiplication, so |error| <= 2^-24 * sum |X||W S|.
    Not done for narrower types. Every reader must use the same factor, and `Y` must not be a result.
    """

    name: ClassVar[str] = "fold-scale"

    def apply(self, program: Program) -> Program:
        return _Scaler(program).run()


@dataclass(slots=True)
class _Scaler:
    program: Program
    arrays: dict[str, Any] = field(default_factory=dict)
    made: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def run(self) -> Program:
        program = self.program
        self.arrays = {c.name: program.data[c.name] for c in program.consts if c.name in program.data}
        factors = self.factors()
        kept, names = whole_reads(program), Names(program)
        scaled: dict[str, tuple[str, int]] = {}

        def contraction(step: Einsum) -> Einsum:
            found = factors.get(step.out)
            if found is None or step.out in kept:
                return step
            new = self.scale(step, *found, names)
            if new is None:
                return step
            scaled[step.out] = found
            return new

        def reader(step: Einsum) -> Einsum:
            if scaled.keys().isdisjoint(step.reads):
                return step
            exprs = tuple(transform(e, lambda n: unscaled(n, scaled)) for e in step.exprs)
            return replace(step, exprs=exprs)

        rewritten = map_steps(program, contraction)
        if not scaled:
            return program
        rewritten = map_steps(rewritten, reader)
        types = {c.name: c.type for c in program.consts}
        consts = tuple(Param(new, types[old]) for new, (old, _) in self.made.items())
        data = {**program.data, **{new: array for new, (_, array) in self.made.items()}}
        return drop_dead(replace(rewritten, consts=program.consts + consts, data=data))

    def factors(self) -> dict[str, tuple[str, int]]:
        """Tensor -> (constant, dimension) when every read of it is multiplied by the constant at its index there."""
        reads: dict[str, int] = defaultdict(int)
        scaled: dict[str, set[tuple[str, int]]] = defaultdict(set)
        uses: dict[str, int] = defaultdict(int)
        for step in all_einsums(self.program):
            for a in step.accesses():
                reads[a.tensor] += 1
            for e in step.exprs:
                for n in walk(e):
                    found = self.factor(n)
                    if found is not None:
                        scaled[found[0]].add(found[1:])
                        uses[found[0]] += 1
        return {t: next(iter(s)) for t, s in scaled.items() if len(s) == 1 and uses[t] == reads[t]}

    def factor(self, e: Expr) -> tuple[str, str, int] | None:
        """(tensor, constant, dimension) of `Y[.., i, ..] * S[i]`."""
        match e:
            case Apply("mul", (Access(y, index, None), Access(s, (i,), None))) if (
                s in self.arrays and index.count(i) == 1
            ):
                return (y, s, index.index(i)) if isinstance(i.atom, Var) else None
            case _:
                return None

    def scale(self, step: Einsum, factor: str, dimension: int, names: Names) -> Einsum | None:
        """The contraction with scaled weights; None where it is none, or its weights do not have the dimension."""
        if step.reduce is None or step.reduce.op != "sum" or step.write is not None or step.dtypes[0] not in (F32, F64):
            return None
        operands = _product(step.expr)
        weights = [a for a in operands if a is not None and a.tensor in self.arrays]
        if None in operands or len(weights) != 1 or not 0 <= dimension < len(step.ranks):
            return None
        (weight,) = weights
        rank = step.ranks[dimension]
        at = [d for d, i in enumerate(weight.index) if isinstance(i.atom, Var) and i.atom.name == rank.name]
        mentions = sum(rank.name in variables(i) for i in weight.index)
        array, by = np.asarray(self.arrays[weight.tensor]), np.asarray(self.arrays[factor])
        if weight.default is not None or len(at) != 1 or mentions != 1 or array.dtype != by.dtype:
            return None
        if array.shape[at[0]] != len(by) or rank.extent.const != len(by):
            return None
        shape = [1] * array.ndim
        shape[at[0]] = len(by)
        with np.errstate(all="ignore"):
            scaled = (array.astype(np.float64) * by.astype(np.float64).reshape(shape)).astype(array.dtype)
        if not np.isfinite(scaled).all():
            return None
        name = names.fresh(f"{weight.tensor}_scaled")
        self.made[name] = (weight.tensor, scaled)
        return rename_operands(step, {weight.tensor: name})


def unscaled(e: Expr, scaled: dict[str, tuple[str, int]]) -> Expr | None:
    """`Y[i] * S[i]` as `Y[i]` where the weights of `Y` have taken the factor."""
    match e:
        case Apply("mul", (Access(y) as read, Access(s))) if y in scaled and scaled[y][0] == s:
            return read
        case _:
            return None


def _product(e: Expr) -> list[Access | None]:
    """The accesses whose product `e` is; None stands for any other operand."""
    match e:
        case Apply("mul", (a, b)):
            return _product(a) + _product(b)
        case Access():
            return [e]
        case _:
            return [None]
