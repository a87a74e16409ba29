"""Which tiles the threads of a warp share out, and which each of them holds whole: layouts inferred by rules to a fixpoint.

A register of `32 k` lanes is spread if nothing speaks against it, which is `spatial(32).local(k)` in the terms of `dlc.ir.layout`; one
that each thread holds is `replicated(1, 32) @ local(lanes)`. By priority:

    1  what cannot be spread is asked to be held: registers of other widths; bytes to unpack of which a thread would not have a word of
       codes; what is stored so that lanes of different threads go to one element, where the last one must win
    2  `layout_inference.py` says what follows for the tiles that are taken together with it
    3  of what is left one tile after the other is asked to be spread

What is held can be viewed and taken apart in any way, so that these demands do not conflict; the price is work done 32 times. Scalars
take no part.

Source: layout inference of Tilus (arXiv 2504.12984), section 6, with the two layouts that a warp's vectors need.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from functools import cache

from dlc.codegen import tile
from dlc.codegen.gpu_targets import WARP
from dlc.codegen.layout_inference import Demand, infer
from dlc.codegen.tile import Stmt, TileProgram, TileType
from dlc.codegen.tile_verify import tile_types
from dlc.ir.layout import Layout, local, replicated, spatial

_WORD = 4  # bytes


def held_tiles(program: TileProgram) -> frozenset[str]:
    """Tiles of several lanes that each thread holds whole."""
    types = tile_types(program)
    whole = {name: "for its width is no whole number of lanes a thread" for name, type_ in types.items() if type_.lanes % WARP}
    for s in tile.walk(program.body):
        whole |= {name: f"for `{type(s).__name__.lower()}` takes all of it" for name in _never_spread(s, types)}
    demands = [Demand(name, _held(types[name].lanes), why) for name, why in whole.items()]
    found = infer(program, demands, lambda name, type_: Demand(name, _spread(type_.lanes), "for nothing speaks against it"))
    return frozenset(name for name, layout in found.items() if layout == _held(types[name].lanes))


@cache
def _held(lanes: int) -> Layout:
    return (replicated(1, WARP) @ local(lanes)).canonical()


@cache
def _spread(lanes: int) -> Layout:
    return (spatial(WARP) @ local(lanes // WARP)).canonical()


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
