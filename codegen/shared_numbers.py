"""Kernels whose tile programs differ in numbers alone become one, which reads them from an argument.

    c0 = const f32 -4.35                       number0 = load f32 numbers_f32[0 | 0]
    t1 = gt(t0, c0)                     ->     number1 = load f32 numbers_f32[1 | 0]
    c1 = const f32 131.0                       t1 = gt(t0, number0)
    t2 = add(t1, c1)                           t2 = add(t1, number1)

The blocks of a quantised network have scales and zero points of their own, which are better known while a kernel is lowered: a
quotient by a constant takes no division, a clamp of what is rounded is one of floats (`quotient.py`). What comes out has the same
instructions for each of them. They are compiled once here, after those decisions, and launches give a table of numbers.
(`passes/share_literals.py` makes one cascade of several before lowering, where nothing is lost by not knowing a literal.)

A number may move where the instructions are the same for any: arithmetic, comparisons and choices. None of those that move is NaN,
so that a minimum with one stays one instruction.

Source: Edler von Koch et al., Exploiting function similarity for code size reduction (LCTES 2014).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from dlc.codegen import tile
from dlc.codegen.tile import Buffer, TileProgram, TileType, walk
from dlc.ir.dtype import F32, F64, I32, I64, DType
from dlc.ir.extent import int_expr
from dlc.ir.loc import UNKNOWN
from dlc.ir.program import fresh_name

MOST = 64
"""Numbers of one type that a kernel is given; a table of more would not fit a few cache lines."""

_ANY_NUMBER = frozenset("add sub mul div fma min max select eq ne lt le gt ge".split())
"""Operators whose instructions are the same for any number; a quotient of integers is checked for zero."""
_ANY_INTEGER = _ANY_NUMBER - {"div", "fma"}
_TYPES = (F32, F64, I32, I64)


@dataclass(frozen=True, slots=True)
class NumberTable:
    """Numbers of one type that a kernel is given as a further argument.

    Attributes:
        name: of the buffer.
        values: of `dtype`, rank 1.
    """

    name: str
    dtype: DType
    values: np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Shared:
    """Tile programs by the name of their kernel, and the tables that those are given which were merged."""

    tiles: dict[str, TileProgram]
    tables: dict[str, tuple[NumberTable, ...]]


def share_numbers(tiles: Mapping[str, TileProgram], taken: Collection[str]) -> Shared:
    """Make kernels that differ in numbers alone the same tile program, to be given their numbers when they are launched.

    Args:
        tiles: by the name of their kernel.
        taken: names that tables cannot have, for the kernels' cascades have them.
    """
    groups: dict[TileProgram, dict[str, tuple[tile.Const, ...]]] = {}
    for name, each in tiles.items():
        blank, numbers = _blank(each)
        groups.setdefault(blank, {})[name] = numbers
    made = dict(tiles)
    given: dict[str, tuple[NumberTable, ...]] = {}
    for blank, members in groups.items():
        used = {*taken, *(b.name for b in blank.buffers)}
        tables = _tables(tuple(members.values()), used) if len(members) > 1 else None
        for n, (name, numbers) in enumerate(members.items() if tables else ()):
            assert tables is not None
            made[name] = replace(_reading(blank, tables, numbers), name=tiles[name].name, loc=tiles[name].loc)
            given[name] = tuple(NumberTable(t.name, t.dtype, np.asarray(t.of[n], t.dtype.numpy)) for t in tables)
    return Shared(made, given)


@dataclass(frozen=True, slots=True)
class _Table:
    """Numbers of one type that the kernels of a group read.

    Attributes:
        name: of the buffer.
        places: which of the movable numbers of the tile program stand in it, by their position, and where.
        of: the values for each member of the group.
    """

    name: str
    dtype: DType
    places: dict[int, int]
    of: tuple[tuple[Any, ...], ...]


def _tables(members: Sequence[tuple[tile.Const, ...]], taken: set[str]) -> tuple[_Table, ...] | None:
    """A table for each type with numbers in which the members differ; None where they do not, or in too many."""
    found: dict[DType, dict[tuple[bytes, ...], list[int]]] = {}
    for n, column in enumerate(zip(*members, strict=True)):
        bits = tuple(_bits(c) for c in column)
        if len(set(bits)) > 1:
            found.setdefault(column[0].type.dtype, {}).setdefault(bits, []).append(n)
    if not found or any(len(columns) > MOST for columns in found.values()):
        return None
    return tuple(
        _Table(
            fresh_name(f"numbers_{dtype}", taken),
            dtype,
            {n: at for at, same in enumerate(columns.values()) for n in same},
            tuple(tuple(m[same[0]].value for same in columns.values()) for m in members),
        )
        for dtype, columns in found.items()
    )


def _reading(blank: TileProgram, tables: Sequence[_Table], numbers: Sequence[tile.Const]) -> TileProgram:
    """The program whose numbers are loaded from tables, or known where all have the same, ahead of what a task does."""
    ahead: dict[object, tile.Stmt] = {}
    names: dict[str, str] = {}
    for n, number in enumerate(numbers):
        table = next((t for t in tables if n in t.places), None)
        key: object = (number.type, _bits(number)) if table is None else (table.name, table.places[n])
        if key not in ahead and table is not None:
            ahead[key] = tile.Load(number.dst, number.type, table.name, int_expr(table.places[n]), (), int_expr(0))
        first = ahead.setdefault(key, number)
        assert isinstance(first, tile.Const | tile.Load)
        names[number.dst] = first.dst
    body = _map_numbers(blank.body, lambda s: s, lambda name: names.get(name, name))
    buffers = tuple(Buffer(t.name, t.dtype, "number", int_expr(len(t.of[0]))) for t in tables)
    return replace(blank, buffers=(*buffers, *blank.buffers), body=(*ahead.values(), *body))


# --- numbers that may move ---------------------------------------------------------------------------------------------


def _blank(program: TileProgram) -> tuple[TileProgram, tuple[tile.Const, ...]]:
    """The program without a name and without the numbers that may move; these, one for each place where one is read."""
    movable = _movable(program)
    stem = "number"
    while any(name.startswith(stem) for s in walk(program.body) for name in (program.task_var, *_mentioned(s))):
        stem += "_"
    found: list[tile.Const] = []

    def read(name: str) -> str:
        if name not in movable:
            return name
        found.append(replace(movable[name], dst=f"{stem}{len(found)}"))
        return found[-1].dst

    body = _map_numbers(program.body, lambda s: None if s.dst in movable else s, read)
    return replace(program, name="k", body=body, loc=UNKNOWN), tuple(found)


def _map_numbers(
    body: Sequence[tile.Stmt], constant: Callable[[tile.Const], tile.Const | None], operand: Callable[[str], str]
) -> tuple[tile.Stmt, ...]:
    """The statements with other constants, or without them, and other operands of operators."""
    made: list[tile.Stmt] = []

    def inner(region: Sequence[tile.Stmt]) -> tuple[tile.Stmt, ...]:
        return _map_numbers(region, constant, operand)

    for s in body:
        match s:
            case tile.Const():
                changed = constant(s)
                made += () if changed is None else (changed,)
            case tile.Op():
                made.append(replace(s, args=tuple(map(operand, s.args))))
            case tile.For():
                made.append(replace(s, body=inner(s.body)))
            case tile.If():
                made.append(replace(s, then=inner(s.then), orelse=inner(s.orelse)))
            case tile.While():
                made.append(replace(s, test_body=inner(s.test_body), body=inner(s.body)))
            case _:
                made.append(s)
    return tuple(made)


def _movable(program: TileProgram) -> dict[str, tile.Const]:
    """Scalar constants that arithmetic alone reads, by name. (In another region the name may be another tile's.)"""
    found: dict[str, tile.Const] = {}
    stay: set[str] = set()
    for s in walk(program.body):
        if isinstance(s, tile.Const) and (found.setdefault(s.dst, s) != s or not _may_move(s)):
            stay.add(s.dst)
    for s in walk(program.body):
        for name in found.keys() & set(_mentioned(s)) if not isinstance(s, tile.Const) else ():
            any_number = _ANY_NUMBER if found[name].type.dtype.is_float else _ANY_INTEGER
            if not (isinstance(s, tile.Op) and s.op in any_number and s.dst != name):
                stay.add(name)
    return {name: s for name, s in found.items() if name not in stay}


def _mentioned(s: tile.Stmt) -> Iterator[str]:
    """All names that a statement has in its fields, those of nested statements aside."""
    pending = [getattr(s, f.name) for f in fields(s)]
    while pending:
        v = pending.pop()
        if isinstance(v, str):
            yield v
        elif isinstance(v, tuple):
            pending += v


def _may_move(s: tile.Const) -> bool:
    return s.type.dtype in _TYPES and s.type == TileType(s.type.dtype) and s.value == s.value


def _bits(s: tile.Const) -> bytes:
    return np.asarray(s.value, s.type.dtype.numpy).tobytes()


__all__ = ["NumberTable", "Shared", "share_numbers"]
