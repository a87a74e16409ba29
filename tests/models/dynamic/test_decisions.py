"""The recorder of decisions: what it notes, where, and with which margin."""

from __future__ import annotations

import math

import pytest
import torch
from tests.models.dynamic.decisions import Decision, recorded


def noted(function, *args) -> list[Decision]:  # type: ignore[no-untyped-def]
    with recorded() as decisions:
        function(*args)
    return decisions


X = torch.tensor([0.5, -2.0, 1.5, 1.4999])


@pytest.mark.parametrize(
    ("function", "value", "margin"),
    [
        (lambda x: bool(x[0] > 0.25), True, 0.25),
        (lambda x: bool(x[1] > 0.0), False, 1.0),  # 2 apart, on a scale of 2
        (lambda x: bool((x > 1.0).any()), True, 0.25),  # the best of the true ones: 0.5 on a scale of 2
        (lambda x: bool((x > -1.0).all()), False, 0.5),
        (lambda x: bool(~(x > 1.0).any()), False, 0.25),
        (lambda x: bool((x[0] > 0.25) & (x[2] > 1.4)), True, 0.1 / 1.5),
        (lambda x: bool((x[0] > 0.25) | (x[2] > 1.4)), True, 0.25),
        (lambda x: int(x.argmax()), 2, 0.0001 / 1.5),
        (lambda x: x.argmin().item(), 1, 1.0),  # 2.5 on a scale of 2 and more
        (lambda x: int((x > 1.49).sum()), 2, 0.0099 / 2),
        (lambda x: x[0].item() > 0.4, True, 0.1),
        (lambda x: 2 * x[0].item() + 1 < 1.5, False, 0.5 / 2),
        (lambda x: int(x[2].item()), 1, 0.5 / 1.5),
        (lambda x: x.argmax().item() == 3, False, 0.0001 / 1.5),
        (lambda x: bool(x.argmax() == 2), True, 0.0001 / 1.5),
        (lambda x: torch.embedding(torch.eye(4), x.topk(1).indices), (2,), 0.0001 / 1.5),
        (lambda x: torch.where(x > 1.0, x, 0.0 * x), (False, False, True, True), 0.25),
        (lambda x: x[x > 1.0], True, 0.4999 / 2),
        (lambda x: torch.nonzero(x > 3.0), False, 1.5 / 3),
    ],
)
def test_value_and_margin(function, value, margin) -> None:  # type: ignore[no-untyped-def]
    found = noted(function, X.double())
    assert found, "nothing was noted"
    assert found[-1].value == value or found[0].value == value
    assert min(d.margin for d in found) == pytest.approx(margin, rel=0.3)


def test_what_is_not_computed_is_certain() -> None:
    for function in (lambda n: bool(n == 3), lambda n: n.item() + 1, lambda n: bool(n)):
        (decision,) = noted(function, torch.tensor(3))
        assert decision.margin == math.inf
    assert noted(lambda x: torch.relu(x).sum(), X) == []


def test_a_written_element_carries_its_margin() -> None:
    def function(x: torch.Tensor) -> bool:
        alive = torch.ones(4, dtype=torch.bool)
        alive[2] = x[0] > 0.499995
        return bool(alive[2])

    assert noted(function, X.double())[-1].close


def test_the_place_is_that_of_the_users_code() -> None:
    here = noted(lambda x: bool(torch.nn.functional.relu(x).max() > 1), X)
    assert here[0].place.startswith("test_decisions.py:")


def test_infinities_and_ties() -> None:
    x = torch.tensor([1.0, -torch.inf, 1.0]).double()
    assert noted(lambda v: int(v.argmax()), x)[0].close
    assert not noted(lambda v: int(v[:2].argmax()), x)[0].close
