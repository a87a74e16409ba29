"""`dlc.compile` on ONNX models: kinds of input, values that decide structure, nesting of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dlc
from dlc.errors import DlcError
from dlc.specialising import Specialising

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402


def model(*nodes: Any, inputs: dict[str, tuple[int, list[Any]]], outputs: dict[str, tuple[int, list[Any]]]) -> Any:
    def infos(types: dict[str, tuple[int, list[Any]]]) -> list[Any]:
        return [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in types.items()]

    graph = helper.make_graph(list(nodes), "g", infos(inputs), infos(outputs))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])


F, I = TensorProto.FLOAT, TensorProto.INT64


def relu() -> Any:
    node = helper.make_node("Relu", ["x"], ["y"])
    return model(node, inputs={"x": (F, ["n", 3])}, outputs={"y": (F, ["n", 3])})


def test_path_bytes_and_proto(tmp_path: Path) -> None:
    proto = relu()
    onnx.save(proto, tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((4, 3)).astype("f4")
    for given in (proto, proto.SerializeToString(), tmp_path / "m.onnx", str(tmp_path / "m.onnx")):
        exe = dlc.compile(given)
        assert isinstance(exe, dlc.Executable)
        for result in (exe(x), exe(x=x)):
            (y,) = result if isinstance(result, tuple) else (result,)
            np.testing.assert_array_equal(y, np.maximum(x, 0))


def reshape() -> Any:
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    return model(node, inputs={"x": (F, [2, 6]), "shape": (I, ["r"])}, outputs={"y": (F, ["p"])})


def test_values_that_decide_the_structure(tmp_path: Path) -> None:
    made = dlc.compile(reshape())
    assert isinstance(made, Specialising)
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    for shape in ([3, 4], [12], [2, 1, 6], [3, 4]):
        (y,) = made(x, np.int64(shape))
        np.testing.assert_array_equal(y, x.reshape(shape))
    assert "3 executables" in repr(made)
    with pytest.raises(DlcError, match="DLC0615"):
        made.save(tmp_path / "m.dlc")
    with pytest.raises(DlcError, match="DLC0616"):
        made(x)


def test_a_specialised_artifact_refuses_other_values(tmp_path: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    dlc.compile(reshape(), specialise={"shape": np.int64([3, 4])}).save(tmp_path / "m.dlc")
    exe = dlc.load(tmp_path / "m.dlc")
    np.testing.assert_array_equal(exe(x, np.int64([3, 4]))[0], x.reshape(3, 4))
    for other in ([4, 3], [12], [1, 3, 4]):
        with pytest.raises(DlcError, match="DLC0542.*'shape'"):
            exe(x, np.int64(other))
