"""torch.compile(backend="dlc"): inference, changing shapes, changing weights, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def error(model: nn.Module, fast: object, *inputs: torch.Tensor) -> float:
    with torch.no_grad():
        want, got = model(*inputs), fast(*inputs)  # type: ignore[operator]
    assert got.shape == want.shape and got.dtype == want.dtype
    return float((got - want).abs().max() / want.abs().max())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def test_computes_what_eager_computes() -> None:
    model = net()
    assert error(model, torch.compile(model, backend="dlc"), torch.randn(4, 6)) < 1e-5


def test_serves_other_batches_from_one_executable() -> None:
    model = net()
    fast = torch.compile(model, backend="dlc", dynamic=True)
    for batch in (4, 7, 2):
        assert error(model, fast, torch.randn(batch, 6)) < 1e-5


def test_sees_changed_weights() -> None:
    model = net()
    fast = torch.compile(model, backend="dlc")
    x = torch.randn(4, 6)
    assert error(model, fast, x) < 1e-5
    with torch.no_grad():
        model[0].weight.mul_(2.0)  # in place
    assert error(model, fast, x) < 1e-5
    model[2].weight = nn.Parameter(torch.randn(3, 16))  # another tensor
    assert error(model, fast, x) < 1e-5
    model.load_state_dict(net().state_dict())
    assert error(model, fast, x) < 1e-5


def test_buffers_are_weights_too() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval()
    fast = torch.compile(model, backend="dlc")
    x = torch.randn(5, 6)
    assert error(model, fast, x) < 1e-5
    model[1].running_mean.add_(1.0)
    assert error(model, fast, x) < 1e-5


def test_training_is_refused() -> None:
    fast = torch.compile(net(), backend="dlc")
    with pytest.raises(Exception, match="DLC0670"):
        fast(torch.randn(4, 6))


def test_weights_written_behind_the_version_counter_are_noticed() -> None:
    model, x = torch.nn.Linear(4, 4).eval(), torch.randn(2, 4)
    compiled = torch.compile(model, backend="dlc")
    with torch.no_grad():
        compiled(x)
        model.weight.data.add_(1.0)
        torch.testing.assert_close(compiled(x), model(x))
        model.weight.data = torch.zeros(4, 4)
        torch.testing.assert_close(compiled(x), model(x))


def test_integers_that_are_no_extent_are_compiled_in() -> None:
    compiled = torch.compile(lambda x, k: x.t() @ x * k, backend="dlc")
    with torch.no_grad():
        for x, k in ((torch.randn(3, 4), 5), (torch.randn(4, 3).t(), 7), (torch.randn(6, 2), 7)):
            torch.testing.assert_close(compiled(x, k), x.t() @ x * k)
