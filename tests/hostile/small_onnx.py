"""Two small real networks as ONNX bytes, and ways to damage them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F, I, B = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def _weights(rng: np.random.Generator, **shapes: tuple[int, ...]) -> list[Any]:
    return [numpy_helper.from_array((rng.standard_normal(s) / 3).astype(np.float32), n) for n, s in shapes.items()]


def _node(op: str, ins: str, outs: str, **attrs: Any) -> Any:
    # "_" stands for an absent input
    return helper.make_node(op, [n if n != "_" else "" for n in ins.split()], outs.split(), **attrs)


def _model(graph: Any, opset: int = 17) -> bytes:
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8).SerializeToString())


def classifier() -> bytes:
    """A convolutional network with every kind of shape arithmetic an exporter writes: x f32[n, 3, 8, 8]."""
    rng = np.random.default_rng(0)
    weights = _weights(
        rng, w1=(4, 3, 3, 3), b1=(4,), w2=(4, 1, 3, 3), g=(4,), h=(4,), m=(4,), w3=(5, 64), b3=(5,), s=(5,), t=(5,)
    )
    weights.append(numpy_helper.from_array(np.abs(rng.standard_normal(4)).astype(np.float32) + 1, "v"))
    weights.append(numpy_helper.from_array(np.array([-1], np.int64), "rest"))
    weights.append(numpy_helper.from_array(np.array([0, 2, 1], np.int64), "order"))
    nodes = [
        _node("Conv", "x w1 b1", "c1", pads=[1, 1, 1, 1]),
        _node("BatchNormalization", "c1 g h m v", "n1", epsilon=1e-3),
        _node("Relu", "n1", "r1"),
        _node("MaxPool", "r1", "p1", kernel_shape=[2, 2], strides=[2, 2]),
        _node("Conv", "p1 w2", "c2", pads=[1, 1, 1, 1], group=4),
        _node("Sigmoid", "c2", "s2"),
        _node("Mul", "c2 s2", "a2"),
        _node("Add", "a2 p1", "d2"),
        _node("Shape", "d2", "shape", end=1),
        _node("Concat", "shape rest", "flat", axis=0),
        _node("Reshape", "d2 flat", "f"),
        _node("Gemm", "f w3 b3", "z", transB=1),
        _node("LayerNormalization", "z s t", "l", axis=-1),
        _node("Softmax", "l", "y", axis=-1),
        _node("Gather", "z order", "k", axis=1),
        _node("ReduceMean", "k", "mean", axes=[1], keepdims=0),
    ]
    ins = [helper.make_tensor_value_info("x", F, ["n", 3, 8, 8])]
    outs = [helper.make_tensor_value_info("y", F, ["n", 5]), helper.make_tensor_value_info("mean", F, ["n"])]
    return _model(helper.make_graph(nodes, "classifier", ins, outs, weights))


def tagger() -> bytes:
    """A recurrent network with attention, a branch and a loop: x f32[t, 2, 3], wide bool[]."""
    rng = np.random.default_rng(1)
    weights = _weights(rng, w=(1, 16, 3), r=(1, 16, 4), bb=(1, 32), q=(4, 4), k=(4, 4), scale=(1,))
    weights.append(numpy_helper.from_array(np.array(3, np.int64), "trips"))
    weights.append(numpy_helper.from_array(np.array(True), "yes"))
    weights.append(numpy_helper.from_array(np.array([1], np.int64), "one"))
    out = helper.make_tensor_value_info
    then = helper.make_graph([_node("Tanh", "h", "a")], "then", [], [out("a", F, None)])
    orelse = helper.make_graph([_node("Mul", "h scale", "b")], "orelse", [], [out("b", F, None)])
    body = helper.make_graph(
        [_node("Identity", "go", "again"), _node("MatMul", "state q", "turned"), _node("Softsign", "turned", "next")],
        "body",
        [out("i", I, []), out("go", B, []), out("state", F, None)],
        [out("again", B, []), out("next", F, None)],
    )
    nodes = [
        _node("LSTM", "x w r bb", "all last _", hidden_size=4),
        _node("Squeeze", "all one", "h"),
        helper.make_node("If", ["wide"], ["c"], then_branch=then, else_branch=orelse),
        helper.make_node("Loop", ["trips", "yes", "c"], ["e"], body=body),
        _node("Transpose", "e", "e1", perm=[1, 0, 2]),
        _node("Transpose", "e", "e2", perm=[1, 2, 0]),
        _node("MatMul", "e1 e2", "scores"),
        _node("Softmax", "scores", "p", axis=-1),
        _node("MatMul", "p e1", "y"),
        _node("ArgMax", "y", "best", axis=2, keepdims=0),
    ]
    nodes[0].output[2] = ""
    ins = [out("x", F, ["t", 2, 3]), out("wide", B, [])]
    outs = [out("y", F, [2, "t", 4]), out("best", I, [2, "t"])]
    return _model(helper.make_graph(nodes, "tagger", ins, outs, weights))


def inputs(name: str) -> tuple[Any, ...]:
    rng = np.random.default_rng(2)
    if name == "classifier":
        return (rng.standard_normal((2, 3, 8, 8)).astype(np.float32),)
    return rng.standard_normal((3, 2, 3)).astype(np.float32), np.array(True)


MODELS = {"classifier": classifier, "tagger": tagger}


def damaged(data: bytes, seed: int) -> bytes:
    """One of: cut short, bits flipped, bytes overwritten, a piece removed, repeated, swapped, or an edit of the graph."""
    rng = np.random.default_rng(seed)
    raw = bytearray(data)
    at = int(rng.integers(0, len(raw)))
    size = int(rng.integers(1, 40))
    match seed % 10:
        case 0:
            return bytes(raw[:at])
        case 1:
            raw[at] ^= 1 << int(rng.integers(0, 8))
        case 2:
            for place in rng.integers(0, len(raw), 5):
                raw[place] = int(rng.integers(0, 256))
        case 3:
            del raw[at : at + size]
        case 4:
            raw[at:at] = raw[at : at + size]
        case 5:
            raw[at : at + size] = bytes(rng.integers(0, 256, size, dtype=np.uint8))
        case _:
            return edited(data, rng)
    return bytes(raw)


def edited(data: bytes, rng: np.random.Generator) -> bytes:
    """A well-formed file that says something else: what damage to single bytes hardly ever makes."""
    model = onnx.load_model_from_string(data)
    graph = model.graph

    def pick(items: Any) -> Any:
        return items[int(rng.integers(0, len(items)))]

    for _ in range(int(rng.integers(1, 3))):
        node, tensor = pick(graph.node), pick(graph.initializer)
        match int(rng.integers(0, 14)):
            case 0:
                node.op_type = pick(("Relu", "Conv", "Gemm", "Softmax", "Reshape", "LSTM", "Loop", "If", "Nonsense", "Split", ""))
            case 1:
                names = [o for n in graph.node for o in n.output] + [t.name for t in graph.initializer] + ["", "x", "y"]
                if node.input:
                    node.input[int(rng.integers(0, len(node.input)))] = pick(names)
            case 2:
                if tensor.dims:
                    tensor.dims[int(rng.integers(0, len(tensor.dims)))] = pick((0, 1, -1, 7, 1 << 20, 1 << 40, (1 << 63) - 1))
            case 3:
                tensor.raw_data = tensor.raw_data[: int(rng.integers(0, len(tensor.raw_data) + 1))]
            case 4:
                tensor.data_type = int(rng.integers(0, 30))
            case 5:
                if node.attribute:
                    del node.attribute[int(rng.integers(0, len(node.attribute)))]
            case 6:
                for a in node.attribute:
                    if a.ints:
                        a.ints[int(rng.integers(0, len(a.ints)))] = pick((0, -1, 3, 100, 1 << 31, 1 << 62, -(1 << 62)))
                    elif a.type == onnx.AttributeProto.INT:
                        a.i = pick((0, -1, 2, 5, 1 << 40, -(1 << 63)))
                    elif a.type == onnx.AttributeProto.FLOAT:
                        a.f = pick((float("nan"), float("inf"), 0.0, -1.0))
            case 7:
                graph.node.remove(node)
            case 8:
                graph.node.append(node)
            case 9:
                model.opset_import[0].version = pick((0, -1, 1, 7, 12, 18, 22, 99, 1 << 40))
            case 10:
                dims = pick(list(graph.input) + list(graph.output)).type.tensor_type.shape.dim
                if dims:
                    dim = pick(dims)
                    if rng.random() < 0.5:
                        dim.dim_value = pick((0, 1, -1, 5, 1 << 40))
                    else:
                        dim.dim_param = pick(("n", "t", "", "t+1", "a b", "#x", "lambda"))
            case 11:
                pick(list(graph.input) + list(graph.output)).type.tensor_type.elem_type = int(rng.integers(0, 25))
            case 12:
                if node.output:
                    node.output[0] = pick(("x", "y", "", "p", "c1"))
            case _:
                a = node.attribute.add()
                a.name, a.type, a.i = pick((("axis", 2, 9), ("group", 2, 0), ("to", 2, 99), ("perm", 2, 1), ("nonsense", 2, 1)))
    return bytes(model.SerializeToString())
