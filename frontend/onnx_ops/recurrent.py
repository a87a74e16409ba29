"""LSTM, GRU and RNN: the products with the inputs for all steps at once, then a scan over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dlc.frontend.onnx_ops.pointwise import softplus_of
from dlc.frontend.onnx_ops.registry import Ctx, Result, op, same_dtype
from dlc.frontend.onnx_ops.shapes import concat_vals
from dlc.ir.dtype import I64, DType
from dlc.ir.expr import Cast, Expr, Index, apply, const, index_value
from dlc.ir.extent import IntExpr
from dlc.ir.view import Val

Activation = Callable[[Expr], Expr]


def activation(c: Ctx, name: str, alpha: float | None, beta: float | None, t: DType) -> Activation:
    """One of ONNX's recurrent activations."""

    def k(v: float | None, default: float) -> Expr:
        return const(default if v is None else v, t)

    def below(a: Expr, then: Expr, otherwise: Expr) -> Expr:
        return apply("select", apply("lt", a, const(0, t)), then, otherwise)

    table: dict[str, Activation] = {
        "sigmoid": lambda a: apply("sigmoid", a),
        "tanh": lambda a: apply("tanh", a),
        "relu": lambda a: apply("max", a, const(0, t)),
        "affine": lambda a: apply("add", apply("mul", k(alpha, 1.0), a), k(beta, 0.0)),
        "leakyrelu": lambda a: below(a, apply("mul", k(alpha, 0.01), a), a),
        "thresholdedrelu": lambda a: apply("select", apply("ge", a, k(alpha, 1.0)), a, const(0, t)),
        "scaledtanh": lambda a: apply("mul", k(alpha, 1.0), apply("tanh", apply("mul", k(beta, 1.0), a))),
        "hardsigmoid": lambda a: apply(
            "min", apply("max", apply("add", apply("mul", k(alpha, 0.2), a), k(beta, 0.5)), const(0, t)), const(1, t)
        ),
        "elu": lambda a: below(a, apply("mul", k(alpha, 1.0), apply("expm1", a)), a),
        "softsign": lambda a: apply("div", a, apply("add", const(1, t), apply("abs", a))),
        "softplus": lambda a: softplus_of(t, a),
    }
    found = table.get(name.lower())
    if found is None:
        c.refuse(f"activation {name!r} is not known")
    return found


@dataclass(frozen=True, slots=True)
class Cell:
    """One direction's operands. x: [T, B, I]; w: [gates*H, I]; r: [gates*H, H]; bias: [2*gates*H] or None."""

    x: Val
    w: Val
    r: Val
    bias: Val | None
    lengths: Val | None
    reverse: bool
    activations: tuple[Activation, ...]
    clip: float | None
    hidden: IntExpr
    hint: str

    @property
    def steps(self) -> IntExpr:
        return self.x.shape[0]

    @property
    def batch(self) -> IntExpr:
        return self.x.shape[1]

    def clipped(self, e: Expr) -> Expr:
        if self.clip is None:
            return e
        t = self.x.dtype
        return apply("max", apply("min", e, const(self.clip, t)), const(-self.clip, t))

    def length(self, b: IntExpr) -> Expr:
        assert self.lengths is not None
        e = self.lengths(b)
        return e if self.lengths.dtype == I64 else Cast(I64, e)

    def time(self, t: IntExpr, b: IntExpr) -> IntExpr:
        """The place in the sequence that step `t` treats."""
        if not self.reverse:
            return t
        if self.lengths is None:
            return self.steps - 1 - t
        n = index_value(self.length(b))
        inside = apply("lt", Index(t), Index(n))
        return index_value(apply("select", inside, Index(n - 1 - t), Index(t)))

    def live(self, t: IntExpr, b: IntExpr) -> Expr | None:
        return None if self.lengths is None else apply("lt", Index(t), self.length(b))

    def gate_inputs(self, c: Ctx, gates: int, extra: int | None = None) -> Val:
        """x W^T + biases for every step, [T, B, gates*H]; the recurrent bias of gates from `extra` on is left out."""
        rows = self.hidden * gates
        product = c.b.contract(f"{self.hint}_inputs", "tbi,gi->tbg", self.x, self.w)
        bias = self.bias
        if bias is None:
            return product

        def element(t: IntExpr, b: IntExpr, g: IntExpr) -> Expr:
            with_bias = apply("add", product(t, b, g), bias(g))
            if extra is None:
                return apply("add", with_bias, bias(rows + g))
            own = apply("lt", Index(g), Index(self.hidden * extra))
            return apply("select", own, apply("add", with_bias, bias(rows + g)), with_bias)

        return c.b.compute(f"{self.hint}_biased", product.shape, element, self.x.dtype)


