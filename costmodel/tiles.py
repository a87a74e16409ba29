"""Register-tile choices that packing (a pass) and code generation must agree on."""

from __future__ import annotations

from dlc.ir.dtype import BF16, I8, U8, DType
from dlc.ir.extent import IntExpr

MOST_TAPS = 16
"""Steps of a sliding window that a register tile has unrolled, at most."""


PANEL_RATES = {1: 0.95, 2: 0.99, 3: 1.0, 4: 1.0}
"""Multiply-adds per cycle of panels of so many vectors, of the best. One vector does nearly as well with many rows, but a row by
itself is then one chain of additions; several chains would not do, for a row's result must not depend on its place among others."""


def panel_columns(extent: IntExpr, lanes: int, registers: int) -> int:
    """Columns of a packed panel: 3, 4, 2 or 1 vectors, whichever take `extent` columns, the last panel filled up, in the least time.

    Args:
        lanes: elements per vector register.
        registers: architectural vector registers; with 16 of them at most two vectors per row fit beside the sums.
    """
    widths = (3, 4, 2, 1) if registers >= 32 else (2, 1)
    size = extent.const
    if size is None:
        return widths[0] * lanes
    best = min(widths, key=lambda v: (-(-size // (v * lanes)) * v * lanes / PANEL_RATES[v], widths.index(v)))
    return best * lanes


def word_group(rows: DType, cols: DType) -> int:
    """How many neighbouring terms of a sum share a 32-bit word: 4 for bytes (one u8, one i8), 2 for bf16, else 1."""
    if {rows, cols} == {U8, I8}:
        return 4
    return 2 if (rows, cols) == (BF16, BF16) else 1


def stream_vectors(registers: int) -> int:
    """Registers side by side that a streaming kernel's block has in the lanes, of `registers` in all."""
    return 4 if registers >= 32 else 2


def stream_block(lanes: int, registers: int, l1_bytes: int = 32 << 10) -> int:
    """Points of the streamed rank per step: what they make for one block of lanes, in f32, fills the first cache."""
    return l1_bytes // (4 * lanes * stream_vectors(registers))
