"""Quantised ONNX operators, compiled for every level: bytes are multiplied as bytes, and the results are ONNX's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import dlc

LEVELS = pytest.mark.parametrize("target", ["host", "avx2", "baseline"])
FLOAT, UINT8, INT8, INT32 = TensorProto.FLOAT, TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32


def model(
    nodes: list[Any], inputs: dict[str, tuple[int, tuple[int, ...]]], output: int, data: dict[str, Any], rank: int = 2
) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info("y", output, [f"d{n}" for n in range(rank)])],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in data.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(proto: Any, feeds: dict[str, Any], target: str, folder: Path, dots: int = 1) -> tuple[Any, Any]:
    """(dlc's result, the reference evaluator's), and as many kernels with grouped products as there should be."""
    exe = dlc.compile(proto, target=target, dump_dir=folder)
    tiles = [p.read_text() for p in (folder / "kernels").glob("*.tile")]
    assert sum("dot<u8, i8>" in t for t in tiles) == dots
    (want,) = ReferenceEvaluator(proto).run(None, feeds)
    (got,) = exe(*feeds.values())
    assert got.dtype == want.dtype and got.shape == want.shape
    return got, want


@LEVELS
@pytest.mark.parametrize("signs", ["u8u8", "u8i8", "i8u8", "i8i8"])
@pytest.mark.parametrize("zeros", [(0, 0), (3, 0), (3, 5)])
def test_matmul_integer(signs: str, zeros: tuple[int, int], target: str, tmp_path: Path) -> None:
    types = [np.uint8 if signs[at] == "u" else np.int8 for at in (0, 2)]
    rng = np.random.default_rng(0)
    x, w = (
        rng.integers(np.iinfo(t).min, np.iinfo(t).max, s, dtype=t, endpoint=True)
        for t, s in zip(types, ((5, 67), (67, 53)), strict=True)
    )
    data = {"w": w, "zx": types[0](zeros[0]), "zw": types[1](zeros[1])}
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(types[0]))
    proto = model(
        [helper.make_node("MatMulInteger", ["x", "w", "zx", "zw"], ["y"])], {"x": (kind, x.shape)}, INT32, data
    )
    got, want = run(proto, {"x": x}, target, tmp_path)
    np.testing.assert_array_equal(got, want)


@LEVELS
def test_conv_integer(target: str, tmp_path: Path) -> None:
    """Beyond the edge is the zero point, not 0."""
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (1, 5, 9, 8)).astype(np.uint8), rng.integers(-128, 128, (19, 5, 3, 3)).astype(np.int8)
    node = helper.make_node("ConvInteger", ["x", "w", "zx"], ["y"], pads=[1, 1, 1, 1], strides=[2, 1])
    proto = model([node], {"x": (UINT8, x.shape)}, INT32, {"w": w, "zx": np.uint8(113)}, 4)
    got, want = run(proto, {"x": x}, target, tmp_path)
    np.testing.assert_array_equal(got, want)


@LEVELS
@pytest.mark.parametrize("per_channel", [False, True])
def test_qlinear_matmul(per_channel: bool, target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (7, 40)).astype(np.uint8), rng.integers(-128, 128, (40, 33)).astype(np.int8)
    scale = (rng.random(33) * 0.01 + 0.001).astype(np.float32) if per_channel else np.float32(0.01)
    data = {
        "sx": np.float32(0.02), "zx": np.uint8(100), "w": w, "sw": scale,
        "zw": np.zeros(33, np.int8) if per_channel else np.int8(0), "sy": np.float32(0.05), "zy": np.uint8(121),
    }  # fmt: skip
    node = helper.make_node("QLinearMatMul", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy"], ["y"])
    got, want = run(model([node], {"x": (UINT8, x.shape)}, UINT8, data), {"x": x}, target, tmp_path)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1 and np.mean(got != want) < 0.01


@LEVELS
def test_qlinear_conv(target: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(0, 256, (1, 6, 8, 9)).astype(np.uint8), rng.integers(-128, 128, (21, 6, 3, 3)).astype(np.int8)
    data = {
        "sx": np.float32(0.02), "zx": np.uint8(100), "w": w, "sw": (rng.random(21) * 0.01).astype(np.float32),
        "zw": np.zeros(21, np.int8), "sy": np.float32(0.05), "zy": np.uint8(121),
        "b": rng.integers(-9999, 9999, 21).astype(np.int32),
    }  # fmt: skip
    node = helper.make_node(
        "QLinearConv", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"], ["y"], pads=[1, 1, 1, 1]
    )
    got, want = run(model([node], {"x": (UINT8, x.shape)}, UINT8, data, 4), {"x": x}, target, tmp_path)
    assert np.abs(got.astype(int) - want.astype(int)).max() <= 1 and np.mean(got != want) < 0.01


@LEVELS
def test_dynamic_quantisation(target: str, tmp_path: Path) -> None:
    """Scale and zero point are computed from the input; what the zero point adds is a constant times it."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((6, 70)).astype(np.float32), rng.integers(0, 256, (70, 31)).astype(np.uint8)
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "zw"], ["p"]),
        helper.make_node("Cast", ["p"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["s", "sw"], ["t"]),
        helper.make_node("Mul", ["f", "t"], ["y"]),
    ]
    data = {"w": w, "zw": np.uint8(128), "sw": np.float32(0.01)}
    got, want = run(model(nodes, {"x": (FLOAT, x.shape)}, FLOAT, data), {"x": x}, target, tmp_path)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=0.01 * 255 * 0.03)


