"""GGUF blocks against gguf's own dequantisation, from random bytes and from a file; and in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dlc
from dlc.errors import Unsupported
from dlc.gguf_weights import UnreadableGguf, load_gguf
from dlc.passes.quantisers import Quantised
from dlc.passes.quantize_weights import BadQuantisation

gguf = pytest.importorskip("gguf")
KINDS = {"Q4_0": "i4", "Q4_1": "u4", "Q8_0": "i8", "Q4_K": "u4", "Q6_K": "i6"}


def blocks(kind: str, rows: int, columns: int, seed: int = 0) -> Any:
    """Rows of random blocks, u8, whose f16 fields are ordinary numbers; some scales are 0."""
    size, count = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows * columns // size, count)).astype(np.uint8)
    halves = rng.uniform(-2, 2, (len(raw), 2)).astype(np.float16)
    halves[::7, 0] = 0
    at = {"Q6_K": slice(-2, None)}.get(kind, slice(0, 2))
    raw[:, at] = halves[:, :1].view(np.uint8)
    if kind in ("Q4_1", "Q4_K"):
        raw[:, 2:4] = halves[:, 1:].copy().view(np.uint8)
    return raw.reshape(rows, -1)


def write(path: Path, tensors: dict[str, tuple[Any, str | None]]) -> Path:
    writer = gguf.GGUFWriter(path, "test")
    for name, (array, kind) in tensors.items():
        writer.add_tensor(name, array, raw_dtype=None if kind is None else gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_what_gguf_makes_of_them(kind: str, tmp_path: Path) -> None:
    raw = blocks(kind, 6, 512)
    (matrix,) = load_gguf(write(tmp_path / "m.gguf", {"w": (raw, kind)})).values()
    assert isinstance(matrix, Quantised) and str(matrix.grid.dtype) == KINDS[kind]
    want = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind]).reshape(6, 512).astype(np.float64)
    got = matrix.dense()
    if matrix.zeros is None:
        np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))
        return
    scales = np.repeat(np.abs(matrix.scales.astype(np.float64)), 32, 1)
    zeros = np.repeat(np.abs(matrix.zeros.astype(np.float64)), 32, 1)
    assert (np.abs(got - want) <= 2.0**-22 * scales * (15 + zeros)).all()


def test_other_tensors_are_arrays(tmp_path: Path) -> None:
    a, b = np.arange(12, dtype=np.float32).reshape(3, 4), np.ones(5, np.float16)
    found = load_gguf(write(tmp_path / "m.gguf", {"a": (a, None), "b": (b, None)}))
    np.testing.assert_array_equal(found["a"], a)
    np.testing.assert_array_equal(found["b"], b)


def test_given_matrices_go_into_a_model(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    raw = blocks("Q4_K", 64, 256)
    matrix = load_gguf(write(tmp_path / "m.gguf", {"ffn": (raw, "Q4_K")}))["ffn"]
    x = torch.randn(3, 256)
    exe = dlc.compile(model, (x,), quantize=dlc.Quantize("i8", skip=("t_2_weight",), given={"t_0_weight": matrix}))
    (layer,) = exe.compile_report.quantised
    assert layer.name == "t_0_weight" and layer.dtype == "u4"
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(matrix.dense().astype(np.float32)))
        want = model(x).numpy()
    np.testing.assert_allclose(exe(x).detach().numpy(), want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    with pytest.raises(BadQuantisation, match=r"'t_2_weight' is 32 x 64, what is given for it 64 x 256"):
        dlc.compile(model, (x,), quantize=dlc.Quantize(given={"t_2_weight": matrix}))
    with pytest.raises(BadQuantisation, match="'nothing' is no matrix that would be quantised"):
        dlc.compile(model, (x,), quantize=dlc.Quantize(given={"nothing": matrix}))


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUX" + bytes(64))
    with pytest.raises(UnreadableGguf, match="bad.gguf"):
        load_gguf(tmp_path / "bad.gguf")
    with pytest.raises(UnreadableGguf, match="there is no such file"):
        load_gguf(tmp_path / "none.gguf")
    raw = np.zeros((2, 110), np.uint8)
    with pytest.raises(Unsupported, match="blocks of Q3_K are not read"):
        load_gguf(write(tmp_path / "k.gguf", {"w": (raw, "Q3_K")}))
