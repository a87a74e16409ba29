"""Element by element: arithmetic, comparison, logic, activations."""

from __future__ import annotations

import math
from collections.abc import Callable

from dlc.frontend.onnx_load import element_type
from dlc.frontend.onnx_ops.registry import Ctx, Result, op, same_dtype
from dlc.ir.dtype import BOOL, F8E8M0, F32, F64, U8, DType
from dlc.ir.expr import Bitcast, Cast, Expr, apply, const
from dlc.ir.view import Val

Unary = Callable[[Expr, DType], Expr]


def wide_type(dtype: DType) -> DType:
    """The type a formula over `dtype` is computed in: f32 for the 16-bit floats."""
    return F32 if dtype.is_float and dtype.bits < 32 else dtype


def formula(c: Ctx, f: Callable[..., Expr], *vals: Val, dtype: DType | None = None) -> Val:
    """A pointwise Einsum `f(type, operands...)`; 16-bit floats are widened for the formula and rounded once at its end."""
    source = vals[0].dtype
    wide = wide_type(source)
    out = dtype or source

    def element(*args: Expr) -> Expr:
        operands = [a if v.dtype == wide or v.dtype != source else Cast(wide, a) for a, v in zip(args, vals, strict=True)]
        result = f(wide, *operands)
        return Cast(source, result) if dtype is None and wide != source else result

    return c.b.map(c.hint, element, *vals, dtype=out)


def binary(c: Ctx, f: Callable[[Expr, Expr], Expr], dtype: DType | None = None) -> Val:
    x, y = c.x(0), c.x(1)
    same_dtype(c, x, y)
    return c.b.map(c.hint, f, x, y, dtype=dtype)


def need_float(c: Ctx, x: Val) -> Val:
    if not x.dtype.is_float:
        c.refuse(f"element type {x.dtype} is not a float")
    return x


# --- arithmetic ------------------------------------------------------------------------------------------------------

for _name, _op in {"Add": "add", "Sub": "sub", "Mul": "mul"}.items():
    op(_name)(lambda c, _op=_op: binary(c, lambda a, b: apply(_op, a, b)))  # type: ignore[misc]


@op("Div")
def div(c: Ctx) -> Result:
    x = c.x(0)
    return binary(c, lambda a, b: apply("div" if x.dtype.is_float else "div_trunc", a, b))


@op("Mod")
def mod(c: Ctx) -> Result:
    fmod = c.flag("fmod", 0)
    return binary(c, lambda a, b: apply("rem_trunc" if fmod else "rem_floor", a, b))


@op("Pow")
def pow_(c: Ctx) -> Result:
    x, y = c.x(0), c.x(1)
    if x.dtype == y.dtype:
        return c.b.map(c.hint, lambda a, e: apply("pow", a, e), x, y)
    if x.dtype.is_float and not (x.dtype != F64 and y.dtype == F64):
        wide = wide_type(x.dtype)
    elif x.dtype.is_int and y.dtype.is_int:
        wide = x.dtype
    else:
        wide = F64

    def element(a: Expr, e: Expr) -> Expr:
        base = a if x.dtype == wide else Cast(wide, a)
        power = apply("pow", base, e if y.dtype == wide else Cast(wide, e))
        return power if x.dtype == wide else Cast(x.dtype, power)

    return c.b.map(c.hint, element, x, y, dtype=x.dtype)


@op("BitShift")
def bit_shift(c: Ctx) -> Result:
    direction = c.str_("direction")
    if direction not in ("LEFT", "RIGHT"):
        c.bad(f"direction {direction!r} is neither LEFT nor RIGHT")
    return binary(c, lambda a, b: apply("shl" if direction == "LEFT" else "shr", a, b))


for _name, _op in {"BitwiseAnd": "and", "BitwiseOr": "or", "BitwiseXor": "xor", "And": "and", "Or": "or", "Xor": "xor"}.items():
    op(_name)(lambda c, _op=_op: binary(c, lambda a, b: apply(_op, a, b)))  # type: ignore[misc]

