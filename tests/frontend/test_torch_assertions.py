"""Sizes that torch.export decided by the example: every other size is done as eager does it, or refused."""

from __future__ import annotations

import itertools

import pytest
import sympy
import torch
from torch import nn
from torch.export import Dim

import dlc
from dlc.errors import DlcError
from dlc.frontend.torch_assertions import fact_of, least_values
from dlc.frontend.torch_errors import ExportFailed
from dlc.frontend.torch_export import export, import_exported, import_torch
from dlc.ir.program import If, Symbol, walk_statements
from tests.frontend.torch_case import close, run

BATCH, OTHER = Dim("batch", min=2, max=64), Dim("other", min=2, max=64)


class One(nn.Module):
    """A decision on one size."""

    def __init__(self, asks):
        super().__init__()
        self.asks = asks

    def forward(self, x):
        return x * 2 if self.asks(x.shape[0]) else x - 1


class Two(One):
    """A decision on two."""

    def forward(self, x, y):
        return x.sum() * 2 + y.sum() if self.asks(x.shape[0], y.shape[0]) else x.sum() - y.sum()


OF_ONE = {
    "even": lambda n: n % 2 == 0,
    "odd": lambda n: n % 2 == 1,
    "more": lambda n: n > 4,
    "less": lambda n: n < 7,
    "equal": lambda n: n == 3,
    "between": lambda n: 3 < n < 6,
    "outside": lambda n: n < 4 or n > 6,
    "third": lambda n: n % 3 == 1,
    "halved": lambda n: n // 2 == 3,
}
OF_TWO = {
    "more": lambda n, m: n > m,
    "equal": lambda n, m: n == m,
    "next": lambda n, m: n == m + 1,
    "product": lambda n, m: n * m > 12,
    "both": lambda n, m: n > 3 and m > 3,
    "sum_is_even": lambda n, m: (n + m) % 2 == 0,
}
SIZES = (2, 3, 4, 5, 6, 7, 9, 12)


def agrees(imported, model, inputs) -> bool:
    """Whether the call is refused; a wrong result fails."""
    try:
        got = run(imported, inputs)[0]
    except DlcError:
        return False
    close(got, model(*inputs))
    return True


@pytest.mark.parametrize("example", [3, 6, 9])
@pytest.mark.parametrize("name", OF_ONE)
def test_a_decision_on_one_size_is_a_branch(name, example):
    model = One(OF_ONE[name])
    imported = import_torch(model, (torch.randn(example, 2),), dynamic_shapes=({0: BATCH},))
    for n in SIZES:
        assert agrees(imported, model, (torch.randn(n, 2),)), n
    assert [s for s in walk_statements(imported.program.body) if isinstance(s, If)]


@pytest.mark.parametrize("example", [(2, 3), (6, 5), (5, 4), (4, 4)])
@pytest.mark.parametrize("name", OF_TWO)
def test_a_decision_on_two_sizes_is_never_taken_for_all(name, example):
    model = Two(OF_TWO[name])
    inputs = tuple(torch.randn(n, 2) for n in example)
    imported = import_torch(model, inputs, dynamic_shapes=({0: BATCH}, {0: OTHER}))
    done = [agrees(imported, model, tuple(torch.randn(n, 2) for n in sizes)) for sizes in itertools.product(SIZES, SIZES)]
    assert sum(done) > len(done) / 2 or example == (4, 4)  # torch takes equal sizes of an example for one


FAR_ONE = {"equal": lambda n: n == 107, "more": lambda n: n > 300, "multiple": lambda n: n % 200 == 0}
FAR_TWO = {"sum": lambda n, m: n + m == 107, "product": lambda n, m: n * m > 4096, "apart": lambda n, m: n - m == 99}


@pytest.mark.parametrize("most", [512, None], ids=["bounded", "unbounded"])
@pytest.mark.parametrize("name", FAR_ONE)
def test_a_size_far_from_the_example(name, most):
    model = One(FAR_ONE[name])
    imported = import_torch(model, (torch.randn(6, 2),), dynamic_shapes=({0: Dim("batch", min=2, max=most)},))
    done = [agrees(imported, model, (torch.randn(n, 2),)) for n in (2, 6, 106, 107, 108, 200, 300, 301, 400)]
    assert sum(done) >= 6


