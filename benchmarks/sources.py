"""Where the models of the suite come from: the zoo of the tests, and one ONNX file out of a wheel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.suite import Row
from dlc.contest import TOLERANCE

RING_LEAST, RING_MOST = 3, 64
"""Sets of inputs. More are of no use: 64 sets of token numbers are still small, but what they select is not."""


class Source(Protocol):
    """A model in the forms that the contenders need.

    Attributes:
        python: how a contender opens it as a Python model; empty if it is none.
        names: of its inputs, where a contender needs them to tell the order.
        plain: a simpler ONNX file of the same model for peers that cannot read the usual one; empty if there is none.
        precision: what OpenVINO is told to compute in.
        products: the type that most of the model's products are of; its peak is what the kernels' rates are shares of.
        tolerance: of results against the reference's, relative to the largest value.
    """

    python: str
    names: tuple[str, ...]
    plain: str
    precision: str
    products: str
    tolerance: float

    def onnx_entry(self, peer: str) -> str:
        """The entry whose ONNX file the peer is given."""

    def inputs(self, row: Row, seed: int) -> list[np.ndarray]:
        """One set of inputs."""

    def write_onnx(self, path: Path) -> None:
        """The model as an ONNX file with symbolic batch and length."""

    def compile(self) -> Any:
        """The model compiled by dlc, with symbolic batch and length."""


class ZooSource:
    """A model of tests/models."""

    names: tuple[str, ...] = ()
    plain = ""
    precision = "f32"
    products = "f32"
    tolerance = TOLERANCE

    def __init__(self, name: str) -> None:
        from tests.models.zoo import ZOO

        self.entry = ZOO[name]
        self.python = f"benchmarks.zoo:{name}"

    def onnx_entry(self, peer: str) -> str:
        return self.entry.name

    def model(self) -> Any:
        """The module."""
        return self.entry.make()

    def inputs(self, row: Row, seed: int) -> list[np.ndarray]:
        length = row.length or self.entry.lengths[0]
        return [t.numpy() for t in self.entry.inputs(row.batch, length, seed)]

    def write_onnx(self, path: Path) -> None:
        from tests.models.zoo import export_onnx

        export_onnx(self.entry, path)

    def compile(self) -> Any:
        import torch
        from tests.models.recurrence import symbolic_recurrence

        import dlc

        model = self.model()
        with torch.no_grad(), symbolic_recurrence():
            return dlc.compile(model, self.entry.example(), dynamic_shapes=self.entry.dynamic_shapes)


class SileroSource:
    """One step of Silero VAD at 16 kHz: 512 samples and 64 before them, and the state of an LSTM.

    The wheel has the same model without conditionals, too; OpenVINO, IREE and TVM cannot read the other.
    """

    python = ""
    names: tuple[str, ...] = ("input", "state", "sr")
    precision = "f32"
    products = "f32"
    tolerance = TOLERANCE
    RATE, SAMPLES = 16000, 576

    @property
    def path(self) -> Path:
        """The file in the wheel."""
        import silero_vad

        return Path(silero_vad.__file__).parent / "data" / "silero_vad.onnx"

    @property
    def plain(self) -> str:
        return str(self.path.with_name("silero_vad_op18_ifless.onnx"))

    def onnx_entry(self, peer: str) -> str:
        return "silero_vad"

    def inputs(self, row: Row, seed: int) -> list[np.ndarray]:
        generator = np.random.default_rng(seed)
        samples = 0.1 * generator.standard_normal((row.batch, self.SAMPLES), dtype=np.float32)
        state = 0.1 * generator.standard_normal((2, row.batch, 128), dtype=np.float32)
        return [samples, state, np.array(self.RATE, np.int64)]

    def write_onnx(self, path: Path) -> None:
        path.write_bytes(self.path.read_bytes())

    def compile(self) -> Any:
        import dlc
        from dlc.models import open_model, with_shapes

        shapes: dict[str, Sequence[int | str]] = {"input": ("batch", self.SAMPLES), "state": (2, "batch", 128)}
        model = with_shapes(open_model(str(self.path)), shapes)
        return dlc.compile(model.source, specialise={"sr": np.array(self.RATE)})


def source(entry: str) -> Source:
    """The model of that name."""
    if entry == "silero_vad":
        return SileroSource()
    name, _, types = entry.rpartition("_")
    if types in ("bf16", "i8"):
        from benchmarks.narrow import Bf16Source, BytesSource

        return Bf16Source(name) if types == "bf16" else BytesSource(name)
    return ZooSource(entry)


def ring(given: Source, row: Row) -> list[list[np.ndarray]]:
    """Sets of inputs to be used in turn, larger than the last-level cache in all, within bounds on their number."""
    first = given.inputs(row, 1)
    size = max(sum(a.nbytes for a in first), 1)
    count = min(max(-(-int(1.1 * cache_bytes()) // size), RING_LEAST), RING_MOST)
    return [first, *(given.inputs(row, seed) for seed in range(2, count + 1))]


def cache_bytes() -> int:
    """Size of the last-level cache; 32 MiB where the system does not tell."""
    sizes = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((int(s.read_text().strip().removesuffix("K")) << 10 for s in sizes), default=32 << 20)
