"""Models as PT2E leaves them: bytes between `quantize_per_tensor` and `dequantize_per_tensor`, weights per channel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

import dlc
from dlc.codegen.target import host_flags
from dlc.compiler import run_passes
from dlc.frontend.errors import UnsupportedOperator
from dlc.frontend.torch_export import import_torch
from dlc.ir.interpret import run_program

Q = torch.ops.quantized_decomposed


def qdq(x: Tensor, scale: float, zero: int, dtype: torch.dtype = torch.int8) -> Tensor:
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    q = Q.quantize_per_tensor(x, scale, zero, low, high, dtype)
    return Q.dequantize_per_tensor(q, scale, zero, low, high, dtype)


class Quantised(nn.Module):
    """A convolution with padding, a residual of it, a pool and a linear layer."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.dtype = dtype
        self.zero = 7 if dtype == torch.int8 else 131
        for name, shape in {"first": (24, 5, 3, 3), "second": (24, 24, 3, 3), "last": (29, 24)}.items():
            w = torch.randint(-127, 128, shape, generator=g, dtype=torch.int64).to(torch.int8)
            self.register_buffer(name, w)
            self.register_buffer(f"{name}_scale", torch.rand(shape[0], generator=g) * 1e-2 + 1e-3)
        self.bias = nn.Parameter(torch.randn(24, generator=g))
        self.register_buffer("zeros", torch.zeros(29, dtype=torch.int64))

    def weight(self, name: str) -> Tensor:
        w, scale = getattr(self, name), getattr(self, f"{name}_scale")
        return Q.dequantize_per_channel(w, scale, self.zeros[: w.shape[0]], 0, -127, 127, torch.int8)

    def forward(self, x: Tensor) -> Tensor:
        x = qdq(x, 0.021, self.zero, self.dtype)
        y = nn.functional.relu(nn.functional.conv2d(x, self.weight("first"), self.bias, padding=1))
        y = qdq(y, 0.033, self.zero - 3, self.dtype)
        z = nn.functional.conv2d(y, self.weight("second"), padding=1, stride=1)
        z = qdq(z + y, 0.5, self.zero, self.dtype)
        pooled = qdq(z.mean((2, 3)), 0.4, self.zero, self.dtype)
        return nn.functional.linear(pooled, self.weight("last"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_import(dtype: torch.dtype) -> None:
    """The program says what the reference implementation does."""
    model, x = Quantised(dtype).eval(), torch.randn(4, 5, 6, 7)
    imported = import_torch(model, (x,))
    (got,) = run_program(imported.program, [x.numpy()])
    np.testing.assert_allclose(got, model(x).detach().numpy(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("target", ["host", "avx512", "avx2", "baseline"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_compiled(dtype: torch.dtype, target: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Every contraction sums bytes, also those at the edge of a padded image."""
    if target == "avx512" and "avx512bw" not in host_flags():
        pytest.skip("the host lacks this level")
    model, x = Quantised(dtype).eval(), torch.randn(4, 5, 6, 7)
    exe = dlc.compile(model, (x,), target=target, dump_dir=tmp_path)
    tiles = [p.read_text() for p in (tmp_path / "kernels").glob("*.tile")]
    assert sum("dot<u8, i8>" in t for t in tiles) == 3
    want = model(x).detach().numpy()
    got = exe(x).numpy()
    # a value on the border of two bytes may be rounded to either: one step of the last quantisation, times a weight
    step = 0.4 * float(model.last_scale.max()) * 127
    assert np.abs(got - want).max() <= step and np.mean(np.abs(got - want) > 1e-3) < 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_half_to_even(dtype: torch.dtype) -> None:
    class Round(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Q.quantize_per_tensor(x, 1.0, 0, -128, 127, torch.int8)

    x = torch.tensor(
        [0.5, 1.5, 2.5, -0.5, -1.5, 300.0, -300.0, float("inf"), float("-inf"), 126.5, 127.5, float("nan")], dtype=dtype
    )
    assert torch.equal(dlc.compile(Round(), (x,))(x), Round()(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_bytes_as_torchao_leaves_them(dtype: torch.dtype) -> None:
    class Int8(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            g = torch.Generator().manual_seed(0)
            self.register_buffer("weight", torch.randint(-127, 128, (48, 64), generator=g).to(torch.int8))
            self.register_buffer("scales", (torch.rand(48, generator=g) * 1e-2).to(dtype))

        def forward(self, x: Tensor) -> Tensor:
            return torch.ops.aten._weight_int8pack_mm(x, self.weight, self.scales)

    model, x = Int8(), torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    want = x.double() @ (model.weight.double() * model.scales.double()[:, None]).T
    got = dlc.compile(model, (x,))(x)
    assert got.dtype == dtype
    unit = 2.0**-22 if dtype == torch.float32 else 2.0**-8
    limit = unit * (x.double().abs() @ (model.weight.double() * model.scales.double()[:, None]).abs().T)
    assert ((got.double() - want).abs() <= limit).all()
    assert ((model(x).double() - want).abs() <= 4 * limit + 2.0**-6 * want.abs()).all()  # torch's own is of the same meaning


class Int4(nn.Module):
    """Weights of 4 bits with scales and zero points, packed by torch for this machine."""

    def __init__(self, n: int, k: int, group: int, dtype: torch.dtype) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        codes = torch.randint(0, 16, (n, k), generator=g)
        self.group = group
        self.register_buffer("weight", torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1))
        both = torch.stack([torch.rand(k // group, n, generator=g), torch.randn(k // group, n, generator=g)], dim=-1) * 1e-1
        self.register_buffer("both", both.to(dtype))
        scale, zero = (self.both[..., p].double().T.repeat_interleave(group, 1) for p in (0, 1))
        self.dense = (codes.double() - 8) * scale + zero

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, self.weight, self.group, self.both)


@pytest.mark.parametrize(
    ("n", "k", "group", "dtype"), [(48, 64, 32, torch.float32), (64, 320, 64, torch.bfloat16), (16, 256, 256, torch.float32)]
)
def test_weights_of_four_bits_as_torchao_leaves_them(n: int, k: int, group: int, dtype: torch.dtype) -> None:
    """Whatever way torch packed them here; more terms than are read at a time, and one group."""
    model, x = Int4(n, k, group, dtype), torch.randn(3, k, generator=torch.Generator().manual_seed(1)).to(dtype)
    want = x.double() @ model.dense.T
    exe = dlc.compile(model, (x,))
    got = exe(x)
    assert got.dtype == dtype
    unit = 2.0**-21 if dtype == torch.float32 else 2.0**-8
    limit = unit * (x.double().abs() @ model.dense.abs().T)
    assert ((got.double() - want).abs() <= limit).all()
    assert ((model(x).double() - want).abs() <= 4 * limit + 2.0**-6 * want.abs()).all()  # torch's own is of the same meaning


def test_weights_of_four_bits_stay_codes() -> None:
    """The kernel streams them, four bits each."""
    model = Int4(64, 128, 32, torch.float32)
    program = run_passes(import_torch(model, (torch.randn(3, 128),)).program)
    packed = [p.type for k in program.kernels for p in k.cascade.params if str(p.type.dtype) == "u4"]
    assert len(packed) == 1 and packed[0].elements.const == 64 * 128


def test_weights_of_four_bits_that_are_given_are_refused() -> None:
    class Given(nn.Module):
        def forward(self, x: Tensor, weight: Tensor, both: Tensor) -> Tensor:
            return torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, 32, both)

    model = Int4(16, 64, 32, torch.float32)
    with pytest.raises(UnsupportedOperator, match="its weights are no constant"):
        import_torch(Given(), (torch.randn(3, 64), model.weight, model.both))
