"""Windows that slide: depthwise convolutions and pooling, with several neighbouring points in registers at a time.

    O[y, x, c] = sum(i, j) (X[y + i - 1, x + j - 1, c] else 0) * W[i, j, c]

The lanes run along c. A *slide* is a free rank that moves through a tensor together with reduced ranks, its *taps* (x and j).
A tile of neighbouring slides shares what it loads, for the taps are unrolled, and gives independent chains of additions. The
other reduced ranks are loops. Where an access has a default, its guard is settled outside of the innermost loops: along the
slide by the tiles' numbers, which are known where the tiles at an edge are written out, and across it by one branch per row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dlc.codegen.borders import Pair, condition, outside, safe_range, unproven
from dlc.codegen.nest import PointStep, VectorRank, for_vectors, lanes_for
from dlc.codegen.point import Emitter, Slot, Space
from dlc.codegen.sweep import accumulate, identities, keep
from dlc.costmodel.tiles import MOST_TAPS
from dlc.ir.expr import Access, accesses
from dlc.ir.extent import (
    IntExpr,
    has_value,
    int_expr,
    maximum,
    minimum,
    product,
    substitute,
    var,
    variables,
)
from dlc.ir.facts import Facts
from dlc.ir.monoid import MONOIDS

if TYPE_CHECKING:
    from dlc.codegen.lower import KernelLowering, Lowered

WIDTH = 8
"""Points of a tile; with as many sums in registers the latency of an addition is hidden twice over."""
MOST_EDGES = 6
"""Tiles that are written out one by one because an edge cuts them."""
CHUNK_BYTES = 8192
"""Of the taps' operand that one task reads again and again: a quarter of the first cache."""
_SPAN = "@span"


@dataclass(frozen=True)
class Window:
    """The slide, and the reduced ranks that move with it (`taps`) and the others (`loops`)."""

    slide: str
    taps: tuple[str, ...]
    loops: tuple[str, ...]


def find_window(steps: Sequence[PointStep], ranks: dict[str, IntExpr], vector: VectorRank) -> Window | None:
    """The window of the first step when it is a reduction that this strategy suits, else None."""
    first = steps[0]
    if first.reduce is None or any(s.reduce is not None for s in steps[1:]) or len(first.exprs) != 1:
        return None
    if vector.name is None or vector.reduced or MONOIDS[first.reduce.op].op is None:
        return None
    reduced = first.reduced
    for name in reversed(ranks):
        if name == vector.name or ranks[name].const == 1:
            continue
        taps = _taps(first, name)
        size = 1
        for tap in taps:
            size *= reduced[tap].const or MOST_TAPS + 1
        if taps and size <= MOST_TAPS:
            return Window(name, taps, tuple(r for r in reduced if r not in taps))
    return None


def _taps(step: PointStep, slide: str) -> tuple[str, ...]:
    """Reduced ranks that share an index with `slide`, in the step's order."""
    found: set[str] = set()
    for e in step.scalars:
        for a in accesses(e):
            for i in a.index:
                names = variables(i)
                if slide in names and not has_value(i):
                    found |= names & step.reduced.keys()
    return tuple(r for r in step.reduced if r in found)


def lower_window(
    low: KernelLowering, steps: list[PointStep], ranks: dict[str, IntExpr], vector: str, window: Window
) -> Lowered:
    """Lower the kernel in tiles of neighbouring points."""
    return _WindowLowering(low, steps, ranks, vector, window).run()


