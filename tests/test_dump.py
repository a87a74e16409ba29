"""The dump directory and its report: complete, also after a failure, and readable by a browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from dlc.dump import CannotDump, Dump, load_constants
from dlc.errors import Unsupported
from dlc.ir.dtype import F32
from dlc.ir.einsum import TensorType, identity
from dlc.ir.parser import parse_cascade
from dlc.ir.program import Param, Program, Region, shape_of
from dlc.pass_report import analyse_cascade
from dlc.passes.pipeline import Pass, Pipeline

SOFTMAX = """
cascade s(X: f32[t, d]) -> Y {
  S[t] = sum(d) X[t, d]
  Y[t, d] = X[t, d] / S[t]
}
"""
TYPE = TensorType(F32, shape_of(4))


def program() -> Program:
    steps = (identity("A", "X", TYPE), identity("B", "A", TYPE), identity("C", "W", TYPE))
    return Program(
        "p",
        (Param("X", TYPE),),
        Region(steps, ("B", "C")),
        consts=(Param("W", TYPE),),
        data={"W": np.arange(4, dtype=np.float32)},
    )


@dataclass(frozen=True)
class DropCopy(Pass):
    """Read B from X."""

    name: ClassVar[str] = "drop-copy"

    def apply(self, program: Program) -> Program:
        steps = (identity("B", "X", TYPE), program.body.body[-1])
        return program.with_body(replace(program.body, body=steps))

    def statistics(self, before: Program, after: Program) -> dict[str, int | float]:
        return {"copies": len(before.body.body) - len(after.body.body)}


@dataclass(frozen=True)
class Idle(Pass):
    name: ClassVar[str] = "idle"

    def apply(self, program: Program) -> Program:
        return program


@dataclass(frozen=True)
class Refuse(Pass):
    name: ClassVar[str] = "refuse"

    def apply(self, program: Program) -> Program:
        raise Unsupported(op="Foo", reason="this is a test </script><!-- of quoting")


def dump_it(folder: Path, fail: bool = False) -> None:
    steps = (Idle(), DropCopy(), Refuse()) if fail else (Idle(), DropCopy())
    with Dump(folder, model="test.onnx") as dump:
        Pipeline(steps).run(program(), (dump,), verify=False)
        dump.kernel("k0", "mlir", "module { }")
        dump.kernel("k0", "asm", "vfmadd231ps")
        buffers = [
            {"name": "A", "bytes": 64, "offset": 0, "first": 0, "last": 1},
            {"name": "B", "bytes": 64, "offset": 64, "first": 1, "last": 2},
        ]
        dump.json("pass_analysis", {"cascades": [analyse_cascade(parse_cascade(SOFTMAX), "input", 1 << 20)]})
        dump.json("memory", {"arena_bytes": 128, "steps": 3, "buffers": buffers})


def test_writes_what_changed(tmp_path: Path) -> None:
    dump_it(tmp_path / "d")
    names = sorted(str(p.relative_to(tmp_path / "d")) for p in (tmp_path / "d").rglob("*") if p.is_file())
    assert names == [
        "000-input.ein",
        "002-drop-copy.ein",
        "constants/W.npy",
        "index.html",
        "kernels/k0.mlir",
        "kernels/k0.s",
        "manifest.json",
        "memory.json",
        "pass_analysis.json",
        "passes.jsonl",
    ]
    rows = [json.loads(line) for line in (tmp_path / "d/passes.jsonl").read_text().splitlines()]
    assert [(r["index"], r["pass"], r["changed"], r["sizes"]["einsums"]) for r in rows] == [
        (0, "input", True, 3),
        (1, "idle", False, 3),
        (2, "drop-copy", True, 2),
    ]
    assert rows[2]["statistics"] == {"copies": 1}
    manifest = json.loads((tmp_path / "d/manifest.json").read_text())
    assert manifest["outcome"] == "ok" and manifest["model"] == "test.onnx"
    assert manifest["pipeline"] == "idle,drop-copy" and len(manifest["digest"]) == 64
    constants = load_constants(tmp_path / "d/002-drop-copy.ein")
    assert np.array_equal(constants["W"], np.arange(4, dtype=np.float32))


def test_a_second_dump_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    dump_it(folder, fail=False)
    (folder / "mine.txt").write_text("keep")
    with Dump(folder) as dump:
        Pipeline((Idle(),)).run(program(), (dump,), verify=False)
    assert sorted(p.name for p in folder.glob("*.ein")) == ["000-input.ein"]
    assert not list(folder.glob("kernels/*"))
    assert (folder / "mine.txt").read_text() == "keep"


def test_a_failure_leaves_a_reproducer(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    with pytest.raises(Unsupported) as caught:
        dump_it(folder, fail=True)
    failed = folder / "003-refuse.FAILED-INPUT.ein"
    assert failed.read_text() == (folder / "002-drop-copy.ein").read_text()
    command = f"dlc opt {failed} --pass-pipeline refuse"
    assert caught.value.notes == ("in pass 3 of 3, 'refuse'", f"run that pass alone with: {command}")
    assert command in (folder / "reproduce.sh").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["outcome"] == "failed" and manifest["error"]["code"] == Unsupported.code
    assert "not supported: Foo" in (folder / "error.txt").read_text()
    page = (folder / "index.html").read_text()
    assert "</script><!--" not in page and "http" not in page.replace("http://www.w3.org/2000/svg", "")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotDump, match="cannot write to the dump directory"):
        Dump(tmp_path / "file")
    if os.geteuid() == 0:
        return  # root may write everywhere
    (tmp_path / "ro").mkdir(mode=0o500)
    with pytest.raises(CannotDump):
        Dump(tmp_path / "ro")


def test_small_floats_survive(tmp_path: Path) -> None:
    import ml_dtypes

    value = np.array([1.5, -2.0, 0.25, 3.0], dtype=ml_dtypes.bfloat16)
    with Dump(tmp_path) as dump:
        Pipeline((Idle(),)).run(replace(program(), data={"W": value}), (dump,), verify=False)
    assert load_constants(tmp_path / "000-input.ein")["W"].dtype == value.dtype
    assert (load_constants(tmp_path / "000-input.ein")["W"] == value).all()


def test_constants_over_the_limit_are_left_out(tmp_path: Path) -> None:
    with Dump(tmp_path, constants_limit_bytes=8) as dump:
        Pipeline((Idle(),)).run(program(), (dump,), verify=False)
    assert load_constants(tmp_path / "000-input.ein") == {}
    assert "left out" in json.loads((tmp_path / "manifest.json").read_text())["constants"]


@pytest.mark.slow
@pytest.mark.parametrize("tab", ["passes", "programs", "kernels", "fibers", "memory", "manifest", "error"])
def test_report_in_a_browser(tmp_path: Path, tab: str) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium here; `make test-all` installs it where it may")
    if tab == "error":
        with pytest.raises(Unsupported):
            dump_it(tmp_path, fail=True)
    else:
        dump_it(tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    flags += ["--virtual-time-budget=4000", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"]
    url = f"{(tmp_path / 'index.html').as_uri()}#{tab}"
    done = subprocess.run([browser, *flags, url], capture_output=True, text=True, timeout=120)
    assert 'data-ready="yes"' in done.stdout, done.stderr[-2000:]
    shown = done.stdout[done.stdout.index(f'<section id="{tab}">') :]
    want = {
        "passes": "drop-copy",
        "programs": 'class="del"',
        "kernels": "vfmadd231ps",
        "fibers": "Y reads X along d and needs S",
        "memory": "<rect",
        "manifest": "test.onnx",
        "error": "not supported: Foo",
    }
    assert want[tab] in shown
