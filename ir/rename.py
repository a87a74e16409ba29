"""An Einsum under other names."""

from __future__ import annotations

from collections.abc import Mapping

from dlc.ir.einsum import Einsum, Rank, Reduce, Write
from dlc.ir.expr import Expr, index_value, map_indices, rename_tensors
from dlc.ir.extent import IntExpr, Value, Var, has_value, rebuild, substitute, var


def rename_einsum(step: Einsum, ranks: Mapping[str, str], tensors: Mapping[str, str]) -> Einsum:
    """The Einsum with its ranks and whatever else `ranks` has renamed, and its tensors; what has no new name keeps its own.

    With ranks, arithmetic on indices is folded, as everywhere where ranks are replaced.
    """
    env = {old: var(new) for old, new in ranks.items()}
    moved: dict[IntExpr, IntExpr] = {}  # an expression written out reads many elements through few indices

    def index(i: IntExpr) -> IntExpr:
        found = moved.get(i)
        if found is None:
            found = substitute(i, env)
            if has_value(found):
                found = rebuild(found, leaf)
            moved[i] = found
        return found

    def leaf(atom: Var | Value) -> IntExpr:
        return var(atom.name) if isinstance(atom, Var) else index_value(rename_tensors(atom.expr, tensors))

    def rank(r: Rank) -> Rank:
        return Rank(ranks[r.name], r.extent) if r.name in ranks else r

    def expr(e: Expr) -> Expr:
        return map_indices(e, index, tensors, fold=bool(ranks))

    reduce = step.reduce
    if reduce is not None:
        reduce = Reduce(reduce.op, tuple(map(rank, reduce.ranks)), reduce.accumulator)
    write = step.write
    if write is not None:
        onto = tensors.get(write.onto, write.onto)
        write = Write(tuple(index(i) for i in write.index), onto, write.op, write.drop)
    return Einsum(
        tuple(tensors.get(o, o) for o in step.outs),
        tuple(map(rank, step.ranks)),
        tuple(map(expr, step.exprs)),
        step.dtypes,
        reduce,
        expr(step.where) if step.where is not None else None,
        write,
        step.order,
        step.pitch,
        step.loc,
    )


__all__ = ["rename_einsum"]