for _name, _op in {"Equal": "eq", "Less": "lt", "LessOrEqual": "le", "Greater": "gt", "GreaterOrEqual": "ge"}.items():
    op(_name)(lambda c, _op=_op: binary(c, lambda a, b: apply(_op, a, b), BOOL))  # type: ignore[misc]


def fold_operands(c: Ctx, name: str) -> Val:
    vals = [c.x(i) for i in range(len(c.ins))]
    same_dtype(c, *vals)

    def element(*args: Expr) -> Expr:
        total = args[0]
        for a in args[1:]:
            total = apply(name, total, a)
        return total

    return c.b.map(c.hint, element, *vals)


op("Min")(lambda c: fold_operands(c, "min"))
op("Max")(lambda c: fold_operands(c, "max"))
op("Sum")(lambda c: fold_operands(c, "add"))


@op("Mean")
def mean(c: Ctx) -> Result:
    vals = [c.x(i) for i in range(len(c.ins))]
    same_dtype(c, *vals)

    def element(wide: DType, *args: Expr) -> Expr:
        total = args[0]
        for a in args[1:]:
            total = apply("add", total, a)
        return apply("div", total, const(len(args), wide))

    return formula(c, element, *vals)


@op("Where")
def where(c: Ctx) -> Result:
    cond, x, y = c.x(0), c.x(1), c.x(2)
    same_dtype(c, x, y)
    if cond.dtype != BOOL:
        c.bad(f"its condition has type {cond.dtype}")
    return c.b.map(c.hint, lambda p, a, b: apply("select", p, a, b), cond, x, y, dtype=x.dtype)


# --- one operand -----------------------------------------------------------------------------------------------------

_DIRECT = {
    "Abs": "abs", "Neg": "neg", "Sign": "sign", "BitwiseNot": "not", "Not": "not",
}  # fmt: skip
_FLOAT = {
    "Floor": "floor", "Ceil": "ceil", "Round": "round", "Sqrt": "sqrt", "Exp": "exp", "Log": "log", "Sin": "sin", "Cos": "cos",
    "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Tanh": "tanh",
    "Asinh": "asinh", "Acosh": "acosh", "Atanh": "atanh", "Erf": "erf", "Sigmoid": "sigmoid",
}  # fmt: skip

for _name, _op in _DIRECT.items():
    op(_name)(lambda c, _op=_op: c.b.map(c.hint, lambda a: apply(_op, a), c.x(0)))  # type: ignore[misc]
for _name, _op in _FLOAT.items():
    op(_name)(lambda c, _op=_op: formula(c, lambda w, a: apply(_op, a), need_float(c, c.x(0))))  # type: ignore[misc]

op("Identity")(lambda c: c.value(0))
op("Reciprocal")(lambda c: formula(c, lambda w, a: apply("div", const(1, w), a), c.x(0)))


@op("Relu")
def relu(c: Ctx) -> Result:
    x = c.x(0)
    return c.b.map(c.hint, lambda a: apply("max", a, const(0, x.dtype)), x)


@op("IsNaN")
def is_nan(c: Ctx) -> Result:
    return c.b.map(c.hint, lambda a: apply("isnan", a), c.x(0), dtype=BOOL)


@op("IsInf")
def is_inf(c: Ctx) -> Result:
    x = c.x(0)
    negative, positive = c.flag("detect_negative", 1), c.flag("detect_positive", 1)

    def element(a: Expr) -> Expr:
        below = apply("eq", a, const(-math.inf, x.dtype))
        above = apply("eq", a, const(math.inf, x.dtype))
        if negative and positive:
            return apply("isinf", a)
        return below if negative else above if positive else apply("and", below, above)

    return c.b.map(c.hint, element, x, dtype=BOOL)


