"""The contest that `dlc bench` and the benchmarks run: who is timed, who is not, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc.cli import main
from dlc.contender import read_ring, reason, save_ring
from dlc.contest import Contest, Entrant, largest_error, ratio_to_best

CASCADE = """\
cascade scores(Q: f32[p, e], K: f32[m, e]) -> (S) {
  S[p, m] = sum(e) Q[p, e] * K[m, e]
}
"""


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contest")
    (folder / "scores.ein").write_text(CASCADE)
    assert main(["compile", str(folder / "scores.ein"), "-o", str(folder / "scores.dlc")]) == 0
    return folder / "scores.dlc"


def ring(seed: int = 0) -> list[list[np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [[generator.standard_normal((n, 5), dtype=np.float32) for n in (3, 4)] for _ in range(2)]


def test_times_who_is_here_and_says_who_is_not(artifact: Path, tmp_path: Path) -> None:
    with Contest(ring(), threads=2, folder=tmp_path) as contest:
        contest.enter("dlc", model=str(artifact))
        contest.enter("missing", "dlc", model=str(tmp_path / "none.dlc"))
        contest.enter("openvino", absent="no ONNX file")
        contest.prepare()
        contest.check(["dlc"])
        rows = {r["name"]: r for r in contest.run(2, block_s=0.01)}
        profile = contest.profile(repeat=2)
    assert rows["dlc"]["calls"] >= 6 and rows["dlc"]["error"] is None
    assert rows["dlc"]["least"] <= rows["dlc"]["median"] <= rows["dlc"]["p90"]
    assert rows["openvino"]["absent"] == "no ONNX file"
    assert "none.dlc" in rows["missing"]["absent"] and "median" not in rows["missing"]
    assert profile is not None and profile["rows"][0]["symbol"].startswith("k_")


def test_who_is_wrong_is_not_timed(artifact: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    shapes = {"Q": ["p", "e"], "K": ["m", "e"], "S": ["p", "m"]}
    infos = {n: helper.make_tensor_value_info(n, kind, s) for n, s in shapes.items()}
    nodes = [
        helper.make_node("Transpose", ["K"], ["T"], perm=[1, 0]),
        helper.make_node("MatMul", ["Q", "T"], ["P"]),
        helper.make_node("Add", ["P", "P"], ["S"]),  # twice what it should be
    ]
    graph = helper.make_graph(nodes, "twice", [infos["Q"], infos["K"]], [infos["S"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(tmp_path / "twice.onnx"))
    with Contest(ring(), threads=1, folder=tmp_path, names=["Q", "K"]) as contest:
        contest.enter("dlc", model=str(artifact))
        contest.enter("onnxruntime", model=str(tmp_path / "twice.onnx"))
        contest.prepare()
        assert contest.check() == "onnxruntime"
        rows = {r["name"]: r for r in contest.run(1, block_s=0.01)}
    assert "results are wrong" in rows["dlc"]["absent"]
    assert ratio_to_best(list(rows.values())) is None


def test_bench_refuses_unknown_contenders(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(artifact), "--against", "abacus"]) == 1
    assert "abacus" in capsys.readouterr().err


def test_bench_says_which_peers_cannot_run_the_model(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers = "onnxruntime,eager,inductor"
    short = ["--rounds", "1", "--duration", "0.02", "--format", "json"]
    assert main(["bench", str(artifact), "--against", peers, *short]) == 0
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)["rows"]}
    assert set(rows) == {"dlc", "onnxruntime", "eager", "inductor", "inductor+freezing"}
    assert all(("absent" in row) == (name != "dlc") for name, row in rows.items())


def test_errors_are_relative_and_notice_nan_and_shapes() -> None:
    want = {"a": np.array([1.0, -4.0, np.nan, np.inf])}
    assert largest_error({"a": want["a"].copy()}, want) == 0
    assert largest_error({"a": np.array([1.0, -3.0, np.nan, np.inf])}, want) == 0.25
    assert largest_error({"a": np.array([1.0, -4.0, 0.0, np.inf])}, want) > 1e300
    assert largest_error({"a": np.zeros(3)}, want) == np.inf
    assert largest_error({}, want) == np.inf


def test_inputs_are_aligned(tmp_path: Path) -> None:
    given = [[np.arange(n, dtype=np.float32), np.array(7), np.zeros((0, 3))] for n in (1, 5, 100)]
    save_ring(tmp_path / "ring.npz", given)
    back = read_ring(str(tmp_path / "ring.npz"))
    for arrays, want in zip(back, given):
        for a, b in zip(arrays, want):
            assert np.array_equal(a, b) and a.dtype == b.dtype and (a.size == 0 or a.ctypes.data % 64 == 0)


def test_a_hopeless_contender_has_one_turn(artifact: Path, tmp_path: Path) -> None:
    with Contest(ring(), threads=1, folder=tmp_path) as contest:
        for name in ("dlc", "same", "slow"):
            contest.enter(name, "dlc", model=str(artifact))
        contest.prepare()
        for name, entrant in contest.entrants.items():
            entrant.keep = slowed(entrant, 100.0 if name == "slow" else 1.0)  # type: ignore[method-assign]
        rows = {r["name"]: r for r in contest.run(3, block_s=0.01)}
    assert [len(rows[n]["rounds"]) for n in ("dlc", "same", "slow")] == [3, 3, 1]
    assert rows["slow"]["paired"]["rounds"] == 1 and rows["same"]["paired"]["rounds"] >= 1
    memory = rows["dlc"]["memory"]
    assert 1 << 20 < memory["base"] <= memory["prepare"] and memory["run"] > 1 << 20


def slowed(entrant: Entrant, factor: float) -> Callable[[int, Any, bool], None]:
    keep = entrant.keep
    return lambda number, answer, fine: keep(number, {**answer, "times": [factor * t for t in answer["times"]]}, fine)


def test_a_library_s_refusal_says_what_it_is_about() -> None:
    assert reason(ValueError("bad\nmore")) == "bad"
    telling = RuntimeError("Exception from core.cpp:84:\nCheck 'false' failed at x.cpp:1:\nnot converted\n\n-- Conv-16 failed")
    assert reason(telling) == "not converted -- Conv-16 failed"
    assert reason(ValueError("")) == ""
