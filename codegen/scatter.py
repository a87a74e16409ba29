"""Scatters: a copy of the tensor written onto, then the writes in iteration order, by one task.

Lanes run along a rank only where it is an index of its own, so that no two lanes write one element.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from dlc.codegen.merge import merge_ranks
from dlc.codegen.nest import PointStep, VectorRank, _fold, emit_nest, for_vectors, lanes_for
from dlc.codegen.point import Emitter, Space, Storage, out_of_range
from dlc.ir.einsum import Einsum, Write
from dlc.ir.expr import Access
from dlc.ir.extent import IntExpr, int_expr, var, variables

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered

_FOLD = {"sum": "add", "prod": "mul", "max": "max", "min": "min"}


def lower_scatter(low: KernelLowering, step: Einsum) -> Lowered:
    """Copy `onto`, then write. The reading of the old value and the writing are one element apart, so order is kept."""
    assert step.write is not None
    write, out = step.write, step.out
    _copy(low, write.onto, out)
    em, target = low.em, low.target
    ranks = {r.name: r.extent for r in step.ranks}
    point = replace(low.point_step(step, (False,)))
    vector = _lane_rank(step, write)
    lanes = lanes_for([point], em, target)

    def body(inner: Emitter, space: Space) -> None:
        _write(inner, point, write, inner.storage[out], space)

    def loops(inner: Emitter, names: list[str], base: dict[str, IntExpr]) -> None:
        if names:
            with inner.b.loop(names[0], 0, ranks[names[0]]) as loop:
                loops(inner.scoped(), names[1:], {**base, names[0]: loop.index})
        elif vector is not None:
            for_vectors(inner, Space(base), vector, int_expr(0), ranks[vector], lanes, 1, body)
        else:
            body(inner, Space(base))

    loops(em, [n for n in ranks if n != vector], {})
    work = low.types[out].elements
    for e in ranks.values():
        work = work + e
    return low.finish(int_expr(1), work, {out: "inout"})


def _copy(low: KernelLowering, source: str, out: str) -> None:
    type_ = low.types[out]
    names = {f"c{d}": e for d, e in enumerate(type_.shape)}
    index = tuple(var(n) for n in names)
    step = PointStep((out,), (Access(source, index),), (type_.dtype,), None, None, index, (True,))
    em = Emitter(low.builder, low.em.facts.with_ranks(names), low.em.storage, dtypes=low.em.dtypes, fused=low.em.fused)
    steps, ranks = merge_ranks(em, [step], names)
    last = next(reversed(ranks), None)
    emit_nest(em, steps, ranks, VectorRank(last), {}, low.target)


def _lane_rank(step: Einsum, write: Write) -> str | None:
    """The last rank, when it alone is an index of the target and occurs in no other."""
    if step.reduce is not None or not step.ranks:
        return None
    name = step.ranks[-1].name
    users = [i for i in write.index if name in variables(i)]
    return name if len(users) == 1 and users[0] == var(name) else None


def _write(em: Emitter, step: PointStep, write: Write, target: Storage, space: Space) -> None:
    b = em.b
    where = em.value(step.where, space) if step.where is not None else None
    if step.reduce is not None:
        (value,) = _fold(em, step, space, VectorRank(None), 1)
    else:
        value = em.value(step.exprs[0], space, where)
    inside, _ = em.inside(write.index, target.type.shape, space, where, trust_plain=False)
    mask = where
    if inside is not None:
        if not write.drop:
            exists = [m for m in (where, space.mask) if m is not None]
            outside = b.op("not", inside)
            for m in exists:
                outside = b.op("and", outside, m)
            b.check(b.op("not", outside), out_of_range(target.type))
        mask = inside if mask is None else b.op("and", mask, inside)
    if write.op != "set":
        old = em.read(target, write.index, space, mask)
        value = b.op(_FOLD[write.op], old, value)
    em.store(target, write.index, value, space, mask)