def activation(name: str) -> Callable[[Callable[..., Expr]], Callable[..., Expr]]:
    """Register `f(c, type, x)` as a one-operand formula."""

    def register(f: Callable[..., Expr]) -> Callable[..., Expr]:
        op(name)(lambda c: formula(c, lambda w, a: f(c, w, a), need_float(c, c.x(0))))
        return f

    return register


def above_zero(w: DType, a: Expr, then: Expr, otherwise: Expr) -> Expr:
    return apply("select", apply("lt", a, const(0, w)), otherwise, then)


@activation("LeakyRelu")
def leaky_relu(c: Ctx, w: DType, a: Expr) -> Expr:
    return above_zero(w, a, a, apply("mul", const(c.float_("alpha", 0.01), w), a))


@activation("ThresholdedRelu")
def thresholded_relu(c: Ctx, w: DType, a: Expr) -> Expr:
    return apply("select", apply("gt", a, const(c.float_("alpha", 1.0), w)), a, const(0, w))


def exp_minus_1(a: Expr) -> Expr:
    return apply("expm1", a)


@activation("Elu")
def elu(c: Ctx, w: DType, a: Expr) -> Expr:
    return above_zero(w, a, a, apply("mul", const(c.float_("alpha", 1.0), w), exp_minus_1(a)))


@activation("Celu")
def celu(c: Ctx, w: DType, a: Expr) -> Expr:
    alpha = const(c.float_("alpha", 1.0), w)
    below = apply("min", const(0, w), apply("mul", alpha, exp_minus_1(apply("div", a, alpha))))
    return apply("add", apply("max", a, const(0, w)), below)


@activation("Selu")
def selu(c: Ctx, w: DType, a: Expr) -> Expr:
    alpha, gamma = c.float_("alpha", 1.6732631921768188), c.float_("gamma", 1.0507010221481323)
    below = apply("mul", const(alpha, w), exp_minus_1(a))
    return apply("mul", const(gamma, w), apply("select", apply("le", a, const(0, w)), below, a))


@activation("HardSigmoid")
def hard_sigmoid(c: Ctx, w: DType, a: Expr) -> Expr:
    line = apply("add", apply("mul", const(c.float_("alpha", 0.2), w), a), const(c.float_("beta", 0.5), w))
    return apply("max", const(0, w), apply("min", const(1, w), line))


@activation("HardSwish")
def hard_swish(c: Ctx, w: DType, a: Expr) -> Expr:
    line = apply("add", apply("mul", const(1.0 / 6.0, w), a), const(0.5, w))
    return apply("mul", a, apply("max", const(0, w), apply("min", const(1, w), line)))


def softplus_of(w: DType, a: Expr) -> Expr:
    """log(1 + exp(a)) without overflow."""
    return apply("add", apply("max", a, const(0, w)), apply("log1p", apply("exp", apply("neg", apply("abs", a)))))


@activation("Softplus")
def softplus(c: Ctx, w: DType, a: Expr) -> Expr:
    return softplus_of(w, a)


@activation("Softsign")
def softsign(c: Ctx, w: DType, a: Expr) -> Expr:
    return apply("div", a, apply("add", const(1, w), apply("abs", a)))


@activation("Mish")
def mish(c: Ctx, w: DType, a: Expr) -> Expr:
    return apply("mul", a, apply("tanh", softplus_of(w, a)))


@activation("Swish")
def swish(c: Ctx, w: DType, a: Expr) -> Expr:
    return apply("mul", a, apply("sigmoid", apply("mul", const(c.float_("alpha", 1.0), w), a)))


@activation("Gelu")
def gelu(c: Ctx, w: DType, a: Expr) -> Expr:
    approximate = c.str_("approximate", "none")
    half = apply("mul", const(0.5, w), a)
    if approximate == "none":
        inner = apply("erf", apply("mul", a, const(math.sqrt(0.5), w)))
    elif approximate == "tanh":
        cube = apply("mul", apply("mul", a, a), a)
        line = apply("add", a, apply("mul", const(0.044715, w), cube))
        inner = apply("tanh", apply("mul", const(math.sqrt(2 / math.pi), w), line))
    else:
        c.bad(f"approximate is {approximate!r}")
    return apply("mul", half, apply("add", const(1, w), inner))


