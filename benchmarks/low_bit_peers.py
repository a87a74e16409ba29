"""The same linear layers by others: onnxruntime, OpenVINO, PyTorch and llama.cpp, each as a ring of layers of different weights.

What each of them multiplies with codes of a number of bits, and where its layer is another than ours: PyTorch's bytes have one
scale for a whole row, and llama.cpp's types have groups of their own (32, or 256 with scales of 6 bits for each 16).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ggml_library import TYPES as GGML_TYPES
from benchmarks.ggml_library import Ggml
from benchmarks.low_bit_layers import Layer, Turn
from dlc.ir.dtype import DTYPES

THREADS = 2
Array = np.ndarray[Any, Any]
Make = Callable[[Layer, int], Turn]
"""A ring of a layer, of at least as many bytes of weights."""


def peers(layer: Layer, ggml: Path | None) -> dict[str, Make]:
    """Who else multiplies with weights of the layer's number of bits, by name."""
    bits, group = DTYPES[layer.weights].bits, layer.group
    if layer.weights[0] not in "ui" or layer.activation == "bf16" or layer.terms % group:
        return {}
    made: dict[str, Make] = {}
    if bits in (2, 4, 8):
        made["onnxruntime"] = onnx_ring
    if bits in (4, 8):
        made["openvino"] = openvino_ring
    if bits == 4 and group in (32, 64, 128, 256):
        made["torch int4pack bf16"] = torch_int4_ring
    if bits == 8:
        made |= {"torch int8pack bf16, scales of rows": torch_int8_ring, "torch._int_mm, scales of rows": torch_int_mm_ring}
    if ggml is not None and bits in GGML_TYPES and layer.activation == "i8":
        for repack in (False, True) if bits == 4 else (False,):
            name = f"llama.cpp {GGML_TYPES[bits][0]}{', repacked' if repack else ''}"
            made[name] = lambda of, least, repack=repack: ggml_ring(of, least, ggml, repack)
    return {f"{name} {layer.name}": make for name, make in made.items()}


def _count(layer: Layer, size: int, least: int) -> int:
    return max(2, -(-least // size))


def rows(layer: Layer) -> Array:
    """The activations of every peer."""
    return np.random.default_rng(1).standard_normal((layer.rows, layer.terms)).astype(np.float32)


def codes(layer: Layer, number: int) -> Array:
    """The packed codes of a layer of the ring, those of a column side by side."""
    size = layer.columns * layer.terms * DTYPES[layer.weights].bits // 8
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)


def scales(layer: Layer) -> Array:
    """One for each column and group."""
    groups = layer.terms // layer.group
    rng, bits = np.random.default_rng(0), DTYPES[layer.weights].bits
    return ((rng.random((layer.columns, groups)) + 0.5) / layer.terms**0.5 / 2**bits).astype(np.float32)


# --- onnxruntime ---


def onnx_ring(layer: Layer, least: int) -> Turn:
    """MatMulNBits, one session of all layers; accuracy level 4 rounds activations to bytes."""
    import onnxruntime

    count = _count(layer, layer.weight_bytes, least)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    model = onnx_layers(layer, count, 4 if layer.activation == "i8" else 0)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    x = rows(layer)
    return Turn(lambda: session.run(None, {"x": x}), count, layer.weight_bytes)


def onnx_layers(layer: Layer, count: int, accuracy: int) -> bytes:
    """A model of `count` MatMulNBits of different weights, side by side on one input."""
    from onnx import TensorProto, helper, numpy_helper

    bits, blocks = DTYPES[layer.weights].bits, layer.terms // layer.group
    nodes, weights = [], []
    for i in range(count):
        packed = codes(layer, i).reshape(layer.columns, blocks, layer.group * bits // 8)
        weights += [numpy_helper.from_array(packed, f"b{i}"), numpy_helper.from_array(scales(layer).reshape(-1), f"s{i}")]
        nodes.append(
            helper.make_node(
                "MatMulNBits", ["x", f"b{i}", f"s{i}"], [f"y{i}"], domain="com.microsoft", K=layer.terms, N=layer.columns,
                bits=bits, block_size=layer.group, accuracy_level=accuracy,
            )
        )  # fmt: skip
    shapes = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [layer.rows, layer.columns]) for i in range(count)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [layer.rows, layer.terms])
    graph = helper.make_graph(nodes, "layers", [x], shapes, weights)
    domains = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(graph, opset_imports=domains, ir_version=9).SerializeToString()
    return model


# --- OpenVINO ---


