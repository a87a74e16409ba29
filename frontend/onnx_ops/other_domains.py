"""Operators outside ai.onnx: training updates and the cheap part of ai.onnx.ml; and what is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dlc.frontend.onnx_ops.registry import Ctx, Result, op, refuse
from dlc.ir.dtype import I64, DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.extent import IntExpr
from dlc.ir.view import Val

TRAINING, ML = "ai.onnx.preview.training", "ai.onnx.ml"


def scalar(v: Val) -> Val:
    return v.view((), lambda: [0] * v.rank)


def groups(c: Ctx, per: int) -> list[tuple[Val, ...]]:
    """The tensors that are updated together: `per` operands for each, operands of one kind side by side."""
    rest = len(c.ins) - 2
    if rest % per or not rest:
        c.bad(f"{rest} tensors do not come in groups of {per}")
    n = rest // per
    return [tuple(c.x(2 + k * n + i) for k in range(per)) for i in range(n)]


def by_kind(results: Sequence[Sequence[Val]]) -> list[Val]:
    return [row[k] for k in range(len(results[0])) for row in results]


def mul(a: Expr, b: Expr) -> Expr:
    return apply("mul", a, b)


def add(a: Expr, b: Expr) -> Expr:
    return apply("add", a, b)


def sub(a: Expr, b: Expr) -> Expr:
    return apply("sub", a, b)


def regularised(c: Ctx, t: DType, x: Expr, g: Expr) -> Expr:
    return add(mul(const(c.float_("norm_coefficient", 0.0), t), x), g)


@op("Adagrad", domain=TRAINING)
def adagrad(c: Ctx) -> Result | Sequence[Result]:
    rate, step = scalar(c.x(0)), scalar(c.x(1))
    results = []
    for x, g, h in groups(c, 3):
        t = x.dtype

        def square(a: Expr, b: Expr, e: Expr, t: DType = t) -> Expr:
            r = regularised(c, t, a, b)
            return add(e, mul(r, r))

        new_h = c.b.map(f"{c.hint}_squares", square, x, g, h)

        def move(a: Expr, b: Expr, e: Expr, r: Expr, s: Expr, t: DType = t) -> Expr:
            slower = add(const(1, t), mul(Cast(t, s), const(c.float_("decay_factor", 0.0), t)))
            scale = add(apply("sqrt", e), const(c.float_("epsilon", 1e-6), t))
            return sub(a, apply("div", mul(apply("div", r, slower), regularised(c, t, a, b)), scale))

        results.append((c.b.map(c.hint, move, x, g, new_h, rate, step), new_h))
    return by_kind(results)


@op("Momentum", domain=TRAINING)
def momentum(c: Ctx) -> Result | Sequence[Result]:
    rate, step = scalar(c.x(0)), scalar(c.x(1))
    alpha, beta, mode = c.float_("alpha"), c.float_("beta"), c.str_("mode")
    results = []
    for x, g, v in groups(c, 3):
        t = x.dtype

        def speed(a: Expr, b: Expr, e: Expr, s: Expr, t: DType = t) -> Expr:
            first = apply("gt", s, const(0, I64))
            share = apply("select", first, const(beta, t), const(1, t))
            return add(mul(const(alpha, t), e), mul(share, regularised(c, t, a, b)))

        new_v = c.b.map(f"{c.hint}_speed", speed, x, g, v, step)

        def move(a: Expr, b: Expr, e: Expr, r: Expr, t: DType = t) -> Expr:
            along = e if mode == "standard" else add(regularised(c, t, a, b), mul(const(alpha, t), e))
            return sub(a, mul(r, along))

        results.append((c.b.map(c.hint, move, x, g, new_v, rate), new_v))
    return by_kind(results)


@op("Adam", domain=TRAINING)
def adam(c: Ctx) -> Result | Sequence[Result]:
    rate, step = scalar(c.x(0)), scalar(c.x(1))
    alpha, beta = c.float_("alpha", 0.9), c.float_("beta", 0.999)
    results = []
    for x, g, v, h in groups(c, 4):
        t = x.dtype

        def blend(share: float, power: int, t: DType = t) -> Callable[..., Expr]:
            def element(a: Expr, b: Expr, e: Expr) -> Expr:
                r = regularised(c, t, a, b)
                return add(mul(const(share, t), e), mul(const(1 - share, t), mul(r, r) if power == 2 else r))

            return element

        new_v = c.b.map(f"{c.hint}_first", blend(alpha, 1), x, g, v)
        new_h = c.b.map(f"{c.hint}_second", blend(beta, 2), x, g, h)

        def move(a: Expr, e: Expr, s: Expr, r: Expr, k: Expr, t: DType = t) -> Expr:
            times = Cast(t, k)
            up = apply("sqrt", sub(const(1, t), apply("pow", const(beta, t), times)))
            down = sub(const(1, t), apply("pow", const(alpha, t), times))
            corrected = apply("select", apply("gt", k, const(0, I64)), apply("div", mul(r, up), down), r)
            scale = add(apply("sqrt", s), const(c.float_("epsilon", 1e-6), t))
            moved = sub(a, mul(corrected, apply("div", e, scale)))
            return mul(const(1 - c.float_("norm_coefficient_post", 0.0), t), moved)

        results.append((c.b.map(c.hint, move, x, new_v, new_h, rate, step), new_v, new_h))
    return by_kind(results)


@op("ArrayFeatureExtractor", domain=ML)
def array_feature_extractor(c: Ctx) -> Result:
    x, at = c.x(0), c.x(1)
    places = at.reshape([at.elements])
    wide = x.unsqueeze(0) if x.rank == 1 else x

    def element(*i: IntExpr) -> Expr:
        return wide.at((*i[:-1], places.gather_value(i[-1])))

    return c.b.compute(c.hint, [*wide.shape[:-1], places.shape[0]], element, x.dtype)


@op("Binarizer", domain=ML)
def binarizer(c: Ctx) -> Result:
    x = c.x(0)
    limit = const(c.float_("threshold", 0.0), x.dtype)
    return c.b.map(c.hint, lambda a: apply("select", apply("gt", a, limit), const(1, x.dtype), const(0, x.dtype)), x)


refuse("random numbers have no native form yet", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")
refuse("random numbers have no native form yet", "Bernoulli", "Multinomial")
refuse("decoding images is no part of a network", "ImageDecoder")
refuse("strings have no native form", "StringNormalizer", "StringConcat", "StringSplit", "RegexFullMatch")
refuse("gradients are not computed", "Gradient", domain=TRAINING)
refuse("trees have no native form yet", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", domain=ML)
refuse("tables of labels have no native form yet", "LabelEncoder", domain=ML)
