"""One loop over a row for everything that is computed at its points, and for the folds of it.

    for m in 0 .. M step 4 registers carry (s = 0):     E[m] = exp(X[m] - G)    S = sum(m) E[m]
      e = exp(X[m] - G); store E[m] = e; s += e

Each lane of each register folds what comes by it; at the end registers, then lanes, are folded into one. What is left of
the row after whole groups of registers goes into a register of its own, the last time under a mask.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dlc.codegen.point import Emitter, Slot, Space, compute_type
from dlc.codegen.tile import TileType
from dlc.ir.dtype import DType
from dlc.ir.expr import Access, Apply, Const, Expr
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.monoid import MONOIDS, Monoid

if TYPE_CHECKING:
    from dlc.codegen.nest import PointStep


def keep(em: Emitter, step: PointStep, tiles: Sequence[str], space: Space) -> None:
    """Make a step's results known in registers, rounded to their type, and store those that leave."""
    for out, tile, dtype, stored in zip(step.outs, tiles, step.dtypes, step.stored, strict=True):
        rounded = em.b.cast(em.b.cast(tile, dtype), compute_type(dtype))
        em.tiles[out] = (step.index, rounded)
        em.dtypes[out] = dtype
        if stored:
            exists = em.value(step.where, space) if step.partial and step.where is not None else None
            em.store(em.storage[out], step.index, rounded, space, exists)


def pointwise(em: Emitter, step: PointStep, space: Space) -> list[str]:
    """What `step` computes at the points of `space`."""
    mask = em.value(step.where, space) if step.where is not None else None
    return [em.value(e, space, mask) for e in step.exprs]


def identities(em: Emitter, step: PointStep, slots: tuple[int, ...], lanes: int) -> list[str]:
    """Tiles of the identity of each of a step's folds."""
    assert step.reduce is not None
    types = step.fold_types
    values = MONOIDS[step.reduce.op].identity(types)
    return [em.b.const(TileType(t, slots, lanes), v.value) for t, v in zip(types, values, strict=True)]


def at_point(em: Emitter, steps: Sequence[PointStep], space: Space, accs: Sequence[str]) -> list[str]:
    """The steps at the points of `space`, one after the other; the folds so far, `accs`, with these points in them."""
    left = list(accs)
    done: list[str] = []
    for step in steps:
        if step.reduce is None:
            keep(em, step, pointwise(em, step, space), space)
            continue
        types = step.fold_types
        own, left = left[: len(types)], left[len(types) :]
        done += accumulate(em, step, MONOIDS[step.reduce.op], types, space, tuple(own))
    return done


def sweep(
    em: Emitter, steps: Sequence[PointStep], space: Space, loops: Mapping[str, IntExpr], along: str, lanes: int, unroll: int
) -> list[str]:
    """Compute `steps` over `loops` with the lanes along one of them; the result of each fold, in order.

    Args:
        space: points that are side by side in slots, if any; the last of these dimensions is of one, for the registers along a row.
        loops: the free ranks of what is computed at points and the reduced ranks of the folds, which are of one result each.
        unroll: groups of at most so many registers.
    """
    return _Sweep(em, steps, dict(loops), along, lanes, unroll).run(space)


