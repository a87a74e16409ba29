"""An ONNX file, compiled; onnx.reference is the judge."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import dlc

generator = np.random.default_rng(0)
kernel = numpy_helper.from_array(generator.standard_normal((8, 3, 3, 3), dtype=np.float32), "kernel")
graph = helper.make_graph(
    [
        helper.make_node("Conv", ["image", "kernel"], ["features"], pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["features"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["pooled"]),
    ],
    "net",
    [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])],
    [helper.make_tensor_value_info("pooled", TensorProto.FLOAT, ["n", 8, 1, 1])],
    [kernel],
)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "net.onnx"
    onnx.save(model, path)
    exe = dlc.compile(path)

image = generator.standard_normal((3, 3, 32, 32), dtype=np.float32)
(got,) = exe(image)  # the outputs of an ONNX model are a tuple, also when there is one
(expected,) = ReferenceEvaluator(model).run(None, {"image": image})
print(f"{got.shape}, largest difference {np.abs(got - expected).max():.1e}")
assert np.abs(got - expected).max() < 1e-5
