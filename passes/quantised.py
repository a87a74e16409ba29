"""Recognising numbers that stand for bytes: `scale * (byte - zero)`, in the forms that importers and inlining leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dlc.ir.dtype import F32, F64, I8, I32, U8, DType
from dlc.ir.einsum import Einsum, TensorType
from dlc.ir.expr import Access, Apply, Cast, Const, Expr, apply, const, dtype_of
from dlc.ir.extent import Var, var

BYTES = (I8, U8)
_WIDE = (I32, F32, F64)


@dataclass(frozen=True)
class Quantised:
    """`scale * (byte - zero)`, exactly.

    Attributes:
        byte: the element read, of type i8 or u8.
        zero: what is subtracted, an i32 expression; None for 0.
        scale: a float expression; None for 1.
    """

    byte: Access
    zero: Expr | None = None
    scale: Expr | None = None


def is_zero(e: Expr) -> bool:
    return isinstance(e, Const) and e.value == 0


def quantised(e: Expr, types: Mapping[str, TensorType]) -> Quantised | None:
    """`e` as a scaled byte; None when it is none."""
    match e:
        case Cast(dtype, Access() as byte) if dtype in _WIDE and types[byte.tensor].dtype in BYTES:
            return Quantised(byte)
        case Cast(dtype, arg) if dtype in (F32, F64):  # of i32, which holds no more than 2^24 here
            inner = quantised(arg, types)
            return inner if inner is not None and inner.scale is None else None
        case Apply("sub", (left, right)):
            inner = quantised(left, types)
            zero = _integer(right, types)
            if inner is None or inner.zero is not None or inner.scale is not None or zero is None:
                return None
            return inner if is_zero(zero) else replace(inner, zero=zero)
        case Apply("mul", (left, right)):
            for value, scale in ((left, right), (right, left)):
                inner = quantised(value, types)
                real = dtype_of(scale, lambda t: types[t].dtype).is_float
                if inner is not None and inner.scale is None and real and quantised(scale, types) is None:
                    return replace(inner, scale=scale)
    return None


def _integer(e: Expr, types: Mapping[str, TensorType]) -> Expr | None:
    """A zero point as an i32 expression: a byte that was widened, or a literal."""
    match e:
        case Const(value, dtype) if dtype in _WIDE and float(value).is_integer() and abs(value) < 1 << 24:
            return const(int(value), I32)
        case Cast(dtype, Const(value, source)) if dtype in _WIDE and source.is_int and abs(value) < 1 << 24:
            return const(int(value), I32)
        case Cast(dtype, Access() as read) if dtype in _WIDE and types[read.tensor].dtype in BYTES:
            return Cast(I32, read, "wrap")
        case Cast(dtype, Cast(inner, _) as narrow) if dtype in _WIDE and inner == I32:
            return _integer(narrow, types)
        case _:
            return None


def through(read: Access, producer: Einsum, types: Mapping[str, TensorType]) -> Quantised | None:
    """The scaled byte that `read` of `producer`'s result gives; beyond the edges, where `read` has 0, the zero point.

    A pad of anything but 0, or with a zero point that no byte holds, is no scaled byte.
    """
    if (
        producer.reduce is not None
        or producer.write is not None
        or producer.where is not None
        or len(producer.outs) != 1
    ):
        return None
    found = quantised(producer.expr, types)
    if found is None or found.byte.default is not None:
        return None
    found = replace(found, byte=_with_unit_ranks(found.byte, producer, types[found.byte.tensor]))
    env = {r.name: i for r, i in zip(producer.ranks, read.index, strict=True)}
    moved = Quantised(*(None if e is None else e.substitute(env) for e in (found.byte, found.zero, found.scale)))  # type: ignore[arg-type]
    if read.default is None:
        return moved
    dtype = types[found.byte.tensor].dtype
    zero = 0 if moved.zero is None else int(moved.zero.value) if isinstance(moved.zero, Const) else None
    if not is_zero(read.default) or zero is None or not dtype.lowest <= zero <= dtype.highest:
        return None
    if not _same_elements(found.byte, producer, types[found.byte.tensor]):
        return None
    return replace(moved, byte=replace(moved.byte, default=const(zero, dtype)))


def _with_unit_ranks(byte: Access, producer: Einsum, type_: TensorType) -> Access:
    """The read with ranks of extent 1 back where simplification left 0, so that no index is lost."""
    spare = [r.name for r in producer.ranks if r.extent.const == 1 and r.name not in byte.variables]
    index = list(byte.index)
    for d, (i, n) in enumerate(zip(byte.index, type_.shape, strict=True)):
        if i.const == 0 and n.const == 1 and spare:
            index[d] = var(spare.pop(0))
    return replace(byte, index=tuple(index))


def _same_elements(byte: Access, producer: Einsum, type_: TensorType) -> bool:
    """Whether an index is inside the result exactly when what it reads is inside the bytes' tensor."""
    extents = dict(producer.extents)
    for i, n in zip(byte.index, type_.shape, strict=True):
        name = i.atom.name if isinstance(i.atom, Var) else ""
        if extents.pop(name, None) != n:
            return False
    return not extents


def flipped(q: Quantised, tensor: str, dtype: DType) -> Quantised:
    """The same number from `tensor`, whose bytes have the other sign: u8 is i8 and 128, i8 is u8 less 128."""
    shift = 128 if dtype == I8 else -128
    default = q.byte.default
    if isinstance(default, Const):
        default = const(int(default.value) + shift, U8 if dtype == I8 else I8)
    zero = const(shift, I32) if q.zero is None else _added(q.zero, shift)
    return Quantised(Access(tensor, q.byte.index, default), None if is_zero(zero) else zero, q.scale)


def _added(e: Expr, n: int) -> Expr:
    return const(int(e.value) + n, I32) if isinstance(e, Const) else apply("add", e, const(n, I32))
