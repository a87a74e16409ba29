"""ATen's LSTM, GRU and RNN: one contraction for all inputs of a layer, then a scan over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dlc.frontend.torch_context import Ctx, add, mul, op, sub, wide_type
from dlc.frontend.torch_contract import product
from dlc.frontend.torch_errors import TrainingMode
from dlc.frontend.torch_views import concat
from dlc.ir.dtype import DType
from dlc.ir.expr import Expr, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.view import Val


@dataclass(frozen=True)
class Layer:
    """Weights of one direction of one layer: T[gates * H, inputs], T[gates * H, H or projected], biases or None."""

    w_ih: Val
    w_hh: Val
    b_ih: Val | None = None
    b_hh: Val | None = None
    w_hr: Val | None = None


Step = Callable[[Val, Val, "tuple[Val, ...]"], "tuple[Val, ...]"]
"""(inputs T[B, gates*H], hidden product T[B, gates*H], states) to the next states, the output first."""


def _layers(params: Sequence[Val], biases: bool, projected: bool) -> list[Layer]:
    size = 2 + 2 * biases + projected
    out = []
    for n in range(0, len(params), size):
        group = list(params[n : n + size])
        b = group[2:4] if biases else [None, None]
        out.append(Layer(group[0], group[1], b[0], b[1], group[-1] if projected else None))
    return out


def _direction(c: Ctx, x: Val, states: tuple[Val, ...], layer: Layer, step: Step, reverse: bool, hint: str,
               fold_hidden_bias: bool) -> tuple[Val, tuple[Val, ...]]:  # fmt: skip
    """One direction of one layer over x T[T, B, I]: outputs T[T, B, H] and the last states."""
    t = x.dtype
    length = x.shape[0]
    gates = product(c, x, layer.w_ih.transpose(0, 1), t, f"{hint}_input")
    bias = [b for b in (layer.b_ih, layer.b_hh if fold_hidden_bias else None) if b is not None]
    if bias:
        gates = c.b.map(f"{hint}_gates", lambda e, *bs: _sum([e, *bs]), gates, *(c.cast(b, t) for b in bias), dtype=t)

    def body(k: IntExpr, carried: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        at = length - 1 - k if reverse else k
        hidden = product(c, carried[0], layer.w_hh.transpose(0, 1), t, f"{hint}_hidden")
        nexts = step(gates.select(0, at), hidden, carried)
        if layer.w_hr is not None:
            nexts = (product(c, nexts[0], layer.w_hr.transpose(0, 1), t, f"{hint}_projected"), *nexts[1:])
        return nexts, [nexts[0]]

    finals, (stacked,) = c.b.scan(hint, length, states, body)
    return (stacked.flip(0) if reverse else stacked), finals


def _sum(terms: Sequence[Expr]) -> Expr:
    e = terms[0]
    for term in terms[1:]:
        e = add(e, term)
    return e


def recurrent(c: Ctx, x: Val, states: Sequence[Val], params: Sequence[Val], has_biases: bool, num_layers: int, dropout: float,
              train: bool, bidirectional: bool, batch_first: bool, make_step: Callable[[Ctx, Layer, DType], Step],
              fold_hidden_bias: bool, projected: bool = False) -> list[Val]:  # fmt: skip
    """All layers: the outputs, then every state T[layers * directions, B, H]."""
    if train and dropout:
        raise TrainingMode(c.loc, op=c.target)
    out_type = c.dtype
    t = wide_type(out_type)
    flat = x.rank == 2
    if flat:  # no batch: [T, I]
        x = x.unsqueeze(0 if batch_first else 1)
        states = [s.unsqueeze(1) for s in states]
    y = c.cast(x.transpose(0, 1) if batch_first else x, t)
    layers = _layers([c.cast(p, t) for p in params], has_biases, projected)
    ways = 2 if bidirectional else 1
    lasts: list[list[Val]] = [[] for _ in states]
    for n in range(num_layers):
        outputs = []
        for way in range(ways):
            layer = layers[n * ways + way]
            start = tuple(c.cast(s.select(0, n * ways + way), t) for s in states)
            hint = f"{c.hint}_{n}{'r' if way else ''}"
            step = make_step(c, layer, t)
            out, final = _direction(c, y, start, layer, step, way == 1, hint, fold_hidden_bias)
            outputs.append(out)
            for collected, last in zip(lasts, final, strict=True):
                collected.append(last.unsqueeze(0))
        y = concat(c, outputs, 2, f"{c.hint}_{n}_both") if ways == 2 else outputs[0]
    result = y.transpose(0, 1) if batch_first else y
    results = [result.squeeze(0 if batch_first else 1) if flat else result]
    for collected in lasts:
        s = concat(c, collected, 0, f"{c.hint}_state") if len(collected) > 1 else collected[0]
        results.append(s.squeeze(1) if flat else s)
    return [c.cast(r, out_type) for r in results]


def _gate(v: Val, n: int, h: IntExpr) -> Val:
    """The n-th gate of T[B, gates * H]."""
    return v.slice(1, n * h, h)


def lstm_step(c: Ctx, layer: Layer, t: DType) -> Step:
    """Gates in ATen's order: input, forget, cell, output."""
    h = layer.w_ih.shape[0] // 4

    def step(gates: Val, hidden: Val, states: tuple[Val, ...]) -> tuple[Val, ...]:
        parts = [v for n in range(4) for v in (_gate(gates, n, h), _gate(hidden, n, h))]

        def cell(i: Expr, i2: Expr, f: Expr, f2: Expr, g: Expr, g2: Expr, s: Expr) -> Expr:
            keep = mul(apply("sigmoid", add(f, f2)), s)
            return add(keep, mul(apply("sigmoid", add(i, i2)), apply("tanh", add(g, g2))))

        new = c.b.map(f"{c.hint}_cell", cell, *parts[:6], states[1], dtype=t)
        out = c.b.map(
            f"{c.hint}_out",
            lambda o, o2, s: mul(apply("sigmoid", add(o, o2)), apply("tanh", s)),
            *parts[6:],
            new,
            dtype=t,
        )
        return out, new

    return step


