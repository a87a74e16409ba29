"""Sequences and optionals: lists at import, never anything at run time."""

from __future__ import annotations

import numpy as np

from dlc.frontend.onnx_load import element_type
from dlc.frontend.onnx_ops.registry import Ctx, Result, op
from dlc.frontend.onnx_ops.shapes import concat_vals
from dlc.frontend.onnx_value import Optional, Sequence, Tensor
from dlc.ir.dtype import F32


def position(c: Ctx, i: int, length: int, last: int) -> int:
    """Input `i` as a place in a sequence; `last` is the greatest allowed."""
    at = int(c.scalar_number(i, "its position"))
    if not -length <= at <= last:
        c.bad(f"position {at} is out of range for a sequence of {length}")
    return at + length if at < 0 else at


@op("SequenceEmpty")
def sequence_empty(c: Ctx) -> Result:
    return Sequence((), element_type(c.int_("dtype"), c.loc, c.op) if "dtype" in c.attrs else F32)


@op("SequenceConstruct")
def sequence_construct(c: Ctx) -> Result:
    items = tuple(c.tensor(i) for i in range(len(c.ins)))
    return Sequence(items, items[0].dtype if items else None)


@op("SequenceInsert")
def sequence_insert(c: Ctx) -> Result:
    s, item = c.sequence(0), c.tensor(1)
    at = position(c, 2, len(s.items), len(s.items)) if c.has(2) else len(s.items)
    return Sequence((*s.items[:at], item, *s.items[at:]), s.dtype)


@op("SequenceErase")
def sequence_erase(c: Ctx) -> Result:
    s = c.sequence(0)
    at = position(c, 1, len(s.items), len(s.items) - 1) if c.has(1) else len(s.items) - 1
    if not s.items:
        c.bad("the sequence is empty")
    return Sequence((*s.items[:at], *s.items[at + 1 :]), s.dtype)


@op("SequenceAt")
def sequence_at(c: Ctx) -> Result:
    s = c.sequence(0)
    return s.items[position(c, 1, len(s.items), len(s.items) - 1)]


@op("SequenceLength")
def sequence_length(c: Ctx) -> Result:
    return Tensor(static=np.array(len(c.sequence(0).items), np.int64))


@op("SplitToSequence")
def split_to_sequence(c: Ctx) -> Result:
    x = c.x(0)
    axis = c.axis(c.int_("axis", 0), x.rank)
    single = not c.has(1)
    (extent,) = c.known([x.shape[axis]], "the extent it splits")
    c.limit(extent, 1 << 14, "the extent it splits")
    if single:
        sizes = [1] * extent
    else:
        numbers = c.numbers(1, "its sizes")
        if numbers.ndim == 0:
            each = int(numbers)
            if each < 1:
                c.bad(f"a size of {each}")
            sizes = [min(each, extent - n) for n in range(0, extent, each)]
        else:
            sizes = [int(n) for n in numbers]
    if sum(sizes) != extent:
        c.bad(f"sizes add up to {sum(sizes)}, not to {extent}")
    items, start = [], 0
    for n in sizes:
        part = x.slice(axis, start, n)
        items.append(Tensor(part.squeeze(axis) if single and not c.flag("keepdims", 1) else part, deps=c.tensor(0).deps))
        start += n
    return Sequence(tuple(items), x.dtype)


@op("ConcatFromSequence")
def concat_from_sequence(c: Ctx) -> Result:
    vals = [t.val(c.b) for t in c.sequence(0).items if isinstance(t, Tensor)]
    if not vals:
        c.bad("the sequence is empty")
    axis = c.int_("axis")
    if c.flag("new_axis", 0):
        d = c.axis(axis, vals[0].rank + 1)
        return concat_vals(c, [v.unsqueeze(d) for v in vals], d)
    return concat_vals(c, vals, c.axis(axis, vals[0].rank))


# --- optionals -------------------------------------------------------------------------------------------------------


@op("Optional")
def optional(c: Ctx) -> Result:
    return Optional(c.value(0) if c.has(0) else None)


@op("OptionalHasElement")
def optional_has_element(c: Ctx) -> Result:
    if not c.ins or c.ins[0] is None:
        return Tensor(static=np.array(False))
    held = c.value(0)
    return Tensor(static=np.array(not isinstance(held, Optional) or held.item is not None))


@op("OptionalGetElement")
def optional_get_element(c: Ctx) -> Result:
    held = c.value(0)
    if not isinstance(held, Optional):
        return held
    if held.item is None:
        c.bad("the optional is empty")
    return held.item


