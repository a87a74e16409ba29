"""torch.compile with dlc as its backend, for inference."""

import torch
from torch import nn

model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 4))
model.eval()
fast = torch.compile(model, backend="dlc")
x = torch.randn(2, 3, 16, 16)
with torch.no_grad():
    error = (fast(x) - model(x)).abs().max().item()
print(f"largest difference {error:.1e}")
assert error < 1e-5
