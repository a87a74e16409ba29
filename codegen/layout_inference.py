"""Layouts of a tile program's registers, inferred from those that are asked for: forwards and backwards, to a fixpoint.

A layout says which thread holds which lanes of a register, and in which order; all slots of a tile lie alike. What a statement takes
lane by lane lies alike: the operands and results of element-wise operators, casts, lookups, dot products, reductions over slots, masks,
what a loop carries and what branches yield. A `view` leaves the bits where they are: bytes that lie as `L @ local(4)` are words that
lie as `L`. Loads, constants, and what follows a reduction over lanes lie as they are asked to. Scalars take no part.

    x = load u8[x 128] b[0 | 1]
    y = view<i32>(x)                 spatial(32) asked for y makes x lie as spatial(32).local(4)

Where two demands meet at a tile and differ, the error shows both, and the statements through which they came.

Source: layout inference of Tilus (arXiv 2504.12984), section 6: rules by priority to a fixpoint, then what is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from dlc.codegen import tile
from dlc.codegen.tile import Stmt, TileProgram, TileType
from dlc.codegen.tile_print import program_lines
from dlc.codegen.tile_verify import grid_types, tile_types
from dlc.errors import BadInput
from dlc.ir.layout import Layout, LayoutMismatch, local
from dlc.ir.loc import Loc


class LayoutConflict(BadInput):
    """A register would have to lie in two ways at once."""

    code = "DLC0483"
    template = "tile '{tile}', {type}, is to lie as {second}, {second_why}, and lies as {first}, {first_why}"
    hint = "ask for layouts that agree; layouts are written shape/modes/modes of the thread/modes of the slot (docs/gpu.md)"


class SplitElement(BadInput):
    """The bits of an element would lie in several threads."""

    code = "DLC0484"
    template = "elements of tile '{tile}', {type}, would be split between threads: '{other}' has their bits, and lies as {layout}, {why}"
    hint = "a thread must hold whole elements side by side; layouts are written shape/modes/modes of the thread/modes of the slot"


@dataclass(frozen=True)
class Demand:
    """A tile's registers are to lie so.

    Attributes:
        layout: of the lanes of a register, a shape of one dimension.
        why: the rest of a sentence, such as "as the matrix unit takes it".
    """

    tile: str
    layout: Layout
    why: str


@dataclass(frozen=True)
class _Found:
    """A layout in canonical form, the demand that it follows from, and the statement through which it came."""

    layout: Layout
    demand: Demand
    via: Stmt | None


def infer(
    program: TileProgram, demands: Iterable[Demand], fill: Callable[[str, TileType], Demand] | None = None
) -> dict[str, Layout]:
    """The layouts, in canonical form, that follow from the demands, the first of them first.

    Args:
        program: every name of a tile has one type.
        fill: what to ask for a tile that no demand reaches, one after the other in the order of the text; None leaves them out.

    Raises:
        LayoutConflict: two demands differ at a tile.
        SplitElement: what a demand makes of the operand or result of a view is no layout of it.
        LayoutMismatch: a demand is not about the lanes of its tile.
    """
    inference = _Inference(program, tile_types(program))
    for demand in demands:
        inference.ask(demand)
    if fill is not None:
        for name, type_ in inference.types.items():
            if name not in inference.found:
                inference.ask(fill(name, type_))
    return {name: found.layout for name, found in inference.found.items()}


def infer_matrices(program: TileProgram, demands: Iterable[Demand]) -> dict[str, Layout]:
    """As `infer`, of layouts of whole tiles, slots and lanes, that are asked for operands and results of `matdot`.

    A layout is that of the largest tile of those that are taken together: a tile of fewer rows or columns is repeated along them.

    Raises:
        LayoutConflict, SplitElement, LayoutMismatch.
    """
    inference = _OfMatrices(program, grid_types(program))
    for demand in demands:
        inference.ask(demand)
    return {name: found.layout for name, found in inference.found.items()}


class _Inference:
    def __init__(self, program: TileProgram, types: dict[str, TileType]) -> None:
        self.program, self.types = program, types
        self.found: dict[str, _Found] = {}
        self.beside: dict[str, list[tuple[str, Link]]] = defaultdict(list)
        for link in (link for s in tile.walk(program.body) for link in links(s)):
            names = [n for n in link.tiles if n in self.types]
            for a in names:
                self.beside[a] += [(b, link) for b in names if b != a]

    def ask(self, demand: Demand) -> None:
        """Take a demand up, and what follows from it."""
        type_ = self.types.get(demand.tile)
        if type_ is None or demand.layout.shape != self.shape(type_):
            reason = f"{demand.layout} is none of tile '{demand.tile}'" + (f", {type_}" if type_ is not None else "")
            raise LayoutMismatch(reason=reason)
        waiting = [(demand.tile, _Found(demand.layout.canonical(), demand, None))]
        while waiting:
            name, found = waiting.pop()
            known = self.found.get(name)
            if known is not None:
                if known.layout != found.layout:
                    raise self.conflict(name, known, found)
                continue
            self.found[name] = found
            waiting += [(other, self.through(name, found, other, link)) for other, link in self.beside[name]]

    def shape(self, type_: TileType) -> tuple[int, ...]:
        """What a layout is of."""
        return (type_.lanes,)

    def through(self, name: str, found: _Found, other: str, link: Link) -> _Found:
        """What a tile's layout makes of another's of the same statement."""
        if not link.bits:
            return _Found(found.layout, found.demand, link.via)
        try:
            layout = _viewed(found.layout, self.types[name].dtype.bits, self.types[other].dtype.bits)
        except LayoutMismatch:
            place, source = self.place(link.via)
            raise SplitElement(
                place, source=source, tile=other, type=self.types[other], other=name, layout=found.layout, why=self.why(found)
            ) from None
        return _Found(layout, found.demand, link.via)

    # --- what an error says ---

    def conflict(self, name: str, known: _Found, found: _Found) -> LayoutConflict:
        place, source = self.place(found.via or known.via)
        return LayoutConflict(
            place, source=source, tile=name, type=self.types[name], first=known.layout, first_why=self.why(known),
            second=found.layout, second_why=self.why(found),
        )  # fmt: skip

    def why(self, found: _Found) -> str:
        """Where a layout comes from: the demand, and the statement that passed it on."""
        asked = f"{found.demand.why} ('{found.demand.tile}')"
        if found.via is None:
            return asked
        place, source = self.place(found.via)
        return f"{asked}, through line {place.line}, `{source.strip() if source else ''}`"

    def place(self, s: Stmt | None) -> tuple[Loc, str | None]:
        file = f"{self.program.name}.tile"
        for number, (text, stmt) in enumerate(program_lines(self.program), 1):
            if s is not None and stmt is s:
                return Loc(file, number, len(text) - len(text.lstrip()) + 1), text
        return Loc(file), None


class _OfMatrices(_Inference):
    def shape(self, type_: TileType) -> tuple[int, ...]:
        return (*type_.slots, type_.lanes)


@lru_cache(maxsize=4096)
def _viewed(layout: Layout, bits: int, wanted: int) -> Layout:
    """The layout of the same bits as elements of another width, which lie side by side in the last dimension."""
    parts = (*(1 for _ in layout.shape[1:]), max(bits, wanted) // min(bits, wanted))
    return layout.over_slots(*parts).canonical() if wanted <= bits else (layout / local(*parts)).canonical()


@dataclass(frozen=True)
class Link:
    """Tiles of a statement whose layouts follow from each other.

    Attributes:
        tiles: names, None and scalars among them.
        bits: whether the bits of their registers lie alike, not their lanes.
    """

    via: Stmt
    tiles: tuple[str | None, ...]
    bits: bool = False


def links(s: Stmt) -> Iterator[Link]:
    """What a statement says of layouts."""
    match s:
        case tile.View():
            yield Link(s, (s.dst, s.src), bits=True)
        case tile.Zip():
            yield Link(s, (s.low, s.high))
            yield Link(s, (s.dst, s.low), bits=True)
        case tile.Op():
            yield Link(s, (s.dst, *s.args))
        case tile.Cast() | tile.Bitcast() | tile.Unpack() | tile.Lookup() | tile.Broadcast() | tile.Slice():
            yield Link(s, (s.dst, s.src))
        case tile.Dot():
            yield Link(s, (s.dst, s.a, s.b, s.acc))
        case tile.MatDot():
            yield Link(s, (s.dst, s.acc))
        case tile.Stack():
            yield Link(s, (s.dst, *s.srcs))
        case tile.Reduce() if s.axis is not None:
            yield Link(s, (s.dst, s.src))
        case tile.Load():
            yield Link(s, (s.dst, s.mask))
        case tile.Gather():
            yield Link(s, (s.dst, s.offsets, s.mask))
        case tile.Store():
            yield Link(s, (s.src, s.mask))
        case tile.Scatter():
            yield Link(s, (s.offsets, s.src, s.mask))
        case tile.For() | tile.While():
            for (name, init), value, result in zip(s.carries, s.yields, s.results, strict=True):
                yield Link(s, (name, init, value, result))
        case tile.If():
            yield from (Link(s, names) for names in zip(s.then_yields, s.else_yields, s.results, strict=True))


__all__ = ["Demand", "LayoutConflict", "Link", "SplitElement", "infer", "links"]
