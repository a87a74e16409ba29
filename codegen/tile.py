"""The tile program: what one kernel does, in loops over register tiles; the level below the cascade of Einsums.

A program is a set of independent tasks. One task runs on one thread; inside it, values are *tiles*: `slots x lanes`
elements of one type, where the lanes are one SIMD register and the slots are several of them. `f32[8, 3 x 16]` is a
grid of 8 by 3 registers of 16 floats, `f32[4 x 1]` four scalars, `f32` one scalar. Element-wise operators broadcast
slot dimensions of size 1 (aligned at the right, missing ones count as 1) and lanes of 1, as in NumPy: a micro-kernel's
row broadcast is `f32[8, 1 x 1] * f32[1, 3 x 16]`.

Addresses are element offsets, integer expressions over the task variable, loop variables, extent symbols (`#n`) and
variables bound by `IndexOf`. Names of tiles and of index variables are assigned once and visible in their region.

Memory: buffers are flat. `const` and `in` buffers are only read; `out`, `inout` and `scratch` may be written; scratch
is private to the thread and undefined at the start of a task; `shared` is what the threads of a GPU's block have in common, near
them, and is written by `Copy` alone. Nothing here checks bounds: a masked-off lane is not
accessed, every other access must be inside its buffer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

from dlc.codegen.tile_type import (
    DOTS,
    LOOKUPS,
    TileType,
    dot_type,
    fold_type,
    join_shapes,
    lookup_type,
    op_type,
    unpack_type,
    view_type,
    zip_type,
)
from dlc.ir.dtype import BOOL, DTYPES, F32, I64, DType
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.loc import UNKNOWN, Loc

ROLES = ("in", "out", "inout", "const", "number", "scratch", "shared")
COMPARISONS = {"lt": "<", "le": "<=", "eq": "==", "ne": "!=", "gt": ">", "ge": ">="}
PIECE = 16
"""Bytes that `Copy` moves at a time."""
REDUCE_OPS = ("add", "mul", "min", "max", "minnum", "maxnum", "and", "or", "xor")
SCATTER_OPS = ("add", "mul", "min", "max", "and", "or", "xor")
_ZERO = int_expr(0)
_ONE = int_expr(1)


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory the kernel works on: `size` elements of `dtype` (a bool is a byte); those of role 'number' are known, and never NaN."""

    name: str
    dtype: DType
    role: str
    size: IntExpr

    @property
    def given(self) -> bool:
        """Whether the caller gives its address."""
        return self.role not in ("scratch", "shared")


@dataclass(frozen=True, slots=True)
class IndexCond:
    """A comparison of integer expressions; `op` one of lt, le, eq, ne, gt, ge."""

    lhs: IntExpr
    op: str
    rhs: IntExpr

    def __str__(self) -> str:
        return f"{self.lhs} {COMPARISONS[self.op]} {self.rhs}"


# -- statements ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Const:
    """dst = value in every element. The value is a bool, an int or a float as the type's kind demands."""

    dst: str
    type: TileType
    value: float | int | bool

    def __eq__(self, other: object) -> bool:  # NaN equals itself, -0.0 is not 0.0
        return isinstance(other, Const) and (self.dst, self.type, repr(self.value)) == (
            other.dst,
            other.type,
            repr(other.value),
        )

    def __hash__(self) -> int:
        return hash((self.dst, self.type, repr(self.value)))


@dataclass(frozen=True, slots=True)
class Iota:
    """dst[lane] = start + lane, an integer tile without slots."""

    dst: str
    dtype: DType
    lanes: int
    start: IntExpr = _ZERO


@dataclass(frozen=True, slots=True)
class FromIndex:
    """dst = the index expression as a scalar of `dtype` (integers wrap, floats round)."""

    dst: str
    dtype: DType
    expr: IntExpr


@dataclass(frozen=True, slots=True)
class IndexOf:
    """Bind index variable `var` to a scalar integer tile."""

    var: str
    src: str


@dataclass(frozen=True, slots=True)
class Lead:
    """Bind index variable `var` to the elements of `buffer` before the first whose address is a multiple of `bytes`.

    It lies in 0 .. bytes / element size - 1; no result may depend on which. The interpreter, which has no addresses, says 0.
    """

    var: str
    buffer: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Load:
    """dst[s..., l] = buffer[offset + sum(s_i * slot_strides_i) + l * lane_stride], `pad` where the mask is false.

    Attributes:
        lane_stride: 1 contiguous, 0 one element for all lanes, anything else strided.
        mask: a bool tile that broadcasts to `type`, or None; lanes off are not accessed.
    """

    dst: str
    type: TileType
    buffer: str
    offset: IntExpr
    slot_strides: tuple[IntExpr, ...] = ()
    lane_stride: IntExpr = _ONE
    mask: str | None = None
    pad: float | int | bool = 0

    def __post_init__(self) -> None:
        if self.pad != self.pad:  # one NaN object, for NaN equals only itself by identity
            object.__setattr__(self, "pad", math.nan)


