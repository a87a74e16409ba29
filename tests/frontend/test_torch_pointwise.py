"""Pointwise operators of the PyTorch importer against PyTorch, on every type they take."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.frontend.torch_case import check, data

import dlc
from dlc.frontend.torch_types import numpy_view

NAN, INF = math.nan, math.inf
SPECIAL = torch.tensor([NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 0.5, 1.5, 80.0, -80.0, 1e-3])
POSITIVE = data(3, 4).abs() + 0.1
UNIT = data(3, 4).tanh() * 0.9

ANY = {
    name: getattr(torch, name)
    for name in "exp expm1 exp2 sin cos tan tanh atan sinh cosh asinh erf erfc sigmoid relu neg abs sign square sgn"
    " floor ceil trunc round frac isnan isinf isfinite isposinf isneginf signbit logical_not reciprocal positive"
    " nan_to_num deg2rad rad2deg sinc".split()
} | {
    name: getattr(F, name)
    for name in "silu hardswish hardsigmoid hardtanh elu selu leaky_relu softplus mish softsign logsigmoid gelu relu6 celu"
    " tanhshrink hardshrink softshrink".split()
}


@pytest.mark.parametrize("name", sorted(ANY))
def test_unary(name: str) -> None:
    f = ANY[name]
    # PyTorch's vectorised gelu gives NaN at infinity, its scalar one infinity.
    check(lambda x, y: (f(x), f(y)), data(3, 4) * 3, SPECIAL[3:] if name == "gelu" else SPECIAL)


@pytest.mark.parametrize("name", "log log2 log10 log1p sqrt rsqrt lgamma acosh".split())
def test_positive(name: str) -> None:
    f = getattr(torch, name)
    check(lambda x, y: (f(x), f(y)), POSITIVE + (1 if name == "acosh" else 0), SPECIAL[:6])


@pytest.mark.parametrize("name", "asin acos atanh logit".split())
def test_unit_interval(name: str) -> None:
    f = getattr(torch, name)
    check(lambda x: f(x), UNIT.abs() if name == "logit" else UNIT)


FORMS = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu_alpha": lambda x: F.elu(x, alpha=0.3),
    "celu_alpha": lambda x: F.celu(x, alpha=0.7),
    "softplus": lambda x: F.softplus(x, beta=2.0, threshold=3.0),
    "leaky": lambda x: F.leaky_relu(x, 0.2),
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 2.0),
    "threshold": lambda x: F.threshold(x, 0.1, 20.0),
    "hardshrink": lambda x: F.hardshrink(x, 1.0),
    "clamp": lambda x: torch.clamp(x, -0.5, 0.7),
    "clamp_min": lambda x: torch.clamp(x, min=0.2),
    "clamp_max": lambda x: x.clamp_max(0.2),
    "clamp_tensor": lambda x: torch.clamp(x, torch.tensor(0.0), torch.tensor(1.0)),
    "round_decimals": lambda x: torch.round(x, decimals=2),
    "nan_to_num": lambda x: torch.nan_to_num(x, 1.0, 2.0, -3.0),
    "logit_eps": lambda x: torch.logit(x, 0.1),
    "pow2": lambda x: x**2,
    "pow3": lambda x: x**3,
    "pow_half": lambda x: x.abs() ** 0.5,
    "pow_minus": lambda x: x**-1,
    "pow_any": lambda x: x.abs() ** 1.7,
    "pow_scalar": lambda x: 2**x,
    "rsub": lambda x: 1 - x,
    "add_alpha": lambda x: torch.add(x, x, alpha=3),
    "sub_alpha": lambda x: torch.sub(x, 2, alpha=2),
    "int_scalar": lambda x: x * 2 + 1,
    "glu": lambda x: F.glu(x, 1),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.25])),
    "prelu_channels": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3, 0.4])),
    "rrelu": lambda x: F.rrelu(x),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "masked_fill": lambda x: x.masked_fill(x > 0, -1.5),
    "where_scalar": lambda x: torch.where(x > 0, x, 0.5),
    "where_scalars": lambda x: torch.where(x > 0, 1, 0),
    "isclose": lambda x: torch.isclose(x, x + 1e-9),
    "full_like": lambda x: torch.full_like(x, 3) + torch.zeros_like(x) + torch.ones_like(x),
}


@pytest.mark.parametrize("name", sorted(FORMS))
def test_forms(name: str) -> None:
    check(FORMS[name], data(3, 4), others=[[data(3, 4, seed=1)]])


BINARY = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "floor": lambda x, y: torch.div(x, y, rounding_mode="floor"),
    "trunc": lambda x, y: torch.div(x, y, rounding_mode="trunc"),
    "floor_divide": torch.floor_divide,
    "remainder": torch.remainder,
    "fmod": torch.fmod,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "fmax": torch.fmax,
    "fmin": torch.fmin,
    "eq": torch.eq,
    "ne": torch.ne,
    "lt": torch.lt,
    "le": torch.le,
    "gt": torch.gt,
    "ge": torch.ge,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}
FLOATING = {
    "atan2": torch.atan2,
    "copysign": torch.copysign,
    "hypot": torch.hypot,
    "logaddexp": torch.logaddexp,
    "logaddexp2": torch.logaddexp2,
    "xlogy": lambda x, y: torch.xlogy(x, y.abs()),
    "pow": lambda x, y: torch.pow(x.abs(), y),
    "lerp": lambda x, y: torch.lerp(x, y, 0.3),
    "heaviside": torch.heaviside,
    "addcmul": lambda x, y: torch.addcmul(x, y, y, value=0.5),
    "addcdiv": lambda x, y: torch.addcdiv(x, y, y.abs() + 1, value=0.5),
    "mse": lambda x, y: F.mse_loss(x, y),
}
BITS = {
    "and": torch.bitwise_and,
    "or": torch.bitwise_or,
    "xor": torch.bitwise_xor,
    "not": lambda x, y: torch.bitwise_not(x),
}


@pytest.mark.parametrize("name", sorted(BINARY))
def test_binary(name: str) -> None:
    f = BINARY[name]
    x, y = data(3, 4) * 4, data(3, 4, seed=1)
    i, j = data(3, 4, dtype=torch.int64, lo=-20, hi=20), data(4, dtype=torch.int64, lo=1, hi=6)

    def every(x, y, i, j, s):  # type: ignore[no-untyped-def]
        found = [f(x, y), f(x, y[:1]), f(i, j), f(i, -j), f(x, j)]
        if name not in ("maximum", "minimum", "fmax", "fmin") and not name.startswith("logical"):
            found += [f(x, 2), f(i, 3)]
        return (*found, f(s, s.flip(0)))

    check(every, x, y, i, j, SPECIAL)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_floor_division_keeps_the_sign_of_zero(dtype: torch.dtype) -> None:
    x = torch.tensor([-0.0, 0.0, -0.0, 0.0, 0.5, -0.5, 0.5, 6.0, -6.0, 1.0, -1.0], dtype=dtype)
    y = torch.tensor([3.0, 3.0, -3.0, -3.0, 3.0, -3.0, -3.0, -3.0, -3.0, 0.1, torch.inf], dtype=dtype)
    found = check(lambda x, y: (x // y, torch.signbit(x // y)), x, y)
    compiled = dlc.compile(found.program, cache=False)(numpy_view(x), numpy_view(y))
    np.testing.assert_array_equal(compiled[1], torch.signbit(x // y).numpy())


@pytest.mark.parametrize("name", sorted(FLOATING))
def test_floating_binary(name: str) -> None:
    f = FLOATING[name]
    check(lambda x, y, z: (f(x, y), f(x, z)), data(3, 4), data(3, 4, seed=1), data(4, seed=2))


@pytest.mark.parametrize("name", sorted(BITS))
def test_bits(name: str) -> None:
    f = BITS[name]
    i, j = data(3, 4, dtype=torch.int32), data(3, 4, dtype=torch.int32, seed=1)
    p, q = data(3, 4, dtype=torch.bool), data(3, 4, dtype=torch.bool, seed=1)
    check(lambda i, j, p, q: (f(i, j), f(p, q)), i, j, p, q)


def test_shifts() -> None:
    check(
        lambda i, j: (i << j, i >> j, i << 2, i >> 1),
        data(9, dtype=torch.int32),
        data(9, dtype=torch.int32, lo=0, hi=5).abs(),
    )


def test_promotion() -> None:
    f, h = data(3, 2), data(3, 2, dtype=torch.float16)
    i, u, b = data(3, 2, dtype=torch.int32), data(3, 2, dtype=torch.uint8), data(3, 2, dtype=torch.bool)

    def mixed(f, h, i, u, b):  # type: ignore[no-untyped-def]
        zero_d = torch.tensor(2.5, dtype=torch.float64)
        return (
            f + h,
            h + i,
            i + u,
            u + b,
            b + b,
            b * b,
            i + 0.5,
            h + 0.5,
            h + zero_d,
            i + zero_d,
            i / i,
            b & b,
            u * 3,
            i > 0.5,
            torch.where(b, f, h),
            torch.where(b, i, 1.5),
            h == i,
            b.float() - f,
            i.double(),
            f.long(),
            f.bool(),
            u.half(),
        )

    check(mixed, f, h, i, u, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats(dtype: torch.dtype) -> None:
    x, y = data(3, 5, dtype=dtype), data(3, 5, dtype=dtype, seed=1)

    def several(x, y):  # type: ignore[no-untyped-def]
        return (
            x + y,
            x * y,
            x / (y.abs() + 1),
            torch.tanh(x),
            F.gelu(x),
            F.silu(x),
            x.exp(),
            (x > y),
            x.sum(1),
            x.softmax(1),
            x.mean(),
        )

    check(several, x, y)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers(dtype: torch.dtype) -> None:
    x, y = data(3, 5, dtype=dtype, lo=-100, hi=100), data(3, 5, dtype=dtype, lo=1, hi=9).clamp(min=1)

    def several(x, y):  # type: ignore[no-untyped-def]
        return (
            x + y,
            x * y,
            x - y,
            x // y,
            x % y,
            torch.abs(x),
            -x,
            x.sum(),
            x.float().exp(),
            torch.maximum(x, y),
            x.clamp(2, 50),
            x**2,
        )

    check(several, x, y)


def test_casts_wrap_as_aten_does() -> None:
    x = torch.tensor([0.9, -0.9, 300.0, -300.0, 70000.0, 3e9, -3e9])
    check(lambda x: (x.to(torch.int64), x[:5].to(torch.int32), x[:5].to(torch.int16), x.to(torch.bool)), x)
    i = torch.tensor([300, -1, 70000, 2**40])
    check(lambda i: (i.to(torch.int8), i.to(torch.uint8), i.to(torch.int16), i.to(torch.int32), i.to(torch.float32)), i)


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (1, 0), (7, 1)])
def test_odd_extents(shape: tuple[int, int]) -> None:
    check(
        lambda x, y: (x + y, F.gelu(x), torch.where(x > 0, x, y), x * y[:1]),
        data(*shape),
        data(*shape, seed=1)[:, :1].clone(),
    )
