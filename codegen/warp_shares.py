"""What one thread of a warp has of each tile: a share of its lanes, its parts of a matrix, or all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dlc.codegen.gpu_targets import WARP
from dlc.codegen.tile import TileProgram, TileType
from dlc.codegen.warp_layout import held_tiles
from dlc.codegen.warp_matrix import Matrices, find_matrices
from dlc.ir.extent import IntExpr, int_expr

_ZERO = int_expr(0)


@dataclass(frozen=True)
class Shares:
    """How a program's tiles are shared out.

    Attributes:
        held: tiles of several lanes that each thread has whole.
        matrices: those that lie as the matrix instruction has them.
    """

    held: frozenset[str]
    matrices: Matrices

    @staticmethod
    def of(program: TileProgram) -> Shares:
        """Raises LayoutConflict, SplitElement, LayoutMismatch as `find_matrices` does."""
        return Shares(held_tiles(program), find_matrices(program))

    def spread(self, name: str, whole: TileType) -> bool:
        """Whether each thread has a part of the tile's registers, and not all of them."""
        return name in self.matrices or whole.lanes > 1 and name not in self.held

    def part(self, name: str, whole: TileType) -> TileType:
        """Type of what one thread has of the tile."""
        if name in self.matrices:
            return self.matrices.part(name, whole)
        return replace(whole, lanes=whole.lanes // WARP) if self.spread(name, whole) else whole

    def first_lane(self, name: str, whole: TileType, me: IntExpr) -> IntExpr:
        """The lane with which the share of thread `me` begins, of a tile that is no part of a matrix."""
        return me * self.part(name, whole).lanes if self.spread(name, whole) else _ZERO

    def begin(self, name: str, whole: TileType, strides: Sequence[IntExpr], me: IntExpr) -> IntExpr:
        """Where the share of thread `me` begins, in a memory in which the tile's dimensions have these strides, its lanes' last."""
        if name not in self.matrices:
            return self.first_lane(name, whole, me) * strides[-1]
        return sum((i * stride for i, stride in zip(self.matrices.begin(name, whole, me), strides, strict=True)), _ZERO)