def keep_old(cell: Cell, t: IntExpr, b: IntExpr, new: Expr, old: Expr) -> Expr:
    live = cell.live(t, b)
    return new if live is None else apply("select", live, new, old)


def run_cell(
    c: Ctx,
    cell: Cell,
    inits: Sequence[Val],
    step: Callable[[IntExpr, tuple[Val, ...]], Sequence[Val]],
) -> tuple[Val, Sequence[Val]]:
    """(Y [T, B, H] in sequence order, final states). `step` gives the next states, the first being the output."""

    def body(t: IntExpr, states: tuple[Val, ...]) -> tuple[Sequence[Val], Sequence[Val]]:
        nexts = step(t, states)
        return nexts, [nexts[0]]

    finals, (stacked,) = c.b.scan(cell.hint, cell.steps, inits, body)

    def at(i: tuple[IntExpr, ...]) -> Expr:
        t, b, h = i
        value = stacked(cell.time(t, b), b, h)
        live = cell.live(t, b)
        return value if live is None else apply("select", live, value, const(0, stacked.dtype))

    if not cell.reverse and cell.lengths is None:
        return stacked, finals
    return Val(stacked.dtype, stacked.shape, at), finals


def lstm_cell(c: Ctx, cell: Cell, h0: Val, c0: Val, peephole: Val | None, coupled: bool) -> tuple[Val, Sequence[Val]]:
    hidden, t_ = cell.hidden, cell.x.dtype
    f, g, h = cell.activations
    given = cell.gate_inputs(c, 4)

    def step(t: IntExpr, states: tuple[Val, ...]) -> Sequence[Val]:
        past, memory = states
        product = c.b.contract(f"{cell.hint}_recurrent", "bh,gh->bg", past, cell.r)

        def gate(n: int, b: IntExpr, j: IntExpr) -> Expr:
            at = hidden * n + j
            return apply("add", given(cell.time(t, b), b, at), product(b, at))

        def peep(e: Expr, n: int, j: IntExpr, state: Expr) -> Expr:
            return e if peephole is None else apply("add", e, apply("mul", peephole(hidden * n + j), state))

        def next_memory(b: IntExpr, j: IntExpr) -> Expr:
            old = memory(b, j)
            i = f(cell.clipped(peep(gate(0, b, j), 0, j, old)))
            forget = apply("sub", const(1, t_), i) if coupled else f(cell.clipped(peep(gate(2, b, j), 2, j, old)))
            new = g(cell.clipped(gate(3, b, j)))
            value = apply("add", apply("mul", forget, old), apply("mul", i, new))
            return keep_old(cell, t, b, value, old)

        kept = c.b.compute(f"{cell.hint}_memory", memory.shape, next_memory, t_)

        def next_hidden(b: IntExpr, j: IntExpr) -> Expr:
            state = kept(b, j)
            o = f(cell.clipped(peep(gate(1, b, j), 1, j, state)))
            return keep_old(cell, t, b, apply("mul", o, h(state)), past(b, j))

        return [c.b.compute(f"{cell.hint}_hidden", past.shape, next_hidden, t_), kept]

    return run_cell(c, cell, [h0, c0], step)


