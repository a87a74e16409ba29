"""Peers that need an ONNX model of fixed shapes, and those that are not installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from dlc.contest import Contest
from dlc.peers import folded, static_onnx

onnx = pytest.importorskip("onnx")
PACKAGES = {"iree": "iree.compiler", "tvm": "tvm"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Y = X W, with symbolic rows; and the rows twice over, of an extent computed from them."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = onnx.numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "W")
    infos = [helper.make_tensor_value_info(n, kind, s) for n, s in (("X", ["n", 4]), ("Y", ["n", 3]), ("Z", ["2*n", 3]))]
    nodes = [helper.make_node("MatMul", ["X", "W"], ["Y"]), helper.make_node("Concat", ["Y", "Y"], ["Z"], axis=0)]
    graph = helper.make_graph(nodes, "rows", infos[:1], infos[1:], [weights])
    path = tmp_path / "rows.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    return path


def test_symbols_become_the_shapes_given(model: Path) -> None:
    fixed, order = static_onnx(model, [np.zeros((5, 4), np.float32)], ["X"])
    dims = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*fixed.graph.input, *fixed.graph.output)}
    assert dims == {"X": [5, 4], "Y": [5, 3], "Z": [0, 3]}
    assert order == (0,)
    onnx.checker.check_model(fixed)


def test_inputs_are_found_by_name(model: Path) -> None:
    _, order = static_onnx(model, [np.zeros(1, np.float32), np.zeros((5, 4), np.float32)], ["other", "X"])
    assert order == (1,)
    with pytest.raises(ValueError, match="takes 1 inputs"):
        static_onnx(model, [np.zeros(1, np.float32)] * 2, [])


def test_shapes_that_are_computed_are_folded(tmp_path: Path) -> None:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    infos = [helper.make_tensor_value_info(n, kind, s) for n, s in (("X", ["n", 4, 6]), ("Y", None))]
    axis, rest = (onnx.numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("axis", [0]), ("rest", [-1])))
    nodes = [
        helper.make_node("Shape", ["X"], ["extents"]),
        helper.make_node("Gather", ["extents", "axis"], ["rows"]),
        helper.make_node("Concat", ["rows", "rest"], ["wanted"], axis=0),
        helper.make_node("Reshape", ["X", "wanted"], ["Y"]),
    ]
    graph = helper.make_graph(nodes, "flat", infos[:1], infos[1:], [axis, rest])
    path = tmp_path / "flat.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(path))
    fixed, _ = static_onnx(path, [np.zeros((5, 4, 6), np.float32)], ["X"])
    assert [n.op_type for n in folded(fixed).graph.node] == ["Reshape"]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_peer_agrees_or_is_reported_as_absent(kind: str, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    ring = [[np.random.default_rng(s).standard_normal((5, 4), dtype=np.float32)] for s in range(2)]
    with Contest(ring, threads=1, folder=tmp_path) as contest:
        for name in ("onnxruntime", kind):
            contest.enter(name, model=str(model))
        contest.prepare()
        assert contest.check() == "onnxruntime"
        row = next(r for r in contest.run(1, block_s=0.01) if r["name"] == kind)
    if _installed(PACKAGES[kind]):
        assert row["error"] < 1e-5 and row["note"].startswith("static shapes")
    else:
        assert "is not installed" in row["absent"]
