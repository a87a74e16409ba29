"""The matrix instruction of a warp, `mma.sync`: which thread has which part of its operands, as layouts.

In words of 32 bits all its shapes that matter here are one: 16 rows of 8 words by 8 columns. Thread t, of which g is t // 4 and w is
t % 4, has

    a  rows g and g + 8, words w and w + 4 of each      [16, 8]  column_local(2, 2).spatial(8, 4)
    b  words w and w + 4 of column g                    [8, 8]   local(2, 1).column_spatial(4, 8)
    c  columns 2w and 2w + 1 of rows g and g + 8        [16, 8]  local(2, 1).spatial(8, 4).local(1, 2)

the slots numbered as the instruction numbers its registers. m16n8k16 of 16-bit numbers has two of them in a word, m16n8k32 of bytes
four, the first in the lowest bits.

Source: PTX ISA 8.0, section 9.7.13.4 (matrix fragments for mma.m16n8k16 and mma.m16n8k32).
"""

from __future__ import annotations

from dlc.codegen.tile import DOTS, TileType
from dlc.ir.dtype import BF16, I8, I32, U8, DType
from dlc.ir.layout import Layout, column_local, column_spatial, local, spatial

ROWS, WORDS, COLUMNS = 16, 8, 8
A = column_local(2, 2) @ spatial(8, 4)
B = local(2, 1) @ column_spatial(4, 8)
C = local(2, 1) @ spatial(8, 4) @ local(1, 2)

UNITS = {(BF16, BF16): ("bf16", "bf16"), (U8, I8): ("u8", "s8"), (I8, U8): ("s8", "u8")}
"""Element types of the rows and the columns that are multiplied, with PTX's names of them."""


def _registers(layout: Layout) -> tuple[int, ...]:
    """For each register of an operand which of a thread's elements it holds, counted in the order of the tile's dimensions."""
    held = [layout.index(0, slot) for slot in range(layout.slots)]
    return tuple(sorted(held).index(element) for element in held)


A_REGISTERS, B_REGISTERS, C_REGISTERS = (_registers(layout) for layout in (A, B, C))


def row_layout(rows: int) -> Layout:
    """Of `rows` rows of 8 words, a tile `[rows x 8]`."""
    return local(rows // ROWS, 1) @ A


def column_layout(vectors: int, lanes: int) -> Layout:
    """Of 8 words of columns, a tile `[8, vectors x lanes]`."""
    return local(1, vectors, lanes // COLUMNS) @ local(2, 1, 1) @ column_spatial(4, 1, 8)


def sum_layout(rows: int, vectors: int, lanes: int) -> Layout:
    """Of the sums, a tile `[rows, vectors x lanes]`."""
    return local(rows // ROWS, vectors, lanes // COLUMNS) @ local(2, 1, 1) @ spatial(8, 1, 4) @ local(1, 1, 2)


def sum_type(left: DType, right: DType) -> DType | None:
    """The type that products of elements are summed in; None for types that are not multiplied."""
    if (left, right) not in UNITS:
        return None
    return DOTS[(left, right) if (left, right) in DOTS else (right, left)]


def matdot_type(left: DType, right: DType, a: TileType, b: TileType, acc: TileType) -> TileType | str:
    """Type of a `MatDot`, or a sentence saying why it has none."""
    total = sum_type(left, right)
    if total is None:
        return f"there is no matrix product of {left} and {right}"
    if (a.dtype, b.dtype, acc.dtype) != (I32, I32, total) or len(a.slots) != 1 or len(b.slots) != 2:
        return f"'matdot' of {left} and {right} needs words in i32 twice, [M x 8] and [8, V x L], and a sum in {total}"
    fits = a.lanes == b.slots[0] == WORDS and a.slots[0] % ROWS == 0 and b.lanes % COLUMNS == 0
    fits = fits and (acc.slots, acc.lanes) == ((a.slots[0], b.slots[1]), b.lanes)
    return acc if fits else f"{a}, {b} and {acc} are no matrices of 16 rows, 8 words and 8 columns or a multiple, and their product"


def mma_type(left: DType, right: DType, a: TileType, b: TileType, acc: TileType) -> TileType | str:
    """Type of an `Mma`, or a sentence saying why it has none."""
    if (a.dtype, b.dtype, acc.dtype) != (I32, I32, sum_type(left, right)):
        return f"'mma' does not multiply {a} as {left} and {b} as {right} into {acc}"
    fits = a.count % A.slots == 0 and b.count % B.slots == 0 and (a.lanes, b.lanes, acc.lanes) == (1, 1, 2)
    fits = fits and acc.count * 2 == a.count // A.slots * (b.count // B.slots) * C.slots
    return acc if fits else f"{a}, {b} and {acc} are no parts of matrices and of their product"
