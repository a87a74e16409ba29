"""Pointwise ATen operators of one tensor: arithmetic functions, activations, tests and casts. Each is one Einsum."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from dlc.frontend.torch_context import TABLE, Ctx, add, both, div, mul, op, select, sub
from dlc.ir.dtype import BOOL, DType
from dlc.ir.expr import Const, Expr, apply, const
from dlc.ir.view import Val

Unary = Callable[[Expr, Callable[[float], Const]], Expr]


def _ap(name: str) -> Unary:
    return lambda x, c: apply(name, x)


def _gelu(x: Expr, c: Callable[[float], Const]) -> Expr:
    return mul(mul(c(0.5), x), add(c(1), apply("erf", mul(x, c(math.sqrt(0.5))))))


def _gelu_tanh(x: Expr, c: Callable[[float], Const]) -> Expr:
    inner = mul(c(math.sqrt(2 / math.pi)), add(x, mul(c(0.044715), mul(x, mul(x, x)))))
    return mul(mul(c(0.5), x), add(c(1), apply("tanh", inner)))


def _clip(x: Expr, lo: Expr, hi: Expr) -> Expr:
    return apply("min", apply("max", x, lo), hi)


def _log_sigmoid(x: Expr, c: Callable[[float], Const]) -> Expr:
    return sub(apply("min", x, c(0)), apply("log1p", apply("exp", apply("neg", apply("abs", x)))))


def _softplus(x: Expr, c: Callable[[float], Const]) -> Expr:
    """log(1 + exp(x)) without overflow."""
    return add(apply("max", x, c(0)), apply("log1p", apply("exp", apply("neg", apply("abs", x)))))


FLOAT_UNARY: dict[str, Unary] = {
    **{n: _ap(n) for n in "exp exp2 expm1 log log2 log1p sqrt rsqrt sin cos tan asin acos atan sinh cosh tanh".split()},
    **{n: _ap(n) for n in "asinh acosh atanh erf sigmoid lgamma".split()},
    "arcsin": _ap("asin"), "arccos": _ap("acos"), "arctan": _ap("atan"),
    "arcsinh": _ap("asinh"), "arccosh": _ap("acosh"), "arctanh": _ap("atanh"),
    "special_expit": _ap("sigmoid"), "special_erf": _ap("erf"), "special_exp2": _ap("exp2"), "special_expm1": _ap("expm1"),
    "special_log1p": _ap("log1p"), "special_gammaln": _ap("lgamma"),
    "log10": lambda x, c: mul(apply("log", x), c(1 / math.log(10))),
    "erfc": lambda x, c: sub(c(1), apply("erf", x)),
    "special_erfc": lambda x, c: sub(c(1), apply("erf", x)),
    "reciprocal": lambda x, c: div(c(1), x),
    "silu": lambda x, c: mul(x, apply("sigmoid", x)),
    "hardswish": lambda x, c: mul(x, mul(_clip(add(x, c(3)), c(0), c(6)), c(1 / 6))),
    "hardsigmoid": lambda x, c: mul(_clip(add(x, c(3)), c(0), c(6)), c(1 / 6)),
    "mish": lambda x, c: mul(x, apply("tanh", _softplus(x, c))),
    "softsign": lambda x, c: div(x, add(c(1), apply("abs", x))),
    "log_sigmoid": _log_sigmoid,
    "tanhshrink": lambda x, c: sub(x, apply("tanh", x)),
    "deg2rad": lambda x, c: mul(x, c(math.pi / 180)),
    "rad2deg": lambda x, c: mul(x, c(180 / math.pi)),
    "selu": lambda x, c: mul(
        c(1.0507009873554804934193349852946),
        select(apply("gt", x, c(0)), x, mul(c(1.6732632423543772848170429916717), apply("expm1", x))),
    ),
    "sinc": lambda x, c: select(
        apply("eq", x, c(0)), c(1), div(apply("sin", mul(x, c(math.pi))), mul(x, c(math.pi)))
    ),
}  # fmt: skip


def _register_unary(name: str, element: Unary) -> None:
    @op(name)
    def handler(c: Ctx, x: Val) -> Val:
        dtype = c.dtype
        return c.pointwise(lambda e: element(e, lambda v: const(v, dtype)), x)


for _name, _element in FLOAT_UNARY.items():
    _register_unary(_name, _element)


def _rounding(name: str) -> None:
    @op(name)
    def handler(c: Ctx, x: Val) -> Val:
        return x if not x.dtype.is_float else c.pointwise(lambda e: apply(name, e), x)


for _name in ("floor", "ceil", "trunc", "round"):
    _rounding(_name)
TABLE["aten.fix.default"] = TABLE["aten.trunc.default"]


@op("round.decimals")
def round_decimals(c: Ctx, x: Val, *, decimals: int = 0) -> Val:
    if not x.dtype.is_float:
        return x
    scale = const(10.0 ** abs(decimals), c.dtype)
    if decimals >= 0:
        return c.pointwise(lambda e: div(apply("round", mul(e, scale)), scale), x)
    return c.pointwise(lambda e: mul(apply("round", div(e, scale)), scale), x)


@op("frac")
def frac(c: Ctx, x: Val) -> Val:
    return c.pointwise(lambda e: sub(e, apply("trunc", e)), x)


@op("abs", "absolute")
def absolute(c: Ctx, x: Val) -> Val:
    return x if x.dtype.kind in "bu" else c.pointwise(lambda e: apply("abs", e), x)


@op("neg", "negative")
def neg(c: Ctx, x: Val) -> Val:
    return c.pointwise(lambda e: apply("neg", e), x)


@op("sign", "sgn")
def sign(c: Ctx, x: Val) -> Val:
    t = c.dtype
    if t == BOOL:
        return x
    zero, one, minus = const(0, t), const(1, t), const(-1 if t.kind != "u" else 0, t)
    # ATen gives 0 for NaN.
    return c.pointwise(lambda e: select(apply("gt", e, zero), one, select(apply("lt", e, zero), minus, zero)), x)


@op("square")
def square(c: Ctx, x: Val) -> Val:
    return c.pointwise(lambda e: mul(e, e), x)


@op("positive", "detach", "alias", "clone", "contiguous", "lift_fresh", "lift_fresh_copy", "lift", "detach_copy", "alias_copy",
    "resolve_conj", "resolve_neg", "conj", "real", "_conj", "data", "conj_physical", "pin_memory")  # fmt: skip
def identity(c: Ctx, x: Val, *_: Any, **__: Any) -> Val:
    return x


@op("to.dtype", "to.device", "to.other", "to.dtype_layout", "to.prim_Device", "_to_copy", "type_as", "_autocast_to_full_precision",
    "_autocast_to_reduced_precision", "prims.convert_element_type.default", "prims.device_put.default")  # fmt: skip
def to(c: Ctx, x: Val, *_: Any, **__: Any) -> Val:
    return c.cast(x, c.dtype)


@op("view.dtype", "view_copy.dtype")
def view_dtype(c: Ctx, x: Val, dtype: Any) -> Val:
    from dlc.ir.expr import Bitcast

    to_type = c.dtype
    if to_type.bits != x.dtype.bits:
        raise c.unsupported("the new type has another width")
    return c.map(c.hint, lambda e: Bitcast(to_type, e), x, dtype=to_type)


@op("relu")
def relu(c: Ctx, x: Val) -> Val:
    zero = const(0, c.dtype)
    return c.pointwise(lambda e: apply("max", e, zero), x)


@op("relu6")
def relu6(c: Ctx, x: Val) -> Val:
    return hardtanh(c, x, 0, 6)


@op("gelu")
def gelu(c: Ctx, x: Val, *, approximate: str = "none") -> Val:
    dtype = c.dtype
    element = _gelu_tanh if approximate == "tanh" else _gelu
    return c.pointwise(lambda e: element(e, lambda v: const(v, dtype)), x)


@op("hardtanh")
def hardtanh(c: Ctx, x: Val, min_val: float = -1, max_val: float = 1) -> Val:
    lo, hi = const(min_val, c.dtype), const(max_val, c.dtype)
    return c.pointwise(lambda e: _clip(e, lo, hi), x)


@op("elu")
def elu(c: Ctx, x: Val, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Val:
    t = c.dtype
    zero, a, s, k = (const(v, t) for v in (0, alpha * scale, scale, input_scale))
    return c.pointwise(lambda e: select(apply("gt", e, zero), mul(e, s), mul(apply("expm1", mul(e, k)), a)), x)


@op("celu")
def celu(c: Ctx, x: Val, alpha: float = 1.0) -> Val:
    return elu(c, x, alpha, 1, 1 / alpha)


@op("leaky_relu")
def leaky_relu(c: Ctx, x: Val, negative_slope: float = 0.01) -> Val:
    zero, slope = const(0, c.dtype), const(negative_slope, c.dtype)
    return c.pointwise(lambda e: select(apply("gt", e, zero), e, mul(e, slope)), x)


@op("rrelu")
def rrelu(
    c: Ctx, x: Val, lower: float = 0.125, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Val:
    if training:
        from dlc.frontend.torch_errors import TrainingMode

        raise TrainingMode(c.loc, op=c.target)
    return leaky_relu(c, x, (lower + upper) / 2)


@op("prelu", "_prelu_kernel")
def prelu(c: Ctx, x: Val, weight: Val) -> Val:
    t, zero = c.dtype, const(0, c.dtype)
    if weight.rank == 1 and x.rank > 1:
        weight = weight.reshape([1, weight.shape[0], *[1] * (x.rank - 2)])
    return c.map(
        c.hint, lambda e, w: select(apply("gt", e, zero), e, mul(e, w)), c.val(x, t), c.val(weight, t).broadcast_to(
            c.broadcast(x, weight)), dtype=t
    )  # fmt: skip


@op("softplus")
def softplus(c: Ctx, x: Val, beta: float = 1, threshold: float = 20) -> Val:
    t = c.dtype
    k, limit, inverse = const(beta, t), const(threshold, t), const(1 / beta, t)

    def element(e: Expr) -> Expr:
        scaled = mul(e, k)
        return select(apply("gt", scaled, limit), e, mul(_softplus(scaled, lambda v: const(v, t)), inverse))

    return c.pointwise(element, x)


@op("log_sigmoid_forward")
def log_sigmoid_forward(c: Ctx, x: Val) -> tuple[Val, Val]:
    y = c.pointwise(lambda e: _log_sigmoid(e, lambda v: const(v, x.dtype)), x)
    return y, y  # the second result is a buffer of the backward pass


@op("threshold")
def threshold(c: Ctx, x: Val, threshold: float, value: float) -> Val:
    limit, v = const(threshold, c.dtype), const(value, c.dtype)
    # A NaN is not below the threshold: it stays.
    return c.pointwise(lambda e: select(apply("le", e, limit), v, e), x)


@op("hardshrink")
def hardshrink(c: Ctx, x: Val, lambd: float = 0.5) -> Val:
    lo, hi, zero = (const(v, c.dtype) for v in (-lambd, lambd, 0))
    return c.pointwise(lambda e: select(both(apply("ge", e, lo), apply("le", e, hi)), zero, e), x)


@op("softshrink")
def softshrink(c: Ctx, x: Val, lambd: float = 0.5) -> Val:
    k, zero = const(lambd, c.dtype), const(0, c.dtype)
    low = const(-lambd, c.dtype)

    def element(e: Expr) -> Expr:
        # x*0 keeps a NaN, as ATen does.
        return select(apply("gt", e, k), sub(e, k), select(apply("lt", e, low), add(e, k), mul(e, zero)))

    return c.pointwise(element, x)


@op("glu")
def glu(c: Ctx, x: Val, dim: int = -1) -> Val:
    d = c.dim(dim, x.rank)
    half = x.shape[d] // 2
    a, b = x.slice(d, 0, half), x.slice(d, half, half)
    return c.pointwise(lambda p, q: mul(p, apply("sigmoid", q)), a, b)


@op("logit", "special_logit")
def logit(c: Ctx, x: Val, eps: float | None = None) -> Val:
    t = c.dtype
    one = const(1, t)

    def element(e: Expr) -> Expr:
        z = e if eps is None else _clip(e, const(eps, t), const(1 - eps, t))
        return apply("log", div(z, sub(one, z)))

    return c.pointwise(element, x)


@op("nan_to_num")
def nan_to_num(
    c: Ctx, x: Val, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Val:
    t = c.dtype
    if not t.is_float:
        return x
    import torch

    from dlc.frontend.torch_types import TO_TORCH

    info = torch.finfo(TO_TORCH[t])
    n = const(0.0 if nan is None else nan, t)
    hi, lo = const(info.max if posinf is None else posinf, t), const(info.min if neginf is None else neginf, t)
    inf, minus = const(math.inf, t), const(-math.inf, t)

    def element(e: Expr) -> Expr:
        bounded = select(apply("eq", e, inf), hi, select(apply("eq", e, minus), lo, e))
        return select(apply("isnan", e), n, bounded)

    return c.pointwise(element, x)


def _test(name: str, element: Callable[[Expr, DType], Expr], integers: bool) -> None:
    @op(name)
    def handler(c: Ctx, x: Val) -> Val:
        if not x.dtype.is_float:
            return c.b.scalar(integers, BOOL).broadcast_to(x.shape)
        return c.map(c.hint, lambda e: element(e, x.dtype), x, dtype=BOOL)


_test("isnan", lambda e, t: apply("isnan", e), False)
_test("isinf", lambda e, t: apply("isinf", e), False)
_test("isfinite", lambda e, t: apply("lt", apply("abs", e), const(math.inf, t)), True)
_test("isposinf", lambda e, t: apply("eq", e, const(math.inf, t)), False)
_test("isneginf", lambda e, t: apply("eq", e, const(-math.inf, t)), False)


@op("signbit")
def signbit(c: Ctx, x: Val) -> Val:
    if x.dtype.is_float:
        return c.map(c.hint, lambda e: apply("signbit", e), x, dtype=BOOL)
    if x.dtype.kind in "ub":
        return c.b.scalar(False, BOOL).broadcast_to(x.shape)
    return c.map(c.hint, lambda e: apply("lt", e, const(0, x.dtype)), x, dtype=BOOL)


@op("logical_not")
def logical_not(c: Ctx, x: Val) -> Val:
    return c.map(c.hint, lambda e: apply("not", e), c.cast(x, BOOL), dtype=BOOL)


@op("bitwise_not", "__invert__")
def bitwise_not(c: Ctx, x: Val) -> Val:
    return c.map(c.hint, lambda e: apply("not", e), x)


@op("polygamma", "digamma", "erfinv", "i0", "special_i0", "special_ndtri")
def no_special(c: Ctx, *_: Any, **__: Any) -> Val:
    raise c.unsupported("this special function has no scalar operator here")


@op("special_ndtr")
def ndtr(c: Ctx, x: Val) -> Val:
    t = c.dtype
    return c.pointwise(
        lambda e: mul(const(0.5, t), add(const(1, t), apply("erf", mul(e, const(math.sqrt(0.5), t))))), x
    )
