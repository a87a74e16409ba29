"""The command line: help, exit codes, formats, and what needs no compiled model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlc.cli import VERBS, build_parser, main
from dlc.commands.demo import detect, synthetic_speech
from dlc.commands.diff import compare
from dlc.commands.explain import all_errors
from dlc.feeds import BadFeed, BadSymbol, call_arguments, load_inputs, random_inputs, save_arrays, symbol_values
from dlc.models import BadModelObject, NoSuchModel, open_model

CASCADE = """\
cascade scores(Q: f32[p, e], K: f32[m, e]) -> (S) {
  QK[p, m] = sum(e) Q[p, e] * K[m, e]
  S[p, m] = QK[p, m] * 0.5
}
"""


def dlc(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dlc.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture
def ein(tmp_path: Path) -> Path:
    path = tmp_path / "scores.ein"
    path.write_text(CASCADE)
    return path


def test_every_verb_has_help_worth_reading(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        text = capsys.readouterr().out
        assert f"dlc {verb} " in text.split("options:")[0], f"{verb} shows no example"
        assert text.count("\n") > 8, verb
    build_parser()  # all at once: no two verbs clash


def test_plain_dlc_prints_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().out
    assert all(verb in text for verb in VERBS) and "exit codes" in text


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["compile", "missing.onnx"], 1, "there is no model 'missing.onnx': no such file"),
        (["compile", "nonsense"], 1, "there is no model 'nonsense'"),
        (["nonsense"], 2, "invalid choice: 'nonsense'"),
        (["compile"], 2, "the following arguments are required: MODEL"),
        (["opt"], 2, "opt needs a FILE"),
        (["explain", "DLC9999"], 1, "there is no error DLC9999"),
        (["diff", "a.npz", "b.npz"], 1, "there is no 'a.npz'"),
        (["run", "missing.dlc"], 1, "there is no model 'missing.dlc'"),
        (["run", "x.dlc", "--int-range", "a:b"], 2, "write LO:HI, not 'a:b'"),
    ],
)
def test_exit_codes(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    os.chdir(tmp_path)
    assert main(arguments) == code
    assert words in capsys.readouterr().err


def test_errors_are_objects_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compile", "missing.onnx", "--format", "json"]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "DLC0660" and error["exit_code"] == 1 and "missing.onnx" in error["message"]


def test_explains_every_code(capsys: pytest.CaptureFixture[str]) -> None:
    codes = all_errors()
    assert len(codes) > 20
    for code, kind in codes.items():
        assert kind.template, code
        assert kind.exit_code in range(1, 7), code
    assert main(["explain", "DLC0301"]) == 0
    assert "there is no pass" in capsys.readouterr().out


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--format", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["numpy"] == np.__version__ and facts["cpu"]["threads"] >= 1
    assert main(["doctor"]) == 0
    assert "numpy" in capsys.readouterr().out


def test_opt_prints_what_it_can_read_again(ein: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["opt", str(ein)]) == 0
    text = capsys.readouterr().out
    again = tmp_path / "again.ein"
    again.write_text(text)
    assert main(["opt", str(again)]) == 0
    assert capsys.readouterr().out == text
    assert main(["diff", str(ein), str(again)]) in (0, 4)


def test_opt_lists_passes_and_refuses_unknown_ones(ein: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", str(ein), "--passes", "nope"]) == 1
    assert "there is no pass 'nope'" in capsys.readouterr().err
    assert main(["opt", "--list-passes"]) == 0


def test_opt_refuses_bad_text_with_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.ein"
    bad.write_text(CASCADE.replace("K[m, e]\n", "KK[m, e]\n"))
    assert main(["opt", str(bad)]) == 1
    message = capsys.readouterr().err
    assert message.startswith(f"{bad}:2:") and "KK" in message and "^" in message


def test_diff_of_programs(ein: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.ein"
    other.write_text(CASCADE.replace("0.5", "0.25"))
    assert main(["diff", str(ein), str(ein)]) == 0
    assert main(["diff", str(ein), str(other)]) == 4
    assert "1 lines removed, 1 added" in capsys.readouterr().out
    spaced = tmp_path / "spaced.ein"
    spaced.write_text(CASCADE.replace("  QK", "      QK"))
    assert main(["diff", str(ein), str(spaced)]) == 0


def test_diff_of_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.npz", tmp_path / "b.npz"
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    save_arrays(a, {"x": x, "n": np.arange(3)})
    save_arrays(b, {"x": x + np.float32(1e-3), "n": np.arange(3)})
    assert main(["diff", str(a), str(b), "--format", "json"]) == 4
    rows = {r["name"]: r for r in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["n"]["equal"] and not rows["x"]["equal"] and rows["x"]["error"] == pytest.approx(1e-3, rel=1e-3)
    assert main(["diff", str(a), str(b), "--tolerance", "1e-2"]) == 0


def test_diff_of_a_program_and_arrays_is_refused(
    ein: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros(2))
    assert main(["diff", str(ein), str(tmp_path / "x.npy")]) == 1
    assert "not of one kind" in capsys.readouterr().err


def test_compare_sees_nan_and_integers() -> None:
    nan = np.array([1.0, np.nan, np.inf])
    assert compare(nan, nan, 0.0)["equal"]
    assert not compare(np.array([1.0, 0.0, np.inf]), nan, 1.0)["equal"]
    assert not compare(np.array([1, 2]), np.array([1, 3]), 1.0)["equal"]
    assert not compare(np.zeros(3), np.zeros(4), 1.0)["equal"]
    assert compare(np.zeros(0), np.zeros(0), 0.0)["equal"]


MANIFEST: dict[str, Any] = {
    "inputs": [
        {"name": "ids", "dtype": "i64", "shape": ["b", "2*s"]},
        {"name": "x", "dtype": "f32", "shape": ["b", 3]},
        {"name": "keep", "dtype": "bool", "shape": []},
    ],
    "symbols": [{"name": "b", "lo": 1, "hi": 8, "divisor": 1}, {"name": "s", "lo": 0, "hi": None, "divisor": 4}],
}


def test_random_inputs_fit_the_manifest() -> None:
    symbols = symbol_values(MANIFEST, ["b=3"])
    assert symbols == {"b": 3, "s": 16}
    ids, x, keep = random_inputs(MANIFEST, symbols=symbols, seed=1, int_range=(5, 9))
    assert ids.shape == (3, 32) and ids.dtype == np.int64 and ids.min() >= 5 and ids.max() < 9
    assert x.shape == (3, 3) and x.dtype == np.float32 and keep.shape == () and keep.dtype == bool
    assert (random_inputs(MANIFEST, symbols=symbols, seed=1, int_range=(5, 9))[0] == ids).all()
    for wrong in ("b=9", "b=x", "q=1", "s=3", "b"):
        with pytest.raises(BadSymbol, match=r"the symbols are: b in 1..8, s in 0.. by 4"):
            symbol_values(MANIFEST, [wrong])


def test_inputs_from_files(tmp_path: Path) -> None:
    arrays = random_inputs(MANIFEST, symbols={"b": 2, "s": 4})
    path = tmp_path / "in.npz"
    save_arrays(path, dict(zip(("keep", "x", "ids"), reversed(arrays))))
    loaded = load_inputs(path, MANIFEST)
    assert all((a == b).all() for a, b in zip(loaded, arrays))
    save_arrays(path, {"x": arrays[1]})
    with pytest.raises(BadFeed, match="missing ids, keep"):
        load_inputs(path, MANIFEST)
    path.write_bytes(b"not an archive")
    with pytest.raises(BadFeed, match="no .npz or .npy file"):
        load_inputs(path, MANIFEST)


def test_arguments_take_the_models_nesting() -> None:
    def leaf(i: int) -> dict[str, Any]:
        return {"t": "leaf", "i": i}

    positional = {"t": "tuple", "c": [leaf(1), {"t": "list", "c": [leaf(0), {"t": "none"}]}]}
    named = {"t": "dict", "k": ["flag", "past"], "c": [{"t": "const", "v": True}, leaf(2)]}
    tree = {"t": "tuple", "c": [positional, named]}
    args, kwargs = call_arguments({"in_tree": tree}, ["a", "b", "c"])
    assert args == ("b", ["a", None]) and kwargs == {"flag": True, "past": "c"}
    assert call_arguments({}, ["a", "b"]) == (("a", "b"), {})


def test_models_from_python(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    file = tmp_path / "nets.py"
    file.write_text(
        "import torch\n"
        "def make():\n"
        "    return torch.nn.Linear(3, 2), (torch.zeros(4, 3),)\n"
        "net = torch.nn.ReLU()\n"
        "number = 3\n"
    )
    model = open_model(f"{file}:make")
    assert model.kind == "torch" and model.inputs is not None and model.name == "make"
    assert open_model(f"{file}:net").inputs is None
    with pytest.raises(BadModelObject, match="is a int, not a model"):
        open_model(f"{file}:number")
    with pytest.raises(NoSuchModel, match="has no 'nothing'"):
        open_model(f"{file}:nothing")
    with pytest.raises(NoSuchModel, match="No module named 'no_such_module'"):
        open_model("no_such_module:net")


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m dlc.cli doctor | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_interrupt_ends_quietly(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "slow.py").write_text(
        "import time, sys\ndef make():\n    print('started', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-m", "dlc.cli", "compile", f"{tmp_path}/slow.py:make"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=_interruptible
    )
    assert process.stdout is not None and process.stdout.readline() == "started\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors


def test_no_colour_without_a_terminal() -> None:
    done = dlc("explain", "DLC9999", env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 1 and "\x1b" not in done.stderr + done.stdout


def test_the_demos_signal_is_speech_where_it_says() -> None:
    signal_, truth = synthetic_speech()
    assert signal_.dtype == np.float32 and len(signal_) == len(truth) == 6 * 16_000
    assert np.abs(signal_[truth]).mean() > 10 * np.abs(signal_[~truth]).mean()
    calls = detect(lambda feeds: (np.abs(feeds["input"]).max(keepdims=True), feeds["state"]), signal_)
    assert len(calls) == len(signal_) // 512


def _interruptible() -> None:
    """A background job of a shell starts with SIGINT ignored, and its children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
