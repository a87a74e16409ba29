"""Kernels that differ in literals alone become one, which is given them when it is launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeAlias

import numpy as np

from dlc.ir.dtype import DType
from dlc.ir.einsum import Einsum, Step, TensorType, flat
from dlc.ir.evaluate import held, round_to
from dlc.ir.expr import Apply, Cast, Const, Expr, Piecewise, access, const
from dlc.ir.program import Kernel, Param, Program, fresh_name
from dlc.passes.kernels import add_kernel
from dlc.passes.pipeline import BadOption, Pass
from dlc.passes.rewrite import Data, Relaunched, relaunch

Bits: TypeAlias = tuple[DType, bytes]

_COMPARISONS = frozenset(("eq", "ne", "lt", "le", "gt", "ge"))
_ANY_NUMBER = _COMPARISONS | {"add", "sub", "mul", "div", "select"}
"""Operators that take as long for any number as for one that is known."""


@dataclass(frozen=True)
class ShareLiterals(Pass):
    """Turn the literals in which otherwise equal kernels differ into arguments.

        kernel k_1(X) -> (C) { C[] = X[] + 0.25 > 0.5 }         kernel k_3(X, B, T) -> (C) { C[] = X[] + B[] > T[] }
        kernel k_2(X) -> (C) { C[] = X[] + 1.5 > 0.75 }   ->    const L1, L2, L3, L4: 0.25, 0.5, 1.5 and 0.75
        (P) = launch k_1(U)                                     (P) = launch k_3(U, L1, L2)
        (Q) = launch k_2(V)                                     (Q) = launch k_3(V, L3, L4)

    Blocks of a network that have numbers of their own (a bias of one element, a threshold, a scale) are one kernel then,
    however many there are, for an address per launch and a load. What all that become one share, bit for bit, stays a literal;
    literals that are equal in each of them are one argument. Where more than `most` arguments would be added, nothing is.

    A literal stays in any case where the code is better for knowing it, or only right with it: in reductions and scatters
    (factors, codes, identities), scans, indices, domains, guards, reads that may fall outside, in what is converted to an integer
    (`round(x / c)` takes no division), in `min`, `max` and whatever is no plain arithmetic, unless one element is computed in
    all, and integers, but for what one element is compared with.

    Source: Edler von Koch et al., Exploiting function similarity for code size reduction (LCTES 2014), which merges
    functions and gives them the constants in which they differ; the cascades are those of Chen et al., DyCL (arXiv 2307.04963).
    """

    name: ClassVar[str] = "share-literals"
    most: int = 8

    def __post_init__(self) -> None:
        if self.most < 1:
            raise BadOption(option="most", name=self.name, wanted="at least 1", value=self.most)

    def apply(self, program: Program) -> Program:
        groups: dict[Kernel, list[_Member]] = {}
        for kernel in program.kernels:
            blank, literals = _blank(kernel)
            groups.setdefault(blank, []).append(_Member(kernel, literals))
        table: dict[str, Kernel] = {}
        merged: dict[str, Relaunched] = {}
        for members in groups.values():
            found = _merge(members, table, self.most) if len(members) > 1 else {}
            merged.update(found)
            table.update({m.kernel.name: m.kernel for m in members if m.kernel.name not in found})
        return relaunch(program, merged, tuple(table.values())) if merged else program


@dataclass(frozen=True, slots=True)
class _Member:
    """A kernel and those of its literals that may become arguments, in the order in which they stand."""

    kernel: Kernel
    literals: tuple[Const, ...]


def _merge(members: Sequence[_Member], table: dict[str, Kernel], most: int) -> dict[str, Relaunched]:
    """The kernel of a group, added to `table`; nothing when it would have too many arguments."""
    columns = [tuple(map(_bits, column)) for column in zip(*(m.literals for m in members), strict=True)]
    places: dict[tuple[Bits, ...], int] = {}  # the first of each column that varies
    for n, column in enumerate(columns):
        if len(set(column)) > 1:
            places.setdefault(column, n)
    if len(places) > most:
        return {}
    first = members[0]
    kernel = _with_arguments(first.kernel, [places.get(column) for column in columns], first.literals)
    name = add_kernel(table, kernel.cascade, kernel.outer).name

    def given(m: _Member) -> tuple[tuple[str, DType, Data], ...]:
        return tuple(("literal", m.literals[n].dtype, _stored(m.literals[n])) for n in places.values())

    return {m.kernel.name: Relaunched(name, given(m)) for m in members}


def _with_arguments(kernel: Kernel, places: Sequence[int | None], literals: Sequence[Const]) -> Kernel:
    """The kernel, without a name, whose literals with a place are read from one argument for each place."""
    cascade = kernel.cascade
    taken = {p.name for p in cascade.params} | {o for s in flat(cascade.steps) for o in s.outs}
    names: dict[int, str] = {}
    params = list(cascade.params)
    for n in places:
        if n is not None and n not in names:
            names[n] = fresh_name(f"a{len(params)}", taken)
            taken.add(names[n])
            params.append(Param(names[n], TensorType(literals[n].dtype, ())))
    left = iter(places)

    def read(literal: Const) -> Expr:
        n = next(left)
        return literal if n is None else access(names[n])

    return replace(kernel, cascade=replace(cascade, name="", params=tuple(params), steps=_map_literals(cascade.steps, read)))


# --- literals --------------------------------------------------------------------------------------------------------


def _stored(literal: Const) -> Data:
    """The literal as an array of rank 0: the number that is computed with."""
    return round_to(np.asarray(literal.value, held(literal.dtype)), literal.dtype)


def _bits(literal: Const) -> Bits:
    return literal.dtype, _stored(literal).tobytes()


def _blank(kernel: Kernel) -> tuple[Kernel, tuple[Const, ...]]:
    """The kernel without a name and with zeros for the literals that may become arguments; these."""
    literals: list[Const] = []

    def visit(literal: Const) -> Expr:
        literals.append(literal)
        return const(0, literal.dtype)

    steps = _map_literals(kernel.cascade.steps, visit)
    return replace(kernel, cascade=replace(kernel.cascade, name="", steps=steps)), tuple(literals)


def _map_literals(steps: Sequence[Step], visit: Callable[[Const], Expr]) -> tuple[Step, ...]:
    """The steps with `visit` of each literal that may become an argument, in the order in which these stand."""

    def mapped(step: Step) -> Step:
        if not isinstance(step, Einsum) or step.reduce is not None or step.write is not None:
            return step
        walk = _Walk(visit, all(r.extent.const == 1 for r in step.ranks))
        exprs = tuple(e if t.is_int else walk.expr(e) for e, t in zip(step.exprs, step.dtypes, strict=True))
        return replace(step, exprs=exprs)

    return tuple(map(mapped, steps))


@dataclass(frozen=True, slots=True)
class _Walk:
    """Goes through an expression by what decides on its literals.

    Attributes:
        single: whether the step computes one element.
    """

    visit: Callable[[Const], Expr]
    single: bool

    def expr(self, e: Expr) -> Expr:
        match e:
            case Apply(op, args):
                return Apply(op, tuple(self.operand(op, a) for a in args))
            case Cast(dtype, arg, mode) if not dtype.is_int:
                return Cast(dtype, self.expr(arg), mode)
            case Piecewise(cases, otherwise):
                return Piecewise(tuple((guard, self.expr(value)) for guard, value in cases), self.expr(otherwise))
            case _:
                return e

    def operand(self, op: str, e: Expr) -> Expr:
        if not isinstance(e, Const):
            return self.expr(e)
        if e.dtype.is_float:
            may = op in _ANY_NUMBER or (self.single and op in ("min", "max"))
        else:
            may = e.dtype.is_int and self.single and op in _COMPARISONS
        return self.visit(e) if may and e.dtype.native else e


__all__ = ["ShareLiterals"]
