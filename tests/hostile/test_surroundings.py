"""A world that does not cooperate: folders that cannot be written, full disks, killed compilations, the command line's answers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import dlc
from dlc.dump import CannotDump
from dlc.runtime.errors import CannotWrite

TEXT = "cascade net(X: f32[n, 3]) -> (Y) { Y[n, i:3] = exp(X[n, i]) }"


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dlc.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "fixed"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_dump_folder(read_only: Path) -> None:
    for folder in (read_only, read_only / "below"):
        with pytest.raises(CannotDump) as caught:
            dlc.compile(TEXT, dump_dir=folder)
        assert str(folder) in str(caught.value) and "--dump-dir" in str(caught.value)


def test_dump_folders_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/dump")):
        with pytest.raises(CannotDump):
            dlc.compile(TEXT, dump_dir=folder)
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_dump_that_fills_the_disk_is_a_coded_error(small_disk: Path) -> None:
    with pytest.raises(CannotDump, match="[Nn]o space"):
        dlc.compile(TEXT, dump_dir=small_disk / "dump")


def test_a_read_only_cache_folder_only_costs_time(read_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLC_CACHE_DIR", str(read_only))
    np.testing.assert_allclose(dlc.compile(TEXT)(np.zeros((2, 3), np.float32)), np.ones((2, 3)), rtol=1e-6)


def test_a_full_disk_on_save_keeps_the_old_file(small_disk: Path) -> None:
    target = small_disk / "m.dlc"
    small = dlc.compile(TEXT)
    small.save(target)
    before = target.read_bytes()
    (small_disk / "filler").write_bytes(b"\0" * (60_000 - len(before) if len(before) < 60_000 else 0))
    with pytest.raises(CannotWrite):
        dlc.compile(TEXT.replace("exp", "sigmoid")).save(target)
    assert target.read_bytes() == before
    assert dlc.load(target)(np.zeros((1, 3), np.float32)).shape == (1, 3)
    assert sorted(p.name for p in small_disk.iterdir()) == ["filler", "m.dlc"]


def test_saving_to_a_read_only_place(read_only: Path) -> None:
    with pytest.raises(CannotWrite):
        dlc.compile(TEXT).save(read_only / "m.dlc")


COMMANDS = {
    "no such file": (("compile", "none.onnx"), 1, "DLC"),
    "a folder": (("compile", "."), 1, "DLC"),
    "no model": (("compile", "garbage.onnx"), 1, "DLC0240"),
    "no artifact": (("run", "garbage.dlc"), 1, "DLC"),
    "no cascade": (("compile", "broken.ein"), 1, "DLC0100"),
    "an unsafe read": (("compile", "unsafe.ein"), 1, "DLC0130"),
    "an unsupported operator": (("compile", "strings.onnx"), 3, "DLC"),
    "an unknown target": (("compile", "good.ein", "--target", "z80"), 1, "DLC0460"),
    "a pass that is not there": (("opt", "good.ein", "--passes", "magic"), 1, "DLC0301"),
    "a dump nowhere": (("compile", "good.ein", "--dump-dir", "good.ein"), 1, "DLC0601"),
    "an output nowhere": (("compile", "good.ein", "-o", "no/such/folder/m.dlc"), 1, "DLC"),
    "an unknown verb": (("conjure",), 2, "invalid choice"),
    "an option that is not there": (("compile", "good.ein", "--colour"), 2, "unrecognized arguments"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from onnx import TensorProto, helper

    where = tmp_path_factory.mktemp("models")
    (where / "garbage.onnx").write_bytes(bytes(range(256)))
    (where / "garbage.dlc").write_bytes(b"DLCART\x01\n" + bytes(100))
    (where / "good.ein").write_text(TEXT)
    (where / "broken.ein").write_text("cascade f(X: f32[n]) -> (Y) { Y[n] = X[n] + }")
    (where / "unsafe.ein").write_text("cascade f(X: f32[n]) -> (Y) { Y[n] = X[n + 1] }")
    value = helper.make_tensor_value_info
    node = helper.make_node("StringConcat", ["a", "a"], ["b"])
    names = value("a", TensorProto.STRING, ["n"]), value("b", TensorProto.STRING, ["n"])
    graph = helper.make_graph([node], "g", [names[0]], [names[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    (where / "strings.onnx").write_bytes(model.SerializeToString())
    return where


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_line_says_what_is_wrong(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The exit code, the error's code, a way out; no Python traceback."""
    from dlc.cli import main

    arguments, code, words = COMMANDS[name]
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main(list(arguments)) == code
    finally:
        os.chdir(here)
    text = capsys.readouterr().err
    assert words in text and "Traceback" not in text
    if code in (1, 3):
        assert "error[DLC" in text
        # a way out, or in the message itself what would do, or why not
        assert any(w in text for w in ("help:", "known are", "expected", "because")), text


def test_as_a_process() -> None:
    done = run("compile", "nowhere.onnx")
    assert done.returncode == 1 and "error[DLC" in done.stderr and not done.stdout
    assert run("conjure").returncode == 2


def test_the_error_of_a_model_names_its_place(folder: Path) -> None:
    done = run("compile", folder / "unsafe.ein")
    assert done.returncode == 1
    assert f"{folder / 'unsafe.ein'}:1:" in done.stderr and "X[n + 1]" in done.stderr and "help:" in done.stderr
