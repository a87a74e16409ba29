"""What the benchmarks time: the suite is whole, shapes are reproducible, all forms of a kernel agree, pages say what was found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from benchmarks.activations import most_alive
from benchmarks.arena import page as arena_page
from benchmarks.kernel_models import compiled, inputs, module, onnx_model
from benchmarks.kernel_shapes import Kernel, families
from benchmarks.kernels import keep as keep_kernel
from benchmarks.low_bit_layers import Layer
from benchmarks.low_bit_peers import codes, onnx_ring, openvino_ring, peers, rows, scales
from benchmarks.markdown import page
from benchmarks.plots import draw, ratios_svg, roofline_svg
from benchmarks.results import keep
from benchmarks.sources import RING_LEAST, RING_MOST, cache_bytes, ring, source
from benchmarks.suite import SUITE, Row, chosen
import dlc
from tests.models.zoo import ZOO

SMALL = [
    Kernel("linear", (3, 7, 5)),
    Kernel("conv", (2, 3, 9, 5, 3, 1, 1)),
    Kernel("conv", (1, 4, 9, 6, 3, 2, 1)),
    Kernel("conv", (1, 6, 5, 6, 3, 1, 6)),
    Kernel("layer_norm", (3, 7)),
    Kernel("softmax", (3, 7)),
    Kernel("chain", (3, 7)),
    Kernel("attention", (2, 2, 2, 5, 5, 4)),
    Kernel("attention", (1, 4, 2, 3, 7, 4)),
    Kernel("causal", (1, 4, 2, 5, 5, 4)),
    Kernel("causal", (2, 2, 2, 5, 5, 4)),
]


def test_every_row_has_a_model_and_a_name_of_its_own() -> None:
    assert len({row.name for row in SUITE}) == len(SUITE)
    for row in SUITE:
        model = row.entry.removesuffix("_bf16").removesuffix("_i8")
        assert model == "silero_vad" or model in ZOO
        if model in ZOO:
            assert bool(row.length) == (ZOO[model].symbolic_length or model == "whisper_tiny_encoder")


def test_models_in_narrow_types() -> None:
    """A bf16 model takes and gives f32; the file of a quantised one has byte products, and results near the model's."""
    row = Row("lstm_tagger_bf16", 1, 5)
    narrow, plain = source(row.entry), source("lstm_tagger")
    given = [torch.from_numpy(a) for a in narrow.inputs(row, 1)]
    with torch.no_grad():
        got, want = narrow.model()(*given), plain.model()(*given)
    assert all(g.dtype == torch.float32 and (g != w).any() for g, w in zip(flat(got), flat(want), strict=True))
    assert narrow.onnx_entry("openvino") == "lstm_tagger" and narrow.onnx_entry("iree") == row.entry
    assert source("mlp_i8").onnx_entry("openvino") == "mlp_i8" and not source("mlp_i8").python


def test_a_quantised_file(tmp_path: Path) -> None:
    row = Row("mlp_i8", 3)
    given = source(row.entry)
    given.write_onnx(tmp_path / "model.onnx")
    (x,) = given.inputs(row, 1)
    got = dlc.compile(tmp_path / "model.onnx")(x)
    with torch.no_grad():
        want = source("mlp").model()(torch.from_numpy(x))
    (got,), (want,) = flat(got), flat(want)
    assert 0.99 < np.corrcoef(got.ravel(), want.numpy().ravel())[0, 1] < 0.99999  # largest values are cut off


def flat(results: Any) -> tuple[Any, ...]:
    return tuple(results) if isinstance(results, (tuple, list)) else (results,)


def test_rows_are_chosen_by_row_or_by_model() -> None:
    assert [r.name for r in chosen(["resnet50-8", "minilm"])] == ["minilm-1x128", "resnet50-8"]
    assert [r.name for r in chosen(["resnet50"])] == ["resnet50-1", "resnet50-8"]
    with pytest.raises(ValueError, match="abacus"):
        chosen(["abacus"])


def test_the_ring_exceeds_the_cache_where_that_takes_few_sets() -> None:
    row = Row("mlp", 128)
    sets = ring(source("mlp"), row)
    assert RING_LEAST <= len(sets) <= RING_MOST
    assert len(sets) == RING_MOST or sum(a.nbytes for s in sets for a in s) > cache_bytes()
    assert not np.array_equal(sets[0][0], sets[1][0])


def test_kernels_are_reproducible_and_named() -> None:
    found = families()
    assert found == families()
    kernels = [k for family in found for k in family.kernels]
    assert all(Kernel.parse(k.name) == k for k in kernels)
    linear = next(f for f in found if f.name == "linear").kernels
    assert len(set(linear)) == 24 and all(k.dims[0] >= 128 for k in linear)
    assert any(set(k.dims) & {131, 197, 257, 509, 769, 1021, 2053} for k in linear)


