"""The suite's models in bf16 and in bytes: `resnet50_bf16`, `resnet50_i8`.

In bf16 the module is converted as a user would (`model.to(torch.bfloat16)`), with f32 tensors in and out; OpenVINO is given the f32
model and told to compute in bf16, which is how it does that. In bytes it is a QDQ model: onnxruntime's static quantiser, with a
zero point for activations and a scale per channel for weights, calibrated on four sets of inputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader
from torch import nn

from benchmarks.sources import ZooSource
from benchmarks.suite import Row

CALIBRATION_SETS = 4


class InBf16(nn.Module):
    """The model computing in bf16 on f32 inputs, with f32 results."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.to(torch.bfloat16)

    def forward(self, *given: torch.Tensor) -> Any:
        """The model's results as f32 tensors."""
        results = self.model(*(t.to(torch.bfloat16) if t.is_floating_point() else t for t in given))
        return tuple(r.float() for r in results) if isinstance(results, tuple) else results.float()


class Bf16Source(ZooSource):
    """A model of the zoo in bf16."""

    precision = "bf16"
    products = "bf16"
    tolerance = 5e-2

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.python = f"benchmarks.zoo:{name}_bf16"
        self.entry = replace(self.entry, dynamic_shapes=(self.entry.dynamic_shapes,))  # of `*given`

    def onnx_entry(self, peer: str) -> str:
        return self.entry.name if peer == "openvino" else f"{self.entry.name}_bf16"

    def model(self) -> nn.Module:
        return InBf16(super().model())

    def write_onnx(self, path: Path) -> None:
        from tests.models.zoo import export_onnx

        export_onnx(replace(self.entry, make=self.model), path)


class BytesSource(ZooSource):
    """A model of the zoo, quantised to bytes, as an ONNX file with QuantizeLinear and DequantizeLinear."""

    products = "i8"
    tolerance = 2e-1
    """Numbers on the border of two bytes are rounded either way, and layers amplify that: on BERT-base onnxruntime differs from itself
    without optimisations by 11 % of the largest value, and from f32 by 18 % (dlc 15 %)."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.python = ""

    def onnx_entry(self, peer: str) -> str:
        return f"{self.entry.name}_i8"

    def write_onnx(self, path: Path) -> None:
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory() as folder:
            plain, ready = Path(folder) / "plain.onnx", Path(folder) / "ready.onnx"
            super().write_onnx(plain)
            onnx.save(onnx.load(plain), plain)  # in one file: the quantiser's checks cannot follow links
            quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
            names = [i.name for i in onnx.load(str(ready), load_external_data=False).graph.input]
            quantize_static(
                str(ready),
                str(path),
                _Reader(names, self._calibration()),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )

    def _calibration(self) -> Callable[[int], list[np.ndarray]]:
        row = Row(self.entry.name, 1, self.entry.lengths[0])
        return lambda seed: self.inputs(row, seed)

    def compile(self) -> Any:
        import dlc
        from benchmarks.artifacts import default_work, onnx_file

        path, why = onnx_file(f"{self.entry.name}_i8", default_work())
        if why:
            raise RuntimeError(why)
        return dlc.compile(path)


class _Reader(CalibrationDataReader):
    """Sets of inputs for the quantiser, one after the other."""

    def __init__(self, names: list[str], inputs: Callable[[int], list[np.ndarray]]) -> None:
        self.names, self.inputs, self.seed = names, inputs, 100

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next set; None after the last."""
        self.seed += 1
        return dict(zip(self.names, self.inputs(self.seed))) if self.seed <= 100 + CALIBRATION_SETS else None


__all__ = ["BytesSource", "Bf16Source", "InBf16"]