def openvino_ring(layer: Layer, least: int) -> Turn:
    """Compressed weights, which its fully connected layer takes as they are; activations rounded by group where ours are bytes."""
    import openvino as ov
    from openvino import opset13 as op

    bits, groups = DTYPES[layer.weights].bits, layer.terms // layer.group
    shape = [layer.columns, groups, layer.group]
    count = _count(layer, layer.weight_bytes, least)
    x = op.parameter([layer.rows, layer.terms], np.float32, name="x")
    scale = op.constant(scales(layer)[..., None].astype(np.float16))
    results = []
    for number in range(count):
        packed = codes(layer, number)
        kind = ov.Type.i4 if bits == 4 else ov.Type.i8
        code = op.constant(ov.Tensor(packed if bits == 4 else packed.view(np.int8), ov.Shape(shape), kind), shared_memory=False)
        weight = op.reshape(op.multiply(op.convert(code, np.float16), scale), [layer.columns, layer.terms], special_zero=False)
        results.append(op.matmul(x, op.convert(weight, np.float32), transpose_a=False, transpose_b=True))
    settings = {
        "INFERENCE_NUM_THREADS": THREADS,
        "ENABLE_CPU_PINNING": False,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": layer.group if layer.activation == "i8" else 0,
    }
    request = ov.compile_model(ov.Model(results, [x]), "CPU", settings).create_infer_request()
    given = rows(layer)
    return Turn(lambda: request.infer([given], share_inputs=True, share_outputs=True), count, layer.weight_bytes)


# --- PyTorch ---


def _torch() -> Any:
    import torch

    torch.set_num_threads(THREADS)
    return torch


def _calls(run: Callable[[Any], Any], weights: list[Any], size: int) -> Turn:
    def turn() -> None:
        for one in weights:
            run(one)

    return Turn(turn, len(weights), size)


def torch_int4_ring(layer: Layer, least: int) -> Turn:
    """What torchao's int4 weights become on a CPU; activations and scales bf16."""
    torch = _torch()
    groups = layer.terms // layer.group
    size = layer.columns * (layer.terms // 2 + 4 * groups)  # a scale and a zero point in bf16
    x = torch.from_numpy(rows(layer)).bfloat16()
    numbers = torch.randint(0, 16, (layer.columns, layer.terms), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    scale = torch.from_numpy(scales(layer).T.copy()).bfloat16()
    both = torch.stack([scale, torch.zeros_like(scale)], dim=-1).contiguous()
    weights = [(packed.clone(), both.clone()) for _ in range(_count(layer, size, least))]
    return _calls(lambda w: torch.ops.aten._weight_int4pack_mm_for_cpu(x, w[0], layer.group, w[1]), weights, size)


def _bytes(torch: Any, layer: Layer, least: int) -> list[Any]:
    numbers = torch.randint(-128, 128, (layer.columns, layer.terms), dtype=torch.int8)
    return [numbers.clone() for _ in range(_count(layer, layer.columns * layer.terms, least))]


def torch_int8_ring(layer: Layer, least: int) -> Turn:
    """What torchao's int8 weights become; activations bf16."""
    torch = _torch()
    x = torch.from_numpy(rows(layer)).bfloat16()
    scale = torch.full((layer.columns,), 1e-3, dtype=torch.bfloat16)
    size = layer.columns * (layer.terms + 2)
    return _calls(lambda w: torch.ops.aten._weight_int8pack_mm(x, w, scale), _bytes(torch, layer, least), size)


def torch_int_mm_ring(layer: Layer, least: int) -> Turn:
    """Bytes by bytes, the activations rounded in the call, as torchao's dynamic quantisation does."""
    torch = _torch()
    x = torch.from_numpy(rows(layer))
    scale = torch.full((layer.columns,), 1e-3)

    def run(w: Any) -> Any:
        step = x.abs().amax(-1, keepdim=True) / 127.0
        return torch._int_mm((x / step).round().to(torch.int8), w.t()) * step * scale

    return _calls(run, _bytes(torch, layer, least), layer.columns * (layer.terms + 4))


# --- llama.cpp ---


def ggml_ring(layer: Layer, least: int, folder: Path, repack: bool) -> Turn:
    """ggml's product with one of its block types, as they come or (Q4_0 alone) in the order of its interleaved kernels."""
    ggml = Ggml(folder)
    bits = DTYPES[layer.weights].bits
    weights, size = GGML_TYPES[bits][2]
    size *= layer.columns * layer.terms // weights
    count = _count(layer, size, least)
    return Turn(ggml.products(bits, rows(layer), layer.columns, count, repack, THREADS), count, size)


__all__ = ["Make", "codes", "onnx_ring", "openvino_ring", "peers", "rows", "scales"]
