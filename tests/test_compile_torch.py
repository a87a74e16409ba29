"""`dlc.compile` on torch modules: small networks of each kind against eager, symbolic extents, saved and loaded."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlc
from dlc.errors import DlcError
from dlc.importing import import_any

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402


class Attention(nn.Module):
    """Two heads over a sequence, with a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.norm = nn.Linear(16, 48), nn.Linear(16, 16), nn.LayerNorm(16)

    def forward(self, x: Any, mask: Any) -> Any:
        b, s, _ = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, 2, 8).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)) / 8**0.5 + mask[:, None, None, :]
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, s, 16)
        return self.norm(x + self.out(y))


class Nested(nn.Module):
    """Dicts and tuples in and out, keyword arguments."""

    def forward(self, pair: Any, *, scale: Any) -> Any:
        a, b = pair
        return {"sum": (a + b) * scale, "both": (a, [b.relu()])}


def example(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(got: Any, want: Any) -> None:
    assert got.dtype == want.dtype and got.shape == want.shape
    limit = 1e-5 * max(float(want.abs().max()), 1e-3) if want.numel() else 0.0
    assert want.numel() == 0 or float((got - want).abs().max()) <= limit


def test_attention_of_any_batch_and_length(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attention().eval()
    b, s = torch.export.Dim("b"), torch.export.Dim("s", max=512)
    mask = torch.zeros(2, 5)
    mask[1, 3:] = -1e4
    exe = dlc.compile(model, (example(2, 5, 16), mask), dynamic_shapes=({0: b, 1: s}, {0: b, 1: s}))
    exe.save(tmp_path / "a.dlc")
    again = dlc.load(tmp_path / "a.dlc", threads=1)
    for n, length in ((2, 5), (1, 1), (3, 40), (1, 129)):
        x, m = example(n, length, 16, seed=n), torch.zeros(n, length)
        with torch.no_grad():
            want = model(x, m)
        close(exe(x, m), want)
        close(again(x, mask=m), want)
    report = exe.compile_report
    assert report.seconds["export"] > 0 and report.own_seconds < report.seconds["total"]


def test_what_was_imported_before_takes_no_time_of_this_compilation() -> None:
    imported = import_any(torch.nn.Linear(3, 3).eval(), (torch.ones(2, 3),), None, None, None)
    assert imported.seconds["export"] > 0
    report = dlc.compile(imported).compile_report
    assert report.seconds["export"] == 0 and report.seconds["import"] >= 0
    assert report.own_seconds == report.seconds["total"]


def test_nesting_is_the_models_own() -> None:
    a, b, scale = example(3, 4), example(3, 4, seed=1), example(4, seed=2)
    exe = dlc.compile(Nested().eval(), ((a, b),), {"scale": scale})
    got, want = exe((a, b), scale=scale), Nested()((a, b), scale=scale)
    assert isinstance(got["both"], tuple) and isinstance(got["both"][1], list)
    close(got["sum"], want["sum"])
    close(got["both"][0], a)
    close(got["both"][1][0], want["both"][1][0])
    numpy = exe((a.numpy(), b.numpy()), scale=scale.numpy())
    np.testing.assert_array_equal(numpy["sum"], got["sum"].numpy())


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            (2, 3, 9, 8),
        ),
        (
            lambda: nn.Sequential(nn.Conv1d(4, 8, 5, stride=2, groups=2), nn.GELU(), nn.Flatten(), nn.LazyLinear(3)),
            (2, 4, 21),
        ),
        (lambda: nn.Sequential(nn.Linear(7, 33), nn.SiLU(), nn.Linear(33, 5), nn.Softmax(-1)), (4, 7)),
        (
            lambda: nn.Sequential(nn.ConvTranspose2d(3, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(1)),
            (1, 3, 4, 5),
        ),
    ],
    ids=["conv", "groups", "mlp", "transposed"],
)
def test_small_networks(model: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net = model().eval()
    x = example(*shape)
    with torch.no_grad():
        want = net(x)
        close(dlc.compile(net, (x,))(x), want)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("both", [False, True])
def test_recurrent(kind: Any, both: bool) -> None:
    torch.manual_seed(0)
    net = kind(6, 10, num_layers=2, bidirectional=both, batch_first=True).eval()
    x = example(3, 7, 6)
    with torch.no_grad():
        (want, state) = net(x)
    got, final = dlc.compile(net, (x,))(x)
    close(got, want)
    for g, w in zip(
        final if isinstance(final, tuple) else (final,), state if kind is nn.LSTM else (state,), strict=True
    ):
        close(g, w)


def test_saved_model_without_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 33), nn.ReLU(), nn.Linear(33, 5)).eval()
    x = example(4, 7)
    dlc.compile(net, (x,), dynamic_shapes=({0: torch.export.Dim("b")},)).save(tmp_path / "m.dlc")
    np.save(tmp_path / "x.npy", x.numpy())
    with torch.no_grad():
        np.save(tmp_path / "y.npy", net(x).numpy())
    code = f"""
import sys
for name in ("torch", "onnx", "mlir", "llvm"):
    sys.modules[name] = None
import numpy as np, dlc
exe = dlc.load({str(tmp_path / "m.dlc")!r})
x, y = np.load({str(tmp_path / "x.npy")!r}), np.load({str(tmp_path / "y.npy")!r})
np.testing.assert_allclose(exe(x), y, rtol=1e-4, atol=1e-5)
np.testing.assert_allclose(exe(x[:1]), y[:1], rtol=1e-4, atol=1e-5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd="/")
    assert done.returncode == 0, done.stderr


def test_what_cannot_be_exported_is_refused() -> None:
    with pytest.raises(DlcError, match="DLC0613"):
        dlc.compile(nn.Linear(2, 2))
    with pytest.raises(DlcError):
        dlc.compile(nn.Dropout(0.5).train(), (example(3),))