@dataclass(frozen=True, slots=True)
class Gather:
    """dst = buffer[offsets], `pad` where the mask is false; `offsets` is an i64 tile of element offsets."""

    dst: str
    buffer: str
    offsets: str
    mask: str | None = None
    pad: float | int | bool = 0

    def __post_init__(self) -> None:
        if self.pad != self.pad:  # one NaN object, for NaN equals only itself by identity
            object.__setattr__(self, "pad", math.nan)


@dataclass(frozen=True, slots=True)
class Store:
    """buffer[offset + sum(s_i * slot_strides_i) + l * lane_stride] = src[s..., l] where the mask is true.

    With lane_stride 0 or overlapping slots the last lane of the last slot wins. `nontemporal` asks that the data
    bypass the caches.
    """

    buffer: str
    offset: IntExpr
    src: str
    slot_strides: tuple[IntExpr, ...] = ()
    lane_stride: IntExpr = _ONE
    mask: str | None = None
    nontemporal: bool = False


@dataclass(frozen=True, slots=True)
class Scatter:
    """buffer[offsets] = src, or buffer[offsets] = op(buffer[offsets], src), one element after the other in slot, then
    lane order, so that equal offsets see each other; not atomic.
    """

    buffer: str
    offsets: str
    src: str
    mask: str | None = None
    op: str | None = None


@dataclass(frozen=True, slots=True)
class Op:
    """dst = op(args), element-wise; `op` of `dlc.ir.scalar.SCALAR_OPS`, or 'fma': a*b + c, rounded once if the CPU can."""

    dst: str
    op: str
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cast:
    """dst = src as `dtype`; `mode` ('sat' or 'wrap') says what floats outside an integer type give.

    Mode 'fits': the floats are integers of the type already, which is for the maker of the program to see to.
    """

    dst: str
    src: str
    dtype: DType
    mode: str = "sat"


@dataclass(frozen=True, slots=True)
class Bitcast:
    """dst = the bits of src as another type of the same width, element by element."""

    dst: str
    src: str
    dtype: DType


@dataclass(frozen=True, slots=True)
class View:
    """dst = the bits of src's registers as lanes of another width: `u8[2, 1 x 4]` as i32 is `i32[2, 1 x 1]`.

    The first lane has the lowest bits, as in memory.
    """

    dst: str
    src: str
    dtype: DType


@dataclass(frozen=True, slots=True)
class Unpack:
    """dst = the first codes that lie in the bytes of src's registers without gaps, one in a byte; u8, as many as there are lanes.

    Code i of a register is its bits `i * bits` to `(i + 1) * bits - 1`, bit 0 of a byte being the lowest; what lies behind the
    last code is not looked at.
    """

    dst: str
    src: str
    bits: int


@dataclass(frozen=True, slots=True)
class Lookup:
    """dst[s..., l] = table[src[s..., l] modulo the table's length], which is a power of two up to 256; src u8 or i32.

    The elements of a table of bytes lie in bytes, those of one of f32 in lanes as wide as src's.
    """

    dst: str
    src: str
    dtype: DType
    table: tuple[float | int, ...]


@dataclass(frozen=True, slots=True)
class Zip:
    """dst = i32 words of two bytes of `low` and two of `high` in turn: bytes `half` and `half + 2` of their words.

    Two registers with the low and high bytes of 16-bit numbers, four in a word of each, are pairs of these numbers after it;
    every other byte, not neighbours, as that is a shift and a mask.
    """

    dst: str
    low: str
    high: str
    half: int


@dataclass(frozen=True, slots=True)
class Dot:
    """dst = acc + the sum of the products of the elements that a lane of `a` and `b` holds; broadcasts as `fma` does.

    `a` and `b` are i32 words that hold neighbouring elements of types `left` and `right`, the first in the lowest bits:

        u8, i8      four products in i32, wrapping
        bf16, bf16  two products in f32; each addition may round, and an element below 2^-126 may count as 0
        u1, u1      32 products in i32, wrapping: the bits that both have
    """

    dst: str
    left: DType
    right: DType
    a: str
    b: str
    acc: str


