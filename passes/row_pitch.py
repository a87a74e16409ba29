"""Where the rows of a tensor should lie apart: its readers' lines would share sets of the first cache.

Lines a multiple of 4 KB apart go to one set of a first cache with 64 sets, which holds 8 or 12 of them. A register tile that reads
as many rows at once, or a transform that adds up as many planes, evicts what it is about to read again. A line left free after each
row spreads them.

Source: Lam, Rothberg and Wolf, "The cache performance and optimizations of blocked algorithms" (ASPLOS 1991), section 6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from dlc.ir.coded_sums import TALL
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Access, Apply, Expr
from dlc.ir.extent import IntExpr, int_expr, split_linear
from dlc.ir.facts import Facts, SymbolFact
from dlc.ir.products import bordered_access

LINE_BYTES = 64
SET_BYTES = 4096
WAYS = 8
SHORTEST = 1024
"""Bytes of a row; beside fewer, what is left free would be much."""
UNROLLED = 8
"""Indices of a rank that may be unrolled, so that all of them are read at once."""


def row_pitch(kind: TensorType, readers: Iterable[tuple[Einsum, Access]], symbols: Mapping[str, SymbolFact]) -> int:
    """Elements to leave free after each row of a tensor that would be stored as `kind` says, 0 where nobody gains."""
    row = kind.shape[kind.order[-1] if kind.order is not None else -1] if kind.rank > 1 else int_expr(0)
    if (row.const or 0) * kind.dtype.bytes < SHORTEST:
        return 0
    by_reader: dict[int, tuple[Einsum, list[Access]]] = {}
    for reader, a in readers:
        by_reader.setdefault(id(reader), (reader, []))[1].append(a)
    if any(_collides(kind, reader, found, symbols) for reader, found in by_reader.values()):
        return LINE_BYTES // kind.dtype.bytes
    return 0


def _collides(kind: TensorType, reader: Einsum, found: list[Access], symbols: Mapping[str, SymbolFact]) -> bool:
    """Whether the reader takes more lines of one set at once than it holds."""
    facts = Facts(reader.extents, symbols)
    places = {a: facts.simplify(_offset(kind, a)) for a in found}
    if reader.reduce is not None and reader.reduce.op == "sum" and reader.where is None and len(reader.exprs) == 1:
        match reader.expr:
            case Apply("mul", (left, right)):
                return any(_rows_collide(kind, reader, a, (left, right), places[a]) for a in places)
    return _planes_collide(kind, reader, list(places.values()))


def _rows_collide(kind: TensorType, reader: Einsum, a: Access, factors: tuple[Expr, Expr], place: IntExpr) -> bool:
    """Whether neighbouring rows of a register tile do: those along the free rank of this factor alone that steps least."""
    sides = [bordered_access(f) for f in factors]
    if a not in sides:
        return False
    other = factors[1 - sides.index(a)]
    free = [r for r in reader.ranks if r.name not in other.variables and r.extent.const != 1]
    rows = [(step, r.extent.const or 0) for r in free if (step := _step(place, r.name))]
    if not rows:
        return False
    step, count = min(rows)
    shared = SET_BYTES // 2 if 2 * WAYS <= count <= TALL else SET_BYTES  # two sets for as many rows are full as well
    return step * kind.dtype.bytes % shared == 0


def _planes_collide(kind: TensorType, reader: Einsum, places: list[IntExpr]) -> bool:
    """Whether the reads of one point do, and of the points that may be unrolled with it: along ranks that step over planes."""
    apart = [d for p in places if (d := (p - places[0]).const) is not None]
    plane = min((abs(d) for d in apart if d), default=0)
    if len(apart) < WAYS // 2 or not plane:
        return False
    for r in reader.all_ranks:
        step, extent = _step(places[0], r.name), r.extent.const
        if step is not None and step >= plane and extent is not None and extent <= UNROLLED:
            apart = [d + step * k for d in apart for k in range(extent)]
    sets = Counter(d * kind.dtype.bytes // LINE_BYTES % (SET_BYTES // LINE_BYTES) for d in apart)
    return max(sets.values(), default=0) > WAYS


def _offset(kind: TensorType, a: Access) -> IntExpr:
    return sum((i * s for i, s in zip(a.index, kind.strides, strict=True)), int_expr(0))


def _step(place: IntExpr, name: str) -> int | None:
    parts = split_linear(place, name)
    return abs(parts[0].const) if parts is not None and parts[0].const is not None else None