@pytest.mark.parametrize("name", FAR_TWO)
def test_two_sizes_far_from_the_example(name):
    model, inputs = Two(FAR_TWO[name]), (torch.randn(6, 2), torch.randn(5, 2))
    dims = ({0: Dim("batch", min=2, max=512)}, {0: Dim("other", min=2, max=512)})
    imported = import_torch(model, inputs, dynamic_shapes=dims)
    for n, m in ((6, 5), (100, 7), (101, 2), (60, 47), (100, 100), (512, 9), (9, 6)):
        agrees(imported, model, (torch.randn(n, 2), torch.randn(m, 2)))


@pytest.mark.parametrize("example", [3, 6])
@pytest.mark.parametrize("name", OF_ONE)
def test_what_an_exported_program_asserts_of_one_size_is_checked(name, example):
    """Without the model nothing is known but the assertion: calls are held to it, where it is a fact or can be computed."""
    model = One(OF_ONE[name])
    try:
        imported = import_exported(export(model, (torch.randn(example, 2),), None, ({0: BATCH},)))
    except DlcError as error:  # torch.export refuses some itself
        assert "the example decided" in str(error) or isinstance(error, ExportFailed)
        return
    for n in SIZES:
        assert agrees(imported, model, (torch.randn(n, 2),)) == (bool(model.asks(n)) == bool(model.asks(example))), n


def test_what_an_exported_program_takes_for_given_of_two_sizes_is_checked():
    """torch.export lets pass what it decided of two sizes, where that restricts none of them."""
    model = Two(OF_TWO["product"])
    exported = export(model, (torch.randn(2, 2), torch.randn(5, 2)), None, ({0: BATCH}, {0: OTHER}))
    imported = import_exported(exported)
    for sizes in itertools.product(SIZES, SIZES):
        done = agrees(imported, model, tuple(torch.randn(n, 2) for n in sizes))
        assert done == (not model.asks(*sizes)), sizes
    compiled = dlc.compile(exported)
    x, y = torch.randn(9, 2), torch.randn(3, 2)
    with pytest.raises(DlcError, match="what_the_example_decided"):
        compiled(x, y)
    close(compiled(y, y), model(y, y))


def test_conditions_of_speed_alone_are_no_conditions():
    """A convolution's result of one row is a case of its own to PyTorch, and no other result."""
    model = nn.Sequential(nn.Conv1d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten(0, 1)).eval()
    length = Dim("length", min=3, max=64)
    imported = import_torch(model, (torch.randn(2, 3, 11),), dynamic_shapes=({2: length},))
    for n in (3, 4, 5, 6, 64):
        assert agrees(imported, model, (torch.randn(2, 3, n),)), n


S, T = sympy.symbols("s t", integer=True, positive=True)


@pytest.mark.parametrize(
    "condition", [S > T, S >= T, S < T, S <= T, sympy.Eq(S, T + 1), sympy.Ne(S, T), (S > 2) & (T > S)], ids=str
)
def test_least_values_say_what_a_condition_says(condition):
    parts = list(least_values(condition))
    for s, t in itertools.product(range(1, 9), range(1, 9)):
        given = {S: s, T: t}
        assert all(e.subs(given) >= least for e, least in parts) == bool(condition.subs(given))


def test_conditions_that_cannot_be_said():
    with pytest.raises(ValueError, match="s < 2"):
        list(least_values((S < 2) | (S > 5)))


@pytest.mark.parametrize("condition", [S > 4, S < 9, sympy.Eq(S % 3, 0), sympy.Ne(S, 5), sympy.Eq(S % 3, 1), sympy.Eq(S, 6)], ids=str)
def test_a_fact_holds_where_its_condition_does(condition):
    fact = fact_of(condition, Symbol("s", 2, 40))
    if fact is None:
        assert condition in (sympy.Ne(S, 5), sympy.Eq(S % 3, 1))
        return
    for n in range(2, 41):
        assert (fact.lo <= n <= fact.hi and n % fact.divisor == 0) == bool(condition.subs(S, n)), n