def gru_step(c: Ctx, layer: Layer, t: DType) -> Step:
    """Gates in ATen's order: reset, update, new; the new gate's hidden bias is inside the reset."""
    h = layer.w_ih.shape[0] // 3
    zero = c.b.scalar(0, t)
    bias = layer.b_hh if layer.b_hh is not None else zero.broadcast_to([3 * h])

    def step(gates: Val, hidden: Val, states: tuple[Val, ...]) -> tuple[Val, ...]:
        rows = bias.unsqueeze(0)
        args = [v for n in range(3) for v in (_gate(gates, n, h), _gate(hidden, n, h), _gate(rows, n, h))]

        def new(r: Expr, r2: Expr, rb: Expr, z: Expr, z2: Expr, zb: Expr, n: Expr, n2: Expr, nb: Expr, s: Expr) -> Expr:
            reset = apply("sigmoid", add(r, add(r2, rb)))
            update = apply("sigmoid", add(z, add(z2, zb)))
            fresh = apply("tanh", add(n, mul(reset, add(n2, nb))))
            return add(fresh, mul(update, sub(s, fresh)))

        return (c.b.map(f"{c.hint}_out", new, *args, states[0], dtype=t),)

    return step


def _rnn_step(name: str) -> Callable[[Ctx, Layer, DType], Step]:
    def make(c: Ctx, layer: Layer, t: DType) -> Step:
        def act(e: Expr) -> Expr:
            return apply("tanh", e) if name == "tanh" else apply("max", e, const(0, t))

        def step(gates: Val, hidden: Val, states: tuple[Val, ...]) -> tuple[Val, ...]:
            return (c.b.map(f"{c.hint}_out", lambda a, b: act(add(a, b)), gates, hidden, dtype=t),)

        return step

    return make


