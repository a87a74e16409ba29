"""Which tiles the threads of a warp share out, and which each of them holds whole: layouts inferred by rules to a fixpoint.

A register of `32 k` lanes is spread if nothing speaks against it, which is `spatial(32).local(k)` in the terms of `dlc.ir.layout`; one
that each thread holds is `replicated(1, 32) @ local(lanes)`. By priority:

    1  what cannot be spread: registers of other widths; bytes to unpack of which a thread would not have a word of codes; what is
       stored so that lanes of different threads go to one element, where the last one must win
    2  tiles that a statement takes lane by lane, or whose bits it reads as other elements, are held if one of them is

Each thread can hold whatever is there to be held, so that the rules never conflict; the price is work done 32 times. Scalars take no part.

Source: layout inference of Tilus (arXiv 2504.12984), section 6, with the two layouts that a warp's vectors need.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from dlc.codegen import tile
from dlc.codegen.gpu_targets import WARP
from dlc.codegen.tile import Stmt, TileProgram, TileType
from dlc.codegen.tile_verify import tile_types

_WORD = 4  # bytes


def held_tiles(program: TileProgram) -> frozenset[str]:
    """Tiles of several lanes that each thread holds whole."""
    types = tile_types(program)
    statements = list(tile.walk(program.body))
    held = {name for name, type_ in types.items() if type_.lanes % WARP}
    held |= {name for s in statements for name in _never_spread(s, types)}
    groups = [names for s in statements for group in _alike(s) if len(names := {n for n in group if n in types}) > 1]
    known = -1
    while len(held) > known:
        known = len(held)
        for names in groups:
            if names & held:
                held |= names
    return frozenset(held)


def _never_spread(s: Stmt, types: Mapping[str, TileType]) -> Iterator[str]:
    match s:
        case tile.Unpack() if types[s.src].lanes != WARP * _WORD:  # a thread's four codes come from two words
            yield s.src
        case tile.Store() if s.src in types and _collide(s, types[s.src]):
            yield s.src


def _collide(s: tile.Store, source: TileType) -> bool:
    """Whether two lanes are known to be stored in one place.

    A mask is taken to leave one of them: it is there to end a row where the next one begins.
    """
    strides = [x.const for x in (*s.slot_strides, s.lane_stride)]
    known = [x for x in strides if x is not None]
    if s.lane_stride.const == 0:
        return True
    if s.mask is not None or len(known) < len(strides):
        return False
    places = [sum(i * x for i, x in zip(at, known)) for at in itertools.product(*map(range, (*source.slots, source.lanes)))]
    return len(set(places)) < len(places)


def _alike(s: Stmt) -> Iterator[tuple[str | None, ...]]:
    """Names of tiles that must all be spread or all be held."""
    match s:
        case tile.Op():
            yield (s.dst, *s.args)
        case tile.Cast() | tile.Bitcast() | tile.View() | tile.Unpack() | tile.Lookup() | tile.Broadcast() | tile.Slice():
            yield (s.dst, s.src)
        case tile.Zip():
            yield (s.dst, s.low, s.high)
        case tile.Dot():
            yield (s.dst, s.a, s.b, s.acc)
        case tile.Stack():
            yield (s.dst, *s.srcs)
        case tile.Reduce() if s.axis is not None:
            yield (s.dst, s.src)
        case tile.Load():
            yield (s.dst, s.mask)
        case tile.Gather():
            yield (s.dst, s.offsets, s.mask)
        case tile.Store():
            yield (s.src, s.mask)
        case tile.Scatter():
            yield (s.offsets, s.src, s.mask)
        case tile.For() | tile.While():
            for (name, init), value, result in zip(s.carries, s.yields, s.results, strict=True):
                yield (name, init, value, result)
        case tile.If():
            yield from zip(s.then_yields, s.else_yields, s.results, strict=True)