def gru_cell(c: Ctx, cell: Cell, h0: Val, linear: bool) -> tuple[Val, Sequence[Val]]:
    hidden, t_ = cell.hidden, cell.x.dtype
    f, g = cell.activations
    given = cell.gate_inputs(c, 3, 2)
    bias = cell.bias

    def own_bias(j: IntExpr) -> Expr | None:
        return None if bias is None else bias(hidden * 5 + j)

    def plus(e: Expr, more: Expr | None) -> Expr:
        return e if more is None else apply("add", e, more)

    def step(t: IntExpr, states: tuple[Val, ...]) -> Sequence[Val]:
        (past,) = states
        product = c.b.contract(f"{cell.hint}_recurrent", "bh,gh->bg", past, cell.r)

        def gate(n: int, b: IntExpr, j: IntExpr) -> Expr:
            at = hidden * n + j
            return f(cell.clipped(apply("add", given(cell.time(t, b), b, at), product(b, at))))

        if linear:
            inner = Val(t_, past.shape, lambda i: plus(product(i[0], hidden * 2 + i[1]), own_bias(i[1])))

            def candidate(b: IntExpr, j: IntExpr) -> Expr:
                mixed = apply("mul", gate(1, b, j), inner(b, j))
                return g(cell.clipped(apply("add", given(cell.time(t, b), b, hidden * 2 + j), mixed)))

        else:
            reset = c.b.compute(f"{cell.hint}_reset", past.shape, lambda b, j: apply("mul", gate(1, b, j), past(b, j)), t_)
            rows = cell.r.slice(0, hidden * 2, hidden)
            mixed_ = c.b.contract(f"{cell.hint}_mixed", "bh,gh->bg", reset, rows)

            def candidate(b: IntExpr, j: IntExpr) -> Expr:
                own = plus(mixed_(b, j), own_bias(j))
                return g(cell.clipped(apply("add", given(cell.time(t, b), b, hidden * 2 + j), own)))

        def element(b: IntExpr, j: IntExpr) -> Expr:
            z = gate(0, b, j)
            value = apply("add", apply("mul", apply("sub", const(1, t_), z), candidate(b, j)), apply("mul", z, past(b, j)))
            return keep_old(cell, t, b, value, past(b, j))

        return [c.b.compute(f"{cell.hint}_hidden", past.shape, element, t_)]

    return run_cell(c, cell, [h0], step)


def rnn_cell(c: Ctx, cell: Cell, h0: Val) -> tuple[Val, Sequence[Val]]:
    (f,) = cell.activations
    given = cell.gate_inputs(c, 1)

    def step(t: IntExpr, states: tuple[Val, ...]) -> Sequence[Val]:
        (past,) = states
        product = c.b.contract(f"{cell.hint}_recurrent", "bh,gh->bg", past, cell.r)

        def element(b: IntExpr, j: IntExpr) -> Expr:
            value = f(cell.clipped(apply("add", given(cell.time(t, b), b, j), product(b, j))))
            return keep_old(cell, t, b, value, past(b, j))

        return [c.b.compute(f"{cell.hint}_hidden", past.shape, element, cell.x.dtype)]

    return run_cell(c, cell, [h0], step)


_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_WITH_ALPHA = {
    "affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu",
}  # fmt: skip
_WITH_BETA = {"affine", "scaledtanh", "hardsigmoid"}


def activations(c: Ctx, directions: int) -> list[tuple[Activation, ...]]:
    """The activations of each direction, in order; alphas and betas go to those that take them."""
    per = _DEFAULTS[c.op]
    names = c.attrs.get("activations") or per * directions
    if len(names) != len(per) * directions:
        c.bad(f"{len(names)} activations for {directions} directions of {len(per)}")
    alphas, betas = list(c.floats("activation_alpha", ())), list(c.floats("activation_beta", ()))
    found = []
    for name in names:
        low = name.lower()
        alpha = alphas.pop(0) if low in _WITH_ALPHA and alphas else None
        beta = betas.pop(0) if low in _WITH_BETA and betas else None
        found.append(activation(c, name, alpha, beta, c.tensor(0).dtype))
    return [tuple(found[n * len(per) : (n + 1) * len(per)]) for n in range(directions)]