@pytest.mark.parametrize("kernel", SMALL, ids=lambda k: k.name)
def test_all_forms_of_a_kernel_agree(kernel: Kernel) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    given = inputs(kernel, 1)
    with torch.no_grad():
        expected = module(kernel)(*given)
    assert tuple(expected.shape) == kernel.output
    session = onnxruntime.InferenceSession(onnx_model(kernel).SerializeToString())
    names = [i.name for i in session.get_inputs()]
    (other,) = session.run(None, {n: t.numpy() for n, t in zip(names, given)})
    ours = compiled(kernel)(*given)
    for result in (torch.from_numpy(other), ours):
        assert float((result - expected).abs().max()) < 2e-5


def test_operations_are_counted() -> None:
    assert Kernel("linear", (2, 3, 5)).flops == 60
    assert Kernel("conv", (1, 8, 10, 16, 3, 2, 1)).flops == 2 * 25 * 16 * 8 * 9
    assert Kernel("conv", (1, 8, 10, 16, 3, 1, 1)).flops == 4 * 2 * 100 * 16 * 8 * 9  # four layers in a row
    assert Kernel("conv", (1, 8, 10, 8, 3, 1, 8)).flops == 4 * 2 * 100 * 8 * 9
    assert Kernel("chain", (4, 5)).bytes == 4 * (20 + 20 + 10)