class _WindowLowering:
    def __init__(
        self, low: KernelLowering, steps: list[PointStep], ranks: dict[str, IntExpr], vector: str, window: Window
    ) -> None:
        self.low, self.em, self.b = low, low.em, low.builder
        self.steps, self.ranks, self.vector, self.window = steps, ranks, vector, window
        self.lanes = lanes_for(steps, low.em, low.target)
        reduced = steps[0].reduced
        self.tap_points = list(itertools.product(*(range(reduced[t].const or 0) for t in window.taps)))

    def run(self) -> Lowered:
        others = {n: e for n, e in self.ranks.items() if n not in (self.vector, self.window.slide)}
        chunk = self._chunk()
        extent = self.ranks[self.vector]
        chunks = (extent + (chunk - 1)) // chunk if chunk else int_expr(1)
        base = self.low.task_base({"chunk": chunks, **others})
        first = base.pop("chunk") * (chunk or 0)
        bounds = (first, minimum(first + chunk, extent)) if chunk and chunks.const != 1 else (int_expr(0), extent)
        for start, stop, width, safe in self._spans():
            self._span(base, bounds, start, stop, width, safe)
        points = self.ranks[self.window.slide] * (min(chunk, extent.const or chunk) if chunk else extent)
        return self.low.finish(chunks * product(others.values()), points * self._work())

    def _work(self) -> IntExpr:
        work = int_expr(2)
        for e in self.steps[0].reduced.values():
            work = work * e
        return work

    def _chunk(self) -> int:
        """Elements of the lanes' rank that one task does, 0 for all: what moves with the taps stays in the first cache."""
        extent = self.ranks[self.vector].const
        if extent is None:
            return 0
        taps = 4
        for e in self.steps[0].reduced.values():
            taps *= e.const or 1
        wanted = max(CHUNK_BYTES // taps // self.lanes, 1) * self.lanes
        chunks = -(-extent // wanted)
        vectors = -(-extent // self.lanes)
        return -(-vectors // chunks) * self.lanes

    # --- tiles along the slide ---

    def _spans(self) -> list[tuple[IntExpr, IntExpr, int, bool]]:
        """Parts of the slide, (start, stop, points of a tile, whether the guards along it hold all over)."""
        extent = self.ranks[self.window.slide]
        lo, hi = self._safe_range()
        if extent.const is None:
            return self._unknown_spans(extent, lo, hi)
        count = -(-extent.const // WIDTH)
        width = -(-extent.const // count)
        starts = [min(k * width, extent.const - width) for k in range(count)]
        edges = [s for s in starts if not (lo.const is not None and hi.const is not None and lo.const <= s <= hi.const - width)]
        if len(edges) > MOST_EDGES:
            return self._unknown_spans(extent, lo, hi)
        spans = [(int_expr(s), int_expr(s + width), width, False) for s in edges]
        inner = [s for s in starts if s not in edges]
        even = [s for n, s in enumerate(inner) if s == inner[0] + n * width]
        if even:
            spans.append((int_expr(even[0]), int_expr(even[-1] + width), width, True))
        return spans + [(int_expr(s), int_expr(s + width), width, True) for s in inner if s not in even]

    def _unknown_spans(self, extent: IntExpr, lo: IntExpr, hi: IntExpr) -> list[tuple[IntExpr, IntExpr, int, bool]]:
        """Single points at the edges, whole tiles between them, single points for the rest."""
        width = WIDTH // 2
        lo = minimum(lo, extent)
        hi = self.b.named(maximum(minimum(hi, extent), lo))
        whole = self.b.named(lo + (hi - lo) // width * width)
        spans = [(lo, whole, width, True), (whole, hi, 1, True)]
        if lo.const != 0:
            spans.append((int_expr(0), lo, 1, False))
        if hi != extent:
            spans.append((hi, extent, 1, False))
        return spans

    def _safe_range(self) -> Pair:
        """Where along the slide every guarded index that moves with it is within its tensor, from `lo` to below `hi`."""
        slide = self.window.slide
        return safe_range(self._guards(), slide, self.ranks[slide], self.steps[0].reduced)

    def _guards(self) -> list[Pair]:
        """Indices with a guard that is not proven, simplified, with their extents."""
        return unproven(self.em, self._guarded())

    def _guarded(self) -> list[Access]:
        return _guarded(self.em, self.steps[0])

    # --- one span ---

    def _span(
        self, base: dict[str, IntExpr], bounds: Pair, start: IntExpr, stop: IntExpr, width: int, safe: bool
    ) -> None:
        """The tiles from `start` to below `stop`, the slide counted from `start`."""
        length = stop - start
        if length.const == 0:
            return
        em = self.em.scoped()
        em.facts = Facts({**self.em.facts.ranks, _SPAN: length}, self.em.facts.symbols)
        along = [p for p in self._guards() if self.window.slide in variables(p[0])] if safe else []
        env = {self.window.slide: var(_SPAN) + start}
        steps = [_substituted(s, env, em.facts) for s in self.steps]
        em = em.assuming((em.facts.simplify(substitute(i, env)), e) for i, e in along)
        if length.const == width:
            self._vectors(em, steps, {**base, _SPAN: int_expr(0)}, bounds, width)
            return
        with self.b.loop(self.window.slide, 0, length, width) as loop:
            self._vectors(em.scoped(), steps, {**base, _SPAN: loop.index}, bounds, width)

    def _vectors(
        self, em: Emitter, steps: list[PointStep], base: dict[str, IntExpr], bounds: Pair, width: int
    ) -> None:
        space = Space(base, slots=(Slot(_SPAN, width, 1),) if width > 1 else ())
        lo, hi = bounds

        def body(inner: Emitter, at: Space) -> None:
            self._tile(inner, steps, at)

        for_vectors(em, space, self.vector, lo, hi, self.lanes, 1, body)

    def _tile(self, em: Emitter, steps: list[PointStep], space: Space) -> None:
        first = steps[0]
        (acc,) = identities(em, first, tuple(s.count for s in space.slots), space.lanes)
        keep(em, first, [self._fold(em, first, space, self.window.loops, acc)], space)
        for later in steps[1:]:
            where = em.value(later.where, space) if later.where is not None else None
            keep(em, later, [em.value(e, space, where) for e in later.exprs], space)

    def _fold(self, em: Emitter, step: PointStep, space: Space, loops: tuple[str, ...], acc: str) -> str:
        if not loops:
            return self._rows(em, step, space, acc)
        name, rest = loops[0], loops[1:]
        extent = step.reduced[name]
        if extent.const == 1:
            return self._fold(em, step, space.at(name, int_expr(0)), rest, acc)
        with em.b.loop(name, 0, extent, carries=(acc,)) as loop:
            loop.yields(self._fold(em.scoped(), step, space.at(name, loop.index), rest, loop.carries[0]))
        return loop.results[0]

    def _rows(self, em: Emitter, step: PointStep, space: Space, acc: str) -> str:
        """The taps of one row of the window: where all of it is outside of its tensor, nothing is read."""
        across = self._across(em, step, space)
        if not across:
            return self._taps(em, step, space, acc)
        beyond = replace(step, exprs=tuple(outside(e, em, across) for e in step.exprs))
        with em.b.branch(condition(across, space)) as branch:
            with branch.then():
                branch.yields(self._taps(em.assuming(across), step, space, acc))
            with branch.orelse():
                branch.yields(self._taps(em.scoped(), beyond, space, acc))
        return branch.results[0]

    def _across(self, em: Emitter, step: PointStep, space: Space) -> list[Pair]:
        """Unproven indices of guarded accesses that are the same all over the tile and its taps."""
        moving = {_SPAN, self.vector, *self.window.taps}
        return [p for p in unproven(em, _guarded(em, step)) if variables(p[0]) and variables(p[0]).isdisjoint(moving)]

    def _taps(self, em: Emitter, step: PointStep, space: Space, acc: str) -> str:
        assert step.reduce is not None
        monoid = MONOIDS[step.reduce.op]
        kind = em.b.types[acc].dtype
        for point in self.tap_points:
            at = space
            for name, k in zip(self.window.taps, point, strict=True):
                at = at.at(name, int_expr(k))
            (acc,) = accumulate(em, step, monoid, (kind,), at, (acc,))
        return acc


def _guarded(em: Emitter, step: PointStep) -> list[Access]:
    found = (a for e in step.scalars for a in accesses(e))
    return [a for a in found if a.default is not None and a.tensor in em.storage]


def _substituted(step: PointStep, env: dict[str, IntExpr], facts: Facts) -> PointStep:
    index = tuple(facts.simplify(substitute(i, env)) for i in step.index)
    where = step.where.substitute(env) if step.where is not None else None
    return replace(step, index=index, exprs=tuple(e.substitute(env) for e in step.exprs), where=where)
