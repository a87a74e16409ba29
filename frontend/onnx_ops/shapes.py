"""Shapes and views: reshape, transpose, slice, pad, concat, expand, tile, space and depth, constants, ranges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlc.frontend.onnx_load import element_type
from dlc.frontend.onnx_ops.registry import Ctx, Result, op, same_dtype
from dlc.frontend.onnx_value import Tensor
from dlc.ir.dtype import F32, I64
from dlc.ir.expr import Cast, Const, Expr, Index, Piecewise, apply, const, index_value
from dlc.ir.extent import FloorDiv, IntExpr, atoms, evaluate, int_expr, maximum, minimum, product, variables
from dlc.ir.view import Shape, Val

# --- constants -------------------------------------------------------------------------------------------------------


@op("Constant")
def constant(c: Ctx) -> Result:
    array = c.array("value")
    if array is not None:
        return Tensor(static=array, hint=c.hint)
    if "value_int" in c.attrs:
        return Tensor(static=np.array(c.int_("value_int"), np.int64), hint=c.hint)
    if "value_float" in c.attrs:
        return Tensor(static=np.array(c.float_("value_float"), np.float32), hint=c.hint)
    if "value_ints" in c.attrs:
        return Tensor(static=np.array(c.ints("value_ints"), np.int64), hint=c.hint)
    if "value_floats" in c.attrs:
        return Tensor(static=np.array(c.floats("value_floats"), np.float32), hint=c.hint)
    c.refuse(f"a constant given as {', '.join(c.attrs) or 'nothing'} has no native form yet")


@op("ConstantOfShape")
def constant_of_shape(c: Ctx) -> Result:
    fill = c.array("value")
    value = c.b.constant(fill.ravel()[:1].reshape(())) if fill is not None else c.b.scalar(0.0, F32)
    shape = c.bound(0, "its shape")
    if any(e.const is not None and e.const < 0 for e in shape):
        c.bad(f"[{', '.join(map(str, shape))}] is not a shape")
    return value.broadcast_to(shape)


@op("Shape", "Size")
def shape(c: Ctx) -> Result:
    c.bad("its attributes do not fit")


@op("EyeLike")
def eye_like(c: Ctx) -> Result:
    x = c.tensor(0)
    dtype = element_type(c.int_("dtype"), c.loc, c.op) if "dtype" in c.attrs else x.dtype
    k = c.int_("k", 0)
    if len(x.shape) != 2:
        c.bad(f"its input has {len(x.shape)} dimensions, not 2")

    def element(i: IntExpr, j: IntExpr) -> Expr:
        return apply("select", apply("eq", Index(j - i), const(k, I64)), const(1, dtype), const(0, dtype))

    return c.b.compute(c.hint, x.shape, element, dtype)


@op("Range")
def range_(c: Ctx) -> Result:
    start, limit, delta = c.tensor(0), c.tensor(1), c.tensor(2)
    if start.dtype.is_int and any(t.static is None and t.deps for t in (start, limit, delta)):
        return run_time_range(c)
    if start.dtype.is_int:
        first, last, step = (c.extents(i, "its bounds")[0] for i in range(3))
        if step.const is None or step.const == 0:
            c.refuse(f"its step is {step}")
        count = maximum((last - first + step.const - (1 if step.const > 0 else -1)) // step.const, 0)
        return c.b.compute(c.hint, [count], lambda i: _index_as(first + i * step, start.dtype), start.dtype)
    first_, last_, step_ = (float(c.scalar_number(i, "its bounds")) for i in range(3))
    del limit, delta
    if step_ == 0:
        c.bad("its step is 0")
    n = max(int(np.ceil((last_ - first_) / step_)), 0)
    c.limit(n, 1 << 24, "its number of elements")
    return Tensor(static=(first_ + np.arange(n) * step_).astype(start.dtype.numpy), hint=c.hint)


def run_time_range(c: Ctx) -> Val:
    """Bounds that arrive at run time: the number of elements is bound to an extent."""
    start, limit, delta = (c.x(i).view((), lambda i=i: [0] * c.x(i).rank) for i in range(3))

    def wide(e: Expr) -> Expr:
        return e if start.dtype == I64 else Cast(I64, e)

    def number(a: Expr, b: Expr, d: Expr) -> Expr:
        # ceil((b - a) / d) = -floor((a - b) / d)
        return apply("max", apply("neg", apply("div_floor", apply("sub", wide(a), wide(b)), wide(d))), const(0, I64))

    n = c.b.bind(c.b.map(f"{c.hint}_count", number, start, limit, delta, dtype=I64), f"{c.hint}_n")

    def element(i: IntExpr) -> Expr:
        value = apply("add", wide(start()), apply("mul", Index(i), wide(delta())))
        return value if start.dtype == I64 else Cast(start.dtype, value)

    return c.b.compute(c.hint, [n], element, start.dtype)


def _index_as(e: IntExpr, dtype: object) -> Expr:
    return Index(e) if dtype == I64 else Cast(dtype, Index(e))  # type: ignore[arg-type]


# --- reshapes --------------------------------------------------------------------------------------------------------


@op("Reshape")
def reshape(c: Ctx) -> Result:
    x = c.x(0)
    target = c.extents(1, "its target shape") if c.version >= 5 else [int_expr(n) for n in c.ints("shape")]
    if not c.flag("allowzero", 0):
        for d, e in enumerate(target):
            if e.const == 0:
                if d >= x.rank:
                    c.bad(f"a 0 at {d} copies a dimension that its input, of rank {x.rank}, has not")
                target[d] = x.shape[d]
    return reshape_to(c, x, target)


def reshape_to(c: Ctx, x: Val, target: list[IntExpr]) -> Val:
    """`x` under `target`, with one -1 resolved."""
    unknown = [d for d, e in enumerate(target) if e.const == -1]
    if len(unknown) > 1 or any(e.const is not None and e.const < -1 for e in target):
        c.bad(f"[{', '.join(map(str, target))}] is not a shape")
    if unknown:
        given = [e for d, e in enumerate(target) if d != unknown[0]]
        if product(given).const == 0:
            c.bad("the extent of -1 is not determined, since another is 0")
        target[unknown[0]] = left_over(x.shape, given)
        c.graph.demands.whole(x.elements, product(given))
    old, new = x.elements, product(target)
    if old.const is not None and new.const is not None and old.const != new.const:
        c.bad(f"{old} elements do not fit [{', '.join(map(str, target))}]")
    if new.const == 0 and old.const is None:
        c.refuse(f"[{', '.join(map(str, target))}] is empty, and whether its input is only the call decides")
    if old.const == 0:
        return c.b.scalar(0, x.dtype).broadcast_to(target)
    if old != new and not unknown:
        for atom in dict.fromkeys(a for e in target for a in atoms(e)):
            if isinstance(atom, FloorDiv):  # the elements can only agree when this division leaves no rest
                c.graph.demands.whole(atom.num, atom.den)
        # Unequal symbolic products may still agree at run time; reading would go wrong where they do not.
        target = agree(c, x, target)
        bind_elements(c, x.elements, product(target))
    return x.reshape(target)


def bind_elements(c: Ctx, old: IntExpr, new: IntExpr) -> None:
    """Both are numbers of elements of one tensor: the one symbol in them takes the value at which they agree.

    Of several symbols each takes the example's extent, when there is an example in which they agree.
    """
    if old == new:
        return
    names = [v[1:] for v in variables(old) | variables(new)]
    if len(names) == 1 and names[0] in c.b.symbols:
        agreeing = [n for n in range(1 << 12) if evaluate(old, {"#" + names[0]: n}) == evaluate(new, {"#" + names[0]: n})]
        if len(agreeing) == 1:
            c.graph.demands.narrow(names[0], agreeing[0], agreeing[0])
            return
    examples = c.graph.demands.extents
    here = {"#" + n: examples[n] for n in names if n in examples}
    if len(here) == len(names) and evaluate(old, here) == evaluate(new, here):
        for n in names:
            c.graph.demands.narrow(n, examples[n], examples[n])
        return
    c.refuse(f"its input has {old} elements and its target {new}, which are not known to agree")


def agree(c: Ctx, x: Val, target: list[IntExpr]) -> list[IntExpr]:
    """`target` with its first doubtful extent replaced by what the element count leaves for it."""
    for d, e in enumerate(target):
        rest = product([t for n, t in enumerate(target) if n != d])
        if e.const is None and rest.const != 0:
            exact = quotient(x.elements, rest)
            if product([exact, rest]) == x.elements:
                return [*target[:d], exact, *target[d + 1 :]]
    return target


def left_over(shape: Shape, given: Sequence[IntExpr]) -> IntExpr:
    """The extent that -1 stands for: what `given` leaves of `shape`. Equal extents cancel first, so that it stays simple."""
    whole, part = list(shape), []
    for e in given:
        if e in whole:
            whole.remove(e)
        else:
            part.append(e)
    return quotient(product(whole), product(part))


def quotient(whole: IntExpr, part: IntExpr) -> IntExpr:
    return whole if part.const == 1 else whole // part


@op("Flatten")
def flatten(c: Ctx) -> Result:
    x = c.x(0)
    axis = c.int_("axis", 1)
    if not -x.rank <= axis <= x.rank:
        c.bad(f"axis {axis} is out of range for rank {x.rank}")
    axis = axis + x.rank if axis < 0 else axis
    return x.reshape([product(x.shape[:axis]), product(x.shape[axis:])])


@op("Squeeze")
def squeeze(c: Ctx) -> Result:
    x = c.x(0)
    axes = c.axes(1)
    dims = c.axis_list(axes, x.rank) if axes is not None else [d for d, e in enumerate(x.shape) if e.const == 1]
    for d in dims:
        if x.shape[d].const not in (1, None):
            c.bad(f"dimension {d} has extent {x.shape[d]}, not 1")
        name = c.b.input_symbol(x.shape[d])
        if name is not None:
            c.graph.demands.narrow(name, 1, 1)
        elif x.shape[d].const is None and not c.graph.demands.facts.nonneg(1 - x.shape[d]):
            c.refuse(f"dimension {d} has extent {x.shape[d]}, which cannot be bound to 1")
    for e in x.shape:
        if axes is None and e.const is None:  # the rank is decided here: a call in which it is 1 is refused
            c.graph.demands.at_least(e, 2)
    return x.squeeze(*dims) if dims else x


@op("Unsqueeze")
def unsqueeze(c: Ctx) -> Result:
    x = c.x(0)
    axes = c.axes(1)
    if axes is None:
        c.bad("its axes are missing")
    for d in sorted(c.axis_list(axes, x.rank + len(axes))):
        x = x.unsqueeze(d)
    return x


@op("Transpose")
def transpose(c: Ctx) -> Result:
    x = c.x(0)
    perm = c.ints("perm", None)
    dims = list(range(x.rank))[::-1] if perm is None else c.axis_list(perm, x.rank)
    if len(dims) != x.rank:
        c.bad(f"perm {list(perm)} does not fit rank {x.rank}")
    return x.permute(dims)


@op("Expand")
def expand(c: Ctx) -> Result:
    x = c.x(0)
    target = tuple(c.extents(1, "its target shape"))
    return x.broadcast_to(broadcast(c, x.shape, target))


def broadcast(c: Ctx, *shapes: Shape) -> Shape:
    try:
        return c.b.broadcast(*shapes)
    except ValueError as e:
        c.bad(str(e))


@op("Tile")
def tile(c: Ctx) -> Result:
    x = c.x(0)
    repeats = c.extents(1, "its repeats")
    if len(repeats) != x.rank:
        c.bad(f"{len(repeats)} repeats for {x.rank} dimensions")
    shape = x.shape
    return x.view(
        [e * r for e, r in zip(shape, repeats, strict=True)],
        lambda *i: [j if r.const == 1 else j % e if e.const != 0 else j for j, e, r in zip(i, shape, repeats, strict=True)],
    )


# --- slices ----------------------------------------------------------------------------------------------------------


@op("Slice")
def slice_(c: Ctx) -> Result:
    x = c.x(0)
    if c.version < 10:
        starts, ends = ([int_expr(n) for n in c.ints(k)] for k in ("starts", "ends"))
        axes = c.ints("axes", tuple(range(len(starts))))
        steps = [1] * len(starts)
    else:
        starts, ends = c.extents(1, "its starts"), c.extents(2, "its ends")
        axes = tuple(int(a) for a in c.numbers(3, "its axes").ravel()) if c.has(3) else tuple(range(len(starts)))
        steps = [int(s) for s in c.numbers(4, "its steps").ravel()] if c.has(4) else [1] * len(starts)
    if not len(starts) == len(ends) == len(axes) == len(steps):
        c.bad("starts, ends, axes and steps differ in length")
    for start, end, d, step in zip(starts, ends, c.axis_list(axes, x.rank), steps, strict=True):
        if step == 0:
            c.bad("a step is 0")
        first, size = slice_range(c, start, end, step, x.shape[d])
        x = x.slice(d, first, size, step)
    return x


def clamp_index(c: Ctx, e: IntExpr, extent: IntExpr, low: int, high: IntExpr) -> IntExpr:
    """`e` counted from the front (negative: from the back), clamped to `low..high`."""
    if e.const is not None:
        n = e.const
        if n < 0:
            e = maximum(extent + n, low) if n > -(1 << 30) else int_expr(low)
        elif n >= 1 << 30:
            return high
        return e if e.const == 0 == low or e == high else minimum(e, high)
    if e == extent:
        return high
    match c.graph.demands.sign(e):
        case 1:
            return minimum(e, high)
        case -1:
            return maximum(extent + e, low)
        case _:
            # Of unknown sign: exactly as ONNX has it, the extent is added where it is negative.
            return minimum(maximum(e + extent * minimum(maximum(-e, 0), 1), low), high)


def slice_range(c: Ctx, start: IntExpr, end: IntExpr, step: int, extent: IntExpr) -> tuple[IntExpr, IntExpr]:
    """First index and number of elements of `start:end:step` over `extent`."""
    if step > 0:
        first, last = clamp_index(c, start, extent, 0, extent), clamp_index(c, end, extent, 0, extent)
        span = last - first
    else:
        first, last = clamp_index(c, start, extent, -1, extent - 1), clamp_index(c, end, extent, -1, extent - 1)
        span = first - last
    count = (span + (abs(step) - 1)) // abs(step)
    return first, count if count.const is not None and count.const >= 0 or _surely(count) else maximum(count, 0)


def _surely(e: IntExpr) -> bool:
    """Certainly not negative: only added non-negative terms."""
    return all(k >= 0 for _, k in e.terms)


@op("Split")
def split(c: Ctx) -> Result:
    x = c.x(0)
    axis = c.axis(c.int_("axis", 0), x.rank)
    sizes = c.extents(1, "its sizes") if c.has(1) else None
    if sizes is None and "split" in c.attrs:
        sizes = [int_expr(n) for n in c.ints("split")]
    if sizes is None:
        parts = c.int_("num_outputs", c.outputs)
        if parts != c.outputs:
            c.bad(f"num_outputs is {parts}, {c.outputs} outputs are named")
        each = (x.shape[axis] + (parts - 1)) // parts
        sizes = [each] * (parts - 1) + [x.shape[axis] - each * (parts - 1)]
    total = product([int_expr(1)]) * 0
    outs = []
    for n in sizes:
        outs.append(x.slice(axis, total, n))
        total = total + n
    if total.const is not None and x.shape[axis].const is not None and total != x.shape[axis]:
        c.bad(f"sizes add up to {total}, not to {x.shape[axis]}")
    return outs


# --- joining ---------------------------------------------------------------------------------------------------------


@op("Concat")
def concat(c: Ctx) -> Result:
    vals = [c.x(i) for i in range(len(c.ins)) if c.has(i)]
    same_dtype(c, *vals)
    return concat_vals(c, vals, c.axis(c.int_("axis"), vals[0].rank))


def concat_vals(c: Ctx, vals: Sequence[Val], axis: int) -> Val:
    """One tensor with `vals` side by side along `axis`."""
    if any(v.rank != vals[0].rank for v in vals):
        c.bad("operands differ in rank")
    shape = list(vals[0].shape)
    for v in vals[1:]:
        for d, (a, e) in enumerate(zip(shape, v.shape, strict=True)):
            if d != axis and a != e:
                if a.const is not None and e.const is not None:
                    c.bad(f"operands differ in dimension {d}: {a} and {e}")
                shape[d] = c.b.equate(a, e)
    live = [v for v in vals if v.shape[axis].const != 0]
    if len(live) <= 1:
        return (live or list(vals))[0]
    starts, total = [], int_expr(0)
    for v in live:
        starts.append(total)
        total = total + v.shape[axis]
    shape[axis] = total

    def element(*i: IntExpr) -> Expr:
        def piece(n: int) -> Expr:
            return live[n].at((*i[:axis], i[axis] - starts[n], *i[axis + 1 :]))

        cases = tuple((apply("lt", Index(i[axis]), Index(starts[n + 1])), piece(n)) for n in range(len(live) - 1))
        return Piecewise(cases, piece(len(live) - 1))

    return c.b.compute(c.hint, shape, element, live[0].dtype)


# --- padding ---------------------------------------------------------------------------------------------------------


@op("Pad")
def pad(c: Ctx) -> Result:
    x = c.x(0)
    mode = c.str_("mode", "constant")
    if c.version < 11:
        pads = [int_expr(n) for n in c.ints("pads")]
        fill: Val = c.b.scalar(c.float_("value", 0.0), x.dtype)
    else:
        pads = c.extents(1, "its pads")
        given = c.opt(2)
        fill = c.b.scalar(0, x.dtype) if given is None else given
    dims = list(range(x.rank))
    if c.has(3):
        dims = c.axis_list([int(a) for a in c.numbers(3, "its axes").ravel()], x.rank)
    if len(pads) != 2 * len(dims):
        c.bad(f"{len(pads)} pads for {len(dims)} dimensions")
    before, after = [int_expr(0)] * x.rank, [int_expr(0)] * x.rank
    for n, d in enumerate(dims):
        before[d], after[d] = pads[n], pads[n + len(dims)]
    if mode == "constant":
        value = fill.at((int_expr(0),) * fill.rank)
        return x.pad(before, after, value)
    return pad_by_index(c, x, before, after, mode)


def pad_by_index(c: Ctx, x: Val, before: Sequence[IntExpr], after: Sequence[IntExpr], mode: str) -> Val:
    """Padding whose elements are elements of `x`: edge, reflect, wrap."""
    shape = [e + a + b for e, a, b in zip(x.shape, before, after, strict=True)]

    def source(d: int, i: IntExpr) -> IntExpr:
        if before[d].const == 0 and after[d].const == 0:
            return i
        j, n = i - before[d], x.shape[d]
        if mode == "edge":
            return minimum(maximum(j, 0), n - 1)
        if mode == "wrap":
            return j % n
        if mode == "reflect":
            return reflected(c, j, n, before[d], after[d])
        c.bad(f"mode {mode!r} is unknown")

    return x.view(shape, lambda *i: [source(d, j) for d, j in enumerate(i)])


def reflected(c: Ctx, j: IntExpr, n: IntExpr, before: IntExpr, after: IntExpr) -> IntExpr:
    """`j` mirrored at 0 and n - 1 until it is inside. Bounds that hold by themselves are written out: every read is proven."""
    if n.const == 1:
        return int_expr(0)
    reach = max(before.const, after.const) if before.const is not None and after.const is not None else None
    if reach is not None and (n.const is not None or c.b.input_symbol(n) is not None) and (n.const or reach + 1) > reach:
        # One mirror is enough; a symbolic extent is then at least what that takes.
        c.graph.demands.at_least(n, reach + 1)
        folded = maximum(j, -j)
        return maximum(minimum(folded, (n - 1) * 2 - folded, n - 1), 0)
    period = maximum((n - 1) * 2, 1)
    folded = j % period
    return maximum(minimum(folded, period - folded, n - 1), 0)


# --- space and depth -------------------------------------------------------------------------------------------------


@op("DepthToSpace")
def depth_to_space(c: Ctx) -> Result:
    x = c.x(0)
    size, mode = c.int_("blocksize"), c.str_("mode", "DCR")
    n, ch, h, w = _four(c, x)
    if size < 1 or (ch.const is not None and ch.const % (size * size)):
        c.bad(f"{ch} channels cannot be split into blocks of {size} x {size}")
    deep = ch // (size * size)
    if mode == "DCR":
        y = x.reshape([n, size, size, deep, h, w]).permute([0, 3, 4, 1, 5, 2])
    else:
        y = x.reshape([n, deep, size, size, h, w]).permute([0, 1, 4, 2, 5, 3])
    return y.reshape([n, deep, h * size, w * size])


@op("SpaceToDepth")
def space_to_depth(c: Ctx) -> Result:
    x = c.x(0)
    size = c.int_("blocksize")
    n, ch, h, w = _four(c, x)
    if size < 1 or any(e.const is not None and e.const % size for e in (h, w)):
        c.bad(f"{h} x {w} cannot be split into blocks of {size} x {size}")
    if c.str_("mode", "DCR") == "CRD":
        y = x.reshape([n, ch, h // size, size, w // size, size]).permute([0, 1, 3, 5, 2, 4])
    else:
        y = x.reshape([n, ch, h // size, size, w // size, size]).permute([0, 3, 5, 1, 2, 4])
    return y.reshape([n, ch * size * size, h // size, w // size])


def _four(c: Ctx, x: Val) -> tuple[IntExpr, IntExpr, IntExpr, IntExpr]:
    if x.rank != 4:
        c.bad(f"its input has {x.rank} dimensions, not 4")
    return x.shape[0], x.shape[1], x.shape[2], x.shape[3]


@op("Trilu")
def trilu(c: Ctx) -> Result:
    x = c.x(0)
    upper = c.flag("upper", 1)
    k: Expr = const(0, I64)
    if c.has(1):
        given = c.tensor(1)
        k = given.val(c.b).at((int_expr(0),) * len(given.shape))
    if x.rank < 2:
        c.bad("its input has fewer than 2 dimensions")

    def element(*i: IntExpr) -> Expr:
        kept = apply("ge" if upper else "le", Index(i[-1] - i[-2]), k)
        return apply("select", kept, x.at(i), const(0, x.dtype))

    return c.b.compute(c.hint, x.shape, element, x.dtype)


@op("ReverseSequence")
def reverse_sequence(c: Ctx) -> Result:
    x, lengths = c.x(0), c.x(1)
    batch, time = c.axis(c.int_("batch_axis", 1), x.rank), c.axis(c.int_("time_axis", 0), x.rank)
    if batch == time:
        c.bad(f"axis {batch} is both the batch and the time")
    if lengths.rank != 1:
        c.bad(f"its lengths have {lengths.rank} dimensions, not 1")

    def element(*i: IntExpr) -> Expr:
        n = index_value(_as_i64(lengths(i[batch])))
        inside = apply("lt", Index(i[time]), Index(n))
        turned = x.at((*i[:time], n - 1 - i[time], *i[time + 1 :]))
        return Piecewise(((inside, turned),), x.at(i))

    return c.b.compute(c.hint, x.shape, element, x.dtype)


def _as_i64(e: Expr) -> Expr:
    return e if isinstance(e, (Index, Const)) and getattr(e, "dtype", I64) == I64 else e


__all__ = ["broadcast", "concat_vals", "pad_by_index", "reshape_to", "slice_range"]
