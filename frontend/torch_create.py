"""ATen operators that make tensors: constants, ranges, identity matrices. Each is a view of no tensor, never stored."""

from __future__ import annotations

from typing import Any

from dlc.frontend.torch_context import Ctx, Operand, add, index_cmp, mul, op, select
from dlc.frontend.torch_errors import RandomOperator
from dlc.ir.dtype import BOOL, F64, I64
from dlc.ir.expr import Cast, Expr, Index, const
from dlc.ir.extent import IntExpr
from dlc.ir.view import Val


def filled(c: Ctx, value: Operand) -> Val:
    """The result's shape, all of one value."""
    return c.val(value, c.dtype).broadcast_to(c.shape)


@op("full", "full_like", "fill.Scalar", "fill.Tensor")
def full(c: Ctx, _like: Any, value: Any, *_: Any, **__: Any) -> Val:
    return filled(c, value)


@op("new_full")
def new_full(c: Ctx, _like: Any, _shape: Any, value: Any, *_: Any, **__: Any) -> Val:
    return filled(c, value)


@op("zeros", "zeros_like", "new_zeros", "zero", "empty.memory_format", "empty_like", "new_empty", "empty_strided",
    "new_empty_strided", "empty_permuted", "_efficientzerotensor")  # fmt: skip
def zeros(c: Ctx, *_: Any, **__: Any) -> Val:
    return filled(c, 0)


@op("ones", "ones_like", "new_ones")
def ones(c: Ctx, *_: Any, **__: Any) -> Val:
    return filled(c, 1)


@op("scalar_tensor")
def scalar_tensor(c: Ctx, value: Operand, **_: Any) -> Val:
    return c.val(value, c.dtype)


@op("arange", "arange.start", "arange.start_step", "prims.iota.default")
def arange(c: Ctx, *args: Any, step: Any = 1, start: Any = 0, **__: Any) -> Val:
    t = c.dtype
    if "iota" in c.target or len(args) == 1:
        first = start
    else:
        first, step = args[0], args[2] if len(args) > 2 else step
    whole = all(isinstance(v, (int, IntExpr)) for v in (first, step))
    if whole:

        def at(i: tuple[IntExpr, ...]) -> Expr:
            e = i[0] * step + first
            return Index(e) if t == I64 else Cast(t, Index(e))

        return Val(t, c.shape, at)
    base, by = c.val(first, F64).at(()), c.val(step, F64).at(())
    wide = Val(F64, c.shape, lambda i: add(base, mul(Cast(F64, Index(i[0])), by)))
    return c.b.materialize(c.cast(wide, t), c.hint)


@op("linspace")
def linspace(c: Ctx, start: Operand, end: Operand, steps: Any, **__: Any) -> Val:
    t = c.dtype
    n = c.shape[0]
    a, z = c.val(start, F64).at(()), c.val(end, F64).at(())
    if n.const == 1:
        return c.val(start, t).broadcast_to(c.shape)
    from dlc.frontend.torch_context import div, extent_scalar, sub

    by = div(sub(z, a), extent_scalar(n - 1, F64))

    def element(i: IntExpr) -> Expr:
        # The second half counts from the end, so that the last element is `end`.
        up = add(a, mul(Cast(F64, Index(i)), by))
        down = sub(z, mul(Cast(F64, Index(n - 1 - i)), by))
        return Cast(t, select(index_cmp("lt", i, n // 2), up, down))

    return c.b.compute(c.hint, c.shape, element, t)


@op("logspace")
def logspace(c: Ctx, start: float, end: float, steps: int, base: float = 10.0, **__: Any) -> Val:
    import torch

    from dlc.frontend.torch_types import TO_TORCH, numpy_view

    return c.b.constant(numpy_view(torch.logspace(start, end, steps, base, dtype=TO_TORCH[c.dtype])), c.hint)


@op("eye", "eye.m")
def eye(c: Ctx, *_: Any, **__: Any) -> Val:
    t = c.dtype
    one, zero = const(1, t), const(0, t)
    return Val(t, c.shape, lambda i: select(index_cmp("eq", i[0], i[1]), one, zero))


@op("tril_indices", "triu_indices")
def tri_indices(c: Ctx, row: int, col: int, offset: int = 0, **__: Any) -> Val:
    import torch

    from dlc.frontend.torch_types import numpy_view

    make = torch.tril_indices if "tril" in c.target else torch.triu_indices
    return c.b.constant(numpy_view(make(row, col, offset)), c.hint)


@op("one_hot")
def one_hot(c: Ctx, x: Val, num_classes: Any = -1) -> Val:
    from dlc.frontend.torch_context import apply

    if isinstance(num_classes, int) and num_classes < 0:
        raise c.unsupported("the number of classes is not given")

    def element(*i: IntExpr) -> Expr:
        return select(apply("eq", c.cast(x, I64).at(i[:-1]), Index(i[-1])), const(1, I64), const(0, I64))

    return c.b.compute(c.hint, c.shape, element, I64)


@op("meshgrid", "meshgrid.indexing")
def meshgrid(c: Ctx, tensors: list[Val], *, indexing: str = "ij") -> list[Val]:
    shape = c.shape_of(c.meta[0])
    place = list(range(len(tensors)))
    if indexing == "xy" and len(tensors) > 1:
        place[0], place[1] = 1, 0
    return [
        Val(x.dtype, shape, lambda i, x=x, p=p: x.at((i[p],) if x.rank else ()))  # type: ignore[misc]
        for x, p in zip(tensors, place, strict=True)
    ]


@op("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
def dropout(c: Ctx, x: Val, p: float, train: bool | None = False) -> Any:
    if train and p > 0:
        from dlc.frontend.torch_errors import TrainingMode

        raise TrainingMode(c.loc, op=c.target)
    if "native" in c.target:
        return x, c.b.scalar(True, BOOL).broadcast_to(x.shape)
    return x


@op("rand", "randn", "randint", "randint.low", "randperm", "rand_like", "randn_like", "randint_like", "randint_like.low_dtype",
    "bernoulli", "bernoulli.p", "bernoulli.Tensor", "bernoulli.float", "multinomial", "normal.Tensor_Tensor", "normal.float_float",
    "normal_functional", "uniform", "exponential", "random", "random.from", "poisson", "normal", "cauchy", "geometric",
    "log_normal")  # fmt: skip
def random(c: Ctx, *_: Any, **__: Any) -> Val:
    raise RandomOperator(c.loc, op=c.target)


@op("complex", "view_as_complex", "view_as_real", "polar", "fft_fft", "fft_rfft", "fft_irfft", "_fft_r2c", "_fft_c2r", "_fft_c2c",
    "stft", "istft", "angle", "imag")  # fmt: skip
def complex_numbers(c: Ctx, *_: Any, **__: Any) -> Val:
    raise c.unsupported("complex numbers have no element type here")