class _Sweep:
    def __init__(
        self, em: Emitter, steps: Sequence[PointStep], loops: dict[str, IntExpr], along: str, lanes: int, unroll: int
    ) -> None:
        self.em, self.steps, self.along, self.lanes = em, steps, along, lanes
        self.folds = [s for s in steps if s.reduce is not None]
        self.extent = loops.pop(along)
        self.others = loops
        size = self.extent.const
        self.unroll = min(unroll, size // lanes) if size is not None else unroll
        group = self.unroll * lanes
        self.whole = self.extent // group * group if group else int_expr(0)
        self.left = (self.extent - self.whole).const

    def run(self, space: Space) -> list[str]:
        rows = tuple(s.count for s in space.slots[:-1])
        last = (1,) if space.slots else ()
        wide = [t for s in self.folds for t in identities(self.em, s, (*rows, self.unroll), self.lanes)] if self.unroll else []
        rest = self.left != 0 or not wide
        tail = [t for s in self.folds for t in identities(self.em, s, (*rows, *last), self.lanes)] if rest else []
        found = self._nested(self.em, space, self.others, (*wide, *tail))
        wide, tail = list(found[: len(wide)]), list(found[len(wide) :])
        results = [
            self._result(s, *(part[n] if part else None for part in (wide, tail)), axis=len(rows))
            for n, s in enumerate(self.folds)
        ]
        b = self.em.b
        return [b.slice(r, 0) if b.types[r].slots and not space.slots else r for r in results]

    def _nested(self, em: Emitter, space: Space, loops: dict[str, IntExpr], accs: tuple[str, ...]) -> tuple[str, ...]:
        if not loops:
            count = len(self.folds) if self.unroll else 0
            wide = self._main(em, space, accs[:count]) if self.unroll else ()
            return (*wide, *(self._rest(em, space, accs[count:]) if self.left != 0 else accs[count:]))
        name = next(iter(loops))
        with em.b.loop(name, 0, loops[name], carries=accs) as loop:
            deeper = {n: e for n, e in loops.items() if n != name}
            loop.yields(*self._nested(em.scoped(), space.at(name, loop.index), deeper, loop.carries))
        return loop.results

    def _main(self, em: Emitter, space: Space, accs: tuple[str, ...]) -> tuple[str, ...]:
        with em.b.loop(self.along, 0, self.whole, self.unroll * self.lanes, carries=accs) as loop:
            slots = (*space.slots[:-1], Slot(self.along, self.unroll, self.lanes))
            here = replace(space.at(self.along, loop.index), vector=self.along, lanes=self.lanes, slots=slots)
            loop.yields(*at_point(em.scoped(), self.steps, here, loop.carries))
        return loop.results

    def _rest(self, em: Emitter, space: Space, accs: tuple[str, ...]) -> tuple[str, ...]:
        with em.b.loop(self.along, self.whole, self.extent, self.lanes, carries=accs) as loop:
            inner = em.scoped()
            even = self.left is not None and self.left % self.lanes == 0
            mask = None if even else inner.b.mask(self.lanes, self.extent - loop.index)
            here = replace(space.at(self.along, loop.index), vector=self.along, lanes=self.lanes, mask=mask)
            loop.yields(*at_point(inner, self.steps, here, loop.carries))
        return loop.results

    def _result(self, step: PointStep, wide: str | None, tail: str | None, *, axis: int) -> str:
        assert step.reduce is not None
        b, op = self.em.b, MONOIDS[step.reduce.op].op
        assert op is not None, "a fold of tuples has no lanes along its ranks"
        parts = [t for t in (None if wide is None else b.reduce(op, wide, axis=axis), tail) if t is not None]
        total = parts[0] if len(parts) == 1 else b.op(op, *parts)
        return b.reduce(op, total)


def accumulate(
    em: Emitter, step: PointStep, monoid: Monoid, types: tuple[DType, ...], space: Space, accs: tuple[str, ...]
) -> tuple[str, ...]:
    """The partial results `accs` with the points of `space` folded in."""
    b = em.b
    exists = em.value(step.where, space) if step.where is not None else None
    where = exists if step.guarded else None
    along_reduced = space.vector in step.reduced
    if space.mask is not None and along_reduced:
        exists = space.mask if exists is None else b.op("and", exists, space.mask)
    fused = monoid.op == "add" and types[0].is_float
    if fused and isinstance(step.exprs[0], Apply) and step.exprs[0].op == "mul":
        x, y = (b.cast(em.value(a, space, where), types[0]) for a in step.exprs[0].args)
        total = b.op("fma", x, y, accs[0])
        return (total if exists is None else b.op("select", exists, total, accs[0]),)
    values = [b.cast(em.value(e, space, where), t) for e, t in zip(step.exprs, types, strict=True)]
    if exists is not None:
        identity = monoid.identity(types)
        values = [b.op("select", exists, v, b.const(t, c.value)) for v, t, c in zip(values, types, identity, strict=True)]
    if monoid.op is not None:
        return (b.op(monoid.op, accs[0], values[0]),)
    names = {f"a{i}": t for i, t in enumerate(accs)} | {f"b{i}": t for i, t in enumerate(values)}
    return tuple(b.broadcast(_apply_combine(em, e, names), b.types[acc]) for e, acc in zip(monoid.combine(), accs, strict=True))


def _apply_combine(em: Emitter, e: Expr, names: dict[str, str]) -> str:
    match e:
        case Access(tensor):
            return names[tensor]
        case Const(value, dtype):
            return em.b.const(dtype, value)
        case Apply(op, args):
            return em.b.op(op, *(_apply_combine(em, a, names) for a in args))
        case _:
            raise AssertionError(e)
