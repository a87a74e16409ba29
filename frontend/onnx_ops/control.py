"""If, Loop and Scan. What is known at import is decided there; the rest becomes control of the program."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from typing import Any

import numpy as np

from dlc.errors import DlcError
from dlc.frontend.errors import UnsupportedOperator
from dlc.frontend.onnx_errors import NeedsStructure, NeedsValue
from dlc.frontend.onnx_graph import INSIDE_LOOP, deps_of
from dlc.frontend.onnx_ops.registry import Ctx, Result, op, shape_text
from dlc.frontend.onnx_ops.shapes import concat_vals
from dlc.frontend.onnx_value import NOTHING, Sequence, Tensor, Value
from dlc.ir.dtype import BOOL, I64
from dlc.ir.einsum import Einsum, Scan
from dlc.ir.expr import const
from dlc.ir.extent import IntExpr, int_expr
from dlc.ir.view import Val

MAX_UNROLLED = 4096


class _Retry(Exception):
    """The form tried does not fit; `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def graph_of(c: Ctx, name: str) -> Any:
    graph = c.attrs.get(name)
    if graph is None or not hasattr(graph, "node"):
        c.bad(f"its graph '{name}' is missing")
    return graph


def only_tensors(c: Ctx, values: Seq[Value], what: str) -> list[Tensor]:
    found = [v for v in values if isinstance(v, Tensor)]
    if len(found) != len(values):
        c.refuse(f"{what} is a sequence or an optional whose structure depends on run-time values")
    return found


# --- If --------------------------------------------------------------------------------------------------------------


@op("If")
def if_(c: Ctx) -> Result | Seq[Result]:
    cond = c.tensor(0)
    branches = [graph_of(c, "then_branch"), graph_of(c, "else_branch")]
    if cond.numbers is not None:
        return c.graph.run_graph(branches[0 if bool(cond.numbers.ravel()[0]) else 1], {}, c.scope)
    depth = len(c.b._blocks)
    try:
        return runtime_if(c, cond, branches)
    except _Retry as e:
        # The branches do not fit together: which one is taken must be known.
        del c.b._blocks[depth:]
        what = f"which branch is taken ({e.reason})"
        if cond.test is not None:
            taken = branches[0 if c.graph.demands.decide(cond.test, what, c.loc) else 1]
            return c.graph.run_graph(taken, {}, c.scope)
        c.graph.need_inputs(cond.deps, what, c)
        c.refuse(what)


def runtime_if(c: Ctx, cond: Tensor, branches: Seq[Any]) -> Seq[Result]:
    """Both branches, as regions of the program; raises `_Retry` when their results have different types."""
    deps = cond.deps
    first: list[Val] = []

    def arm(n: int) -> Callable[[], Seq[Val]]:
        def build() -> Seq[Val]:
            nonlocal deps
            try:
                outs = c.graph.run_graph(branches[n], {}, c.scope)
            except (NeedsValue, NeedsStructure):
                raise
            except DlcError as e:
                if cond.test is None and not cond.deps:
                    raise
                raise _Retry(f"a branch fails: {e.message}") from e
            if not all(isinstance(v, Tensor) for v in outs):
                raise _Retry("a branch gives a sequence")
            deps |= deps_of(outs)
            vals = [t.val(c.b) for t in only_tensors(c, outs, "an output")]
            if n == 0:
                first.extend(vals)
                return vals
            if len(first) != len(vals) or any(a.dtype != v.dtype for a, v in zip(first, vals, strict=True)):
                c.bad("its branches give different types")
            if not same_shapes(c, first, vals):
                shapes = "; ".join(f"{shape_text(a.shape)} or {shape_text(v.shape)}" for a, v in zip(first, vals, strict=True))
                raise _Retry(f"its shapes are {shapes}")
            return vals

        return build

    outs = c.b.if_(c.x(0), arm(0), arm(1), c.hint)
    return [Tensor(v, deps=deps) for v in outs]


def same_shapes(c: Ctx, a: Seq[Val], b: Seq[Val]) -> bool:
    """Whether shapes agree; extents of inputs that meet here are made to."""
    for x, y in zip(a, b, strict=True):
        if x.rank != y.rank:
            return False
        for e, f in zip(x.shape, y.shape, strict=True):
            if e != f and (e.const is not None and f.const is not None or c.b.equate(e, f) != c.b.equate(f, e)):
                return False
    return True


# --- Loop ------------------------------------------------------------------------------------------------------------


@op("Loop")
def loop(c: Ctx) -> Result | Seq[Result]:
    body = graph_of(c, "body")
    trips = c.tensor(0) if c.has(0) else None
    cond = c.tensor(1) if c.has(1) else None
    carried = [c.value(i) for i in range(2, len(c.ins))]
    if len(body.input) != 2 + len(carried) or len(body.output) < 1 + len(carried):
        c.bad(f"its body has {len(body.input)} inputs and {len(body.output)} outputs for {len(carried)} carried values")
    if cond is not None and cond.numbers is not None and not bool(cond.numbers.ravel()[0]):
        trips = Tensor(static=np.array(0, np.int64))
    reason = "it carries a sequence or an optional"
    if all(isinstance(v, Tensor) for v in carried):
        depth = len(c.b._blocks)
        try:
            return runtime_loop(c, body, trips, cond, [v for v in carried if isinstance(v, Tensor)])
        except _Retry as e:
            reason = e.reason
        except NeedsValue:
            raise
        except UnsupportedOperator as e:
            # The body needs what only a step's own number gives: unrolling may know it.
            reason = f"{e.fields.get('op')}: {e.fields.get('reason')}"
        del c.b._blocks[depth:]
    return unrolled_loop(c, body, trips, cond, list(carried), reason)


def loop_bindings(body: Any, index: Value, cond: Value, carried: Seq[Value]) -> dict[str, Value | None]:
    names = [i.name for i in body.input]
    return dict(zip(names, [index, cond, *carried], strict=True))


def unrolled_loop(
    c: Ctx, body: Any, trips: Tensor | None, cond: Tensor | None, carried: list[Value], reason: str
) -> Seq[Result]:
    """The body once per step; the number of steps must be known."""
    limit = MAX_UNROLLED
    if trips is not None:
        limit = int(c.graph.require_numbers(trips, f"the number of steps ({reason})", c).ravel()[0])
    if limit > MAX_UNROLLED:
        c.refuse(f"{reason}, and {limit} steps are too many to unroll")
    go: Tensor = Tensor(static=np.array(True)) if cond is None else cond
    collected: list[list[Tensor]] = [[] for _ in body.output[1 + len(carried) :]]
    done = 0
    while done < limit and bool(c.graph.require_numbers(go, f"whether the loop goes on ({reason})", c).ravel()[0]):
        outs = c.graph.run_graph(body, loop_bindings(body, Tensor(static=np.array(done, np.int64)), go, carried), c.scope)
        go = only_tensors(c, outs[:1], "its condition")[0]
        carried = list(outs[1 : 1 + len(carried)])
        for kept, v in zip(collected, only_tensors(c, outs[1 + len(carried) :], "a scan output"), strict=True):
            kept.append(v)
        done += 1
        if done == MAX_UNROLLED:
            c.refuse(f"{reason}, and its number of steps is not bounded")
    stacked: list[Result] = []
    for n, items in enumerate(collected):
        if not items:
            stacked.append(empty_scan_output(c, body.output[1 + len(carried) + n]))
            continue
        parts = [v.val(c.b).unsqueeze(0) for v in items]
        stacked.append(Tensor(concat_vals(c, parts, 0), deps=deps_of(items)))
    return [*carried, *stacked]


def empty_scan_output(c: Ctx, info: Any) -> Tensor:
    from dlc.frontend.onnx_load import element_type

    type_ = info.type.tensor_type
    shape = [d.dim_value for d in type_.shape.dim]
    return Tensor(static=np.zeros([0, *shape], element_type(type_.elem_type, c.loc, c.op).numpy))


def runtime_loop(c: Ctx, body: Any, trips: Tensor | None, cond: Tensor | None, carried: list[Tensor]) -> Seq[Result]:
    """A loop of the program; raises `_Retry` when carried types change or the steps are few and known."""
    deps = deps_of([*carried, trips, cond]) | INSIDE_LOOP
    always = cond is None or cond.numbers is not None
    steady = always and keeps_going(c, body, carried, deps)
    limit = None if trips is None else trips.numbers
    count = None if limit is None else int(limit.ravel()[0])
    if count == 0 or (trips is None and steady):
        raise _Retry("it makes no step" if count == 0 else "it never ends")
    outs_deps = NOTHING

    def run(index: Val, go: Value, states: Seq[Val]) -> list[Value]:
        nonlocal outs_deps
        bound = [Tensor(s, deps=deps) for s in states]
        outs = c.graph.run_graph(body, loop_bindings(body, Tensor(index, deps=INSIDE_LOOP), go, bound), c.scope)
        if not all(isinstance(v, Tensor) for v in outs):
            raise _Retry("it collects sequences")
        outs_deps |= deps_of(outs)
        return outs

    def parts(outs: list[Value], states: Seq[Val]) -> tuple[Val, list[Val], list[Val]]:
        vals = [v.val(c.b) for v in only_tensors(c, outs, "an output")]
        nexts = vals[1 : 1 + len(states)]
        for old, new in zip(states, nexts, strict=True):
            if old.dtype != new.dtype or not same_shapes(c, [old], [new]):
                raise _Retry(f"a carried value changes from {old.dtype}{list(old.shape)} to {new.dtype}{list(new.shape)}")
        return vals[0], nexts, vals[1 + len(states) :]

    inits = [t.val(c.b) for t in carried]
    true = Tensor(static=np.array(True))
    if steady and trips is not None and trips.static is not None:
        steps: IntExpr = int_expr(count) if count is not None else int_expr(trips.static.ravel()[0])
        finals, stacks = steps_of(c, steps, inits, lambda t, states: parts(run(c.b.extent_value(t), true, states), states)[1:])
    else:
        def again(index: Val, states: Seq[Val]) -> tuple[Val | None, Seq[Val], Seq[Val]]:
            go = true if steady else Tensor(c.b.scalar(True, BOOL).view((), lambda: ()), deps=INSIDE_LOOP)
            flag, nexts, collected = parts(run(index, go, states), states)
            return (None if steady else scalar(flag)), nexts, collected

        first = None if steady else (c.b.scalar(True, BOOL) if cond is None else scalar(cond.val(c.b)))
        top = None if trips is None else scalar(c.b.cast(trips.val(c.b), I64))
        finals, stacks = c.b.loop(c.hint, inits, again, limit=top, cond=first, bound=count)
    result_deps = (outs_deps | deps) - INSIDE_LOOP
    return [Tensor(v, deps=result_deps) for v in (*finals, *stacks)]


def scalar(v: Val) -> Val:
    return v if v.rank == 0 else v.view((), lambda: [0] * v.rank)


def keeps_going(c: Ctx, body: Any, carried: Seq[Tensor], deps: frozenset[str]) -> bool:
    """Whether the body's condition is true whatever happens; found by importing it once and throwing that away."""
    c.b._blocks.append([])
    try:
        states = [Tensor(Val(t.dtype, t.shape, t.val(c.b).at), deps=deps) for t in carried]
        index = Tensor(c.b.extent_value(0).view((), lambda: ()), deps=INSIDE_LOOP)
        outs = c.graph.run_graph(body, loop_bindings(body, index, Tensor(static=np.array(True)), states), c.scope)
    finally:
        c.b._blocks.pop()
    numbers = outs[0].numbers if isinstance(outs[0], Tensor) else None
    return numbers is not None and bool(numbers.ravel()[0])


def steps_of(
    c: Ctx,
    steps: IntExpr,
    inits: Seq[Val],
    body: Callable[[IntExpr, Seq[Val]], tuple[Seq[Val], Seq[Val]]],
) -> tuple[Seq[Val], Seq[Val]]:
    """A scan where the body is Einsums alone, else a loop over a known number of steps."""
    depth = len(c.b._blocks)

    def checked(t: IntExpr, states: tuple[Val, ...]) -> tuple[Seq[Val], Seq[Val]]:
        result = body(t, states)
        if not all(isinstance(s, (Einsum, Scan)) for s in c.b._blocks[-1]):
            raise _NotEinsums
        return result

    try:
        return c.b.scan(c.hint, steps, inits, checked)
    except _NotEinsums:
        del c.b._blocks[depth:]

    def stepwise(index: Val, states: Seq[Val]) -> tuple[None, Seq[Val], Seq[Val]]:
        from dlc.ir.expr import index_value

        nexts, stacks = body(index_value(index()), states)
        return None, nexts, stacks

    finals, stacks = c.b.loop(c.hint, inits, stepwise, limit=c.b.extent_value(steps), bound=steps.const)
    # The loop binds the number of steps done; it is `steps`, so say so in the shapes, with a guard that nobody meets.
    rest = [0] * max((v.rank - 1 for v in stacks), default=0)
    return finals, [
        v.pad([0, *rest[: v.rank - 1]], [steps - v.shape[0], *rest[: v.rank - 1]], const(0, v.dtype)) for v in stacks
    ]


class _NotEinsums(Exception):
    """A scan's body has statements that are no Einsums."""


# --- Scan ------------------------------------------------------------------------------------------------------------


@op("Scan")
def scan(c: Ctx) -> Result | Seq[Result]:
    body = graph_of(c, "body")
    count = c.int_("num_scan_inputs")
    if c.version < 9:
        return batched_scan(c, body, count)
    states = [c.tensor(i) for i in range(len(c.ins) - count)]
    inputs = [c.tensor(i) for i in range(len(c.ins) - count, len(c.ins))]
    axes = c.ints("scan_input_axes", (0,) * count)
    turned = c.ints("scan_input_directions", (0,) * count)
    sources = [t.val(c.b) for t in inputs]
    places = [c.axis(a, s.rank) for a, s in zip(axes, sources, strict=True)]
    outs = len(body.output) - len(states)
    finals, stacks = one_scan(c, body, states, sources, places, turned, deps_of([*states, *inputs]))
    out_axes = c.ints("scan_output_axes", (0,) * outs)
    out_turned = c.ints("scan_output_directions", (0,) * outs)
    shaped = []
    for y, axis, turn in zip(stacks, out_axes, out_turned, strict=True):
        y = y.flip(0) if turn else y
        a = c.axis(axis, y.rank)
        shaped.append(y.permute([*range(1, a + 1), 0, *range(a + 1, y.rank)]))
    return [*finals, *shaped]


def one_scan(
    c: Ctx,
    body: Any,
    states: Seq[Tensor],
    sources: Seq[Val],
    places: Seq[int],
    turned: Seq[int],
    deps: frozenset[str],
) -> tuple[Seq[Val], Seq[Val]]:
    if not sources or len(body.input) != len(states) + len(sources):
        c.bad(f"its body has {len(body.input)} inputs for {len(states)} states and {len(sources)} scanned values")
    extents = [s.shape[p] for s, p in zip(sources, places, strict=True)]
    steps = next((e for e in extents if e.const is not None), extents[0])
    if any(e.const is not None and e != steps for e in extents):
        c.bad(f"its scanned values have {', '.join(map(str, extents))} steps")
    inner = deps | INSIDE_LOOP

    def step(t: IntExpr, current: Seq[Val]) -> tuple[Seq[Val], Seq[Val]]:
        slices = [s.select(p, steps - 1 - t if turn else t) for s, p, turn in zip(sources, places, turned, strict=True)]
        bound = [Tensor(v, deps=inner) for v in (*current, *slices)]
        names = [i.name for i in body.input]
        outs = c.graph.run_graph(body, dict(zip(names, bound, strict=True)), c.scope)
        vals = [v.val(c.b) for v in only_tensors(c, outs, "an output")]
        nexts = vals[: len(current)]
        for old, new in zip(current, nexts, strict=True):
            if old.dtype != new.dtype or not same_shapes(c, [old], [new]):
                c.bad(f"a state changes from {old.dtype}{list(old.shape)} to {new.dtype}{list(new.shape)}")
        return nexts, vals[len(current) :]

    return steps_of(c, steps, [t.val(c.b) for t in states], step)


def batched_scan(c: Ctx, body: Any, count: int) -> Seq[Result]:
    """Version 8: every value has a leading batch dimension."""
    if c.has(0):
        c.refuse("sequence lengths have no native form")
    states = [c.tensor(i) for i in range(1, len(c.ins) - count)]
    inputs = [c.x(i) for i in range(len(c.ins) - count, len(c.ins))]
    turned = c.ints("directions", (0,) * count)
    (batch,) = c.known([inputs[0].shape[0]], "its batch")
    c.limit(batch, 256, "its batch")
    deps = deps_of(c.ins)
    rows = []
    for n in range(batch):
        start = [Tensor(t.val(c.b).select(0, n), deps=deps) for t in states]
        finals, stacks = one_scan(c, body, start, [x.select(0, n) for x in inputs], [0] * count, turned, deps)
        rows.append([*finals, *stacks])
    return [concat_vals(c, [row[k].unsqueeze(0) for row in rows], 0) for k in range(len(rows[0]))]


@op("SequenceMap")
def sequence_map(c: Ctx) -> Result | Seq[Result]:
    body = graph_of(c, "body")
    first = c.sequence(0)
    others = [c.value(i) for i in range(1, len(c.ins))]
    if len(body.input) != 1 + len(others) or len(body.output) != c.outputs:
        c.bad(f"its body has {len(body.input)} inputs and {len(body.output)} outputs")
    names = [i.name for i in body.input]
    columns: list[list[Value]] = [[] for _ in body.output]
    for n, item in enumerate(first.items):
        row: list[Value] = [item]
        for v in others:
            if isinstance(v, Sequence) and n >= len(v.items):
                c.bad(f"its sequences have {len(first.items)} and {len(v.items)} elements")
            row.append(v.items[n] if isinstance(v, Sequence) else v)
        for column, out in zip(columns, c.graph.run_graph(body, dict(zip(names, row, strict=True)), c.scope), strict=True):
            column.append(out)
    return [Sequence(tuple(column)) for column in columns]