def test_a_result_replaces_its_row_and_the_page_says_it(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    keep(path, result("resnet50-8", 0.9))
    keep(path, result("bert_base-1x128", 1.25))
    keep(path, result("resnet50-8", 0.8))
    assert [r["row"] for r in json.loads(path.read_text())] == ["bert_base-1x128", "resnet50-8"]
    text = path.with_suffix(".md").read_text()
    assert "0.80 [0.79, 0.81] (openvino)" in text and "0.90 [" not in text
    assert "geometric mean of dlc / best peer is 1.000" in text and "in 1 of them" in text
    assert "| resnet50-8 | 300 / 100 + 200 |" in text
    assert "- resnet50-8, tvm: one call takes 66 s" in text
    assert text == page(json.loads(path.read_text()))


def test_other_numbers_of_threads_stay_with_their_date(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    first, second = result("resnet50-8", 0.9), result("resnet50-8", 0.8)
    first["date"], second["runs"][0]["threads"] = "2026-01-01 00:00", 1
    keep(path, first)
    keep(path, second)
    (kept,) = json.loads(path.read_text())
    assert [(run["threads"], run.get("date")) for run in kept["runs"]] == [(2, "2026-01-01 00:00"), (1, None)]
    assert "2 threads on 2026-01-01 00:00" in path.with_suffix(".md").read_text()


def result(row: str, ratio: float) -> dict[str, Any]:
    """A result as `benchmarks.measure` makes it."""

    def timed(name: str, median: float) -> dict[str, Any]:
        memory = {"base": 200e6, "prepare": 500e6, "run": 300e6}
        return {"name": name, "median": median, "block_medians": [median, median], "blocks": 5, "memory": memory}

    paired = {"ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01, "rounds": 5, "noisy": False}
    rows = [timed("dlc", ratio), timed("openvino", 1.0) | {"paired": paired}, {"name": "tvm", "absent": "one call takes 66 s"}]
    once = {"own_seconds": 1.0, "seconds": {"export": 1.0}, "from_cache": True, "distinct": 2, "launches": 3, "artifact_bytes": 5}
    run = {"threads": 2, "rows": rows, "ratio_to_best": ratio, "interval": [ratio - 0.01, ratio + 0.01], "best_peer": "openvino"}
    return {
        "row": row,
        "model": row.rpartition("-")[0],
        "inputs": ["float32[1, 3]"],
        "runs": [run | {"rounds": 5, "probe": None, "profile": None}],
        "compile": {"cold": once, "cached": once},
        "first_result_s": [0.1, 0.2, 0.3],
        "machine": {"cpu": "a CPU", "cores": 2, "versions": {}},
        "revision": "0123456789abcdef",
        "date": "2026-01-01 00:00",
        "load": [0.0, 0.0],
    }


def test_plots_are_xml_and_show_every_row(tmp_path: Path) -> None:
    results = [result("resnet50-8", 0.8), result("bert_base-1x128", 1.25)]
    drawn = ElementTree.fromstring(ratios_svg(results, 2))
    words = [e.text for e in drawn.iter() if e.tag.endswith("text")]
    assert {"resnet50-8", "bert_base-1x128", "1.25", "0.80"} <= set(words)
    kernels = [{"flops": 100, "bytes": 10, "gflops": rate} for rate in (50.0, 400.0)]
    limits = {"fma": 230.0, "read": 30.0, "copy": 40.0}
    roof = ElementTree.fromstring(roofline_svg([{"family": "a & b", "threads": 2, "limits": limits, "kernels": kernels}], 2))
    circles = [e for e in roof.iter() if e.tag.endswith("circle")]
    assert len(circles) == 3  # two kernels, and the family in the legend
    heights = [float(c.attrib["cy"]) for c in circles[:2]]
    assert heights[1] < heights[0]
    assert "a & b" in [e.text for e in roof.iter()]


def test_plots_go_beside_their_results(tmp_path: Path) -> None:
    (tmp_path / "latency.json").write_text(json.dumps([result("resnet50-8", 0.8)]))
    assert [p.name for p in draw(tmp_path)] == ["latency-2.svg"]


def test_kernels_are_kept_one_by_one_and_by_revision(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    for name, ratio, commit in (("chain_8_8", 0.5, "a"), ("chain_9_9", 0.25, "a"), ("chain_8_8", 0.125, "a")):
        keep_kernel(path, kernel_result(name, ratio, commit))
    (family,) = json.loads(path.read_text())
    assert [(k["name"], k["ratio"]) for k in family["kernels"]] == [("chain_8_8", 0.125), ("chain_9_9", 0.25)]
    assert "| 2 | 50.0% of copy | 90% | 5.66 |" in path.with_suffix(".md").read_text()
    keep_kernel(path, kernel_result("chain_9_9", 0.5, "b"))  # what another revision reached is forgotten
    (family,) = json.loads(path.read_text())
    assert [k["name"] for k in family["kernels"]] == ["chain_9_9"]


def kernel_result(name: str, ratio: float, commit: str) -> dict[str, Any]:
    """A result as `benchmarks.kernels` makes it."""
    paired = {"ratio": ratio, "interval": [ratio, ratio], "best_peer": "openvino", "noisy": False}
    rows = [{"name": "dlc", "median": ratio, "error": 0.0}, {"name": "openvino", "median": 1.0}]
    kernel = {"name": name, "flops": 0, "bytes": 80, "gbytes": 20.0, "share": 0.5, "rows": rows} | paired
    facts = {"machine": {"cpu": "a CPU", "cores": 2, "versions": {}}, "date": "2026-01-01 00:00", "load": [0.0, 0.0]}
    limits = {"fma": 230.0, "read": 30.0, "copy": 40.0}
    more = {"family": "chain-given", "threads": 2, "rounds": 5, "revision": commit, "limits": limits, "slow_looks": 0}
    return facts | more | {"kernels": [kernel]}


def test_the_most_that_is_alive_at_once() -> None:
    """Results and what was there before the call do not count; an address may be used twice."""
    events = [(1, 8, -64), (2, 16, 100), (3, 32, 50), (4, 16, -100), (5, 16, 70), (6, 48, 20), (7, 48, -20)]
    listed = [{"ts": t, "args": {"Addr": address, "Bytes": size}} for t, address, size in reversed(events)]
    assert most_alive(listed, set()) == 150 and most_alive(listed, {16}) == 150 and most_alive(listed, {32}) == 100


def test_page_of_the_arena() -> None:
    row = {"model": "m", "buffers": 3, "sum": 4000, "greedy": 2000, "packed": 1000, "in_place": 750, "in_place_bound": 750}
    touched = {"dlc": 800, "onnxruntime": "torch.onnx.export: no", "openvino": 1234567, "versions": {"openvino": "1"}}
    text = arena_page([row, row | {"touched": touched}])
    assert "| m | 3 | 4,000 | 2,000 | 1,000 | 750 | 0.750 | 750 |" in text
    assert "| m | 800 | torch.onnx.export: no | 1,234,567 |  |" in text and text.endswith("openvino 1.\n")


@pytest.mark.parametrize("peer", ["onnxruntime", "openvino"])
def test_a_peer_of_low_bits_multiplies_with_its_weights(peer: str) -> None:
    """The first layer of the ring against NumPy, to the error of activations in bytes; OpenVINO's codes are signed."""
    layer = Layer("u4", 3, 256, 64, 32)
    packed = codes(layer, 0)
    numbers = np.stack([packed & 15, packed >> 4], -1).reshape(layer.columns, layer.terms).astype(np.int8)
    numbers = numbers - 8 if peer == "onnxruntime" else numbers - 16 * (numbers > 7)
    want = rows(layer) @ (numbers * np.repeat(scales(layer), layer.group, 1)).T
    found: Any = (onnx_ring if peer == "onnxruntime" else openvino_ring)(layer, 1).run()
    got = found[0] if peer == "onnxruntime" else next(iter(found.values()))
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


def test_peers_of_low_bits_run() -> None:
    for layer in (Layer("u8", 1, 256, 64, 32), Layer("i4", 2, 256, 64, 32)):
        for make in peers(layer, None).values():
            turn = make(layer, 1)
            turn.run()
            assert turn.count == 2 and turn.bytes >= layer.terms * layer.columns // 2
