"""Numbers from data that scale an operand: rounded as eager rounds, to the bit in f16 and bf16."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dlc.frontend.torch_export import import_torch
from dlc.frontend.torch_types import numpy_view
from tests.frontend.torch_case import Fn, run

PROGRAMS = {
    "add": lambda x, y, n: torch.add(x, y, alpha=n),
    "add_by_names": lambda x, y, n: torch.add(input=x, other=y, alpha=n),
    "add_method": lambda x, y, n: x.add(y, alpha=n),
    "add_in_place": lambda x, y, n: x.clone().add_(y, alpha=n),
    "add_number": lambda x, y, n: torch.add(x, 2.5, alpha=n),
    "add_itself": lambda x, y, n: torch.add(x, n, alpha=n),
    "sub": lambda x, y, n: torch.sub(x, y, alpha=n),
    "sub_in_place": lambda x, y, n: x.clone().sub_(y, alpha=n),
    "rsub": lambda x, y, n: torch.rsub(x, y, alpha=n),
    "rsub_number": lambda x, y, n: torch.rsub(x, 2.5, alpha=n),
    "addcmul": lambda x, y, n: torch.addcmul(x, x, y, value=n),
    "lerp": lambda x, y, n: torch.lerp(x, y, n),
    "lerp_method": lambda x, y, n: x.lerp(y, n),
    "baddbmm": lambda x, y, n: torch.baddbmm(x[None], x[None], y[None], alpha=n)[0],
}
EXACT_IN_INTEGERS = ("add", "add_in_place", "sub", "sub_in_place", "rsub")


def outcomes(name, x, y, n):
    def program(x, y, n):
        number = n.item()
        return PROGRAMS[name](x, y, number) if number > -10 else x

    model = Fn(program).eval()
    got = run(import_torch(model, (x, y, n)), (x, y, n))[0]
    return np.asarray(got), numpy_view(model(x, y, n))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", PROGRAMS)
def test_rounds_once_as_eager_does(name, dtype):
    torch.manual_seed(0)
    x, y = ((torch.randn(32, 32) * 3).to(dtype) for _ in range(2))
    for n in (1.3371, -0.3371):
        got, want = outcomes(name, x, y, torch.tensor(n))
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("n", [3, -2])
@pytest.mark.parametrize("name", EXACT_IN_INTEGERS)
def test_integers_stay_exact(name, n):
    x, y = torch.arange(6), torch.arange(6) * (1 << 40) + 1
    got, want = outcomes(name, x, y, torch.tensor(n))
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("weight", [0.3371, 1.3371, "tensor"])
def test_known_weight(weight):
    x, y = (torch.randn(32, 32).half() for _ in range(2))
    given = torch.rand(32, 32).half() * 2 if weight == "tensor" else weight
    model = Fn(lambda x, y: torch.lerp(x, y, given)).eval()
    np.testing.assert_array_equal(run(import_torch(model, (x, y)), (x, y))[0], model(x, y).numpy())
