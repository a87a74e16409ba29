"""The kernels to be timed as torch modules, for dlc and torch, and as ONNX models, for the other peers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.kernel_shapes import Kernel

SEED = 1


class Chain(nn.Module):
    """max(x * a + b, 0), with a and b along the last dimension."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x * self.a + self.b)


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V, over f32[B, H, P, D] and f32[B, H / n, M, D]."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        grouped = q.shape[1] != k.shape[1]
        return nn.functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=grouped)


def module(kernel: Kernel) -> nn.Module:
    """The kernel with seeded weights, none of which is 0 or 1."""
    made = _module(kernel).eval()
    generator = torch.Generator().manual_seed(SEED)
    norm = kernel.kind in ("layer_norm", "chain")
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * math.prod(parameter.shape[1:]) ** -0.5)
            else:
                parameter.copy_(0.1 * noise + (1.0 if norm and name in ("weight", "a") else 0.0))
    return made


def _module(kernel: Kernel) -> nn.Module:
    match kernel.kind:
        case "linear":
            return nn.Linear(*kernel.dims[1:])
        case "conv":
            return nn.Sequential(*(layer for k in range(kernel.layers) for layer in (_convolution(kernel, k), nn.ReLU())))
        case "layer_norm":
            return nn.LayerNorm(kernel.dims[1])
        case "softmax":
            return nn.Softmax(-1)
        case "chain":
            return Chain(kernel.dims[1])
        case _:
            return Attention(kernel.kind == "causal")


def _convolution(kernel: Kernel, layer: int) -> nn.Conv2d:
    _, c, _, f, window, stride, groups = kernel.dims
    channels = (c, f) if layer % 2 == 0 else (f, c)
    return nn.Conv2d(*channels, window, stride=stride, padding=window // 2, groups=groups)


def inputs(kernel: Kernel, seed: int, rows: int | None = None) -> tuple[torch.Tensor, ...]:
    """Standard normal inputs; `rows` instead of the first extent."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows or shape[0], *shape[1:]) for shape in kernel.shapes)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def compiled(kernel: Kernel) -> Any:
    """The kernel compiled by dlc with a symbolic first extent: the rows or the batch."""
    from torch.export import Dim

    import dlc

    rows = Dim("rows", min=1, max=max(64, 4 * kernel.dims[0]))
    example = inputs(kernel, 0, max(kernel.dims[0], 2))  # torch takes an extent of 1 as a constant
    with torch.no_grad():
        return dlc.compile(module(kernel), example, dynamic_shapes=({0: rows},) * len(example), cache=False)


def onnx_model(kernel: Kernel) -> Any:
    """The same as ONNX, with the weights of `module` and static shapes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = {name.replace(".", "_"): p.detach().numpy() for name, p in module(kernel).named_parameters()}
    nodes, constants = _nodes(kernel, weights)
    names = ["q", "k", "v"] if len(kernel.shapes) == 3 else ["x"]
    given = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in zip(names, kernel.shapes)]
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, kernel.output)
    stored = [numpy_helper.from_array(np.ascontiguousarray(a), n) for n, a in constants.items()]
    made = [helper.make_node(op, ins, [out], **attributes) for op, ins, out, attributes in nodes]
    graph = helper.make_graph(made, kernel.name, given, [result], stored)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(proto)
    return proto


Node = tuple[str, list[str], str, dict[str, Any]]
Arrays = dict[str, np.ndarray]


def _nodes(kernel: Kernel, weights: Arrays) -> tuple[Sequence[Node], Arrays]:
    """The nodes, (operator, inputs, output, attributes), and the constants they read."""
    match kernel.kind:
        case "linear":
            return [("Gemm", ["x", "weight", "bias"], "y", {"transB": 1})], weights
        case "conv":
            return _convolutions(kernel), weights
        case "layer_norm":
            return [("LayerNormalization", ["x", "weight", "bias"], "y", {"axis": -1, "epsilon": 1e-5})], weights
        case "softmax":
            return [("Softmax", ["x"], "y", {"axis": -1})], {}
        case "chain":
            return [("Mul", ["x", "a"], "p", {}), ("Add", ["p", "b"], "s", {}), ("Relu", ["s"], "y", {})], weights
        case _:
            return _attention(kernel)


def _attention(kernel: Kernel) -> tuple[Sequence[Node], Arrays]:
    """As exporters write it; the heads that share keys are a dimension of the queries."""
    b, h, shared, p, m, d = kernel.dims
    mask = np.where(np.arange(m) <= np.arange(p)[:, None], 0, -np.inf).astype(np.float32)
    constants = {
        "scale": np.array(d**-0.5, np.float32),
        "grouped": np.array([b, shared, h // shared * p, d], np.int64),
        "rows": np.array([b, shared, h // shared, p, m], np.int64),
        "scores": np.array([b, shared, h // shared * p, m], np.int64),
        "heads": np.array([b, h, p, d], np.int64),
        "mask": mask,
    }
    together = h == shared
    nodes: list[Node] = [
        ("Transpose", ["k"], "t", {"perm": [0, 1, 3, 2]}),
        *([] if together else [("Reshape", ["q", "grouped"], "g", {})]),
        ("MatMul", ["q" if together else "g", "t"], "s", {}),
        ("Mul", ["s", "scale"], "n", {}),
    ]
    last = "n"
    if kernel.kind == "causal":
        own = [] if together else [("Reshape", ["n", "rows"], "r", {})]
        nodes += [*own, ("Add", ["n" if together else "r", "mask"], "a", {})]
        last = "a"
        if not together:
            nodes.append(("Reshape", ["a", "scores"], "f", {}))
            last = "f"
    nodes.append(("Softmax", [last], "w", {"axis": -1}))
    nodes.append(("MatMul", ["w", "v"], "y" if together else "o", {}))
    if not together:
        nodes.append(("Reshape", ["o", "heads"], "y", {}))
    read = {name for _, names, _, _ in nodes for name in names}
    return nodes, {name: array for name, array in constants.items() if name in read}


def _convolutions(kernel: Kernel) -> list[Node]:
    *_, window, stride, groups = kernel.dims
    attributes = {"kernel_shape": [window] * 2, "pads": [window // 2] * 4, "strides": [stride] * 2, "group": groups}
    nodes: list[Node] = []
    for layer in range(kernel.layers):
        given = "x" if layer == 0 else f"r{layer - 1}"
        result = "y" if layer == kernel.layers - 1 else f"r{layer}"
        nodes.append(("Conv", [given, f"{2 * layer}_weight", f"{2 * layer}_bias"], f"c{layer}", attributes))
        nodes.append(("Relu", [f"c{layer}"], result, {}))
    return nodes


def __getattr__(name: str) -> Any:
    """The module of the kernel with that name, as contenders open it: `benchmarks.kernel_models:linear_8_768_768`."""
    try:
        kernel = Kernel.parse(name)
    except (ValueError, StopIteration):
        raise AttributeError(name) from None
    return lambda: module(kernel)