@op("Shrink")
def shrink(c: Ctx) -> Result:
    x = c.x(0)
    lambd, bias = c.float_("lambd", 0.5), c.float_("bias", 0.0)
    wide = F64 if x.dtype.is_int else wide_type(x.dtype)

    def element(a: Expr) -> Expr:
        v = a if x.dtype == wide else Cast(wide, a)
        low = apply("lt", v, const(-lambd, wide))
        high = apply("gt", v, const(lambd, wide))
        moved = apply("select", high, apply("sub", v, const(bias, wide)), const(0, wide))
        result = apply("select", low, apply("add", v, const(bias, wide)), moved)
        return result if x.dtype == wide else Cast(x.dtype, result)

    return c.b.map(c.hint, element, x)


@op("PRelu")
def prelu(c: Ctx) -> Result:
    x, slope = c.x(0), c.x(1)
    same_dtype(c, x, slope)
    if slope.rank > x.rank:
        c.bad("its slope has more dimensions than its input")
    return c.b.map(c.hint, lambda a, s: apply("select", apply("lt", a, const(0, x.dtype)), apply("mul", s, a), a), x, slope)


@op("Clip")
def clip(c: Ctx) -> Result:
    x = c.x(0)
    if c.version < 11:
        low, high = (c.b.scalar(c.float_(n), x.dtype) if n in c.attrs else None for n in ("min", "max"))
    else:
        low, high = c.opt(1), c.opt(2)
    for bound in (low, high):
        if bound is not None and (bound.dtype != x.dtype or any(e.const not in (1, None) for e in bound.shape)):
            c.bad("its bounds must be scalars of its input's type")
    operands = [x, *(v.view((), lambda v=v: [0] * v.rank) for v in (low, high) if v is not None)]

    def element(a: Expr, *bounds: Expr) -> Expr:
        rest = list(bounds)
        if low is not None:
            a = apply("max", a, rest.pop(0))
        if high is not None:
            a = apply("min", a, rest.pop(0))
        return a

    return c.b.map(c.hint, element, *operands) if len(operands) > 1 else x


# --- types -----------------------------------------------------------------------------------------------------------


def cast_to(c: Ctx, x: Val, to: DType) -> Val:
    """`x` as `to`: floats saturate to bytes and words, and to small floats unless `saturate` is 0; a few bits wrap."""
    if to == F8E8M0 and x.dtype != to and c.str_("round_mode", "up") != "nearest":
        c.refuse("rounding to powers of two has no form here but to the nearest")
    saturates = (to.is_int and not to.is_coded) or (to.format is not None and c.int_("saturate", 1) == 1)
    return c.b.cast(x, to, "sat" if x.dtype.is_float and saturates else "wrap", c.hint)


@op("Cast")
def cast(c: Ctx) -> Result:
    return cast_to(c, c.x(0), element_type(c.int_("to"), c.loc, c.op))


@op("CastLike")
def cast_like(c: Ctx) -> Result:
    return cast_to(c, c.x(0), c.tensor(1).dtype)


@op("BitCast")
def bit_cast(c: Ctx) -> Result:
    x = c.x(0)
    to = element_type(c.int_("to"), c.loc, c.op)
    if to.bits != x.dtype.bits:
        c.bad(f"{x.dtype} and {to} differ in width")
    if to == x.dtype:
        return x
    if x.dtype == BOOL:
        unsigned = c.b.cast(x, U8)
        return unsigned if to == U8 else c.b.map(c.hint, lambda a: Bitcast(to, a), unsigned, dtype=to)
    if to == BOOL:
        c.refuse("bytes other than 0 and 1 are no booleans")
    return c.b.map(c.hint, lambda a: Bitcast(to, a), x, dtype=to)
