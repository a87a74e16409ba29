"""Register-tile choices that packing (a pass) and code generation must agree on."""

from __future__ import annotations

from dlc.ir.extent import IntExpr

MOST_TAPS = 16
"""Steps of a sliding window that a register tile has unrolled, at most."""


def panel_columns(extent: IntExpr, lanes: int, registers: int) -> int:
    """Columns of a packed panel: the width of 3, 4, 2 or 1 vectors that wastes the fewest of `extent` columns.

    Args:
        lanes: elements per vector register.
        registers: architectural vector registers; with 16 of them at most two vectors per row fit beside the sums.
    """
    widths = (3, 4, 2, 1) if registers >= 32 else (2, 1)
    size = extent.const
    if size is None:
        return widths[0] * lanes
    best = min(widths, key=lambda v: (-(-size // (v * lanes)) * v * lanes - size, widths.index(v)))
    return best * lanes