_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def _match(c: Ctx, what: str, a: IntExpr, b: IntExpr) -> None:
    if a.const is not None and b.const is not None and a.const != b.const:
        c.bad(f"{what} do not fit: {a} and {b}")
    c.b.equate(a, b)


@op("LSTM", "GRU", "RNN")
def recurrent(c: Ctx) -> Result | Sequence[Result]:
    x, w, r, bias, lengths, h0 = c.x(0), c.x(1), c.x(2), c.opt(3), c.opt(4), c.opt(5)
    same_dtype(c, x, w, r)
    if x.rank != 3 or w.rank != 3 or r.rank != 3:
        c.bad(f"operands have ranks {x.rank}, {w.rank} and {r.rank}, not 3")
    batch_first = c.flag("layout", 0)
    c0, peephole = (c.opt(6), c.opt(7)) if c.op == "LSTM" else (None, None)
    if batch_first:
        x = x.transpose(0, 1)
        h0, c0 = (None if v is None else v.transpose(0, 1) for v in (h0, c0))
    hidden, gates = r.shape[2], _GATES[c.op]
    _match(c, "input and weight sizes", x.shape[2], w.shape[2])
    _match(c, "gates of the weights and the recurrence", w.shape[1], r.shape[1])
    _match(c, "gates and hidden size", r.shape[1], hidden * gates)
    if bias is not None:
        _match(c, "bias and gates", bias.shape[-1], hidden * (2 * gates))
    if peephole is not None:
        _match(c, "peepholes and hidden size", peephole.shape[-1], hidden * 3)
    for state in (h0, c0):
        if state is not None:
            _match(c, "batches", x.shape[1], state.shape[1])
            _match(c, "state and hidden sizes", state.shape[2], hidden)
    if lengths is not None:
        _match(c, "batch and sequence lengths", x.shape[1], lengths.shape[0])
    direction = c.str_("direction", "forward")
    if direction not in ("forward", "reverse", "bidirectional"):
        c.bad(f"direction {direction!r} is unknown")
    reversals = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    if w.shape[0].const not in (None, len(reversals)):
        c.bad(f"weights for {w.shape[0]} directions, {len(reversals)} are asked for")
    kinds = activations(c, len(reversals))
    ys: list[Val] = []
    states: list[Sequence[Val]] = []
    for n, reverse in enumerate(reversals):
        hint = f"{c.hint}_back" if reverse else c.hint
        own_bias = None if bias is None else bias.select(0, n)
        cell = Cell(
            x, w.select(0, n), r.select(0, n), own_bias, lengths, reverse, kinds[n], c.float_("clip", None), hidden, hint
        )
        zero = c.b.scalar(0, x.dtype).broadcast_to([x.shape[1], hidden])
        start = zero if h0 is None else h0.select(0, n)
        if c.op == "LSTM":
            memory = zero if c0 is None else c0.select(0, n)
            peep = None if peephole is None else peephole.select(0, n)
            y, final = lstm_cell(c, cell, start, memory, peep, c.flag("input_forget", 0))
        elif c.op == "GRU":
            y, final = gru_cell(c, cell, start, c.flag("linear_before_reset", 0))
        else:
            y, final = rnn_cell(c, cell, start)
        ys.append(y.unsqueeze(1))
        states.append([v.unsqueeze(0) for v in final])
    y = concat_vals(c, ys, 1)
    finals = [concat_vals(c, [s[k] for s in states], 0) for k in range(len(states[0]))]
    if batch_first:
        return [y.permute([2, 0, 1, 3]), *(v.transpose(0, 1) for v in finals)]
    return [y, *finals]
