"""The verbs that need a compiled model, on a small cascade and small PyTorch and ONNX models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dlc.cli import main

CASCADE = """\
cascade scores(Q: f32[p, e], K: f32[m, e]) -> (S) {
  QK[p, m] = sum(e) Q[p, e] * K[m, e]
  S[p, m] = max(QK[p, m] * 0.5, 0.0)
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the cascade compiled, and its dumps."""
    path = tmp_path_factory.mktemp("compiled")
    (path / "scores.ein").write_text(CASCADE)
    output, dumps = path / "scores.dlc", path / "dumps"
    assert main(["compile", str(path / "scores.ein"), "-o", str(output), "--dump-dir", str(dumps)]) == 0
    return path


def test_dumps_are_complete_and_can_be_fed_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dumps = folder / "dumps"
    manifest = json.loads((dumps / "manifest.json").read_text())
    assert manifest["outcome"] == "ok" and manifest["target"]
    assert json.loads((dumps / "memory.json").read_text())["arena_bytes"] >= 0
    assert {p.suffix for p in (dumps / "kernels").iterdir()} >= {".tile", ".mlir", ".ein"}
    assert "</html>" in (dumps / "index.html").read_text()
    for program in sorted(dumps.glob("*.ein")):
        assert main(["opt", str(program), "--locs"]) == 0
        assert capsys.readouterr().out.strip() == program.read_text().strip(), program.name


def test_runs_on_random_and_given_inputs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs, first, second = (str(folder / n) for n in ("in.npz", "one.npz", "two.npz"))
    symbols = ["--symbol", "p=5", "--symbol", "m=7", "--symbol", "e=3"]
    artifact = str(folder / "scores.dlc")
    assert main(["run", artifact, *symbols, "--save-inputs", inputs, "--save", first, "--format", "json"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["name"] == "S" and row["shape"] == [5, 7] and row["min"] >= 0
    assert main(["run", artifact, "--input", inputs, "--save", second]) == 0
    assert main(["diff", first, second]) == 0
    arrays = np.load(inputs)
    want = np.maximum(arrays["Q"] @ arrays["K"].T * 0.5, 0)
    assert np.abs(np.load(first)["S"] - want).max() < 1e-5


def test_runs_where_only_numpy_is(folder: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'mlir', 'lark', 'ml_dtypes'): sys.modules[name] = None\n"
        f"from dlc.cli import main\nsys.exit(main(['run', {str(folder / 'scores.dlc')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_bench_profile_and_explain(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = str(folder / "scores.dlc")
    assert main(["bench", artifact, "--warmup", "0", "--duration", "0.05", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["rows"][0]["name"] == "dlc" and facts["rows"][0]["calls"] >= 5 and facts["gflops"] > 0
    assert main(["profile", artifact, "--repeat", "2", "--trace", str(folder / "trace.json")]) == 0
    assert "share" in capsys.readouterr().out
    assert json.loads((folder / "trace.json").read_text())
    assert main(["explain", artifact]) == 0
    assert "S: f32[p, m]" in capsys.readouterr().out
    assert main(["explain", str(folder / "scores.ein"), "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    kernel = facts["rows"][0]["kernel"]
    assert main(["explain", str(folder / "scores.ein"), "--kernel", kernel]) == 0
    assert f" {kernel}(" in capsys.readouterr().out


THREE_PASSES = """\
cascade attention(Q: f32[4, 3], K: f32[6, 3], V: f32[6, 2]) -> AV {
  QK[p, m] = sum(e) Q[p, e] * K[m, e]
  GM[p] = max(m) QK[p, m]
  SN[p, m] = exp(QK[p, m] - GM[p])
  SD[p] = sum(m) SN[p, m]
  A[p, m] = SN[p, m] / SD[p]
  AV[p, f] = sum(m) A[p, m] * V[m, f]
}
"""


def test_explain_counts_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "attention.ein"
    path.write_text(THREE_PASSES)
    assert main(["explain", str(path), "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["passes"] == 3
    row = next(r for r in facts["pass_analysis"] if (r["tensor"], r["rank"], r["level"]) == ("K", "m", "input"))
    assert (row["cascade"], row["passes"], row["ratio"]) == ("attention", 3, 1.0)
    assert [(b["pass"], b["reduction"], b["reader"]) for b in row["barriers"]] == [(2, "GM", "SN"), (3, "SD", "A")]
    assert row["footprint"] == {"elements": "6", "bytes": "24", "whole": True}
    assert row["bound_bytes"] == row["moved_bytes"] == 4 * (4 * 3 + 6 * 3 + 6 * 2 + 4 * 2)
    assert main(["explain", str(path)]) == 0
    told = capsys.readouterr().out
    section = told[told.index("\npasses (cache of ") :]
    assert "input attention: 3 passes" in section
    assert "      pass 2: SN, SD\n      barrier: A reads SN along m and needs SD, which is known only after" in section
    assert "200 B, at least 200 B: 1.00 times the bound" in section


def test_explain_prints_formulas_where_extents_are_symbols(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", str(folder / "scores.ein")]) == 0
    told = capsys.readouterr().out
    assert "input scores: 1 pass\n" in told
    assert "traffic: at least max(4*e*m + 4*e*p + 4*m*p, " in told


def test_verify_a_cascade(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder / "scores.ein")]) == 0
    assert "equal to the interpreter" in capsys.readouterr().out


def test_wrong_inputs_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(folder / "bad.npz", Q=np.zeros((2, 3), np.float32), K=np.zeros((2, 4), np.float32))
    assert main(["run", str(folder / "scores.dlc"), "--input", str(folder / "bad.npz")]) == 1
    assert "error[DLC05" in capsys.readouterr().err


def test_a_damaged_artifact_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((folder / "scores.dlc").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "damaged.dlc").write_bytes(data)
    assert main(["run", str(folder / "damaged.dlc")]) == 1
    assert "damaged" in capsys.readouterr().err


@pytest.fixture
def onnx_model(tmp_path: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3), dtype=np.float32), "w")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="first"),
            helper.make_node("Relu", ["product"], ["y"], name="second"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weight],
    )
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def test_verify_onnx_tensor_by_tensor(onnx_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(onnx_model), "--symbol", "n=3", "--every-tensor"]) == 0
    text = capsys.readouterr().out
    assert "ok  product" in text and "ok  y" in text and "equal to onnx" in text
    assert main(["doctor", "--coverage", str(onnx_model)]) == 0
    assert "everything is supported (2 nodes of 2 operators)" in capsys.readouterr().out


def test_shapes_of_an_onnx_model_can_be_declared(onnx_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(onnx_model.with_suffix(".dlc"))
    assert main(["compile", str(onnx_model), "-o", output, "--shape", "x=2x4", "--format", "json"]) == 0
    assert [str(e) for e in json.loads(capsys.readouterr().out)["inputs"][0]["shape"]] == ["2", "4"]
    assert main(["compile", str(onnx_model), "-o", output, "--shape", "x=rows,4", "--format", "json"]) == 0
    assert [str(e) for e in json.loads(capsys.readouterr().out)["inputs"][0]["shape"]] == ["rows", "4"]
    assert main(["compile", str(onnx_model), "-o", output, "--shape", "x=2"]) == 1
    assert "it has rank 2" in capsys.readouterr().err
    assert main(["compile", str(onnx_model), "-o", output, "--shape", "y=2"]) == 1
    assert "there is no such input" in capsys.readouterr().err


def test_verify_names_the_first_node_that_departs(
    onnx_model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlc.runtime.executable import Executable

    honest = Executable.__call__

    def wrong(self: Executable, *args: object, **kwargs: object) -> object:
        result = honest(self, *args, **kwargs)
        values = result if isinstance(result, tuple) else (result,)
        broken = tuple(np.maximum(v, 0.1) if (np.asarray(v) >= 0).all() else v for v in values)  # a broken Relu
        return broken if isinstance(result, tuple) else broken[0]

    monkeypatch.setattr(Executable, "__call__", wrong)
    assert main(["verify", str(onnx_model)]) == 4
    assert "the first node that departs: Relu 'second', tensor 'y'" in capsys.readouterr().out


def test_coverage_lists_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("Mystery", ["x"], ["a"], domain="example.org"),
            helper.make_node("StringNormalizer", ["s"], ["t"]),
        ],
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("s", TensorProto.STRING, [2]),
        ],
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("t", TensorProto.STRING, [2]),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("example.org", 1)]
    path = tmp_path / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    assert main(["doctor", "--coverage", str(path)]) == 3
    text = capsys.readouterr().out
    assert "Mystery" in text and "StringNormalizer" in text


def test_verify_pytorch_tensor_by_tensor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "small_net.py"
    file.write_text(
        "import torch\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))\n"
        "    return net, (torch.zeros(3, 4),), ({0: torch.export.Dim('n', min=1, max=64)},)\n"
    )
    assert main(["verify", f"{file}:make", "--symbol", "n=5", "--every-tensor"]) == 0
    text = capsys.readouterr().out
    assert "equal to eager PyTorch" in text and text.count("ok ") >= 4
    assert main(["doctor", "--coverage", f"{file}:make"]) == 0
