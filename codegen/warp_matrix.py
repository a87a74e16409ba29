"""What a thread of a warp has of the matrices that `matdot` multiplies, and of all that is taken together with them.

The layouts of `matrix_unit.py` say which element lies in which thread and slot. Here each dimension of a tile becomes those of its
modes that the slot numbers, outer first; what the thread numbers is part of the place where its share begins:

    f32[16, 3 x 32]      as [16, 3, 32]/[2, 8, 3, 4, 4, 2]/[1, 4]/[0, 2, 3, 5]
    f32[2, 3, 4 x 2]     rows t // 4 and t // 4 + 8, columns 2 (t % 4) and the next of each eight

A tile of fewer rows or columns, which is repeated along them, has the inner modes that make up its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dlc.codegen import tile
from dlc.codegen.layout_inference import Demand, infer_matrices
from dlc.codegen.matrix_unit import column_layout, row_layout, sum_layout
from dlc.codegen.tile import TileProgram, TileType
from dlc.codegen.tile_verify import grid_types
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.layout import Layout, LayoutMismatch, Mode

_ZERO = int_expr(0)
_TAKE_ALL = (tile.Slice, tile.Reduce, tile.Fold, tile.Unpack, tile.Zip, tile.Scatter)


@dataclass(frozen=True)
class Matrices:
    """The tiles that lie as the matrix instruction has them, by name; all others lie as `warp_layout.py` says."""

    layouts: Mapping[str, Layout]

    def __contains__(self, name: str) -> bool:
        return name in self.layouts

    def part(self, name: str, whole: TileType) -> TileType:
        """Type of what a thread has."""
        *slots, lanes = [m.extent for dimension in self._numbered(name, whole) for m in dimension]
        return TileType(whole.dtype, tuple(slots), lanes)

    def begin(self, name: str, whole: TileType, me: IntExpr) -> list[IntExpr]:
        """Index of the first element that thread `me` has, in the tile's dimensions."""
        threads = self.layouts[name].threads

        def digit(m: Mode) -> IntExpr:
            number = me // (m.threads or 1)
            return number if m.extent * (m.threads or 1) == threads else number % m.extent

        return [
            sum((digit(m) * m.step for m in own if m.threads is not None), _ZERO) for _, own in self._modes(name, whole)
        ]

    def strides(self, name: str, whole: TileType, of: Sequence[IntExpr]) -> list[IntExpr]:
        """Strides of what a thread has, its lanes' last, where the tile's dimensions have the strides `of`."""
        numbered = self._numbered(name, whole)
        return [stride * m.step for dimension, stride in zip(numbered, of, strict=True) for m in dimension]

    def _numbered(self, name: str, whole: TileType) -> list[list[Mode]]:
        """For each dimension of a tile the modes that slots number; the last one is contiguous, and becomes the lanes."""
        found = []
        for full, own in self._modes(name, whole):
            extents = {m.step: m.extent for m in own}
            found.append([replace(m, extent=extents.get(m.step, 1)) for m in full if m.threads is None])
        one = Mode(1, 1, None)
        if not found[-1] or found[-1][-1].step != 1:
            found[-1].append(one)
        return [modes or [one] for modes in found]

    def _modes(self, name: str, whole: TileType) -> list[tuple[list[Mode], list[Mode]]]:
        """For each dimension of a tile the modes of its layout and those that it has itself."""
        layout = self.layouts[name]
        extents = (*whole.slots, whole.lanes)
        if len(extents) > len(layout.shape):
            raise LayoutMismatch(reason=f"{layout} is none of tile '{name}', {whole}")
        every = layout.dimensions()[len(layout.shape) - len(extents) :]
        return [(full, _inner(full, n, name, whole)) for full, n in zip(every, extents, strict=True)]


def _inner(modes: list[Mode], extent: int, name: str, whole: TileType) -> list[Mode]:
    """The inner modes, the outermost of them in part, that make up an extent."""
    found: list[Mode] = []
    for m in reversed(modes):
        left = extent // m.step
        if left > 1:
            found.insert(0, replace(m, extent=min(m.extent, left)))
    if math.prod(m.extent for m in found) != extent:
        raise LayoutMismatch(reason=f"modes {[m.extent for m in modes]} have no part that is a dimension of tile '{name}', {whole}")
    return found


def find_matrices(program: TileProgram) -> Matrices:
    """The layouts of all that belongs to the products of matrices of a program.

    Raises:
        LayoutConflict, SplitElement, LayoutMismatch: something of it cannot lie so.
    """
    products = [s for s in tile.walk(program.body) if isinstance(s, tile.MatDot)]
    if not products:
        return Matrices({})
    types = grid_types(program)
    demands = []
    for p in products:
        (rows, vectors), lanes = types[p.acc].slots, types[p.acc].lanes
        sums = sum_layout(rows, vectors, lanes)
        operands = ((p.a, row_layout(rows)), (p.b, column_layout(vectors, lanes)), (p.acc, sums))
        demands += [Demand(name, layout, "as the matrix instruction has it") for name, layout in operands]
    found = Matrices(infer_matrices(program, demands))
    parts = {name: found.part(name, types[name]) for name in found.layouts}
    for s in tile.walk(program.body):
        names = {getattr(s, field, None) for field in ("dst", "src", "low", "high", "offsets")}
        divided = isinstance(s, tile.Stack) and s.dst in parts and parts[s.dst].slots[0] != len(s.srcs)
        if divided or isinstance(s, _TAKE_ALL) and not names.isdisjoint(parts):
            raise LayoutMismatch(reason=f"`{type(s).__name__.lower()}` is not done on parts of matrices")
    return found
