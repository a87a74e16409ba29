"""The guess whether a module decides on data, and what is tried first because of it: the result is the same either way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import nn

from dlc.errors import DlcError
from dlc.frontend import torch_export
from dlc.frontend.python_guess import seems_to_test_data
from dlc.frontend.torch_errors import BadExample, TrainingMode
from dlc.frontend.torch_export import import_torch
from dlc.ir.program import If, show_program, walk_statements


def item(self, x):
    y = self.linear(x)
    if y.mean().item() > 0:
        return y
    return x


def by_a_loop(self, x, n):
    for _ in range(n):
        x = x + 1
    return x


def through_a_tuple(self, x):
    a, (b, _) = self.pair(x)
    return a if b else x


def later_in_a_loop(self, x):
    done = False
    while not done:
        x = x * 2
        done = x.sum() > 9
    return x


def shape(self, x, mask=None):
    if x.shape[0] > 1 and mask is None and x.dim() == 2 and isinstance(x, torch.Tensor):
        x = x + 1
    for layer in self.layers:
        x = layer(x)
    return x


def attribute(self, x, flag=False):
    if self.downsample is not None or flag or self.training:
        x = self.downsample(x)
    for k in range(len(self.layers)):
        if k % 2 == 0:
            x = self.layers[k](x)
    return x


def in_a_function_inside(self, x):
    def choose(y):
        return 1 if y else 2

    return self.apply_to(choose)


@pytest.mark.parametrize("function", [item, by_a_loop, through_a_tuple, later_in_a_loop], ids=lambda f: f.__name__)
def test_tests_of_what_comes_from_a_parameter_are_seen(function: Any) -> None:
    assert seems_to_test_data(function)


@pytest.mark.parametrize("function", [shape, attribute, in_a_function_inside], ids=lambda f: f.__name__)
def test_what_is_known_without_data_is_no_such_test(function: Any) -> None:
    assert not seems_to_test_data(function)


def test_a_function_without_source_is_none() -> None:
    made: dict[str, Any] = {}
    exec("def f(self, x):\n    return 1 if x else 2", made)
    assert not seems_to_test_data(made["f"])


# --- what is tried first ---


class Decides(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x * 2
        return x - 1


class OnlySeemsTo(nn.Module):
    """Its test is one of a number that is known."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("limit", torch.tensor(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.new_zeros(2, 3).shape
        rows, y = (size[0], x)
        if rows + len(y) > 0:
            y = y + 1
        return y


class Trains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x) if x.sum() > 0 else x


EXAMPLE = (torch.arange(6.0).reshape(2, 3),)


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was done, in order."""
    done: list[str] = []
    for name in ("export", "recorded"):
        plain: Callable[..., Any] = getattr(torch_export, name)

        def noting(*args: Any, _name: str = name, _plain: Callable[..., Any] = plain, **kwargs: Any) -> Any:
            done.append(_name)
            return _plain(*args, **kwargs)

        monkeypatch.setattr(torch_export, name, noting)
    return done


def test_a_model_that_decides_is_not_exported_first(exports: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = import_torch(Decides().eval(), EXAMPLE)
    assert exports == ["recorded"]
    assert any(isinstance(s, If) for s in walk_statements(at_once.program.body))
    monkeypatch.setattr(torch_export, "_seems_to_decide", lambda _: False)
    after_all = import_torch(Decides().eval(), EXAMPLE)
    assert exports[1:] == ["export", "recorded"]
    assert show_program(at_once.program, locs=True) == show_program(after_all.program, locs=True)


def test_a_model_that_only_seems_to_is_exported(exports: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch_export._seems_to_decide(OnlySeemsTo())
    seeming = import_torch(OnlySeemsTo().eval(), EXAMPLE)
    assert exports == ["recorded", "export"]
    monkeypatch.setattr(torch_export, "_seems_to_decide", lambda _: False)
    plain = import_torch(OnlySeemsTo().eval(), EXAMPLE)
    assert show_program(seeming.program, locs=True) == show_program(plain.program, locs=True)


def test_extents_that_vary_leave_the_order_as_it_was(exports: list[str]) -> None:
    shapes = ({0: torch.export.Dim("n")},)
    try:
        import_torch(Decides().eval(), EXAMPLE, dynamic_shapes=shapes)
    finally:
        assert exports[0] == "export"


def test_a_recording_that_fails_early_says_what_it_says_later(monkeypatch: pytest.MonkeyPatch) -> None:
    class Prints(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.sum() > 0:
                raise ValueError("positive")
            return x

    messages = []
    for seems in (True, False):
        monkeypatch.setattr(torch_export, "_seems_to_decide", lambda _, s=seems: s)
        with pytest.raises(DlcError) as caught:
            import_torch(Prints().eval(), EXAMPLE)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and "test_python_guess.py" in messages[0]


def test_training_and_examples_are_refused_before_anything_runs(exports: list[str]) -> None:
    with pytest.raises(TrainingMode, match="Dropout 'drop'"):
        import_torch(Trains(), EXAMPLE)
    with pytest.raises(BadExample, match="not a tuple"):
        import_torch(Decides().eval(), cast(Any, EXAMPLE[0]))
    assert exports == []