@dataclass(frozen=True, slots=True)
class MatDot:
    """dst[m, v, l] = acc[m, v, l] + the sum over w of `dot<left, right>` of the words a[m, w] and b[w, v, l].

    `a` is i32[M x W], `b` i32[W, V x L] and `acc` [M, V x L], of the element types of `matrix_unit.UNITS`; M is a multiple of 16, W is 8.
    """

    dst: str
    left: DType
    right: DType
    a: str
    b: str
    acc: str


@dataclass(frozen=True, slots=True)
class Mma:
    """A `MatDot` of a warp, whose threads come here together with their parts of it, as `matrix_unit.py` lays them out."""

    dst: str
    left: DType
    right: DType
    a: str
    b: str
    acc: str


@dataclass(frozen=True, slots=True)
class Broadcast:
    """dst = src, repeated to `type`'s slots and lanes."""

    dst: str
    type: TileType
    src: str


@dataclass(frozen=True, slots=True)
class Slice:
    """dst = src[index...]: one register of the tile; the result has no slots."""

    dst: str
    src: str
    index: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stack:
    """dst = the tiles `srcs`, equal in type, along a new first slot dimension."""

    dst: str
    srcs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reduce:
    """dst = src folded with `op` (of REDUCE_OPS) as a balanced tree: across the lanes (axis None; lanes become 1), or
    over slot dimension `axis` (it becomes 1).
    """

    dst: str
    op: str
    src: str
    axis: int | None = None


@dataclass(frozen=True, slots=True)
class Fold:
    """dst[s..., c] = the lanes of src[s..., c] folded with `op` (of REDUCE_OPS), in the order of `Reduce`: the last slot
    dimension, a power of two and no more than there are lanes, becomes the lanes.
    """

    dst: str
    op: str
    src: str


@dataclass(frozen=True, slots=True)
class Mask:
    """dst[lane] = lane < count, a bool tile without slots."""

    dst: str
    lanes: int
    count: IntExpr


@dataclass(frozen=True, slots=True)
class For:
    """`var` runs from `lo` to below `hi` by `step` (positive constant or expression).

    Attributes:
        carries: (name in the body, initial tile) for each loop-carried tile.
        yields: tiles of the body that become the carries of the next round.
        results: names of the final carries after the loop.
        unroll: body copies per jump that are asked for; the meaning does not depend on it.
    """

    var: str
    lo: IntExpr
    hi: IntExpr
    step: IntExpr
    body: tuple[Stmt, ...]
    carries: tuple[tuple[str, str], ...] = ()
    yields: tuple[str, ...] = ()
    results: tuple[str, ...] = ()
    unroll: int = 1


@dataclass(frozen=True, slots=True)
class If:
    """One of two regions. `cond` is a tuple of index comparisons (all must hold), or a scalar bool tile by name."""

    cond: tuple[IndexCond, ...] | str
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...] = ()
    then_yields: tuple[str, ...] = ()
    else_yields: tuple[str, ...] = ()
    results: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class While:
    """Run `test_body`; while its scalar bool tile `test` holds run `body`, whose `yields` are the next carries.

    Both regions see the carries; only the carries, not the tiles of `test_body`, are visible in `body`.
    """

    carries: tuple[tuple[str, str], ...]
    test_body: tuple[Stmt, ...]
    test: str
    body: tuple[Stmt, ...]
    yields: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Prefetch:
    """Ask for the cache line of buffer[offset]; `locality` 3 (L1), 2 (L2), 1 or 0 (once). No effect on meaning."""

    buffer: str
    offset: IntExpr
    locality: int = 3
    write: bool = False


@dataclass(frozen=True, slots=True)
class Check:
    """If any element of the bool tile is false, report `check_id` (a call's first report wins). Execution goes on."""

    cond: str
    check_id: str


@dataclass(frozen=True, slots=True)
class Thread:
    """Bind index variable `var` to the number of this thread in its warp; 0 where a task is one thread."""

    var: str


@dataclass(frozen=True, slots=True)
class Shuffle:
    """dst = `src` of the warp's thread number `thread`. All threads of a warp come here together."""

    dst: str
    src: str
    thread: IntExpr


@dataclass(frozen=True, slots=True)
class Sync:
    """The threads of a warp wait for each other; what each has stored is seen by all after it."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Begin to copy a tile's elements to a shared buffer: source[source_offset + ...] to buffer[offset + ...], as `Load` numbers them.

    What is in memory now is there after the `Wait` for its group; what was there is gone at once. Lanes lie side by side at both
    places. 16 bytes are moved at a time: places are multiples of it, and buffers begin at such.
    """

    type: TileType
    buffer: str
    offset: IntExpr
    slot_strides: tuple[IntExpr, ...]
    source: str
    source_offset: IntExpr
    source_strides: tuple[IntExpr, ...]


