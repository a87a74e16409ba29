"""ATen normalisations as cascades: sums, a centred square sum, a reciprocal root, and one pointwise Einsum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlc.frontend.torch_context import Ctx, add, div, mul, op, sub, wide_type
from dlc.frontend.torch_errors import TrainingMode
from dlc.frontend.torch_reduce import mean_dims, reduce_dims, total
from dlc.ir.dtype import DType
from dlc.ir.expr import Cast, Expr, apply, const
from dlc.ir.extent import IntLike
from dlc.ir.view import Val


def standardised(c: Ctx, x: Val, dims: Sequence[int], eps: float, scale: Val | None, shift: Val | None, t: DType,
                 hint: str) -> tuple[Val, Val, Val]:  # fmt: skip
    """(`(x - mean) / sqrt(var + eps) * scale + shift`, mean, reciprocal deviation) over `dims`, statistics with kept dims."""
    w = x.dtype
    mean = mean_dims(c, x, dims, True, w, f"{hint}_mean")
    square = Val(w, x.shape, lambda i: _square(x, mean, i))
    spread = reduce_dims(c, "sum", square, dims, True, f"{hint}_square")
    n, low = c.count([total(c, x, dims)], w), const(eps, w)
    inverse = c.b.map(f"{hint}_rstd", lambda e: apply("rsqrt", add(div(e, n), low)), spread, dtype=w)
    y = _apply(c, x, mean, inverse, scale, shift, t, hint)
    return y, mean, inverse


def _square(x: Val, mean: Val, i: Any) -> Expr:
    d = sub(x.at(i), mean.broadcast_to(x.shape).at(i))
    return mul(d, d)


def _apply(c: Ctx, x: Val, mean: Val, inverse: Val, scale: Val | None, shift: Val | None, t: DType, hint: str) -> Val:
    w = x.dtype
    extras = [c.cast(v, w) for v in (scale, shift) if v is not None]

    def element(a: Expr, m: Expr, r: Expr, *rest: Expr) -> Expr:
        e = mul(sub(a, m), r)
        if scale is not None:
            e = mul(e, rest[0])
        if shift is not None:
            e = add(e, rest[-1])
        return e if w == t else Cast(t, e)

    return c.b.map(hint, element, x, mean, inverse, *extras, dtype=t)


@op("layer_norm")
def layer_norm(c: Ctx, x: Val, normalized_shape: Sequence[Any], weight: Val | None = None, bias: Val | None = None,
               eps: float = 1e-05, cudnn_enable: bool = True) -> Val:  # fmt: skip
    t = c.dtype
    dims = range(x.rank - len(normalized_shape), x.rank)
    return standardised(c, c.cast(x, wide_type(t)), dims, eps, weight, bias, t, c.hint)[0]


@op("native_layer_norm")
def native_layer_norm(c: Ctx, x: Val, normalized_shape: Sequence[Any], weight: Val | None, bias: Val | None,
                      eps: float) -> tuple[Val, Val, Val]:  # fmt: skip
    t = c.dtype
    dims = range(x.rank - len(normalized_shape), x.rank)
    return standardised(c, c.cast(x, wide_type(t)), dims, eps, weight, bias, t, c.hint)


@op("rms_norm", "_fused_rms_norm")
def rms_norm(
    c: Ctx, x: Val, normalized_shape: Sequence[Any], weight: Val | None = None, eps: float | None = None
) -> Any:
    import torch

    from dlc.frontend.torch_types import TO_TORCH

    t = c.dtype
    w = wide_type(t)
    low = const(torch.finfo(TO_TORCH[w]).eps if eps is None else eps, w)
    dims = list(range(x.rank - len(normalized_shape), x.rank))
    y = c.cast(x, w)
    squares = Val(w, x.shape, lambda i: mul(y.at(i), y.at(i)))
    spread = reduce_dims(c, "sum", squares, dims, True, f"{c.hint}_square")
    n = c.count([total(c, x, dims)], w)
    inverse = c.b.map(f"{c.hint}_rstd", lambda e: apply("rsqrt", add(div(e, n), low)), spread, dtype=w)
    extras = [c.cast(weight, w)] if weight is not None else []

    def element(a: Expr, r: Expr, *rest: Expr) -> Expr:
        e = mul(a, r)
        e = mul(e, rest[0]) if rest else e
        return e if w == t else Cast(t, e)

    out = c.b.map(c.hint, element, y, inverse, *extras, dtype=t)
    return (out, inverse) if "_fused" in c.target else out


def _per_channel(v: Val, rank: int) -> Val:
    """A tensor over channels, placed at dimension 1."""
    return v.reshape([1, v.shape[0], *[1] * (rank - 2)])


def _batch_norm(c: Ctx, x: Val, weight: Val | None, bias: Val | None, mean: Val, var: Val, eps: float) -> Val:
    """`x * alpha + beta` with alpha and beta over channels, which only depend on weights."""
    t = c.dtype
    w = wide_type(t)
    low = const(eps, w)
    inverse = c.b.map(f"{c.hint}_rstd", lambda v: apply("rsqrt", add(v, low)), c.cast(var, w), dtype=w)
    alpha = inverse
    if weight is not None:
        alpha = c.b.map(f"{c.hint}_scale", mul, c.cast(weight, w), inverse, dtype=w)
    shift = [c.cast(bias, w)] if bias is not None else []

    def offset(m: Expr, a: Expr, *rest: Expr) -> Expr:
        e = apply("neg", mul(m, a))
        return add(rest[0], e) if rest else e

    beta = c.b.map(f"{c.hint}_shift", offset, c.cast(mean, w), alpha, *shift, dtype=w)

    def element(e: Expr, a: Expr, b: Expr) -> Expr:
        y = add(mul(e, a), b)
        return y if w == t else Cast(t, y)

    return c.b.map(c.hint, element, c.cast(x, w), _per_channel(alpha, x.rank), _per_channel(beta, x.rank), dtype=t)


def _batch_statistics(c: Ctx, x: Val, weight: Val | None, bias: Val | None, eps: float) -> Val:
    t = c.dtype
    dims = [d for d in range(x.rank) if d != 1]
    scale = _per_channel(weight, x.rank) if weight is not None else None
    shift = _per_channel(bias, x.rank) if bias is not None else None
    return standardised(c, c.cast(x, wide_type(t)), dims, eps, scale, shift, t, c.hint)[0]


@op("batch_norm", "cudnn_batch_norm")
def batch_norm(c: Ctx, x: Val, weight: Val | None, bias: Val | None, running_mean: Val | None, running_var: Val | None,
               training: bool, momentum: float, eps: float, cudnn_enabled: bool = False) -> Val:  # fmt: skip
    if x.rank < 2:
        raise c.unsupported("the input has no dimension of channels")
    if running_mean is None or running_var is None:
        return _batch_statistics(c, x, weight, bias, eps)
    if training:
        raise TrainingMode(c.loc, op=c.target)
    return _batch_norm(c, x, weight, bias, running_mean, running_var, eps)


@op("_native_batch_norm_legit_no_training")
def batch_norm_no_training(c: Ctx, x: Val, weight: Val | None, bias: Val | None, mean: Val, var: Val, momentum: float,
                           eps: float) -> tuple[Val, Val, Val]:  # fmt: skip
    y = _batch_norm(c, x, weight, bias, mean, var, eps)
    empty = c.b.scalar(0, wide_type(c.dtype)).broadcast_to([0])
    return y, empty, empty


@op(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit.no_stats",
    "_native_batch_norm_legit_functional",
)
def native_batch_norm(c: Ctx, *args: Any) -> tuple[Val, Val, Val]:
    if "no_stats" in c.target:
        x, weight, bias, _training, _momentum, eps = args
        y = _batch_statistics(c, x, weight, bias, eps)
    else:
        x, weight, bias, mean, var, training, _momentum, eps = args
        if training:
            raise TrainingMode(c.loc, op=c.target)
        y = _batch_norm(c, x, weight, bias, mean, var, eps)
    empty = c.b.scalar(0, wide_type(c.dtype)).broadcast_to([0])
    return y, empty, empty


@op("instance_norm")
def instance_norm(c: Ctx, x: Val, weight: Val | None, bias: Val | None, running_mean: Val | None, running_var: Val | None,
                  use_input_stats: bool, momentum: float, eps: float, cudnn_enabled: bool = False) -> Val:  # fmt: skip
    if not use_input_stats and running_mean is not None and running_var is not None:
        return _batch_norm(c, x, weight, bias, running_mean, running_var, eps)
    t = c.dtype
    scale = _per_channel(weight, x.rank) if weight is not None else None
    shift = _per_channel(bias, x.rank) if bias is not None else None
    return standardised(c, c.cast(x, wide_type(t)), range(2, x.rank), eps, scale, shift, t, c.hint)[0]


def _group_norm(c: Ctx, x: Val, groups: int, weight: Val | None, bias: Val | None, eps: float) -> tuple[Val, Val, Val]:
    t = c.dtype
    per = x.shape[1] // groups
    split: list[IntLike] = [x.shape[0], groups, per, *x.shape[2:]]
    y = c.cast(x, wide_type(t)).reshape(split)
    params = [v.reshape([1, groups, per, *[1] * (x.rank - 2)]) if v is not None else None for v in (weight, bias)]
    out, mean, inverse = standardised(c, y, range(2, len(split)), eps, params[0], params[1], t, c.hint)
    flat: list[IntLike] = [x.shape[0], groups]
    return out.reshape(x.shape), mean.reshape(flat), inverse.reshape(flat)


@op("group_norm")
def group_norm(c: Ctx, x: Val, num_groups: int, weight: Val | None = None, bias: Val | None = None, eps: float = 1e-05,
               cudnn_enabled: bool = True) -> Val:  # fmt: skip
    return _group_norm(c, x, num_groups, weight, bias, eps)[0]


@op("native_group_norm")
def native_group_norm(c: Ctx, x: Val, weight: Val | None, bias: Val | None, n: Any, channels: Any, hw: Any, group: int,
                      eps: float) -> tuple[Val, Val, Val]:  # fmt: skip
    return _group_norm(c, x, group, weight, bias, eps)
