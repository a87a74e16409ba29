"""Extents of 0 and 1, which torch.export traces as if there were none: done as eager does them, or refused at the call."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from dlc.errors import DlcError
from dlc.frontend.torch_export import import_torch
from dlc.ir.errors import RunTimeExtent
from tests.frontend.torch_case import Fn, close, run

ASKS = {
    "equal": lambda x: x * 2 if x.shape[0] == 1 else x * 3,
    "unequal": lambda x: x * 2 if 1 != x.shape[0] else x * 3,
    "more": lambda x: x.mean(0) if x.shape[0] > 1 else x,
    "ratio": lambda x: x.amax(0) if x.shape[0] / 2 >= 1 else x.amin(1),
    "product": lambda x: x + 1 if x.shape[0] * x.shape[1] > 4 else x - 1,
    "one_of": lambda x: x + 1 if x.shape[0] in (0, 1) else x - 1,
    "squeeze": lambda x: x.squeeze(0) + 1,
    "squeeze_all": lambda x: x.squeeze() + 1,
    "no_rows": lambda x: x.sum(0) if x.shape[0] else x.sum(),
}
"""Programs that do something else for an extent of 0 or 1."""

SAME = {
    "causal": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True if x.shape[0] > 1 else False),
    "short_cut": lambda x: x.sum(0) if x.shape[0] > 1 else x[0],
    "number": lambda x: x * (x.shape[0] == 1),
    "broadcast": lambda x: x + x[:1],
    "unasked": lambda x: torch.cat([x, x.relu()]).softmax(0),
}
"""Programs that do the same for one row as for several."""


def outcomes(program, least: int, data_decides: bool = False) -> dict[int, str]:
    def decides(x):
        y = program(x)
        return y if x.sum() > -1e9 else -y

    model = Fn(decides if data_decides else program).eval()
    imported = import_torch(model, (torch.randn(3, 4),), dynamic_shapes=(({0: Dim("batch", min=least, max=64)},),))
    found = {}
    for rows in (0, 1, 2, 3, 4, 7):
        x = torch.randn(rows, 4)
        try:
            got = run(imported, (x,))[0]
        except RunTimeExtent:
            found[rows] = "refused"
            continue
        want = model(x)
        assert got.shape == tuple(want.shape)
        close(got, want)
        found[rows] = "equal"
    return found


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("name", ASKS)
def test_what_is_otherwise_for_small_extents_is_refused_with_them(name, least):
    found = outcomes(ASKS[name], least)
    assert "refused" in (found[0], found[1])


@pytest.mark.parametrize("data_decides", [False, True])
@pytest.mark.parametrize("name", ASKS)
def test_beside_a_decision_on_data(name, data_decides):
    outcomes(ASKS[name], 1, data_decides)


@pytest.mark.parametrize("data_decides", [False, True])
@pytest.mark.parametrize("name", SAME)
def test_what_is_the_same_takes_one_row(name, data_decides):
    found = outcomes(SAME[name], 1, data_decides)
    assert found[1] == "equal" or (data_decides and name not in ("broadcast", "unasked"))
    assert all(found[rows] == "equal" for rows in (2, 3, 4, 7))


def test_two_extents_that_are_1_at_once():
    class Both(nn.Module):
        def forward(self, x):
            return x * 2 if x.shape[0] * x.shape[1] > 1 else x * 3

    dims = {0: Dim("rows", min=1, max=64), 1: Dim("columns", min=1, max=64)}
    model = Both()
    imported = import_torch(model, (torch.randn(3, 4),), dynamic_shapes=(dims,))
    for shape in ((2, 2), (5, 3)):
        x = torch.randn(shape)
        close(run(imported, (x,))[0], model(x))
    with pytest.raises(DlcError):
        run(imported, (torch.randn(1, 1),))


def test_count_of_1_that_would_be_squeezed_is_refused_when_it_is_found():
    model = Fn(lambda x: torch.nonzero(x > 0).squeeze() * 2).eval()
    imported = import_torch(model, (torch.tensor([1.0, -1.0, 2.0]),))
    for values in ([1.0, -1.0, 2.0], [-1.0, -1.0, -1.0]):
        x = torch.tensor(values)
        close(run(imported, (x,))[0], model(x))
    with pytest.raises(RunTimeExtent, match="squeeze_of_an_extent_of_1"):
        run(imported, (torch.tensor([1.0, -1.0, -2.0]),))


def test_model_is_as_it_was_after_it_ran_with_small_extents():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen = []

        def forward(self, x):
            self.seen.append(x.shape[0])
            return x * 2 if x.shape[0] == 1 else x * 3

    model = Counts().eval()
    import_torch(model, (torch.randn(3, 4),), dynamic_shapes=({0: Dim("batch", min=1, max=64)},))
    assert model.seen == []


D = Dim("d", min=1, max=20)
DERIVED = {
    "twice": (2, 0, 2 * D, lambda x, y: x * 2 if y.shape[0] > 2 else x * 3),
    "next": (1, 1, D + 1, lambda x, y: x * 2 if y.shape[0] == 2 else x * 3),
}
"""How many rows `y` has, by those of `x`, its Dim, and a program that does something else for the least."""


@pytest.mark.parametrize("name", DERIVED)
def test_extent_that_is_computed_of_another(name):
    factor, more, dim, program = DERIVED[name]
    examples = {n: (torch.randn(n, 4), torch.randn(factor * n + more, 4)) for n in (3, 1, 2, 5)}
    imported = import_torch(Fn(program).eval(), examples[3], dynamic_shapes=(({0: D}, {0: dim}),))
    for n, args in examples.items():
        if n == 1:
            with pytest.raises(RunTimeExtent):
                run(imported, args)
        else:
            close(run(imported, args)[0], program(*args))


@pytest.mark.parametrize("kind", [Dim.AUTO, Dim.DYNAMIC])
def test_parity_of_an_extent_whose_limits_pytorch_finds(kind):
    model = Fn(lambda x: x.view(-1, 2, 4) if x.shape[0] % 2 == 0 else x).eval()
    imported = import_torch(model, (torch.randn(3, 4),), dynamic_shapes=(({0: kind},),))
    for rows in (3, 5, 9):
        x = torch.randn(rows, 4)
        close(run(imported, (x,))[0], model(x))
    for rows in (2, 4, 8):
        with pytest.raises(RunTimeExtent):
            run(imported, (torch.randn(rows, 4),))
