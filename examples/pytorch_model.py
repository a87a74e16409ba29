"""A PyTorch model with a symbolic batch: compile, run, save, load."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import dlc

model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.LayerNorm(128), nn.Linear(128, 10)).eval()
x = torch.randn(4, 64)

batch = torch.export.Dim("batch", min=1, max=1024)
exe = dlc.compile(model, (x,), dynamic_shapes=({0: batch},))

for n in (1, 3, 100):  # one artifact serves every batch
    x = torch.randn(n, 64)
    y = exe(x)  # torch in, torch out
    with torch.no_grad():
        error = (y - model(x)).abs().max().item()
    assert error < 1e-5, error
    print(f"batch {n}: {tuple(y.shape)}, largest difference {error:.1e}")

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "mlp.dlc"
    exe.save(path)
    again = dlc.load(path)  # needs NumPy only
    print(f"{path.name}: {path.stat().st_size} bytes, {again(x.numpy()).shape}")
