"""Which element of a tile each thread has in each of its slots: the layout algebra of Tilus.

A layout maps (thread, slot) to an index of a tile. Each dimension of the tile is split into *modes*, outer ones first; some modes
are numbered by the thread, the others by the slot. On a CPU a thread is a SIMD lane and a slot a register, or a part of one.

    local(2, 3)     one thread with slots (0, 0), (0, 1), .. (1, 2)        modes [2, 3], local [0, 1]
    spatial(2, 3)   six threads of one slot each                          modes [2, 3], spatial [0, 1]
    a.spatial(8, 4).local(1, 2)                                            Kronecker products: the right factor is the inner tile

Source: Tilus: a tile virtual machine for arbitrary-bit types (arXiv 2504.12984), sections 4 and 5.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dlc.errors import BadInput


class LayoutMismatch(BadInput):
    """Two layouts, or a layout and a shape, do not go together."""

    code = "DLC0482"
    template = "layout: {reason}"


@dataclass(frozen=True, slots=True)
class Mode:
    """A mode by itself.

    Attributes:
        extent: of it; step: elements of its dimension from one digit to the next.
        threads: from one digit to the next, None where the slot numbers it.
    """

    extent: int
    step: int
    threads: int | None


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout in its unified form.

    Attributes:
        shape: of the tile.
        modes: extents that the dimensions are split into, dimension by dimension, outer first.
        spatial: modes that the thread numbers, outer first; `-k` for k threads that hold the same.
        local: modes that the slot numbers, outer first; `-k` for k slots that hold the same.
    """

    shape: tuple[int, ...]
    modes: tuple[int, ...]
    spatial: tuple[int, ...] = ()
    local: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        used = sorted(m for m in (*self.spatial, *self.local) if m >= 0)
        if used != list(range(len(self.modes))):
            raise LayoutMismatch(reason=f"{self._text()} does not use each mode once")
        if min((*self.shape, *self.modes), default=1) < 1 or not _fits(self.shape, self.modes):
            raise LayoutMismatch(reason=f"the modes of {self._text()} do not split its shape")

    def _text(self) -> str:
        return f"{list(self.shape)}/{list(self.modes)}/{list(self.spatial)}/{list(self.local)}"

    def __str__(self) -> str:
        return self._text()

    @property
    def threads(self) -> int:
        return _count(self.modes, self.spatial)

    @property
    def slots(self) -> int:
        """Slots of each thread."""
        return _count(self.modes, self.local)

    def index(self, thread: int, slot: int) -> tuple[int, ...]:
        """The index of the element that `thread` has in `slot`."""
        digits = dict(_digits(self.modes, self.spatial, thread)) | dict(_digits(self.modes, self.local, slot))
        found, at = [], 0
        for count in _modes_per_dimension(self.shape, self.modes):
            value = 0
            for m in range(at, at + count):
                value = value * self.modes[m] + digits[m]
            found.append(value)
            at += count
        return tuple(found)

    # --- products ---

    def __matmul__(self, inner: Layout) -> Layout:
        """The Kronecker product: a tile of `self` of tiles of `inner`."""
        if len(self.shape) != len(inner.shape):
            raise LayoutMismatch(reason=f"{self} and {inner} differ in rank")
        shape = tuple(a * b for a, b in zip(self.shape, inner.shape, strict=True))
        modes: list[int] = []
        outer_at: dict[int, int] = {}
        inner_at: dict[int, int] = {}
        sides = ((self, outer_at, [0]), (inner, inner_at, [0]))
        counts = [_modes_per_dimension(s.shape, s.modes) for s in (self, inner)]
        for d in range(len(shape)):
            for (side, places, next_), count in zip(sides, counts, strict=True):
                for _ in range(count[d]):
                    places[next_[0]] = len(modes)
                    modes.append(side.modes[next_[0]])
                    next_[0] += 1

        def both(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
            return (*(outer_at[m] if m >= 0 else m for m in a), *(inner_at[m] if m >= 0 else m for m in b))

        return Layout(shape, tuple(modes), both(self.spatial, inner.spatial), both(self.local, inner.local))

    def over_threads(self, *extents: int) -> Layout:
        """`self @ spatial(...)`."""
        return self @ spatial(*extents)

    def over_slots(self, *extents: int) -> Layout:
        """`self @ local(...)`."""
        return self @ local(*extents)

    def __truediv__(self, inner: Layout) -> Layout:
        """The layout whose product with `inner` on the right is this one."""
        return _stripped(self, inner, right=True)

    def left_divide(self, outer: Layout) -> Layout:
        """The layout whose product with `outer` on the left is this one."""
        return _stripped(self, outer, right=False)

    # --- forms ---

    def canonical(self) -> Layout:
        """The same map with the fewest modes: none of extent 1, neighbours joined that are so in dimension and number."""
        dimension = _dimensions(self.shape, self.modes)
        kept = [m for m, n in enumerate(self.modes) if n > 1]
        lists = [_merged_copies([m for m in s if m < -1 or (m >= 0 and self.modes[m] > 1)]) for s in (self.spatial, self.local)]
        follows = {b for s in lists for a, b in itertools.pairwise(s) if a >= 0 and b >= 0 and _next(kept, dimension, a, b)}
        modes: list[int] = []
        place: dict[int, int] = {}
        for m in kept:
            if m in follows:
                modes[-1] *= self.modes[m]
            else:
                place[m] = len(modes)
                modes.append(self.modes[m])
        spatial_, local_ = (tuple(place[m] if m >= 0 else m for m in s if m not in follows) for s in lists)
        return Layout(self.shape, tuple(modes), spatial_, local_)

    def same(self, other: Layout) -> bool:
        """Whether both map every thread and slot alike."""
        return self.canonical() == other.canonical()

    def reshape(self, *shape: int) -> Layout:
        """The layout of the same tile seen in another shape, elements in row-major order."""
        if math.prod(shape) != math.prod(self.shape):
            raise LayoutMismatch(reason=f"{self} has no {math.prod(shape)} elements")
        borders, size = set(), 1
        for n in reversed(shape):
            size *= n
            borders.add(size)
        fine = _refined_at(self.canonical(), borders)
        if fine is None or not _fits(shape, fine.modes):
            raise LayoutMismatch(reason=f"a mode of {self} lies across dimensions of {list(shape)}")
        return Layout(tuple(shape), fine.modes, fine.spatial, fine.local).canonical()

    def dimensions(self) -> list[list[Mode]]:
        """The modes of each dimension, outer first."""
        threads, below = {}, 1
        for m in reversed(self.spatial):
            threads[m] = below
            below *= self.modes[m] if m >= 0 else -m
        found: list[list[Mode]] = []
        at = len(self.modes)
        for count in reversed(_modes_per_dimension(self.shape, self.modes)):
            found.append([])
            step = 1
            for m in reversed(range(at - count, at)):
                found[-1].insert(0, Mode(self.modes[m], step, threads.get(m)))
                step *= self.modes[m]
            at -= count
        return found[::-1]

    def elements(self) -> Iterator[tuple[tuple[int, int], tuple[int, ...]]]:
        """((thread, slot), index) of all there are."""
        for t, i in itertools.product(range(self.threads), range(self.slots)):
            yield (t, i), self.index(t, i)


# --- makers ----------------------------------------------------------------------------------------------------------


def local(*extents: int) -> Layout:
    """One thread with all elements, the last dimension fastest."""
    return Layout(extents, extents, (), tuple(range(len(extents))))


def spatial(*extents: int) -> Layout:
    """A thread for each element, the last dimension fastest."""
    return Layout(extents, extents, tuple(range(len(extents))), ())


def column_local(*extents: int) -> Layout:
    """One thread with all elements, the first dimension fastest."""
    return Layout(extents, extents, (), tuple(reversed(range(len(extents)))))


def column_spatial(*extents: int) -> Layout:
    """A thread for each element, the first dimension fastest."""
    return Layout(extents, extents, tuple(reversed(range(len(extents)))), ())


def replicated(rank: int, threads: int) -> Layout:
    """One element that each of `threads` holds."""
    return Layout((1,) * rank, (), (-threads,) if threads > 1 else ())


def views(a: Layout, a_bits: int, b: Layout, b_bits: int) -> bool:
    """Whether registers of `a` with elements of `a_bits` can be read as `b` with elements of `b_bits` for nothing.

    They can when both address the same bits: each thread has as many in its slots (Tilus), or each slot, a register across the
    lanes, has as many for all threads.
    """
    by_thread = a.threads == b.threads and a.slots * a_bits == b.slots * b_bits
    by_register = a.slots == b.slots and a.threads * a_bits == b.threads * b_bits
    return by_thread or by_register


# --- multi-valued functions of an index ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """Numbers made of some modes of an index: where an element lies, in which thread or slot.

    Attributes:
        shape, modes: as of a layout; a mode may be left out.
        chosen: modes of the number, outer first; `-k` for a digit that takes each of k values, so that there are several numbers.
    """

    shape: tuple[int, ...]
    modes: tuple[int, ...]
    chosen: tuple[int, ...]

    def numbers(self, index: Sequence[int]) -> list[int]:
        """The numbers of an index, rising."""
        digits = {}
        at = 0
        for value, count in zip(index, _modes_per_dimension(self.shape, self.modes), strict=True):
            for m in reversed(range(at, at + count)):
                value, digits[m] = divmod(value, self.modes[m])
            at += count
        found = [0]
        for c in self.chosen:
            size = -c if c < 0 else self.modes[c]
            found = [f * size + v for f in found for v in (range(size) if c < 0 else (digits[c],))]
        return sorted(found)

    def then(self, after: Selection) -> Selection:
        """`after` of the number that this one gives; this one has no copies, and `after` a shape of one dimension."""
        if len(after.shape) != 1 or any(c < 0 for c in self.chosen) or math.prod(self.modes[c] for c in self.chosen) != after.shape[0]:
            raise LayoutMismatch(reason=f"{self} gives no index of {after}")
        wanted, pieces = list(reversed(after.modes)), {}
        for c in reversed(self.chosen):
            parts, left = [], self.modes[c]
            while left > 1:
                if not wanted or left % wanted[0]:
                    raise LayoutMismatch(reason=f"a mode of {after} lies across modes of {self}")
                parts.append(wanted.pop(0))
                left //= parts[-1]
            pieces[c] = parts[::-1]
        modes: list[int] = []
        first: dict[int, int] = {}
        for m, n in enumerate(self.modes):
            first[m] = len(modes)
            modes += pieces.get(m, [n])
        flat = [first[c] + k for c in self.chosen for k in range(len(pieces[c]))]
        return Selection(self.shape, tuple(modes), tuple(flat[c] if c >= 0 else c for c in after.chosen))


# --- modes -----------------------------------------------------------------------------------------------------------


def _count(modes: Sequence[int], chosen: Sequence[int]) -> int:
    return math.prod(modes[m] if m >= 0 else -m for m in chosen)


def _digits(modes: Sequence[int], chosen: Sequence[int], number: int) -> Iterator[tuple[int, int]]:
    for m in reversed(chosen):
        number, digit = divmod(number, modes[m] if m >= 0 else -m)
        if m >= 0:
            yield m, digit


def _modes_per_dimension(shape: Sequence[int], modes: Sequence[int]) -> list[int]:
    """How many modes each dimension takes; those of extent 1 go with the dimension before them."""
    counts, at = [], 0
    for d, extent in enumerate(shape):
        size, begin = 1, at
        while at < len(modes) and (size < extent or (modes[at] == 1 and (size == extent and d == len(shape) - 1 or begin < at))):
            size *= modes[at]
            at += 1
        if size == extent == 1 and at < len(modes) and modes[at] == 1:
            at += 1
        counts.append(at - begin if size == extent else -1)
    return counts if at == len(modes) and -1 not in counts else []


def _fits(shape: Sequence[int], modes: Sequence[int]) -> bool:
    return bool(_modes_per_dimension(shape, modes)) or (not shape and math.prod(modes) == 1)


def _dimensions(shape: Sequence[int], modes: Sequence[int]) -> list[int]:
    """The dimension of each mode."""
    return [d for d, count in enumerate(_modes_per_dimension(shape, modes)) for _ in range(count)]


def _next(kept: list[int], dimension: list[int], a: int, b: int) -> bool:
    """Whether mode `b` follows `a` in a dimension, modes of extent 1 apart."""
    return a in kept and b in kept and kept.index(b) == kept.index(a) + 1 and dimension[a] == dimension[b]


def _merged_copies(chosen: list[int]) -> list[int]:
    merged: list[int] = []
    for m in chosen:
        if m < 0 and merged and merged[-1] < 0:
            merged[-1] = -(merged[-1] * m)
        else:
            merged.append(m)
    return merged


def _split_mode(layout: Layout, mode: int, inner: int) -> Layout:
    """The same layout with a mode in two, the inner one of this extent."""

    def moved(chosen: tuple[int, ...]) -> tuple[int, ...]:
        wide = ((m, m + 1) if m == mode else (m + 1,) if m > mode else (m,) for m in chosen)
        return tuple(m for part in wide for m in part)

    outer = layout.modes[mode] // inner
    modes = (*layout.modes[:mode], outer, inner, *layout.modes[mode + 1 :])
    return Layout(layout.shape, modes, moved(layout.spatial), moved(layout.local))


def _refined_at(layout: Layout, borders: set[int]) -> Layout | None:
    """Modes split where the elements to their right are as many as one of `borders`; None where that is inside a mode."""
    for border in sorted(borders):
        size = 1
        for m in reversed(range(len(layout.modes))):
            if size == border:
                break
            if size * layout.modes[m] > border:
                if border % size or layout.modes[m] % (border // size):
                    return None
                layout = _split_mode(layout, m, border // size)
                break
            size *= layout.modes[m]
    return layout


def _refined(layout: Layout, dimension: int, sizes: set[int], *, right: bool) -> Layout | None:
    """The modes of a dimension split so that a run from the right (or left) end has each of `sizes` elements."""
    for wanted in sorted(sizes):
        places = [m for m, d in enumerate(_dimensions(layout.shape, layout.modes)) if d == dimension]
        size = 1
        for m in reversed(places) if right else places:
            extent = layout.modes[m]
            if size == wanted:
                break
            if size * extent > wanted:
                part = wanted // size
                if wanted % size or extent % part:
                    return None
                layout = _split_mode(layout, m, part if right else extent // part)
                break
            size *= extent
    return layout


def _runs(layout: Layout, dimension: int, *, right: bool) -> set[int]:
    """Elements of each run of modes from the end of a dimension."""
    modes = [n for n, d in zip(layout.modes, _dimensions(layout.shape, layout.modes), strict=True) if d == dimension]
    return set(itertools.accumulate(reversed(modes) if right else modes, lambda a, b: a * b))


def _stripped(whole: Layout, part: Layout, *, right: bool) -> Layout:
    """`whole` without the factor `part` at its right or left end."""
    failure = LayoutMismatch(reason=f"{part} is no {'right' if right else 'left'} factor of {whole}")
    if len(whole.shape) != len(part.shape) or any(a % b for a, b in zip(whole.shape, part.shape, strict=True)):
        raise failure
    whole, part = whole.canonical(), part.canonical()
    for d, extent in enumerate(part.shape):
        cuts = {s for s in _runs(whole, d, right=right) if s < extent}
        fine = _refined(part, d, cuts, right=right)
        coarse = _refined(whole, d, _runs(part, d, right=right) | cuts, right=right) if fine is not None else None
        if fine is None or coarse is None:
            raise failure
        whole, part = coarse, fine
    match = _matching(whole, part, right=right)
    if match is None:
        raise failure
    shape = tuple(a // b for a, b in zip(whole.shape, part.shape, strict=True))
    rest = [m for m in range(len(whole.modes)) if m not in match]
    place = {m: n for n, m in enumerate(rest)}
    lists = []
    for mine, its in ((whole.spatial, part.spatial), (whole.local, part.local)):
        left = _without(mine, its, match, right=right)
        if left is None:
            raise failure
        lists.append(tuple(place[m] if m >= 0 else m for m in left))
    return Layout(shape, tuple(whole.modes[m] for m in rest), *lists).canonical()


def _matching(whole: Layout, part: Layout, *, right: bool) -> dict[int, int] | None:
    """The modes of `whole` that are those of `part`, by mode; None where they are not the outermost or innermost ones."""
    found: dict[int, int] = {}
    mine, its = (_dimensions(x.shape, x.modes) for x in (whole, part))
    for d in range(len(whole.shape)):
        own, other = ([m for m, e in enumerate(x) if e == d] for x in (mine, its))
        used = (own[len(own) - len(other) :] if right else own[: len(other)]) if other else []
        if len(used) != len(other) or any(whole.modes[a] != part.modes[b] for a, b in zip(used, other, strict=True)):
            return None
        found |= dict(zip(used, other, strict=True))
    return found


def _without(mine: Sequence[int], its: Sequence[int], match: dict[int, int], *, right: bool) -> list[int] | None:
    """A list of modes without the part's at its end; None where these are not there."""
    left, part = (list(mine), list(its)) if right else (list(reversed(mine)), list(reversed(its)))
    while part:
        wanted = part.pop()
        if not left:
            return None
        last = left.pop()
        if wanted < 0:
            if last >= 0 or last % wanted:
                return None
            if last != wanted:
                left.append(-(last // wanted))
        elif last < 0 or match.get(last) != wanted:
            return None
    if any(m in match for m in left):
        return None
    return left if right else left[::-1]


__all__ = [
    "Layout", "LayoutMismatch", "Mode", "Selection", "column_local", "column_spatial", "local", "replicated", "spatial", "views",
]  # fmt: skip
