"""Whether a kernel may write a result over an operand: every element is read for the last time before it is written.

The condition is about the tile program, that is, after blocking, unrolling and masks, and it holds for every order of the
tasks, on as many threads as there are. It has two parts.

1. **Every element of the result is written once.** A kernel writes all elements of its results; so, if its stores have no more
   lanes in all than the result has elements, none is written twice, whatever the addresses are.
2. **What a load may read of the operand is stored later in the same round.** For each load there is a region around it (a
   loop's body, a branch, the task) in which stores that come later, and whenever the load has, cover all of its elements.

Then an element that a load reads is written by a store that comes after this load, in the same task, and by no other one.

What reads ahead or twice has no such region (windows, other rows, lanes beyond the row), and what is written in parts (a sum
that is split) or where data says (scatter) fails the count. Control that depends on data or symbols is not followed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from dlc.codegen import tile
from dlc.codegen.tile import TileProgram, TileType
from dlc.codegen.tile_verify import stored_types
from dlc.ir.dtype import I64
from dlc.ir.extent import IntExpr, evaluate, int_expr, substitute, var, variables
from dlc.ir.scalar import SCALAR_OPS

LONGEST = 4096
"""Rounds of a loop that are looked at one by one."""
MOST_ELEMENTS = 1 << 14
"""Elements of one load, or of the stores after it, in one round."""
MOST_TASKS = 1 << 20
ALIGNMENT = 64
"""Buffers of the arena begin at multiples of it (`runtime/arena.py`), so that nothing lies before their first line."""


def may_take(program: TileProgram, operand: str, result: str, elements: int) -> bool:
    """Whether buffer `result`, of which the kernel defines `elements`, may lie where `operand` does.

    Of both, element i lies at the same address; nothing else is at either place.
    """
    read, written = program.buffer(operand), program.buffer(result)
    if read.dtype.bytes != written.dtype.bytes or (read.role, written.role) != ("in", "out"):
        return False
    try:
        body, loads = _Outline(program, operand, result).read()
        tasks = np.arange(_number(program.tasks, {}, MOST_TASKS))
        lanes = _lanes(body, {program.task_var: tasks})
        if int(np.broadcast_to(lanes, tasks.shape).sum()) > elements:
            return False
        return all(_covered(body, way) for way in loads)
    except _Unknown:
        return False


class _Unknown(Exception):
    """Something that is not known while compiling, or too long to look at."""


# -- the program as far as it matters --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Mask:
    """Which lanes are on: those below a count, one for all registers or one along the last slots; else what tile `key` says."""

    key: object
    counts: tuple[IntExpr, ...] = ()
    lanes: int = 0


@dataclass(frozen=True, slots=True)
class _Move:
    """A load of the operand or a store of the result: `offset`, and by dimension of the tile a stride and an extent."""

    stores: bool
    offset: IntExpr
    strides: tuple[IntExpr, ...]
    shape: tuple[int, ...]
    mask: _Mask | None


@dataclass(frozen=True, slots=True)
class _Loop:
    """Rounds of `var`."""

    var: str
    lo: IntExpr
    hi: IntExpr
    step: IntExpr
    body: list[_Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Branch:
    """Regions of which at most one runs: the first if `cond` holds, where that is about indices."""

    cond: tuple[tile.IndexCond, ...] | None
    regions: tuple[list[_Node], ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    """Regions that run as often as data says."""

    regions: tuple[list[_Node], ...]


_Node: TypeAlias = _Move | _Loop | _Branch | _Repeat
_Way: TypeAlias = list[tuple[list[_Node], int]]
"""To a load, from the outside: a region, and which of its nodes the load is or is in."""


class _Outline:
    """Moves and what is around them. Index variables get names that no other region has, or their meaning."""

    def __init__(self, program: TileProgram, operand: str, result: str) -> None:
        self.program, self.operand, self.result = program, operand, result
        self.stored = iter(stored_types(program))
        self.fresh = itertools.count()
        self.loads: list[_Way] = []

    def read(self) -> tuple[list[_Node], list[_Way]]:
        """The outline of the program, and the ways to all loads of the operand."""
        body: list[_Node] = []
        self.region(self.program.body, body, {}, {}, [])
        return body, self.loads

    def region(
        self,
        stmts: tuple[tile.Stmt, ...],
        into: list[_Node],
        indices: dict[str, IntExpr],
        tiles: dict[str, _Mask | IntExpr],
        way: _Way,
    ) -> None:
        indices, tiles = dict(indices), dict(tiles)
        for s in stmts:
            match s:
                case tile.Load():
                    if s.buffer == self.operand:
                        self.loads.append([*way, (into, len(into))])
                        into.append(self.move(s, s.type, indices, tiles))
                case tile.Store():
                    type_ = next(self.stored)
                    self.refuse_unless(s.buffer != self.operand)
                    if s.buffer == self.result:
                        into.append(self.move(s, type_, indices, tiles))
                case tile.Gather() | tile.Scatter():
                    self.refuse_unless(s.buffer not in (self.operand, self.result))
                case tile.Thread() | tile.Shuffle() | tile.Sync():
                    raise _Unknown
                case tile.IndexOf():
                    known = tiles.get(s.src)
                    indices[s.var] = known if isinstance(known, IntExpr) else self.new(s.var)
                case tile.Lead():
                    aligned = s.buffer in (self.operand, self.result) and ALIGNMENT % s.bytes == 0
                    indices[s.var] = int_expr(0) if aligned else self.new(s.var)
                case tile.For() | tile.If() | tile.While():
                    self.control(s, into, indices, tiles, way)
            for name in _defined(s):
                tiles[name] = self.meaning(s, name, indices, tiles)

    def control(
        self,
        s: tile.For | tile.If | tile.While,
        into: list[_Node],
        indices: dict[str, IntExpr],
        tiles: dict[str, _Mask | IntExpr],
        way: _Way,
    ) -> None:
        inner = [*way, (into, len(into))]
        names = () if isinstance(s, tile.If) else tuple(name for name, _ in s.carries)
        tiles = tiles | {name: _Mask((name, next(self.fresh))) for name in names}
        node: _Loop | _Branch | _Repeat
        match s:
            case tile.For():
                variable = f"{s.var} {next(self.fresh)}"
                lo, hi, step = (substitute(e, indices) for e in (s.lo, s.hi, s.step))
                node = _Loop(variable, lo, hi, step)
                indices = indices | {s.var: var(variable)}
                bodies: tuple[list[_Node], ...] = (node.body,)
            case tile.If():
                cond = None if isinstance(s.cond, str) else tuple(_renamed(c, indices) for c in s.cond)
                node = _Branch(cond, ([], []))
                bodies = node.regions
            case tile.While():
                node = _Repeat(([], []))
                bodies = node.regions
        into.append(node)
        for stmts, body in zip(tile.regions(s), bodies, strict=True):
            self.region(stmts, body, indices, tiles, inner)

    def move(
        self, s: tile.Load | tile.Store, type_: TileType, indices: Mapping[str, IntExpr], tiles: Mapping[str, _Mask | IntExpr]
    ) -> _Move:
        strides = tuple(substitute(e, indices) for e in (*s.slot_strides, s.lane_stride))
        mask = None
        if s.mask is not None:
            found = tiles[s.mask]
            assert isinstance(found, _Mask)
            fits = found.lanes == type_.lanes and len(found.counts) in (1, *type_.slots[-1:])
            mask = found if fits else _Mask(found.key)
        stores = isinstance(s, tile.Store)
        return _Move(stores, substitute(s.offset, indices), strides, (*type_.slots, type_.lanes), mask)

    def meaning(
        self, s: tile.Stmt, name: str, indices: Mapping[str, IntExpr], tiles: Mapping[str, _Mask | IntExpr]
    ) -> _Mask | IntExpr:
        match s:
            case tile.Stack():
                masks = [m for src in s.srcs if isinstance(m := tiles[src], _Mask) and len(m.counts) == 1]
                if len(masks) == len(s.srcs):
                    counts = tuple(m.counts[0] for m in masks)
                    return _Mask(counts, counts, masks[0].lanes)
                return _Mask((name, next(self.fresh)))
            case tile.FromIndex() if s.dtype == I64:
                return substitute(s.expr, indices)
            case tile.Mask():
                count = substitute(s.count, indices)
                return _Mask(count, (count,), s.lanes)
            case _:
                return _Mask((name, next(self.fresh)))

    def new(self, name: str) -> IntExpr:
        """A variable that nothing is known of."""
        return var(f"{name} {next(self.fresh)}")

    def refuse_unless(self, fine: bool) -> None:
        if not fine:
            raise _Unknown


def _defined(s: tile.Stmt) -> tuple[str, ...]:
    """Tiles that a statement defines in its region."""
    match s:
        case tile.For() | tile.If() | tile.While():
            return s.results
        case _:
            name = getattr(s, "dst", None)
            return () if name is None else (name,)


def _renamed(c: tile.IndexCond, indices: Mapping[str, IntExpr]) -> tile.IndexCond:
    return tile.IndexCond(substitute(c.lhs, indices), c.op, substitute(c.rhs, indices))


# -- how much is stored ----------------------------------------------------------------------------------------------


def _lanes(body: list[_Node], env: Mapping[str, Any]) -> Any:
    """At most so many lanes does a region store, by task."""
    return sum((_lanes_of(node, env) for node in body if _stores(node)), start=0)


def _lanes_of(node: _Node, env: Mapping[str, Any]) -> Any:
    match node:
        case _Move():
            if node.mask is None or not node.mask.counts:
                return math.prod(node.shape)
            on = sum(np.clip(_values(count, env), 0, node.shape[-1]) for count in node.mask.counts)
            return math.prod(node.shape[:-1]) // len(node.mask.counts) * on
        case _Branch(None, regions):
            return np.maximum.reduce(np.broadcast_arrays(*(_lanes(r, env) for r in regions)))
        case _Branch(cond, (then, orelse)):
            assert cond is not None
            holds: Any = True
            for c in cond:
                holds = np.logical_and(holds, SCALAR_OPS[c.op].meaning(*map(np.asarray, (_values(c.lhs, env), _values(c.rhs, env)))))
            return np.where(holds, _lanes(then, env), _lanes(orelse, env))
        case _Loop():
            lo, hi, step = (_values(e, env) for e in (node.lo, node.hi, node.step))
            rounds = np.maximum(-((lo - hi) // step), 0)
            if node.var not in _asked(node.body):
                return rounds * _lanes(node.body, env)
            most = int(np.max(rounds, initial=0))
            if most > LONGEST:
                raise _Unknown
            each = (_lanes(node.body, {**env, node.var: lo + i * step}) for i in range(most))
            return sum((np.where(i < rounds, lanes, 0) for i, lanes in enumerate(each)), start=np.zeros_like(rounds))
        case _:
            raise _Unknown


def _stores(node: _Node) -> bool:
    match node:
        case _Move():
            return node.stores
        case _Loop():
            return any(map(_stores, node.body))
        case _:
            return any(_stores(inner) for region in node.regions for inner in region)


def _asked(body: list[_Node]) -> frozenset[str]:
    """Variables that the number of lanes stored depends on."""
    names: frozenset[str] = frozenset()
    for node in filter(_stores, body):
        match node:
            case _Move():
                if node.mask is not None:
                    names = names.union(*map(variables, node.mask.counts))
            case _Loop():
                names |= variables(node.lo) | variables(node.hi) | variables(node.step) | _asked(node.body)
            case _Branch():
                for c in node.cond or ():
                    names |= variables(c.lhs) | variables(c.rhs)
                names = names.union(*map(_asked, node.regions))
            case _:
                raise _Unknown
    return names


def _values(e: IntExpr, env: Mapping[str, Any]) -> Any:
    if not variables(e) <= env.keys():
        raise _Unknown
    return evaluate(e, env)


def _number(e: IntExpr, env: Mapping[str, Any], most: int) -> int:
    number = int(_values(e, env))
    if number > most:
        raise _Unknown
    return number


# -- what is read and stored in one round ----------------------------------------------------------------------------

_Elements: TypeAlias = set[tuple[int, object]]
"""Addresses from some base, each with what it depends on: None for always, or a mask and a place in it."""


def _covered(body: list[_Node], way: _Way) -> bool:
    """Whether some region around a load stores later, and for sure, all that the load may read."""
    return any(_covered_in(way[depth:]) for depth in reversed(range(len(way))))


def _covered_in(way: _Way) -> bool:
    region, at = way[0]
    load = way[-1][0][way[-1][1]]
    assert isinstance(load, _Move)
    loops = [node for nodes, i in way[:-1] if isinstance(node := nodes[i], _Loop)]
    base = substitute(load.offset, dict.fromkeys((loop.var for loop in loops), 0))
    stored: _Elements = set()
    for node in region[at + 1 :]:
        for store, around in _sure(node, []):
            stored |= set(_elements(store, around, base, MOST_ELEMENTS - len(stored)))
    read = _elements(load, loops, base, MOST_ELEMENTS)
    return bool(stored) and all((at, None) in stored or (at, on) in stored for at, on in read)


def _sure(node: _Node, around: list[_Loop]) -> Iterator[tuple[_Move, list[_Loop]]]:
    """Stores that run whenever the node does, with the loops between."""
    match node:
        case _Move():
            if node.stores:
                yield node, around
        case _Loop():
            for inner in node.body:
                yield from _sure(inner, [*around, node])


def _elements(move: _Move, loops: list[_Loop], base: IntExpr, most: int) -> Iterator[tuple[int, object]]:
    """Addresses that a move touches in all rounds of the loops, less `base`; a store's only if they are known."""
    counts = () if move.mask is None else move.mask.counts
    asked = frozenset[str]().union(*map(variables, (move.offset, *move.strides, *counts)))
    ranges = []
    for loop in loops:
        if loop.var in asked or move.stores:
            lo, hi, step = loop.lo.const, loop.hi.const, loop.step.const
            if lo is None or hi is None or step is None:
                if move.stores:
                    return
                raise _Unknown
            ranges.append([(loop.var, i) for i in range(lo, hi, step)])
    if math.prod(map(len, ranges)) * math.prod(move.shape) > most:
        raise _Unknown
    for chosen in itertools.product(*ranges):
        env = dict(chosen)
        yield from _of_tile(move, env, base)


def _of_tile(move: _Move, env: Mapping[str, int], base: IntExpr) -> Iterator[tuple[int, object]]:
    start = (substitute(move.offset, env) - base).const
    strides = [substitute(e, env).const for e in move.strides]
    if start is None or None in strides:
        if move.stores:
            return
        raise _Unknown
    counts = () if move.mask is None else tuple(substitute(e, env) for e in move.mask.counts)
    for place in itertools.product(*map(range, move.shape)):
        guard: object = None
        if counts:
            count = counts[place[-2] if len(counts) > 1 else 0]
            if count.const is not None and place[-1] >= count.const:
                continue
            guard = None if count.const is not None else (count, place[-1])
        elif move.mask is not None:
            guard = (move.mask.key, move.shape, place)
        yield start + sum(i * stride for i, stride in zip(place, strides, strict=True) if stride is not None), guard
