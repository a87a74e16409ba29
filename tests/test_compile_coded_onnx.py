"""ONNX models with weights in few bits: initializers of small types, QDQ by block, MatMulNBits, against onnx and onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import dlc
from dlc.errors import DlcError
from dlc.frontend.onnx_load import CODED_NAMES
from dlc.importing import import_any
from dlc.ir.codes import codes_of, values
from dlc.ir.dtype import DTYPES
from dlc.ir.packing import pack

ort = pytest.importorskip("onnxruntime")
F = TensorProto.FLOAT
TARGETS = pytest.mark.parametrize("target", ["host", "avx2", "baseline"])


def proto(nodes: list[Any], x: tuple[int, ...], initializers: list[Any], opset: int = onnx.defs.onnx_opset_version(), kind: int = F, rank: int = 2) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, x)],
        [helper.make_tensor_value_info("y", F, [f"d{n}" for n in range(rank)])],
        initializers,
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=onnx.IR_VERSION if opset > 23 else 10)


def packed(name: str, kind: str, codes: Any) -> Any:
    """A tensor of a small type from its codes, as raw data."""
    tensor = TensorProto(name=name, data_type=TensorProto.DataType.Value(kind), dims=codes.shape)
    tensor.raw_data = pack(codes, DTYPES[CODED_NAMES[kind]]).tobytes()
    return tensor


def finite(kind: str, shape: tuple[int, ...], seed: int = 0) -> Any:
    numbers = values(DTYPES[CODED_NAMES[kind]]).astype(np.float64)
    usable = np.flatnonzero(np.isfinite(numbers) & (np.abs(numbers) < 1e3))
    return usable[np.random.default_rng(seed).integers(0, len(usable), shape)].astype(np.uint8)


WEIGHTS = [k for k in CODED_NAMES if k != "FLOAT8E8M0"]


@pytest.mark.parametrize("at", range(len(WEIGHTS)), ids=WEIGHTS)
def test_a_weight_of_a_small_type_by_blocks(at: int) -> None:
    """Y = X DQ(W), W of each of ONNX's small types with a scale for every 16 rows; three levels in turn."""
    kind = WEIGHTS[at]
    codes = finite(kind, (32, 20))
    scales = np.random.default_rng(1).uniform(0.1, 1, (2, 20)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    model = proto(nodes, (3, 32), [packed("w", kind, codes), numpy_helper.from_array(scales, "s")])
    x = np.random.default_rng(2).standard_normal((3, 32)).astype(np.float32)
    exe = dlc.compile(model, target=("host", "avx2", "baseline")[at % 3])
    dense = values(DTYPES[CODED_NAMES[kind]]).astype(np.float64)[codes] * np.repeat(scales.astype(np.float64), 16, 0)
    size = np.abs(x).astype(np.float64) @ np.abs(dense)
    assert (np.abs(exe(x)[0] - x.astype(np.float64) @ dense) <= 1e-6 * size).all()


@pytest.mark.parametrize("kind", CODED_NAMES)
def test_initializers_hold_the_codes_of_the_file(kind: str, tmp_path: Path) -> None:
    """In the file, and in a file beside it."""
    dtype = DTYPES[CODED_NAMES[kind]]
    codes = (np.arange(15) % dtype.codes).astype(np.uint8).reshape(3, 5)
    node = helper.make_node("Cast", ["w"], ["y"], to=F)
    inside = packed("w", kind, codes)
    outside = TensorProto(name="w", data_type=inside.data_type, dims=codes.shape, data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="w.bin")
    (tmp_path / "w.bin").write_bytes(inside.raw_data)
    for tensor in (inside, outside):
        path = tmp_path / "m.onnx"
        path.write_bytes(proto([node], (1,), [tensor]).SerializeToString())
        program = import_any(path, None, None, None, None).program
        (array,) = (a for a in program.data.values() if a.dtype == dtype.numpy)
        np.testing.assert_array_equal(codes_of(array), codes)


@pytest.mark.parametrize("kind", ["INT4", "UINT4", "INT2", "UINT2"])
def test_quantising_to_few_bits_and_back_is_onnx_s(kind: str) -> None:
    to = TensorProto.DataType.Value(kind)
    zero = packed("z", kind, np.array(1, np.uint8).reshape(()))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], output_dtype=to),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    model = proto(nodes, (40,), [numpy_helper.from_array(np.float32(0.3), "s"), zero], rank=1)
    x = np.linspace(-4, 4, 40).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(dlc.compile(model)(x)[0], want)