@LEVELS
@pytest.mark.parametrize("x", [[0.0, 0.0, 0.0], [-0.0, 0.0], [], [1e-42, 2e-43], [-1.0, -2.5], [1.0, 2.0, 3.0]])
def test_dynamic_quantisation_of_zeros(x: list[float], target: str) -> None:
    """Of zeros alone, where ONNX's text divides by zero, onnxruntime has a scale of 1; so do codes, scale and zero point here."""
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])]
    outputs = [helper.make_tensor_value_info("y", UINT8, ["n"])]
    outputs += [helper.make_tensor_value_info("s", FLOAT, []), helper.make_tensor_value_info("z", UINT8, [])]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", FLOAT, ["n"])], outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    given = np.array(x, np.float32)
    want = onnxruntime.InferenceSession(made.SerializeToString()).run(None, {"x": given})
    got = dlc.compile(made, target=target, cache=False)(given)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)


def network(signed: bool) -> tuple[Any, Any]:
    """Conv, residual, depthwise conv, pool, Gemm: all between QuantizeLinear and DequantizeLinear."""
    rng = np.random.default_rng(0)
    kind = np.int8 if signed else np.uint8
    nodes: list[Any] = []
    data: dict[str, Any] = {"zero_w": np.int8(0)}

    def act(name: str, scale: float, zero: int) -> str:
        data[f"{name}_s"], data[f"{name}_z"] = np.float32(scale), kind(zero)
        nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [f"{name}_d"]))
        return f"{name}_d"

    def weight(name: str, *shape: int) -> str:
        data[name] = rng.integers(-127, 128, shape).astype(np.int8)
        data[f"{name}_s"] = (rng.random(shape[0]) * 0.01 + 0.001).astype(np.float32)
        data[f"{name}_z"] = np.zeros(shape[0], np.int8)
        nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}_s", f"{name}_z"], [f"{name}_d"], axis=0))
        return f"{name}_d"

    def bias(name: str, count: int) -> str:
        data[name] = rng.integers(-999, 999, count).astype(np.int32)
        data[f"{name}_s"] = (rng.random(count) * 1e-3).astype(np.float32)
        nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}_s"], [f"{name}_d"], axis=0))
        return f"{name}_d"

    x = act("x", 0.02, 5)
    nodes.append(helper.make_node("Conv", [x, weight("w1", 24, 3, 3, 3), bias("b1", 24)], ["c1"], pads=[1, 1, 1, 1]))
    nodes.append(helper.make_node("Relu", ["c1"], ["r1"]))
    one = act("r1", 0.03, 0)
    depthwise = helper.make_node("Conv", [one, weight("w2", 24, 1, 3, 3)], ["c2"], pads=[1, 1, 1, 1], group=24)
    nodes.append(depthwise)
    two = act("c2", 0.05, 100)
    nodes.append(helper.make_node("Conv", [two, weight("w3", 24, 24, 1, 1)], ["c3"]))
    nodes.append(helper.make_node("Add", ["c3", one], ["a3"]))
    three = act("a3", 0.2, 90)
    nodes.append(helper.make_node("GlobalAveragePool", [three], ["p"]))
    nodes.append(helper.make_node("Flatten", [act("p", 0.2, 90)], ["flat"]))
    nodes.append(helper.make_node("Gemm", [act("flat", 0.2, 90), weight("w4", 31, 24)], ["y"], transB=1))
    proto = model(nodes, {"x": (FLOAT, (3, 3, 10, 9))}, FLOAT, data)
    return proto, rng.standard_normal((3, 3, 10, 9)).astype(np.float32)


@LEVELS
@pytest.mark.parametrize("signed", [False, True])
def test_a_network_of_quantised_layers(signed: bool, target: str, tmp_path: Path) -> None:
    """Two convolutions and the linear layer are integer contractions; the depthwise one sums bytes without tiles."""
    proto, x = network(signed)
    got, want = run(proto, {"x": x}, target, tmp_path, dots=3)
    assert (
        np.abs(got - want).max() <= 0.05 * np.abs(want).max()
        and np.median(np.abs(got - want)) < 1e-3 * np.abs(want).max()
    )
