"""Matrix products, convolutions, pools, norms, attention and resizing of the PyTorch importer against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.frontend.torch_case import Fn, check, data
from torch import nn
from torch.export import Dim

import dlc
from dlc.errors import DlcError
from dlc.frontend.errors import UnsupportedOperator
from dlc.frontend.torch_export import import_torch

A, B, V, W = data(3, 4, 5), data(3, 5, 2), data(5), data(5, 2, seed=3)
PRODUCTS: dict[str, Callable[..., Any]] = {
    "matmul": lambda a, b, v, w: (
        a @ b,
        a @ w,
        a[0] @ w,
        a @ v,
        v @ w,
        v @ v,
        a[:1] @ b,
        a[0] @ b,
        v @ b,
        torch.matmul(a[None], b),
    ),
    "mm": lambda a, b, v, w: (a[0].mm(w), a.bmm(b), w.t().mv(v), v.dot(v), torch.outer(v, v), torch.inner(v, v)),
    "addmm": lambda a, b, v, w: (
        torch.addmm(a[0, 0, :2], a[0], w),
        torch.addmm(a[0][:, :2], a[0], w, beta=0.5, alpha=2),
        torch.baddbmm(b[:, :4, :1], a, b),
        torch.addmv(a[0, :, 0], a[0], v),
        torch.addbmm(a[0][:, :2], a, b),
        torch.addr(a[0, :2, :], w[0], v),
    ),
    "linear": lambda a, b, v, w: (
        F.linear(a, w.t()),
        F.linear(a, w.t(), w[0]),
        F.linear(v, w.t(), w[0]),
        F.linear(a, v),
    ),
    "einsum": lambda a, b, v, w: (
        torch.einsum("bij,bjk->bik", a, b),
        torch.einsum("bij,jk->kbi", a, w),
        torch.einsum("...ij,jk", a, w),
        torch.einsum("bij->b", a),
        torch.einsum("ii->i", a[0][:, :4]),
        torch.einsum("i,j->ij", v, v),
    ),
    "tensordot": lambda a, b, v, w: (
        torch.tensordot(a, b, dims=([0, 2], [0, 1])),
        torch.cdist(a, a[:, :2]),
        torch.kron(w, w[:1]),
    ),
}


@pytest.mark.parametrize("name", sorted(PRODUCTS))
def test_product(name: str) -> None:
    check(PRODUCTS[name], A, B, V, W)


def test_product_with_symbolic_extents() -> None:
    m, k = Dim("m", min=1, max=99), Dim("k", min=1, max=99)
    check(
        lambda a, b: (a @ b, torch.einsum("bij,bjk->ik", a, b)),
        data(3, 4, 5),
        data(3, 5, 2),
        dynamic=({1: m, 2: k}, {1: k}),
        others=[[data(3, 7, 2), data(3, 2, 2)], [data(3, 1, 9), data(3, 9, 2)]],
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_product_types(dtype: torch.dtype) -> None:
    check(
        lambda a, w: (a @ w, F.linear(a, w.t(), w[0]), F.layer_norm(a, (5,), w[:, 0]), F.rms_norm(a, (5,))),
        A.to(dtype),
        W.to(dtype),
    )


CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.Conv1d(3, 5, 3, padding=1), (2, 3, 9)),
    "1d_stride": (nn.Conv1d(3, 5, 4, stride=3, dilation=2, bias=False), (2, 3, 17)),
    "2d": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (2, 3, 8, 9)),
    "2d_pointwise": (nn.Conv2d(3, 4, 1), (2, 3, 4, 4)),
    "2d_groups": (nn.Conv2d(4, 6, (3, 2), padding=(1, 0), groups=2), (2, 4, 5, 6)),
    "2d_depthwise": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (2, 4, 5, 5)),
    "2d_multiplier": (nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3), (2, 3, 6, 6)),
    "2d_same": (nn.Conv2d(3, 4, (3, 4), padding="same"), (2, 3, 5, 6)),
    "2d_valid": (nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 5, 6)),
    "2d_circular": (nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), (1, 2, 5, 6)),
    "2d_reflect": (nn.Conv2d(2, 2, 3, padding=2, padding_mode="reflect"), (1, 2, 5, 6)),
    "2d_unbatched": (nn.Conv2d(3, 4, 3), (3, 5, 5)),
    "3d": (nn.Conv3d(2, 3, 3, stride=(1, 2, 1), padding=1), (1, 2, 4, 5, 4)),
    "t1d": (nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, output_padding=1), (2, 3, 5)),
    "t1d_plain": (nn.ConvTranspose1d(3, 4, 3), (2, 3, 5)),
    "t2d_up": (nn.ConvTranspose2d(3, 4, 2, stride=2), (2, 3, 4, 5)),
    "t2d": (
        nn.ConvTranspose2d(4, 6, (3, 4), stride=(2, 3), padding=(1, 2), output_padding=(1, 0), groups=2),
        (2, 4, 3, 4),
    ),
    "t2d_dilated": (nn.ConvTranspose2d(2, 3, 3, stride=2, dilation=2, padding=1, bias=False), (1, 2, 4, 4)),
    "t2d_wide": (nn.ConvTranspose2d(2, 3, 5, stride=2, padding=2), (1, 2, 4, 4)),
    "t3d": (nn.ConvTranspose3d(2, 2, 2, stride=2), (1, 2, 2, 3, 2)),
}


@pytest.mark.parametrize("name", sorted(CONVOLUTIONS))
def test_convolution(name: str) -> None:
    layer, shape = CONVOLUTIONS[name]
    check(layer, data(*shape))


def test_convolution_with_symbolic_extents() -> None:
    n, h = Dim("n", min=1, max=9), Dim("h", min=8, max=99)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 2, 2)
    )
    check(layers, data(2, 3, 16, 12), dynamic=({0: n, 2: h},), others=[[data(1, 3, 21, 12)], [data(3, 3, 30, 12)]])
    up = nn.Sequential(nn.ConvTranspose2d(3, 2, 2, stride=2), nn.Upsample(scale_factor=2), nn.AdaptiveAvgPool2d(1))
    check(up, data(2, 3, 8, 4), dynamic=({0: n, 2: h},), others=[[data(1, 3, 11, 4)]])


@pytest.mark.parametrize("width", [11, 12])
@pytest.mark.parametrize("pool", [F.max_pool2d, partial(F.max_pool2d, return_indices=True), F.avg_pool2d], ids=["max", "indices", "avg"])
def test_a_last_window_past_the_end_for_some_sizes_is_refused(pool: Callable[..., Any], width: int) -> None:
    """torch takes the example's decision for all sizes; where it is one for all the result has the size of torch's."""
    w = Dim("w", min=5, max=64)
    with pytest.raises(UnsupportedOperator, match="decides whether a last window begins past the end"):
        import_torch(Fn(lambda x: pool(x, 2, 2, 1, ceil_mode=True)), (data(1, 2, 9, width),), dynamic_shapes=(({3: w},),))
    others = [[data(1, 2, 9, m)] for m in (5, 16, 17, 18)]
    check(Fn(lambda x: pool(x, 3, 2, 0, ceil_mode=True)), data(1, 2, 9, width), dynamic=({3: w},), others=others)
    check(Fn(lambda x: pool(x, 2, 2, 1, ceil_mode=True)), data(1, 2, 9, width))


POOLS: dict[str, Callable[[torch.Tensor], Any]] = {
    "max": lambda x: (
        F.max_pool2d(x, 2),
        F.max_pool2d(x, 3, 2, 1),
        F.max_pool2d(x, (3, 2), (2, 1), (1, 0), (2, 1)),
        F.max_pool1d(x[0], 3),
    ),
    "max_ceil": lambda x: (F.max_pool2d(x, 3, 2, 1, ceil_mode=True), F.max_pool2d(x, 2, 3, ceil_mode=True)),
    "max_index": lambda x: (*F.max_pool2d(x, 3, 2, 1, return_indices=True), *F.max_pool2d(x, 2, return_indices=True)),
    "avg": lambda x: (
        F.avg_pool2d(x, 2),
        F.avg_pool2d(x, 3, 2, 1),
        F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        F.avg_pool1d(x[0], 2),
    ),
    "avg_ceil": lambda x: (
        F.avg_pool2d(x, 3, 2, 1, ceil_mode=True),
        F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False),
        F.avg_pool2d(x, 2, divisor_override=3),
    ),
    "adaptive": lambda x: (
        F.adaptive_avg_pool2d(x, 1),
        F.adaptive_avg_pool2d(x, (3, 5)),
        F.adaptive_avg_pool2d(x, (None, 4)),
        F.adaptive_avg_pool1d(x[0], 3),
    ),
    "adaptive_max": lambda x: (
        F.adaptive_max_pool2d(x, 1),
        F.adaptive_max_pool2d(x, (3, 5)),
        *F.adaptive_max_pool2d(x, (3, 4), return_indices=True),
    ),
    "3d": lambda x: (
        F.max_pool3d(x[None], 2),
        F.avg_pool3d(x[None], 2, 1, 1),
        F.adaptive_avg_pool3d(x[None], (1, 2, 3)),
    ),
    "unfold": lambda x: (F.unfold(x, 3, padding=1, stride=2), F.unfold(x, (2, 3), dilation=(2, 1))),
}


@pytest.mark.parametrize("name", sorted(POOLS))
def test_pool(name: str) -> None:
    check(POOLS[name], data(2, 3, 8, 9))


RESIZES: dict[str, Callable[[torch.Tensor], Any]] = {
    "nearest": lambda x: (
        F.interpolate(x, scale_factor=2),
        F.interpolate(x, size=(7, 3)),
        F.interpolate(x, scale_factor=(3, 1.5)),
        F.interpolate(x[0], 11),
        F.interpolate(x, size=(7, 3), mode="nearest-exact"),
    ),
    "bilinear": lambda x: (
        F.interpolate(x, scale_factor=2, mode="bilinear"),
        F.interpolate(x, size=(7, 3), mode="bilinear"),
        F.interpolate(x, size=(7, 12), mode="bilinear", align_corners=True),
        F.interpolate(x[0], 9, mode="linear"),
        F.interpolate(x, scale_factor=1.5, mode="bilinear"),
    ),
    "bicubic": lambda x: (
        F.interpolate(x, scale_factor=2, mode="bicubic"),
        F.interpolate(x, size=(7, 9), mode="bicubic", align_corners=True),
    ),
    "trilinear": lambda x: F.interpolate(x[None], size=(4, 7, 8), mode="trilinear"),
}


@pytest.mark.parametrize("name", sorted(RESIZES))
def test_resize(name: str) -> None:
    check(RESIZES[name], data(2, 3, 4, 6))


NORMS: dict[str, Callable[..., Any]] = {
    "layer": lambda x, w, b: (F.layer_norm(x, (6,), w, b), F.layer_norm(x, (4, 6)), F.layer_norm(x, (6,), w)),
    "group": lambda x, w, b: (F.group_norm(x, 2, w[:4], b[:4]), F.group_norm(x, 4)),
    "batch": lambda x, w, b: (F.batch_norm(x, b[:4], w[:4].abs(), w[:4], b[:4]), F.batch_norm(x, b[:4], w[:4].abs())),
    "instance": lambda x, w, b: (F.instance_norm(x), F.instance_norm(x, weight=w[:4], bias=b[:4])),
    "rms": lambda x, w, b: (F.rms_norm(x, (6,), w), F.rms_norm(x, (6,)), F.rms_norm(x, (4, 6), eps=1e-3)),
    "local_response": lambda x, w, b: F.local_response_norm(x, 3),
}


@pytest.mark.parametrize("name", sorted(NORMS))
def test_norm(name: str) -> None:
    check(NORMS[name], data(3, 4, 6), data(6), data(6, seed=1))


def test_norm_layers() -> None:
    layer = nn.Sequential(
        nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    )
    for p in layer.parameters():
        nn.init.normal_(p)
    layer[0].running_mean.normal_()
    layer[0].running_var.uniform_(0.5, 2)
    check(layer, data(2, 4, 5, 3), dynamic=({0: Dim("n", min=1, max=9)},), others=[[data(5, 4, 5, 3)]])


def _masked() -> torch.Tensor:
    mask = data(4, 5, dtype=torch.bool)
    mask[1] = False
    mask[2] = True
    return mask


ATTENTION: dict[str, Callable[..., Any]] = {
    "plain": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v),
    "causal": lambda q, k, v, m: (
        F.scaled_dot_product_attention(q, k, v, is_causal=True),
        F.scaled_dot_product_attention(k, q, q, is_causal=True),
    ),
    "mask": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
    "additive": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.zeros(4, 5).masked_fill(~m, float("-inf"))
    ),
    "scale": lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, scale=0.3),
    "grouped": lambda q, k, v, m: F.scaled_dot_product_attention(
        q, k[:, :2], v[:, :2], m[None, None].expand(2, 6, 4, 5), enable_gqa=True
    ),
    "no_heads": lambda q, k, v, m: F.scaled_dot_product_attention(q[0], k[0], v[0], m),
    "shared": lambda q, k, v, m: F.scaled_dot_product_attention(q, k[:1, :1], v[:1, :1]),
    "flat": lambda q, k, v, m: F.scaled_dot_product_attention(q[0, 0], k[0, 0], v[0, 0]),
}


@pytest.mark.parametrize("name", sorted(ATTENTION))
def test_attention(name: str) -> None:
    check(ATTENTION[name], data(2, 6, 4, 8), data(2, 6, 5, 8), data(2, 6, 5, 8, seed=2), _masked())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_attention_types(dtype: torch.dtype) -> None:
    q, k = data(2, 6, 4, 8).to(dtype), data(2, 6, 5, 8).to(dtype)
    check(
        lambda q, k, m: (
            F.scaled_dot_product_attention(q, k, k, m),
            F.scaled_dot_product_attention(q, k[:, :3], k[:, :3], enable_gqa=True),
        ),
        q,
        k,
        torch.zeros(4, 5, dtype=dtype).masked_fill(~_masked(), -10.0),
    )


def test_attention_with_symbolic_extents() -> None:
    n, t = Dim("n", min=1, max=9), Dim("t", min=2, max=99)
    attend = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = attend

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            return self.attend(x, x, x, attn_mask=mask, need_weights=False)[0]

    check(Layer(), data(2, 5, 8), dynamic=({0: n, 1: t},), others=[[data(1, 7, 8)], [data(3, 2, 8)]])


def test_transformer_layers() -> None:
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
    )
    check(encoder, data(2, 5, 8))
    decoder = nn.TransformerDecoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    check(decoder, data(2, 5, 8), data(2, 3, 8, seed=1))


@pytest.mark.parametrize("shape", [(0, 3, 5, 5), (1, 3, 5, 1), (1, 3, 1, 5)])
def test_odd_extents(shape: tuple[int, ...]) -> None:
    weight = data(4, 3, 1, 1)
    check(
        lambda x, w: (
            F.conv2d(x, w),
            F.conv2d(x, w, padding=1),
            F.layer_norm(x, x.shape[-1:]),
            F.avg_pool2d(x, 1),
            x @ x.mT,
        ),
        data(*shape),
        weight,
    )


def test_products_of_groups() -> None:
    import transformers.integrations.moe  # registers its operator

    assert transformers.integrations.moe is not None
    ends = torch.tensor([2, 2, 5], dtype=torch.int32)

    class Groups(nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
            return torch.ops.transformers.grouped_mm_fallback(x, w, ends)

    check(Groups(), data(6, 4), data(3, 4, 2), ends)
    check(lambda x: torch.histc(x, bins=4, min=-1, max=2), data(20))


class Crop(nn.Module):
    """A window whose place, and at the edge whose size, a run finds."""

    def __init__(self, mode: str, **options: bool) -> None:
        super().__init__()
        self.mode, self.options = mode, options

    def forward(self, image: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        y, x = int(at[0]), int(at[1])
        return F.interpolate(image[:, :, y : y + 9, x : x + 7], size=(12, 5), mode=self.mode, **self.options)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_a_crop_of_a_size_found_at_run_time_is_resized(mode: str) -> None:
    """Cut off at the edge, too; an empty one is an error at its line, as it is in eager."""
    options = {} if mode == "nearest" else {"align_corners": False}
    model, image = Crop(mode, **options).eval(), data(1, 3, 16, 16)
    compiled = dlc.compile(model, (image, torch.tensor([2, 3])))
    for at in ((0, 0), (2, 3), (12, 13), (15, 15), (7, 9)):
        want, got = model(image, torch.tensor(at)), compiled(image, torch.tensor(at))
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for at in ((16, 3), (7, 40)):
        with pytest.raises(RuntimeError, match="greater than 0"):
            model(image, torch.tensor(at))
        with pytest.raises(DlcError, match=r"test_torch_nn.py:\d+ .*DLC0541.* not in 1\.\.16"):
            compiled(image, torch.tensor(at))
