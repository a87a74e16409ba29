"""Shorter accesses: what extents and symbol facts decide is decided."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from dlc.ir.domain import conjunction, conjuncts
from dlc.ir.dtype import DType
from dlc.ir.einsum import Einsum, Rank, Reduce
from dlc.ir.expr import Access, Apply, Cast, Expr, Piecewise, dtype_of, transform
from dlc.ir.extent import IntExpr, int_expr, substitute
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS
from dlc.ir.program import Program, tensor_types
from dlc.passes.index_facts import (
    FALSE,
    TRUE,
    decide,
    prune_piecewise,
    prune_predicate,
    simplify_index,
    simplify_indices_in,
)
from dlc.passes.once import OncePerForm
from dlc.passes.pipeline import Pass
from dlc.passes.scopes import map_einsums, partial_tensors


@dataclass(frozen=True)
class SimplifyIndices(Pass):
    """Simplify index expressions, drop what bounds prove, and remove ranks of extent 1 from reductions.

        O[h:12, f:64, b:1] = sum(k:1) X[(64*h + f)//64, b, k] else 0     ->     O[h:12, f:64, b:1] = X[h, 0, 0]

    An `else` goes when the read is proven to be inside (of a tensor that exists everywhere), a guard or a `where` when
    it is proven to hold or to fail. Exact: no value changes.
    """

    name: ClassVar[str] = "simplify-indices"

    def apply(self, program: Program) -> Program:
        types = tensor_types(program)
        partial = partial_tensors(program)

        def shape(tensor: str) -> tuple[IntExpr, ...] | None:
            return None if tensor in partial or tensor not in types else types[tensor].shape

        once = OncePerForm()

        def dtype(tensor: str) -> DType:
            return types[tensor].dtype

        def change(step: Einsum, facts: Facts) -> Einsum:
            known = tuple(types[t].dtype for t in step.reads if t in types)
            given = (tuple(facts.ranks.items()), tuple(map(shape, step.reads)), known)
            return once(step, given, lambda step: simplify_step(step, facts, shape, dtype))

        return map_einsums(program, change)


def simplify_step(
    step: Einsum, facts: Facts, shape: Callable[[str], tuple[IntExpr, ...] | None], dtype: Callable[[str], DType]
) -> Einsum:
    """One Einsum simplified; `shape` gives the extents of a tensor that exists everywhere, else None; `dtype` its elements' type."""
    step = _drop_unit_ranks(step, facts, dtype)

    def visit(e: Expr) -> Expr | None:
        match e:
            case Access(tensor, index, default) if default is not None:
                extents = shape(tensor)
                if extents is None or not all(map(facts.within, index, extents)):
                    return None
                return Access(tensor, index)
            case Piecewise():
                pruned = prune_piecewise(e, facts)
                return None if pruned is e else pruned
            case Apply("select", (condition, yes, no)):
                known = decide(condition, facts)
                return None if known is None else yes if known else no
            case Apply("and" | "or" | "not" | "lt" | "le" | "gt" | "ge" | "eq" | "ne"):
                shorter = prune_predicate(e, facts)
                return None if shorter is e else shorter
            case _:
                return None

    def simplify(e: Expr) -> Expr:
        return transform(simplify_indices_in(e, facts), visit)

    exprs = tuple(simplify(e) for e in step.exprs)
    if any(a is not b for a, b in zip(exprs, step.exprs, strict=True)):
        step = replace(step, exprs=exprs)
    if step.write is not None:
        index = tuple(simplify_index(i, facts) for i in step.write.index)
        if index != step.write.index:
            step = replace(step, write=replace(step.write, index=index))
    return step if step.where is None else _simplify_where(step, simplify)


def _simplify_where(step: Einsum, simplify: Callable[[Expr], Expr]) -> Einsum:
    reduced = {r.name for r in step.reduced}
    over = reduced | {r.name for r in step.ranks if r.extent.const == 1}
    pairs = [(c, _still_over(over, c, simplify(c))) for c in conjuncts(step.where)]
    kept = [(c, short) for c, short in pairs if short != TRUE]
    failing = [c for c, short in kept if short == FALSE]
    # One that fails over free ranks alone says that the result does not exist: it stays.
    single = len(step.outs) == 1  # without a reduction a step has one result
    if (
        failing
        and single
        and step.reduce is not None
        and step.write is None
        and all(reduced & c.variables for c in failing)
    ):
        # nothing is folded: the identity is what remains, on the points that exist
        free = [short for c, short in kept if short != FALSE and reduced.isdisjoint(c.variables)]
        identity = MONOIDS[step.reduce.op].identity(step.dtypes)
        return replace(step, exprs=identity, reduce=None, where=conjunction(free))
    new = conjunction(short for _, short in kept)
    return step if new == step.where else replace(step, where=new)


def _still_over(ranks: set[str], condition: Expr, short: Expr) -> Expr:
    """`short`, or the condition as it was if it were about none of `ranks` any more.

    About free ranks alone it would make the result of a reduction partial, or that of one which reads the result over its
    own rank of extent 1.
    """
    loses = short not in (TRUE, FALSE) and ranks & condition.variables and ranks.isdisjoint(short.variables)
    return condition if loses else short


def _drop_unit_ranks(step: Einsum, facts: Facts, dtype: Callable[[str], DType]) -> Einsum:
    """Ranks of extent 1 stand at 0; a reduction over one is no reduction over it."""
    unit = {r.name for r in step.all_ranks if r.extent.const == 1}
    if not unit:
        return step
    kept_ranks = {r.name for r in _kept_in_reduction(step, unit, facts)}
    env = {n: int_expr(0) for n in unit if n not in kept_ranks}
    if not env:
        return step
    exprs = tuple(e.substitute(env) for e in step.exprs)
    reduced = {r.name: int_expr(0) for r in step.reduced if r.name in env}
    where = None if step.where is None else step.where.substitute(reduced)
    reduce = step.reduce
    if reduce is not None:
        ranks = tuple(r for r in reduce.ranks if r.name not in env)
        exprs = exprs if ranks else tuple(_in_type(e, d, dtype) for e, d in zip(exprs, step.dtypes, strict=True))
        reduce = Reduce(reduce.op, ranks, reduce.accumulator) if ranks else None
    write = step.write
    if write is not None:
        write = replace(write, index=tuple(substitute(i, env) for i in write.index))
    new = replace(step, exprs=exprs, where=where, reduce=reduce, write=write)
    return step if new == step else new


def _in_type(term: Expr, wanted: DType, dtype: Callable[[str], DType]) -> Expr:
    """The one term of a fold whose result is wider, its products worked out in that type as its accumulator had them."""
    if dtype_of(term, dtype) == wanted:
        return term
    if isinstance(term, Apply) and term.op == "mul":
        return Apply("mul", tuple(_in_type(a, wanted, dtype) for a in term.args))
    return Cast(wanted, term)


def _kept_in_reduction(step: Einsum, unit: set[str], facts: Facts) -> tuple[Rank, ...]:
    """Reduced ranks of extent 1 that must stay.

    A condition on a reduced rank leaves the identity where it fails; on free ranks alone it would make the result
    partial. And an integer accumulator of its own type converts twice.
    """
    if step.reduce is None:
        return ()
    if len(step.outs) > 1 and unit.issuperset(r.name for r in step.reduced):
        return step.reduced  # a tuple of results comes from a reduction only
    own_type = step.reduce.accumulator is not None and not step.reduce.accumulator.is_float
    if own_type and all(r.name in unit for r in step.reduced):
        return step.reduced[:1]
    names = {r.name for r in step.reduced}
    kept: list[Rank] = []
    for c in conjuncts(step.where):
        mentioned = names & c.variables
        if mentioned and mentioned <= unit and decide(c, facts) is not True:
            kept += [r for r in step.reduced if r.name in mentioned]
    return tuple(kept)