@op("lstm.input")
def lstm(c: Ctx, x: Val, hx: Sequence[Val], params: Sequence[Val], has_biases: bool, num_layers: int, dropout: float, train: bool,
         bidirectional: bool, batch_first: bool) -> list[Val]:  # fmt: skip
    # With a projection the two states differ in width, and each direction has a fifth (third) weight.
    ways = 2 if bidirectional else 1
    projected = len(params) // (num_layers * ways) == 3 + 2 * has_biases
    return recurrent(
        c, x, hx, params, has_biases, num_layers, dropout, train, bidirectional, batch_first, lstm_step, True, projected
    )


@op("gru.input")
def gru(c: Ctx, x: Val, hx: Val, params: Sequence[Val], has_biases: bool, num_layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool) -> list[Val]:  # fmt: skip
    return recurrent(
        c, x, [hx], params, has_biases, num_layers, dropout, train, bidirectional, batch_first, gru_step, False
    )


@op("rnn_tanh.input", "rnn_relu.input")
def rnn(c: Ctx, x: Val, hx: Val, params: Sequence[Val], has_biases: bool, num_layers: int, dropout: float, train: bool,
        bidirectional: bool, batch_first: bool) -> list[Val]:  # fmt: skip
    step = _rnn_step("tanh" if "tanh" in c.target else "relu")
    return recurrent(c, x, [hx], params, has_biases, num_layers, dropout, train, bidirectional, batch_first, step, True)


@op("lstm.data", "gru.data", "rnn_tanh.data", "rnn_relu.data", "_pack_padded_sequence", "_pad_packed_sequence")
def packed(c: Ctx, *_: Any, **__: Any) -> Val:
    raise c.unsupported("packed sequences have no fixed shape; pass the padded batch instead")


def _cell_inputs(c: Ctx, x: Val, h: Val, layer: Layer, t: DType, fold_hidden_bias: bool) -> tuple[Val, Val, bool]:
    flat = x.rank == 1
    x, h = (v.unsqueeze(0) if flat else v for v in (x, h))
    gates = product(c, c.cast(x, t), layer.w_ih.transpose(0, 1), t, f"{c.hint}_input")
    bias = [b for b in (layer.b_ih, layer.b_hh if fold_hidden_bias else None) if b is not None]
    if bias:
        gates = c.b.map(f"{c.hint}_gates", lambda e, *bs: _sum([e, *bs]), gates, *bias, dtype=t)
    return gates, product(c, c.cast(h, t), layer.w_hh.transpose(0, 1), t, f"{c.hint}_hidden"), flat


@op("lstm_cell")
def lstm_cell(
    c: Ctx, x: Val, hx: Sequence[Val], w_ih: Val, w_hh: Val, b_ih: Val | None = None, b_hh: Val | None = None
) -> list[Val]:
    t = c.dtype
    layer = Layer(w_ih, w_hh, b_ih, b_hh)
    gates, hidden, flat = _cell_inputs(c, x, hx[0], layer, t, True)
    s = hx[1].unsqueeze(0) if flat else hx[1]
    return [v.squeeze(0) if flat else v for v in lstm_step(c, layer, t)(gates, hidden, (hx[0], s))]


@op("gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(c: Ctx, x: Val, hx: Val, w_ih: Val, w_hh: Val, b_ih: Val | None = None, b_hh: Val | None = None) -> Val:
    t = c.dtype
    layer = Layer(w_ih, w_hh, b_ih, b_hh)
    is_gru = "gru" in c.target
    gates, hidden, flat = _cell_inputs(c, x, hx, layer, t, not is_gru)
    make = gru_step if is_gru else _rnn_step("tanh" if "tanh" in c.target else "relu")
    (y,) = make(c, layer, t)(gates, hidden, (hx.unsqueeze(0) if flat else hx,))
    return y.squeeze(0) if flat else y