@pytest.mark.parametrize("saturate", [0, 1])
@pytest.mark.parametrize("kind", ["FLOAT8E4M3FN", "FLOAT8E5M2", "FLOAT4E2M1"])
def test_quantising_to_small_floats_and_back_is_onnx_s(kind: str, saturate: int) -> None:
    if kind == "FLOAT4E2M1" and not saturate:
        pytest.skip("it has nothing to overflow to")
    zero = packed("z", kind, np.zeros((), np.uint8))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], saturate=saturate),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"]),
    ]
    model = proto(nodes, (64,), [numpy_helper.from_array(np.float32(0.5), "s"), zero], rank=1)
    x = np.concatenate([np.linspace(-9, 9, 40), 10.0 ** np.arange(-6, 6), -(10.0 ** np.arange(-6, 6))]).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(dlc.compile(model)(x)[0], want)


def n_bits(bits: int, n: int, k: int, block: int, zeros: str, bias: bool, seed: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    blocks = -(-k // block)
    inputs = ["x", "b", "s", "", "", ""]
    data = {
        "b": rng.integers(0, 256, (n, blocks, block * bits // 8)).astype(np.uint8),
        "s": rng.uniform(0.01, 0.1, n * blocks).astype(np.float32),
    }
    if zeros == "codes":
        inputs[3], data["z"] = "z", rng.integers(0, 256, n * ((blocks * bits + 7) // 8)).astype(np.uint8)
    if zeros == "real":
        inputs[3], data["z"] = "z", rng.uniform(0, 1 << bits, n * blocks).astype(np.float32)
    if bias:
        inputs[5], data["c"] = "c", rng.standard_normal(n).astype(np.float32)
    while not inputs[-1]:
        inputs.pop()
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=block)
    model = proto([node], (2, 3, k), [numpy_helper.from_array(a, m) for m, a in data.items()], opset=21, rank=3)
    return model, rng.standard_normal((2, 3, k)).astype(np.float32)


@TARGETS
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmul_n_bits_is_onnxruntime_s(bits: int, target: str) -> None:
    for at, (zeros, bias) in enumerate([("none", False), ("codes", True), ("real", False)]):
        if bits != 4 and zeros == "real":
            continue
        model, x = n_bits(bits, 24, (64, 80, 48)[at], (32, 16, 64)[at], zeros, bias, at)
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        (want,) = session.run(None, {"x": x})
        (got,) = dlc.compile(model, target=target)(x)
        np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4 * np.abs(want).max())


def test_matmul_n_bits_keeps_the_codes_as_a_constant_of_their_type() -> None:
    model, _ = n_bits(4, 24, 64, 32, "codes", False, 0)
    program = import_any(model, None, None, None, None).program
    assert {str(c.type) for c in program.consts} >= {"u4[24, 64]", "u4[24, 2]"}


def test_a_table_gathered_by_block_is_onnxruntime_s() -> None:
    rng = np.random.default_rng(0)
    for zeros in (False, True):
        data = {"d": rng.integers(0, 256, (10, 32)).astype(np.uint8), "s": rng.uniform(0.1, 1, (10, 2)).astype(np.float32)}
        if zeros:
            data["z"] = rng.integers(0, 256, (10, 1)).astype(np.uint8)
        node = helper.make_node(
            "GatherBlockQuantized", ["d", "x", "s", *(["z"] if zeros else [])], ["y"], domain="com.microsoft", block_size=32, bits=4
        )
        model = proto([node], (2, 3), [numpy_helper.from_array(a, m) for m, a in data.items()], 21, TensorProto.INT64, 3)
        x = np.array([[0, 9, 3], [-1, 4, 4]])
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(dlc.compile(model)(x)[0], session.run(None, {"x": x})[0], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 3}, "3 bits: 2, 4 and 8 are known"),
        ({"block_size": 24}, "block_size=24"),
        ({"N": 25}, "25 rows of 32 bytes are needed"),
    ],
)
def test_what_does_not_fit_is_said(change: dict[str, int], said: str) -> None:
    model, _ = n_bits(4, 24, 64, 32, "none", False, 0)
    for attribute in model.graph.node[0].attribute:
        if attribute.name in change:
            attribute.i = change[attribute.name]
    with pytest.raises(DlcError, match=said):
        dlc.compile(model)


def test_a_quantised_model_with_dynamic_bytes_runs() -> None:
    """DynamicQuantizeLinear and MatMulInteger with weights of 4 bits that are widened first."""
    codes = finite("INT4", (16, 8))
    nodes = [
        helper.make_node("Cast", ["w"], ["wb"], to=TensorProto.INT8),
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "wb", "z"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=F),
        helper.make_node("Mul", ["f", "s"], ["y"]),
    ]
    model = proto(nodes, (3, 16), [packed("w", "INT4", codes)], 21)
    x = np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32)
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(dlc.compile(model)(x)[0], want, rtol=1e-5, atol=1e-5)
