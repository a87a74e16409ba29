"""Library operations as kernels: sorting, top-k and nonzero; `library_sets.py` has unique and non-maximum suppression.

An operation whose result has an extent found at run time is two kernels: one that measures, leaving the extent in
`count`, and one that writes the result. Buffers are named `arg0 ...`, `out0 ...`, `tmp0 ...` and `count`.
The sort is a stable bottom-up merge sort of indices: n log n for any data, in scratch memory of its thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from dlc.codegen.tile import Buffer, TileProgram, TileType
from dlc.codegen.tile_build import Builder
from dlc.errors import Unsupported
from dlc.ir.dtype import BF16, BOOL, F16, F32, I32, I64, DType
from dlc.ir.einsum import TensorType
from dlc.ir.extent import IntExpr, int_expr, minimum, var, variables
from dlc.ir.memory import library_temporaries
from dlc.ir.program import Library

After = Callable[[str, str], str]
"""(left index, right index) -> scalar bool tile: whether the right one must come before the left one."""

SORT_WORK = 64
"""Scalar operations for each element of a sort, roughly."""
K_CHECK = "DLC0542: top-k asks for more elements than there are"


@dataclass(frozen=True, slots=True)
class LibraryKernel:
    """One kernel of a library operation."""

    tile: TileProgram
    work_per_task: IntExpr


class Frame:
    """A tile program under construction for `stmt`: buffers by role, and the task variable."""

    def __init__(self, stmt: Library, types: Mapping[str, TensorType], part: str) -> None:
        self.stmt = stmt
        self.name = f"{stmt.op}_{part}"
        self.args = [types[name] for name in stmt.args]
        self.outs = list(stmt.types)
        temporaries = list(library_temporaries(stmt, types).items())
        self.buffers: dict[str, Buffer] = {}
        for i, of in enumerate(self.args):
            self._add(f"arg{i}", of, "in")
        measuring = part == "measure"
        for name, of in temporaries:
            self._add(name.rpartition(".")[2], of, "out" if measuring else "in")
        if not measuring:
            for i, of in enumerate(self.outs):
                self._add(f"out{i}", of, "out")
        self.b = Builder({name: b.dtype for name, b in self.buffers.items()})
        self.task = var("task")

    def _add(self, name: str, of: TensorType, role: str) -> None:
        self.buffers[name] = Buffer(name, of.dtype, role, of.stored)

    def scratch(self, name: str, elements: IntExpr) -> None:
        """`elements` integers of the thread's own."""
        self.buffers[name] = Buffer(name, I64, "scratch", elements)
        self.b.buffers = {**self.b.buffers, name: I64}

    def load(self, buffer: str, offset: IntExpr | int) -> str:
        return self.b.load(TileType(self.buffers[buffer].dtype), buffer, offset)

    def finish(self, tasks: IntExpr | int, work: IntExpr | int) -> LibraryKernel:
        body = self.b.body()
        buffers = tuple(self.buffers.values())
        exprs = [b.size for b in buffers] + [int_expr(tasks)]
        exprs += [e for of in (*self.args, *self.outs) for e in of.shape]
        symbols = tuple(sorted({n for e in exprs for n in variables(e)}))
        if self.name.endswith("_measure"):
            bound = {"#" + s.name for s in self.stmt.binds}
            symbols = tuple(n for n in symbols if n not in bound)
        program = TileProgram(self.name, buffers, symbols, int_expr(tasks), "task", body, self.stmt.loc)
        return LibraryKernel(program, int_expr(work))


def library_kernels(stmt: Library, types: Mapping[str, TensorType]) -> tuple[LibraryKernel, ...]:
    """The kernels of `stmt`: one, or two where it binds an extent (measure, write)."""
    from dlc.codegen.library_sets import nms_measure, nms_write, unique_measure, unique_write

    attrs = dict(stmt.attrs)
    for name in (*stmt.args, *stmt.outs):
        of = types[name]
        if not of.dtype.native:
            raise Unsupported(stmt.loc, op=stmt.op, reason=f"elements of type {of.dtype} have no native form")
        if not of.row_major:
            raise Unsupported(stmt.loc, op=stmt.op, reason=f"'{name}' has the layout of {of}")
    match stmt.op:
        case "sort":
            descending = bool(attrs.get("descending", False))
            return (_sort(Frame(stmt, types, "write"), int(attrs.get("axis", -1)), descending),)
        case "topk":
            return (_sort(Frame(stmt, types, "write"), int(attrs.get("axis", -1)), bool(attrs.get("largest", True))),)
        case "nonzero":
            return _nonzero_measure(Frame(stmt, types, "measure")), _nonzero_write(Frame(stmt, types, "write"))
        case "unique":
            ordered = bool(attrs.get("sorted", True))
            return unique_measure(Frame(stmt, types, "measure"), ordered), unique_write(Frame(stmt, types, "write"))
        case "nms":
            center, scored = bool(attrs.get("center_point_box", False)), bool(attrs.get("has_score", True))
            return (
                nms_measure(Frame(stmt, types, "measure"), center, scored),
                nms_write(Frame(stmt, types, "write")),
            )
        case _:
            raise Unsupported(stmt.loc, op=stmt.op, reason="there is no kernel for this library operation")


def divisor(extent: IntExpr) -> IntExpr:
    """`extent` to divide by, in code that does not run where it is 0; a constant 0 would not even be built."""
    return int_expr(1) if extent.const == 0 else extent


# -- sorting ---------------------------------------------------------------------------------------------------------


