"""ATen operators that only rearrange: views compose index maps; concatenation, rolling and padding are one Einsum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlc.frontend.torch_context import Ctx, Operand, index_cmp, op, when
from dlc.ir.expr import Expr, Piecewise, const
from dlc.ir.extent import IntExpr, IntLike, int_expr, maximum, minimum
from dlc.ir.view import Val


@op("view", "reshape", "_unsafe_view", "view_copy", "_reshape_copy", "unflatten.int", "flatten.using_ints", "view_as", "reshape_as",
    "ravel", "_reshape_alias")  # fmt: skip
def reshape(c: Ctx, x: Val, *_: Any, **__: Any) -> Val:
    return x.reshape(c.shape)


@op("permute", "permute_copy")
def permute(c: Ctx, x: Val, dims: Sequence[int]) -> Val:
    return x.permute([c.dim(d, x.rank) for d in dims])


@op("transpose.int", "transpose_copy.int", "swapaxes", "swapdims")
def transpose(c: Ctx, x: Val, a: int, b: int) -> Val:
    return x.transpose(c.dim(a, x.rank), c.dim(b, x.rank)) if x.rank else x


@op("t", "t_copy", "numpy_T", "mT", "matrix_H", "mH", "adjoint")
def t(c: Ctx, x: Val) -> Val:
    if "numpy_T" in c.target:
        return x.permute(range(x.rank)[::-1])
    return x if x.rank < 2 else x.transpose(x.rank - 2, x.rank - 1)


@op("movedim.int", "movedim.intlist", "moveaxis.int", "moveaxis.intlist")
def movedim(c: Ctx, x: Val, source: Any, destination: Any) -> Val:
    src = [c.dim(d, x.rank) for d in c.ints(source, 1)]
    dst = [c.dim(d, x.rank) for d in c.ints(destination, 1)]
    order = [-1] * x.rank
    for s, d in zip(src, dst, strict=True):
        order[d] = s
    rest = iter(d for d in range(x.rank) if d not in src)
    return x.permute([next(rest) if d < 0 else d for d in order])


@op("unsqueeze", "unsqueeze_copy")
def unsqueeze(c: Ctx, x: Val, dim: int) -> Val:
    return x.unsqueeze(dim % (x.rank + 1))


@op("squeeze", "squeeze.dim", "squeeze.dims", "squeeze_copy", "squeeze_copy.dim", "squeeze_copy.dims")
def squeeze(c: Ctx, x: Val, dim: Any = None) -> Val:
    if isinstance(dim, (list, tuple)) and not dim:
        return x
    dims = c.dims(dim, x.rank)
    gone = [d for d in dims if x.shape[d].const == 1]
    for d in dims:
        c.not_one(x.shape[d])
    return x.squeeze(*gone) if gone else x


@op("expand", "expand_as", "expand_copy", "broadcast_to")
def expand(c: Ctx, x: Val, *_: Any, **__: Any) -> Val:
    return x.broadcast_to(c.shape)


@op("broadcast_tensors")
def broadcast_tensors(c: Ctx, tensors: Sequence[Val]) -> list[Val]:
    shape = c.broadcast(*tensors)
    return [x.broadcast_to(shape) for x in tensors]


@op("select.int", "select_copy.int")
def select_(c: Ctx, x: Val, dim: int, index: Any) -> Val:
    d = c.dim(dim, x.rank)
    return x.select(d, from_front(c, index, x.shape[d]))


def from_front(c: Ctx, index: Any, extent: IntExpr) -> IntExpr:
    """An index that may count from the end."""
    i = int_expr(index)
    return i + extent if c.negative(i) else i


def slice_bounds(
    c: Ctx, extent: IntExpr, start: Any, end: Any, size: IntExpr | None, step: int
) -> tuple[IntExpr, IntExpr]:
    """First index and length of a slice; `size` is the traced length, whose symbols torch has simplified."""
    lo = int_expr(0 if start is None else start)
    if c.negative(lo):
        lo = lo + extent
        if not c.proven(lo):
            lo = maximum(lo, 0)
    if lo.const is None or extent.const is None:
        lo = lo if lo.const == 0 or (size is not None and _covers(lo, size, extent, step)) else minimum(lo, extent)
    else:
        lo = int_expr(min(lo.const, extent.const))
    if size is not None:
        return lo, size
    hi = int_expr(extent if end is None else end)
    if c.negative(hi):
        hi = hi + extent
    hi = minimum(hi, extent)
    return lo, maximum((hi - lo + step - 1) // step, 0)


def _covers(lo: IntExpr, size: IntExpr, extent: IntExpr, step: int) -> bool:
    """Whether `lo` is in range: the slice reaches the end from it without clamping, or is known not to be empty."""
    return (step == 1 and lo + size == extent) or (size.const or 0) > 0


@op("slice.Tensor", "slice_copy.Tensor")
def slice_(c: Ctx, x: Val, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Val:
    d = c.dim(dim, x.rank)
    fresh = c.graph.unbacked(c.meta)
    lo, size = slice_bounds(c, x.shape[d], start, end, None if fresh else c.shape[d], step)
    for symbol in fresh:  # the length that torch has given a name: it is known here
        c.extents.symbols[symbol] = size
    if size == x.shape[d] and step == 1:
        return x
    return x.slice(d, lo, size, step)


@op("narrow", "narrow_copy")
def narrow(c: Ctx, x: Val, dim: int, start: Any, length: Any) -> Val:
    d = c.dim(dim, x.rank)
    return x.slice(d, from_front(c, start, x.shape[d]), length)


def _pieces(x: Val, d: int, sizes: Sequence[IntLike]) -> list[Val]:
    out, start = [], int_expr(0)
    for s in sizes:
        out.append(x.slice(d, start, s))
        start = start + s
    return out


@op("split.Tensor", "split.sizes", "split_with_sizes", "split_with_sizes_copy", "split_copy.Tensor", "chunk",
    "tensor_split.sections", "tensor_split.indices", "unsafe_split.Tensor", "unsafe_split_with_sizes", "unsafe_chunk")  # fmt: skip
def split(c: Ctx, x: Val, _sizes: Any, dim: int = 0) -> list[Val]:
    d = c.dim(dim, x.rank)
    return _pieces(x, d, [c.shape_of(f)[d] for f in c.meta])


@op("unbind.int", "unbind_copy.int")
def unbind(c: Ctx, x: Val, dim: int = 0) -> list[Val]:
    d = c.dim(dim, x.rank)
    return [x.select(d, n) for n in range(len(c.meta))]


@op("diagonal", "diagonal_copy")
def diagonal(c: Ctx, x: Val, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Val:
    a, b = c.dim(dim1, x.rank), c.dim(dim2, x.rank)
    rest = [d for d in range(x.rank) if d not in (a, b)]

    def index(*i: IntExpr) -> list[IntLike]:
        at = dict(zip(rest, i[:-1], strict=True))
        at[a], at[b] = i[-1] + max(-offset, 0), i[-1] + max(offset, 0)
        return [at[d] for d in range(x.rank)]

    return x.view(c.shape, index)


@op("unfold", "unfold_copy")
def unfold(c: Ctx, x: Val, dimension: int, size: int, step: int) -> Val:
    if x.rank == 0:
        return x.broadcast_to(c.shape)
    d = c.dim(dimension, x.rank)
    return x.view(c.shape, lambda *i: [*i[:d], i[d] * step + i[-1], *i[d + 1 : -1]])


@op("as_strided", "as_strided_copy", "as_strided_")
def as_strided(c: Ctx, x: Val, size: Sequence[Any], stride: Sequence[Any], storage_offset: Any = None) -> Val:
    if x.name is None:
        raise c.unsupported("it reads the storage of a view")
    flat = x.reshape([x.elements])

    def index(*i: IntExpr) -> list[IntExpr]:
        at = int_expr(storage_offset or 0)
        for n, s in zip(i, stride, strict=True):
            at = at + n * s
        return [at]

    return flat.view(c.shape, index)


@op("pixel_shuffle")
def pixel_shuffle(c: Ctx, x: Val, r: int) -> Val:
    *lead, channels, h, w = x.shape
    n = len(lead)
    y = x.reshape([*lead, channels // (r * r), r, r, h, w])
    y = y.permute([*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return y.reshape(c.shape)


@op("pixel_unshuffle")
def pixel_unshuffle(c: Ctx, x: Val, r: int) -> Val:
    *lead, channels, h, w = x.shape
    n = len(lead)
    y = x.reshape([*lead, channels, h // r, r, w // r, r])
    y = y.permute([*range(n), n, n + 2, n + 4, n + 1, n + 3])
    return y.reshape(c.shape)


@op("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(c: Ctx, x: Val, groups: int) -> Val:
    batch, channels, *rest = x.shape
    y = x.reshape([batch, groups, channels // groups, *rest])
    return y.transpose(1, 2).reshape(c.shape)


# --- one Einsum with pieces ------------------------------------------------------------------------------------------


def concat(c: Ctx, parts: Sequence[Val], d: int, hint: str | None = None) -> Val:
    """`parts` one after the other along `d`."""
    parts = [p for p in parts if p.shape[d].const != 0] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    ends: list[IntExpr] = []
    for p in parts:
        ends.append(p.shape[d] + (ends[-1] if ends else 0))

    def element(*i: IntExpr) -> Expr:
        cases: list[tuple[Expr, Expr]] = []
        start = int_expr(0)
        for p, end in zip(parts, ends, strict=True):
            cases.append((index_cmp("lt", i[d], end), p.at((*i[:d], i[d] - start, *i[d + 1 :]))))
            start = end
        return Piecewise(tuple(cases[:-1]), cases[-1][1])

    shape = [*parts[0].shape[:d], ends[-1], *parts[0].shape[d + 1 :]]
    return c.b.compute(hint or c.hint, shape, element, parts[0].dtype)


@op("cat", "concat", "concatenate")
def cat(c: Ctx, tensors: Sequence[Val], dim: int = 0) -> Val:
    rank = len(c.shape)
    # A tensor of shape [0] is allowed beside any other, for old code that starts from torch.empty(0).
    kept = [x for x in tensors if x.rank == rank and not (x.rank == 1 and x.shape[0].const == 0)]
    if not kept:
        return c.cast(tensors[0], c.dtype)
    return concat(c, [c.cast(x, c.dtype) for x in kept], c.dim(dim, rank))


@op("stack")
def stack(c: Ctx, tensors: Sequence[Val], dim: int = 0) -> Val:
    d = dim % (tensors[0].rank + 1)
    return concat(c, [c.cast(x, c.dtype).unsqueeze(d) for x in tensors], d)


@op("hstack", "vstack", "dstack", "column_stack", "row_stack")
def stacks(c: Ctx, tensors: Sequence[Val]) -> Val:
    rank = {"hstack": 1, "vstack": 2, "dstack": 3, "column_stack": 2, "row_stack": 2}[c.target.split(".")[1]]
    grown = []
    for x in tensors:
        x = x.unsqueeze(0) if x.rank == 0 else x
        if "column" in c.target:
            x = x.unsqueeze(1) if x.rank == 1 else x
        elif x.rank < rank:
            x = x.unsqueeze(0)
            x = x.unsqueeze(2) if rank == 3 else x
        grown.append(c.cast(x, c.dtype))
    d = 1 if "column" in c.target or ("hstack" in c.target and grown[0].rank > 1) else 2 if rank == 3 else 0
    return concat(c, grown, d)


@op("flip", "fliplr", "flipud")
def flip(c: Ctx, x: Val, dims: Sequence[int] | None = None) -> Val:
    if dims is None:
        dims = [1 if "fliplr" in c.target else 0]
    return x.flip(*[c.dim(d, x.rank) for d in dims]) if x.rank else x


@op("rot90")
def rot90(c: Ctx, x: Val, k: int = 1, dims: Sequence[int] = (0, 1)) -> Val:
    a, b = c.dim(dims[0], x.rank), c.dim(dims[1], x.rank)
    match k % 4:
        case 1:
            return x.flip(b).transpose(a, b)
        case 2:
            return x.flip(a, b)
        case 3:
            return x.flip(a).transpose(a, b)
    return x


@op("roll")
def roll(c: Ctx, x: Val, shifts: Any, dims: Any = ()) -> Val:
    moves = c.ints(shifts, 1)
    if x.rank == 0 or any(e.const == 0 for e in x.shape):
        return x
    if not c.ints(dims, 1):
        flat = _rolled(x.reshape([x.elements]), {0: int_expr(moves[0])})
        return c.b.materialize(flat, c.hint).reshape(x.shape)
    amounts: dict[int, IntExpr] = {}
    for d, s in zip(c.ints(dims, 1), moves, strict=True):
        place = c.dim(d, x.rank)
        amounts[place] = amounts.get(place, int_expr(0)) + s
    return c.b.materialize(_rolled(x, amounts), c.hint)


def _rolled(x: Val, amounts: dict[int, IntExpr]) -> Val:
    """Each dimension rotated; the modulo is removed by the two pieces of `(i - s) mod n` where `s` is constant."""

    def index(*i: IntExpr) -> list[IntLike]:
        return [(e - amounts[d]) % x.shape[d] if d in amounts else e for d, e in enumerate(i)]

    return x.view(x.shape, index)


@op("repeat", "tile")
def repeat(c: Ctx, x: Val, repeats: Sequence[Any]) -> Val:
    shape = c.shape
    extra = len(shape) - x.rank
    return x.view(
        shape,
        lambda *i: [
            int_expr(0) if e.const == 1 else i[extra + d] if e == shape[extra + d] else i[extra + d] % e
            for d, e in enumerate(x.shape)
        ],
    )


@op("repeat_interleave.self_int")
def repeat_interleave(c: Ctx, x: Val, repeats: Any, dim: int | None = None, *, output_size: Any = None) -> Val:
    if dim is None:
        x, dim = x.reshape([x.elements]), 0
    d = c.dim(dim, x.rank)
    return x.view(c.shape, lambda *i: [*i[:d], i[d] // repeats, *i[d + 1 :]])


@op("tril", "triu")
def tril(c: Ctx, x: Val, diagonal: Any = 0) -> Val:
    lower = "tril" in c.target
    zero = const(0, x.dtype)

    def element(*i: IntExpr) -> Expr:
        keep = index_cmp("le" if lower else "ge", i[-1] - i[-2], diagonal)
        return when(keep, x.at(i), zero)

    return c.b.compute(c.hint, x.shape, element, x.dtype)


# --- padding ---------------------------------------------------------------------------------------------------------


@op("pad")
def pad(c: Ctx, x: Val, pad: Sequence[Any], mode: str = "constant", value: Any = None) -> Val:
    return padded(c, x, pad, mode, 0 if value is None else value)


@op("constant_pad_nd")
def constant_pad(c: Ctx, x: Val, pad: Sequence[Any], value: Any = 0) -> Val:
    return padded(c, x, pad, "constant", value)


def _mode_pad(mode: str, *targets: str) -> None:
    @op(*targets)
    def handler(c: Ctx, x: Val, padding: Any) -> Val:
        return padded(c, x, padding, mode, 0)


_mode_pad("reflect", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
_mode_pad("replicate", "replication_pad1d", "replication_pad2d", "replication_pad3d")
_mode_pad("circular", "_pad_circular")


def padded(c: Ctx, x: Val, pad: Sequence[Any], mode: str, value: Operand) -> Val:
    """`x` padded as torch.nn.functional.pad does: pairs (before, after) from the last dimension on."""
    before, after = [int_expr(0)] * x.rank, [int_expr(0)] * x.rank
    for n in range(len(pad) // 2):
        before[x.rank - 1 - n], after[x.rank - 1 - n] = int_expr(pad[2 * n]), int_expr(pad[2 * n + 1])
    if mode == "constant":
        fill = c.val(value, x.dtype).at(())
        base = c.b.materialize(x)
        return c.b.materialize(base.pad(before, after, fill), c.hint)
    shape = [e + p + q for e, p, q in zip(x.shape, before, after, strict=True)]

    def index(*i: IntExpr) -> list[IntLike]:
        result: list[IntLike] = []
        for n, lo, hi, extent in zip(i, before, after, x.shape, strict=True):
            if lo.const == 0 and hi.const == 0:
                result.append(n)
                continue
            at = n - lo
            if mode == "replicate":
                result.append(minimum(maximum(at, 0), extent - 1))
            elif mode == "circular":
                result.append((at + extent) % extent)
            elif mode == "reflect":
                front = maximum(at, -at)  # |at|
                place = minimum(front, 2 * extent - 2 - front) if hi.const != 0 else front
                # Already in range; the clamp is what proves it.
                result.append(minimum(maximum(place, 0), extent - 1))
            else:
                raise c.unsupported(f"padding mode '{mode}' is not known")
        return result

    return c.b.materialize(x.view(shape, index), c.hint)