@dataclass(frozen=True, slots=True)
class Commit:
    """The copies that the thread has begun since the last `Commit`, which may be none, are a group."""


@dataclass(frozen=True, slots=True)
class Wait:
    """All groups of the thread but the last `but` have arrived."""

    but: int


Stmt: TypeAlias = (
    Const | Iota | FromIndex | IndexOf | Lead | Load | Gather | Store | Scatter | Op | Cast | Bitcast | View | Unpack | Lookup | Zip | Dot
    | MatDot | Mma | Broadcast
    | Slice | Stack | Reduce | Fold | Mask | For | If | While | Prefetch | Check | Thread | Shuffle | Sync
    | Copy | Commit | Wait
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TileProgram:
    """One kernel: `tasks` independent tasks, numbered by `task_var`.

    Attributes:
        symbols: extent symbols that occur, with their `#`.
        tasks: how many tasks there are, an expression over symbols.
        loc: what of the user's model it computes.
    """

    name: str
    buffers: tuple[Buffer, ...]
    symbols: tuple[str, ...]
    tasks: IntExpr
    task_var: str
    body: tuple[Stmt, ...]
    loc: Loc = field(default=UNKNOWN, compare=False, repr=False)

    def buffer(self, name: str) -> Buffer:
        return next(b for b in self.buffers if b.name == name)

    def __str__(self) -> str:
        from dlc.codegen.tile_print import show_program  # the printer imports this module

        return show_program(self)


# -- the argument words of the native kernel -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Word:
    """One 8-byte word of a kernel's `args`.

    kind: 'buffer' (address), 'symbol' (value), 'scratch_base' and 'scratch_stride' (address of thread 0's scratch,
    bytes from one thread's to the next's), 'error' (address of the error word), 'check' (what to store into it).
    """

    kind: str
    name: str = ""


def arg_words(program: TileProgram) -> tuple[Word, ...]:
    """The words of `args`, in order: buffers that are given, symbols, then what the kernel needs besides."""
    words = [Word("buffer", b.name) for b in program.buffers if b.given]
    words += [Word("symbol", s) for s in program.symbols]
    if any(b.role == "scratch" for b in program.buffers):
        words += [Word("scratch_base"), Word("scratch_stride")]
    checks = check_ids(program)
    if checks:
        words.append(Word("error"))
        words += [Word("check", c) for c in checks]
    return tuple(words)


def check_ids(program: TileProgram) -> tuple[str, ...]:
    """The distinct check ids, in order of appearance."""
    return tuple(dict.fromkeys(s.check_id for s in walk(program.body) if isinstance(s, Check)))


def scratch_offsets(program: TileProgram) -> tuple[dict[str, IntExpr], IntExpr]:
    """Byte offset of each scratch buffer in the thread's block, and the bytes one thread needs (multiples of 64)."""
    offsets, total = {}, _ZERO
    for b in program.buffers:
        if b.role == "scratch":
            offsets[b.name] = total
            total = total + (b.size * b.dtype.bytes + 63) // 64 * 64
    return offsets, total


def regions(stmt: Stmt) -> tuple[tuple[Stmt, ...], ...]:
    """The nested statement lists of a statement."""
    match stmt:
        case For():
            return (stmt.body,)
        case If():
            return (stmt.then, stmt.orelse)
        case While():
            return (stmt.test_body, stmt.body)
        case _:
            return ()


def walk(body: tuple[Stmt, ...]) -> Iterator[Stmt]:
    """Every statement, outer before inner."""
    for stmt in body:
        yield stmt
        for region in regions(stmt):
            yield from walk(region)


__all__ = [
    "BOOL", "Bitcast", "Broadcast", "Buffer", "Cast", "Check", "Commit", "Const", "Copy", "DOTS", "DTYPES", "Dot", "F32", "Fold", "For",
    "FromIndex", "Gather", "I64", "If", "IndexCond", "IndexOf", "Iota", "LOOKUPS", "Load", "Lookup", "Mask", "MatDot", "Mma", "Op",
    "PIECE", "Prefetch", "Reduce", "Scatter", "Shuffle", "Slice", "Stack", "Stmt", "Store", "Sync", "Thread", "TileProgram", "TileType",
    "Unpack", "View", "Wait", "While", "Word", "Zip",
    "arg_words", "check_ids", "dot_type", "fold_type", "join_shapes", "lookup_type", "op_type", "regions", "scratch_offsets",
    "unpack_type", "view_type", "walk", "zip_type",
]  # fmt: skip