def comparable(b: Builder, tile: str) -> str:
    """A scalar in a type that registers can compare."""
    dtype = b.types[tile].dtype
    return b.cast(tile, F32 if dtype in (F16, BF16) else I32 if dtype == BOOL else dtype)


def less(b: Builder, x: str, y: str) -> str:
    """x < y, with NaN greater than every number and equal to itself."""
    smaller = b.op("lt", x, y)
    if not b.types[x].dtype.is_float:
        return smaller
    return b.op("or", smaller, b.op("and", b.op("eq", x, x), b.op("ne", y, y)))


def merge_sort(f: Frame, n: IntExpr, after: After) -> None:
    """Leave the numbers 0 .. n-1 in scratch `order`, sorted; equal ones keep their order."""
    b, scalar = f.b, TileType(I64)
    f.scratch("order", n)
    f.scratch("merged", n)
    with b.loop("i", 0, n) as each:
        b.store("order", each.index, b.from_index(each.index))
    one, zero = b.const(I64, 1), b.const(I64, 0)

    def unsorted(carries: tuple[str, ...]) -> str:
        return b.op("lt", carries[0], b.from_index(n))

    def double(carries: tuple[str, ...]) -> tuple[str, ...]:
        width = b.index_of(carries[0])
        with b.loop("lo", 0, n, 2 * width) as runs:
            lo = runs.index
            middle, high = minimum(lo + width, n), minimum(lo + 2 * width, n)
            start, start_right = b.from_index(lo), b.from_index(middle)
            with b.loop("k", lo, high, carries=(start, start_right)) as merge:
                i, j = merge.carries
                left = b.load(scalar, "order", minimum(b.index_of(i), middle - 1))
                right = b.load(scalar, "order", minimum(b.index_of(j), high - 1))
                has_left = b.op("lt", i, b.from_index(middle))
                has_right = b.op("lt", j, b.from_index(high))
                wanted = b.op("or", b.op("not", has_left), after(left, right))
                take_right = b.op("and", has_right, wanted)
                b.store("merged", merge.index, b.op("select", take_right, right, left))
                moved = b.op("select", take_right, one, zero)
                merge.yields(b.op("add", i, b.op("sub", one, moved)), b.op("add", j, moved))
        with b.loop("c", 0, n) as each:
            b.store("order", each.index, b.load(scalar, "merged", each.index))
        return (b.op("add", carries[0], carries[0]),)

    b.while_((one,), unsorted, double)


def _sort(f: Frame, axis: int, descending: bool) -> LibraryKernel:
    """Sort lines of `arg0` along `axis`; the result has the first of them, as many as it has room for."""
    b, x, out = f.b, f.args[0], f.outs[0]
    axis %= x.rank
    n, kept = x.shape[axis], out.shape[axis]
    outer, inner = int_expr(1), int_expr(1)
    for d, extent in enumerate(x.shape):
        outer, inner = (outer * extent, inner) if d < axis else (outer, inner * extent if d > axis else inner)
    block, place = f.task // divisor(inner), f.task % divisor(inner)
    base, target = block * n * inner + place, block * kept * inner + place
    if kept != n:
        if not (kept.const is not None and n.const is not None and kept.const <= n.const):
            b.check(b.op("le", b.from_index(kept), b.from_index(n)), K_CHECK)

    def key(index: str) -> str:
        return comparable(b, f.load("arg0", base + b.index_of(index) * inner))

    def after(left: str, right: str) -> str:
        x, y = key(left), key(right)
        return less(b, x, y) if descending else less(b, y, x)

    merge_sort(f, n, after)
    with b.loop("r", 0, minimum(kept, n)) as each:
        index = b.load(TileType(I64), "order", each.index)
        b.store("out0", target + each.index * inner, f.load("arg0", base + b.index_of(index) * inner))
        b.store("out1", target + each.index * inner, index)
    return f.finish(outer * inner, n * SORT_WORK)


# -- nonzero ---------------------------------------------------------------------------------------------------------


def _is_set(f: Frame, offset: IntExpr) -> str:
    b = f.b
    value = f.load("arg0", offset)
    dtype: DType = b.types[value].dtype
    if dtype == BOOL:
        return value
    value = comparable(b, value)
    return b.op("ne", value, b.const(b.types[value], 0))


def _nonzero_measure(f: Frame) -> LibraryKernel:
    b, elements = f.b, f.args[0].elements
    with b.loop("e", 0, elements, carries=(b.const(I64, 0),)) as each:
        each.yields(b.op("add", each.carries[0], b.cast(_is_set(f, each.index), I64)))
    b.store("count", 0, each.results[0])
    return f.finish(1, elements * 4)


def _nonzero_write(f: Frame) -> LibraryKernel:
    b, x, n = f.b, f.args[0], f.outs[0].shape[1]
    one = b.const(I64, 1)
    with b.loop("e", 0, x.elements, carries=(b.const(I64, 0),)) as each:
        found = _is_set(f, each.index)
        (place,) = each.carries
        with b.branch(found) as branch:
            with branch.then():
                at, rest = b.index_of(place), each.index
                for d in reversed(range(x.rank)):
                    extent = divisor(x.shape[d])
                    b.store("out0", d * n + at, b.from_index(rest % extent if d else rest))
                    rest = rest // extent
                branch.yields(b.op("add", place, one))
            with branch.orelse():
                branch.yields(place)
        each.yields(branch.results[0])
    return f.finish(1, x.elements * 8)
